// The backends of quire_ptx, the program as a GPU runs it on a CUDA runtime of
// the host (ptx/host_cuda_runtime.cc), which has one GPU.
#include "kernels/cuda_sources.h"

namespace quire {

BackendSources DefaultBackendSources() {
  return CudaBackendSources([] {
    return NvidiaProbe{true, "PTX on the host", true};
  });
}

}  // namespace quire
