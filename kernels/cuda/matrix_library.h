// Products of dense matrices by a library that knows the hardware better than a
// page of code can: cuBLASLt, which is loaded at run time (cublas_library.cc).
// Tests put a fake in its place.
#ifndef QUIRE_KERNELS_CUDA_MATRIX_LIBRARY_H_
#define QUIRE_KERNELS_CUDA_MATRIX_LIBRARY_H_

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/simt/types.h"
#include "kernels/dtype.h"

namespace quire::cuda {

// out[t, r] = alpha * sum over k of x[t, k] * weight[r, k] (+ residual[t, r]),
// summed in f32 and rounded once.
struct MatrixProblem {
  DType dtype = DType::kBF16;      // Of weight, x and residual: bf16 or f16.
  DType out_dtype = DType::kBF16;  // `dtype` or f32.
  int64_t num_tokens = 0;
  int64_t rows = 0;  // Of weight [rows, cols], without gaps.
  int64_t cols = 0;
  int64_t x_stride = 0;
  int64_t out_stride = 0;
  int64_t residual_stride = 0;  // 0: no residual. With f32 there is none.
};

// Device memory, aligned to 16 bytes.
struct MatrixOperands {
  const void* weight = nullptr;
  const void* x = nullptr;
  const void* residual = nullptr;  // May be `out`.
  void* out = nullptr;
  void* workspace = nullptr;
  int64_t workspace_bytes = 0;  // What the algorithm was found for.
  float alpha = 1.0f;
};

// One way to compute a problem; the library knows what is in it.
struct MatrixAlgorithm {
  std::array<uint64_t, 8> data = {};
};

// Thread-compatible.
class MatrixLibrary {
 public:
  virtual ~MatrixLibrary() = default;
  virtual std::string name() const = 0;  // "cuBLASLt 13.1.0"

  // At most `max_count` algorithms that give the same bits every time, the one
  // that should be fastest first; none if the library cannot do it. Host work
  // only.
  virtual std::vector<MatrixAlgorithm> FindAlgorithms(
      const MatrixProblem& problem, int64_t max_workspace_bytes,
      int max_count) = 0;
  // Whether an algorithm that was found for another problem suits this one.
  virtual bool Supports(const MatrixProblem& problem,
                        const MatrixAlgorithm& algorithm,
                        int64_t max_workspace_bytes) = 0;
  // Enqueues; may be captured. INTERNAL with the library's words.
  virtual absl::Status Multiply(const MatrixProblem& problem,
                                const MatrixAlgorithm& algorithm,
                                const MatrixOperands& operands,
                                simt::Stream stream) = 0;
  // Runs what `enqueue` enqueues a few times and waits. The median in seconds,
  // by the device's clock; the first error of `enqueue` or of a run.
  virtual absl::StatusOr<double> MeasureSeconds(
      absl::FunctionRef<absl::Status()> enqueue, simt::Stream stream) = 0;
  absl::StatusOr<double> MeasureProduct(const MatrixProblem& problem,
                                        const MatrixAlgorithm& algorithm,
                                        const MatrixOperands& operands,
                                        simt::Stream stream) {
    return MeasureSeconds(
        [&] { return Multiply(problem, algorithm, operands, stream); }, stream);
  }
};

using MatrixLibraryFactory =
    std::function<absl::StatusOr<std::unique_ptr<MatrixLibrary>>()>;

// cuBLASLt for the current device. NOT_FOUND if the library is not installed:
// says where it was looked for. FAILED_PRECONDITION if what was found does not
// work, with its version and words. On the emulated device there is none:
// UNIMPLEMENTED.
absl::StatusOr<std::unique_ptr<MatrixLibrary>> OpenMatrixLibrary();

}  // namespace quire::cuda

#endif  // QUIRE_KERNELS_CUDA_MATRIX_LIBRARY_H_
