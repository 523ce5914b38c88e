#include "kernels/cuda/staged_copies.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/base/warning.h"
#include "gtest/gtest.h"
#include "kernels/cuda/device_emulated.h"

namespace quire::cuda {
namespace {

// Pieces of several chunks, and nearly three times as much as four of them
// hold: each is used again.
constexpr int64_t kPieceBytes = 512 << 10;
constexpr int64_t kRowBytes = 1000;
constexpr int64_t kNumRows = 11 * kPieceBytes / kRowBytes;

char ByteOf(int64_t row, int64_t i) {
  return static_cast<char>((row * 131 + i * 7) % 251);
}

absl::Status FillPattern(int64_t first, int64_t count, char* out) {
  for (int64_t i = 0; i < count * kRowBytes; ++i) {
    out[i] = ByteOf(first + i / kRowBytes, i % kRowBytes);
  }
  return absl::OkStatus();
}

class StagedCopiesTest : public testing::Test {
 protected:
  ~StagedCopiesTest() override {
    EmulatedOptions() = EmulatedDeviceOptions();
    SetWarningHandler(nullptr);
  }

  static bool IsPattern(const DeviceBuffer& memory) {
    std::string expected(kNumRows * kRowBytes, ' ');
    FillPattern(0, kNumRows, expected.data()).IgnoreError();
    return std::memcmp(memory.data(), expected.data(), expected.size()) == 0;
  }
  DeviceBuffer Allocate(int64_t num_bytes = kNumRows * kRowBytes) {
    return *DeviceBuffer::Create(*device_, num_bytes);
  }

  const std::unique_ptr<Device> device_ = *CreateDevice(0);
};

TEST_F(StagedCopiesTest, GivesTheSameBytesWithAnyNumberOfThreads) {
  for (const int num_threads : {0, 1, 2, 7}) {
    const DeviceBuffer memory = Allocate();
    StagedCopies copies(*device_, {num_threads, kPieceBytes});
    ASSERT_TRUE(
        copies.CopyRows(memory.data(), kNumRows, kRowBytes, FillPattern).ok());
    EXPECT_EQ(NumPinnedBytesOf(*device_), 4 * kPieceBytes);
    ASSERT_TRUE(copies.Finish().ok());
    EXPECT_TRUE(IsPattern(memory)) << num_threads;
    EXPECT_EQ(NumPinnedBytesOf(*device_), 0);
  }
}

TEST_F(StagedCopiesTest, SmallCopiesShareAPiece) {
  constexpr int kCount = 100;
  const DeviceBuffer memory = Allocate(kCount * 48);
  StagedCopies copies(*device_, {1, kPieceBytes});
  for (int i = 0; i < kCount; ++i) {
    std::string text = absl::StrCat("copy ", i);
    text.resize(40);
    ASSERT_TRUE(copies.Copy(memory.data() + i * 48, text.data(), 40).ok());
  }
  EXPECT_EQ(NumPinnedBytesOf(*device_), kPieceBytes);
  ASSERT_TRUE(copies.Finish().ok());
  for (int i = 0; i < kCount; ++i) {
    EXPECT_EQ(std::string(memory.data() + i * 48), absl::StrCat("copy ", i));
  }
}

TEST_F(StagedCopiesTest, GoesOnAfterFinish) {
  StagedCopies copies(*device_, {2, kPieceBytes});
  ASSERT_TRUE(copies.Finish().ok());
  for (int i = 0; i < 2; ++i) {
    const DeviceBuffer memory = Allocate();
    ASSERT_TRUE(
        copies.CopyRows(memory.data(), kNumRows, kRowBytes, FillPattern).ok());
    ASSERT_TRUE(copies.Finish().ok());
    EXPECT_TRUE(IsPattern(memory));
  }
}

TEST_F(StagedCopiesTest, RowsMayBeLargerThanPieces) {
  constexpr int64_t kSmallPiece = 256;
  const DeviceBuffer memory = Allocate();
  StagedCopies copies(*device_, {2, kSmallPiece});
  ASSERT_TRUE(copies.Copy(memory.data(), "some text", 9).ok());
  ASSERT_TRUE(
      copies.CopyRows(memory.data(), kNumRows, kRowBytes, FillPattern).ok());
  ASSERT_TRUE(copies.Finish().ok());
  EXPECT_TRUE(IsPattern(memory));
}

TEST_F(StagedCopiesTest, TellsTheFirstRowThatCannotBeFilled) {
  for (const int num_threads : {1, 2, 7}) {
    const DeviceBuffer memory = Allocate();
    StagedCopies copies(*device_, {num_threads, kPieceBytes});
    // In the middle, and two of them in one piece.
    const auto fill = [](int64_t first, int64_t count,
                         char* out) -> absl::Status {
      for (const int64_t bad : {2300, 2600}) {
        if (first <= bad && bad < first + count) {
          return absl::InvalidArgumentError(absl::StrCat("row ", bad));
        }
      }
      return FillPattern(first, count, out);
    };
    EXPECT_EQ(copies.CopyRows(memory.data(), kNumRows, kRowBytes, fill),
              absl::InvalidArgumentError("row 2300"));
    // Nothing is broken by it.
    ASSERT_TRUE(
        copies.CopyRows(memory.data(), kNumRows, kRowBytes, FillPattern).ok());
    ASSERT_TRUE(copies.Finish().ok());
    EXPECT_TRUE(IsPattern(memory));
  }
}

TEST_F(StagedCopiesTest, TellsErrorsOfTheDevice) {
  {
    const DeviceBuffer memory = Allocate();
    StagedCopies copies(*device_, {2, kPieceBytes});
    InjectFault(*device_, 2);
    const absl::Status status =
        copies.CopyRows(memory.data(), kNumRows, kRowBytes, FillPattern);
    EXPECT_EQ(status.code(), absl::StatusCode::kInternal) << status;
    EXPECT_EQ(copies.Finish().code(), absl::StatusCode::kInternal);
  }
  EXPECT_EQ(NumPinnedBytesOf(*device_), 0);
}

TEST_F(StagedCopiesTest, TellsAnErrorOfTheLastCopiesAtTheEnd) {
  const DeviceBuffer memory = Allocate();
  StagedCopies copies(*device_, {2, kPieceBytes});
  InjectFault(*device_, 0);
  ASSERT_TRUE(copies.Copy(memory.data(), "some text", 9).ok());
  EXPECT_EQ(copies.Finish().code(), absl::StatusCode::kInternal);
}

TEST_F(StagedCopiesTest, DoesWithoutPinnedMemory) {
  // None; and not enough for all pieces.
  for (const int64_t pinned_bytes : {int64_t{0}, 2 * kPieceBytes}) {
    std::vector<std::string> warnings;
    SetWarningHandler(
        [&](const std::string& text) { warnings.push_back(text); });
    EmulatedOptions().pinned_bytes = pinned_bytes;
    const DeviceBuffer memory = Allocate();
    StagedCopies copies(*device_, {2, kPieceBytes});
    ASSERT_TRUE(
        copies.CopyRows(memory.data(), kNumRows, kRowBytes, FillPattern).ok());
    EXPECT_EQ(NumPinnedBytesOf(*device_), pinned_bytes);
    ASSERT_TRUE(copies.Finish().ok());
    EXPECT_TRUE(IsPattern(memory));
    ASSERT_EQ(warnings.size(), 1);
    EXPECT_NE(warnings[0].find("pageable memory"), std::string::npos);
    EXPECT_NE(warnings[0].find("cannot pin"), std::string::npos);
  }
}

}  // namespace
}  // namespace quire::cuda
