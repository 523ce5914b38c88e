#include "engine/model/model_config.h"

#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

namespace quire {
namespace {

using nlohmann::json;
using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

json LlamaJson() {
  return json::parse(R"({
    "architectures": ["LlamaForCausalLM"], "model_type": "llama",
    "vocab_size": 32000, "hidden_size": 256, "intermediate_size": 512,
    "num_hidden_layers": 4, "num_attention_heads": 8,
    "num_key_value_heads": 2, "rms_norm_eps": 1e-5,
    "max_position_embeddings": 4096, "torch_dtype": "bfloat16",
    "hidden_act": "silu", "bos_token_id": 1, "eos_token_id": [2, 7]
  })");
}

json Changed(json config, const json& changes) {
  config.merge_patch(changes);  // A null removes the field.
  return config;
}

json Qwen(const char* model_type, const json& changes) {
  json config = Changed(LlamaJson(), changes);
  config["model_type"] = model_type;
  config.erase("architectures");
  return config;
}

absl::StatusOr<ModelConfig> Parse(const json& config) {
  return ParseModelConfig(config.dump(), "dir/config.json");
}

ModelConfig MustParse(const json& config) {
  absl::StatusOr<ModelConfig> parsed = Parse(config);
  EXPECT_TRUE(parsed.ok()) << parsed.status();
  return parsed.ok() ? *parsed : ModelConfig();
}

std::vector<int> Windows(const ModelConfig& config) {
  std::vector<int> windows;
  for (const LayerConfig& layer : config.layers) {
    windows.push_back(layer.sliding_window);
  }
  return windows;
}

TEST(ModelConfigTest, Llama) {
  const ModelConfig config = MustParse(LlamaJson());
  EXPECT_EQ(config.architecture, "LlamaForCausalLM");
  EXPECT_EQ(config.vocab_size, 32000);
  EXPECT_EQ(config.hidden_size, 256);
  EXPECT_EQ(config.max_position_embeddings, 4096);
  EXPECT_FLOAT_EQ(config.norm_eps, 1e-5f);
  EXPECT_FALSE(config.tie_word_embeddings);
  EXPECT_EQ(config.dtype, DType::kBF16);
  EXPECT_THAT(config.eos_token_ids, ElementsAre(2, 7));
  EXPECT_EQ(config.bos_token_id, 1);
  EXPECT_FALSE(config.pad_token_id.has_value());
  EXPECT_THAT(config.warnings, IsEmpty());
  ASSERT_EQ(config.layers.size(), 4u);
  const LayerConfig& layer = config.layers[3];
  EXPECT_EQ(layer.num_heads, 8);
  EXPECT_EQ(layer.num_kv_heads, 2);
  EXPECT_EQ(layer.head_dim, 32);
  EXPECT_EQ(layer.intermediate_size, 512);
  EXPECT_EQ(layer.sliding_window, 0);
  EXPECT_EQ(layer.rope, RopeConfig());
  EXPECT_EQ(layer.qk_norm, QkNorm::kNone);
  EXPECT_FALSE(layer.has_qkv_bias || layer.has_output_bias ||
               layer.has_mlp_bias);
}

TEST(ModelConfigTest, FamiliesDiffer) {
  const LayerConfig biased =
      MustParse(
          Changed(LlamaJson(), {{"attention_bias", true}, {"mlp_bias", true}}))
          .layers[0];
  EXPECT_TRUE(biased.has_qkv_bias && biased.has_output_bias &&
              biased.has_mlp_bias);

  const LayerConfig qwen2 = MustParse(Qwen("qwen2", json::object())).layers[0];
  EXPECT_TRUE(qwen2.has_qkv_bias);
  EXPECT_FALSE(qwen2.has_output_bias);
  EXPECT_EQ(qwen2.qk_norm, QkNorm::kNone);

  const LayerConfig qwen3 = MustParse(Qwen("qwen3", json::object())).layers[0];
  EXPECT_EQ(qwen3.qk_norm, QkNorm::kHead);
  EXPECT_FALSE(qwen3.has_qkv_bias);
  EXPECT_EQ(qwen3.head_dim, 128);  // The family's default, not 256 / 8.
}

TEST(ModelConfigTest, HeadDefaults) {
  json config = LlamaJson();
  config.erase("num_key_value_heads");
  EXPECT_EQ(MustParse(config).layers[0].num_kv_heads, 8);
  config["model_type"] = "mistral";
  config.erase("architectures");
  config["num_attention_heads"] = 16;
  EXPECT_EQ(MustParse(config).layers[0].num_kv_heads, 8);
  config["num_key_value_heads"] = nullptr;
  EXPECT_EQ(MustParse(config).layers[0].num_kv_heads, 16);
  config["head_dim"] = 128;
  EXPECT_EQ(MustParse(config).layers[0].head_dim, 128);
}

TEST(ModelConfigTest, SlidingWindows) {
  json mistral = Qwen("mistral", json::object());
  EXPECT_THAT(Windows(MustParse(mistral)), ElementsAre(4096, 4096, 4096, 4096));
  mistral["sliding_window"] = nullptr;
  EXPECT_THAT(Windows(MustParse(mistral)), ElementsAre(0, 0, 0, 0));
  mistral["sliding_window"] = 100;
  EXPECT_THAT(Windows(MustParse(mistral)), ElementsAre(100, 100, 100, 100));

  json qwen = Qwen("qwen2", {{"sliding_window", 64}, {"max_window_layers", 3}});
  EXPECT_THAT(Windows(MustParse(qwen)), ElementsAre(0, 0, 0, 0));
  qwen["use_sliding_window"] = true;
  EXPECT_THAT(Windows(MustParse(qwen)), ElementsAre(0, 0, 0, 64));
  qwen["layer_types"] = {"sliding_attention", "full_attention",
                         "full_attention", "sliding_attention"};
  EXPECT_THAT(Windows(MustParse(qwen)), ElementsAre(64, 0, 0, 64));
  qwen["use_sliding_window"] = false;  // Contradicts layer_types.
  EXPECT_THAT(std::string(Parse(qwen).status().message()),
              HasSubstr("\"layer_types\""));
}

TEST(ModelConfigTest, RopeSpellings) {
  const RopeConfig old_spelling =
      MustParse(Changed(LlamaJson(), json::parse(R"({"rope_theta": 500000.0,
          "rope_scaling": {"rope_type": "llama3", "factor": 8.0,
            "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192}})")))
          .layers[0]
          .rope;
  EXPECT_EQ(old_spelling.type, RopeType::kLlama3);
  EXPECT_EQ(old_spelling.theta, 500000.0);
  EXPECT_EQ(old_spelling.original_max_position_embeddings, 8192);
  const RopeConfig new_spelling =
      MustParse(Changed(LlamaJson(), json::parse(R"({
          "rope_parameters": {"rope_type": "llama3", "rope_theta": 500000.0,
            "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192}})")))
          .layers[0]
          .rope;
  EXPECT_EQ(new_spelling, old_spelling);
  const RopeConfig oldest = MustParse(Changed(LlamaJson(), json::parse(R"({
          "rope_scaling": {"type": "linear", "factor": 2}})")))
                                .layers[0]
                                .rope;
  EXPECT_EQ(oldest.type, RopeType::kLinear);
  EXPECT_EQ(oldest.factor, 2.0);
  EXPECT_EQ(MustParse(Changed(LlamaJson(), {{"rope_parameters", json::object()},
                                            {"rope_theta", 1e6}}))
                .layers[0]
                .rope.theta,
            1e6);
}

TEST(ModelConfigTest, YarnAttentionFactor) {
  const auto factor = [](const char* fields) {
    json config = LlamaJson();
    config["rope_scaling"] = json::parse(fields);
    config["rope_scaling"]["type"] = "yarn";
    return MustParse(config).layers[0].rope.attention_factor;
  };
  // 0.1 ln(4) + 1.
  EXPECT_NEAR(factor(R"({"factor": 4.0})"), 1.1386294361119891, 1e-12);
  EXPECT_EQ(factor(R"({"factor": 4.0, "attention_factor": 1.5})"), 1.5);
  EXPECT_NEAR(factor(R"({"factor": 4.0, "mscale": 1, "mscale_all_dim": 1})"),
              1.0, 1e-12);
  // (0.2 ln(4) + 1) / (0.1 ln(4) + 1).
  EXPECT_NEAR(factor(R"({"factor": 4.0, "mscale": 2, "mscale_all_dim": 1})"),
              1.1217511437130581, 1e-12);
  EXPECT_EQ(factor(R"({"factor": 1.0})"), 1.0);
}

struct BadField {
  const char* changes;
  const char* field;
};

TEST(ModelConfigTest, ErrorsNameFileAndField) {
  const BadField cases[] = {
      {R"({"model_type": "gpt2"})", "model_type"},
      {R"({"model_type": null})", "model_type"},
      {R"({"architectures": ["LlamaForTokenClassification"]})",
       "architectures"},
      {R"({"vocab_size": null})", "vocab_size"},
      {R"({"vocab_size": "many"})", "vocab_size"},
      {R"({"vocab_size": 1e30})", "vocab_size"},
      {R"({"hidden_size": 0})", "hidden_size"},
      {R"({"hidden_size": -1})", "hidden_size"},
      {R"({"hidden_size": 99999999999})", "hidden_size"},
      {R"({"num_hidden_layers": 100000})", "num_hidden_layers"},
      {R"({"num_attention_heads": 7})", "num_key_value_heads"},
      {R"({"num_key_value_heads": 3})", "num_key_value_heads"},
      {R"({"head_dim": 33})", "head_dim"},
      {R"({"head_dim": 2.5})", "head_dim"},
      {R"({"rms_norm_eps": "small"})", "rms_norm_eps"},
      {R"({"hidden_act": "gelu_10"})", "hidden_act"},
      {R"({"quantization": {"bits": 4}})", "quantization"},
      {R"({"quantization_config": 4})", "quantization_config"},
      {R"({"quantization_config": {"bits": 4}})",
       "quantization_config.quant_method"},
      {R"({"compression_config": {"quant_method": "bitsandbytes"}})",
       "compression_config.quant_method"},
      {R"({"quantization_config": {"quant_method": "gptq", "bits": 3}})",
       "quantization_config.bits"},
      {R"({"quantization_config": {"quant_method": "gptq", "bits": 4,
           "group_size": 0.5}})",
       "quantization_config.group_size"},
      {R"({"quantization_config": {"quant_method": "gptq", "bits": 4,
           "checkpoint_format": "marlin"}})",
       "quantization_config.checkpoint_format"},
      {R"({"quantization_config": {"quant_method": "awq", "bits": 8}})",
       "quantization_config.bits"},
      {R"({"quantization_config": {"quant_method": "awq",
           "version": "gemv"}})",
       "quantization_config.version"},
      {R"({"quantization_config": {"quant_method": "fp8", "fmt": "e5m2"}})",
       "quantization_config.fmt"},
      {R"({"quantization_config": {"quant_method": "fp8",
           "weight_block_size": [128, 64]}})",
       "quantization_config.weight_block_size"},
      {R"({"quantization_config": {"quant_method": "fp8",
           "modules_to_not_convert": "lm_head"}})",
       "quantization_config.modules_to_not_convert"},
      {R"({"quantization_config": {"quant_method": "compressed-tensors",
           "format": "marlin-24"}})",
       "quantization_config.format"},
      {R"({"quantization_config": {"quant_method": "compressed-tensors",
           "ignore": [1]}})",
       "quantization_config.ignore"},
      {R"({"quantization_config": {"quant_method": "compressed-tensors",
           "ignore": ["re:[a"]}})",
       "quantization_config.ignore"},
      {R"({"quantization_config": {"quant_method": "compressed-tensors",
           "config_groups": {"group_0": {"weights": {"type": "int",
           "num_bits": 3}}}}})",
       "quantization_config.config_groups.group.weights.num_bits"},
      {R"({"quantization_config": {"quant_method": "compressed-tensors",
           "sparsity_config": {"format": "sparse-bitmask"}}})",
       "quantization_config.sparsity_config.format"},
      {R"({"quantization_config": {"quant_method": "compressed-tensors",
           "transform_config": {"config_groups": {"a": {}}}}})",
       "quantization_config.transform_config"},
      {R"({"num_local_experts": 8})", "num_local_experts"},
      {R"({"partial_rotary_factor": 0.5})", "partial_rotary_factor"},
      {R"({"sliding_window": 128})", "sliding_window"},
      {R"({"layer_types": ["full_attention"]})", "layer_types"},
      {R"({"layer_types": ["a", "a", "a", "a"]})", "layer_types"},
      {R"({"rope_scaling": {"rope_type": "ntk", "factor": 2}})",
       "rope_scaling.rope_type"},
      {R"({"rope_scaling": {"rope_type": "longrope", "factor": 2}})",
       "rope_scaling.short_factor"},
      {R"({"rope_scaling": {"type": "dynamic", "factor": 2}})",
       "rope_scaling.type"},
      {R"({"rope_scaling": {"type": "linear"}})", "rope_scaling.factor"},
      {R"({"rope_scaling": {"type": "linear", "factor": 0}})",
       "rope_scaling.factor"},
      {R"({"rope_scaling": {"type": "linear", "factor": 2, "foo": 1}})",
       "rope_scaling.foo"},
      {R"({"rope_scaling": {"type": "llama3", "factor": 2}})",
       "rope_scaling.low_freq_factor"},
      {R"({"rope_scaling": {"type": "llama3", "factor": 2,
           "low_freq_factor": 4, "high_freq_factor": 4}})",
       "rope_scaling.high_freq_factor"},
      {R"({"rope_scaling": 3})", "rope_scaling"},
      {R"({"rope_theta": 0})", "rope_theta"},
      {R"({"tie_word_embeddings": 1})", "tie_word_embeddings"},
      {R"({"eos_token_id": 32000})", "eos_token_id"},
  };
  for (const BadField& bad : cases) {
    const absl::Status status =
        Parse(Changed(LlamaJson(), json::parse(bad.changes))).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << bad.changes;
    EXPECT_THAT(std::string(status.message()),
                AllOf(HasSubstr("dir/config.json"),
                      HasSubstr(std::string("\"") + bad.field + "\"")));
  }
}

