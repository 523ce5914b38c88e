// What the kernels of sampling.h share: the workspace, keys, sums over a CTA.
#ifndef QUIRE_KERNELS_CUDA_SAMPLING_KERNELS_H_
#define QUIRE_KERNELS_CUDA_SAMPLING_KERNELS_H_

#include <bit>
#include <cmath>
#include <cstdint>

#include "kernels/cuda/planted_bug.h"
#include "kernels/cuda/sampling.h"
#include "kernels/cuda/simt/simt.h"
#include "kernels/sampling.h"

namespace quire::cuda {

// One warp's share of a tile at a time: four neighbouring entries of each lane,
// which share a Philox block. The largest entry of each chunk is kept, so that
// later passes skip chunks.
inline constexpr int kSamplingChunk = 128;
inline constexpr int kChunksPerTile = kSamplingTile / kSamplingChunk;
inline constexpr int32_t kMaxSamplingVocab = 1 << 19;
inline constexpr int kMaxSamplingChunks = kMaxSamplingVocab / kSamplingChunk;

// What the first kernel leaves of a tile.
struct alignas(16) TileResult {
  uint64_t best;  // ScoreKey of the best draw, of rows without filters.
  double sum;     // Of e^(logit - max), raw; if log-probabilities are due.
  double z_sum;   // Of e^(z - z_max); if HasRowSum.
  float z_max;
  float max;           // Of the raw logits.
  int32_t num_larger;  // Raw logits above the scored one.
  int32_t non_finite;
};

// What steps 5 to 11 of kernels/sampling.h have left of a row.
struct alignas(16) RowFilter {
  float floor;  // What is kept: floor <= z <= ceiling.
  float ceiling;
  int32_t is_greedy;
  int32_t faults;  // Set at the end, of every row of logits.
};

struct SamplingWorkspace {
  int64_t num_tiles;     // Of a row.
  int64_t row_stride;    // num_tiles * kSamplingTile
  TileResult* tiles;     // [num_logits, num_tiles]
  RowFilter* filters;    // [num_logits]
  uint32_t* raw_chunks;  // [num_logits, chunks]: keys of the largest logits.
  uint32_t* chunks;      // The same of z.
  float* z;              // [num_logits, row_stride], of rows with filters;
                         // -infinity beyond the vocabulary.
};

// Also the size: with a null base, `z` less the base is where it begins.
QUIRE_HOST_DEVICE inline SamplingWorkspace SamplingWorkspaceAt(
    void* base, int32_t num_logits, int32_t vocab_size, int64_t* num_bytes) {
  SamplingWorkspace w;
  w.num_tiles = (vocab_size + kSamplingTile - 1) / kSamplingTile;
  w.row_stride = w.num_tiles * kSamplingTile;
  const int64_t num_chunks = num_logits * w.num_tiles * kChunksPerTile;
  char* next = static_cast<char*>(base);
  // Every piece is a multiple of 16 bytes.
  w.tiles = reinterpret_cast<TileResult*>(next);
  next += num_logits * w.num_tiles * sizeof(TileResult);
  w.filters = reinterpret_cast<RowFilter*>(next);
  next += num_logits * sizeof(RowFilter);
  w.raw_chunks = reinterpret_cast<uint32_t*>(next);
  next += num_chunks * sizeof(uint32_t);
  w.chunks = reinterpret_cast<uint32_t*>(next);
  next += num_chunks * sizeof(uint32_t);
  w.z = reinterpret_cast<float*>(next);
  next += num_logits * w.row_stride * sizeof(float);
  if (num_bytes) *num_bytes = next - static_cast<char*>(base);
  return w;
}

// Unsigned integers in the order of the floats; -0 is 0.
SIMT_DEVICE uint32_t KeyOf(float value) {
  if (value == 0.0f) value = 0.0f;
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
SIMT_DEVICE float ValueOf(uint32_t key) {
  return std::bit_cast<float>(key & 0x80000000u ? key & 0x7fffffffu : ~key);
}
inline constexpr uint32_t kKeyOfMinusInfinity = 0x007fffffu;

// Larger is better; the lowest id wins among equals. Never 0.
SIMT_DEVICE uint64_t ScoreKey(float score, int32_t id) {
  return uint64_t{KeyOf(score)} << 32 | static_cast<uint32_t>(~id);
}
SIMT_DEVICE int32_t IdOf(uint64_t score_key) {
  return static_cast<int32_t>(~static_cast<uint32_t>(score_key));
}

// True if more than temperature stands between the processed logits and the
// draw, so that the row is kept in the workspace.
SIMT_DEVICE bool HasFilters(const SlotSampling& p) {
  if (p.temperature < kMinTemperature) return false;
  return p.dynatemp_range > 0.0f || p.top_n_sigma > 0.0f || p.min_p > 0.0f ||
         p.top_k > 0 || p.typical_p < 1.0f || p.top_p < 1.0f ||
         p.xtc_probability > 0.0f;
}

// True if top_p meets the row as the first kernel leaves it, which then sums
// it.
SIMT_DEVICE bool HasRowSum(const SlotSampling& p) {
  return p.top_p < 1.0f && p.temperature >= kMinTemperature &&
         !(p.dynatemp_range > 0.0f) && !(p.top_n_sigma > 0.0f) &&
         !(p.min_p > 0.0f) && p.top_k <= 0 && !(p.typical_p < 1.0f);
}

struct TakeMax {
  template <typename T>
  SIMT_DEVICE T operator()(T a, T b) const {
    return a > b ? a : b;
  }
};
struct TakeMin {
  template <typename T>
  SIMT_DEVICE T operator()(T a, T b) const {
    return a < b ? a : b;
  }
};
struct TakeSum {
  template <typename T>
  SIMT_DEVICE T operator()(T a, T b) const {
    return a + b;
  }
};

template <typename T, typename Combine>
SIMT_DEVICE T WarpReduce(T value, Combine combine) {
  SIMT_UNROLL
  for (int i = 16; i > 0; i /= 2) {
    value = combine(value, simt::ShuffleXor(value, i));
  }
  return value;
}

// For every thread of the CTA, combined in a fixed order.
//   scratch: [warps], as many bytes as T; free again on return.
template <int kThreads, typename T, typename Combine>
SIMT_DEVICE T CtaReduce(T value, Combine combine, uint64_t* scratch) {
  static_assert(sizeof(T) <= sizeof(uint64_t));
  T* values = reinterpret_cast<T*>(scratch);
  value = WarpReduce(value, combine);
  if (simt::ThreadX() % 32 == 0) values[simt::ThreadX() / 32] = value;
  if (!HasPlantedBug(PlantedBug::kSamplingReduceNoBarrier)) {
    simt::SyncThreads();
  }
  value = values[0];
  for (int w = 1; w < kThreads / 32; ++w) value = combine(value, values[w]);
  if (!HasPlantedBug(PlantedBug::kSamplingReduceScratchReused)) {
    simt::SyncThreads();
  }
  return value;
}

// The parts, in their order. LaunchSample sets num_ids.
bool LaunchSamplingProcess(const SampleArguments& arguments,
                           simt::Stream stream);
bool LaunchSamplingFilter(const SampleArguments& arguments,
                          simt::Stream stream);
bool LaunchSamplingFinish(const SampleArguments& arguments,
                          simt::Stream stream);

}  // namespace quire::cuda

#endif  // QUIRE_KERNELS_CUDA_SAMPLING_KERNELS_H_
