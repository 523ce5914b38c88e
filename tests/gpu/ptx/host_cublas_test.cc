// That cuBLASLt of the host refuses what the real one does, and computes the
// rest when its turn comes. QUIRE_TEST_CAPABILITY: of the GPU (90).
#include <cublasLt.h>
#include <cuda_runtime_api.h>

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <string>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/cuda/cublas_library.h"
#include "kernels/cuda/shared_library.h"
#include "kernels/dtype.h"

namespace quire::ptx {
namespace {

using cuda::CublasFunctions;

int Capability() {
  const char* const text = std::getenv("QUIRE_TEST_CAPABILITY");
  return text == nullptr ? 90 : std::atoi(text);
}

// A product, its device memory and everything that can be wrong with it:
// D^T [tokens, rows] = alpha * x [tokens, cols] * weight^T [cols, rows], as
// cublas_library.cc asks for it.
struct Product {
  cudaDataType_t type = CUDA_R_16BF, out_type = CUDA_R_16BF;
  cublasComputeType_t compute = CUBLAS_COMPUTE_32F;
  cudaDataType_t scale_type = CUDA_R_32F;
  int64_t rows = 32, cols = 128, tokens = 8;
  int64_t a_rows = 0, lda = 0, ldb = 0, ldc = 0,
          ldd = 0;  // 0: as they must be.
  int32_t trans_a = CUBLAS_OP_T, trans_b = CUBLAS_OP_N;
  int64_t a_offset = 0, b_offset = 0, d_offset = 0;  // Bytes.
  int64_t workspace_offset = 0;
  int32_t scale_modes[2] = {0, 0};
  const float* scales[2] = {nullptr, nullptr};
  float alpha = 1, beta = 0;
  uint32_t alignment = 16;
  uint32_t reductions = CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;
  uint64_t workspace_limit = 1 << 20;  // Of the algorithm.
  size_t workspace_bytes = 1 << 20;
  bool is_c_apart = false;
  void* d = nullptr;  // Null: memory of its own.
};

class HostCublasTest : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    // What the runtime takes for the GPU's architecture.
    const std::string folder = testing::TempDir() + "/ptx";
    ASSERT_EQ(std::system(("mkdir -p " + folder).c_str()), 0);
    std::ofstream(folder + "/none.ptx")
        << ".version 8.0\n.target sm_" << Capability()
        << "\n.address_size 64\n";
    setenv("QUIRE_PTX", folder.c_str(), 1);
  }
  void SetUp() override {
    auto functions = cuda::LoadCublas({.folders = {"tests/gpu/ptx"},
                                       .uses_loader_path = false,
                                       .patterns = {}});
    ASSERT_TRUE(functions.ok()) << functions.status();
    lt_ = *std::move(functions);
    ASSERT_EQ(lt_.cublasLtCreate(&handle_), CUBLAS_STATUS_SUCCESS);
    ASSERT_EQ(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking),
              cudaSuccess);
    for (void** memory : {&a_, &b_, &c_, &d_, &workspace_, &scales_}) {
      ASSERT_EQ(cudaMalloc(memory, kBytes), cudaSuccess);
    }
  }
  void TearDown() override {
    for (void* memory : {a_, b_, c_, d_, workspace_, scales_}) cudaFree(memory);
    cudaStreamDestroy(stream_);
    lt_.cublasLtDestroy(handle_);
  }
  static constexpr size_t kBytes = 1 << 20;

  static int64_t Or(int64_t value, int64_t otherwise) {
    return value == 0 ? otherwise : value;
  }
  struct Described {
    cublasLtMatmulDesc_t operation = nullptr;
    cublasLtMatrixLayout_t a = nullptr, b = nullptr, c = nullptr, d = nullptr;
  };
  Described Describe(const Product& p) {
    Described to;
    EXPECT_EQ(
        lt_.cublasLtMatmulDescCreate(&to.operation, p.compute, p.scale_type),
        CUBLAS_STATUS_SUCCESS);
    const auto set = [&](cublasLtMatmulDescAttributes_t attribute,
                         const auto& value) {
      EXPECT_EQ(lt_.cublasLtMatmulDescSetAttribute(to.operation, attribute,
                                                   &value, sizeof(value)),
                CUBLAS_STATUS_SUCCESS);
    };
    set(CUBLASLT_MATMUL_DESC_TRANSA, p.trans_a);
    set(CUBLASLT_MATMUL_DESC_TRANSB, p.trans_b);
    set(CUBLASLT_MATMUL_DESC_A_SCALE_MODE, p.scale_modes[0]);
    set(CUBLASLT_MATMUL_DESC_B_SCALE_MODE, p.scale_modes[1]);
    set(CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, p.scales[0]);
    set(CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, p.scales[1]);
    const auto layout = [&](cublasLtMatrixLayout_t* made, cudaDataType_t type,
                            int64_t rows, int64_t cols, int64_t ld) {
      EXPECT_EQ(lt_.cublasLtMatrixLayoutCreate(made, type, rows, cols, ld),
                CUBLAS_STATUS_SUCCESS);
    };
    int64_t a_rows = Or(p.a_rows, p.cols), a_cols = p.rows;
    if (p.trans_a == CUBLAS_OP_N) std::swap(a_rows, a_cols);
    layout(&to.a, p.type, a_rows, a_cols, Or(p.lda, a_rows));
    layout(&to.b, p.type, p.cols, p.tokens, Or(p.ldb, p.cols));
    layout(&to.c, p.out_type, p.rows, p.tokens, Or(p.ldc, p.rows));
    layout(&to.d, p.out_type, p.rows, p.tokens, Or(p.ldd, p.rows));
    return to;
  }
  void Destroy(const Described& of) {
    lt_.cublasLtMatmulDescDestroy(of.operation);
    for (cublasLtMatrixLayout_t layout : {of.a, of.b, of.c, of.d}) {
      lt_.cublasLtMatrixLayoutDestroy(layout);
    }
  }

  // At most six, and their workspaces.
  std::vector<cublasLtMatmulHeuristicResult_t> Find(const Product& p) {
    cublasLtMatmulPreference_t preference = nullptr;
    EXPECT_EQ(lt_.cublasLtMatmulPreferenceCreate(&preference),
              CUBLAS_STATUS_SUCCESS);
    const auto set = [&](cublasLtMatmulPreferenceAttributes_t attribute,
                         const auto& value) {
      EXPECT_EQ(lt_.cublasLtMatmulPreferenceSetAttribute(preference, attribute,
                                                         &value, sizeof(value)),
                CUBLAS_STATUS_SUCCESS);
    };
    set(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, p.workspace_limit);
    set(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, p.reductions);
    for (const auto attribute : {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES,
                                 CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
                                 CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES,
                                 CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES}) {
      set(attribute, p.alignment);
    }
    const Described of = Describe(p);
    std::vector<cublasLtMatmulHeuristicResult_t> results(6);
    int count = 0;
    const cublasStatus_t status = lt_.cublasLtMatmulAlgoGetHeuristic(
        handle_, of.operation, of.a, of.b, of.c, of.d, preference, 6,
        results.data(), &count);
    EXPECT_EQ(status == CUBLAS_STATUS_SUCCESS, count > 0);
    results.resize(count);
    Destroy(of);
    lt_.cublasLtMatmulPreferenceDestroy(preference);
    return results;
  }

  // By the algorithm that was found first for `found`: what the call says.
  cublasStatus_t Multiply(const Product& p, const Product& found,
                          size_t which = 0) {
    const auto algorithms = Find(found);
    EXPECT_LT(which, algorithms.size());
    if (which >= algorithms.size()) return CUBLAS_STATUS_INTERNAL_ERROR;
    const Described of = Describe(p);
    // They are gone when the product runs.
    float alpha = p.alpha, beta = p.beta;
    char* const d = static_cast<char*>(p.d == nullptr ? d_ : p.d) + p.d_offset;
    const cublasStatus_t status = lt_.cublasLtMatmul(
        handle_, of.operation, &alpha, static_cast<char*>(a_) + p.a_offset,
        of.a, static_cast<char*>(b_) + p.b_offset, of.b, &beta,
        p.is_c_apart ? c_ : d, of.c, d, of.d, &algorithms[which].algo,
        static_cast<char*>(workspace_) + p.workspace_offset, p.workspace_bytes,
        stream_);
    alpha = beta = NAN;
    Destroy(of);
    return status;
  }
  cublasStatus_t Multiply(const Product& p) { return Multiply(p, p); }

  // Small whole numbers, whose sums are exact in any order.
  static float Value(int64_t i) {
    return static_cast<float>((i * 7 + i / 16 * 3) % 5 - 2);
  }
  template <typename T>
  T* As(void* memory) {
    return static_cast<T*>(memory);
  }
  void Fill(const Product& p) {
    const auto fill = [&](void* memory, cudaDataType_t type, int64_t count) {
      for (int64_t i = 0; i < count; ++i) {
        if (type == CUDA_R_8F_E4M3) {
          As<uint8_t>(memory)[i] = FloatToE4M3(Value(i));
        } else if (type == CUDA_R_32F) {
          As<float>(memory)[i] = Value(i);
        } else {
          As<uint16_t>(memory)[i] = type == CUDA_R_16BF ? FloatToBf16(Value(i))
                                                        : FloatToHalf(Value(i));
        }
      }
    };
    fill(a_, p.type, Or(p.lda, p.cols) * p.rows);
    fill(b_, p.type, Or(p.ldb, p.cols) * p.tokens);
    fill(c_, p.out_type, Or(p.ldc, p.rows) * p.tokens);
  }
  // Against sums of what Fill wrote.
  void ExpectProduct(const Product& p) {
    ASSERT_EQ(cudaStreamSynchronize(stream_), cudaSuccess);
    for (int64_t t = 0; t < p.tokens; ++t) {
      for (int64_t r = 0; r < p.rows; ++r) {
        double sum = 0;
        for (int64_t k = 0; k < p.cols; ++k) {
          double scale = 1;
          const int64_t at[2] = {r, t}, counts[2] = {p.rows, p.tokens};
          for (int side = 0; side < 2; ++side) {
            if (p.scales[side] == nullptr) continue;
            const int32_t mode = p.scale_modes[side];
            scale *=
                p.scales[side]
                        [mode == CUBLASLT_MATMUL_MATRIX_SCALE_SCALAR_32F ? 0
                         : mode == CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F
                             ? at[side]
                             : k / 128 * counts[side] + at[side]];
          }
          sum += scale * Value(r * Or(p.lda, p.cols) + k) *
                 Value(t * Or(p.ldb, p.cols) + k);
        }
        double value = p.alpha * sum;
        if (p.beta != 0) value += p.beta * Value(t * Or(p.ldc, p.rows) + r);
        const int64_t i = t * Or(p.ldd, p.rows) + r;
        const auto f = static_cast<float>(value);
        const float expected = p.out_type == CUDA_R_32F ? f
                               : p.out_type == CUDA_R_16BF
                                   ? Bf16ToFloat(FloatToBf16(f))
                                   : HalfToFloat(FloatToHalf(f));
        const float got = p.out_type == CUDA_R_32F ? As<float>(d_)[i]
                          : p.out_type == CUDA_R_16BF
                              ? Bf16ToFloat(As<uint16_t>(d_)[i])
                              : HalfToFloat(As<uint16_t>(d_)[i]);
        ASSERT_EQ(got, expected) << "token " << t << ", row " << r;
      }
    }
  }

  CublasFunctions lt_;
  cublasLtHandle_t handle_ = nullptr;
  cudaStream_t stream_ = nullptr;
  void *a_ = nullptr, *b_ = nullptr, *c_ = nullptr, *d_ = nullptr;
  void *workspace_ = nullptr, *scales_ = nullptr;
};

