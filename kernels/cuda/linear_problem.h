// A linear layer on the emulation, and its error.
#ifndef QUIRE_KERNELS_CUDA_LINEAR_PROBLEM_H_
#define QUIRE_KERNELS_CUDA_LINEAR_PROBLEM_H_

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "engine/base/random.h"
#include "engine/base/status.h"
#include "kernels/cuda/linear.h"
#include "kernels/cuda/simt/emulator.h"

namespace quire::cuda {

enum class LinearKernel : uint8_t { kSkinny, kTiled };

struct LinearCase {
  LinearKernel kernel = LinearKernel::kSkinny;
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
  // Skinny: x is normed in the kernel by so many CTAs; 0: x as it is.
  int num_norm_ctas = 0;
  NormArguments::Kind norm_kind = NormArguments::Kind::kRms;
  bool has_norm_residual = false;
  // Of the norm's input: its rows in another order.
  bool has_norm_rows = false;
  // The kernel starts before its predecessor has written x; what it must not
  // write, but does: the weights, those of the norm.
  bool is_early = false;
  bool has_late_weight = false, has_late_norm_weight = false;
};

inline uint16_t ToBits(DType dtype, float value) {
  return dtype == DType::kBF16 ? FloatToBf16(value) : FloatToHalf(value);
}
inline float ToFloat(DType dtype, uint16_t bits) {
  return dtype == DType::kBF16 ? Bf16ToFloat(bits) : HalfToFloat(bits);
}

class LinearProblem {
 public:
  explicit LinearProblem(const LinearCase& c) : case_(c) {
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
    if (c.num_norm_ctas > 0) MakeNorm();
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
    if (case_.num_norm_ctas > 0) return RunNormed(arguments);
    if (case_.is_early) return RunEarly(arguments);
    return case_.kernel == LinearKernel::kSkinny
               ? LaunchSkinnyLinear(arguments, nullptr)
               : LaunchTiledLinear(arguments, nullptr);
  }
  // x is what the norm gave.
  void ForgetNorm() { case_.num_norm_ctas = 0; }
  // With a norm: what it wrote of x + residual, and what LaunchNorm writes.
  const std::vector<uint16_t>& sum() const { return sum_; }
  const std::vector<uint16_t>& expected_sum() const { return expected_sum_; }

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
        } else if (case_.activation == LinearActivation::kGeluErf) {
          value = GeluErf(value);
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
  static double GeluErf(double x) {
    return 0.5 * x * std::erfc(-x / std::sqrt(2));
  }
  double Gate(double x) const {
    switch (case_.activation) {
      case LinearActivation::kSwiGlu:
        return x / (1 + std::exp(-x));
      case LinearActivation::kGeGluErf:
        return GeluErf(x);
      default:
        return Gelu(x);
    }
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

  // x becomes what LaunchNorm makes of another one.
  void MakeNorm() {
    SimulationRandom random(9);
    const int64_t size = int64_t{case_.num_tokens} * case_.cols;
    for (std::vector<uint16_t>* bits : {&norm_x_, &norm_residual_}) {
      bits->resize(size);
      for (uint16_t& x : *bits) {
        x = ToBits(case_.dtype, static_cast<float>(random.Uniform() * 4 - 2));
      }
    }
    for (std::vector<float>* floats : {&norm_weight_, &norm_bias_}) {
      floats->resize(case_.cols);
      for (float& f : *floats) f = static_cast<float>(random.Uniform() * 2 - 1);
    }
    for (int t = 0; t < case_.num_tokens; ++t) {
      norm_rows_.push_back(case_.num_tokens - 1 - t);
    }
    sum_.assign(size, 0xffff);
    expected_sum_ = sum_;
    norm_ = {.dtype = case_.dtype,
             .kind = case_.norm_kind,
             .weight = norm_weight_.data(),
             .bias = norm_bias_.data(),
             .weight_offset = 0.5f,
             .x = norm_x_.data(),
             .residual_out = expected_sum_.data(),
             .out = x_.data(),
             .rows = case_.has_norm_rows ? norm_rows_.data() : nullptr,
             .num_tokens = case_.num_tokens,
             .cols = case_.cols};
    if (case_.has_norm_residual) norm_.residual = norm_residual_.data();
    const simt::emulator::Options options = simt::emulator::CurrentOptions();
    simt::emulator::CurrentOptions() = {};
    QUIRE_CHECK(LaunchNorm(norm_, nullptr));
    simt::emulator::CurrentOptions() = options;
    norm_.residual_out = sum_.data();
    norm_.out = nullptr;
  }

  bool RunNormed(LinearArguments& arguments) {
    arguments.x = nullptr;
    arguments.has_norm = true;
    arguments.norm = norm_;
    arguments.num_ctas = case_.num_norm_ctas;
    return case_.is_early ? RunEarly(arguments)
                          : LaunchSkinnyLinear(arguments, nullptr);
  }

  bool RunEarly(const LinearArguments& arguments) {
    simt::emulator::Queue queue;
    const LinearProblem written = *this;
    const auto spoil = [](auto& values) {
      std::memset(values.data(), 0xff, values.size() * sizeof(values[0]));
    };
    spoil(case_.num_norm_ctas > 0 ? norm_x_ : x_);
    if (case_.has_late_weight) spoil(weight_);
    if (case_.has_late_norm_weight) spoil(norm_weight_);
    if (!LaunchSkinnyLinear(arguments,
                            reinterpret_cast<simt::Stream>(&queue))) {
      return false;
    }
    const simt::emulator::QueueEntry& entry = queue.entries.front();
    const auto launch = simt::emulator::StartEarly(entry.shape, entry.body);
    // The predecessor, to the same addresses.
    std::copy(written.x_.begin(), written.x_.end(), x_.begin());
    std::copy(written.norm_x_.begin(), written.norm_x_.end(), norm_x_.begin());
    std::copy(written.weight_.begin(), written.weight_.end(), weight_.begin());
    std::copy(written.norm_weight_.begin(), written.norm_weight_.end(),
              norm_weight_.begin());
    simt::emulator::Finish(*launch);
    return simt::emulator::LastError().empty();
  }

  LinearCase case_;
  int out_cols_ = 0;
  NormArguments norm_;
  std::vector<uint16_t> norm_x_, norm_residual_, sum_, expected_sum_;
  std::vector<float> norm_weight_, norm_bias_;
  std::vector<int32_t> norm_rows_;
  std::vector<uint16_t> weight_, x_, residual_, out_;
  std::vector<float> bias_;
};

}  // namespace quire::cuda

#endif  // QUIRE_KERNELS_CUDA_LINEAR_PROBLEM_H_