TEST(ModelConfigTest, UnknownModelTypeListsTheSupportedOnes) {
  const absl::Status status =
      Parse(Changed(LlamaJson(), {{"model_type", "rwkv"}})).status();
  EXPECT_THAT(
      std::string(status.message()),
      AllOf(HasSubstr("\"rwkv\""), HasSubstr("llama"), HasSubstr("mistral"),
            HasSubstr("qwen2"), HasSubstr("qwen3")));
}

TEST(ModelConfigTest, FieldsThatAFamilyDoesNotRead) {
  EXPECT_FALSE(Parse(Qwen("mistral", {{"attention_bias", true}})).ok());
  EXPECT_TRUE(Parse(Qwen("mistral", {{"attention_bias", false}})).ok());
  EXPECT_FALSE(Parse(Qwen("qwen2", {{"attention_bias", false}})).ok());
  EXPECT_FALSE(Parse(Qwen("qwen3", {{"mlp_bias", true}})).ok());
}

TEST(ModelConfigTest, UnknownFieldsWarnHarmlessOnesDoNot) {
  const ModelConfig config =
      MustParse(Changed(LlamaJson(), {{"use_cache", true},
                                      {"transformers_version", "4.40.0"},
                                      {"initializer_range", 0.02},
                                      {"never_seen_before", 3}}));
  ASSERT_EQ(config.warnings.size(), 1u);
  EXPECT_THAT(config.warnings[0], AllOf(HasSubstr("dir/config.json"),
                                        HasSubstr("\"never_seen_before\"")));
}

