#include "server/output_processor.h"

#include <pthread.h>

#include <algorithm>
#include <utility>

#include "engine/base/short_slice.h"

namespace quire {
namespace {

// A stream is written at most this often, but for its first token and its end.
// Below it, what a step of a small model costs (two wake-ups and a system call
// for each stream) would slow down the steps themselves; nobody reads faster.
constexpr auto kFlushInterval = std::chrono::milliseconds(1);

// Streams whose readers have not taken what was written before are written when
// all others were, for so long at a time or so many: they lose nothing by it
// (the kernel still has pieces for them), and the formatting of a thousand such
// streams would delay everybody else's tokens in every step.
constexpr auto kTimeForBehind = std::chrono::milliseconds(1);
constexpr int kMinCallsOfBehind = 16;

// Answers that begin or end: so many at once go before what goes on, for their
// clients wait for them; of a storm the others go after it, for so long at a
// time. A thousand first tokens take 30 ms to be formatted.
constexpr int kMaxUrgentAtOnce = 16;
constexpr auto kTimeForUrgent = std::chrono::microseconds(500);

// Streams that are written before the socket thread is woken for them.
constexpr int kCallsOfBurst = 16;

}  // namespace

OutputProcessor::OutputProcessor(ServerMetrics* metrics) : metrics_(metrics) {}

OutputProcessor::~OutputProcessor() { Stop(); }

void OutputProcessor::Stop() {
  {
    std::lock_guard<std::mutex> lock(mu_);
    is_stopping_ = true;
  }
  has_work_.notify_one();
  if (thread_.joinable()) thread_.join();
}

void OutputProcessor::Start(EngineLoop* engine) {
  engine_ = engine;
  thread_ = std::thread([this] { Run(); });
}

void OutputProcessor::Enqueue(Item item, bool is_urgent) {
  bool wakes = false;
  {
    std::lock_guard<std::mutex> lock(mu_);
    inbox_.push_back(std::move(item));
    is_urgent_ |= is_urgent;
    wakes = is_urgent || !is_resting_;
  }
  if (wakes) has_work_.notify_one();
}

void OutputProcessor::Register(std::shared_ptr<Call> call,
                               std::vector<CallPart> parts) {
  {
    std::lock_guard<std::mutex> lock(mu_);
    num_parts_ += static_cast<int>(parts.size());
    for (const CallPart& part : parts) not_begun_.insert(part.request_id);
    inbox_.push_back(Registered{std::move(call), std::move(parts)});
    if (is_resting_) return;
  }
  has_work_.notify_one();
}

void OutputProcessor::Accept(std::shared_ptr<Call> call) {
  // Its head may wait for its first token.
  Enqueue(Accepted{std::move(call)}, /*is_urgent=*/false);
}

void OutputProcessor::Reject(std::shared_ptr<Call> call, size_t first_rejected,
                             std::vector<CallPart> parts, absl::Status error) {
  for (size_t i = 0; i < first_rejected; ++i) {
    engine_->Abort(parts[i].request_id);
  }
  parts.erase(parts.begin(), parts.begin() + first_rejected);
  Enqueue(Rejected{std::move(call), std::move(parts), std::move(error)},
          /*is_urgent=*/true);
}

void OutputProcessor::FailAll(absl::Status error) {
  Enqueue(AllFailed{std::move(error)}, /*is_urgent=*/true);
}

bool OutputProcessor::IsUrgent(const std::vector<OutputEvent>& events) const {
  return std::any_of(
      events.begin(), events.end(), [this](const OutputEvent& event) {
        return event.finish_reason.has_value() || event.is_last ||
               (!not_begun_.empty() && !event.tokens.empty() &&
                not_begun_.contains(event.request_id));
      });
}

void OutputProcessor::Push(std::vector<OutputEvent> events) {
  {
    std::lock_guard<std::mutex> lock(mu_);
    // Looked at only where it decides something: a thread that does not rest
    // is woken by anything, and the thousand events of a step are not touched.
    const bool is_urgent = is_resting_ && IsUrgent(events);
    inbox_.push_back(std::move(events));
    is_urgent_ |= is_urgent;
    if (is_resting_ && !is_urgent) return;
  }
  other_core_.Avoid();
  has_work_.notify_one();
}

bool OutputProcessor::WaitUntilIdle(absl::Duration timeout) {
  std::unique_lock<std::mutex> lock(mu_);
  // An infinite duration would overflow the clock that is waited by.
  return is_idle_.wait_for(
      lock, absl::ToChronoMilliseconds(std::min(timeout, absl::Hours(24))),
      [this] { return IsIdle(); });
}

bool OutputProcessor::TakeItems(std::vector<Item>* items) {
  std::unique_lock<std::mutex> lock(mu_);
  if (behind_.empty() && accepted_.empty() && urgent_.empty()) {
    is_resting_ = true;
    has_work_.wait_until(lock, next_flush_,
                         [this] { return is_stopping_ || is_urgent_; });
    is_resting_ = false;
    has_work_.wait(lock, [this] {
      return is_stopping_ || !inbox_.empty() || !touched_.empty();
    });
  }
  is_urgent_ = false;
  std::swap(*items, inbox_);
  return !is_stopping_;
}

void OutputProcessor::StartCalls() {
  const auto begin = std::chrono::steady_clock::now();
  for (int i = 0; !accepted_.empty(); ++i) {
    if (i >= kMaxUrgentAtOnce &&
        std::chrono::steady_clock::now() - begin > kTimeForUrgent) {
      return;
    }
    accepted_.front()->Start();
    // Its events may have come first.
    urgent_.push_back(std::move(accepted_.front()));
    accepted_.pop_front();
  }
}

void OutputProcessor::FlushUnlessBehind(std::shared_ptr<Call> call) {
  if (!call->is_behind()) {
    call->Flush();
  } else if (!std::exchange(call->is_flush_deferred, true)) {
    behind_.push_back(std::move(call));
  }
}

void OutputProcessor::FlushTouched(WriteBurst* burst) {
  // Log-probabilities of a thousand streams take 10 ms, or less by those whose
  // readers have stopped: in between they would show in everybody's gaps.
  for (const bool is_costly : {false, true}) {
    int num_flushed = 0;
    for (auto& call : touched_) {
      if (call == nullptr || call->is_costly() != is_costly) continue;
      FlushUnlessBehind(std::move(call));
      if (++num_flushed % kCallsOfBurst == 0) burst->Deliver();
    }
    burst->Deliver();
  }
  touched_.clear();
}

void OutputProcessor::FlushCalls() {
  WriteBurst burst;
  const auto now = std::chrono::steady_clock::now();
  if (urgent_.size() <= kMaxUrgentAtOnce) {
    for (auto& call : urgent_) FlushUnlessBehind(std::move(call));
    urgent_.clear();
    burst.Deliver();
  }
  if (now >= next_flush_ && !touched_.empty()) {
    FlushTouched(&burst);
    next_flush_ = now + kFlushInterval;
  }
  auto begin = std::chrono::steady_clock::now();
  for (int i = 0; !urgent_.empty(); ++i) {
    if (i >= kMaxUrgentAtOnce &&
        std::chrono::steady_clock::now() - begin > kTimeForUrgent) {
      return;
    }
    FlushUnlessBehind(std::move(urgent_.front()));
    urgent_.pop_front();
  }
  burst.Deliver();
  begin = std::chrono::steady_clock::now();
  for (int i = 0; !behind_.empty(); ++i) {
    if (i >= kMinCallsOfBehind &&
        std::chrono::steady_clock::now() - begin > kTimeForBehind) {
      return;
    }
    behind_.front()->is_flush_deferred = false;
    behind_.front()->Flush();
    behind_.pop_front();
  }
}

void OutputProcessor::Run() {
  pthread_setname_np(pthread_self(), "output");
  TakeShortSlices();
  other_core_.Bind();
  std::vector<Item> items;
  while (TakeItems(&items)) {
    const size_t num_before = parts_.size();
    size_t num_added = 0;
    for (Item& item : items) {
      if (auto* registered = std::get_if<Registered>(&item)) {
        num_added += registered->parts.size();
      }
      std::visit([this](auto& value) { Handle(value); }, item);
    }
    items.clear();
    const bool is_storm = accepted_.size() > kMaxUrgentAtOnce;
    if (!is_storm) StartCalls();
    FlushCalls();
    if (is_storm) StartCalls();
    if (!deferred_.empty()) {
      HandleDeferred();
      FlushCalls();
    }
    std::lock_guard<std::mutex> lock(mu_);
    for (const RequestId id : begun_) not_begun_.erase(id);
    begun_.clear();
    num_parts_ -= static_cast<int>(num_before + num_added - parts_.size());
    num_unwritten_ = accepted_.size() + urgent_.size() + behind_.size();
    if (IsIdle()) is_idle_.notify_all();
  }
}

void OutputProcessor::Handle(Registered& item) {
  for (const CallPart& part : item.parts) {
    FinishedRequest figures;
    figures.arrival_time = part.arrival_time;
    figures.scheduled_time = absl::InfinitePast();
    figures.first_token_time = absl::InfinitePast();
    figures.num_prompt_tokens = part.num_prompt_tokens;
    figures.max_tokens = part.max_tokens;
    figures.n = part.n;
    parts_.emplace(part.request_id,
                   Part{item.call, part, figures,
                        std::vector<absl::Time>(part.n, absl::InfinitePast())});
  }
}

void OutputProcessor::Handle(Accepted& item) {
  accepted_.push_back(std::move(item.call));
}

void OutputProcessor::Handle(Rejected& item) {
  item.call->Fail(item.error);
  for (const CallPart& part : item.not_submitted) {
    parts_.erase(part.request_id);
    begun_.push_back(part.request_id);
  }
}

void OutputProcessor::Handle(AllFailed& item) {
  for (const auto& [id, part] : parts_) {
    part.call->Fail(item.error);
    engine_->Abort(id);
  }
}

void OutputProcessor::Handle(std::vector<OutputEvent>& events) {
  int num_begun = 0;
  for (OutputEvent& event : events) {
    const auto found = parts_.find(event.request_id);
    if (found == parts_.end()) continue;
    Call& call = *found->second.call;
    const bool begins =
        found->second.figures.first_token_time == absl::InfinitePast();
    // Once, for all events of a call: they stay in order.
    if (call.are_events_deferred || call.is_behind() ||
        (begins && ++num_begun > kMaxUrgentAtOnce)) {
      call.are_events_deferred = true;
      deferred_.push_back(std::move(event));
    } else {
      HandleEvent(event);
    }
  }
}

void OutputProcessor::HandleDeferred() {
  for (const OutputEvent& event : deferred_) {
    const auto found = parts_.find(event.request_id);
    if (found == parts_.end()) continue;
    found->second.call->are_events_deferred = false;
    HandleEvent(event);
  }
  deferred_.clear();
}

void OutputProcessor::ObserveTokens(Part& part, const OutputEvent& event) {
  if (event.tokens.empty()) return;
  part.figures.num_generation_tokens += event.tokens.size();
  if (part.figures.first_token_time == absl::InfinitePast()) {
    part.figures.first_token_time = event.time;
    metrics_->ObserveTimeToFirstToken(event.time - part.info.arrival_time);
  }
  absl::Time& last = part.last_token_times[event.choice_idx];
  if (last != absl::InfinitePast()) {
    metrics_->ObserveInterTokenLatency(event.time - last);
  }
  last = event.time;
}

void OutputProcessor::AbortParts(const std::shared_ptr<Call>& call) {
  for (const auto& [id, part] : parts_) {
    if (part.call == call) engine_->Abort(id);
  }
}

void OutputProcessor::HandleEvent(const OutputEvent& event) {
  const auto found = parts_.find(event.request_id);
  if (found == parts_.end()) return;
  Part& part = found->second;
  Call& call = *part.call;
  const bool is_first = part.figures.scheduled_time == absl::InfinitePast();
  if (is_first && event.scheduled_time != absl::Time() &&
      event.scheduled_time != absl::InfinitePast()) {
    part.figures.scheduled_time = event.scheduled_time;
    part.figures.num_cached_tokens = event.num_cached_tokens;
    call.AddCachedTokens(event.num_cached_tokens);
  }
  const bool begins = !event.tokens.empty() &&
                      part.figures.first_token_time == absl::InfinitePast();
  if (begins || event.is_last) begun_.push_back(event.request_id);
  const bool is_urgent =
      event.finish_reason.has_value() || event.is_last || begins;
  ObserveTokens(part, event);
  if (event.finish_reason == FinishReason::kError) {
    call.Fail(event.error);
    AbortParts(part.call);
  } else {
    const bool was_complete = call.is_complete();
    const bool is_stopped =
        call.Append(part.info.first_choice + event.choice_idx, event);
    if (call.is_complete() && !was_complete) {
      AbortParts(part.call);  // It has failed.
    } else if (is_stopped) {
      engine_->Abort(event.request_id, event.choice_idx,
                     /*reason_is_stop=*/true);
    }
  }
  if (is_urgent) {
    urgent_.push_back(part.call);
  } else if (touched_.empty() || touched_.back() != part.call) {
    touched_.push_back(part.call);
  }
  if (!event.is_last) return;
  part.figures.reason = event.finish_reason.value_or(FinishReason::kError);
  // The engine may have gone on to the limit after a stop string, or before it
  // heard that the call has failed.
  if (part.figures.reason != FinishReason::kError) {
    part.figures.reason =
        call.finish_reason(part.info.first_choice + event.choice_idx)
            .value_or(call.is_complete() ? FinishReason::kAbort
                                         : part.figures.reason);
  }
  part.figures.end_time = event.time;
  metrics_->ObserveFinished(part.figures);
  parts_.erase(found);
}

}  // namespace quire
