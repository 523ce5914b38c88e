// A real model under the real engine: what a request gets does not depend on
// what ran beside it, how prefill was cut, whether its prefix was cached, or
// whether it was preempted.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/base/random.h"
#include "engine/engine.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/golden.h"
#include "tests/model_harness.h"
#include "tests/test_device.h"

namespace quire {
namespace {

constexpr int kMaxTokens = 48;

// (request, choice) -> tokens with their log-probabilities.
using Outputs = std::map<std::pair<RequestId, int>, std::vector<TokenOutput>>;

struct RunResult {
  Outputs outputs;
  EngineStats stats;
  int64_t num_cached_tokens = 0;  // Over all requests.
};

class EngineEquivalenceTest : public testing::TestWithParam<const char*> {
 protected:
  static constexpr int kNumRequests = 7;

  // Requests 1 to 7: four share a prefix of 40 tokens, one pair is identical,
  // some sample; request 5 has three choices.
  Request MakeRequest(RequestId id, int vocab_size) {
    Request request;
    request.id = id;
    SimulationRandom shared(99);
    if (id <= 4) {
      for (int i = 0; i < 40; ++i) {
        request.prompt_token_ids.push_back(shared.Below(vocab_size));
      }
    }
    SimulationRandom own(id == 2 ? 1 : id);
    for (int i = 0; i < 11 + 9 * static_cast<int>(id == 2 ? 1 : id); ++i) {
      request.prompt_token_ids.push_back(own.Below(vocab_size));
    }
    request.sampling.max_tokens = kMaxTokens;
    request.sampling.ignore_eos = true;
    request.sampling.num_logprobs = 5;
    request.sampling.temperature = id % 2 == 0 ? 0.8f : 0.0f;
    request.sampling.top_k = id == 6 ? 20 : 0;
    request.sampling.presence_penalty = id == 4 ? 0.5f : 0.0f;
    request.sampling.seed = 1000 + id;
    if (id == 5) {
      request.n = 3;
      request.sampling.temperature = 1.0f;
      request.sampling.xtc_probability = 0.5f;
      request.sampling.xtc_threshold = 0.01f;
    }
    if (id >= 5) {
      // What looks at the tokens so far, among so few that it always matters:
      // they come anew after a preemption.
      request.sampling.dry_multiplier = 2.0f;
      request.sampling.dry_allowed_length = 1;
      std::vector<std::vector<int32_t>> bad_words;
      for (int32_t token = 0; token < 8; ++token) {
        request.sampling.allowed_token_ids.push_back(token);
        bad_words.push_back({token, (token + 1) % 8});
        bad_words.push_back({token, 7 - token, token});
      }
      request.sampling.bad_words =
          std::make_shared<const std::vector<std::vector<int32_t>>>(
              std::move(bad_words));
    }
    return request;
  }

  // Runs the requests: all at once, or each `stagger` steps after the last.
  RunResult Run(const std::vector<RequestId>& ids, EngineOptions options,
                int stagger, int64_t kv_tokens = 4096) {
    RunResult result;
    ModelHarness::Options harness_options;
    harness_options.num_threads = 2;
    harness_options.max_num_seqs = 16;
    harness_options.max_model_len = 256;
    auto model =
        ModelHarness::Create(directory_, OnTestDevice(harness_options));
    EXPECT_TRUE(model.ok()) << model.status();
    if (!model.ok()) return result;
    const LoadedModel& loaded = (*model)->model();
    options.vocab_size = loaded.config.vocab_size;
    options.rope_switch_length = loaded.config.RopeSwitchLength();
    options.max_model_len = loaded.shape.max_model_len;
    options.max_num_seqs = loaded.shape.max_num_seqs;
    options.steps_in_flight = loaded.shape.steps_in_flight;
    options.num_blocks = kv_tokens / options.block_size;
    EXPECT_LE(options.num_blocks, loaded.memory.num_blocks);
    options.check_integrity = true;
    FakeClock clock;
    auto engine = Engine::Create(options, loaded.runner.get(), &clock);
    EXPECT_TRUE(engine.ok()) << engine.status();
    if (!engine.ok()) return result;

    std::vector<OutputEvent> events;
    size_t next = 0;
    for (int step = 0; next < ids.size() || (*engine)->HasWork(); ++step) {
      while (next < ids.size() && step >= stagger * static_cast<int>(next)) {
        const absl::Status status =
            (*engine)->AddRequest(MakeRequest(ids[next++], options.vocab_size));
        EXPECT_TRUE(status.ok()) << status;
      }
      if ((*engine)->HasWork()) (*engine)->Step(&events);
    }
    for (OutputEvent& event : events) {
      EXPECT_TRUE(event.error.ok()) << event.error;
      std::vector<TokenOutput>& outputs =
          result.outputs[{event.request_id, event.choice_idx}];
      for (TokenOutput& token : event.tokens) {
        outputs.push_back(std::move(token));
      }
      if (event.is_last) result.num_cached_tokens += event.num_cached_tokens;
    }
    result.stats = (*engine)->Stats();
    return result;
  }

