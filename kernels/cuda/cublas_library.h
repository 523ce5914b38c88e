// cuBLASLt, loaded at run time.
#ifndef QUIRE_KERNELS_CUDA_CUBLAS_LIBRARY_H_
#define QUIRE_KERNELS_CUDA_CUBLAS_LIBRARY_H_

#include <cublasLt.h>

#include <string>

#include "absl/status/statusor.h"
#include "kernels/cuda/matrix_library.h"
#include "kernels/cuda/shared_library.h"

namespace quire::cuda {

// Declared by the library's own header, so that a call cannot disagree with it.
#define QUIRE_CUBLAS_FUNCTIONS(F)         \
  F(cublasLtCreate)                       \
  F(cublasLtDestroy)                      \
  F(cublasLtGetStatusString)              \
  F(cublasLtGetVersion)                   \
  F(cublasLtMatmul)                       \
  F(cublasLtMatmulAlgoCheck)              \
  F(cublasLtMatmulAlgoGetHeuristic)       \
  F(cublasLtMatmulDescCreate)             \
  F(cublasLtMatmulDescDestroy)            \
  F(cublasLtMatmulDescSetAttribute)       \
  F(cublasLtMatmulPreferenceCreate)       \
  F(cublasLtMatmulPreferenceDestroy)      \
  F(cublasLtMatmulPreferenceSetAttribute) \
  F(cublasLtMatrixLayoutCreate)           \
  F(cublasLtMatrixLayoutDestroy)

struct CublasFunctions {
#define QUIRE_DECLARE(name) decltype(&::name) name = nullptr;
  QUIRE_CUBLAS_FUNCTIONS(QUIRE_DECLARE)
#undef QUIRE_DECLARE
  std::string path;
  size_t version = 0;  // 130100 is 13.1.0.
};

// As OpenMatrixLibrary, without a GPU.
absl::StatusOr<CublasFunctions> LoadCublas(const LibraryPlaces& places);

// Adds to the description of a product what e4m3 needs (for others nothing): A
// is the weight, B is x. False if the library refuses an attribute. Attributes
// of scales are known from 12.8 on, and set only with scales (HasFp8Scales).
bool SetFp8Attributes(const CublasFunctions& functions,
                      const MatrixProblem& problem,
                      const MatrixOperands& operands,
                      cublasLtMatmulDesc_t operation);

}  // namespace quire::cuda

#endif  // QUIRE_KERNELS_CUDA_CUBLAS_LIBRARY_H_
