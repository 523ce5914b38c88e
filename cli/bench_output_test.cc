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

TEST(BenchOutputTest, TheFirstSignalSetsTheFlag) {
  const std::atomic<bool>& is_interrupted = InterruptFlag();
  EXPECT_FALSE(is_interrupted);
  raise(SIGINT);
  EXPECT_TRUE(is_interrupted);
}

}  // namespace
}  // namespace quire
