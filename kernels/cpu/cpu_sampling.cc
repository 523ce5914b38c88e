// The CPU backend's draws: rows of logits that lie here as a whole, and those
// of which every rank has a slice. And what the stages of a pipeline exchange.
//
// Of slices, greedy rows and draws without filters need one entry of each rank:
// its best one. Whatever else a row reports or is drawn by needs the whole row,
// gathered for as many rows at a time as whole_logits_ holds.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "engine/base/status.h"
#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/cpu_step.h"

namespace quire {
namespace {

// Top entries up to which a rank sends its own instead of its slice.
constexpr int kMaxSliceTop = 32;

// A SliceSample on its way to the other ranks, in f32 or with the bits of what
// is not: token (-1: not finite), score; with log-probabilities also logit,
// max, sum (two), and the top entries' ids and logits.
int64_t RecordSize(const SlotParams& params) {
  if (params.num_logprobs < 0) return 2;
  return 6 + int64_t{2} * params.num_logprobs;
}

float FloatOfBits(int32_t bits) { return std::bit_cast<float>(bits); }
int32_t BitsOfFloat(float value) { return std::bit_cast<int32_t>(value); }

void WriteRecord(const SliceSample& sample, int num_logprobs, float* to) {
  to[0] = FloatOfBits(sample.non_finite ? -1 : sample.token);
  to[1] = sample.score;
  if (num_logprobs < 0) return;
  to[2] = sample.logit;
  to[3] = sample.max;
  std::memcpy(to + 4, &sample.sum, sizeof(sample.sum));
}

// The draw of the whole row from the records of all ranks.
//   records: [num_ranks], `stride` apart.
//   order: room for num_ranks * num_logprobs.
void MergeRecords(const float* records, int num_ranks, int64_t stride,
                  int num_logprobs, std::vector<std::pair<float, int32_t>>* top,
                  SampleOutput* output) {
  float best = 0.0f;
  float logit = 0.0f;
  float max = -INFINITY;
  for (int rank = 0; rank < num_ranks; ++rank) {
    const float* const record = records + rank * stride;
    const int32_t token = BitsOfFloat(record[0]);
    if (token < 0) {
      output->non_finite = true;
      return;
    }
    // Ranks are in the order of ids: the first of equals has the lowest.
    if (rank == 0 || record[1] > best) {
      best = record[1];
      output->token = token;
      if (num_logprobs >= 0) logit = record[2];
    }
    if (num_logprobs >= 0) max = std::max(max, record[3]);
  }
  output->all_masked = best == -INFINITY;
  if (output->all_masked) output->token = 0;
  if (num_logprobs < 0) return;
  double sum = 0.0;
  top->clear();
  for (int rank = 0; rank < num_ranks; ++rank) {
    const float* const record = records + rank * stride;
    double part;
    std::memcpy(&part, record + 4, sizeof(part));
    sum += part * std::exp(double{record[3]} - max);
    for (int i = 0; i < num_logprobs; ++i) {
      const int32_t id = BitsOfFloat(record[6 + 2 * i]);
      if (id >= 0) top->push_back({record[6 + 2 * i + 1], id});
    }
    if (output->all_masked && rank == 0) logit = record[2];
  }
  const double log_sum = std::log(sum);
  const auto logprob = [&](float value) {
    return static_cast<float>(static_cast<double>(value) - max - log_sum);
  };
  output->logprob = logprob(logit);
  const int64_t num_top = std::min<int64_t>(num_logprobs, top->size());
  std::partial_sort(top->begin(), top->begin() + num_top, top->end(),
                    [](const auto& a, const auto& b) {
                      return a.first > b.first ||
                             (a.first == b.first && a.second < b.second);
                    });
  for (int64_t i = 0; i < num_top; ++i) {
    output->top_ids[i] = (*top)[i].second;
    output->top_logprobs[i] = logprob((*top)[i].first);
  }
}

}  // namespace

absl::Status CpuBackend::Transfer(Step& step, TransferKind kind,
                                  Communicator& ranks, int peer, TensorView x) {
  const int64_t num_rows = AsCpuStep(step).num_tokens;
  if (num_rows == 0) return absl::OkStatus();
  QUIRE_RETURN_IF_ERROR(CheckView("Transfer: x", x, num_rows, x.cols));
  x.rows = num_rows;
  return kind == TransferKind::kSend ? ranks.Send(x, peer, nullptr)
                                     : ranks.Receive(x, peer, nullptr);
}

absl::Status CpuBackend::Advance(Step& step) {
  CpuStep& cpu_step = AsCpuStep(step);
  if (cpu_step.is_sampled) {
    return absl::FailedPreconditionError("Advance: the step was sampled");
  }
  cpu_step.is_sampled = true;
  for (const StepRowState& state : cpu_step.rows) {
    slots_[state.row.slot].num_computed_tokens += state.row.num_tokens;
  }
  return absl::OkStatus();
}

void CpuBackend::ScoreLogitOfStep(CpuStep& step, size_t scored_idx,
                                  const float* logits,
                                  SamplingScratch& scratch) {
  const int32_t logit = step.scored_logits[scored_idx];
  const StepRow& row = step.rows[step.token_row[step.logit_token[logit]]].row;
  SampleOutput output;
  output.top_ids = step.top_ids.data() + step.top_begin[logit];
  output.top_logprobs = step.top_logprobs.data() + step.top_begin[logit];
  ScoreRow(isa_, logits, shape_.vocab_size, step.scored_ids[scored_idx],
           slots_[row.slot].params.num_prompt_logprobs, scratch, &output);
  step.logprobs[logit] = output.logprob;
  step.ranks[logit] = output.rank;
  step.is_non_finite[logit] = output.non_finite;
}

void CpuBackend::FinishScoredRow(CpuStep& step, size_t result_idx) {
  const StepRowState& state = step.rows[step.sampled_rows[result_idx]];
  const int32_t num_scored = state.row.num_scored;
  if (num_scored == 0) return;
  RowResult& result = step.results[result_idx];
  const int32_t first = state.first_logit;
  for (int i = 0; i < num_scored; ++i) {
    result.non_finite |= step.is_non_finite[first + i] != 0;
  }
  const int64_t num_top =
      int64_t{num_scored} *
      std::max(slots_[state.row.slot].params.num_prompt_logprobs, 0);
  const int64_t top_begin = step.top_begin[first];
  result.scored_logprobs =
      absl::MakeConstSpan(step.logprobs).subspan(first, num_scored);
  result.scored_ranks =
      absl::MakeConstSpan(step.ranks).subspan(first, num_scored);
  result.scored_top_ids =
      absl::MakeConstSpan(step.top_ids).subspan(top_begin, num_top);
  result.scored_top_logprobs =
      absl::MakeConstSpan(step.top_logprobs).subspan(top_begin, num_top);
}

// What SampleRow and SampleSlice are told of draw `draw_idx` of a row; the
// logits are the caller's to set.
SampleInput CpuBackend::InputOfDraw(const CpuStep& step,
                                    const StepRowState& state, int draw_idx) {
  const SlotState& slot = slots_[state.row.slot];
  const int32_t logit = state.first_logit + state.row.num_scored + draw_idx;
  SampleInput input;
  input.vocab_size = shape_.vocab_size;
  input.params = &slot.params;
  input.counts = slot.has_penalties ? &slot.counts : nullptr;
  if (slot.has_history) {
    input.history = {slot.history, static_cast<size_t>(slot.history_size)};
  }
  input.num_prompt_tokens = slot.num_prompt_tokens;
  input.position = int64_t{step.positions[step.logit_token[logit]]} + 1;
  input.num_generated =
      static_cast<int32_t>(input.position) - slot.num_prompt_tokens;
  return input;
}

void CpuBackend::SampleRowOfStep(CpuStep& step, size_t result_idx,
                                 const LogitRows& logits,
                                 SamplingScratch& scratch) {
  const StepRowState& state = step.rows[step.sampled_rows[result_idx]];
  const StepRow& row = state.row;
  SlotState& slot = slots_[row.slot];
  RowResult& result = step.results[result_idx];
  result = RowResult();
  result.slot = row.slot;
  const int num_logits = row.num_logits - row.num_scored;
  if (num_logits == 0) {
    slot.num_computed_tokens += row.num_tokens;
    return;
  }
  const int num_top = std::max(slot.params.num_logprobs, 0);
  const int32_t first = state.first_logit + row.num_scored;
  const int64_t top_begin = step.top_begin[first];
  int num_drawn = 0;
  for (int i = 0; i < num_logits; ++i) {
    const int32_t token_idx = step.logit_token[first + i];
    SampleOutput output;
    output.top_ids = step.top_ids.data() + top_begin + int64_t{i} * num_top;
    output.top_logprobs =
        step.top_logprobs.data() + top_begin + int64_t{i} * num_top;
    if (logits.draws != nullptr) {
      output = logits.draws[i];
    } else {
      SampleInput input = InputOfDraw(step, state, i);
      input.logits = logits.rows + i * logits.stride;
      SampleRow(isa_, input, scratch, &output);
    }
    if (output.non_finite) {
      // A token that means nothing, so that every row has a result.
      result.non_finite = true;
      step.tokens[first + i] = 0;
      step.logprobs[first + i] = 0.0f;
      const int64_t top = top_begin + int64_t{i} * num_top;
      std::fill_n(step.top_ids.begin() + top, num_top, 0);
      std::fill_n(step.top_logprobs.begin() + top, num_top, 0.0f);
      ++num_drawn;
      break;
    }
    result.all_masked |= output.all_masked;
    step.tokens[first + i] = output.token;
    step.logprobs[first + i] = output.logprob;
    ++num_drawn;
    slot.AddGeneratedToken(output.token);
    const bool is_accepted = !output.all_masked && i + 1 < num_logits &&
                             step.token_ids[token_idx + 1] == output.token;
    if (!is_accepted) break;
  }
  result.tokens = absl::MakeConstSpan(step.tokens).subspan(first, num_drawn);
  if (slot.params.num_logprobs >= 0) {
    result.logprobs =
        absl::MakeConstSpan(step.logprobs).subspan(first, num_drawn);
    result.top_ids = absl::MakeConstSpan(step.top_ids)
                         .subspan(top_begin, int64_t{num_drawn} * num_top);
    result.top_logprobs = absl::MakeConstSpan(step.top_logprobs)
                              .subspan(top_begin, int64_t{num_drawn} * num_top);
  }
  slot.last_token = result.tokens.back();
  slot.num_computed_tokens += row.num_tokens - (num_logits - num_drawn);
}

absl::Status CpuBackend::Sample(Step& step, TensorView logits) {
  CpuStep& cpu_step = AsCpuStep(step);
  if (cpu_step.is_sampled) {
    return absl::FailedPreconditionError("Sample was called before");
  }
  const bool is_sliced =
      shape_.tensor_ranks != nullptr && logits.cols < shape_.vocab_size;
  if (cpu_step.num_logits > 0) {
    QUIRE_RETURN_IF_ERROR(
        CheckView("Sample: logits", logits, cpu_step.num_logits,
                  is_sliced ? logits.cols : shape_.vocab_size));
  }
  if (is_sliced) QUIRE_RETURN_IF_ERROR(CheckSlices(logits.cols));
  cpu_step.is_sampled = true;
  cpu_step.tokens.resize(cpu_step.num_logits);
  cpu_step.logprobs.resize(cpu_step.num_logits);
  cpu_step.ranks.resize(cpu_step.num_logits);
  cpu_step.is_non_finite.resize(cpu_step.num_logits);
  cpu_step.top_begin.resize(cpu_step.num_logits);
  cpu_step.results.resize(cpu_step.sampled_rows.size());
  int64_t num_top = 0;
  for (const StepRowState& state : cpu_step.rows) {
    SlotState& slot = slots_[state.row.slot];
    if (state.row.num_logits == 0) {
      slot.num_computed_tokens += state.row.num_tokens;
      continue;
    }
    for (int i = 0; i < state.row.num_logits; ++i) {
      cpu_step.top_begin[state.first_logit + i] = num_top;
      num_top +=
          std::max(i < state.row.num_scored ? slot.params.num_prompt_logprobs
                                            : slot.params.num_logprobs,
                   0);
    }
  }
  cpu_step.top_ids.resize(num_top);
  cpu_step.top_logprobs.resize(num_top);
  if (is_sliced) return SampleSlices(cpu_step, logits);
  const int64_t num_scored = cpu_step.scored_logits.size();
  pool_.ParallelFor(
      num_scored + cpu_step.sampled_rows.size(), 1,
      [&](int64_t begin, int64_t end, int thread_idx) {
        SamplingScratch& scratch = sampling_scratch_[thread_idx];
        for (int64_t i = begin; i < end; ++i) {
          if (i < num_scored) {
            ScoreLogitOfStep(cpu_step, i,
                             logits.row<const float>(cpu_step.scored_logits[i]),
                             scratch);
            continue;
          }
          const StepRowState& state =
              cpu_step.rows[cpu_step.sampled_rows[i - num_scored]];
          LogitRows rows;
          rows.rows =
              logits.row<const float>(state.first_logit + state.row.num_scored);
          rows.stride = logits.row_stride;
          SampleRowOfStep(cpu_step, i - num_scored, rows, scratch);
        }
      });
  for (size_t i = 0; i < cpu_step.sampled_rows.size(); ++i) {
    FinishScoredRow(cpu_step, i);
  }
  return absl::OkStatus();
}

absl::Status CpuBackend::CheckSlices(int64_t slice_size) const {
  const Communicator& ranks = *shape_.tensor_ranks;
  const int64_t num_ids = slice_size * ranks.size();
  if (slice_size % 4 != 0 || num_ids < shape_.vocab_size ||
      num_ids - slice_size >= shape_.vocab_size ||
      num_ids > whole_logits_stride_) {
    return absl::InvalidArgumentError(absl::StrCat(
        "Sample: ", ranks.size(), " slices of ", slice_size,
        " logits are not those of vocab_size ", shape_.vocab_size));
  }
  return absl::OkStatus();
}

// Whether the draws of a row follow from the best entries of the slices. Those
// behind a draft would need the processors' state of its acceptance.
bool CpuBackend::DrawsFromSlices(const StepRow& row) {
  const SlotState& slot = slots_[row.slot];
  return !NeedsWholeRow(slot.params) &&
         slot.params.num_logprobs <= kMaxSliceTop &&
         (row.num_drafts == 0 || (!slot.has_penalties && !slot.has_history));
}

// Sends the best entries of this rank's slices and merges those of all.
absl::Status CpuBackend::ExchangeDraws(CpuStep& step, TensorView logits) {
  Communicator& ranks = *shape_.tensor_ranks;
  VocabSlice slice;
  slice.first_id = static_cast<int32_t>(ranks.rank() * logits.cols);
  slice.size = static_cast<int32_t>(
      std::min(logits.cols, shape_.vocab_size - int64_t{slice.first_id}));
  step.records.resize(step.num_logits);
  int64_t num_floats = 0;
  for (const int32_t row_idx : step.sampled_rows) {
    const StepRowState& state = step.rows[row_idx];
    for (int i = 0; i < state.row.num_logits; ++i) {
      CpuStep::Record& record = step.records[state.first_logit + i];
      record = CpuStep::Record();
      if (i < state.row.num_scored || !DrawsFromSlices(state.row)) continue;
      record.row_idx = row_idx;
      record.draw_idx = i - state.row.num_scored;
      record.begin = num_floats;
      num_floats += RecordSize(slots_[state.row.slot].params);
    }
  }
  if (num_floats == 0) return absl::OkStatus();
  step.own_records.resize(num_floats);
  step.all_records.resize(num_floats * ranks.size());
  pool_.ParallelFor(
      step.num_logits, 1, [&](int64_t begin, int64_t end, int thread_idx) {
        int32_t ids[kMaxSliceTop];
        float top_logits[kMaxSliceTop];
        for (int64_t logit = begin; logit < end; ++logit) {
          const CpuStep::Record& record = step.records[logit];
          if (record.begin < 0) continue;
          SampleInput input =
              InputOfDraw(step, step.rows[record.row_idx], record.draw_idx);
          input.logits = logits.row<const float>(logit);
          SliceSample sample;
          sample.top_ids = ids;
          sample.top_logits = top_logits;
          SampleSlice(isa_, input, slice, sampling_scratch_[thread_idx],
                      &sample);
          float* to = step.own_records.data() + record.begin;
          WriteRecord(sample, input.params->num_logprobs, to);
          for (int i = 0; i < input.params->num_logprobs && !sample.non_finite;
               ++i) {
            to[6 + 2 * i] = FloatOfBits(ids[i]);
            to[6 + 2 * i + 1] = top_logits[i];
          }
        }
      });
  QUIRE_RETURN_IF_ERROR(ranks.AllGather(
      TensorView::Vector(step.own_records.data(), DType::kF32, num_floats),
      TensorView::Matrix(step.all_records.data(), DType::kF32, ranks.size(),
                         num_floats),
      nullptr));
  step.draws.resize(step.num_logits);
  for (int32_t logit = 0; logit < step.num_logits; ++logit) {
    const CpuStep::Record& record = step.records[logit];
    if (record.begin < 0) continue;
    SampleOutput& output = step.draws[logit];
    output = SampleOutput();
    output.top_ids = step.top_ids.data() + step.top_begin[logit];
    output.top_logprobs = step.top_logprobs.data() + step.top_begin[logit];
    MergeRecords(step.all_records.data() + record.begin, ranks.size(),
                 num_floats,
                 slots_[step.rows[record.row_idx].row.slot].params.num_logprobs,
                 &step.merged_top, &output);
  }
  return absl::OkStatus();
}

// Gathers the logits [first, first + count) into whole_logits_.
absl::Status CpuBackend::GatherLogits(TensorView logits, int32_t first,
                                      int32_t count, int64_t* next_row) {
  for (int32_t i = 0; i < count; ++i) {
    float* const to = whole_logits_.data() + *next_row * whole_logits_stride_;
    QUIRE_RETURN_IF_ERROR(shape_.tensor_ranks->AllGather(
        TensorView::Vector(logits.row<float>(first + i), DType::kF32,
                           logits.cols),
        TensorView::Matrix(to, DType::kF32, shape_.tensor_ranks->size(),
                           logits.cols),
        nullptr));
    ++*next_row;
  }
  return absl::OkStatus();
}

// What needs whole rows: every rank gathers them and computes the same.
absl::Status CpuBackend::SampleGathered(CpuStep& step, TensorView logits) {
  std::vector<CpuStep::Gathered>& items = step.gathered;
  items.clear();
  for (size_t i = 0; i < step.scored_logits.size(); ++i) {
    items.push_back({static_cast<int32_t>(i), true, step.scored_logits[i], 1});
  }
  for (size_t i = 0; i < step.sampled_rows.size(); ++i) {
    const StepRowState& state = step.rows[step.sampled_rows[i]];
    const int32_t num_draws = state.row.num_logits - state.row.num_scored;
    if (num_draws == 0 || DrawsFromSlices(state.row)) continue;
    if (num_draws > num_whole_rows_) {
      return absl::InvalidArgumentError(absl::StrCat(
          "Sample: ", num_draws - 1, " drafts of slot ", state.row.slot,
          "; over several ranks at most ", num_whole_rows_ - 1));
    }
    items.push_back({static_cast<int32_t>(i), false,
                     state.first_logit + state.row.num_scored, num_draws});
  }
  for (size_t begin = 0; begin < items.size();) {
    int64_t num_rows = 0;
    size_t end = begin;
    while (end < items.size() &&
           num_rows + items[end].num_logits <= num_whole_rows_) {
      items[end].first_row = num_rows;
      QUIRE_RETURN_IF_ERROR(GatherLogits(logits, items[end].first_logit,
                                         items[end].num_logits, &num_rows));
      ++end;
    }
    pool_.ParallelFor(
        end - begin, 1, [&](int64_t first, int64_t last, int thread_idx) {
          SamplingScratch& scratch = sampling_scratch_[thread_idx];
          for (int64_t i = first; i < last; ++i) {
            const CpuStep::Gathered& item = items[begin + i];
            LogitRows rows;
            rows.rows =
                whole_logits_.data() + item.first_row * whole_logits_stride_;
            rows.stride = whole_logits_stride_;
            if (item.is_scored) {
              ScoreLogitOfStep(step, item.idx, rows.rows, scratch);
            } else {
              SampleRowOfStep(step, item.idx, rows, scratch);
            }
          }
        });
    begin = end;
  }
  return absl::OkStatus();
}

absl::Status CpuBackend::SampleSlices(CpuStep& step, TensorView logits) {
  QUIRE_RETURN_IF_ERROR(ExchangeDraws(step, logits));
  QUIRE_RETURN_IF_ERROR(SampleGathered(step, logits));
  for (size_t i = 0; i < step.sampled_rows.size(); ++i) {
    const StepRowState& state = step.rows[step.sampled_rows[i]];
    const bool has_draws = state.row.num_logits > state.row.num_scored;
    if (!has_draws || DrawsFromSlices(state.row)) {
      LogitRows rows;
      rows.draws = step.draws.data() + state.first_logit + state.row.num_scored;
      SampleRowOfStep(step, i, rows, sampling_scratch_[0]);
    }
    FinishScoredRow(step, i);
  }
  return absl::OkStatus();
}

}  // namespace quire
