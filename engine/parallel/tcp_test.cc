#include "engine/parallel/tcp.h"

#include <thread>

#include "absl/strings/match.h"
#include "engine/base/clock.h"
#include "gtest/gtest.h"

namespace quire {
namespace {

TEST(TcpTest, ParsesAddresses) {
  EXPECT_EQ(ParseHostPort("leader", 5)->ToString(), "leader:5");
  EXPECT_EQ(ParseHostPort("leader:20000", 5)->ToString(), "leader:20000");
  EXPECT_EQ(ParseHostPort("10.0.0.1:0", 5)->port, 0);
  EXPECT_EQ(ParseHostPort("fd00::1", 5)->ToString(), "[fd00::1]:5");
  EXPECT_EQ(ParseHostPort("[fd00::1]:77", 5)->ToString(), "[fd00::1]:77");
  EXPECT_EQ(ParseHostPort("[fd00::1]", 5)->host, "fd00::1");
  for (const char* wrong :
       {"", ":5", "host:", "host:x", "host:65536", "[]:5", "host:-1"}) {
    EXPECT_TRUE(absl::IsInvalidArgument(ParseHostPort(wrong, 5).status()))
        << wrong;
  }
}

TEST(TcpTest, ConnectsToWhoListensLater) {
  auto first = ListenTcp({"127.0.0.1", 0});
  ASSERT_TRUE(first.ok());
  const HostPort address = LocalAddress(first->get());
  *first = OwnedFd();
  std::thread connector([&] {
    auto fd =
        ConnectTcp(address, Clock::Monotonic()->Now() + absl::Seconds(20));
    EXPECT_TRUE(fd.ok()) << fd.status();
  });
  auto listener = ListenTcp(address);
  ASSERT_TRUE(listener.ok()) << listener.status();
  EXPECT_TRUE(
      AcceptTcp(listener->get(), Clock::Monotonic()->Now() + absl::Seconds(20))
          .ok());
  connector.join();
}

TEST(TcpTest, ErrorsNameTheAddress) {
  auto listener = ListenTcp({"127.0.0.1", 0});
  ASSERT_TRUE(listener.ok());
  const HostPort address = LocalAddress(listener->get());
  const absl::Status taken = ListenTcp(address).status();
  EXPECT_TRUE(absl::IsUnavailable(taken));
  EXPECT_TRUE(absl::StrContains(taken.message(), address.ToString()));
  *listener = OwnedFd();
  const absl::Status refused =
      ConnectTcp(address, Clock::Monotonic()->Now()).status();
  EXPECT_TRUE(absl::IsUnavailable(refused));
  EXPECT_TRUE(absl::StrContains(refused.message(), address.ToString()));
  EXPECT_TRUE(absl::StrContains(refused.message(), "refused")) << refused;
}

TEST(TcpTest, ForeignAddressIsReplacedByAll) {
  // TEST-NET-1, RFC 5737: of no host.
  auto listener = ListenTcp({"192.0.2.1", 0});
  ASSERT_TRUE(listener.ok()) << listener.status();
  const int port = LocalAddress(listener->get()).port;
  EXPECT_TRUE(ConnectTcp({"127.0.0.1", port}, Clock::Monotonic()->Now()).ok());
}

}  // namespace
}  // namespace quire
