#include "tests/gguf_export.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <map>
#include <memory>
#include <sstream>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "engine/base/status.h"
#include "engine/weights/safetensors.h"
#include "kernels/dtype.h"
#include "kernels/quant_codec.h"
#include "nlohmann/json.hpp"
#include "tests/golden.h"
#include "tokenizer/sentencepiece_proto.h"

namespace quire {
namespace {

using nlohmann::json;

QuantFormat FormatOf(uint32_t type) {
  switch (type) {
    case GgufTensorType::kQ4_0:
      return QuantFormat::kQ4_0;
    case GgufTensorType::kQ4_1:
      return QuantFormat::kQ4_1;
    case GgufTensorType::kQ5_0:
      return QuantFormat::kQ5_0;
    case GgufTensorType::kQ5_1:
      return QuantFormat::kQ5_1;
    case GgufTensorType::kQ8_0:
      return QuantFormat::kQ8_0;
    case GgufTensorType::kQ2_K:
      return QuantFormat::kQ2_K;
    case GgufTensorType::kQ3_K:
      return QuantFormat::kQ3_K;
    case GgufTensorType::kQ4_K:
      return QuantFormat::kQ4_K;
    case GgufTensorType::kQ5_K:
      return QuantFormat::kQ5_K;
    case GgufTensorType::kQ6_K:
      return QuantFormat::kQ6_K;
    case GgufTensorType::kIQ4_NL:
      return QuantFormat::kIQ4_NL;
    case GgufTensorType::kIQ4_XS:
      return QuantFormat::kIQ4_XS;
    case GgufTensorType::kMXFP4:
      return QuantFormat::kMXFP4;
    default:
      return QuantFormat::kDense;
  }
}

std::vector<float> ToFloats(const StoredTensor& tensor) {
  std::vector<float> values(tensor.num_elements);
  for (int64_t i = 0; i < tensor.num_elements; ++i) {
    if (tensor.dtype == StoredDType::kF32) {
      std::memcpy(&values[i], tensor.data.data() + 4 * i, 4);
      continue;
    }
    uint16_t bits = 0;
    std::memcpy(&bits, tensor.data.data() + 2 * i, 2);
    values[i] = tensor.dtype == StoredDType::kBF16 ? Bf16ToFloat(bits)
                                                   : HalfToFloat(bits);
  }
  return values;
}

// Elements as the format's; K-quants fall back as llama.cpp's do.
std::string Encode(const std::vector<float>& values, int64_t cols,
                   uint32_t* type) {
  std::string bytes;
  if (*type == GgufTensorType::kF32) return GgufWriter::ArrayBytes(values);
  if (*type == GgufTensorType::kF16 || *type == GgufTensorType::kBF16) {
    const bool is_half = *type == GgufTensorType::kF16;
    for (const float value : values) {
      bytes +=
          GgufWriter::Bytes(is_half ? FloatToHalf(value) : FloatToBf16(value));
    }
    return bytes;
  }
  QuantFormat format = FormatOf(*type);
  if (cols % QuantBlockOf(format).cols != 0) {
    format = QuantFormat::kQ8_0;
    *type = GgufTensorType::kQ8_0;
  }
  const int64_t row_bytes = QuantRowBytes(format, cols);
  const int64_t rows = static_cast<int64_t>(values.size()) / cols;
  bytes.resize(rows * row_bytes);
  for (int64_t row = 0; row < rows; ++row) {
    QuantizeBlocks(format, values.data() + row * cols, cols,
                   reinterpret_cast<uint8_t*>(bytes.data()) + row * row_bytes);
  }
  return bytes;
}

std::vector<float> Decode(const std::string& bytes, int64_t cols, uint32_t type,
                          size_t count) {
  std::vector<float> values(count);
  const auto* data = reinterpret_cast<const uint8_t*>(bytes.data());
  if (const QuantFormat format = FormatOf(type);
      format != QuantFormat::kDense) {
    const int64_t row_bytes = QuantRowBytes(format, cols);
    for (size_t row = 0; row * cols < count; ++row) {
      DequantizeBlocks(format, data + row * row_bytes, cols,
                       values.data() + row * cols);
    }
    return values;
  }
  for (size_t i = 0; i < count; ++i) {
    uint16_t bits = 0;
    if (type == GgufTensorType::kF32) {
      std::memcpy(&values[i], data + 4 * i, 4);
      continue;
    }
    std::memcpy(&bits, data + 2 * i, 2);
    values[i] =
        type == GgufTensorType::kBF16 ? Bf16ToFloat(bits) : HalfToFloat(bits);
  }
  return values;
}

class Exporter {
 public:
  Exporter(const GgufExportOptions& options, json config, GgufWriter* writer)
      : options_(options), config_(std::move(config)), writer_(writer) {
    model_type_ = config_.value("model_type", "");
    arch_ = model_type_ == "mistral"       ? "llama"
            : model_type_ == "gemma3_text" ? "gemma3"
                                           : model_type_;
    is_gemma_ = absl::StartsWith(model_type_, "gemma");
    is_interleaved_ = arch_ == "llama" || arch_ == "granite";
    num_heads_ = config_["num_attention_heads"];
    num_kv_heads_ = config_.value("num_key_value_heads", num_heads_);
    hidden_size_ = config_["hidden_size"];
    head_dim_ = config_.value("head_dim", hidden_size_ / num_heads_);
  }

