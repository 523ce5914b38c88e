#include "engine/speculative/create_drafter.h"

#include "absl/strings/str_cat.h"
#include "engine/base/status.h"
#include "engine/speculative/ngram_drafter.h"
#include "engine/speculative/suffix_drafter.h"

namespace quire {

absl::StatusOr<std::unique_ptr<Drafter>> CreateDrafter(
    const SpeculativeConfig& config, LoadedModel* /*target*/) {
  switch (config.method) {
    case DraftMethod::kNgram:
      return std::make_unique<NgramDrafter>(config.prompt_lookup_min,
                                            config.prompt_lookup_max);
    case DraftMethod::kSuffix:
      return std::make_unique<SuffixDrafter>(config.suffix);
    case DraftMethod::kDraftModel:
    case DraftMethod::kEagle3:
    case DraftMethod::kMtp:
      break;
    case DraftMethod::kNone:
      QUIRE_CHECK(false);
  }
  return absl::UnimplementedError(
      absl::StrCat("drafting by ", DraftMethodName(config.method),
                   " is not built; there are ngram and suffix"));
}

}  // namespace quire
