#include "kernels/nvidia_probe.h"

#include <dlfcn.h>
#include <unistd.h>

#include <cstdlib>
#include <fstream>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

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
  const char* visible = getenv("CUDA_VISIBLE_DEVICES");
  probe.is_hidden = visible != nullptr && VisibleGpus(visible, root).empty();
  return probe;
}

std::vector<std::string> VisibleGpus(const char* visible,
                                     const std::string& root) {
  std::vector<std::string> gpus;
  if (visible == nullptr) {
    int num_gpus = 0;
    for (int i = 0; i < 16; ++i) {
      if (Exists(absl::StrCat(root, "/dev/nvidia", i))) ++num_gpus;
    }
    // The nodes of a container keep the host's numbers; CUDA counts from 0.
    for (int i = 0; i < num_gpus; ++i) gpus.push_back(absl::StrCat(i));
    return gpus;
  }
  for (absl::string_view entry : absl::StrSplit(visible, ',')) {
    entry = absl::StripAsciiWhitespace(entry);
    if (entry.empty() || entry == "-1") break;
    gpus.emplace_back(entry);
  }
  return gpus;
}

}  // namespace quire
