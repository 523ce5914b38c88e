#include "benchmarks/edge_cloud_model.h"

#include <algorithm>
#include <deque>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "engine/base/random.h"
#include "engine/base/status.h"
#include "engine/engine.h"
#include "engine/speculative/link/draft_ahead.h"
#include "engine/speculative/link/link_drafter.h"
#include "engine/speculative/link/link_messages.h"
#include "tests/hash_model_runner.h"

namespace quire {
namespace {

constexpr int kVocabSize = 1000;

class VirtualClock : public Clock {
 public:
  absl::Time Now() override { return now_; }
  void AdvanceTo(absl::Time time) { now_ = std::max(now_, time); }
  void Advance(absl::Duration duration) { now_ += duration; }

 private:
  absl::Time now_ = absl::UnixEpoch();
};

// The hash model, with steps that take their time.
class TimedRunner : public ModelRunner {
 public:
  TimedRunner(const EdgeCloudParameters& parameters,
              const EngineOptions& options, VirtualClock* clock)
      : parameters_(parameters),
        clock_(clock),
        model_(options, HashModelOptions()) {}

  int steps_in_flight() const override { return 1; }
  absl::Status Submit(const SchedulerOutput& output) override {
    int64_t num_tokens = 0;
    int64_t num_decode_tokens = 0;
    for (const ScheduledRow& row : output.rows) {
      num_tokens += row.num_tokens;
      const bool is_decode = row.num_tokens == 1 + row.num_drafts;
      if (is_decode) num_decode_tokens += row.num_tokens;
    }
    num_rows_ += num_decode_tokens;
    ++num_steps_;
    duration_ = parameters_.step_base + parameters_.step_per_token * num_tokens;
    return model_.Submit(output);
  }
  absl::StatusOr<StepResult> Collect() override {
    clock_->Advance(duration_);
    return model_.Collect();
  }
  bool Done() const override { return true; }

  int64_t num_rows() const { return num_rows_; }
  int64_t num_steps() const { return num_steps_; }

 private:
  const EdgeCloudParameters parameters_;
  VirtualClock* const clock_;
  HashModelRunner model_;
  absl::Duration duration_;
  int64_t num_rows_ = 0;
  int64_t num_steps_ = 0;
};

// One direction of a connection.
class Wire {
 public:
  Wire(const EdgeCloudParameters& parameters, uint64_t seed)
      : round_trip_(parameters.round_trip),
        loss_(parameters.loss),
        random_(seed) {}

  // When what is sent at `time` is there. Called in order of time.
  absl::Time Arrival(absl::Time time) {
    absl::Time arrival = time + round_trip_ / 2;
    while (random_.Uniform() < loss_) {
      arrival += std::max(2 * round_trip_, absl::Milliseconds(10));
    }
    last_ = std::max(last_, arrival);
    return last_;
  }

 private:
  const absl::Duration round_trip_;
  const double loss_;
  SimulationRandom random_;
  absl::Time last_ = absl::InfinitePast();
};

// What the target says, and what a drafter of some acceptance makes of it.
class Truth {
 public:
  Truth(const EdgeCloudParameters& parameters, const EngineOptions& options)
      : parameters_(parameters), options_(options) {}

  Request MakeRequest(RequestId id) const {
    Request request;
    request.id = id;
    for (int i = 0; i < parameters_.num_prompt_tokens; ++i) {
      request.prompt_token_ids.push_back(
          static_cast<int32_t>(MixBits(id, i) % kVocabSize));
    }
    request.sampling.temperature = 0;
    request.sampling.seed = id;
    request.sampling.ignore_eos = true;
    request.sampling.max_tokens = parameters_.num_tokens_per_request;
    return request;
  }

  // The draft for the token at `position`, made for the `attempt`-th time.
  int32_t DraftOf(RequestId id, int64_t position, uint64_t attempt) {
    const std::vector<int32_t>& answer = AnswerOf(id);
    if (position >= static_cast<int64_t>(answer.size())) return 0;
    const double dice =
        (MixBits(MixBits(id, position), MixBits(parameters_.seed, attempt)) >>
         11) *
        0x1p-53;
    return dice < parameters_.acceptance ? answer[position]
                                         : (answer[position] + 1) % kVocabSize;
  }

