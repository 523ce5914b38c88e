// Decoding with and without drafts on a GPU, or on the emulation of one, in
// bf16. A row with drafts has more tokens than a decode, and so other shapes of
// products and other splits of attention: its logits differ in their last bits.
// Where two tokens are nearly as good that can decide, and only there.
//
// How far log-probabilities l may be apart: tests/model_rounding.h measures
// what the rounding points of bf16 are worth, r, as the distance of a
// computation with them from an exact one. Two runs on a GPU have the same
// rounding points and other orders of sums before them. If all of these were
// rounded anew, each run would be as far from the exact one as r,
// independently: the root of their mean squared distance would be sqrt(2) r's.
// It is that at most; and no single position is further apart than the two
// largest r (as for chunks of a prompt, cuda_equivalence_test).
//
// Greedily, if without drafts x is drawn and with them y, then
//   l(x) - l(y) <= |l(x) - l'(x)| + |l(y) - l'(y)|,
// l' being what the row with drafts found, in which y is not behind x: the gap
// is bounded by what is measured at that very position.
//
// At a temperature T the draw is that of l / T plus Gumbel noise, the same for
// both runs. If no l is further than e from l', x is drawn by both with a
// probability of at least
//   1 / sum_j max(p_j / p_x, p'_j / p'_x) >= p_x exp(-2 e / T),
// so they part at a position with at most 1 - exp(-2 e / T): summed up, e being
// what is measured there, that is how many answers part, but for chance.
#include <algorithm>
#include <cmath>
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

constexpr int kNumRequests = 12;
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

Answers Decode(const ModelHarness& harness, Drafter* drafter, float temperature,
               uint64_t first_seed, EngineStats* stats) {
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
    request.sampling.temperature = temperature;
    request.sampling.seed = first_seed + id;
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
struct Rounding {
  double largest = kF32Error;
  double root_mean_square = 0;
};

Rounding RoundingOf(const std::string& model) {
  const auto exact = MakeHarness(model, DType::kF32, MakeExactReference);
  const auto rounding =
      MakeHarness(model, DType::kBF16, [] { return MakeRoundingReference(); });
  Rounding result;
  int num_positions = 0;
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
      const double difference = LargestDifference(outputs[0][i], outputs[1][i]);
      result.largest = std::max(result.largest, difference);
      result.root_mean_square += difference * difference;
      ++num_positions;
      if (outputs[0][i].token_id != outputs[1][i].token_id) break;
    }
  }
  result.root_mean_square =
      std::sqrt(result.root_mean_square / num_positions) + kF32Error;
  return result;
}

struct Comparison {
  int num_same = 0;        // Positions before a first difference.
  int num_parted = 0;      // Answers with one.
  int num_after = 0;       // Positions behind these; they differ as they like.
  int num_other_bits = 0;  // Of log-probabilities, at the same positions.
  double largest_difference = 0;
  double root_mean_square = 0;
  double largest_gap = 0;      // Greedily: between x and y, where answers part.
  double expected_parted = 0;  // At a temperature: at most, by the differences.
  // Answers whose log-probabilities are further apart than they may be at one
  // position, or that part where, greedily, there is no near-tie.
  int num_wrong = 0;
};

// Of `outputs`, the log-probability of a token; -infinity if it is not told.
double LogprobOf(const TokenOutput& output, int32_t token_id) {
  for (const TopLogprob& top : output.top_logprobs) {
    if (top.token_id == token_id) return top.logprob;
  }
  return -INFINITY;
}

Comparison Compare(const Answers& plain, const Answers& drafted,
                   float temperature, double bound) {
  Comparison result;
  int num_compared = 0;
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
      result.root_mean_square += difference * difference;
      ++num_compared;
      if (!(difference <= bound)) {
        ++result.num_wrong;
        break;
      }
      if (temperature > 0) {
        result.expected_parted += 1 - std::exp(-2 * difference / temperature);
      }
      result.num_other_bits +=
          std::memcmp(&found[i].top_logprobs[0].logprob,
                      &expected[i].top_logprobs[0].logprob, sizeof(float)) != 0;
      const int32_t x = expected[i].token_id, y = found[i].token_id;
      if (x == y) {
        ++result.num_same;
        continue;
      }
      ++result.num_parted;
      result.num_after += static_cast<int>(expected.size() - i) - 1;
      if (temperature > 0) break;
      const double gap = LogprobOf(expected[i], x) - LogprobOf(expected[i], y);
      const double allowed =
          std::abs(LogprobOf(expected[i], x) - LogprobOf(found[i], x)) +
          std::abs(LogprobOf(expected[i], y) - LogprobOf(found[i], y));
      result.largest_gap = std::max(result.largest_gap, gap);
      // Infinities of tokens that are not told compare false.
      result.num_wrong += !(gap <= allowed + kF32Error && gap <= 2 * bound);
      break;
    }
  }
  result.root_mean_square = std::sqrt(result.root_mean_square / num_compared);
  return result;
}

