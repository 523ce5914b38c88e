// The draw of the filtered rows (step 12 of kernels/sampling.h), what is
// reported of each row of logits, and the update of the slots.
#include "kernels/cuda/sampling.h"

#include "kernels/cuda/sampling_kernels.h"

namespace quire::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;

SIMT_KERNEL(kThreads)
DrawKernel(const SampleArguments a) {
  SIMT_SHARED(uint64_t, scratch, kWarps);
  simt::WaitForPrevious();
  simt::LaunchNext();
  const int64_t logit = simt::CtaY();
  const int32_t row_idx = a.logit_rows[logit];
  if (row_idx < 0) return;
  const SamplingRow row = a.rows[row_idx];
  if (row.slot < 0 || logit - row.first_logit < row.num_scored) return;
  const SlotSampling& p = a.slots[row.slot];
  if (!HasFilters(p)) return;
  const SamplingWorkspace w =
      SamplingWorkspaceAt(a.workspace, a.num_logits, a.vocab_size, nullptr);
  const RowFilter filter = w.filters[logit];
  const uint32_t floor_key = KeyOf(filter.floor);
  const int64_t position = int64_t{a.positions[a.logit_tokens[logit]]} + 1;
  const int64_t tile_idx = logit * w.num_tiles + simt::CtaX();
  const uint32_t* chunks = w.chunks + tile_idx * kChunksPerTile;
  const int warp = simt::ThreadX() / 32, lane = simt::ThreadX() % 32;
  uint64_t best = 0;
  for (int c = warp; c < kChunksPerTile; c += kWarps) {
    if (chunks[c] < floor_key) continue;
    const int32_t id = static_cast<int32_t>(simt::CtaX()) * kSamplingTile +
                       c * kSamplingChunk + lane * 4;
    const simt::Bytes16 bytes = simt::Load16(w.z + logit * w.row_stride + id);
    Philox4 words = {};
    if (!filter.is_greedy) words = DrawWords(p.draw_key, position, id);
    SIMT_UNROLL
    for (int i = 0; i < 4; ++i) {
      float value = std::bit_cast<float>(bytes.words[i]);
      if (id + i >= a.vocab_size || !(value >= filter.floor) ||
          !(value <= filter.ceiling)) {
        continue;
      }
      if (!filter.is_greedy) value += GumbelOfWord(words[i]);
      best = TakeMax()(best, ScoreKey(value, id + i));
    }
  }
  best = CtaReduce<kThreads>(best, TakeMax(), scratch);
  if (simt::ThreadX() == 0) w.tiles[tile_idx].best = best;
}

// The best entry of a chunk below `bound`, a ScoreKey; 0 if there is none. For
// every lane of the warp.
SIMT_DEVICE uint64_t BestOfChunk(const float* logits, int32_t vocab_size,
                                 int32_t chunk, uint64_t bound) {
  uint64_t best = 0;
  SIMT_UNROLL
  for (int i = 0; i < kSamplingChunk / 32; ++i) {
    const int32_t id = chunk * kSamplingChunk + i * 32 +
                       static_cast<int32_t>(simt::ThreadX() % 32);
    if (id >= vocab_size) continue;
    const uint64_t key = ScoreKey(logits[id], id);
    if (key < bound && key > best) best = key;
  }
  return WarpReduce(best, TakeMax());
}

// The num_top largest logits in order, one after the other: the chunk of the
// next one is known by its largest remaining entry.
//   chunk_keys: [kMaxSamplingChunks], shared.
SIMT_DEVICE void ReportTop(const float* logits, int32_t vocab_size,
                           const uint32_t* raw_chunks, int32_t num_top,
                           float max, double log_sum, uint32_t* chunk_keys,
                           uint64_t* scratch, int32_t* top_ids,
                           float* top_logprobs) {
  const int32_t num_chunks = (vocab_size + kSamplingChunk - 1) / kSamplingChunk;
  for (int c = simt::ThreadX(); c < num_chunks; c += kThreads) {
    chunk_keys[c] = raw_chunks[c];
  }
  simt::SyncThreads();
  uint64_t last = ~uint64_t{0};
  for (int n = 0; n < num_top; ++n) {
    uint64_t best_chunk = 0;
    for (int c = simt::ThreadX(); c < num_chunks; c += kThreads) {
      best_chunk = TakeMax()(best_chunk, uint64_t{chunk_keys[c]} << 32 |
                                             static_cast<uint32_t>(~c));
    }
    best_chunk = CtaReduce<kThreads>(best_chunk, TakeMax(), scratch);
    const int32_t chunk = IdOf(best_chunk);
    last = BestOfChunk(logits, vocab_size, chunk, last);
    const uint64_t next = BestOfChunk(logits, vocab_size, chunk, last);
    if (simt::ThreadX() == 0) {
      chunk_keys[chunk] = static_cast<uint32_t>(next >> 32);
      const int32_t id = IdOf(last);
      top_ids[n] = id;
      top_logprobs[n] =
          static_cast<float>(static_cast<double>(logits[id]) - max - log_sum);
    }
    if (!HasPlantedBug(PlantedBug::kSamplingTopReadsTooEarly)) {
      simt::SyncThreads();
    }
  }
}

