// cuBLASLt on the host: the functions that kernels/cuda/cublas_library.cc
// loads, for programs with host_cuda_runtime.cc in place of NVIDIA's runtime. A
// product runs in the order of its stream, on the memory as it then is; what
// the call names on the host (alpha, beta, descriptors) is read at the call.
//
// Strict rather than able. What cuBLASLt's header or documentation forbids is
// refused (matrix_problem.h), and so is what it leaves undefined: operands
// outside of what the runtime allocated, or an output that overlaps another
// operand, are a fault of the device. What the real library computes and this
// one does not is NOT_SUPPORTED, as are attributes that cublas_library.cc does
// not set. Reasons are told on stderr.
//
// Environment:
//   QUIRE_HOST_CUBLAS_TAKES   so many products; cublasLtMatmul refuses those
//                             after them, as if they were not supported. Tests
//                             call QuireHostCublasTakes
#include <cublasLt.h>
#include <cuda_runtime_api.h>
#include <dlfcn.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <mutex>
#include <string>

#include "tests/gpu/ptx/host_cuda_runtime.h"
#include "tests/gpu/ptx/matrix_problem.h"
#include "tests/gpu/ptx/matrix_product.h"

struct cublasLtContext {};

namespace quire::host_cublas {
namespace {

// What the program's runtime offers.
struct Runtime {
  decltype(&cudaDeviceGetAttribute) get_attribute = nullptr;
  decltype(&cudaLaunchHostFunc) launch_host_func = nullptr;
  decltype(&cudaStreamIsCapturing) is_capturing = nullptr;
  decltype(&QuireHostRuntimeHolds) holds = nullptr;
  decltype(&QuireHostRuntimeFault) fault = nullptr;
  int capability = 0;  // 90
  int num_sms = 0;
};
Runtime runtime;

template <typename Function>
bool Find(const char* name, Function** function) {
  *function = reinterpret_cast<Function*>(dlsym(RTLD_DEFAULT, name));
  return *function != nullptr;
}

bool FindRuntime() {
  if (!Find("cudaDeviceGetAttribute", &runtime.get_attribute) ||
      !Find("cudaLaunchHostFunc", &runtime.launch_host_func) ||
      !Find("cudaStreamIsCapturing", &runtime.is_capturing) ||
      !Find("QuireHostRuntimeHolds", &runtime.holds) ||
      !Find("QuireHostRuntimeFault", &runtime.fault)) {
    return false;
  }
  int major = 0, minor = 0;
  if (runtime.get_attribute(&major, cudaDevAttrComputeCapabilityMajor, 0) !=
          cudaSuccess ||
      runtime.get_attribute(&minor, cudaDevAttrComputeCapabilityMinor, 0) !=
          cudaSuccess ||
      runtime.get_attribute(&runtime.num_sms, cudaDevAttrMultiProcessorCount,
                            0) != cudaSuccess) {
    return false;
  }
  runtime.capability = major * 10 + minor;
  return true;
}

struct Preference {
  uint64_t workspace_bytes = 0;
  uint32_t reductions = CUBLASLT_REDUCTION_SCHEME_MASK;
  uint32_t alignments[4] = {256, 256, 256, 256};  // Of A, B, C and D.
};

template <typename T, typename Handle>
T& Get(Handle* handle) {
  return *reinterpret_cast<T*>(handle);
}

template <typename T>
cublasStatus_t Set(T& field, const void* value, size_t num_bytes) {
  if (value == nullptr || num_bytes != sizeof(field)) {
    return CUBLAS_STATUS_INVALID_VALUE;
  }
  std::memcpy(&field, value, sizeof(field));
  return CUBLAS_STATUS_SUCCESS;
}

constexpr uint64_t kMagic = 0x486f73744c743133;

// An algorithm belongs to its types.
uint64_t TypesOf(const Problem& problem) {
  return uint64_t{problem.a.type} << 32 | problem.d.type;
}
cublasLtMatmulAlgo_t Encode(size_t index, const Problem& problem) {
  return {{kMagic, index, TypesOf(problem)}};
}
const Algorithm* Decode(const cublasLtMatmulAlgo_t& algo,
                        const Problem& problem) {
  if (algo.data[0] != kMagic || algo.data[1] >= std::size(kAlgorithms) ||
      algo.data[2] != TypesOf(problem)) {
    return nullptr;
  }
  return &kAlgorithms[algo.data[1]];
}

float WavesOf(const Problem& problem, const Algorithm& algorithm) {
  const int64_t num_ctas = (problem.m() + 127) / 128 *
                           ((problem.n() + 127) / 128) * algorithm.num_splits;
  return static_cast<float>(num_ctas) / static_cast<float>(runtime.num_sms);
}

void RunProduct(void* data) {
  auto* const product = static_cast<Product*>(data);
  const std::string fault = product->Fault(runtime.holds);
  if (fault.empty()) {
    product->Run();
  } else {
    runtime.fault(("cuBLASLt of the host: " + fault).c_str());
  }
  if (!product->is_captured) delete product;
}

cublasStatus_t Told(const Refusal& refusal) {
  std::fprintf(stderr, "cuBLASLt of the host refuses: %s\n", refusal.why);
  return refusal.status;
}

// Products that are still taken.
std::atomic<int64_t>& NumTaken() {
  static std::atomic<int64_t> count = [] {
    const char* const limit = std::getenv("QUIRE_HOST_CUBLAS_TAKES");
    return limit == nullptr ? INT64_MAX : std::atoll(limit);
  }();
  return count;
}

// Of graphs, which live as long as anybody may launch them.
Product* KeepForGraph(const Product& product) {
  static auto* const mu = new std::mutex;
  static auto* const products = new std::deque<Product>;
  const std::lock_guard<std::mutex> lock(*mu);
  return &products->emplace_back(product);
}

Problem ProblemOf(cublasLtMatmulDesc_t operation, cublasLtMatrixLayout_t a,
                  cublasLtMatrixLayout_t b, cublasLtMatrixLayout_t c,
                  cublasLtMatrixLayout_t d) {
  return {Get<Operation>(operation), Get<Layout>(a), Get<Layout>(b),
          Get<Layout>(c), Get<Layout>(d)};
}

bool IsAligned(const void* pointer, uint32_t alignment) {
  return reinterpret_cast<uintptr_t>(pointer) % alignment == 0;
}

}  // namespace
}  // namespace quire::host_cublas

