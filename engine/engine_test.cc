#include "engine/engine.h"

#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "engine/speculative/drafter.h"
#include "gtest/gtest.h"
#include "tests/hash_model_runner.h"

namespace quire {
namespace {

EngineOptions TestOptions() {
  EngineOptions options;
  options.block_size = 4;
  options.num_blocks = 32;
  options.max_model_len = 64;
  options.vocab_size = 500;
  options.max_num_seqs = 4;
  options.max_num_batched_tokens = 32;
  options.eos_token_ids = {1};
  options.random_seed = 9;
  options.check_integrity = true;
  return options;
}

Request MakeRequest(RequestId id, int num_prompt_tokens) {
  Request request;
  request.id = id;
  for (int i = 0; i < num_prompt_tokens; ++i) {
    request.prompt_token_ids.push_back(2 +
                                       (i * 7 + static_cast<int>(id)) % 400);
  }
  request.sampling.max_tokens = 6;
  return request;
}

class EngineTest : public testing::Test {
 protected:
  void Create(const EngineOptions& options) {
    runner_ = std::make_unique<HashModelRunner>(options, HashModelOptions());
    auto engine = Engine::Create(options, runner_.get(), &clock_);
    ASSERT_TRUE(engine.ok()) << engine.status();
    engine_ = *std::move(engine);
  }
  void RunAll() {
    while (engine_->HasWork()) engine_->Step(&events_);
  }
  std::vector<int32_t> TokensOf(RequestId id) const {
    std::vector<int32_t> tokens;
    for (const OutputEvent& event : events_) {
      if (event.request_id != id) continue;
      for (const TokenOutput& token : event.tokens) {
        tokens.push_back(token.token_id);
      }
    }
    return tokens;
  }

