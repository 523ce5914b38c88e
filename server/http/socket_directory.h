// A place for the Unix sockets of a test. Tests only.
#ifndef QUIRE_SERVER_HTTP_SOCKET_DIRECTORY_H_
#define QUIRE_SERVER_HTTP_SOCKET_DIRECTORY_H_

#include <stdlib.h>

#include <filesystem>
#include <string>
#include <system_error>

#include "gtest/gtest.h"

namespace quire {

// Empty, and gone with what is in it when the object goes. A socket's path has
// at most 107 characters: a test's own directory may be deeper. Nor does a
// process's number make a name: another test has the same in its sandbox.
class SocketDirectory {
 public:
  SocketDirectory() { EXPECT_NE(mkdtemp(path_.data()), nullptr) << path_; }
  ~SocketDirectory() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  SocketDirectory(const SocketDirectory&) = delete;
  SocketDirectory& operator=(const SocketDirectory&) = delete;

  std::string PathOf(const std::string& name) const {
    return path_ + "/" + name;
  }

 private:
  std::string path_ = "/tmp/quire_socket_XXXXXX";
};

}  // namespace quire

#endif  // QUIRE_SERVER_HTTP_SOCKET_DIRECTORY_H_
