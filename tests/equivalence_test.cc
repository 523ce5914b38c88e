// In f32 on the CPU, what a sequence computes does not depend on how the steps
// were cut or on its neighbours: the same tokens and bitwise the same
// log-probabilities (invariant I7 of the engine).
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "engine/base/random.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/model_harness.h"

namespace quire {
namespace {

constexpr int kNumGenerated = 12;

// All drawn tokens with the bits of their whole distributions.
struct Trace {
  std::vector<int32_t> tokens;
  std::vector<std::vector<float>> logprobs;
};

Trace TraceOf(const TestSequence& sequence) {
  Trace trace;
  for (const TokenOutput& output : sequence.outputs) {
    trace.tokens.push_back(output.token_id);
    trace.logprobs.push_back(LogprobsById(output));
  }
  return trace;
}

void ExpectSame(const Trace& found, const Trace& expected) {
  ASSERT_EQ(found.tokens, expected.tokens);
  ASSERT_EQ(found.logprobs.size(), expected.logprobs.size());
  for (size_t i = 0; i < found.logprobs.size(); ++i) {
    ASSERT_EQ(found.logprobs[i].size(), expected.logprobs[i].size());
    EXPECT_EQ(std::memcmp(found.logprobs[i].data(), expected.logprobs[i].data(),
                          found.logprobs[i].size() * sizeof(float)),
              0)
        << "token " << i << " has other log-probabilities";
  }
}

class EquivalenceTest : public testing::TestWithParam<const char*> {
 protected:
  std::unique_ptr<ModelHarness> MakeHarness(int num_threads = 1) {
    ModelHarness::Options options;
    options.num_threads = num_threads;
    options.max_num_seqs = 12;
    // "llama_Q_q8_0": the model llama with weights in q8_0.
    const std::pair<std::string, std::string> name =
        absl::StrSplit(GetParam(), absl::MaxSplits("_Q_", 1));
    for (const QuantFormat format : {QuantFormat::kQ8_0, QuantFormat::kQ4_0}) {
      if (name.second == QuantFormatName(format)) {
        options.quantization = QuantizationScheme{.format = format};
      }
    }
    EXPECT_EQ(options.quantization.has_value(), !name.second.empty());
    auto harness = ModelHarness::Create(
        absl::StrCat("tests/testdata/goldens/", name.first), options);
    EXPECT_TRUE(harness.ok()) << harness.status();
    return harness.ok() ? *std::move(harness) : nullptr;
  }

  // Sequence `idx` of a fixed set with lengths around blocks and windows. Every
  // third is sampled, the others are greedy.
  TestSequence Sequence(const ModelHarness& harness, int idx) {
    constexpr int kLengths[] = {1, 5, 15, 16, 17, 33, 47, 90};
    SimulationRandom random(idx);
    std::vector<int32_t> prompt(kLengths[idx % 8]);
    for (int32_t& id : prompt) id = random.Below(harness.vocab_size());
    TestSequence sequence =
        harness.MakeSequence(idx, std::move(prompt), harness.vocab_size());
    if (idx % 3 == 2) {
      sequence.params.temperature = 0.9f;
      sequence.params.top_p = 0.95f;
      sequence.params.repetition_penalty = 1.1f;
    }
    sequence.draw_key = MixBits(17, idx);
    return sequence;
  }