  FakeClock clock_;
  std::unique_ptr<HashModelRunner> runner_;
  std::unique_ptr<Engine> engine_;
  std::vector<OutputEvent> events_;
};

TEST(ValidateRequestTest, KindsOfRequests) {
  EngineOptions options = TestOptions();
  Request request = MakeRequest(1, 5);
  request.kind = RequestKind::kEmbed;
  const auto code = [&] { return ValidateRequest(options, request).code(); };
  EXPECT_EQ(code(), absl::StatusCode::kInvalidArgument);
  options.enable_embed = true;
  EXPECT_EQ(code(), absl::StatusCode::kOk);
  request.n = 2;
  EXPECT_EQ(code(), absl::StatusCode::kInvalidArgument);
  request.n = 1;
  // No room is needed for an answer.
  request.prompt_token_ids.assign(options.max_model_len, 2);
  EXPECT_EQ(code(), absl::StatusCode::kOk);
  request.prompt_token_ids.push_back(2);
  EXPECT_EQ(code(), absl::StatusCode::kInvalidArgument);
  options.enable_generate = false;
  request = MakeRequest(1, 5);
  EXPECT_EQ(code(), absl::StatusCode::kInvalidArgument);
}

TEST(ValidateRequestTest, SaysWhatIsWrongWithTheFigures) {
  const EngineOptions options = TestOptions();
  const struct {
    std::string message;
    void (*spoil)(Request*);
  } cases[] = {
      {"no tokens", [](Request* r) { r->prompt_token_ids.clear(); }},
      {"64", [](Request* r) { r->prompt_token_ids.assign(64, 2); }},
      {"prompt[1] is 500", [](Request* r) { r->prompt_token_ids[1] = 500; }},
      {"prompt[0] is -1", [](Request* r) { r->prompt_token_ids[0] = -1; }},
      {"n is 0", [](Request* r) { r->n = 0; }},
      {"n is 129", [](Request* r) { r->n = 129; }},
      {"max_tokens is 0", [](Request* r) { r->sampling.max_tokens = 0; }},
      {"min_tokens is -1", [](Request* r) { r->sampling.min_tokens = -1; }},
      {"stop_token_ids[0] is 500",
       [](Request* r) { r->sampling.stop_token_ids = {500}; }},
      {"allowed_token_ids[1] is -2",
       [](Request* r) {
         r->sampling.allowed_token_ids = {3, -2};
       }},
      {"bad_words[1] is 500",
       [](Request* r) {
         r->sampling.bad_words =
             std::make_shared<const std::vector<std::vector<int32_t>>>(
                 std::vector<std::vector<int32_t>>{{3}, {4, 500}});
       }},
      {"a bad word has no tokens",
       [](Request* r) {
         r->sampling.bad_words =
             std::make_shared<const std::vector<std::vector<int32_t>>>(
                 std::vector<std::vector<int32_t>>(1));
       }},
      {"logit_bias[0] is 501",
       [](Request* r) {
         r->sampling.logit_bias = {{501, 1.0f}};
       }},
  };
  for (const auto& c : cases) {
    Request request = MakeRequest(1, 4);
    EXPECT_TRUE(ValidateRequest(options, request).ok());
    c.spoil(&request);
    const absl::Status status = ValidateRequest(options, request);
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << c.message;
    EXPECT_TRUE(absl::StrContains(status.message(), c.message)) << status;
  }
}

TEST(ValidateRequestTest, PromptMustFitThePoolToo) {
  EngineOptions options = TestOptions();
  options.num_blocks = 3;
  EXPECT_TRUE(ValidateRequest(options, MakeRequest(1, 11)).ok());
  const absl::Status status = ValidateRequest(options, MakeRequest(1, 12));
  EXPECT_TRUE(absl::IsInvalidArgument(status));
  EXPECT_TRUE(absl::StrContains(status.message(), "KV cache holds 12"))
      << status;
}

TEST_F(EngineTest, RunnerMustOverlapAsManySteps) {
  EngineOptions options = TestOptions();
  HashModelRunner runner(options, HashModelOptions());
  options.steps_in_flight = 2;
  EXPECT_TRUE(absl::IsInvalidArgument(
      Engine::Create(options, &runner, &clock_).status()));
}

TEST_F(EngineTest, IdsInUseAreRefused) {
  Create(TestOptions());
  ASSERT_TRUE(engine_->AddRequest(MakeRequest(1, 4)).ok());
  EXPECT_TRUE(absl::IsAlreadyExists(engine_->AddRequest(MakeRequest(1, 4))));
  RunAll();
  EXPECT_TRUE(engine_->AddRequest(MakeRequest(1, 4)).ok());
}

TEST_F(EngineTest, SeedMakesAnswersRepeatable) {
  Create(TestOptions());
  for (RequestId id : {1, 2, 3, 4}) {
    Request request = MakeRequest(7, 9);
    request.id = id;
    request.sampling.ignore_eos = true;
    if (id <= 2) request.sampling.seed = 55;
    ASSERT_TRUE(engine_->AddRequest(request).ok());
  }
  RunAll();
  EXPECT_EQ(TokensOf(1), TokensOf(2));
  // Without one, each request has its own.
  EXPECT_NE(TokensOf(3), TokensOf(1));
  EXPECT_NE(TokensOf(3), TokensOf(4));
}

TEST_F(EngineTest, AnswerIsLimitedByContextAndPool) {
  for (int num_blocks : {32, 5}) {
    EngineOptions options = TestOptions();
    options.num_blocks = num_blocks;
    options.eos_token_ids.clear();
    Create(options);
    events_.clear();
    Request request = MakeRequest(1, 10);
    request.sampling.max_tokens = INT32_MAX;
    ASSERT_TRUE(engine_->AddRequest(request).ok());
    RunAll();
    EXPECT_EQ(TokensOf(1).size(), num_blocks == 5 ? 10 : 54);
    EXPECT_EQ(events_.back().finish_reason, FinishReason::kLength);
  }
}

TEST_F(EngineTest, TimesComeFromTheClock) {
  Create(TestOptions());
  const absl::Time start = clock_.Now();
  ASSERT_TRUE(engine_->AddRequest(MakeRequest(1, 4)).ok());
  while (engine_->HasWork()) {
    clock_.Advance(absl::Milliseconds(5));
    engine_->Step(&events_);
  }
  EXPECT_EQ(events_[0].time, start + absl::Milliseconds(5));
  EXPECT_EQ(events_.back().scheduled_time, start + absl::Milliseconds(5));
  EXPECT_EQ(events_.back().time, engine_->Stats().last_step_time);
}

TEST_F(EngineTest, OneFailureIsSurvived) {
  Create(TestOptions());
  bool fails = true;
  runner_->fail_submit = [&fails](const SchedulerOutput&, bool*) {
    return std::exchange(fails, false) ? absl::InternalError("out of luck")
                                       : absl::OkStatus();
  };
  ASSERT_TRUE(engine_->AddRequest(MakeRequest(1, 4)).ok());
  RunAll();
  ASSERT_EQ(events_.size(), 1);
  EXPECT_EQ(events_[0].finish_reason, FinishReason::kError);
  EXPECT_EQ(events_[0].error.message(), "out of luck");
  EXPECT_TRUE(engine_->Health().ok());
  ASSERT_TRUE(engine_->AddRequest(MakeRequest(2, 4)).ok());
  RunAll();
  EXPECT_NE(events_.back().finish_reason, FinishReason::kError);
}

TEST_F(EngineTest, ThreeFailuresInARowStopTheEngine) {
  for (int steps_in_flight : {1, 2}) {
    EngineOptions options = TestOptions();
    options.max_num_seqs = 1;
    options.steps_in_flight = steps_in_flight;
    Create(options);
    events_.clear();
    runner_->fail_collect = [](int64_t) { return absl::InternalError("dead"); };
    for (RequestId id = 1; id <= 6; ++id) {
      ASSERT_TRUE(engine_->AddRequest(MakeRequest(id, 4)).ok());
    }
    RunAll();
    std::map<RequestId, int> num_last;
    for (const OutputEvent& event : events_) {
      EXPECT_EQ(event.finish_reason, FinishReason::kError);
      num_last[event.request_id] += event.is_last;
    }
    EXPECT_EQ(num_last.size(), 6);
    for (const auto& [id, count] : num_last) EXPECT_EQ(count, 1) << id;
    EXPECT_TRUE(absl::IsUnavailable(engine_->Health()));
    EXPECT_TRUE(absl::StrContains(engine_->Health().message(), "dead"));
    EXPECT_TRUE(absl::IsUnavailable(engine_->AddRequest(MakeRequest(9, 4))));
    EXPECT_EQ(engine_->cache().num_referenced_blocks(), 0);
    EXPECT_TRUE(engine_->CheckIntegrity().ok());
  }
}

TEST_F(EngineTest, ABrokenDeviceStopsTheEngineAtOnce) {
  for (const bool in_submit : {false, true}) {
    EngineOptions options = TestOptions();
    options.max_num_seqs = 1;
    Create(options);
    events_.clear();
    const absl::Status broken = absl::UnavailableError("the GPU is gone");
    if (in_submit) {
      runner_->fail_submit = [&](const SchedulerOutput&, bool*) {
        return broken;
      };
    } else {
      runner_->fail_collect = [&](int64_t) { return broken; };
    }
    for (RequestId id = 1; id <= 3; ++id) {
      ASSERT_TRUE(engine_->AddRequest(MakeRequest(id, 4)).ok());
    }
    engine_->Step(&events_);
    EXPECT_FALSE(engine_->HasWork());
    EXPECT_EQ(events_.size(), 3);
    for (const OutputEvent& event : events_) {
      EXPECT_EQ(event.finish_reason, FinishReason::kError);
      EXPECT_TRUE(event.is_last);
    }
    EXPECT_TRUE(absl::IsUnavailable(engine_->Health()));
    EXPECT_TRUE(
        absl::StrContains(engine_->Health().message(), "the GPU is gone"));
    EXPECT_TRUE(absl::IsUnavailable(engine_->AddRequest(MakeRequest(9, 4))));
  }
}

TEST_F(EngineTest, StepsAreCountedByTheirTokens) {
  Create(TestOptions());
  Request request = MakeRequest(1, 9);
  request.sampling.ignore_eos = true;
  ASSERT_TRUE(engine_->AddRequest(request).ok());
  RunAll();
  const EngineStats stats = engine_->Stats();
  EXPECT_EQ(stats.num_steps, 6);
  ASSERT_EQ(stats.step_token_histogram.size(),
            std::size(kStepTokenBuckets) + 1);
  EXPECT_EQ(stats.step_token_histogram[0], 5);  // One token each.
  EXPECT_EQ(stats.step_token_histogram[2], 1);  // 9 to 16.
  EXPECT_EQ(stats.num_generation_tokens, 6);
  EXPECT_TRUE(stats.is_idle);
}

TEST_F(EngineTest, ShutdownEndsEverythingAndEmptiesTheRunner) {
  EngineOptions options = TestOptions();
  options.steps_in_flight = 2;
  Create(options);
  Request request = MakeRequest(1, 20);
  request.n = 2;
  ASSERT_TRUE(engine_->AddRequest(request).ok());
  ASSERT_TRUE(engine_->AddRequest(MakeRequest(2, 20)).ok());
  engine_->Step(&events_);
  engine_->Shutdown(&events_);
  EXPECT_FALSE(engine_->HasWork());
  EXPECT_TRUE(runner_->BlocksInFlight().empty());
  int num_last = 0;
  for (const OutputEvent& event : events_) num_last += event.is_last;
  EXPECT_EQ(num_last, 2);
  EXPECT_EQ(engine_->cache().num_referenced_blocks(), 0);
}

// The second of two equal texts takes the first one's blocks, unless every
// token's hidden state is part of the embedding.
TEST_F(EngineTest, EmbeddingsAndThePrefixCache) {
  for (const bool embeds_every_token : {false, true}) {
    EngineOptions options = TestOptions();
    options.enable_embed = true;
    options.embeds_every_token = embeds_every_token;
    Create(options);
    events_.clear();
    for (RequestId id : {1, 2}) {
      Request request = MakeRequest(7, 20);
      request.id = id;
      request.kind = RequestKind::kEmbed;
      request.sampling.logit_bias = HashNamespaceBias(0, request.kind);
      ASSERT_TRUE(engine_->AddRequest(request).ok());
      RunAll();
      ASSERT_EQ(events_.size(), static_cast<size_t>(id));
      const OutputEvent& event = events_.back();
      EXPECT_TRUE(event.is_last && event.tokens.empty());
      EXPECT_EQ(event.finish_reason, FinishReason::kStop);
      EXPECT_EQ(event.num_cached_tokens,
                id == 2 && !embeds_every_token ? 16 : 0);
      EXPECT_EQ(event.embedding,
                AnswerAlone(options, HashModelOptions(), request, 0, 0, 64)
                    .embedding);
    }
    EXPECT_EQ(engine_->Stats().num_generation_tokens, 0);
    EXPECT_EQ(runner_->violation(), "");
  }
}

// Proposes what is right from some token of an answer on, and nothing before.
class LateDrafter : public Drafter {
 public:
  // By request: its answer, and where copying begins.
  std::map<RequestId, std::pair<std::vector<int32_t>, size_t>> answers;