 private:
  const std::vector<int32_t>& AnswerOf(RequestId id) {
    auto [it, is_new] = answers_.try_emplace(id);
    if (is_new) {
      it->second = AnswerAlone(options_, HashModelOptions(), MakeRequest(id),
                               id, 0, options_.max_model_len)
                       .token_ids;
    }
    return it->second;
  }

  const EdgeCloudParameters parameters_;
  const EngineOptions options_;
  std::map<RequestId, std::vector<int32_t>> answers_;
};

// Beside the target: all sequences of a step are drafted for together.
class CloudDrafter : public Drafter {
 public:
  CloudDrafter(absl::Duration per_token, VirtualClock* clock, Truth* truth)
      : per_token_(per_token), clock_(clock), truth_(truth) {}
  absl::string_view method() const override { return "model"; }
  bool is_costly() const override { return true; }
  absl::Status Propose(absl::Span<const DraftSequence> sequences,
                       absl::Span<Draft> drafts) override {
    int depth = 0;
    for (size_t i = 0; i < sequences.size(); ++i) {
      const DraftSequence& sequence = sequences[i];
      const int64_t begin = static_cast<int64_t>(sequence.token_ids.size()) -
                            sequence.num_prompt_tokens;
      for (int k = 0; k < sequence.max_num_drafts; ++k) {
        drafts[i].token_ids.push_back(
            truth_->DraftOf(sequence.request_id, begin + k, begin));
      }
      depth = std::max(depth, sequence.max_num_drafts);
    }
    clock_->Advance(per_token_ * depth);
    return absl::OkStatus();
  }

 private:
  const absl::Duration per_token_;
  VirtualClock* const clock_;
  Truth* const truth_;
};

struct Message {
  absl::Time arrival;
  LinkDrafts drafts;            // To the cloud; without tokens: a new request.
  std::vector<int32_t> tokens;  // To the edge.
  bool is_last = false;
};

// One edge with one request at a time, as EdgeEngine has them.
class Edge {
 public:
  Edge(const EdgeCloudParameters& parameters, int edge_idx, Truth* truth)
      : parameters_(parameters),
        truth_(truth),
        up_(parameters, MixBits(parameters.seed, 2 * edge_idx)),
        down_(parameters, MixBits(parameters.seed, 2 * edge_idx + 1)),
        policy_(parameters.max_drafts),
        next_id_(1 + edge_idx * parameters.num_requests_per_edge),
        end_id_(next_id_ + parameters.num_requests_per_edge) {
    policy_.NoteRoundTrip(parameters.round_trip);
    policy_.NoteDraft(parameters.edge_draft);
    Ask(absl::UnixEpoch());
  }

  // The cloud has drawn `tokens` at `time`.
  void Tell(absl::Time time, std::vector<int32_t> tokens, bool is_last) {
    down_messages_.push_back(
        {down_.Arrival(time), {}, std::move(tokens), is_last});
  }

  // All that happens here up to `time`, in order.
  void RunUntil(absl::Time time) {
    for (;;) {
      const absl::Time heard_at = down_messages_.empty()
                                      ? absl::InfiniteFuture()
                                      : down_messages_.front().arrival;
      const absl::Time next = std::min(heard_at, drafted_at_);
      if (next > time || next == absl::InfiniteFuture()) return;
      if (heard_at <= drafted_at_) {
        const Message message = std::move(down_messages_.front());
        down_messages_.pop_front();
        Hear(message);
      } else {
        AddDraft();
      }
    }
  }

  std::deque<Message>& up_messages() { return up_messages_; }
  absl::Time NextEvent() const {
    return std::min(drafted_at_, down_messages_.empty()
                                     ? absl::InfiniteFuture()
                                     : down_messages_.front().arrival);
  }
  absl::Time ended_at() const { return ended_at_; }
  int64_t num_drafts_sent() const { return num_drafts_sent_; }