// Fields as published configurations have them.
TEST(ModelConfigTest, FieldsOfPublishedModels) {
  json config = Qwen("qwen2", json::parse(R"({"rope_theta": 1000000.0,
      "rope_scaling": {"factor": 4.0, "type": "yarn",
                       "original_max_position_embeddings": 32768},
      "use_mrope": false, "use_sliding_window": false, "sliding_window": 4096,
      "max_window_layers": 3, "pad_token_id": 40000})"));
  EXPECT_THAT(MustParse(config).warnings, IsEmpty());
  EXPECT_EQ(MustParse(config).layers[0].rope.type, RopeType::kYarn);
  EXPECT_EQ(MustParse(config).pad_token_id, std::nullopt);
  config["use_mrope"] = true;
  EXPECT_FALSE(Parse(config).ok());
}

// As google/gemma-3-4b-it says it: most of the text model is left to defaults.
json Gemma3Json() {
  return json::parse(R"({
    "architectures": ["Gemma3ForConditionalGeneration"],
    "model_type": "gemma3", "eos_token_id": [1, 106], "boi_token_index": 255999,
    "eoi_token_index": 256000, "image_token_index": 262144,
    "initializer_range": 0.02, "mm_tokens_per_image": 256,
    "torch_dtype": "bfloat16", "vision_config": {"hidden_size": 1152},
    "text_config": {
      "hidden_size": 2560, "intermediate_size": 10240,
      "model_type": "gemma3_text", "num_hidden_layers": 8,
      "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
      "sliding_window": 1024}
  })");
}

