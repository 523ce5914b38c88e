#include "engine/weights/page_releaser.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <fstream>
#include <string>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"

namespace quire {
namespace {

// Pages of `bytes` that this process has mapped to memory: bit 63 of
// /proc/self/pagemap (Linux, Documentation/admin-guide/mm/pagemap.rst).
int NumPresentPages(absl::Span<const uint8_t> bytes) {
  const uintptr_t page = sysconf(_SC_PAGESIZE);
  const uintptr_t begin = reinterpret_cast<uintptr_t>(bytes.data()) / page;
  const int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
  EXPECT_GE(fd, 0);
  int num_present = 0;
  for (uintptr_t i = 0; i < (bytes.size() + page - 1) / page; ++i) {
    uint64_t entry = 0;
    EXPECT_EQ(pread(fd, &entry, sizeof(entry), (begin + i) * sizeof(entry)),
              sizeof(entry));
    num_present += entry >> 63;
  }
  close(fd);
  return num_present;
}

class PageReleaserTest : public testing::Test {
 protected:
  PageReleaserTest() {
    std::ofstream(path_) << std::string(kBytes, 'q');
    file_ = *MappedFile::Open(path_);
  }
  ~PageReleaserTest() override { std::remove(path_.c_str()); }

  int64_t CountContent() const {
    return std::count(file_->bytes().begin(), file_->bytes().end(), 'q');
  }

  static constexpr int64_t kBytes = 1 << 20;
  const std::string path_ =
      absl::StrCat(testing::TempDir(), "/released_", ::getpid());
  std::shared_ptr<const MappedFile> file_;
};

TEST_F(PageReleaserTest, ReleasesWholePagesAndTheyCanBeReadAgain) {
  EXPECT_EQ(CountContent(), kBytes);
  const int num_pages = kBytes / sysconf(_SC_PAGESIZE);
  ASSERT_EQ(NumPresentPages(file_->bytes()), num_pages);
  // In use by no other tensor: the pages that lie in the part as a whole.
  PageReleaser({file_}).Release(file_->bytes().subspan(100, kBytes - 200));
  EXPECT_EQ(NumPresentPages(file_->bytes()), 2);
  EXPECT_EQ(CountContent(), kBytes);
}

TEST_F(PageReleaserTest, WhatLiesOutsideTheFilesIsLeftAlone) {
  const std::string copy(kBytes, 'c');
  PageReleaser({file_}).Release(absl::MakeConstSpan(
      reinterpret_cast<const uint8_t*>(copy.data()), copy.size()));
  EXPECT_EQ(std::count(copy.begin(), copy.end(), 'c'), kBytes);
}

TEST_F(PageReleaserTest, NoFilesAndNothingToRelease) {
  PageReleaser none({});
  none.Release({});
  none.Release(file_->bytes());
  EXPECT_EQ(CountContent(), kBytes);
}

}  // namespace
}  // namespace quire
