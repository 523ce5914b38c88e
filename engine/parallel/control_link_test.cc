#include "engine/parallel/control_link.h"

#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <thread>

#include "absl/time/clock.h"
#include "engine/base/clock.h"
#include "gtest/gtest.h"

namespace quire {
namespace {

struct Pair {
  OwnedFd a, b;
  Pair() {
    int fds[2];
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, fds) != 0) return;
    a = OwnedFd(fds[0]);
    b = OwnedFd(fds[1]);
  }
};

absl::Time Soon() { return Clock::Monotonic()->Now() + absl::Seconds(10); }

TEST(ControlLinkTest, MessagesArriveInOrderAndWhole) {
  Pair pair;
  ControlLink from(std::move(pair.a)), to(std::move(pair.b));
  const std::string large(3 << 20, 'x');  // More than the socket holds.
  std::thread sender([&] {
    EXPECT_TRUE(from.Send(MessageType::kHello, "hi", absl::Seconds(10)).ok());
    EXPECT_TRUE(from.Send(MessageType::kPlan, large, absl::Seconds(10)).ok());
    EXPECT_TRUE(from.Send(MessageType::kJoined, "", absl::Seconds(10)).ok());
  });
  auto message = to.Receive(1 << 10, Soon());
  ASSERT_TRUE(message.ok());
  EXPECT_EQ(message->type, MessageType::kHello);
  EXPECT_EQ(message->body, "hi");
  message = to.Receive(4 << 20, Soon());
  ASSERT_TRUE(message.ok());
  EXPECT_EQ(message->body, large);
  message = to.Receive(0, Soon());
  ASSERT_TRUE(message.ok());
  EXPECT_EQ(message->type, MessageType::kJoined);
  sender.join();
  EXPECT_FALSE(to.HasMessage());
  EXPECT_TRUE(absl::IsDeadlineExceeded(
      to.Receive(10, Clock::Monotonic()->Now()).status()));
}

TEST(ControlLinkTest, LengthsAndForeignBytesAreRefused) {
  {
    Pair pair;
    ControlLink from(std::move(pair.a)), to(std::move(pair.b));
    ASSERT_TRUE(from.Send(MessageType::kHello, "12345", absl::Seconds(1)).ok());
    EXPECT_TRUE(absl::IsDataLoss(to.Receive(4, Soon()).status()));
  }
  Pair pair;
  ControlLink to(std::move(pair.b));
  ASSERT_EQ(write(pair.a.get(), "GET / HTTP/1.1\r\n\r\n", 18), 18);
  EXPECT_TRUE(absl::IsDataLoss(to.Receive(1000, Soon()).status()));
}

TEST(ControlLinkTest, PartOfAMessageIsNoMessage) {
  Pair pair;
  ControlLink to(std::move(pair.b));
  ASSERT_EQ(write(pair.a.get(), "QUIL", 4), 4);
  EXPECT_TRUE(absl::IsDataLoss(to.Receive(1000, Soon()).status()));
}

// Who sends a byte now and then holds nobody up for longer than one that sends
// nothing.
TEST(ControlLinkTest, MessageThatTricklesIsGivenUp) {
  Pair pair;
  ControlLink to(std::move(pair.b));
  const uint32_t head[] = {0x4c495551, 1, 1000, 0};
  ASSERT_EQ(write(pair.a.get(), head, sizeof(head)), ssize_t{sizeof(head)});
  EXPECT_FALSE(to.HasWholeHello());
  std::atomic<bool> is_done = false;
  std::thread trickle([&] {
    for (int i = 0; i < 1000 && !is_done; ++i) {
      if (write(pair.a.get(), "x", 1) != 1) return;
      absl::SleepFor(absl::Milliseconds(5));
    }
  });
  EXPECT_TRUE(absl::IsDataLoss(
      to.Receive(1000, Soon(), absl::Milliseconds(200)).status()));
  is_done = true;
  trickle.join();
}

TEST(ControlLinkTest, WholeHelloNeedNotBeWaitedFor) {
  Pair pair;
  ControlLink from(std::move(pair.a)), to(std::move(pair.b));
  EXPECT_FALSE(to.HasWholeHello());
  ASSERT_TRUE(from.Send(MessageType::kHello, "hi", absl::Seconds(1)).ok());
  EXPECT_TRUE(to.HasWholeHello());
  EXPECT_EQ(to.Receive(10, absl::InfinitePast())->body, "hi");
  EXPECT_FALSE(to.HasWholeHello());
  // What is too long is to be refused at once.
  ASSERT_TRUE(from.Send(MessageType::kHello,
                        std::string(kMaxHelloBytes + 1, 'x'), absl::Seconds(1))
                  .ok());
  EXPECT_TRUE(to.HasWholeHello());
}