TEST(ModelConfigTest, NestedGemma3) {
  const ModelConfig config = MustParse(Gemma3Json());
  EXPECT_EQ(config.model_type, "gemma3");
  EXPECT_EQ(config.vocab_size, 262208);
  EXPECT_TRUE(config.tie_word_embeddings);
  EXPECT_THAT(config.eos_token_ids, ElementsAre(1, 106));
  EXPECT_THAT(Windows(config),
              ElementsAre(1024, 1024, 1024, 1024, 1024, 0, 1024, 1024));
  EXPECT_FLOAT_EQ(config.embedding_scale, std::sqrt(2560.0f));
  EXPECT_EQ(config.norm_weight_offset, 1.0f);
  const LayerConfig& local = config.layers[4];
  EXPECT_EQ(local.num_heads, 8);
  EXPECT_EQ(local.num_kv_heads, 4);
  EXPECT_EQ(local.head_dim, 256);
  EXPECT_EQ(local.activation, Epilogue::Activation::kGeGlu);
  EXPECT_EQ(local.qk_norm, QkNorm::kHead);
  EXPECT_FLOAT_EQ(local.attention_scale, 1 / 16.0f);
  EXPECT_EQ(local.rope.type, RopeType::kDefault);
  EXPECT_EQ(local.rope.theta, 10000.0);
  const LayerConfig& global = config.layers[5];
  EXPECT_EQ(global.rope.type, RopeType::kLinear);
  EXPECT_EQ(global.rope.theta, 1e6);
  EXPECT_EQ(global.rope.factor, 8.0);
  ASSERT_EQ(config.warnings.size(), 1u);
  EXPECT_THAT(config.warnings[0], HasSubstr("images are not supported"));

  const std::pair<const char*, const char*> cases[] = {
      {R"({"text_config": null})", "\"text_config\""},
      {R"({"text_config": {"hidden_size": 0}})", "\"text_config.hidden_size\""},
      {R"({"text_config": {"model_type": "llama"}})",
       "\"text_config.model_type\""},
      {R"({"text_config": {"rope_scaling": {"rope_type": "ntk"}}})",
       "\"rope_scaling.rope_type\""},
  };
  for (const auto& [changes, field] : cases) {
    const absl::Status status =
        Parse(Changed(Gemma3Json(), json::parse(changes))).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << changes;
    EXPECT_THAT(std::string(status.message()),
                AllOf(HasSubstr("dir/config.json"), HasSubstr(field)));
  }
}

