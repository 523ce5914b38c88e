// A model on a GPU, or on the emulation of one: what a sequence is told does
// not depend on its company, on a cached prefix, or on how its prompt was cut.
// tests/gpu runs the same on a real GPU.
#include <algorithm>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/base/random.h"
#include "gtest/gtest.h"
#include "kernels/cuda/cuda_backend.h"
#include "tests/model_harness.h"
#include "tests/model_rounding.h"

namespace quire {
namespace {

constexpr int kNumGenerated = 4;
struct Case {
  const char* model;
  DType kv_dtype = DType::kBF16;

  std::string name() const {
    return absl::StrCat(model, kv_dtype == DType::kF8E4M3 ? "_fp8_cache" : "");
  }
};

class CudaEquivalenceTest : public testing::TestWithParam<Case> {
 protected:
  static std::unique_ptr<ModelHarness> MakeHarness(bool enforce_eager = false) {
    return MakeHarness(GetParam().kv_dtype, [=]() -> std::unique_ptr<Backend> {
      CudaBackendOptions backend_options;
      backend_options.enforce_eager = enforce_eager;
      backend_options.measures_products = false;
      return std::move(CudaBackend::Create(backend_options)).value();
    });
  }
  static std::unique_ptr<ModelHarness> MakeHarness(
      DType kv_dtype,
      const std::function<std::unique_ptr<Backend>()>& make_backend) {
    ModelHarness::Options options;
    options.dtype = DType::kBF16;
    options.kv_cache_dtype = kv_dtype;
    options.kv_cache_memory_bytes = 64 << 20;
    options.max_num_batched_tokens = 128;
    options.make_backend = make_backend;
    auto harness = ModelHarness::Create(
        absl::StrCat("tests/testdata/goldens/", GetParam().model), options);
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
    return harness.MakeSequence(idx, std::move(prompt), kNumRoundingTop);
  }
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

// The first token's distribution; what follows depends on which was drawn.
// Either is as near to the reference as tests/model_rounding.h says.
TEST_P(CudaEquivalenceTest, ChunksAreNearTheWhole) {
  const auto run = [&](std::unique_ptr<ModelHarness> harness, int chunk) {
    TestSequence sequence = Sequence(*harness, 5);
    EXPECT_EQ(harness->Generate(sequence, chunk, 1), absl::OkStatus());
    return sequence.outputs.at(0);
  };
  const double rounding = std::max(
      kF32Error, LargestDifference(
                     run(MakeHarness(GetParam().kv_dtype,
                                     [] { return MakeRoundingReference(); }),
                         128),
                     run(MakeHarness(DType::kF32, MakeExactReference), 128)));
  const TokenOutput whole = run(MakeHarness(), 128);
  for (const int chunk : {7, 64}) {
    EXPECT_LE(LargestDifference(run(MakeHarness(), chunk), whole), 2 * rounding)
        << chunk;
  }
}

INSTANTIATE_TEST_SUITE_P(Models, CudaEquivalenceTest,
                         testing::Values(Case{"llama_linear"}, Case{"gemma2"},
                                         Case{"qwen3"},
                                         Case{"qwen3", DType::kF8E4M3}),
                         [](const auto& info) { return info.param.name(); });

}  // namespace
}  // namespace quire
