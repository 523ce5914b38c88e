// Unigram models of tokenizer.json: the segmentation of a word whose pieces
// have the largest sum of scores (unigram_lattice.h).
#ifndef QUIRE_TOKENIZER_UNIGRAM_MODEL_H_
#define QUIRE_TOKENIZER_UNIGRAM_MODEL_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "tokenizer/piece_trie.h"
#include "tokenizer/vocabulary.h"
#include "tokenizer/word_cache.h"
#include "tokenizer/word_model.h"

namespace quire {

// Immutable after creation and thread-safe.
class UnigramModel final : public WordModel {
 public:
  // scores: [vocabulary.num_ids()], finite. Unknown characters become their
  // bytes' tokens if `byte_fallback` and all of them are there, else one
  // unknown token for a run of them. INVALID_ARGUMENT, naming the field below
  // "model", if `unk_id` is outside the vocabulary or a piece is too long.
  static absl::StatusOr<std::unique_ptr<UnigramModel>> Create(
      Vocabulary vocabulary, std::vector<double> scores,
      std::optional<int32_t> unk_id, bool byte_fallback);

  absl::Status EncodeWord(absl::string_view word,
                          std::vector<int32_t>* ids) const override;
  const Vocabulary& vocabulary() const override { return vocabulary_; }

 private:
  UnigramModel(Vocabulary vocabulary, std::vector<double> scores,
               std::optional<int32_t> unk_id, bool byte_fallback);
  absl::Status EncodeUncached(absl::string_view word,
                              std::vector<int32_t>* ids) const;
  absl::Status AppendUnknown(absl::string_view text,
                             std::vector<int32_t>* ids) const;

  Vocabulary vocabulary_;
  std::vector<double> scores_;
  double unknown_score_ = 0;
  std::optional<int32_t> unk_id_;
  bool byte_fallback_;
  PieceTrie trie_;
  WordCache cache_;
};

}  // namespace quire

#endif  // QUIRE_TOKENIZER_UNIGRAM_MODEL_H_