TEST_F(HostCublasTest, Multiplies) {
  for (const Product& p : std::vector<Product>{
           {},
           {.type = CUDA_R_16F, .out_type = CUDA_R_16F},
           {.out_type = CUDA_R_32F},
           {.rows = 37, .cols = 71, .tokens = 3, .alignment = 2},
           {.lda = 136, .ldb = 144, .ldc = 40, .ldd = 48, .is_c_apart = true},
           {.ldc = 40, .alpha = 0.5f, .beta = 2, .is_c_apart = true}}) {
    Fill(p);
    const size_t count = Find(p).size();
    ASSERT_GT(count, 0u);
    for (size_t i = 0; i < count; ++i) {
      ASSERT_EQ(Multiply(p, p, i), CUBLAS_STATUS_SUCCESS);
      ExpectProduct(p);
      if (HasFatalFailure()) return;
    }
  }
}

// C is read only where it is added, and may be D.
TEST_F(HostCublasTest, AddsInPlace) {
  Product p = {.beta = 1};
  Fill(p);
  for (int i = 0; i < p.rows * p.tokens; ++i) {
    As<uint16_t>(d_)[i] = As<uint16_t>(c_)[i];
  }
  ASSERT_EQ(Multiply(p), CUBLAS_STATUS_SUCCESS);
  ExpectProduct(p);
}

