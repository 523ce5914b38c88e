#include "kernels/cpu/matmul_problem.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "gtest/gtest.h"

namespace quire {
namespace {

using Activation = Epilogue::Activation;

constexpr float kGuard = 12345.0f;

double ReferenceActivation(Activation activation, double x) {
  switch (activation) {
    case Activation::kSwiGlu:
      return x / (1 + std::exp(-x));
    case Activation::kGeGlu:
    case Activation::kGelu:
      return 0.5 * x *
             (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
    case Activation::kGeGluErf:
    case Activation::kGeluErf:
      return 0.5 * x * std::erfc(-x / std::sqrt(2));
    case Activation::kRelu:
      return std::isnan(x) ? x : std::max(x, 0.0);
    case Activation::kNone:
      break;
  }
  return x;
}

}  // namespace

float RandomInput(SimulationRandom& random) {
  return static_cast<float>(2 * random.Uniform() - 1);
}

void MatmulProblem::AddPart(const WeightPart& part,
                            absl::Span<const float> values,
                            absl::Span<const float> magnitude) {
  spec_.parts.push_back(part);
  num_channels_ += part.rows();
  values_.insert(values_.end(), values.begin(), values.end());
  magnitude_.insert(magnitude_.end(), magnitude.begin(), magnitude.end());
  for (size_t i = magnitude.size(); i < values.size(); ++i) {
    magnitude_.push_back(std::abs(values[i]));
  }
}

void MatmulProblem::Draw(SimulationRandom& random) {
  spec_.kind = case_.kind;
  bias_.resize(num_channels_);
  for (float& b : bias_) b = RandomInput(random);
  if (case_.has_bias) {
    spec_.bias = TensorView::Vector(bias_.data(), DType::kF32, num_channels_);
  }
  out_cols_ = IsGated(case_.activation) ? num_channels_ / 2 : num_channels_;
  x_stride_ = case_.cols + 3;
  out_stride_ = out_cols_ + 5;
  x_.resize(case_.num_rows * x_stride_ + 1);
  for (float& v : x_) v = RandomInput(random);
  out_.assign(case_.num_rows * out_stride_ + 1, kGuard);
  residual_.resize(out_.size());
  for (float& v : residual_) v = RandomInput(random);
}

void MatmulProblem::Check(Isa isa, ThreadPool& pool) {
  SCOPED_TRACE(testing::Message()
               << IsaName(isa) << " " << Name() << ", " << num_channels_
               << " x " << case_.cols << ", " << case_.num_rows << " rows");
  ASSERT_NO_FATAL_FAILURE(Pack(isa, pool));
  Multiply(isa, pool);
  CheckOutput(isa);
}

void MatmulProblem::Pack(Isa isa, ThreadPool& pool) {
  auto packed = PackMatrix(spec_, isa, pool);
  ASSERT_TRUE(packed.ok()) << packed.status();
  packed_ = *std::move(packed);
  const int64_t cols = case_.cols;
  EXPECT_EQ(packed_->rows, num_channels_);
  EXPECT_EQ(packed_->cols, cols);
  EXPECT_EQ(packed_->kind, case_.kind);
  CheckPacked(*packed_);
  std::vector<float> unpacked(cols + 1);
  for (int64_t row = 0; row < num_channels_; ++row) {
    UnpackRow(*packed_, row, unpacked.data());
    for (int64_t col = 0; col < cols; ++col) {
      ASSERT_EQ(unpacked[col], values_[row * cols + col])
          << "row " << row << " col " << col;
    }
  }
}

void MatmulProblem::Multiply(Isa isa, ThreadPool& pool) {
  MatmulParams params;
  params.x = x_.data();
  params.x_stride = x_stride_;
  params.num_rows = case_.num_rows;
  params.out = out_.data();
  params.out_stride = out_stride_;
  params.activation = case_.activation;
  params.out_scale = case_.out_scale;
  if (case_.has_residual) {
    params.residual = residual_.data();
    params.residual_stride = out_stride_;
  }
  MatmulScratch scratch(case_.num_rows, case_.cols);
  Matmul(pool, isa, *packed_, params, scratch);
}

double MatmulProblem::Dot(absl::Span<const double> x, int64_t channel,
                          double* tolerance) const {
  double sum = case_.has_bias ? bias_[channel] : 0.0;
  double sum_abs = std::abs(sum);
  const int64_t begin = channel * case_.cols;
  for (int64_t k = 0; k < case_.cols; ++k) {
    sum += x[k] * values_[begin + k];
    sum_abs += std::abs(x[k]) * magnitude_[begin + k];
  }
  *tolerance = DotTolerance(sum_abs);
  return sum;
}

double MatmulProblem::Expected(int64_t row, absl::Span<const double> x,
                               int64_t channel, double* tolerance) const {
  double expected = Dot(x, channel, tolerance);
  if (case_.activation != Activation::kNone) {
    expected = ReferenceActivation(case_.activation, expected);
    // The slope of silu is below 1.1, that of gelu below 1.13; a few ulp of
    // their own.
    const double slope = case_.activation == Activation::kSwiGlu ? 1.1 : 1.13;
    *tolerance = slope * *tolerance + 8 * kF32Roundoff * std::abs(expected);
  }
  if (IsGated(case_.activation)) {
    double up_tolerance = 0;
    const double up = Dot(x, num_channels_ / 2 + channel, &up_tolerance);
    *tolerance = *tolerance * (std::abs(up) + up_tolerance) +
                 up_tolerance * std::abs(expected);
    expected *= up;
  }
  expected *= case_.out_scale;
  *tolerance = *tolerance * std::abs(case_.out_scale) +
               kF32Roundoff * std::abs(expected);
  if (case_.has_residual) expected += residual_[row * out_stride_ + channel];
  *tolerance += 2 * kF32Roundoff * std::abs(expected);
  return expected;
}

void MatmulProblem::CheckOutput(Isa isa) const {
  for (int64_t r = 0; r < case_.num_rows; ++r) {
    const std::vector<double> x =
        RoundedX(absl::MakeConstSpan(x_).subspan(r * x_stride_, case_.cols));
    for (int64_t j = 0; j < out_cols_; ++j) {
      double tolerance = 0;
      const double expected = Expected(r, x, j, &tolerance);
      const float got = out_[r * out_stride_ + j];
      ASSERT_TRUE(std::abs(got - expected) <= tolerance)
          << "row " << r << ", channel " << j << ": " << got << " vs "
          << expected << " +- " << tolerance;
    }
    for (int64_t j = out_cols_; j < out_stride_; ++j) {
      ASSERT_EQ(out_[r * out_stride_ + j], kGuard) << "beside row " << r;
    }
  }
}

}  // namespace quire