// As facebook/opt-350m says it.
TEST(ModelConfigTest, Opt350m) {
  const json document = json::parse(R"({
    "_remove_final_layer_norm": false, "activation_dropout": 0.0,
    "activation_function": "relu", "architectures": ["OPTForCausalLM"],
    "attention_dropout": 0.0, "bos_token_id": 2, "do_layer_norm_before": false,
    "dropout": 0.1, "eos_token_id": 2, "ffn_dim": 4096, "hidden_size": 1024,
    "init_std": 0.02, "layerdrop": 0.0, "max_position_embeddings": 2048,
    "model_type": "opt", "num_attention_heads": 16, "num_hidden_layers": 2,
    "pad_token_id": 1, "prefix": "</s>", "torch_dtype": "float16",
    "use_cache": true, "vocab_size": 50272, "word_embed_proj_dim": 512})");
  const ModelConfig config = MustParse(document);
  EXPECT_THAT(config.warnings, IsEmpty());
  EXPECT_EQ(config.embedding_size, 512);
  EXPECT_EQ(config.position_offset, 2);
  EXPECT_EQ(config.norm_kind, NormKind::kLayer);
  EXPECT_TRUE(config.tie_word_embeddings);
  EXPECT_EQ(config.tensors.final_norm, "");
  EXPECT_EQ(config.tensors.layer.attention_norm, "");
  EXPECT_EQ(config.tensors.layer.mlp_sum_norm, "final_layer_norm");
  EXPECT_EQ(config.layers[1].rope.type, RopeType::kNone);
  EXPECT_EQ(config.layers[1].activation, Epilogue::Activation::kRelu);
  EXPECT_TRUE(config.layers[1].has_qkv_bias && config.layers[1].has_mlp_bias);
  for (const char* changes : {R"({"layer_norm_elementwise_affine": false})",
                              R"({"activation_function": "silu"})",
                              R"({"partial_rotary_factor": 0.5})"}) {
    EXPECT_FALSE(Parse(Changed(document, json::parse(changes))).ok())
        << changes;
  }
}

