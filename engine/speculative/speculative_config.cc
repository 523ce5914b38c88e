#include "engine/speculative/speculative_config.h"

namespace quire {

const char* DraftMethodName(DraftMethod method) {
  static constexpr const char* kNames[] = {"none",        "ngram",  "suffix",
                                           "draft_model", "eagle3", "mtp"};
  return kNames[static_cast<int>(method)];
}

bool IsHeadMethod(DraftMethod method) {
  return method == DraftMethod::kEagle3 || method == DraftMethod::kMtp;
}

}  // namespace quire
