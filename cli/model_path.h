// What `--model` names to the directory or GGUF file that holds the model.
#ifndef QUIRE_CLI_MODEL_PATH_H_
#define QUIRE_CLI_MODEL_PATH_H_

#include <string>

#include "absl/status/statusor.h"

namespace quire {

// `path` itself if it is a GGUF file or a directory with a config.json, or, for
// a model in the layout of the Hugging Face cache (huggingface_hub, "Understand
// caching": refs/main holds the name of a directory below snapshots/), that
// snapshot. A cache without refs/main must hold one snapshot only.
// A directory stands for the GGUF file in it that `gguf_file` names, or else,
// if it has no safetensors or PyTorch weights, for its only one (the first part
// of a split one); with several, the error lists them.
// For a directory that holds nothing of this, the directory: whoever reads it
// says what is missing. NOT_FOUND or INVALID_ARGUMENT, in one line, for
// everything else: a path that does not exist, a model hub's name, a URI.
absl::StatusOr<std::string> ResolveModelPath(const std::string& path,
                                             const std::string& gguf_file = "");

// The name by which the API serves the model at `path` if nobody gives another
// one: the last component without .gguf and the number of a part, or ORG/NAME
// of a Hugging Face cache.
std::string DefaultModelName(std::string path);

}  // namespace quire

#endif  // QUIRE_CLI_MODEL_PATH_H_
