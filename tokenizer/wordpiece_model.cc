#include "tokenizer/wordpiece_model.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/base/status.h"
#include "tokenizer/unicode.h"

namespace quire {
namespace {

absl::Status AppendUnknown(int32_t unk_id, const std::string& unk_token,
                           std::vector<int32_t>* ids) {
  if (unk_id < 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        "model.unk_token: \"", unk_token, "\" is not in model.vocab"));
  }
  ids->push_back(unk_id);
  return absl::OkStatus();
}

bool HasMoreCharacters(absl::string_view text, int64_t max) {
  // A character has at most four bytes.
  if (text.size() <= static_cast<uint64_t>(max)) return false;
  int64_t count = 0;
  for (const char c : text) {
    count += (static_cast<unsigned char>(c) & 0xC0) != 0x80;
  }
  return count > max;
}

}  // namespace

WordPieceModel::WordPieceModel(Vocabulary vocabulary, WordPieceOptions options)
    : vocabulary_(std::move(vocabulary)), options_(std::move(options)) {
  unk_id_ = vocabulary_.Find(options_.unk_token);
}

absl::StatusOr<std::unique_ptr<WordPieceModel>> WordPieceModel::Create(
    Vocabulary vocabulary, WordPieceOptions options) {
  std::unique_ptr<WordPieceModel> model(
      new WordPieceModel(std::move(vocabulary), std::move(options)));
  std::vector<std::pair<absl::string_view, int32_t>> pieces;
  for (int32_t id = 0; id < model->vocabulary_.num_ids(); ++id) {
    if (!model->vocabulary_.Contains(id)) continue;
    pieces.emplace_back(model->vocabulary_.Text(id), id);
  }
  if (absl::Status status = model->trie_.Build(std::move(pieces));
      !status.ok()) {
    return absl::InvalidArgumentError(
        absl::StrCat("model.vocab: ", status.message()));
  }
  model->continuation_ =
      model->trie_.Find(model->options_.continuing_subword_prefix);
  return model;
}

absl::Status WordPieceModel::EncodeUncached(absl::string_view word,
                                            std::vector<int32_t>* ids) const {
  if (HasMoreCharacters(word, options_.max_input_chars_per_word)) {
    return AppendUnknown(unk_id_, options_.unk_token, ids);
  }
  const size_t size_before = ids->size();
  for (size_t pos = 0; pos < word.size();) {
    const int32_t from = pos == 0 ? PieceTrie::kRoot : continuation_;
    int32_t id = -1;
    const size_t size = from == PieceTrie::kNone
                            ? 0
                            : trie_.LongestPrefix(word.substr(pos), from, &id);
    if (size == 0) {
      ids->resize(size_before);
      return AppendUnknown(unk_id_, options_.unk_token, ids);
    }
    ids->push_back(id);
    pos += size;
  }
  return absl::OkStatus();
}

absl::Status WordPieceModel::EncodeWord(absl::string_view word,
                                        std::vector<int32_t>* ids) const {
  return cache_.Encode(
      word, ids, [this](absl::string_view text, std::vector<int32_t>* out) {
        return EncodeUncached(text, out);
      });
}

WordLevelModel::WordLevelModel(Vocabulary vocabulary, std::string unk_token)
    : vocabulary_(std::move(vocabulary)),
      unk_token_(std::move(unk_token)),
      unk_id_(vocabulary_.Find(unk_token_)) {}

absl::Status WordLevelModel::EncodeWord(absl::string_view word,
                                        std::vector<int32_t>* ids) const {
  const int32_t id = vocabulary_.Find(word);
  if (id < 0) return AppendUnknown(unk_id_, unk_token_, ids);
  ids->push_back(id);
  return absl::OkStatus();
}

}  // namespace quire
