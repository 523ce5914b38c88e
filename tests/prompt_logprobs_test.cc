// The scores of prompt tokens that a request gets from a real model under the
// real engine: equal to transformers' (tools/goldens), and the same however the
// prompt is cut and whatever runs beside it; bit by bit on the CPU, as near as
// 16 bits allow on a GPU (tests/test_device.h).
#include <cmath>
#include <cstring>
#include <fstream>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/base/clock.h"
#include "engine/engine.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/model_harness.h"
#include "tests/test_device.h"

namespace quire {
namespace {

using nlohmann::json;

constexpr int kNumTop = 5;

struct Conditions {
  int max_num_batched_tokens = 256;
  int max_num_scored_tokens = 200;
  bool enable_prefix_caching = false;
  bool together = false;  // All prompts at once, beside others that decode.
  int kv_tokens = 4096;
};

struct Scores {
  std::vector<std::vector<TokenOutput>> prompts;
  EngineStats stats;
};

class PromptLogprobsTest : public testing::TestWithParam<const char*> {
 protected:
  PromptLogprobsTest() {
    std::ifstream file(directory_ + "/golden.json");
    golden_ = json::parse(file);
  }

  Scores Run(const Conditions& conditions) {
    Scores scores;
    ModelHarness::Options harness_options;
    harness_options.num_threads = 2;
    harness_options.max_num_seqs = 16;
    harness_options.max_model_len = 192;
    const auto harness =
        ModelHarness::Create(directory_, OnTestDevice(harness_options));
    EXPECT_TRUE(harness.ok()) << harness.status();
    if (!harness.ok()) return scores;
    const LoadedModel& loaded = (*harness)->model();
    EngineOptions options;
    options.vocab_size = loaded.config.vocab_size;
    options.max_model_len = loaded.shape.max_model_len;
    options.max_num_seqs = loaded.shape.max_num_seqs;
    options.steps_in_flight = loaded.shape.steps_in_flight;
    options.num_blocks = conditions.kv_tokens / options.block_size;
    options.max_num_batched_tokens = conditions.max_num_batched_tokens;
    options.max_num_scored_tokens = conditions.max_num_scored_tokens;
    EXPECT_LE(options.max_num_scored_tokens, loaded.max_num_scored_tokens);
    options.enable_prefix_caching = conditions.enable_prefix_caching;
    options.check_integrity = true;
    FakeClock clock;
    const auto engine = Engine::Create(options, loaded.runner.get(), &clock);
    EXPECT_TRUE(engine.ok()) << engine.status();
    if (!engine.ok()) return scores;

    std::map<RequestId, std::vector<TokenOutput>> found;
    std::vector<OutputEvent> events;
    const auto run = [&] {
      while ((*engine)->HasWork()) (*engine)->Step(&events);
    };
    // Twice: the second time, the first one's blocks are cached.
    const RequestId num_cases = golden_["cases"].size();
    for (RequestId id = 0; id < 2 * num_cases; ++id) {
      Request request;
      request.id = id + 1;
      request.prompt_token_ids =
          golden_["cases"][id % num_cases]["prompt"].get<std::vector<int>>();
      request.sampling.temperature = 0.0f;
      request.sampling.ignore_eos = true;
      request.sampling.max_tokens = 4;
      request.sampling.num_prompt_logprobs = kNumTop;
      request.n = id % 2 == 0 ? 1 : 3;
      const absl::Status status = (*engine)->AddRequest(request);
      EXPECT_TRUE(status.ok()) << status;
      // One of the same prompt that is not scored.
      request.id += 1000;
      request.sampling.num_prompt_logprobs = -1;
      request.sampling.max_tokens = 80;
      if (conditions.together) {
        EXPECT_TRUE((*engine)->AddRequest(request).ok());
      } else {
        run();
      }
    }
    run();
    for (const OutputEvent& event : events) {
      EXPECT_TRUE(event.error.ok()) << event.error;
      std::vector<TokenOutput>& tokens = found[event.request_id];
      tokens.insert(tokens.end(), event.prompt_tokens.begin(),
                    event.prompt_tokens.end());
    }
    for (RequestId id = 0; id < 2 * num_cases; ++id) {
      EXPECT_EQ(found[id + 1001].size(), 0u);
      scores.prompts.push_back(found[id + 1]);
    }
    scores.stats = (*engine)->Stats();
    return scores;
  }

  double Allowed() {
    const auto allowed = AllowedLogprobError(directory_, golden_);
    EXPECT_TRUE(allowed.ok()) << allowed.status();
    return allowed.ok() ? *allowed : 0.0;
  }

