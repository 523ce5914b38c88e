#include "tokenizer/tokenizer.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/base/status.h"
#include "tokenizer/sentencepiece_tokenizer.h"
#include "tokenizer/tokenizer_config.h"
#include "tokenizer/tokenizer_json.h"
#include "tokenizer/unicode.h"

namespace quire {
namespace {

// By TokenBytes alone, for tokenizers whose text is the bytes of their tokens.
class ByteStream final : public TokenStream {
 public:
  ByteStream(const Tokenizer* tokenizer, bool skip_special_tokens)
      : tokenizer_(tokenizer), skip_special_tokens_(skip_special_tokens) {}

  std::string Append(int32_t id) override {
    if (skip_special_tokens_ && tokenizer_->IsSpecial(id)) return {};
    held_back_ += tokenizer_->TokenBytes(id);
    return Take(/*is_end=*/false);
  }
  std::string Finish() override { return Take(/*is_end=*/true); }

 private:
  std::string Take(bool is_end) {
    if (is_at_start_ && !held_back_.empty()) {
      is_at_start_ = false;
      if (tokenizer_->strips_leading_space() && held_back_[0] == ' ') {
        held_back_.erase(0, 1);
      }
    }
    std::string text;
    held_back_.erase(0, AppendLossyUtf8(held_back_, is_end, &text));
    return text;
  }

  const Tokenizer* tokenizer_;
  bool skip_special_tokens_;
  bool is_at_start_ = true;
  std::string held_back_;
};

}  // namespace

std::unique_ptr<TokenStream> Tokenizer::NewTokenStream(
    bool skip_special_tokens) const {
  return std::make_unique<ByteStream>(this, skip_special_tokens);
}

absl::StatusOr<std::unique_ptr<Tokenizer>> Tokenizer::Create(
    const std::string& directory) {
  QUIRE_ASSIGN_OR_RETURN(TokenizerConfig config,
                         LoadTokenizerConfig(directory));
  absl::StatusOr<std::string> json = ReadWholeFile(
      absl::StrCat(directory, "/tokenizer.json"), kMaxTokenizerJsonBytes);
  if (json.ok()) {
    absl::StatusOr<std::unique_ptr<PipelineTokenizer>> tokenizer =
        ParseTokenizerJson(*json, std::move(config));
    if (!tokenizer.ok()) {
      return absl::Status(tokenizer.status().code(),
                          absl::StrCat(directory, "/tokenizer.json: ",
                                       tokenizer.status().message()));
    }
    return std::unique_ptr<Tokenizer>(*std::move(tokenizer));
  }
  if (!absl::IsNotFound(json.status())) return json.status();
  absl::StatusOr<std::string> model = ReadWholeFile(
      absl::StrCat(directory, "/tokenizer.model"), kMaxSentencePieceBytes);
  if (absl::IsNotFound(model.status())) {
    return absl::NotFoundError(absl::StrCat(
        directory, ": has neither tokenizer.json nor tokenizer.model"));
  }
  if (!model.ok()) return model.status();
  absl::StatusOr<std::unique_ptr<SentencePieceTokenizer>> tokenizer =
      SentencePieceTokenizer::Create(*std::move(model), std::move(config));
  if (!tokenizer.ok()) {
    return absl::Status(tokenizer.status().code(),
                        absl::StrCat(directory, "/tokenizer.model: ",
                                     tokenizer.status().message()));
  }
  return std::unique_ptr<Tokenizer>(*std::move(tokenizer));
}

}  // namespace quire
