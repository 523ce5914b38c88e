#include "engine/weights/mapped_file.h"

#include <sys/stat.h>
#include <unistd.h>

#include <cstdio>
#include <fstream>
#include <memory>
#include <string>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace quire {
namespace {

using testing::HasSubstr;

class MappedFileTest : public testing::Test {
 protected:
  MappedFileTest()
      : path_(absl::StrCat(testing::TempDir(), "/mapped_", ::getpid())) {}
  ~MappedFileTest() override { std::remove(path_.c_str()); }

  const std::string path_;
};

TEST_F(MappedFileTest, ContentOutlivesTheFilesName) {
  std::ofstream(path_) << "content";
  const auto file = MappedFile::Open(path_);
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ((*file)->path(), path_);
  std::remove(path_.c_str());
  EXPECT_EQ(std::string((*file)->bytes().begin(), (*file)->bytes().end()),
            "content");
}

TEST_F(MappedFileTest, EmptyFile) {
  std::ofstream(path_) << "";
  const auto file = MappedFile::Open(path_);
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_TRUE((*file)->bytes().empty());
}

TEST_F(MappedFileTest, Errors) {
  EXPECT_EQ(MappedFile::Open(path_).status().code(),
            absl::StatusCode::kNotFound);
  EXPECT_EQ(MappedFile::Open(testing::TempDir()).status().code(),
            absl::StatusCode::kInvalidArgument);
  // A FIFO would block an ordinary open for ever.
  ASSERT_EQ(mkfifo(path_.c_str(), 0600), 0);
  const absl::Status status = MappedFile::Open(path_).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr(path_));
}

TEST_F(MappedFileTest, ReadTextFile) {
  std::ofstream(path_) << "0123456789";
  const auto text = ReadTextFile(path_, 10);
  ASSERT_TRUE(text.ok()) << text.status();
  EXPECT_EQ(*text, "0123456789");
  const absl::Status too_long = ReadTextFile(path_, 9).status();
  EXPECT_EQ(too_long.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(
      std::string(too_long.message()),
      testing::AllOf(HasSubstr(path_), HasSubstr("10"), HasSubstr("9")));
}

}  // namespace
}  // namespace quire
