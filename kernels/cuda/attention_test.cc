#include "kernels/cuda/attention.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "engine/base/random.h"
#include "gtest/gtest.h"
#include "kernels/cuda/attention_plan.h"
#include "kernels/cuda/simt/emulator.h"

namespace quire::cuda {
namespace {

struct Case {
  AttentionShape shape;
  AttentionTile tile = AttentionTile::kPrefill;
  int split_size = 1 << 20;
  DType dtype = DType::kBF16;
  bool is_fp8 = false;  // The cache.
  std::vector<int> num_tokens;
  std::vector<int> seq_lens;
};

double Normal(SimulationRandom& random) {
  double sum = 0;
  for (int i = 0; i < 12; ++i) sum += random.Uniform();
  return sum - 6;
}

// Inputs in a cache whose blocks are shuffled, and the kernel's output.
class Problem {
 public:
  Problem(const Case& c, uint64_t seed) : case_(c), random_(seed) {
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
                    FloatToE4M3(static_cast<float>(Normal(random_)));
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
    const AttentionPlan plan =
        PlanAttention(case_.shape, case_.tile, case_.split_size, sequences_);
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
    const float value = static_cast<float>(Normal(random_));
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

  Case case_;
  SimulationRandom random_;
  std::vector<AttentionSequence> sequences_;
  std::vector<int32_t> tables_;
  int stride_ = 0;
  int64_t q_stride_ = 0;
  std::vector<uint16_t> q_, out_;
  std::vector<uint8_t> cache_;
};

AttentionShape Shape(int num_heads, int num_kv_heads, int head_dim) {
  AttentionShape shape;
  shape.num_heads = num_heads;
  shape.num_kv_heads = num_kv_heads;
  shape.head_dim = head_dim;
  shape.scale = 1.0f / std::sqrt(static_cast<float>(head_dim));
  return shape;
}

class CudaAttentionTest : public ::testing::Test {
 protected:
  void TearDown() override { emulator().schedule = {}; }
  static simt::emulator::Options& emulator() {
    return simt::emulator::CurrentOptions();
  }
  static void ExpectRight(const Case& c, const std::string& name) {
    Problem problem(c, 11);
    simt::emulator::CurrentCounts() = {};
    // The backend refuses these models on sm_75.
    if (SIMT_HAS_SMALL_SHARED && c.shape.head_dim > 128) return;
    ASSERT_TRUE(problem.Run()) << name << ": " << simt::emulator::LastError();
    EXPECT_LE(problem.WorstError(), 1.0) << name;
    EXPECT_EQ(simt::emulator::CurrentCounts().num_matrix_passes,
              simt::emulator::CurrentCounts().num_matrices)
        << name << ": bank conflicts";
  }
};

TEST_F(CudaAttentionTest, IsRightUnderEverySchedule) {
  Case prefill{.shape = Shape(4, 2, 64),
               .num_tokens = {70, 1, 33},
               .seq_lens = {90, 130, 33}};
  Case decode{.shape = Shape(8, 2, 128),
              .tile = AttentionTile::kDecode,
              .split_size = 64,
              .num_tokens = {1, 1, 4},
              .seq_lens = {150, 17, 129}};
  for (const simt::emulator::Schedule schedule :
       simt::emulator::kAllSchedules) {
    for (const bool is_lazy : {false, true}) {
      emulator() = {.schedule = schedule, .seed = 3, .is_copy_lazy = is_lazy};
      for (const bool is_fp8 : {false, true}) {
        prefill.is_fp8 = decode.is_fp8 = is_fp8;
        ExpectRight(prefill, "prefill");
        ExpectRight(decode, "decode");
      }
    }
  }
  emulator() = {};
}

TEST_F(CudaAttentionTest, TakesEveryHeadDimInBothTypes) {
  emulator() = {.schedule = simt::emulator::Schedule::kWarpDescending,
                .is_copy_lazy = true};
  for (const int head_dim : {8, 16, 64, 80, 96, 128, 256}) {
    for (const DType dtype : {DType::kBF16, DType::kF16}) {
      for (const AttentionTile tile :
           {AttentionTile::kPrefill, AttentionTile::kDecode}) {
        for (const bool is_fp8 : {false, true}) {
          if (is_fp8 && head_dim % 16 != 0) continue;
          ExpectRight({.shape = Shape(2, 1, head_dim),
                       .tile = tile,
                       .split_size = 64,
                       .dtype = dtype,
                       .is_fp8 = is_fp8,
                       .num_tokens = {5, 1},
                       .seq_lens = {69, 64}},
                      "head_dim " + std::to_string(head_dim));
        }
      }
    }
  }
  emulator() = {};
}

TEST_F(CudaAttentionTest, MasksWindowsAndCapsScores) {
  for (const AttentionTile tile :
       {AttentionTile::kPrefill, AttentionTile::kDecode}) {
    for (const int window : {1, 7, 64, 65, 500}) {
      Case c{.shape = Shape(2, 2, 64),
             .tile = tile,
             .split_size = 64,
             .num_tokens = {40, 1},
             .seq_lens = {200, 131}};
      c.shape.sliding_window = window;
      ExpectRight(c, "window " + std::to_string(window));
    }
    Case c{.shape = Shape(2, 1, 64),
           .tile = tile,
           .num_tokens = {9},
           .seq_lens = {40}};
    c.shape.softcap = 0.5f;
    c.shape.scale = 1.0f;
    ExpectRight(c, "softcap");
  }
}

TEST_F(CudaAttentionTest, TakesRandomShapes) {
  SimulationRandom random(5);
  for (int i = 0; i < 25; ++i) {
    Case c;
    const int num_kv_heads = static_cast<int>(random.Between(1, 3));
    c.shape = Shape(num_kv_heads * static_cast<int>(random.Between(1, 7)),
                    num_kv_heads, 64);
    c.shape.block_size = 8 << random.Below(4);
    c.tile = random.Below(2) ? AttentionTile::kPrefill : AttentionTile::kDecode;
    c.split_size = 64 * static_cast<int>(random.Between(1, 4));
    c.dtype = random.Below(2) ? DType::kBF16 : DType::kF16;
    c.is_fp8 = random.Below(2) == 1;
    if (random.Below(3) == 0) {
      c.shape.sliding_window = static_cast<int>(random.Between(1, 100));
    }
    const int num_sequences = static_cast<int>(random.Between(1, 3));
    for (int s = 0; s < num_sequences; ++s) {
      c.num_tokens.push_back(
          static_cast<int>(random.Below(2) ? 1 : random.Between(1, 20)));
      c.seq_lens.push_back(c.num_tokens.back() +
                           static_cast<int>(random.Between(0, 150)));
    }
    emulator() = {.schedule = simt::emulator::kAllSchedules[random.Below(5)],
                  .seed = static_cast<uint32_t>(i + 1),
                  .is_copy_lazy = random.Below(2) == 1};
    ExpectRight(c, "random shape " + std::to_string(i));
  }
  emulator() = {};
}

// The same bits for a sequence whatever stands beside it.
TEST_F(CudaAttentionTest, DoesNotDependOnTheBatch) {
  Case alone{.shape = Shape(4, 2, 64),
             .tile = AttentionTile::kDecode,
             .split_size = 64,
             .num_tokens = {2},
             .seq_lens = {150}};
  Case together = alone;
  together.num_tokens = {2, 3, 1};
  together.seq_lens = {150, 80, 64};
  Problem first(alone, 9), second(together, 9);
  ASSERT_TRUE(first.Run());
  ASSERT_TRUE(second.Run());
  const std::vector<uint16_t> begin(second.out().begin(),
                                    second.out().begin() + first.out().size());
  EXPECT_EQ(first.out(), begin);
}

TEST(PlanAttentionTest, CoversEveryKeyOnce) {
  const AttentionShape shape = Shape(4, 2, 64);
  const std::vector<AttentionSequence> sequences = {
      {0, 70, 300, 0}, {70, 1, 1, 1}, {71, 1, 257, 2}};
  for (const AttentionTile tile :
       {AttentionTile::kPrefill, AttentionTile::kDecode}) {
    const AttentionPlan plan = PlanAttention(shape, tile, 128, sequences);
    int num_parts = 0;
    for (const AttentionTask& task : plan.tasks) {
      EXPECT_LT(task.kv_begin, task.kv_end);
      EXPECT_LE(task.kv_end, sequences[task.sequence].seq_len);
      EXPECT_EQ(task.kv_begin % 128, 0);
      num_parts += task.part >= 0;
    }
    EXPECT_EQ(num_parts, plan.num_parts);
    for (size_t i = 1; i < plan.tasks.size(); ++i) {
      const AttentionTask &a = plan.tasks[i - 1], &b = plan.tasks[i];
      EXPECT_GE(a.kv_end - a.kv_begin + 128 / 64, b.kv_end - b.kv_begin);
    }
    for (const AttentionMerge& merge : plan.merges) {
      int covered = 0;
      for (const AttentionTask& task : plan.tasks) {
        if (task.part >= merge.first_part &&
            task.part < merge.first_part + merge.num_parts) {
          EXPECT_EQ(task.sequence, merge.sequence);
          EXPECT_EQ(task.kv_head, merge.kv_head);
          EXPECT_EQ(task.first_row, merge.first_row);
          covered += task.kv_end - task.kv_begin;
        }
      }
      const AttentionSequence& sequence = sequences[merge.sequence];
      const int last = std::min(merge.first_row + AttentionTileRows(tile),
                                sequence.num_tokens * 2) -
                       1;
      EXPECT_EQ(covered, sequence.seq_len - sequence.num_tokens + last / 2 + 1);
    }
  }
}

}  // namespace
}  // namespace quire::cuda
