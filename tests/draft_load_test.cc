// What a draft model costs and brings under load, in virtual time: the engine
// with its scheduler and draft control on the hash model, with steps and drafts
// that take the time of a model of costs (the demo model's with its draft
// model, measured on one core). Nothing is measured here, so the figures are
// exact.
#include <algorithm>
#include <cstdint>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "absl/time/time.h"
#include "engine/base/clock.h"
#include "engine/base/random.h"
#include "engine/engine.h"
#include "engine/speculative/drafter.h"
#include "gtest/gtest.h"
#include "tests/hash_model_runner.h"

namespace quire {
namespace {

constexpr int kVocabSize = 1000;
constexpr int kMaxDrafts = 5;

// A step of n tokens takes base + n * per_token.
struct Cost {
  absl::Duration base;
  absl::Duration per_token;
  absl::Duration Of(int64_t num_tokens) const {
    return base + per_token * num_tokens;
  }
};
constexpr Cost kTarget = {absl::Microseconds(180), absl::Microseconds(11)};
constexpr Cost kDraft = {absl::Microseconds(43), absl::Nanoseconds(2500)};

class TimedRunner : public ModelRunner {
 public:
  TimedRunner(const EngineOptions& options, FakeClock* clock)
      : clock_(clock), model_(options, HashModelOptions()) {}
  int steps_in_flight() const override { return 1; }
  absl::Status Submit(const SchedulerOutput& output) override {
    duration_ = kTarget.Of(static_cast<int64_t>(output.token_ids.size()));
    return model_.Submit(output);
  }
  absl::StatusOr<StepResult> Collect() override {
    clock_->Advance(duration_);
    return model_.Collect();
  }
  bool Done() const override { return true; }

 private:
  FakeClock* const clock_;
  HashModelRunner model_;
  absl::Duration duration_;
};

using Answers = std::map<RequestId, std::vector<int32_t>>;

// As ModelDrafter: knows of each sequence a beginning, and computes the rest
// before it drafts.
class TimedDraftModel : public Drafter {
 public:
  TimedDraftModel(const Answers* answers, double acceptance, FakeClock* clock)
      : answers_(answers), acceptance_(acceptance), clock_(clock) {}

  absl::string_view method() const override { return "draft_model"; }
  bool is_costly() const override { return true; }
  int NumMissingTokens(const DraftSequence& sequence) override {
    return static_cast<int>(sequence.token_ids.size()) - 1 -
           num_known_[sequence.sequence_id];
  }
  int num_caught_up_tokens() const override { return num_caught_up_; }

  absl::Status Propose(absl::Span<const DraftSequence> sequences,
                       absl::Span<Draft> drafts) override {
    num_caught_up_ = 0;
    size_t depth = 0;
    int64_t num_tokens = 0;
    for (size_t i = 0; i < sequences.size(); ++i) {
      const DraftSequence& sequence = sequences[i];
      num_caught_up_ += NumMissingTokens(sequence);
      DraftFor(sequence, &drafts[i]);
      depth = std::max(depth, drafts[i].token_ids.size());
      num_tokens += static_cast<int64_t>(drafts[i].token_ids.size());
      num_known_[sequence.sequence_id] =
          static_cast<int>(sequence.token_ids.size());
    }
    num_context_tokens_ += num_caught_up_;
    num_drafts_ += num_tokens;
    clock_->Advance(kDraft.base * static_cast<int64_t>(depth) +
                    kDraft.per_token * (num_caught_up_ + num_tokens));
    return absl::OkStatus();
  }
  void End(uint64_t sequence_id, absl::Span<const int32_t> /*token_ids*/,
           int32_t /*num_prompt_tokens*/,
           absl::string_view /*cache_namespace*/) override {
    num_known_.erase(sequence_id);
  }

  int64_t num_context_tokens() const { return num_context_tokens_; }
  int64_t num_drafts() const { return num_drafts_; }

  // In place of the acceptance of all requests.
  void set_acceptance_of(RequestId id, double acceptance) {
    acceptance_of_[id] = acceptance;
  }
  // Tokens that each request had when drafts were first made for it.
  const std::map<RequestId, size_t>& first_drafted_at() const {
    return first_drafted_at_;
  }

 private:
  void DraftFor(const DraftSequence& sequence, Draft* draft) {
    const std::vector<int32_t>& answer = answers_->at(sequence.request_id);
    const size_t num_told =
        sequence.token_ids.size() - sequence.num_prompt_tokens;
    first_drafted_at_.try_emplace(sequence.request_id, num_told);
    const auto found = acceptance_of_.find(sequence.request_id);
    const double acceptance =
        found == acceptance_of_.end() ? acceptance_ : found->second;
    for (int k = 0; k < sequence.max_num_drafts; ++k) {
      const size_t at = num_told + k;
      const int32_t right = at < answer.size() ? answer[at] : 0;
      draft->token_ids.push_back(
          random_.Uniform() < acceptance ? right : (right + 1) % kVocabSize);
    }
  }

