// The emulated device: order and asynchrony, graphs, faults, and programmatic
// dependent launch, in which each planted bug must be seen.
#include "kernels/cuda/device.h"

#include <algorithm>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/cuda/device_emulated.h"
#include "kernels/cuda/simt/simt.h"

namespace quire::cuda {
namespace {

constexpr int kThreads = 64;
constexpr int kCount = 300;

enum class Bug : uint8_t {
  kNone,
  kReadsBeforeWait,
  kWritesBeforeWait,  // What the previous kernel still reads.
  kNeverWaits,
  kLaunchesNextFirst,
};

// to[i] = from[kCount - 1 - i] + 1: a CTA reads what another one wrote.
struct Arguments {
  const int32_t* from = nullptr;
  int32_t* to = nullptr;
  Bug bug = Bug::kNone;
};

SIMT_KERNEL(kThreads)
ReverseKernel(const Arguments a) {
  const int i = simt::CtaX() * kThreads + simt::ThreadX();
  const bool is_valid = i < kCount;
  int32_t early = 0;
  if (a.bug == Bug::kReadsBeforeWait && is_valid)
    early = a.from[kCount - 1 - i];
  if (a.bug == Bug::kWritesBeforeWait && is_valid) a.to[i] = -1;
  if (a.bug == Bug::kLaunchesNextFirst) simt::LaunchNext();
  if (a.bug != Bug::kNeverWaits) simt::WaitForPrevious();
  if (a.bug != Bug::kNeverWaits) simt::LaunchNext();
  if (!is_valid) return;
  a.to[i] =
      (a.bug == Bug::kReadsBeforeWait ? early : a.from[kCount - 1 - i]) + 1;
}

class DeviceTest : public testing::Test {
 protected:
  DeviceTest() : device_(*CreateDevice(0)) {
    for (DeviceBuffer& buffer : buffers_) {
      buffer = *DeviceBuffer::Create(*device_, kCount * 4);
    }
    values_.resize(kCount);
    std::iota(values_.begin(), values_.end(), 0);
  }

  // Upload, three kernels there and back between two buffers, download.
  void Enqueue(Bug bug) {
    ASSERT_TRUE(
        device_->CopyToDevice(buffers_[0].data(), values_.data(), kCount * 4)
            .ok());
    EnqueueKernels(bug);
    found_.assign(kCount, -7);
    ASSERT_TRUE(
        device_->CopyToHost(found_.data(), buffers_[1].data(), kCount * 4)
            .ok());
  }
  // Alternately 0 to 1 and 1 to 0; the result is in buffer 1. Buffer 0 is
  // overwritten by a kernel whose predecessor reads it.
  void EnqueueKernels(Bug bug) {
    for (int i = 0; i < 3; ++i) {
      ASSERT_TRUE(
          simt::Launch(&ReverseKernel,
                       {.num_ctas_x = (kCount + kThreads - 1) / kThreads,
                        .num_threads = kThreads,
                        .waits_for_previous = true},
                       device_->stream(),
                       Arguments{buffers_[i % 2].data<const int32_t>(),
                                 buffers_[1 - i % 2].data<int32_t>(),
                                 i == 1 ? bug : Bug::kNone}));
    }
  }
  std::vector<int32_t> Expected() const {
    std::vector<int32_t> expected(kCount);
    for (int i = 0; i < kCount; ++i) expected[i] = kCount - 1 - i + 3;
    return expected;
  }

