#include "benchmarks/random_model.h"

#include <unistd.h>

#include <cmath>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/model/draft_head_config.h"
#include "engine/model/model_config.h"
#include "engine/weights/safetensors.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/dtype.h"

namespace quire {
namespace {

namespace fs = std::filesystem;

RandomModelShape SmallShape() {
  RandomModelShape shape;
  shape.hidden_size = 64;
  shape.num_layers = 2;
  shape.num_heads = 2;
  shape.num_kv_heads = 1;
  shape.intermediate_size = 96;
  shape.vocab_size = 999;
  return shape;
}

class RandomModelTest : public testing::Test {
 protected:
  RandomModelTest()
      : directory_(fs::path(testing::TempDir()) /
                   absl::StrCat("random_model_", ::getpid())) {
    fs::create_directories(directory_);
  }
  ~RandomModelTest() override { fs::remove_all(directory_); }

  const fs::path directory_;
};

TEST_F(RandomModelTest, IsAValidCheckpointOfItsShape) {
  for (const bool is_tied : {false, true}) {
    RandomModelShape shape = SmallShape();
    shape.is_tied = is_tied;
    shape.has_qkv_bias = is_tied;
    ASSERT_TRUE(WriteRandomModel(shape, 1, directory_.string()).ok());
    const auto config = ReadModelDirectoryConfig(directory_.string());
    ASSERT_TRUE(config.ok()) << config.status();
    EXPECT_EQ(config->model.layers.size(), 2u);
    EXPECT_EQ(config->model.layers[0].has_qkv_bias, is_tied);
    const auto checkpoint = Checkpoint::Open(directory_.string());
    ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
    EXPECT_EQ((*checkpoint)->Find("lm_head.weight") == nullptr, is_tied);
    int64_t elements = 0;
    for (const auto& [name, tensor] : (*checkpoint)->tensors()) {
      if (tensor.shape.size() == 2) elements += tensor.num_elements;
    }
    EXPECT_EQ(elements, shape.LayerMatrixElements() +
                            shape.HeadElements() * (is_tied ? 1 : 2));
  }
}

TEST_F(RandomModelTest, WeightsAreNormalWithTheStatedDeviation) {
  ASSERT_TRUE(WriteRandomModel(SmallShape(), 1, directory_.string()).ok());
  const auto checkpoint = Checkpoint::Open(directory_.string());
  ASSERT_TRUE(checkpoint.ok());
  const StoredTensor* tensor = (*checkpoint)->Find("model.embed_tokens.weight");
  ASSERT_NE(tensor, nullptr);
  double sum = 0, squares = 0;
  int num_beyond_two = 0;
  for (int64_t i = 0; i < tensor->num_elements; ++i) {
    const uint16_t bits =
        tensor->data[2 * i] | (uint16_t{tensor->data[2 * i + 1]} << 8);
    const double value = 8.0 * Bf16ToFloat(bits);  // Deviation 1/8 of 64 cols.
    sum += value;
    squares += value * value;
    num_beyond_two += std::abs(value) > 2;
  }
  const double n = tensor->num_elements;  // 63,936: standard errors near 0.004.
  EXPECT_NEAR(sum / n, 0, 0.02);
  EXPECT_NEAR(squares / n, 1, 0.03);
  EXPECT_NEAR(num_beyond_two / n, 0.0455, 0.005);
}

TEST_F(RandomModelTest, ModelsWithQkNorms) {
  RandomModelShape shape = SmallShape();
  shape.has_qkv_bias = false;
  shape.has_qk_norm = true;
  ASSERT_TRUE(WriteRandomModel(shape, 1, directory_.string()).ok());
  const auto config = ReadModelDirectoryConfig(directory_.string());
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->model.model_type, "qwen3");
  const auto checkpoint = Checkpoint::Open(directory_.string());
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  EXPECT_NE((*checkpoint)->Find("model.layers.1.self_attn.k_norm.weight"),
            nullptr);
}

TEST_F(RandomModelTest, AHeadFitsItsModel) {
  for (const int64_t num_layers : {1, 2, 32}) {
    RandomModelShape shape = SmallShape();
    shape.num_layers = num_layers;
    ASSERT_TRUE(WriteRandomModel(shape, 1, directory_.string()).ok());
    const auto target = ReadModelDirectoryConfig(directory_.string());
    ASSERT_TRUE(target.ok()) << target.status();
    ASSERT_TRUE(WriteRandomHead(shape, 2, directory_.string()).ok());
    const auto head = ReadEagle3Config(directory_.string(), target->model);
    ASSERT_TRUE(head.ok()) << head.status();
    EXPECT_EQ(head->model.vocab_size, 999);
    EXPECT_EQ(head->taps.size(), 3u);
    const auto checkpoint = Checkpoint::Open(directory_.string());
    ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
    const StoredTensor* fc = (*checkpoint)->Find("fc.weight");
    ASSERT_NE(fc, nullptr);
    EXPECT_EQ(fc->shape, (std::vector<int64_t>{64, 3 * 64}));
    const StoredTensor* ids = (*checkpoint)->Find("d2t");
    ASSERT_NE(ids, nullptr);
    EXPECT_EQ(ids->dtype, StoredDType::kI64);
    EXPECT_EQ(ids->num_elements, 999);
  }
}

// The published counts (0.49B, 1.24B, 8.19B, 8.03B), less norms and biases.
TEST(PresetShapeTest, HaveThePublishedParameters) {
  const auto count = [](const char* name) {
    const RandomModelShape shape = *PresetShape(name);
    return shape.LayerMatrixElements() +
           shape.HeadElements() * (shape.is_tied ? 1 : 2);
  };
  EXPECT_EQ(count("qwen2.5-0.5b"), 493961216);
  EXPECT_EQ(count("llama-3.2-1b"), 1235746816);
  EXPECT_EQ(count("qwen3-8b"), 8190427136);
  EXPECT_EQ(count("llama-3.1-8b"), 8029995008);
  EXPECT_EQ(PresetNames().size(), 5u);
  EXPECT_EQ(PresetShape("gpt-5").status().code(),
            absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace quire
