#include "kernels/cuda/attention.h"

#include <string>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/cuda/attention_problem.h"

namespace quire::cuda {
namespace {

class CudaAttentionTest : public ::testing::Test {
 protected:
  void TearDown() override { emulator().schedule = {}; }
  static simt::emulator::Options& emulator() {
    return simt::emulator::CurrentOptions();
  }
  static void ExpectRight(const AttentionCase& c, const std::string& name) {
    AttentionProblem problem(c, 11);
    simt::emulator::CurrentCounts() = {};
    // The backend has other tiles for these on sm_75.
    if (SIMT_HAS_SMALL_SHARED && c.shape.head_dim > 128 &&
        c.tile == AttentionTile::kDecode) {
      return;
    }
    if (c.tile == AttentionTile::kWarpgroup) {
      if (SIMT_HAS_SMALL_SHARED || c.is_fp8 || c.shape.head_dim > 128) return;
      emulator().capability = 90;
    }
    ASSERT_TRUE(problem.Run()) << name << ": " << simt::emulator::LastError();
    EXPECT_LE(problem.WorstError(), 1.0) << name;
    EXPECT_EQ(simt::emulator::CurrentCounts().num_matrix_passes,
              simt::emulator::CurrentCounts().num_matrices)
        << name << ": bank conflicts";
  }
};

TEST_F(CudaAttentionTest, IsRightUnderEverySchedule) {
  AttentionCase prefill{.shape = Shape(4, 2, 64),
                        .num_tokens = {70, 1, 33},
                        .seq_lens = {90, 130, 33}};
  AttentionCase decode{.shape = Shape(8, 2, 128),
                       .tile = AttentionTile::kDecode,
                       .split_size = 64,
                       .num_tokens = {1, 1, 4},
                       .seq_lens = {150, 17, 129}};
  // One tile of keys, two, and more; rows of one warpgroup and of both.
  const AttentionCase warpgroup{.shape = Shape(4, 2, 128),
                                .tile = AttentionTile::kWarpgroup,
                                .num_tokens = {70, 1, 33, 40},
                                .seq_lens = {290, 130, 33, 100}};
  for (const simt::emulator::Schedule schedule :
       simt::emulator::kAllSchedules) {
    for (const bool is_lazy : {false, true}) {
      emulator() = {.schedule = schedule, .seed = 3, .is_copy_lazy = is_lazy};
      for (const bool is_fp8 : {false, true}) {
        prefill.is_fp8 = decode.is_fp8 = is_fp8;
        ExpectRight(prefill, "prefill");
        ExpectRight(decode, "decode");
      }
      ExpectRight(warpgroup, "warpgroup");
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
           {AttentionTile::kPrefill, AttentionTile::kDecode,
            AttentionTile::kWarpgroup}) {
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

// No access to shared memory waits for a bank.
TEST_F(CudaAttentionTest, HasNoBankConflicts) {
  emulator() = {.counts_shared = true};
  const simt::emulator::Counts& counts = simt::emulator::CurrentCounts();
  for (const int head_dim : {64, 80, 128, 256}) {
    for (const AttentionTile tile :
         {AttentionTile::kPrefill, AttentionTile::kDecode,
          AttentionTile::kWarpgroup}) {
      for (const bool is_fp8 : {false, true}) {
        ExpectRight({.shape = Shape(4, 2, head_dim),
                     .tile = tile,
                     .split_size = 64,
                     .is_fp8 = is_fp8,
                     .num_tokens = {5, 1},
                     .seq_lens = {69, 64}},
                    "head_dim " + std::to_string(head_dim));
        EXPECT_EQ(counts.num_shared_passes, counts.num_shared)
            << head_dim << " fp8 " << is_fp8;
      }
    }
  }
  // A decode of 64 keys and 64 dimensions by hand. Quarter warps of cp.async:
  // 16 rows of queries and 2 x 64 of keys and values, 8 chunks each, 8 at a
  // time: 144. Statistics of 4 warps, in halves of a warp: 2 x 2 stores and 4 x
  // 2 x 2 loads each: 80. The sums, 16 pairs of each lane, 32 halves: stored 4
  // times, loaded 3 times for it and once at the end.
  if (SIMT_HAS_SMALL_SHARED) return;
  ExpectRight({.shape = Shape(1, 1, 64),
               .tile = AttentionTile::kDecode,
               .num_tokens = {1},
               .seq_lens = {64}},
              "counted");
  EXPECT_EQ(counts.num_shared, 144 + 80 + 32 * (4 + 3 + 1));
  emulator() = {};
}

TEST_F(CudaAttentionTest, MasksWindowsAndCapsScores) {
  for (const AttentionTile tile :
       {AttentionTile::kPrefill, AttentionTile::kDecode,
        AttentionTile::kWarpgroup}) {
    for (const int window : {1, 7, 64, 65, 500}) {
      AttentionCase c{.shape = Shape(2, 2, 64),
                      .tile = tile,
                      .split_size = 64,
                      .num_tokens = {40, 1},
                      .seq_lens = {200, 131}};
      c.shape.sliding_window = window;
      ExpectRight(c, "window " + std::to_string(window));
    }
    AttentionCase c{.shape = Shape(2, 1, 64),
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
    AttentionCase c;
    const int num_kv_heads = static_cast<int>(random.Between(1, 3));
    c.shape = Shape(num_kv_heads * static_cast<int>(random.Between(1, 7)),
                    num_kv_heads, 64);
    c.shape.block_size = 8 << random.Below(4);
    c.tile = static_cast<AttentionTile>(random.Below(kNumAttentionTiles));
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

// A merge loads 32 parts at once, eight for each branch. Of the last part, a
// single key, the first token sees nothing.
TEST_F(CudaAttentionTest, MergesManyParts) {
  for (const int num_parts : {2, 8, 9, 32, 33, 70}) {
    ExpectRight({.shape = Shape(2, 1, 40),
                 .tile = AttentionTile::kDecode,
                 .split_size = 64,
                 .num_tokens = {2},
                 .seq_lens = {64 * (num_parts - 1) + 1}},
                std::to_string(num_parts) + " parts");
  }
}

TEST_F(CudaAttentionTest, RefusesWhatWarpgroupsHaveNoTileFor) {
  emulator().capability = 90;
  AttentionCase c{.shape = Shape(2, 1, 256),
                  .tile = AttentionTile::kWarpgroup,
                  .num_tokens = {1},
                  .seq_lens = {40}};
  EXPECT_FALSE(AttentionProblem(c, 11).Run());
  c.shape = Shape(2, 1, 64);
  c.is_fp8 = true;
  EXPECT_FALSE(AttentionProblem(c, 11).Run());
  emulator() = {};
}

TEST_F(CudaAttentionTest, RefusesBlocksThatAreNoPowerOfTwo) {
  for (const int block_size : {12, 24}) {
    AttentionCase c{
        .shape = Shape(2, 1, 64), .num_tokens = {1}, .seq_lens = {40}};
    c.shape.block_size = block_size;
    EXPECT_FALSE(AttentionProblem(c, 11).Run()) << block_size;
  }
}

// The same bits for a sequence whatever stands beside it.
TEST_F(CudaAttentionTest, DoesNotDependOnTheBatch) {
  AttentionCase alone{.shape = Shape(4, 2, 64),
                      .tile = AttentionTile::kDecode,
                      .split_size = 64,
                      .num_tokens = {2},
                      .seq_lens = {150}};
  AttentionCase together = alone;
  together.num_tokens = {2, 3, 1};
  together.seq_lens = {150, 80, 64};
  AttentionProblem first(alone, 9), second(together, 9);
  ASSERT_TRUE(first.Run());
  ASSERT_TRUE(second.Run());
  const std::vector<uint16_t> begin(second.out().begin(),
                                    second.out().begin() + first.out().size());
  EXPECT_EQ(first.out(), begin);
}

TEST(PlanAttentionTest, CoversEveryKeyOnce) {
  const AttentionShape shape = Shape(4, 2, 64);
  const std::vector<AttentionSequence> sequences = {
      {0, 70, 300, 0}, {70, 1, 1, 1}, {71, 1, 257, 2}, {72, 1, 1000, 3}};
  for (const auto& [tile, most] : {std::pair(AttentionTile::kPrefill, 100),
                                   std::pair(AttentionTile::kDecode, 100),
                                   std::pair(AttentionTile::kDecode, 3)}) {
    const AttentionPlan plan = PlanAttention(
        shape, tile, {.least_size = 128, .most = most}, sequences);
    int num_parts = 0;
    for (const AttentionTask& task : plan.tasks) {
      EXPECT_LT(task.kv_begin, task.kv_end);
      EXPECT_LE(task.kv_end, sequences[task.sequence].seq_len);
      const int split_size =
          task.sequence == 3 && most == 3 ? 384 : 128;  // 1000 in at most 3.
      EXPECT_EQ(task.kv_begin % split_size, 0);
      EXPECT_LE(task.kv_end - task.kv_begin, split_size);
      num_parts += task.part >= 0;
    }
    EXPECT_EQ(num_parts, plan.num_parts);
    for (size_t i = 1; i < plan.tasks.size(); ++i) {
      const AttentionTask &a = plan.tasks[i - 1], &b = plan.tasks[i];
      EXPECT_GE(a.kv_end - a.kv_begin + 384 / 64, b.kv_end - b.kv_begin);
    }
    for (const AttentionMerge& merge : plan.merges) {
      EXPECT_LE(merge.num_parts, most);
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

// A single sequence keeps a large GPU busy, however long others may become: 64
// of 40,960 positions leave memory for 31 splits of each.
TEST(PlanAttentionTest, OneSequenceIsWorkForManyCtas) {
  const AttentionShape shape = Shape(32, 8, 128);
  const AttentionSplits splits = {.least_size = 256, .most = 31};
  const auto num_tasks = [&](int seq_len) {
    const std::vector<AttentionSequence> sequences = {{0, 1, seq_len, 0}};
    return SizeOfAttentionPlan(shape, AttentionTile::kDecode, splits, sequences)
        .num_tasks;
  };
  EXPECT_EQ(num_tasks(256), 8);
  EXPECT_EQ(num_tasks(2048), 64);
  for (const int seq_len : {8192, 40960, 131072}) {
    EXPECT_GE(num_tasks(seq_len), 200) << seq_len;
    EXPECT_LE(num_tasks(seq_len), 31 * 8) << seq_len;
  }
}

}  // namespace
}  // namespace quire::cuda
