#include "server/http/listener.h"

#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstring>
#include <fstream>
#include <string>
#include <utility>

#include "gtest/gtest.h"
#include "server/http/socket_directory.h"

namespace quire {
namespace {

constexpr int kBacklog = 16;

TEST(Listener, TakesAFreePortAndNobodyElsesPort) {
  auto first = Listener::OpenTcp("127.0.0.1", 0, kBacklog);
  ASSERT_TRUE(first.ok()) << first.status();
  EXPECT_GT(first->port(), 0);
  EXPECT_TRUE(first->is_tcp());
  const auto second = Listener::OpenTcp("127.0.0.1", first->port(), kBacklog);
  EXPECT_EQ(second.status().message(),
            "cannot listen on 127.0.0.1:" + std::to_string(first->port()) +
                ": Address already in use");
  const int port = first->port();
  first->Close();
  EXPECT_TRUE(Listener::OpenTcp("127.0.0.1", port, kBacklog).ok());
}

TEST(Listener, SaysWhatIsWrongWithTheAddress) {
  const auto status = Listener::OpenTcp("192.0.2.1", 0, kBacklog).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(status.message(),
            "cannot listen on 192.0.2.1:0: Cannot assign requested address");
  EXPECT_EQ(Listener::OpenTcp("no such host!", 1, kBacklog).status().code(),
            absl::StatusCode::kUnavailable);
}

TEST(Listener, UnixSocketIsForOwnerAndGroupAndGoesWithTheListener) {
  const SocketDirectory directory;
  const std::string path = directory.PathOf("socket");
  {
    const auto listener = Listener::OpenUnix(path, kBacklog);
    ASSERT_TRUE(listener.ok()) << listener.status();
    EXPECT_EQ(listener->port(), 0);
    EXPECT_FALSE(listener->is_tcp());
    struct stat info;
    ASSERT_EQ(stat(path.c_str(), &info), 0);
    EXPECT_EQ(info.st_mode & 0777, 0660u);
    // Somebody answers there.
    EXPECT_EQ(Listener::OpenUnix(path, kBacklog).status().message(),
              "cannot listen on " + path + ": Address already in use");
    EXPECT_EQ(stat(path.c_str(), &info), 0);
  }
  EXPECT_NE(access(path.c_str(), F_OK), 0);
}

TEST(Listener, UnixSocketOfAnEndedProcessIsReplaced) {
  const SocketDirectory directory;
  const std::string path = directory.PathOf("socket");
  sockaddr_un address = {};
  address.sun_family = AF_UNIX;
  std::strcpy(address.sun_path, path.c_str());
  const int fd = socket(AF_UNIX, SOCK_STREAM, 0);
  ASSERT_EQ(bind(fd, reinterpret_cast<sockaddr*>(&address), sizeof(address)),
            0);
  close(fd);
  ASSERT_EQ(access(path.c_str(), F_OK), 0);
  EXPECT_TRUE(Listener::OpenUnix(path, kBacklog).ok());
}

TEST(Listener, FileInThePlaceOfAUnixSocketIsLeftAlone) {
  const SocketDirectory directory;
  const std::string path = directory.PathOf("socket");
  std::ofstream(path) << "precious";
  EXPECT_EQ(Listener::OpenUnix(path, kBacklog).status().message(),
            "cannot listen on " + path + ": the path exists and is no socket");
  std::string text;
  std::ifstream(path) >> text;
  EXPECT_EQ(text, "precious");
  const auto too_long = Listener::OpenUnix(std::string(200, 'x'), kBacklog);
  EXPECT_EQ(too_long.status().code(), absl::StatusCode::kUnavailable);
}

}  // namespace
}  // namespace quire
