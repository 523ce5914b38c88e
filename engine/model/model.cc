#include "engine/model/model.h"

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "engine/base/status.h"
#include "engine/model/decoder.h"

namespace quire {
namespace {

using ModelFactory = absl::StatusOr<std::unique_ptr<Model>> (*)(
    const ModelConfig&, const ModelOptions&, WeightLoader&, Backend&);

struct ModelEntry {
  const char* architecture;
  ModelFactory factory;
};

// Explicit, so that no linker drops an architecture and no static constructor
// runs.
constexpr ModelEntry kModels[] = {
    {"LlamaForCausalLM", &CreateDecoder},
    {"MistralForCausalLM", &CreateDecoder},
    {"MiMoForCausalLM", &CreateDecoder},
    {"Qwen2ForCausalLM", &CreateDecoder},
    {"Qwen3ForCausalLM", &CreateDecoder},
    {"Gemma2ForCausalLM", &CreateDecoder},
    {"Gemma3ForCausalLM", &CreateDecoder},
    {"Gemma3ForConditionalGeneration", &CreateDecoder},
    {"GraniteForCausalLM", &CreateDecoder},
    {"OPTForCausalLM", &CreateDecoder},
    {"Olmo2ForCausalLM", &CreateDecoder},
    {"Phi3ForCausalLM", &CreateDecoder},
    {"SmolLM3ForCausalLM", &CreateDecoder},
    {"StableLmForCausalLM", &CreateDecoder},
};

}  // namespace

absl::Status CheckTensorParallelSize(const ModelConfig& config, int size) {
  const ShardSpec first{0, size};
  for (const LayerConfig& layer : config.layers) {
    QUIRE_RETURN_IF_ERROR(
        ShardHeads(layer.num_heads, layer.num_kv_heads, first).status());
  }
  return ShardVocab(config.vocab_size, first).status();
}

absl::Status CheckTensorParallelSize(const ModelConfig& config,
                                     const WeightLoader& weights, int size) {
  const auto check = [&](int ranks) {
    absl::Status status = CheckTensorParallelSize(config, ranks);
    for (size_t i = 0; status.ok() && i < config.layers.size(); ++i) {
      status =
          MlpColumns(config, weights, static_cast<int>(i), {0, ranks}).status();
    }
    return status;
  };
  const absl::Status status = check(size);
  if (status.ok()) return status;
  std::vector<int> sizes;
  for (int ranks = 1; ranks <= kMaxListedSize; ++ranks) {
    if (check(ranks).ok()) sizes.push_back(ranks);
  }
  const std::string working = OneOf(sizes);
  // The heads alone may say so already.
  if (absl::EndsWith(status.message(), absl::StrCat(" ", working))) {
    return status;
  }
  return absl::InvalidArgumentError(
      absl::StrCat(status.message(), "; with these weights ", working,
                   sizes.size() == 1 ? " works" : " work"));
}

absl::StatusOr<IndexRange> LayersOfStage(const ModelConfig& config,
                                         ShardSpec stage) {
  if (config.layers.empty()) return StageLayers(0, stage, 0);
  const LayerConfig& layer = config.layers[0];
  // Of each column of the hidden state.
  const double layer_weights =
      2.0 * (layer.num_heads + layer.num_kv_heads) * layer.head_dim +
      (IsGated(layer.activation) ? 3.0 : 2.0) * layer.intermediate_size;
  // Logits are computed of every token of a decode, and of the last one of a
  // prompt: half of their product stands for both.
  const double head_weights = 0.5 * config.vocab_size;
  return StageLayers(config.layers.size(), stage, head_weights / layer_weights);
}

absl::StatusOr<std::vector<int>> KvHeadsOfRank(const ModelConfig& config,
                                               const ParallelConfig& parallel) {
  std::vector<int> kv_heads(config.layers.size());
  QUIRE_ASSIGN_OR_RETURN(const IndexRange range,
                         LayersOfStage(config, {parallel.pipeline_rank(),
                                                parallel.pipeline_size}));
  for (int64_t i = range.begin; i < range.end; ++i) {
    const LayerConfig& layer = config.layers[i];
    QUIRE_ASSIGN_OR_RETURN(
        const HeadShard heads,
        ShardHeads(layer.num_heads, layer.num_kv_heads,
                   {parallel.tensor_rank(), parallel.tensor_size}));
    kv_heads[i] = static_cast<int>(heads.kv_heads.size());
  }
  return kv_heads;
}

absl::StatusOr<std::unique_ptr<Model>> CreateModel(const ModelConfig& config,
                                                   const ModelOptions& options,
                                                   WeightLoader& weights,
                                                   Backend& backend) {
  for (const ModelEntry& entry : kModels) {
    if (config.architecture == entry.architecture) {
      return entry.factory(config, options, weights, backend);
    }
  }
  return absl::UnimplementedError(
      absl::StrCat("no model for architecture \"", config.architecture, "\""));
}

}  // namespace quire
