// Linear layers by cuBLASLt itself, from cublas_library.cc to the finished
// output, against sums in double: every algorithm that it offers, what a kernel
// of ours finishes, pieces of rows, graphs, fp8, and products that it refuses.
// Where there is no library, these skip.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <iterator>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "engine/base/random.h"
#include "engine/base/status.h"
#include "gtest/gtest.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/large_linear.h"
#include "kernels/cuda/matrix_library.h"
#include "kernels/cuda/shared_library.h"
#include "kernels/dtype.h"
#include "kernels/quant_codec.h"
#include "tests/backend_harness.h"

namespace quire::gpu_check {
namespace {

using cuda::Device;
using cuda::DeviceBuffer;
using cuda::LargeLinear;
using cuda::LinearActivation;
using cuda::MatrixAlgorithm;
using cuda::MatrixProblem;
using cuda::MatrixScales;

constexpr int64_t kWorkspaceBytes = int64_t{32} << 20;

struct Case {
  const char* name;
  int rows = 24;
  int cols = 16;
  LinearActivation activation = LinearActivation::kNone;
  bool has_bias = false;
  bool has_residual = false;
  bool is_in_place = false;  // The residual is the output.
  bool is_vocab = false;
  float scale = 1.0f;
  float softcap = 0.0f;

  bool is_gated() const { return IsGated(activation); }
  bool has_f32_sums() const {
    return is_vocab || has_bias || activation != LinearActivation::kNone;
  }
  int out_cols() const { return is_gated() ? rows / 2 : rows; }
};

const Case kCases[] = {
    {.name = "plain"},
    {.name = "odd rows", .rows = 37, .cols = 72},
    // Columns that invite algorithms for operands on as many bytes.
    {.name = "128 bytes", .rows = 64, .cols = 64},
    {.name = "residual",
     .rows = 40,
     .cols = 264,
     .has_residual = true,
     .scale = 0.5f},
    {.name = "residual in place",
     .cols = 80,
     .has_residual = true,
     .is_in_place = true},
    {.name = "bias", .rows = 7, .has_bias = true, .has_residual = true},
    {.name = "gelu", .activation = LinearActivation::kGelu, .has_bias = true},
    {.name = "swiglu",
     .rows = 48,
     .cols = 136,
     .activation = LinearActivation::kSwiGlu},
    {.name = "logits", .rows = 11, .is_vocab = true, .scale = 0.25f},
    {.name = "capped logits",
     .rows = 44,
     .cols = 64,
     .is_vocab = true,
     .scale = 0.5f,
     .softcap = 2.0f},
    // With kPieceBytes of sums: two pieces and a part.
    {.name = "pieces of swiglu",
     .rows = 640,
     .activation = LinearActivation::kSwiGlu,
     .has_bias = true},
    {.name = "pieces of relu",
     .rows = 519,
     .activation = LinearActivation::kRelu},
};
constexpr int64_t kPieceBytes = 128 * 256 * 4;

uint16_t ToBits(DType dtype, float value) {
  return dtype == DType::kBF16 ? FloatToBf16(value) : FloatToHalf(value);
}
float ToFloat(DType dtype, uint16_t bits) {
  return dtype == DType::kBF16 ? Bf16ToFloat(bits) : HalfToFloat(bits);
}

// Where operands begin in their memory: as aligned as LinearArguments promise.
constexpr int64_t kOffset = 16;

// A linear layer whose operands lie in device memory.
class Layer {
 public:
  Layer(Device& device, DType dtype, const Case& c, int num_tokens)
      : device_(device), dtype_(dtype), case_(c), num_tokens_(num_tokens) {
    weight_ = Random(int64_t{c.rows} * c.cols, 1);
    x_ = Random(int64_t{num_tokens} * c.cols, 2);
    residual_ = Random(num_out(), 3);
    SimulationRandom random(4);
    for (int r = 0; r < c.rows; ++r) {
      bias_.push_back(static_cast<float>(random.Uniform() * 2 - 1));
    }
    Upload(weight_, &d_weight_);
    Upload(bias_, &d_bias_);
    d_x_ = Allocate(static_cast<int64_t>(x_.size()) * 2);
    d_residual_ = Allocate(static_cast<int64_t>(residual_.size()) * 2);
    d_out_ = Allocate(num_out() * (c.is_vocab ? 4 : 2));
    CopyIn();
  }