 private:
  void Ask(absl::Time now) {
    if (next_id_ == end_id_) return;
    id_ = next_id_++;
    chain_ = DraftChain();
    is_drafting_ = false;
    heard_at_ = absl::InfinitePast();
    Message message;
    message.arrival = up_.Arrival(now);
    message.drafts.request_id = id_;
    up_messages_.push_back(std::move(message));
    Draft(now);
  }

  void Hear(const Message& message) {
    const DraftChain::Outcome outcome = chain_.Hear(message.tokens);
    policy_.NoteOutcome(outcome);
    if (heard_at_ != absl::InfinitePast()) {
      policy_.NoteStep(message.arrival - heard_at_);
    }
    heard_at_ = message.arrival;
    if (message.is_last) {
      ended_at_ = message.arrival;
      drafted_at_ = absl::InfiniteFuture();
      return Ask(message.arrival);
    }
    const bool is_behind = drafted_at_ != absl::InfiniteFuture() &&
                           chain_.num_heard() > position_ + 2;
    if (outcome.is_broken || is_behind) {
      drafted_at_ = absl::InfiniteFuture();
      is_drafting_ = false;
    }
    Draft(message.arrival);
  }

  // Begins a chunk, if there is to be one.
  void Draft(absl::Time now) {
    if (parameters_.place != DraftPlace::kEdge ||
        drafted_at_ != absl::InfiniteFuture()) {
      return;
    }
    const int num_wanted = parameters_.has_gate
                               ? policy_.NumAhead(!is_drafting_)
                               : 4 * parameters_.max_drafts;
    const bool is_new = !is_drafting_;
    is_drafting_ = num_wanted > 0;
    if (num_wanted == 0 || chain_.num_ahead() > num_wanted / 2) return;
    const int64_t num_tokens = chain_.tokens().size();
    end_ = std::min<int64_t>(num_tokens + num_wanted - chain_.num_ahead(),
                             parameters_.num_tokens_per_request - 1);
    if (num_tokens >= end_) return;
    if (is_new) ++attempt_;
    position_ = num_tokens;
    // What precedes is computed with the first one, which takes twice as long.
    drafted_at_ = now + 2 * parameters_.edge_draft;
  }

  void AddDraft() {
    const absl::Time now = drafted_at_;
    const bool is_ahead =
        position_ == static_cast<int64_t>(chain_.tokens().size());
    const int32_t token_id = truth_->DraftOf(id_, position_, attempt_);
    const DraftChain::Outcome outcome = chain_.Extend(position_, token_id);
    policy_.NoteOutcome(outcome);
    if (is_ahead) {
      Message message;
      message.arrival = up_.Arrival(now);
      message.drafts.request_id = id_;
      message.drafts.chain_no = chain_.chain_no();
      message.drafts.num_generated = static_cast<int32_t>(position_);
      message.drafts.token_ids = {token_id};
      up_messages_.push_back(std::move(message));
      ++num_drafts_sent_;
    }
    ++position_;
    drafted_at_ = now + parameters_.edge_draft;
    if (outcome.is_broken) is_drafting_ = false;
    if (outcome.is_broken || position_ >= end_) {
      drafted_at_ = absl::InfiniteFuture();
      Draft(now);
    }
  }

