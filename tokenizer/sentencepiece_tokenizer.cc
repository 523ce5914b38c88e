#include "tokenizer/sentencepiece_tokenizer.h"

#include <algorithm>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "engine/base/status.h"
#include "tokenizer/unicode.h"
#include "tokenizer/vocabulary.h"

namespace quire {
namespace {

constexpr absl::string_view kWordMark = "\xE2\x96\x81";  // U+2581

// Unused ids before an added token: a table is indexed by id.
constexpr int32_t kMaxIdGap = 1 << 16;

// SentencePieceProcessor::Decode, one piece at a time. A run of byte pieces is
// text character by character, and one U+FFFD for each byte that is part of
// none.
class SentencePieceStream final : public TokenStream {
 public:
  SentencePieceStream(const SentencePieceTokenizer* tokenizer,
                      bool skip_special_tokens)
      : tokenizer_(tokenizer), skip_special_tokens_(skip_special_tokens) {}

  std::string Append(int32_t id) override {
    std::string out;
    using Kind = SentencePieceTokenizer::TokenKind;
    const SentencePieceTokenizer::Token* token = tokenizer_->FindToken(id);
    if (token == nullptr || (skip_special_tokens_ && token->is_special)) {
      return out;
    }
    if (token->kind == Kind::kByte) {
      held_back_.push_back(static_cast<char>(token->byte));
      TakeBytes(/*is_end=*/false, &out);
      return out;
    }
    TakeBytes(/*is_end=*/true, &out);
    if (token->kind == Kind::kUnknown) {
      Emit(tokenizer_->proto().unk_surface, &out);
    } else if (token->kind == Kind::kLiteral) {
      Emit(token->text, &out);
    } else {
      EmitPiece(token->text, &out);
    }
    return out;
  }

  std::string Finish() override {
    std::string out;
    TakeBytes(/*is_end=*/true, &out);
    return out;
  }

 private:
  void Emit(absl::string_view text, std::string* out) {
    is_mark_stripped_ = false;
    out->append(text.data(), text.size());
    has_text_ |= !text.empty();
  }

  void EmitPiece(absl::string_view piece, std::string* out) {
    if (is_mark_stripped_ || has_text_) is_at_start_ = false;
    bool is_stripped = false;
    if (is_at_start_ && tokenizer_->strips_leading_space() &&
        absl::StartsWith(piece, kWordMark)) {
      piece.remove_prefix(kWordMark.size());
      // If extra spaces are removed, those of the next pieces go as well.
      is_stripped = !tokenizer_->proto().remove_extra_whitespaces;
    }
    Emit(absl::StrReplaceAll(piece, {{kWordMark, " "}}), out);
    is_mark_stripped_ = is_stripped;
  }

  void TakeBytes(bool is_end, std::string* out) {
    size_t taken = 0;
    while (taken < held_back_.size()) {
      const absl::string_view rest =
          absl::string_view(held_back_).substr(taken);
      const size_t valid = ValidUtf8Prefix(rest);
      if (valid > 0) {
        Emit(rest.substr(0, valid), out);
        taken += valid;
        continue;
      }
      if (!is_end && ClassifyBrokenUtf8(rest).could_continue) break;
      Emit(kReplacementCharacter, out);
      ++taken;
    }
    held_back_.erase(0, taken);
  }

