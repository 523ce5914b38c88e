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
#include "kernels/cuda/large_linear.h"
#include "kernels/cuda/large_linear_problem.h"

namespace quire::cuda {
namespace {

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

constexpr int kFp8Cols = 144;  // A block and a part.

// A layer whose weight and x are in e4m3.
class Fp8Layer {
 public:
  static Case WithCols(Case c) {
    c.cols = kFp8Cols;
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
      ExpectNear(layer.Out(), expected, dtype, kFp8Cols);
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

}  // namespace
}  // namespace quire::cuda
