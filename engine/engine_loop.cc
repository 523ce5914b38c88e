#include "engine/engine_loop.h"

#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/base/status.h"
#include "engine/base/warning.h"
#include "engine/engine.h"

namespace quire {
namespace {

// What the engine thread is asked to do, in the order it was asked: an Abort
// that follows its Submit finds the request.
struct Command {
  std::optional<Request> request;  // Submit; otherwise Abort.
  RequestId id = 0;
  int32_t choice_idx = -1;
  bool reason_is_stop = false;
};

// The engine belongs to the thread; other threads meet it in the inbox and in
// the snapshot only, and mu_ is never held while a step runs.
class EngineLoopImpl final : public EngineLoop {
 public:
  EngineLoopImpl(const EngineOptions& options, std::unique_ptr<Engine> engine,
                 ModelRunner* runner, Clock* clock, OutputSink* sink,
                 Drafter* drafter)
      : options_(options),
        engine_(std::move(engine)),
        runner_(runner),
        clock_(clock),
        sink_(sink),
        drafter_(drafter),
        admission_(options, clock->Now()) {
    stats_ = engine_->Stats();
    thread_ = std::thread([this] { Run(); });
  }

  ~EngineLoopImpl() override {
    {
      std::lock_guard<std::mutex> lock(mu_);
      is_stopping_ = true;
    }
    has_something_to_do_.notify_one();
    thread_.join();
  }

  RequestId NewRequestId() override {
    return next_request_id_.fetch_add(1, std::memory_order_relaxed);
  }

  absl::Status Submit(Request request) override {
    QUIRE_RETURN_IF_ERROR(ValidateRequest(options_, request));
    const int64_t num_tokens = request.prompt_token_ids.size();
    const absl::Time now = clock_->Now();
    std::lock_guard<std::mutex> lock(mu_);
    if (!health_.ok()) return EngineHasFailed();
    if (is_stopping_ || (is_draining_ && !request.continues_call)) {
      return absl::UnavailableError("the engine is shutting down");
    }
    QUIRE_RETURN_IF_ERROR(admission_.Admit(now, &request, OverdueFor(now)));
    // From here on there is something to do.
    if (IsIdle()) progress_time_ = now;
    ++num_inbox_reqs_;
    num_inbox_tokens_ += num_tokens;
    Command command;
    command.id = request.id;
    command.request = std::move(request);
    inbox_.push_back(std::move(command));
    has_something_to_do_.notify_one();
    return absl::OkStatus();
  }

  void Abort(RequestId id, int32_t choice_idx, bool reason_is_stop) override {
    std::lock_guard<std::mutex> lock(mu_);
    if (is_idle_ && inbox_.empty()) return;  // There is nothing to abort.
    Command command;
    command.id = id;
    command.choice_idx = choice_idx;
    command.reason_is_stop = reason_is_stop;
    inbox_.push_back(std::move(command));
    has_something_to_do_.notify_one();
  }

  void StartDraining() override {
    std::lock_guard<std::mutex> lock(mu_);
    is_draining_ = true;
  }

  bool WaitUntilIdle(absl::Duration timeout) override {
    // A bound that does not overflow the clock.
    const absl::Duration bounded = std::min(timeout, absl::Hours(24 * 365));
    std::unique_lock<std::mutex> lock(mu_);
    return is_idle_changed_.wait_for(lock, absl::ToChronoNanoseconds(bounded),
                                     [this] { return IsIdle(); });
  }

  EngineStats Stats() const override {
    std::lock_guard<std::mutex> lock(mu_);
    EngineStats stats = stats_;
    stats.num_waiting += num_inbox_reqs_;
    stats.num_waiting_tokens += num_inbox_tokens_;
    stats.is_idle = IsIdle();
    const LoadMonitor& monitor = admission_.monitor();
    const absl::Time now = clock_->Now();
    stats.saturation = monitor.Saturation(now);
    stats.step_use = monitor.step_use();
    stats.kv_use = monitor.kv_use();
    stats.delay_use = monitor.queue_use();
    stats.queue_use = admission_.QueueUse();
    stats.predicted_delay = admission_.predicted_delay(OverdueFor(now));
    stats.refusals = admission_.refusals();
    return stats;
  }