TEST_F(HostCublasTest, RunsInTheOrderOfTheStream) {
  const Product p;
  Fill(p);
  const uint16_t one = FloatToBf16(1), before = As<uint16_t>(d_)[0];
  ASSERT_EQ(Multiply(p), CUBLAS_STATUS_SUCCESS);
  EXPECT_EQ(As<uint16_t>(d_)[0], before);
  // Behind it: its x.
  std::vector<uint16_t> ones(p.cols * p.tokens, one);
  ASSERT_EQ(cudaMemcpyAsync(b_, ones.data(), ones.size() * 2,
                            cudaMemcpyHostToDevice, stream_),
            cudaSuccess);
  ExpectProduct(p);
}

TEST_F(HostCublasTest, IsPartOfAGraph) {
  const Product p;
  ASSERT_EQ(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal),
            cudaSuccess);
  ASSERT_EQ(Multiply(p), CUBLAS_STATUS_SUCCESS);
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t executable = nullptr;
  ASSERT_EQ(cudaStreamEndCapture(stream_, &graph), cudaSuccess);
  ASSERT_EQ(cudaGraphInstantiate(&executable, graph, 0), cudaSuccess);
  for (int run = 0; run < 2; ++run) {
    Fill(p);
    As<uint16_t>(d_)[0] = 0x7fff;
    ASSERT_EQ(cudaGraphLaunch(executable, stream_), cudaSuccess);
    ExpectProduct(p);
  }
  cudaGraphExecDestroy(executable);
  cudaGraphDestroy(graph);
}