  // Other values of what changes from step to step.
  void Change() {
    x_ = Random(static_cast<int64_t>(x_.size()), 5);
    residual_ = Random(static_cast<int64_t>(residual_.size()), 6);
    CopyIn();
  }
  // x and the residual, which may be where the output was.
  void CopyIn() {
    Copy(x_, d_x_);
    Copy(residual_, case_.is_in_place ? d_out_ : d_residual_);
  }

  void AddTo(LargeLinear& linear) const {
    linear.AddWeight(dtype_, case_.rows, case_.cols, At<void>(d_weight_),
                     case_.is_vocab, case_.is_gated(), case_.has_f32_sums());
  }

  cuda::LinearArguments arguments() {
    cuda::LinearArguments arguments;
    arguments.dtype = dtype_;
    arguments.weight = At<const uint16_t>(d_weight_);
    arguments.x = At<const uint16_t>(d_x_);
    arguments.x_stride = case_.cols;
    arguments.out = At<void>(d_out_);
    arguments.out_stride = case_.out_cols();
    arguments.num_tokens = num_tokens_;
    arguments.rows = case_.rows;
    arguments.cols = case_.cols;
    cuda::LinearEpilogue& epilogue = arguments.epilogue;
    epilogue.activation = case_.activation;
    epilogue.scale = case_.scale;
    epilogue.softcap = case_.softcap;
    epilogue.is_out_f32 = case_.is_vocab;
    if (case_.has_bias) epilogue.bias = At<const float>(d_bias_);
    if (case_.has_residual) {
      epilogue.residual =
          At<const uint16_t>(case_.is_in_place ? d_out_ : d_residual_);
      epilogue.residual_stride = case_.out_cols();
    }
    return arguments;
  }

  // What the device has, against sums in double. A sum has cols roundings of
  // 2^-24, twice as large on tensor cores, which truncate; the epilogue a few;
  // the output one.
  void Expect() {
    std::vector<char> bytes(d_out_.num_bytes() - kOffset);
    ASSERT_TRUE(device_
                    .CopyToHost(bytes.data(), At<void>(d_out_),
                                static_cast<int64_t>(bytes.size()))
                    .ok());
    const absl::Status status = device_.Synchronize();
    ASSERT_TRUE(status.ok()) << status;
    const double unit = case_.is_vocab           ? 0x1p-24
                        : dtype_ == DType::kBF16 ? 0x1p-8
                                                 : 0x1p-11;
    for (int t = 0; t < num_tokens_; ++t) {
      for (int j = 0; j < case_.out_cols(); ++j) {
        const int64_t i = int64_t{t} * case_.out_cols() + j;
        double magnitude = 0, slope = 0;
        const double value = Expected(t, j, &magnitude, &slope);
        const double allowed =
            magnitude * slope * 2 * (case_.cols + 8) * 0x1p-24 +
            std::abs(value) * (unit + 0x1p-20) + 0x1p-24;
        const double got =
            case_.is_vocab
                ? reinterpret_cast<const float*>(bytes.data())[i]
                : ToFloat(dtype_,
                          reinterpret_cast<const uint16_t*>(bytes.data())[i]);
        ASSERT_TRUE(std::abs(got - value) <= allowed)
            << "token " << t << ", column " << j << ": " << got << " and not "
            << value;
      }
    }
  }

 private:
  DeviceBuffer Allocate(int64_t num_bytes) {
    return *DeviceBuffer::Create(device_, kOffset + num_bytes);
  }
  template <typename T>
  static T* At(const DeviceBuffer& buffer) {
    return reinterpret_cast<T*>(buffer.data() + kOffset);
  }
  int64_t num_out() const { return int64_t{num_tokens_} * case_.out_cols(); }
  std::vector<uint16_t> Random(int64_t count, uint64_t seed) const {
    SimulationRandom random(seed);
    std::vector<uint16_t> bits(count);
    for (uint16_t& x : bits) {
      x = ToBits(dtype_, static_cast<float>(random.Uniform() * 2 - 1));
    }
    return bits;
  }
  template <typename T>
  void Copy(const std::vector<T>& from, DeviceBuffer& to) {
    const int64_t num_bytes = static_cast<int64_t>(from.size() * sizeof(T));
    ASSERT_TRUE(
        device_.CopyToDevice(At<void>(to), from.data(), num_bytes).ok());
    ASSERT_TRUE(device_.Synchronize().ok());
  }
  template <typename T>
  void Upload(const std::vector<T>& from, DeviceBuffer* to) {
    *to = Allocate(static_cast<int64_t>(from.size() * sizeof(T)));
    Copy(from, *to);
  }

