// Text to token ids and back, from a model's own files.
#ifndef QUIRE_TOKENIZER_TOKENIZER_H_
#define QUIRE_TOKENIZER_TOKENIZER_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace quire {

struct EncodeOptions {
  // Adds what the post-processor adds (a begin token, usually).
  bool add_special_tokens = true;
  // True: the text of an added or special token in the input becomes that
  // token. False: it is ordinary text, which is what user text must be.
  bool parse_special_tokens = false;
};

// A piece of a prompt and whether special tokens in it count.
struct EncodeSegment {
  absl::string_view text;
  bool parse_special_tokens = false;
};

// One text being decoded, token by token. IncrementalDetokenizer is the
// interface for callers. Thread-compatible.
class TokenStream {
 public:
  virtual ~TokenStream() = default;
  // The text that is certain now and was not before; whole characters.
  virtual std::string Append(int32_t id) = 0;
  // The rest. Nothing may be appended after it.
  virtual std::string Finish() = 0;
};

// Immutable and thread-safe after creation.
class Tokenizer {
 public:
  // From `directory`: tokenizer.json, or else tokenizer.model (sentencepiece),
  // with tokenizer_config.json, special_tokens_map.json and added_tokens.json
  // where present. NOT_FOUND if neither exists; INVALID_ARGUMENT naming file
  // and field for anything that is malformed or not supported.
  static absl::StatusOr<std::unique_ptr<Tokenizer>> Create(
      const std::string& directory);
  virtual ~Tokenizer() = default;

  // Invalid UTF-8 is encoded as if U+FFFD stood in its place.
  virtual absl::StatusOr<std::vector<int32_t>> Encode(
      absl::string_view text, const EncodeOptions& options = {}) const = 0;

  // Encodes the concatenation of the segments: pre-tokenization runs across
  // borders (the ids equal Encode's on the whole text when no special token's
  // text occurs), but only segments with parse_special_tokens may yield special
  // tokens, and a special token never spans a border.
  virtual absl::StatusOr<std::vector<int32_t>> EncodeSegments(
      absl::Span<const EncodeSegment> segments,
      bool add_special_tokens = false) const = 0;

  // The whole text. Bytes that are not UTF-8 become U+FFFD. Ids outside the
  // vocabulary are skipped.
  virtual std::string Decode(absl::Span<const int32_t> ids,
                             bool skip_special_tokens = true) const = 0;

  // Decode of ids as they arrive; the tokenizer must outlive it. The default
  // joins TokenBytes.
  virtual std::unique_ptr<TokenStream> NewTokenStream(
      bool skip_special_tokens) const;

  // The bytes that `id` adds to a text as the incremental detokenizer sees them
  // (byte-level BPE: exact bytes; sentencepiece: with its word marker as a
  // space). Empty for ids outside the vocabulary.
  virtual std::string TokenBytes(int32_t id) const = 0;

  // The token as the vocabulary spells it; empty if there is none.
  virtual std::string IdToToken(int32_t id) const = 0;
  virtual std::optional<int32_t> TokenToId(absl::string_view token) const = 0;

  virtual bool IsSpecial(int32_t id) const = 0;
  // One more than the largest id.
  virtual int32_t vocab_size() const = 0;
  // From tokenizer_config.json; none if it names none.
  virtual std::optional<int32_t> bos_token_id() const = 0;
  virtual std::optional<int32_t> eos_token_id() const = 0;
  // Text of the named special tokens ("bos_token", "eos_token", "unk_token",
  // "pad_token", ...) as templates see them; empty if absent.
  virtual std::string SpecialTokenText(absl::string_view name) const = 0;
  // chat_template of tokenizer_config.json, or the file chat_template.jinja;
  // empty if the model has none. Of a list of named templates, "default".
  virtual std::string chat_template() const = 0;
  // True if the decoder strips one leading space of a whole text (sentencepiece
  // with a dummy prefix).
  virtual bool strips_leading_space() const = 0;
};

}  // namespace quire

#endif  // QUIRE_TOKENIZER_TOKENIZER_H_
