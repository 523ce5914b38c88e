// Steps 1 to 5 of kernels/sampling.h, and the draw where no filter is asked
// for: one CTA for each tile of each row of logits.
#include "kernels/cuda/sampling_kernels.h"

namespace quire::cuda {
namespace {

constexpr int kThreads = 512;
constexpr int kWarps = kThreads / 32;
constexpr int kChunksPerWarp = kChunksPerTile / kWarps;

// The tokens before a draw: the slot's history, then the drafts that the draw
// takes for accepted.
struct TokensBefore {
  const int32_t* history;
  const int32_t* drafts;
  int64_t history_size;
  int64_t size;

  SIMT_DEVICE int32_t operator[](int64_t i) const {
    return i < history_size ? history[i] : drafts[i - history_size];
  }
};

// What a CTA works on.
struct Tile {
  const SlotSampling* slot;
  const int32_t* lists;
  TokensBefore tokens;
  const int32_t* drafts;
  int32_t num_drafts;  // Before this draw.
  int32_t begin;       // First id.
  int64_t position;    // Of the token to draw.

  SIMT_DEVICE const int32_t* List(const SamplingList& list) const {
    return lists + list.begin;
  }
  SIMT_DEVICE bool Has(int32_t id) const {
    return id >= begin && id < begin + kSamplingTile;
  }
};

// Bias, then masks of single ids. `z`: [kSamplingTile], shared.
SIMT_DEVICE void ApplyLists(const Tile& tile, float* z) {
  const SlotSampling& p = *tile.slot;
  const int32_t* ids = tile.List(p.bias_ids);
  const int32_t* bias = tile.List(p.bias);
  for (int i = simt::ThreadX(); i < p.bias_ids.size; i += kThreads) {
    // The first of equal ids adds all of them.
    if (!tile.Has(ids[i]) || (i > 0 && ids[i - 1] == ids[i])) continue;
    float value = z[ids[i] - tile.begin];
    for (int j = i; j < p.bias_ids.size && ids[j] == ids[i]; ++j) {
      value += std::bit_cast<float>(bias[j]);
    }
    z[ids[i] - tile.begin] = value;
  }
  simt::SyncThreads();
  if (tile.position - p.num_prompt_tokens < p.min_tokens) {
    const int32_t* banned = tile.List(p.banned_before_min);
    for (int i = simt::ThreadX(); i < p.banned_before_min.size; i += kThreads) {
      if (tile.Has(banned[i])) z[banned[i] - tile.begin] = -INFINITY;
    }
  }
  const int32_t* begins = tile.List(p.bad_word_begins);
  const int32_t* words = tile.List(p.bad_word_ids);
  const int64_t num_generated = tile.tokens.size - p.num_prompt_tokens;
  for (int i = simt::ThreadX(); i + 1 < p.bad_word_begins.size; i += kThreads) {
    const int32_t begin = begins[i], last = begins[i + 1] - 1;
    if (!tile.Has(words[last])) continue;
    const int32_t num_before = last - begin;
    bool matches = num_before == 0 || num_before <= num_generated;
    for (int j = 0; j < num_before && matches; ++j) {
      matches =
          words[begin + j] == tile.tokens[tile.tokens.size - num_before + j];
    }
    if (matches) z[words[last] - tile.begin] = -INFINITY;
  }
  simt::SyncThreads();
}

// The first breaker sequence that begins with `id` or a larger one.
SIMT_DEVICE int32_t FirstBreaker(const int32_t* begins, const int32_t* ids,
                                 int32_t num_breakers, int32_t id) {
  int32_t low = 0, high = num_breakers;
  while (low < high) {
    const int32_t middle = (low + high) / 2;
    if (ids[begins[middle]] < id) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

// Length of the longest breaker that begins at `begin` and ends in the window;
// 0 if none does.
SIMT_DEVICE int32_t LongestBreaker(const Tile& tile, int64_t begin) {
  const SlotSampling& p = *tile.slot;
  const int32_t num_breakers = p.breaker_begins.size - 1;
  const int32_t* begins = tile.List(p.breaker_begins);
  const int32_t* ids = tile.List(p.breaker_ids);
  const int32_t first = tile.tokens[begin];
  int32_t longest = 0;
  for (int32_t b = FirstBreaker(begins, ids, num_breakers, first);
       b < num_breakers && ids[begins[b]] == first; ++b) {
    const int32_t length = begins[b + 1] - begins[b];
    if (length <= longest || begin + length > tile.tokens.size) continue;
    bool matches = true;
    for (int i = 1; i < length && matches; ++i) {
      matches = ids[begins[b] + i] == tile.tokens[begin + i];
    }
    if (matches) longest = length;
  }
  return longest;
}

// Tokens after the newest breaker of the window.
//   newest: one word, shared.
SIMT_DEVICE int64_t TokensSinceBreaker(const Tile& tile, int64_t window_begin,
                                       int32_t* newest) {
  const int64_t end = tile.tokens.size;
  if (tile.slot->breaker_begins.size == 0) return end - window_begin;
  if (simt::ThreadX() == 0) *newest = -1;
  simt::SyncThreads();
  // From the end, a position for each thread.
  for (int64_t last = end; last > window_begin; last -= kThreads) {
    const int64_t begin = last - 1 - simt::ThreadX();
    if (begin >= window_begin && LongestBreaker(tile, begin) > 0) {
      simt::AtomicMax(newest, static_cast<int32_t>(begin));
    }
    simt::SyncThreads();
    const int32_t found = *newest;
    simt::SyncThreads();
    if (found >= 0) return end - (found + LongestBreaker(tile, found));
  }
  return end - window_begin;
}

// Step 4: the longest repeat that each id of the tile would go on with, in
// `lengths` [kSamplingTile], shared; -1: none. A thread compares at one place
// of the window, and only before ids of its tile: the tiles share the work.
SIMT_DEVICE void MeasureRepeats(const Tile& tile, int32_t* newest,
                                int32_t* lengths) {
  const SlotSampling& p = *tile.slot;
  for (int i = simt::ThreadX(); i < kSamplingTile; i += kThreads) {
    lengths[i] = -1;
  }
  const TokensBefore& tokens = tile.tokens;
  int64_t size = tokens.size;
  if (p.dry_penalty_last_n >= 0 && size > p.dry_penalty_last_n) {
    size = p.dry_penalty_last_n;
  }
  simt::SyncThreads();
  if (size < 2 || size <= p.dry_allowed_length) return;
  const int64_t begin = tokens.size - size;
  int64_t limit = TokensSinceBreaker(tile, begin, newest);
  if (limit < p.dry_allowed_length) return;
  // Longer repeats lose no more: this bounds the work in a loop.
  const int32_t max_exponent = DryMaxExponent(p.dry_base);
  if (max_exponent > 0 && limit > p.dry_allowed_length + max_exponent) {
    limit = p.dry_allowed_length + max_exponent;
  }
  for (int64_t next = begin + 1 + simt::ThreadX(); next < tokens.size;
       next += kThreads) {
    const int32_t id = tokens[next];
    if (!tile.Has(id)) continue;
    int64_t length = 0;
    while (length < limit && length < next - begin &&
           tokens[next - 1 - length] == tokens[tokens.size - 1 - length]) {
      ++length;
    }
    if (length >= p.dry_allowed_length) {
      simt::AtomicMax(&lengths[id - tile.begin], static_cast<int32_t>(length));
    }
  }
  simt::SyncThreads();
}

SIMT_DEVICE float AfterDry(const Tile& tile, int32_t id, int32_t length,
                           float z) {
  const SlotSampling& p = *tile.slot;
  if (p.breaker_begins.size > 0) {
    const int32_t num_breakers = p.breaker_begins.size - 1;
    const int32_t* begins = tile.List(p.breaker_begins);
    const int32_t* ids = tile.List(p.breaker_ids);
    // In lexicographic order the shortest comes first.
    const int32_t b = FirstBreaker(begins, ids, num_breakers, id);
    if (b < num_breakers && ids[begins[b]] == id &&
        begins[b + 1] - begins[b] == 1) {
      return z;
    }
  }
  return z -
         DryPenalty(p.dry_multiplier, p.dry_base, p.dry_allowed_length, length);
}

// Step 3. `count`: of token_counts.
SIMT_DEVICE float AfterPenalties(const Tile& tile, int32_t id, uint32_t count,
                                 float z) {
  const SlotSampling& p = *tile.slot;
  for (int i = 0; i < tile.num_drafts; ++i) count += tile.drafts[i] == id;
  if (count == 0) return z;
  if (p.repetition_penalty != 1.0f) {
    z = z > 0.0f ? z / p.repetition_penalty
                 : simt::Product(z, p.repetition_penalty);
  }
  const uint32_t num_generated = count & ~kPromptToken;
  if (num_generated > 0) {
    z -= simt::Product(p.frequency_penalty, static_cast<float>(num_generated));
    z -= p.presence_penalty;
  }
  return z;
}

// Step 1, of one tile. `v`: the thread's entries, -infinity beyond the
// vocabulary.
SIMT_DEVICE void MeasureRaw(const SampleArguments& a, const float* logits,
                            const float (&v)[kChunksPerWarp][4], bool wants_sum,
                            int32_t scored_id, uint32_t* raw_chunks,
                            int32_t end, int32_t tile_begin, uint64_t* scratch,
                            TileResult* result) {
  const int warp = simt::ThreadX() / 32, lane = simt::ThreadX() % 32;
  uint32_t key = 0;
  bool is_finite = true;
  SIMT_UNROLL
  for (int c = 0; c < kChunksPerWarp; ++c) {
    uint32_t chunk_key = 0;
    const int32_t id =
        tile_begin + (c * kWarps + warp) * kSamplingChunk + lane * 4;
    SIMT_UNROLL
    for (int i = 0; i < 4; ++i) {
      if (id + i < end && !std::isfinite(v[c][i])) is_finite = false;
      const uint32_t entry = KeyOf(v[c][i]);
      chunk_key = entry > chunk_key ? entry : chunk_key;
    }
    chunk_key = simt::ReduceMax(chunk_key);
    if (lane == 0) raw_chunks[c * kWarps + warp] = chunk_key;
    key = chunk_key > key ? chunk_key : key;
  }
  const float max = ValueOf(CtaReduce<kThreads>(key, TakeMax(), scratch));
  const uint32_t num_bad =
      CtaReduce<kThreads>(uint32_t{!is_finite}, TakeSum(), scratch);
  double sum = 0;
  uint32_t num_larger = 0;
  if (wants_sum && num_bad == 0) {
    // In f32 over a thread's eight entries.
    float part = 0;
    SIMT_UNROLL
    for (int c = 0; c < kChunksPerWarp; ++c) {
      SIMT_UNROLL
      for (int i = 0; i < 4; ++i) part += simt::Exp(v[c][i] - max);
    }
    sum = CtaReduce<kThreads>(static_cast<double>(part), TakeSum(), scratch);
  }
  if (scored_id >= 0) {
    const float scored = logits[scored_id];
    SIMT_UNROLL
    for (int c = 0; c < kChunksPerWarp; ++c) {
      SIMT_UNROLL
      for (int i = 0; i < 4; ++i) num_larger += v[c][i] > scored;
    }
    num_larger = CtaReduce<kThreads>(num_larger, TakeSum(), scratch);
  }
  if (simt::ThreadX() == 0) {
    result->max = max;
    result->sum = sum;
    result->num_larger = static_cast<int32_t>(num_larger);
    result->non_finite = num_bad > 0;
    result->best = 0;
  }
}

// The sum is not a number, and not used, where every entry is masked.
SIMT_DEVICE void SumTile(const float (&z)[kChunksPerWarp][4], uint64_t* scratch,
                         TileResult* result) {
  float max = -INFINITY;
  SIMT_UNROLL
  for (int c = 0; c < kChunksPerWarp; ++c) {
    SIMT_UNROLL
    for (int i = 0; i < 4; ++i) max = z[c][i] > max ? z[c][i] : max;
  }
  max = CtaReduce<kThreads>(max, TakeMax(), scratch);
  float sum = 0;
  SIMT_UNROLL
  for (int c = 0; c < kChunksPerWarp; ++c) {
    SIMT_UNROLL
    for (int i = 0; i < 4; ++i) sum += simt::Exp(z[c][i] - max);
  }
  const double total =
      CtaReduce<kThreads>(static_cast<double>(sum), TakeSum(), scratch);
  if (simt::ThreadX() == 0) {
    result->z_max = max;
    result->z_sum = total;
  }
}

SIMT_DEVICE Tile MakeTile(const SampleArguments& a, const SamplingRow& row,
                          int64_t logit) {
  const SlotSampling& p = a.slots[row.slot];
  const int32_t offset = static_cast<int32_t>(logit) - row.first_logit;
  const int32_t token = a.logit_tokens[logit];
  Tile tile;
  tile.slot = &p;
  tile.lists = a.lists + row.slot * a.lists_stride;
  tile.begin = a.first_id + static_cast<int32_t>(simt::CtaX()) * kSamplingTile;
  tile.position = int64_t{a.positions[token]} + 1;
  tile.num_drafts = offset < row.num_scored ? 0 : offset - row.num_scored;
  tile.drafts = a.token_ids + token + 1 - tile.num_drafts;
  tile.tokens.history = a.history + row.slot * a.history_stride;
  tile.tokens.drafts = tile.drafts;
  tile.tokens.history_size = p.has_history ? a.history_sizes[row.slot] : 0;
  tile.tokens.size = tile.tokens.history_size + tile.num_drafts;
  return tile;
}

// Where a thread's chunk c begins in its tile.
SIMT_DEVICE int32_t InTile(int c) {
  const int warp = simt::ThreadX() / 32, lane = simt::ThreadX() % 32;
  return (c * kWarps + warp) * kSamplingChunk + lane * 4;
}

// `logits`: by id. -infinity from end_id on.
SIMT_DEVICE void LoadTile(const float* logits, int32_t tile_begin,
                          int32_t end_id, float (&v)[kChunksPerWarp][4]) {
  const bool is_aligned = reinterpret_cast<uintptr_t>(logits) % 16 == 0;
  SIMT_UNROLL
  for (int c = 0; c < kChunksPerWarp; ++c) {
    const int32_t id = tile_begin + InTile(c);
    if (is_aligned && id + 4 <= end_id) {
      const simt::Bytes16 bytes = simt::Load16(logits + id);
      SIMT_UNROLL
      for (int i = 0; i < 4; ++i)
        v[c][i] = std::bit_cast<float>(bytes.words[i]);
    } else {
      SIMT_UNROLL
      for (int i = 0; i < 4; ++i) {
        v[c][i] = id + i < end_id ? logits[id + i] : -INFINITY;
      }
    }
  }
}

// ApplyLists on entries that lie in registers.
SIMT_DEVICE void ApplyListsTo(const Tile& tile, float* z,
                              float (&v)[kChunksPerWarp][4]) {
  SIMT_UNROLL
  for (int c = 0; c < kChunksPerWarp; ++c) {
    SIMT_UNROLL
    for (int i = 0; i < 4; ++i) z[InTile(c) + i] = v[c][i];
  }
  simt::SyncThreads();
  ApplyLists(tile, z);
  SIMT_UNROLL
  for (int c = 0; c < kChunksPerWarp; ++c) {
    SIMT_UNROLL
    for (int i = 0; i < 4; ++i) v[c][i] = z[InTile(c) + i];
  }
}

// The allowed ids, steps 3 to 5 and, without filters, the draw: returns the
// thread's best score. With filters the entries go to the workspace.
//   lengths: MeasureRepeats's.
SIMT_DEVICE uint64_t FinishEntries(const SampleArguments& a, int32_t slot,
                                   const Tile& tile, const int32_t* lengths,
                                   int32_t end_id, float* z, uint32_t* chunks,
                                   float (&v)[kChunksPerWarp][4]) {
  const SlotSampling& p = *tile.slot;
  const int warp = simt::ThreadX() / 32, lane = simt::ThreadX() % 32;
  const bool has_dry = p.dry_multiplier != 0.0f;
  const bool is_greedy = p.temperature < kMinTemperature;
  const bool has_filters = HasFilters(p);
  const float divisor =
      is_greedy || p.dynatemp_range > 0.0f ? 1.0f : p.temperature;
  const int32_t* allowed = p.allowed.size > 0 ? tile.List(p.allowed) : nullptr;
  const uint32_t* counts =
      p.has_counts ? a.token_counts + int64_t{slot} * a.vocab_size : nullptr;
  uint64_t best = 0;
  SIMT_UNROLL
  for (int c = 0; c < kChunksPerWarp; ++c) {
    const int32_t in_tile = InTile(c);
    const int32_t id = tile.begin + in_tile;
    uint32_t key = 0;
    Philox4 words = {};
    if (!is_greedy && !has_filters) {
      words = DrawWords(p.draw_key, tile.position, id);
    }
    simt::Bytes16 bytes;
    SIMT_UNROLL
    for (int i = 0; i < 4; ++i) {
      float value = v[c][i];
      if (id + i < end_id) {
        if (allowed && !(allowed[(id + i) / 32] >> ((id + i) % 32) & 1)) {
          value = -INFINITY;
        }
        if (counts) value = AfterPenalties(tile, id + i, counts[id + i], value);
        if (has_dry && lengths[in_tile + i] >= 0) {
          value = AfterDry(tile, id + i, lengths[in_tile + i], value);
        }
        value /= divisor;
        const uint64_t score = ScoreKey(
            is_greedy || has_filters ? value : value + GumbelOfWord(words[i]),
            id + i);
        best = score > best ? score : best;
      }
      v[c][i] = value;
      bytes.words[i] = std::bit_cast<uint32_t>(value);
      const uint32_t entry = KeyOf(value);
      key = entry > key ? entry : key;
    }
    if (has_filters) {
      simt::Store16(z + id, bytes);
      key = simt::ReduceMax(key);
      if (lane == 0) chunks[c * kWarps + warp] = key;
    }
  }
  return best;
}

SIMT_KERNEL(kThreads)
ProcessKernel(const SampleArguments a) {
  SIMT_SHARED(float, z, kSamplingTile);
  SIMT_SHARED(int32_t, lengths, kSamplingTile);
  SIMT_SHARED(uint64_t, scratch, kWarps);
  SIMT_SHARED(int32_t, newest, 1);
  simt::WaitForPrevious();
  simt::LaunchNext();
  const int64_t logit = simt::CtaY();
  const int32_t row_idx = a.logit_rows[logit];
  if (row_idx < 0) return;
  const SamplingRow row = a.rows[row_idx];
  if (row.slot < 0) return;
  const SlotSampling& p = a.slots[row.slot];
  const int32_t offset = static_cast<int32_t>(logit) - row.first_logit;
  const bool is_scored = offset < row.num_scored;
  const SamplingWorkspace w =
      SamplingWorkspaceAt(a.workspace, a.num_logits, a.num_ids, nullptr);
  const int64_t tile_idx = logit * w.num_tiles + simt::CtaX();
  const Tile tile = MakeTile(a, row, logit);
  const int32_t end_id = a.first_id + a.num_ids;

  // By id.
  const float* logits = a.logits + logit * a.logits_stride - a.first_id;
  float v[kChunksPerWarp][4];
  LoadTile(logits, tile.begin, end_id, v);
  MeasureRaw(a, logits, v, is_scored || p.num_logprobs >= 0,
             is_scored ? a.scored_ids[row.first_scored + offset] : -1,
             w.raw_chunks + tile_idx * kChunksPerTile, end_id, tile.begin,
             scratch, &w.tiles[tile_idx]);
  if (is_scored) return;

  if (p.bias_ids.size > 0 || p.banned_before_min.size > 0 ||
      p.bad_word_begins.size > 0) {
    ApplyListsTo(tile, z, v);
  }
  if (p.dry_multiplier != 0.0f) MeasureRepeats(tile, newest, lengths);
  uint64_t best = FinishEntries(a, row.slot, tile, lengths, end_id,
                                w.z + logit * w.row_stride,
                                w.chunks + tile_idx * kChunksPerTile, v);
  if (HasRowSum(p)) SumTile(v, scratch, &w.tiles[tile_idx]);
  if (HasFilters(p)) return;
  best = CtaReduce<kThreads>(best, TakeMax(), scratch);
  if (simt::ThreadX() == 0) w.tiles[tile_idx].best = best;
}

}  // namespace

bool LaunchSamplingProcess(const SampleArguments& arguments,
                           simt::Stream stream) {
  const int64_t num_tiles =
      (arguments.num_ids + kSamplingTile - 1) / kSamplingTile;
  return simt::Launch(
      &ProcessKernel,
      {.num_ctas_x = static_cast<uint32_t>(num_tiles),
       .num_ctas_y = static_cast<uint32_t>(arguments.num_logits),
       .num_threads = kThreads,
       .waits_for_previous = true},
      stream, arguments);
}

}  // namespace quire::cuda
