// Which rows, columns and heads of a model rank r of n owns under tensor
// parallelism: Shoeybi et al. 2019, arXiv:1909.08053, section 3 (split the
// first matrix of a pair by rows of the weight, the second by its columns).
#ifndef QUIRE_ENGINE_PARALLEL_SHARDING_H_
#define QUIRE_ENGINE_PARALLEL_SHARDING_H_

#include <cstdint>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace quire {

struct ShardSpec {
  int rank = 0;  // In [0, size).
  int size = 1;
};

// [begin, end).
struct IndexRange {
  int64_t begin = 0;
  int64_t end = 0;

  int64_t size() const { return end - begin; }
  friend bool operator==(const IndexRange&, const IndexRange&) = default;
};

// This rank's equal part of `total`. INVALID_ARGUMENT naming `what` if `total`
// is not divisible or the spec is not valid.
absl::StatusOr<IndexRange> ShardEvenly(int64_t total, ShardSpec shard,
                                       absl::string_view what);

struct HeadShard {
  IndexRange heads;
  IndexRange kv_heads;
};

// Query heads are split evenly, and with them the KV heads that they read. With
// more ranks than KV heads each KV head is held by size / num_kv_heads ranks.
// Requires: num_kv_heads divides num_heads. INVALID_ARGUMENT if the heads
// cannot be split so.
absl::StatusOr<HeadShard> ShardHeads(int64_t num_heads, int64_t num_kv_heads,
                                     ShardSpec shard);

}  // namespace quire

#endif  // QUIRE_ENGINE_PARALLEL_SHARDING_H_
