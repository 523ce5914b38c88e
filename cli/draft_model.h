// What a draft model must have in common with the model it drafts for.
#ifndef QUIRE_CLI_DRAFT_MODEL_H_
#define QUIRE_CLI_DRAFT_MODEL_H_

#include <string>

#include "absl/status/status.h"
#include "tokenizer/tokenizer.h"

namespace quire {

// Checks that `path` (as ResolveModelDirectory takes it) holds a model that
// could propose tokens to one with the tokenizer `target`: a supported
// configuration, and the same token for every id. Looks at no weights. An error
// names the file, or the first id that differs.
absl::Status CheckDraftModel(const std::string& path, const Tokenizer& target);

}  // namespace quire

#endif  // QUIRE_CLI_DRAFT_MODEL_H_
