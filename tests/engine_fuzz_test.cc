// Random histories of the engine under the hash model: arrivals, shared
// prefixes, several namespaces, n > 1, aborts in every state, preemption,
// eviction, failing steps, overlapping steps. What each request is told must be
// what it would be told alone, every invariant must hold after every step, and
// every request must end, once, within a bound.
//
// A failure prints its seed: QUIRE_FUZZ_SEED=<seed> replays that history alone.
// QUIRE_FUZZ_STEPS=<steps> sets how many steps are run in all.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "engine/base/clock.h"
#include "engine/base/random.h"
#include "engine/base/status.h"
#include "engine/engine.h"
#include "gtest/gtest.h"
#include "tests/hash_model_runner.h"

namespace quire {
namespace {

constexpr int64_t kDefaultNumSteps = 400'000;
constexpr uint64_t kFirstSeed = 1;

// How often the histories reached what they are meant to reach; the test fails
// if one of these stays rare, for then it would not see a bug there.
struct Coverage {
  int64_t num_steps = 0;
  int64_t num_requests = 0;
  int64_t num_rejected = 0;
  int64_t num_preemptions = 0;
  int64_t num_cached_tokens = 0;
  int64_t num_forks = 0;
  int64_t num_copies = 0;
  int64_t num_on_device_rows = 0;
  int64_t num_chunks = 0;
  int64_t num_mixed_steps = 0;  // Prefill chunks beside decodes.
  int64_t num_failed_steps = 0;
  int64_t num_non_finite = 0;
  int64_t num_contaminated = 0;  // By a NaN of another request.
  int64_t num_engine_deaths = 0;
  int64_t num_checked_alone = 0;
  int64_t num_finished_stop = 0;
  int64_t num_finished_stop_token = 0;
  int64_t num_finished_length = 0;
  int64_t num_finished_error = 0;
  int64_t num_aborted_waiting = 0;
  int64_t num_aborted_prefill = 0;
  int64_t num_aborted_decode = 0;
  int64_t num_aborted_preempted = 0;
  int64_t num_aborted_in_flight = 0;
  int64_t num_aborted_choices = 0;
  double max_bound_share = 0;  // Of the liveness bound that a request took.
};

class Simulation {
 public:
  Simulation(uint64_t seed, Coverage* coverage)
      : random_(seed), coverage_(coverage) {
    DrawOptions();
    DrawDocuments();
  }

  // Runs the history. INTERNAL with what went wrong.
  absl::Status Run();

 private:
  struct Choice {
    std::vector<int32_t> token_ids;
    std::optional<FinishReason> finish_reason;
    std::optional<int32_t> stop_token_id;
    bool was_aborted = false;
    bool was_stopped = false;    // Aborted with reason_is_stop.
    bool is_doomed = false;      // A fault was injected that may end it.
    int64_t admitted_step = -1;  // When it last got its blocks.
  };
  struct Tracked {
    Request request;
    uint64_t engine_seed = 0;
    std::vector<Choice> choices;
    bool has_ended = false;
    int64_t last_step = 0;  // By which it must have ended.
    int64_t first_step = 0;
    int num_cached_tokens = -1;
  };

  void DrawOptions();
  void DrawDocuments();
  void SetFaults();
  Request DrawRequest();
  std::vector<int32_t> DrawPrompt();
  absl::Status Submit();
  absl::Status AbortSomething();
  absl::Status TakeEvents(std::vector<OutputEvent> events);
  absl::Status TakeEvent(const OutputEvent& event);
  absl::Status CheckEnd(const Tracked& tracked, const Choice& choice,
                        int choice_idx, const absl::Status& error);
  absl::Status CheckAlone(const Tracked& tracked);
  absl::Status StepOnce();
  absl::Status CheckQuiescent();
  void ObservePlan(const SchedulerOutput& output);
  void Doom(uint64_t draw_key);
  void NoteNonFinite(uint64_t draw_key, uint64_t source);
  void NoteAdmissions();
  int64_t StepsNeededAlone(const Request& request) const;
  bool Chance(int per_1000) {
    return static_cast<int>(random_.Below(1000)) < per_1000;
  }
  int MaxNumTokens() const {
    return std::min(options_.max_model_len,
                    options_.num_blocks * options_.block_size);
  }