  double Product(int t, int row, double* magnitude) const {
    double sum = case_.has_bias ? bias_[row] : 0.0;
    double sum_of_magnitudes = std::abs(sum);
    for (int k = 0; k < case_.cols; ++k) {
      const double product =
          double{ToFloat(dtype_, x_[int64_t{t} * case_.cols + k])} *
          ToFloat(dtype_, weight_[int64_t{row} * case_.cols + k]);
      sum += product;
      sum_of_magnitudes += std::abs(product);
    }
    *magnitude = std::max(*magnitude, sum_of_magnitudes);
    return sum;
  }
  double Expected(int t, int j, double* magnitude, double* slope) const {
    // Of a packed weight, eight rows of the gate lie before eight of up.
    const int row = case_.is_gated() ? j / 8 * 16 + j % 8 : j;
    double value = Product(t, row, magnitude);
    *slope = 1;
    switch (case_.activation) {
      case LinearActivation::kNone:
        break;
      case LinearActivation::kRelu:
        value = std::max(value, 0.0);
        break;
      case LinearActivation::kGelu:
        value *= 0.5 * (1 + std::tanh(std::sqrt(2 / M_PI) *
                                      (value + 0.044715 * std::pow(value, 3))));
        *slope = 1.2;
        break;
      default: {  // kSwiGlu
        const double up = Product(t, row + 8, magnitude);
        *slope = 1.2 * std::abs(up) + std::abs(value) + 1;
        value = value / (1 + std::exp(-value)) * up;
      }
    }
    value *= case_.scale;
    if (case_.has_residual) {
      value += ToFloat(dtype_, residual_[int64_t{t} * case_.out_cols() + j]);
    }
    if (case_.softcap > 0) {
      value = case_.softcap * std::tanh(value / case_.softcap);
    }
    return value;
  }

  Device& device_;
  const DType dtype_;
  const Case case_;
  const int num_tokens_;
  std::vector<uint16_t> weight_, x_, residual_;
  std::vector<float> bias_;
  DeviceBuffer d_weight_, d_x_, d_residual_, d_bias_, d_out_;
};

class LibraryLinearTest : public testing::Test {
 protected:
  void SetUp() override {
    auto device = cuda::CreateDevice(0);
    if (!device.ok()) GTEST_SKIP() << device.status().message();
    device_ = *std::move(device);
    const auto library = cuda::OpenMatrixLibrary();
    if (!library.ok()) GTEST_SKIP() << library.status().message();
  }

  // That the GPU has.
  std::vector<DType> DTypes() const {
    if (device_->properties().major < 8) return {DType::kF16};
    return {DType::kBF16, DType::kF16};
  }
  // Whether there must be an algorithm: a real library may have none for what
  // is not aligned.
  static bool IsKnown(const Case& c) {
    return c.rows % 8 == 0 || TakesOnly() != nullptr;
  }

  // Prepared for a layer.
  std::unique_ptr<LargeLinear> Prepare(const Layer& layer, int max_tokens,
                                       bool measures) {
    auto library = cuda::OpenMatrixLibrary();
    EXPECT_TRUE(library.ok()) << library.status();
    if (!library.ok()) return nullptr;
    auto linear = std::make_unique<LargeLinear>(*device_, *std::move(library),
                                                measures, kPieceBytes);
    layer.AddTo(*linear);
    int64_t num_bytes = 0;
    const absl::Status status =
        linear->Prepare(max_tokens, max_tokens, &num_bytes);
    EXPECT_TRUE(status.ok()) << status;
    return linear;
  }

