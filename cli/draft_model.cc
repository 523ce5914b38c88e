#include "cli/draft_model.h"

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "cli/model_path.h"
#include "cli/model_tokenizer.h"
#include "engine/base/status.h"
#include "engine/model/loaded_model.h"

namespace quire {

absl::Status CheckDraftModel(const std::string& path, const Tokenizer& target) {
  QUIRE_ASSIGN_OR_RETURN(const std::string directory, ResolveModelPath(path));
  QUIRE_RETURN_IF_ERROR(CheckModelConfig(directory));
  std::vector<std::string> warnings;
  QUIRE_ASSIGN_OR_RETURN(const std::unique_ptr<Tokenizer> draft,
                         OpenModelTokenizer(directory, &warnings));
  // Ids without a token pad a vocabulary, and published pairs differ in them
  // (Qwen2.5: 151936 ids in the 0.5B model, 152064 in the 7B model).
  const int32_t num_ids = std::max(draft->vocab_size(), target.vocab_size());
  for (int32_t id = 0; id < num_ids; ++id) {
    if (draft->IdToToken(id) == target.IdToToken(id)) continue;
    return absl::InvalidArgumentError(absl::StrCat(
        directory, ": the draft model's tokenizer is not the model's: id ", id,
        " is \"", absl::CHexEscape(draft->IdToToken(id)), "\", not \"",
        absl::CHexEscape(target.IdToToken(id)), "\""));
  }
  return absl::OkStatus();
}

}  // namespace quire
