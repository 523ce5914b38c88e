// The modules that a checkpoint's configuration says are not quantized.
#ifndef QUIRE_ENGINE_WEIGHTS_MODULE_LIST_H_
#define QUIRE_ENGINE_WEIGHTS_MODULE_LIST_H_

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace quire {

// How an entry names modules.
enum class ModuleMatch : uint8_t {
  // The whole name, or, after "re:", an expression that matches from its start
  // on (compressed-tensors, utils/match.py; vLLM's ignored_layers).
  kExact,
  // One name of the path or several in a row: "lm_head", "self_attn",
  // "model.layers.0". Writers ask for less (AutoAWQ for any part of the text,
  // transformers for a beginning or an end): what is named so is named for
  // them too.
  kComponents,
};

// Immutable; cheap to copy; thread-safe.
class ModuleList {
 public:
  ModuleList() = default;  // Empty.

  // `field`: for messages ("quantization_config.ignore"). INVALID_ARGUMENT,
  // quoting the entry, for an expression that cannot be compiled.
  static absl::StatusOr<ModuleList> Create(std::string field, ModuleMatch match,
                                           std::vector<std::string> entries);

  const std::string& field() const { return field_; }

  // The first entry that names `module` ("model.layers.0.mlp.up_proj"); null if
  // there is none. INVALID_ARGUMENT if an expression takes too long on it.
  absl::StatusOr<const std::string*> Find(absl::string_view module) const;

 private:
  struct Entry;

  std::string field_;
  ModuleMatch match_ = ModuleMatch::kExact;
  std::shared_ptr<const std::vector<Entry>> entries_;
};

}  // namespace quire

#endif  // QUIRE_ENGINE_WEIGHTS_MODULE_LIST_H_