  absl::Status Keys() {
    writer_->String("general.architecture", arch_);
    U32("block_count", "num_hidden_layers");
    U32("context_length", "max_position_embeddings");
    U32("embedding_length", "hidden_size");
    U32("feed_forward_length", "intermediate_size");
    U32("attention.head_count", "num_attention_heads");
    U32("attention.head_count_kv", "num_key_value_heads");
    if (config_.contains("head_dim")) {
      U32("attention.key_length", "head_dim");
      U32("attention.value_length", "head_dim");
    }
    F32("attention.layer_norm_rms_epsilon", "rms_norm_eps");
    F32("attention.layer_norm_epsilon", "layer_norm_eps");
    F32("attn_logit_softcapping", "attn_logit_softcapping");
    F32("final_logit_softcapping", "final_logit_softcapping");
    U32("attention.sliding_window", "sliding_window");
    U32("attention.sliding_window_pattern", "sliding_window_pattern");
    F32("embedding_scale", "embedding_multiplier");
    F32("residual_scale", "residual_multiplier");
    F32("attention.scale", "attention_multiplier");
    F32("logit_scale", "logits_scaling");
    F32("rope.freq_base_swa", "rope_local_base_freq");
    // llama.cpp derives it from the heads, which the goldens' differs from.
    if (config_.contains("query_pre_attn_scalar")) {
      const double scalar = config_["query_pre_attn_scalar"];
      writer_->F32(Key("attention.scale"), 1 / std::sqrt(scalar));
    }
    const double partial = config_.value("partial_rotary_factor",
                                         arch_ == "stablelm" ? 0.25 : 1.0);
    writer_->U32(Key("rope.dimension_count"),
                 static_cast<uint32_t>(std::lround(head_dim_ * partial)));
    return Rope();
  }

  absl::Status Tensors(const Checkpoint& checkpoint) {
    for (const auto& [name, tensor] : checkpoint.tensors()) {
      QUIRE_RETURN_IF_ERROR(Tensor(name, tensor));
    }
    for (const auto& [name, rows] : head_norms_) {
      std::vector<float> values;
      for (const auto& [head, row] : rows) {
        values.insert(values.end(), row.begin(), row.end());
      }
      const auto num_rows = static_cast<int64_t>(rows.size());
      Add(name, values, {num_rows, head_dim_});
    }
    for (auto& [layer, parts] : fused_) {
      for (const char* suffix : {"weight", "bias"}) {
        std::vector<float> values;
        for (const char* part : {"q", "k", "v"}) {
          const std::vector<float>& of_part =
              parts[absl::StrCat("attn_", part, ".", suffix)];
          values.insert(values.end(), of_part.begin(), of_part.end());
        }
        if (values.empty()) continue;
        const int64_t rows = (num_heads_ + 2 * num_kv_heads_) * head_dim_;
        const std::string name =
            absl::StrCat("blk.", layer, ".attn_qkv.", suffix);
        Add(name, values,
            values.size() == static_cast<size_t>(rows)
                ? std::vector<int64_t>{rows}
                : std::vector<int64_t>{rows, hidden_size_});
      }
    }
    return absl::OkStatus();
  }