  // Every request alone, in one prefill, nothing cached.
  const Outputs& Expected() {
    if (expected_.empty()) {
      for (RequestId id = 1; id <= kNumRequests; ++id) {
        expected_.merge(Run({id}, PlainOptions(), 0).outputs);
      }
      // One for each choice.
      EXPECT_EQ(expected_.size(), size_t{kNumRequests + 2});
    }
    return expected_;
  }

  static EngineOptions PlainOptions() {
    EngineOptions options;
    options.max_num_batched_tokens = 256;
    options.enable_prefix_caching = false;
    return options;
  }

  // On a GPU: each token is as likely as the other run says, until one of them
  // drew another. A greedy request may do so between two that are nearly as
  // likely. Where the draw of another request lies near a boundary is not
  // known: they are counted.
  void ExpectNear(const Outputs& found) {
    const auto allowed =
        AllowedLogprobError(directory_, ReadJson(directory_ + "/golden.json"));
    ASSERT_TRUE(allowed.ok()) << allowed.status();
    const Outputs& expected = Expected();
    ASSERT_EQ(found.size(), expected.size());
    int num_compared = 0;
    for (const auto& [key, tokens] : expected) {
      SCOPED_TRACE(
          absl::StrCat("request ", key.first, ", choice ", key.second));
      const auto it = found.find(key);
      ASSERT_NE(it, found.end());
      ASSERT_EQ(tokens.size(), size_t{kMaxTokens});
      ASSERT_EQ(it->second.size(), tokens.size());
      const bool is_greedy = key.first == 1 || key.first == 3;
      for (size_t i = 0; i < tokens.size(); ++i, ++num_compared) {
        const TokenOutput& a = tokens[i];
        const TokenOutput& b = it->second[i];
        if (b.token_id != a.token_id) {
          // a's token leads in its run, b's in the other.
          if (is_greedy) {
            EXPECT_LE(std::abs(double{a.logprob} - b.logprob), *allowed);
            EXPECT_LE(LogprobOf(a, a.token_id) - LogprobOf(a, b.token_id),
                      2 * *allowed);
          }
          break;
        }
        EXPECT_LE(std::abs(double{b.logprob} - a.logprob), *allowed);
      }
    }
    // The density of the gap between the first two scores of a draw (with
    // Gumbel noise) is at most 1, so that a token changes with a probability of
    // at most `allowed` over the temperature: some of ten. With another key or
    // position most change at once.
    EXPECT_GE(num_compared, 5 * static_cast<int>(expected.size()));
    std::printf("%d of %d tokens before another draw\n", num_compared,
                static_cast<int>(expected.size()) * kMaxTokens);
  }

  // -infinity if it is not reported.
  static double LogprobOf(const TokenOutput& output, int32_t token_id) {
    for (const TopLogprob& top : output.top_logprobs) {
      if (top.token_id == token_id) return top.logprob;
    }
    return -INFINITY;
  }

  void ExpectSame(const Outputs& found) {
    if (TestsRunOnCuda()) return ExpectNear(found);
    const Outputs& expected = Expected();
    ASSERT_EQ(found.size(), expected.size());
    for (const auto& [key, tokens] : expected) {
      SCOPED_TRACE(
          absl::StrCat("request ", key.first, ", choice ", key.second));
      const auto it = found.find(key);
      ASSERT_NE(it, found.end());
      ASSERT_EQ(tokens.size(), size_t{kMaxTokens});
      ASSERT_EQ(it->second.size(), tokens.size());
      for (size_t i = 0; i < tokens.size(); ++i) {
        const TokenOutput& a = tokens[i];
        const TokenOutput& b = it->second[i];
        ASSERT_EQ(b.token_id, a.token_id) << "token " << i;
        // Bits: == would let -0 pass for 0.
        EXPECT_EQ(std::memcmp(&b.logprob, &a.logprob, sizeof(float)), 0);
        ASSERT_EQ(b.top_logprobs.size(), 5u);
        for (size_t k = 0; k < 5; ++k) {
          EXPECT_EQ(b.top_logprobs[k].token_id, a.top_logprobs[k].token_id);
          EXPECT_EQ(std::memcmp(&b.top_logprobs[k].logprob,
                                &a.top_logprobs[k].logprob, sizeof(float)),
                    0);
        }
      }
    }
  }

