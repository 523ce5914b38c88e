#include "kernels/cuda/large_linear.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>
#include <string>
#include <tuple>
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
#include "kernels/cuda/fake_matrix_library.h"

namespace quire::cuda {
namespace {

constexpr int kCols = 16;

struct Case {
  const char* name;
  LinearActivation activation = LinearActivation::kNone;
  bool has_bias = false;
  bool has_residual = false;
  bool is_vocab = false;
  float scale = 1.0f;
  float softcap = 0.0f;
  int rows = 24;
  int cols = kCols;

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
    weight_ = halves(int64_t{c.rows} * c.cols);
    x_ = halves(int64_t{num_tokens} * c.cols);
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
    arguments_.x_stride = c.cols;
    arguments_.out = out_.data<void>();
    arguments_.out_stride = out_cols_;
    arguments_.num_tokens = num_tokens;
    arguments_.rows = c.rows;
    arguments_.cols = c.cols;
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
    linear.AddWeight(arguments_.dtype, case_.rows, case_.cols,
                     arguments_.weight, case_.is_vocab,
                     IsGated(case_.activation), case_.has_f32_sums());
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

// ---- fp8

// Which scales the library gets: of each kind, group_size 0 or 128, on a GPU.
struct Fp8Kind {
  const char* name;
  int group_size;
  int capability;
  int version;
  MatrixScales scales;
};
const Fp8Kind kFp8Kinds[] = {
    {"rows", 0, 90, 120900, MatrixScales::kRows},
    {"blocks", 128, 90, 120900, MatrixScales::kBlocks},
    {"rows, old library", 0, 90, 120800, MatrixScales::kNone},
    {"rows, 8.9", 0, 89, 130100, MatrixScales::kNone},
    {"rows, 12.0", 0, 120, 130100, MatrixScales::kNone},
};

// A layer whose weight and x are in e4m3. 144 columns: a block and a part.
class Fp8Layer {
 public:
  static Case WithCols(Case c) {
    c.cols = 144;
    return c;
  }

  Fp8Layer(Device& device, DType dtype, const Case& c, int group_size,
           int num_tokens)
      : layer_(device, dtype, WithCols(c), num_tokens) {
    const LinearArguments& linear = layer_.arguments();
    arguments_.linear = linear;
    arguments_.linear.weight = nullptr;
    SimulationRandom random(11);
    const int num_blocks = group_size > 0 ? (linear.cols + 127) / 128 : 1;
    weight_ = *DeviceBuffer::Create(device, int64_t{linear.rows} * linear.cols);
    for (int64_t i = 0; i < weight_.num_bytes(); ++i) {
      weight_.data<uint8_t>()[i] =
          FloatToE4M3(static_cast<float>(random.Uniform() * 2 - 1) * 448.0f);
    }
    QuantizedWeight& weight = arguments_.weight;
    weight.group_size = group_size;
    weight.scale_stride = (linear.rows + 7) / 8;
    const int64_t num_scales = group_size > 0
                                   ? int64_t{num_blocks} * weight.scale_stride
                                   : linear.rows;
    scales_ = *DeviceBuffer::Create(device, num_scales * 4);
    for (int64_t i = 0; i < num_scales; ++i) {
      scales_.data<float>()[i] =
          static_cast<float>(0.25 + 0.75 * random.Uniform()) / 448.0f;
    }
    weight.data = weight_.data<const uint8_t>();
    weight.scales = scales_.data<const void>();
    x_fp8_ = *DeviceBuffer::Create(device, int64_t{num_tokens} * linear.cols);
    x_scales_ =
        *DeviceBuffer::Create(device, int64_t{num_blocks} * num_tokens * 4);
    Quantize(device, num_tokens);
    arguments_.x_fp8 = x_fp8_.data<const uint8_t>();
    arguments_.x_scales = x_scales_.data<const float>();
  }

