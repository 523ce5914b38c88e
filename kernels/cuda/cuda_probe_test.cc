#include "kernels/cuda/cuda_probe.h"

#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <set>
#include <utility>
#include <vector>

#include "engine/base/status.h"
#include "gtest/gtest.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/probe_kernels.h"
#include "kernels/dtype.h"

namespace quire::cuda {
namespace {

// Counts what it is asked to multiply; algorithm a takes seconds[a].
class TimedLibrary : public MatrixLibrary {
 public:
  TimedLibrary(std::vector<double> seconds, int64_t* size)
      : seconds_(std::move(seconds)), size_(size) {}
  std::string name() const override { return "timed"; }
  std::vector<MatrixAlgorithm> FindAlgorithms(const MatrixProblem& problem,
                                              int64_t max_workspace_bytes,
                                              int max_count) override {
    EXPECT_GT(max_workspace_bytes, 0);
    EXPECT_EQ(problem.dtype, DType::kBF16);
    *size_ = problem.rows;
    std::vector<MatrixAlgorithm> algorithms;
    for (size_t a = 0; a < seconds_.size() && static_cast<int>(a) < max_count;
         ++a) {
      algorithms.emplace_back().data[0] = a;
    }
    return algorithms;
  }
  bool Supports(const MatrixProblem&, const MatrixAlgorithm&,
                int64_t) override {
    return true;
  }
  absl::Status Multiply(const MatrixProblem& problem,
                        const MatrixAlgorithm& algorithm,
                        const MatrixOperands& operands, simt::Stream) override {
    // Within the probe's memory, apart from each other; random, not zero.
    const auto* x = static_cast<const uint16_t*>(operands.x);
    const auto* weight = static_cast<const uint16_t*>(operands.weight);
    const int64_t count = problem.rows * problem.cols;
    EXPECT_GE(x - weight, count);
    EXPECT_GE(static_cast<const uint16_t*>(operands.out) - x, count);
    std::set<float> values;
    for (int64_t i = 0; i < count; i += count / 64) {
      for (const uint16_t bits : {x[i], weight[i]}) {
        const float value = Bf16ToFloat(bits);
        EXPECT_GE(std::abs(value), 0.5f);
        EXPECT_LT(std::abs(value), 1.0f);
        values.insert(value);
      }
    }
    EXPECT_GT(values.size(), 64u);
    algorithm_ = algorithm.data[0];
    return absl::OkStatus();
  }
  absl::StatusOr<double> MeasureSeconds(
      absl::FunctionRef<absl::Status()> enqueue, simt::Stream) override {
    QUIRE_RETURN_IF_ERROR(enqueue());
    return seconds_[algorithm_];
  }

 private:
  uint64_t algorithm_ = 0;
  const std::vector<double> seconds_;
  int64_t* const size_;
};

// Sizes that end within the unrolled part, and CTAs without work.
TEST(ProbeKernelsTest, ReadAndCopyEveryWordOnce) {
  const auto device = *CreateDevice(0);
  for (const int64_t num_units : {1, 3, 511, 2048, 8191, 8192, 12289}) {
    SCOPED_TRACE(num_units);
    constexpr int kNumCtas = 3;
    auto from = *DeviceBuffer::Create(*device, 16 * num_units);
    auto to = *DeviceBuffer::Create(*device, 16 * num_units);
    auto out = *DeviceBuffer::Create(*device, 4 * kNumCtas);
    ASSERT_TRUE(
        LaunchRandomBf16(from.data(), num_units, kNumCtas, device->stream()));
    const ProbeArguments arguments = {from.data(), num_units, kNumCtas};
    ASSERT_TRUE(
        LaunchReadProbe(arguments, out.data<uint32_t>(), device->stream()));
    ASSERT_TRUE(LaunchCopyProbe(arguments, to.data(), device->stream()));
    ASSERT_TRUE(device->Synchronize().ok());
    EXPECT_EQ(std::memcmp(from.data(), to.data(), 16 * num_units), 0);
    uint32_t expected = 0, found = 0;
    for (int64_t i = 0; i < 4 * num_units; ++i) {
      expected ^= from.data<uint32_t>()[i];
    }
    for (int i = 0; i < kNumCtas; ++i) found ^= out.data<uint32_t>()[i];
    EXPECT_EQ(found, expected);
  }
}

TEST(CudaProbeTest, MeasuresMemoryAndTheFastestProduct) {
  const auto device = *CreateDevice(0);
  int64_t size = 0;
  const auto probe = NewCudaProbe(
      *device,
      [&size]() -> absl::StatusOr<std::unique_ptr<MatrixLibrary>> {
        return std::make_unique<TimedLibrary>(std::vector<double>{3, 2, 4},
                                              &size);
      },
      int64_t{33} << 20);
  ASSERT_TRUE(probe.ok()) << probe.status();
  for (const auto& bandwidth :
       {(*probe)->ReadBandwidth(), (*probe)->CopyBandwidth()}) {
    ASSERT_TRUE(bandwidth.ok()) << bandwidth.status();
    EXPECT_GT(*bandwidth, 0);
  }
  const auto peak = (*probe)->Bf16Peak();
  ASSERT_TRUE(peak.ok()) << peak.status();
  EXPECT_EQ(size, 256);                  // What fits beside the workspace.
  EXPECT_EQ(*peak, std::pow(256.0, 3));  // 2 n^3 in 2 s.
}

TEST(CudaProbeTest, WithoutALibraryOrMemoryItSaysSo) {
  auto backend = *CudaBackend::Create({});
  const int64_t free_before = *backend->FreeDeviceBytes();
  {
    const auto probe = backend->NewProbe(1 << 16);
    ASSERT_TRUE(probe.ok()) << probe.status();
    EXPECT_GT(*(*probe)->ReadBandwidth(), 0);
    EXPECT_EQ((*probe)->Bf16Peak().status().code(),
              absl::StatusCode::kUnimplemented);
    EXPECT_LT(*backend->FreeDeviceBytes(), free_before);
  }
  EXPECT_EQ(*backend->FreeDeviceBytes(), free_before);
  EXPECT_EQ(backend->NewProbe(int64_t{1} << 40).status().code(),
            absl::StatusCode::kResourceExhausted);
}

}  // namespace
}  // namespace quire::cuda
