// cuBLASLt on the host: the functions that kernels/cuda/cublas_library.cc
// loads, for programs with host_cuda_runtime.cc in place of NVIDIA's runtime. A
// product runs in the order of its stream, on the memory as it then is; what
// the call names on the host (alpha, beta, descriptors) is read at the call.
//
// Strict rather than able. What the header or the documentation of cuBLASLt
// (13.0: "cublasLtMatmul", "Tensor Core Usage", "Narrow Precision Data Types
// Usage") forbids is refused, and so is what it leaves undefined: operands
// outside of what the runtime allocated, or an output that overlaps another
// operand, are a fault of the device. What the real library computes and this
// one does not is NOT_SUPPORTED: attributes that cublas_library.cc does not
// set, an algorithm of the library's own choice, scales of blocks of 128 x 128.
// Reasons are told on stderr.
//
// Sums are f32, in the library's freedom of their order; e4m3 is summed in f32
// too, where tensor cores keep fewer bits.
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
#include <vector>

#include "kernels/dtype.h"
#include "tests/gpu/ptx/host_cuda_runtime.h"

struct cublasLtContext {};

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

// ------------------------------------------------------------ descriptors

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

// ------------------------------------------------------------ what is allowed

struct Refusal {
  cublasStatus_t status = CUBLAS_STATUS_SUCCESS;
  const char* why = "";

  explicit operator bool() const { return status != CUBLAS_STATUS_SUCCESS; }
};
constexpr auto kInvalid = CUBLAS_STATUS_INVALID_VALUE;
constexpr auto kNotSupported = CUBLAS_STATUS_NOT_SUPPORTED;

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

