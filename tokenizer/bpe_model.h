// Byte-pair encoding of words.
// Sennrich et al. 2016, arXiv:1508.07909: the pair with the best rank is merged
// first, the leftmost of equals; what is unknown follows the `tokenizers`
// library of Hugging Face (byte fallback, then the unknown token, then
// nothing).
#ifndef QUIRE_TOKENIZER_BPE_MODEL_H_
#define QUIRE_TOKENIZER_BPE_MODEL_H_

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "tokenizer/vocabulary.h"
#include "tokenizer/word_cache.h"
#include "tokenizer/word_model.h"

namespace quire {

struct BpeOptions {
  std::optional<std::string> unk_token;
  std::string continuing_subword_prefix;
  std::string end_of_word_suffix;
  bool fuse_unk = false;
  bool byte_fallback = false;
  bool ignore_merges = false;
  // Words are plain bytes, and the vocabulary spells them by byte_level.h.
  // Requires: prefix and suffix are empty.
  bool is_byte_level = false;
};

struct BpeMerge {
  static constexpr uint32_t kByPosition = 0xFFFFFFFF;
  absl::string_view left;
  absl::string_view right;
  // Lower ranks go first, equal ones from the left; by default the place in the
  // list.
  uint32_t rank = kByPosition;
};

// Immutable after creation and thread-safe.
class BpeModel final : public WordModel {
 public:
  // INVALID_ARGUMENT, naming the field below "model", if a merge names a token
  // that the vocabulary lacks.
  static absl::StatusOr<std::unique_ptr<BpeModel>> Create(
      Vocabulary vocabulary, const std::vector<BpeMerge>& merges,
      BpeOptions options);

  // Appends the ids of `word`. O(n log n) in its length.
  // Requires: valid UTF-8 unless is_byte_level. INVALID_ARGUMENT if an unknown
  // token is needed and the vocabulary lacks it.
  absl::Status EncodeWord(absl::string_view word,
                          std::vector<int32_t>* ids) const override;

  const Vocabulary& vocabulary() const override { return vocabulary_; }
  const BpeOptions& options() const { return options_; }

 private:
  static constexpr int32_t kUnknown = -1;
  struct MergeSlot {
    uint64_t pair = kNoPair;
    uint32_t rank = 0;
    int32_t id = 0;
  };
  static constexpr uint64_t kNoPair = ~uint64_t{0};

  BpeModel(Vocabulary vocabulary, BpeOptions options);

  absl::Status AddMerges(const std::vector<BpeMerge>& merges);
  void InsertMerge(uint64_t pair, uint32_t rank, int32_t id);
  void FindWordBoundary(const std::vector<BpeMerge>& merges);
  void FillByteSymbols();

  const MergeSlot* FindMerge(int32_t left, int32_t right) const;
  // The ids of a character that the vocabulary knows, or of its bytes; false if
  // it is unknown.
  bool SymbolsOf(absl::string_view character,
                 std::vector<int32_t>* symbols) const;
  absl::Status Symbols(absl::string_view word,
                       std::vector<int32_t>* symbols) const;
  absl::Status EncodeUncached(absl::string_view word,
                              std::vector<int32_t>* ids) const;
  absl::Status EncodeCached(absl::string_view word,
                            std::vector<int32_t>* ids) const;
  void MergeShort(int32_t* symbols, int* num_symbols) const;
  void MergeLong(std::vector<int32_t>* symbols) const;

  Vocabulary vocabulary_;
  BpeOptions options_;
  int32_t unk_id_ = -1;
  std::vector<MergeSlot> merges_;  // Open addressing; power of two.
  // Byte level: the symbols of each byte; empty: it is unknown.
  std::array<std::vector<int32_t>, 256> byte_symbols_;
  // Every byte has exactly one symbol, which is the common case.
  bool has_all_bytes_ = false;
  std::array<int32_t, 256> byte_symbol_ = {};
  // No merge joins a text that ends in another character with one that begins
  // with U+2581, so a word may be cut before each such border.
  bool can_cut_at_word_marks_ = false;
  WordCache cache_;
};

}  // namespace quire

#endif  // QUIRE_TOKENIZER_BPE_MODEL_H_