  // The sequence alone, prefilled in one piece, on one thread.
  Trace Alone(int idx, int chunk = 1 << 20, int num_threads = 1) {
    const std::unique_ptr<ModelHarness> harness = MakeHarness(num_threads);
    TestSequence sequence = Sequence(*harness, idx);
    const absl::Status status =
        harness->Generate(sequence, chunk, kNumGenerated);
    EXPECT_TRUE(status.ok()) << status;
    return TraceOf(sequence);
  }
};

TEST_P(EquivalenceTest, ChunkSizes) {
  for (const int idx : {4, 7, 5}) {
    const Trace expected = Alone(idx);
    ASSERT_EQ(expected.tokens.size(), size_t{kNumGenerated});
    for (const int chunk : {1, 3, 16, 40}) {
      SCOPED_TRACE(absl::StrCat("sequence ", idx, ", chunk ", chunk));
      ExpectSame(Alone(idx, chunk), expected);
    }
  }
}

TEST_P(EquivalenceTest, ThreadCounts) {
  for (const int num_threads : {2, 4}) {
    SCOPED_TRACE(num_threads);
    ExpectSame(Alone(7, 1 << 20, num_threads), Alone(7));
    ExpectSame(Alone(5, 1 << 20, num_threads), Alone(5));
  }
}

// Eight sequences that arrive one step after the other, their prefills cut to a
// shared budget and mixed with decodes.
TEST_P(EquivalenceTest, BatchOfMixedSteps) {
  constexpr int kNumSequences = 8;
  for (const int budget : {37, 200}) {
    const std::unique_ptr<ModelHarness> harness = MakeHarness(2);
    std::vector<TestSequence> sequences;
    for (int i = 0; i < kNumSequences; ++i) {
      sequences.push_back(Sequence(*harness, i));
    }
    for (int step = 0;; ++step) {
      std::vector<TestRow> rows;
      int left = budget;
      for (int i = 0; i < std::min(step + 1, kNumSequences); ++i) {
        TestSequence& sequence = sequences[i];
        if (sequence.outputs.size() == size_t{kNumGenerated}) continue;
        const int num_tokens = std::min<int>(
            left, sequence.tokens.size() - sequence.num_computed_tokens);
        if (num_tokens == 0) continue;
        left -= num_tokens;
        rows.push_back({&sequence, num_tokens});
      }
      if (rows.empty() && step >= kNumSequences) break;
      const absl::Status status = harness->Step(rows);
      ASSERT_TRUE(status.ok()) << status;
    }
    for (int i = 0; i < kNumSequences; ++i) {
      SCOPED_TRACE(absl::StrCat("budget ", budget, ", sequence ", i));
      ExpectSame(TraceOf(sequences[i]), Alone(i));
    }
  }
}

// A sequence that finds its first blocks computed by another one.
TEST_P(EquivalenceTest, SharedPrefixBlocks) {
  const std::unique_ptr<ModelHarness> harness = MakeHarness();
  TestSequence first = Sequence(*harness, 7);
  ASSERT_TRUE(harness->Generate(first, 1 << 20, kNumGenerated).ok());
  TestSequence second = Sequence(*harness, 7);
  second.slot = 3;
  constexpr int kNumShared = 4;
  second.blocks.assign(first.blocks.begin(), first.blocks.begin() + kNumShared);
  second.num_computed_tokens = kNumShared * harness->model().shape.block_size;
  ASSERT_LT(second.num_computed_tokens, second.num_prompt_tokens);
  ASSERT_TRUE(harness->Generate(second, 1 << 20, kNumGenerated).ok());
  ExpectSame(TraceOf(second), TraceOf(first));
  ExpectSame(TraceOf(second), Alone(7));
}

// Dropped in the middle of the output, then computed again elsewhere.
TEST_P(EquivalenceTest, PreemptionByRecompute) {
  for (const int idx : {5, 7}) {
    const std::unique_ptr<ModelHarness> harness = MakeHarness();
    TestSequence sequence = Sequence(*harness, idx);
    ASSERT_TRUE(harness->Generate(sequence, 16, kNumGenerated / 2).ok());
    harness->Preempt(sequence);
    sequence.slot = 9;
    ASSERT_TRUE(harness->Generate(sequence, 24, kNumGenerated).ok());
    ExpectSame(TraceOf(sequence), Alone(idx));
  }
}

INSTANTIATE_TEST_SUITE_P(
    Families, EquivalenceTest,
    testing::Values("llama", "llama_bias", "llama_linear", "llama_llama3",
                    "llama_yarn", "llama_yarn_mscale", "mistral", "qwen2",
                    "qwen2_window", "qwen3", "gemma2", "gemma3",
                    "gemma3_nested", "granite", "olmo2", "opt", "opt_post_norm",
                    "phi3", "phi3_longrope", "smollm3", "stablelm",
                    "stablelm_parallel", "llama_Q_q8_0", "qwen2_Q_q4_0",
                    "gemma2_Q_q8_0"),
    [](const auto& info) { return std::string(info.param); });

}  // namespace
}  // namespace quire
