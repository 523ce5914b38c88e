// tokenizer.model of sentencepiece.
// Kudo & Richardson 2018, arXiv:1808.06226. Decoding is ours, because it has to
// stream, and so is the encoding of BPE and unigram models, because the
// library's BPE takes seconds for a megabyte; it encodes what ours does not
// (sentencepiece_model.h).
#ifndef QUIRE_TOKENIZER_SENTENCEPIECE_TOKENIZER_H_
#define QUIRE_TOKENIZER_SENTENCEPIECE_TOKENIZER_H_

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "tokenizer/added_tokens.h"
#include "tokenizer/segmented_text.h"
#include "tokenizer/sentencepiece_encoder.h"
#include "tokenizer/sentencepiece_model.h"
#include "tokenizer/sentencepiece_proto.h"
#include "tokenizer/tokenizer.h"
#include "tokenizer/tokenizer_config.h"

namespace quire {

// Immutable and thread-safe.
class SentencePieceTokenizer final : public Tokenizer {
 public:
  // From the content of a tokenizer.model. The pieces that are control tokens,
  // and the tokens of `config`, are found in the text before the library sees
  // it; each part between them is encoded alone, with its own dummy prefix.
  // A begin token is added unless add_bos_token is false, an end token only if
  // add_eos_token is true. INVALID_ARGUMENT naming the field.
  static absl::StatusOr<std::unique_ptr<SentencePieceTokenizer>> Create(
      std::string file, TokenizerConfig config);

  absl::StatusOr<std::vector<int32_t>> Encode(
      absl::string_view text, const EncodeOptions& options) const override;
  absl::StatusOr<std::vector<int32_t>> EncodeSegments(
      absl::Span<const EncodeSegment> segments,
      bool add_special_tokens) const override;
  std::string Decode(absl::Span<const int32_t> ids,
                     bool skip_special_tokens) const override;
  std::unique_ptr<TokenStream> NewTokenStream(
      bool skip_special_tokens) const override;
  std::string TokenBytes(int32_t id) const override;
  std::string IdToToken(int32_t id) const override;
  std::optional<int32_t> TokenToId(absl::string_view token) const override;
  bool IsSpecial(int32_t id) const override;
  int32_t vocab_size() const override {
    return static_cast<int32_t>(tokens_.size());
  }
  std::optional<int32_t> bos_token_id() const override;
  std::optional<int32_t> eos_token_id() const override;
  std::string SpecialTokenText(absl::string_view name) const override;
  std::string chat_template() const override { return config_.chat_template; }
  bool strips_leading_space() const override {
    return proto_.add_dummy_prefix || proto_.remove_extra_whitespaces;
  }

  // How a token enters a text.
  enum class TokenKind { kNone, kPiece, kUnknown, kByte, kLiteral };
  struct Token {
    TokenKind kind = TokenKind::kNone;
    bool is_special = false;
    uint8_t byte = 0;
    std::string text;
  };
  // Null outside the vocabulary.
  const Token* FindToken(int32_t id) const;
  const SentencePieceProto& proto() const { return proto_; }

 private:
  SentencePieceTokenizer() = default;
  void AddPieces();
  absl::Status AddToken(const AddedToken& token);
  absl::Status AddConfiguredTokens();
  // Keeps the model from finding special tokens in text on its own.
  void HideSpecialPieces(std::string* file);
  absl::Status EncodePart(absl::string_view text,
                          std::vector<int32_t>* ids) const;
  std::optional<int32_t> NamedTokenId(absl::string_view name,
                                      int32_t if_unnamed) const;

  SentencePieceProto proto_;
  TokenizerConfig config_;
  std::unique_ptr<SentencePieceModel> model_;
  std::unique_ptr<SentencePieceEncoder> library_;  // If model_ is null.
  std::vector<Token> tokens_;                      // By id.
  std::map<std::string, int32_t, std::less<>> ids_;
  AddedTokenMatcher matcher_;
};

}  // namespace quire

#endif  // QUIRE_TOKENIZER_SENTENCEPIECE_TOKENIZER_H_
