#include "benchmarks/kernel_rows.h"

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "gtest/gtest.h"
#include "kernels/cpu/cpu_backend.h"
#include "kernels/cuda/cuda_backend.h"

namespace quire {
namespace {

// A machine of known ceilings.
class FixedCeilings : public KernelCeilings {
 public:
  double Bandwidth() override { return 1e9; }
  const char* BandwidthName() const override { return "read"; }
  double Peak(Arithmetic) override { return 1e12; }
};

absl::StatusOr<std::unique_ptr<Backend>> NewCpu() {
  CpuBackendOptions options;
  options.threads.num_threads = 1;
  return CpuBackend::Create(options);
}

absl::StatusOr<std::unique_ptr<Backend>> NewEmulatedGpu() {
  return CudaBackend::Create(CudaBackendOptions());
}

struct Measured {
  std::vector<KernelRow> rows;
  std::vector<std::string> skipped;
};

class KernelRowsTest : public testing::Test {
 protected:
  KernelRowsTest() {
    plan_.new_backend = NewCpu;
    plan_.ceilings = &ceilings_;
    plan_.num_rows = {1, 3};
    plan_.repetitions = 2;
    plan_.rotation_bytes = 1 << 20;
    plan_.min_seconds = 0;
    shape_.hidden_size = 64;
    shape_.num_heads = 2;
    shape_.num_kv_heads = 1;
    shape_.head_dim = 64;
    shape_.intermediate_size = 96;
    shape_.vocab_size = 128;
  }

  Measured Measure() {
    Measured measured;
    const absl::Status status = MeasureKernels(
        plan_, "tiny", shape_,
        [&](const KernelRow& row) { measured.rows.push_back(row); },
        [&](const std::string& reason) { measured.skipped.push_back(reason); });
    EXPECT_TRUE(status.ok()) << status;
    return measured;
  }

  FixedCeilings ceilings_;
  KernelBenchPlan plan_;
  RandomModelShape shape_;
};

TEST_F(KernelRowsTest, MeasuresEveryOperation) {
  const Measured measured = Measure();
  EXPECT_EQ(measured.rows.size(), 2u * 6 + 6);
  EXPECT_TRUE(measured.skipped.empty());
  for (const KernelRow& row : measured.rows) {
    ASSERT_EQ(row.seconds.size(), 2u) << row.name;
    EXPECT_GT(row.bytes, 0) << row.name;
    // Percentages are of the ceilings above.
    EXPECT_NEAR(row.percent_of_bandwidth[0],
                100 * row.bytes / row.seconds[0] / 1e9,
                1e-6 * row.percent_of_bandwidth[0])
        << row.name;
    EXPECT_NEAR(row.percent_of_peak[0], 100 * row.flops / row.seconds[0] / 1e12,
                1e-6 * row.percent_of_peak[0])
        << row.name;
  }
}

TEST_F(KernelRowsTest, CountsBytesAndOperations) {
  plan_.filter = "down 3x";
  plan_.rotation_bytes = 1;  // One copy.
  const Measured measured = Measure();
  ASSERT_EQ(measured.rows.size(), 1u);
  EXPECT_EQ(measured.rows[0].name, "tiny down 3x64x96");
  EXPECT_EQ(measured.rows[0].bytes, 64 * 96 * 2);
  EXPECT_EQ(measured.rows[0].flops, 2.0 * 3 * 64 * 96);
}

TEST_F(KernelRowsTest, Formats) {
  plan_.format = QuantFormat::kQ8_0;
  plan_.filter = "gate_up 1x";
  Measured measured = Measure();
  ASSERT_EQ(measured.rows.size() + measured.skipped.size(), 1u);
  plan_.format = QuantFormat::kQ4_K;
  measured = Measure();
  ASSERT_EQ(measured.skipped.size(), 1u);
  EXPECT_TRUE(absl::StrContains(measured.skipped[0], "blocks of 256"))
      << measured.skipped[0];
}

TEST_F(KernelRowsTest, OnAnEmulatedGpu) {
  plan_.new_backend = NewEmulatedGpu;
  plan_.num_rows = {3};
  plan_.repetitions = 1;
  plan_.rotation_bytes = 1;
  for (const char* filter : {"qkv", "gate_up", "vocab", "norm"}) {
    plan_.filter = filter;
    EXPECT_EQ(Measure().rows.size(), 1u) << filter;
  }
  auto ceilings = NewDeviceCeilings(*NewEmulatedGpu(), 1 << 20);
  ASSERT_TRUE(ceilings.ok()) << ceilings.status();
  EXPECT_GT((*ceilings)->Bandwidth(), 0);
  EXPECT_GT((*ceilings)->CopyBandwidth(), 0);
  EXPECT_EQ((*ceilings)->Peak(Arithmetic::kBf16), 0);
}

}  // namespace
}  // namespace quire
