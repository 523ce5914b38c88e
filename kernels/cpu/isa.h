// The instruction sets that the CPU kernels are compiled for.
#ifndef QUIRE_KERNELS_CPU_ISA_H_
#define QUIRE_KERNELS_CPU_ISA_H_

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"

namespace quire {

// x86-64: kAvx2 implies FMA and F16C; kAvx512 implies F, BW, DQ and VL.
// aarch64: kNeon implies dot products of bytes (ARMv8.2 and FEAT_DotProd);
// kNeonBf16 adds FEAT_BF16 and FEAT_I8MM. kScalar runs everywhere: plain C++ on
// 16-byte vectors.
enum class Isa : uint8_t {
  kScalar,
  kAvx2,
  kAvx512,
  kAvx512Bf16,
  kNeon,
  kNeonBf16,
};

// "scalar", "avx2", "avx512", "avx512_bf16", "neon", "neon_bf16".
const char* IsaName(Isa isa);

// What this CPU (and its operating system) can run, ascending.
std::vector<Isa> SupportedIsas();

// The best supported one, or the one named by the environment variable
// QUIRE_CPU_ISA. INVALID_ARGUMENT if that name is unknown, FAILED_PRECONDITION
// if this CPU lacks it.
absl::StatusOr<Isa> SelectIsa();

}  // namespace quire

#endif  // QUIRE_KERNELS_CPU_ISA_H_
