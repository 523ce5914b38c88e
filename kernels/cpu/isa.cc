#include "kernels/cpu/isa.h"

#include <cstdlib>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace quire {

const char* IsaName(Isa isa) {
  switch (isa) {
    case Isa::kScalar:
      return "scalar";
    case Isa::kAvx2:
      return "avx2";
    case Isa::kAvx512:
      return "avx512";
    case Isa::kAvx512Bf16:
      return "avx512_bf16";
  }
  return "?";
}

std::vector<Isa> SupportedIsas() {
  std::vector<Isa> isas = {Isa::kScalar};
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) {
    return isas;
  }
  isas.push_back(Isa::kAvx2);
  if (!__builtin_cpu_supports("avx512f") ||
      !__builtin_cpu_supports("avx512bw") ||
      !__builtin_cpu_supports("avx512vl") ||
      !__builtin_cpu_supports("avx512dq")) {
    return isas;
  }
  isas.push_back(Isa::kAvx512);
  if (__builtin_cpu_supports("avx512bf16")) isas.push_back(Isa::kAvx512Bf16);
  return isas;
}

absl::StatusOr<Isa> SelectIsa() {
  const std::vector<Isa> supported = SupportedIsas();
  const char* forced = std::getenv("QUIRE_CPU_ISA");
  if (forced == nullptr || *forced == '\0') return supported.back();
  for (Isa isa : supported) {
    if (std::string(forced) == IsaName(isa)) return isa;
  }
  return absl::InvalidArgumentError(absl::StrCat(
      "QUIRE_CPU_ISA=", forced, ": unknown, or this CPU lacks it"));
}

}  // namespace quire
