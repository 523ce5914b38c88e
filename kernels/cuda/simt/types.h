// What the two halves of simt.h share.
#ifndef QUIRE_KERNELS_CUDA_SIMT_TYPES_H_
#define QUIRE_KERNELS_CUDA_SIMT_TYPES_H_

#include <cstddef>
#include <cstdint>

struct CUstream_st;  // What a cudaStream_t points to.

namespace quire::simt {

// The same type in host code that a plain C++ compiler sees, so that it links
// with kernels from nvcc.
using Stream = CUstream_st*;

inline constexpr uint32_t kAllLanes = 0xffffffffu;
inline constexpr int kWarpSize = 32;

// Shared memory that a CTA may have: on sm_75, and on sm_86, 89 and 120. A
// kernel that wants more for speed has a smaller form where
// SIMT_HAS_SMALL_SHARED.
inline constexpr size_t kSmallSharedBytes = 64 << 10;
inline constexpr size_t kMaxSharedBytes = 99 << 10;

// Sixteen bytes that move in one instruction.
struct alignas(16) Bytes16 {
  uint32_t words[4];
};

struct LaunchShape {
  uint32_t num_ctas_x = 1;
  uint32_t num_ctas_y = 1;
  uint32_t num_ctas_z = 1;
  uint32_t num_threads = 32;
  size_t dynamic_shared_bytes = 0;
  size_t small_shared_bytes = 0;  // On sm_75; 0: dynamic_shared_bytes.
  // All CTAs must be resident at once: the kernel calls SyncGrid.
  bool is_cooperative = false;
  // May start before the previous kernel of the stream has ended: the kernel
  // calls WaitForPrevious before it touches anything that a predecessor reads
  // or writes.
  bool waits_for_previous = false;
};

}  // namespace quire::simt

#endif  // QUIRE_KERNELS_CUDA_SIMT_TYPES_H_
