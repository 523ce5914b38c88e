#include "kernels/cuda/linear.h"

#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "engine/base/random.h"
#include "gtest/gtest.h"
#include "kernels/cuda/simt/emulator.h"

namespace quire::cuda {
namespace {

enum class Kernel : uint8_t { kSkinny, kTiled };

struct Case {
  Kernel kernel = Kernel::kSkinny;
  DType dtype = DType::kBF16;
  int num_tokens = 1;
  int rows = 16;
  int cols = 64;
  LinearActivation activation = LinearActivation::kNone;
  bool has_bias = false;
  bool has_residual = false;
  bool is_out_f32 = false;
  float scale = 1.0f;
  float softcap = 0.0f;
};

uint16_t ToBits(DType dtype, float value) {
  return dtype == DType::kBF16 ? FloatToBf16(value) : FloatToHalf(value);
}
float ToFloat(DType dtype, uint16_t bits) {
  return dtype == DType::kBF16 ? Bf16ToFloat(bits) : HalfToFloat(bits);
}

class Problem {
 public:
  explicit Problem(const Case& c) : case_(c) {
    SimulationRandom random(c.rows * 1000 + c.cols);
    const auto fill = [&](std::vector<uint16_t>& bits, int64_t count) {
      bits.resize(count);
      for (uint16_t& x : bits) {
        x = ToBits(c.dtype, static_cast<float>(random.Uniform() * 2 - 1));
      }
    };
    fill(weight_, int64_t{c.rows} * c.cols);
    bias_.resize(c.rows);
    for (float& b : bias_) b = static_cast<float>(random.Uniform() * 2 - 1);
    // Token by token, so that a token has the same values in every batch.
    fill(x_, int64_t{c.num_tokens} * c.cols);
    out_cols_ = IsGated(c.activation) ? c.rows / 2 : c.rows;
    SimulationRandom residual_random(7);
    residual_.resize(int64_t{c.num_tokens} * out_cols_);
    for (uint16_t& x : residual_) {
      x = ToBits(c.dtype,
                 static_cast<float>(residual_random.Uniform() * 2 - 1));
    }
    out_.assign(int64_t{c.num_tokens} * out_cols_ * 2, 0xffff);
  }

  bool Run() {
    LinearArguments arguments;
    arguments.dtype = case_.dtype;
    arguments.weight = weight_.data();
    arguments.x = x_.data();
    arguments.x_stride = case_.cols;
    arguments.out = out_.data();
    arguments.out_stride = out_cols_;
    arguments.num_tokens = case_.num_tokens;
    arguments.rows = case_.rows;
    arguments.cols = case_.cols;
    if (case_.has_bias) arguments.epilogue.bias = bias_.data();
    if (case_.has_residual) {
      arguments.epilogue.residual = residual_.data();
      arguments.epilogue.residual_stride = out_cols_;
    }
    arguments.epilogue.activation = case_.activation;
    arguments.epilogue.is_out_f32 = case_.is_out_f32;
    arguments.epilogue.scale = case_.scale;
    arguments.epilogue.softcap = case_.softcap;
    simt::emulator::CurrentCounts() = {};
    return case_.kernel == Kernel::kSkinny
               ? LaunchSkinnyLinear(arguments, nullptr)
               : LaunchTiledLinear(arguments, nullptr);
  }

  float Out(int token, int column) const {
    const int64_t i = int64_t{token} * out_cols_ + column;
    if (!case_.is_out_f32) return ToFloat(case_.dtype, out_[i]);
    return reinterpret_cast<const float*>(out_.data())[i];
  }
  int out_cols() const { return out_cols_; }

