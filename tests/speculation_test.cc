// A real model in f32 on the CPU, with drafters of every kind and quality: each
// request is told the same tokens, with the same bits of log-probability, as
// without speculation.
#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "engine/base/random.h"
#include "engine/engine.h"
#include "engine/speculative/ngram_drafter.h"
#include "engine/speculative/speculative_config.h"
#include "engine/speculative/suffix_drafter.h"
#include "gtest/gtest.h"
#include "tests/model_harness.h"
#include "tests/random_sampling.h"

namespace quire {
namespace {

// Of every one of the models.
constexpr int kNumRequests = 520;
constexpr int kMaxNumSeqs = 8;

using Outputs = std::map<std::pair<RequestId, int>, std::vector<TokenOutput>>;

enum class Quality {
  kNgram,
  kSuffix,
  kRight,
  kWrong,
  kRandom,
  kSameModel,  // Drafts for itself.
  kOtherModel,
  kHead  // EAGLE-3 or MTP.
};

// Those with a head, on its target.
std::string DirectoryOf(const std::string& name) {
  if (name == "mimo") return "tests/testdata/draft_heads/mimo";
  return absl::StrCat("tests/testdata/goldens/",
                      name.substr(0, name.find('+')));
}

SpeculativeConfig HeadOf(const std::string& name) {
  SpeculativeConfig config;
  config.method = DraftMethod::kMtp;
  config.num_speculative_tokens = 8;
  if (name == "mimo") return config;
  config.method = DraftMethod::kEagle3;
  config.model = absl::StrCat("tests/testdata/draft_heads/",
                              name.substr(name.find('+') + 1));
  return config;
}

// Of as many or fewer tokens.
const char* OtherModelOf(absl::string_view name) {
  if (name == "llama") return "qwen2";
  return name == "gemma3" ? "mistral" : "phi3";
}

// Knows what is told without speculation.
class KnowingDrafter : public Drafter {
 public:
  KnowingDrafter(Quality quality, int vocab_size, const Outputs* answers)
      : quality_(quality), vocab_size_(vocab_size), answers_(answers) {}

  absl::string_view method() const override { return "knowing"; }
  bool is_costly() const override { return false; }
  absl::Status Propose(absl::Span<const DraftSequence> sequences,
                       absl::Span<Draft> drafts) override {
    for (size_t i = 0; i < sequences.size(); ++i) {
      const DraftSequence& sequence = sequences[i];
      const size_t num_told =
          sequence.token_ids.size() - sequence.num_prompt_tokens;
      const std::vector<TokenOutput>& answer = AnswerOf(sequence);
      for (int k = 0; k < sequence.max_num_drafts; ++k) {
        const int32_t right =
            num_told + k < answer.size() ? answer[num_told + k].token_id : 0;
        drafts[i].token_ids.push_back(
            quality_ == Quality::kRight ? right
            : quality_ == Quality::kWrong
                ? (right + 1) % vocab_size_
                : static_cast<int32_t>(random_.Below(vocab_size_)));
      }
    }
    return absl::OkStatus();
  }

 private:
  const std::vector<TokenOutput>& AnswerOf(const DraftSequence& sequence) {
    // Requests are numbered in the order in which they arrive.
    const RequestId id = 1 + (sequence.sequence_id >> 7);
    return answers_->at({id, static_cast<int>(sequence.sequence_id & 127)});
  }

