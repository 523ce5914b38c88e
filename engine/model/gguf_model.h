// A model in a GGUF file, in the terms of the rest of engine/model: its keys as
// a configuration, its tensors under the names of a Hugging Face checkpoint.
//
// What the keys and tensors mean follows ggml-org/llama.cpp (convert_hf_to_gguf
// and src/models/): general.architecture names the family, ARCHITECTURE.* the
// sizes.
#ifndef QUIRE_ENGINE_MODEL_GGUF_MODEL_H_
#define QUIRE_ENGINE_MODEL_GGUF_MODEL_H_

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/model/model_config.h"
#include "engine/weights/gguf.h"
#include "engine/weights/safetensors.h"

namespace quire {

struct GgufModelConfig {
  ModelConfig model;
  GenerationConfig generation;
  // ARCHITECTURE.pooling_type says that the model makes embeddings.
  bool is_embedding = false;
  bool is_mean_pooling = false;  // Else the last token's.
};

// Translates the keys to the terms of config.json and has ParseModelConfig
// check them. INVALID_ARGUMENT, naming the file and the key or tensor: another
// architecture (with a list of those that are supported), a missing or
// impossible size, anything that would change results and is not supported.
absl::StatusOr<GgufModelConfig> ReadGgufModelConfig(const GgufFile& file);

// The tensors of `file` under the names that `config`, made from it, tells the
// decoder. Rows of queries and keys that the format stores in the order of
// interleaved RoPE are copied in the model's own order; all else stays where it
// is mapped. A tensor that the family does not have keeps its name.
// `num_threads`: for the copies; <= 0: all that the process may use.
absl::StatusOr<std::shared_ptr<const Checkpoint>> OpenGgufCheckpoint(
    std::shared_ptr<const GgufFile> file, const ModelConfig& config,
    int num_threads = 1);

// The same names, shapes and formats, to look at: queries and keys are not
// copied and so keep the order of the file.
absl::StatusOr<std::shared_ptr<const Checkpoint>> OpenGgufHeaders(
    std::shared_ptr<const GgufFile> file, const ModelConfig& config);

// Values of general.architecture that ReadGgufModelConfig accepts.
std::vector<std::string> SupportedGgufArchitectures();

// True for a path that ends in ".gguf", in any case of letters, and for a file
// that begins as the format does, whatever its name.
bool IsGgufPath(absl::string_view path);

}  // namespace quire

#endif  // QUIRE_ENGINE_MODEL_GGUF_MODEL_H_