 private:
  std::string Key(absl::string_view name) const {
    return absl::StrCat(arch_, ".", name);
  }
  void U32(const char* key, const char* field) {
    if (config_.contains(field) && config_[field].is_number()) {
      writer_->U32(Key(key), config_[field].get<uint32_t>());
    }
  }
  void F32(const char* key, const char* field) {
    if (config_.contains(field) && config_[field].is_number()) {
      writer_->F32(Key(key), config_[field].get<float>());
    }
  }

  absl::Status Rope() {
    json rope = config_.value("rope_parameters", json::object());
    if (config_.contains("rope_scaling") &&
        config_["rope_scaling"].is_object()) {
      rope = config_["rope_scaling"];
    }
    const double theta =
        config_.value("rope_theta", rope.value("rope_theta", 10000.0));
    writer_->F32(Key("rope.freq_base"), static_cast<float>(theta));
    const std::string type =
        rope.value("rope_type", rope.value("type", "default"));
    const double factor = rope.value("factor", 1.0);
    const int64_t positions = config_["max_position_embeddings"];
    const int64_t original = config_.value(
        "original_max_position_embeddings",
        rope.value("original_max_position_embeddings", positions));
    if (type == "linear" || type == "yarn") {
      if (!rope.value("truncate", true) || rope.contains("mscale")) {
        return absl::UnimplementedError("yarn with mscale or truncate");
      }
      writer_->String(Key("rope.scaling.type"), type);
      writer_->F32(Key("rope.scaling.factor"), static_cast<float>(factor));
    }
    if (type == "yarn") {
      writer_->U32(Key("rope.scaling.original_context_length"), original);
      for (const char* beta : {"beta_fast", "beta_slow"}) {
        if (!rope.contains(beta)) continue;
        writer_->F32(Key(absl::StrCat("rope.scaling.yarn_", beta)),
                     rope[beta].get<float>());
      }
    } else if (type == "llama3") {
      writer_->Tensor("rope_freqs.weight", GgufTensorType::kF32,
                      {head_dim_ / 2},
                      GgufWriter::ArrayBytes(Llama3Factors(rope, theta)));
    } else if (type == "longrope") {
      writer_->U32(Key("rope.scaling.original_context_length"), original);
      const double scale = static_cast<double>(positions) / original;
      writer_->F32(Key("rope.scaling.attn_factor"),
                   std::sqrt(1 + std::log(scale) / std::log(original)));
      for (const auto& [name, field] :
           {std::pair("rope_factors_long.weight", "long_factor"),
            std::pair("rope_factors_short.weight", "short_factor")}) {
        const std::vector<float> factors = rope[field];
        writer_->Tensor(name, GgufTensorType::kF32,
                        {static_cast<int64_t>(factors.size())},
                        GgufWriter::ArrayBytes(factors));
      }
    }
    return absl::OkStatus();
  }

  // transformers' _compute_llama3_parameters, as divisors.
  std::vector<float> Llama3Factors(const json& rope, double theta) const {
    const double factor = rope["factor"], low = rope["low_freq_factor"],
                 high = rope["high_freq_factor"],
                 original = rope["original_max_position_embeddings"];
    std::vector<float> factors;
    for (int64_t i = 0; i < head_dim_; i += 2) {
      const double length =
          2 * M_PI * std::pow(theta, static_cast<double>(i) / head_dim_);
      const double smooth = (original / length - low) / (high - low);
      factors.push_back(static_cast<float>(
          length < original / high  ? 1
          : length > original / low ? factor
                                    : 1 / ((1 - smooth) / factor + smooth)));
    }
    return factors;
  }

  void Add(const std::string& name, const std::vector<float>& values,
           const std::vector<int64_t>& shape) {
    uint32_t type = GgufTensorType::kF32;
    const int64_t cols = shape.back();
    std::string bytes;
    if (shape.size() == 2 && !absl::StrContains(name, "norm")) {
      type = options_.matrix_type;
      bytes = Encode(values, cols, &type);
      if (options_.is_decoded) {
        bytes =
            GgufWriter::ArrayBytes(Decode(bytes, cols, type, values.size()));
        type = GgufTensorType::kF32;
      }
    } else {
      bytes = GgufWriter::ArrayBytes(values);
    }
    writer_->Tensor(name, type, shape, std::move(bytes));
  }

