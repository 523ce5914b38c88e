// What measures a GPU's memory: nothing but loads, or loads and stores.
#ifndef QUIRE_KERNELS_CUDA_PROBE_KERNELS_H_
#define QUIRE_KERNELS_CUDA_PROBE_KERNELS_H_

#include <cstdint>

#include "kernels/cuda/simt/types.h"

namespace quire::cuda {

// Device memory, aligned to 16 bytes, in units of 16 bytes. Every launch
// returns false if it is refused.
struct ProbeArguments {
  const void* from = nullptr;
  int64_t num_units = 0;
  int num_ctas = 0;
};

// out[cta] = the exclusive or of all 32-bit words that the CTA has read: so
// that no load can be left out.
//   out: [num_ctas], u32
bool LaunchReadProbe(const ProbeArguments& arguments, uint32_t* out,
                     simt::Stream stream);
// to: [num_units]; not `from`.
bool LaunchCopyProbe(const ProbeArguments& arguments, void* to,
                     simt::Stream stream);
// Random bf16 values of magnitude 0.5 to 1, either sign: zeros would cost a
// GPU less power, and so less time.
bool LaunchRandomBf16(void* out, int64_t num_units, int num_ctas,
                      simt::Stream stream);

}  // namespace quire::cuda

#endif  // QUIRE_KERNELS_CUDA_PROBE_KERNELS_H_
