// A step of the CUDA backend: from its plan to its results.
#include "kernels/cuda/cuda_step.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/slot_params.h"

namespace quire {

// Rows of few queries share the keys of a tile among warps, and CTAs share
// their keys; the others have work enough for both.
cuda::AttentionTile TileOf(const AttentionPlanner& planner, int num_tokens) {
  const int group = planner.shape.num_heads / planner.shape.num_kv_heads;
  const auto fits = [num_rows = num_tokens * group](cuda::AttentionTile tile) {
    return num_rows <= cuda::AttentionTileRows(tile);
  };
  if (planner.has_decode_tile &&
      (num_tokens == 1 || fits(cuda::AttentionTile::kDecode))) {
    return cuda::AttentionTile::kDecode;
  }
  return planner.has_warpgroup_tile && !fits(cuda::AttentionTile::kPrefill)
             ? cuda::AttentionTile::kWarpgroup
             : cuda::AttentionTile::kPrefill;
}

namespace {

// CTAs of an attention kernel that are worth launching for each multiprocessor:
// one more than shared memory lets run at once, in most shapes.
constexpr int64_t kTaskCtasPerSm = 4;

}  // namespace

absl::Status CudaBackend::ApplyUpdate(const SlotUpdate& update) {
  const auto fail = [&update](const auto&... what) {
    return absl::InvalidArgumentError(
        absl::StrCat("slot ", update.slot, ": ", what...));
  };
  if (update.slot < 0 || update.slot >= static_cast<int>(slots_.size())) {
    return fail("not in [0, ", slots_.size(), ")");
  }
  CudaSlot& slot = slots_[update.slot];
  const bool starts = update.params != nullptr;
  const int64_t history_size = update.history.size();
  if (!starts && !slot.is_active) return fail("holds no sequence");
  if (starts) {
    for (const absl::Status& status :
         {ValidateSlotParams(*update.params, shape_.vocab_size),
          CheckTokenIds("history", update.history, shape_.vocab_size)}) {
      if (!status.ok()) return fail(status.message());
    }
    // 20 are all that the kernels report, and that the server's API allows.
    if (std::max(update.params->num_logprobs,
                 update.params->num_prompt_logprobs) > cuda::kMaxTopLogprobs) {
      return fail("more than ", cuda::kMaxTopLogprobs,
                  " top log-probabilities");
    }
  }
  if (starts && (history_size > int64_t{shape_.max_model_len} + 1 ||
                 update.num_prompt_tokens < 0 ||
                 update.num_prompt_tokens > history_size ||
                 update.num_computed_tokens < 0 ||
                 update.num_computed_tokens > history_size)) {
    return fail("history of ", history_size, " tokens with ",
                update.num_prompt_tokens, " prompt tokens and ",
                update.num_computed_tokens, " computed, max_model_len ",
                shape_.max_model_len);
  }
  const size_t num_blocks =
      (starts ? 0 : slot.blocks.size()) + update.append_blocks.size();
  if (num_blocks > static_cast<size_t>(max_blocks_per_seq_)) {
    return fail(num_blocks, " blocks, the block table holds ",
                max_blocks_per_seq_);
  }
  for (const int32_t block : update.append_blocks) {
    if (block < 0 || block >= num_blocks_) {
      return fail("block ", block, " is not in [0, ", num_blocks_, ")");
    }
  }
  if (starts) {
    slot.is_active = true;
    slot.num_computed_tokens = update.num_computed_tokens;
    slot.num_pooled_tokens = 0;
    slot.num_start_tokens = static_cast<int32_t>(history_size);
    slot.has_last_token = false;
    ++slot.num_starts;
    slot.num_logprobs = update.params->num_logprobs;
    slot.num_prompt_logprobs = update.params->num_prompt_logprobs;
    slot.needs_whole_rows =
        shape_.tensor_ranks != nullptr && NeedsWholeRows(*update.params);
    slot.has_pending_drafts = false;
    slot.blocks.clear();
    slot.num_uploaded_blocks = 0;
  }
  slot.blocks.insert(slot.blocks.end(), update.append_blocks.begin(),
                     update.append_blocks.end());
  return absl::OkStatus();
}

absl::Status CudaBackend::CheckRow(const StepRow& row,
                                   const CudaStep& step) const {
  const auto fail = [&row](const auto&... what) {
    return absl::InvalidArgumentError(
        absl::StrCat("step row of slot ", row.slot, ": ", what...));
  };
  if (row.slot < 0 || row.slot >= static_cast<int>(slots_.size()) ||
      !slots_[row.slot].is_active) {
    return fail("the slot holds no sequence");
  }
  const CudaSlot& slot = slots_[row.slot];
  if (slot_step_[row.slot] == num_steps_) return fail("named twice");
  if (slot.has_pending_drafts) {
    return absl::FailedPreconditionError(
        absl::StrCat("step row of slot ", row.slot,
                     ": its last step had drafts and was not collected"));
  }
  const int32_t num_drawn = row.num_logits - row.num_scored;
  const bool logits_ok =
      row.num_drafts > 0
          ? row.num_scored == 0 && row.num_logits == 1 + row.num_drafts
          : row.num_scored >= 0 && (num_drawn == 0 || num_drawn == 1);
  if (row.num_tokens < 1 || row.num_drafts < 0 || !logits_ok ||
      row.num_logits > row.num_tokens) {
    return fail(row.num_tokens, " tokens, ", row.num_logits, " logits, ",
                row.num_scored, " scored, ", row.num_drafts, " drafts");
  }
  const int64_t begin =
      row.first_position >= 0 ? row.first_position : slot.num_computed_tokens;
  if (begin > slot.num_computed_tokens) {
    return fail("begins at ", begin, " with ", slot.num_computed_tokens,
                " tokens computed");
  }
  const int64_t end = begin + row.num_tokens;
  const int64_t capacity =
      static_cast<int64_t>(slot.blocks.size()) * shape_.block_size;
  if (end > shape_.max_model_len || end > capacity) {
    return fail("positions up to ", end, " with max_model_len ",
                shape_.max_model_len, " and ", slot.blocks.size(),
                " blocks of ", shape_.block_size);
  }
  if (int64_t{step.num_tokens} + row.num_tokens > shape_.max_num_tokens ||
      int64_t{step.num_logits} + row.num_logits > shape_.max_logit_rows) {
    return fail("the step exceeds ", shape_.max_num_tokens, " tokens or ",
                shape_.max_logit_rows, " logit rows");
  }
  if (row.source == TokenSource::kDeviceLast &&
      (row.num_tokens != 1 || !slot.has_last_token)) {
    return fail("kDeviceLast with ", row.num_tokens, " tokens and ",
                slot.has_last_token ? "a" : "no", " last token");
  }
  return absl::OkStatus();
}

absl::Status CudaBackend::AddRow(const StepRow& row,
                                 absl::Span<const int32_t> token_ids,
                                 size_t* next_token, CudaStep& step) {
  QUIRE_RETURN_IF_ERROR(CheckRow(row, step));
  slot_step_[row.slot] = num_steps_;
  if (row.source == TokenSource::kDeviceLast) {
    step.token_ids.push_back(~row.slot);
  } else {
    if (token_ids.size() - *next_token < static_cast<size_t>(row.num_tokens)) {
      return absl::InvalidArgumentError(absl::StrCat(
          "step row of slot ", row.slot, ": token_ids ends before its tokens"));
    }
    for (int i = 0; i < row.num_tokens; ++i) {
      const int32_t id = token_ids[(*next_token)++];
      if (id < 0 || id >= NumInputIds(shape_)) {
        return absl::InvalidArgumentError(
            absl::StrCat("step row of slot ", row.slot, ": token id ", id,
                         " with vocab_size ", NumInputIds(shape_)));
      }
      step.token_ids.push_back(id);
    }
  }
  if (row.num_logits > 0) {
    step.sampled_rows.push_back(static_cast<int32_t>(step.rows.size()));
  }
  CudaSlot& slot = slots_[row.slot];
  if (row.first_position >= 0) slot.num_computed_tokens = row.first_position;
  step.rows.push_back({row, slot.num_computed_tokens, slot.num_start_tokens,
                       step.num_tokens, step.num_logits, slot.num_starts,
                       slot.num_logprobs, slot.num_prompt_logprobs});
  step.num_tokens += row.num_tokens;
  step.num_logits += row.num_logits;
  step.num_scored += row.num_scored;
  return absl::OkStatus();
}

absl::Status CudaBackend::CheckPlan(const StepPlan& plan) const {
  if (plan.block_copies.size() > static_cast<size_t>(num_blocks_)) {
    return absl::InvalidArgumentError(absl::StrCat(plan.block_copies.size(),
                                                   " copies of blocks with ",
                                                   num_blocks_, " blocks"));
  }
  for (const auto& [from, to] : plan.block_copies) {
    if (from < 0 || from >= num_blocks_ || to < 0 || to >= num_blocks_) {
      return absl::InvalidArgumentError(absl::StrCat("copy of block ", from,
                                                     " to ", to, " with ",
                                                     num_blocks_, " blocks"));
    }
  }
  for (const int32_t id : plan.scored_ids) {
    if (id < 0 || id >= shape_.vocab_size) {
      return absl::InvalidArgumentError(absl::StrCat("cannot score token id ",
                                                     id, " with vocab_size ",
                                                     shape_.vocab_size));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<Step*> CudaBackend::BeginStep(const StepPlan& plan) {
  QUIRE_CHECK(is_prepared_);
  device_->MakeCurrent();  // The engine's thread is not the one that loads.
  const auto free =
      std::find_if(steps_.begin(), steps_.end(), [](const auto& candidate) {
        return candidate->state == CudaStep::State::kFree;
      });
  if (free == steps_.end()) {
    return absl::FailedPreconditionError(absl::StrCat(
        "all ", shape_.steps_in_flight, " steps in flight are uncollected"));
  }
  CudaStep& step = **free;
  QUIRE_RETURN_IF_ERROR(CheckPlan(plan));
  for (const SlotUpdate& update : plan.updates) {
    QUIRE_RETURN_IF_ERROR(ApplyUpdate(update));
  }
  ++num_steps_;
  step.is_sampled = step.is_advanced = false;
  step.pooling = Pooling::kNone;
  step.status = absl::OkStatus();
  step.num_tokens = step.num_logits = step.num_scored = 0;
  step.rows.clear();
  step.token_ids.clear();
  step.sampled_rows.clear();
  step.results.clear();
  size_t next_token = 0;
  for (const StepRow& row : plan.rows) {
    QUIRE_RETURN_IF_ERROR(AddRow(row, plan.token_ids, &next_token, step));
  }
  step.num_plan_tokens = step.num_tokens;
  step.num_plan_logits = step.num_logits;
  step.num_rows = static_cast<int32_t>(step.rows.size());
  step.needs_whole_rows = false;
  for (const CudaStepRow& state : step.rows) {
    step.needs_whole_rows |=
        shape_.tensor_ranks != nullptr &&
        (state.row.num_scored > 0 ||
         (state.row.num_logits > 0 && slots_[state.row.slot].needs_whole_rows));
  }
  Pad(step);
  if (next_token != plan.token_ids.size()) {
    return absl::InvalidArgumentError(
        absl::StrCat("the step has ", plan.token_ids.size(),
                     " token ids, its rows use ", next_token));
  }
  if (static_cast<int64_t>(plan.scored_ids.size()) != step.num_scored) {
    return absl::InvalidArgumentError(
        absl::StrCat("the step has ", plan.scored_ids.size(),
                     " ids to score, its rows ask for ", step.num_scored));
  }
  if (const absl::Status begun = EnqueueBegin(plan, step); !begun.ok()) {
    // Of an error that sticks, this call may be the first to hear.
    const absl::Status waited = device_->Synchronize();
    return waited.ok() ? begun : absl::UnavailableError(waited.message());
  }
  step.state = CudaStep::State::kBegun;
  return reinterpret_cast<Step*>(&step);
}

namespace {

// Token ids, positions, slots and the tokens of the logits of a step.
void StageTokens(CudaStep& step, StagingCursor& cursor) {
  const int64_t num_tokens = step.num_tokens;
  const int32_t* d_token_ids = nullptr;
  int32_t* token_ids = cursor.Take(num_tokens, &d_token_ids);
  step.d_token_ids = const_cast<int32_t*>(d_token_ids);
  int32_t* positions = cursor.Take(num_tokens, &step.d_positions);
  int32_t* slots = cursor.Take(num_tokens, &step.d_slots);
  int32_t* start_tokens = cursor.Take(num_tokens, &step.d_start_tokens);
  int32_t* logit_tokens = cursor.Take(step.num_logits, &step.d_logit_tokens);
  token_ids =
      std::copy(step.token_ids.begin(), step.token_ids.end(), token_ids);
  for (const CudaStepRow& state : step.rows) {
    const StepRow& row = state.row;
    for (int i = 0; i < row.num_tokens; ++i) {
      *positions++ = static_cast<int32_t>(state.first_position) + i;
      *slots++ = row.slot;
      *start_tokens++ = state.num_start_tokens;
    }
    for (int i = row.num_tokens - row.num_logits; i < row.num_tokens; ++i) {
      *logit_tokens++ = state.first_token + i;
    }
  }
  const int32_t num_padding = step.num_tokens - step.num_plan_tokens;
  std::fill_n(token_ids, num_padding, 0);
  std::fill_n(positions, num_padding, 0);
  std::fill_n(slots, num_padding, -1);
  std::fill_n(start_tokens, num_padding, 0);
  std::fill_n(logit_tokens, step.num_logits - step.num_plan_logits, 0);
}

void StagePoolRows(CudaStep& step, StagingCursor& cursor) {
  cuda::PoolRow* pool_row = cursor.Take(step.num_rows, &step.d_pool_rows);
  int32_t result = 0;
  for (const CudaStepRow& state : step.rows) {
    *pool_row++ = {state.row.slot, state.first_token, state.row.num_tokens,
                   static_cast<int32_t>(state.first_position),
                   state.row.num_logits > 0 ? result++ : -1};
  }
  std::fill_n(pool_row, step.num_rows - step.rows.size(),
              cuda::PoolRow{.slot = -1});
}

void StageSampling(absl::Span<const int32_t> plan_scored_ids, CudaStep& step,
                   StagingCursor& cursor) {
  cuda::SamplingRow* rows = cursor.Take(step.num_rows, &step.d_sampling_rows);
  int32_t* logit_rows = cursor.Take(step.num_logits, &step.d_logit_rows);
  int32_t* scored_ids = cursor.Take(step.num_logits, &step.d_scored_ids);
  int32_t first_scored = 0;
  for (size_t i = 0; i < step.rows.size(); ++i) {
    const StepRow& row = step.rows[i].row;
    *rows++ = {row.slot,
               row.num_tokens,
               step.rows[i].first_logit,
               row.num_scored,
               row.num_logits - row.num_scored,
               first_scored};
    logit_rows =
        std::fill_n(logit_rows, row.num_logits, static_cast<int32_t>(i));
    first_scored += row.num_scored;
  }
  std::fill_n(rows, step.num_rows - step.rows.size(), cuda::SamplingRow());
  std::fill_n(logit_rows, step.num_logits - step.num_plan_logits, -1);
  std::copy(plan_scored_ids.begin(), plan_scored_ids.end(), scored_ids);
}

// The lists of the sequences that `tile` serves.
cuda::AttentionWork StageAttention(const AttentionPlanner& planner,
                                   cuda::AttentionTile tile,
                                   cuda::AttentionSplits splits,
                                   const CudaStep& step,
                                   StagingCursor& cursor) {
  cuda::AttentionWork work;
  int64_t num_sequences = 0;
  for (const CudaStepRow& state : step.rows) {
    num_sequences += TileOf(planner, state.row.num_tokens) == tile;
  }
  if (num_sequences == 0) return work;
  cuda::AttentionSequence* const sequences =
      cursor.Take(num_sequences, &work.sequences);
  cuda::AttentionSequence* sequence = sequences;
  for (const CudaStepRow& state : step.rows) {
    if (TileOf(planner, state.row.num_tokens) != tile) continue;
    *sequence++ = {
        state.first_token, state.row.num_tokens,
        static_cast<int32_t>(state.first_position) + state.row.num_tokens,
        state.row.slot};
  }
  const auto all = absl::MakeConstSpan(sequences, num_sequences);
  const cuda::AttentionPlanSize size =
      cuda::SizeOfAttentionPlan(planner.shape, tile, splits, all);
  work.num_tasks = size.num_tasks;
  work.num_merges = size.num_merges;
  cuda::AttentionTask* const tasks = cursor.Take(size.num_tasks, &work.tasks);
  cuda::WriteAttentionPlan(planner.shape, tile, splits, all, tasks,
                           cursor.Take(size.num_merges, &work.merges));
  return work;
}

}  // namespace

// The grid of a padded step follows from its size, so that a captured launch
// serves all of that size. Tiles of many queries get a CTA each, as many as
// there may be; the tasks of decode, whose number grows with the context, are
// shared by a few CTAs for each multiprocessor.
void CudaBackend::SizeBatch(const AttentionPlanner& planner,
                            cuda::AttentionTile tile, const CudaStep& step,
                            AttentionBatch& batch) const {
  const int64_t num_sms = device_->properties().num_sms;
  const int64_t kv_heads = planner.shape.num_kv_heads;
  const int64_t group = planner.shape.num_heads / kv_heads;
  const int64_t tile_rows = cuda::AttentionTileRows(tile);
  if (tile != cuda::AttentionTile::kDecode) {
    batch.num_task_ctas = static_cast<int>(
        (step.num_tokens * group / tile_rows + step.num_rows) * kv_heads);
    batch.num_merge_ctas = 0;  // Keys are not split.
    return;
  }
  const int64_t num_splits = MaxSplits(planner);
  const int64_t num_tiles =
      step.num_rows * ((group + tile_rows - 1) / tile_rows) * kv_heads;
  batch.num_task_ctas = static_cast<int>(
      std::min(num_tiles * num_splits, kTaskCtasPerSm * num_sms));
  batch.num_merge_ctas =
      num_splits > 1 ? static_cast<int>(std::min(num_tiles, num_sms)) : 0;
}

cuda::AttentionSplits CudaBackend::SplitsOf(const AttentionPlanner& planner,
                                            cuda::AttentionTile tile) const {
  if (tile == cuda::AttentionTile::kDecode) return planner.splits;
  return {.most = 1};
}

// Of a row of few queries.
int64_t CudaBackend::MaxSplits(const AttentionPlanner& planner) const {
  const int64_t least = planner.splits.least_size;
  return std::min<int64_t>((shape_.max_model_len + least - 1) / least,
                           planner.splits.most);
}

// Requires: num_tokens, num_rows and num_logits are the plan's.
void CudaBackend::Pad(CudaStep& step) const {
  step.is_padded = step.num_tokens > 0 && step.num_tokens <= kMaxPaddedTokens;
  if (!step.is_padded) {
    step.num_tokens =
        std::min((step.num_tokens + 3) / 4 * 4, shape_.max_num_tokens);
    return;
  }
  // A decode (or verification of drafts) has as many rows of logits as tokens,
  // and as many rows: these go along, lest there be more shapes than needed.
  const int32_t num_tokens = PaddedTokens(step.num_tokens);
  const auto pad = [&](int32_t count, int32_t limit) {
    return std::min(count == step.num_tokens ? num_tokens : PaddedRows(count),
                    limit);
  };
  step.num_rows = pad(step.num_rows, shape_.max_num_seqs);
  step.num_logits = pad(step.num_logits, shape_.max_logit_rows);
  step.num_tokens = std::min(num_tokens, shape_.max_num_tokens);
}

CudaStepShape CudaBackend::ShapeOf(const CudaStep& step) const {
  CudaStepShape shape = {step.num_tokens, step.num_rows, step.num_logits, 0,
                         step.needs_whole_rows};
  for (size_t i = 0; i < step.attention.size(); ++i) {
    if (step.attention[i].num_task_ctas > 0) shape.attention |= 1ull << i;
  }
  return shape;
}

// Writes what the step needs into its staging memory, and notes where it will
// be on the device: for a padded step, up to the lists of the attention, at
// addresses that follow from its shape.
void CudaBackend::Stage(const StepPlan& plan, CudaStep& step,
                        StagingCursor& cursor) {
  StageTokens(step, cursor);
  if (shape_.pooled_cols > 0) {
    StagePoolRows(step, cursor);
  } else {
    StageSampling(plan.scored_ids, step, cursor);
  }
  const cuda::AttentionWork* d_work = nullptr;
  cuda::AttentionWork* const work =
      cursor.Take(static_cast<int64_t>(step.attention.size()), &d_work);
  for (size_t i = 0; i < step.attention.size(); ++i) {
    const AttentionPlanner& planner = planners_[i / cuda::kNumAttentionTiles];
    const auto tile =
        static_cast<cuda::AttentionTile>(i % cuda::kNumAttentionTiles);
    work[i] =
        StageAttention(planner, tile, SplitsOf(planner, tile), step, cursor);
    AttentionBatch& batch = step.attention[i];
    batch = {.work = d_work + i};
    if (work[i].num_tasks == 0) continue;
    if (step.is_padded) {
      SizeBatch(planner, tile, step, batch);
    } else {
      batch.num_task_ctas = work[i].num_tasks;
      batch.num_merge_ctas = work[i].num_merges;
    }
  }
}

// Uploads what the step needs, copies blocks, and updates the state of the
// sequences on the device.
absl::Status CudaBackend::EnqueueBegin(const StepPlan& plan, CudaStep& step) {
  StagingCursor cursor(step.staging.data(), metadata_.data(),
                       step.staging.num_bytes());
  Stage(plan, step, cursor);
  if (sampling_ != nullptr) QUIRE_RETURN_IF_ERROR(StartSampling(plan, step));
  new_blocks_.clear();
  for (const SlotUpdate& update : plan.updates) {
    CudaSlot& slot = slots_[update.slot];
    const int32_t num_blocks = static_cast<int32_t>(slot.blocks.size());
    for (int32_t i = slot.num_uploaded_blocks; i < num_blocks; ++i) {
      new_blocks_.push_back(
          {update.slot * max_blocks_per_seq_ + i, slot.blocks[i]});
    }
    slot.num_uploaded_blocks = num_blocks;
  }
  cuda::BeginStepArguments begin;
  begin.entries = cursor.Copy(new_blocks_);
  begin.num_entries = static_cast<int>(new_blocks_.size());
  begin.block_tables = block_tables_.data<int32_t>();
  begin.token_ids = step.d_token_ids;
  begin.num_tokens = step.num_plan_tokens;
  begin.last_tokens = last_tokens_.data<const int32_t>();
  const int32_t* d_copies = nullptr;
  int32_t* copies = cursor.Take(2 * plan.block_copies.size(), &d_copies);
  for (const auto& [from, to] : plan.block_copies) {
    *copies++ = from;
    *copies++ = to;
  }
  if (cursor.size() > 0) {
    QUIRE_RETURN_IF_ERROR(device_->CopyToDevice(
        metadata_.data(), step.staging.data(), cursor.size()));
  }
  QUIRE_RETURN_IF_ERROR(EnqueueBlockCopies(plan, d_copies));
  if (!cuda::LaunchBeginStep(begin, device_->stream())) {
    return device_->LaunchError("BeginStep");
  }
  return absl::OkStatus();
}

// In order: a later copy may read what an earlier one wrote, or write what it
// read. One launch takes copies of which no two name the same block.
absl::Status CudaBackend::EnqueueBlockCopies(const StepPlan& plan,
                                             const int32_t* d_copies) {
  size_t first = 0;
  while (first < plan.block_copies.size()) {
    ++num_copy_batches_;
    size_t end = first;
    for (; end < plan.block_copies.size(); ++end) {
      const auto& [from, to] = plan.block_copies[end];
      if (block_copy_[from] == num_copy_batches_ ||
          block_copy_[to] == num_copy_batches_) {
        break;
      }
      block_copy_[from] = block_copy_[to] = num_copy_batches_;
    }
    for (const CudaAttention& attention : attentions_) {
      const int64_t size = DTypeSize(attention.spec.kv_dtype);
      if (!cuda::LaunchBlockCopy(
              {.kv_cache = attention.kv.data<unsigned char>(),
               .num_layers = attention.spec.num_layers,
               .layer_bytes = attention.layer_elements * size,
               .block_bytes = attention.block_elements * size,
               .pairs = d_copies + 2 * first,
               .num_pairs = static_cast<int>(end - first)},
              device_->stream())) {
        return device_->LaunchError("BlockCopy");
      }
    }
    first = end;
  }
  return absl::OkStatus();
}

absl::Status CudaBackend::EndStep(Step& step) {
  CudaStep& cuda_step = AsCudaStep(step);
  QUIRE_CHECK(cuda_step.state == CudaStep::State::kBegun);
  cuda_step.state = CudaStep::State::kEnded;
  const bool is_pooled = cuda_step.pooling != Pooling::kNone;
  const bool is_advanced = cuda_step.is_advanced;
  if (cuda_step.status.ok() && !cuda_step.is_sampled &&
      cuda_step.num_plan_logits > 0) {
    cuda_step.status = absl::FailedPreconditionError(
        "the step asked for logits and was not sampled");
  }
  if (cuda_step.status.ok()) {
    for (const CudaStepRow& state : cuda_step.rows) {
      // Rejected drafts are taken back in Collect.
      CudaSlot& slot = slots_[state.row.slot];
      slot.num_computed_tokens += state.row.num_tokens;
      if (is_advanced) continue;
      slot.has_pending_drafts = state.row.num_drafts > 0;
      if (is_pooled) slot.num_pooled_tokens += state.row.num_tokens;
      slot.has_last_token |=
          !is_pooled && state.row.num_logits > state.row.num_scored;
    }
  }
  if (cuda_step.status.ok() && is_pooled && !cuda_step.sampled_rows.empty()) {
    cuda_step.status = device_->CopyToHost(
        cuda_step.embeddings.data(), embeddings_.data(),
        static_cast<int64_t>(cuda_step.sampled_rows.size()) *
            shape_.pooled_cols * int64_t{sizeof(float)});
  } else if (cuda_step.status.ok() && cuda_step.is_sampled && !is_advanced &&
             cuda_step.num_plan_logits > 0) {
    const SampleResults layout(cuda_step.num_logits, cuda_step.num_rows);
    cuda_step.status = device_->CopyToHost(
        cuda_step.sampled.data(), sampling_->results.data(), layout.end * 4);
  }
  cuda_step.status.Update(device_->Record(*cuda_step.event));
  return cuda_step.status;
}

bool CudaBackend::Done(const Step& step) const {
  const CudaStep& cuda_step = AsCudaStep(const_cast<Step&>(step));
  return cuda_step.state != CudaStep::State::kBegun &&
         device_->HasHappened(*cuda_step.event);
}

absl::StatusOr<absl::Span<const RowResult>> CudaBackend::Collect(Step& step) {
  CudaStep& cuda_step = AsCudaStep(step);
  QUIRE_CHECK(cuda_step.state == CudaStep::State::kEnded);
  cuda_step.state = CudaStep::State::kFree;
  // Also after an error: the staging memory is free only then.
  const absl::Status waited = communicator_ != nullptr
                                  ? communicator_->WaitFor(*cuda_step.event)
                                  : device_->Wait(*cuda_step.event);
  if (!waited.ok()) {
    // It sticks: nothing that this process computes on the GPU means anything.
    return absl::UnavailableError(waited.message());
  }
  QUIRE_RETURN_IF_ERROR(cuda_step.status);
  if (cuda_step.pooling != Pooling::kNone) {
    const int64_t cols = shape_.pooled_cols;
    for (size_t i = 0; i < cuda_step.sampled_rows.size(); ++i) {
      RowResult& result = cuda_step.results.emplace_back();
      result.slot = cuda_step.rows[cuda_step.sampled_rows[i]].row.slot;
      const float* embedding =
          cuda_step.embeddings.data<const float>() + i * cols;
      result.embedding = absl::MakeConstSpan(embedding, cols);
      result.non_finite =
          !std::all_of(embedding, embedding + cols,
                       [](float x) { return std::isfinite(x); });
    }
  } else if (!cuda_step.is_advanced) {
    CollectSampled(cuda_step);
  }
  return absl::Span<const RowResult>(cuda_step.results);
}

}  // namespace quire