  std::vector<RequestId> All() const { return {1, 2, 3, 4, 5, 6, 7}; }

  std::string directory_ = absl::StrCat("tests/testdata/goldens/", GetParam());
  Outputs expected_;
};

TEST_P(EngineEquivalenceTest, BatchesAndChunks) {
  for (const int budget : {1 << 8, 48, 17}) {
    SCOPED_TRACE(budget);
    EngineOptions options = PlainOptions();
    options.max_num_batched_tokens = budget;
    ExpectSame(Run(All(), options, /*stagger=*/0).outputs);
    ExpectSame(Run(All(), options, /*stagger=*/3).outputs);
  }
}

TEST_P(EngineEquivalenceTest, PrefixCacheHits) {
  EngineOptions options = PlainOptions();
  options.enable_prefix_caching = true;
  // One after the other, so that each finds what the ones before left.
  const RunResult result = Run(All(), options, /*stagger=*/30);
  EXPECT_GE(result.num_cached_tokens, 3 * 32);
  EXPECT_GE(result.stats.prefix_cache_hits, 3 * 32);
  ExpectSame(result.outputs);
}

TEST_P(EngineEquivalenceTest, Preemption) {
  for (const bool enable_prefix_caching : {false, true}) {
    EngineOptions options = PlainOptions();
    options.enable_prefix_caching = enable_prefix_caching;
    options.max_num_batched_tokens = 64;
    // Room for about a third of what runs together.
    const RunResult result =
        Run(All(), options, /*stagger=*/1, /*kv_tokens=*/272);
    EXPECT_GT(result.stats.num_preemptions, 0);
    ExpectSame(result.outputs);
  }
}

INSTANTIATE_TEST_SUITE_P(Families, EngineEquivalenceTest,
                         testing::Values("llama", "mistral", "qwen3", "gemma3",
                                         "phi3_longrope"),
                         [](const auto& info) {
                           return std::string(info.param);
                         });

// Sequences that cross the switch of LongRoPE in the middle of their output
// continue as transformers' generate does: computed again with the other
// factors.
TEST(EngineLongRopeTest, GreedyContinuationsAcrossTheSwitch) {
  constexpr char kDirectory[] = "tests/testdata/goldens/phi3_longrope";
  std::ifstream file(absl::StrCat(kDirectory, "/golden.json"));
  const nlohmann::json golden = nlohmann::json::parse(file);
  ModelHarness::Options harness_options;
  harness_options.max_num_seqs = 4;
  auto model = ModelHarness::Create(kDirectory, harness_options);
  ASSERT_TRUE(model.ok()) << model.status();
  const LoadedModel& loaded = (*model)->model();
  EngineOptions options;
  options.vocab_size = loaded.config.vocab_size;
  options.rope_switch_length = loaded.config.RopeSwitchLength();
  ASSERT_EQ(options.rope_switch_length, 64);
  options.max_model_len = loaded.shape.max_model_len;
  options.max_num_seqs = loaded.shape.max_num_seqs;
  options.num_blocks = loaded.memory.num_blocks;
  options.check_integrity = true;
  FakeClock clock;
  auto engine = Engine::Create(options, loaded.runner.get(), &clock);
  ASSERT_TRUE(engine.ok()) << engine.status();
  RequestId id = 0;
  for (const nlohmann::json& golden_case : golden["cases"]) {
    Request request;
    request.id = id++;
    request.prompt_token_ids =
        golden_case["prompt"].get<std::vector<int32_t>>();
    request.sampling.max_tokens = 64;
    request.sampling.ignore_eos = true;
    request.sampling.temperature = 0.0f;
    ASSERT_TRUE((*engine)->AddRequest(std::move(request)).ok());
  }
  std::vector<OutputEvent> events;
  while ((*engine)->HasWork()) (*engine)->Step(&events);
  std::map<RequestId, std::vector<int32_t>> found;
  for (const OutputEvent& event : events) {
    ASSERT_TRUE(event.error.ok()) << event.error;
    for (const TokenOutput& token : event.tokens) {
      found[event.request_id].push_back(token.token_id);
    }
  }
  // The prompts of 5 and 33 tokens cross it, the one of 91 begins beyond.
  EXPECT_EQ((*engine)->Stats().num_preemptions, 2);
  for (size_t i = 0; i < golden["cases"].size(); ++i) {
    EXPECT_EQ(found[i],
              golden["cases"][i]["greedy"].get<std::vector<int32_t>>());
  }
}

}  // namespace
}  // namespace quire
