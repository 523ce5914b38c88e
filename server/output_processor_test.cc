// The output thread with a real engine on the hash model.
#include "server/output_processor.h"

#include <algorithm>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "engine/base/clock.h"
#include "engine/base/random.h"
#include "gtest/gtest.h"
#include "server/api_call.h"
#include "server/fake_tokenizer.h"
#include "server/gate.h"
#include "server/recording_responder.h"
#include "tests/hash_model_runner.h"

namespace quire {
namespace {

using Json = nlohmann::ordered_json;

// Far more than any wait here takes; reached only if something hangs.
constexpr absl::Duration kHangTimeout = absl::Seconds(60);

EngineOptions TestOptions() {
  EngineOptions options;
  options.block_size = 4;
  options.num_blocks = 64;
  options.max_model_len = 128;
  options.vocab_size = FakeTokenizer::kVocabSize;
  options.max_num_seqs = 8;
  options.max_num_batched_tokens = 32;
  options.eos_token_ids = {FakeTokenizer::kEos};
  options.check_integrity = true;
  return options;
}

// A call of `num_prompts` prompts with n choices each.
struct Call {
  std::shared_ptr<RecordingResponder> responder;
  std::shared_ptr<ApiCall> call;
  std::vector<CallPart> parts;
};

class OutputProcessorTest : public testing::Test {
 protected:
  OutputProcessorTest() : metrics_({.model_name = "m", .num_blocks = 64}) {}

  ~OutputProcessorTest() override {
    output_.Stop();
    loop_.reset();
  }

  void Start() {
    runner_ = std::make_unique<HashModelRunner>(options_, model_options_);
    runner_->on_collect = on_collect_;
    runner_->fail_collect = fail_collect_;
    auto loop = EngineLoop::Create(options_, runner_.get(), Clock::Monotonic(),
                                   &output_);
    ASSERT_TRUE(loop.ok()) << loop.status();
    loop_ = *std::move(loop);
    output_.Start(loop_.get());
  }

  Call MakeCall(bool stream, int num_prompts = 1, int n = 1,
                std::vector<std::string> stop_strings = {},
                std::shared_ptr<AnswerScores> scores = nullptr) {
    ApiCallOptions options;
    options.kind = ApiKind::kCompletion;
    options.id = "cmpl-1";
    options.model = "m";
    options.stream = stream;
    options.include_usage = stream;
    options.stop_strings = std::move(stop_strings);
    options.wants_logprobs = scores != nullptr;
    options.scores = std::move(scores);
    options.num_choices = num_prompts * n;
    Call made;
    made.responder = std::make_shared<RecordingResponder>();
    made.call = std::make_shared<ApiCall>(std::move(options), &tokenizer_,
                                          made.responder);
    for (int i = 0; i < num_prompts; ++i) {
      CallPart part;
      part.request_id = loop_->NewRequestId();
      part.first_choice = i * n;
      part.n = n;
      part.num_prompt_tokens = 5;
      part.max_tokens = 20;
      part.arrival_time = Clock::Monotonic()->Now();
      made.parts.push_back(part);
    }
    return made;
  }

  absl::Status SubmitPart(const CallPart& part, int max_tokens,
                          bool ignores_eos = false) {
    Request request;
    request.id = part.request_id;
    for (int i = 0; i < part.num_prompt_tokens; ++i) {
      request.prompt_token_ids.push_back(
          static_cast<int32_t>((part.request_id * 31 + i) % 250));
    }
    request.sampling.max_tokens = max_tokens;
    request.sampling.ignore_eos = ignores_eos;
    request.sampling.seed = part.request_id;
    request.n = part.n;
    request.arrival_time = part.arrival_time;
    return loop_->Submit(std::move(request));
  }

  void Submit(const Call& call, int max_tokens, bool ignores_eos = false) {
    output_.Register(call.call, call.parts);
    for (const CallPart& part : call.parts) {
      const absl::Status status = SubmitPart(part, max_tokens, ignores_eos);
      ASSERT_TRUE(status.ok()) << status;
    }
    output_.Accept(call.call);
    call.responder->OnDisconnect([this, parts = call.parts] {
      for (const CallPart& part : parts) loop_->Abort(part.request_id);
    });
  }

