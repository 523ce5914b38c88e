#include "tests/random_family.h"

#include <cmath>
#include <fstream>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/base/random.h"
#include "engine/base/status.h"
#include "engine/model/model_config.h"
#include "nlohmann/json.hpp"
#include "tests/golden.h"

namespace quire {
namespace {

using nlohmann::json;

class TensorWriter {
 public:
  explicit TensorWriter(uint64_t seed) : random_(seed) {}

  void Matrix(const std::string& name, int64_t rows, int64_t cols,
              bool has_bias) {
    // Of a deviation that keeps activations of ordinary size.
    Add(name + ".weight", absl::StrCat(rows, ",", cols), rows * cols, 0.0,
        std::sqrt(3.0 / static_cast<double>(cols)));
    if (has_bias) Vector(name + ".bias", rows, 0.0, 0.2);
  }
  void Vector(const std::string& name, int64_t size, double center,
              double spread) {
    Add(name, absl::StrCat(size), size, center, spread);
  }

  void Write(const std::string& path) const {
    const std::string header = absl::StrCat("{", header_, "}");
    const uint64_t size = header.size();
    std::ofstream file(path, std::ios::binary);
    file.write(reinterpret_cast<const char*>(&size), 8);
    file << header;
    file.write(reinterpret_cast<const char*>(values_.data()),
               static_cast<std::streamsize>(values_.size() * sizeof(float)));
  }

 private:
  void Add(const std::string& name, const std::string& shape, int64_t size,
           double center, double spread) {
    const int64_t begin = values_.size() * sizeof(float);
    absl::StrAppend(&header_, begin == 0 ? "" : ",", "\"", name,
                    "\":{\"dtype\":\"F32\",\"shape\":[", shape,
                    "],\"data_offsets\":[", begin, ",",
                    begin + size * sizeof(float), "]}");
    for (int64_t i = 0; i < size; ++i) {
      values_.push_back(
          static_cast<float>(center + spread * (2 * random_.Uniform() - 1)));
    }
  }

  SimulationRandom random_;
  std::string header_;
  std::vector<float> values_;
};

class FamilyWriter {
 public:
  FamilyWriter(const ModelConfig& config, uint64_t seed)
      : config_(config), tensors_(seed) {}

  void Write(const std::string& path) {
    const TensorNames& names = config_.tensors;
    const std::string& prefix = names.prefixes[0];
    const int64_t hidden = config_.hidden_size;
    tensors_.Matrix(prefix + names.embedding, config_.vocab_size,
                    config_.embedding_size, false);
    if (!names.positions.empty()) {
      tensors_.Matrix(prefix + names.positions,
                      config_.max_position_embeddings + config_.position_offset,
                      hidden, false);
    }
    if (!names.project_in.empty()) {
      tensors_.Matrix(prefix + names.project_in, hidden, config_.embedding_size,
                      false);
      tensors_.Matrix(prefix + names.project_out, config_.embedding_size,
                      hidden, false);
    }
    for (size_t i = 0; i < config_.layers.size(); ++i) {
      Layer(absl::StrCat(prefix, "layers.", i, "."), config_.layers[i]);
    }
    Norm(prefix, names.final_norm, hidden, config_.norms_have_bias);
    if (!config_.tie_word_embeddings) {
      tensors_.Matrix(names.heads[0], config_.vocab_size,
                      config_.embedding_size, false);
    }
    tensors_.Write(path);
  }

 private:
  void Norm(const std::string& prefix, const std::string& name, int64_t size,
            bool has_bias) {
    if (name.empty()) return;
    tensors_.Vector(prefix + name + ".weight", size,
                    1.0 - config_.norm_weight_offset, 0.3);
    if (has_bias) tensors_.Vector(prefix + name + ".bias", size, 0.0, 0.2);
  }

  void HeadNorm(const std::string& prefix, const std::string& name, QkNorm kind,
                int num_heads, int head_dim) {
    if (kind == QkNorm::kEachHead) {
      for (int head = 0; head < num_heads; ++head) {
        Norm(prefix, absl::StrCat(name, ".", head), head_dim, false);
      }
    } else if (kind != QkNorm::kNone) {
      Norm(prefix, name,
           kind == QkNorm::kAllHeads ? num_heads * head_dim : head_dim, false);
    }
  }