// Each name is its own function: "gelu" is the exact form, not the tanh form.
TEST(ModelConfigTest, Activations) {
  const auto activation_of = [](json config, const char* field,
                                const char* name) {
    config[field] = name;
    return MustParse(config).layers[0].activation;
  };
  const std::pair<const char*, Epilogue::Activation> gated[] = {
      {"silu", Epilogue::Activation::kSwiGlu},
      {"gelu", Epilogue::Activation::kGeGluErf},
      {"gelu_new", Epilogue::Activation::kGeGlu},
      {"gelu_pytorch_tanh", Epilogue::Activation::kGeGlu}};
  for (const auto& [name, activation] : gated) {
    EXPECT_EQ(activation_of(LlamaJson(), "hidden_act", name), activation);
  }
  json opt = Qwen("opt", json::object());
  opt["ffn_dim"] = 512;
  for (const char* name :
       {"intermediate_size", "num_key_value_heads", "hidden_act"}) {
    opt.erase(name);
  }
  const std::pair<const char*, Epilogue::Activation> plain[] = {
      {"relu", Epilogue::Activation::kRelu},
      {"gelu", Epilogue::Activation::kGeluErf},
      {"gelu_new", Epilogue::Activation::kGelu}};
  for (const auto& [name, activation] : plain) {
    EXPECT_EQ(activation_of(opt, "activation_function", name), activation);
  }
}

TEST(ModelConfigTest, LongRope) {
  json config = Qwen("phi3", json::parse(R"({
      "original_max_position_embeddings": 1024, "partial_rotary_factor": 0.25,
      "rope_scaling": {"type": "longrope", "short_factor": [1, 1, 1, 1],
                       "long_factor": [1, 2, 3, 4]}})"));
  const ModelConfig parsed = MustParse(config);
  EXPECT_EQ(parsed.RopeSwitchLength(), 1024);
  EXPECT_EQ(RotaryDim(parsed.layers[0].rope, parsed.layers[0].head_dim), 8);
  // sqrt(1 + ln(4) / ln(1024)).
  EXPECT_NEAR(parsed.layers[0].rope.attention_factor, 1.0954451150103321,
              1e-12);
  EXPECT_EQ(parsed.tensors.layer.qkv, "self_attn.qkv_proj");
  config["rope_scaling"]["long_factor"] = {1, 2, 3};
  EXPECT_THAT(std::string(Parse(config).status().message()),
              HasSubstr("\"rope_scaling.long_factor\""));
  config["rope_scaling"] = {{"type", "linear"}, {"factor", 2}};
  EXPECT_THAT(std::string(Parse(config).status().message()),
              HasSubstr("\"rope_scaling\""));
  EXPECT_EQ(MustParse(LlamaJson()).RopeSwitchLength(), 0);
}