  const Quality quality_;
  const int vocab_size_;
  const Outputs* const answers_;
  SimulationRandom random_{3};
};

class SpeculationTest
    : public testing::TestWithParam<std::tuple<const char*, Quality>> {
 protected:
  void SetUp() override {
    ModelHarness::Options options;
    options.max_num_seqs = kMaxNumSeqs;
    options.max_num_batched_tokens = 96;
    options.max_model_len = 96;
    const std::string name = std::get<0>(GetParam());
    if (std::get<1>(GetParam()) == Quality::kHead) {
      options.speculative = HeadOf(name);
    }
    auto model = ModelHarness::Create(DirectoryOf(name), options);
    ASSERT_TRUE(model.ok()) << model.status();
    model_ = *std::move(model);
  }

  // Prompts that repeat themselves, and every sampling parameter.
  Request MakeRequest(RequestId id) {
    SimulationRandom random(id);
    const auto one_in = [&random](int n) { return random.Below(n) == 0; };
    const int vocab_size = model_->vocab_size();
    Request request;
    request.id = id;
    const auto token = [&] {
      return static_cast<int32_t>(random.Below(vocab_size));
    };
    std::vector<int32_t> phrase;
    for (int64_t i = random.Between(1, 6); i > 0; --i)
      phrase.push_back(token());
    for (int64_t i = random.Between(1, 4); i > 0; --i) {
      request.prompt_token_ids.insert(request.prompt_token_ids.end(),
                                      phrase.begin(), phrase.end());
      if (one_in(2)) request.prompt_token_ids.push_back(token());
    }
    request.sampling = DrawSamplingParams(vocab_size, &random);
    request.sampling.seed = id;
    request.sampling.max_tokens = static_cast<int32_t>(random.Between(1, 40));
    if (one_in(5)) request.n = 2;
    return request;
  }

  // `seed` draws when requests come, and how much is drafted.
  Outputs Run(uint64_t seed, Drafter* drafter, bool adapts_drafts,
              EngineStats* stats) {
    SimulationRandom random(seed);
    const LoadedModel& loaded = model_->model();
    EngineOptions options;
    options.vocab_size = loaded.config.vocab_size;
    options.rope_switch_length = loaded.config.RopeSwitchLength();
    options.max_model_len = loaded.shape.max_model_len;
    options.max_num_seqs = kMaxNumSeqs;
    options.max_num_batched_tokens = 96;
    options.max_num_scored_tokens = loaded.max_num_scored_tokens;
    // Few enough that sequences are preempted.
    options.num_blocks = 7;
    options.eos_token_ids = {1};
    options.check_integrity = true;
    if (drafter != nullptr) {
      options.num_speculative_tokens = static_cast<int>(random.Between(1, 8));
      options.adapts_drafts = adapts_drafts;
    }
    FakeClock clock;
    auto engine = Engine::Create(options, loaded.runner.get(), &clock, drafter);
    EXPECT_TRUE(engine.ok()) << engine.status();
    std::vector<OutputEvent> events;
    RequestId next = 1;
    while (next <= kNumRequests || (*engine)->HasWork()) {
      while (next <= kNumRequests && (*engine)->scheduler().num_running() < 7 &&
             random.Below(3) > 0) {
        EXPECT_TRUE((*engine)->AddRequest(MakeRequest(next++)).ok());
      }
      clock.Advance(absl::Milliseconds(1));
      if ((*engine)->HasWork()) (*engine)->Step(&events);
    }
    Outputs outputs;
    for (OutputEvent& event : events) {
      EXPECT_TRUE(event.error.ok()) << event.error;
      auto& tokens = outputs[{event.request_id, event.choice_idx}];
      for (TokenOutput& token : event.tokens) {
        tokens.push_back(std::move(token));
      }
    }
    *stats = (*engine)->Stats();
    return outputs;
  }

  std::unique_ptr<ModelHarness> model_;
};

void ExpectSame(const Outputs& found, const Outputs& expected) {
  ASSERT_EQ(found.size(), expected.size());
  for (const auto& [key, tokens] : expected) {
    SCOPED_TRACE(absl::StrCat("request ", key.first, ", choice ", key.second));
    const std::vector<TokenOutput>& others = found.at(key);
    ASSERT_EQ(others.size(), tokens.size());
    for (size_t i = 0; i < tokens.size(); ++i) {
      ASSERT_EQ(others[i].token_id, tokens[i].token_id) << "token " << i;
      // Bits.
      EXPECT_EQ(
          std::memcmp(&others[i].logprob, &tokens[i].logprob, sizeof(float)),
          0);
      ASSERT_EQ(others[i].top_logprobs.size(), tokens[i].top_logprobs.size());
      for (size_t k = 0; k < tokens[i].top_logprobs.size(); ++k) {
        EXPECT_EQ(others[i].top_logprobs[k].token_id,
                  tokens[i].top_logprobs[k].token_id);
      }
    }
  }
}

TEST_P(SpeculationTest, TokensAreThoseWithoutDrafts) {
  EngineStats stats;
  const Outputs expected = Run(1, nullptr, false, &stats);
  EXPECT_EQ(stats.num_drafts, 0);
  const Quality quality = std::get<1>(GetParam());
  int64_t num_preemptions = 0;
  for (const bool adapts_drafts : {false, true}) {
    std::unique_ptr<Drafter> drafter;
    if (quality == Quality::kNgram) {
      drafter = std::make_unique<NgramDrafter>(1, 4);
    } else if (quality == Quality::kSuffix) {
      drafter = std::make_unique<SuffixDrafter>(SuffixOptions());
    } else if (quality == Quality::kSameModel ||
               quality == Quality::kOtherModel) {
      const char* name = std::get<0>(GetParam());
      auto made = model_->MakeDrafter(absl::StrCat(
          "tests/testdata/goldens/",
          quality == Quality::kSameModel ? name : OtherModelOf(name)));
      ASSERT_TRUE(made.ok()) << made.status();
      drafter = *std::move(made);
    } else if (quality != Quality::kHead) {
      drafter = std::make_unique<KnowingDrafter>(quality, model_->vocab_size(),
                                                 &expected);
    }
    const Outputs found =
        Run(2 + adapts_drafts,
            quality == Quality::kHead ? model_->drafter() : drafter.get(),
            adapts_drafts, &stats);
    ExpectSame(found, expected);
    // Of the others few are worth it.
    EXPECT_GT(stats.num_draft_tokens, !adapts_drafts                    ? 500
                                      : quality >= Quality::kOtherModel ? 20
                                                                        : 50);
    num_preemptions += stats.num_preemptions;
    if (quality == Quality::kRight || quality == Quality::kSameModel) {
      EXPECT_GT(stats.num_accepted_tokens, stats.num_draft_tokens * 19 / 20);
    } else if (quality == Quality::kWrong) {
      EXPECT_EQ(stats.num_accepted_tokens, 0);
    }
  }
  EXPECT_GT(num_preemptions, 4);
}

std::string NameOf(
    const testing::TestParamInfo<SpeculationTest::ParamType>& info) {
  static constexpr const char* kNames[] = {
      "ngram",  "suffix",     "right",       "wrong",
      "random", "same_model", "other_model", "head"};
  return absl::StrCat(
      absl::StrReplaceAll(std::get<0>(info.param), {{"+", "_"}}), "_",
      kNames[static_cast<int>(std::get<1>(info.param))]);
}

INSTANTIATE_TEST_SUITE_P(
    Models, SpeculationTest,
    testing::Combine(testing::Values("llama", "gemma3", "phi3_longrope"),
                     testing::Values(Quality::kNgram, Quality::kSuffix,
                                     Quality::kRight, Quality::kWrong,
                                     Quality::kRandom, Quality::kSameModel,
                                     Quality::kOtherModel)),
    NameOf);

INSTANTIATE_TEST_SUITE_P(
    Heads, SpeculationTest,
    testing::Combine(testing::Values("llama+eagle3",
                                     "llama+eagle3_own_embedding", "mimo"),
                     testing::Values(Quality::kHead)),
    NameOf);

}  // namespace
}  // namespace quire
