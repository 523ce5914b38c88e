// Embedding calls with a real engine on the hash model and a real output
// thread.
#include "server/embedding_call.h"

#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/notification.h"
#include "engine/base/clock.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "server/embedding.h"
#include "server/recording_responder.h"
#include "tests/hash_model_runner.h"

namespace quire {
namespace {

using Json = nlohmann::ordered_json;

// Far more than any wait here takes; reached only if something hangs.
constexpr absl::Duration kHangTimeout = absl::Seconds(60);

class EmbeddingCallTest : public testing::Test {
 protected:
  EmbeddingCallTest() : metrics_({.model_name = "m", .num_blocks = 64}) {
    options_.block_size = 4;
    options_.num_blocks = 64;
    options_.max_model_len = 128;
    options_.vocab_size = 500;
    options_.max_num_seqs = 4;
    options_.max_num_batched_tokens = 32;
    options_.max_num_queued_reqs = 8;
    options_.enable_generate = false;
    options_.enable_embed = true;
    options_.check_integrity = true;
  }

  ~EmbeddingCallTest() override {
    output_.Stop();
    loop_.reset();
  }

  void Start() {
    runner_ = std::make_unique<HashModelRunner>(options_, HashModelOptions());
    runner_->on_collect = on_collect_;
    runner_->fail_collect = fail_collect_;
    auto loop = EngineLoop::Create(options_, runner_.get(), Clock::Monotonic(),
                                   &output_);
    ASSERT_TRUE(loop.ok()) << loop.status();
    loop_ = *std::move(loop);
    output_.Start(loop_.get());
  }

  struct Made {
    std::shared_ptr<RecordingResponder> responder =
        std::make_shared<RecordingResponder>();
    std::shared_ptr<EmbeddingCall> call;
    std::vector<std::vector<float>> expected;
  };

  // Inputs of 1 to 20 tokens.
  Made Make(int num_inputs, EmbeddingCallOptions options = {}) {
    options.id = "embd-1";
    options.model = "m";
    Made made;
    std::vector<Request> requests;
    for (int i = 0; i < num_inputs; ++i) {
      Request request;
      request.id = loop_->NewRequestId();
      request.kind = RequestKind::kEmbed;
      for (int k = 0; k < 1 + i % 20; ++k) {
        request.prompt_token_ids.push_back((7 * i + k) % 500);
      }
      request.arrival_time = Clock::Monotonic()->Now();
      made.expected.push_back(FinishEmbedding(
          AnswerAlone(options_, HashModelOptions(), request, 0, 0, 128)
              .embedding,
          options.dimensions, options.normalize));
      requests.push_back(std::move(request));
    }
    made.call =
        std::make_shared<EmbeddingCall>(std::move(options), std::move(requests),
                                        loop_.get(), &output_, made.responder);
    return made;
  }

  void ExpectIdle() {
    ASSERT_TRUE(output_.WaitUntilIdle(kHangTimeout));
    ASSERT_TRUE(loop_->WaitUntilIdle(kHangTimeout));
    const EngineStats stats = loop_->Stats();
    EXPECT_EQ(stats.num_running, 0);
    EXPECT_EQ(stats.num_waiting, 0);
    EXPECT_EQ(stats.num_free_blocks, stats.num_blocks);
    EXPECT_EQ(runner_->violation(), "");
  }

  static void ExpectAnswer(const Made& made) {
    const RecordedAnswer answer = made.responder->answer();
    ASSERT_EQ(answer.status, 200) << answer.body;
    const Json body = answer.Json();
    EXPECT_EQ(body["object"], "list");
    EXPECT_EQ(body["model"], "m");
    ASSERT_EQ(body["data"].size(), made.expected.size());
    for (size_t i = 0; i < made.expected.size(); ++i) {
      const Json& data = body["data"][i];
      EXPECT_EQ(data["index"], i);
      EXPECT_EQ(data["object"], "embedding");
      // The bits survive the decimals.
      EXPECT_EQ(data["embedding"].get<std::vector<float>>(), made.expected[i]);
    }
  }

  EngineOptions options_;
  std::function<void()> on_collect_;
  std::function<absl::Status(int64_t)> fail_collect_;
  ServerMetrics metrics_;
  std::unique_ptr<HashModelRunner> runner_;
  OutputProcessor output_{&metrics_};
  std::unique_ptr<EngineLoop> loop_;
};

// Stops the engine in Collect until opened.
class Gate {
 public:
  void Wait() {
    if (!reached_.HasBeenNotified()) reached_.Notify();
    opened_.WaitForNotification();
  }
  void AwaitReached() {
    ASSERT_TRUE(reached_.WaitForNotificationWithTimeout(kHangTimeout));
  }
  void Open() { opened_.Notify(); }

