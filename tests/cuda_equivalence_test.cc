// A model on a GPU, or on the emulation of one: what a sequence is told does
// not depend on its company, on a cached prefix, or on how its prompt was cut.
// tests/gpu runs the same on a real GPU.
#include <cmath>
#include <cstring>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/base/random.h"
#include "gtest/gtest.h"
#include "kernels/cuda/cuda_backend.h"
#include "tests/model_harness.h"

namespace quire {
namespace {

constexpr int kNumGenerated = 4;
// Of log-probabilities; see tests/cuda_model_test.cc.
constexpr double kMaxError = 0.1;

class CudaEquivalenceTest : public testing::TestWithParam<const char*> {
 protected:
  static std::unique_ptr<ModelHarness> MakeHarness(bool enforce_eager = false) {
    ModelHarness::Options options;
    options.dtype = options.kv_cache_dtype = DType::kBF16;
    options.kv_cache_memory_bytes = 64 << 20;
    options.max_num_batched_tokens = 128;
    options.make_backend = [=]() -> std::unique_ptr<Backend> {
      CudaBackendOptions backend_options;
      backend_options.enforce_eager = enforce_eager;
      return std::move(CudaBackend::Create(backend_options)).value();
    };
    auto harness = ModelHarness::Create(
        absl::StrCat("tests/testdata/goldens/", GetParam()), options);
    EXPECT_TRUE(harness.ok()) << harness.status();
    return harness.ok() ? *std::move(harness) : nullptr;
  }

  // Lengths around blocks and the sizes of tiles.
  static TestSequence Sequence(const ModelHarness& harness, int idx) {
    constexpr int kLengths[] = {1, 15, 16, 17, 33, 90};
    SimulationRandom random(idx);
    std::vector<int32_t> prompt(kLengths[idx % 6]);
    for (int32_t& id : prompt) {
      id = static_cast<int32_t>(random.Below(harness.vocab_size()));
    }
    return harness.MakeSequence(idx, std::move(prompt), kNumTop);
  }

