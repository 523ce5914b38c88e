// Token texts and their ids.
#ifndef QUIRE_TOKENIZER_VOCABULARY_H_
#define QUIRE_TOKENIZER_VOCABULARY_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"

namespace quire {

// A map between token texts and ids: one blob of text, and an open-addressing
// table of ids. Thread-compatible; const methods may be called concurrently.
class Vocabulary {
 public:
  // Larger ids are refused: tables are indexed by id.
  static constexpr int32_t kMaxId = 10'000'000;

  // Sizes the tables for `num_tokens`; call it before the first Add.
  void Reserve(size_t num_tokens, size_t num_bytes);
  // False, without effect, if the text or the id is taken.
  // Requires: 0 <= id <= kMaxId.
  bool Add(absl::string_view token, int32_t id);

  // -1 if there is none.
  int32_t Find(absl::string_view token) const;
  bool Contains(int32_t id) const {
    return id >= 0 && id < num_ids() && spans_[id].size != kNone;
  }
  // Empty if there is none. Valid until the next Add.
  absl::string_view Text(int32_t id) const {
    if (!Contains(id)) return {};
    return absl::string_view(blob_).substr(spans_[id].begin, spans_[id].size);
  }
  size_t size() const { return num_tokens_; }
  // One more than the largest id.
  int32_t num_ids() const { return static_cast<int32_t>(spans_.size()); }

 private:
  static constexpr uint32_t kNone = 0xFFFFFFFF;
  struct Span {
    uint32_t begin = 0;
    uint32_t size = kNone;
  };
  // Bits of the hash beside the id, so that most misses touch no text.
  struct Slot {
    int32_t id = -1;
    uint32_t hash = 0;
  };
  void Grow(size_t num_slots);

  std::string blob_;
  std::vector<Span> spans_;
  std::vector<Slot> slots_;
  size_t num_tokens_ = 0;
};

// Of short byte strings; not for untrusted keys that must not collide.
uint64_t HashBytes(absl::string_view bytes);

}  // namespace quire

#endif  // QUIRE_TOKENIZER_VOCABULARY_H_
