// One kernel for each wrapper of kernels/cuda/simt, so that what a GPU makes of
// it can be compared with what the emulation does.
#ifndef QUIRE_TESTS_GPU_WRAPPER_KERNELS_H_
#define QUIRE_TESTS_GPU_WRAPPER_KERNELS_H_

#include <cstdint>
#include <vector>

#include "kernels/cuda/simt/types.h"

namespace quire::gpu_check {

// How bits are drawn for a case, and how far results may be apart.
enum class Input : uint8_t {
  kBits,    // Any 32 bits.
  kFloats,  // Finite f32 values around 1, and the special ones.
  kBf16,    // Pairs of bf16 around 1.
  kF16,     // Pairs of f16 around 1.
  kE4M3,    // Four finite e4m3 values.
};
enum class Output : uint8_t {
  kBits,         // Equal.
  kFloats,       // f32: equal, or both NaN.
  kHalves,       // Pairs of 16-bit floats, each equal or both NaN.
  kFloatSums,    // f32 sums of products, rounded in another way.
  kE4M3Sums,     // The same of e4m3, of which tensor cores keep fewer bits.
  kFloatApprox,  // f32 functions: a few units in the last place.
};

struct WrapperCase {
  const char* name;
  Input input;
  Output output;
  int lowest_capability;  // 75: any; below it the wrapper traps or is not used.
  int num_in;             // Words of 32 bits.
  int num_out;
  // False if the launch is refused.
  bool (*launch)(const uint32_t* in, uint32_t* out, simt::Stream stream);
  int highest_capability = 1000;  // Above it there is no such instruction.
};

const std::vector<WrapperCase>& WrapperCases();

}  // namespace quire::gpu_check

#endif  // QUIRE_TESTS_GPU_WRAPPER_KERNELS_H_
