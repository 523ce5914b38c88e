#include "engine/parallel/sharding.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "engine/base/status.h"

namespace quire {
namespace {

absl::Status ValidateShard(ShardSpec shard) {
  if (shard.size < 1 || shard.rank < 0 || shard.rank >= shard.size) {
    return absl::InvalidArgumentError(
        absl::StrCat("no such shard: rank ", shard.rank, " of ", shard.size));
  }
  return absl::OkStatus();
}

int64_t CeilDivide(int64_t a, int64_t b) { return (a + b - 1) / b; }

bool CanSplitHeads(int64_t num_heads, int64_t num_kv_heads, int64_t size) {
  return num_heads % size == 0 &&
         (num_kv_heads % size == 0 || size % num_kv_heads == 0);
}

}  // namespace

std::string OneOf(const std::vector<int>& sizes) {
  if (sizes.size() < 2) return absl::StrJoin(sizes, "");
  return absl::StrCat(absl::StrJoin(sizes.begin(), sizes.end() - 1, ", "),
                      " or ", sizes.back());
}

absl::StatusOr<IndexRange> ShardEvenly(int64_t total, ShardSpec shard,
                                       absl::string_view what) {
  QUIRE_RETURN_IF_ERROR(ValidateShard(shard));
  if (total % shard.size != 0) {
    std::vector<int> sizes;
    for (int size = 1; size <= std::min<int64_t>(total, kMaxListedSize);
         ++size) {
      if (total % size == 0) sizes.push_back(size);
    }
    return absl::InvalidArgumentError(
        absl::StrCat(what, " ", total, " is not divisible by ", shard.size,
                     " ranks, but by ", OneOf(sizes)));
  }
  const int64_t part = total / shard.size;
  return IndexRange{part * shard.rank, part * (shard.rank + 1)};
}

int64_t CutUnit(QuantFormat format, int group_size) {
  constexpr int64_t kMinUnit = 8;
  if (IsBlockFormat(format)) {
    return std::lcm(int64_t{QuantBlockOf(format).cols}, kMinUnit);
  }
  return std::lcm(std::max<int64_t>(group_size, 1), kMinUnit);
}

absl::StatusOr<IndexRange> ShardUnits(int64_t total, int64_t unit,
                                      ShardSpec shard, absl::string_view what) {
  QUIRE_RETURN_IF_ERROR(ValidateShard(shard));
  const int64_t num_units = CeilDivide(total, unit);
  if (num_units < shard.size) {
    return absl::InvalidArgumentError(absl::StrCat(
        what, " ", total, " can be cut every ", unit, ", into ", num_units,
        " parts at most, which is not enough for ", shard.size, " ranks"));
  }
  const int64_t base = num_units / shard.size;
  const int64_t extra = num_units % shard.size;
  const auto begin_of = [&](int64_t rank) {
    return std::min((rank * base + std::min(rank, extra)) * unit, total);
  };
  return IndexRange{begin_of(shard.rank), begin_of(shard.rank + 1)};
}

int ColumnSegments(int64_t total, IndexRange own, ShardSpec shard,
                   int max_segments) {
  const int64_t segments = std::gcd(total, int64_t{max_segments});
  if (segments % shard.size != 0) return 1;
  const int64_t part = total / shard.size;
  const IndexRange equal = {part * shard.rank, part * (shard.rank + 1)};
  return own == equal ? static_cast<int>(segments / shard.size) : 1;
}

std::vector<int> HeadShardSizes(int64_t num_heads, int64_t num_kv_heads) {
  std::vector<int> sizes;
  for (int size = 1; size <= num_heads; ++size) {
    if (CanSplitHeads(num_heads, num_kv_heads, size)) sizes.push_back(size);
  }
  return sizes;
}

absl::StatusOr<HeadShard> ShardHeads(int64_t num_heads, int64_t num_kv_heads,
                                     ShardSpec shard) {
  QUIRE_RETURN_IF_ERROR(ValidateShard(shard));
  if (!CanSplitHeads(num_heads, num_kv_heads, shard.size)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "num_attention_heads ", num_heads, " and num_key_value_heads ",
        num_kv_heads, " cannot be split over ", shard.size, " ranks, but over ",
        OneOf(HeadShardSizes(num_heads, num_kv_heads))));
  }
  HeadShard result;
  QUIRE_ASSIGN_OR_RETURN(result.heads,
                         ShardEvenly(num_heads, shard, "num_attention_heads"));
  if (shard.size <= num_kv_heads) {
    QUIRE_ASSIGN_OR_RETURN(result.kv_heads, ShardEvenly(num_kv_heads, shard,
                                                        "num_key_value_heads"));
    return result;
  }
  // Every rank's query heads lie within one KV head's group, since the ranks
  // per KV head divide the group evenly.
  const int64_t kv_head = shard.rank / (shard.size / num_kv_heads);
  result.kv_heads = {kv_head, kv_head + 1};
  return result;
}

absl::StatusOr<VocabShard> ShardVocab(int64_t vocab_size, ShardSpec shard) {
  QUIRE_RETURN_IF_ERROR(ValidateShard(shard));
  VocabShard result;
  if (shard.size == 1) {
    result.slice_size = vocab_size;
    result.ids = {0, vocab_size};
    return result;
  }
  for (const int64_t unit : {64, 4}) {
    const int64_t size = CeilDivide(CeilDivide(vocab_size, shard.size), unit);
    result.slice_size = size * unit;
    if (result.slice_size * (shard.size - 1) >= vocab_size) continue;
    result.ids = {result.slice_size * shard.rank,
                  std::min(result.slice_size * (shard.rank + 1), vocab_size)};
    return result;
  }
  return absl::InvalidArgumentError(
      absl::StrCat("vocab_size ", vocab_size, " cannot be split over ",
                   shard.size, " ranks; at most ", vocab_size / 4, " work"));
}

absl::StatusOr<IndexRange> StageLayers(int64_t num_layers, ShardSpec stage,
                                       double head_layers) {
  QUIRE_RETURN_IF_ERROR(ValidateShard(stage));
  if (num_layers < stage.size) {
    return absl::InvalidArgumentError(
        absl::StrCat(num_layers, " layers are not enough for ", stage.size,
                     " pipeline stages; at most ", num_layers, " work"));
  }
  if (stage.size == 1) return IndexRange{0, num_layers};
  // To the nearest, so that no stage is half a layer behind; of two equal ones
  // the smaller.
  const double part = (num_layers + head_layers) / stage.size - head_layers;
  const int64_t num_last =
      std::clamp<int64_t>(static_cast<int64_t>(std::ceil(part - 0.5)), 1,
                          num_layers - stage.size + 1);
  const int64_t num_others = num_layers - num_last;
  if (stage.rank + 1 == stage.size) return IndexRange{num_others, num_layers};
  return ShardUnits(num_others, 1, {stage.rank, stage.size - 1},
                    "num_hidden_layers");
}

}  // namespace quire