  const Answers* const answers_;
  const double acceptance_;
  FakeClock* const clock_;
  SimulationRandom random_{5};
  std::map<RequestId, double> acceptance_of_;
  std::map<RequestId, size_t> first_drafted_at_;
  std::map<uint64_t, int> num_known_;  // By sequence_id.
  int num_caught_up_ = 0;              // Of the last Propose.
  int64_t num_context_tokens_ = 0;
  int64_t num_drafts_ = 0;
};

struct Load {
  int num_requests = 0;
  int num_at_once = 1;
  int min_prompt = 20, max_prompt = 42;
  // Of an answer; one in `num_short` + 1 is long.
  int min_tokens = 8, max_tokens = 14, num_short = 24, long_tokens = 120;
};

struct Outcome {
  Answers answers;
  absl::Duration duration;
  EngineStats stats;
};

class DraftLoadTest : public testing::Test {
 protected:
  // The loads one after the other, each from its first to its last token;
  // returns one outcome for each.
  std::vector<Outcome> Run(const std::vector<Load>& loads, Drafter* drafter) {
    EngineOptions options;
    options.vocab_size = kVocabSize;
    options.max_model_len = 1024;
    options.max_num_seqs = 32;
    options.max_num_batched_tokens = 512;
    options.num_blocks = 4096;
    options.max_num_scored_tokens = 192;
    options.enable_prefix_caching = false;
    options.num_speculative_tokens = drafter == nullptr ? 0 : kMaxDrafts;
    TimedRunner runner(options, &clock_);
    auto engine = Engine::Create(options, &runner, &clock_, drafter);
    EXPECT_TRUE(engine.ok()) << engine.status();
    std::vector<Outcome> outcomes;
    RequestId next_id = 1;
    for (const Load& load : loads) {
      Outcome& outcome = outcomes.emplace_back();
      const absl::Time begin = clock_.Now();
      const RequestId end_id = next_id + load.num_requests;
      std::vector<OutputEvent> events;
      int num_running = 0;
      while (next_id < end_id || num_running > 0) {
        for (; next_id < end_id && num_running < load.num_at_once; ++next_id) {
          EXPECT_TRUE((*engine)->AddRequest(MakeRequest(load, next_id)).ok());
          ++num_running;
        }
        (*engine)->Step(&events);
        for (const OutputEvent& event : events) {
          for (const TokenOutput& token : event.tokens) {
            outcome.answers[event.request_id].push_back(token.token_id);
          }
          num_running -= event.is_last;
        }
        events.clear();
      }
      outcome.duration = clock_.Now() - begin;
      outcome.stats = (*engine)->Stats();
    }
    return outcomes;
  }

  static Request MakeRequest(const Load& load, RequestId id) {
    SimulationRandom random(id);
    Request request;
    request.id = id;
    for (int64_t i = random.Between(load.min_prompt, load.max_prompt); i > 0;
         --i) {
      request.prompt_token_ids.push_back(
          static_cast<int32_t>(random.Below(kVocabSize)));
    }
    request.sampling.temperature = 0;
    request.sampling.seed = id;
    request.sampling.ignore_eos = true;
    request.sampling.max_tokens = static_cast<int32_t>(
        random.Below(load.num_short + 1) == 0
            ? load.long_tokens
            : random.Between(load.min_tokens, load.max_tokens));
    return request;
  }

  // Speeds with drafts over those without, load by load. Of the first requests
  // `unlucky` drafts are accepted with 0.25 only.
  std::vector<double> Speedups(const std::vector<Load>& loads,
                               double acceptance, int num_unlucky = 0) {
    const std::vector<Outcome> plain = Run(loads, nullptr);
    Answers answers;
    for (const Outcome& outcome : plain) {
      answers.insert(outcome.answers.begin(), outcome.answers.end());
    }
    drafter_ = std::make_unique<TimedDraftModel>(&answers, acceptance, &clock_);
    for (int id = 1; id <= num_unlucky; ++id) {
      drafter_->set_acceptance_of(id, 0.25);
    }
    const std::vector<Outcome> drafted = Run(loads, drafter_.get());
    std::vector<double> speedups;
    for (size_t i = 0; i < loads.size(); ++i) {
      EXPECT_EQ(drafted[i].answers, plain[i].answers);
      speedups.push_back(
          absl::FDivDuration(plain[i].duration, drafted[i].duration));
    }
    stats_ = drafted.back().stats;
    return speedups;
  }

