// Broken model directories: an error that names file, tensor and field, and no
// model. Each case damages a copy of a good one.
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <functional>
#include <sstream>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "engine/base/random.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/model_harness.h"

namespace quire {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using testing::AllOf;
using testing::HasSubstr;

std::string ReadFile(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

void WriteFile(const fs::path& path, const std::string& content) {
  std::ofstream(path, std::ios::binary | std::ios::trunc) << content;
}

class BadModelTest : public testing::Test {
 protected:
  BadModelTest()
      : directory_(fs::path(testing::TempDir()) /
                   absl::StrCat("bad_model_", ::getpid())) {}
  ~BadModelTest() override { fs::remove_all(directory_); }

  void CopyModel(const char* family) {
    fs::remove_all(directory_);
    fs::create_directories(directory_);
    const fs::path source = fs::path("tests/testdata/goldens") / family;
    for (const auto& entry : fs::directory_iterator(source)) {
      const fs::path to = directory_ / entry.path().filename();
      WriteFile(to, ReadFile(entry.path()));
    }
  }

  void EditConfig(const std::function<void(json&)>& edit) {
    json config = json::parse(ReadFile(directory_ / "config.json"));
    edit(config);
    WriteFile(directory_ / "config.json", config.dump());
  }

  // Replaces text in the header of model.safetensors; lengths must agree.
  void EditHeader(const std::string& from, const std::string& to) {
    ASSERT_EQ(from.size(), to.size());
    std::string file = ReadFile(directory_ / "model.safetensors");
    const size_t at = file.find(from);
    ASSERT_NE(at, std::string::npos) << from;
    file.replace(at, from.size(), to);
    WriteFile(directory_ / "model.safetensors", file);
  }

  absl::Status LoadStatus() {
    return ModelHarness::Create(directory_.string(), {}).status();
  }

  void ExpectError(absl::StatusCode code, const std::string& file,
                   const std::vector<std::string>& parts) {
    const absl::Status status = LoadStatus();
    EXPECT_EQ(status.code(), code) << status;
    const std::string message(status.message());
    EXPECT_THAT(message,
                HasSubstr(file.empty() ? directory_.string()
                                       : (directory_ / file).string()));
    for (const std::string& part : parts) {
      EXPECT_THAT(message, HasSubstr(part));
    }
  }

  const fs::path directory_;
};

TEST_F(BadModelTest, TheCopyItselfLoads) {
  CopyModel("llama_linear");
  EXPECT_TRUE(LoadStatus().ok()) << LoadStatus();
}

TEST_F(BadModelTest, NoDirectory) {
  EXPECT_EQ(LoadStatus().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(LoadStatus().message()), HasSubstr("config.json"));
}

TEST_F(BadModelTest, NoWeights) {
  CopyModel("llama_linear");
  fs::remove(directory_ / "model.safetensors");
  ExpectError(absl::StatusCode::kNotFound, "", {"model.safetensors"});
}

TEST_F(BadModelTest, MissingTensor) {
  CopyModel("llama_linear");
  EditHeader("layers.1.mlp.up_proj", "layers.1.mlp.up_prxj");
  ExpectError(absl::StatusCode::kInvalidArgument, "model.safetensors",
              {"model.layers.1.mlp.up_proj.weight", "missing", "[128, 64]"});
}

TEST_F(BadModelTest, MissingNorm) {
  CopyModel("llama_linear");
  EditHeader("\"model.norm.weight", "\"model.nrom.weight");
  ExpectError(absl::StatusCode::kInvalidArgument, "model.safetensors",
              {"model.norm.weight", "missing"});
}

TEST_F(BadModelTest, WrongShape) {
  CopyModel("llama_linear");
  EditConfig([](json& config) { config["intermediate_size"] = 160; });
  ExpectError(absl::StatusCode::kInvalidArgument, "model.safetensors",
              {"mlp.gate_proj.weight", "[128, 64]", "[160, 64]"});
}

TEST_F(BadModelTest, WrongVocabulary) {
  CopyModel("llama_linear");
  EditConfig([](json& config) { config["vocab_size"] = 255; });
  ExpectError(absl::StatusCode::kInvalidArgument, "model.safetensors",
              {"model.embed_tokens.weight", "[256, 64]", "[255, 64]"});
}

TEST_F(BadModelTest, MissingShard) {
  CopyModel("qwen3");
  fs::remove(directory_ / "model-00002-of-00002.safetensors");
  ExpectError(absl::StatusCode::kNotFound, "model-00002-of-00002.safetensors",
              {});
}

TEST_F(BadModelTest, UnknownModelType) {
  CopyModel("llama_linear");
  EditConfig([](json& config) { config["model_type"] = "mamba"; });
  ExpectError(absl::StatusCode::kInvalidArgument, "config.json",
              {"model_type", "mamba", "supported", "llama", "qwen3"});
}

TEST_F(BadModelTest, UnsupportedFields) {
  CopyModel("llama_linear");
  EditConfig([](json& config) { config["rope_scaling"]["type"] = "dynamic"; });
  ExpectError(absl::StatusCode::kInvalidArgument, "config.json",
              {"rope_scaling.type", "dynamic"});
  CopyModel("llama_linear");
  EditConfig([](json& config) {
    config["quantization_config"] = {{"quant_method", "bitsandbytes"}};
  });
  ExpectError(absl::StatusCode::kInvalidArgument, "config.json",
              {"quantization_config.quant_method", "bitsandbytes", "gptq",
               "awq", "fp8", "compressed-tensors"});
}

TEST_F(BadModelTest, MoreTokensThanLearnedPositions) {
  CopyModel("opt");
  ModelHarness::Options options;
  options.max_model_len = 257;
  const auto harness = ModelHarness::Create(directory_.string(), options);
  EXPECT_EQ(harness.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(harness.status().message()),
              AllOf(HasSubstr(directory_.string()), HasSubstr("257"),
                    HasSubstr("256 positions")));
}

TEST_F(BadModelTest, BadGenerationConfig) {
  CopyModel("llama_linear");
  WriteFile(directory_ / "generation_config.json", R"({"top_p": "all"})");
  ExpectError(absl::StatusCode::kInvalidArgument, "generation_config.json",
              {"top_p"});
}

// The file says that tensors exist which the configuration does not use: loads,
// with a line that names them.
TEST_F(BadModelTest, UnusedTensorsWarn) {
  CopyModel("llama_linear");
  EditConfig([](json& config) { config["num_hidden_layers"] = 1; });
  const auto harness = ModelHarness::Create(directory_.string(), {});
  ASSERT_TRUE(harness.ok()) << harness.status();
  ASSERT_EQ((*harness)->model().warnings.size(), 1u);
  EXPECT_THAT((*harness)->model().warnings[0],
              AllOf(HasSubstr("model.safetensors"),
                    HasSubstr("model.layers.1."), HasSubstr("not used")));
}

// Truncated anywhere, the file is refused: its tensors cover it to the end.
TEST_F(BadModelTest, Truncations) {
  CopyModel("llama_linear");
  const std::string file = ReadFile(directory_ / "model.safetensors");
  SimulationRandom random(3);
  for (int i = 0; i < 100; ++i) {
    fs::resize_file(directory_ / "model.safetensors", 0);
    WriteFile(directory_ / "model.safetensors",
              file.substr(0, random.Below(file.size())));
    const absl::Status status = LoadStatus();
    EXPECT_TRUE(status.code() == absl::StatusCode::kDataLoss ||
                status.code() == absl::StatusCode::kInvalidArgument)
        << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr("model.safetensors"));
  }
}

// Damaged headers and configurations: success or an error about a file, and
// what loads runs without a crash.
TEST_F(BadModelTest, BitFlips) {
  CopyModel("llama_linear");
  const std::string weights = ReadFile(directory_ / "model.safetensors");
  const std::string config = ReadFile(directory_ / "config.json");
  SimulationRandom random(4);
  int num_loaded = 0;
  for (int i = 0; i < 300; ++i) {
    std::string damaged = i % 2 == 0 ? weights : config;
    // The header of this file is shorter than 4 kB; damage the data seldom.
    const size_t range =
        i % 10 == 0 ? damaged.size() : std::min<size_t>(damaged.size(), 2500);
    damaged[random.Below(range)] ^= 1 << random.Below(8);
    WriteFile(directory_ / (i % 2 == 0 ? "model.safetensors" : "config.json"),
              damaged);
    ModelHarness::Options options;
    // A flipped digit may ask for a long context; the answer is an error, not
    // the machine's memory.
    options.kv_cache_memory_bytes = 1 << 20;
    auto harness = ModelHarness::Create(directory_.string(), options);
    if (harness.ok()) {
      ++num_loaded;
      TestSequence sequence = (*harness)->MakeSequence(0, {1, 2, 3}, 0);
      // NaN weights make the step's result an error; a crash is the fault.
      (void)(*harness)->Generate(sequence, 2, 2);
    } else {
      EXPECT_TRUE(
          harness.status().code() == absl::StatusCode::kInvalidArgument ||
          harness.status().code() == absl::StatusCode::kDataLoss ||
          harness.status().code() == absl::StatusCode::kResourceExhausted)
          << harness.status();
      EXPECT_NE(harness.status().message(), "");
    }
    WriteFile(directory_ / "model.safetensors", weights);
    WriteFile(directory_ / "config.json", config);
  }
  // Both outcomes occur, or the test says nothing.
  EXPECT_GT(num_loaded, 10);
  EXPECT_LT(num_loaded, 290);
}

}  // namespace
}  // namespace quire
