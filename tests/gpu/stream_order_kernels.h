// A kernel whose successor in the stream may start long before it has read and
// written: what a dependency that is taken too lightly gets wrong on a GPU.
#ifndef QUIRE_TESTS_GPU_STREAM_ORDER_KERNELS_H_
#define QUIRE_TESTS_GPU_STREAM_ORDER_KERNELS_H_

#include <cstdint>

#include "kernels/cuda/simt/types.h"

namespace quire::gpu_check {

// to[i] = from[i] for `num_words` (a multiple of kCopyThreads, at most
// kCopyThreads times kCopyCtas), after `num_turns` reads of memory, one after
// the other (on an H100 some 0.7 us each), which begin when the next kernel may
// start. `zero`: a word of device memory that is 0. False if the launch is
// refused.
constexpr int kCopyThreads = 64, kCopyCtas = 16;
bool LaunchLateCopy(const uint32_t* from, uint32_t* to, int num_words,
                    uint32_t* zero, int num_turns, simt::Stream stream);

}  // namespace quire::gpu_check

#endif  // QUIRE_TESTS_GPU_STREAM_ORDER_KERNELS_H_