  const std::unique_ptr<Device> device_;
  DeviceBuffer buffers_[2];
  std::vector<int32_t> values_, found_;
};

TEST_F(DeviceTest, NothingRunsBeforeSomebodyWaits) {
  Enqueue(Bug::kNone);
  auto event = *device_->CreateEvent();
  ASSERT_TRUE(device_->Record(*event).ok());
  EXPECT_FALSE(device_->HasHappened(*event));
  EXPECT_EQ(found_[0], -7);
  ASSERT_TRUE(device_->Wait(*event).ok());
  EXPECT_TRUE(device_->HasHappened(*event));
  EXPECT_EQ(found_, Expected());
}

TEST_F(DeviceTest, PinnedMemoryReusedBeforeItsCopyShowsAsWrongNumbers) {
  for (const bool waits : {false, true}) {
    auto staging = *DeviceBuffer::Create(*device_, kCount * 4,
                                         /*is_pinned=*/true);
    std::copy(values_.begin(), values_.end(), staging.data<int32_t>());
    auto event = *device_->CreateEvent();
    ASSERT_TRUE(
        device_->CopyToDevice(buffers_[0].data(), staging.data(), kCount * 4)
            .ok());
    ASSERT_TRUE(device_->Record(*event).ok());
    if (waits) {
      ASSERT_TRUE(device_->Wait(*event).ok());
    }
    std::fill_n(staging.data<int32_t>(), kCount, -1);
    ASSERT_TRUE(device_->Synchronize().ok());
    const auto* copied = buffers_[0].data<const int32_t>();
    EXPECT_EQ(std::equal(values_.begin(), values_.end(), copied), waits);
  }
}

TEST_F(DeviceTest, WrongOrderOfDependentLaunchShowsAsWrongNumbers) {
  for (const Bug bug : {Bug::kReadsBeforeWait, Bug::kWritesBeforeWait}) {
    Enqueue(bug);
    ASSERT_TRUE(device_->Synchronize().ok());
    EXPECT_NE(found_, Expected());
  }
  Enqueue(Bug::kNone);
  ASSERT_TRUE(device_->Synchronize().ok());
  EXPECT_EQ(found_, Expected());
}

TEST_F(DeviceTest, MissingWaitIsAnError) {
  Enqueue(Bug::kNeverWaits);
  const absl::Status status = device_->Synchronize();
  EXPECT_NE(status.message().find("returned without WaitForPrevious"),
            absl::string_view::npos)
      << status;
}

TEST_F(DeviceTest, LaunchingTheNextKernelTooEarlyIsAnError) {
  Enqueue(Bug::kLaunchesNextFirst);
  EXPECT_NE(device_->Synchronize().message().find("LaunchNext before"),
            absl::string_view::npos);
}

TEST_F(DeviceTest, GraphsRepeatWhatWasCaptured) {
  ASSERT_TRUE(device_->BeginCapture().ok());
  EnqueueKernels(Bug::kNone);
  const auto graph = device_->EndCapture();
  ASSERT_TRUE(graph.ok());
  for (int i = 0; i < 2; ++i) {
    values_[5] = 100 * i;
    ASSERT_TRUE(
        device_->CopyToDevice(buffers_[0].data(), values_.data(), kCount * 4)
            .ok());
    ASSERT_TRUE(device_->Launch(**graph).ok());
    found_.assign(kCount, -7);
    ASSERT_TRUE(
        device_->CopyToHost(found_.data(), buffers_[1].data(), kCount * 4)
            .ok());
    ASSERT_TRUE(device_->Synchronize().ok());
    std::vector<int32_t> expected = Expected();
    expected[kCount - 1 - 5] = 100 * i + 3;
    EXPECT_EQ(found_, expected);
  }
  FailCaptures(*device_, 1);
  ASSERT_TRUE(device_->BeginCapture().ok());
  EXPECT_FALSE(device_->EndCapture().ok());
  ASSERT_TRUE(device_->BeginCapture().ok());
  EXPECT_TRUE(device_->EndCapture().ok());
}

TEST_F(DeviceTest, FaultsStick) {
  InjectFault(*device_, 2);
  Enqueue(Bug::kNone);
  EXPECT_NE(device_->Synchronize().message().find("illegal address"),
            absl::string_view::npos);
  EXPECT_EQ(NumRunOf(*device_), 5);
  EXPECT_EQ(found_[0], -7);  // Nothing runs after it.
  EXPECT_FALSE(device_->CopyToHost(found_.data(), buffers_[0].data(), 4).ok());
  EXPECT_FALSE(device_->Synchronize().ok());
}

TEST_F(DeviceTest, MemoryIsLimitedAndCounted) {
  const int64_t before = device_->num_allocations();
  EXPECT_EQ(device_->Allocate(int64_t{9} << 30).status().code(),
            absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(device_->num_allocations(), before);
  EXPECT_EQ(device_->Memory()->free_bytes,
            device_->Memory()->total_bytes - 2 * kCount * 4);
  const auto pinned = *DeviceBuffer::Create(*device_, 1000, true);
  EXPECT_EQ(device_->num_allocations(), before + 1);
  EXPECT_EQ(NumPinnedBytesOf(*device_), 1000);
  EXPECT_EQ(device_->Memory()->free_bytes,
            device_->Memory()->total_bytes - 2 * kCount * 4);
}

}  // namespace
}  // namespace quire::cuda
