#include "server/key_limiter.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "server/api_error.h"

namespace quire {
namespace {

// What a client may wait at least for a request of its own to end.
constexpr absl::Duration kWaitForAnEnd = absl::Seconds(1);

absl::Status LimitReached(absl::string_view what, int64_t limit,
                          absl::Duration wait) {
  return RateLimitError(
      absl::StrCat("the limit of this API key is reached: ", limit, " ", what),
      wait);
}

}  // namespace

void KeyTicket::CountTokens(int64_t num_tokens) {
  if (num_tokens > 0) limiter_->CountTokens(name_, num_tokens);
}

void KeyTicket::Release() {
  if (!is_released_.exchange(true)) limiter_->Release(name_);
}

void KeyLimiter::Bucket::SetCapacity(int64_t new_capacity) {
  if (new_capacity == capacity) return;
  // What was there for another limit, in proportion.
  level = capacity == 0 ? new_capacity : level * new_capacity / capacity;
  capacity = new_capacity;
}

void KeyLimiter::Bucket::Refill(absl::Duration elapsed) {
  const double per_second = capacity / 60.0;
  level = std::min<double>(capacity,
                           level + per_second * absl::ToDoubleSeconds(elapsed));
}

absl::Duration KeyLimiter::Bucket::WaitFor(double needed) const {
  if (capacity == 0 || level >= needed) return absl::ZeroDuration();
  return absl::Seconds((needed - level) * 60.0 / capacity);
}

absl::StatusOr<std::unique_ptr<KeyTicket>> KeyLimiter::Admit(
    const ApiKeyOwner& owner) {
  if (owner.name.empty()) return nullptr;
  const ApiKeyLimits& limits = owner.limits;
  const absl::Time now = clock_->Now();
  std::lock_guard<std::mutex> lock(mu_);
  const auto [it, is_new] = states_.try_emplace(owner.name);
  State& state = it->second;
  if (is_new) state.updated_at = now;
  state.requests.SetCapacity(limits.requests_per_minute);
  state.tokens.SetCapacity(limits.tokens_per_minute);
  for (Bucket* bucket : {&state.requests, &state.tokens}) {
    bucket->Refill(now - state.updated_at);
  }
  state.updated_at = now;

  if (limits.max_concurrent_requests > 0 &&
      state.num_running >= limits.max_concurrent_requests) {
    return LimitReached("requests at a time", limits.max_concurrent_requests,
                        kWaitForAnEnd);
  }
  if (const absl::Duration wait = state.requests.WaitFor(1);
      wait > absl::ZeroDuration()) {
    return LimitReached("requests per minute", limits.requests_per_minute,
                        wait);
  }
  // Nothing owed is enough: a prompt longer than what a minute gives would
  // otherwise never be served.
  if (const absl::Duration wait = state.tokens.WaitFor(1);
      wait > absl::ZeroDuration()) {
    return LimitReached("tokens per minute", limits.tokens_per_minute, wait);
  }
  if (state.requests.capacity > 0) state.requests.level -= 1;
  ++state.num_running;
  return std::unique_ptr<KeyTicket>(new KeyTicket(this, owner.name));
}

void KeyLimiter::CountTokens(const std::string& name, int64_t num_tokens) {
  std::lock_guard<std::mutex> lock(mu_);
  Bucket& tokens = states_[name].tokens;
  if (tokens.capacity > 0) tokens.level -= num_tokens;
}

void KeyLimiter::Release(const std::string& name) {
  std::lock_guard<std::mutex> lock(mu_);
  --states_[name].num_running;
}

}  // namespace quire
