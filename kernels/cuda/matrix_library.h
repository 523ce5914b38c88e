// Products of matrices in 16 bits, or in e4m3, by a library that knows the
// hardware better than a page of code can: cuBLASLt, which is loaded at run
// time (cublas_library.cc). Tests put a fake in its place.
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

// What multiplies the elements of e4m3, in f32.
enum class MatrixScales : uint8_t {
  kNone,
  kRows,    // Of each row of weight [rows] and x [num_tokens].
  kBlocks,  // Of each 128 columns of a row: [ceil(cols / 128), rows or tokens].
};

// out[t, r] = alpha * sum over k of x[t, k] * weight[r, k] (+ residual[t, r]),
// each with its scale, summed in f32 and rounded once. Of e4m3 tensor cores
// keep fewer bits of a sum (9.0: about 14; DeepSeek-V3, arXiv:2412.19437,
// section 3.5.2), which the library promotes to f32 now and then.
struct MatrixProblem {
  DType dtype = DType::kBF16;      // Of weight and x: bf16, f16 or e4m3.
  DType out_dtype = DType::kBF16;  // Of residual, too: 16 bits; or f32.
  MatrixScales scales = MatrixScales::kNone;  // Of e4m3 only.
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
  const float* weight_scales = nullptr;  // As MatrixScales says, without gaps.
  const float* x_scales = nullptr;
  const void* residual = nullptr;  // May be `out`.
  void* out = nullptr;
  void* workspace = nullptr;
  int64_t workspace_bytes = 0;  // What the algorithm was found for.
  float alpha = 1.0f;
};

// What cuBLASLt asks for e4m3 (its documentation: "Narrow Precision Data Types
// Usage", "cublasLtMatmul", "Tensor Core Usage"; NVIDIA/CUDALibrarySamples
// issue 310 for the version). Both matrices are [.., cols] here, which is the
// "TN" that it knows on every GPU.
//   capability: 90 is 9.0. version: 130100 is 13.1.0.
inline bool HasFp8Scales(MatrixScales scales, int capability, int version) {
  return scales == MatrixScales::kNone ? capability >= 89
                                       : capability == 90 && version >= 120900;
}
// The problem's sizes; pointers are aligned to 16 bytes.
inline bool HasFp8Sizes(const MatrixProblem& problem) {
  const int64_t out_bytes = DTypeSize(problem.out_dtype);
  return problem.cols % 16 == 0 && problem.x_stride % 16 == 0 &&
         problem.rows * out_bytes % 16 == 0 &&
         problem.out_stride * out_bytes % 16 == 0 &&
         problem.residual_stride * out_bytes % 16 == 0 &&
         (problem.scales != MatrixScales::kBlocks ||
          (problem.rows % 4 == 0 && problem.num_tokens % 4 == 0));
}

// One way to compute a problem; the library knows what is in it.
struct MatrixAlgorithm {
  std::array<uint64_t, 8> data = {};
};

// Thread-compatible.
class MatrixLibrary {
 public:
  virtual ~MatrixLibrary() = default;
  virtual std::string name() const = 0;  // "cuBLASLt 13.1.0"

  // Whether it multiplies e4m3 with such scales on this GPU.
  virtual bool TakesFp8(MatrixScales /*scales*/) const { return false; }

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