  const SentencePieceTokenizer* tokenizer_;
  bool skip_special_tokens_;
  bool is_at_start_ = true;
  bool is_mark_stripped_ = false;  // By the last piece.
  bool has_text_ = false;
  std::string held_back_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<SentencePieceTokenizer>>
SentencePieceTokenizer::Create(std::string file, TokenizerConfig config) {
  std::unique_ptr<SentencePieceTokenizer> tokenizer(
      new SentencePieceTokenizer());
  QUIRE_ASSIGN_OR_RETURN(tokenizer->proto_, ParseSentencePieceProto(file));
  tokenizer->config_ = std::move(config);
  tokenizer->AddPieces();
  QUIRE_RETURN_IF_ERROR(tokenizer->AddConfiguredTokens());
  tokenizer->HideSpecialPieces(&file);
  absl::StatusOr<std::unique_ptr<SentencePieceModel>> model =
      SentencePieceModel::Create(tokenizer->proto_);
  if (model.ok()) {
    tokenizer->model_ = *std::move(model);
    return tokenizer;
  }
  if (!absl::IsUnimplemented(model.status())) return model.status();
  std::string error;
  tokenizer->library_ = SentencePieceEncoder::Create(file, &error);
  if (tokenizer->library_ == nullptr) {
    return absl::InvalidArgumentError(
        absl::StrCat("the sentencepiece library refuses it: ", error));
  }
  return tokenizer;
}

void SentencePieceTokenizer::AddPieces() {
  tokens_.resize(proto_.pieces.size());
  for (size_t i = 0; i < proto_.pieces.size(); ++i) {
    const SentencePiece& piece = proto_.pieces[i];
    Token& token = tokens_[i];
    token.text = piece.text;
    switch (piece.type) {
      case PieceType::kByte:
        token.kind = TokenKind::kByte;
        token.byte = static_cast<uint8_t>(piece.byte);
        break;
      case PieceType::kUnknown:
        token.kind = TokenKind::kUnknown;
        break;
      case PieceType::kControl:
        token.kind = TokenKind::kLiteral;
        token.is_special = true;
        break;
      default:
        token.kind = TokenKind::kPiece;
    }
    ids_[piece.text] = static_cast<int32_t>(i);
  }
}

absl::Status SentencePieceTokenizer::AddToken(const AddedToken& token) {
  if (token.content.empty()) return absl::OkStatus();
  int32_t id = token.id;
  if (const auto it = ids_.find(token.content); it != ids_.end()) {
    id = it->second;
  } else if (FindToken(id) != nullptr) {
    return absl::InvalidArgumentError(
        absl::StrCat("added token \"", token.content, "\": id ", id,
                     " is that of \"", tokens_[id].text, "\""));
  } else if (id > vocab_size() + kMaxIdGap) {
    return absl::InvalidArgumentError(
        absl::StrCat("added token \"", token.content, "\": id ", id,
                     " is far above the other ids"));
  } else {
    if (id >= vocab_size()) tokens_.resize(id + 1);
    tokens_[id].kind = TokenKind::kLiteral;
    tokens_[id].text = token.content;
    ids_[token.content] = id;
  }
  tokens_[id].is_special |= token.special;
  // A special token's text is shown as it is spelled.
  if (token.special && tokens_[id].kind == TokenKind::kPiece) {
    tokens_[id].kind = TokenKind::kLiteral;
  }
  AddedToken known = token;
  known.id = id;
  matcher_.Add(known.content, known);
  return absl::OkStatus();
}

absl::Status SentencePieceTokenizer::AddConfiguredTokens() {
  for (const AddedToken& token : config_.added_tokens) {
    QUIRE_RETURN_IF_ERROR(AddToken(token));
  }
  for (const auto& [name, text] : config_.special_tokens) {
    AddedToken token;
    token.content = text;
    token.id = vocab_size();
    token.special = true;
    QUIRE_RETURN_IF_ERROR(AddToken(token));
  }
  for (size_t i = 0; i < proto_.pieces.size(); ++i) {
    if (proto_.pieces[i].type != PieceType::kControl) continue;
    AddedToken token;
    token.content = proto_.pieces[i].text;
    token.special = true;
    QUIRE_RETURN_IF_ERROR(AddToken(token));
  }
  return absl::OkStatus();
}

void SentencePieceTokenizer::HideSpecialPieces(std::string* file) {
  for (size_t i = 0; i < proto_.pieces.size(); ++i) {
    SentencePiece& piece = proto_.pieces[i];
    if (piece.type == PieceType::kUserDefined && tokens_[i].is_special) {
      piece.type = PieceType::kControl;
      (*file)[piece.type_offset] = static_cast<char>(PieceType::kControl);
    }
  }
}

const SentencePieceTokenizer::Token* SentencePieceTokenizer::FindToken(
    int32_t id) const {
  if (id < 0 || id >= vocab_size() || tokens_[id].kind == TokenKind::kNone) {
    return nullptr;
  }
  return &tokens_[id];
}

absl::StatusOr<std::vector<int32_t>> SentencePieceTokenizer::Encode(
    absl::string_view text, const EncodeOptions& options) const {
  const EncodeSegment segment{text, options.parse_special_tokens};
  return EncodeSegments(absl::MakeConstSpan(&segment, 1),
                        options.add_special_tokens);
}

absl::Status SentencePieceTokenizer::EncodePart(
    absl::string_view text, std::vector<int32_t>* ids) const {
  if (model_ != nullptr) return model_->Encode(text, ids);
  std::vector<int> found;
  std::string error;
  if (!library_->Encode(text.data(), text.size(), &found, &error)) {
    return absl::InternalError(absl::StrCat("sentencepiece: ", error));
  }
  ids->insert(ids->end(), found.begin(), found.end());
  return absl::OkStatus();
}

absl::StatusOr<std::vector<int32_t>> SentencePieceTokenizer::EncodeSegments(
    absl::Span<const EncodeSegment> segments, bool add_special_tokens) const {
  QUIRE_ASSIGN_OR_RETURN(const SegmentedText text, JoinSegments(segments));
  std::vector<int32_t> ids;
  const std::optional<int32_t> bos = bos_token_id();
  const std::optional<int32_t> eos = eos_token_id();
  if (add_special_tokens && bos.has_value() &&
      config_.add_bos_token.value_or(true)) {
    ids.push_back(*bos);
  }
  for (const TextPart& part : matcher_.Split(text.text, text.ParsedRanges())) {
    if (part.id >= 0) {
      ids.push_back(part.id);
      continue;
    }
    QUIRE_RETURN_IF_ERROR(
        EncodePart(absl::string_view(text.text).substr(
                       part.range.begin, part.range.end - part.range.begin),
                   &ids));
  }
  if (add_special_tokens && eos.has_value() &&
      config_.add_eos_token.value_or(false)) {
    ids.push_back(*eos);
  }
  return ids;
}

std::string SentencePieceTokenizer::Decode(absl::Span<const int32_t> ids,
                                           bool skip_special_tokens) const {
  SentencePieceStream stream(this, skip_special_tokens);
  std::string text;
  for (const int32_t id : ids) text += stream.Append(id);
  return text + stream.Finish();
}

std::unique_ptr<TokenStream> SentencePieceTokenizer::NewTokenStream(
    bool skip_special_tokens) const {
  return std::make_unique<SentencePieceStream>(this, skip_special_tokens);
}

std::string SentencePieceTokenizer::TokenBytes(int32_t id) const {
  const Token* token = FindToken(id);
  if (token == nullptr) return {};
  switch (token->kind) {
    case TokenKind::kByte:
      return std::string(1, static_cast<char>(token->byte));
    case TokenKind::kUnknown:
      return proto_.unk_surface;
    case TokenKind::kLiteral:
      return token->text;
    default:
      return absl::StrReplaceAll(token->text, {{kWordMark, " "}});
  }
}

std::string SentencePieceTokenizer::IdToToken(int32_t id) const {
  const Token* token = FindToken(id);
  return token == nullptr ? std::string() : token->text;
}

std::optional<int32_t> SentencePieceTokenizer::TokenToId(
    absl::string_view token) const {
  const auto it = ids_.find(token);
  if (it == ids_.end()) return std::nullopt;
  return it->second;
}

bool SentencePieceTokenizer::IsSpecial(int32_t id) const {
  const Token* token = FindToken(id);
  return token != nullptr && token->is_special;
}

std::optional<int32_t> SentencePieceTokenizer::NamedTokenId(
    absl::string_view name, int32_t if_unnamed) const {
  const auto it = config_.special_tokens.find(std::string(name));
  if (it != config_.special_tokens.end()) return TokenToId(it->second);
  const Token* token = FindToken(if_unnamed);
  if (token == nullptr || !token->is_special) return std::nullopt;
  return if_unnamed;
}

std::optional<int32_t> SentencePieceTokenizer::bos_token_id() const {
  return NamedTokenId("bos_token", proto_.bos_id);
}

std::optional<int32_t> SentencePieceTokenizer::eos_token_id() const {
  return NamedTokenId("eos_token", proto_.eos_id);
}

std::string SentencePieceTokenizer::SpecialTokenText(
    absl::string_view name) const {
  const auto it = config_.special_tokens.find(std::string(name));
  if (it != config_.special_tokens.end()) return it->second;
  if (name == "bos_token" && bos_token_id()) return IdToToken(*bos_token_id());
  if (name == "eos_token" && eos_token_id()) return IdToToken(*eos_token_id());
  return {};
}

}  // namespace quire
