// What CreateBackend finds in a program that is linked with this library: the
// CUDA backend where the build has a toolkit. tests/gpu/emulated_backends.cc
// stands for it in a program of the tests.
#include "kernels/backend_factory.h"
#ifdef QUIRE_HAS_CUDA
#include "kernels/cuda_sources.h"
#endif

namespace quire {

BackendSources DefaultBackendSources() {
  const auto probe = [] { return ProbeNvidia(); };
#ifdef QUIRE_HAS_CUDA
  return CudaBackendSources(probe);
#else
  BackendSources sources;
  sources.probe = probe;
  return sources;
#endif
}

}  // namespace quire
