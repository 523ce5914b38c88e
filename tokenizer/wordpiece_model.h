// WordPiece and WordLevel models of tokenizer.json.
// Schuster & Nakajima 2012, "Japanese and Korean voice search"; the greedy
// longest match from the left is BERT's (Devlin et al. 2018, arXiv:1810.04805).
#ifndef QUIRE_TOKENIZER_WORDPIECE_MODEL_H_
#define QUIRE_TOKENIZER_WORDPIECE_MODEL_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "tokenizer/piece_trie.h"
#include "tokenizer/vocabulary.h"
#include "tokenizer/word_cache.h"
#include "tokenizer/word_model.h"

namespace quire {

struct WordPieceOptions {
  std::string unk_token;
  // Before each piece of a word but the first.
  std::string continuing_subword_prefix;
  // Longer words are unknown.
  int64_t max_input_chars_per_word = 0;
};

// Immutable after creation and thread-safe.
class WordPieceModel final : public WordModel {
 public:
  // INVALID_ARGUMENT if a piece is too long.
  static absl::StatusOr<std::unique_ptr<WordPieceModel>> Create(
      Vocabulary vocabulary, WordPieceOptions options);

  // A word that is not wholly made of pieces is one unknown token.
  absl::Status EncodeWord(absl::string_view word,
                          std::vector<int32_t>* ids) const override;
  const Vocabulary& vocabulary() const override { return vocabulary_; }

 private:
  WordPieceModel(Vocabulary vocabulary, WordPieceOptions options);
  absl::Status EncodeUncached(absl::string_view word,
                              std::vector<int32_t>* ids) const;

  Vocabulary vocabulary_;
  WordPieceOptions options_;
  int32_t unk_id_ = -1;
  PieceTrie trie_;
  int32_t continuation_ = PieceTrie::kNone;  // The node of the prefix.
  WordCache cache_;
};

// Each word is one token. Immutable after creation and thread-safe.
class WordLevelModel final : public WordModel {
 public:
  WordLevelModel(Vocabulary vocabulary, std::string unk_token);

  absl::Status EncodeWord(absl::string_view word,
                          std::vector<int32_t>* ids) const override;
  const Vocabulary& vocabulary() const override { return vocabulary_; }

 private:
  Vocabulary vocabulary_;
  std::string unk_token_;
  int32_t unk_id_;
};

}  // namespace quire

#endif  // QUIRE_TOKENIZER_WORDPIECE_MODEL_H_
