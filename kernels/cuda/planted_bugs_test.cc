// Proves that the tests of the kernels see: each bug of planted_bug.h, turned
// on in the real kernels, makes a result wrong, a check of the emulator fail or
// shared memory conflict under at least one schedule; without one nothing does.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <functional>
#include <string>
#include <vector>

#include "engine/base/random.h"
#include "gtest/gtest.h"
#include "kernels/cuda/attention_problem.h"
#include "kernels/cuda/kernel_runs.h"
#include "kernels/cuda/linear_problem.h"
#include "kernels/cuda/planted_bug.h"
#include "kernels/cuda/quantized_linear.h"
#include "kernels/cuda/sampling_test_step.h"
#include "kernels/cuda/simt/emulator.h"

namespace quire::cuda {
namespace {

using simt::emulator::CurrentCounts;
using simt::emulator::CurrentOptions;

constexpr const char* kNames[] = {"None",
#define QUIRE_CUDA_NAME(name) #name,
                                  QUIRE_CUDA_PLANTED_BUGS(QUIRE_CUDA_NAME)
#undef QUIRE_CUDA_NAME
};
constexpr int kNumBugs = sizeof(kNames) / sizeof(kNames[0]);

std::string Verdict(bool is_launched, double worst_error) {
  if (!is_launched) return simt::emulator::LastError();
  if (!(worst_error <= 1.0)) return "wrong number";
  if (CurrentCounts().num_matrix_passes != CurrentCounts().num_matrices ||
      CurrentCounts().num_shared_passes != CurrentCounts().num_shared) {
    return "bank conflicts";
  }
  return "";
}

std::string RunAttention() {
  for (const bool is_fp8 : {false, true}) {
    AttentionCase prefill{.shape = Shape(4, 2, 64),
                          .is_fp8 = is_fp8,
                          .num_tokens = {70, 33},
                          .seq_lens = {200, 33}};
    prefill.shape.sliding_window = 90;
    AttentionCase decode{.shape = Shape(8, 2, 64),
                         .tile = AttentionTile::kDecode,
                         .split_size = 64,
                         .is_fp8 = is_fp8,
                         .num_tokens = {1, 2},
                         .seq_lens = {150, 141}};
    AttentionCase whole = decode;
    whole.split_size = 1 << 20;
    AttentionCase warpgroup = prefill;
    warpgroup.tile = AttentionTile::kWarpgroup;
    // Six tiles of keys: each stage is used again.
    AttentionCase stages{.shape = Shape(4, 2, 64),
                         .tile = AttentionTile::kWarpgroup,
                         .num_tokens = {64},
                         .seq_lens = {370}};
    for (const AttentionCase& c : {prefill, decode, whole, warpgroup, stages}) {
      if (c.tile == AttentionTile::kWarpgroup) {
        if (is_fp8) continue;
        CurrentOptions().capability = 90;
      }
      AttentionProblem problem(c, 11);
      CurrentCounts() = {};
      const bool is_launched = problem.Run();
      const std::string wrong =
          Verdict(is_launched, is_launched ? problem.WorstError() : 0);
      if (!wrong.empty()) return wrong;
    }
  }
  return "";
}

std::string RunLinear() {
  for (const LinearCase& c :
       {LinearCase{.num_tokens = 3, .rows = 24, .cols = 2056},
        LinearCase{.num_tokens = 20,
        .rows = 32,
        .cols = 264,
        .activation = LinearActivation::kSwiGlu},
        LinearCase{.num_tokens = 5,
        .rows = 80,
        .cols = 1088,
        .num_norm_ctas = 2,
        .has_norm_residual = true,
        .is_early = true},
        LinearCase{.kernel = LinearKernel::kTiled,
        .num_tokens = 19,
        .rows = 40,
        .cols = 232},
        LinearCase{.kernel = LinearKernel::kTiled,
        .num_tokens = 5,
        .rows = 144,
        .cols = 64,
        .activation = LinearActivation::kSwiGlu}}) {
    LinearProblem problem(c);
    const bool is_launched = problem.Run();
    const std::string wrong =
        Verdict(is_launched, is_launched ? problem.WorstError() : 0);
    if (!wrong.empty()) return wrong;
  }
  return "";
}

// fp8 in blocks, from x to sums: whole numbers, of which every 128 columns have
// another largest one, so that they are exact only with its scale.
std::string RunFp8Blocks() {
  const int rows = 24, cols = 288, num_tokens = 70, num_groups = 3;
  SimulationRandom random(6);
  struct alignas(16) Chunk {
    uint8_t bytes[16];
  };
  std::vector<Chunk> weight_chunks(rows * cols / 16),
      x_chunks(num_tokens * cols / 16 * 2), fp8_chunks(num_tokens * cols / 16);
  auto* elements = weight_chunks[0].bytes;
  auto* x = reinterpret_cast<uint16_t*>(x_chunks[0].bytes);
  for (int i = 0; i < rows * cols; ++i) {
    elements[i] = FloatToE4M3(static_cast<float>(random.Between(-8, 8)));
  }
  std::vector<float> scales(num_groups * rows / 8),
      x_scales(num_groups * num_tokens, NAN);
  for (float& scale : scales) scale = 1 << random.Below(3);
  for (int i = 0; i < num_tokens * cols; ++i) {
    const int column = i % cols;
    const int power = 1 << (column / 128 * 5);
    // 448 / 7 is a power of two: with the scale of seven times `power`
    // everything is exact.
    x[i] = FloatToBf16(static_cast<float>(
        power * (column % 128 == 31 ? 7 : random.Between(-4, 4))));
  }
  std::vector<float> out(num_tokens * rows, NAN);
  QuantizedLinearArguments arguments;
  arguments.linear.out = out.data();
  arguments.linear.out_stride = rows;
  arguments.linear.num_tokens = num_tokens;
  arguments.linear.rows = rows;
  arguments.linear.cols = cols;
  arguments.linear.epilogue.is_out_f32 = true;
  arguments.weight.data = elements;
  arguments.weight.scales = scales.data();
  arguments.weight.scale_stride = rows / 8;
  arguments.weight.group_size = 128;
  arguments.x_fp8 = fp8_chunks[0].bytes;
  arguments.x_scales = x_scales.data();
  CurrentCounts() = {};
  const bool is_launched = LaunchQuantizeRows({.x = x,
                                               .x_stride = cols,
                                               .out = fp8_chunks[0].bytes,
                                               .scales = x_scales.data(),
                                               .group_size = 128,
                                               .num_tokens = num_tokens,
                                               .cols = cols},
                                              nullptr) &&
                           LaunchTiledFp8Linear(arguments, nullptr);
  double worst = 0;
  for (int t = 0; t < num_tokens; ++t) {
    for (int row = 0; row < rows; ++row) {
      double sum = 0;
      for (int col = 0; col < cols; ++col) {
        sum += double{Bf16ToFloat(x[t * cols + col])} *
               E4M3ToFloat(elements[row * cols + col]) *
               scales[col / 128 * (rows / 8) + row / 8];
      }
      const double error = std::fabs(out[t * rows + row] - sum) / 0.01;
      if (!(error <= worst)) worst = error;
    }
  }
  return Verdict(is_launched, worst);
}

// Small integers: sums are exact in every order, and so are e4m3 and 16 bits.
std::string RunQuantized() {
  const int rows = 24, cols = 288;
  SimulationRandom random(4);
  std::vector<uint8_t> elements(rows * cols), zeros, int4, fp8, int8;
  std::vector<float> scales;
  for (uint8_t& element : elements) element = random.Below(16);
  for (int i = 0; i < rows * (cols / 32); ++i) {
    zeros.push_back(static_cast<uint8_t>(random.Below(16)));
    scales.push_back(1 << random.Below(3));
  }
  int4.resize(rows * Int4RowBytes(cols) + 16);
  // Aligned as device memory is.
  const auto aligned = [](std::vector<uint8_t>& bytes) {
    return bytes.data() +
           (16 - reinterpret_cast<uintptr_t>(bytes.data()) % 16) % 16;
  };
  fp8.resize(rows * cols + 16);
  int8.resize(rows * Int8RowBytes(cols) + 16);
  for (int row = 0; row < rows; ++row) {
    for (int col = 0; col < cols; ++col) {
      const uint8_t element = elements[row * cols + col];
      const Int4Place place = PlaceOfInt4(col);
      aligned(
          int4)[row * Int4RowBytes(cols) + place.word * 4 + place.nibble / 2] |=
          element << (place.nibble % 2 * 4);
      aligned(fp8)[row * cols + col] = FloatToE4M3(element);
      aligned(int8)[row * Int8RowBytes(cols) + PlaceOfInt8(col)] =
          static_cast<uint8_t>(element - 8);
    }
  }
  for (const int num_tokens : {3, 70}) {
    std::vector<uint16_t> x(num_tokens * cols + 8);
    uint16_t* x_data =
        x.data() + (16 - reinterpret_cast<uintptr_t>(x.data()) % 16) % 16 / 2;
    for (int i = 0; i < num_tokens * cols; ++i) {
      // The largest is 7 in every row, so that e4m3 is exact.
      x_data[i] = FloatToBf16(i % cols == cols - 1
                                  ? 7.0f
                                  : static_cast<float>(random.Between(-4, 4)));
    }
    for (const QuantFormat format :
         {QuantFormat::kInt4, QuantFormat::kFp8, QuantFormat::kQ8_0}) {
      const bool is_fp8 = format == QuantFormat::kFp8;
      const bool is_int4 = format == QuantFormat::kInt4;
      const int group_size = is_int4 ? 96 : 32;
      std::vector<float> out(num_tokens * rows, NAN);
      QuantizedLinearArguments arguments;
      arguments.linear.x = x_data;
      arguments.linear.x_stride = cols;
      arguments.linear.out = out.data();
      arguments.linear.out_stride = rows;
      arguments.linear.num_tokens = num_tokens;
      arguments.linear.rows = rows;
      arguments.linear.cols = cols;
      arguments.linear.epilogue.is_out_f32 = true;
      QuantizedWeight& weight = arguments.weight;
      weight.format = format;
      weight.data = is_fp8    ? aligned(fp8)
                    : is_int4 ? aligned(int4)
                              : aligned(int8);
      std::vector<uint16_t> group_scales(NumScales(rows, cols, 32));
      std::vector<uint8_t> group_zeros(group_scales.size());
      for (int row = 0; row < rows; ++row) {
        for (int col = 0; col < cols; col += 32) {
          const int64_t place = PlaceOfScale(row, col, cols, 32);
          const int from = col / group_size * rows + row;
          group_scales[place] =
              is_int4 ? FloatToBf16(scales[from]) : FloatToHalf(scales[from]);
          group_zeros[place] = zeros[from];
        }
      }
      weight.scales = scales.data();
      if (!is_fp8) {
        weight.scales = group_scales.data();
        weight.scale_dtype = is_int4 ? DType::kBF16 : DType::kF16;
        weight.zeros = group_zeros.data();
        weight.group_size = 32;
      }
      std::vector<uint8_t> x_fp8(num_tokens * cols + 16);
      std::vector<float> x_scales(num_tokens, NAN);
      CurrentCounts() = {};
      bool is_launched;
      if (num_tokens <= kMaxSkinnyTokens) {
        is_launched = LaunchSkinnyQuantizedLinear(arguments, nullptr);
      } else if (is_fp8) {
        arguments.x_fp8 = aligned(x_fp8);
        arguments.x_scales = x_scales.data();
        is_launched = LaunchQuantizeRows({.x = x_data,
                                          .x_stride = cols,
                                          .out = aligned(x_fp8),
                                          .scales = x_scales.data(),
                                          .num_tokens = num_tokens,
                                          .cols = cols},
                                         nullptr) &&
                      LaunchTiledFp8Linear(arguments, nullptr);
      } else {
        is_launched = LaunchTiledQuantizedLinear(arguments, nullptr);
      }
      double worst = 0;
      for (int t = 0; t < num_tokens; ++t) {
        for (int row = 0; row < rows; ++row) {
          double sum = 0;
          for (int col = 0; col < cols; ++col) {
            const int group = is_fp8 ? 0 : col / group_size;
            const double element = elements[row * cols + col];
            sum += Bf16ToFloat(x_data[t * cols + col]) *
                   (element - (is_fp8    ? 0
                               : is_int4 ? zeros[group * rows + row]
                                         : 8)) *
                   scales[group * rows + row];
          }
          const double error = std::fabs(out[t * rows + row] - sum) / 0.01;
          if (!(error <= worst)) worst = error;
        }
      }
      const std::string wrong = Verdict(is_launched, worst);
      if (!wrong.empty()) return wrong;
    }
  }
  return "";
}

// What two rows are given, as numbers to compare.
std::vector<double> Sample() {
  const int vocab_size = 2500;
  SimulationRandom random(8);
  SamplingTestStep step(vocab_size, 2, 64);
  SlotParams params;
  params.temperature = 0.8f;
  params.top_k = 40;
  params.top_p = 0.9f;
  params.num_logprobs = 5;
  params.draw_key = 5;
  SlotParams plain;
  plain.num_logprobs = 3;
  step.StartSlot(0, params, {3, 4, 5}, 2);
  step.StartSlot(1, plain, {7, 8}, 2);
  for (int slot = 0; slot < 2; ++slot) {
    std::vector<float> logits(vocab_size);
    for (float& logit : logits) logit = static_cast<float>(3 * Normal(random));
    step.AddRow(slot, {logits}, {}, {5 + slot}, 2 - slot);
  }
  if (!step.Launch()) return {};
  std::vector<double> result;
  for (int slot = 0; slot < 2; ++slot) {
    result.push_back(step.tokens[slot]);
    result.push_back(step.logprobs[slot]);
    result.push_back(step.ranks[slot]);
    for (int i = 0; i < 3; ++i) {
      result.push_back(step.top_ids[slot * kMaxTopLogprobs + i]);
      result.push_back(step.top_logprobs[slot * kMaxTopLogprobs + i]);
    }
  }
  return result;
}

// Right is what comes out without a bug; sampling_test knows whether it is.
std::string RunSampling() {
  const PlantedBug bug = planted_bug;
  planted_bug = PlantedBug::kNone;
  const std::vector<double> expected = Sample();
  planted_bug = bug;
  return Sample() == expected ? "" : "another sample";
}

// The same: the kernels' own tests know whether what they write is right.
std::string Compare(const NamedRun& kernel) {
  const PlantedBug bug = planted_bug;
  planted_bug = PlantedBug::kNone;
  std::string expected, got;
  EXPECT_TRUE(kernel.run(&expected))
      << kernel.name << ": " << simt::emulator::LastError();
  planted_bug = bug;
  if (!kernel.run(&got)) return simt::emulator::LastError();
  return got == expected ? "" : "other bytes";
}

class PlantedBugsTest : public ::testing::TestWithParam<int> {
 protected:
  void TearDown() override {
    CurrentOptions() = {};
    planted_bug = PlantedBug::kNone;
  }
};

TEST_P(PlantedBugsTest, IsNoticed) {
  const std::string name = kNames[GetParam()];
  std::vector<std::function<std::string()>> problems;
  const bool is_none = GetParam() == 0;
  const auto concerns = [&](const char* prefix) {
    return is_none || name.rfind(prefix, 0) == 0;
  };
  if (concerns("Attention") || concerns("Warpgroup")) {
    problems.push_back(RunAttention);
  }
  if (concerns("Skinny") || concerns("Tiled")) problems.push_back(RunLinear);
  if (concerns("Quanti") || concerns("Widening")) {
    problems.push_back(RunQuantized);
  }
  if (concerns("QuantizeGroups") || concerns("Fp8")) {
    problems.push_back(RunFp8Blocks);
  }
  if (concerns("Sampling")) problems.push_back(RunSampling);
  for (const NamedRun& kernel : kKernelRuns) {
    if (concerns(kernel.name)) {
      problems.push_back([&kernel] { return Compare(kernel); });
    }
  }
  ASSERT_FALSE(problems.empty());
  int num_noticed = 0, num_runs = 0;
  std::string first;
  for (const simt::emulator::Schedule schedule :
       simt::emulator::kAllSchedules) {
    for (const bool is_lazy : {false, true}) {
      for (const auto& run : problems) {
        CurrentOptions() = {.schedule = schedule,
                            .seed = 7,
                            .is_copy_lazy = is_lazy,
                            .counts_shared = true};
        planted_bug = static_cast<PlantedBug>(GetParam());
        const std::string wrong = run();
        ++num_runs;
        if (!wrong.empty() && num_noticed++ == 0) first = wrong;
      }
    }
  }
  if (is_none) {
    EXPECT_EQ(num_noticed, 0) << first;
  } else {
    EXPECT_GT(num_noticed, 0) << name;
    std::printf("%s: noticed in %d of %d runs: %s\n", name.c_str(), num_noticed,
                num_runs, first.c_str());
  }
}

INSTANTIATE_TEST_SUITE_P(All, PlantedBugsTest, ::testing::Range(0, kNumBugs),
                         [](const auto& info) { return kNames[info.param]; });

}  // namespace
}  // namespace quire::cuda