  absl::string_view method() const override { return "late"; }
  bool is_costly() const override { return false; }
  absl::Status Propose(absl::Span<const DraftSequence> sequences,
                       absl::Span<Draft> drafts) override {
    for (size_t i = 0; i < sequences.size(); ++i) {
      const DraftSequence& sequence = sequences[i];
      // Requests are numbered in the order in which they arrive.
      const auto& [answer, first] = answers.at(1 + (sequence.sequence_id >> 7));
      const size_t num_told =
          sequence.token_ids.size() - sequence.num_prompt_tokens;
      if (num_told < first) continue;
      for (size_t k = 0; k < static_cast<size_t>(sequence.max_num_drafts) &&
                         num_told + k < answer.size();
           ++k) {
        drafts[i].token_ids.push_back(answer[num_told + k]);
      }
    }
    return absl::OkStatus();
  }
};

class LateDraftsTest : public EngineTest {
 protected:
  // Requests of num_tokens each; those of `copying` begin to copy at `first`.
  void Start(int num_requests, int num_tokens, RequestId copying,
             size_t first) {
    EngineOptions options = TestOptions();
    options.steps_in_flight = 2;
    options.num_blocks = 20'000;
    options.max_model_len = 4096;
    options.max_num_seqs = 32;
    options.max_num_batched_tokens = 512;
    options.num_speculative_tokens = 4;
    options.check_integrity = false;
    runner_ = std::make_unique<HashModelRunner>(options, HashModelOptions());
    auto engine = Engine::Create(options, runner_.get(), &clock_, &drafter_);
    ASSERT_TRUE(engine.ok()) << engine.status();
    engine_ = *std::move(engine);
    for (RequestId id = 1; id <= static_cast<RequestId>(num_requests); ++id) {
      Request request = MakeRequest(id, 4);
      request.sampling.max_tokens = num_tokens;
      request.sampling.seed = id;
      request.sampling.ignore_eos = true;
      if (id == copying) {
        drafter_.answers[id] = {
            AnswerAlone(options, HashModelOptions(), request, 0, 0, 4096)
                .token_ids,
            first};
      } else {
        drafter_.answers[id] = {{}, 0};
      }
      ASSERT_TRUE(engine_->AddRequest(request).ok());
    }
  }
  void RunOn() {
    while (engine_->HasWork()) {
      clock_.Advance(absl::Milliseconds(10));
      engine_->Step(&events_);
    }
  }

