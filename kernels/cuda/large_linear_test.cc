#include "kernels/cuda/large_linear.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "engine/base/random.h"
#include "engine/base/status.h"
#include "engine/base/warning.h"
#include "gtest/gtest.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/device_emulated.h"
#include "kernels/cuda/simt/emulator.h"

namespace quire::cuda {
namespace {

constexpr int kCols = 16;

// Multiplies on the host, in the order of the stream. Algorithm a takes
// seconds[a]; 0: it fails when it is measured. What is measured without a
// product of this library is the skinny kernel.
class FakeLibrary : public MatrixLibrary {
 public:
  explicit FakeLibrary(std::vector<double> seconds = {3, 1, 2})
      : seconds_(std::move(seconds)) {}

  // What was asked of any library of this process.
  struct Log {
    std::vector<MatrixProblem> problems;  // Multiplied.
    std::vector<uint64_t> algorithms;
    std::vector<int64_t> measured_tokens;
    // What one run of each measurement enqueues; the skinny kernel's apart.
    std::vector<size_t> num_enqueued, num_enqueued_skinny;
    // Seconds of the skinny kernel, one measurement after the other.
    std::vector<double> skinny_seconds;
    // Tokens for which only the last algorithm works.
    int64_t odd_tokens = -1;
    // Products of a step that are refused, as NOT_SUPPORTED would be: those
    // with a residual, or from one on.
    bool refuses_residuals = false;
    size_t refuses_from = SIZE_MAX;
  };
  static Log& log() {
    static Log log;
    return log;
  }

  std::string name() const override { return "fake 1.0"; }

  std::vector<MatrixAlgorithm> FindAlgorithms(const MatrixProblem& problem,
                                              int64_t /*max_workspace_bytes*/,
                                              int max_count) override {
    multiplied_.reset();
    std::vector<MatrixAlgorithm> algorithms;
    for (size_t a = 0; a < seconds_.size(); ++a) {
      if (problem.num_tokens == log().odd_tokens && a + 1 < seconds_.size()) {
        continue;
      }
      if (static_cast<int>(algorithms.size()) == max_count) break;
      algorithms.emplace_back().data[0] = a;
    }
    return algorithms;
  }
  bool Supports(const MatrixProblem& problem, const MatrixAlgorithm& algorithm,
                int64_t /*max_workspace_bytes*/) override {
    return problem.num_tokens != log().odd_tokens ||
           algorithm.data[0] + 1 == seconds_.size();
  }

  absl::Status Multiply(const MatrixProblem& problem,
                        const MatrixAlgorithm& algorithm,
                        const MatrixOperands& operands,
                        simt::Stream stream) override {
    if ((log().refuses_residuals && operands.residual != nullptr) ||
        log().problems.size() >= log().refuses_from) {
      return absl::InternalError("not supported");
    }
    log().problems.push_back(problem);
    log().algorithms.push_back(algorithm.data[0]);
    multiplied_ = algorithm.data[0];
    simt::emulator::AsQueue(stream)->Add(
        [problem, operands] { Compute(problem, operands); });
    return absl::OkStatus();
  }

  absl::StatusOr<double> MeasureSeconds(
      absl::FunctionRef<absl::Status()> enqueue, simt::Stream stream) override {
    const auto& entries = simt::emulator::AsQueue(stream)->entries;
    const size_t num_before = entries.size();
    QUIRE_RETURN_IF_ERROR(enqueue());
    const size_t num_enqueued = entries.size() - num_before;
    if (!multiplied_.has_value()) {
      log().num_enqueued_skinny.push_back(num_enqueued);
      const size_t i = log().num_enqueued_skinny.size() - 1;
      return i < log().skinny_seconds.size() ? log().skinny_seconds[i] : 0.5;
    }
    log().num_enqueued.push_back(num_enqueued);
    log().measured_tokens.push_back(log().problems.back().num_tokens);
    const double seconds = seconds_[*std::exchange(multiplied_, std::nullopt)];
    if (seconds == 0) return absl::InternalError("refused");
    return seconds;
  }