  void Layer(const std::string& prefix, const LayerConfig& layer) {
    const LayerTensorNames& names = config_.tensors.layer;
    const int64_t hidden = config_.hidden_size;
    const int64_t inner = layer.intermediate_size;
    const int64_t q = int64_t{layer.num_heads} * layer.head_dim;
    const int64_t kv = int64_t{layer.num_kv_heads} * layer.head_dim;
    for (const std::string& norm :
         {names.attention_norm, names.attention_branch_norm,
          names.attention_sum_norm, names.mlp_norm, names.mlp_branch_norm,
          names.mlp_sum_norm}) {
      Norm(prefix, norm, hidden, config_.norms_have_bias);
    }
    if (!names.qkv.empty()) {
      tensors_.Matrix(prefix + names.qkv, q + 2 * kv, hidden,
                      layer.has_qkv_bias);
    } else {
      tensors_.Matrix(prefix + names.q, q, hidden, layer.has_qkv_bias);
      tensors_.Matrix(prefix + names.k, kv, hidden, layer.has_qkv_bias);
      tensors_.Matrix(prefix + names.v, kv, hidden, layer.has_qkv_bias);
    }
    HeadNorm(prefix, names.q_norm, layer.qk_norm, layer.num_heads,
             layer.head_dim);
    HeadNorm(prefix, names.k_norm, layer.qk_norm, layer.num_kv_heads,
             layer.head_dim);
    tensors_.Matrix(prefix + names.output, hidden, q, layer.has_output_bias);
    if (!names.gate_up.empty()) {
      tensors_.Matrix(prefix + names.gate_up, 2 * inner, hidden,
                      layer.has_mlp_bias);
    } else {
      if (!names.gate.empty()) {
        tensors_.Matrix(prefix + names.gate, inner, hidden, layer.has_mlp_bias);
      }
      tensors_.Matrix(prefix + names.up, inner, hidden, layer.has_mlp_bias);
    }
    tensors_.Matrix(prefix + names.down, hidden, inner, layer.has_mlp_bias);
  }

  const ModelConfig& config_;
  TensorWriter tensors_;
};

}  // namespace

absl::Status WriteRandomFamily(const std::string& golden,
                               const RandomFamilyShape& shape, uint64_t seed,
                               const std::string& directory) {
  json config = ReadJson(golden + "/config.json");
  if (!config.is_object()) {
    return absl::InvalidArgumentError(golden + ": no config.json");
  }
  json& text = config.contains("text_config") ? config["text_config"] : config;
  const int old_hidden_size = text["hidden_size"];
  const int old_head_dim =
      old_hidden_size / text["num_attention_heads"].get<int>();
  const bool has_long_rope =
      text.contains("rope_scaling") &&
      text["rope_scaling"].value("type", "") == "longrope";
  // LongRoPE has a factor for each pair of a head.
  const int hidden_size =
      has_long_rope ? shape.num_heads * old_head_dim : shape.hidden_size;
  text["hidden_size"] = hidden_size;
  text["num_attention_heads"] = shape.num_heads;
  if (text.contains("num_key_value_heads")) {
    text["num_key_value_heads"] = shape.num_kv_heads;
  }
  text[text.contains("ffn_dim") ? "ffn_dim" : "intermediate_size"] =
      shape.intermediate_size;
  text["vocab_size"] = shape.vocab_size;
  if (text.value("word_embed_proj_dim", 0) == old_hidden_size) {
    text["word_embed_proj_dim"] = hidden_size;
  }
  if (shape.num_layers > 0) text["num_hidden_layers"] = shape.num_layers;
  const std::string path = directory + "/config.json";
  const std::string written = config.dump();
  std::ofstream(path) << written;
  QUIRE_ASSIGN_OR_RETURN(const ModelConfig parsed,
                         ParseModelConfig(written, path));
  FamilyWriter(parsed, seed).Write(directory + "/model.safetensors");
  return absl::OkStatus();
}

}  // namespace quire
