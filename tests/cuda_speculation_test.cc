// Greedy decoding with and without drafts on a GPU, or on the emulation of one,
// in bf16. A row with drafts has more tokens than a decode, and so other shapes
// of products and other splits of attention: its logits differ in their last
// bits. Where two tokens are nearly as good that can decide, and only there.
//
// tests/model_rounding.h says how far a log-probability may be from that of the
// same computation with other orders of sums: D, here between two runs on the
// GPU twice what the rounding points are worth (as for chunks of a prompt,
// cuda_equivalence_test). If without drafts x is drawn, and with them y,
//   l(x) - l(y) <= (l'(x) + D) - (l'(y) - D) <= 2 D,
// l' being what the row with drafts found, where y is not behind x.
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/base/clock.h"
#include "engine/base/random.h"
#include "engine/engine.h"
#include "engine/speculative/drafter.h"
#include "gtest/gtest.h"
#include "kernels/cuda/cuda_backend.h"
#include "tests/model_harness.h"
#include "tests/model_rounding.h"

namespace quire {
namespace {

constexpr int kNumRequests = 7;
constexpr int kNumGenerated = 18;
constexpr int kMaxNumSeqs = 4;
constexpr int kNumDrafts = 4;

using Answers = std::map<RequestId, std::vector<TokenOutput>>;

std::vector<int32_t> PromptOf(RequestId id, int vocab_size) {
  SimulationRandom random(id);
  std::vector<int32_t> prompt(random.Between(3, 40));
  for (int32_t& token : prompt) {
    token = static_cast<int32_t>(random.Below(vocab_size));
  }
  return prompt;
}

std::unique_ptr<ModelHarness> MakeHarness(
    const std::string& model, DType kv_dtype,
    const std::function<std::unique_ptr<Backend>()>& make_backend) {
  ModelHarness::Options options;
  options.dtype = DType::kBF16;
  options.kv_cache_dtype = kv_dtype;
  options.kv_cache_memory_bytes = 64 << 20;
  options.max_num_seqs = kMaxNumSeqs;
  options.max_num_batched_tokens = 64;
  options.max_model_len = 96;
  // The runner reserves rows of logits for them.
  options.speculative.method = DraftMethod::kNgram;
  options.speculative.num_speculative_tokens = kNumDrafts;
  options.make_backend = make_backend;
  auto harness = ModelHarness::Create(
      absl::StrCat("tests/testdata/goldens/", model), options);
  EXPECT_TRUE(harness.ok()) << harness.status();
  return harness.ok() ? *std::move(harness) : nullptr;
}

// Three of four drafts are what was drawn without drafts, as far as that is of
// use: after a near-tie it is any token.
class MixedDrafter : public Drafter {
 public:
  MixedDrafter(const Answers* plain, int vocab_size)
      : plain_(plain), vocab_size_(vocab_size) {}
  absl::string_view method() const override { return "mixed"; }
  bool is_costly() const override { return false; }
  absl::Status Propose(absl::Span<const DraftSequence> sequences,
                       absl::Span<Draft> drafts) override {
    for (size_t i = 0; i < sequences.size(); ++i) {
      const DraftSequence& sequence = sequences[i];
      const std::vector<TokenOutput>& answer = plain_->at(sequence.request_id);
      const size_t num_told =
          sequence.token_ids.size() - sequence.num_prompt_tokens;
      for (int k = 0; k < sequence.max_num_drafts; ++k) {
        const int32_t right =
            num_told + k < answer.size() ? answer[num_told + k].token_id : 0;
        drafts[i].token_ids.push_back(
            random_.Below(4) > 0
                ? right
                : static_cast<int32_t>(random_.Below(vocab_size_)));
      }
    }
    return absl::OkStatus();
  }

