#include "kernels/cpu/isa.h"

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

#include <cstdlib>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/string_view.h"

namespace quire {
namespace {

#if defined(__x86_64__)
// clang's __builtin_cpu_supports does not know this one.
bool HasF16c() {
  unsigned int eax, ebx, ecx, edx;
  return __get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0 && (ecx & bit_F16C) != 0;
}
#endif

}  // namespace

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
    case Isa::kNeon:
      return "neon";
    case Isa::kNeonBf16:
      return "neon_bf16";
  }
  return "?";
}

std::vector<Isa> SupportedIsas() {
  std::vector<Isa> isas = {Isa::kScalar};
#if defined(__x86_64__)
  // These also check that the operating system saves the registers (XGETBV).
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") ||
      !HasF16c()) {
    return isas;
  }
  isas.push_back(Isa::kAvx2);
  if (!__builtin_cpu_supports("avx512f") ||
      !__builtin_cpu_supports("avx512bw") ||
      !__builtin_cpu_supports("avx512dq") ||
      !__builtin_cpu_supports("avx512vl")) {
    return isas;
  }
  isas.push_back(Isa::kAvx512);
  if (__builtin_cpu_supports("avx512bf16")) isas.push_back(Isa::kAvx512Bf16);
#elif defined(__aarch64__)
  const unsigned long hwcap = getauxval(AT_HWCAP);
  const unsigned long hwcap2 = getauxval(AT_HWCAP2);
  if ((hwcap & HWCAP_ASIMDDP) == 0) return isas;
  isas.push_back(Isa::kNeon);
  constexpr unsigned long kBf16 = HWCAP2_BF16 | HWCAP2_I8MM;
  if ((hwcap2 & kBf16) == kBf16) isas.push_back(Isa::kNeonBf16);
#endif
  return isas;
}

absl::StatusOr<Isa> SelectIsa() {
  const std::vector<Isa> supported = SupportedIsas();
  const char* const forced = std::getenv("QUIRE_CPU_ISA");
  if (forced == nullptr || *forced == '\0') return supported.back();
  for (Isa isa : supported) {
    if (absl::string_view(forced) == IsaName(isa)) return isa;
  }
  const std::string message = absl::StrCat(
      "QUIRE_CPU_ISA=", forced, ": this CPU has ",
      absl::StrJoin(supported, ", ", [](std::string* out, Isa isa) {
        out->append(IsaName(isa));
      }));
  for (Isa isa : {Isa::kScalar, Isa::kAvx2, Isa::kAvx512, Isa::kAvx512Bf16,
                  Isa::kNeon, Isa::kNeonBf16}) {
    if (absl::string_view(forced) == IsaName(isa)) {
      return absl::FailedPreconditionError(message);
    }
  }
  return absl::InvalidArgumentError(message);
}

}  // namespace quire
