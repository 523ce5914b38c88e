// Which rows, columns, heads, vocabulary entries and layers of a model rank r
// of n owns. Tensor parallelism: Shoeybi et al. 2019, arXiv:1909.08053,
// section 3 (split the first matrix of a pair by rows of the weight, the second
// by its columns). Pipeline parallelism: Huang et al. 2018, arXiv:1811.06965.
//
// Pure arithmetic, the same on every rank. Errors are INVALID_ARGUMENT and list
// the sizes that would work.
#ifndef QUIRE_ENGINE_PARALLEL_SHARDING_H_
#define QUIRE_ENGINE_PARALLEL_SHARDING_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "kernels/quant_format.h"

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

// More ranks than anybody has are of no use in a message.
inline constexpr int kMaxListedSize = 128;
// "1, 2, 4 or 8".
std::string OneOf(const std::vector<int>& sizes);

// This rank's equal part of `total`. INVALID_ARGUMENT naming `what` if `total`
// is not divisible or the spec is not valid.
absl::StatusOr<IndexRange> ShardEvenly(int64_t total, ShardSpec shard,
                                       absl::string_view what);

// Columns between two places where a matrix of the format can be cut: a block,
// a group of one scale, a square of fp8 (whose rows are cut likewise). At least
// 8, the unit of the GPU's kernels.
//   group_size: as WeightPart::group_size; of no meaning for GGUF's formats.
int64_t CutUnit(QuantFormat format, int group_size);

// This rank's part of `total` in whole units, of which only the last may be
// smaller: parts differ by one unit at most, and the first ones are the larger
// ones. INVALID_ARGUMENT if there are fewer units than ranks.
absl::StatusOr<IndexRange> ShardUnits(int64_t total, int64_t unit,
                                      ShardSpec shard, absl::string_view what);

// Into how many equal segments this rank cuts its columns for products that are
// summed over the ranks (LinearSpec::num_column_segments), so that the segments
// of all ranks are those of one rank that has all. 1 where that cannot be: the
// bits of a sum over `shard.size` ranks, no power of two up to max_segments, or
// of parts of unequal size differ from those on one rank.
//   total: columns of all ranks; own: this rank's.
int ColumnSegments(int64_t total, IndexRange own, ShardSpec shard,
                   int max_segments);

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

// The sizes that ShardHeads accepts, ascending.
std::vector<int> HeadShardSizes(int64_t num_heads, int64_t num_kv_heads);

// Slices of the vocabulary are of one size on all ranks, so that they can be
// gathered: slice r begins at id r * slice_size, and the last one reaches
// beyond the vocabulary. No rank is without an id.
struct VocabShard {
  int64_t slice_size = 0;
  IndexRange ids;  // In the vocabulary.
};

// Slices are multiples of 64 ids, or of 4 in a vocabulary that is too small for
// that: four neighbours share their random words (kernels/sampling.h).
// INVALID_ARGUMENT if a rank would have no id.
absl::StatusOr<VocabShard> ShardVocab(int64_t vocab_size, ShardSpec shard);

// The layers of a pipeline stage: consecutive, and as many as the others have
// or one more on the first ones, but for the last stage, which also computes
// the logits and is to be done as soon.
//   head_layers: of how many layers' work the logits are.
absl::StatusOr<IndexRange> StageLayers(int64_t num_layers, ShardSpec stage,
                                       double head_layers);

}  // namespace quire

#endif  // QUIRE_ENGINE_PARALLEL_SHARDING_H_
