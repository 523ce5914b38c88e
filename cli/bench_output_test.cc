#include "cli/bench_output.h"

#include <signal.h>

#include <cstdlib>
#include <fstream>
#include <sstream>
#include <string>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"

namespace quire {
namespace {

std::string ReadFile(const std::string& path) {
  std::stringstream text;
  text << std::ifstream(path).rdbuf();
  return text.str();
}

TEST(BenchOutputTest, WritesAndAppends) {
  const std::string path = absl::StrCat(getenv("TEST_TMPDIR"), "/result");
  EXPECT_TRUE(WriteTextFile(path, "one\n").ok());
  EXPECT_TRUE(WriteTextFile(path, "two\n").ok());
  EXPECT_EQ(ReadFile(path), "two\n");
  EXPECT_TRUE(WriteTextFile(path, "three\n", /*appends=*/true).ok());
  EXPECT_EQ(ReadFile(path), "two\nthree\n");
  // Nothing else is left.
  EXPECT_FALSE(std::ifstream(path + ".part").good());
}

TEST(BenchOutputTest, WhereNothingCanBeWritten) {
  const absl::Status status = WriteTextFile("/no/such/directory/file", "");
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_TRUE(absl::StrContains(status.message(), "/no/such/directory/file"));
}

TEST(BenchOutputTest, KnowsBeforeWhereNothingCanBeWritten) {
  const std::string folder = getenv("TEST_TMPDIR");
  EXPECT_TRUE(CheckWritable("").ok());
  EXPECT_TRUE(CheckWritable("here").ok());
  EXPECT_TRUE(CheckWritable("/dev/stdout").ok());
  EXPECT_TRUE(CheckWritable(folder + "/new").ok());
  EXPECT_TRUE(CheckWritable(folder + "/new", /*appends=*/true).ok());
  EXPECT_FALSE(std::ifstream(folder + "/new").good());
  for (const std::string& path :
       {folder, std::string("/no/such/directory/file"), folder + "/a/b"}) {
    const absl::Status status = CheckWritable(path);
    EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable) << path;
    EXPECT_TRUE(absl::StrContains(status.message(), path)) << status;
  }
}

TEST(BenchOutputTest, CountsErrors) {
  testing::internal::CaptureStderr();
  PrintRequestErrors({"", "one", "two", "", "two"});
  EXPECT_EQ(testing::internal::GetCapturedStderr(),
            "quire: 2 requests failed: two\nquire: 1 request failed: one\n");
  testing::internal::CaptureStderr();
  PrintRequestErrors({"", ""});
  EXPECT_EQ(testing::internal::GetCapturedStderr(), "");
}

TEST(BenchOutputTest, TheFirstSignalSetsTheFlag) {
  const std::atomic<bool>& is_interrupted = InterruptFlag();
  EXPECT_FALSE(is_interrupted);
  raise(SIGINT);
  EXPECT_TRUE(is_interrupted);
}

}  // namespace
}  // namespace quire