 private:
  absl::Notification reached_, opened_;
};

TEST_F(EmbeddingCallTest, AnswersInTheOrderOfTheInputs) {
  Start();
  const Made made = Make(30);
  made.call->Submit();
  ExpectIdle();
  ExpectAnswer(made);
  int num_tokens = 0;
  for (int i = 0; i < 30; ++i) num_tokens += 1 + i % 20;
  const Json usage = made.responder->answer().Json()["usage"];
  EXPECT_EQ(usage["prompt_tokens"], num_tokens);
  EXPECT_EQ(usage["total_tokens"], num_tokens);
  EXPECT_THAT(metrics_.Render(loop_->Stats()),
              testing::HasSubstr(absl::StrCat(
                  "vllm:request_success_total{engine=\"0\",finished_reason="
                  "\"stop\",model_name=\"m\"} 30")));
}

TEST_F(EmbeddingCallTest, DimensionsAndBase64) {
  Start();
  EmbeddingCallOptions options;
  options.dimensions = 2;
  options.is_base64 = true;
  const Made made = Make(3, options);
  made.call->Submit();
  ExpectIdle();
  const Json body = made.responder->answer().Json();
  for (int i = 0; i < 3; ++i) {
    ASSERT_EQ(made.expected[i].size(), 2u);
    std::string expected;
    AppendBase64Floats(made.expected[i], &expected);
    EXPECT_EQ(body["data"][i]["embedding"], expected);
  }
}

// 200 inputs and a queue of 8: beyond the first few they wait in the call.
TEST_F(EmbeddingCallTest, MoreInputsThanTheQueueTakes) {
  Gate gate;
  on_collect_ = [&gate] { gate.Wait(); };
  Start();
  EmbeddingCallOptions options;
  options.max_in_flight = 6;
  const Made made = Make(200, options);
  made.call->Submit();
  gate.AwaitReached();
  const EngineStats stats = loop_->Stats();
  EXPECT_LE(stats.num_running + stats.num_waiting, 6);
  gate.Open();
  ExpectIdle();
  ExpectAnswer(made);
}

// What was accepted ends, with all its inputs.
TEST_F(EmbeddingCallTest, DrainingFinishesTheCall) {
  Gate gate;
  on_collect_ = [&gate] { gate.Wait(); };
  Start();
  EmbeddingCallOptions options;
  options.max_in_flight = 2;
  const Made accepted = Make(20, options);
  accepted.call->Submit();
  gate.AwaitReached();
  loop_->StartDraining();
  const Made refused = Make(3);
  refused.call->Submit();
  gate.Open();
  ExpectIdle();
  ExpectAnswer(accepted);
  EXPECT_EQ(refused.responder->answer().status, 503);
}

TEST_F(EmbeddingCallTest, FullQueueIsOverload) {
  Gate gate;
  on_collect_ = [&gate] { gate.Wait(); };
  Start();
  std::vector<Made> accepted;
  // Four run; the rest waits until the queue is full.
  accepted.push_back(Make(4));
  accepted.back().call->Submit();
  gate.AwaitReached();
  EmbeddingCallOptions options;
  options.max_in_flight = 8;
  accepted.push_back(Make(8, options));
  accepted.back().call->Submit();
  const Made refused = Make(2);
  refused.call->Submit();
  gate.Open();
  ExpectIdle();
  for (const Made& made : accepted) ExpectAnswer(made);
  const RecordedAnswer answer = refused.responder->answer();
  EXPECT_EQ(answer.status, 503);
  EXPECT_EQ(answer.Header("Retry-After"), "1");
}

TEST_F(EmbeddingCallTest, ADisconnectedClientCostsNoMore) {
  Gate gate;
  on_collect_ = [&gate] { gate.Wait(); };
  Start();
  EmbeddingCallOptions options;
  options.max_in_flight = 4;
  const Made made = Make(100, options);
  made.call->Submit();
  gate.AwaitReached();
  made.call->Cancel();
  gate.Open();
  ExpectIdle();
  // The step that ran, and what entered the queue with it.
  EXPECT_LE(loop_->Stats().num_steps, 2);
}

TEST_F(EmbeddingCallTest, AFailedStepFailsTheCall) {
  int num_steps = 0;
  fail_collect_ = [&num_steps](int64_t) {
    return ++num_steps == 3 ? absl::InternalError("injected")
                            : absl::OkStatus();
  };
  Start();
  EmbeddingCallOptions options;
  options.max_in_flight = 4;
  const Made made = Make(50, options);
  made.call->Submit();
  ExpectIdle();
  EXPECT_EQ(made.responder->answer().status, 500);
  // The engine goes on for others.
  const Made next = Make(5);
  next.call->Submit();
  ExpectIdle();
  ExpectAnswer(next);
}

TEST_F(EmbeddingCallTest, ShutdownAnswersWith503) {
  Gate gate;
  on_collect_ = [&gate] { gate.Wait(); };
  Start();
  const Made made = Make(10);
  made.call->Submit();
  gate.AwaitReached();
  output_.FailAll(absl::UnavailableError("the server is shutting down"));
  gate.Open();
  ExpectIdle();
  EXPECT_EQ(made.responder->answer().status, 503);
}

}  // namespace
}  // namespace quire