  SimulationRandom random_;
  Coverage* const coverage_;
  EngineOptions options_;
  HashModelOptions model_options_;
  FakeClock clock_;
  std::unique_ptr<HashModelRunner> runner_;
  std::unique_ptr<Engine> engine_;
  std::vector<std::vector<int32_t>> documents_;
  std::map<RequestId, Tracked> tracked_;
  std::vector<RequestId> live_;
  std::map<uint64_t, std::pair<RequestId, int>> by_draw_key_;
  std::vector<uint64_t> key_of_slot_;
  std::vector<uint64_t> planned_keys_;  // Of the rows of the step just planned.
  // NaNs, by the draw key of the row they began in: the step in which the first
  // request failed of them; and the NaNs a request is to fail of.
  std::map<uint64_t, int64_t> noticed_step_;
  std::map<RequestId, std::set<uint64_t>> sources_of_;
  std::string contamination_;
  RequestId next_id_ = 1;
  uint64_t num_added_ = 0;
  int64_t step_ = 0;
  int num_steps_ = 0;
  int arrivals_per_1000_ = 0;
  int burst_size_ = 1;
  int aborts_per_1000_ = 0;
  int failures_per_1000_ = 0;
  int non_finite_per_1000_ = 0;
};

void Simulation::DrawOptions() {
  constexpr int kBlockSizes[] = {1, 2, 4, 8, 16};
  options_.block_size = kBlockSizes[random_.Below(5)];
  // 8 to 512, small ones as often as large ones.
  options_.num_blocks = 8 << random_.Below(7);
  options_.num_blocks -= static_cast<int>(
      random_.Below(static_cast<uint64_t>(options_.num_blocks / 4)));
  options_.num_blocks = std::max(options_.num_blocks, 8);
  options_.max_model_len = static_cast<int>(random_.Between(8, 200));
  options_.vocab_size = Chance(500) ? 40 : 5000;
  options_.max_num_seqs = static_cast<int>(random_.Between(1, 12));
  constexpr int kMoreBudget[] = {0, 1, 8, 64, 300};
  options_.max_num_batched_tokens =
      options_.max_num_seqs + kMoreBudget[random_.Below(5)];
  constexpr int kThresholds[] = {0, 0, 1, 5, 32};
  options_.long_prefill_token_threshold = kThresholds[random_.Below(5)];
  options_.enable_prefix_caching = Chance(800);
  options_.steps_in_flight = static_cast<int>(random_.Between(1, 2));
  if (Chance(100)) options_.steps_in_flight = 3;
  if (Chance(300)) {
    options_.rope_switch_length = static_cast<int>(random_.Between(1, 100));
  }
  options_.eos_token_ids = {1};
  if (Chance(300)) options_.eos_token_ids.push_back(3);
  options_.cache_seed = random_.Next();
  options_.random_seed = random_.Next();
  constexpr int kEosChances[] = {0, 5, 50, 200};
  model_options_.eos_per_1000 = kEosChances[random_.Below(4)];

  num_steps_ = static_cast<int>(random_.Between(50, 800));
  constexpr int kArrivals[] = {20, 100, 400, 1000};
  arrivals_per_1000_ = kArrivals[random_.Below(4)];
  burst_size_ = static_cast<int>(random_.Between(1, 5));
  constexpr int kAborts[] = {0, 20, 200};
  aborts_per_1000_ = kAborts[random_.Below(3)];
  constexpr int kFailures[] = {0, 0, 0, 5, 20, 300};
  failures_per_1000_ = kFailures[random_.Below(6)];
  constexpr int kNonFinite[] = {0, 0, 2, 20};
  non_finite_per_1000_ = kNonFinite[random_.Below(4)];
}

void Simulation::DrawDocuments() {
  for (int i = 0; i < 4; ++i) {
    std::vector<int32_t> document;
    for (int k = 0; k < 400; ++k) {
      document.push_back(
          static_cast<int32_t>(random_.Below(options_.vocab_size)));
    }
    documents_.push_back(std::move(document));
  }
  // Two that part in the middle.
  documents_[1] = documents_[0];
  for (size_t k = random_.Below(100); k < documents_[1].size(); ++k) {
    documents_[1][k] = (documents_[1][k] + 1) % options_.vocab_size;
  }
}

std::vector<int32_t> Simulation::DrawPrompt() {
  const int max_len = MaxNumTokens() - 1;
  int length = 0;
  if (Chance(500)) {
    // Around a multiple of the block size.
    length =
        static_cast<int>(random_.Between(0, max_len / options_.block_size)) *
            options_.block_size +
        static_cast<int>(random_.Between(-1, 1));
  } else {
    length = static_cast<int>(
        random_.Between(1, Chance(500) ? max_len : std::min(max_len, 12)));
  }
  length = std::clamp(length, 1, max_len);
  std::vector<int32_t> prompt;
  // The next turn of a conversation, or the beginning of a document.
  if (Chance(250) && !tracked_.empty()) {
    auto it = tracked_.lower_bound(1 + random_.Below(next_id_));
    if (it == tracked_.end()) --it;
    prompt = it->second.request.prompt_token_ids;
    const std::vector<int32_t>& answer = it->second.choices[0].token_ids;
    prompt.insert(prompt.end(), answer.begin(), answer.end());
  } else {
    const auto& document = documents_[random_.Below(documents_.size())];
    prompt.assign(document.begin(), document.begin() + length);
  }
  if (Chance(400)) {
    for (int i = static_cast<int>(random_.Between(1, 6)); i > 0; --i) {
      prompt.push_back(
          static_cast<int32_t>(random_.Below(options_.vocab_size)));
    }
  }
  if (static_cast<int>(prompt.size()) > max_len) prompt.resize(max_len);
  return prompt;
}

Request Simulation::DrawRequest() {
  Request request;
  request.id = next_id_++;
  request.prompt_token_ids = DrawPrompt();
  SamplingParams& sampling = request.sampling;
  const int namespace_no = static_cast<int>(random_.Below(3));
  request.cache_namespace = absl::StrCat("key-", namespace_no);
  sampling.logit_bias = HashNamespaceBias(namespace_no);
  sampling.temperature = Chance(500) ? 0.0f : 1.0f;
  if (Chance(800)) sampling.seed = random_.Next();
  sampling.max_tokens = static_cast<int32_t>(
      Chance(100) ? INT32_MAX : random_.Between(1, Chance(300) ? 100 : 12));
  if (Chance(200)) {
    sampling.min_tokens = static_cast<int32_t>(random_.Between(1, 8));
  }
  sampling.ignore_eos = Chance(200);
  if (Chance(300)) {
    for (int i = 0; i < 3; ++i) {
      sampling.stop_token_ids.push_back(
          static_cast<int32_t>(random_.Below(options_.vocab_size)));
    }
  }
  if (Chance(100)) sampling.num_logprobs = static_cast<int>(random_.Below(4));
  if (Chance(250)) request.n = static_cast<int>(random_.Between(2, 5));
  request.arrival_time = clock_.Now();
  return request;
}

int64_t Simulation::StepsNeededAlone(const Request& request) const {
  // As the oldest sequence: half of what decodes leave of the budget is its
  // own, then a token per step; each step may take a call to submit and one to
  // collect, and with steps in flight a row may wait for blocks.
  const int64_t num_prompt = request.prompt_token_ids.size();
  const int64_t num_tokens = std::min<int64_t>(
      MaxNumTokens(), num_prompt + request.sampling.max_tokens);
  int64_t chunk = std::max(
      1, (options_.max_num_batched_tokens - options_.max_num_seqs + 1) / 2);
  if (options_.long_prefill_token_threshold > 0) {
    chunk = std::min<int64_t>(chunk, options_.long_prefill_token_threshold);
  }
  // All known tokens may have to be computed again after a preemption, and once
  // where the sequence grows beyond rope_switch_length.
  const int64_t num_steps = (num_tokens + chunk - 1) / chunk + num_tokens -
                            num_prompt + 4 +
                            (options_.rope_switch_length + chunk) / chunk;
  return num_steps * request.n * (1 + options_.steps_in_flight);
}

void Simulation::Doom(uint64_t draw_key) {
  const auto it = by_draw_key_.find(draw_key);
  if (it == by_draw_key_.end()) return;
  tracked_.at(it->second.first).choices[it->second.second].is_doomed = true;
}

void Simulation::ObservePlan(const SchedulerOutput& output) {
  for (const SlotStart& start : output.slot_starts) {
    key_of_slot_[start.slot] = start.draw_key;
  }
  coverage_->num_copies += output.block_copies.size();
  planned_keys_.clear();
  bool has_decode = false;
  bool has_chunk = false;
  for (const ScheduledRow& row : output.rows) {
    planned_keys_.push_back(key_of_slot_[row.slot]);
    coverage_->num_on_device_rows += row.input_on_device;
    coverage_->num_chunks += !row.needs_token;
    has_decode |= row.num_tokens == 1 && row.needs_token;
    has_chunk |= row.num_tokens > 1;
  }
  coverage_->num_mixed_steps += has_decode && has_chunk;
}

void Simulation::SetFaults() {
  key_of_slot_.resize(options_.max_num_seqs);
  runner_->fail_submit = [this](const SchedulerOutput& output,
                                bool* is_applied) -> absl::Status {
    ObservePlan(output);
    if (!Chance(failures_per_1000_ / 2)) return absl::OkStatus();
    *is_applied = Chance(500);
    ++coverage_->num_failed_steps;
    for (uint64_t key : planned_keys_) Doom(key);
    return absl::InternalError("injected: submit");
  };
  runner_->fail_collect = [this](int64_t step_id) -> absl::Status {
    if (!Chance(failures_per_1000_ / 2)) return absl::OkStatus();
    ++coverage_->num_failed_steps;
    for (uint64_t key : planned_keys_) Doom(key);
    return absl::InternalError("injected: collect");
  };
  runner_->poison_from = [this](const SchedulerOutput& output,
                                const ScheduledRow& row) {
    if (!Chance(non_finite_per_1000_)) return -1;
    return static_cast<int>(random_.Below(row.num_tokens));
  };
  runner_->on_non_finite = [this](uint64_t draw_key, uint64_t source) {
    ++coverage_->num_non_finite;
    NoteNonFinite(draw_key, source);
  };
}

void Simulation::NoteNonFinite(uint64_t draw_key, uint64_t source) {
  const auto it = by_draw_key_.find(draw_key);
  Tracked& tracked = tracked_.at(it->second.first);
  Choice& choice = tracked.choices[it->second.second];
  choice.is_doomed = true;
  if (by_draw_key_.at(source).first != it->second.first) {
    // It came through the prefix cache. That cannot be helped if the blocks
    // were taken before anybody noticed, and must not happen after.
    ++coverage_->num_contaminated;
    // A choice that began late may have taken over an earlier one's prompt.
    int64_t admitted_step = step_;
    for (const Choice& each : tracked.choices) {
      if (each.admitted_step >= 0) {
        admitted_step = std::min(admitted_step, each.admitted_step);
      }
    }
    const auto noticed = noticed_step_.find(source);
    if (noticed != noticed_step_.end() && admitted_step > noticed->second) {
      contamination_ = absl::StrCat(
          "request ", it->second.first, " got its blocks in step ",
          admitted_step, ", not finite since step ", noticed->second);
    }
  }
  sources_of_[it->second.first].insert(source);
}

absl::Status Simulation::Submit() {
  Tracked tracked;
  tracked.request = DrawRequest();
  Request& request = tracked.request;
  if (Chance(20)) {
    // One that can never run, or must not.
    switch (random_.Below(4)) {
      case 0:
        request.prompt_token_ids.resize(MaxNumTokens());
        break;
      case 1:
        request.prompt_token_ids.clear();
        break;
      case 2:
        request.prompt_token_ids.back() = options_.vocab_size;
        break;
      default:
        request.n = 0;
    }
    const absl::Status status = engine_->AddRequest(request);
    ++coverage_->num_rejected;
    if (absl::IsInvalidArgument(status) || !engine_->Health().ok()) {
      return absl::OkStatus();
    }
    return absl::InternalError(
        absl::StrCat("an invalid request: ", status.ToString()));
  }
  const absl::Status status = engine_->AddRequest(request);
  if (!engine_->Health().ok()) {
    if (absl::IsUnavailable(status)) return absl::OkStatus();
    return absl::InternalError("a dead engine accepts requests");
  }
  QUIRE_RETURN_IF_ERROR(status);
  tracked.engine_seed = MixBits(options_.random_seed, num_added_++);
  tracked.choices.resize(request.n);
  tracked.first_step = step_;
  int64_t num_steps = StepsNeededAlone(request) + 8;
  for (RequestId id : live_) {
    num_steps += StepsNeededAlone(tracked_.at(id).request);
  }
  // Those that pass on the way may hold blocks for as long again.
  tracked.last_step = step_ + 4 * num_steps;
  const uint64_t seed = request.sampling.seed.value_or(tracked.engine_seed);
  for (int i = 0; i < request.n; ++i) {
    by_draw_key_[MixBits(seed, i)] = {request.id, i};
  }
  ++coverage_->num_requests;
  live_.push_back(request.id);
  const RequestId id = request.id;
  tracked_.emplace(id, std::move(tracked));
  return absl::OkStatus();
}

absl::Status Simulation::AbortSomething() {
  std::vector<OutputEvent> events;
  if (Chance(100) || live_.empty()) {
    // Unknown, or ended long ago.
    engine_->Abort(1 + random_.Below(next_id_ + 2), 7, false, &events);
    engine_->Abort(next_id_ + 5, -1, false, &events);
    if (!events.empty()) return absl::InternalError("aborted nothing, loudly");
    return absl::OkStatus();
  }
  const RequestId id = live_[random_.Below(live_.size())];
  Tracked& tracked = tracked_.at(id);
  const bool is_stop = Chance(300);
  int choice_idx = -1;
  if (Chance(400)) {
    choice_idx = static_cast<int>(random_.Below(tracked.request.n));
  }
  size_t num_expected = 0;
  for (int i = 0; i < tracked.request.n; ++i) {
    Choice& choice = tracked.choices[i];
    if (choice_idx >= 0 && i != choice_idx) continue;
    if (choice.finish_reason.has_value()) continue;
    ++num_expected;
    choice.was_aborted = !is_stop;
    choice.was_stopped = is_stop;
    const Sequence* sequence = engine_->scheduler().FindSequence(id, i);
    if (sequence == nullptr)
      return absl::InternalError("a live choice is lost");
    coverage_->num_aborted_choices += choice_idx >= 0;
    coverage_->num_aborted_in_flight += sequence->num_inflight_rows > 0;
    if (sequence->state == SequenceState::kRunning) {
      (sequence->is_decode() ? coverage_->num_aborted_decode
                             : coverage_->num_aborted_prefill) += 1;
    } else {
      (sequence->has_started ? coverage_->num_aborted_preempted
                             : coverage_->num_aborted_waiting) += 1;
    }
  }
  engine_->Abort(id, choice_idx, is_stop, &events);
  if (events.size() != num_expected) {
    return absl::InternalError(absl::StrCat(
        "abort of ", num_expected, " choices gave ", events.size(), " events"));
  }
  return TakeEvents(std::move(events));
}

absl::Status Simulation::TakeEvents(std::vector<OutputEvent> events) {
  for (const OutputEvent& event : events) {
    absl::Status status = TakeEvent(event);
    if (!status.ok()) {
      return absl::InternalError(absl::StrCat("request ", event.request_id,
                                              " choice ", event.choice_idx,
                                              ": ", status.message()));
    }
  }
  for (const OutputEvent& event : events) {
    if (event.finish_reason == FinishReason::kError &&
        !tracked_.at(event.request_id).has_ended) {
      return absl::InternalError(absl::StrCat("request ", event.request_id,
                                              " goes on after an error"));
    }
  }
  return absl::OkStatus();
}

absl::Status Simulation::TakeEvent(const OutputEvent& event) {
  const auto it = tracked_.find(event.request_id);
  if (it == tracked_.end()) return absl::InternalError("unknown request");
  Tracked& tracked = it->second;
  if (tracked.has_ended) return absl::InternalError("I9: event after the last");
  if (event.choice_idx < 0 || event.choice_idx >= tracked.request.n) {
    return absl::InternalError("unknown choice");
  }
  Choice& choice = tracked.choices[event.choice_idx];
  if (choice.finish_reason.has_value()) {
    return absl::InternalError("I9: event after the choice ended");
  }
  if (event.tokens.empty() && !event.finish_reason.has_value()) {
    return absl::InternalError("an event that says nothing");
  }
  if (event.time != clock_.Now()) return absl::InternalError("wrong time");
  for (const TokenOutput& token : event.tokens) {
    choice.token_ids.push_back(token.token_id);
    const int num_logprobs = tracked.request.sampling.num_logprobs;
    if (static_cast<int>(token.top_logprobs.size()) !=
        std::max(num_logprobs, 0)) {
      return absl::InternalError("top_logprobs got lost");
    }
  }
  if (!event.tokens.empty()) {
    if (event.num_cached_tokens % options_.block_size != 0 ||
        event.num_cached_tokens >=
            static_cast<int>(tracked.request.prompt_token_ids.size()) ||
        (!options_.enable_prefix_caching && event.num_cached_tokens != 0) ||
        (tracked.num_cached_tokens >= 0 &&
         tracked.num_cached_tokens != event.num_cached_tokens)) {
      return absl::InternalError(
          absl::StrCat("num_cached_tokens ", event.num_cached_tokens));
    }
    tracked.num_cached_tokens = event.num_cached_tokens;
  }
  if (event.finish_reason.has_value()) {
    choice.finish_reason = event.finish_reason;
    choice.stop_token_id = event.stop_token_id;
    if ((*event.finish_reason == FinishReason::kError) == event.error.ok()) {
      return absl::InternalError("error and reason disagree");
    }
    QUIRE_RETURN_IF_ERROR(
        CheckEnd(tracked, choice, event.choice_idx, event.error));
  }
  const bool all_ended =
      std::all_of(tracked.choices.begin(), tracked.choices.end(),
                  [](const Choice& c) { return c.finish_reason.has_value(); });
  if (all_ended != event.is_last) return absl::InternalError("I9: is_last");
  if (!event.is_last) return absl::OkStatus();
  tracked.has_ended = true;
  live_.erase(std::find(live_.begin(), live_.end(), event.request_id));
  coverage_->num_cached_tokens += std::max(tracked.num_cached_tokens, 0);
  coverage_->max_bound_share =
      std::max(coverage_->max_bound_share,
               static_cast<double>(step_ - tracked.first_step) /
                   (tracked.last_step - tracked.first_step));
  return Chance(20) ? CheckAlone(tracked) : absl::OkStatus();
}

absl::Status Simulation::CheckEnd(const Tracked& tracked, const Choice& choice,
                                  int choice_idx, const absl::Status& error) {
  const HashModelAnswer answer =
      AnswerAlone(options_, model_options_, tracked.request,
                  tracked.engine_seed, choice_idx, MaxNumTokens());
  if (choice.token_ids.size() > answer.token_ids.size() ||
      !std::equal(choice.token_ids.begin(), choice.token_ids.end(),
                  answer.token_ids.begin())) {
    const auto differs = std::mismatch(
        choice.token_ids.begin(),
        choice.token_ids.begin() +
            std::min(choice.token_ids.size(), answer.token_ids.size()),
        answer.token_ids.begin());
    return absl::InternalError(absl::StrCat(
        "token ", differs.first - choice.token_ids.begin(), " of ",
        choice.token_ids.size(), " is not what the request is told alone (",
        tracked.request.prompt_token_ids.size(), " prompt tokens)"));
  }
  switch (*choice.finish_reason) {
    case FinishReason::kAbort:
      if (!choice.was_aborted) return absl::InternalError("ended by itself");
      return absl::OkStatus();
    case FinishReason::kError: {
      ++coverage_->num_finished_error;
      // With several NaNs, or another fault before the NaN was reported, it is
      // not said which one was noticed.
      const auto sources = sources_of_.find(tracked.request.id);
      if (sources != sources_of_.end() && sources->second.size() == 1 &&
          absl::StrContains(error.message(), "not finite")) {
        noticed_step_.try_emplace(*sources->second.begin(), step_);
      }
      const bool is_doomed =
          std::any_of(tracked.choices.begin(), tracked.choices.end(),
                      [](const Choice& c) { return c.is_doomed; });
      if (!is_doomed && engine_->Health().ok()) {
        return absl::InternalError("failed for another request's fault");
      }
      return absl::OkStatus();
    }
    case FinishReason::kStop:
    case FinishReason::kLength:
      break;
  }
  if (choice.was_stopped) return absl::OkStatus();
  if (choice.token_ids != answer.token_ids ||
      choice.finish_reason != answer.finish_reason ||
      choice.stop_token_id != answer.stop_token_id) {
    return absl::InternalError(absl::StrCat(
        "ended with reason ", static_cast<int>(*choice.finish_reason),
        " after ", choice.token_ids.size(), " tokens, alone it is reason ",
        static_cast<int>(answer.finish_reason), " after ",
        answer.token_ids.size()));
  }
  coverage_->num_finished_length +=
      answer.finish_reason == FinishReason::kLength;
  coverage_->num_finished_stop += answer.finish_reason == FinishReason::kStop;
  coverage_->num_finished_stop_token += answer.stop_token_id.has_value();
  return absl::OkStatus();
}

absl::Status Simulation::CheckAlone(const Tracked& tracked) {
  // A fresh engine that does none of what can go wrong: one request, one step
  // in flight, no cache, all the room it wants.
  EngineOptions options = options_;
  options.enable_prefix_caching = false;
  options.steps_in_flight = 1;
  options.num_blocks = 4096;
  options.max_model_len = MaxNumTokens();
  options.max_num_batched_tokens = 4096;
  options.max_num_seqs = 1;
  HashModelRunner runner(options, model_options_);
  QUIRE_ASSIGN_OR_RETURN(std::unique_ptr<Engine> engine,
                         Engine::Create(options, &runner, &clock_));
  Request request = tracked.request;
  if (!request.sampling.seed) request.sampling.seed = tracked.engine_seed;
  QUIRE_RETURN_IF_ERROR(engine->AddRequest(request));
  std::vector<OutputEvent> events;
  while (engine->HasWork()) engine->Step(&events);
  std::vector<std::vector<int32_t>> answers(request.n);
  for (const OutputEvent& event : events) {
    for (const TokenOutput& token : event.tokens) {
      answers[event.choice_idx].push_back(token.token_id);
    }
  }
  ++coverage_->num_checked_alone;
  for (int i = 0; i < request.n; ++i) {
    const std::vector<int32_t>& told = tracked.choices[i].token_ids;
    if (told.size() > answers[i].size() ||
        !std::equal(told.begin(), told.end(), answers[i].begin())) {
      return absl::InternalError("a fresh engine answers differently");
    }
  }
  return absl::OkStatus();
}

void Simulation::NoteAdmissions() {
  for (RequestId id : live_) {
    Tracked& tracked = tracked_.at(id);
    for (int i = 0; i < tracked.request.n; ++i) {
      const Sequence* sequence = engine_->scheduler().FindSequence(id, i);
      int64_t& admitted_step = tracked.choices[i].admitted_step;
      if (sequence == nullptr || !sequence->has_holdings()) {
        admitted_step = -1;
      } else if (admitted_step < 0) {
        admitted_step = step_;
      }
    }
  }
}

absl::Status Simulation::StepOnce() {
  ++step_;
  ++coverage_->num_steps;
  clock_.Advance(absl::Microseconds(random_.Below(1000)));
  std::vector<OutputEvent> events;
  engine_->Step(&events);
  QUIRE_RETURN_IF_ERROR(TakeEvents(std::move(events)));
  if (!runner_->violation().empty()) {
    return absl::InternalError(runner_->violation());
  }
  if (!contamination_.empty()) return absl::InternalError(contamination_);
  NoteAdmissions();
  QUIRE_RETURN_IF_ERROR(engine_->CheckIntegrity());
  for (int32_t block_id : runner_->BlocksInFlight()) {
    if (engine_->Health().ok() && !engine_->cache().IsReferenced(block_id)) {
      return absl::InternalError(
          absl::StrCat("I5: block ", block_id,
                       " is named by a step in flight and not held"));
    }
  }
  for (RequestId id : live_) {
    if (step_ > tracked_.at(id).last_step) {
      return absl::InternalError(
          absl::StrCat("request ", id, " has not ended within its bound"));
    }
  }
  return absl::OkStatus();
}

absl::Status Simulation::CheckQuiescent() {
  if (!live_.empty()) return absl::InternalError("idle with live requests");
  const EngineStats stats = engine_->Stats();
  if (engine_->cache().num_referenced_blocks() != 0 ||
      stats.num_free_blocks != stats.num_blocks) {
    return absl::InternalError(
        absl::StrCat(engine_->cache().num_referenced_blocks(),
                     " blocks are held by nobody"));
  }
  if (stats.num_running != 0 || stats.num_waiting != 0 || !stats.is_idle ||
      engine_->scheduler().num_unstarted_requests() != 0 ||
      engine_->scheduler().num_unstarted_tokens() != 0) {
    return absl::InternalError("idle, but something is still counted");
  }
  return engine_->CheckIntegrity();
}

absl::Status Simulation::Run() {
  runner_ = std::make_unique<HashModelRunner>(options_, model_options_);
  SetFaults();
  QUIRE_ASSIGN_OR_RETURN(engine_,
                         Engine::Create(options_, runner_.get(), &clock_));
  while (step_ < num_steps_ && engine_->Health().ok()) {
    if (live_.size() < 40 && Chance(arrivals_per_1000_)) {
      for (int i = 0; i < burst_size_; ++i) QUIRE_RETURN_IF_ERROR(Submit());
    }
    if (Chance(aborts_per_1000_)) QUIRE_RETURN_IF_ERROR(AbortSomething());
    if (Chance(2)) {
      // Everything at once, as when all clients leave.
      while (!live_.empty()) {
        std::vector<OutputEvent> events;
        const RequestId id = live_.front();
        for (Choice& choice : tracked_.at(id).choices)
          choice.was_aborted = true;
        engine_->Abort(id, -1, false, &events);
        QUIRE_RETURN_IF_ERROR(TakeEvents(std::move(events)));
      }
    }
    if (engine_->HasWork()) {
      QUIRE_RETURN_IF_ERROR(StepOnce());
    } else {
      QUIRE_RETURN_IF_ERROR(CheckQuiescent());
      ++step_;
    }
  }
  while (engine_->HasWork()) QUIRE_RETURN_IF_ERROR(StepOnce());
  if (!engine_->Health().ok()) {
    ++coverage_->num_engine_deaths;
    QUIRE_RETURN_IF_ERROR(Submit());
  }
  coverage_->num_preemptions += engine_->Stats().num_preemptions;
  return CheckQuiescent();
}

void Print(const Coverage& c) {
  std::printf(
      "steps %lld, requests %lld (%lld rejected), preemptions %lld, cached "
      "tokens %lld, copies %lld, rows with input on the device %lld, inner "
      "chunks %lld, mixed steps %lld\n",
      (long long)c.num_steps, (long long)c.num_requests,
      (long long)c.num_rejected, (long long)c.num_preemptions,
      (long long)c.num_cached_tokens, (long long)c.num_copies,
      (long long)c.num_on_device_rows, (long long)c.num_chunks,
      (long long)c.num_mixed_steps);
  std::printf(
      "ends: stop %lld (by stop token %lld), length %lld, error %lld; aborted "
      "waiting %lld, prefill %lld, decode %lld, preempted %lld, in flight "
      "%lld, single choices %lld\n",
      (long long)c.num_finished_stop, (long long)c.num_finished_stop_token,
      (long long)c.num_finished_length, (long long)c.num_finished_error,
      (long long)c.num_aborted_waiting, (long long)c.num_aborted_prefill,
      (long long)c.num_aborted_decode, (long long)c.num_aborted_preempted,
      (long long)c.num_aborted_in_flight, (long long)c.num_aborted_choices);
  std::printf(
      "failed steps %lld, non-finite rows %lld (%lld of another request), "
      "engine deaths %lld; checked in "
      "a fresh engine %lld; largest share of the liveness bound %.2f\n",
      (long long)c.num_failed_steps, (long long)c.num_non_finite,
      (long long)c.num_contaminated, (long long)c.num_engine_deaths,
      (long long)c.num_checked_alone, c.max_bound_share);
}

TEST(EngineFuzzTest, RandomHistoriesAnswerAsIfAlone) {
  Coverage coverage;
  if (const char* seed = std::getenv("QUIRE_FUZZ_SEED")) {
    Simulation simulation(std::strtoull(seed, nullptr, 0), &coverage);
    const absl::Status status = simulation.Run();
    EXPECT_TRUE(status.ok()) << status;
    Print(coverage);
    return;
  }
  const char* steps = std::getenv("QUIRE_FUZZ_STEPS");
  const int64_t num_steps =
      steps == nullptr ? kDefaultNumSteps : std::strtoll(steps, nullptr, 0);
  for (uint64_t seed = kFirstSeed; coverage.num_steps < num_steps; ++seed) {
    Simulation simulation(seed, &coverage);
    const absl::Status status = simulation.Run();
    ASSERT_TRUE(status.ok())
        << "QUIRE_FUZZ_SEED=" << seed << " after " << coverage.num_steps
        << " steps in all: " << status;
  }
  Print(coverage);
  const int64_t enough = num_steps / 2000;
  EXPECT_GE(coverage.num_preemptions, enough);
  EXPECT_GE(coverage.num_cached_tokens, enough);
  EXPECT_GE(coverage.num_copies, enough);
  EXPECT_GE(coverage.num_on_device_rows, enough);
  EXPECT_GE(coverage.num_mixed_steps, enough);
  EXPECT_GE(coverage.num_finished_stop_token, enough);
  EXPECT_GE(coverage.num_finished_length, enough);
  EXPECT_GE(coverage.num_finished_error, enough);
  EXPECT_GE(coverage.num_failed_steps, enough);
  EXPECT_GE(coverage.num_non_finite, enough);
  EXPECT_GE(coverage.num_aborted_waiting, enough);
  EXPECT_GE(coverage.num_aborted_prefill, enough);
  EXPECT_GE(coverage.num_aborted_decode, enough);
  EXPECT_GE(coverage.num_aborted_preempted, enough / 4);
  EXPECT_GE(coverage.num_aborted_in_flight, enough);
  EXPECT_GE(coverage.num_aborted_choices, enough);
  EXPECT_GE(coverage.num_engine_deaths, 1);
}

}  // namespace
}  // namespace quire
