#include "server/request_gate.h"

#include <algorithm>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "engine/base/status.h"
#include "server/api_error.h"
#include "server/openai_api.h"

namespace quire {
double RequestGate::RecentHostMemoryUse() {
  const absl::Time now = clock_->Now();
  std::lock_guard<std::mutex> lock(mu_);
  if (now - memory_read_at_ > absl::Milliseconds(250)) {
    memory_read_at_ = now;
    host_memory_use_ = HostMemoryUse();
  }
  return host_memory_use_;
}

void RequestGate::Update(const EngineStats& stats) {
  LoadSignals signals;
  signals.queue = stats.queue_use;
  signals.body_memory = std::min(1.0, budget_.use());
  signals.host_memory = RecentHostMemoryUse();
  shedder_.Update(signals);
}

absl::StatusOr<MemoryBudget::Reservation> RequestGate::Enter(
    const HttpRequest& request, const EngineLoop& engine) {
  const EngineStats stats = engine.Stats();
  Update(stats);
  QUIRE_RETURN_IF_ERROR(shedder_.Check(stats.predicted_delay));
  MemoryBudget::Reservation reservation =
      budget_.TryReserve(options_.parsing_bytes_per_body_byte *
                         static_cast<int64_t>(request.body.size()));
  if (!reservation) {
    num_refused_memory_.fetch_add(1, std::memory_order_relaxed);
    return OverloadError("the server has no memory left to parse the request",
                         absl::Seconds(1));
  }
  return reservation;
}

absl::Status RequestGate::Check(const RequestTraits& traits,
                                const EngineLoop& engine) {
  if (shedder_.stage() == ShedStage::kNone) return absl::OkStatus();
  return shedder_.Check(traits, engine.Stats().predicted_delay);
}

absl::StatusOr<absl::Time> RequestGate::Deadline(
    const HttpRequest& request, std::optional<double> timeout) const {
  const absl::string_view field = request.Header("x-request-timeout");
  if (!field.empty()) {
    double seconds = 0;
    // Written so that NaN fails.
    if (!absl::SimpleAtod(field, &seconds) || !(seconds > 0) ||
        !(seconds <= kMaxTimeoutSeconds)) {  // As the field.
      return ParameterError("X-Request-Timeout",
                            "the header 'X-Request-Timeout' must be a number "
                            "of seconds above 0, at most a year");
    }
    timeout = std::min(seconds, timeout.value_or(seconds));
  }
  absl::Duration duration =
      timeout.has_value()
          ? absl::Seconds(std::min(*timeout, kMaxTimeoutSeconds))
          : options_.default_timeout;
  const bool has_one =
      timeout.has_value() || options_.default_timeout > absl::ZeroDuration();
  if (options_.max_timeout > absl::ZeroDuration()) {
    duration = has_one ? std::min(duration, options_.max_timeout)
                       : options_.max_timeout;
  } else if (!has_one) {
    return absl::InfiniteFuture();
  }
  return request.arrival_time + duration;
}

absl::Time RequestGate::Deadline(absl::Time arrival_time,
                                 absl::Time deadline) const {
  if (deadline == absl::InfiniteFuture() &&
      options_.default_timeout > absl::ZeroDuration()) {
    deadline = arrival_time + options_.default_timeout;
  }
  if (options_.max_timeout > absl::ZeroDuration()) {
    deadline = std::min(deadline, arrival_time + options_.max_timeout);
  }
  return deadline;
}

GateFigures RequestGate::Figures(const EngineStats& stats) {
  Update(stats);
  GateFigures figures;
  figures.stage = shedder_.stage();
  for (int i = 0; i < kNumShedStages; ++i) {
    figures.num_refused[i] = shedder_.num_refused(static_cast<ShedStage>(i));
  }
  figures.num_refused_memory =
      num_refused_memory_.load(std::memory_order_relaxed);
  return figures;
}

void SetShare(const ApiKeyOwner* owner, Request* request) {
  if (owner == nullptr || owner->is_only_one) return;
  request->owner = owner->name;
  request->share_weight = owner->share_weight;
}

absl::Status SubmitRefusal(const absl::Status& status) {
  if (!absl::IsResourceExhausted(status)) return status;
  const bool is_own = status.GetPayload(kOwnLimitPayload).has_value();
  absl::Status refusal(
      is_own ? absl::StatusCode::kResourceExhausted
             : absl::StatusCode::kUnavailable,
      is_own ? std::string(status.message())
             : absl::StrCat("the server is overloaded: ", status.message()));
  if (const auto wait = status.GetPayload(kRetryAfterPayload)) {
    refusal.SetPayload(kRetryAfterPayload, absl::Cord(std::string(*wait)));
  }
  return refusal;
}

}  // namespace quire
