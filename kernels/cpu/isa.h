// The instruction set that the CPU kernels use, chosen once at start-up.
#ifndef QUIRE_KERNELS_CPU_ISA_H_
#define QUIRE_KERNELS_CPU_ISA_H_

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"

namespace quire {

enum class Isa : uint8_t { kScalar, kAvx2, kAvx512, kAvx512Bf16 };

// The best supported one, or that of the environment variable QUIRE_CPU_ISA
// (scalar, avx2, avx512, avx512_bf16): INVALID_ARGUMENT if unknown or
// unsupported.
absl::StatusOr<Isa> SelectIsa();

const char* IsaName(Isa isa);

std::vector<Isa> SupportedIsas();

}  // namespace quire

#endif  // QUIRE_KERNELS_CPU_ISA_H_
