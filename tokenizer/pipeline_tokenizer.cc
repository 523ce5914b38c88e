#include "tokenizer/pipeline_tokenizer.h"

#include <algorithm>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/base/status.h"

namespace quire {
namespace {

class PipelineStream final : public TokenStream {
 public:
  PipelineStream(const PipelineTokenizer* tokenizer, bool skip_special_tokens)
      : tokenizer_(tokenizer),
        skip_special_tokens_(skip_special_tokens),
        run_(&tokenizer->decoder()) {}

  std::string Append(int32_t id) override {
    std::string out;
    absl::string_view text;
    if (!tokenizer_->DecoderText(id, &text)) return out;
    if (skip_special_tokens_ && tokenizer_->IsSpecial(id)) return out;
    run_.Append(text, &out);
    return out;
  }
  std::string Finish() override {
    std::string out;
    run_.Finish(&out);
    return out;
  }

 private:
  const PipelineTokenizer* tokenizer_;
  bool skip_special_tokens_;
  DecoderRun run_;
};

}  // namespace

PipelineTokenizer::PipelineTokenizer(PipelineParts parts,
                                     TokenizerConfig config)
    : parts_(std::move(parts)), config_(std::move(config)) {}

absl::StatusOr<std::unique_ptr<PipelineTokenizer>> PipelineTokenizer::Create(
    PipelineParts parts, TokenizerConfig config) {
  std::unique_ptr<PipelineTokenizer> tokenizer(
      new PipelineTokenizer(std::move(parts), std::move(config)));
  QUIRE_RETURN_IF_ERROR(tokenizer->AddTokens());
  QUIRE_RETURN_IF_ERROR(tokenizer->ApplyConfig());
  return tokenizer;
}

absl::Status PipelineTokenizer::AddToken(AddedToken token) {
  if (token.content.empty()) return absl::OkStatus();
  const Vocabulary& vocabulary = parts_.model->vocabulary();
  const int32_t vocabulary_size = static_cast<int32_t>(vocabulary.size());
  if (const auto it = added_ids_.find(token.content); it != added_ids_.end()) {
    token.id = it->second;
  } else if (const int32_t id = vocabulary.Find(token.content); id >= 0) {
    token.id = id;
  } else {
    token.id = vocabulary_size;
    if (!added_.empty() && added_.rbegin()->first >= vocabulary_size) {
      token.id = added_.rbegin()->first + 1;
    }
    if (token.id > Vocabulary::kMaxId || vocabulary.Contains(token.id)) {
      return absl::InvalidArgumentError(
          absl::StrCat("added token \"", token.content, "\": id ", token.id,
                       " is taken, because ids of model.vocab have gaps"));
    }
  }
  Added added;
  added.decoder_text = token.content;
  if (token.normalized) {
    QUIRE_RETURN_IF_ERROR(
        parts_.normalizer.Apply(&added.decoder_text, nullptr));
  }
  added_ids_[token.content] = token.id;
  const int32_t id = token.id;
  added.token = std::move(token);
  added_[id] = std::move(added);
  return absl::OkStatus();
}

absl::Status PipelineTokenizer::AddTokens() {
  for (AddedToken& token : parts_.added_tokens) {
    QUIRE_RETURN_IF_ERROR(AddToken(std::move(token)));
  }
  for (const AddedToken& token : config_.added_tokens) {
    QUIRE_RETURN_IF_ERROR(AddToken(token));
  }
  // A special token that only the configuration names is one all the same.
  for (const auto& [name, text] : config_.special_tokens) {
    if (added_ids_.count(text) > 0) continue;
    AddedToken token;
    token.content = text;
    token.special = true;
    QUIRE_RETURN_IF_ERROR(AddToken(std::move(token)));
  }
  num_ids_ = parts_.model->vocabulary().num_ids();
  std::set<std::string, std::less<>> special_texts;
  for (const auto& [id, added] : added_) {
    num_ids_ = std::max(num_ids_, id + 1);
    if (added.token.special) special_texts.insert(added.token.content);
    if (added.token.normalized) {
      normalized_matcher_.Add(added.decoder_text, added.token);
    } else {
      matcher_.Add(added.token.content, added.token);
    }
  }
  is_special_.resize(num_ids_);
  for (const auto& [id, added] : added_) {
    is_special_[id] = special_texts.count(added.decoder_text) > 0;
  }
  return absl::OkStatus();
}

absl::Status PipelineTokenizer::ApplyConfig() {
  // As transformers does: either setting replaces the file's post-processor.
  if (!config_.add_bos_token.has_value() &&
      !config_.add_eos_token.has_value()) {
    return absl::OkStatus();
  }
  parts_.affixes = AffixIds();
  const std::optional<int32_t> bos = bos_token_id();
  const std::optional<int32_t> eos = eos_token_id();
  if (config_.add_bos_token.value_or(false) && bos.has_value()) {
    parts_.affixes.prefix.push_back(*bos);
  }
  if (config_.add_eos_token.value_or(false) && eos.has_value()) {
    parts_.affixes.suffix.push_back(*eos);
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<int32_t>> PipelineTokenizer::Encode(
    absl::string_view text, const EncodeOptions& options) const {
  const EncodeSegment segment{text, options.parse_special_tokens};
  return EncodeSegments(absl::MakeConstSpan(&segment, 1),
                        options.add_special_tokens);
}

absl::StatusOr<std::vector<int32_t>> PipelineTokenizer::EncodeSegments(
    absl::Span<const EncodeSegment> segments, bool add_special_tokens) const {
  QUIRE_ASSIGN_OR_RETURN(const SegmentedText text, JoinSegments(segments));
  std::vector<int32_t> ids;
  ids.reserve(text.text.size() / 4 + 8);
  if (add_special_tokens) ids = parts_.affixes.prefix;
  QUIRE_RETURN_IF_ERROR(EncodeText(text, &ids));
  if (add_special_tokens) {
    ids.insert(ids.end(), parts_.affixes.suffix.begin(),
               parts_.affixes.suffix.end());
  }
  return ids;
}

absl::Status PipelineTokenizer::EncodeText(const SegmentedText& text,
                                           std::vector<int32_t>* ids) const {
  std::vector<TextRange> allowed;
  if (!matcher_.empty()) allowed = text.ParsedRanges();
  for (const TextPart& part : matcher_.Split(text.text, allowed)) {
    if (part.id >= 0) {
      ids->push_back(part.id);
    } else {
      QUIRE_RETURN_IF_ERROR(EncodeRun(text, part.range, ids));
    }
  }
  return absl::OkStatus();
}

absl::Status PipelineTokenizer::EncodeRun(const SegmentedText& text,
                                          TextRange range,
                                          std::vector<int32_t>* ids) const {
  absl::string_view run =
      absl::string_view(text.text).substr(range.begin, range.end - range.begin);
  const bool seeks_tokens =
      !normalized_matcher_.empty() &&
      std::any_of(text.segments.begin(), text.segments.end(),
                  [](const SegmentRange& s) { return s.parse_special_tokens; });
  TextOrigin origin;
  if (seeks_tokens) origin = text.Origin(range);
  std::string normalized;
  bool starts_late = false;
  if (!parts_.normalizer.IsIdentity()) {
    normalized.assign(run.data(), run.size());
    QUIRE_RETURN_IF_ERROR(parts_.normalizer.Apply(
        &normalized,
        seeks_tokens && text.segments.size() > 1 ? &origin : nullptr,
        &starts_late));
    run = normalized;
    if (seeks_tokens && text.segments.size() == 1) {
      origin.assign(run.size(), 0);
    }
  }
  const bool is_first = range.begin == 0 && !starts_late;
  WordList words;
  if (!seeks_tokens) {
    if (!run.empty()) words.words.push_back({run, is_first});
    return EncodeWords(&words, ids);
  }
  for (const TextPart& part :
       normalized_matcher_.Split(run, ParsedRangesOf(origin, text.segments))) {
    if (part.id < 0) {
      words.words.push_back(
          {run.substr(part.range.begin, part.range.end - part.range.begin),
           is_first && part.range.begin == 0});
      continue;
    }
    QUIRE_RETURN_IF_ERROR(EncodeWords(&words, ids));
    words = WordList();
    ids->push_back(part.id);
  }
  return EncodeWords(&words, ids);
}

absl::Status PipelineTokenizer::EncodeWords(WordList* words,
                                            std::vector<int32_t>* ids) const {
  QUIRE_RETURN_IF_ERROR(parts_.pre_tokenizer.Apply(words));
  for (const Word& word : words->words) {
    QUIRE_RETURN_IF_ERROR(parts_.model->EncodeWord(word.text, ids));
  }
  return absl::OkStatus();
}

bool PipelineTokenizer::DecoderText(int32_t id, absl::string_view* text) const {
  if (const auto it = added_.find(id); it != added_.end()) {
    *text = it->second.decoder_text;
    return true;
  }
  if (!parts_.model->vocabulary().Contains(id)) return false;
  *text = parts_.model->vocabulary().Text(id);
  return true;
}

std::string PipelineTokenizer::Decode(absl::Span<const int32_t> ids,
                                      bool skip_special_tokens) const {
  DecoderRun run(&parts_.decoder);
  std::string out;
  for (const int32_t id : ids) {
    absl::string_view text;
    if (!DecoderText(id, &text)) continue;
    if (skip_special_tokens && is_special_[id]) continue;
    run.Append(text, &out);
  }
  run.Finish(&out);
  return out;
}

std::unique_ptr<TokenStream> PipelineTokenizer::NewTokenStream(
    bool skip_special_tokens) const {
  return std::make_unique<PipelineStream>(this, skip_special_tokens);
}

std::string PipelineTokenizer::TokenBytes(int32_t id) const {
  absl::string_view text;
  if (!DecoderText(id, &text)) return {};
  return parts_.decoder.TokenBytes(text);
}

std::string PipelineTokenizer::IdToToken(int32_t id) const {
  if (const auto it = added_.find(id); it != added_.end()) {
    return it->second.token.content;
  }
  return std::string(parts_.model->vocabulary().Text(id));
}

std::optional<int32_t> PipelineTokenizer::TokenToId(
    absl::string_view token) const {
  if (const auto it = added_ids_.find(token); it != added_ids_.end()) {
    return it->second;
  }
  const int32_t id = parts_.model->vocabulary().Find(token);
  if (id < 0) return std::nullopt;
  return id;
}

bool PipelineTokenizer::IsSpecial(int32_t id) const {
  return id >= 0 && id < num_ids_ && is_special_[id];
}

std::optional<int32_t> PipelineTokenizer::NamedTokenId(
    absl::string_view name) const {
  const auto it = config_.special_tokens.find(std::string(name));
  if (it == config_.special_tokens.end()) return std::nullopt;
  return TokenToId(it->second);
}

std::optional<int32_t> PipelineTokenizer::bos_token_id() const {
  return NamedTokenId("bos_token");
}

std::optional<int32_t> PipelineTokenizer::eos_token_id() const {
  return NamedTokenId("eos_token");
}

std::string PipelineTokenizer::SpecialTokenText(absl::string_view name) const {
  const auto it = config_.special_tokens.find(std::string(name));
  return it == config_.special_tokens.end() ? std::string() : it->second;
}

}  // namespace quire