  absl::Status Health() const override {
    const absl::Time now = clock_->Now();
    std::lock_guard<std::mutex> lock(mu_);
    if (!health_.ok()) return health_;
    const absl::Duration stalled = StalledFor(now);
    if (stalled == absl::ZeroDuration()) return absl::OkStatus();
    return absl::UnavailableError(absl::StrCat(
        "the engine hangs: it has work and has finished no step for ",
        absl::ToInt64Seconds(stalled), " s"));
  }

  bool is_hanging() const override {
    const absl::Time now = clock_->Now();
    std::lock_guard<std::mutex> lock(mu_);
    return StalledFor(now) > absl::ZeroDuration();
  }

 private:
  bool IsIdle() const { return is_idle_ && inbox_.empty(); }
  // How much longer the step takes than its tokens may.
  absl::Duration OverdueFor(absl::Time now) const {
    if (IsIdle()) return absl::ZeroDuration();
    const absl::Duration limit = absl::Seconds(
        options_.watchdog_seconds_per_token * engine_->num_tokens_in_flight());
    return std::max(absl::ZeroDuration(), now - progress_time_ - limit);
  }
  // Zero as long as the watchdog has nothing to say.
  absl::Duration StalledFor(absl::Time now) const {
    if (options_.watchdog_seconds == 0 || IsIdle()) return absl::ZeroDuration();
    const absl::Duration limit = absl::Seconds(
        options_.watchdog_seconds +
        options_.watchdog_seconds_per_token * engine_->num_tokens_in_flight());
    const absl::Duration stalled = now - progress_time_;
    return stalled > limit ? stalled : absl::ZeroDuration();
  }
  bool HasSomethingToDo() const {
    return !is_idle_ || !inbox_.empty() || is_stopping_;
  }

  // While there is nothing to do. A request that comes meanwhile waits for one
  // piece of that work at most.
  void PrepareAhead() {
    while (has_more_ahead_) {
      {
        std::lock_guard<std::mutex> lock(mu_);
        if (HasSomethingToDo()) return;
      }
      has_more_ahead_ = runner_->PrepareAhead();
      if (drafter_ != nullptr && engine_->DrafterHealth().ok()) {
        has_more_ahead_ |= drafter_->PrepareAhead();
      }
    }
  }

  void Run() {
    pthread_setname_np(pthread_self(), "engine");
    std::vector<Command> commands;
    bool is_stopping = false;
    while (!is_stopping) {
      PrepareAhead();
      {
        std::unique_lock<std::mutex> lock(mu_);
        has_something_to_do_.wait(lock, [this] { return HasSomethingToDo(); });
        is_stopping = is_stopping_;
        if (is_idle_) admission_.NoteIdle(clock_->Now());
        is_idle_ = false;
        commands.swap(inbox_);
      }
      std::vector<OutputEvent> events;
      for (Command& command : commands) Apply(std::move(command), &events);
      commands.clear();
      if (is_stopping) {
        engine_->Shutdown(&events);
      } else if (engine_->HasWork()) {
        engine_->Step(&events);
      }
      // The figures first: who has seen a request's last event finds its blocks
      // given back. Idleness last: who waits for it finds all events delivered.
      Publish();
      if (!events.empty()) sink_->Push(std::move(events));
      if (!engine_->HasWork()) {
        std::lock_guard<std::mutex> lock(mu_);
        is_idle_ = true;
        is_idle_changed_.notify_all();
      }
    }
  }

  void Apply(Command command, std::vector<OutputEvent>* events) {
    if (!command.request.has_value()) {
      engine_->Abort(command.id, command.choice_idx, command.reason_is_stop,
                     events);
      return;
    }
    const int n = command.request->n;
    const absl::Status status =
        engine_->AddRequest(*std::move(command.request));
    if (status.ok()) return;
    // It was accepted, so each choice needs its end. The engine died meanwhile,
    // or the caller used an id twice.
    const absl::Time now = engine_->Now();
    for (int i = 0; i < n; ++i) {
      OutputEvent event;
      event.request_id = command.id;
      event.choice_idx = i;
      event.finish_reason = FinishReason::kError;
      event.error = status;
      event.is_last = i == n - 1;
      event.time = now;
      events->push_back(std::move(event));
    }
  }