  // Rows (s, j) of each head to (j, s).
  std::vector<float> Interleaved(const std::vector<float>& values,
                                 int64_t cols) const {
    std::vector<float> result(values.size());
    const int64_t half = head_dim_ / 2;
    const int64_t rows = static_cast<int64_t>(values.size()) / cols;
    for (int64_t row = 0; row < rows; ++row) {
      const int64_t in_head = row % head_dim_;
      const int64_t to = row - in_head + 2 * (in_head % half) + in_head / half;
      std::copy_n(values.begin() + row * cols, cols,
                  result.begin() + to * cols);
    }
    return result;
  }

  absl::Status Tensor(absl::string_view name, const StoredTensor& tensor) {
    std::vector<float> values = ToFloats(tensor);
    if (name == "lm_head.weight") {
      Add("output.weight", values, tensor.shape);
      return absl::OkStatus();
    }
    if (!absl::ConsumePrefix(&name, "model.")) {
      return absl::UnimplementedError(absl::StrCat("tensor ", name));
    }
    if (is_gemma_ && absl::EndsWith(name, "norm.weight")) {
      for (float& value : values) value += 1.0f;
    }
    if (name == "embed_tokens.weight") {
      Add("token_embd.weight", values, tensor.shape);
      return absl::OkStatus();
    }
    if (absl::StartsWith(name, "norm.")) {
      Add(absl::StrCat("output_", name), values, tensor.shape);
      return absl::OkStatus();
    }
    if (!absl::ConsumePrefix(&name, "layers.")) {
      return absl::UnimplementedError(absl::StrCat("tensor ", name));
    }
    return LayerTensor(name, std::move(values), tensor.shape);
  }

  // `name` is "0.self_attn.q_proj.weight".
  absl::Status LayerTensor(absl::string_view name, std::vector<float> values,
                           const std::vector<int64_t>& shape) {
    const std::string layer(name.substr(0, name.find('.')));
    name.remove_prefix(layer.size() + 1);
    const std::string suffix(name.substr(name.rfind('.')));
    absl::string_view base = absl::StripSuffix(name, suffix);
    const auto gguf_name = [&](absl::string_view own) {
      return absl::StrCat("blk.", layer, ".", own, suffix);
    };
    for (const char* part : {"q", "k"}) {
      // StableLM 2: "self_attn.q_layernorm.norms.3".
      absl::string_view head = base;
      if (absl::ConsumePrefix(
              &head, absl::StrCat("self_attn.", part, "_layernorm.norms."))) {
        int number = 0;
        (void)absl::SimpleAtoi(head, &number);
        head_norms_[gguf_name(absl::StrCat("attn_", part, "_norm"))][number] =
            values;
        return absl::OkStatus();
      }
    }
    const bool has_branch_norms = is_gemma_ || arch_ == "olmo2";
    const std::map<absl::string_view, const char*> known = {
        {"input_layernorm", "attn_norm"},
        {"self_attn.q_proj", "attn_q"},
        {"self_attn.k_proj", "attn_k"},
        {"self_attn.v_proj", "attn_v"},
        {"self_attn.qkv_proj", "attn_qkv"},
        {"self_attn.o_proj", "attn_output"},
        {"self_attn.q_norm", "attn_q_norm"},
        {"self_attn.k_norm", "attn_k_norm"},
        {"post_attention_layernorm",
         has_branch_norms ? "post_attention_norm" : "ffn_norm"},
        {"pre_feedforward_layernorm", "ffn_norm"},
        {"post_feedforward_layernorm", "post_ffw_norm"},
        {"mlp.gate_proj", "ffn_gate"},
        {"mlp.up_proj", "ffn_up"},
        {"mlp.gate_up_proj", "ffn_up"},
        {"mlp.down_proj", "ffn_down"},
    };
    const auto it = known.find(base);
    if (it == known.end()) {
      return absl::UnimplementedError(absl::StrCat("tensor ", name));
    }
    const std::string own = it->second;
    const bool is_qk = own == "attn_q" || own == "attn_k";
    if (is_interleaved_ && is_qk) {
      values = Interleaved(values, shape.size() == 2 ? shape[1] : 1);
    }
    if (options_.fuses_qkv && (is_qk || own == "attn_v")) {
      fused_[layer][own + suffix] = std::move(values);
      return absl::OkStatus();
    }
    Add(gguf_name(own), values, shape);
    return absl::OkStatus();
  }

