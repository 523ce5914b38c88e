// Attention over a cache whose blocks are shuffled, on the emulation, and its
// error.
#ifndef QUIRE_KERNELS_CUDA_ATTENTION_PROBLEM_H_
#define QUIRE_KERNELS_CUDA_ATTENTION_PROBLEM_H_

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "engine/base/random.h"
#include "kernels/cuda/attention.h"
#include "kernels/cuda/attention_plan.h"
#include "kernels/cuda/simt/emulator.h"

namespace quire::cuda {

struct AttentionCase {
  AttentionShape shape;
  AttentionTile tile = AttentionTile::kPrefill;
  int split_size = 1 << 20;
  DType dtype = DType::kBF16;
  bool is_fp8 = false;  // The cache.
  std::vector<int> num_tokens;
  std::vector<int> seq_lens;
};

inline double SumOfUniforms(SimulationRandom& random) {
  double sum = 0;
  for (int i = 0; i < 12; ++i) sum += random.Uniform();
  return sum - 6;
}

// Inputs in a cache whose blocks are shuffled, and the kernel's output.
class AttentionProblem {
 public:
  AttentionProblem(const AttentionCase& c, uint64_t seed)
      : case_(c), random_(seed) {
    const AttentionShape& shape = c.shape;
    int num_tokens = 0, num_blocks = 0;
    for (size_t s = 0; s < c.num_tokens.size(); ++s) {
      sequences_.push_back({num_tokens, c.num_tokens[s], c.seq_lens[s],
                            static_cast<int32_t>(s)});
      num_tokens += c.num_tokens[s];
      const int blocks =
          (c.seq_lens[s] + shape.block_size - 1) / shape.block_size;
      num_blocks += blocks;
      stride_ = std::max(stride_, blocks);
    }
    std::vector<int32_t> free_blocks(num_blocks);
    for (int i = 0; i < num_blocks; ++i) free_blocks[i] = i;
    for (int i = num_blocks - 1; i > 0; --i) {
      std::swap(free_blocks[i], free_blocks[random_.Below(i + 1)]);
    }
    tables_.assign(c.num_tokens.size() * stride_, -1);
    for (size_t s = 0; s < c.num_tokens.size(); ++s) {
      const int blocks =
          (c.seq_lens[s] + shape.block_size - 1) / shape.block_size;
      for (int b = 0; b < blocks; ++b) {
        tables_[s * stride_ + b] = free_blocks.back();
        free_blocks.pop_back();
      }
    }
    q_stride_ = (shape.num_heads + 2 * shape.num_kv_heads) * shape.head_dim;
    q_.resize(int64_t{num_tokens} * q_stride_);
    // Beyond a sequence's end the cache holds NaNs: reading them must not
    // matter.
    cache_.assign(int64_t{num_blocks} * 2 * shape.num_kv_heads *
                      shape.block_size * shape.head_dim * KvBytes(),
                  0xff);
    for (const AttentionSequence& sequence : sequences_) {
      // The values of a sequence do not depend on the others.
      random_ = SimulationRandom(MixBits(seed, sequence.block_table));
      for (int64_t i = 0; i < sequence.num_tokens * q_stride_; ++i) {
        q_[sequence.first_token * q_stride_ + i] = Value();
      }
      for (int position = 0; position < sequence.seq_len; ++position) {
        for (int part = 0; part < 2; ++part) {
          for (int head = 0; head < shape.num_kv_heads; ++head) {
            const int64_t row = Row(sequence, part, head, position);
            for (int d = 0; d < shape.head_dim; ++d) {
              if (c.is_fp8) {
                cache_[row + d] =
                    FloatToE4M3(static_cast<float>(SumOfUniforms(random_)));
              } else {
                const uint16_t bits = Value();
                std::memcpy(&cache_[(row + d) * 2], &bits, 2);
              }
            }
          }
        }
      }
    }
    out_.assign(int64_t{num_tokens} * shape.num_heads * shape.head_dim, 0xffff);
  }

  // False if the launch failed; the emulator says why.
  bool Run() {
    const bool is_split = case_.tile != AttentionTile::kWarpgroup;
    const AttentionPlan plan = PlanAttention(
        case_.shape, case_.tile,
        {.least_size = is_split ? case_.split_size : 1 << 20}, sequences_);
    std::vector<float> partial(
        AttentionPartialFloats(case_.shape, case_.tile, plan.num_parts), NAN);
    AttentionArguments arguments;
    arguments.shape = case_.shape;
    arguments.dtype = case_.dtype;
    arguments.kv_dtype = case_.is_fp8 ? DType::kF8E4M3 : case_.dtype;
    arguments.q = q_.data();
    arguments.q_stride = q_stride_;
    arguments.out = out_.data();
    arguments.kv_cache = cache_.data();
    arguments.block_tables = tables_.data();
    arguments.block_table_stride = stride_;
    arguments.sequences = sequences_.data();
    arguments.tasks = plan.tasks.data();
    arguments.merges = plan.merges.data();
    arguments.num_tasks = static_cast<int>(plan.tasks.size());
    arguments.num_merges = static_cast<int>(plan.merges.size());
    arguments.partial_out = partial.data();
    arguments.partial_stats =
        partial.data() + int64_t{plan.num_parts} *
                             AttentionTileRows(case_.tile) *
                             PaddedHeadDim(case_.shape.head_dim);
    return LaunchAttention(arguments, case_.tile, nullptr);
  }

