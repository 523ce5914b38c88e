// A model in PyTorch's files is the model in safetensors.
#include <fstream>
#include <memory>
#include <sstream>
#include <string>
#include <vector>

#include "engine/weights/safetensors.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/model_harness.h"

namespace quire {
namespace {

constexpr char kPytorch[] = "tests/testdata/pytorch_model";
constexpr char kSafetensors[] = "tests/testdata/goldens/llama_linear";

TEST(PytorchModelTest, TheSameTensors) {
  const auto pytorch = Checkpoint::Open(kPytorch);
  const auto expected = Checkpoint::Open(kSafetensors);
  ASSERT_TRUE(pytorch.ok()) << pytorch.status();
  ASSERT_TRUE(expected.ok()) << expected.status();
  EXPECT_EQ((*pytorch)->tensors().size(), (*expected)->tensors().size());
  for (const auto& [name, tensor] : (*expected)->tensors()) {
    const StoredTensor* found = (*pytorch)->Find(name);
    ASSERT_NE(found, nullptr) << name;
    EXPECT_EQ(found->dtype, tensor.dtype);
    EXPECT_EQ(found->shape, tensor.shape);
    EXPECT_EQ(found->data, tensor.data) << name;
  }
}

TEST(PytorchModelTest, TheSameAnswers) {
  std::ifstream file(std::string(kPytorch) + "/golden.json");
  const nlohmann::json golden = nlohmann::json::parse(file);
  const auto harness = ModelHarness::Create(kPytorch, {});
  ASSERT_TRUE(harness.ok()) << harness.status();
  for (const nlohmann::json& entry : golden["cases"]) {
    TestSequence sequence = (*harness)->MakeSequence(0, entry["prompt"], 0);
    const std::vector<int32_t> expected = entry["greedy"];
    ASSERT_TRUE((*harness)->Generate(sequence, 64, expected.size()).ok());
    EXPECT_EQ(std::vector<int32_t>(
                  sequence.tokens.begin() + sequence.num_prompt_tokens,
                  sequence.tokens.end()),
              expected);
    (*harness)->Preempt(sequence);
  }
}

}  // namespace
}  // namespace quire
