#include "kernels/nvidia_probe.h"

#include <dlfcn.h>
#include <unistd.h>

#include <fstream>

#include "absl/strings/str_cat.h"

namespace quire {
namespace {

bool Exists(const std::string& path) { return access(path.c_str(), F_OK) == 0; }

// The first word that is a version: "NVRM version: NVIDIA UNIX Open Kernel
// Module for x86_64  580.65.06  Release Build ...".
std::string FindVersion(const std::string& path) {
  std::ifstream file(path);
  std::string word;
  while (file >> word) {
    const size_t dot = word.find('.');
    if (dot != std::string::npos && dot > 0 &&
        word.find_first_not_of("0123456789.") == std::string::npos) {
      return word;
    }
  }
  return "";
}

}  // namespace

NvidiaProbe ProbeNvidia(const std::string& root) {
  NvidiaProbe probe;
  // The library stays open: the CUDA runtime wants it next.
  probe.has_driver_library = dlopen("libcuda.so.1", RTLD_NOW) != nullptr;
  probe.has_device =
      Exists(absl::StrCat(root, "/dev/nvidiactl")) ||
      (probe.has_driver_library && Exists(absl::StrCat(root, "/dev/dxg")));
  for (int i = 0; i < 16 && !probe.has_device; ++i) {
    probe.has_device = Exists(absl::StrCat(root, "/dev/nvidia", i));
  }
  probe.driver_version =
      FindVersion(absl::StrCat(root, "/proc/driver/nvidia/version"));
  return probe;
}

}  // namespace quire
