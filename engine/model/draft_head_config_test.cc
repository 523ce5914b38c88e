#include "engine/model/draft_head_config.h"

#include <filesystem>
#include <fstream>
#include <string>

#include "absl/strings/match.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

namespace quire {
namespace {

using Json = nlohmann::json;

// As published for Llama 3.1 8B, but for the sizes.
Json Published() {
  return {{"architectures", {"LlamaForCausalLMEagle3"}},
          {"model_type", "llama"},
          {"bos_token_id", 1},
          {"eos_token_id", 2},
          {"hidden_act", "silu"},
          {"hidden_size", 128},
          {"intermediate_size", 256},
          {"max_position_embeddings", 512},
          {"num_attention_heads", 4},
          {"num_key_value_heads", 2},
          {"num_hidden_layers", 1},
          {"rms_norm_eps", 1e-5},
          {"vocab_size", 320},
          {"draft_vocab_size", 96}};
}

ModelConfig Target() {
  ModelConfig target;
  target.vocab_size = 320;
  target.hidden_size = 128;
  target.layers.resize(32);
  return target;
}

class DraftHeadConfigTest : public testing::Test {
 protected:
  absl::StatusOr<DraftHeadConfig> Read(const Json& json,
                                       const ModelConfig& target = Target()) {
    std::filesystem::create_directories(directory_);
    std::ofstream(directory_ + "/config.json") << json.dump();
    return ReadEagle3Config(directory_, target);
  }
  // The error of a configuration with these fields changed.
  std::string ErrorOf(const Json& changes,
                      const ModelConfig& target = Target()) {
    Json json = Published();
    json.update(changes);
    const auto config = Read(json, target);
    EXPECT_EQ(config.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_TRUE(absl::StrContains(config.status().message(), directory_))
        << config.status();
    return std::string(config.status().message());
  }

  const std::string directory_ = testing::TempDir() + "/draft_head";
};

TEST_F(DraftHeadConfigTest, ReadsWhatIsPublished) {
  const auto config = Read(Published());
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->kind, DraftHeadKind::kEagle3);
  EXPECT_EQ(config->model.vocab_size, 96);
  EXPECT_EQ(config->num_input_ids, 320);
  EXPECT_EQ(config->target_hidden_size, 128);
  EXPECT_EQ(config->model.layers.size(), 1u);
  EXPECT_EQ(config->taps, (std::vector<int>{2, 16, 29}));
  EXPECT_FALSE(config->norm_before_residual);
  EXPECT_TRUE(config->model.warnings.empty());
}

TEST_F(DraftHeadConfigTest, LayersAndNormMayBeNamed) {
  Json json = Published();
  json["eagle_config"] = {{"eagle_aux_hidden_state_layer_ids", {1, 9, 17}},
                          {"use_aux_hidden_state", true}};
  json["norm_before_residual"] = true;
  json.erase("draft_vocab_size");
  const auto config = Read(json);
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->taps, (std::vector<int>{1, 9, 17}));
  EXPECT_TRUE(config->norm_before_residual);
  EXPECT_EQ(config->model.vocab_size, 320);
}

// The authors' heads: named as models are, one even with its target's layers.
TEST_F(DraftHeadConfigTest, ReadsTheAuthorsHeads) {
  Json json = Published();
  json["architectures"] = {"LlamaForCausalLM"};
  for (const int num_layers : {1, 40}) {
    json["num_hidden_layers"] = num_layers;
    const auto config = Read(json);
    ASSERT_TRUE(config.ok()) << config.status();
    EXPECT_EQ(config->model.layers.size(), 1u);
    EXPECT_EQ(config->model.vocab_size, 96);
  }
  json.erase("draft_vocab_size");
  const auto config = Read(json);
  EXPECT_TRUE(absl::StrContains(config.status().message(),
                                "[\"LlamaForCausalLM\"] is no EAGLE-3 head"))
      << config.status();
}

// As github.com/vllm-project/speculators writes them.
Json Speculator() {
  Json layer = Published();
  layer.erase("architectures");
  layer.erase("draft_vocab_size");
  layer.update({{"attention_bias", false},
                {"mlp_bias", false},
                {"head_dim", 32},
                {"rope_scaling", nullptr},
                {"rope_theta", 500000.0}});
  return {{"architectures", {"Eagle3DraftModel"}},
          {"draft_vocab_size", 96},
          {"dtype", "bfloat16"},
          {"eagle_aux_hidden_state_layer_ids", nullptr},
          {"norm_before_residual", true},
          {"speculators_config",
           {{"algorithm", "eagle3"},
            {"proposal_methods",
             {{{"proposal_type", "greedy"}, {"speculative_tokens", 3}}}},
            {"verifier", {{"name_or_path", "target"}}}}},
          {"speculators_model_type", "eagle3"},
          {"speculators_version", "0.3.0"},
          {"target_hidden_size", nullptr},
          {"transformer_layer_config", layer}};
}

TEST_F(DraftHeadConfigTest, ReadsSpeculators) {
  Json json = Speculator();
  auto config = Read(json);
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->model.vocab_size, 96);
  EXPECT_EQ(config->num_input_ids, 320);
  EXPECT_EQ(config->target_hidden_size, 128);
  EXPECT_EQ(config->model.layers[0].head_dim, 32);
  EXPECT_EQ(config->taps, (std::vector<int>{2, 16, 29}));
  EXPECT_TRUE(config->norm_before_residual);
  EXPECT_TRUE(config->model.warnings.empty());

