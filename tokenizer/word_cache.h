// The ids of short words that a thread has encoded lately.
#ifndef QUIRE_TOKENIZER_WORD_CACHE_H_
#define QUIRE_TOKENIZER_WORD_CACHE_H_

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <iterator>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "tokenizer/vocabulary.h"

namespace quire {

// One model's view of the cache that the thread keeps for all models together
// (word_cache.cc). Thread-safe: nothing is shared between threads.
class WordCache {
 public:
  WordCache();

  // Appends the ids of `word`, from the cache or from encode(word, ids), whose
  // result must depend on the word alone.
  template <typename EncodeWord>
  absl::Status Encode(absl::string_view word, std::vector<int32_t>* ids,
                      EncodeWord encode) const {
    if (word.size() > sizeof(Entry::word)) return encode(word, ids);
    Entry& entry = Slot(HashBytes(word) + instance_ * 0x9E3779B97F4A7C15);
    if (entry.instance == instance_ && entry.word_size == word.size() &&
        std::memcmp(entry.word, word.data(), word.size()) == 0) {
      ids->insert(ids->end(), entry.ids, entry.ids + entry.num_ids);
      return absl::OkStatus();
    }
    const size_t size_before = ids->size();
    if (absl::Status status = encode(word, ids); !status.ok()) return status;
    const size_t num_ids = ids->size() - size_before;
    if (num_ids <= std::size(entry.ids)) {
      entry.instance = instance_;
      entry.word_size = static_cast<uint8_t>(word.size());
      entry.num_ids = static_cast<uint8_t>(num_ids);
      std::memcpy(entry.word, word.data(), word.size());
      std::copy(ids->begin() + size_before, ids->end(), entry.ids);
    }
    return absl::OkStatus();
  }

 private:
  // One cache line per word. Longer words and words of more tokens are rare.
  struct Entry {
    uint64_t instance = 0;
    uint8_t word_size = 0;
    uint8_t num_ids = 0;
    char word[22];
    int32_t ids[8];
  };
  static_assert(sizeof(Entry) == 64);
  static Entry& Slot(uint64_t hash);

  uint64_t instance_;  // Key of this model's words.
};

}  // namespace quire

#endif  // QUIRE_TOKENIZER_WORD_CACHE_H_
