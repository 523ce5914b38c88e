// 1,000 damaged copies of a checkpoint of every layout of quantized tensors and
// of PyTorch's files: an error that names the file, or a model; never a crash.
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <memory>
#include <sstream>
#include <string>
#include <tuple>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "engine/base/random.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/model_harness.h"

namespace quire {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

constexpr int kCopies = 1000;
constexpr int kParts = 4;  // Tests that share them, for shards.

std::string ReadFile(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

class DamagedCheckpointTest
    : public testing::TestWithParam<std::tuple<const char*, int>> {
 protected:
  DamagedCheckpointTest()
      : source_(std::get<0>(GetParam())), part_(std::get<1>(GetParam())) {
    fs::create_directories(copy_);
    for (const auto& entry : fs::directory_iterator(source_)) {
      const std::string name = entry.path().filename().string();
      if (absl::StartsWith(name, "golden") ||
          absl::StartsWith(name, "dequantized")) {
        continue;
      }
      // Not by copy: the original may be read-only.
      Write(name, ReadFile(entry.path()));
      (absl::EndsWith(name, ".json") ? texts_ : weights_).push_back(name);
    }
  }
  ~DamagedCheckpointTest() override { fs::remove_all(copy_); }

  void Write(const std::string& name, const std::string& content) {
    // A file that is cut off and written again may be put on the disk at once.
    fs::remove(copy_ / name);
    std::ofstream(copy_ / name, std::ios::binary) << content;
  }

  // Bytes of the part of a file that describes the rest.
  static uint64_t HeaderSize(const std::string& name,
                             const std::string& content) {
    if (absl::EndsWith(name, ".bin")) {
      // The pickle is the archive's first file; the directory is at the end.
      return 2000;
    }
    uint64_t size = 0;
    std::memcpy(&size, content.data(), sizeof(size));
    return size + sizeof(size);
  }

  std::string Damage(int kind, const std::string& name, std::string content,
                     SimulationRandom& random) {
    const auto flip = [&](uint64_t begin, uint64_t end) {
      content[begin + random.Below(end - begin)] ^= 1 << random.Below(8);
    };
    const uint64_t header = HeaderSize(name, content);
    switch (kind) {
      case 0:
        content.resize(random.Below(content.size()));
        break;
      case 1:
        flip(0, header);
        break;
      case 2:  // In order, scales, codes; a zip's directory.
        for (int k = 0; k < 200; ++k) flip(header, content.size());
        break;
      default:
        for (int k = 0; k < 1 + kind % 3; ++k) flip(0, content.size());
    }
    return content;
  }

  const fs::path source_;
  const int part_;
  const fs::path copy_ = fs::path(testing::TempDir()) /
                         absl::StrCat("damaged_", ::getpid(), "_", part_,
                                      fs::path(source_).filename().string());
  std::vector<std::string> weights_, texts_;
};

TEST_P(DamagedCheckpointTest, IsAnErrorThatNamesTheFileOrAModel) {
  ModelHarness::Options options;
  options.max_num_seqs = 1;
  options.max_num_batched_tokens = 4;
  options.max_model_len = 8;
  options.num_threads = 1;
  ASSERT_FALSE(weights_.empty());
  ASSERT_FALSE(texts_.empty());
  const auto whole = ModelHarness::Create(copy_.string(), options);
  ASSERT_TRUE(whole.ok()) << whole.status();
  SimulationRandom random(7 + part_);
  int num_errors = 0;
  for (int i = 0; i < kCopies / kParts; ++i) {
    const bool is_text = i % 5 == 4;
    const auto& names = is_text ? texts_ : weights_;
    const std::string& name = names[random.Below(names.size())];
    const std::string original = ReadFile(source_ / name);
    if (is_text) {
      std::string text = original;
      text[random.Below(text.size())] ^= 1 << random.Below(7);
      Write(name, text);
    } else {
      Write(name, Damage(i % 5, name, original, random));
    }
    const auto harness = ModelHarness::Create(copy_.string(), options);
    if (!harness.ok()) {
      ++num_errors;
      EXPECT_THAT(std::string(harness.status().message()),
                  HasSubstr(copy_.string()))
          << "copy " << i;
    }
    Write(name, original);
  }
  // Every truncation, and most flips in what describes the tensors.
  EXPECT_GE(num_errors, kCopies / kParts / 4);
  EXPECT_LT(num_errors, kCopies / kParts);
}

std::string ParamName(
    const testing::TestParamInfo<DamagedCheckpointTest::ParamType>& info) {
  return absl::StrCat(fs::path(std::get<0>(info.param)).filename().string(),
                      "_", std::get<1>(info.param));
}
INSTANTIATE_TEST_SUITE_P(
    All, DamagedCheckpointTest,
    testing::Combine(
        testing::Values("tests/testdata/quantized/gptq",
                        "tests/testdata/quantized/gptq_act_order",
                        "tests/testdata/quantized/gptq_v2_8bit",
                        "tests/testdata/quantized/gptq_phi3",
                        "tests/testdata/quantized/awq",
                        "tests/testdata/quantized/fp8_tensor",
                        "tests/testdata/quantized/fp8_block",
                        "tests/testdata/quantized/compressed_fp8",
                        "tests/testdata/quantized/compressed_int4",
                        "tests/testdata/quantized/compressed_int4_act_order",
                        "tests/testdata/quantized/compressed_int8",
                        "tests/testdata/pytorch_model"),
        testing::Range(0, kParts)),
    ParamName);

}  // namespace
}  // namespace quire
