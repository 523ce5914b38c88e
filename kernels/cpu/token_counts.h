// Which tokens a sequence has seen, and how often it generated them: what the
// penalties need, in memory proportional to the distinct tokens.
#ifndef QUIRE_KERNELS_CPU_TOKEN_COUNTS_H_
#define QUIRE_KERNELS_CPU_TOKEN_COUNTS_H_

#include <cstdint>

#include "absl/types/span.h"
#include "engine/base/random.h"
#include "engine/base/status.h"

namespace quire {

// Open addressing over borrowed memory. Thread-compatible. Clear costs as much
// as was added since, so that a slot of a large table can be reused at once.
class TokenCounts {
 public:
  struct Entry {
    int32_t id = 0;
    int32_t num_generated = 0;  // 0: only in the prompt.
  };

  TokenCounts() = default;

  // `entries`: [capacity]; `table`: [table_size], zero-filled. table_size is a
  // power of two and at least 2 * capacity.
  TokenCounts(Entry* entries, int64_t capacity, int32_t* table,
              int64_t table_size)
      : entries_(entries),
        capacity_(capacity),
        table_(table),
        mask_(table_size - 1) {}

  void AddPromptToken(int32_t id) { Find(id); }
  void AddGeneratedToken(int32_t id) { ++Find(id).num_generated; }

  void Clear() {
    // In reverse, so that every probe chain is still whole when it is walked.
    while (size_ > 0) {
      table_[FindCell(entries_[size_ - 1].id)] = 0;
      --size_;
    }
  }

  absl::Span<const Entry> entries() const {
    return {entries_, static_cast<size_t>(size_)};
  }

 private:
  // Cell of `id`, or the empty one where it belongs.
  int64_t FindCell(int32_t id) const {
    int64_t cell = static_cast<int64_t>(MixBits(id, 0)) & mask_;
    while (table_[cell] != 0 && entries_[table_[cell] - 1].id != id) {
      cell = (cell + 1) & mask_;
    }
    return cell;
  }

  Entry& Find(int32_t id) {
    const int64_t cell = FindCell(id);
    if (table_[cell] == 0) {
      QUIRE_CHECK(size_ < capacity_);
      entries_[size_] = {id, 0};
      table_[cell] = static_cast<int32_t>(++size_);
    }
    return entries_[table_[cell] - 1];
  }

  Entry* entries_ = nullptr;
  int64_t capacity_ = 0;
  int64_t size_ = 0;
  int32_t* table_ = nullptr;  // Index into entries_ + 1; 0: empty.
  int64_t mask_ = 0;
};

}  // namespace quire

#endif  // QUIRE_KERNELS_CPU_TOKEN_COUNTS_H_
