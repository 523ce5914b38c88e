#include "kernels/cuda/cublas_library.h"

#include <cuda_runtime.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/base/status.h"
#include "kernels/cuda/matrix_library.h"

namespace quire::cuda {
namespace {

// What is used of it has not changed since, but for scales of rows and blocks
// (HasFp8Scales); the header's own is newer.
constexpr size_t kLowestVersion = 120000;
constexpr int kNumMeasurements = 3;

std::string VersionText(size_t version) {
  return absl::StrCat(version / 10000, ".", version / 100 % 100, ".",
                      version % 100);
}

cudaDataType_t ToCudaType(DType dtype) {
  return dtype == DType::kF32      ? CUDA_R_32F
         : dtype == DType::kBF16   ? CUDA_R_16BF
         : dtype == DType::kF8E4M3 ? CUDA_R_8F_E4M3
                                   : CUDA_R_16F;
}

class CublasLibrary : public MatrixLibrary {
 public:
  CublasLibrary(CublasFunctions functions, cublasLtHandle_t handle,
                int capability)
      : functions_(std::move(functions)),
        handle_(handle),
        capability_(capability) {}
  ~CublasLibrary() override {
    functions_.cublasLtDestroy(handle_);
    for (cudaEvent_t event : {begin_, end_}) {
      if (event != nullptr) cudaEventDestroy(event);
    }
  }

  std::string name() const override {
    return absl::StrCat("cuBLASLt ", VersionText(functions_.version));
  }

  bool TakesFp8(MatrixScales scales) const override {
    return HasFp8Scales(scales, capability_,
                        static_cast<int>(functions_.version));
  }

  std::vector<MatrixAlgorithm> FindAlgorithms(const MatrixProblem& problem,
                                              int64_t max_workspace_bytes,
                                              int max_count) override {
    if (IsRefused(problem)) return {};
    Description description(functions_, problem, kSomeOperands);
    std::vector<cublasLtMatmulHeuristicResult_t> results(max_count);
    int count = 0;
    if (!description.ok() || !description.AddPreference(max_workspace_bytes) ||
        functions_.cublasLtMatmulAlgoGetHeuristic(
            handle_, description.operation, description.a, description.b,
            description.c, description.d, description.preference, max_count,
            results.data(), &count) != CUBLAS_STATUS_SUCCESS) {
      return {};
    }
    std::vector<MatrixAlgorithm> algorithms;
    for (int i = 0; i < count; ++i) {
      if (results[i].state != CUBLAS_STATUS_SUCCESS) continue;
      MatrixAlgorithm& algorithm = algorithms.emplace_back();
      static_assert(sizeof(results[i].algo) == sizeof(algorithm.data));
      std::memcpy(algorithm.data.data(), &results[i].algo,
                  sizeof(algorithm.data));
    }
    return algorithms;
  }

  bool Supports(const MatrixProblem& problem, const MatrixAlgorithm& algorithm,
                int64_t max_workspace_bytes) override {
    if (IsRefused(problem)) return false;
    Description description(functions_, problem, kSomeOperands);
    const cublasLtMatmulAlgo_t algo = ToAlgo(algorithm);
    cublasLtMatmulHeuristicResult_t result = {};
    return description.ok() &&
           functions_.cublasLtMatmulAlgoCheck(
               handle_, description.operation, description.a, description.b,
               description.c, description.d, &algo,
               &result) == CUBLAS_STATUS_SUCCESS &&
           result.state == CUBLAS_STATUS_SUCCESS &&
           static_cast<int64_t>(result.workspaceSize) <= max_workspace_bytes;
  }

  absl::Status Multiply(const MatrixProblem& problem,
                        const MatrixAlgorithm& algorithm,
                        const MatrixOperands& operands,
                        simt::Stream stream) override {
    if (IsRefused(problem)) {
      return absl::InternalError("cuBLASLt: no product of e4m3");
    }
    Description description(functions_, problem, operands);
    if (!description.ok()) {
      return absl::InternalError("cuBLASLt: no memory for a description");
    }
    const cublasLtMatmulAlgo_t algo = ToAlgo(algorithm);
    const float alpha = operands.alpha;
    const float beta = operands.residual != nullptr ? 1.0f : 0.0f;
    const cublasStatus_t status = functions_.cublasLtMatmul(
        handle_, description.operation, &alpha, operands.weight, description.a,
        operands.x, description.b, &beta,
        operands.residual != nullptr ? operands.residual : operands.out,
        description.c, operands.out, description.d, &algo, operands.workspace,
        operands.workspace_bytes, stream);
    if (status == CUBLAS_STATUS_SUCCESS) return absl::OkStatus();
    return absl::InternalError(
        absl::StrCat("cuBLASLt: ", functions_.cublasLtGetStatusString(status),
                     " (", problem.num_tokens, " tokens, weight [",
                     problem.rows, ", ", problem.cols, "])"));
  }

