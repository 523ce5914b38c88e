// What the machine shows of NVIDIA GPUs, without the CUDA runtime: whether the
// CPU is the right choice, or a GPU is there and does not work.
#ifndef QUIRE_KERNELS_NVIDIA_PROBE_H_
#define QUIRE_KERNELS_NVIDIA_PROBE_H_

#include <string>
#include <vector>

namespace quire {

struct NvidiaProbe {
  // A device node of the driver: /dev/nvidiactl, /dev/nvidia0 to 15, or
  // /dev/dxg of Windows' Linux beside its driver's library.
  bool has_device = false;
  // Of the kernel's driver, "580.65.06"; empty if it does not say.
  std::string driver_version;
  // libcuda.so.1 can be opened.
  bool has_driver_library = false;
  // CUDA_VISIBLE_DEVICES is set and names no GPU: the user wants none.
  bool is_hidden = false;
};

// `root`: where /dev and /proc are; tests name other folders.
NvidiaProbe ProbeNvidia(const std::string& root = "");

// The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them: its
// entries up to the first that is empty or -1, or without it (`visible` null)
// one for each device node.
std::vector<std::string> VisibleGpus(const char* visible,
                                     const std::string& root = "");

}  // namespace quire

#endif  // QUIRE_KERNELS_NVIDIA_PROBE_H_