  // Waits for the end of everything and looks for leaks.
  void ExpectIdle() {
    ASSERT_TRUE(loop_->WaitUntilIdle(kHangTimeout));
    ASSERT_TRUE(output_.WaitUntilIdle(kHangTimeout));
    const EngineStats stats = loop_->Stats();
    EXPECT_EQ(stats.num_running, 0);
    EXPECT_EQ(stats.num_waiting, 0);
    EXPECT_EQ(stats.num_waiting_tokens, 0);
    EXPECT_EQ(stats.num_free_blocks, stats.num_blocks);
    EXPECT_EQ(runner_->violation(), "");
  }

  double Metric(const std::string& start) {
    const std::string text = metrics_.Render(loop_->Stats());
    for (absl::string_view line : absl::StrSplit(text, '\n')) {
      if (!absl::StartsWith(line, start)) continue;
      double value = 0;
      EXPECT_TRUE(absl::SimpleAtod(line.substr(line.rfind(' ') + 1), &value));
      return value;
    }
    ADD_FAILURE() << "no metric " << start;
    return -1;
  }
  double NumFinished(const std::string& reason) {
    return Metric(absl::StrCat(
        "vllm:request_success_total{engine=\"0\",finished_reason=\"", reason,
        "\""));
  }
  double NumFinished() {
    double sum = 0;
    for (const char* reason : {"stop", "length", "abort", "error"}) {
      sum += NumFinished(reason);
    }
    return sum;
  }
  double Count(const std::string& histogram) {
    return Metric(absl::StrCat("vllm:", histogram, "_count{"));
  }