  absl::StatusOr<double> MeasureSeconds(
      absl::FunctionRef<absl::Status()> enqueue, simt::Stream stream) override {
    for (cudaEvent_t* event : {&begin_, &end_}) {
      if (*event == nullptr && cudaEventCreate(event) != cudaSuccess) {
        return absl::InternalError("cudaEventCreate failed");
      }
    }
    // The first run may load code.
    QUIRE_RETURN_IF_ERROR(enqueue());
    double seconds[kNumMeasurements];
    for (double& measured : seconds) {
      cudaEventRecord(begin_, stream);
      QUIRE_RETURN_IF_ERROR(enqueue());
      cudaEventRecord(end_, stream);
      float milliseconds = 0;
      const cudaError_t error = cudaEventSynchronize(end_);
      if (error != cudaSuccess ||
          cudaEventElapsedTime(&milliseconds, begin_, end_) != cudaSuccess) {
        return absl::InternalError(
            absl::StrCat("cuBLASLt: ", cudaGetErrorString(error)));
      }
      measured = milliseconds * 1e-3;
    }
    std::sort(seconds, seconds + kNumMeasurements);
    return seconds[kNumMeasurements / 2];
  }

 private:
  // Where only the host looks at a problem: it does not read the scales, but
  // null would stand for 1.
  alignas(16) static constexpr float kSomeScales[4] = {};
  static constexpr MatrixOperands kSomeOperands = {.weight_scales = kSomeScales,
                                                   .x_scales = kSomeScales};

  // It might take what is not aligned, and fault.
  bool IsRefused(const MatrixProblem& problem) const {
    return problem.dtype == DType::kF8E4M3 &&
           !(TakesFp8(problem.scales) && HasFp8Sizes(problem));
  }

  // The library thinks in columns: out^T [rows, num_tokens] = weight * x^T,
  // where a row-major matrix is its own transpose.
  struct Description {
    Description(const CublasFunctions& functions, const MatrixProblem& problem,
                const MatrixOperands& operands)
        : functions(functions) {
      const cudaDataType_t type = ToCudaType(problem.dtype);
      const cudaDataType_t out_type = ToCudaType(problem.out_dtype);
      const cublasOperation_t transposed = CUBLAS_OP_T;
      const auto layout = [&](cublasLtMatrixLayout_t* to, cudaDataType_t of,
                              int64_t rows, int64_t cols, int64_t stride) {
        return functions.cublasLtMatrixLayoutCreate(
                   to, of, rows, cols, stride) == CUBLAS_STATUS_SUCCESS;
      };
      is_ok = functions.cublasLtMatmulDescCreate(&operation, CUBLAS_COMPUTE_32F,
                                                 CUDA_R_32F) ==
                  CUBLAS_STATUS_SUCCESS &&
              functions.cublasLtMatmulDescSetAttribute(
                  operation, CUBLASLT_MATMUL_DESC_TRANSA, &transposed,
                  sizeof(transposed)) == CUBLAS_STATUS_SUCCESS &&
              SetFp8Attributes(functions, problem, operands, operation) &&
              layout(&a, type, problem.cols, problem.rows, problem.cols) &&
              layout(&b, type, problem.cols, problem.num_tokens,
                     problem.x_stride) &&
              layout(&c, out_type, problem.rows, problem.num_tokens,
                     problem.residual_stride > 0 ? problem.residual_stride
                                                 : problem.out_stride) &&
              layout(&d, out_type, problem.rows, problem.num_tokens,
                     problem.out_stride);
    }
    ~Description() {
      if (operation != nullptr) functions.cublasLtMatmulDescDestroy(operation);
      for (cublasLtMatrixLayout_t layout : {a, b, c, d}) {
        if (layout != nullptr) functions.cublasLtMatrixLayoutDestroy(layout);
      }
      if (preference != nullptr) {
        functions.cublasLtMatmulPreferenceDestroy(preference);
      }
    }

    bool ok() const { return is_ok; }

