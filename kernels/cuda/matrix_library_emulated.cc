#include "kernels/cuda/matrix_library.h"

namespace quire::cuda {

absl::StatusOr<std::unique_ptr<MatrixLibrary>> OpenMatrixLibrary() {
  return absl::UnimplementedError("the emulated device has no matrix library");
}

}  // namespace quire::cuda