  std::string directory_ = absl::StrCat("tests/testdata/goldens/", GetParam());
  json golden_;
};

TEST_P(PromptLogprobsTest, EqualTransformers) {
  const Scores scores = Run({});
  const double allowed = Allowed();
  // Two that are compared may both be off.
  const double tie = TestsRunOnCuda() ? 2 * allowed : 0.0;
  int num_checked = 0;
  size_t case_idx = 0;
  for (const json& golden_case : golden_["cases"]) {
    const std::vector<int32_t> prompt = golden_case["prompt"];
    const std::vector<TokenOutput>& scored = scores.prompts[case_idx++];
    ASSERT_EQ(scored.size() + 1, prompt.size());
    for (const json& entry : golden_case["logprobs"]) {
      const size_t position = entry["position"];
      if (position + 1 == prompt.size()) continue;
      const std::vector<float> values = entry["values"];
      const TokenOutput& token = scored[position];
      ASSERT_EQ(token.token_id, prompt[position + 1]);
      EXPECT_LE(std::abs(token.logprob - values[token.token_id]), allowed);
      int num_larger = 0, num_larger_or_tied = 0;
      for (size_t id = 0; id < values.size(); ++id) {
        const double lead = double{values[id]} - values[token.token_id];
        num_larger += lead > tie;
        num_larger_or_tied +=
            lead > -tie && static_cast<int32_t>(id) != token.token_id;
      }
      EXPECT_GE(token.rank, num_larger + 1);
      EXPECT_LE(token.rank, num_larger_or_tied + 1);
      ASSERT_EQ(token.top_logprobs.size(), size_t{kNumTop});
      for (int i = 0; i < kNumTop; ++i) {
        const TopLogprob& top = token.top_logprobs[i];
        EXPECT_LE(std::abs(top.logprob - values[top.token_id]), allowed);
        if (i == 0) continue;
        EXPECT_GE(token.top_logprobs[i - 1].logprob, top.logprob);
      }
      EXPECT_LE(std::abs(token.top_logprobs[0].logprob -
                         *std::max_element(values.begin(), values.end())),
                allowed);
      ++num_checked;
    }
  }
  EXPECT_GE(num_checked, 2);
}

// Whether the scores are the same bits; on a GPU, near: each is at most a
// rounding from the reference.
void ExpectSame(const TokenOutput& a, const TokenOutput& b, double allowed) {
  ASSERT_EQ(a.token_id, b.token_id);
  ASSERT_EQ(a.top_logprobs.size(), b.top_logprobs.size());
  if (TestsRunOnCuda()) {
    EXPECT_LE(std::abs(double{a.logprob} - b.logprob), allowed);
    for (const TopLogprob& top : a.top_logprobs) {
      for (const TopLogprob& other : b.top_logprobs) {
        if (other.token_id != top.token_id) continue;
        EXPECT_LE(std::abs(double{top.logprob} - other.logprob), allowed);
      }
    }
    return;
  }
  ASSERT_EQ(a.rank, b.rank);
  ASSERT_EQ(std::memcmp(&a.logprob, &b.logprob, sizeof(float)), 0);
  for (size_t k = 0; k < a.top_logprobs.size(); ++k) {
    ASSERT_EQ(a.top_logprobs[k].token_id, b.top_logprobs[k].token_id);
    ASSERT_EQ(std::memcmp(&a.top_logprobs[k].logprob,
                          &b.top_logprobs[k].logprob, sizeof(float)),
              0);
  }
}

TEST_P(PromptLogprobsTest, SameInAnyCompany) {
  const Scores expected = Run({});
  const double allowed = Allowed();
  Conditions conditions[5];
  conditions[0].max_num_scored_tokens = 1;
  conditions[1].max_num_batched_tokens = 17;
  conditions[2].together = true;
  conditions[2].max_num_scored_tokens = 7;
  conditions[3].together = true;
  conditions[3].enable_prefix_caching = true;
  conditions[3].max_num_batched_tokens = 48;
  conditions[4].together = true;
  conditions[4].enable_prefix_caching = true;
  conditions[4].max_num_scored_tokens = 31;
  conditions[4].kv_tokens = 224;
  for (size_t i = 0; i < std::size(conditions); ++i) {
    SCOPED_TRACE(i);
    const Scores found = Run(conditions[i]);
    ASSERT_EQ(found.prompts.size(), expected.prompts.size());
    for (size_t p = 0; p < found.prompts.size(); ++p) {
      ASSERT_EQ(found.prompts[p].size(), expected.prompts[p].size());
      for (size_t t = 0; t < found.prompts[p].size(); ++t) {
        SCOPED_TRACE(absl::StrCat("prompt ", p, ", token ", t));
        ASSERT_NO_FATAL_FAILURE(
            ExpectSame(found.prompts[p][t], expected.prompts[p][t], allowed));
      }
    }
    if (i == 4) {
      EXPECT_GT(found.stats.num_preemptions, 0);
    }
    if (conditions[i].enable_prefix_caching) {
      // What is not scored finds the blocks of what was.
      EXPECT_GT(found.stats.prefix_cache_hits, 0);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Families, PromptLogprobsTest,
                         testing::Values("llama", "llama_bias", "llama_linear",
                                         "llama_llama3", "llama_yarn",
                                         "llama_yarn_mscale", "mistral",
                                         "qwen2", "qwen2_window", "qwen3"),
                         [](const auto& info) {
                           return std::string(info.param);
                         });

}  // namespace
}  // namespace quire