    bool AddPreference(int64_t max_workspace_bytes) {
      const size_t workspace = max_workspace_bytes;
      // Partial sums stay in f32 (no rounding to the output's type between
      // them), and are added in a fixed order.
      const uint32_t reductions = CUBLASLT_REDUCTION_SCHEME_NONE |
                                  CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;
      const uint32_t alignment = 16;  // As LinearArguments promise.
      const auto set = [&](cublasLtMatmulPreferenceAttributes_t attribute,
                           const auto& value) {
        return functions.cublasLtMatmulPreferenceSetAttribute(
                   preference, attribute, &value, sizeof(value)) ==
               CUBLAS_STATUS_SUCCESS;
      };
      return functions.cublasLtMatmulPreferenceCreate(&preference) ==
                 CUBLAS_STATUS_SUCCESS &&
             set(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, workspace) &&
             set(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, reductions) &&
             set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, alignment) &&
             set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, alignment) &&
             set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, alignment) &&
             set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, alignment);
    }

    const CublasFunctions& functions;
    bool is_ok = false;
    cublasLtMatmulDesc_t operation = nullptr;
    cublasLtMatrixLayout_t a = nullptr, b = nullptr, c = nullptr, d = nullptr;
    cublasLtMatmulPreference_t preference = nullptr;
  };

  static cublasLtMatmulAlgo_t ToAlgo(const MatrixAlgorithm& algorithm) {
    cublasLtMatmulAlgo_t algo;
    std::memcpy(&algo, algorithm.data.data(), sizeof(algo));
    return algo;
  }

  const CublasFunctions functions_;
  const cublasLtHandle_t handle_;
  const int capability_;
  cudaEvent_t begin_ = nullptr, end_ = nullptr;
};

}  // namespace

bool SetFp8Attributes(const CublasFunctions& functions,
                      const MatrixProblem& problem,
                      const MatrixOperands& operands,
                      cublasLtMatmulDesc_t operation) {
  if (problem.dtype != DType::kF8E4M3) return true;
  const auto set = [&](cublasLtMatmulDescAttributes_t attribute,
                       const auto& value) {
    return functions.cublasLtMatmulDescSetAttribute(operation, attribute,
                                                    &value, sizeof(value)) ==
           CUBLAS_STATUS_SUCCESS;
  };
  // Sums are promoted to f32 on the way.
  if (!set(CUBLASLT_MATMUL_DESC_FAST_ACCUM, int8_t{0})) return false;
  // Without pointers the scales are 1.
  if (problem.scales == MatrixScales::kNone) return true;
  const int32_t mode = problem.scales == MatrixScales::kRows
                           ? CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F
                           : CUBLASLT_MATMUL_MATRIX_SCALE_VEC128_32F;
  return set(CUBLASLT_MATMUL_DESC_A_SCALE_MODE, mode) &&
         set(CUBLASLT_MATMUL_DESC_B_SCALE_MODE, mode) &&
         set(CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, operands.weight_scales) &&
         set(CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, operands.x_scales);
}

absl::StatusOr<CublasFunctions> LoadCublas(const LibraryPlaces& places) {
  QUIRE_ASSIGN_OR_RETURN(
      const SharedLibrary library,
      SharedLibrary::Open({"libcublasLt.so.13", "libcublasLt.so.12"}, places));
  CublasFunctions functions;
#define QUIRE_LOAD(name) \
  QUIRE_RETURN_IF_ERROR(library.Load(#name, &functions.name));
  QUIRE_CUBLAS_FUNCTIONS(QUIRE_LOAD)
#undef QUIRE_LOAD
  functions.path = library.path();
  functions.version = functions.cublasLtGetVersion();
  if (functions.version < kLowestVersion) {
    return absl::FailedPreconditionError(absl::StrCat(
        functions.path, " is cuBLASLt ", VersionText(functions.version), "; ",
        VersionText(kLowestVersion), " or newer is needed"));
  }
  return functions;
}

absl::StatusOr<std::unique_ptr<MatrixLibrary>> OpenMatrixLibrary() {
  QUIRE_ASSIGN_OR_RETURN(CublasFunctions functions,
                         LoadCublas(DefaultLibraryPlaces()));
  cublasLtHandle_t handle = nullptr;
  const cublasStatus_t status = functions.cublasLtCreate(&handle);
  if (status != CUBLAS_STATUS_SUCCESS) {
    return absl::FailedPreconditionError(absl::StrCat(
        functions.path,
        ": cublasLtCreate: ", functions.cublasLtGetStatusString(status)));
  }
  int device = 0, major = 0, minor = 0;
  for (const cudaError_t error :
       {cudaGetDevice(&device),
        cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor,
                               device),
        cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor,
                               device)}) {
    if (error == cudaSuccess) continue;
    functions.cublasLtDestroy(handle);
    return absl::FailedPreconditionError(
        absl::StrCat(functions.path, ": no GPU: ", cudaGetErrorString(error)));
  }
  return std::make_unique<CublasLibrary>(std::move(functions), handle,
                                         major * 10 + minor);
}

}  // namespace quire::cuda
