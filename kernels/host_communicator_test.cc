#include "kernels/host_communicator.h"

#include "absl/strings/match.h"
#include "gtest/gtest.h"
#include "kernels/host_communicator_checks.h"

namespace quire {
namespace {

class HostCommunicatorTest : public testing::TestWithParam<HostTransport> {};

TEST_P(HostCommunicatorTest, CollectivesAreRightBitByBit) {
  for (const int size : {1, 2, 3, 4, 5}) {
    EXPECT_EQ(CheckCollectives(GetParam(), size), "") << size << " ranks";
  }
}

TEST_P(HostCommunicatorTest, MessagesArrive) {
  for (const int size : {2, 3, 4}) {
    EXPECT_EQ(CheckMessages(GetParam(), size), "") << size << " ranks";
  }
}

TEST_P(HostCommunicatorTest, RanksThatCallDifferentThingsFail) {
  EXPECT_EQ(CheckMismatches(GetParam()), "");
}

TEST_P(HostCommunicatorTest, AbortEndsAllRanks) {
  EXPECT_EQ(CheckAbort(GetParam()), "");
}

TEST_P(HostCommunicatorTest, DeadRankIsNamed) {
  EXPECT_EQ(CheckDeath(GetParam()), "");
}

TEST_P(HostCommunicatorTest, SilentRankIsNamedAfterTheTimeout) {
  HostTestGroup group(GetParam(), 2, absl::Milliseconds(150));
  const absl::Time begin = absl::Now();
  const absl::Status status = group[0]->Barrier();
  EXPECT_GE(absl::Now() - begin, absl::Milliseconds(150));
  EXPECT_TRUE(absl::IsUnavailable(status));
  EXPECT_TRUE(absl::StrContains(status.message(), "rank 1 has been silent"))
      << status;
  EXPECT_TRUE(absl::IsUnavailable(group[0]->Barrier()));
}

TEST_P(HostCommunicatorTest, RankThatLeavesIsNamed) {
  HostTestGroup group(GetParam(), 2);
  group[1].reset();
  const absl::Status status = group[0]->Barrier();
  EXPECT_TRUE(absl::IsUnavailable(status));
  EXPECT_TRUE(absl::StrContains(status.message(), "rank 1 has gone")) << status;
}

TEST_P(HostCommunicatorTest, RefusesViewsThatAreNotAsSaid) {
  HostTestGroup group(GetParam(), 2);
  Communicator& rank = *group[0];
  std::vector<float> data(64);
  TensorView strided = TensorView::Matrix(data.data(), DType::kF32, 2, 8);
  strided.row_stride = 16;
  const TensorView whole = TensorView::Vector(data.data(), DType::kF32, 64);
  const TensorView ints = TensorView::Vector(data.data(), DType::kI32, 64);
  EXPECT_TRUE(absl::IsInvalidArgument(rank.AllReduceSum(strided, nullptr)));
  EXPECT_TRUE(absl::IsInvalidArgument(rank.AllReduceSum(ints, nullptr)));
  EXPECT_TRUE(absl::IsInvalidArgument(rank.AllGather(whole, whole, nullptr)));
  EXPECT_TRUE(
      absl::IsInvalidArgument(rank.ReduceScatterSum(whole, whole, nullptr)));
  EXPECT_TRUE(absl::IsInvalidArgument(rank.Broadcast(whole, 2, nullptr)));
  EXPECT_TRUE(absl::IsInvalidArgument(rank.Send(whole, 0, nullptr)));
  EXPECT_TRUE(absl::IsInvalidArgument(rank.Receive(whole, -1, nullptr)));
  // None of that has broken the group.
  const auto results = group.Run([](Communicator& r) { return r.Barrier(); });
  EXPECT_TRUE(results[0].ok() && results[1].ok());
}

INSTANTIATE_TEST_SUITE_P(Transports, HostCommunicatorTest,
                         testing::Values(HostTransport::kSharedMemory,
                                         HostTransport::kSockets));

TEST(SharedCommunicatorTest, RankTakenTwiceIsRefused) {
  auto memory = SharedMemory::Create(SharedCommunicatorBytes(2));
  ASSERT_TRUE(memory.ok());
  HostCommunicatorOptions options;
  options.size = 2;
  auto first = NewSharedCommunicator(memory->data(), options);
  ASSERT_TRUE(first.ok());
  EXPECT_EQ(NewSharedCommunicator(memory->data(), options).status().code(),
            absl::StatusCode::kAlreadyExists);
}

TEST(HostCommunicatorOptionsTest, ImpossibleGroupsAreRefused) {
  HostCommunicatorOptions options;
  options.size = kMaxHostRanks + 1;
  EXPECT_TRUE(absl::IsInvalidArgument(
      NewSharedCommunicator(nullptr, options).status()));
  options.size = 2;
  options.rank = 2;
  EXPECT_TRUE(absl::IsInvalidArgument(
      NewSharedCommunicator(nullptr, options).status()));
  options.rank = 0;
  EXPECT_TRUE(absl::IsInvalidArgument(
      NewSocketCommunicator({-1, -1}, options).status()));
}

TEST(NullCommunicatorTest, CopiesWhatHasToMove) {
  const auto group = NewNullCommunicator();
  std::vector<float> from = {1, 2, 3}, to(3);
  const TensorView a = TensorView::Vector(from.data(), DType::kF32, 3);
  const TensorView b = TensorView::Vector(to.data(), DType::kF32, 3);
  EXPECT_TRUE(group->AllReduceSum(a, nullptr).ok());
  EXPECT_TRUE(group->AllGather(a, b, nullptr).ok());
  EXPECT_EQ(to, from);
  EXPECT_TRUE(absl::IsInvalidArgument(group->Send(a, 0, nullptr)));
}

}  // namespace
}  // namespace quire