  // Of tests/gpu/ptx/host_cublas.cc: so many products are taken, and those
  // after them refused. Null in a real library.
  static void (*TakesOnly())(int64_t num_products) {
    const auto library = cuda::SharedLibrary::Open(
        {"libcublasLt.so.13"}, cuda::DefaultLibraryPlaces());
    void (*takes)(int64_t) = nullptr;
    if (library.ok()) (void)library->Load("QuireHostCublasTakes", &takes);
    return takes;
  }
  std::unique_ptr<Device> device_;
};

TEST_F(LibraryLinearTest, EveryAlgorithmMultiplies) {
  auto opened = cuda::OpenMatrixLibrary();
  ASSERT_TRUE(opened.ok()) << opened.status();
  cuda::MatrixLibrary& library = **opened;
  DeviceBuffer workspace = *DeviceBuffer::Create(*device_, kWorkspaceBytes);
  int num_algorithms = 0;
  for (const Case& c : kCases) {
    const bool is_product = !c.has_bias &&
                            c.activation == LinearActivation::kNone &&
                            c.softcap == 0;
    if (!is_product) continue;
    for (const DType dtype : DTypes()) {
      SCOPED_TRACE(c.name);
      Layer layer(*device_, dtype, c, 33);
      const cuda::LinearArguments arguments = layer.arguments();
      MatrixProblem problem;
      problem.dtype = dtype;
      problem.out_dtype = c.is_vocab ? DType::kF32 : dtype;
      problem.num_tokens = arguments.num_tokens;
      problem.rows = problem.out_stride = c.rows;
      problem.cols = problem.x_stride = c.cols;
      const auto algorithms =
          library.FindAlgorithms(problem, kWorkspaceBytes, 6);
      EXPECT_TRUE(!algorithms.empty() || !IsKnown(c));
      if (c.has_residual) problem.residual_stride = c.rows;
      for (const MatrixAlgorithm& algorithm : algorithms) {
        if (!library.Supports(problem, algorithm, kWorkspaceBytes)) continue;
        ++num_algorithms;
        layer.CopyIn();
        const absl::Status status =
            library.Multiply(problem, algorithm,
                             {.weight = arguments.weight,
                              .x = arguments.x,
                              .residual = arguments.epilogue.residual,
                              .out = arguments.out,
                              .workspace = workspace.data(),
                              .workspace_bytes = kWorkspaceBytes,
                              .alpha = c.scale},
                             device_->stream());
        ASSERT_TRUE(status.ok()) << status;
        layer.Expect();
        if (HasFatalFailure()) return;
      }
    }
  }
  EXPECT_GE(num_algorithms, 10);
}

TEST_F(LibraryLinearTest, LayersOfEveryKind) {
  for (const Case& c : kCases) {
    for (const int num_tokens : {65, 127, 300}) {
      if (num_tokens == 300 && c.rows > 500) continue;
      for (const DType dtype : DTypes()) {
        SCOPED_TRACE(absl::StrCat(c.name, ", ", num_tokens, " tokens"));
        Layer layer(*device_, dtype, c, num_tokens);
        const auto linear = Prepare(layer, num_tokens, /*measures=*/false);
        const absl::Status status = linear->Launch(layer.arguments());
        ASSERT_TRUE(status.ok()) << status;
        layer.Expect();
        if (HasFatalFailure()) return;
        if (!IsKnown(c)) continue;
        EXPECT_EQ(linear->num_library_launches(), 1);
        EXPECT_EQ(linear->num_tiled_launches(), 0);
      }
    }
  }
}

// Whichever is faster.
TEST_F(LibraryLinearTest, MeasuredLayers) {
  for (const Case& c : kCases) {
    SCOPED_TRACE(c.name);
    for (const int num_tokens : {17, 50, 66}) {
      Layer layer(*device_, DTypes()[0], c, num_tokens);
      const auto linear = Prepare(layer, 66, /*measures=*/true);
      const absl::Status status = linear->Launch(layer.arguments());
      ASSERT_TRUE(status.ok()) << status;
      layer.Expect();
      if (HasFatalFailure()) return;
    }
  }
}

TEST_F(LibraryLinearTest, GraphsOfProducts) {
  for (const Case& c : kCases) {
    SCOPED_TRACE(c.name);
    Layer layer(*device_, DTypes()[0], c, 66);
    const auto linear = Prepare(layer, 66, /*measures=*/false);
    // What is loaded on first use is, before a capture.
    ASSERT_TRUE(linear->Launch(layer.arguments()).ok());
    ASSERT_TRUE(device_->Synchronize().ok());
    ASSERT_TRUE(device_->BeginCapture().ok());
    const absl::Status status = linear->Launch(layer.arguments());
    auto graph = device_->EndCapture();
    ASSERT_TRUE(status.ok()) << status;
    ASSERT_TRUE(graph.ok()) << graph.status();
    EXPECT_TRUE(linear->num_library_launches() == 2 || !IsKnown(c));
    for (int run = 0; run < 2; ++run) {
      layer.Change();
      ASSERT_TRUE(device_->Launch(**graph).ok());
      layer.Expect();
      if (HasFatalFailure()) return;
    }
  }
}

// With the library that refuses on demand.
class RefusingLibraryTest : public LibraryLinearTest {
 protected:
  void SetUp() override {
    LibraryLinearTest::SetUp();
    if (!IsSkipped() && TakesOnly() == nullptr) {
      GTEST_SKIP() << "a real library takes them all";
    }
  }
  void TearDown() override {
    if (TakesOnly() != nullptr) TakesOnly()(INT64_MAX);
  }
};

TEST_F(RefusingLibraryTest, OurKernelComputesWhatIsRefused) {
  for (const bool is_captured : {false, true}) {
    for (const Case& c : kCases) {
      SCOPED_TRACE(c.name);
      Layer layer(*device_, DTypes()[0], c, 66);
      const auto linear = Prepare(layer, 66, /*measures=*/false);
      ASSERT_TRUE(linear->Launch(layer.arguments()).ok());
      layer.Expect();
      TakesOnly()(0);
      layer.Change();
      if (is_captured) {
        ASSERT_TRUE(device_->BeginCapture().ok());
      }
      const absl::Status status = linear->Launch(layer.arguments());
      if (is_captured) {
        auto graph = device_->EndCapture();
        ASSERT_TRUE(graph.ok()) << graph.status();
        ASSERT_TRUE(device_->Launch(**graph).ok());
      }
      ASSERT_TRUE(status.ok()) << status;
      layer.Expect();
      EXPECT_EQ(linear->num_library_launches(), 1);
      EXPECT_EQ(linear->num_tiled_launches(), 1);
      // It is not asked again.
      TakesOnly()(INT64_MAX);
      layer.CopyIn();
      ASSERT_TRUE(linear->Launch(layer.arguments()).ok());
      layer.Expect();
      EXPECT_EQ(linear->num_tiled_launches(), 2);
      if (HasFatalFailure()) return;
    }
  }
}

// While it is measured, also in a capture.
TEST_F(RefusingLibraryTest, WhatIsRefusedWhenItIsMeasuredIsNotChosen) {
  const Case& pieces = kCases[std::size(kCases) - 2];
  const Case residual = {.name = "residual", .cols = 80, .has_residual = true};
  for (const Case& c : {residual, pieces}) {
    for (const int num_taken : {0, 1, 2, 3, 5, 8, 13, 21}) {
      SCOPED_TRACE(absl::StrCat(c.name, ", after ", num_taken));
      Layer layer(*device_, DTypes()[0], c, 66);
      TakesOnly()(num_taken);
      const auto linear = Prepare(layer, 66, /*measures=*/true);
      TakesOnly()(INT64_MAX);
      ASSERT_TRUE(linear->Launch(layer.arguments()).ok());
      EXPECT_EQ(linear->num_library_launches() + linear->num_tiled_launches(),
                1);
      // The first algorithm was never measured to its end.
      EXPECT_TRUE(linear->num_library_launches() == 0 || num_taken >= 4);
      layer.Expect();
      if (HasFatalFailure()) return;
    }
  }
}

// Another kernel could not begin again: the first piece may have overwritten
// the residual.
TEST_F(RefusingLibraryTest, ARefusedSecondPieceIsAnError) {
  const Case& c = kCases[std::size(kCases) - 1];
  Layer layer(*device_, DTypes()[0], c, 66);
  const auto linear = Prepare(layer, 66, /*measures=*/false);
  TakesOnly()(1);
  EXPECT_EQ(linear->Launch(layer.arguments()).code(),
            absl::StatusCode::kInternal);
  EXPECT_TRUE(device_->Synchronize().ok());
}

// ------------------------------------------------------------ fp8

struct Fp8Case {
  QuantizationScheme::Fp8Scales scales;
  MatrixScales given;  // To the library of a GPU that takes them.
  LinearKind kind = LinearKind::kPlain;
  bool has_bias = false;
  bool has_residual = false;
  int num_tokens = 72;
};

// From packing to the output, by the library's products or by our kernel.
std::vector<float> RunFp8(const Fp8Case& c, bool has_library,
                          bool* was_library) {
  constexpr int64_t kRows = 136, kCols = 144;  // A block and a part.
  SimulationRandom random(5);
  const int num_parts = c.kind == LinearKind::kGateUp ? 2 : 1;
  std::vector<QuantizedMatrix> matrices;
  LinearSpec spec;
  spec.kind = c.kind;
  for (int part = 0; part < num_parts; ++part) {
    const HostMatrix dense =
        HostMatrix::Random(random, kRows, kCols, DType::kF32, part + 0.5);
    matrices.push_back(CheckOk(QuantizeMatrix(
        dense.view(), {.format = QuantFormat::kFp8, .fp8_scales = c.scales})));
  }
  for (const QuantizedMatrix& matrix : matrices) {
    spec.parts.push_back(matrix.part);
  }
  const HostMatrix bias =
      HostMatrix::Random(random, 1, num_parts * kRows, DType::kF32);
  if (c.has_bias) spec.bias = bias.view();
  const HostMatrix x =
      HostMatrix::Random(random, c.num_tokens, kCols, DType::kBF16);
  const HostMatrix residual =
      HostMatrix::Random(random, c.num_tokens, kRows, DType::kBF16);
  CudaBackendOptions options;
  options.measures_products = false;
  if (!has_library) options.open_matrix_library = nullptr;
  const auto backend = CheckOk(CudaBackend::Create(options));
  const auto weight = CheckOk(backend->PackLinear(spec));
  const auto add = [&](int64_t cols) {
    return backend->AddActivation(cols, DType::kBF16, ActivationRows::kTokens);
  };
  const int x_id = add(kCols), residual_id = add(kRows), out_id = add(kRows);
  std::vector<float> out;
  RunTokenStep(
      *backend, {.num_tokens = c.num_tokens},
      [&] {
        CopyIn(*backend, x.values(), backend->Activation(x_id));
        CopyIn(*backend, residual.values(), backend->Activation(residual_id));
      },
      [&](Step& step) {
        Epilogue epilogue;
        if (num_parts == 2) epilogue.activation = Epilogue::Activation::kSwiGlu;
        if (c.has_residual) {
          epilogue.residual = backend->Activation(residual_id);
        }
        CheckOk(backend->Linear(step, backend->Activation(x_id), Prologue(),
                                *weight, epilogue,
                                backend->Activation(out_id)));
        out = CopyOut(*backend, backend->Activation(out_id), c.num_tokens);
      });
  *was_library = backend->large_linear().num_library_launches() == 1;
  return out;
}

TEST_F(LibraryLinearTest, LayersOfFp8) {
  using Fp8Scales = QuantizationScheme::Fp8Scales;
  const auto library = cuda::OpenMatrixLibrary();
  ASSERT_TRUE(library.ok()) << library.status();
  if (!(*library)->TakesFp8(MatrixScales::kNone)) {
    GTEST_SKIP() << "this GPU has no fp8";
  }
  for (const Fp8Case& c : std::vector<Fp8Case>{
           {Fp8Scales::kTensor, MatrixScales::kRows},
           {Fp8Scales::kRow, MatrixScales::kRows},
           {Fp8Scales::kRow, MatrixScales::kRows, LinearKind::kGateUp, true},
           {Fp8Scales::kRow, MatrixScales::kRows, LinearKind::kPlain, false,
            true},
           {Fp8Scales::kBlock, MatrixScales::kBlocks},
           {Fp8Scales::kBlock, MatrixScales::kBlocks, LinearKind::kGateUp},
           {Fp8Scales::kBlock, MatrixScales::kBlocks, LinearKind::kPlain, true,
            true}}) {
    SCOPED_TRACE(absl::StrCat("scales ", static_cast<int>(c.scales), ", kind ",
                              static_cast<int>(c.kind), ", bias ", c.has_bias,
                              ", residual ", c.has_residual));
    bool was_library = false;
    const std::vector<float> expected = RunFp8(c, false, &was_library);
    EXPECT_FALSE(was_library);
    const std::vector<float> got = RunFp8(c, true, &was_library);
    EXPECT_EQ(was_library,
              (*library)->TakesFp8(c.given) || c.scales != Fp8Scales::kBlock);
    // The sums differ by roundings, the output by one to bf16 that may go to
    // the other side. Hopper sums e4m3 in about 14 bits (matrix_library.h):
    // 2^-13 of products that add up to some twenty.
    std::vector<double> tolerance;
    for (const float value : expected) {
      tolerance.push_back(0x1p-7 * std::abs(value) + 20 * 0x1p-13);
    }
    ExpectNear(got, expected, tolerance, "with the library");
    if (HasFatalFailure()) return;
  }
}

}  // namespace
}  // namespace quire::gpu_check
