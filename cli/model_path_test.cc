#include "cli/model_path.h"

#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <fstream>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"

namespace quire {
namespace {

class ModelPathTest : public testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = absl::StrCat(getenv("TEST_TMPDIR"), "/model.XXXXXX");
    root_ = mkdtemp(pattern.data());
  }

  std::string Path(const std::string& name) {
    return absl::StrCat(root_, "/", name);
  }
  void MakeDirectory(const std::string& name) {
    ASSERT_EQ(mkdir(Path(name).c_str(), 0755), 0) << name;
  }
  void WriteFile(const std::string& name, const std::string& text = "") {
    std::ofstream(Path(name)) << text;
  }
  void ExpectError(const std::string& path, const std::string& part) {
    const auto resolved = ResolveModelDirectory(path);
    ASSERT_FALSE(resolved.ok()) << *resolved;
    const std::string message(resolved.status().message());
    EXPECT_TRUE(absl::StartsWith(message, path)) << message;
    EXPECT_TRUE(absl::StrContains(message, part)) << message;
    EXPECT_FALSE(absl::StrContains(message, '\n')) << message;
  }

  std::string root_;
};

TEST_F(ModelPathTest, ADirectoryIsItself) {
  MakeDirectory("models--org--name");
  EXPECT_EQ(*ResolveModelDirectory(Path("models--org--name")),
            Path("models--org--name"));
  // A downloader's own directory and a foreign format beside do no harm.
  WriteFile("models--org--name/config.json");
  MakeDirectory("models--org--name/.cache");
  MakeDirectory("models--org--name/snapshots");
  WriteFile("models--org--name/other.gguf");
  EXPECT_EQ(*ResolveModelDirectory(Path("models--org--name/")),
            Path("models--org--name/"));
}

TEST_F(ModelPathTest, ACacheIsTheSnapshotOfItsMainRef) {
  for (const char* name :
       {"c", "c/snapshots", "c/snapshots/aa", "c/snapshots/bb", "c/refs"}) {
    MakeDirectory(name);
  }
  ExpectError(Path("c"), "2 snapshots");
  WriteFile("c/refs/main", "bb\n");
  EXPECT_EQ(*ResolveModelDirectory(Path("c")), Path("c/snapshots/bb"));
  for (const char* revision : {"", "cc", "../..", "..", ".", "/", "bb/."}) {
    WriteFile("c/refs/main", revision);
    ExpectError(Path("c"), "names no directory");
  }
}

TEST_F(ModelPathTest, AnOnlySnapshotNeedsNoRef) {
  MakeDirectory("c");
  MakeDirectory("c/snapshots");
  ExpectError(Path("c"), "0 snapshots");
  MakeDirectory("c/snapshots/aa");
  EXPECT_EQ(*ResolveModelDirectory(Path("c")), Path("c/snapshots/aa"));
}

TEST_F(ModelPathTest, GgufIsRefusedByName) {
  WriteFile("m-q5_k_m.gguf");
  ExpectError(Path("m-q5_k_m.gguf"), "GGUF is not supported");
  MakeDirectory("split");
  WriteFile("split/m-00001-of-00002.GGUF");
  ExpectError(Path("split"), "00001-of-00002.GGUF: GGUF is not supported");
  WriteFile("weights.safetensors");
  ExpectError(Path("weights.safetensors"), "not a directory");
}

TEST_F(ModelPathTest, WhatDoesNotExistIsNotDownloaded) {
  for (const char* path :
       {"Qwen/Qwen3-8B", "s3://bucket/models/Qwen3-8B", "gcs://b/p"}) {
    ExpectError(path, "downloads nothing");
  }
  for (const std::string& path :
       {Path("nothing"), std::string("nothing"), std::string("./nothing")}) {
    ExpectError(path, "no such model directory");
    EXPECT_FALSE(absl::StrContains(
        ResolveModelDirectory(path).status().message(), "downloads"));
  }
}

TEST_F(ModelPathTest, ADirectoryThatMayNotBeReadSaysSo) {
  if (geteuid() == 0) GTEST_SKIP() << "root may read everything";
  MakeDirectory("locked");
  ASSERT_EQ(chmod(Path("locked").c_str(), 0), 0);
  ExpectError(Path("locked"), "Permission denied");
}

TEST(DefaultModelNameTest, IsTheRepositoryOfACache) {
  EXPECT_EQ(DefaultModelName("/hub/models--Acme--Tiny"), "Acme/Tiny");
  EXPECT_EQ(DefaultModelName("/hub/models--Acme--Tiny/snapshots/abc/"),
            "Acme/Tiny");
  EXPECT_EQ(DefaultModelName("models--tiny"), "tiny");
}

TEST(DefaultModelNameTest, IsTheLastComponent) {
  EXPECT_EQ(DefaultModelName("/models/demo"), "demo");
  EXPECT_EQ(DefaultModelName("/models/demo//"), "demo");
  EXPECT_EQ(DefaultModelName("demo"), "demo");
}

}  // namespace
}  // namespace quire