  LateDrafter drafter_;
};

TEST_F(LateDraftsTest, ProseIsFollowedByCopying) {
  Start(1, 1500, 1, 500);
  RunOn();
  EXPECT_EQ(TokensOf(1), drafter_.answers[1].first);
  // Of 1000 tokens, all but those until it is tried again.
  EXPECT_GT(engine_->Stats().num_accepted_tokens, 600);
}

// As without speculation: the tokens before the fault are told, then the error.
TEST_F(LateDraftsTest, TokensBeforeAFaultAreTold) {
  for (bool SampledRow::*const fault :
       {&SampledRow::non_finite, &SampledRow::all_masked}) {
    Start(1, 40, 1, 0);
    events_.clear();
    const std::vector<int32_t> answer = drafter_.answers[1].first;
    size_t num_told = 0;
    int64_t num_accepted = 0;
    runner_->on_result = [&](StepResult* result) {
      for (SampledRow& row : result->rows) {
        if (row.tokens.size() < 4) {
          num_told += row.tokens.size();
          num_accepted += static_cast<int64_t>(row.tokens.size()) - 1;
          continue;
        }
        row.tokens.resize(3);
        row.*fault = true;
        num_told += 3;
        num_accepted +=
            3;  // The fault is in the place of the token after them.
      }
    };
    RunOn();
    ASSERT_GT(num_told, 3u);
    EXPECT_EQ(TokensOf(1),
              std::vector<int32_t>(answer.begin(), answer.begin() + num_told));
    const OutputEvent& last = events_.back();
    EXPECT_TRUE(last.is_last && last.tokens.empty());
    EXPECT_EQ(last.finish_reason, FinishReason::kError);
    EXPECT_TRUE(absl::StrContains(last.error.message(),
                                  absl::StrCat("position ", 4 + num_told)))
        << last.error;
    EXPECT_TRUE(engine_->CheckIntegrity().ok()) << engine_->CheckIntegrity();
    EXPECT_TRUE(engine_->Health().ok());
    EXPECT_EQ(engine_->Stats().num_generation_tokens,
              static_cast<int64_t>(num_told));
    EXPECT_EQ(engine_->Stats().num_accepted_tokens, num_accepted);
    int64_t num_accepted_at = 0;
    for (const int64_t count : engine_->Stats().num_accepted_at) {
      num_accepted_at += count;
    }
    EXPECT_EQ(num_accepted_at, num_accepted);
    int64_t num_told_accepted = 0;
    for (const OutputEvent& event : events_) {
      num_told_accepted += event.num_accepted_tokens;
    }
    EXPECT_EQ(num_told_accepted, num_accepted);
  }
}

TEST_F(LateDraftsTest, AmongColdRequestsACopyingOneIsTriedAgain) {
  Start(32, 1500, 7, 200);
  RunOn();
  EXPECT_EQ(TokensOf(7), drafter_.answers[7].first);
  EXPECT_GT(engine_->Stats().num_accepted_tokens, 20);
}

}  // namespace
}  // namespace quire