using namespace quire::host_cublas;

extern "C" {

// From now on, in place of QUIRE_HOST_CUBLAS_TAKES.
void QuireHostCublasTakes(int64_t num_products) { NumTaken() = num_products; }

size_t cublasLtGetVersion() { return CUBLAS_VERSION; }

const char* cublasLtGetStatusString(cublasStatus_t status) {
  switch (status) {
    case CUBLAS_STATUS_SUCCESS:
      return "success";
    case CUBLAS_STATUS_NOT_INITIALIZED:
      return "the library was not initialized";
    case CUBLAS_STATUS_INVALID_VALUE:
      return "an unsupported value or parameter was passed to the function";
    case CUBLAS_STATUS_ARCH_MISMATCH:
      return "the function requires an architectural feature absent from the "
             "device";
    case CUBLAS_STATUS_EXECUTION_FAILED:
      return "the function failed to launch on the GPU";
    case CUBLAS_STATUS_NOT_SUPPORTED:
      return "the requested functionality is not supported";
    default:
      return "unrecognized status";
  }
}

// As the real library without a GPU, if the program has another runtime.
cublasStatus_t cublasLtCreate(cublasLtHandle_t* handle) {
  if (handle == nullptr) return CUBLAS_STATUS_INVALID_VALUE;
  if (!FindRuntime()) return CUBLAS_STATUS_NOT_INITIALIZED;
  *handle = new cublasLtContext();
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtDestroy(cublasLtHandle_t handle) {
  if (handle == nullptr) return CUBLAS_STATUS_INVALID_VALUE;
  delete handle;
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t* operation,
                                        cublasComputeType_t compute,
                                        cudaDataType_t scale) {
  if (operation == nullptr) return CUBLAS_STATUS_INVALID_VALUE;
  *operation = reinterpret_cast<cublasLtMatmulDesc_t>(
      new Operation{.compute = compute, .scale = scale});
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t operation) {
  delete &Get<Operation>(operation);
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulDescSetAttribute(
    cublasLtMatmulDesc_t operation, cublasLtMatmulDescAttributes_t attribute,
    const void* value, size_t num_bytes) {
  if (operation == nullptr) return CUBLAS_STATUS_INVALID_VALUE;
  auto& to = Get<Operation>(operation);
  switch (attribute) {
    case CUBLASLT_MATMUL_DESC_TRANSA:
      return Set(to.transposes[0], value, num_bytes);
    case CUBLASLT_MATMUL_DESC_TRANSB:
      return Set(to.transposes[1], value, num_bytes);
    case CUBLASLT_MATMUL_DESC_A_SCALE_POINTER:
      return Set(to.scales[0], value, num_bytes);
    case CUBLASLT_MATMUL_DESC_B_SCALE_POINTER:
      return Set(to.scales[1], value, num_bytes);
    case CUBLASLT_MATMUL_DESC_A_SCALE_MODE:
      return Set(to.scale_modes[0], value, num_bytes);
    case CUBLASLT_MATMUL_DESC_B_SCALE_MODE:
      return Set(to.scale_modes[1], value, num_bytes);
    case CUBLASLT_MATMUL_DESC_FAST_ACCUM:
      return Set(to.has_fast_sums, value, num_bytes);
    default:
      return Told({kNotSupported, "an attribute that is not here"});
  }
}

cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t* layout,
                                          cudaDataType type, uint64_t rows,
                                          uint64_t cols, int64_t ld) {
  if (layout == nullptr) return CUBLAS_STATUS_INVALID_VALUE;
  *layout = reinterpret_cast<cublasLtMatrixLayout_t>(
      new Layout{type, rows, cols, ld});
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t layout) {
  delete &Get<Layout>(layout);
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulPreferenceCreate(
    cublasLtMatmulPreference_t* preference) {
  if (preference == nullptr) return CUBLAS_STATUS_INVALID_VALUE;
  *preference = reinterpret_cast<cublasLtMatmulPreference_t>(new Preference());
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulPreferenceDestroy(
    cublasLtMatmulPreference_t preference) {
  delete &Get<Preference>(preference);
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulPreferenceSetAttribute(
    cublasLtMatmulPreference_t preference,
    cublasLtMatmulPreferenceAttributes_t attribute, const void* value,
    size_t num_bytes) {
  if (preference == nullptr) return CUBLAS_STATUS_INVALID_VALUE;
  auto& to = Get<Preference>(preference);
  switch (attribute) {
    case CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES:
      return Set(to.workspace_bytes, value, num_bytes);
    case CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK:
      return Set(to.reductions, value, num_bytes);
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES:
      return Set(to.alignments[0], value, num_bytes);
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES:
      return Set(to.alignments[1], value, num_bytes);
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES:
      return Set(to.alignments[2], value, num_bytes);
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES:
      return Set(to.alignments[3], value, num_bytes);
    default:
      return Told({kNotSupported, "a preference that is not here"});
  }
}

cublasStatus_t cublasLtMatmulAlgoGetHeuristic(
    cublasLtHandle_t handle, cublasLtMatmulDesc_t operation,
    cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
    cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
    cublasLtMatmulPreference_t preference, int max_count,
    cublasLtMatmulHeuristicResult_t results[], int* count) {
  if (handle == nullptr) return CUBLAS_STATUS_NOT_INITIALIZED;
  if (operation == nullptr || a == nullptr || b == nullptr || c == nullptr ||
      d == nullptr || preference == nullptr || results == nullptr ||
      count == nullptr || max_count <= 0) {
    return CUBLAS_STATUS_INVALID_VALUE;
  }
  *count = 0;
  const Problem problem = ProblemOf(operation, a, b, c, d);
  if (const Refusal refusal = CheckProblem(problem, runtime.capability))
    return refusal.status;
  const auto& limits = Get<Preference>(preference);
  const uint32_t alignment =
      *std::min_element(limits.alignments, std::end(limits.alignments));
  for (size_t i = 0; i < std::size(kAlgorithms) && *count < max_count; ++i) {
    const Algorithm& algorithm = kAlgorithms[i];
    const uint64_t workspace_bytes = WorkspaceBytes(problem, algorithm);
    if (CheckAlgorithm(problem, algorithm) || algorithm.alignment > alignment ||
        workspace_bytes > limits.workspace_bytes ||
        (algorithm.reduction & ~limits.reductions) != 0) {
      continue;
    }
    cublasLtMatmulHeuristicResult_t& result = results[(*count)++];
    result = {};
    result.algo = Encode(i, problem);
    result.workspaceSize = workspace_bytes;
    result.state = CUBLAS_STATUS_SUCCESS;
    result.wavesCount = WavesOf(problem, algorithm);
  }
  return *count > 0 ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_NOT_SUPPORTED;
}

cublasStatus_t cublasLtMatmulAlgoCheck(
    cublasLtHandle_t handle, cublasLtMatmulDesc_t operation,
    cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
    cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
    const cublasLtMatmulAlgo_t* algo, cublasLtMatmulHeuristicResult_t* result) {
  if (handle == nullptr) return CUBLAS_STATUS_NOT_INITIALIZED;
  if (operation == nullptr || a == nullptr || b == nullptr || c == nullptr ||
      d == nullptr || algo == nullptr || result == nullptr) {
    return CUBLAS_STATUS_INVALID_VALUE;
  }
  const Problem problem = ProblemOf(operation, a, b, c, d);
  if (const Refusal refusal = CheckProblem(problem, runtime.capability))
    return refusal.status;
  const Algorithm* const algorithm = Decode(*algo, problem);
  if (algorithm == nullptr) return CUBLAS_STATUS_INVALID_VALUE;
  if (const Refusal refusal = CheckAlgorithm(problem, *algorithm)) {
    return refusal.status;
  }
  result->workspaceSize = WorkspaceBytes(problem, *algorithm);
  result->state = CUBLAS_STATUS_SUCCESS;
  result->wavesCount = WavesOf(problem, *algorithm);
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmul(cublasLtHandle_t handle,
                              cublasLtMatmulDesc_t operation, const void* alpha,
                              const void* a, cublasLtMatrixLayout_t a_layout,
                              const void* b, cublasLtMatrixLayout_t b_layout,
                              const void* beta, const void* c,
                              cublasLtMatrixLayout_t c_layout, void* d,
                              cublasLtMatrixLayout_t d_layout,
                              const cublasLtMatmulAlgo_t* algo, void* workspace,
                              size_t workspace_bytes, cudaStream_t stream) {
  if (handle == nullptr) return CUBLAS_STATUS_NOT_INITIALIZED;
  if (operation == nullptr || a_layout == nullptr || b_layout == nullptr ||
      c_layout == nullptr || d_layout == nullptr || alpha == nullptr ||
      beta == nullptr || a == nullptr || b == nullptr || d == nullptr) {
    return Told({kInvalid, "a null pointer"});
  }
  const Problem problem =
      ProblemOf(operation, a_layout, b_layout, c_layout, d_layout);
  if (const Refusal refusal = CheckProblem(problem, runtime.capability))
    return Told(refusal);
  if (algo == nullptr) return Told({kNotSupported, "no algorithm"});
  const Algorithm* const algorithm = Decode(*algo, problem);
  if (algorithm == nullptr) {
    return Told({kInvalid, "an algorithm for something else"});
  }
  if (const Refusal refusal = CheckAlgorithm(problem, *algorithm)) {
    return Told(refusal);
  }
  Product product = {.problem = problem,
                     .algorithm = *algorithm,
                     .a = a,
                     .b = b,
                     .c = c,
                     .d = d,
                     .workspace = workspace};
  std::memcpy(&product.alpha, alpha, sizeof(float));
  std::memcpy(&product.beta, beta, sizeof(float));
  for (const void* operand :
       {a, b, product.beta != 0 ? c : d, static_cast<const void*>(d)}) {
    if (operand == nullptr || !IsAligned(operand, algorithm->alignment)) {
      return Told({kInvalid, "an operand that is not aligned"});
    }
  }
  // In place, or apart.
  if (product.beta != 0 && c == d && problem.c != problem.d) {
    return Told({kInvalid, "C is D, and not their layouts"});
  }
  for (int side = 0; side < 2; ++side) {
    const bool is_one = problem.operation.scale_modes[side] ==
                        CUBLASLT_MATMUL_MATRIX_SCALE_SCALAR_32F;
    if (!IsAligned(problem.operation.scales[side], is_one ? 4 : 16)) {
      return Told({kInvalid, "scales that are not aligned"});
    }
  }
  const uint64_t needed = WorkspaceBytes(problem, *algorithm);
  if (needed > 0 && (workspace == nullptr || needed > workspace_bytes)) {
    return Told({kInvalid, "a workspace that is too small"});
  }
  if (!IsAligned(workspace, 256)) {
    return Told({kInvalid, "a workspace that is not aligned to 256 bytes"});
  }
  if (NumTaken()-- <= 0) return Told({kNotSupported, "as a test says"});
  cudaStreamCaptureStatus capture = cudaStreamCaptureStatusNone;
  if (runtime.is_capturing(stream, &capture) != cudaSuccess) {
    return CUBLAS_STATUS_EXECUTION_FAILED;
  }
  product.is_captured = capture == cudaStreamCaptureStatusActive;
  Product* const kept =
      product.is_captured ? KeepForGraph(product) : new Product(product);
  if (runtime.launch_host_func(stream, RunProduct, kept) != cudaSuccess) {
    if (!kept->is_captured) delete kept;
    return CUBLAS_STATUS_EXECUTION_FAILED;
  }
  return CUBLAS_STATUS_SUCCESS;
}

}  // extern "C"
