// tokenizer.json, the file format of the `tokenizers` library of Hugging Face.
#ifndef QUIRE_TOKENIZER_TOKENIZER_JSON_H_
#define QUIRE_TOKENIZER_TOKENIZER_JSON_H_

#include <cstdint>
#include <memory>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "nlohmann/json.hpp"
#include "tokenizer/model_json.h"
#include "tokenizer/pipeline_tokenizer.h"
#include "tokenizer/tokenizer_config.h"

namespace quire {

inline constexpr int64_t kMaxTokenizerJsonBytes = int64_t{256} << 20;

// The tokenizer that `text`, the content of a tokenizer.json, describes.
// INVALID_ARGUMENT, with a message that names the field, for anything malformed
// and for any component or field that is not supported and would change
// results. "truncation" and "padding" are ignored: both are the caller's.
absl::StatusOr<std::unique_ptr<PipelineTokenizer>> ParseTokenizerJson(
    absl::string_view text, TokenizerConfig config);

// The same from a file that was read: `fields` has normalizer, pre_tokenizer,
// post_processor, decoder and added_tokens where they are not null.
// Requires: texts are UTF-8.
absl::StatusOr<std::unique_ptr<PipelineTokenizer>> BuildPipelineTokenizer(
    const nlohmann::json& fields, const ModelDocument& model,
    TokenizerConfig config);

}  // namespace quire

#endif  // QUIRE_TOKENIZER_TOKENIZER_JSON_H_