  const EdgeCloudParameters parameters_;
  Truth* const truth_;
  Wire up_, down_;
  DraftAheadPolicy policy_;
  RequestId next_id_, end_id_, id_ = 0;
  DraftChain chain_;
  bool is_drafting_ = false;
  uint64_t attempt_ = 0;
  int64_t position_ = 0, end_ = 0;
  absl::Time drafted_at_ = absl::InfiniteFuture();  // The next draft's.
  absl::Time heard_at_ = absl::InfinitePast();
  absl::Time ended_at_;
  std::deque<Message> up_messages_, down_messages_;
  int64_t num_drafts_sent_ = 0;
};

EngineOptions MakeOptions(const EdgeCloudParameters& parameters) {
  EngineOptions options;
  options.vocab_size = kVocabSize;
  options.max_model_len =
      parameters.num_prompt_tokens + parameters.num_tokens_per_request + 1;
  options.max_num_seqs = std::max(parameters.num_edges, 1);
  options.max_num_batched_tokens = 512;
  options.num_blocks = options.max_num_seqs * (options.max_model_len / 16 + 2);
  options.max_num_scored_tokens =
      options.max_num_seqs * (parameters.max_drafts + 1);
  options.max_num_queued_reqs = options.max_num_seqs;
  if (parameters.place != DraftPlace::kNowhere) {
    options.num_speculative_tokens = parameters.max_drafts;
    options.adapts_drafts = parameters.has_gate;
  }
  return options;
}

}  // namespace

EdgeCloudResult RunEdgeCloud(const EdgeCloudParameters& parameters) {
  const EngineOptions options = MakeOptions(parameters);
  VirtualClock clock;
  TimedRunner runner(parameters, options, &clock);
  Truth truth(parameters, options);
  LinkDrafter link_drafter(kVocabSize, nullptr);
  CloudDrafter cloud_drafter(parameters.cloud_draft, &clock, &truth);
  Drafter* const drafters[] = {nullptr, &link_drafter, &cloud_drafter};
  auto engine = Engine::Create(options, &runner, &clock,
                               drafters[static_cast<int>(parameters.place)]);
  QUIRE_CHECK(engine.ok());
  std::vector<std::unique_ptr<Edge>> edges;
  for (int i = 0; i < parameters.num_edges; ++i) {
    edges.push_back(std::make_unique<Edge>(parameters, i, &truth));
  }
  const auto edge_of = [&](RequestId id) -> Edge& {
    return *edges[(id - 1) / parameters.num_requests_per_edge];
  };
  int num_left = parameters.num_edges * parameters.num_requests_per_edge;
  std::vector<OutputEvent> events;
  while (num_left > 0 || (*engine)->HasWork()) {
    absl::Time next = absl::InfiniteFuture();
    for (const auto& edge : edges) {
      edge->RunUntil(clock.Now());
      std::deque<Message>& messages = edge->up_messages();
      while (!messages.empty() && messages.front().arrival <= clock.Now()) {
        const LinkDrafts& drafts = messages.front().drafts;
        if (!drafts.token_ids.empty()) {
          link_drafter.Put(drafts.request_id, drafts);
        } else {
          link_drafter.Open(drafts.request_id, 1);
          QUIRE_CHECK(
              (*engine)->AddRequest(truth.MakeRequest(drafts.request_id)).ok());
        }
        messages.pop_front();
      }
      next = std::min(next, edge->NextEvent());
      if (!messages.empty()) next = std::min(next, messages.front().arrival);
    }
    if (!(*engine)->HasWork()) {
      clock.AdvanceTo(next);
      continue;
    }
    (*engine)->Step(&events);
    for (OutputEvent& event : events) {
      QUIRE_CHECK(event.error.ok());
      std::vector<int32_t> tokens;
      for (const TokenOutput& token : event.tokens) {
        tokens.push_back(token.token_id);
      }
      edge_of(event.request_id).Tell(clock.Now(), tokens, event.is_last);
      if (!event.is_last) continue;
      --num_left;
      link_drafter.Close(event.request_id);
    }
    events.clear();
  }
  EdgeCloudResult result;
  absl::Time end = absl::UnixEpoch();
  int64_t num_sent = 0;
  for (const auto& edge : edges) {
    edge->RunUntil(absl::InfiniteFuture());
    end = std::max(end, edge->ended_at());
    num_sent += edge->num_drafts_sent();
  }
  const EngineStats stats = (*engine)->Stats();
  const double num_tokens = static_cast<double>(stats.num_generation_tokens);
  result.tokens_per_second =
      num_tokens / absl::ToDoubleSeconds(end - absl::UnixEpoch());
  result.rows_per_token = runner.num_rows() / num_tokens;
  result.steps_per_token =
      runner.num_steps() * parameters.num_edges / num_tokens;
  result.acceptance = stats.num_draft_tokens == 0
                          ? 0
                          : static_cast<double>(stats.num_accepted_tokens) /
                                stats.num_draft_tokens;
  result.drafts_sent_per_token = num_sent / num_tokens;
  return result;
}

}  // namespace quire
