// The wait that is predicted beside the one that comes: a burst of requests on
// an engine that has just started, in virtual time.
#include <memory>
#include <utility>
#include <vector>

#include "engine/admission.h"
#include "engine/base/clock.h"
#include "engine/engine.h"
#include "engine/timed_model_runner.h"
#include "gtest/gtest.h"

namespace quire {
namespace {

struct Machine {
  const char* name;
  absl::Duration step_base;
  absl::Duration step_per_token;
};

constexpr int kPromptTokens = 200;
constexpr int kOutputTokens = 40;
constexpr int kLongOutputTokens = 1000;

struct Prediction {
  absl::Time at;
  absl::Duration delay;
  bool has_answers = false;  // Some have ended.
  int num_drawn = 0;         // Of the first answer.
};

// Of someone who comes now and waits behind all others, after each step; the
// last one is made when nobody waits any more.
std::vector<Prediction> PredictThroughABurst(const Machine& machine,
                                             int max_num_seqs, int num_blocks,
                                             int num_requests,
                                             int num_output_tokens) {
  FakeClock clock;
  TimedModelRunner runner(machine.step_base, machine.step_per_token, &clock);
  EngineOptions options;
  options.num_blocks = num_blocks;
  options.max_model_len = 2048;
  options.vocab_size = 10;
  options.max_num_seqs = max_num_seqs;
  options.enable_prefix_caching = false;
  auto engine = Engine::Create(options, &runner, &clock);
  EXPECT_TRUE(engine.ok());
  Admission admission(options, clock.Now());
  for (int i = 1; i <= num_requests; ++i) {
    Request request;
    request.id = i;
    request.prompt_token_ids.assign(kPromptTokens, 5);
    request.sampling.max_tokens = num_output_tokens;
    request.sampling.ignore_eos = true;
    // Of a cold server nothing is known: a second is enough.
    request.deadline = clock.Now() + absl::Seconds(1);
    EXPECT_TRUE(admission.Admit(clock.Now(), &request).ok());
    request.deadline = absl::InfiniteFuture();
    EXPECT_TRUE((*engine)->AddRequest(std::move(request)).ok());
  }
  std::vector<Prediction> predictions;
  std::vector<OutputEvent> events;
  std::vector<QueuedShare> queued;
  bool has_answers = false;
  int num_drawn = 0;
  do {
    events.clear();
    (*engine)->Step(&events);
    const Scheduler& scheduler = (*engine)->scheduler();
    const EngineStats stats = (*engine)->Stats();
    Admission::Snapshot snapshot;
    snapshot.num_running = stats.num_running;
    snapshot.num_step_tokens = (*engine)->num_step_tokens();
    snapshot.work = scheduler.counters().work();
    snapshot.mean_output_tokens = scheduler.shares().mean_output_tokens();
    queued.clear();
    scheduler.shares().AppendQueued(&queued);
    admission.NoteStep(clock.Now(), snapshot, &queued, {});
    for (const OutputEvent& event : events) {
      has_answers |= event.is_last;
      if (event.request_id == 1) num_drawn += event.tokens.size();
    }
    predictions.push_back(
        {clock.Now(), admission.predicted_delay(), has_answers, num_drawn});
  } while (!queued.empty());
  return predictions;
}

class PredictedDelayTest : public testing::TestWithParam<Machine> {};

// While the wait is longer than an answer takes: what is left of the answers in
// the slots is not known. Prompts come first, and on most machines they are the
// cheaper part of the work: until the first answers have ended the prediction
// is low, which refuses nobody.
TEST_P(PredictedDelayTest, IsWithinAFactorOfTheWait) {
  struct Load {
    int max_num_seqs;
    int num_blocks;
    int num_requests;
  };
  // Slots are short, or blocks, with one answer at a time or many.
  for (const Load& load : {Load{1, 1024, 12}, Load{8, 1024, 80},
                           Load{64, 4096, 400}, Load{64, 160, 80}}) {
    SCOPED_TRACE(testing::Message()
                 << load.max_num_seqs << " slots, " << load.num_blocks
                 << " blocks, " << load.num_requests << " requests");
    const std::vector<Prediction> predictions =
        PredictThroughABurst(GetParam(), load.max_num_seqs, load.num_blocks,
                             load.num_requests, kOutputTokens);
    const absl::Time end = predictions.back().at;
    const absl::Duration whole = end - predictions.front().at;
    int num_compared = 0;
    for (size_t i = 0; i < predictions.size(); ++i) {
      const absl::Duration wait = end - predictions[i].at;
      if (wait < whole / 4) break;
      ++num_compared;
      const double ratio = absl::FDivDuration(predictions[i].delay, wait);
      if (predictions[i].has_answers) {
        EXPECT_GT(ratio, 0.4) << "step " << i << ", wait " << wait;
      }
      EXPECT_GT(ratio, 0.03) << "step " << i << ", wait " << wait;
      EXPECT_LT(ratio, 2.5) << "step " << i << ", wait " << wait;
    }
    EXPECT_GT(num_compared, 10);
    EXPECT_EQ(predictions.back().delay, absl::ZeroDuration());
  }
}

// An answer that goes on tells that those behind it are longer than answers
// were taken to be.
TEST_P(PredictedDelayTest, KnowsLongAnswersBeforeTheFirstEnds) {
  for (const int num_requests : {8, 16}) {
    SCOPED_TRACE(testing::Message() << num_requests << " requests");
    const std::vector<Prediction> predictions = PredictThroughABurst(
        GetParam(), 1, 1024, num_requests, kLongOutputTokens);
    const absl::Time end = predictions.back().at;
    const absl::Duration whole = end - predictions.front().at;
    int num_before = 0;
    for (const Prediction& prediction : predictions) {
      if (prediction.num_drawn < kLongOutputTokens / 2) continue;
      const absl::Duration wait = end - prediction.at;
      if (wait < whole / 4) break;
      num_before += !prediction.has_answers;
      const double ratio = absl::FDivDuration(prediction.delay, wait);
      EXPECT_GT(ratio, 0.4) << "wait " << wait << " of " << whole;
      EXPECT_LT(ratio, 2.5) << "wait " << wait << " of " << whole;
    }
    EXPECT_GT(num_before, kLongOutputTokens / 3);
  }
}

INSTANTIATE_TEST_SUITE_P(Machines, PredictedDelayTest,
                         testing::Values(Machine{"accelerator",
                                                 absl::Milliseconds(15),
                                                 absl::Microseconds(90)},
                                         Machine{"cpu", absl::Milliseconds(50),
                                                 absl::Milliseconds(10)}),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace quire
