// How tokens are drafted: what --speculative-model, --num-speculative-tokens
// and --speculative-config say.
#ifndef QUIRE_ENGINE_SPECULATIVE_SPECULATIVE_CONFIG_H_
#define QUIRE_ENGINE_SPECULATIVE_SPECULATIVE_CONFIG_H_

#include <cstdint>
#include <string>

#include "engine/speculative/suffix_drafter.h"

namespace quire {

enum class DraftMethod : uint8_t {
  kNone,
  kNgram,
  kSuffix,
  kDraftModel,  // A smaller model with the same vocabulary.
  kEagle3,      // A head on the target's hidden states, arXiv:2503.01840.
  kMtp,         // The target's own layers for that.
};

// As in vLLM's configuration: "ngram".
const char* DraftMethodName(DraftMethod method);
// Drafts by the target's hidden states, so beside one that is not split.
bool IsHeadMethod(DraftMethod method);

struct SpeculativeConfig {
  DraftMethod method = DraftMethod::kNone;
  std::string model;  // Directory or file, of the methods that have one.
  // Drafts of one sequence in one step, at most; how many are made is decided
  // step by step (draft_control.h).
  int num_speculative_tokens = 5;
  // kNgram: lengths of what is looked up.
  int prompt_lookup_min = 1;
  int prompt_lookup_max = 5;
  SuffixOptions suffix;
};

}  // namespace quire

#endif  // QUIRE_ENGINE_SPECULATIVE_SPECULATIVE_CONFIG_H_