// What the call refuses, of a product that the algorithm is for.
TEST_F(HostCublasTest, RefusesWhatIsWrong) {
  const Product good;
  const auto invalid = CUBLAS_STATUS_INVALID_VALUE;
  const auto not_supported = CUBLAS_STATUS_NOT_SUPPORTED;
  EXPECT_EQ(Multiply(good), CUBLAS_STATUS_SUCCESS);
  struct Wrong {
    const char* what;
    Product product;
    cublasStatus_t status;
  };
  for (const Wrong& wrong : std::vector<Wrong>{
           {"lda", {.lda = 120}, invalid},
           {"ldb", {.ldb = 127}, invalid},
           {"ldc", {.ldc = 24}, invalid},
           {"ldd", {.ldd = 31}, invalid},
           {"k", {.a_rows = 112}, invalid},
           {"columns of A", {.lda = 129}, not_supported},
           {"columns of D", {.ldd = 33}, not_supported},
           {"A not transposed",
            {.a_rows = 32, .trans_a = CUBLAS_OP_N},
            invalid},
           {"A", {.a_offset = 8}, invalid},
           {"B", {.b_offset = 2}, invalid},
           {"D", {.d_offset = 8}, invalid},
           {"workspace", {.workspace_offset = 16}, invalid},
           {"small workspace",
            {.workspace_bytes = 4 * 32 * 8 * 4 - 1},
            invalid},
           {"types", {.out_type = CUDA_R_16F}, not_supported},
           {"another type",
            {.type = CUDA_R_16F, .out_type = CUDA_R_16F},
            invalid},
           {"compute", {.compute = CUBLAS_COMPUTE_16F}, not_supported},
           {"scale", {.scale_type = CUDA_R_16F}, not_supported},
           {"scales of bf16", {.scales = {As<float>(scales_)}}, invalid},
           {"in place with other columns", {.ldc = 40, .beta = 1}, invalid},
       }) {
    EXPECT_EQ(Multiply(wrong.product, good), wrong.status) << wrong.what;
  }
  EXPECT_EQ(cudaStreamSynchronize(stream_), cudaSuccess);
}

