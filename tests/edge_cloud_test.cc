// An edge and a cloud with real models in f32, over loopback: each request is
// told the same tokens, scores and ends, with the same bits, as by the cloud
// alone, whatever the draft model proposes and whatever the link's delay.
#include "tests/edge_cloud.h"

#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/base/clock.h"
#include "engine/base/random.h"
#include "engine/speculative/link/edge_engine.h"
#include "gtest/gtest.h"
#include "server/http/test_client.h"
#include "tests/model_harness.h"
#include "tests/random_sampling.h"

namespace quire {
namespace {

constexpr int kNumRequests = 120;
constexpr int kMaxNumSeqs = 8;

struct Pair {
  const char* target;
  const char* draft;
  int delay_millis;
};

class EdgeCloudTest : public testing::TestWithParam<Pair> {
 protected:
  static std::unique_ptr<ModelHarness> Load(const char* name) {
    ModelHarness::Options options;
    options.max_num_seqs = kMaxNumSeqs;
    options.max_num_batched_tokens = 96;
    options.max_model_len = 96;
    auto model = ModelHarness::Create(
        absl::StrCat("tests/testdata/goldens/", name), options);
    EXPECT_TRUE(model.ok()) << model.status();
    return *std::move(model);
  }

  static EngineOptions MakeOptions(const ModelHarness& model,
                                   int num_speculative_tokens) {
    const LoadedModel& loaded = model.model();
    EngineOptions options;
    options.vocab_size = loaded.config.vocab_size;
    options.rope_switch_length = loaded.config.RopeSwitchLength();
    options.max_model_len = loaded.shape.max_model_len;
    options.max_num_seqs = kMaxNumSeqs;
    options.max_num_batched_tokens = 96;
    options.max_num_scored_tokens = loaded.max_num_scored_tokens;
    options.num_blocks = 24;  // Few enough that sequences are preempted.
    options.eos_token_ids = {1};
    options.check_integrity = true;
    options.num_speculative_tokens = num_speculative_tokens;
    options.adapts_drafts = false;
    options.max_num_queued_reqs = kNumRequests;
    return options;
  }

  static Request MakeRequest(RequestId id, int vocab_size) {
    SimulationRandom random(id);
    Request request;
    request.id = id;
    for (int64_t i = random.Between(1, 40); i > 0; --i) {
      request.prompt_token_ids.push_back(
          static_cast<int32_t>(random.Below(vocab_size)));
    }
    request.sampling = DrawSamplingParams(vocab_size, &random);
    request.sampling.seed = id * 77;
    request.sampling.max_tokens = static_cast<int32_t>(random.Between(1, 50));
    if (random.Below(4) == 0) request.n = 3;
    return request;
  }