  const GgufExportOptions& options_;
  json config_;
  GgufWriter* writer_;
  std::string model_type_, arch_;
  bool is_gemma_ = false, is_interleaved_ = false;
  int64_t num_heads_ = 0, num_kv_heads_ = 0, hidden_size_ = 0, head_dim_ = 0;
  // By the tensor's name, then by the head.
  std::map<std::string, std::map<int, std::vector<float>>> head_norms_;
  // By the layer, then by the part's name.
  std::map<std::string, std::map<std::string, std::vector<float>>> fused_;
};

// The bytes of field `number` of a protocol buffer message, the last one if
// there are several; empty if there is none.
absl::string_view ProtoField(absl::string_view message, uint64_t number) {
  const auto take_varint = [&message] {
    uint64_t value = 0;
    for (int shift = 0; !message.empty(); shift += 7) {
      const auto byte = static_cast<uint8_t>(message[0]);
      message.remove_prefix(1);
      value |= uint64_t{byte & 0x7Fu} << shift;
      if (byte < 0x80) break;
    }
    return value;
  };
  absl::string_view found;
  while (!message.empty()) {
    const uint64_t tag = take_varint();
    if ((tag & 7) == 0) {
      take_varint();
      continue;
    }
    const uint64_t size = (tag & 7) == 2 ? take_varint() : 4;
    if (tag >> 3 == number) found = message.substr(0, size);
    message.remove_prefix(std::min<size_t>(size, message.size()));
  }
  return found;
}

// What tokenizer_config.json says, if it is there.
void ExportTokenizerConfig(const std::string& directory,
                           const std::vector<std::string>& tokens,
                           GgufWriter* writer) {
  const json config =
      ReadJson(absl::StrCat(directory, "/tokenizer_config.json"));
  if (!config.is_object()) return;
  for (const auto& [field, key] :
       {std::pair("bos_token", "bos_token_id"),
        std::pair("eos_token", "eos_token_id"),
        std::pair("unk_token", "unknown_token_id"),
        std::pair("pad_token", "padding_token_id")}) {
    if (!config.contains(field) || !config[field].is_string()) continue;
    const auto it = std::find(tokens.begin(), tokens.end(),
                              config[field].get_ref<const std::string&>());
    if (it == tokens.end()) continue;
    writer->U32(absl::StrCat("tokenizer.ggml.", key), it - tokens.begin());
  }
  for (const char* flag : {"add_bos_token", "add_eos_token"}) {
    if (!config.contains(flag)) continue;
    writer->Bool(absl::StrCat("tokenizer.ggml.", flag), config[flag]);
  }
  if (config.contains("chat_template")) {
    writer->String("tokenizer.chat_template",
                   config["chat_template"].get<std::string>());
  }
}

}  // namespace

absl::Status ExportGgufModel(const std::string& directory,
                             const GgufExportOptions& options,
                             GgufWriter* writer) {
  const json config = ReadJson(absl::StrCat(directory, "/config.json"));
  if (!config.is_object()) {
    return absl::InvalidArgumentError(absl::StrCat(directory, "/config.json"));
  }
  QUIRE_ASSIGN_OR_RETURN(const std::shared_ptr<const Checkpoint> checkpoint,
                         Checkpoint::Open(directory));
  Exporter exporter(options, config, writer);
  QUIRE_RETURN_IF_ERROR(exporter.Keys());
  return exporter.Tensors(*checkpoint);
}

absl::Status ExportGgufTokenizer(const std::string& directory,
                                 const std::string& pre, GgufWriter* writer) {
  const json file = ReadJson(absl::StrCat(directory, "/tokenizer.json"));
  if (!file.is_object() || !file["model"].contains("merges")) {
    return absl::InvalidArgumentError(
        absl::StrCat(directory, "/tokenizer.json: no BPE"));
  }
  std::map<int, std::pair<std::string, int>> by_id;  // Text and type.
  for (const auto& [text, id] : file["model"]["vocab"].items()) {
    by_id[id] = {text, 1};
  }
  for (const json& token : file["added_tokens"]) {
    by_id[token["id"]] = {token["content"], token["special"] ? 3 : 4};
  }
  std::vector<std::string> tokens;
  std::vector<int32_t> types;
  for (const auto& [id, token] : by_id) {
    while (static_cast<int>(tokens.size()) < id) {
      tokens.push_back(absl::StrCat("[PAD", tokens.size(), "]"));
      types.push_back(5);
    }
    tokens.push_back(token.first);
    types.push_back(token.second);
  }
  std::vector<std::string> merges;
  for (const json& merge : file["model"]["merges"]) {
    merges.push_back(merge.is_string()
                         ? merge.get<std::string>()
                         : absl::StrCat(merge[0].get<std::string>(), " ",
                                        merge[1].get<std::string>()));
  }
  writer->String("tokenizer.ggml.model", "gpt2");
  writer->String("tokenizer.ggml.pre", pre);
  writer->Strings("tokenizer.ggml.tokens", tokens);
  writer->I32s("tokenizer.ggml.token_type", types);
  writer->Strings("tokenizer.ggml.merges", merges);
  ExportTokenizerConfig(directory, tokens, writer);
  return absl::OkStatus();
}

absl::Status ExportGgufWordPiece(const std::string& directory,
                                 GgufWriter* writer) {
  const json file = ReadJson(absl::StrCat(directory, "/tokenizer.json"));
  if (!file.is_object() || file["model"]["type"] != "WordPiece") {
    return absl::InvalidArgumentError(
        absl::StrCat(directory, "/tokenizer.json: no WordPiece"));
  }
  std::vector<std::string> tokens(file["model"]["vocab"].size());
  std::vector<int32_t> types(tokens.size(), 1);
  for (const auto& [text, id] : file["model"]["vocab"].items()) {
    if (absl::StartsWith(text, "[") && absl::EndsWith(text, "]")) {
      tokens[id] = text;
    } else if (absl::StartsWith(text, "##")) {
      tokens[id] = text.substr(2);
    } else {
      tokens[id] = absl::StrCat("\xE2\x96\x81", text);
    }
  }
  for (const json& token : file["added_tokens"]) types[token["id"]] = 3;
  writer->String("tokenizer.ggml.model", "bert");
  writer->Strings("tokenizer.ggml.tokens", tokens);
  writer->I32s("tokenizer.ggml.token_type", types);
  for (const auto& [key, text] :
       {std::pair("unknown", "[UNK]"), std::pair("cls", "[CLS]"),
        std::pair("seperator", "[SEP]")}) {
    writer->U32(absl::StrCat("tokenizer.ggml.", key, "_token_id"),
                file["model"]["vocab"][text].get<int>());
  }
  return absl::OkStatus();
}

absl::Status ExportGgufSentencePiece(const std::string& directory,
                                     GgufWriter* writer) {
  std::ifstream file(absl::StrCat(directory, "/tokenizer.model"),
                     std::ios::binary);
  std::stringstream bytes;
  bytes << file.rdbuf();
  QUIRE_ASSIGN_OR_RETURN(const SentencePieceProto proto,
                         ParseSentencePieceProto(bytes.str()));
  std::vector<std::string> tokens;
  std::vector<float> scores;
  std::vector<int32_t> types;
  for (const SentencePiece& piece : proto.pieces) {
    tokens.push_back(piece.text);
    scores.push_back(piece.score);
    types.push_back(static_cast<int32_t>(piece.type));
  }
  const bool is_unigram = proto.model_type == SentencePieceModelType::kUnigram;
  writer->String("tokenizer.ggml.model", is_unigram ? "t5" : "llama");
  writer->String("tokenizer.ggml.pre", "default");
  writer->Strings("tokenizer.ggml.tokens", tokens);
  writer->F32s("tokenizer.ggml.scores", scores);
  writer->I32s("tokenizer.ggml.token_type", types);
  writer->U32("tokenizer.ggml.bos_token_id", proto.bos_id);
  writer->U32("tokenizer.ggml.eos_token_id", proto.eos_id);
  writer->Bool("tokenizer.ggml.add_bos_token", true);
  writer->Bool("tokenizer.ggml.add_eos_token", false);
  writer->Bool("tokenizer.ggml.add_space_prefix", proto.add_dummy_prefix);
  writer->Bool("tokenizer.ggml.remove_extra_whitespaces",
               proto.remove_extra_whitespaces);
  const std::string text = bytes.str();
  const absl::string_view map = ProtoField(ProtoField(text, 3), 2);
  if (!map.empty()) {
    writer->Array("tokenizer.ggml.precompiled_charsmap", GgufType::kU8,
                  map.size(), map);
  }
  ExportTokenizerConfig(directory, tokens, writer);
  return absl::OkStatus();
}

}  // namespace quire
