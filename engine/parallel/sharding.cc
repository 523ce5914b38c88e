#include "engine/parallel/sharding.h"

#include "absl/strings/str_cat.h"
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

}  // namespace

absl::StatusOr<IndexRange> ShardEvenly(int64_t total, ShardSpec shard,
                                       absl::string_view what) {
  QUIRE_RETURN_IF_ERROR(ValidateShard(shard));
  if (total % shard.size != 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        what, " ", total, " is not divisible by ", shard.size, " ranks"));
  }
  const int64_t part = total / shard.size;
  return IndexRange{part * shard.rank, part * (shard.rank + 1)};
}

absl::StatusOr<HeadShard> ShardHeads(int64_t num_heads, int64_t num_kv_heads,
                                     ShardSpec shard) {
  HeadShard result;
  QUIRE_ASSIGN_OR_RETURN(result.heads,
                         ShardEvenly(num_heads, shard, "num_attention_heads"));
  if (shard.size <= num_kv_heads) {
    QUIRE_ASSIGN_OR_RETURN(result.kv_heads, ShardEvenly(num_kv_heads, shard,
                                                        "num_key_value_heads"));
    return result;
  }
  if (shard.size % num_kv_heads != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat(shard.size, " ranks are not a multiple of ",
                     "num_key_value_heads ", num_kv_heads));
  }
  // Every rank's query heads lie within one KV head's group, since the ranks
  // per KV head divide the group evenly.
  const int64_t kv_head = shard.rank / (shard.size / num_kv_heads);
  result.kv_heads = {kv_head, kv_head + 1};
  return result;
}

}  // namespace quire