  // Largest error in units of the allowed one: cols roundings of the f32 sum
  // (each within 2^-24 of the sum of magnitudes, whatever the order), a few of
  // the epilogue, one of the output.
  double WorstError() const {
    double worst = 0;
    for (int t = 0; t < case_.num_tokens; ++t) {
      for (int j = 0; j < out_cols_; ++j) {
        const bool is_gated = IsGated(case_.activation);
        const int row = is_gated ? j / 8 * 16 + j % 8 : j;
        double magnitude = 0;
        double value = Product(t, row, magnitude);
        double slope = 1;
        if (is_gated) {
          double up_magnitude = 0;
          const double up = Product(t, row + 8, up_magnitude);
          const double gate = value;
          value = Gate(gate) * up;
          // Both factors carry the error of their sums; |gate'| < 1.2.
          slope = 1.2 * std::fabs(up) + std::fabs(gate) + 1;
          magnitude = std::max(magnitude, up_magnitude);
        } else if (case_.activation == LinearActivation::kGelu) {
          value = Gelu(value);
          slope = 1.2;
        } else if (case_.activation == LinearActivation::kRelu) {
          value = std::max(value, 0.0);
        }
        value *= case_.scale;
        slope *= case_.scale;
        if (case_.has_residual) {
          value += ToFloat(case_.dtype, residual_[int64_t{t} * out_cols_ + j]);
        }
        if (case_.softcap > 0) {
          value = case_.softcap * std::tanh(value / case_.softcap);
        }
        const double unit_roundoff = case_.is_out_f32              ? 0x1p-24
                                     : case_.dtype == DType::kBF16 ? 0x1p-8
                                                                   : 0x1p-11;
        const double allowed = magnitude * slope * (case_.cols + 8) * 0x1p-24 +
                               std::fabs(value) * (unit_roundoff + 0x1p-20) +
                               0x1p-24;
        const double error = std::fabs(Out(t, j) - value) / allowed;
        if (!(error <= worst)) worst = error;
        if (std::isnan(worst)) return worst;
      }
    }
    return worst;
  }

 private:
  static double Gelu(double x) {
    return 0.5 * x *
           (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
  }
  double Gate(double x) const {
    return case_.activation == LinearActivation::kSwiGlu
               ? x / (1 + std::exp(-x))
               : Gelu(x);
  }
  double Product(int token, int row, double& magnitude) const {
    double sum = 0;
    for (int k = 0; k < case_.cols; ++k) {
      const double product =
          double{ToFloat(case_.dtype, x_[int64_t{token} * case_.cols + k])} *
          ToFloat(case_.dtype, weight_[int64_t{row} * case_.cols + k]);
      sum += product;
      magnitude += std::fabs(product);
    }
    if (case_.has_bias) {
      sum += bias_[row];
      magnitude += std::fabs(bias_[row]);
    }
    return sum;
  }

  Case case_;
  int out_cols_ = 0;
  std::vector<uint16_t> weight_, x_, residual_, out_;
  std::vector<float> bias_;
};

class LinearTest : public ::testing::Test {
 protected:
  void TearDown() override { simt::emulator::CurrentOptions() = {}; }
  static void ExpectRight(const Case& c, const std::string& name) {
    Problem problem(c);
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
      ExpectRight(
          {.kernel = Kernel::kTiled, .num_tokens = 19, .rows = 40, .cols = 232},
          "tiled");
      ExpectRight({.kernel = Kernel::kTiled,
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
    ExpectRight({.kernel = Kernel::kTiled,
                 .num_tokens = num_tokens,
                 .rows = 37,
                 .cols = 40},
                "tiled, tokens " + std::to_string(num_tokens));
  }
  for (const int cols : {8, 24, 32, 96, 104, 136, 1000}) {
    for (const DType dtype : {DType::kBF16, DType::kF16}) {
      ExpectRight({.kernel = Kernel::kTiled,
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
  for (const Kernel kernel : {Kernel::kSkinny, Kernel::kTiled}) {
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
  Problem alone({.num_tokens = 1, .rows = 16, .cols = 2056});
  ASSERT_TRUE(alone.Run());
  for (const int num_tokens : {8, 11, 30, 64}) {
    Problem together({.num_tokens = num_tokens, .rows = 16, .cols = 2056});
    ASSERT_TRUE(together.Run());
    for (int column = 0; column < 16; ++column) {
      EXPECT_EQ(alone.Out(0, column), together.Out(0, column)) << num_tokens;
    }
  }
  Problem tiled({.kernel = Kernel::kTiled, .num_tokens = 1, .cols = 520});
  Problem tiles({.kernel = Kernel::kTiled, .num_tokens = 130, .cols = 520});
  ASSERT_TRUE(tiled.Run());
  ASSERT_TRUE(tiles.Run());
  for (int column = 0; column < 16; ++column) {
    EXPECT_EQ(tiled.Out(0, column), tiles.Out(0, column));
  }
}

TEST_F(LinearTest, RefusesWhatItCannotDo) {
  EXPECT_FALSE(Problem({.num_tokens = 65}).Run());
  EXPECT_FALSE(Problem({.cols = 12}).Run());
  EXPECT_FALSE(Problem({.kernel = Kernel::kTiled, .cols = 12}).Run());
  EXPECT_FALSE(
      Problem({.rows = 24, .activation = LinearActivation::kSwiGlu}).Run());
}

}  // namespace
}  // namespace quire::cuda