  // x, for so many tokens from now on.
  void Quantize(Device& device, int num_tokens) {
    arguments_.linear.num_tokens = num_tokens;
    const LinearArguments& linear = arguments_.linear;
    EXPECT_TRUE(LaunchQuantizeRows({.dtype = linear.dtype,
                                    .x = linear.x,
                                    .x_stride = linear.x_stride,
                                    .out = x_fp8_.data<uint8_t>(),
                                    .scales = x_scales_.data<float>(),
                                    .group_size = arguments_.weight.group_size,
                                    .num_tokens = num_tokens,
                                    .cols = linear.cols},
                                   device.stream()));
  }
  void AddTo(LargeLinear& linear) const {
    const LinearEpilogue& epilogue = arguments_.linear.epilogue;
    linear.AddFp8Weight(arguments_.linear.dtype, arguments_.linear.rows,
                        arguments_.linear.cols, arguments_.weight,
                        IsGated(epilogue.activation),
                        epilogue.bias != nullptr ||
                            epilogue.activation != LinearActivation::kNone);
  }
  const QuantizedLinearArguments& arguments() const { return arguments_; }
  std::vector<float> Out() { return layer_.Out(); }

 private:
  Layer layer_;
  DeviceBuffer weight_, scales_, x_fp8_, x_scales_;
  QuantizedLinearArguments arguments_;
};

// As ExpectNear, of sums of 144 products of values of 1 at most.
void ExpectFp8Near(const std::vector<float>& got,
                   const std::vector<float>& expected, DType dtype) {
  ASSERT_EQ(got.size(), expected.size());
  const double relative = dtype == DType::kBF16 ? 0x1p-7 : 0x1p-10;
  for (size_t i = 0; i < got.size(); ++i) {
    ASSERT_TRUE(std::abs(got[i] - expected[i]) <=
                relative * std::abs(expected[i]) + 144 * 144 * 0x1p-23)
        << i << ": " << got[i] << " instead of " << expected[i];
  }
}

// Cases of f32 output apart: there are no such weights (they are vocabularies).
std::vector<Case> Fp8Cases() {
  std::vector<Case> cases;
  for (Case c : kCases) {
    if (c.is_vocab) continue;
    if (c.rows % 8 != 0) c.rows = (c.rows + 7) / 8 * 8;
    cases.push_back(c);
  }
  return cases;
}

class Fp8LargeLinearTest : public LargeLinearTest {
 protected:
  static void SetGpu(const Fp8Kind& kind) {
    FakeLibrary::log() = {};
    FakeLibrary::log().capability = kind.capability;
    FakeLibrary::log().version = kind.version;
    // Our kernel is slow.
    FakeLibrary::log().skinny_seconds = {9, 9, 9, 9};
  }
};

TEST_F(Fp8LargeLinearTest, TheLibraryAndOurKernelAgree) {
  int num_cases = 0;
  for (const Fp8Kind& kind : kFp8Kinds) {
    for (const Case& c : Fp8Cases()) {
      SCOPED_TRACE(testing::Message() << kind.name << ", " << c.name);
      SetGpu(kind);
      const DType dtype = ++num_cases % 2 == 0 ? DType::kBF16 : DType::kF16;
      // Of steps of up to 79: with scales of blocks it takes 76 at the most.
      const int num_tokens = kind.group_size > 0 ? 76 : 77;
      Fp8Layer layer(*device_, dtype, c, kind.group_size, num_tokens);
      LargeLinear own(*device_, nullptr);
      layer.AddTo(own);
      int64_t num_bytes = 0;
      ASSERT_TRUE(own.Prepare(79, 0, &num_bytes).ok());
      EXPECT_EQ(num_bytes, 0);
      ASSERT_TRUE(own.LaunchFp8(layer.arguments()).ok());
      const std::vector<float> expected = layer.Out();
      EXPECT_EQ(own.num_tiled_launches(), 1);

      LargeLinear linear(*device_, std::make_unique<FakeLibrary>(),
                         /*measures=*/false, /*max_sums_bytes=*/128 * 256 * 4);
      layer.AddTo(linear);
      ASSERT_TRUE(linear.Prepare(79, 0, &num_bytes).ok());
      EXPECT_GT(num_bytes, 0);
      EXPECT_EQ(num_bytes, linear.PlannedBytes(79, 0));
      ASSERT_TRUE(linear.LaunchFp8(layer.arguments()).ok());
      EXPECT_EQ(linear.num_tiled_launches(), 0);
      ASSERT_EQ(linear.num_library_launches(), 1);
      ExpectFp8Near(layer.Out(), expected, dtype);
      const MatrixProblem& problem = FakeLibrary::log().problems.back();
      EXPECT_EQ(problem.dtype, DType::kF8E4M3);
      EXPECT_EQ(problem.scales, kind.scales);
      // Where the library knows the scales there is no pass over sums.
      EXPECT_EQ(problem.out_dtype == DType::kF32,
                c.has_f32_sums() || kind.scales == MatrixScales::kNone);
    }
  }
}

TEST_F(Fp8LargeLinearTest, WhatTheLibraryIsAskedFor) {
  for (const auto& [capability, version, rows, blocks] :
       {std::tuple(80, 130100, false, false),
        std::tuple(89, 130100, true, false),
        std::tuple(90, 120000, true, false),
        std::tuple(90, 120899, true, false), std::tuple(90, 120900, true, true),
        std::tuple(100, 130100, true, false),
        std::tuple(120, 130100, true, false)}) {
    SCOPED_TRACE(capability);
    EXPECT_EQ(HasFp8Scales(MatrixScales::kNone, capability, version), rows);
    EXPECT_EQ(HasFp8Scales(MatrixScales::kRows, capability, version), blocks);
    EXPECT_EQ(HasFp8Scales(MatrixScales::kBlocks, capability, version), blocks);
    FakeLibrary::log().capability = capability;
    FakeLibrary::log().version = version;
    EXPECT_EQ(
        LargeLinear(*device_, std::make_unique<FakeLibrary>()).LibraryName(),
        blocks ? "fake 1.0 with fp8"
        : rows ? "fake 1.0 with fp8 but in blocks"
               : "fake 1.0");
  }
  const MatrixProblem good = {.dtype = DType::kF8E4M3,
                              .out_dtype = DType::kBF16,
                              .num_tokens = 77,
                              .rows = 24,
                              .cols = 208,
                              .x_stride = 208,
                              .out_stride = 24};
  EXPECT_TRUE(HasFp8Sizes(good));
  const auto spoil = [&](auto change) {
    MatrixProblem problem = good;
    change(problem);
    return HasFp8Sizes(problem);
  };
  EXPECT_FALSE(spoil([](MatrixProblem& p) { p.cols = p.x_stride = 200; }));
  EXPECT_FALSE(spoil([](MatrixProblem& p) { p.x_stride = 216; }));
  EXPECT_FALSE(spoil([](MatrixProblem& p) { p.rows = 20; }));
  EXPECT_FALSE(spoil([](MatrixProblem& p) { p.out_stride = 28; }));
  EXPECT_FALSE(spoil([](MatrixProblem& p) { p.residual_stride = 28; }));
  EXPECT_TRUE(spoil([](MatrixProblem& p) {
    p.out_dtype = DType::kF32;
    p.rows = 20;
  }));
  // Of blocks tokens come by fours.
  EXPECT_FALSE(
      spoil([](MatrixProblem& p) { p.scales = MatrixScales::kBlocks; }));
  EXPECT_TRUE(spoil([](MatrixProblem& p) {
    p.scales = MatrixScales::kBlocks;
    p.num_tokens = 76;
  }));
}

TEST_F(Fp8LargeLinearTest, WhatTheLibraryDoesNotTakeIsOurs) {
  struct Refused {
    const char* name;
    Fp8Kind kind;
    Case c;
    int num_tokens = 76;
  };
  const Case plain = kCases[0];
  for (const Refused& refused :
       {Refused{"blocks, 8.9", {"", 128, 89, 130100}, plain},
        Refused{"blocks, old library", {"", 128, 90, 120800}, plain},
        Refused{"rows, 8.0", {"", 0, 80, 130100}, plain},
        Refused{"f32 output", {"", 0, 90, 130100}, kCases[7]},
        Refused{"odd tokens", {"", 128, 90, 130100}, plain, 77},
        Refused{"few tokens", {"", 0, 90, 130100}, plain, 64}}) {
    SCOPED_TRACE(refused.name);
    SetGpu(refused.kind);
    Fp8Layer layer(*device_, DType::kBF16, refused.c, refused.kind.group_size,
                   refused.num_tokens);
    LargeLinear linear(*device_, std::make_unique<FakeLibrary>());
    layer.AddTo(linear);
    int64_t num_bytes = 0;
    ASSERT_TRUE(
        linear.Prepare(refused.num_tokens == 64 ? 64 : 128, 0, &num_bytes)
            .ok());
    ASSERT_TRUE(linear.LaunchFp8(layer.arguments()).ok());
    EXPECT_EQ(linear.num_library_launches(), 0);
    EXPECT_EQ(linear.num_tiled_launches(), 1);
    ASSERT_TRUE(device_->Synchronize().ok());
  }
}

// Of 128 and of 256 tokens: the fastest algorithm takes a second.
TEST_F(Fp8LargeLinearTest, TheFasterOneIsTaken) {
  for (const auto& [own_seconds, library_from] :
       {std::pair(std::vector<double>{0.9, 1.1}, 129),
        std::pair(std::vector<double>{1.01, 1.01}, 257),
        std::pair(std::vector<double>{1.03, 1.03}, 65)}) {
    for (const Fp8Kind& kind : {kFp8Kinds[0], kFp8Kinds[1], kFp8Kinds[3]}) {
      SCOPED_TRACE(testing::Message() << kind.name << ", " << library_from);
      SetGpu(kind);
      FakeLibrary::log().skinny_seconds = own_seconds;
      Fp8Layer layer(*device_, DType::kBF16, kCases[0], kind.group_size, 256);
      LargeLinear linear(*device_, std::make_unique<FakeLibrary>());
      layer.AddTo(linear);
      layer.AddTo(linear);  // Of equal shape: measured once, in turn.
      int64_t num_bytes = 0;
      ASSERT_TRUE(linear.Prepare(256, 0, &num_bytes).ok());
      EXPECT_EQ(FakeLibrary::log().measured_tokens,
                std::vector<int64_t>({128, 128, 128, 256, 256, 256}));
      EXPECT_EQ(FakeLibrary::log().num_enqueued_skinny,
                std::vector<size_t>({2, 2}));
      // Products, and what is before (scales of blocks) or behind (of rows).
      EXPECT_EQ(
          FakeLibrary::log().num_enqueued,
          std::vector<size_t>(6, kind.scales == MatrixScales::kRows ? 2 : 4));
      int num_library = 0;
      for (const int num_tokens : {68, 128, 132, 256}) {
        layer.Quantize(*device_, num_tokens);
        ASSERT_TRUE(linear.LaunchFp8(layer.arguments()).ok());
        const bool is_library = num_tokens >= library_from;
        num_library += is_library;
        EXPECT_EQ(linear.num_library_launches(), num_library) << num_tokens;
        if (is_library) {
          EXPECT_EQ(FakeLibrary::log().algorithms.back(), 1u);
        }
      }
      EXPECT_EQ(linear.num_tiled_launches(), 4 - num_library);
      ASSERT_TRUE(device_->Synchronize().ok());
    }
  }
}

TEST_F(Fp8LargeLinearTest, WhatIsNotMeasuredIsTheFirstChoice) {
  SetGpu(kFp8Kinds[0]);
  Fp8Layer layer(*device_, DType::kBF16, kCases[0], 0, 100);
  LargeLinear linear(*device_, std::make_unique<FakeLibrary>(),
                     /*measures=*/false);
  layer.AddTo(linear);
  int64_t num_bytes = 0;
  ASSERT_TRUE(linear.Prepare(128, 0, &num_bytes).ok());
  ASSERT_TRUE(linear.LaunchFp8(layer.arguments()).ok());
  EXPECT_TRUE(FakeLibrary::log().measured_tokens.empty());
  EXPECT_EQ(FakeLibrary::log().algorithms, std::vector<uint64_t>({0}));
  ASSERT_TRUE(device_->Synchronize().ok());
}

// In a step, and already when asked; it is told once.
TEST_F(Fp8LargeLinearTest, WhatIsRefusedIsTold) {
  std::vector<std::string> warnings;
  for (const Fp8Kind& kind : kFp8Kinds) {
    for (const bool is_asked : {false, true}) {
      SCOPED_TRACE(testing::Message() << kind.name << ", " << is_asked);
      SetGpu(kind);
      Case c = kCases[0];
      if (is_asked) c.rows = 18;
      Fp8Layer layer(*device_, DType::kBF16, c, kind.group_size, 128);
      LargeLinear own(*device_, nullptr);
      ASSERT_TRUE(own.LaunchFp8(layer.arguments()).ok());
      const std::vector<float> expected = layer.Out();
      LargeLinear linear(*device_, std::make_unique<FakeLibrary>());
      layer.AddTo(linear);
      int64_t num_bytes = 0;
      warnings.clear();
      SetWarningHandler(
          [&](const std::string& text) { warnings.push_back(text); });
      ASSERT_TRUE(linear.Prepare(256, 0, &num_bytes).ok());
      FakeLibrary::log().refuses_from = FakeLibrary::log().problems.size();
      for (int i = 0; i < 2; ++i) {
        ASSERT_TRUE(linear.LaunchFp8(layer.arguments()).ok());
        EXPECT_EQ(layer.Out(), expected);
      }
      SetWarningHandler(nullptr);
      EXPECT_EQ(linear.num_tiled_launches(), 2);
      ASSERT_EQ(warnings.size(), 1u);
      EXPECT_TRUE(absl::StartsWith(
          warnings[0],
          is_asked ? "fake 1.0 refuses [128, 144] x [18, 144] in fp8 (it knows"
                   : "fake 1.0 refuses [128, 144] x [24, 144] in fp8 (not"))
          << warnings[0];
    }
  }
}

TEST_F(Fp8LargeLinearTest, CanBeCaptured) {
  for (const Fp8Kind& kind : {kFp8Kinds[0], kFp8Kinds[1], kFp8Kinds[3]}) {
    for (const Case& c : {kCases[1], kCases[9]}) {
      SCOPED_TRACE(testing::Message() << kind.name << ", " << c.name);
      SetGpu(kind);
      Fp8Layer layer(*device_, DType::kBF16, c, kind.group_size, 68);
      LargeLinear linear(*device_, std::make_unique<FakeLibrary>(),
                         /*measures=*/false, /*max_sums_bytes=*/128 * 256 * 4);
      layer.AddTo(linear);
      int64_t num_bytes = 0;
      ASSERT_TRUE(linear.Prepare(128, 0, &num_bytes).ok());
      ASSERT_TRUE(linear.LaunchFp8(layer.arguments()).ok());
      const std::vector<float> expected = layer.Out();
      ASSERT_TRUE(device_->BeginCapture().ok());
      ASSERT_TRUE(linear.LaunchFp8(layer.arguments()).ok());
      auto graph = device_->EndCapture();
      ASSERT_TRUE(graph.ok());
      std::fill_n(static_cast<uint16_t*>(layer.arguments().linear.out),
                  expected.size(), 0);
      ASSERT_TRUE(device_->Launch(**graph).ok());
      EXPECT_EQ(layer.Out(), expected);
      EXPECT_EQ(linear.num_library_launches(), 2);
    }
  }
}

// Integers of 8 and 4 bits are for kernels of our own: the library would read
// them as 16 bits, and behind their end.
TEST(CudaBackendLibraryTest, IsGivenDenseAndFp8Weights) {
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
    const std::vector<MatrixProblem>& problems = FakeLibrary::log().problems;
    EXPECT_EQ(problems.empty(),
              format != QuantFormat::kDense && format != QuantFormat::kFp8);
    for (const MatrixProblem& problem : problems) {
      EXPECT_EQ(problem.dtype,
                format == QuantFormat::kFp8 ? DType::kF8E4M3 : DType::kBF16);
    }
  }
}

TEST(CudaBackendLibraryTest, NamesTheLibraryOrSaysWhatIsMissing) {
  CudaBackendOptions options;
  options.open_matrix_library = [] { return std::make_unique<FakeLibrary>(); };
  const auto with = CudaBackend::Create(options);
  ASSERT_TRUE(with.ok());
  EXPECT_TRUE(
      absl::StrContains((*with)->Description(), ", fake 1.0 with fp8)"));
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
