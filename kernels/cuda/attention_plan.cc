#include "kernels/cuda/attention_plan.h"

#include <algorithm>

namespace quire::cuda {
namespace {

// The keys of one tile of rows, for every KV head alike.
struct TileKeys {
  int sequence = 0;
  int first_row = 0;
  int begin = 0;  // Positions [begin, end).
  int end = 0;
  int split_size = 0;
  int first_split = 0;
  int num_splits = 0;
};

template <typename Visit>
void ForEachTile(const AttentionShape& shape, AttentionTile tile,
                 AttentionSplits splits,
                 absl::Span<const AttentionSequence> sequences, Visit visit) {
  const int tile_rows = AttentionTileRows(tile);
  const int group = shape.num_heads / shape.num_kv_heads;
  for (int s = 0; s < static_cast<int>(sequences.size()); ++s) {
    const AttentionSequence& sequence = sequences[s];
    const int num_rows = sequence.num_tokens * group;
    const int past = sequence.seq_len - sequence.num_tokens;
    const int split_size = splits.SizeFor(sequence.seq_len);
    for (int first = 0; first < num_rows; first += tile_rows) {
      const int last = std::min(first + tile_rows, num_rows) - 1;
      TileKeys keys;
      keys.sequence = s;
      keys.first_row = first;
      keys.end = past + last / group + 1;
      // The first key that any row sees, down to a tile's absolute position.
      if (shape.sliding_window > 0) {
        keys.begin =
            std::max(0, past + first / group + 1 - shape.sliding_window) / 64 *
            64;
      }
      keys.split_size = split_size;
      keys.first_split = keys.begin / split_size;
      keys.num_splits = (keys.end - 1) / split_size - keys.first_split + 1;
      visit(keys);
    }
  }
}

}  // namespace

AttentionPlanSize SizeOfAttentionPlan(
    const AttentionShape& shape, AttentionTile tile, AttentionSplits splits,
    absl::Span<const AttentionSequence> sequences) {
  AttentionPlanSize size;
  ForEachTile(shape, tile, splits, sequences, [&](const TileKeys& keys) {
    const int num_tasks = keys.num_splits * shape.num_kv_heads;
    size.num_tasks += num_tasks;
    if (keys.num_splits == 1) return;
    size.num_merges += shape.num_kv_heads;
    size.num_parts += num_tasks;
  });
  return size;
}

void WriteAttentionPlan(const AttentionShape& shape, AttentionTile tile,
                        AttentionSplits splits,
                        absl::Span<const AttentionSequence> sequences,
                        AttentionTask* tasks, AttentionMerge* merges) {
  int longest = 1;
  const auto for_each_split = [&](const TileKeys& keys, auto visit) {
    for (int split = 0; split < keys.num_splits; ++split) {
      const int from = (keys.first_split + split) * keys.split_size;
      visit(split, std::max(keys.begin, from),
            std::min(keys.end, from + keys.split_size));
    }
  };
  for (const AttentionSequence& sequence : sequences) {
    longest = std::max(
        longest, std::min(sequence.seq_len, splits.SizeFor(sequence.seq_len)));
  }
  // A counting sort: comparing would cost more than all else of the plan.
  constexpr int kNumClasses = 64;
  int next[kNumClasses + 1] = {};
  const auto class_of = [longest](int length) {
    return static_cast<int>(int64_t{longest - length} * kNumClasses / longest);
  };
  ForEachTile(shape, tile, splits, sequences, [&](const TileKeys& keys) {
    for_each_split(keys, [&](int /*split*/, int begin, int end) {
      next[class_of(end - begin) + 1] += shape.num_kv_heads;
    });
  });
  for (int i = 1; i < kNumClasses; ++i) next[i] += next[i - 1];
  int num_parts = 0;
  ForEachTile(shape, tile, splits, sequences, [&](const TileKeys& keys) {
    const bool is_split = keys.num_splits > 1;
    for (int head = 0; head < shape.num_kv_heads && is_split; ++head) {
      *merges++ = {keys.sequence, head, keys.first_row,
                   num_parts + head * keys.num_splits, keys.num_splits};
    }
    for_each_split(keys, [&](int split, int begin, int end) {
      int& place = next[class_of(end - begin)];
      for (int head = 0; head < shape.num_kv_heads; ++head) {
        tasks[place++] = {
            keys.sequence,
            head,
            keys.first_row,
            begin,
            end,
            is_split ? num_parts + head * keys.num_splits + split : -1};
      }
    });
    if (is_split) num_parts += shape.num_kv_heads * keys.num_splits;
  });
}

AttentionPlan PlanAttention(const AttentionShape& shape, AttentionTile tile,
                            AttentionSplits splits,
                            absl::Span<const AttentionSequence> sequences) {
  const AttentionPlanSize size =
      SizeOfAttentionPlan(shape, tile, splits, sequences);
  AttentionPlan plan;
  plan.tile = tile;
  plan.tasks.resize(size.num_tasks);
  plan.merges.resize(size.num_merges);
  plan.num_parts = size.num_parts;
  WriteAttentionPlan(shape, tile, splits, sequences, plan.tasks.data(),
                     plan.merges.data());
  return plan;
}

}  // namespace quire::cuda