struct Case {
  const char* model;
  float temperature;
};

class CudaSpeculationTest : public testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    harness_ = MakeHarness(GetParam().model, DType::kBF16, [] {
      return std::move(CudaBackend::Create({})).value();
    });
    ASSERT_NE(harness_, nullptr);
    // The same for all tests of a model.
    static auto* const measured = new std::map<std::string, Rounding>();
    const auto [found, is_new] = measured->try_emplace(GetParam().model);
    if (is_new) found->second = RoundingOf(GetParam().model);
    rounding_ = found->second;
    bound_ = 2 * rounding_.largest;
  }
  Answers DecodeWith(Drafter* drafter, uint64_t first_seed = 0) {
    return Decode(*harness_, drafter, GetParam().temperature, first_seed,
                  &stats_);
  }
  Comparison CompareWith(const Answers& plain, const Answers& drafted) const {
    return Compare(plain, drafted, GetParam().temperature, bound_);
  }
  // So many answers part by chance once in some 30,000 runs.
  static double MostParted(const Comparison& comparison) {
    return comparison.expected_parted +
           4 * std::sqrt(comparison.expected_parted) + 1;
  }

  std::unique_ptr<ModelHarness> harness_;
  Rounding rounding_;
  double bound_ = 0;
  EngineStats stats_;
};

TEST_P(CudaSpeculationTest, TokensAreThoseWithoutDraftsUpToNearTies) {
  const Answers plain = DecodeWith(nullptr);
  EXPECT_EQ(stats_.num_drafts, 0);
  MixedDrafter mixed(&plain, harness_->vocab_size());
  const Answers drafted = DecodeWith(&mixed);
  EXPECT_GT(stats_.num_accepted_tokens, 50);
  EXPECT_GT(stats_.num_draft_tokens, stats_.num_accepted_tokens + 30);

  const Comparison result = CompareWith(plain, drafted);
  std::printf(
      "%s at temperature %.1f: %d positions the same, %d answers part (at most "
      "%.1f by chance; greedily by a gap of at most %.4f), %d positions after "
      "that; %d log-probabilities with other bits, by %.4f at most (bound "
      "%.4f) "
      "and %.4f in the mean (bound %.4f)\n",
      GetParam().model, GetParam().temperature, result.num_same,
      result.num_parted, MostParted(result), result.largest_gap,
      result.num_after, result.num_other_bits, result.largest_difference,
      bound_, result.root_mean_square,
      std::sqrt(2) * rounding_.root_mean_square);
  EXPECT_EQ(result.num_wrong, 0);
  EXPECT_LE(result.root_mean_square, std::sqrt(2) * rounding_.root_mean_square);
  EXPECT_EQ(result.num_same + result.num_parted + result.num_after,
            kNumRequests * kNumGenerated);
  // Near-ties are rare.
  EXPECT_GE(result.num_same, kNumRequests * kNumGenerated * 2 / 3);
  if (GetParam().temperature > 0) {
    EXPECT_LE(result.num_parted, MostParted(result));
  }
}

// That what is compared can fail.
TEST_P(CudaSpeculationTest, OtherTokensAreNoticed) {
  const Answers plain = DecodeWith(nullptr);
  if (GetParam().temperature > 0) {
    // Drawn by other noise.
    const Comparison result = CompareWith(plain, DecodeWith(nullptr, 1000));
    EXPECT_GT(result.num_parted, MostParted(result));
    return;
  }
  // A token far behind the first one.
  Answers spoiled = plain;
  for (auto& [id, outputs] : spoiled) {
    outputs[2].token_id = outputs[2].top_logprobs[kNumRoundingTop / 2].token_id;
  }
  EXPECT_EQ(CompareWith(plain, spoiled).num_wrong, kNumRequests);
}

INSTANTIATE_TEST_SUITE_P(
    Models, CudaSpeculationTest,
    testing::Values(Case{"llama_linear", 0}, Case{"llama_linear", 0.8f},
                    Case{"gemma2", 0}, Case{"gemma2", 0.8f}, Case{"qwen3", 0},
                    Case{"qwen3", 0.8f}),
    [](const auto& info) {
      return std::string(info.param.model) +
             (info.param.temperature > 0 ? "_sampled" : "_greedy");
    });

}  // namespace
}  // namespace quire
