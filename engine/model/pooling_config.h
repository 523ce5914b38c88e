// Whether a model directory holds an embedding model, and how it pools: the
// files that sentence-transformers writes beside config.json.
//   modules.json              the stages: Transformer, Pooling, Normalize
//   <Pooling>/config.json     which tokens' hidden states are reduced, and how
//   sentence_bert_config.json limits on the input
#ifndef QUIRE_ENGINE_MODEL_POOLING_CONFIG_H_
#define QUIRE_ENGINE_MODEL_POOLING_CONFIG_H_

#include <optional>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "engine/model/model_config.h"
#include "kernels/backend.h"

namespace quire {

// What a model is loaded for.
enum class ModelTask : uint8_t {
  kAuto,      // What its directory says.
  kGenerate,  // Text.
  kEmbed,     // One vector for each input.
};

struct EmbeddingConfig {
  Pooling pooling = Pooling::kLast;
  bool normalize = true;     // To length 1.
  int max_input_tokens = 0;  // 0: what the model's config.json says.
};

// Reads the files named above. None if there is no modules.json with a Pooling
// stage. INVALID_ARGUMENT naming file and field for what is wrong, and for
// stages and poolings that would give other vectors and are not supported.
absl::StatusOr<std::optional<EmbeddingConfig>> ReadEmbeddingConfig(
    const std::string& directory, int hidden_size);

// The same with the files' texts from `read`, which says NOT_FOUND for a path
// without a file; exposed for tests.
absl::StatusOr<std::optional<EmbeddingConfig>> ParseEmbeddingConfig(
    const std::string& directory, int hidden_size,
    absl::FunctionRef<absl::StatusOr<std::string>(const std::string& path)>
        read);

// One Pooling stage's config.json; exposed for tests.
absl::StatusOr<Pooling> ParsePoolingConfig(absl::string_view text,
                                           const std::string& path,
                                           int hidden_size);

// The embedding to load `directory` for; none: it is to generate. `pooling`, if
// given, goes before what the directory says. INVALID_ARGUMENT if the model
// cannot do `task`.
absl::StatusOr<std::optional<EmbeddingConfig>> ResolveEmbedding(
    const std::string& directory, const ModelConfig& config, ModelTask task,
    std::optional<Pooling> pooling);

}  // namespace quire

#endif  // QUIRE_ENGINE_MODEL_POOLING_CONFIG_H_
