// What the decoder asks of a backend; that it computes the right thing is
// tests/golden_logits_test.
#include "engine/model/decoder.h"

#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/model/recording_backend.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace quire {
namespace {

namespace fs = std::filesystem;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::Pair;

// hidden 16, 4 heads and 2 KV heads of 8, inner 24, vocabulary 10.
ModelConfig Config(int num_layers) {
  ModelConfig config;
  config.architecture = "LlamaForCausalLM";
  config.vocab_size = 10;
  config.hidden_size = 16;
  config.embedding_size = 16;
  config.max_position_embeddings = 64;
  config.norm_eps = 1e-5f;
  LayerConfig layer;
  layer.num_heads = 4;
  layer.num_kv_heads = 2;
  layer.head_dim = 8;
  layer.intermediate_size = 24;
  layer.attention_scale = 1 / std::sqrt(8.0f);
  config.layers.assign(num_layers, layer);
  return config;
}

class DecoderTest : public testing::Test {
 protected:
  DecoderTest()
      : directory_(fs::path(testing::TempDir()) /
                   absl::StrCat("decoder_", ::getpid())) {
    fs::create_directories(directory_);
  }
  ~DecoderTest() override { fs::remove_all(directory_); }

  // Zeros for every tensor that the configuration needs.
  void WriteCheckpoint(const ModelConfig& config) {
    std::string header = "{";
    int64_t offset = 0;
    const auto add = [&](const std::string& name, const std::string& shape,
                         int64_t size) {
      absl::StrAppend(&header, offset == 0 ? "" : ",", "\"", name,
                      "\":{\"dtype\":\"", dtype_, "\",\"shape\":[", shape,
                      "],\"data_offsets\":[", offset, ",",
                      offset + size * bytes_, "]}");
      offset += size * bytes_;
    };
    const auto vector = [&](const std::string& name, int64_t size) {
      add(name, absl::StrCat(size), size);
    };
    const auto matrix = [&](const std::string& name, int64_t rows, int64_t cols,
                            bool has_bias) {
      add(name + ".weight", absl::StrCat(rows, ",", cols), rows * cols);
      if (has_bias) vector(name + ".bias", rows);
    };
    matrix("model.embed_tokens", config.vocab_size, config.hidden_size, false);
    if (!config.tie_word_embeddings) {
      matrix("lm_head", config.vocab_size, config.hidden_size, false);
    }
    vector("model.norm.weight", config.hidden_size);
    for (size_t i = 0; i < config.layers.size(); ++i) {
      const LayerConfig& layer = config.layers[i];
      const std::string name = absl::StrCat("model.layers.", i, ".");
      const int64_t q = layer.num_heads * layer.head_dim;
      const int64_t kv = layer.num_kv_heads * layer.head_dim;
      const LayerTensorNames& names = config.tensors.layer;
      for (const std::string& norm :
           {names.attention_norm, names.attention_branch_norm,
            names.attention_sum_norm, names.mlp_norm, names.mlp_branch_norm,
            names.mlp_sum_norm}) {
        if (!norm.empty()) vector(name + norm + ".weight", config.hidden_size);
      }
      matrix(name + "self_attn.q_proj", q, config.hidden_size,
             layer.has_qkv_bias);
      matrix(name + "self_attn.k_proj", kv, config.hidden_size,
             layer.has_qkv_bias);
      matrix(name + "self_attn.v_proj", kv, config.hidden_size,
             layer.has_qkv_bias);
      matrix(name + "self_attn.o_proj", config.hidden_size, q,
             layer.has_output_bias);
      if (layer.qk_norm == QkNorm::kHead) {
        vector(name + "self_attn.q_norm.weight", layer.head_dim);
        vector(name + "self_attn.k_norm.weight", layer.head_dim);
      }
      matrix(name + "mlp.gate_proj", layer.intermediate_size,
             config.hidden_size, layer.has_mlp_bias);
      matrix(name + "mlp.up_proj", layer.intermediate_size, config.hidden_size,
             layer.has_mlp_bias);
      matrix(name + "mlp.down_proj", config.hidden_size,
             layer.intermediate_size, layer.has_mlp_bias);
    }
    header += "}";
    const uint64_t size = header.size();
    std::ofstream file(directory_ / "model.safetensors", std::ios::binary);
    file.write(reinterpret_cast<const char*>(&size), 8);
    file << header << std::string(offset, '\0');
  }

