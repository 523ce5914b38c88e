#include "kernels/cpu/attention.h"

#include <algorithm>
#include <numeric>

#include "engine/base/status.h"
#include "kernels/cpu/attention_kernels.h"

namespace quire {
namespace {

// Query rows that share one pass over K and V. Widening a tile of K and V to
// f32 costs about as much as 3 query rows, so 96 keep it near 3 %, and the
// rows' sums (96 x head_dim f32) stay in L2.
constexpr int64_t kMaxItemRows = 96;

const AttentionKernels& GetKernels(Isa isa) {
  return QUIRE_ISA_TABLE(isa, kAttentionKernels);
}

KvFormat FormatOf(DType dtype) {
  switch (dtype) {
    case DType::kF16:
      return KvFormat::kF16;
    case DType::kBF16:
      return KvFormat::kBf16;
    case DType::kF8E4M3:
      return KvFormat::kF8;
    case DType::kI8:
      return KvFormat::kI8;
    default:
      QUIRE_CHECK(dtype == DType::kF32);
      return KvFormat::kF32;
  }
}

int64_t RoundUp(int64_t value, int64_t unit) {
  return (value + unit - 1) / unit * unit;
}

}  // namespace

AttentionScratch::AttentionScratch(int num_threads, int num_heads, int head_dim,
                                   int64_t max_model_len)
    : num_threads_(num_threads),
      max_item_rows_(std::max<int64_t>(kMaxItemRows, num_heads)),
      // 32: two vectors of the widest instruction set.
      max_padded_dim_(RoundUp(head_dim, 32)),
      // Whole cache lines, so that threads share none.
      thread_floats_(
          RoundUp(AttentionScratchFloats(max_item_rows_, max_padded_dim_), 16)),
      per_thread_(num_threads * thread_floats_ * 4) {
  // Enough to split two tokens at the full context, or many at shorter ones;
  // what does not fit is computed unsplit.
  const int64_t num_splits =
      2 * (max_model_len / kAttentionSplit + 1) + 16 * num_threads;
  partials_ =
      AlignedBuffer(num_splits * PartialFloats(num_heads, max_padded_dim_) * 4);
  row_order_.reserve(1024);
  units_.reserve(16384);
  merges_.reserve(1024);
}

// Longest contexts first: they decide when the last thread finishes.
void AttentionScratch::Plan(const PagedAttentionParams& params,
                            int64_t padded_dim) {
  units_.clear();
  merges_.clear();
  row_order_.resize(params.rows.size());
  std::iota(row_order_.begin(), row_order_.end(), 0);
  const auto context = [&](int64_t row_idx) {
    const AttentionRow& row = params.rows[row_idx];
    return row.first_position + row.num_tokens;
  };
  std::sort(row_order_.begin(), row_order_.end(), [&](int64_t a, int64_t b) {
    return context(a) != context(b) ? context(a) > context(b) : a < b;
  });
  const int64_t group = params.num_heads / params.num_kv_heads;
  const int64_t max_tokens = std::max<int64_t>(1, kMaxItemRows / group);
  const int64_t capacity = partials_.num_bytes() / 4;
  int64_t used = 0;
  for (int64_t row_idx : row_order_) {
    const AttentionRow& row = params.rows[row_idx];
    // From the last tokens to the first: the last ones see the most.
    for (int64_t end = row.num_tokens; end > 0;) {
      const int64_t begin = std::max<int64_t>(0, end - max_tokens);
      const int64_t first_visible =
          params.sliding_window > 0
              ? std::max<int64_t>(
                    0, row.first_position + begin - params.sliding_window + 1)
              : 0;
      Unit unit = {};
      unit.row_idx = row_idx;
      unit.token_begin = static_cast<int32_t>(begin);
      unit.num_tokens = static_cast<int32_t>(end - begin);
      const int64_t split_begin = first_visible / kAttentionSplit;
      const int64_t split_end =
          (row.first_position + end - 1) / kAttentionSplit + 1;
      const int64_t partial_floats =
          PartialFloats(unit.num_tokens * group, padded_dim);
      const int64_t needed =
          params.num_kv_heads * (split_end - split_begin) * partial_floats;
      // A prompt has enough token groups to keep every thread busy.
      unit.is_partial = row.num_tokens <= max_tokens &&
                        split_end - split_begin > 1 &&
                        used + needed <= capacity;
      for (int kv_head = 0; kv_head < params.num_kv_heads; ++kv_head) {
        unit.kv_head = kv_head;
        unit.split = split_begin;
        unit.split_end = split_end;
        unit.offset = used;
        if (!unit.is_partial) {
          units_.push_back(unit);
          continue;
        }
        merges_.push_back(unit);
        for (int64_t split = split_begin; split < split_end; ++split) {
          unit.split = split;
          unit.offset = used;
          units_.push_back(unit);
          used += partial_floats;
        }
      }
      end = begin;
    }
  }
}

void PagedAttention(ThreadPool& pool, Isa isa,
                    const PagedAttentionParams& params,
                    AttentionScratch& scratch) {
  const AttentionKernels& kernels = GetKernels(isa);
  AttentionJob job = {};
  job.q = params.q;
  job.q_stride = params.q_stride;
  job.out = params.out;
  job.out_stride = params.out_stride;
  job.kv = static_cast<const char*>(params.kv);
  job.kv_format = FormatOf(params.kv_dtype);
  job.block_bytes = params.block_bytes;
  job.num_heads = params.num_heads;
  job.num_kv_heads = params.num_kv_heads;
  job.head_dim = params.head_dim;
  job.padded_dim =
      static_cast<int>(RoundUp(params.head_dim, 2 * kernels.lanes));
  job.block_size = params.block_size;
  job.sliding_window = params.sliding_window;
  job.scale = params.scale;
  job.softcap = params.softcap;
  QUIRE_CHECK(params.num_kv_heads > 0 &&
              params.num_heads % params.num_kv_heads == 0);
  QUIRE_CHECK(params.num_heads / params.num_kv_heads <= scratch.max_item_rows_);
  QUIRE_CHECK(job.padded_dim <= scratch.max_padded_dim_);
  QUIRE_CHECK(pool.num_threads() <= scratch.num_threads_);

  using Unit = AttentionScratch::Unit;
  scratch.Plan(params, job.padded_dim);
  const auto make_item = [&](const Unit& unit) {
    const AttentionRow& row = params.rows[unit.row_idx];
    AttentionItem item = {};
    item.block_table = row.block_table;
    item.first_position = row.first_position + unit.token_begin;
    item.first_token = row.first_token + unit.token_begin;
    item.num_tokens = unit.num_tokens;
    item.kv_head = unit.kv_head;
    return item;
  };
  const auto thread_scratch = [&](int thread_idx) {
    return scratch.per_thread_.floats() + thread_idx * scratch.thread_floats_;
  };
  float* const partials = scratch.partials_.floats();
  pool.ParallelFor(scratch.units_.size(), 1,
                   [&](int64_t begin, int64_t end, int thread_idx) {
                     for (int64_t i = begin; i < end; ++i) {
                       const Unit& unit = scratch.units_[i];
                       if (unit.is_partial) {
                         kernels.compute_split(job, make_item(unit), unit.split,
                                               thread_scratch(thread_idx),
                                               partials + unit.offset);
                       } else {
                         kernels.compute(job, make_item(unit), unit.split,
                                         unit.split_end,
                                         thread_scratch(thread_idx));
                       }
                     }
                   });
  pool.ParallelFor(scratch.merges_.size(), 1,
                   [&](int64_t begin, int64_t end, int thread_idx) {
                     for (int64_t i = begin; i < end; ++i) {
                       const Unit& unit = scratch.merges_[i];
                       kernels.merge_splits(
                           job, make_item(unit), unit.split_end - unit.split,
                           partials + unit.offset, thread_scratch(thread_idx));
                     }
                   });
}

}  // namespace quire
