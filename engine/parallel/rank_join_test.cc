// Ranks of several nodes that join, or should not.
#include <unistd.h>

#include <atomic>
#include <mutex>
#include <thread>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "engine/base/clock.h"
#include "engine/parallel/control_link.h"
#include "engine/parallel/rank_group_fixture.h"
#include "gtest/gtest.h"

namespace quire {
namespace {

TEST(RankGroupNodesTest, RanksThatDoNotFitAreRefusedAndBothSidesNamed) {
  RankGroupOptions options;
  options.ranks = TestRanks(2, 1, 2);
  std::mutex mu;
  std::string log;
  options.on_log = [&](const std::string& line) {
    std::lock_guard<std::mutex> lock(mu);
    absl::StrAppend(&log, line, "\n");
  };
  std::unique_ptr<RankGroup> group;
  std::thread leader([&] {
    auto started = RankGroup::Start(options);
    if (started.ok()) group = *std::move(started);
  });
  RankOptions other = options.ranks;
  other.facts[0].second = "2";
  absl::Status refused = RemoteWorker(other, 1).Join();
  EXPECT_TRUE(absl::IsFailedPrecondition(refused));
  EXPECT_TRUE(absl::StrContains(refused.message(), "version is 1 on rank 0"))
      << refused;
  EXPECT_TRUE(absl::StrContains(refused.message(), "2 on rank 1")) << refused;

  other = options.ranks;
  other.facts.pop_back();
  other.facts.push_back({"--seed", "7"});
  refused = RemoteWorker(other, 1).Join();
  EXPECT_TRUE(absl::StrContains(refused.message(), "--dtype is auto on rank 0"))
      << refused;

  other = options.ranks;
  other.layout = {3, 1, 3};
  refused = RemoteWorker(other, 2).Join();
  EXPECT_TRUE(absl::StrContains(refused.message(), "none of the ranks 1 to 1"))
      << refused;

  // As the program says how many ranks there are.
  other.facts.push_back({"--tensor-parallel-size", "3"});
  refused = RemoteWorker(other, 2).Join();
  EXPECT_TRUE(absl::StrContains(
      refused.message(), "--tensor-parallel-size is not given on rank 0"))
      << refused;
  EXPECT_TRUE(absl::StrContains(refused.message(), "and 3 on rank 2"))
      << refused;

  // Nobody who speaks another protocol is in the way.
  auto stranger = ConnectTcp(options.ranks.master, Clock::Monotonic()->Now());
  ASSERT_TRUE(stranger.ok());
  EXPECT_EQ(write(stranger->get(), "GET / HTTP/1.1\r\n\r\n", 18), 18);

  RemoteWorker right(options.ranks, 1, "load");
  leader.join();
  ASSERT_NE(group, nullptr);
  // It joins again while its first self is there, or comes too late.
  refused = RemoteWorker(options.ranks, 1).Join();
  EXPECT_TRUE(absl::StrContains(refused.message(), "comes too late"))
      << refused;
  EXPECT_TRUE(group->Share("").ok());
  right.Join().IgnoreError();
  std::lock_guard<std::mutex> lock(mu);
  EXPECT_TRUE(absl::StrContains(log, "version is 1")) << log;
  EXPECT_TRUE(absl::StrContains(log, "quire's protocol")) << log;
}

// Who cannot prove the key learns nothing; who can hears what is wrong.
TEST(RankGroupNodesTest, AGroupKeyIsAskedFor) {
  RankGroupOptions options;
  options.ranks = TestRanks(2, 1, 2);
  options.ranks.key = *GroupKey::Create("a secret of the group");
  std::mutex mu;
  std::string log;
  options.on_log = [&](const std::string& line) {
    std::lock_guard<std::mutex> lock(mu);
    absl::StrAppend(&log, line, "\n");
  };
  absl::StatusOr<std::unique_ptr<RankGroup>> group;
  std::thread leader([&] { group = RankGroup::Start(options); });
  RankOptions other = options.ranks;
  other.key = GroupKey();
  absl::Status refused = RemoteWorker(other, 1).Join();
  EXPECT_TRUE(absl::IsFailedPrecondition(refused));
  EXPECT_TRUE(absl::StrContains(refused.message(), "the group has a key"))
      << refused;

  // The bytes themselves: a version is not told.
  auto fd = ConnectTcp(options.ranks.master, Clock::Monotonic()->Now());
  ASSERT_TRUE(fd.ok());
  ControlLink stranger(*std::move(fd));
  Hello hello;
  hello.rank = 1;
  ASSERT_TRUE(
      stranger.Send(MessageType::kHello, ToBytes(hello), absl::Seconds(5))
          .ok());
  const auto answer = stranger.Receive(
      kMaxControlBytes, Clock::Monotonic()->Now() + absl::Seconds(5));
  ASSERT_TRUE(answer.ok()) << answer.status();
  EXPECT_EQ(answer->type, MessageType::kRefusal);
  EXPECT_EQ(answer->body, "refused");

  // It does not trust a leader that cannot prove it either.
  other.key = *GroupKey::Create("a secret of somebody else");
  refused = RemoteWorker(other, 1).Join();
  EXPECT_TRUE(absl::StrContains(refused.message(), "does not know")) << refused;
  // Rank 0 hears of it by the end of the connection, and says whose it was.
  const auto is_logged = [&](absl::string_view text) {
    std::lock_guard<std::mutex> lock(mu);
    return absl::StrContains(log, text);
  };
  const absl::Time deadline = Clock::Monotonic()->Now() + absl::Seconds(10);
  while (!is_logged("it has another one") &&
         Clock::Monotonic()->Now() < deadline) {
    std::this_thread::yield();
  }
  EXPECT_TRUE(is_logged("refused: 127.0.0.1:"));
  EXPECT_TRUE(is_logged("it has another one (--group-key-file)"));

  other = options.ranks;
  other.facts[0].second = "2";
  refused = RemoteWorker(other, 1).Join();
  EXPECT_TRUE(absl::StrContains(refused.message(), "version is 1 on rank 0"))
      << refused;

  RemoteWorker right(options.ranks, 1, "load");
  leader.join();
  ASSERT_TRUE(group.ok()) << group.status();
  other = options.ranks;
  other.key = GroupKey();
  refused = RemoteWorker(other, 1).Join();
  EXPECT_TRUE(absl::StrContains(refused.message(), "the group has a key"))
      << refused;
  refused = RemoteWorker(options.ranks, 1).Join();
  EXPECT_TRUE(absl::StrContains(refused.message(), "comes too late"))
      << refused;
  EXPECT_TRUE((*group)->Share("").ok());
  right.Join().IgnoreError();
  std::lock_guard<std::mutex> lock(mu);
  EXPECT_TRUE(absl::StrContains(log, "does not prove the group's key")) << log;
}

TEST(RankGroupNodesTest, AKeyThatOnlyTheWorkerHasIsNamedOnBothSides) {
  RankGroupOptions options;
  options.ranks = TestRanks(2, 1, 2);
  absl::StatusOr<std::unique_ptr<RankGroup>> group;
  std::thread leader([&] { group = RankGroup::Start(options); });
  RankOptions other = options.ranks;
  other.key = *GroupKey::Create("a secret of the group");
  const absl::Status refused = RemoteWorker(other, 1).Join();
  EXPECT_TRUE(
      absl::StrContains(refused.message(), "has a group key, and rank 0"))
      << refused;
  RemoteWorker right(options.ranks, 1, "load");
  leader.join();
  ASSERT_TRUE(group.ok()) << group.status();
  EXPECT_TRUE((*group)->Share("").ok());
  right.Join().IgnoreError();
}

TEST(RankGroupNodesTest, RankThatJoinsTwiceIsRefused) {
  RankGroupOptions options;
  options.ranks = TestRanks(3, 1, 3);
  std::unique_ptr<RankGroup> group;
  std::atomic<int> num_joined{0};
  options.on_waiting = [&](int joined, int) { num_joined = joined; };
  std::thread leader([&] {
    auto started = RankGroup::Start(options);
    if (started.ok()) group = *std::move(started);
  });
  RemoteWorker first(options.ranks, 1, "load");
  while (num_joined < 2) std::this_thread::yield();
  const absl::Status refused = RemoteWorker(options.ranks, 1).Join();
  EXPECT_TRUE(absl::StrContains(refused.message(), "joins twice")) << refused;
  RemoteWorker other(options.ranks, 2, "load");
  leader.join();
  ASSERT_NE(group, nullptr);
  EXPECT_TRUE(group->Share("").ok());
  first.Join().IgnoreError();
  other.Join().IgnoreError();
}

TEST(RankGroupNodesTest, MissingRanksAndLeadersAreNamedAfterTheTimeout) {
  RankGroupOptions options;
  options.ranks = TestRanks(2, 1, 2);
  options.ranks.bootstrap_timeout = absl::Milliseconds(200);
  const absl::Status missing = RankGroup::Start(options).status();
  EXPECT_TRUE(absl::IsUnavailable(missing));
  EXPECT_TRUE(absl::StrContains(missing.message(), "for rank 1 of 2"))
      << missing;
  RankWorkerOptions worker;
  worker.ranks = options.ranks;
  worker.ranks.bootstrap_timeout = absl::Seconds(2);
  std::string log;
  worker.on_log = [&](const std::string& line) { log += line; };
  const absl::Status unreachable = RankWorker::Join(worker).status();
  EXPECT_TRUE(absl::IsUnavailable(unreachable));
  EXPECT_TRUE(
      absl::StrContains(unreachable.message(), options.ranks.master.ToString()))
      << unreachable;
  EXPECT_TRUE(absl::StrContains(unreachable.message(), "rank 1"))
      << unreachable;
  EXPECT_TRUE(absl::StrContains(
      log, absl::StrCat("waits for rank 0 at ", options.ranks.master.ToString(),
                        ": ")))
      << log;
}

// Not only that the connection has ended.
TEST(RankGroupNodesTest, WhoHasJoinedHearsWhoIsMissing) {
  RankGroupOptions options;
  options.ranks = TestRanks(3, 1, 3);
  options.ranks.bootstrap_timeout = absl::Seconds(1);
  absl::StatusOr<std::unique_ptr<RankGroup>> group;
  std::thread leader([&] { group = RankGroup::Start(options); });
  const absl::Status joined = RemoteWorker(options.ranks, 1).Join();
  leader.join();
  EXPECT_TRUE(absl::StrContains(group.status().message(), "for rank 2 of 3"))
      << group.status();
  EXPECT_TRUE(absl::IsUnavailable(joined));
  EXPECT_TRUE(absl::StrContains(joined.message(), "for rank 2 of 3")) << joined;
}

TEST(RankGroupNodesTest, TakenPortIsAnError) {
  RankGroupOptions options;
  options.ranks = TestRanks(2, 1, 2);
  auto taken = ListenTcp(options.ranks.master);
  ASSERT_TRUE(taken.ok());
  const absl::Status status = RankGroup::Start(options).status();
  EXPECT_TRUE(absl::IsUnavailable(status));
  EXPECT_TRUE(absl::StrContains(status.message(),
                                "in use (--master-port, rank 0 on node 0)"))
      << status;
}

TEST(RankGroupNodesTest, AMasterThatIsNotThisHostIsSaid) {
  RankGroupOptions options;
  options.ranks = TestRanks(2, 1, 2);
  options.ranks.bootstrap_timeout = absl::Milliseconds(1);
  std::string log;
  options.on_log = [&](const std::string& line) { log += line; };
  EXPECT_TRUE(absl::IsUnavailable(RankGroup::Start(options).status()));
  EXPECT_EQ(log, "");
  options.ranks.master.host = "192.0.2.1";  // RFC 5737: of no host.
  EXPECT_TRUE(absl::IsUnavailable(RankGroup::Start(options).status()));
  EXPECT_EQ(log,
            absl::StrCat("--master-addr 192.0.2.1 is no address of node 0, or "
                         "not known yet: listening on all that it has, port ",
                         options.ranks.master.port));
}

TEST(RankGroupNodesTest, ImpossibleLayoutsAreRefused) {
  RankGroupOptions options;
  options.ranks = TestRanks(3, 1, 2);
  EXPECT_TRUE(absl::IsInvalidArgument(RankGroup::Start(options).status()));
  options.ranks.layout = {65, 1, 1};
  EXPECT_TRUE(absl::IsInvalidArgument(RankGroup::Start(options).status()));
}

}  // namespace
}  // namespace quire