  EngineOptions options_ = TestOptions();
  HashModelOptions model_options_;
  std::function<void()> on_collect_;
  std::function<absl::Status(int64_t)> fail_collect_;
  FakeTokenizer tokenizer_;
  ServerMetrics metrics_;
  std::unique_ptr<HashModelRunner> runner_;
  OutputProcessor output_{&metrics_};
  std::unique_ptr<EngineLoop> loop_;
};

TEST_F(OutputProcessorTest, ManyConcurrentCalls) {
  Start();
  constexpr int kNumThreads = 4, kNumCalls = 25;
  std::vector<std::vector<Call>> calls(kNumThreads);
  std::vector<std::thread> threads;
  for (int t = 0; t < kNumThreads; ++t) {
    threads.emplace_back([&, t] {
      SimulationRandom random(t);
      for (int i = 0; i < kNumCalls; ++i) {
        const std::vector<std::string> stops =
            random.Below(3) == 0 ? std::vector<std::string>{"a", "b", "c", "d"}
                                 : std::vector<std::string>{};
        calls[t].push_back(MakeCall(random.Below(2) == 0, 1 + random.Below(3),
                                    1 + random.Below(3), stops));
        Submit(calls[t].back(), 1 + static_cast<int>(random.Below(30)));
        if (random.Below(4) == 0) calls[t].back().responder->Disconnect();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  ExpectIdle();
  int num_parts = 0;
  for (const auto& list : calls) {
    for (const Call& call : list) {
      num_parts += static_cast<int>(call.parts.size());
      const RecordedAnswer answer = call.responder->answer();
      EXPECT_TRUE(answer.is_finished);
      EXPECT_EQ(answer.status, 200);
      if (!answer.is_stream) {
        EXPECT_FALSE(answer.Json()["choices"].empty());
        continue;
      }
      std::vector<int> num_ends(128, 0);
      for (const Json& event : ParseEvents(answer.body)) {
        EXPECT_FALSE(event.contains("error"));
        if (event["choices"].empty()) continue;
        const Json& choice = event["choices"][0];
        num_ends[choice["index"].get<int>()] +=
            !choice["finish_reason"].is_null();
      }
      const int num_choices =
          static_cast<int>(call.parts.size()) * call.parts.front().n;
      for (int i = 0; i < num_choices; ++i) EXPECT_EQ(num_ends[i], 1);
    }
  }
  // Each request once, whatever ended it.
  EXPECT_EQ(NumFinished(), num_parts);
  EXPECT_EQ(NumFinished("error"), 0);
  EXPECT_EQ(Count("e2e_request_latency_seconds"), num_parts);
  EXPECT_EQ(Count("request_params_n"), num_parts);
  EXPECT_LE(Count("time_to_first_token_seconds"), num_parts);
}

// Tells a waiting test what has been written.
class WatchedResponder : public RecordingResponder {
 public:
  void Write(std::string data) override {
    const int num_tokens = CountTokens(data);
    RecordingResponder::Write(std::move(data));
    std::lock_guard<std::mutex> lock(mu_);
    num_tokens_ += num_tokens;
    changed_.notify_all();
  }
  bool AwaitTokens(int count) {
    std::unique_lock<std::mutex> lock(mu_);
    return changed_.wait_for(lock, absl::ToChronoMilliseconds(kHangTimeout),
                             [&] { return num_tokens_ >= count; });
  }

 private:
  static int CountTokens(absl::string_view data) {
    int count = 0;
    for (absl::string_view line : absl::StrSplit(data, "\n\n")) {
      if (!absl::ConsumePrefix(&line, "data: {")) continue;
      const auto event = ParseJson(absl::StrCat("{", line));
      for (const Json& choice : event->at("choices")) {
        if (choice.contains("token_ids")) count += choice["token_ids"].size();
      }
    }
    return count;
  }

  std::mutex mu_;
  std::condition_variable changed_;
  int num_tokens_ = 0;
};

// What follows the first token may wait for a moment, but not for more events:
// here the engine hangs.
TEST_F(OutputProcessorTest, WritesWhatItHasThoughNothingFollows) {
  Gate gate;
  int num_collected = 0;
  on_collect_ = [&] {
    if (++num_collected == 6) gate.Wait();
  };
  model_options_.eos_per_1000 = 0;
  Start();
  ApiCallOptions options;
  options.kind = ApiKind::kCompletion;
  options.id = "cmpl-1";
  options.model = "m";
  options.stream = true;
  options.return_token_ids = true;
  const auto responder = std::make_shared<WatchedResponder>();
  Call call = MakeCall(/*stream=*/true);
  call.responder = responder;
  call.call =
      std::make_shared<ApiCall>(std::move(options), &tokenizer_, responder);
  Submit(call, /*max_tokens=*/10);
  gate.AwaitReached(kHangTimeout);
  EXPECT_TRUE(responder->AwaitTokens(5));
  gate.Open();
  ExpectIdle();
  EXPECT_TRUE(responder->AwaitTokens(10));
}

// Who wrote, in order, of responders that share it. Thread-safe.
class WriteOrder {
 public:
  void Add(int who) {
    std::lock_guard<std::mutex> lock(mu_);
    order_.push_back(who);
    changed_.notify_all();
  }
  // The first `count`; fewer if they do not come.
  std::vector<int> Await(size_t count) {
    std::unique_lock<std::mutex> lock(mu_);
    changed_.wait_for(lock, absl::ToChronoMilliseconds(kHangTimeout),
                      [&] { return order_.size() >= count; });
    return order_;
  }

 private:
  std::mutex mu_;
  std::condition_variable changed_;
  std::vector<int> order_;  // Guarded by mu_.
};

class OrderedResponder : public RecordingResponder {
 public:
  OrderedResponder(WriteOrder* order, int who, bool is_behind)
      : order_(order), who_(who), is_behind_(is_behind) {}
  void Write(std::string data) override {
    RecordingResponder::Write(std::move(data));
    order_->Add(who_);
  }
  bool is_behind() const override { return is_behind_; }

 private:
  WriteOrder* const order_;
  const int who_;
  const bool is_behind_;
};

class OutputOrderTest : public OutputProcessorTest {
 protected:
  // A stream that tells `order` of each write.
  Call MakeOrderedCall(WriteOrder* order, int who, bool is_behind,
                       bool wants_logprobs = false) {
    Call call = MakeCall(/*stream=*/true);
    ApiCallOptions options;
    options.kind = ApiKind::kCompletion;
    options.id = "cmpl-1";
    options.model = "m";
    options.stream = true;
    options.wants_logprobs = wants_logprobs;
    call.responder = std::make_shared<OrderedResponder>(order, who, is_behind);
    call.call = std::make_shared<ApiCall>(std::move(options), &tokenizer_,
                                          call.responder);
    output_.Register(call.call, call.parts);
    output_.Accept(call.call);
    // Calls that start in one storm are looked at once more when there is time,
    // and what they have by then is written in that order.
    while (!call.responder->answer().is_stream) std::this_thread::yield();
    return call;
  }
  static OutputEvent EventOf(const Call& call, bool is_last) {
    OutputEvent event;
    event.request_id = call.parts[0].request_id;
    event.tokens.push_back({.token_id = 'x'});
    event.time = event.scheduled_time = Clock::Monotonic()->Now();
    event.is_last = is_last;
    if (is_last) event.finish_reason = FinishReason::kLength;
    return event;
  }
};

// More of those who are behind than are written without a look at the clock.
TEST_F(OutputOrderTest, WritesToWhoIsBehindWhenTheOthersHaveTheirs) {
  constexpr int kNumBehind = 40;
  constexpr int kKeepsUp = kNumBehind;
  Start();
  WriteOrder order;
  std::vector<Call> calls;
  for (int i = 0; i <= kNumBehind; ++i) {
    calls.push_back(MakeOrderedCall(&order, i, /*is_behind=*/i < kNumBehind));
  }
  const auto push = [&](bool is_last) {
    std::vector<OutputEvent> events;
    for (const Call& call : calls) events.push_back(EventOf(call, is_last));
    output_.Push(std::move(events));
  };
  // The order of the events is not that of the writes, neither of first tokens
  // nor of others.
  for (size_t num_before : {0, kNumBehind + 1}) {
    push(/*is_last=*/false);
    const size_t num_after = num_before + kNumBehind + 1;
    const std::vector<int> who = order.Await(num_after);
    ASSERT_EQ(who.size(), num_after);
    EXPECT_EQ(who[num_before], kKeepsUp);
    for (int i = 0; i < kNumBehind; ++i) EXPECT_EQ(who[num_before + 1 + i], i);
  }
  push(/*is_last=*/true);
  ExpectIdle();
  for (const Call& call : calls) {
    EXPECT_TRUE(call.responder->answer().is_finished);
    EXPECT_TRUE(absl::EndsWith(call.responder->answer().body, "[DONE]\n\n"));
  }
}

TEST_F(OutputOrderTest, WhatTakesLongToBeWrittenGoesLast) {
  constexpr int kNumCalls = 40;  // More than a burst.
  constexpr int kPlain = kNumCalls - 1;
  Start();
  WriteOrder order;
  std::vector<Call> calls;
  for (int i = 0; i < kNumCalls; ++i) {
    calls.push_back(MakeOrderedCall(&order, i, /*is_behind=*/false,
                                    /*wants_logprobs=*/i != kPlain));
  }
  std::vector<OutputEvent> events;
  size_t num_written = 0;
  for (const bool is_last : {false, false, true}) {
    for (const Call& call : calls) events.push_back(EventOf(call, is_last));
    output_.Push(std::exchange(events, {}));
    // First tokens and ends go as they come; what is between them, in order.
    num_written += kNumCalls;
    ASSERT_GE(order.Await(num_written).size(), num_written);
  }
  ExpectIdle();
  const std::vector<int> who = order.Await(2 * kNumCalls);
  EXPECT_EQ(who[kNumCalls], kPlain);
  for (int i = 1; i < kNumCalls; ++i) EXPECT_EQ(who[kNumCalls + i], i - 1);
}

// A thousand answers that begin in one moment do not show in the others' gaps.
TEST_F(OutputOrderTest, AStormOfFirstTokensWaitsForWhatGoesOn) {
  constexpr int kNumBeginning = 1000;
  constexpr int kGoesOn = kNumBeginning;
  Start();
  WriteOrder order;
  std::vector<Call> calls;
  for (int i = 0; i <= kNumBeginning; ++i) {
    calls.push_back(MakeOrderedCall(&order, i, /*is_behind=*/false));
  }
  std::vector<OutputEvent> first;
  first.push_back(EventOf(calls[kGoesOn], /*is_last=*/false));
  output_.Push(std::move(first));
  ASSERT_EQ(order.Await(1).size(), 1u);
  for (const bool is_last : {false, true}) {
    std::vector<OutputEvent> events;
    for (const Call& call : calls) events.push_back(EventOf(call, is_last));
    output_.Push(std::move(events));
    if (is_last) break;
    // Its event is the last one, its write is not.
    const std::vector<int> who = order.Await(kNumBeginning + 2);
    ASSERT_EQ(who.size(), kNumBeginning + 2u);
    EXPECT_LT(std::find(who.begin() + 1, who.end(), kGoesOn) - who.begin(),
              kNumBeginning / 2);
  }
  ExpectIdle();
  for (const Call& call : calls) {
    EXPECT_TRUE(call.responder->answer().is_finished);
    EXPECT_TRUE(absl::EndsWith(call.responder->answer().body, "[DONE]\n\n"));
  }
}

TEST_F(OutputProcessorTest, CountsEachRequestOnce) {
  model_options_.eos_per_1000 = 0;
  Start();
  const Call call = MakeCall(/*stream=*/true, /*num_prompts=*/2, /*n=*/3);
  Submit(call, /*max_tokens=*/10);
  ExpectIdle();
  EXPECT_EQ(NumFinished("length"), 2);
  EXPECT_EQ(NumFinished(), 2);
  EXPECT_EQ(Count("time_to_first_token_seconds"), 2);
  EXPECT_EQ(Count("request_prefill_time_seconds"), 2);
  EXPECT_EQ(Count("request_queue_time_seconds"), 2);
  // Nine gaps in each of six choices.
  EXPECT_EQ(Count("inter_token_latency_seconds"), 54);
  EXPECT_EQ(Metric("vllm:request_generation_tokens_sum{"), 60);
  const std::vector<Json> events = ParseEvents(call.responder->answer().body);
  EXPECT_EQ(events.back()["usage"]["completion_tokens"], 60);
}

TEST_F(OutputProcessorTest, StopStringCountsAsStop) {
  Start();
  // Every byte and nothing: the first character is a stop string.
  std::vector<std::string> stops;
  for (int c = 1; c < 64; ++c) stops.push_back(std::string(1, c));
  const Call call = MakeCall(/*stream=*/false, 1, 1, stops);
  Submit(call, /*max_tokens=*/100, /*ignores_eos=*/true);
  ExpectIdle();
  const Json answer = call.responder->answer().Json();
  ASSERT_EQ(answer["choices"][0]["finish_reason"], "stop");
  EXPECT_TRUE(answer["choices"][0]["stop_reason"].is_string());
  EXPECT_EQ(NumFinished("stop"), 1);
  EXPECT_EQ(NumFinished(), 1);
}

// An answer that grows beyond its room fails, and all of its parts end.
TEST_F(OutputProcessorTest, AnAnswerWithoutRoomForItsScoresIsAborted) {
  ScoreBudget budget(2 * 1024 * kBytesPerScore);
  auto other = AnswerScores::Admit(1024, &budget);
  ASSERT_TRUE(other.ok() && (*other)->Add(1000).ok());
  auto scores = AnswerScores::Admit(0, &budget);
  ASSERT_FALSE(scores.ok());  // More than half is taken.
  *other = nullptr;
  scores = AnswerScores::Admit(1024, &budget);
  other = AnswerScores::Admit(1000, &budget);
  ASSERT_TRUE(scores.ok() && other.ok());
  Start();
  const Call call = MakeCall(/*stream=*/false, /*num_prompts=*/2, /*n=*/2, {},
                             *std::move(scores));
  Submit(call, /*max_tokens=*/100, /*ignores_eos=*/true);
  ExpectIdle();
  const RecordedAnswer answer = call.responder->answer();
  EXPECT_EQ(answer.status, 503);
  EXPECT_TRUE(absl::StrContains(answer.body, "too much memory")) << answer.body;
  EXPECT_EQ(NumFinished("abort"), 2);
  EXPECT_EQ(NumFinished(), 2);
}

// Of answers that grow together the oldest get to their end: what one gives up,
// the others have at once, not when the engine has heard of it.
TEST_F(OutputOrderTest, TheYoungestAnswersMakeRoomForTheOthers) {
  constexpr int kNumCalls = 4, kNumSteps = 24, kTokensOfStep = 1024;
  ScoreBudget budget(64 * kTokensOfStep * kBytesPerScore);
  Start();
  std::vector<Call> calls;
  for (int i = 0; i < kNumCalls; ++i) {
    auto scores = AnswerScores::Admit(0, &budget);
    ASSERT_TRUE(scores.ok());
    calls.push_back(MakeCall(/*stream=*/false, 1, 1, {}, *std::move(scores)));
    output_.Register(calls.back().call, calls.back().parts);
    output_.Accept(calls.back().call);
  }
  for (int step = 1; step <= kNumSteps; ++step) {
    std::vector<OutputEvent> events;
    for (const Call& call : calls) {
      events.push_back(EventOf(call, /*is_last=*/step == kNumSteps));
      events.back().tokens.resize(kTokensOfStep, events.back().tokens[0]);
    }
    output_.Push(std::move(events));
  }
  ExpectIdle();
  std::vector<int> statuses;
  for (const Call& call : calls) {
    statuses.push_back(call.responder->answer().status);
  }
  EXPECT_EQ(statuses, (std::vector<int>{200, 200, 503, 503}));
  EXPECT_EQ(budget.num_refused(), 2);
  EXPECT_EQ(NumFinished("length"), 2);
  EXPECT_EQ(NumFinished("abort"), 2);
  calls.clear();
}

// The engine was at its end before it heard of it.
TEST_F(OutputOrderTest, WhatEndsAfterItsCallHasFailedIsAborted) {
  Start();
  WriteOrder order;
  const Call call = MakeOrderedCall(&order, 0, /*is_behind=*/false);
  std::vector<OutputEvent> events = {EventOf(call, /*is_last=*/false)};
  output_.Push(std::exchange(events, {}));
  ASSERT_EQ(order.Await(1).size(), 1u);
  output_.FailAll(absl::UnavailableError("the server is shutting down"));
  events.push_back(EventOf(call, /*is_last=*/true));
  output_.Push(std::move(events));
  ExpectIdle();
  EXPECT_EQ(NumFinished("abort"), 1);
  EXPECT_EQ(NumFinished(), 1);
}

TEST_F(OutputProcessorTest, DisconnectAborts) {
  Gate gate;
  on_collect_ = [&gate] { gate.Wait(); };
  Start();
  const Call running = MakeCall(/*stream=*/true, 1, 2);
  Submit(running, /*max_tokens=*/100, /*ignores_eos=*/true);
  gate.AwaitReached(kHangTimeout);
  const Call waiting = MakeCall(/*stream=*/false);
  Submit(waiting, /*max_tokens=*/100, /*ignores_eos=*/true);
  running.responder->Disconnect();
  waiting.responder->Disconnect();
  gate.Open();
  ExpectIdle();
  EXPECT_EQ(NumFinished("abort"), 2);
  EXPECT_EQ(NumFinished(), 2);
  // One step was in flight, and no other began.
  EXPECT_LE(loop_->Stats().num_steps, 2);
}

TEST_F(OutputProcessorTest, RejectOfALaterPartEndsTheEarlier) {
  Gate gate;
  on_collect_ = [&gate] { gate.Wait(); };
  Start();
  std::vector<Call> calls;
  for (const bool stream : {false, true}) {
    calls.push_back(MakeCall(stream, /*num_prompts=*/4));
    const Call& call = calls.back();
    output_.Register(call.call, call.parts);
    ASSERT_TRUE(SubmitPart(call.parts[0], 100, true).ok());
    ASSERT_TRUE(SubmitPart(call.parts[1], 100, true).ok());
    gate.AwaitReached(kHangTimeout);
    output_.Reject(call.call, 2, call.parts,
                   absl::UnavailableError("the server is overloaded"));
  }
  gate.Open();
  ExpectIdle();
  for (const Call& call : calls) {
    const RecordedAnswer answer = call.responder->answer();
    EXPECT_TRUE(answer.is_finished);
    EXPECT_FALSE(answer.is_stream);
    EXPECT_EQ(answer.status, 503);
  }
  // Those that the engine has seen.
  EXPECT_EQ(NumFinished("abort"), 4);
  EXPECT_EQ(NumFinished(), 4);
}

TEST_F(OutputProcessorTest, RejectAfterTokensIsStillAStatus) {
  // The first part has run to its end before the second is refused.
  Start();
  const Call call = MakeCall(/*stream=*/true, /*num_prompts=*/2);
  output_.Register(call.call, call.parts);
  ASSERT_TRUE(SubmitPart(call.parts[0], 3, true).ok());
  ASSERT_TRUE(loop_->WaitUntilIdle(kHangTimeout));
  output_.Reject(call.call, 1, call.parts,
                 absl::UnavailableError("the server is overloaded"));
  ExpectIdle();
  EXPECT_EQ(call.responder->answer().status, 503);
  EXPECT_FALSE(call.responder->answer().is_stream);
}

TEST_F(OutputProcessorTest, FailAllEndsEveryCall) {
  Gate gate;
  on_collect_ = [&gate] { gate.Wait(); };
  Start();
  std::vector<Call> calls;
  for (int i = 0; i < 20; ++i) {
    calls.push_back(MakeCall(/*stream=*/i % 2 == 0, 1, 1 + i % 2));
    Submit(calls.back(), /*max_tokens=*/100, /*ignores_eos=*/true);
  }
  gate.AwaitReached(kHangTimeout);
  output_.FailAll(absl::UnavailableError("the server is shutting down"));
  for (const Call& call : calls) {
    // The answers do not wait for the engine.
    while (!call.responder->answer().is_finished) std::this_thread::yield();
  }
  gate.Open();
  ExpectIdle();
  for (const Call& call : calls) {
    const RecordedAnswer answer = call.responder->answer();
    if (answer.is_stream) {
      EXPECT_EQ(ParseEvents(answer.body).back()["error"]["code"],
                "service_unavailable");
    } else {
      EXPECT_EQ(answer.status, 503);
    }
  }
  EXPECT_EQ(NumFinished("abort"), 20);
  EXPECT_EQ(NumFinished(), 20);
}

TEST_F(OutputProcessorTest, EngineFailureEndsEveryCall) {
  fail_collect_ = [](int64_t) { return absl::InternalError("fault"); };
  Start();
  std::vector<Call> calls;
  for (int i = 0; i < 12; ++i) {
    calls.push_back(MakeCall(/*stream=*/i % 2 == 0, 1 + i % 3, 2));
    output_.Register(calls.back().call, calls.back().parts);
    for (size_t k = 0; k < calls.back().parts.size(); ++k) {
      const absl::Status status = SubmitPart(calls.back().parts[k], 50);
      if (status.ok()) {
        if (k + 1 == calls.back().parts.size()) {
          output_.Accept(calls.back().call);
        }
        continue;
      }
      EXPECT_TRUE(absl::IsUnavailable(status)) << status;
      output_.Reject(calls.back().call, k, calls.back().parts, status);
      break;
    }
  }
  ExpectIdle();
  for (const Call& call : calls) {
    const RecordedAnswer answer = call.responder->answer();
    EXPECT_TRUE(answer.is_finished);
    if (answer.is_stream) {
      EXPECT_TRUE(ParseEvents(answer.body).back().contains("error"));
    } else {
      EXPECT_GE(answer.status, 500);
    }
  }
  EXPECT_EQ(NumFinished("stop") + NumFinished("length"), 0);
}

TEST_F(OutputProcessorTest, StopDropsWhatIsOpen) {
  Gate gate;
  on_collect_ = [&gate] { gate.Wait(); };
  Start();
  const Call call = MakeCall(/*stream=*/true);
  Submit(call, /*max_tokens=*/100, /*ignores_eos=*/true);
  gate.AwaitReached(kHangTimeout);
  EXPECT_FALSE(output_.WaitUntilIdle(absl::ZeroDuration()));
  output_.Stop();
  output_.Stop();
  gate.Open();
  // The engine ends after it, and what it still says goes nowhere.
  loop_.reset();
  EXPECT_FALSE(call.responder->answer().is_finished);
}

TEST_F(OutputProcessorTest, IsIdleWithoutCalls) {
  Start();
  EXPECT_TRUE(output_.WaitUntilIdle(absl::ZeroDuration()));
  const Call call = MakeCall(/*stream=*/true);
  output_.Register(call.call, call.parts);
  EXPECT_FALSE(output_.WaitUntilIdle(absl::ZeroDuration()));
  output_.Reject(call.call, 0, call.parts, absl::UnavailableError("full"));
  EXPECT_TRUE(output_.WaitUntilIdle(kHangTimeout));
  EXPECT_EQ(call.responder->answer().status, 503);
  EXPECT_EQ(NumFinished(), 0);
}

}  // namespace
}  // namespace quire
