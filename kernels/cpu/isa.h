// The instruction sets that the CPU kernels are compiled for.
#ifndef QUIRE_KERNELS_CPU_ISA_H_
#define QUIRE_KERNELS_CPU_ISA_H_

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"

namespace quire {

// kAvx2 implies FMA and F16C; kAvx512 implies F, BW, DQ and VL.
enum class Isa : uint8_t { kScalar, kAvx2, kAvx512, kAvx512Bf16 };

// "scalar", "avx2", "avx512", "avx512_bf16".
const char* IsaName(Isa isa);

// What this CPU (and its operating system) can run, ascending.
std::vector<Isa> SupportedIsas();

// The best supported one, or the one named by the environment variable
// QUIRE_CPU_ISA. INVALID_ARGUMENT if that name is unknown, FAILED_PRECONDITION
// if this CPU lacks it.
absl::StatusOr<Isa> SelectIsa();

}  // namespace quire

#endif  // QUIRE_KERNELS_CPU_ISA_H_
