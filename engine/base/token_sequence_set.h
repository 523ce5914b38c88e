// Short sequences of token ids, found by their first token.
#ifndef QUIRE_ENGINE_BASE_TOKEN_SEQUENCE_SET_H_
#define QUIRE_ENGINE_BASE_TOKEN_SEQUENCE_SET_H_

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "absl/types/span.h"

namespace quire {

// Immutable and thread-safe. Invariants: sequences_ is sorted and without
// duplicates; bit t of starts_ is set if one of them begins with token t, and
// bit t of singles_ if [t] is one of them.
class TokenSequenceSet {
 public:
  TokenSequenceSet() = default;

  // Requires: no sequence is empty, no id is negative. Memory and time are
  // linear in the largest id.
  explicit TokenSequenceSet(std::vector<std::vector<int32_t>> sequences)
      : sequences_(std::move(sequences)) {
    std::sort(sequences_.begin(), sequences_.end());
    sequences_.erase(std::unique(sequences_.begin(), sequences_.end()),
                     sequences_.end());
    for (const std::vector<int32_t>& sequence : sequences_) {
      for (int32_t id : sequence) max_id_ = std::max(max_id_, id);
    }
    starts_.resize(max_id_ + 1);
    singles_.resize(max_id_ + 1);
    for (const std::vector<int32_t>& sequence : sequences_) {
      starts_[sequence[0]] = true;
      if (sequence.size() == 1) singles_[sequence[0]] = true;
    }
  }

  bool HasStart(int32_t id) const { return id <= max_id_ && starts_[id]; }
  bool HasSingle(int32_t id) const { return id <= max_id_ && singles_[id]; }

  // Those that begin with `id`.
  absl::Span<const std::vector<int32_t>> StartingWith(int32_t id) const {
    const auto first = std::lower_bound(
        sequences_.begin(), sequences_.end(), id,
        [](const std::vector<int32_t>& s, int32_t id) { return s[0] < id; });
    auto last = first;
    while (last != sequences_.end() && (*last)[0] == id) ++last;
    return absl::MakeConstSpan(sequences_)
        .subspan(first - sequences_.begin(), last - first);
  }

  absl::Span<const std::vector<int32_t>> sequences() const {
    return sequences_;
  }
  int32_t max_id() const { return max_id_; }  // -1 if empty.

 private:
  std::vector<std::vector<int32_t>> sequences_;
  std::vector<bool> starts_, singles_;  // [max_id_ + 1]
  int32_t max_id_ = -1;
};

}  // namespace quire

#endif  // QUIRE_ENGINE_BASE_TOKEN_SEQUENCE_SET_H_