TEST_F(HostCublasTest, FindsWhatThePreferencesAllow) {
  const auto needs_of = [&](const Product& p) {
    std::vector<size_t> needed;
    for (const auto& result : Find(p)) needed.push_back(result.workspaceSize);
    return needed;
  };
  // Sums apart in f32; in one piece, aligned to 16 bytes and to 2.
  EXPECT_EQ(needs_of({}), std::vector<size_t>({4 * 32 * 8 * 4, 0, 0}));
  EXPECT_EQ(needs_of({.workspace_limit = 4 * 32 * 8 * 4 - 1}),
            std::vector<size_t>({0, 0}));
  EXPECT_EQ(needs_of({.alignment = 8}), std::vector<size_t>({0}));
  EXPECT_EQ(needs_of({.cols = 71}), std::vector<size_t>({0}));
  EXPECT_EQ(needs_of({.alignment = 1}), std::vector<size_t>());
  EXPECT_EQ(needs_of({.lda = 120}), std::vector<size_t>());
  // All of them: more alignment, and sums rounded on the way.
  EXPECT_EQ(needs_of({.rows = 64,
                      .alignment = 256,
                      .reductions = CUBLASLT_REDUCTION_SCHEME_MASK})
                .size(),
            6u);
}

// The algorithm for more alignment, where there is less.
TEST_F(HostCublasTest, TheAlignmentThatWasAskedForIsNeeded) {
  const Product found = {.rows = 64, .alignment = 256};
  EXPECT_EQ(Multiply(found, found), CUBLAS_STATUS_SUCCESS);
  Product p = found;
  p.a_offset = 16;
  EXPECT_EQ(Multiply(p, found), CUBLAS_STATUS_INVALID_VALUE);
}

// Sums that are rounded on the way are not those of f32: who allows them
// notices.
TEST_F(HostCublasTest, RoundedSumsAreOthers) {
  Product p = {.cols = 256};
  for (int i = 0; i < p.rows * p.cols; ++i) {
    As<uint16_t>(a_)[i] = FloatToBf16(1);
  }
  // 80.125 and -79.96875, or 32.15625 and -32.
  for (int i = 0; i < p.tokens * p.cols; ++i) {
    const int64_t k = i % p.cols;
    const float value = k == 0    ? 1.125f
                        : k < 80  ? 1.0f
                        : k == 80 ? -0.96875f
                        : k < 160 ? -1.0f
                                  : 0.0f;
    As<uint16_t>(b_)[i] = FloatToBf16(value);
  }
  for (const auto& [reductions, sum] :
       {std::pair(CUBLASLT_REDUCTION_SCHEME_OUTPUT_TYPE, 0.0f),
        std::pair(CUBLASLT_REDUCTION_SCHEME_INPLACE, 0.25f),
        std::pair(CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE, 0.15625f)}) {
    p.reductions = reductions;
    ASSERT_EQ(Multiply(p), CUBLAS_STATUS_SUCCESS);
    ASSERT_EQ(cudaStreamSynchronize(stream_), cudaSuccess);
    for (int i = 0; i < p.rows * p.tokens; ++i) {
      ASSERT_EQ(Bf16ToFloat(As<uint16_t>(d_)[i]), sum);
    }
  }
}

TEST_F(HostCublasTest, AlgorithmsAreChecked) {
  const Product p;
  const auto found = Find(p);
  ASSERT_FALSE(found.empty());
  const auto check = [&](const Product& of, cublasLtMatmulAlgo_t algo) {
    const Described described = Describe(of);
    cublasLtMatmulHeuristicResult_t result = {};
    const cublasStatus_t status = lt_.cublasLtMatmulAlgoCheck(
        handle_, described.operation, described.a, described.b, described.c,
        described.d, &algo, &result);
    if (status == CUBLAS_STATUS_SUCCESS) {
      EXPECT_EQ(result.workspaceSize, 4 * of.rows * of.tokens * 4u);
      EXPECT_GT(result.wavesCount, 0);
    }
    Destroy(described);
    return status;
  };
  EXPECT_EQ(check(p, found[0].algo), CUBLAS_STATUS_SUCCESS);
  EXPECT_EQ(check({.tokens = 100}, found[0].algo), CUBLAS_STATUS_SUCCESS);
  EXPECT_EQ(check({.rows = 33}, found[0].algo), CUBLAS_STATUS_NOT_SUPPORTED);
  EXPECT_EQ(check({.out_type = CUDA_R_32F}, found[0].algo),
            CUBLAS_STATUS_INVALID_VALUE);
  EXPECT_EQ(check(p, {}), CUBLAS_STATUS_INVALID_VALUE);
}

