// A tokenizer for tests of what stands above one: bytes, a few pieces of more
// or less than a character, and special tokens.
#ifndef QUIRE_SERVER_FAKE_TOKENIZER_H_
#define QUIRE_SERVER_FAKE_TOKENIZER_H_

#include <cstdint>
#include <iterator>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "tokenizer/tokenizer.h"

namespace quire {

// Ids 0 to 255 are bytes; then kSpecials; then kPieces. Encoding yields bytes
// and, where asked, special tokens. Thread-safe.
class FakeTokenizer : public Tokenizer {
 public:
  static constexpr int32_t kBos = 256, kEos = 257, kEnd = 258;
  static constexpr const char* kSpecials[] = {"<s>", "</s>", "<|end|>"};
  // The emoji U+1F600 in two halves, and U+00E9 whole.
  static constexpr int32_t kEmojiHead = 259, kEmojiTail = 260, kAcute = 261;
  static constexpr const char* kPieces[] = {
      "\xf0\x9f", "\x98\x80", "\xc3\xa9", "ab", "abc",  "bca",
      " the",     "END",      "EN",       "D ", "\n\n", "\""};
  static constexpr int32_t kVocabSize =
      256 + std::size(kSpecials) + std::size(kPieces);

  absl::StatusOr<std::vector<int32_t>> Encode(
      absl::string_view text, const EncodeOptions& options) const override {
    std::vector<int32_t> ids;
    if (options.add_special_tokens) ids.push_back(kBos);
    AppendIds(text, options.parse_special_tokens, &ids);
    return ids;
  }

  absl::StatusOr<std::vector<int32_t>> EncodeSegments(
      absl::Span<const EncodeSegment> segments,
      bool add_special_tokens) const override {
    std::vector<int32_t> ids;
    if (add_special_tokens) ids.push_back(kBos);
    for (const EncodeSegment& segment : segments) {
      AppendIds(segment.text, segment.parse_special_tokens, &ids);
    }
    return ids;
  }

  std::string Decode(absl::Span<const int32_t> ids,
                     bool skip_special_tokens) const override {
    const auto stream = NewTokenStream(skip_special_tokens);
    std::string text;
    for (const int32_t id : ids) text += stream->Append(id);
    return text + stream->Finish();
  }

  std::string TokenBytes(int32_t id) const override {
    if (id < 0 || id >= kVocabSize) return "";
    if (id < 256) return std::string(1, static_cast<char>(id));
    if (IsSpecial(id)) return kSpecials[id - 256];
    return kPieces[id - kEmojiHead];
  }
  std::string IdToToken(int32_t id) const override { return TokenBytes(id); }
  std::optional<int32_t> TokenToId(absl::string_view token) const override {
    for (int32_t id = 0; id < kVocabSize; ++id) {
      if (TokenBytes(id) == token) return id;
    }
    return std::nullopt;
  }
  bool IsSpecial(int32_t id) const override {
    return id >= kBos && id < kEmojiHead;
  }
  int32_t vocab_size() const override { return kVocabSize; }
  std::optional<int32_t> bos_token_id() const override { return kBos; }
  std::optional<int32_t> eos_token_id() const override { return kEos; }
  std::string SpecialTokenText(absl::string_view name) const override {
    if (name == "bos_token") return kSpecials[0];
    return name == "eos_token" ? kSpecials[1] : "";
  }
  std::string chat_template() const override { return ""; }
  bool strips_leading_space() const override { return false; }

 private:
  static void AppendIds(absl::string_view text, bool parses_specials,
                        std::vector<int32_t>* ids) {
    while (!text.empty()) {
      int32_t id = static_cast<uint8_t>(text[0]);
      size_t size = 1;
      for (size_t i = 0; parses_specials && i < std::size(kSpecials); ++i) {
        const absl::string_view special = kSpecials[i];
        if (text.substr(0, special.size()) != special) continue;
        id = kBos + static_cast<int32_t>(i);
        size = special.size();
      }
      ids->push_back(id);
      text.remove_prefix(size);
    }
  }
};

// Encodes with the pieces, too, the longest first. Thread-safe.
class PieceTokenizer : public FakeTokenizer {
 public:
  absl::StatusOr<std::vector<int32_t>> Encode(
      absl::string_view text, const EncodeOptions& options) const override {
    std::vector<int32_t> ids;
    while (!text.empty()) {
      int32_t best = static_cast<uint8_t>(text[0]);
      size_t size = 1;
      for (int32_t id = kBos; id < kVocabSize; ++id) {
        if (IsSpecial(id) && !options.parse_special_tokens) continue;
        const std::string piece = TokenBytes(id);
        if (piece.size() > size && text.substr(0, piece.size()) == piece) {
          best = id;
          size = piece.size();
        }
      }
      ids.push_back(best);
      text.remove_prefix(size);
    }
    return ids;
  }
};

}  // namespace quire

#endif  // QUIRE_SERVER_FAKE_TOKENIZER_H_
