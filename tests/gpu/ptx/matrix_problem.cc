#include "tests/gpu/ptx/matrix_problem.h"

namespace quire::host_cublas {
namespace {

Refusal CheckScales(const Problem& problem, int capability) {
  const Operation& operation = problem.operation;
  for (const float* scales : operation.scales) {
    if (scales != nullptr && !problem.is_fp8()) {
      return {kInvalid, "scales of what is not narrow"};
    }
  }
  const int32_t mode = operation.scale_modes[0];
  if (mode != operation.scale_modes[1]) {
    return {kNotSupported, "A and B have scales of different kinds"};
  }
  if (mode == CUBLASLT_MATMUL_MATRIX_SCALE_SCALAR_32F) return {};
  if (mode != CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F &&
      mode != CUBLASLT_MATMUL_MATRIX_SCALE_VEC128_32F) {
    return {kNotSupported, "a kind of scales that is not here"};
  }
  if (!problem.is_fp8()) return {kInvalid, "scales of what is not narrow"};
  if (capability != 90) {
    return {kNotSupported, "scales of rows or blocks need 9.0"};
  }
  for (const float* scales : operation.scales) {
    if (scales == nullptr) return {kInvalid, "a kind of scales without any"};
  }
  if (mode == CUBLASLT_MATMUL_MATRIX_SCALE_VEC128_32F &&
      (problem.m() % 4 != 0 || problem.n() % 4 != 0)) {
    return {kNotSupported, "scales of blocks need m and n in fours"};
  }
  return {};
}

}  // namespace

int64_t BytesOf(cudaDataType_t type) {
  switch (type) {
    case CUDA_R_8F_E4M3:
      return 1;
    case CUDA_R_16BF:
    case CUDA_R_16F:
      return 2;
    case CUDA_R_32F:
      return 4;
    default:
      return 0;
  }
}

Refusal CheckProblem(const Problem& problem, int capability) {
  const auto& [operation, a, b, c, d] = problem;
  if (operation.compute != CUBLAS_COMPUTE_32F ||
      operation.scale != CUDA_R_32F) {
    return {kNotSupported, "neither computed nor scaled in f32"};
  }
  for (const Layout* layout : {&a, &b, &c, &d}) {
    if (BytesOf(layout->type) == 0) return {kNotSupported, "a type"};
    if (layout->rows == 0 || layout->cols == 0 || layout->rows > INT32_MAX ||
        layout->cols > INT32_MAX) {
      return {kInvalid, "a layout's size"};
    }
    if (layout->ld < static_cast<int64_t>(layout->rows)) {
      return {kInvalid, "columns that overlap"};
    }
  }
  for (const int32_t transpose : operation.transposes) {
    if (transpose != CUBLAS_OP_N && transpose != CUBLAS_OP_T) {
      return {kInvalid, "an operation on A or B"};
    }
  }
  const bool is_a_transposed = operation.transposes[0] == CUBLAS_OP_T;
  const bool is_b_transposed = operation.transposes[1] == CUBLAS_OP_T;
  if ((is_a_transposed ? a.cols : a.rows) != d.rows ||
      (is_b_transposed ? b.rows : b.cols) != d.cols ||
      (is_a_transposed ? a.rows : a.cols) !=
          (is_b_transposed ? b.cols : b.rows) ||
      c.rows != d.rows || c.cols != d.cols) {
    return {kInvalid, "sizes that do not fit together"};
  }
  if (a.type != b.type || c.type != d.type ||
      (d.type != CUDA_R_32F && !problem.is_fp8() && d.type != a.type) ||
      d.type == CUDA_R_8F_E4M3) {
    return {kNotSupported, "types that do not go together"};
  }
  if (problem.is_fp8()) {
    if (capability < 89) {
      return {CUBLAS_STATUS_ARCH_MISMATCH, "e4m3 needs 8.9"};
    }
    const bool is_datacenter_blackwell = capability >= 100 && capability < 120;
    if (!is_datacenter_blackwell && (!is_a_transposed || is_b_transposed)) {
      return {kNotSupported, "e4m3 but A transposed and B not"};
    }
    if (a.rows % 16 != 0 || b.rows % 16 != 0 ||
        d.rows * BytesOf(d.type) % 16 != 0) {
      return {kNotSupported, "sizes of e4m3 that are not 16 bytes"};
    }
  }
  return CheckScales(problem, capability);
}

uint64_t WorkspaceBytes(const Problem& problem, const Algorithm& algorithm) {
  const uint64_t num_sums = problem.d.rows * problem.d.cols;
  switch (algorithm.reduction) {
    case CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE:
      return 4 * num_sums * algorithm.num_splits;
    case CUBLASLT_REDUCTION_SCHEME_OUTPUT_TYPE:
      return BytesOf(problem.d.type) * num_sums * algorithm.num_splits;
    case CUBLASLT_REDUCTION_SCHEME_INPLACE:
      return 256;  // Counters.
    default:
      return 0;
  }
}

Refusal CheckAlgorithm(const Problem& problem, const Algorithm& algorithm) {
  if (problem.is_fp8() && algorithm.alignment < 16) {
    return {kNotSupported, "an algorithm without e4m3"};
  }
  for (const Layout* layout :
       {&problem.a, &problem.b, &problem.c, &problem.d}) {
    if (layout->ld * BytesOf(layout->type) % algorithm.alignment != 0) {
      return {kNotSupported, "columns that are not aligned"};
    }
  }
  if (algorithm.num_splits > 1 && problem.k() < 16 * algorithm.num_splits) {
    return {kNotSupported, "too few products to be split"};
  }
  return {};
}

}  // namespace quire::host_cublas
