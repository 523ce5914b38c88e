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
  void ExpectError(const std::string& path, const std::string& part,
                   const std::string& gguf_file = "") {
    const auto resolved = ResolveModelPath(path, gguf_file);
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
  WriteFile("models--org--name/config.json");
  EXPECT_EQ(*ResolveModelPath(Path("models--org--name")),
            Path("models--org--name"));
  // A downloader's own directory and a foreign format beside do no harm.
  WriteFile("models--org--name/model.safetensors");
  MakeDirectory("models--org--name/.cache");
  MakeDirectory("models--org--name/snapshots");
  WriteFile("models--org--name/other.gguf");
  EXPECT_EQ(*ResolveModelPath(Path("models--org--name/")),
            Path("models--org--name/"));
}

TEST_F(ModelPathTest, ACacheIsTheSnapshotOfItsMainRef) {
  for (const char* name :
       {"c", "c/snapshots", "c/snapshots/aa", "c/snapshots/bb", "c/refs"}) {
    MakeDirectory(name);
  }
  ExpectError(Path("c"), "2 snapshots");
  WriteFile("c/refs/main", "bb\n");
  WriteFile("c/snapshots/bb/config.json");
  EXPECT_EQ(*ResolveModelPath(Path("c")), Path("c/snapshots/bb"));
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
  WriteFile("c/snapshots/aa/config.json");
  EXPECT_EQ(*ResolveModelPath(Path("c")), Path("c/snapshots/aa"));
}

TEST_F(ModelPathTest, AGgufFileIsItself) {
  WriteFile("m-q5_k_m.GGUF");
  EXPECT_EQ(*ResolveModelPath(Path("m-q5_k_m.GGUF")), Path("m-q5_k_m.GGUF"));
  ExpectError(Path("m-q5_k_m.GGUF"), "--gguf-file", "other.gguf");
  // Stores that name files by their hash.
  WriteFile("sha256-00", "GGUF\3");
  EXPECT_EQ(*ResolveModelPath(Path("sha256-00")), Path("sha256-00"));
  WriteFile("weights.safetensors");
  ExpectError(Path("weights.safetensors"), "not a directory");
}

TEST_F(ModelPathTest, ADirectoryWithOneGgufModelIsThatModel) {
  MakeDirectory("one");
  WriteFile("one/config.json");
  WriteFile("one/mmproj-model-f16.gguf");
  WriteFile("one/m-Q4_K_M.gguf");
  EXPECT_EQ(*ResolveModelPath(Path("one")), Path("one/m-Q4_K_M.gguf"));
  MakeDirectory("split");
  WriteFile("split/m-00001-of-00002.gguf");
  WriteFile("split/m-00002-of-00002.gguf");
  EXPECT_EQ(*ResolveModelPath(Path("split")),
            Path("split/m-00001-of-00002.gguf"));
  MakeDirectory("cache");
  MakeDirectory("cache/snapshots");
  MakeDirectory("cache/snapshots/aa");
  WriteFile("cache/snapshots/aa/m.gguf");
  EXPECT_EQ(*ResolveModelPath(Path("cache")),
            Path("cache/snapshots/aa/m.gguf"));
}

TEST_F(ModelPathTest, SeveralGgufModelsAreListed) {
  MakeDirectory("many");
  WriteFile("many/m-Q4_K_M.gguf");
  WriteFile("many/m-Q8_0-00001-of-00002.gguf");
  WriteFile("many/m-Q8_0-00002-of-00002.gguf");
  ExpectError(Path("many"),
              "choose one with --gguf-file: m-Q4_K_M.gguf, "
              "m-Q8_0-00001-of-00002.gguf");
  EXPECT_EQ(*ResolveModelPath(Path("many"), "m-Q4_K_M.gguf"),
            Path("many/m-Q4_K_M.gguf"));
  ExpectError(Path("many"), "m-Q3.gguf: no such file", "m-Q3.gguf");
  ExpectError(Path("many"), "holds m-Q4_K_M.gguf, m-Q8_0", "m-Q3.gguf");
}

TEST_F(ModelPathTest, SafetensorsGoBeforeGguf) {
  MakeDirectory("both");
  WriteFile("both/config.json");
  WriteFile("both/model.safetensors");
  WriteFile("both/m-1.gguf");
  WriteFile("both/m-2.gguf");
  EXPECT_EQ(*ResolveModelPath(Path("both")), Path("both"));
  EXPECT_EQ(*ResolveModelPath(Path("both"), "m-2.gguf"), Path("both/m-2.gguf"));
}

TEST_F(ModelPathTest, ADirectoryWithoutAModelSaysWhatIsMissing) {
  MakeDirectory("m");
  ExpectError(Path("m"), "neither a config.json nor a GGUF file");
  WriteFile("m/mmproj-x.gguf");
  ExpectError(Path("m"), "neither a config.json nor a GGUF file");
  WriteFile("m/x-00002-of-00003.gguf");
  WriteFile("m/x-00003-of-00003.gguf");
  ExpectError(Path("m"), "x-00002-of-00003.gguf, but not the first part of it");
  WriteFile("m/x-00001-of-00003.gguf");
  EXPECT_EQ(*ResolveModelPath(Path("m")), Path("m/x-00001-of-00003.gguf"));
}

TEST_F(ModelPathTest, WhatDoesNotExistIsNotDownloaded) {
  for (const char* path :
       {"Qwen/Qwen3-8B", "s3://bucket/models/Qwen3-8B", "gcs://b/p"}) {
    ExpectError(path, "downloads nothing");
  }
  for (const std::string& path :
       {Path("nothing"), std::string("nothing"), std::string("./nothing")}) {
    ExpectError(path, "no such model directory");
    EXPECT_FALSE(absl::StrContains(ResolveModelPath(path).status().message(),
                                   "downloads"));
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

TEST(DefaultModelNameTest, IsAGgufFilesNameAlone) {
  EXPECT_EQ(DefaultModelName("/models/Tiny-Q4_K_M.gguf"), "Tiny-Q4_K_M");
  EXPECT_EQ(DefaultModelName("m-00001-of-00003.gguf"), "m");
  EXPECT_EQ(DefaultModelName("m-0001-of-00003.gguf"), "m-0001-of-00003");
}

TEST(DefaultModelNameTest, IsTheLastComponent) {
  EXPECT_EQ(DefaultModelName("/models/demo"), "demo");
  EXPECT_EQ(DefaultModelName("/models/demo//"), "demo");
  EXPECT_EQ(DefaultModelName("demo"), "demo");
}

}  // namespace
}  // namespace quire
