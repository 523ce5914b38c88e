#include "kernels/cuda/linear.h"

#include <cmath>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/cuda/linear_problem.h"

namespace quire::cuda {
namespace {

class LinearTest : public ::testing::Test {
 protected:
  void TearDown() override { simt::emulator::CurrentOptions() = {}; }
  static void ExpectRight(const LinearCase& c, const std::string& name) {
    LinearProblem problem(c);
    ASSERT_TRUE(problem.Run()) << name << ": " << simt::emulator::LastError();
    EXPECT_LE(problem.WorstError(), 1.0) << name;
    EXPECT_EQ(simt::emulator::CurrentCounts().num_matrix_passes,
              simt::emulator::CurrentCounts().num_matrices)
        << name << ": bank conflicts";
  }
};

TEST_F(LinearTest, IsRightUnderEverySchedule) {
  for (const simt::emulator::Schedule schedule :
       simt::emulator::kAllSchedules) {
    simt::emulator::CurrentOptions() = {.schedule = schedule, .seed = 2};
    ExpectRight({.num_tokens = 3, .rows = 40, .cols = 1088}, "plain");
    ExpectRight({.num_tokens = 20,
                 .rows = 32,
                 .cols = 256,
                 .activation = LinearActivation::kSwiGlu},
                "gated");
  }
}

TEST_F(LinearTest, TilesAreRightUnderEverySchedule) {
  for (const simt::emulator::Schedule schedule :
       simt::emulator::kAllSchedules) {
    for (const bool is_lazy : {false, true}) {
      simt::emulator::CurrentOptions() = {
          .schedule = schedule, .seed = 2, .is_copy_lazy = is_lazy};
      ExpectRight({.kernel = LinearKernel::kTiled,
                   .num_tokens = 19,
                   .rows = 40,
                   .cols = 232},
                  "tiled");
      ExpectRight({.kernel = LinearKernel::kTiled,
                   .num_tokens = 5,
                   .rows = 144,
                   .cols = 64,
                   .activation = LinearActivation::kSwiGlu},
                  "tiled, gated");
    }
  }
}

TEST_F(LinearTest, TilesTakeOddSizes) {
  for (const int num_tokens : {1, 64, 127, 128, 129}) {
    ExpectRight({.kernel = LinearKernel::kTiled,
                 .num_tokens = num_tokens,
                 .rows = 37,
                 .cols = 40},
                "tiled, tokens " + std::to_string(num_tokens));
  }
  for (const int cols : {8, 24, 32, 96, 104, 136, 1000}) {
    for (const DType dtype : {DType::kBF16, DType::kF16}) {
      ExpectRight({.kernel = LinearKernel::kTiled,
                   .dtype = dtype,
                   .num_tokens = 3,
                   .rows = 129,
                   .cols = cols},
                  "tiled, cols " + std::to_string(cols));
    }
  }
}

TEST_F(LinearTest, TakesEveryNumberOfTokensAndOddSizes) {
  for (const int num_tokens : {1, 7, 8, 9, 16, 17, 32, 33, 63, 64}) {
    ExpectRight({.num_tokens = num_tokens, .rows = 37, .cols = 136},
                "tokens " + std::to_string(num_tokens));
  }
  for (const int cols : {8, 24, 128, 1016, 1024, 1032, 2056}) {
    for (const DType dtype : {DType::kBF16, DType::kF16}) {
      ExpectRight({.dtype = dtype, .num_tokens = 2, .rows = 1, .cols = cols},
                  "cols " + std::to_string(cols));
    }
  }
}

TEST_F(LinearTest, FinishesInEveryWay) {
  using enum LinearActivation;
  for (const LinearKernel kernel :
       {LinearKernel::kSkinny, LinearKernel::kTiled}) {
    for (const LinearActivation activation :
         {kNone, kSwiGlu, kGeGlu, kGelu, kRelu, kGeGluErf, kGeluErf}) {
      for (const bool has_bias : {false, true}) {
        for (const bool has_residual : {false, true}) {
          ExpectRight({.kernel = kernel,
                       .num_tokens = 5,
                       .rows = 48,
                       .cols = 64,
                       .activation = activation,
                       .has_bias = has_bias,
                       .has_residual = has_residual,
                       .scale = 0.25f},
                      "activation " + std::to_string(int(activation)));
        }
      }
    }
    ExpectRight({.kernel = kernel,
                 .num_tokens = 9,
                 .rows = 33,
                 .cols = 64,
                 .is_out_f32 = true,
                 .scale = 0.5f,
                 .softcap = 2.0f},
                "logits");
  }
}

// The same bits for a token whatever the number of its neighbours.
TEST_F(LinearTest, DoesNotDependOnTheBatch) {
  LinearProblem alone({.num_tokens = 1, .rows = 16, .cols = 2056});
  ASSERT_TRUE(alone.Run());
  for (const int num_tokens : {8, 11, 30, 64}) {
    LinearProblem together(
        {.num_tokens = num_tokens, .rows = 16, .cols = 2056});
    ASSERT_TRUE(together.Run());
    for (int column = 0; column < 16; ++column) {
      EXPECT_EQ(alone.Out(0, column), together.Out(0, column)) << num_tokens;
    }
  }
  LinearProblem tiled(
      {.kernel = LinearKernel::kTiled, .num_tokens = 1, .cols = 520});
  LinearProblem tiles(
      {.kernel = LinearKernel::kTiled, .num_tokens = 130, .cols = 520});
  ASSERT_TRUE(tiled.Run());
  ASSERT_TRUE(tiles.Run());
  for (int column = 0; column < 16; ++column) {
    EXPECT_EQ(tiled.Out(0, column), tiles.Out(0, column));
  }
}

// As if LaunchNorm had run before it: the bits, of every kind of norm.
TEST_F(LinearTest, NormsOnTheWay) {
  using Kind = NormArguments::Kind;
  int num_cases = 0;
  for (const Kind kind : {Kind::kNone, Kind::kRms, Kind::kLayer}) {
    for (const int num_tokens : {1, 4, 5, 8}) {
      for (const int cols : {8, 1032, 2056, 4104}) {
        if (num_tokens * cols > 5 * 4104) continue;  // 64 KiB, on 7.5.
        // Fewer than the groups of rows, as many and more.
        for (const int num_ctas : {1, 2, 3, 4}) {
          ++num_cases;
          LinearCase c{.dtype = num_cases % 2 == 0 ? DType::kBF16 : DType::kF16,
                       .num_tokens = num_tokens,
                       .rows = 43,
                       .cols = cols};
          c.norm_kind = kind;
          c.num_norm_ctas = num_ctas;
          c.has_norm_residual = num_cases % 3 == 0;
          c.has_norm_rows = num_cases % 5 == 0;
          c.is_early = num_cases % 4 == 0;
          LinearProblem fused(c);
          ASSERT_TRUE(fused.Run()) << simt::emulator::LastError();
          EXPECT_LE(fused.WorstError(), 1.0) << num_cases;
          EXPECT_EQ(fused.sum(), fused.expected_sum()) << num_cases;
          LinearProblem separate = fused;
          separate.ForgetNorm();
          ASSERT_TRUE(separate.Run());
          for (int t = 0; t < num_tokens; ++t) {
            for (int column = 0; column < c.rows; ++column) {
              ASSERT_EQ(fused.Out(t, column), separate.Out(t, column))
                  << num_cases;
            }
          }
        }
      }
    }
  }
}

TEST_F(LinearTest, NormsUnderEverySchedule) {
  for (const simt::emulator::Schedule schedule :
       simt::emulator::kAllSchedules) {
    simt::emulator::CurrentOptions() = {.schedule = schedule, .seed = 2};
    for (const bool is_early : {false, true}) {
      ExpectRight({.num_tokens = 6,
                   .rows = 96,
                   .cols = 1088,
                   .activation = LinearActivation::kSwiGlu,
                   .num_norm_ctas = 2,
                   .has_norm_residual = true,
                   .is_early = is_early},
                  "normed");
    }
  }
}

// Weights are on their way before the launch in front has ended, those of the
// norm, too: x may be of that launch, weights may not.
TEST_F(LinearTest, ReadsWeightsBeforeItsPredecessorEnds) {
  for (const int num_tokens : {1, 8, 16, 32, 64}) {
    for (const int num_norm_ctas : {0, 2}) {
      if (num_norm_ctas > 0 && num_tokens > kMaxNormTokens) continue;
      LinearCase c{.num_tokens = num_tokens,
                   .rows = 32,
                   .cols = 1088,
                   .num_norm_ctas = num_norm_ctas};
      c.is_early = true;
      ExpectRight(c, "early");
      c.has_late_weight = true;
      LinearProblem late(c);
      ASSERT_TRUE(late.Run());
      EXPECT_TRUE(std::isnan(late.WorstError())) << num_tokens;
      if (num_norm_ctas == 0) continue;
      c.has_late_weight = false;
      c.has_late_norm_weight = true;
      LinearProblem late_norm(c);
      ASSERT_TRUE(late_norm.Run());
      EXPECT_TRUE(std::isnan(late_norm.WorstError())) << num_tokens;
    }
  }
}

// Where a norm is part of the linear layer on an H100 (228 KiB of shared
// memory) and an RTX 4090 (100 KiB).
TEST_F(LinearTest, NormsWhatFitsTwoCtas) {
  EXPECT_TRUE(FitsSkinnyNorm(8, 4096, 228 << 10));
  EXPECT_FALSE(FitsSkinnyNorm(9, 4096, 228 << 10));
  EXPECT_TRUE(FitsSkinnyNorm(6, 8192, 228 << 10));
  EXPECT_FALSE(FitsSkinnyNorm(7, 8192, 228 << 10));
  EXPECT_TRUE(FitsSkinnyNorm(5, 4096, 100 << 10));
  EXPECT_FALSE(FitsSkinnyNorm(6, 4096, 100 << 10));
  // 28672 rows are 1792 groups of sixteen: 7 for each of 256 CTAs.
  EXPECT_EQ(NumCtasOfSkinnyNorm(28672, 132), 256);
  EXPECT_EQ(NumCtasOfSkinnyNorm(6144, 132), 192);
  EXPECT_EQ(NumCtasOfSkinnyNorm(1, 132), 1);
}

// Skinny kernels have no bank conflicts. The sums: 8 warps x 4 of a tile's
// accumulators are a store each, and each of the 128 entries of a tile is read
// by four warps from 8. With a norm, a row of 1088 columns is stored by 136
// threads, in quarter warps of 8, and read by every warp: of each step of 32
// columns one load, four quarters, of which as many take part as have tokens.
TEST_F(LinearTest, BanksOfSkinnyKernels) {
  simt::emulator::CurrentOptions() = {.counts_shared = true};
  LinearProblem plain({.num_tokens = 3, .rows = 16, .cols = 1088});
  ASSERT_TRUE(plain.Run());
  EXPECT_EQ(simt::emulator::CurrentCounts().num_shared, 8 * 4 + 4 * 8);
  EXPECT_EQ(simt::emulator::CurrentCounts().num_shared_passes, 8 * 4 + 4 * 8);
  LinearProblem normed(
      {.num_tokens = 5, .rows = 48, .cols = 1088, .num_norm_ctas = 1});
  ASSERT_TRUE(normed.Run());
  const uint64_t wanted = 3 * (8 * 4 + 4 * 8) + 5 * (136 / 8) +
                          3 * (1088 / 32) * 3;  // Tokens 0, 1; 2, 3; 4.
  EXPECT_EQ(simt::emulator::CurrentCounts().num_shared, wanted);
  EXPECT_EQ(simt::emulator::CurrentCounts().num_shared_passes, wanted);
}

// Nor has the tiled one. cp.async, by quarter warps: 2 steps of 2 x 128 rows of
// 4 chunks. The sums: 8 warps x 2 halves, each stored in 16 pairs of a lane, by
// half warps, and loaded in 32 words of a lane.
TEST_F(LinearTest, BanksOfTiles) {
  simt::emulator::CurrentOptions() = {.counts_shared = true};
  const simt::emulator::Counts& counts = simt::emulator::CurrentCounts();
  LinearProblem tiled({.kernel = LinearKernel::kTiled,
                       .num_tokens = 128,
                       .rows = 128,
                       .cols = 64});
  ASSERT_TRUE(tiled.Run());
  EXPECT_EQ(counts.num_shared, 2 * 2 * 128 * 4 / 8 + 8 * 2 * (16 * 2 + 32));
  EXPECT_EQ(counts.num_shared_passes, counts.num_shared);
  LinearProblem gated({.kernel = LinearKernel::kTiled,
                       .num_tokens = 70,
                       .rows = 160,
                       .cols = 72,
                       .activation = LinearActivation::kSwiGlu});
  ASSERT_TRUE(gated.Run());
  EXPECT_GT(counts.num_shared, 0);
  EXPECT_EQ(counts.num_shared_passes, counts.num_shared);
}

TEST_F(LinearTest, RefusesWhatItCannotDo) {
  EXPECT_FALSE(LinearProblem({.num_tokens = 9, .num_norm_ctas = 1}).Run());
  EXPECT_FALSE(LinearProblem({.num_tokens = 65}).Run());
  EXPECT_FALSE(LinearProblem({.cols = 12}).Run());
  EXPECT_FALSE(
      LinearProblem({.kernel = LinearKernel::kTiled, .cols = 12}).Run());
  EXPECT_FALSE(
      LinearProblem({.rows = 24, .activation = LinearActivation::kSwiGlu})
          .Run());
}

}  // namespace
}  // namespace quire::cuda
