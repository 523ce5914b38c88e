// The architectures of GGUF files that quire has. For gguf_*.cc.
#ifndef QUIRE_ENGINE_MODEL_GGUF_FAMILIES_H_
#define QUIRE_ENGINE_MODEL_GGUF_FAMILIES_H_

#include "absl/types/span.h"

namespace quire {

struct GgufFamily {
  const char* architecture;  // general.architecture.
  const char* model_type;    // Of config.json.
  // Rows of queries and keys are stored in the order of interleaved RoPE:
  // (0, half), (1, half + 1), ... of each head.
  bool is_interleaved = false;
};

inline absl::Span<const GgufFamily> GgufFamilies() {
  static constexpr GgufFamily kFamilies[] = {
      {"gemma2", "gemma2"},         {"gemma3", "gemma3_text"},
      {"granite", "granite", true}, {"llama", "llama", true},
      {"olmo2", "olmo2"},           {"phi3", "phi3"},
      {"qwen2", "qwen2"},           {"qwen3", "qwen3"},
      {"smollm3", "smollm3", true}, {"stablelm", "stablelm"},
  };
  return kFamilies;
}

}  // namespace quire

#endif  // QUIRE_ENGINE_MODEL_GGUF_FAMILIES_H_