 private:
  static float Value(DType dtype, const void* from, int64_t idx) {
    const uint16_t bits = static_cast<const uint16_t*>(from)[idx];
    return dtype == DType::kBF16 ? Bf16ToFloat(bits) : HalfToFloat(bits);
  }
  static void Compute(const MatrixProblem& problem,
                      const MatrixOperands& operands) {
    for (int64_t t = 0; t < problem.num_tokens; ++t) {
      for (int64_t r = 0; r < problem.rows; ++r) {
        float sum = 0;
        for (int64_t k = 0; k < problem.cols; ++k) {
          sum += Value(problem.dtype, operands.x, t * problem.x_stride + k) *
                 Value(problem.dtype, operands.weight, r * problem.cols + k);
        }
        sum *= operands.alpha;
        if (operands.residual != nullptr) {
          sum += Value(problem.dtype, operands.residual,
                       t * problem.residual_stride + r);
        }
        const int64_t to = t * problem.out_stride + r;
        if (problem.out_dtype == DType::kF32) {
          static_cast<float*>(operands.out)[to] = sum;
        } else {
          static_cast<uint16_t*>(operands.out)[to] =
              problem.dtype == DType::kBF16 ? FloatToBf16(sum)
                                            : FloatToHalf(sum);
        }
      }
    }
  }

  const std::vector<double> seconds_;
  std::optional<uint64_t> multiplied_;  // Since the last measurement.
};

struct Case {
  const char* name;
  LinearActivation activation = LinearActivation::kNone;
  bool has_bias = false;
  bool has_residual = false;
  bool is_vocab = false;
  float scale = 1.0f;
  float softcap = 0.0f;
  int rows = 24;

  bool has_f32_sums() const {
    return is_vocab || has_bias || activation != LinearActivation::kNone;
  }
};

const Case kCases[] = {
    {.name = "plain"},
    {.name = "scaled residual", .has_residual = true, .scale = 0.5f},
    {.name = "bias", .has_bias = true, .has_residual = true, .rows = 7},
    {.name = "gelu", .activation = LinearActivation::kGelu, .has_bias = true},
    {.name = "gelu erf",
     .activation = LinearActivation::kGeluErf,
     .has_bias = true},
    {.name = "swiglu", .activation = LinearActivation::kSwiGlu, .rows = 48},
    {.name = "geglu erf",
     .activation = LinearActivation::kGeGluErf,
     .rows = 48},
    {.name = "logits", .is_vocab = true, .scale = 0.25f, .rows = 11},
    {.name = "capped logits",
     .is_vocab = true,
     .scale = 0.5f,
     .softcap = 2.0f,
     .rows = 11},
    // With chunks of 256 rows: two and a part.
    {.name = "chunks of swiglu",
     .activation = LinearActivation::kSwiGlu,
     .has_bias = true,
     .rows = 640},
    {.name = "chunks of relu",
     .activation = LinearActivation::kRelu,
     .rows = 519},
};

// A linear layer with its operands on the emulated device.
class Layer {
 public:
  Layer(Device& device, DType dtype, const Case& c, int num_tokens)
      : device_(device), case_(c), num_tokens_(num_tokens) {
    SimulationRandom random(7);
    const auto halves = [&](int64_t count) {
      DeviceBuffer buffer = *DeviceBuffer::Create(device, count * 2);
      for (int64_t i = 0; i < count; ++i) {
        const float value = static_cast<float>(random.Uniform() * 2 - 1);
        buffer.data<uint16_t>()[i] =
            dtype == DType::kBF16 ? FloatToBf16(value) : FloatToHalf(value);
      }
      return buffer;
    };
    const bool is_gated = IsGated(c.activation);
    out_cols_ = is_gated ? c.rows / 2 : c.rows;
    weight_ = halves(int64_t{c.rows} * kCols);
    x_ = halves(int64_t{num_tokens} * kCols);
    residual_ = halves(int64_t{num_tokens} * out_cols_);
    bias_ = *DeviceBuffer::Create(device, c.rows * 4);
    for (int r = 0; r < c.rows; ++r) {
      bias_.data<float>()[r] = static_cast<float>(random.Uniform());
    }
    out_ = *DeviceBuffer::Create(
        device, int64_t{num_tokens} * out_cols_ * (c.is_vocab ? 4 : 2));
    arguments_.dtype = dtype;
    arguments_.weight = weight_.data<const uint16_t>();
    arguments_.x = x_.data<const uint16_t>();
    arguments_.x_stride = kCols;
    arguments_.out = out_.data<void>();
    arguments_.out_stride = out_cols_;
    arguments_.num_tokens = num_tokens;
    arguments_.rows = c.rows;
    arguments_.cols = kCols;
    LinearEpilogue& epilogue = arguments_.epilogue;
    epilogue.activation = c.activation;
    epilogue.scale = c.scale;
    epilogue.softcap = c.softcap;
    epilogue.is_out_f32 = c.is_vocab;
    if (c.has_bias) epilogue.bias = bias_.data<const float>();
    if (c.has_residual) {
      epilogue.residual = residual_.data<const uint16_t>();
      epilogue.residual_stride = out_cols_;
    }
  }