  void Publish() {
    EngineStats stats = engine_->Stats();
    if (stats.num_drafter_failures > 0 && !has_told_of_drafter_) {
      has_told_of_drafter_ = true;
      Warn(engine_->DrafterHealth().message());
    }
    const Scheduler& scheduler = engine_->scheduler();
    const FairShare& shares = scheduler.shares();
    Admission::Snapshot snapshot;
    snapshot.num_running = stats.num_running;
    snapshot.num_step_tokens = engine_->num_step_tokens();
    snapshot.kv_use =
        1.0 - double(stats.num_free_blocks) / std::max(1, stats.num_blocks);
    snapshot.work = scheduler.counters().work();
    snapshot.mean_output_tokens = shares.mean_output_tokens();
    const bool has_changed = shares.queued_version() != queued_version_;
    queued_version_ = shares.queued_version();
    if (has_changed) {
      queued_.clear();
      shares.AppendQueued(&queued_);
    }
    const absl::Time now = clock_->Now();
    std::lock_guard<std::mutex> lock(mu_);
    // Going round without a step is no progress.
    if (stats.num_steps != stats_.num_steps ||
        stats.last_step_time != stats_.last_step_time || !engine_->HasWork()) {
      progress_time_ = now;
    }
    stats_ = std::move(stats);
    health_ = engine_->Health();
    // What came into the inbox meanwhile is all that the engine has not seen.
    num_inbox_reqs_ = 0;
    num_inbox_tokens_ = 0;
    inbox_requests_.clear();
    for (const Command& command : inbox_) {
      if (!command.request.has_value()) continue;
      ++num_inbox_reqs_;
      num_inbox_tokens_ += command.request->prompt_token_ids.size();
      inbox_requests_.push_back(&*command.request);
    }
    admission_.NoteStep(now, snapshot, has_changed ? &queued_ : nullptr,
                        inbox_requests_);
  }

  const EngineOptions options_;
  const std::unique_ptr<Engine> engine_;  // The thread's, once it runs.
  ModelRunner* const runner_;             // As the engine.
  Clock* const clock_;
  OutputSink* const sink_;
  Drafter* const drafter_;  // As the engine; may be null.
  std::atomic<RequestId> next_request_id_{1};
  bool has_more_ahead_ = true;        // The thread's.
  bool has_told_of_drafter_ = false;  // The thread's.
  // The thread's: what it tells admission_, and scratch.
  int64_t queued_version_ = -1;
  std::vector<QueuedShare> queued_;
  std::vector<const Request*> inbox_requests_;

  // A std::mutex, not absl's: race detectors see through it without a rebuilt
  // abseil. Guards everything from here to thread_.
  mutable std::mutex mu_;
  std::condition_variable has_something_to_do_;  // For the engine thread.
  std::condition_variable is_idle_changed_;      // For WaitUntilIdle.
  std::vector<Command> inbox_;
  bool is_idle_ = true;  // The engine has no work.
  bool is_draining_ = false;
  bool is_stopping_ = false;
  // In the inbox, or taken from it by a step that has not published yet.
  int num_inbox_reqs_ = 0;
  int64_t num_inbox_tokens_ = 0;
  Admission admission_;
  // When the last step ended, or work came after a time without.
  absl::Time progress_time_;
  EngineStats stats_;
  absl::Status health_;

  std::thread thread_;  // Last: it uses all of the above.
};

}  // namespace

absl::StatusOr<std::unique_ptr<EngineLoop>> EngineLoop::Create(
    const EngineOptions& options, ModelRunner* runner, Clock* clock,
    OutputSink* sink, Drafter* drafter) {
  QUIRE_ASSIGN_OR_RETURN(std::unique_ptr<Engine> engine,
                         Engine::Create(options, runner, clock, drafter));
  return std::unique_ptr<EngineLoop>(new EngineLoopImpl(
      options, std::move(engine), runner, clock, sink, drafter));
}

}  // namespace quire
