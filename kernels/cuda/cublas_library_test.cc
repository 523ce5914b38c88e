#include "kernels/cuda/cublas_library.h"

#include <cstdint>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "gtest/gtest.h"
#include "kernels/cuda/matrix_library.h"
#include "kernels/cuda/shared_library.h"

namespace quire::cuda {
namespace {

// Without a GPU the library says so itself; with one it works; where it is
// missing we say where we have looked.
TEST(CublasLibraryTest, OpensOrSaysWhy) {
  const auto installed = SharedLibrary::Open(
      {"libcublasLt.so.13", "libcublasLt.so.12"}, DefaultLibraryPlaces());
  const auto library = OpenMatrixLibrary();
  if (!installed.ok()) {
    EXPECT_EQ(library.status().code(), absl::StatusCode::kNotFound);
    GTEST_SKIP() << "cuBLASLt is not installed: "
                 << installed.status().message();
  }
  if (library.ok()) {
    EXPECT_EQ((*library)->name().rfind("cuBLASLt 1", 0), 0u);
    return;
  }
  // All functions were found: what failed is what needs a GPU.
  EXPECT_EQ(library.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_NE(library.status().message().find("cublasLtCreate: "),
            std::string::npos)
      << library.status();
}

// The library checks attributes and the sizes of their values without a GPU.
TEST(CublasLibraryTest, KnowsTheAttributesOfFp8) {
  const auto functions = LoadCublas(DefaultLibraryPlaces());
  if (!functions.ok()) {
    GTEST_SKIP() << "cuBLASLt is not installed: " << functions.status();
  }
  const auto library = SharedLibrary::Open(
      {"libcublasLt.so.13", "libcublasLt.so.12"}, DefaultLibraryPlaces());
  ASSERT_TRUE(library.ok());
  decltype(&::cublasLtMatmulDescGetAttribute) get_attribute = nullptr;
  ASSERT_TRUE(
      library->Load("cublasLtMatmulDescGetAttribute", &get_attribute).ok());
  const auto read = [&](cublasLtMatmulDesc_t operation,
                        cublasLtMatmulDescAttributes_t attribute, auto value) {
    size_t num_written = 0;
    EXPECT_EQ(get_attribute(operation, attribute, &value, sizeof(value),
                            &num_written),
              CUBLAS_STATUS_SUCCESS);
    EXPECT_EQ(num_written, sizeof(value));
    return value;
  };
  const float weight_scales = 1, x_scales = 1;
  MatrixProblem problem;
  problem.dtype = DType::kF8E4M3;
  for (const auto& [scales, mode] :
       {std::pair(MatrixScales::kNone, CUBLASLT_MATMUL_MATRIX_SCALE_SCALAR_32F),
        std::pair(MatrixScales::kRows,
                  CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F),
        std::pair(MatrixScales::kBlocks,
                  CUBLASLT_MATMUL_MATRIX_SCALE_VEC128_32F)}) {
    if (!HasFp8Scales(scales, 90, static_cast<int>(functions->version))) {
      continue;
    }
    problem.scales = scales;
    const bool has_scales = scales != MatrixScales::kNone;
    cublasLtMatmulDesc_t operation = nullptr;
    ASSERT_EQ(functions->cublasLtMatmulDescCreate(
                  &operation, CUBLAS_COMPUTE_32F, CUDA_R_32F),
              CUBLAS_STATUS_SUCCESS);
    EXPECT_TRUE(SetFp8Attributes(
        *functions, problem,
        {.weight_scales = &weight_scales, .x_scales = &x_scales}, operation));
    EXPECT_EQ(read(operation, CUBLASLT_MATMUL_DESC_FAST_ACCUM, int8_t{1}), 0);
    if (functions->version >= 120800) {
      EXPECT_EQ(read(operation, CUBLASLT_MATMUL_DESC_A_SCALE_MODE, -1), mode);
      EXPECT_EQ(read(operation, CUBLASLT_MATMUL_DESC_B_SCALE_MODE, -1), mode);
    }
    const void* const none = nullptr;
    EXPECT_EQ(read(operation, CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, none),
              has_scales ? &weight_scales : nullptr);
    EXPECT_EQ(read(operation, CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, none),
              has_scales ? &x_scales : nullptr);
    functions->cublasLtMatmulDescDestroy(operation);
  }
}

}  // namespace
}  // namespace quire::cuda
