#include "tokenizer/unigram_model.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/base/status.h"
#include "tokenizer/byte_level.h"
#include "tokenizer/unigram_lattice.h"

namespace quire {
namespace {

// How much worse than the worst piece an unknown character is.
constexpr double kUnknownPenalty = 10.0;

}  // namespace

UnigramModel::UnigramModel(Vocabulary vocabulary, std::vector<double> scores,
                           std::optional<int32_t> unk_id, bool byte_fallback)
    : vocabulary_(std::move(vocabulary)),
      scores_(std::move(scores)),
      unk_id_(unk_id),
      byte_fallback_(byte_fallback) {}

absl::StatusOr<std::unique_ptr<UnigramModel>> UnigramModel::Create(
    Vocabulary vocabulary, std::vector<double> scores,
    std::optional<int32_t> unk_id, bool byte_fallback) {
  QUIRE_CHECK(scores.size() == static_cast<size_t>(vocabulary.num_ids()));
  if (unk_id.has_value() && !vocabulary.Contains(*unk_id)) {
    return absl::InvalidArgumentError(
        absl::StrCat("model.unk_id: ", *unk_id, " is outside the vocabulary"));
  }
  std::unique_ptr<UnigramModel> model(new UnigramModel(
      std::move(vocabulary), std::move(scores), unk_id, byte_fallback));
  if (!model->scores_.empty()) {
    model->unknown_score_ =
        *std::min_element(model->scores_.begin(), model->scores_.end()) -
        kUnknownPenalty;
  }
  std::vector<std::pair<absl::string_view, int32_t>> pieces;
  for (int32_t id = 0; id < model->vocabulary_.num_ids(); ++id) {
    pieces.emplace_back(model->vocabulary_.Text(id), id);
  }
  if (absl::Status status = model->trie_.Build(std::move(pieces));
      !status.ok()) {
    return absl::InvalidArgumentError(
        absl::StrCat("model.vocab: ", status.message()));
  }
  return model;
}

absl::Status UnigramModel::AppendUnknown(absl::string_view text,
                                         std::vector<int32_t>* ids) const {
  // A run of unknown characters can be a piece that was no way to go.
  if (const int32_t id = vocabulary_.Find(text); id >= 0) {
    ids->push_back(id);
    return absl::OkStatus();
  }
  if (byte_fallback_) {
    const size_t size_before = ids->size();
    for (const char c : text) {
      const int32_t id =
          vocabulary_.Find(ByteFallbackToken(static_cast<uint8_t>(c)));
      if (id < 0) break;
      ids->push_back(id);
    }
    if (ids->size() - size_before == text.size()) return absl::OkStatus();
    ids->resize(size_before);
  }
  if (!unk_id_.has_value()) {
    return absl::InvalidArgumentError(
        "model.unk_id: is missing, and the text has an unknown character");
  }
  ids->push_back(*unk_id_);
  return absl::OkStatus();
}

absl::Status UnigramModel::EncodeUncached(absl::string_view word,
                                          std::vector<int32_t>* ids) const {
  std::vector<UnigramSegment> segments;
  FindBestSegments<double>(
      trie_, word, unknown_score_,
      [this](int32_t id, size_t, double score) { return scores_[id] + score; },
      &segments);
  for (size_t i = 0; i < segments.size();) {
    const auto is_unknown = [&](size_t k) {
      return segments[k].id < 0 || segments[k].id == unk_id_;
    };
    if (!is_unknown(i)) {
      ids->push_back(segments[i++].id);
      continue;
    }
    const uint32_t begin = segments[i].begin;
    while (i < segments.size() && is_unknown(i)) ++i;
    QUIRE_RETURN_IF_ERROR(
        AppendUnknown(word.substr(begin, segments[i - 1].end - begin), ids));
  }
  return absl::OkStatus();
}

absl::Status UnigramModel::EncodeWord(absl::string_view word,
                                      std::vector<int32_t>* ids) const {
  if (word.empty()) return absl::OkStatus();
  return cache_.Encode(
      word, ids, [this](absl::string_view text, std::vector<int32_t>* out) {
        return EncodeUncached(text, out);
      });
}

}  // namespace quire
