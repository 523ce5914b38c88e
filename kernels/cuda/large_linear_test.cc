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
#include "kernels/cuda/large_linear_problem.h"

namespace quire::cuda {
namespace {

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
