// Sampling of the CUDA backend: the state of the slots on the device, the
// launch, and the results.
#include <algorithm>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/cuda_step.h"
#include "kernels/cuda/sampling.h"
#include "kernels/cuda/sampling_params.h"

namespace quire {
void CudaBackend::AddSampling(std::vector<CudaReservation>* all) {
  sampling_ = std::make_unique<CudaSampling>();
  CudaSampling& sampling = *sampling_;
  const int64_t num_slots = shape_.max_num_seqs;
  sampling.lists_stride = kMaxListEntries + (shape_.vocab_size + 31) / 32;
  // A sequence's history and its draws together: each is at most one token a
  // position, plus the one after the last.
  sampling.history_stride = 2 * (int64_t{shape_.max_model_len} + 1);
  const auto add = [all](int64_t num_bytes, cuda::DeviceBuffer* buffer) {
    all->push_back({"sampling", num_bytes, buffer});
  };
  add(num_slots * int64_t{sizeof(cuda::SlotSampling)}, &sampling.slots);
  add(num_slots * sampling.lists_stride * 4, &sampling.lists);
  add(num_slots * shape_.vocab_size * 4, &sampling.token_counts);
  add(num_slots * sampling.history_stride * 4, &sampling.history);
  add(num_slots * 4, &sampling.history_sizes);
  add(num_slots * 4, &sampling.num_computed_tokens);
  add((int64_t{shape_.max_model_len} + 1) * 4, &sampling.start_tokens);
  const SampleResults layout(shape_.max_logit_rows, num_slots);
  add(layout.end * 4, &sampling.results);
  add(cuda::SamplingWorkspaceBytes(shape_.max_logit_rows, shape_.vocab_size),
      &sampling.workspace);
  AddRanks(all);
  // Beside the lists, what PackSlotSampling sorts with.
  sampling_lists_.reserve(sampling.lists_stride + kMaxListEntries);
}

absl::Status CudaBackend::StartSampling(const StepPlan& plan, CudaStep& step) {
  CudaSampling& sampling = *sampling_;
  char* const staging = step.starts.data();
  int64_t staged = 0;
  const auto copy = [&](void* to, const void* from, int64_t num_bytes) {
    if (num_bytes == 0) return absl::OkStatus();
    std::memcpy(staging + staged, from, num_bytes);
    const char* source = staging + staged;
    staged += num_bytes;
    return device_->CopyToDevice(to, source, num_bytes);
  };
  for (const SlotUpdate& update : plan.updates) {
    if (update.params == nullptr) continue;
    sampling_lists_.clear();
    const cuda::SlotSampling packed =
        cuda::PackSlotSampling(*update.params, update.num_prompt_tokens,
                               shape_.vocab_size, &sampling_lists_);
    const int64_t num_entries = static_cast<int64_t>(sampling_lists_.size());
    if (num_entries > sampling.lists_stride) {
      return absl::InvalidArgumentError(absl::StrCat(
          "slot ", update.slot,
          ": biases, bad words and other lists of ids have ", num_entries,
          " entries; a GPU takes ", sampling.lists_stride));
    }
    const bool has_tokens = packed.has_counts != 0 || packed.has_history != 0;
    const int64_t num_tokens =
        has_tokens ? static_cast<int64_t>(update.history.size()) : 0;
    if (staged + int64_t{sizeof(packed)} + 4 * (num_entries + num_tokens) >
        step.starts.num_bytes()) {
      QUIRE_RETURN_IF_ERROR(device_->Synchronize());
      staged = 0;
    }
    QUIRE_RETURN_IF_ERROR(
        copy(sampling.slots.data<cuda::SlotSampling>() + update.slot, &packed,
             sizeof(packed)));
    QUIRE_RETURN_IF_ERROR(copy(
        sampling.lists.data<int32_t>() + update.slot * sampling.lists_stride,
        sampling_lists_.data(), num_entries * 4));
    if (!has_tokens) continue;
    QUIRE_RETURN_IF_ERROR(copy(sampling.start_tokens.data(),
                               update.history.data(), num_tokens * 4));
    cuda::StartSlotArguments start;
    start.slot = update.slot;
    start.tokens = sampling.start_tokens.data<const int32_t>();
    start.num_tokens = static_cast<int32_t>(num_tokens);
    start.num_prompt_tokens = update.num_prompt_tokens;
    start.vocab_size = shape_.vocab_size;
    if (packed.has_counts != 0) {
      start.token_counts = sampling.token_counts.data<uint32_t>();
    }
    if (packed.has_history != 0) {
      start.history = sampling.history.data<int32_t>();
    }
    start.history_sizes = sampling.history_sizes.data<int32_t>();
    start.history_stride = sampling.history_stride;
    if (!cuda::LaunchStartSlot(start, device_->stream())) {
      return device_->LaunchError("StartSlot");
    }
  }
  return absl::OkStatus();
}

absl::Status CudaBackend::Sample(Step& step, TensorView logits) {
  CudaStep& cuda_step = AsCudaStep(step);
  if (cuda_step.is_sampled) {
    return absl::FailedPreconditionError("Sample was called before");
  }
  if (sampling_ == nullptr) {
    return absl::FailedPreconditionError("Sample: pooling was prepared");
  }
  const bool is_sliced =
      shape_.tensor_ranks != nullptr && logits.cols < shape_.vocab_size;
  if (cuda_step.num_logits > 0) {
    QUIRE_RETURN_IF_ERROR(CheckCudaView(
        "Sample: logits", logits, DType::kF32, cuda_step.num_logits,
        is_sliced ? logits.cols : shape_.vocab_size));
  }
  if (is_sliced) QUIRE_RETURN_IF_ERROR(CheckSlices(logits.cols));
  cuda_step.is_sampled = true;
  if (cuda_step.num_rows == 0) return absl::OkStatus();
  CudaSampling& sampling = *sampling_;
  const SampleResults layout(cuda_step.num_logits, cuda_step.num_rows);
  int32_t* const results = sampling.results.data<int32_t>();
  cuda::SampleArguments arguments;
  arguments.logits = static_cast<const float*>(logits.data);
  arguments.logits_stride = shape_.vocab_size;
  arguments.vocab_size = shape_.vocab_size;
  arguments.num_logits = cuda_step.num_logits;
  arguments.num_rows = cuda_step.num_rows;
  arguments.rows = cuda_step.d_sampling_rows;
  arguments.logit_rows = cuda_step.d_logit_rows;
  arguments.logit_tokens = cuda_step.d_logit_tokens;
  arguments.positions = cuda_step.d_positions;
  arguments.token_ids = cuda_step.d_token_ids;
  arguments.scored_ids = cuda_step.d_scored_ids;
  arguments.slots = sampling.slots.data<const cuda::SlotSampling>();
  arguments.lists = sampling.lists.data<const int32_t>();
  arguments.lists_stride = sampling.lists_stride;
  arguments.token_counts = sampling.token_counts.data<uint32_t>();
  arguments.history = sampling.history.data<int32_t>();
  arguments.history_sizes = sampling.history_sizes.data<int32_t>();
  arguments.history_stride = sampling.history_stride;
  arguments.num_computed_tokens = sampling.num_computed_tokens.data<int32_t>();
  arguments.last_tokens = last_tokens_.data<int32_t>();
  arguments.tokens = results + layout.tokens;
  arguments.logprobs = reinterpret_cast<float*>(results + layout.logprobs);
  arguments.ranks = results + layout.ranks;
  arguments.top_ids = results + layout.top_ids;
  arguments.top_logprobs =
      reinterpret_cast<float*>(results + layout.top_logprobs);
  arguments.num_drawn = results + layout.num_drawn;
  arguments.faults = results + layout.faults;
  arguments.workspace = sampling.workspace.data();
  if (is_sliced) return SampleSlices(cuda_step, logits, arguments);
  return cuda::LaunchSample(arguments, device_->stream())
             ? absl::OkStatus()
             : device_->LaunchError("Sample");
}

// Results without the gaps between the entries that a row did not ask for;
// rejected drafts leave the length of their sequence.
void CudaBackend::CollectSampled(CudaStep& step) {
  if (step.num_logits == 0) return;
  const SampleResults layout(step.num_logits, step.num_rows);
  const int32_t* ints = step.sampled.data<const int32_t>();
  const float* floats = step.sampled.data<const float>();
  step.top_ids.clear();
  step.top_logprobs.clear();
  // Spans into memory that was reserved for all.
  const auto take_top = [&](int64_t logit, int num, int32_t num_top,
                            absl::Span<const int32_t>* ids,
                            absl::Span<const float>* logprobs) {
    const size_t begin = step.top_ids.size();
    for (int64_t i = logit; i < logit + num && num_top > 0; ++i) {
      const int64_t first = i * cuda::kMaxTopLogprobs;
      step.top_ids.insert(step.top_ids.end(), ints + layout.top_ids + first,
                          ints + layout.top_ids + first + num_top);
      step.top_logprobs.insert(step.top_logprobs.end(),
                               floats + layout.top_logprobs + first,
                               floats + layout.top_logprobs + first + num_top);
    }
    *ids = absl::MakeConstSpan(step.top_ids).subspan(begin);
    *logprobs = absl::MakeConstSpan(step.top_logprobs).subspan(begin);
  };
  for (const int32_t row_idx : step.sampled_rows) {
    const CudaStepRow& state = step.rows[row_idx];
    const StepRow& row = state.row;
    const int32_t num_drawn = ints[layout.num_drawn + row_idx];
    const int64_t first_draw = int64_t{state.first_logit} + row.num_scored;
    RowResult& result = step.results.emplace_back();
    result.slot = row.slot;
    const int32_t faults = ints[layout.faults + row_idx];
    result.non_finite = (faults & cuda::kNonFiniteRow) != 0;
    result.all_masked = (faults & cuda::kAllMaskedRow) != 0;
    result.tokens = {ints + layout.tokens + first_draw,
                     static_cast<size_t>(num_drawn)};
    if (state.num_logprobs >= 0) {
      result.logprobs = {floats + layout.logprobs + first_draw,
                         static_cast<size_t>(num_drawn)};
      take_top(first_draw, num_drawn, state.num_logprobs, &result.top_ids,
               &result.top_logprobs);
    }
    if (row.num_scored > 0) {
      const size_t num_scored = row.num_scored;
      result.scored_logprobs = {floats + layout.logprobs + state.first_logit,
                                num_scored};
      result.scored_ranks = {ints + layout.ranks + state.first_logit,
                             num_scored};
      take_top(state.first_logit, row.num_scored, state.num_prompt_logprobs,
               &result.scored_top_ids, &result.scored_top_logprobs);
    }
    CudaSlot& slot = slots_[row.slot];
    if (row.num_drafts > 0 && slot.num_starts == state.start_serial) {
      slot.num_computed_tokens -= 1 + row.num_drafts - num_drawn;
      slot.has_pending_drafts = false;
    }
  }
}

}  // namespace quire