// One CTA for each row of logits.
SIMT_KERNEL(kThreads)
ReportKernel(const SampleArguments a) {
  SIMT_SHARED(uint32_t, chunk_keys, kMaxSamplingChunks);
  SIMT_SHARED(uint64_t, scratch, kWarps);
  simt::WaitForPrevious();
  simt::LaunchNext();
  const int64_t logit = simt::CtaX();
  const int32_t row_idx = a.logit_rows[logit];
  if (row_idx < 0) return;
  const SamplingRow row = a.rows[row_idx];
  if (row.slot < 0) return;
  const SlotSampling& p = a.slots[row.slot];
  const SamplingWorkspace w =
      SamplingWorkspaceAt(a.workspace, a.num_logits, a.vocab_size, nullptr);
  const TileResult* tiles = w.tiles + logit * w.num_tiles;
  const int32_t num_tiles = static_cast<int32_t>(w.num_tiles);
  const int32_t offset = static_cast<int32_t>(logit) - row.first_logit;
  const bool is_scored = offset < row.num_scored;

  // At most 128 tiles: each warp goes over all of them.
  const int lane = simt::ThreadX() % 32;
  uint64_t best = 0;
  float max = -INFINITY;
  uint32_t num_larger = 0, num_bad = 0;
  for (int t = lane; t < num_tiles; t += 32) {
    best = TakeMax()(best, tiles[t].best);
    max = TakeMax()(max, tiles[t].max);
    num_larger += tiles[t].num_larger;
    num_bad += tiles[t].non_finite;
  }
  best = WarpReduce(best, TakeMax());
  max = WarpReduce(max, TakeMax());
  num_larger = simt::ReduceAdd(num_larger);
  num_bad = simt::ReduceAdd(num_bad);
  const bool is_bad = num_bad > 0;
  const int32_t token = is_scored ? a.scored_ids[row.first_scored + offset]
                        : is_bad || best == 0 ? 0
                                              : IdOf(best);
  const int32_t num_top = is_scored ? p.num_prompt_logprobs : p.num_logprobs;
  if (simt::ThreadX() == 0) {
    a.tokens[logit] = token;
    if (is_scored) a.ranks[logit] = static_cast<int32_t>(num_larger) + 1;
    // Nothing but -infinity was left to draw from.
    const bool is_masked =
        !is_scored && (best == 0 || best >> 32 == KeyOf(-INFINITY));
    w.filters[logit].faults = is_bad      ? kNonFiniteRow
                              : is_masked ? kAllMaskedRow
                                          : 0;
  }
  if (!is_scored && num_top < 0) return;
  int32_t* top_ids = a.top_ids + logit * kMaxTopLogprobs;
  float* top_logprobs = a.top_logprobs + logit * kMaxTopLogprobs;
  if (is_bad) {
    if (simt::ThreadX() == 0) a.logprobs[logit] = 0.0f;
    if (static_cast<int32_t>(simt::ThreadX()) < num_top) {
      top_ids[simt::ThreadX()] = 0;
      top_logprobs[simt::ThreadX()] = 0.0f;
    }
    return;
  }
  double sum = 0;
  for (int t = lane; t < num_tiles; t += 32) {
    sum += tiles[t].sum * std::exp(static_cast<double>(tiles[t].max) - max);
  }
  const double log_sum = std::log(WarpReduce(sum, TakeSum()));
  const float* logits = a.logits + logit * a.logits_stride;
  if (simt::ThreadX() == 0) {
    a.logprobs[logit] =
        static_cast<float>(static_cast<double>(logits[token]) - max - log_sum);
  }
  ReportTop(logits, a.vocab_size,
            w.raw_chunks + logit * w.num_tiles * kChunksPerTile, num_top, max,
            log_sum, chunk_keys, scratch, top_ids, top_logprobs);
}

// One warp for each row of the step.
SIMT_KERNEL(32)
FinishKernel(const SampleArguments a) {
  simt::WaitForPrevious();
  simt::LaunchNext();
  const int64_t row_idx = simt::CtaX();
  const SamplingRow row = a.rows[row_idx];
  if (row.slot < 0) return;
  const SamplingWorkspace w =
      SamplingWorkspaceAt(a.workspace, a.num_logits, a.num_ids, nullptr);
  const int32_t first = row.first_logit + row.num_scored;
  bool is_scored_bad = false;
  for (int32_t i = simt::ThreadX(); i < row.num_scored; i += 32) {
    is_scored_bad |= w.filters[row.first_logit + i].faults == kNonFiniteRow;
  }
  is_scored_bad = simt::Ballot(is_scored_bad) != 0;
  if (simt::ThreadX() != 0) return;
  int32_t num_drawn = 0;
  int32_t faults = is_scored_bad ? kNonFiniteRow : 0;
  const SlotSampling& p = a.slots[row.slot];
  bool is_accepted = row.num_draws > 0;
  // Where the draft lies that a draw is held against: after the draw's input.
  const int draft =
      HasPlantedBug(PlantedBug::kFinishDrawsTakesTheNextToken) ? 2 : 1;
  while (is_accepted) {
    const int32_t fault = w.filters[first + num_drawn].faults;
    faults |= fault;
    if (fault == kNonFiniteRow) {
      // A token that means nothing, so that every row has a result.
      a.tokens[first + num_drawn++] = 0;
      a.last_tokens[row.slot] = 0;
      break;
    }
    const int32_t token = a.tokens[first + num_drawn];
    if (p.has_counts) {
      ++a.token_counts[int64_t{row.slot} * a.vocab_size + token];
    }
    if (p.has_history && a.history_sizes[row.slot] < a.history_stride) {
      a.history[row.slot * a.history_stride + a.history_sizes[row.slot]++] =
          token;
    }
    a.last_tokens[row.slot] = token;
    const int32_t input = a.logit_tokens[first + num_drawn];
    ++num_drawn;
    is_accepted = fault == 0 && num_drawn < row.num_draws &&
                  a.token_ids[input + draft] == token;
  }
  a.faults[row_idx] = faults;
  a.num_drawn[row_idx] = num_drawn;
  a.num_computed_tokens[row.slot] +=
      row.num_tokens - (row.num_draws - num_drawn);
}