  // Without an edge and without drafts.
  static std::map<RequestId, TestAnswer> Alone(ModelHarness& model) {
    TestSink sink;
    auto engine =
        EngineLoop::Create(MakeOptions(model, 0), model.model().runner.get(),
                           Clock::Monotonic(), &sink);
    EXPECT_TRUE(engine.ok()) << engine.status();
    for (RequestId id = 1; id <= kNumRequests; ++id) {
      EXPECT_TRUE((*engine)->Submit(MakeRequest(id, model.vocab_size())).ok());
    }
    for (RequestId id = 1; id <= kNumRequests; ++id) sink.Wait(id);
    return sink.answers();
  }
};

bool HasSameBits(const TokenOutput& a, const TokenOutput& b) {
  if (a.token_id != b.token_id || a.rank != b.rank ||
      std::memcmp(&a.logprob, &b.logprob, sizeof(float)) != 0 ||
      a.top_logprobs.size() != b.top_logprobs.size()) {
    return false;
  }
  for (size_t i = 0; i < a.top_logprobs.size(); ++i) {
    if (a.top_logprobs[i].token_id != b.top_logprobs[i].token_id ||
        std::memcmp(&a.top_logprobs[i].logprob, &b.top_logprobs[i].logprob,
                    sizeof(float)) != 0) {
      return false;
    }
  }
  return true;
}

void ExpectSameTokens(const std::vector<TokenOutput>& found,
                      const std::vector<TokenOutput>& expected) {
  ASSERT_EQ(found.size(), expected.size());
  for (size_t i = 0; i < expected.size(); ++i) {
    ASSERT_TRUE(HasSameBits(found[i], expected[i])) << "token " << i;
  }
}

TEST_P(EdgeCloudTest, TokensAreThoseOfTheCloudAlone) {
  const std::unique_ptr<ModelHarness> target = Load(GetParam().target);
  const std::map<RequestId, TestAnswer> expected = Alone(*target);

  TestCloud::Options cloud_options;
  cloud_options.engine = MakeOptions(*target, 4);
  cloud_options.runner = target->model().runner.get();
  cloud_options.peer = TestPeer(cloud_options.engine, "target");
  TestCloud cloud(cloud_options);
  LinkProxy proxy(cloud.port(), absl::Milliseconds(GetParam().delay_millis));

  const std::unique_ptr<ModelHarness> draft = Load(GetParam().draft);
  EngineOptions draft_options = MakeOptions(*draft, 0);
  draft_options.num_blocks = 64;
  EdgeEngineOptions edge_options;
  edge_options.link.url = {false, "127.0.0.1", proxy.port()};
  edge_options.link.peer = cloud_options.peer;
  TestSink sink;
  auto edge = EdgeEngine::Create(edge_options, draft_options,
                                 draft->model().runner.get(),
                                 Clock::Monotonic(), &sink);
  ASSERT_TRUE(edge.ok()) << edge.status();
  const absl::Status up = (*edge)->WaitForCloud(absl::Seconds(60));
  ASSERT_TRUE(up.ok()) << up;
  for (RequestId id = 1; id <= kNumRequests; ++id) {
    const absl::Status status =
        (*edge)->Submit(MakeRequest(id, target->vocab_size()));
    ASSERT_TRUE(status.ok()) << status;
  }
  int64_t num_accepted = 0;
  for (RequestId id = 1; id <= kNumRequests; ++id) {
    SCOPED_TRACE(absl::StrCat("request ", id));
    const TestAnswer found = sink.Wait(id);
    const TestAnswer& answer = expected.at(id);
    EXPECT_EQ(found.num_ends, 1);
    EXPECT_EQ(found.num_events_after_end, 0);
    ASSERT_EQ(found.choices.size(), answer.choices.size());
    for (size_t i = 0; i < answer.choices.size(); ++i) {
      SCOPED_TRACE(absl::StrCat("choice ", i));
      ExpectSameTokens(found.choices[i].tokens, answer.choices[i].tokens);
      EXPECT_EQ(found.choices[i].finish_reason,
                answer.choices[i].finish_reason);
      EXPECT_EQ(found.choices[i].stop_token_id,
                answer.choices[i].stop_token_id);
      EXPECT_EQ(found.choices[i].num_from_draft_model, 0);
    }
    ExpectSameTokens(found.prompt_tokens, answer.prompt_tokens);
    num_accepted += found.num_accepted_tokens;
  }
  EXPECT_TRUE(cloud.BecomesIdle());
  const EngineStats stats = cloud.engine().Stats();
  EXPECT_EQ(stats.num_accepted_tokens, num_accepted);
  EXPECT_EQ((*edge)->Stats().num_accepted_tokens, num_accepted);
  EXPECT_EQ(stats.num_drafter_failures, 0);
  EXPECT_GT((*edge)->LinkStats().num_draft_tokens_sent, 0);
  // A model that is the target drafts what it draws, sampled or not.
  if (std::string(GetParam().target) == GetParam().draft &&
      GetParam().delay_millis == 0) {
    EXPECT_GT(num_accepted, 0);
  }
}

INSTANTIATE_TEST_SUITE_P(
    Pairs, EdgeCloudTest,
    testing::Values(Pair{"llama", "llama", 0}, Pair{"llama", "llama", 3},
                    Pair{"llama", "gemma3", 0}, Pair{"qwen3", "qwen3", 1}),
    [](const testing::TestParamInfo<Pair>& info) {
      return absl::StrCat(info.param.target, "_", info.param.draft, "_",
                          info.param.delay_millis, "ms");
    });

}  // namespace
}  // namespace quire
