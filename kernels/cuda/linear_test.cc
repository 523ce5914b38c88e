#include "kernels/cuda/linear.h"

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
         {kNone, kSwiGlu, kGeGlu, kGelu, kRelu}) {
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

TEST_F(LinearTest, RefusesWhatItCannotDo) {
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