// The product is enqueued, and the device faults.
TEST_F(HostCublasTest, OperandsOutsideOfMemoryAreAFault) {
  const Product p;
  Product outside = p;
  outside.d_offset = kBytes - 256;
  EXPECT_EXIT(
      {
        if (Multiply(outside, p) != CUBLAS_STATUS_SUCCESS) std::exit(1);
        std::exit(
            cudaStreamSynchronize(stream_) == cudaErrorIllegalAddress ? 0 : 2);
      },
      testing::ExitedWithCode(0), "D is no memory of the device");
  outside = p;
  outside.b_offset = kBytes - 256;
  EXPECT_EXIT(
      {
        if (Multiply(outside, p) != CUBLAS_STATUS_SUCCESS) std::exit(1);
        std::exit(
            cudaStreamSynchronize(stream_) == cudaErrorIllegalAddress ? 0 : 2);
      },
      testing::ExitedWithCode(0), "B is no memory of the device");
  outside = p;
  outside.d = b_;
  EXPECT_EXIT(
      {
        if (Multiply(outside, p) != CUBLAS_STATUS_SUCCESS) std::exit(1);
        std::exit(
            cudaStreamSynchronize(stream_) == cudaErrorIllegalAddress ? 0 : 2);
      },
      testing::ExitedWithCode(0), "D overlaps B");
}

// ------------------------------------------------------------ e4m3

TEST_F(HostCublasTest, E4M3HasScales) {
  auto* const scales = As<float>(scales_);
  for (int i = 0; i < 1024; ++i) scales[i] = static_cast<float>(i % 3 + 1);
  const Product p = {.type = CUDA_R_8F_E4M3, .cols = 272};
  for (const auto& [mode, offset] :
       {std::pair(CUBLASLT_MATMUL_MATRIX_SCALE_SCALAR_32F, 4),
        std::pair(CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F, 128),
        std::pair(CUBLASLT_MATMUL_MATRIX_SCALE_VEC128_32F, 128)}) {
    Product scaled = p;
    for (int side = 0; side < 2; ++side) {
      scaled.scale_modes[side] = mode;
      scaled.scales[side] = scales + side * offset;
    }
    Fill(scaled);
    if (mode != CUBLASLT_MATMUL_MATRIX_SCALE_SCALAR_32F && Capability() != 90) {
      EXPECT_EQ(Multiply(scaled, p), CUBLAS_STATUS_NOT_SUPPORTED);
      EXPECT_TRUE(Find(scaled).empty());
      continue;
    }
    for (const cudaDataType_t out_type :
         {CUDA_R_16BF, CUDA_R_16F, CUDA_R_32F}) {
      scaled.out_type = out_type;
      if (out_type == CUDA_R_16F) scaled.alpha = 1.0f / 64;
      ASSERT_EQ(Multiply(scaled), CUBLAS_STATUS_SUCCESS);
      ExpectProduct(scaled);
      if (HasFatalFailure()) return;
    }
  }
}

TEST_F(HostCublasTest, E4M3IsParticular) {
  auto* const scales = As<float>(scales_);
  const auto type = CUDA_R_8F_E4M3;
  const auto rows = CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F;
  const auto blocks = CUBLASLT_MATMUL_MATRIX_SCALE_VEC128_32F;
  const Product good = {.type = type};
  ASSERT_EQ(Multiply(good), CUBLAS_STATUS_SUCCESS);
  struct Wrong {
    const char* what;
    Product product;
  };
  for (const Wrong& wrong : std::vector<Wrong>{
           {"cols", {.type = type, .cols = 136}},
           {"rows", {.type = type, .rows = 36}},
           {"x", {.type = type, .ldb = 136}},
           {"D", {.type = type, .ldd = 36}},
           {"A not transposed",
            {.type = type, .a_rows = 128, .trans_a = CUBLAS_OP_N}},
           {"out", {.type = type, .out_type = type}},
           {"kinds of scales",
            {.type = type,
            .scale_modes = {rows, blocks},
            .scales = {scales, scales}}},
           {"no scales", {.type = type, .scale_modes = {rows, rows}}},
           {"scales of B",
            {.type = type,
            .scale_modes = {rows, rows},
            .scales = {scales, scales + 1}}},
           {"tokens with blocks",
            {.type = type,
            .tokens = 6,
            .scale_modes = {blocks, blocks},
            .scales = {scales, scales}}},
       }) {
    EXPECT_NE(Multiply(wrong.product, good), CUBLAS_STATUS_SUCCESS)
        << wrong.what;
  }
}

