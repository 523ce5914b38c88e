#include "tests/gpu/stream_order_kernels.h"

#include "kernels/cuda/simt/simt.h"

namespace quire::gpu_check {
namespace {

SIMT_KERNEL(kCopyThreads)
LateCopyKernel(const uint32_t* from, uint32_t* to, uint32_t* zero,
               int num_turns) {
  simt::WaitForPrevious();
  simt::LaunchNext();
  // The address depends on what was read: the turns do not overlap.
  uint32_t read = 0;
  for (int turn = 0; turn < num_turns; ++turn) {
    read = simt::AtomicAdd(zero + read, 0u);
  }
  const uint32_t i = simt::CtaX() * kCopyThreads + simt::ThreadX();
  to[i] = from[i + read];
}

}  // namespace

bool LaunchLateCopy(const uint32_t* from, uint32_t* to, int num_words,
                    uint32_t* zero, int num_turns, simt::Stream stream) {
  return simt::Launch(
      &LateCopyKernel,
      {.num_ctas_x = static_cast<uint32_t>(num_words / kCopyThreads),
       .num_threads = kCopyThreads,
       .waits_for_previous = true},
      stream, from, to, zero, num_turns);
}

}  // namespace quire::gpu_check
