// What `--model` names to the directory that holds the model's files.
#ifndef QUIRE_CLI_MODEL_PATH_H_
#define QUIRE_CLI_MODEL_PATH_H_

#include <string>

#include "absl/status/statusor.h"

namespace quire {

// `path` itself if it is a directory with a config.json, or, for a model in the
// layout of the Hugging Face cache (huggingface_hub, "Understand caching":
// refs/main holds the name of a directory below snapshots/), that snapshot. A
// cache without refs/main must hold one snapshot only.
// For a directory that holds neither, `path`: whoever reads it says what is
// missing. NOT_FOUND or INVALID_ARGUMENT, in one line, for everything else: a
// path that does not exist, a model hub's name, a URI, a GGUF file.
absl::StatusOr<std::string> ResolveModelDirectory(const std::string& path);

// The name by which the API serves the model at `path` if nobody gives another
// one: the last component, or ORG/NAME of a Hugging Face cache.
std::string DefaultModelName(std::string path);

}  // namespace quire

#endif  // QUIRE_CLI_MODEL_PATH_H_