  json["eagle_aux_hidden_state_layer_ids"] = {1, 9, 17};
  json["norm_before_residual"] = false;
  config = Read(json);
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->taps, (std::vector<int>{1, 9, 17}));
  EXPECT_FALSE(config->norm_before_residual);
  // Absent, it is what vLLM takes it for.
  json.erase("norm_before_residual");
  config = Read(json);
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_TRUE(config->norm_before_residual);
}

TEST_F(DraftHeadConfigTest, SpeculatorsOfOtherKindsAreNamed) {
  const auto error_of = [this](const Json& json) {
    const auto config = Read(json);
    EXPECT_EQ(config.status().code(), absl::StatusCode::kInvalidArgument);
    return std::string(config.status().message());
  };
  const struct {
    Json changes;
    const char* field;
  } cases[] = {
      {{{"speculators_model_type", "eagle"}}, "\"eagle\" is no EAGLE-3 head"},
      {{{"speculators_model_type", 3}}, "speculators_model_type"},
      {{{"transformer_layer_config", nullptr}}, "transformer_layer_config"},
      {{{"transformer_layer_config", 3}}, "transformer_layer_config"},
      {{{"norm_before_fc", true}}, "norm_before_fc"},
      {{{"draft_vocab_size", 321}}, "draft_vocab_size"},
      {{{"eagle_aux_hidden_state_layer_ids", {1, 2}}}, "must have 3 layers"},
      {{{"eagle_aux_hidden_state_layer_ids", {1, 2, 32}}},
       "eagle_aux_hidden_state_layer_ids"}};
  for (const auto& c : cases) {
    Json json = Speculator();
    json.update(c.changes);
    EXPECT_TRUE(absl::StrContains(error_of(json), c.field))
        << error_of(json) << c.changes;
  }
  Json json = Speculator();
  json["transformer_layer_config"]["num_hidden_layers"] = 2;
  EXPECT_TRUE(absl::StrContains(error_of(json),
                                "transformer_layer_config.num_hidden_layers"));
  json = Speculator();
  json["transformer_layer_config"]["model_type"] = "qwen3";
  EXPECT_TRUE(
      absl::StrContains(error_of(json), "transformer_layer_config.model_type"));
}

TEST_F(DraftHeadConfigTest, WhatDoesNotFitIsNamed) {
  const struct {
    Json changes;
    const char* field;
  } cases[] = {
      {{{"architectures", {"MistralForCausalLM"}}},
       "\"architectures\": [\"MistralForCausalLM\"] is no EAGLE-3"},
      {{{"architectures", Json::array()}}, "architectures"},
      {{{"vocab_size", 321}}, "vocab_size"},
      {{{"hidden_size", 64}}, "hidden_size"},
      {{{"target_hidden_size", 64}}, "target_hidden_size"},
      {{{"draft_vocab_size", 321}}, "draft_vocab_size"},
      {{{"draft_vocab_size", -1}}, "draft_vocab_size"},
      {{{"draft_vocab_size", "many"}}, "draft_vocab_size"},
      {{{"eagle_config", {{"eagle_aux_hidden_state_layer_ids", {1, 2, 32}}}}},
       "eagle_aux_hidden_state_layer_ids"},
      {{{"eagle_config", {{"eagle_aux_hidden_state_layer_ids", {1, 2}}}}},
       "eagle_aux_hidden_state_layer_ids"},
      {{{"eagle_config", {{"use_aux_hidden_state", false}}}},
       "use_aux_hidden_state"},
      {{{"eagle_config", 3}}, "eagle_config"}};
  for (const auto& c : cases) {
    EXPECT_TRUE(absl::StrContains(ErrorOf(c.changes), c.field)) << c.changes;
  }
  ModelConfig shallow = Target();
  shallow.layers.resize(2);
  EXPECT_TRUE(absl::StrContains(ErrorOf(Json::object(), shallow),
                                "the model has only 2"));
}

TEST_F(DraftHeadConfigTest, TellsHeadsFromModels) {
  const auto is_head = [this](const Json& json) {
    Read(json).IgnoreError();
    return IsEagle3Head(directory_);
  };
  EXPECT_TRUE(is_head(Published()));
  EXPECT_TRUE(is_head(Speculator()));
  Json json = Published();
  json.erase("draft_vocab_size");
  EXPECT_TRUE(is_head(json));
  json["architectures"] = {"LlamaForCausalLM"};
  EXPECT_FALSE(is_head(json));
  json["draft_vocab_size"] = 96;
  EXPECT_TRUE(is_head(json));
  for (const Json& other :
       {Json("text"), Json::object(), Json{{"architectures", 3}},
        Json{{"architectures", {3}}}, Json{{"speculators_model_type", 3}}}) {
    EXPECT_FALSE(is_head(other)) << other;
  }
  EXPECT_FALSE(IsEagle3Head(directory_ + "/nothing"));
}

TEST_F(DraftHeadConfigTest, NoFileAndNoJson) {
  EXPECT_EQ(ReadEagle3Config(directory_ + "/nothing", Target()).status().code(),
            absl::StatusCode::kNotFound);
  EXPECT_EQ(Read("text").status().code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(DraftHeadConfigTest, AModelWithoutSuchLayersHasNoMtp) {
  EXPECT_EQ(MakeMtpConfig("/model", Target()).status().code(),
            absl::StatusCode::kInvalidArgument);
  ModelConfig target = Target();
  target.num_mtp_layers = 1;
  target.layers.back().sliding_window = 7;
  const auto config = MakeMtpConfig("/model", target);
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->taps, std::vector<int>{-1});
  EXPECT_EQ(config->model.layers.size(), 1u);
  EXPECT_EQ(config->model.layers[0].sliding_window, 0);
}

}  // namespace
}  // namespace quire
