// Each planted bug of the host communicators is noticed by the checks.
#include "gtest/gtest.h"
#include "kernels/communicator_bug.h"
#include "kernels/host_communicator_checks.h"

namespace quire {
namespace {

std::string FirstWrong(HostTransport transport) {
  for (const std::string& wrong :
       {CheckCollectives(transport, 3), CheckMessages(transport, 3),
        CheckMismatches(transport), CheckAbort(transport),
        CheckDeath(transport)}) {
    if (!wrong.empty()) return wrong;
  }
  return "";
}

TEST(CommunicatorBugsTest, EachIsNoticed) {
  for (uint8_t i = 0;
       i < static_cast<uint8_t>(CommunicatorBug::kNumCommunicatorBugs); ++i) {
    active_communicator_bug = static_cast<CommunicatorBug>(i);
    const std::string shared = FirstWrong(HostTransport::kSharedMemory);
    EXPECT_EQ(shared.empty(), i == 0) << "bug " << int{i} << ": " << shared;
    // Slots and watched processes are the shared memory's alone.
    const bool is_of_memory =
        active_communicator_bug == CommunicatorBug::kOneSlot ||
        active_communicator_bug == CommunicatorBug::kPeersNotWatched;
    if (is_of_memory) continue;
    const std::string sockets = FirstWrong(HostTransport::kSockets);
    EXPECT_EQ(sockets.empty(), i == 0) << "bug " << int{i} << ": " << sockets;
  }
  active_communicator_bug = CommunicatorBug::kNone;
}

}  // namespace
}  // namespace quire
