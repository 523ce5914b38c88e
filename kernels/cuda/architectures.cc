#include "kernels/cuda/architectures.h"

#include <algorithm>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"

namespace quire::cuda {
namespace {

// As _ALL_ARCHITECTURES of third_party/cuda/cuda_library.bzl.
constexpr char kAllArchitectures[] = "75,80,86,89,90a,100,120";
constexpr int kLowest = 75;  // Older ones lack ldmatrix and mma m16n8.

// Code of one class uses the same instructions: fp8 comes with 8.9, wgmma with
// 9.0. The host asks the device what it may use, so kernels must be of the
// device's class, though a GPU would run older ones.
int ClassOf(int capability) {
  for (const int least : {100, 90, 89, 80}) {
    if (capability >= least) return least == 100 ? capability / 10 : least;
  }
  return capability;
}

// Compiled code runs on its own capability and higher ones of the same major
// version; that of 90a on 9.0 only.
bool RunsOn(absl::string_view architecture, int capability) {
  int compiled = 0;
  const bool is_exact = absl::ConsumeSuffix(&architecture, "a");
  if (!absl::SimpleAtoi(architecture, &compiled)) return false;
  if (is_exact) return compiled == capability;
  return compiled <= capability && compiled / 10 == capability / 10 &&
         ClassOf(compiled) == ClassOf(capability);
}

std::string CapabilityText(absl::string_view architecture) {
  absl::ConsumeSuffix(&architecture, "a");
  return absl::StrCat(architecture.substr(0, architecture.size() - 1), ".",
                      architecture.substr(architecture.size() - 1));
}

std::vector<std::string> Compiled(absl::string_view architectures) {
  return absl::StrSplit(
      architectures == "all" ? kAllArchitectures : architectures, ',');
}

}  // namespace

bool HasWarpgroups(absl::string_view architectures, int major, int minor,
                   const char* wanted) {
  if (major != 9 || minor != 0) return false;
  if (wanted != nullptr && absl::string_view(wanted) == "0") return false;
  const std::vector<std::string> compiled = Compiled(architectures);
  return std::find(compiled.begin(), compiled.end(), "90a") != compiled.end();
}

absl::Status CheckArchitecture(absl::string_view architectures,
                               const std::string& name, int major, int minor) {
  const int capability = major * 10 + minor;
  if (capability < kLowest) {
    return absl::FailedPreconditionError(absl::StrCat(
        name, " has compute capability ", major, ".", minor,
        ", the kernels need ", kLowest / 10, ".", kLowest % 10, " or newer"));
  }
  const bool is_all = architectures == "all";
  // "all" holds portable code, too, for what is newer than the build.
  if (is_all && capability >= 90) return absl::OkStatus();
  const std::vector<std::string> compiled = Compiled(architectures);
  std::vector<std::string> texts;
  for (const std::string& architecture : compiled) {
    if (RunsOn(architecture, capability)) return absl::OkStatus();
    texts.push_back(CapabilityText(architecture));
  }
  return absl::FailedPreconditionError(absl::StrCat(
      name, " has compute capability ", major, ".", minor,
      ", this program has kernels for ", absl::StrJoin(texts, ", "),
      "; build with --//kernels/cuda:architectures=all"));
}

}  // namespace quire::cuda