  // Largest error in units of what rounding allows: the probabilities and the
  // output are rounded to the 16-bit type once each (relative unit roundoff),
  // the scores carry f32 sums over head_dim.
  double WorstError() const {
    const AttentionShape& shape = case_.shape;
    const int group = shape.num_heads / shape.num_kv_heads;
    const double unit_roundoff = case_.dtype == DType::kBF16 ? 0x1p-8 : 0x1p-11;
    double worst = 0;
    for (const AttentionSequence& sequence : sequences_) {
      for (int t = 0; t < sequence.num_tokens; ++t) {
        for (int head = 0; head < shape.num_heads; ++head) {
          const int end = sequence.seq_len - sequence.num_tokens + t + 1;
          const int begin = shape.sliding_window > 0
                                ? std::max(0, end - shape.sliding_window)
                                : 0;
          const int64_t token = sequence.first_token + t;
          const uint16_t* q = &q_[token * q_stride_ + head * shape.head_dim];
          std::vector<double> p(end);
          double maximum = -INFINITY, sum = 0;
          for (int j = begin; j < end; ++j) {
            const int64_t k = Row(sequence, 0, head / group, j);
            double score = 0;
            for (int d = 0; d < shape.head_dim; ++d) {
              score += double{ToFloat(q[d])} * Cached(k + d);
            }
            score *= shape.scale;
            if (shape.softcap > 0) {
              score = shape.softcap * std::tanh(score / shape.softcap);
            }
            p[j] = score;
            maximum = std::max(maximum, score);
          }
          for (int j = begin; j < end; ++j) {
            p[j] = std::exp(p[j] - maximum);
            sum += p[j];
          }
          for (int d = 0; d < shape.head_dim; ++d) {
            double out = 0, magnitude = 0;
            for (int j = begin; j < end; ++j) {
              const double v = Cached(Row(sequence, 1, head / group, j) + d);
              out += p[j] / sum * v;
              magnitude += p[j] / sum * std::fabs(v);
            }
            const double found = ToFloat(
                out_[(token * shape.num_heads + head) * shape.head_dim + d]);
            const double allowed =
                unit_roundoff * (magnitude + std::fabs(out)) +
                magnitude * 0x1p-23 * (shape.head_dim + end) + 1e-6;
            const double error = std::fabs(found - out) / allowed;
            if (!(error <= worst)) worst = error;  // A NaN stays.
            if (std::isnan(worst)) return worst;
          }
        }
      }
    }
    return worst;
  }

  const std::vector<uint16_t>& out() const { return out_; }

 private:
  uint16_t Value() {
    const float value = static_cast<float>(SumOfUniforms(random_));
    return case_.dtype == DType::kBF16 ? FloatToBf16(value)
                                       : FloatToHalf(value);
  }
  float ToFloat(uint16_t bits) const {
    return case_.dtype == DType::kBF16 ? Bf16ToFloat(bits) : HalfToFloat(bits);
  }
  int64_t KvBytes() const { return case_.is_fp8 ? 1 : 2; }
  float Cached(int64_t element) const {
    if (case_.is_fp8) return E4M3ToFloat(cache_[element]);
    uint16_t bits;
    std::memcpy(&bits, &cache_[element * 2], 2);
    return ToFloat(bits);
  }
  int64_t Row(const AttentionSequence& sequence, int part, int head,
              int position) const {
    const AttentionShape& shape = case_.shape;
    const int64_t block = tables_[int64_t{sequence.block_table} * stride_ +
                                  position / shape.block_size];
    return (((block * 2 + part) * shape.num_kv_heads + head) *
                shape.block_size +
            position % shape.block_size) *
           shape.head_dim;
  }

  AttentionCase case_;
  SimulationRandom random_;
  std::vector<AttentionSequence> sequences_;
  std::vector<int32_t> tables_;
  int stride_ = 0;
  int64_t q_stride_ = 0;
  std::vector<uint16_t> q_, out_;
  std::vector<uint8_t> cache_;
};

inline AttentionShape Shape(int num_heads, int num_kv_heads, int head_dim) {
  AttentionShape shape;
  shape.num_heads = num_heads;
  shape.num_kv_heads = num_kv_heads;
  shape.head_dim = head_dim;
  shape.scale = 1.0f / std::sqrt(static_cast<float>(head_dim));
  return shape;
}

}  // namespace quire::cuda

#endif  // QUIRE_KERNELS_CUDA_ATTENTION_PROBLEM_H_