TEST(ControlLinkTest, EndOfTheConnectionIsSeenBeforeItIsRead) {
  Pair pair;
  auto from = std::make_unique<ControlLink>(std::move(pair.a));
  ControlLink to(std::move(pair.b));
  ASSERT_TRUE(from->Send(MessageType::kFailure, "why", absl::Seconds(1)).ok());
  EXPECT_FALSE(to.HasEnded());
  from.reset();
  EXPECT_TRUE(to.HasEnded());
  auto message = to.Receive(1000, Soon());
  ASSERT_TRUE(message.ok());
  EXPECT_EQ(message->body, "why");
  EXPECT_TRUE(absl::IsUnavailable(to.Receive(1000, Soon()).status()));
  EXPECT_TRUE(
      absl::IsUnavailable(to.Send(MessageType::kHello, "", absl::Seconds(1))));
}

TEST(ControlLinkTest, PeerThatTakesNothingIsAnError) {
  Pair pair;
  ControlLink from(std::move(pair.a));
  EXPECT_TRUE(absl::IsUnavailable(from.Send(
      MessageType::kPlan, std::string(16 << 20, 'x'), absl::Milliseconds(50))));
}

// Who must not wait sends what there is room for.
TEST(ControlLinkTest, TrySendWaitsForNobody) {
  Pair pair;
  ControlLink from(std::move(pair.a)), to(std::move(pair.b));
  int num_sent = 0;
  for (;;) {
    const auto is_sent = from.TrySend(MessageType::kHeartbeat, "");
    ASSERT_TRUE(is_sent.ok());
    if (!*is_sent) break;
    ASSERT_LT(++num_sent, 1 << 20);
  }
  EXPECT_GT(num_sent, 10);
  // All that was sent is whole.
  to.SkipHeartbeats();
  EXPECT_FALSE(to.HasMessage());
  EXPECT_EQ(to.NumBytesArrived(), 16 * num_sent);
  EXPECT_TRUE(*from.TrySend(MessageType::kFailure, "why"));
  EXPECT_EQ(to.TryReceive(100)->body, "why");
  EXPECT_FALSE(to.TryReceive(100).has_value());
  from.Disconnect();
  EXPECT_TRUE(
      absl::IsUnavailable(from.TrySend(MessageType::kHeartbeat, "").status()));
}

TEST(ControlLinkTest, BytesArriveWhetherTheyAreReadOrNot) {
  Pair pair;
  ControlLink from(std::move(pair.a)), to(std::move(pair.b));
  EXPECT_EQ(to.NumBytesArrived(), 0);
  EXPECT_TRUE(*from.TrySend(MessageType::kHeartbeat, ""));
  EXPECT_TRUE(*from.TrySend(MessageType::kPlan, "x"));
  EXPECT_TRUE(*from.TrySend(MessageType::kHeartbeat, ""));
  EXPECT_EQ(to.NumBytesArrived(), 49);
  // Only what nobody waits for is skipped.
  to.SkipHeartbeats();
  EXPECT_EQ(to.NumBytesArrived(), 49);
  EXPECT_EQ(to.Receive(10, Soon())->type, MessageType::kPlan);
  EXPECT_TRUE(to.HasMessage());
  to.SkipHeartbeats();
  EXPECT_FALSE(to.HasMessage());
  EXPECT_EQ(to.NumBytesArrived(), 49);
  // One with a body is a worker's, and somebody's to read.
  EXPECT_TRUE(*from.TrySend(MessageType::kHeartbeat, "body"));
  to.SkipHeartbeats();
  EXPECT_TRUE(to.HasMessage());
}

// While one thread waits for a message, another one takes none.
TEST(ControlLinkTest, TryReceiveLeavesWhatAnotherThreadWaitsFor) {
  Pair pair;
  ControlLink from(std::move(pair.a)), to(std::move(pair.b));
  std::atomic<bool> has_come = false;
  std::thread reader([&] {
    const auto message = to.Receive(100, Soon());
    EXPECT_TRUE(message.ok() && message->body == "for the reader");
    has_come = true;
  });
  // Until it waits (and if it does not yet, there is nothing to take).
  absl::SleepFor(absl::Milliseconds(20));
  EXPECT_FALSE(to.TryReceive(100).has_value());
  EXPECT_TRUE(
      from.Send(MessageType::kPlan, "for the reader", absl::Seconds(1)).ok());
  while (!has_come) to.SkipHeartbeats();
  reader.join();
}

}  // namespace
}  // namespace quire
