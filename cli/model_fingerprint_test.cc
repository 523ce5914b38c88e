#include "cli/model_fingerprint.h"

#include <filesystem>
#include <fstream>

#include "gtest/gtest.h"

namespace quire {
namespace {

class FingerprintTest : public testing::Test {
 protected:
  FingerprintTest() {
    std::filesystem::remove_all(root_);
    std::filesystem::create_directories(root_);
  }
  ~FingerprintTest() override { std::filesystem::remove_all(root_); }

  std::string Path(const std::string& name) const { return root_ + "/" + name; }
  void Write(const std::string& name, const std::string& text) {
    std::ofstream(Path(name), std::ios::binary) << text;
  }
  // Overwrites bytes of a file that is there.
  void Change(const std::string& name, int64_t at, const std::string& text) {
    std::fstream file(Path(name),
                      std::ios::binary | std::ios::in | std::ios::out);
    file.seekp(at);
    file << text;
  }

  const std::string root_ =
      testing::TempDir() + "/fingerprint_" +
      testing::UnitTest::GetInstance()->current_test_info()->name();
};

TEST_F(FingerprintTest, TellsModelsApartWhereverTheyLie) {
  Write("config.json", "{}");
  Write("model.safetensors", std::string(200000, 'x'));
  Write("README.md", "not of the model");
  const std::vector<ModelFile> first = FingerprintModel(root_);
  ASSERT_EQ(first.size(), 2u);
  EXPECT_EQ(first[0].name, "config.json");
  EXPECT_EQ(first[0].num_bytes, 2);
  EXPECT_EQ(first[1].name, "model.safetensors");
  EXPECT_EQ(first[1].num_bytes, 200000);
  EXPECT_EQ(first[1].hash.size(), 16u);
  std::filesystem::remove_all(root_ + "_copy");
  std::filesystem::copy(root_, root_ + "_copy");
  EXPECT_EQ(FingerprintModel(root_ + "_copy"), first);
  std::filesystem::remove_all(root_ + "_copy");
  Write("README.md", "still not");
  // Nobody reads it beside safetensors.
  Write("pytorch_model.bin", "another format");
  EXPECT_EQ(FingerprintModel(root_), first);
  Write("config.json", "[]");
  const std::vector<ModelFile> changed = FingerprintModel(root_);
  ASSERT_EQ(changed.size(), 2u);
  EXPECT_NE(changed[0], first[0]);
  EXPECT_EQ(changed[1], first[1]);
}

// Of a small model no byte may differ.
TEST_F(FingerprintTest, EveryByteOfASmallModelCounts) {
  const std::string bytes(300000, 'x');
  Write("model.gguf", bytes);
  const std::vector<ModelFile> first = FingerprintModel(Path("model.gguf"));
  ASSERT_EQ(first.size(), 1u);
  for (const int64_t at : {0, 65536, 150001, 234464, 299999}) {
    Change("model.gguf", at, "y");
    EXPECT_NE(FingerprintModel(Path("model.gguf")), first) << at;
    Change("model.gguf", at, "x");
  }
  EXPECT_EQ(FingerprintModel(Path("model.gguf")), first);
}

TEST_F(FingerprintTest, AChangeAsLongAsTheStrideIsNoticedInALargeModel) {
  // Holes, which take no place on the disk.
  constexpr int64_t kBytes = 300 << 20;
  for (const char* name : {"a.safetensors", "b.safetensors"}) {
    Write(name, "");
    std::filesystem::resize_file(Path(name), kBytes);
  }
  const int64_t stride = SampleStride(2 * kBytes);
  EXPECT_GT(stride, 4096);
  EXPECT_LE(stride, 2 * kBytes / 15000);
  const std::vector<ModelFile> first = FingerprintModel(root_);
  const std::string change(stride, 'y'), zeros(stride, '\0');
  for (const int64_t at :
       {int64_t{0}, stride / 2, kBytes / 2 + 12345, kBytes - stride}) {
    Change("b.safetensors", at, change);
    const std::vector<ModelFile> changed = FingerprintModel(root_);
    ASSERT_EQ(changed.size(), 2u);
    EXPECT_EQ(changed[0], first[0]) << at;
    EXPECT_NE(changed[1], first[1]) << at;
    Change("b.safetensors", at, zeros);
  }
  EXPECT_EQ(FingerprintModel(root_), first);
}

TEST_F(FingerprintTest, PartsOfAFileBelongToIt) {
  for (const char* name :
       {"m-00001-of-00002.gguf", "m-00002-of-00002.gguf",
        "n-00002-of-00002.gguf", "m-00001-of-00003.gguf", "m.gguf"}) {
    Write(name, name);
  }
  const std::vector<ModelFile> files =
      FingerprintModel(Path("m-00001-of-00002.gguf"));
  ASSERT_EQ(files.size(), 2u);
  EXPECT_EQ(files[0].name, "m-00001-of-00002.gguf");
  EXPECT_EQ(files[1].name, "m-00002-of-00002.gguf");
  EXPECT_EQ(FingerprintModel(Path("m.gguf")).size(), 1u);
}

TEST_F(FingerprintTest, WhatIsNotThereHasAnEmptyFingerprint) {
  EXPECT_TRUE(FingerprintModel(root_).empty());
  const std::vector<ModelFile> files = FingerprintModel(Path("none.gguf"));
  ASSERT_EQ(files.size(), 1u);
  EXPECT_EQ(files[0].num_bytes, 0);
}

TEST(SampleStrideTest, SmallModelsAreReadAsAWhole) {
  EXPECT_EQ(SampleStride(0), 4096);
  EXPECT_EQ(SampleStride(kFingerprintBytes), 4096);
  EXPECT_EQ(SampleStride(kFingerprintBytes + 1), 8192);
  // 140 GB: 8.5 MB apart.
  EXPECT_EQ(SampleStride(int64_t{140} * 1000000000) / 100000, 85);
}

}  // namespace
}  // namespace quire
