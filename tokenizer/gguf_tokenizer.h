// The tokenizer that a GGUF file stores in its keys tokenizer.ggml.*.
//
// What the keys mean follows ggml-org/llama.cpp (src/llama-vocab.cpp); how text
// is tokenized follows the model's own tokenizer, as published: models of type
// "gpt2" are byte-level BPE of tokenizer.json, "llama" and "t5" are
// sentencepiece's BPE and unigram, "bert" are WordPiece of tokenizer.json, in
// lower case if the vocabulary is. "no_vocab" is an error that asks for a
// tokenizer from elsewhere.
#ifndef QUIRE_TOKENIZER_GGUF_TOKENIZER_H_
#define QUIRE_TOKENIZER_GGUF_TOKENIZER_H_

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "tokenizer/tokenizer.h"

namespace quire {

// Values of the keys; texts are views of the file, needed while the tokenizer
// is made. None, or empty, if the file does not have the key.
struct GgufTokenizerKeys {
  absl::string_view model;
  std::optional<absl::string_view> pre;
  absl::Span<const absl::string_view> tokens;
  absl::Span<const int64_t> token_types;
  absl::Span<const float> scores;
  absl::Span<const absl::string_view> merges;
  absl::string_view precompiled_charsmap;
  // "bos_token", "eos_token", "unk_token", ...
  std::map<std::string, int64_t> special_ids;
  std::optional<bool> add_bos_token;
  std::optional<bool> add_eos_token;
  std::optional<bool> add_space_prefix;
  std::optional<bool> remove_extra_whitespaces;
  absl::string_view chat_template;
};

// INVALID_ARGUMENT, naming the key, for anything malformed or not supported. A
// pre-tokenizer that is not known is a line in `warnings`, and the default's
// takes its place.
absl::StatusOr<std::unique_ptr<Tokenizer>> CreateGgufTokenizer(
    const GgufTokenizerKeys& keys, std::vector<std::string>* warnings);

}  // namespace quire

#endif  // QUIRE_TOKENIZER_GGUF_TOKENIZER_H_
