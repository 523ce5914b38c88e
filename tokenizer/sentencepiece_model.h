// Our own encoder for tokenizer.model, BPE and unigram, equal to the
// sentencepiece library's.
// Kudo & Richardson 2018, arXiv:1808.06226.
#ifndef QUIRE_TOKENIZER_SENTENCEPIECE_MODEL_H_
#define QUIRE_TOKENIZER_SENTENCEPIECE_MODEL_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "tokenizer/bpe_model.h"
#include "tokenizer/character_map.h"
#include "tokenizer/piece_trie.h"
#include "tokenizer/sentencepiece_proto.h"

namespace quire {

// Immutable after creation and thread-safe.
class SentencePieceModel {
 public:
  // UNIMPLEMENTED for what only the library does: model types word and char,
  // and BPE with unused pieces or with characters that are in pieces but are
  // none themselves. INVALID_ARGUMENT, naming the field, if the pieces do not
  // fit together.
  static absl::StatusOr<std::unique_ptr<SentencePieceModel>> Create(
      const SentencePieceProto& proto);

  // Appends the ids of valid UTF-8.
  absl::Status Encode(absl::string_view text, std::vector<int32_t>* ids) const;

 private:
  SentencePieceModel() = default;
  absl::Status AddBpe(const SentencePieceProto& proto);
  absl::Status AddUnigram(const SentencePieceProto& proto);
  std::string Normalize(absl::string_view text) const;
  absl::Status EncodeBpe(absl::string_view text,
                         std::vector<int32_t>* ids) const;
  void EncodeUnigram(absl::string_view text, std::vector<int32_t>* ids) const;

  bool add_dummy_prefix_ = true;
  bool remove_extra_whitespaces_ = true;
  absl::string_view space_;  // What stands for one.
  CharacterMap character_map_;
  PieceTrie user_defined_;  // Taken whole, and never normalized.
  bool has_user_defined_ = false;
  std::unique_ptr<BpeModel> bpe_;  // Null: unigram.

  // Unigram.
  PieceTrie trie_;
  std::vector<float> scores_;  // By id.
  std::vector<bool> is_user_defined_;
  float unknown_score_ = 0;
  float max_score_ = 0;
  int32_t unk_id_ = 0;
  std::vector<int32_t> byte_ids_;  // Empty: no byte fallback.
};

}  // namespace quire

#endif  // QUIRE_TOKENIZER_SENTENCEPIECE_MODEL_H_
