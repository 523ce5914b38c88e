// A product of matrices as cuBLASLt has it described, and whether cuBLASLt
// (13.0: "cublasLtMatmul", "Tensor Core Usage", "Narrow Precision Data Types
// Usage") computes it.
//
// What the header or the documentation forbids is refused. What the real
// library computes and host_cublas.cc does not is NOT_SUPPORTED: an algorithm
// of the library's own choice, scales of blocks of 128 x 128.
#ifndef QUIRE_TESTS_GPU_PTX_MATRIX_PROBLEM_H_
#define QUIRE_TESTS_GPU_PTX_MATRIX_PROBLEM_H_

#include <cublasLt.h>
#include <cuda_runtime_api.h>

#include <cstdint>

namespace quire::host_cublas {

struct Operation {
  cublasComputeType_t compute = CUBLAS_COMPUTE_32F;
  cudaDataType_t scale = CUDA_R_32F;
  int32_t transposes[2] = {CUBLAS_OP_N, CUBLAS_OP_N};  // Of A and B.
  int32_t scale_modes[2] = {CUBLASLT_MATMUL_MATRIX_SCALE_SCALAR_32F,
                            CUBLASLT_MATMUL_MATRIX_SCALE_SCALAR_32F};
  const float* scales[2] = {nullptr, nullptr};
  int8_t has_fast_sums = 0;
};

struct Layout {
  cudaDataType_t type;
  uint64_t rows, cols;
  int64_t ld;  // Elements from a column to the next.

  bool operator==(const Layout& other) const = default;
};

struct Refusal {
  cublasStatus_t status = CUBLAS_STATUS_SUCCESS;
  const char* why = "";

  explicit operator bool() const { return status != CUBLAS_STATUS_SUCCESS; }
};
constexpr auto kInvalid = CUBLAS_STATUS_INVALID_VALUE;
constexpr auto kNotSupported = CUBLAS_STATUS_NOT_SUPPORTED;

// 0: of a type that is not here.
int64_t BytesOf(cudaDataType_t type);

// D [m, n] = alpha * op(A) [m, k] * op(B) [k, n] + beta * C.
struct Problem {
  Operation operation;
  Layout a, b, c, d;

  bool is_fp8() const { return a.type == CUDA_R_8F_E4M3; }
  int64_t m() const { return static_cast<int64_t>(d.rows); }
  int64_t n() const { return static_cast<int64_t>(d.cols); }
  int64_t k() const {
    return static_cast<int64_t>(
        operation.transposes[0] == CUBLAS_OP_N ? a.cols : a.rows);
  }
};

// On a GPU of compute capability `capability`: 90.
Refusal CheckProblem(const Problem& problem, int capability);

// What the real library has many of: with and without workspace, sums in one
// piece or rounded in between, for operands that are aligned more or less.
struct Algorithm {
  uint32_t alignment;  // Of operands and their columns, at most, in bytes.
  uint32_t reduction;
  int num_splits;  // Of k.
};
constexpr Algorithm kAlgorithms[] = {
    {128, CUBLASLT_REDUCTION_SCHEME_NONE, 1},
    {16, CUBLASLT_REDUCTION_SCHEME_INPLACE, 2},
    {16, CUBLASLT_REDUCTION_SCHEME_OUTPUT_TYPE, 3},
    {16, CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE, 4},
    {16, CUBLASLT_REDUCTION_SCHEME_NONE, 1},
    {2, CUBLASLT_REDUCTION_SCHEME_NONE, 1},
};
uint64_t WorkspaceBytes(const Problem& problem, const Algorithm& algorithm);

// Whether the algorithm can take such columns.
Refusal CheckAlgorithm(const Problem& problem, const Algorithm& algorithm);

}  // namespace quire::host_cublas

#endif  // QUIRE_TESTS_GPU_PTX_MATRIX_PROBLEM_H_
