#include "engine/engine_loop.h"

#include <algorithm>
#include <map>
#include <memory>
#include <set>
#include <thread>
#include <utility>
#include <vector>

#include "absl/synchronization/mutex.h"
#include "absl/synchronization/notification.h"
#include "gtest/gtest.h"
#include "tests/hash_model_runner.h"

namespace quire {
namespace {

// Far more than any wait here takes; reached only if the engine hangs.
constexpr absl::Duration kHangTimeout = absl::Seconds(60);

EngineOptions TestOptions() {
  EngineOptions options;
  options.block_size = 4;
  options.num_blocks = 64;
  options.max_model_len = 128;
  options.vocab_size = 500;
  options.max_num_seqs = 8;
  options.max_num_batched_tokens = 32;
  options.eos_token_ids = {1};
  options.check_integrity = true;
  return options;
}

Request MakeRequest(RequestId id, int num_prompt_tokens, int max_tokens) {
  Request request;
  request.id = id;
  for (int i = 0; i < num_prompt_tokens; ++i) {
    request.prompt_token_ids.push_back(2 +
                                       (i * 7 + static_cast<int>(id)) % 400);
  }
  request.sampling.max_tokens = max_tokens;
  request.sampling.seed = id;
  return request;
}

// Keeps all events; lets tests wait for what they need.
class CollectingSink : public OutputSink {
 public:
  void Push(std::vector<OutputEvent> events) override {
    absl::MutexLock lock(&mu_);
    for (OutputEvent& event : events) {
      if (event.is_last) ++num_last_[event.request_id];
      events_.push_back(std::move(event));
    }
  }

  // Whether the request's last event came.
  bool WaitForLast(RequestId id) {
    absl::MutexLock lock(&mu_);
    const auto has_ended = [this, id]() ABSL_NO_THREAD_SAFETY_ANALYSIS {
      return num_last_.count(id) > 0;
    };
    return mu_.AwaitWithTimeout(absl::Condition(&has_ended), kHangTimeout);
  }
  bool WaitForEvents(size_t num_events) {
    absl::MutexLock lock(&mu_);
    const auto has_them = [this, num_events]() ABSL_NO_THREAD_SAFETY_ANALYSIS {
      return events_.size() >= num_events;
    };
    return mu_.AwaitWithTimeout(absl::Condition(&has_them), kHangTimeout);
  }
  std::vector<OutputEvent> EventsOf(RequestId id) {
    absl::MutexLock lock(&mu_);
    std::vector<OutputEvent> events;
    for (const OutputEvent& event : events_) {
      if (event.request_id == id) events.push_back(event);
    }
    return events;
  }
  std::vector<int32_t> TokensOf(RequestId id) {
    std::vector<int32_t> tokens;
    for (const OutputEvent& event : EventsOf(id)) {
      for (const TokenOutput& token : event.tokens) {
        tokens.push_back(token.token_id);
      }
    }
    return tokens;
  }
  std::map<RequestId, int> num_last() {
    absl::MutexLock lock(&mu_);
    return num_last_;
  }

 private:
  absl::Mutex mu_;
  std::vector<OutputEvent> events_;
  std::map<RequestId, int> num_last_;
};

class EngineLoopTest : public testing::Test {
 protected:
  void Start(const EngineOptions& options) {
    options_ = options;
    runner_ = std::make_unique<HashModelRunner>(options, model_options_);
    sink_ = std::make_unique<CollectingSink>();
  }
  void Create() {
    auto loop =
        EngineLoop::Create(options_, runner_.get(), &clock_, sink_.get());
    ASSERT_TRUE(loop.ok()) << loop.status();
    loop_ = *std::move(loop);
  }

  HashModelOptions model_options_;
  EngineOptions options_;
  FakeClock clock_;
  std::unique_ptr<HashModelRunner> runner_;
  std::unique_ptr<CollectingSink> sink_;
  std::unique_ptr<EngineLoop> loop_;
};

TEST_F(EngineLoopTest, AnswersARequestAsTheModelDoesAlone) {
  for (int steps_in_flight : {1, 2}) {
    EngineOptions options = TestOptions();
    options.steps_in_flight = steps_in_flight;
    Start(options);
    Create();
    const RequestId id = loop_->NewRequestId();
    const Request request = MakeRequest(id, 19, 12);
    const HashModelAnswer answer =
        AnswerAlone(options, model_options_, request, 0, 0, 128);
    ASSERT_TRUE(loop_->Submit(request).ok());
    ASSERT_TRUE(sink_->WaitForLast(id));
    EXPECT_EQ(sink_->TokensOf(id), answer.token_ids);
    const OutputEvent last = sink_->EventsOf(id).back();
    EXPECT_EQ(last.finish_reason, answer.finish_reason);
    ASSERT_TRUE(loop_->WaitUntilIdle(kHangTimeout));
    const EngineStats stats = loop_->Stats();
    EXPECT_TRUE(stats.is_idle);
    EXPECT_EQ(stats.num_running, 0);
    EXPECT_EQ(stats.num_waiting, 0);
    EXPECT_EQ(stats.num_free_blocks, stats.num_blocks);
    EXPECT_EQ(stats.num_prompt_tokens, 19);
    EXPECT_EQ(stats.num_generation_tokens,
              static_cast<int64_t>(answer.token_ids.size()));
    loop_.reset();
    EXPECT_EQ(runner_->violation(), "");
  }
}

}  // namespace
}  // namespace quire