  FakeClock clock_;
  std::unique_ptr<TimedDraftModel> drafter_;
  EngineStats stats_;
};

// Short answers to prompts that are longer: what a draft model would have to
// read of each request costs more than it can bring.
TEST_F(DraftLoadTest, ShortAnswersUnderLoadAreNotSlower) {
  for (const double acceptance : {0.0, 0.5, 0.9, 1.0}) {
    SCOPED_TRACE(acceptance);
    Load load;
    load.num_requests = 1500;
    load.num_at_once = 32;
    EXPECT_GE(Speedups({load}, acceptance)[0], 0.985);
    std::printf("acceptance %.1f: %d of context, %d drafts, %d accepted\n",
                acceptance, static_cast<int>(drafter_->num_context_tokens()),
                static_cast<int>(drafter_->num_drafts()),
                static_cast<int>(stats_.num_accepted_tokens));
    // Of some 46,000 tokens of prompts.
    EXPECT_LE(drafter_->num_context_tokens(), 2500);
  }
}

TEST_F(DraftLoadTest, LongAnswersUnderLoadAreNotSlower) {
  for (const double acceptance : {0.0, 0.5, 0.9}) {
    for (const int num_at_once : {8, 32}) {
      SCOPED_TRACE(testing::Message() << acceptance << " at " << num_at_once);
      Load load;
      load.num_requests = 2 * num_at_once;
      load.num_at_once = num_at_once;
      load.min_prompt = load.max_prompt = 200;
      load.num_short = 0;
      load.long_tokens = 600;
      const double speedup = Speedups({load}, acceptance)[0];
      std::printf("acceptance %.1f at %d: %.3fx, %d of context, %d drafts\n",
                  acceptance, num_at_once, speedup,
                  static_cast<int>(drafter_->num_context_tokens()),
                  static_cast<int>(drafter_->num_drafts()));
      EXPECT_GE(speedup, 0.985);
    }
  }
}

TEST_F(DraftLoadTest, OneAtATimeIsFaster) {
  Load load;
  load.num_requests = 150;
  EXPECT_GE(Speedups({load}, 0.95)[0], 1.5);
  // And hardly slower by a drafter that is always wrong.
  EXPECT_GE(Speedups({load}, 0)[0], 0.94);
}

// Long answers at a high temperature, say, of which a draft model knows little,
// and then tasks that it knows: what it cannot do for the former is no reason
// not to try it for the latter.
TEST_F(DraftLoadTest, UnluckyRequestsTurnNothingOffForOthers) {
  for (const int num_unlucky : {1, 3, 10}) {
    SCOPED_TRACE(num_unlucky);
    Load unlucky;
    unlucky.num_requests = num_unlucky;
    unlucky.min_prompt = unlucky.max_prompt = 20;
    unlucky.num_short = 0;
    unlucky.long_tokens = 60;
    Load lucky = unlucky;
    lucky.num_requests = 20;
    const std::vector<double> speedups =
        Speedups({unlucky, lucky}, 0.95, num_unlucky);
    EXPECT_GE(speedups[0], 0.9);
    EXPECT_GE(speedups[1], 1.5);
    std::printf("after %d unlucky ones (%.2fx): %.2fx\n", num_unlucky,
                speedups[0], speedups[1]);
    for (int id = num_unlucky + 1; id <= num_unlucky + 20; ++id) {
      const auto found = drafter_->first_drafted_at().find(id);
      ASSERT_NE(found, drafter_->first_drafted_at().end()) << id;
      EXPECT_LE(found->second, 4) << id;
    }
  }
}

// And beside each other.
TEST_F(DraftLoadTest, AnUnluckyRequestBesideOthers) {
  Load load;
  load.num_requests = 40;
  load.num_at_once = 2;
  load.min_prompt = load.max_prompt = 20;
  load.num_short = 0;
  load.long_tokens = 60;
  const double all_lucky = Speedups({load}, 0.95)[0];
  EXPECT_GE(Speedups({load}, 0.95, /*num_unlucky=*/2)[0], 0.93 * all_lucky);
}

// What was decided under load does not outlive it, and the other way round.
TEST_F(DraftLoadTest, FollowsTheLoad) {
  Load busy;
  busy.num_requests = 600;
  busy.num_at_once = 32;
  Load calm;
  calm.num_requests = 60;
  const std::vector<double> speedups = Speedups({busy, calm, busy, calm}, 0.95);
  EXPECT_GE(speedups[0], 0.98);
  EXPECT_GE(speedups[1], 1.4);
  EXPECT_GE(speedups[2], 0.98);
  EXPECT_GE(speedups[3], 1.4);
}

// A prompt of thousands of tokens is not read for an answer of a few, but is
// for one of hundreds.
TEST_F(DraftLoadTest, ALongContextIsCaughtUpForALongAnswer) {
  Load load;
  load.num_requests = 30;
  load.min_prompt = load.max_prompt = 900;
  load.num_short = 0;
  load.long_tokens = 6;
  EXPECT_GE(Speedups({load}, 0.9)[0], 0.97);
  load.long_tokens = 110;
  EXPECT_GE(Speedups({load}, 0.9)[0], 1.25);
}

}  // namespace
}  // namespace quire