constexpr int kStartThreads = 512;

SIMT_KERNEL(kStartThreads)
StartSlotKernel(const StartSlotArguments a) {
  simt::WaitForPrevious();
  simt::LaunchNext();
  if (a.history) {
    int32_t* history = a.history + a.slot * a.history_stride;
    for (int i = simt::ThreadX(); i < a.num_tokens; i += kStartThreads) {
      if (i < a.history_stride) history[i] = a.tokens[i];
    }
    if (simt::ThreadX() == 0) {
      a.history_sizes[a.slot] = static_cast<int32_t>(
          a.num_tokens < a.history_stride ? a.num_tokens : a.history_stride);
    }
  }
  if (!a.token_counts) return;
  uint32_t* counts = a.token_counts + int64_t{a.slot} * a.vocab_size;
  for (int i = simt::ThreadX(); i < a.vocab_size; i += kStartThreads) {
    if (HasPlantedBug(PlantedBug::kStartSlotKeepsCounts)) break;
    counts[i] = 0;
  }
  if (!HasPlantedBug(PlantedBug::kStartSlotNoBarrierAfterZeros)) {
    simt::SyncThreads();
  }
  const int first_generated =
      HasPlantedBug(PlantedBug::kStartSlotCountsThePrompt)
          ? 0
          : a.num_prompt_tokens;
  for (int i = first_generated + simt::ThreadX(); i < a.num_tokens;
       i += kStartThreads) {
    simt::AtomicAdd(&counts[a.tokens[i]], 1u);
  }
  simt::SyncThreads();
  // Whoever writes an entry now writes the same.
  for (int i = simt::ThreadX(); i < a.num_prompt_tokens; i += kStartThreads) {
    counts[a.tokens[i]] |= kPromptToken;
  }
}

}  // namespace

int64_t SamplingWorkspaceBytes(int32_t num_logits, int32_t vocab_size) {
  int64_t num_bytes = 0;
  // Only distances count; from null there are none.
  SamplingWorkspaceAt(&num_bytes, num_logits, vocab_size, &num_bytes);
  return num_bytes;
}

bool LaunchSample(const SampleArguments& whole, simt::Stream stream) {
  SampleArguments arguments = whole;
  arguments.first_id = 0;
  arguments.num_ids = arguments.vocab_size;
  if (arguments.vocab_size < 1 || arguments.vocab_size > kMaxSamplingVocab) {
    return false;
  }
  if (arguments.num_logits > 0) {
    const uint32_t num_logits = static_cast<uint32_t>(arguments.num_logits);
    const uint32_t num_tiles = static_cast<uint32_t>(
        (arguments.vocab_size + kSamplingTile - 1) / kSamplingTile);
    if (!LaunchSamplingProcess(arguments, stream) ||
        !LaunchSamplingFilter(arguments, stream) ||
        !simt::Launch(&DrawKernel,
                      {.num_ctas_x = num_tiles,
                       .num_ctas_y = num_logits,
                       .num_threads = kThreads,
                       .waits_for_previous = true},
                      stream, arguments) ||
        !simt::Launch(&ReportKernel,
                      {.num_ctas_x = num_logits,
                       .num_threads = kThreads,
                       .waits_for_previous = true},
                      stream, arguments)) {
      return false;
    }
  }
  return LaunchSamplingFinish(arguments, stream);
}

bool LaunchSamplingFinish(const SampleArguments& arguments,
                          simt::Stream stream) {
  if (arguments.num_rows == 0) return true;
  return simt::Launch(&FinishKernel,
                      {.num_ctas_x = static_cast<uint32_t>(arguments.num_rows),
                       .num_threads = 32,
                       .waits_for_previous = true},
                      stream, arguments);
}

bool LaunchStartSlot(const StartSlotArguments& arguments, simt::Stream stream) {
  return simt::Launch(
      &StartSlotKernel,
      {.num_threads = kStartThreads, .waits_for_previous = true}, stream,
      arguments);
}

}  // namespace quire::cuda