// ------------------------------------------------------------ the real one

// Attributes, their sizes and what is not checked before a product are as in
// the real library, where it is installed: descriptors need no GPU.
TEST_F(HostCublasTest, DescriptorsAreThoseOfTheRealLibrary) {
  cuda::LibraryPlaces places = cuda::DefaultLibraryPlaces();
  const auto real = cuda::LoadCublas(places);
  if (!real.ok()) GTEST_SKIP() << real.status().message();
  const uint64_t value[2] = {};
  const auto set = [&](const CublasFunctions& lt) {
    std::vector<cublasStatus_t> statuses;
    cublasLtMatmulDesc_t operation = nullptr;
    statuses.push_back(lt.cublasLtMatmulDescCreate(
        &operation, CUBLAS_COMPUTE_32F, CUDA_R_32F));
    for (const auto attribute :
         {CUBLASLT_MATMUL_DESC_TRANSA, CUBLASLT_MATMUL_DESC_TRANSB,
          CUBLASLT_MATMUL_DESC_A_SCALE_POINTER,
          CUBLASLT_MATMUL_DESC_B_SCALE_POINTER,
          CUBLASLT_MATMUL_DESC_A_SCALE_MODE, CUBLASLT_MATMUL_DESC_B_SCALE_MODE,
          CUBLASLT_MATMUL_DESC_FAST_ACCUM}) {
      for (const size_t num_bytes : {1, 2, 4, 8, 16}) {
        statuses.push_back(lt.cublasLtMatmulDescSetAttribute(
            operation, attribute, value, num_bytes));
      }
      statuses.push_back(
          lt.cublasLtMatmulDescSetAttribute(operation, attribute, nullptr, 4));
    }
    lt.cublasLtMatmulDescDestroy(operation);
    cublasLtMatmulPreference_t preference = nullptr;
    statuses.push_back(lt.cublasLtMatmulPreferenceCreate(&preference));
    for (const auto attribute : {CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                 CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
                                 CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES,
                                 CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
                                 CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES,
                                 CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES}) {
      for (const size_t num_bytes : {1, 2, 4, 8, 16}) {
        statuses.push_back(lt.cublasLtMatmulPreferenceSetAttribute(
            preference, attribute, value, num_bytes));
      }
    }
    lt.cublasLtMatmulPreferenceDestroy(preference);
    // Checked by who uses it.
    cublasLtMatrixLayout_t layout = nullptr;
    statuses.push_back(
        lt.cublasLtMatrixLayoutCreate(&layout, CUDA_R_16BF, 64, 32, 32));
    lt.cublasLtMatrixLayoutDestroy(layout);
    statuses.push_back(
        lt.cublasLtMatrixLayoutCreate(nullptr, CUDA_R_16BF, 64, 32, 64));
    statuses.push_back(lt.cublasLtMatmulAlgoGetHeuristic(
        nullptr, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr, 1,
        nullptr, nullptr));
    return statuses;
  };
  EXPECT_EQ(set(lt_), set(*real));
  for (const cublasStatus_t status :
       {CUBLAS_STATUS_SUCCESS, CUBLAS_STATUS_NOT_INITIALIZED,
        CUBLAS_STATUS_INVALID_VALUE, CUBLAS_STATUS_ARCH_MISMATCH,
        CUBLAS_STATUS_EXECUTION_FAILED, CUBLAS_STATUS_NOT_SUPPORTED}) {
    EXPECT_STREQ(lt_.cublasLtGetStatusString(status),
                 real->cublasLtGetStatusString(status));
  }
}

}  // namespace
}  // namespace quire::ptx
