// A tokenizer as tokenizer.json describes one: added tokens, normalizer,
// pre-tokenizer, model, post-processor, decoder.
#ifndef QUIRE_TOKENIZER_PIPELINE_TOKENIZER_H_
#define QUIRE_TOKENIZER_PIPELINE_TOKENIZER_H_

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "tokenizer/added_tokens.h"
#include "tokenizer/decoder.h"
#include "tokenizer/normalizer.h"
#include "tokenizer/pre_tokenizer.h"
#include "tokenizer/segmented_text.h"
#include "tokenizer/tokenizer.h"
#include "tokenizer/tokenizer_config.h"
#include "tokenizer/word_model.h"

namespace quire {

// The ids that a post-processor puts around a text.
struct AffixIds {
  std::vector<int32_t> prefix;
  std::vector<int32_t> suffix;
};

// What a file describes.
struct PipelineParts {
  std::unique_ptr<WordModel> model;
  Normalizer normalizer;
  PreTokenizer pre_tokenizer;
  TextDecoder decoder;
  AffixIds affixes;
  std::vector<AddedToken> added_tokens;  // Ids as they are in the file.
};

// Immutable and thread-safe.
class PipelineTokenizer final : public Tokenizer {
 public:
  // The ids of added tokens follow `tokenizers`: a token that the vocabulary
  // has keeps that id, any other takes the next id after the largest.
  // INVALID_ARGUMENT if a token of `config` cannot be added.
  static absl::StatusOr<std::unique_ptr<PipelineTokenizer>> Create(
      PipelineParts parts, TokenizerConfig config);

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
  int32_t vocab_size() const override { return num_ids_; }
  std::optional<int32_t> bos_token_id() const override;
  std::optional<int32_t> eos_token_id() const override;
  std::string SpecialTokenText(absl::string_view name) const override;
  std::string chat_template() const override { return config_.chat_template; }
  bool strips_leading_space() const override {
    return parts_.decoder.strips_leading_space();
  }

  // The text of `id` as the decoder is given it; false if there is none.
  bool DecoderText(int32_t id, absl::string_view* text) const;
  const TextDecoder& decoder() const { return parts_.decoder; }

 private:
  struct Added {
    AddedToken token;
    std::string decoder_text;  // Normalized, if the token is.
  };

  PipelineTokenizer(PipelineParts parts, TokenizerConfig config);

  absl::Status AddToken(AddedToken token);
  absl::Status AddTokens();
  absl::Status ApplyConfig();
  std::optional<int32_t> NamedTokenId(absl::string_view name) const;

  absl::Status EncodeText(const SegmentedText& text,
                          std::vector<int32_t>* ids) const;
  // A part of the text between added tokens.
  absl::Status EncodeRun(const SegmentedText& text, TextRange range,
                         std::vector<int32_t>* ids) const;
  absl::Status EncodeWords(WordList* words, std::vector<int32_t>* ids) const;

  PipelineParts parts_;
  TokenizerConfig config_;
  std::map<int32_t, Added> added_;  // By id.
  std::map<std::string, int32_t, std::less<>> added_ids_;
  std::vector<bool> is_special_;
  AddedTokenMatcher matcher_;             // Sought in the text itself.
  AddedTokenMatcher normalized_matcher_;  // Sought after normalization.
  int32_t num_ids_ = 0;
};

}  // namespace quire

#endif  // QUIRE_TOKENIZER_PIPELINE_TOKENIZER_H_