Refusal CheckScales(const Problem& problem) {
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
  if (runtime.capability != 90) {
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

Refusal CheckProblem(const Problem& problem) {
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
    if (runtime.capability < 89) {
      return {CUBLAS_STATUS_ARCH_MISMATCH, "e4m3 needs 8.9"};
    }
    const bool is_datacenter_blackwell =
        runtime.capability >= 100 && runtime.capability < 120;
    if (!is_datacenter_blackwell && (!is_a_transposed || is_b_transposed)) {
      return {kNotSupported, "e4m3 but A transposed and B not"};
    }
    if (a.rows % 16 != 0 || b.rows % 16 != 0 ||
        d.rows * BytesOf(d.type) % 16 != 0) {
      return {kNotSupported, "sizes of e4m3 that are not 16 bytes"};
    }
  }
  return CheckScales(problem);
}

// ------------------------------------------------------------ algorithms

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

// Whether the algorithm can take such columns.
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

float WavesOf(const Problem& problem, const Algorithm& algorithm) {
  const int64_t num_ctas = (problem.m() + 127) / 128 *
                           ((problem.n() + 127) / 128) * algorithm.num_splits;
  return static_cast<float>(num_ctas) / static_cast<float>(runtime.num_sms);
}

// ------------------------------------------------------------ arithmetic

float Load(cudaDataType_t type, const void* from, int64_t index) {
  switch (type) {
    case CUDA_R_8F_E4M3:
      return quire::E4M3ToFloat(static_cast<const uint8_t*>(from)[index]);
    case CUDA_R_16BF:
      return quire::Bf16ToFloat(static_cast<const uint16_t*>(from)[index]);
    case CUDA_R_16F:
      return quire::HalfToFloat(static_cast<const uint16_t*>(from)[index]);
    default:
      return static_cast<const float*>(from)[index];
  }
}
void Store(cudaDataType_t type, void* to, int64_t index, float value) {
  switch (type) {
    case CUDA_R_16BF:
      static_cast<uint16_t*>(to)[index] = quire::FloatToBf16(value);
      break;
    case CUDA_R_16F:
      static_cast<uint16_t*>(to)[index] = quire::FloatToHalf(value);
      break;
    default:
      static_cast<float*>(to)[index] = value;
  }
}

float Dot(const float* a, const float* b, int64_t count) {
  constexpr int kLanes = 16;
  float sums[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    for (int lane = 0; lane < kLanes; ++lane) {
      sums[lane] += a[i + lane] * b[i + lane];
    }
  }
  for (int lane = 0; i < count; ++i, ++lane) sums[lane] += a[i] * b[i];
  float sum = 0;
  for (const float part : sums) sum += part;
  return sum;
}

struct Product {
  Problem problem;
  Algorithm algorithm;
  float alpha = 1, beta = 0;
  const void* a = nullptr;
  const void* b = nullptr;
  const void* c = nullptr;
  void* d = nullptr;
  void* workspace = nullptr;
  bool is_captured = false;  // And may run again.

  // Elements [first, first + count) of the products for element (i, j), summed
  // with their scales, except those of a row or of all.
  float Sum(const float* row, const float* col, int64_t i, int64_t j,
            int64_t first, int64_t count) const {
    const Operation& operation = problem.operation;
    if (operation.scale_modes[0] != CUBLASLT_MATMUL_MATRIX_SCALE_VEC128_32F) {
      return Dot(row + first, col + first, count);
    }
    float sum = 0;
    for (int64_t k = first; k < first + count;) {
      const int64_t block = k / 128;
      const int64_t end = std::min(first + count, (block + 1) * 128);
      sum += Dot(row + k, col + k, end - k) *
             operation.scales[0][block * problem.m() + i] *
             operation.scales[1][block * problem.n() + j];
      k = end;
    }
    return sum;
  }
  float ScaleOf(int64_t i, int64_t j) const {
    const Operation& operation = problem.operation;
    float scale = 1;
    const int64_t indices[2] = {i, j};
    for (int side = 0; side < 2; ++side) {
      if (operation.scales[side] == nullptr) continue;
      switch (operation.scale_modes[side]) {
        case CUBLASLT_MATMUL_MATRIX_SCALE_SCALAR_32F:
          scale *= operation.scales[side][0];
          break;
        case CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F:
          scale *= operation.scales[side][indices[side]];
          break;
        default:
          break;  // In the sum.
      }
    }
    return scale;
  }

  void Run() const {
    const int64_t m = problem.m(), n = problem.n(), k = problem.k();
    const auto& [operation, a_layout, b_layout, c_layout, d_layout] = problem;
    std::vector<float> row(k), cols(n * k);
    const bool is_b_transposed = operation.transposes[1] == CUBLAS_OP_T;
    for (int64_t j = 0; j < n; ++j) {
      for (int64_t l = 0; l < k; ++l) {
        cols[j * k + l] =
            Load(b_layout.type, b,
                 is_b_transposed ? l * b_layout.ld + j : j * b_layout.ld + l);
      }
    }
    const int num_splits = algorithm.num_splits;
    const bool is_in_place =
        algorithm.reduction == CUBLASLT_REDUCTION_SCHEME_INPLACE;
    const cudaDataType_t sum_type =
        algorithm.reduction == CUBLASLT_REDUCTION_SCHEME_OUTPUT_TYPE
            ? d_layout.type
            : CUDA_R_32F;
    for (int64_t i = 0; i < m; ++i) {
      const bool is_a_transposed = operation.transposes[0] == CUBLAS_OP_T;
      for (int64_t l = 0; l < k; ++l) {
        row[l] =
            Load(a_layout.type, a,
                 is_a_transposed ? i * a_layout.ld + l : l * a_layout.ld + i);
      }
      for (int64_t j = 0; j < n; ++j) {
        const float* col = cols.data() + j * k;
        float sum = 0;
        for (int split = 0; split < num_splits; ++split) {
          // In units of 16.
          const int64_t first = k / 16 * split / num_splits * 16;
          const int64_t end = split + 1 == num_splits
                                  ? k
                                  : k / 16 * (split + 1) / num_splits * 16;
          float part = Sum(row.data(), col, i, j, first, end - first);
          if (num_splits > 1 && !is_in_place) {
            const int64_t place = (split * n + j) * m + i;
            Store(sum_type, workspace, place, part);
            part = Load(sum_type, workspace, place);
          }
          sum += part;
          if (is_in_place) {
            uint32_t rounded = 0;
            Store(d_layout.type, &rounded, 0, sum);
            sum = Load(d_layout.type, &rounded, 0);
          }
        }
        float value = alpha * ScaleOf(i, j) * sum;
        if (beta != 0) {
          value += beta * Load(c_layout.type, c, j * c_layout.ld + i);
        }
        Store(d_layout.type, d, j * d_layout.ld + i, value);
      }
    }
  }

  struct Range {
    const char* name;
    const void* begin;
    uint64_t num_bytes;

    bool Overlaps(const Range& other) const {
      const auto* p = static_cast<const char*>(begin);
      const auto* q = static_cast<const char*>(other.begin);
      return p < q + other.num_bytes && q < p + num_bytes;
    }
  };
  // From a matrix's first to its last element.
  static Range RangeOf(const char* name, const Layout& layout, const void* at) {
    const uint64_t count = (layout.cols - 1) * layout.ld + layout.rows;
    return {name, at, count * BytesOf(layout.type)};
  }
  // Empty, or what a GPU would fault at or compute wrong.
  std::string Fault() const {
    const Range out = RangeOf("D", problem.d, d);
    std::vector<Range> others = {RangeOf("A", problem.a, a),
                                 RangeOf("B", problem.b, b)};
    if (beta != 0 && c != d) others.push_back(RangeOf("C", problem.c, c));
    if (const uint64_t num_bytes = WorkspaceBytes(problem, algorithm)) {
      others.push_back({"the workspace", workspace, num_bytes});
    }
    const int64_t sizes[2] = {problem.m(), problem.n()};
    for (int side = 0; side < 2; ++side) {
      const Operation& operation = problem.operation;
      if (operation.scales[side] == nullptr) continue;
      uint64_t count = 1;
      if (operation.scale_modes[side] !=
          CUBLASLT_MATMUL_MATRIX_SCALE_SCALAR_32F) {
        count = sizes[side];
      }
      if (operation.scale_modes[side] ==
          CUBLASLT_MATMUL_MATRIX_SCALE_VEC128_32F) {
        count *= (problem.k() + 127) / 128;
      }
      others.push_back({"a scale", operation.scales[side], 4 * count});
    }
    for (const Range& range : others) {
      if (!runtime.holds(range.begin, range.num_bytes)) {
        return std::string(range.name) + " is no memory of the device";
      }
      if (range.Overlaps(out)) {
        return std::string("D overlaps ") + range.name;
      }
    }
    if (!runtime.holds(out.begin, out.num_bytes)) {
      return "D is no memory of the device";
    }
    return "";
  }
};

void RunProduct(void* data) {
  auto* const product = static_cast<Product*>(data);
  const std::string fault = product->Fault();
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
  if (const Refusal refusal = CheckProblem(problem)) return refusal.status;
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
  if (const Refusal refusal = CheckProblem(problem)) return refusal.status;
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
  if (const Refusal refusal = CheckProblem(problem)) return Told(refusal);
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
