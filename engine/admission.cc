#include "engine/admission.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "engine/base/status.h"
#include "engine/sequence.h"

namespace quire {
namespace {

// What a client is told to wait at least, and at most: by then much may have
// changed.
constexpr absl::Duration kMinWait = absl::Seconds(1);
constexpr absl::Duration kMaxWait = absl::Seconds(60);

std::string FormatSeconds(absl::Duration duration) {
  return absl::StrFormat("%.1f s", absl::ToDoubleSeconds(duration));
}

}  // namespace

int64_t NumBytesOf(const Request& request) {
  const SamplingParams& sampling = request.sampling;
  int64_t num_ids =
      request.prompt_token_ids.size() + 2 * sampling.logit_bias.size() +
      // And again among those banned before min_tokens.
      2 * sampling.stop_token_ids.size() + sampling.allowed_token_ids.size();
  int64_t num_lists = 0;
  const auto add = [&](const auto& sequences) {
    num_lists += sequences.size();
    for (const std::vector<int32_t>& ids : sequences) num_ids += ids.size();
  };
  if (sampling.bad_words != nullptr) add(*sampling.bad_words);
  if (sampling.dry_breakers != nullptr) add(sampling.dry_breakers->sequences());
  return static_cast<int64_t>(
      sizeof(Request) + sizeof(RequestState) + request.n * sizeof(Sequence) +
      num_ids * sizeof(int32_t) + num_lists * sizeof(std::vector<int32_t>) +
      request.cache_namespace.size() + request.owner.size());
}

Admission::Admission(const EngineOptions& options, absl::Time now)
    : options_(options),
      monitor_(absl::Seconds(options.target_queue_delay_seconds), now) {
  last_.mean_output_tokens = 128;
}

int32_t Admission::PriorityOf(const Request& request) const {
  return options_.scheduling_policy == SchedulingPolicy::kPriority
             ? request.priority
             : 0;
}

// As its owner's other requests are valued, by the answers that run, too; the
// mean of those that have ended lags behind them.
double Admission::ExpectedOutputTokens(const Request& request) const {
  const auto found = queued_.find({PriorityOf(request), request.owner});
  return found != queued_.end() && found->second.expected_output_tokens > 0
             ? found->second.expected_output_tokens
             : last_.mean_output_tokens;
}

int64_t Admission::CostOf(const Request& request) const {
  const int64_t prompt_cost =
      kPromptTokenCost * request.prompt_token_ids.size();
  if (request.kind == RequestKind::kEmbed) return prompt_cost;
  return prompt_cost +
         kOutputTokenCost * request.n *
             std::min<int64_t>(request.sampling.max_tokens,
                               std::llround(ExpectedOutputTokens(request)));
}

int Admission::NumFreeSlots() const {
  return std::max(0, options_.max_num_seqs - last_.num_running);
}

// What starts before the request if shares are kept: all that is more urgent,
// its owner's own, and of each other owner as much as the owner's own, by
// weight.
int64_t Admission::CostAhead(const Request& request, int64_t cost) const {
  const int32_t priority = PriorityOf(request);
  int64_t own = 0;
  if (const auto it = queued_.find({priority, request.owner});
      it != queued_.end()) {
    own = it->second.cost;
  }
  int64_t ahead = own;
  for (const auto& [key, share] : queued_) {
    if (key.first > priority) break;  // In order of priority.
    if (key.first < priority) {
      ahead += share.cost;
    } else if (key.second != request.owner) {
      const double weight_ratio =
          double(share.weight) / std::max(1, request.share_weight);
      ahead += std::min<int64_t>(share.cost, (own + cost) * weight_ratio);
    }
  }
  return ahead;
}

// Of what is ahead, what has to be done before the next one starts: whole
// answers where slots are taken one after the other, the prompts alone of those
// who find a free slot.
int64_t Admission::CostInTheWay(int64_t cost_ahead) const {
  if (total_.num_requests == 0 || total_.cost <= 0) return cost_ahead;
  const double free_part =
      lacks_blocks_
          ? 0
          : std::min(1.0, double(NumFreeSlots()) / total_.num_requests);
  const double prompt_part =
      std::min(1.0, double(kPromptTokenCost * total_.num_tokens) / total_.cost);
  return std::llround(cost_ahead * (1 - free_part * (1 - prompt_part)));
}

absl::Duration Admission::PredictDelay(int64_t cost_ahead,
                                       absl::Duration stalled) const {
  return monitor_.PredictDelay(CostInTheWay(cost_ahead), stalled);
}

absl::Status Admission::Refuse(absl::Status status, absl::Duration wait) const {
  const int64_t seconds = absl::ToInt64Seconds(
      absl::Ceil(std::clamp(wait, kMinWait, kMaxWait), absl::Seconds(1)));
  status.SetPayload(kRetryAfterPayload, absl::Cord(absl::StrCat(seconds)));
  return status;
}

absl::Status Admission::CheckBounds(const Request& request, int64_t cost,
                                    absl::Duration stalled) {
  // What the free slots will take with the next step does not wait.
  const int64_t max_requests =
      options_.max_num_queued_reqs + int64_t{NumFreeSlots()};
  const int64_t num_tokens = request.prompt_token_ids.size();
  const auto full = [&](const auto&... parts) {
    ++refusals_.num_queue_full;
    // Until a good part of the queue has gone.
    return Refuse(absl::ResourceExhaustedError(
                      absl::StrCat("the queue is full: ", parts...)),
                  predicted_delay(stalled) / 4);
  };
  if (total_.num_requests >= max_requests) {
    return full(total_.num_requests, " requests wait, the limit is ",
                options_.max_num_queued_reqs);
  }
  // A request beyond the limit of its own may enter an empty queue.
  if (total_.num_requests > 0 &&
      total_.num_tokens + num_tokens > options_.max_num_queued_tokens) {
    return full(total_.num_tokens, " prompt tokens wait, ", num_tokens,
                " more exceed the limit of ", options_.max_num_queued_tokens);
  }
  if (total_.num_requests > 0 &&
      total_.num_bytes + request.num_bytes > options_.max_num_queued_bytes) {
    return full("what waits takes ", total_.num_bytes, " bytes, the limit is ",
                options_.max_num_queued_bytes);
  }
  if (request.owner.empty()) return absl::OkStatus();
  QueuedShare own;
  for (const auto& [key, share] : queued_) {
    if (key.second != request.owner) continue;
    own.num_requests += share.num_requests;
    own.num_tokens += share.num_tokens;
    own.num_bytes += share.num_bytes;
  }
  if (own.num_requests == 0 ||
      (own.num_requests < max_requests - total_.num_requests &&
       own.num_tokens + num_tokens <=
           options_.max_num_queued_tokens - total_.num_tokens &&
       own.num_bytes + request.num_bytes <=
           options_.max_num_queued_bytes - total_.num_bytes)) {
    return absl::OkStatus();
  }
  ++refusals_.num_share_full;
  absl::Status status =
      Refuse(absl::ResourceExhaustedError(absl::StrCat(
                 "this API key has its share of the queue: ", own.num_requests,
                 " requests with ", own.num_tokens, " prompt tokens wait")),
             PredictDelay(CostAhead(request, cost), stalled) / 4);
  status.SetPayload(kOwnLimitPayload, absl::Cord("queue"));
  return status;
}

absl::Status Admission::CheckDeadline(absl::Time now, const Request& request,
                                      int64_t cost, absl::Duration stalled) {
  if (request.deadline == absl::InfiniteFuture()) return absl::OkStatus();
  const absl::Duration left = request.deadline - now;
  if (left <= absl::ZeroDuration()) {
    ++refusals_.num_too_late;
    return absl::DeadlineExceededError(
        "the request's timeout was over before it could wait");
  }
  const absl::Duration delay = PredictDelay(CostAhead(request, cost), stalled);
  if (delay < left) return absl::OkStatus();
  ++refusals_.num_too_late;
  return Refuse(absl::ResourceExhaustedError(
                    absl::StrCat("requests wait ", FormatSeconds(delay),
                                 " now, longer than this one's timeout lasts")),
                delay - left);
}

absl::Status Admission::Admit(absl::Time now, Request* request,
                              absl::Duration stalled) {
  request->num_bytes = NumBytesOf(*request);
  const int64_t cost = CostOf(*request);
  if (!request->continues_call) {
    QUIRE_RETURN_IF_ERROR(CheckBounds(*request, cost, stalled));
    QUIRE_RETURN_IF_ERROR(CheckDeadline(now, *request, cost, stalled));
  }
  Add(*request, cost);
  return absl::OkStatus();
}

void Admission::Add(const Request& request, int64_t cost) {
  QueuedShare& share = queued_[{PriorityOf(request), request.owner}];
  share.weight = request.share_weight;
  for (QueuedShare* each : {&share, &total_}) {
    ++each->num_requests;
    each->num_tokens += request.prompt_token_ids.size();
    each->num_bytes += request.num_bytes;
    each->cost += cost;
  }
}

void Admission::NoteStep(absl::Time now, const Snapshot& snapshot,
                         const std::vector<QueuedShare>* queued,
                         const std::vector<const Request*>& inbox) {
  last_ = snapshot;
  if (queued != nullptr) scheduler_queued_ = *queued;
  queued_.clear();
  total_ = QueuedShare();
  for (const QueuedShare& share : scheduler_queued_) {
    queued_[{share.priority, share.owner}] = share;
    total_.num_requests += share.num_requests;
    total_.num_tokens += share.num_tokens;
    total_.num_bytes += share.num_bytes;
    total_.cost += share.cost;
  }
  LoadMonitor::Interval interval;
  // Who waits now was there when the step was planned: the inbox comes later.
  const bool has_queue = total_.num_requests > 0;
  interval.has_queue = had_queue_ || has_queue;
  had_queue_ = has_queue;
  // Half of it: prompts that lack budget fill a step, but for its last row.
  lacks_blocks_ = has_queue && int64_t{2} * snapshot.num_step_tokens *
                                       options_.num_micro_batches <
                                   options_.max_num_batched_tokens;
  interval.queued_cost = CostInTheWay(total_.cost);
  interval.step_use = std::min(
      1.0,
      std::max(double(snapshot.num_step_tokens) * options_.num_micro_batches /
                   options_.max_num_batched_tokens,
               double(snapshot.num_running) / options_.max_num_seqs));
  interval.kv_use = snapshot.kv_use;
  interval.work = snapshot.work;
  monitor_.Note(now, interval);
  for (const Request* request : inbox) Add(*request, CostOf(*request));
}

void Admission::NoteIdle(absl::Time now) {
  LoadMonitor::Interval interval;
  interval.work = last_.work;
  had_queue_ = false;
  monitor_.Note(now, interval);
}

double Admission::QueueUse() const {
  const double num_requests = std::max(0, total_.num_requests - NumFreeSlots());
  return std::max(
      {num_requests / options_.max_num_queued_reqs,
       // A single long request is no crowd.
       total_.num_requests <= NumFreeSlots()
           ? 0.0
           : std::max(
                 double(total_.num_tokens) / options_.max_num_queued_tokens,
                 double(total_.num_bytes) / options_.max_num_queued_bytes)});
}

}  // namespace quire
