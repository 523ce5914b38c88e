#include "benchmarks/random_model.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <system_error>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "engine/base/random.h"
#include "engine/base/status.h"
#include "engine/base/thread_pool.h"
#include "kernels/dtype.h"

namespace quire {
namespace {

struct TensorPlan {
  std::string name;
  int64_t rows = 0;
  int64_t cols = 0;  // 0: a vector of `rows`.
  // Deviation of the elements; 0: all are 1 (weights of norms).
  double deviation = 0;
  bool is_offsets = false;  // Not bf16 but int64, all 0.

  int64_t num_elements() const { return rows * std::max<int64_t>(cols, 1); }
  int64_t num_bytes() const { return num_elements() * (is_offsets ? 8 : 2); }
};

constexpr int64_t kMaxDraftVocabSize = 32000;

int64_t DraftVocabSize(const RandomModelShape& shape) {
  return std::min(shape.vocab_size, kMaxDraftVocabSize);
}

std::vector<TensorPlan> PlanHeadTensors(const RandomModelShape& shape) {
  std::vector<TensorPlan> tensors;
  const auto matrix = [&](const char* name, int64_t rows, int64_t cols) {
    tensors.push_back({absl::StrCat(name, ".weight"), rows, cols,
                       1.0 / std::sqrt(static_cast<double>(cols))});
  };
  const int64_t hidden = shape.hidden_size;
  const int64_t inner = shape.intermediate_size;
  const int64_t kv_size = shape.num_kv_heads * shape.head_dim;
  // First, so that they are aligned.
  tensors.push_back({"d2t", DraftVocabSize(shape), 0, 0, true});
  matrix("fc", hidden, 3 * hidden);
  matrix("midlayer.self_attn.q_proj", shape.num_heads * shape.head_dim,
         2 * hidden);
  matrix("midlayer.self_attn.k_proj", kv_size, 2 * hidden);
  matrix("midlayer.self_attn.v_proj", kv_size, 2 * hidden);
  matrix("midlayer.self_attn.o_proj", hidden, shape.num_heads * shape.head_dim);
  matrix("midlayer.mlp.gate_proj", inner, hidden);
  matrix("midlayer.mlp.up_proj", inner, hidden);
  matrix("midlayer.mlp.down_proj", hidden, inner);
  for (const char* norm : {"midlayer.hidden_norm", "midlayer.input_layernorm",
                           "midlayer.post_attention_layernorm", "norm"}) {
    tensors.push_back({absl::StrCat(norm, ".weight"), hidden});
  }
  matrix("lm_head", DraftVocabSize(shape), hidden);
  return tensors;
}

std::vector<TensorPlan> PlanTensors(const RandomModelShape& shape) {
  std::vector<TensorPlan> tensors;
  const auto matrix = [&](std::string name, int64_t rows, int64_t cols) {
    tensors.push_back({std::move(name) + ".weight", rows, cols,
                       1.0 / std::sqrt(static_cast<double>(cols))});
  };
  const auto norm = [&](std::string name) {
    tensors.push_back({std::move(name) + ".weight", shape.hidden_size});
  };
  const int64_t hidden = shape.hidden_size;
  const int64_t inner = shape.intermediate_size;
  matrix("model.embed_tokens", shape.vocab_size, hidden);
  for (int64_t i = 0; i < shape.num_layers; ++i) {
    const std::string layer = absl::StrCat("model.layers.", i, ".");
    norm(layer + "input_layernorm");
    const std::pair<const char*, int64_t> projections[] = {
        {"q_proj", shape.num_heads},
        {"k_proj", shape.num_kv_heads},
        {"v_proj", shape.num_kv_heads}};
    for (const auto& [part, heads] : projections) {
      const std::string name = absl::StrCat(layer, "self_attn.", part);
      matrix(name, heads * shape.head_dim, hidden);
      if (shape.has_qkv_bias) {
        tensors.push_back({name + ".bias", heads * shape.head_dim, 0, 0.1});
      }
    }
    if (shape.has_qk_norm) {
      for (const char* part : {"q_norm", "k_norm"}) {
        tensors.push_back({absl::StrCat(layer, "self_attn.", part, ".weight"),
                           shape.head_dim});
      }
    }
    matrix(layer + "self_attn.o_proj", hidden,
           shape.num_heads * shape.head_dim);
    norm(layer + "post_attention_layernorm");
    matrix(layer + "mlp.gate_proj", inner, hidden);
    matrix(layer + "mlp.up_proj", inner, hidden);
    matrix(layer + "mlp.down_proj", hidden, inner);
  }
  norm("model.norm");
  if (!shape.is_tied) matrix("lm_head", shape.vocab_size, hidden);
  return tensors;
}

std::string ShapeJson(const RandomModelShape& shape) {
  return absl::StrCat(
      "\"vocab_size\": ", shape.vocab_size,
      ", \"hidden_size\": ", shape.hidden_size,
      ", \"intermediate_size\": ", shape.intermediate_size,
      ", \"num_attention_heads\": ", shape.num_heads,
      ", \"num_key_value_heads\": ", shape.num_kv_heads,
      ", \"head_dim\": ", shape.head_dim,
      ", \"max_position_embeddings\": ", shape.max_position_embeddings,
      ", \"rope_theta\": ", shape.rope_theta,
      ", \"rms_norm_eps\": 1e-6, \"hidden_act\": \"silu\""
      ", \"torch_dtype\": \"bfloat16\"");
}

std::string ConfigJson(const RandomModelShape& shape) {
  const bool is_qwen3 = shape.has_qk_norm;
  const bool is_qwen2 = !is_qwen3 && shape.has_qkv_bias;
  return absl::StrCat(
      "{\"architectures\": [\"",
      is_qwen3   ? "Qwen3"
      : is_qwen2 ? "Qwen2"
                 : "Llama",
      "ForCausalLM\"], \"model_type\": \"",
      is_qwen3   ? "qwen3"
      : is_qwen2 ? "qwen2"
                 : "llama",
      "\", \"num_hidden_layers\": ", shape.num_layers,
      ", \"tie_word_embeddings\": ", shape.is_tied ? "true, " : "false, ",
      ShapeJson(shape), "}\n");
}

std::string HeadConfigJson(const RandomModelShape& shape) {
  const int64_t last = shape.num_layers - 1;
  return absl::StrCat(
      "{\"architectures\": [\"LlamaForCausalLMEagle3\"], \"model_type\": "
      "\"llama\", \"num_hidden_layers\": 1, \"tie_word_embeddings\": false, "
      "\"draft_vocab_size\": ",
      DraftVocabSize(shape),
      ", \"eagle_config\": {\"eagle_aux_hidden_state_layer_ids\": [",
      std::min<int64_t>(2, last), ", ", shape.num_layers / 2, ", ",
      std::max<int64_t>(0, shape.num_layers - 3), "]}, ", ShapeJson(shape),
      "}\n");
}

// 4096 equally likely values of a normal distribution, in bf16: a table look-up
// per element, so that a gigabyte takes less than a second.
constexpr int kTableBits = 12;

std::vector<uint16_t> NormalTable(double deviation) {
  constexpr int kSize = 1 << kTableBits;
  std::vector<uint16_t> table(kSize);
  for (int i = 0; i < kSize; ++i) {
    // Midpoint quantiles by bisection of the distribution function.
    const double p = (i + 0.5) / kSize;
    double low = -6, high = 6;
    for (int step = 0; step < 40; ++step) {
      const double middle = (low + high) / 2;
      (0.5 * std::erfc(-middle * M_SQRT1_2) < p ? low : high) = middle;
    }
    table[i] = FloatToBf16(static_cast<float>(deviation * low));
  }
  return table;
}

void FillTensor(const TensorPlan& tensor, uint64_t key, ThreadPool& pool,
                const std::vector<uint16_t>& standard, uint16_t* to) {
  if (tensor.deviation == 0) {
    std::fill_n(to, tensor.num_elements(), FloatToBf16(1.0f));
    return;
  }
  std::vector<uint16_t> table(standard.size());
  for (size_t i = 0; i < table.size(); ++i) {
    table[i] = FloatToBf16(
        static_cast<float>(Bf16ToFloat(standard[i]) * tensor.deviation));
  }
  const int64_t num_groups = (tensor.num_elements() + 3) / 4;
  pool.ParallelFor(num_groups, 1 << 16, [&](int64_t begin, int64_t end, int) {
    for (int64_t group = begin; group < end; ++group) {
      const uint64_t bits = MixBits(key, group);
      const int64_t left = tensor.num_elements() - group * 4;
      for (int64_t i = 0; i < std::min<int64_t>(left, 4); ++i) {
        to[group * 4 + i] = table[(bits >> (16 * i)) & (table.size() - 1)];
      }
    }
  });
}

absl::Status SystemError(const std::string& path, const char* action) {
  return absl::UnavailableError(
      absl::StrCat(path, ": cannot ", action, ": ", strerror(errno)));
}

}  // namespace

int64_t RandomModelShape::LayerMatrixElements() const {
  const int64_t attention =
      hidden_size * head_dim * (2 * num_heads + 2 * num_kv_heads);
  return num_layers * (attention + 3 * hidden_size * intermediate_size);
}

namespace {

struct Preset {
  const char* name;
  int64_t hidden_size, num_layers, num_heads, num_kv_heads, head_dim,
      intermediate_size, vocab_size;
  double rope_theta;
  bool is_tied, has_qkv_bias, has_qk_norm;
};

// From the config.json of the published models; and one to try commands with.
constexpr Preset kPresets[] = {
    {"tiny", 128, 2, 4, 2, 64, 256, 4096, 1e4, true, false, true},
    {"qwen2.5-0.5b", 896, 24, 14, 2, 64, 4864, 151936, 1e6, true, true, false},
    {"llama-3.2-1b", 2048, 16, 32, 8, 64, 8192, 128256, 5e5, true, false,
     false},
    {"qwen3-8b", 4096, 36, 32, 8, 128, 12288, 151936, 1e6, false, false, true},
    {"llama-3.1-8b", 4096, 32, 32, 8, 128, 14336, 128256, 5e5, false, false,
     false}};

}  // namespace

std::vector<std::string> PresetNames() {
  std::vector<std::string> names;
  for (const Preset& preset : kPresets) names.push_back(preset.name);
  return names;
}

absl::StatusOr<RandomModelShape> PresetShape(absl::string_view name) {
  for (const Preset& preset : kPresets) {
    if (name != preset.name) continue;
    RandomModelShape shape;
    shape.hidden_size = preset.hidden_size;
    shape.num_layers = preset.num_layers;
    shape.num_heads = preset.num_heads;
    shape.num_kv_heads = preset.num_kv_heads;
    shape.head_dim = preset.head_dim;
    shape.intermediate_size = preset.intermediate_size;
    shape.vocab_size = preset.vocab_size;
    shape.rope_theta = preset.rope_theta;
    shape.is_tied = preset.is_tied;
    shape.has_qkv_bias = preset.has_qkv_bias;
    shape.has_qk_norm = preset.has_qk_norm;
    return shape;
  }
  return absl::InvalidArgumentError(
      absl::StrCat("'", name, "' is no preset; there are ",
                   absl::StrJoin(PresetNames(), ", ")));
}

namespace {

absl::Status WriteCheckpoint(const std::string& config,
                             const std::vector<TensorPlan>& tensors,
                             uint64_t seed, const std::string& directory) {
  std::error_code error;
  std::filesystem::create_directories(directory, error);
  if (error) {
    return absl::UnavailableError(
        absl::StrCat(directory, ": cannot be made: ", error.message()));
  }
  const std::string config_path = directory + "/config.json";
  std::FILE* config_file = std::fopen(config_path.c_str(), "we");
  if (config_file == nullptr) return SystemError(config_path, "create");
  const bool is_written = std::fwrite(config.data(), 1, config.size(),
                                      config_file) == config.size();
  if (std::fclose(config_file) != 0 || !is_written) {
    return SystemError(config_path, "write");
  }

  std::string header = "{";
  int64_t data_bytes = 0;
  for (const TensorPlan& tensor : tensors) {
    const int64_t end = data_bytes + tensor.num_bytes();
    absl::StrAppend(&header, data_bytes == 0 ? "" : ",", "\"", tensor.name,
                    "\":{\"dtype\":\"", tensor.is_offsets ? "I64" : "BF16",
                    "\",\"shape\":[", tensor.rows);
    if (tensor.cols != 0) absl::StrAppend(&header, ",", tensor.cols);
    absl::StrAppend(&header, "],\"data_offsets\":[", data_bytes, ",", end,
                    "]}");
    data_bytes = end;
  }
  header += "}";
  header.append((64 - (header.size() + 8) % 64) % 64, ' ');  // Aligns the data.

  const std::string path = directory + "/model.safetensors";
  const int64_t file_bytes = 8 + header.size() + data_bytes;
  const int fd =
      open(path.c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (fd < 0) return SystemError(path, "create");
  // Allocates: a full disk is an error here, not a SIGBUS below.
  errno = posix_fallocate(fd, 0, file_bytes);
  void* mapped = errno != 0 ? MAP_FAILED
                            : mmap(nullptr, file_bytes, PROT_READ | PROT_WRITE,
                                   MAP_SHARED, fd, 0);
  close(fd);
  if (mapped == MAP_FAILED) return SystemError(path, "allocate");
  char* file = static_cast<char*>(mapped);
  const uint64_t header_size = header.size();
  std::memcpy(file, &header_size, 8);
  std::memcpy(file + 8, header.data(), header.size());
  char* to = file + 8 + header.size();
  ThreadPool pool(0);
  const std::vector<uint16_t> standard = NormalTable(1.0);
  for (size_t i = 0; i < tensors.size(); ++i) {
    // New pages are 0.
    if (!tensors[i].is_offsets) {
      FillTensor(tensors[i], MixBits(seed, i), pool, standard,
                 reinterpret_cast<uint16_t*>(to));
    }
    to += tensors[i].num_bytes();
  }
  munmap(mapped, file_bytes);
  return absl::OkStatus();
}

}  // namespace

absl::Status WriteRandomModel(const RandomModelShape& shape, uint64_t seed,
                              const std::string& directory) {
  return WriteCheckpoint(ConfigJson(shape), PlanTensors(shape), seed,
                         directory);
}

absl::Status WriteRandomHead(const RandomModelShape& shape, uint64_t seed,
                             const std::string& directory) {
  return WriteCheckpoint(HeadConfigJson(shape), PlanHeadTensors(shape), seed,
                         directory);
}

}  // namespace quire
