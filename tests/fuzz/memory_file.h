// A file in memory, for what reads files by path.
#ifndef QUIRE_TESTS_FUZZ_MEMORY_FILE_H_
#define QUIRE_TESTS_FUZZ_MEMORY_FILE_H_

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "engine/base/status.h"

namespace quire {

// One for the life of the process: its contents change.
class MemoryFile {
 public:
  MemoryFile() : fd_(memfd_create("fuzz", MFD_CLOEXEC)) {
    QUIRE_CHECK(fd_ >= 0);
  }

  void Set(absl::string_view contents) {
    QUIRE_CHECK(ftruncate(fd_, 0) == 0);
    QUIRE_CHECK(pwrite(fd_, contents.data(), contents.size(), 0) ==
                static_cast<int64_t>(contents.size()));
  }
  std::string path() const { return absl::StrCat("/proc/self/fd/", fd_); }

 private:
  const int fd_;
};

}  // namespace quire

#endif  // QUIRE_TESTS_FUZZ_MEMORY_FILE_H_
