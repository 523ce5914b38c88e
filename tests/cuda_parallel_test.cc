// Several emulated GPUs, a thread each, over the host's communicators: all
// ranks agree to the bit, and their answers are one GPU's but for the rounding
// of the ranks' parts to 16 bits.
#include <stdlib.h>

#include <cmath>
#include <filesystem>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "kernels/cuda/cuda_backend.h"
#include "tests/random_family.h"
#include "tests/thread_ranks.h"

namespace quire {
namespace {

namespace fs = std::filesystem;

// As in tests/cuda_model_test: what 16-bit roundings come to in such models.
constexpr double kMaxError = 0.1;
constexpr int kNumGenerated = 3;

// A new one: shards of a test are processes of one number in sandboxes that may
// share what is temporary.
fs::path MakeDirectory() {
  std::string path = testing::TempDir() + "/cuda_parallel_XXXXXX";
  EXPECT_NE(mkdtemp(path.data()), nullptr);
  return path;
}

class CudaRanksTest : public testing::Test {
 protected:
  CudaRanksTest() : directory_(MakeDirectory()) {}
  ~CudaRanksTest() override { fs::remove_all(directory_); }

  // A prompt in two chunks, then decodes: greedy with reports (whole rows of
  // logits), or drawn (slices of them tell).
  // `has_drafts`: every decode ends with a token that is hardly ever right.
  std::vector<TokenOutput> Generate(int tensor_size, int pipeline_size,
                                    bool is_greedy, bool has_drafts = false) {
    LoadOptions options;
    options.dtype = options.kv_cache_dtype = DType::kBF16;
    options.max_num_seqs = 2;
    options.max_num_batched_tokens = 16;
    options.max_model_len = 64;
    options.kv_cache_memory_bytes = 8 << 20;
    options.steps_in_flight = 1;
    options.num_threads = 1;
    ThreadRanks::Options group;
    group.tensor_size = tensor_size;
    group.pipeline_size = pipeline_size;
    group.make_backend = [] {
      return std::move(CudaBackend::Create({})).value();
    };
    std::vector<TokenOutput> outputs;
    auto ranks = ThreadRanks::Create(directory_.string(), options, group);
    EXPECT_TRUE(ranks.ok()) << ranks.status();
    if (!ranks.ok()) return outputs;
    SamplingParams params;
    params.temperature = is_greedy ? 0.0f : 1.0f;
    params.num_logprobs = is_greedy ? 5 : 0;
    std::vector<int32_t> tokens = {5, 9, 33, 7, 12, 40, 2, 3, 4, 8, 17, 60};
    int num_computed = 0;
    for (int step = 0; static_cast<int>(outputs.size()) < kNumGenerated;
         ++step) {
      SchedulerOutput output;
      output.step_id = step;
      if (step == 0) {
        SlotStart start;
        start.params = &params;
        start.draw_key = 77;
        start.history = tokens;
        start.num_prompt_tokens = static_cast<int>(tokens.size());
        output.slot_starts.push_back(start);
        BlockAppend append;
        append.block_ids = {0, 1};
        output.block_appends.push_back(append);
      }
      ScheduledRow row;
      row.first_position = num_computed;
      row.num_tokens =
          std::min<int>(7, static_cast<int>(tokens.size()) - num_computed);
      output.token_ids.assign(tokens.begin() + num_computed,
                              tokens.begin() + num_computed + row.num_tokens);
      num_computed += row.num_tokens;
      row.needs_token = num_computed == static_cast<int>(tokens.size());
      if (has_drafts && row.num_tokens == 1 && !outputs.empty()) {
        row.num_drafts = 1;
        ++row.num_tokens;
        output.token_ids.push_back(1);
      }
      output.rows.push_back(row);
      const absl::Status status = (*ranks)->Submit(output);
      EXPECT_TRUE(status.ok()) << status;
      if (!status.ok()) return outputs;
      absl::StatusOr<StepResult> result = (*ranks)->Collect();
      EXPECT_TRUE(result.ok()) << result.status();
      if (!result.ok()) return outputs;
      for (const SampledRow& sampled : result->rows) {
        EXPECT_FALSE(sampled.non_finite);
        // An accepted draft has been computed.
        if (sampled.tokens.size() == 2) ++num_computed;
        for (const TokenOutput& token : sampled.tokens) {
          tokens.push_back(token.token_id);
          outputs.push_back(token);
        }
      }
    }
    return outputs;
  }

  const fs::path directory_;
};

class CudaParallelTest : public CudaRanksTest,
                         public testing::WithParamInterface<const char*> {};

TEST_P(CudaParallelTest, RanksAgreeWithOne) {
  const absl::Status status =
      WriteRandomFamily(absl::StrCat("tests/testdata/goldens/", GetParam()),
                        RandomFamilyShape(), 7, directory_.string());
  ASSERT_TRUE(status.ok()) << status;
  const std::vector<TokenOutput> expected = Generate(1, 1, true);
  ASSERT_EQ(expected.size(), size_t{kNumGenerated});
  for (const auto& [tensor_size, pipeline_size] :
       {std::pair(4, 1), std::pair(1, 2)}) {
    SCOPED_TRACE(absl::StrCat(tensor_size, " x ", pipeline_size));
    const std::vector<TokenOutput> found =
        Generate(tensor_size, pipeline_size, true);
    ASSERT_EQ(found.size(), size_t{kNumGenerated});
    EXPECT_NEAR(found[0].top_logprobs[0].logprob,
                expected[0].top_logprobs[0].logprob, kMaxError);
    for (const TopLogprob& top : expected[0].top_logprobs) {
      for (const TopLogprob& other : found[0].top_logprobs) {
        if (other.token_id != top.token_id) continue;
        EXPECT_NEAR(other.logprob, top.logprob, kMaxError);
      }
    }
  }
  const std::vector<TokenOutput> drawn = Generate(1, 1, false);
  const std::vector<TokenOutput> drawn_by_two = Generate(2, 1, false);
  ASSERT_EQ(drawn_by_two.size(), drawn.size());
  // The same noise: the same token, as no two are nearly as good here.
  ASSERT_FALSE(drawn.empty());
  ASSERT_EQ(drawn_by_two[0].token_id, drawn[0].token_id);
  EXPECT_NEAR(drawn_by_two[0].logprob, drawn[0].logprob, kMaxError);
}

// A stage that does not draw is told by the next row that a draft was rejected.
TEST_F(CudaRanksTest, StagesTakeRejectedDraftsBack) {
  const absl::Status status =
      WriteRandomFamily("tests/testdata/goldens/llama", RandomFamilyShape(), 7,
                        directory_.string());
  ASSERT_TRUE(status.ok()) << status;
  const std::vector<TokenOutput> expected = Generate(1, 2, true);
  const std::vector<TokenOutput> found = Generate(1, 2, true, true);
  ASSERT_EQ(expected.size(), size_t{kNumGenerated});
  ASSERT_GE(found.size(), expected.size());
  for (size_t i = 0; i < expected.size(); ++i) {
    ASSERT_EQ(found[i].token_id, expected[i].token_id) << i;
    EXPECT_NEAR(found[i].logprob, expected[i].logprob, kMaxError);
  }
}

INSTANTIATE_TEST_SUITE_P(Families, CudaParallelTest,
                         testing::Values("llama", "gemma2", "olmo2", "opt",
                                         "stablelm_parallel"),
                         [](const auto& info) {
                           return std::string(info.param);
                         });

}  // namespace
}  // namespace quire
