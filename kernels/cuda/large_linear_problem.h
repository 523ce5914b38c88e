// Layers for the tests of LargeLinear, dense and in e4m3.
#ifndef QUIRE_KERNELS_CUDA_LARGE_LINEAR_PROBLEM_H_
#define QUIRE_KERNELS_CUDA_LARGE_LINEAR_PROBLEM_H_

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "engine/base/random.h"
#include "gtest/gtest.h"
#include "kernels/cuda/device_emulated.h"
#include "kernels/cuda/fake_matrix_library.h"
#include "kernels/cuda/large_linear.h"

namespace quire::cuda {

inline constexpr int kCols = 16;

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
inline void ExpectNear(const std::vector<float>& got,
                       const std::vector<float>& expected, DType dtype,
                       int num_cols = kCols) {
  ASSERT_EQ(got.size(), expected.size());
  // Sums of so many products of values of 1 at most, in another order, then one
  // rounding that may go to the other side.
  const double relative = dtype == DType::kBF16 ? 0x1p-7 : 0x1p-10;
  for (size_t i = 0; i < got.size(); ++i) {
    ASSERT_TRUE(std::abs(got[i] - expected[i]) <=
                relative * std::abs(expected[i]) +
                    num_cols * num_cols * 0x1p-23)
        << i << ": " << got[i] << " instead of " << expected[i];
  }
}

}  // namespace quire::cuda

#endif  // QUIRE_KERNELS_CUDA_LARGE_LINEAR_PROBLEM_H_