TEST(ModelConfigTest, LayersWithoutRope) {
  json config = Qwen("smollm3", json::object());
  EXPECT_EQ(MustParse(config).layers[2].rope.type, RopeType::kDefault);
  EXPECT_EQ(MustParse(config).layers[3].rope.type, RopeType::kNone);
  config["use_sliding_window"] = true;
  config["sliding_window"] = 64;
  EXPECT_THAT(Windows(MustParse(config)), ElementsAre(0, 0, 0, 64));
  config["no_rope_layers"] = {0, 1, 1};
  EXPECT_THAT(std::string(Parse(config).status().message()),
              HasSubstr("\"no_rope_layers\""));
}

TEST(ModelConfigTest, NotJson) {
  for (const char* text : {"", "{", "[]", "3", "{\"a\":\"\xff\"}"}) {
    EXPECT_FALSE(ParseModelConfig(text, "c").ok()) << text;
  }
  EXPECT_FALSE(ParseModelConfig(std::string(1 << 20, '['), "c").ok());
}

TEST(GenerationConfigTest, AllFields) {
  const auto config = ParseGenerationConfig(
      R"({"eos_token_id": [5, 6], "bos_token_id": 1, "pad_token_id": 0,
          "do_sample": true, "temperature": 0.6, "top_p": 0.9, "top_k": 20,
          "min_p": 0.05, "repetition_penalty": 1.05, "max_new_tokens": 100,
          "transformers_version": "4.40.0"})",
      "dir/generation_config.json", 100);
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_THAT(config->eos_token_ids, ElementsAre(5, 6));
  EXPECT_EQ(config->bos_token_id, 1);
  EXPECT_EQ(config->pad_token_id, 0);
  EXPECT_FLOAT_EQ(config->temperature.value(), 0.6f);
  EXPECT_FLOAT_EQ(config->top_p.value(), 0.9f);
  EXPECT_EQ(config->top_k, 20);
  EXPECT_FLOAT_EQ(config->min_p.value(), 0.05f);
  EXPECT_FLOAT_EQ(config->repetition_penalty.value(), 1.05f);
  EXPECT_EQ(config->max_new_tokens, 100);
}

TEST(GenerationConfigTest, AbsentFieldsStayAbsent) {
  const auto config = ParseGenerationConfig("{}", "g", 100);
  ASSERT_TRUE(config.ok());
  EXPECT_FALSE(config->temperature || config->top_p || config->top_k ||
               config->min_p || config->repetition_penalty);
  EXPECT_TRUE(config->do_sample);
}

TEST(GenerationConfigTest, ErrorsNameTheField) {
  const std::pair<const char*, const char*> cases[] = {
      {R"({"temperature": "hot"})", "temperature"},
      {R"({"temperature": -1})", "temperature"},
      {R"({"top_p": 2})", "top_p"},
      {R"({"eos_token_id": 100})", "eos_token_id"},
      {R"({"eos_token_id": ["a"]})", "eos_token_id"},
      {R"({"repetition_penalty": 0})", "repetition_penalty"},
  };
  for (const auto& [text, field] : cases) {
    const absl::Status status =
        ParseGenerationConfig(text, "dir/generation_config.json", 100).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << text;
    EXPECT_THAT(
        std::string(status.message()),
        AllOf(HasSubstr("dir/generation_config.json"), HasSubstr(field)));
  }
}

}  // namespace
}  // namespace quire