 private:
  const Answers* const plain_;
  const int vocab_size_;
  SimulationRandom random_{7};
};

Answers Decode(const ModelHarness& harness, Drafter* drafter,
               EngineStats* stats) {
  EngineOptions options = harness.MakeEngineOptions(
      /*num_blocks=*/64, drafter == nullptr ? 0 : kNumDrafts);
  options.max_num_seqs = kMaxNumSeqs;
  FakeClock clock;
  auto engine =
      Engine::Create(options, harness.model().runner.get(), &clock, drafter);
  EXPECT_TRUE(engine.ok()) << engine.status();
  for (RequestId id = 1; id <= kNumRequests; ++id) {
    Request request;
    request.id = id;
    request.prompt_token_ids = PromptOf(id, harness.vocab_size());
    request.sampling.temperature = 0;
    request.sampling.ignore_eos = true;
    request.sampling.max_tokens = kNumGenerated;
    request.sampling.num_logprobs = kNumRoundingTop;
    EXPECT_TRUE((*engine)->AddRequest(std::move(request)).ok());
  }
  std::vector<OutputEvent> events;
  while ((*engine)->HasWork()) {
    clock.Advance(absl::Milliseconds(1));
    (*engine)->Step(&events);
  }
  Answers answers;
  for (OutputEvent& event : events) {
    EXPECT_TRUE(event.error.ok()) << event.error;
    for (TokenOutput& token : event.tokens) {
      answers[event.request_id].push_back(std::move(token));
    }
  }
  *stats = (*engine)->Stats();
  return answers;
}

// What the rounding points of bf16 are worth in this model, on the same
// prompts: as tests/cuda_model_test.
double RoundingOf(const std::string& model) {
  const auto exact = MakeHarness(model, DType::kF32, MakeExactReference);
  const auto rounding =
      MakeHarness(model, DType::kBF16, [] { return MakeRoundingReference(); });
  double largest = kF32Error;
  for (RequestId id = 1; id <= kNumRequests; ++id) {
    std::vector<TokenOutput> outputs[2];
    for (const bool is_exact : {false, true}) {
      ModelHarness& harness = is_exact ? *exact : *rounding;
      TestSequence sequence = harness.MakeSequence(
          0, PromptOf(id, harness.vocab_size()), kNumRoundingTop);
      EXPECT_TRUE(harness.Generate(sequence, 64, 4).ok());
      harness.Preempt(sequence);  // The slot is the next one's.
      outputs[is_exact] = std::move(sequence.outputs);
    }
    for (size_t i = 0; i < outputs[0].size(); ++i) {
      largest =
          std::max(largest, LargestDifference(outputs[0][i], outputs[1][i]));
      if (outputs[0][i].token_id != outputs[1][i].token_id) break;
    }
  }
  return largest;
}

struct Comparison {
  int num_same = 0;        // Positions before a first difference.
  int num_parted = 0;      // Answers with one, at a near-tie.
  int num_after = 0;       // Positions behind these; they differ as they like.
  int num_other_bits = 0;  // Of log-probabilities, at the same positions.
  double largest_difference = 0;
  double largest_gap = 0;  // Between x and y, where answers part.
  // Answers that part where there is no near-tie, or whose log-probabilities
  // are further apart than 2 * rounding.
  int num_wrong = 0;
};

Comparison Compare(const Answers& plain, const Answers& drafted,
                   double rounding) {
  const double bound = 2 * rounding;
  Comparison result;
  for (const auto& [id, expected] : plain) {
    const std::vector<TokenOutput>& found = drafted.at(id);
    if (found.size() != expected.size()) {
      ++result.num_wrong;
      continue;
    }
    for (size_t i = 0; i < expected.size(); ++i) {
      const double difference = LargestDifference(found[i], expected[i]);
      result.largest_difference =
          std::max(result.largest_difference, difference);
      if (!(difference <= bound)) {
        ++result.num_wrong;
        break;
      }
      result.num_other_bits +=
          std::memcmp(&found[i].top_logprobs[0].logprob,
                      &expected[i].top_logprobs[0].logprob, sizeof(float)) != 0;
      if (found[i].token_id == expected[i].token_id) {
        ++result.num_same;
        continue;
      }
      ++result.num_parted;
      result.num_after += static_cast<int>(expected.size() - i) - 1;
      double gap = INFINITY;
      for (const TopLogprob& top : expected[i].top_logprobs) {
        if (top.token_id != found[i].token_id) continue;
        gap = expected[i].top_logprobs[0].logprob - top.logprob;
      }
      result.largest_gap = std::max(result.largest_gap, gap);
      result.num_wrong += !(gap <= 2 * bound);
      break;
    }
  }
  return result;
}

class CudaSpeculationTest : public testing::TestWithParam<const char*> {};

TEST_P(CudaSpeculationTest, GreedyTokensAreThoseWithoutDraftsUpToNearTies) {
  const auto harness = MakeHarness(GetParam(), DType::kBF16, [] {
    return std::move(CudaBackend::Create({})).value();
  });
  ASSERT_NE(harness, nullptr);
  EngineStats stats;
  const Answers plain = Decode(*harness, nullptr, &stats);
  EXPECT_EQ(stats.num_drafts, 0);
  MixedDrafter mixed(&plain, harness->vocab_size());
  const Answers drafted = Decode(*harness, &mixed, &stats);
  EXPECT_GT(stats.num_accepted_tokens, 30);
  EXPECT_GT(stats.num_draft_tokens, stats.num_accepted_tokens + 20);

  const double rounding = RoundingOf(GetParam());
  const Comparison result = Compare(plain, drafted, rounding);
  std::printf(
      "%s: %d positions the same, %d answers part at near-ties (gap at most "
      "%.4f, bound %.4f), %d positions after that; %d log-probabilities with "
      "other bits, by at most %.4f (bound %.4f)\n",
      GetParam(), result.num_same, result.num_parted, result.largest_gap,
      4 * rounding, result.num_after, result.num_other_bits,
      result.largest_difference, 2 * rounding);
  EXPECT_EQ(result.num_wrong, 0);
  EXPECT_EQ(result.num_same + result.num_parted + result.num_after,
            kNumRequests * kNumGenerated);
  // Near-ties are rare.
  EXPECT_GE(result.num_same, kNumRequests * kNumGenerated / 2);

  // And what is compared can fail: another token, far behind the first one.
  Answers spoiled = plain;
  int num_spoiled = 0;
  for (auto& [id, outputs] : spoiled) {
    const auto& top = outputs[2].top_logprobs;
    if (top[0].logprob - top[kNumRoundingTop / 2].logprob <= 4 * rounding) {
      continue;
    }
    outputs[2].token_id = top[kNumRoundingTop / 2].token_id;
    ++num_spoiled;
  }
  EXPECT_GT(num_spoiled, 0);
  EXPECT_EQ(Compare(plain, spoiled, rounding).num_wrong, num_spoiled);
}

INSTANTIATE_TEST_SUITE_P(Models, CudaSpeculationTest,
                         testing::Values("llama_linear", "gemma2", "qwen3"),
                         [](const auto& info) {
                           return std::string(info.param);
                         });

}  // namespace
}  // namespace quire
