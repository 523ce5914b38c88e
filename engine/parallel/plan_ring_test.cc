#include "engine/parallel/plan_ring.h"

#include <thread>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "engine/base/random.h"
#include "engine/base/shared_memory.h"
#include "gtest/gtest.h"

namespace quire {
namespace {

std::string MessageOf(int number) {
  const uint64_t bits = MixBits(1, number);
  // Some are empty, most are small, some flow through the ring in pieces.
  const size_t size = number % 50 == 49 ? (bits % 5) << 20
                      : number % 7 == 0 ? 0
                                        : bits % 3000;
  std::string message(size, static_cast<char>(number));
  for (size_t i = 0; i < size; i += 97)
    message[i] = static_cast<char>(i + bits);
  return message;
}

TEST(PlanRingTest, EveryReaderReadsEverything) {
  constexpr int kNumMessages = 1000, kNumReaders = 3;
  auto memory = SharedMemory::Create(PlanRingBytes());
  ASSERT_TRUE(memory.ok());
  std::vector<std::thread> readers;
  std::vector<int> num_right(kNumReaders);
  for (int i = 0; i < kNumReaders; ++i) {
    readers.emplace_back([&, i] {
      PlanRingReader reader(memory->data(), i);
      std::string message;
      for (int number = 0; number < kNumMessages; ++number) {
        const auto has_read =
            reader.Read(&message, absl::Seconds(20), absl::Seconds(20));
        if (!has_read.ok() || !*has_read || message != MessageOf(number))
          return;
        ++num_right[i];
      }
    });
  }
  PlanRingWriter writer(memory->data(), kNumReaders);
  for (int number = 0; number < kNumMessages; ++number) {
    ASSERT_TRUE(writer.Write(MessageOf(number), absl::Seconds(20)).ok());
  }
  for (std::thread& reader : readers) reader.join();
  for (const int count : num_right) EXPECT_EQ(count, kNumMessages);
}

TEST(PlanRingTest, ReaderThatDoesNotReadIsNamed) {
  auto memory = SharedMemory::Create(PlanRingBytes());
  ASSERT_TRUE(memory.ok());
  PlanRingWriter writer(memory->data(), 2);
  PlanRingReader reader(memory->data(), 0);
  const std::string message(400000, 'x');
  std::string read;
  absl::Status status;
  while (status.ok()) {
    status = writer.Write(message, absl::Milliseconds(100));
    if (status.ok()) {
      EXPECT_TRUE(*reader.Read(&read, absl::Seconds(1), absl::Seconds(20)));
    }
  }
  EXPECT_TRUE(absl::IsUnavailable(status));
  EXPECT_TRUE(absl::StrContains(status.message(), "reader 1")) << status;
}

TEST(PlanRingTest, StopEndsAWriteThatWaits) {
  auto memory = SharedMemory::Create(PlanRingBytes());
  ASSERT_TRUE(memory.ok());
  PlanRingWriter writer(memory->data(), 1);
  ASSERT_TRUE(
      writer.Write(std::string(1 << 20, 'x').substr(4), absl::Seconds(1)).ok());
  std::thread stopper([&] { writer.Stop(); });
  EXPECT_TRUE(absl::IsUnavailable(writer.Write("y", absl::Seconds(100))));
  stopper.join();
}

// Half a plan is there while another reader holds up its writer.
TEST(PlanRingTest, PlanThatComesInTwoPartsIsWaitedFor) {
  auto memory = SharedMemory::Create(PlanRingBytes());
  ASSERT_TRUE(memory.ok());
  PlanRingReader reader(memory->data(), 0), slow(memory->data(), 1);
  const std::string message(3 << 20, 'x');
  std::thread writing([&] {
    PlanRingWriter writer(memory->data(), 2);
    EXPECT_TRUE(writer.Write(message, absl::Seconds(20)).ok());
  });
  std::string read, read_slowly;
  std::thread reading([&] {
    const auto has_read =
        reader.Read(&read, absl::Seconds(20), absl::Seconds(20));
    EXPECT_TRUE(has_read.ok()) << has_read.status();
  });
  // Longer than anybody waits for the beginning of a plan.
  absl::SleepFor(absl::Milliseconds(150));
  EXPECT_TRUE(
      slow.Read(&read_slowly, absl::Seconds(20), absl::Seconds(20)).ok());
  reading.join();
  writing.join();
  EXPECT_EQ(read, message);
  EXPECT_EQ(read_slowly, message);
}

TEST(PlanRingTest, NothingToReadIsNoError) {
  auto memory = SharedMemory::Create(PlanRingBytes());
  ASSERT_TRUE(memory.ok());
  PlanRingReader reader(memory->data(), 0);
  std::string message;
  EXPECT_FALSE(reader.HasMessage());
  EXPECT_FALSE(
      *reader.Read(&message, absl::Milliseconds(1), absl::Seconds(20)));
  PlanRingWriter writer(memory->data(), 1);
  ASSERT_TRUE(writer.Write("", absl::Seconds(1)).ok());
  EXPECT_TRUE(reader.HasMessage());
  EXPECT_TRUE(*reader.Read(&message, absl::Seconds(1), absl::Seconds(20)));
  EXPECT_EQ(message, "");
}

}  // namespace
}  // namespace quire