  static constexpr int kNumTop = 5;
};

void ExpectSameBits(const TestSequence& got, const TestSequence& expected) {
  EXPECT_EQ(got.tokens, expected.tokens);
  ASSERT_EQ(got.outputs.size(), expected.outputs.size());
  for (size_t i = 0; i < got.outputs.size(); ++i) {
    const auto& a = got.outputs[i].top_logprobs;
    const auto& b = expected.outputs[i].top_logprobs;
    ASSERT_EQ(a.size(), b.size());
    for (size_t k = 0; k < a.size(); ++k) {
      EXPECT_EQ(a[k].token_id, b[k].token_id);
      EXPECT_EQ(std::memcmp(&a[k].logprob, &b[k].logprob, sizeof(float)), 0)
          << a[k].logprob << " instead of " << b[k].logprob;
    }
  }
}

// The first token's distribution; what follows depends on which was drawn.
void ExpectNear(const TestSequence& got, const TestSequence& expected) {
  ASSERT_FALSE(got.outputs.empty());
  int num_compared = 0;
  for (const TopLogprob& top : expected.outputs[0].top_logprobs) {
    for (const TopLogprob& found : got.outputs[0].top_logprobs) {
      if (found.token_id != top.token_id) continue;
      EXPECT_TRUE(std::abs(found.logprob - top.logprob) <= kMaxError)
          << found.logprob << " instead of " << top.logprob;
      ++num_compared;
    }
  }
  EXPECT_GE(num_compared, 1);
}

TEST_P(CudaEquivalenceTest, ADecodeHasTheSameBitsInAnyCompany) {
  std::vector<TestSequence> expected;
  for (int i = 0; i < 6; ++i) {
    const auto harness = MakeHarness();
    expected.push_back(Sequence(*harness, i));
    ASSERT_TRUE(harness->Generate(expected[i], 128, kNumGenerated).ok());
  }
  const auto harness = MakeHarness();
  std::vector<TestSequence> sequences;
  for (int i = 0; i < 6; ++i) {
    sequences.push_back(Sequence(*harness, i));
    ASSERT_TRUE(harness->Generate(sequences[i], 128, 1).ok());
  }
  for (int step = 1; step < kNumGenerated; ++step) {
    std::vector<TestRow> rows;
    for (TestSequence& sequence : sequences) rows.push_back({&sequence, 1});
    ASSERT_TRUE(harness->Step(rows).ok());
  }
  for (int i = 0; i < 6; ++i) {
    SCOPED_TRACE(i);
    ExpectSameBits(sequences[i], expected[i]);
  }
}

TEST_P(CudaEquivalenceTest, AGraphHasTheBitsOfTheSameStepWithout) {
  std::vector<TestSequence> results[2];
  for (const bool enforce_eager : {true, false}) {
    const auto harness = MakeHarness(enforce_eager);
    std::vector<TestSequence>& sequences = results[enforce_eager];
    for (int i = 0; i < 4; ++i) {
      sequences.push_back(Sequence(*harness, i));
      ASSERT_TRUE(harness->Generate(sequences[i], 128, 1).ok());
    }
    for (int step = 0; step < 3; ++step) {
      std::vector<TestRow> rows;
      for (TestSequence& sequence : sequences) rows.push_back({&sequence, 1});
      ASSERT_TRUE(harness->Step(rows).ok());
    }
    const CudaGraphCounts& counts =
        static_cast<const CudaBackend&>(*harness->model().backend)
            .graph_counts();
    EXPECT_FALSE(counts.is_disabled);
    EXPECT_EQ(enforce_eager ? counts.num_eager : counts.num_replays, 7);
  }
  for (int i = 0; i < 4; ++i) {
    SCOPED_TRACE(i);
    ExpectSameBits(results[0][i], results[1][i]);
  }
}

TEST_P(CudaEquivalenceTest, AGraphHasTheSameBitsAsItsLaunches) {
  const auto graphs = MakeHarness(false), eager = MakeHarness(true);
  TestSequence got = Sequence(*graphs, 4), expected = Sequence(*eager, 4);
  ASSERT_TRUE(graphs->Generate(got, 16, kNumGenerated).ok());
  ASSERT_TRUE(eager->Generate(expected, 16, kNumGenerated).ok());
  ExpectSameBits(got, expected);
}

TEST_P(CudaEquivalenceTest, ACachedPrefixHasTheSameBits) {
  constexpr int kPrefix = 32;
  const auto harness = MakeHarness();
  TestSequence whole = Sequence(*harness, 5);
  ASSERT_TRUE(harness->Step({{&whole, kPrefix}}).ok());
  const std::vector<int32_t> blocks = whole.blocks;
  ASSERT_TRUE(harness->Generate(whole, 128, kNumGenerated).ok());

  TestSequence cached = Sequence(*harness, 5);
  cached.slot = 1;
  cached.blocks = blocks;
  cached.num_computed_tokens = kPrefix;
  ASSERT_TRUE(harness->Generate(cached, 128, kNumGenerated).ok());
  ExpectSameBits(cached, whole);
}

TEST_P(CudaEquivalenceTest, ChunksAreNearTheWhole) {
  TestSequence whole, chunked;
  {
    const auto harness = MakeHarness();
    whole = Sequence(*harness, 5);
    ASSERT_TRUE(harness->Generate(whole, 128, 1).ok());
  }
  for (const int chunk : {7, 64}) {
    SCOPED_TRACE(chunk);
    const auto harness = MakeHarness();
    chunked = Sequence(*harness, 5);
    ASSERT_TRUE(harness->Generate(chunked, chunk, 1).ok());
    ExpectNear(chunked, whole);
  }
}

INSTANTIATE_TEST_SUITE_P(Models, CudaEquivalenceTest,
                         testing::Values("llama_linear", "gemma2", "qwen3"),
                         [](const auto& info) {
                           return std::string(info.param);
                         });

}  // namespace
}  // namespace quire
