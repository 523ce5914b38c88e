// The precompiled character map of sentencepiece models: replacements of short
// texts, in a double-array trie of the darts-clone library's format.
#ifndef QUIRE_TOKENIZER_CHARACTER_MAP_H_
#define QUIRE_TOKENIZER_CHARACTER_MAP_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace quire {

// Immutable and thread-safe. Empty by default: nothing is replaced.
class CharacterMap {
 public:
  // From the bytes of normalizer_spec.precompiled_charsmap, which are kept.
  // INVALID_ARGUMENT if a walk of the trie could leave it, or if a replacement
  // is not UTF-8 with an end.
  static absl::StatusOr<CharacterMap> Create(absl::string_view bytes);

  CharacterMap() = default;
  bool empty() const { return units_.empty(); }

  // Length of the longest (or the shortest) key that `text` starts with; 0 if
  // there is none. `replacement` is set to what stands for it.
  size_t FindLongest(absl::string_view text,
                     absl::string_view* replacement) const;
  size_t FindShortest(absl::string_view text,
                      absl::string_view* replacement) const;
  // True if no key starts with `byte`.
  bool IsUnmapped(uint8_t byte) const { return is_unmapped_[byte]; }

 private:
  size_t Find(absl::string_view text, bool is_longest,
              absl::string_view* replacement) const;
  absl::Status Check() const;

  std::vector<uint32_t> units_;
  std::string strings_;  // Each ends in NUL.
  bool is_unmapped_[256] = {};
};

}  // namespace quire

#endif  // QUIRE_TOKENIZER_CHARACTER_MAP_H_
