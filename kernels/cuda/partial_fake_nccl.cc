// A libnccl.so.2 for tests that has its version and nothing else.
#include "kernels/cuda/nccl_api.h"

// Of the type that it is called by: UndefinedBehaviorSanitizer compares them.
extern "C" quire::cuda::nccl::Result ncclGetVersion(int* version) {
  *version = 22900;
  return quire::cuda::nccl::kSuccess;
}