  void AddTo(LargeLinear& linear) const {
    linear.AddWeight(arguments_.dtype, case_.rows, kCols, arguments_.weight,
                     case_.is_vocab, IsGated(case_.activation),
                     case_.has_f32_sums());
  }
  const LinearArguments& arguments() const { return arguments_; }

  std::vector<float> Out() {
    EXPECT_TRUE(device_.Synchronize().ok());
    std::vector<float> values(int64_t{num_tokens_} * out_cols_);
    for (size_t i = 0; i < values.size(); ++i) {
      values[i] = case_.is_vocab ? out_.data<const float>()[i]
                  : arguments_.dtype == DType::kBF16
                      ? Bf16ToFloat(out_.data<const uint16_t>()[i])
                      : HalfToFloat(out_.data<const uint16_t>()[i]);
    }
    return values;
  }

 private:
  Device& device_;
  const Case case_;
  const int num_tokens_;
  int out_cols_ = 0;
  DeviceBuffer weight_, x_, residual_, bias_, out_;
  LinearArguments arguments_;
};

class LargeLinearTest : public testing::Test {
 protected:
  LargeLinearTest() { FakeLibrary::log() = {}; }

  std::unique_ptr<Device> device_ = *CreateDevice(0);
};

// The kernels have tests of their own (linear_test): here one checks the other.
void ExpectNear(const std::vector<float>& got,
                const std::vector<float>& expected, DType dtype) {
  ASSERT_EQ(got.size(), expected.size());
  // Sums of 16 products of values below 1, in another order, then one rounding
  // that may go to the other side.
  const double relative = dtype == DType::kBF16 ? 0x1p-7 : 0x1p-10;
  for (size_t i = 0; i < got.size(); ++i) {
    ASSERT_TRUE(std::abs(got[i] - expected[i]) <=
                relative * std::abs(expected[i]) + 16 * 16 * 0x1p-23)
        << i << ": " << got[i] << " instead of " << expected[i];
  }
}

TEST_F(LargeLinearTest, TheLibraryAndOurKernelsAgree) {
  for (const auto& [dtype, num_tokens] :
       {std::pair(DType::kBF16, 70), std::pair(DType::kF16, 70),
        std::pair(DType::kBF16, 17), std::pair(DType::kF16, 40)}) {
    for (const Case& c : kCases) {
      SCOPED_TRACE(c.name);
      FakeLibrary::log() = {};
      FakeLibrary::log().skinny_seconds = {9, 9};
      Layer layer(*device_, dtype, c, num_tokens);
      LargeLinear tiled(*device_, nullptr);
      layer.AddTo(tiled);
      int64_t num_bytes = 0;
      ASSERT_TRUE(tiled.Prepare(128, 128, &num_bytes).ok());
      EXPECT_EQ(num_bytes, 0);
      ASSERT_TRUE(tiled.Launch(layer.arguments()).ok());
      const std::vector<float> expected = layer.Out();
      EXPECT_EQ(tiled.num_tiled_launches(), num_tokens > 64 ? 1 : 0);

      LargeLinear linear(*device_, std::make_unique<FakeLibrary>(),
                         /*measures=*/true, /*max_sums_bytes=*/128 * 256 * 4);
      layer.AddTo(linear);
      ASSERT_TRUE(linear.Prepare(128, 128, &num_bytes).ok());
      EXPECT_GT(num_bytes, 0);
      ASSERT_TRUE(linear.Launch(layer.arguments()).ok());
      EXPECT_EQ(linear.num_tiled_launches(), 0);
      EXPECT_EQ(linear.num_library_launches(), 1);
      ExpectNear(layer.Out(), expected, dtype);
    }
  }
}

TEST_F(LargeLinearTest, ResidualMayBeOut) {
  const Case c = {.name = "in place", .has_residual = true};
  Layer layer(*device_, DType::kBF16, c, 65);
  LargeLinear linear(*device_, std::make_unique<FakeLibrary>());
  layer.AddTo(linear);
  int64_t num_bytes = 0;
  ASSERT_TRUE(linear.Prepare(128, 128, &num_bytes).ok());
  ASSERT_TRUE(linear.Launch(layer.arguments()).ok());
  const std::vector<float> expected = layer.Out();
  LinearArguments arguments = layer.arguments();
  std::copy_n(arguments.epilogue.residual, expected.size(),
              static_cast<uint16_t*>(arguments.out));
  arguments.epilogue.residual = static_cast<const uint16_t*>(arguments.out);
  ASSERT_TRUE(linear.Launch(arguments).ok());
  EXPECT_EQ(layer.Out(), expected);
}

TEST_F(LargeLinearTest, MeasuresCountsThatDoubleAndTakesTheFastest) {
  Layer layer(*device_, DType::kBF16, kCases[0], 300);
  LargeLinear linear(*device_, std::make_unique<FakeLibrary>());
  layer.AddTo(linear);
  layer.AddTo(linear);  // Of equal shape: measured once.
  int64_t num_bytes = 0;
  ASSERT_TRUE(linear.Prepare(300, 0, &num_bytes).ok());
  const std::vector<int64_t> tokens = {128, 128, 128, 256, 256, 256,
                                       300, 300, 300, 64,  64,  64};
  EXPECT_EQ(FakeLibrary::log().measured_tokens, tokens);
  for (const int num_tokens : {65, 128, 129, 300}) {
    LinearArguments arguments = layer.arguments();
    arguments.num_tokens = num_tokens;
    ASSERT_TRUE(linear.Launch(arguments).ok());
    EXPECT_EQ(FakeLibrary::log().algorithms.back(), 1u);
    EXPECT_EQ(FakeLibrary::log().problems.back().num_tokens, num_tokens);
  }
  EXPECT_EQ(FakeLibrary::log().measured_tokens, tokens);  // Never later.
  ASSERT_TRUE(device_->Synchronize().ok());
}

// The skinny kernel's bits, or the library's.
TEST_F(LargeLinearTest, TheSkinnyKernelEndsWhereTheLibraryIsFaster) {
  struct Measured {
    std::vector<double> skinny_seconds;  // Of 64 and of 32 tokens.
    int most_skinny_tokens;
    size_t num_measured;
  };
  // The fastest algorithm takes a second; less than 2 % are no reason.
  for (const Measured& measured :
       {Measured{{1.03, 1.03}, 16, 2}, Measured{{1.03, 1.01}, 32, 2},
        Measured{{1.01, 1.03}, 64, 1}}) {
    for (const Case& c : kCases) {
      SCOPED_TRACE(c.name);
      SCOPED_TRACE(measured.most_skinny_tokens);
      FakeLibrary::log() = {};
      FakeLibrary::log().skinny_seconds = measured.skinny_seconds;
      Layer layer(*device_, DType::kBF16, c, 64);
      LargeLinear linear(*device_, std::make_unique<FakeLibrary>());
      layer.AddTo(linear);
      int64_t num_bytes = 0;
      ASSERT_TRUE(linear.Prepare(128, 128, &num_bytes).ok());
      EXPECT_EQ(FakeLibrary::log().num_enqueued_skinny.size(),
                measured.num_measured);
      EXPECT_EQ(linear.num_library_launches(), 0);
      int num_library = 0;
      for (const int num_tokens : {17, 24, 32, 33, 56, 64}) {
        LinearArguments arguments = layer.arguments();
        arguments.num_tokens = num_tokens;
        ASSERT_TRUE(linear.Launch(arguments).ok());
        num_library += num_tokens > measured.most_skinny_tokens;
        EXPECT_EQ(linear.num_library_launches(), num_library) << num_tokens;
      }
      EXPECT_EQ(linear.num_tiled_launches(), 0);
      ASSERT_TRUE(device_->Synchronize().ok());
    }
  }
}

// From x to the finished output, of each weight in turn.
TEST_F(LargeLinearTest, WholeLayersAreCompared) {
  for (const Case& c : kCases) {
    SCOPED_TRACE(c.name);
    FakeLibrary::log() = {};
    FakeLibrary::log().skinny_seconds = {9, 0};
    Layer layer(*device_, DType::kBF16, c, 64);
    Layer other(*device_, DType::kBF16, c, 64);
    LargeLinear linear(*device_, std::make_unique<FakeLibrary>());
    layer.AddTo(linear);
    other.AddTo(linear);
    int64_t num_bytes = 0;
    ASSERT_TRUE(linear.Prepare(64, 64, &num_bytes).ok());
    EXPECT_EQ(FakeLibrary::log().num_enqueued_skinny,
              std::vector<size_t>({2, 2}));
    const size_t num_launches = c.has_f32_sums() && !c.is_vocab ? 4 : 2;
    EXPECT_EQ(FakeLibrary::log().num_enqueued,
              std::vector<size_t>(6, num_launches));
    ASSERT_TRUE(device_->Synchronize().ok());
  }
}

TEST_F(LargeLinearTest, ShortStepsHaveOneBucket) {
  for (const int max_tokens : {16, 17, 32, 50}) {
    SCOPED_TRACE(max_tokens);
    FakeLibrary::log() = {};
    FakeLibrary::log().skinny_seconds = {9, 9};
    Layer layer(*device_, DType::kBF16, kCases[5], max_tokens);
    LargeLinear linear(*device_, std::make_unique<FakeLibrary>());
    layer.AddTo(linear);
    int64_t num_bytes = 0;
    ASSERT_TRUE(linear.Prepare(max_tokens, 0, &num_bytes).ok());
    EXPECT_EQ(num_bytes, linear.PlannedBytes(max_tokens, 0));
    EXPECT_EQ(FakeLibrary::log().num_enqueued_skinny.size(),
              max_tokens < 17   ? 0u
              : max_tokens > 32 ? 2u
                                : 1u);
    ASSERT_TRUE(linear.Launch(layer.arguments()).ok());
    EXPECT_EQ(linear.num_library_launches(), max_tokens < 17 ? 0 : 1);
    ASSERT_TRUE(device_->Synchronize().ok());
  }
}

TEST_F(LargeLinearTest, WhatIsNotMeasuredHasOneKernelUpTo64Tokens) {
  FakeLibrary::log().skinny_seconds = {9, 9};
  Layer layer(*device_, DType::kBF16, kCases[0], 65);
  LargeLinear linear(*device_, std::make_unique<FakeLibrary>(),
                     /*measures=*/false);
  layer.AddTo(linear);
  int64_t num_bytes = 0;
  ASSERT_TRUE(linear.Prepare(128, 0, &num_bytes).ok());
  for (const int num_tokens : {17, 64, 65}) {
    LinearArguments arguments = layer.arguments();
    arguments.num_tokens = num_tokens;
    ASSERT_TRUE(linear.Launch(arguments).ok());
    EXPECT_EQ(linear.num_library_launches(), num_tokens > 64 ? 1 : 0);
  }
  EXPECT_EQ(linear.num_tiled_launches(), 0);
  EXPECT_TRUE(FakeLibrary::log().measured_tokens.empty());
  EXPECT_EQ(FakeLibrary::log().algorithms, std::vector<uint64_t>({0}));
  ASSERT_TRUE(device_->Synchronize().ok());
}

// Nor what cannot be captured.
TEST_F(LargeLinearTest, WithoutAMeasurementTheSkinnyKernelStays) {
  FakeLibrary::log().skinny_seconds = {9, 9};
  Layer layer(*device_, DType::kBF16, kCases[0], 64);
  LargeLinear linear(*device_, std::make_unique<FakeLibrary>());
  layer.AddTo(linear);
  FailCaptures(*device_, 1);
  int64_t num_bytes = 0;
  ASSERT_TRUE(linear.Prepare(64, 0, &num_bytes).ok());
  ASSERT_TRUE(linear.Launch(layer.arguments()).ok());
  EXPECT_EQ(linear.num_library_launches(), 0);
  ASSERT_TRUE(device_->Synchronize().ok());
}

// A count that the choice does not suit, and one that is refused in a step.
TEST_F(LargeLinearTest, TheSkinnyKernelStandsInForTheLibrary) {
  FakeLibrary::log().odd_tokens = 40;
  FakeLibrary::log().skinny_seconds = {9, 9};
  Layer layer(*device_, DType::kBF16, kCases[0], 64);
  LargeLinear linear(*device_, std::make_unique<FakeLibrary>());
  layer.AddTo(linear);
  int64_t num_bytes = 0;
  ASSERT_TRUE(linear.Prepare(64, 0, &num_bytes).ok());
  LinearArguments arguments = layer.arguments();
  arguments.num_tokens = 40;
  ASSERT_TRUE(linear.Launch(arguments).ok());
  EXPECT_EQ(linear.num_library_launches(), 0);
  ASSERT_TRUE(linear.Launch(layer.arguments()).ok());
  EXPECT_EQ(linear.num_library_launches(), 1);
  const std::vector<float> expected = layer.Out();
  FakeLibrary::log().refuses_from = 0;
  SetWarningHandler([](const std::string&) {});
  ASSERT_TRUE(linear.Launch(layer.arguments()).ok());
  SetWarningHandler(nullptr);
  EXPECT_EQ(linear.num_library_launches(), 1);
  EXPECT_EQ(linear.num_tiled_launches(), 0);
  ExpectNear(layer.Out(), expected, DType::kBF16);
}

TEST_F(LargeLinearTest, WhatFailsWhenMeasuredIsNotTaken) {
  Layer layer(*device_, DType::kBF16, kCases[0], 128);
  LargeLinear linear(
      *device_, std::make_unique<FakeLibrary>(std::vector<double>{3, 0, 2}));
  layer.AddTo(linear);
  int64_t num_bytes = 0;
  ASSERT_TRUE(linear.Prepare(128, 0, &num_bytes).ok());
  ASSERT_TRUE(linear.Launch(layer.arguments()).ok());
  EXPECT_EQ(FakeLibrary::log().algorithms.back(), 2u);

  LargeLinear none(*device_,
                   std::make_unique<FakeLibrary>(std::vector<double>{0}));
  layer.AddTo(none);
  ASSERT_TRUE(none.Prepare(128, 0, &num_bytes).ok());
  ASSERT_TRUE(none.Launch(layer.arguments()).ok());
  EXPECT_EQ(none.num_tiled_launches(), 1);
  ASSERT_TRUE(device_->Synchronize().ok());
}

TEST_F(LargeLinearTest, AsksAgainForACountThatTheChoiceDoesNotSuit) {
  FakeLibrary::log().odd_tokens = 77;
  Layer layer(*device_, DType::kBF16, kCases[0], 128);
  LargeLinear linear(*device_, std::make_unique<FakeLibrary>());
  layer.AddTo(linear);
  int64_t num_bytes = 0;
  ASSERT_TRUE(linear.Prepare(128, 0, &num_bytes).ok());
  LinearArguments arguments = layer.arguments();
  for (int i = 0; i < 2; ++i) {
    arguments.num_tokens = 77;
    ASSERT_TRUE(linear.Launch(arguments).ok());
    EXPECT_EQ(FakeLibrary::log().algorithms.back(), 2u);
    arguments.num_tokens = 78;
    ASSERT_TRUE(linear.Launch(arguments).ok());
    EXPECT_EQ(FakeLibrary::log().algorithms.back(), 1u);
  }
  ASSERT_TRUE(device_->Synchronize().ok());
}

TEST_F(LargeLinearTest, AWeightThatWasNotAddedIsTiled) {
  Layer layer(*device_, DType::kBF16, kCases[0], 128);
  LargeLinear linear(*device_, std::make_unique<FakeLibrary>());
  int64_t num_bytes = 0;
  ASSERT_TRUE(linear.Prepare(128, 0, &num_bytes).ok());
  ASSERT_TRUE(linear.Launch(layer.arguments()).ok());
  EXPECT_EQ(linear.num_tiled_launches(), 1);
  ASSERT_TRUE(device_->Synchronize().ok());
}

TEST_F(LargeLinearTest, CanBeCaptured) {
  Layer layer(*device_, DType::kBF16, kCases[4], 65);
  LargeLinear linear(*device_, std::make_unique<FakeLibrary>());
  layer.AddTo(linear);
  int64_t num_bytes = 0;
  ASSERT_TRUE(linear.Prepare(128, 0, &num_bytes).ok());
  ASSERT_TRUE(linear.Launch(layer.arguments()).ok());
  const std::vector<float> expected = layer.Out();
  const size_t num_measured = FakeLibrary::log().measured_tokens.size();
  ASSERT_TRUE(device_->BeginCapture().ok());
  ASSERT_TRUE(linear.Launch(layer.arguments()).ok());
  auto graph = device_->EndCapture();
  ASSERT_TRUE(graph.ok());
  std::fill_n(static_cast<uint16_t*>(layer.arguments().out), expected.size(),
              0);
  ASSERT_TRUE(device_->Launch(**graph).ok());
  EXPECT_EQ(layer.Out(), expected);
  EXPECT_EQ(FakeLibrary::log().measured_tokens.size(), num_measured);
}

// What it needs for a residual is loaded before a step, and what cannot add one
// is not chosen.
TEST_F(LargeLinearTest, ResidualsAreTriedBeforeTheFirstStep) {
  Layer layer(*device_, DType::kBF16, kCases[1], 128);
  const auto launch = [&](LargeLinear& linear) {
    layer.AddTo(linear);
    int64_t num_bytes = 0;
    ASSERT_TRUE(linear.Prepare(128, 0, &num_bytes).ok());
    ASSERT_TRUE(linear.Launch(layer.arguments()).ok());
    ASSERT_TRUE(device_->Synchronize().ok());
  };
  LargeLinear linear(*device_, std::make_unique<FakeLibrary>());
  launch(linear);
  const std::vector<MatrixProblem>& problems = FakeLibrary::log().problems;
  EXPECT_GT(std::count_if(problems.begin(), problems.end() - 1,
                          [](const MatrixProblem& problem) {
                            return problem.residual_stride == 24;
                          }),
            0);
  EXPECT_EQ(linear.num_library_launches(), 1);
  FakeLibrary::log().refuses_residuals = true;
  LargeLinear without(*device_, std::make_unique<FakeLibrary>());
  launch(without);
  EXPECT_EQ(without.num_tiled_launches(), 1);
}

TEST_F(LargeLinearTest, WhatIsRefusedInAStepIsTiledFromThenOn) {
  for (const Case& c : kCases) {
    SCOPED_TRACE(c.name);
    FakeLibrary::log() = {};
    Layer layer(*device_, DType::kBF16, c, 128);
    LargeLinear linear(*device_, std::make_unique<FakeLibrary>());
    layer.AddTo(linear);
    int64_t num_bytes = 0;
    ASSERT_TRUE(linear.Prepare(128, 128, &num_bytes).ok());
    ASSERT_TRUE(linear.Launch(layer.arguments()).ok());
    const std::vector<float> expected = layer.Out();
    EXPECT_EQ(linear.num_library_launches(), 1);
    const size_t num_products = FakeLibrary::log().problems.size();
    FakeLibrary::log().refuses_from = num_products;
    std::vector<std::string> warnings;
    SetWarningHandler(
        [&](const std::string& text) { warnings.push_back(text); });
    for (int i = 0; i < 2; ++i) {
      ASSERT_TRUE(linear.Launch(layer.arguments()).ok());
      ExpectNear(layer.Out(), expected, DType::kBF16);
    }
    SetWarningHandler(nullptr);
    EXPECT_EQ(linear.num_library_launches(), 1);
    EXPECT_EQ(linear.num_tiled_launches(), 2);
    ASSERT_EQ(warnings.size(), 1u);
    EXPECT_TRUE(absl::StartsWith(warnings[0], "fake 1.0 refuses [128, 16] x ["))
        << warnings[0];
  }
}

TEST_F(LargeLinearTest, AChunkThatIsRefusedAfterOthersIsAnError) {
  Layer layer(*device_, DType::kBF16, kCases[9], 128);
  LargeLinear linear(*device_, std::make_unique<FakeLibrary>(),
                     /*measures=*/true, /*max_sums_bytes=*/128 * 256 * 4);
  layer.AddTo(linear);
  int64_t num_bytes = 0;
  ASSERT_TRUE(linear.Prepare(128, 128, &num_bytes).ok());
  FakeLibrary::log().refuses_from = FakeLibrary::log().problems.size() + 1;
  EXPECT_EQ(linear.Launch(layer.arguments()),
            absl::InternalError("not supported"));
  ASSERT_TRUE(device_->Synchronize().ok());
}

// Weights in 8 and 4 bits are for kernels of our own: the library would read
// them as 16 bits, and behind their end.
TEST(CudaBackendLibraryTest, IsGivenDenseWeightsOnly) {
  constexpr int kSize = 128;
  CudaBackendOptions options;
  options.open_matrix_library = [] { return std::make_unique<FakeLibrary>(); };
  const std::vector<uint8_t> bytes(kSize * kSize * 2);
  const std::vector<float> scales(kSize * 4, 1.0f);
  const auto part = [&](QuantFormat format) {
    WeightPart part;
    part.format = format;
    part.data = TensorView::Matrix(const_cast<uint8_t*>(bytes.data()),
                                   DType::kU8, kSize, kSize);
    part.scales = TensorView::Matrix(const_cast<float*>(scales.data()),
                                     DType::kF32, 1, 1);
    if (format == QuantFormat::kDense) part.data.dtype = DType::kBF16;
    if (format == QuantFormat::kInt4) {
      part.data.cols = part.data.row_stride = kSize / 2;
      part.scales.rows = kSize;
      part.group_size = kSize;
    }
    if (format == QuantFormat::kQ8_0) {
      part.data.cols = part.data.row_stride = kSize / 32 * 34;
      part.scales = {};
    }
    return part;
  };
  EngineShape shape;
  shape.max_num_seqs = 1;
  shape.max_num_tokens = 128;
  shape.max_logit_rows = 1;
  shape.max_model_len = 128;
  shape.vocab_size = kSize;
  shape.block_size = 16;
  shape.steps_in_flight = 1;
  shape.kv_bytes = 1 << 16;
  for (const QuantFormat format : {QuantFormat::kDense, QuantFormat::kFp8,
                                   QuantFormat::kInt4, QuantFormat::kQ8_0}) {
    FakeLibrary::log() = {};
    const auto backend = *CudaBackend::Create(options);
    LinearSpec spec;
    spec.parts = {part(format)};
    spec.model_dtype = DType::kBF16;
    const auto weight = backend->PackLinear(spec);
    ASSERT_TRUE(weight.ok()) << weight.status();
    const auto plan = backend->Prepare(shape);
    ASSERT_TRUE(plan.ok()) << plan.status();
    EXPECT_EQ(FakeLibrary::log().problems.empty(),
              format != QuantFormat::kDense);
  }
}

TEST(CudaBackendLibraryTest, NamesTheLibraryOrSaysWhatIsMissing) {
  CudaBackendOptions options;
  options.open_matrix_library = [] { return std::make_unique<FakeLibrary>(); };
  const auto with = CudaBackend::Create(options);
  ASSERT_TRUE(with.ok());
  EXPECT_TRUE(absl::StrContains((*with)->Description(), ", fake 1.0)"));
  EXPECT_EQ((*with)->notice(), "");
  options.open_matrix_library =
      []() -> absl::StatusOr<std::unique_ptr<MatrixLibrary>> {
    return absl::NotFoundError("it is not there");
  };
  const auto without = CudaBackend::Create(options);
  ASSERT_TRUE(without.ok());
  EXPECT_FALSE(absl::StrContains((*without)->Description(), "fake"));
  EXPECT_TRUE(absl::StrContains((*without)->notice(), "it is not there"));
}

}  // namespace
}  // namespace quire::cuda