  absl::StatusOr<std::unique_ptr<Model>> Create(const ModelConfig& config,
                                                ShardSpec shard = {}) {
    WriteCheckpoint(config);
    auto checkpoint = Checkpoint::Open(directory_.string());
    if (!checkpoint.ok()) return checkpoint.status();
    WeightLoader weights(*checkpoint, std::nullopt, nullptr);
    ModelOptions options;
    options.max_model_len = 32;
    options.parallel.tensor_size = options.parallel.size = shard.size;
    options.parallel.rank = shard.rank;
    return CreateModel(config, options, weights, backend_);
  }

  const fs::path directory_;
  std::string dtype_ = "F32";
  int bytes_ = 4;
  RecordingBackend backend_;
};

TEST_F(DecoderTest, OperationsOfAStep) {
  auto model = Create(Config(2));
  ASSERT_TRUE(model.ok()) << model.status();
  Step step;
  ASSERT_TRUE((*model)->Forward(backend_, step).ok());
  EXPECT_THAT(backend_.calls,
              ElementsAre("embed 16",
                          // Layer 0.
                          "linear 16->64 norm", "attention 0/0",
                          "linear 32->16 residual", "linear 16->24 norm swiglu",
                          "linear 24->16 residual",
                          // Layer 1.
                          "linear 16->64 norm", "attention 0/1",
                          "linear 32->16 residual", "linear 16->24 norm swiglu",
                          "linear 24->16 residual",
                          // Head.
                          "logits 10", "sample"));
}

// What a layer with its norms behind the branches, and one with its branches
// side by side, ask for.
TEST_F(DecoderTest, PlacesOfNorms) {
  Step step;
  ModelConfig config = Config(1);
  config.residual_scale = 0.5f;
  LayerTensorNames& names = config.tensors.layer;
  names.attention_norm = "";
  names.attention_branch_norm = "post_attention_layernorm";
  names.mlp_norm = "";
  names.mlp_sum_norm = "final_layer_norm";
  auto model = Create(config);
  ASSERT_TRUE(model.ok()) << model.status();
  ASSERT_TRUE((*model)->Forward(backend_, step).ok());
  EXPECT_THAT(
      backend_.calls,
      ElementsAre("embed 16", "linear 16->64", "attention 0/0",
                  "linear 32->16 branch-norm times 0.5 residual",
                  "linear 16->24 swiglu", "linear 24->16 times 0.5 residual",
                  "norm", "logits 10", "sample"));

  config = Config(1);
  config.layers[0].is_parallel = true;
  config.tensors.layer.mlp_norm = "";
  model = Create(config);
  ASSERT_TRUE(model.ok()) << model.status();
  backend_.calls.clear();
  ASSERT_TRUE((*model)->Forward(backend_, step).ok());
  EXPECT_THAT(backend_.calls,
              ElementsAre("embed 16", "linear 16->64 norm", "attention 1/0",
                          "linear 16->24 norm swiglu", "linear 32->16 residual",
                          "linear 24->16 residual", "logits 10", "sample"));
}

TEST_F(DecoderTest, Packs) {
  ModelConfig config = Config(1);
  config.tie_word_embeddings = true;
  config.layers[0].has_qkv_bias = true;
  auto model = Create(config);
  ASSERT_TRUE(model.ok()) << model.status();
  ASSERT_EQ(backend_.packs.size(), 5u);  // The tied table once.
  EXPECT_EQ(backend_.packs[0].kind, LinearKind::kVocab);
  EXPECT_THAT(backend_.packs[0].shapes, ElementsAre(Pair(10, 16)));
  EXPECT_EQ(backend_.packs[1].kind, LinearKind::kQkv);
  EXPECT_THAT(backend_.packs[1].shapes,
              ElementsAre(Pair(32, 16), Pair(16, 16), Pair(16, 16)));
  EXPECT_EQ(backend_.packs[1].bias_size, 64);
  EXPECT_THAT(backend_.packs[2].shapes, ElementsAre(Pair(16, 32)));
  EXPECT_EQ(backend_.packs[2].bias_size, 0);
  EXPECT_EQ(backend_.packs[3].kind, LinearKind::kGateUp);
  EXPECT_THAT(backend_.packs[3].shapes,
              ElementsAre(Pair(24, 16), Pair(24, 16)));
  EXPECT_THAT(backend_.packs[4].shapes, ElementsAre(Pair(16, 24)));
}

TEST_F(DecoderTest, LayersShareSpecsWhereTheyAgree) {
  ModelConfig config = Config(4);
  config.layers[1].sliding_window = 8;
  config.layers[3].sliding_window = 8;
  ASSERT_TRUE(Create(config).ok());
  ASSERT_EQ(backend_.attentions.size(), 2u);
  EXPECT_EQ(backend_.attentions[0].num_layers, 2);
  EXPECT_EQ(backend_.attentions[0].sliding_window, 0);
  EXPECT_EQ(backend_.attentions[1].sliding_window, 8);
  EXPECT_EQ(backend_.attentions[1].num_heads, 4);
  EXPECT_EQ(backend_.attentions[1].num_kv_heads, 2);
  EXPECT_FLOAT_EQ(backend_.attentions[1].scale, 1 / std::sqrt(8.0f));
  // One RoPE table for all.
  EXPECT_EQ(backend_.attentions[0].rope_table.data,
            backend_.attentions[1].rope_table.data);
  EXPECT_EQ(backend_.attentions[0].rope_table.rows, 32);
}

TEST_F(DecoderTest, AWindowBeyondTheContextIsFullAttention) {
  ModelConfig config = Config(1);
  config.layers[0].sliding_window = 32;
  ASSERT_TRUE(Create(config).ok());
  EXPECT_EQ(backend_.attentions[0].sliding_window, 0);
}

TEST_F(DecoderTest, QkNormsBelongToTheirLayers) {
  ModelConfig config = Config(2);
  for (LayerConfig& layer : config.layers) layer.qk_norm = QkNorm::kHead;
  ASSERT_TRUE(Create(config).ok());
  ASSERT_EQ(backend_.attentions.size(), 2u);
  for (const AttentionSpec& spec : backend_.attentions) {
    EXPECT_EQ(spec.q_norm.kind, NormSpec::Kind::kRms);
    EXPECT_EQ(spec.q_norm.weight.cols, 8);
    EXPECT_FLOAT_EQ(spec.k_norm.eps, 1e-5f);
  }
  EXPECT_NE(backend_.attentions[0].q_norm.weight.data,
            backend_.attentions[1].q_norm.weight.data);
}

TEST_F(DecoderTest, Shards) {
  ModelConfig config = Config(1);
  config.layers[0].has_qkv_bias = true;
  config.layers[0].has_output_bias = true;
  config.layers[0].has_mlp_bias = true;
  config.layers[0].intermediate_size = 40;
  config.vocab_size = 60;
  for (const int rank : {0, 1, 2, 3}) {
    backend_.packs.clear();
    backend_.attentions.clear();
    auto model = Create(config, {rank, 4});
    ASSERT_TRUE(model.ok()) << model.status();
    // One query head each; two ranks share a KV head.
    EXPECT_EQ(backend_.attentions[0].num_heads, 1);
    EXPECT_EQ(backend_.attentions[0].num_kv_heads, 1);
    const auto& packs = backend_.packs;  // embed, head, then the layer's.
    EXPECT_THAT(packs[2].shapes,
                ElementsAre(Pair(8, 16), Pair(8, 16), Pair(8, 16)));
    EXPECT_EQ(packs[2].bias_size, 24);
    EXPECT_THAT(packs[3].shapes, ElementsAre(Pair(16, 8)));
    // Five units of eight.
    const int64_t inner = rank == 0 ? 16 : 8;
    EXPECT_THAT(packs[4].shapes, ElementsAre(Pair(inner, 16), Pair(inner, 16)));
    EXPECT_THAT(packs[5].shapes, ElementsAre(Pair(16, inner)));
    // Slices of 16 ids, of which the last has 12.
    EXPECT_THAT(packs[0].shapes, ElementsAre(Pair(60, 16)));
    EXPECT_THAT(packs[1].shapes, ElementsAre(Pair(rank == 3 ? 12 : 16, 16)));
    EXPECT_EQ(backend_.activation_cols.back(), 16);
    // The sum over ranks must hold these biases once.
    EXPECT_EQ(packs[3].bias_size, rank == 0 ? 16 : 0);
    EXPECT_EQ(packs[5].bias_size, rank == 0 ? 16 : 0);
  }
  EXPECT_EQ(Create(config, {0, 3}).status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST_F(DecoderTest, ADTypeThatTheBackendLacks) {
  dtype_ = "F16";
  bytes_ = 2;
  const auto model = Create(Config(1));
  EXPECT_EQ(model.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(model.status().message()), HasSubstr("f16"));
}

TEST_F(DecoderTest, UnknownArchitecture) {
  ModelConfig config = Config(1);
  config.architecture = "RwkvForCausalLM";
  EXPECT_EQ(Create(config).status().code(), absl::StatusCode::kUnimplemented);
}

}  // namespace
}  // namespace quire
