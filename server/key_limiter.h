// Holds each API key to its limits (ApiKeyLimits).
#ifndef QUIRE_SERVER_KEY_LIMITER_H_
#define QUIRE_SERVER_KEY_LIMITER_H_

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "engine/base/clock.h"
#include "server/http_server.h"

namespace quire {

class KeyLimiter;

// One request's part of what its key may have. Thread-safe.
class KeyTicket {
 public:
  ~KeyTicket() { Release(); }
  KeyTicket(const KeyTicket&) = delete;
  KeyTicket& operator=(const KeyTicket&) = delete;

  // The prompt, or the answer, has so many tokens.
  void CountTokens(int64_t num_tokens);
  // The request has ended: another one may take its place. Idempotent. To be
  // called before the client can know of the end.
  void Release();

 private:
  friend class KeyLimiter;
  KeyTicket(KeyLimiter* limiter, std::string name)
      : limiter_(limiter), name_(std::move(name)) {}

  KeyLimiter* const limiter_;
  const std::string name_;
  std::atomic<bool> is_released_{false};
};

// Requests and tokens of a minute are token buckets (Turner 1986, "New
// directions in communications", section IV) that hold a minute's worth and
// start full. Tokens are counted when they are there, so a bucket may go below
// zero: the next request then waits until the debt is paid. Thread-safe; must
// outlive its tickets.
class KeyLimiter {
 public:
  explicit KeyLimiter(Clock* clock) : clock_(clock) {}

  // RESOURCE_EXHAUSTED with the time to wait (api_error.h), naming the limit.
  // Null for an owner without a name, who has no limits.
  absl::StatusOr<std::unique_ptr<KeyTicket>> Admit(const ApiKeyOwner& owner);

 private:
  friend class KeyTicket;
  struct Bucket {
    double level = 0;
    int64_t capacity = 0;  // Of a minute; 0: no limit.

    void SetCapacity(int64_t new_capacity);
    void Refill(absl::Duration elapsed);
    // Until `level` is above `needed`.
    absl::Duration WaitFor(double needed) const;
  };
  struct State {
    int64_t num_running = 0;
    Bucket requests, tokens;
    absl::Time updated_at;
  };

  void CountTokens(const std::string& name, int64_t num_tokens);
  void Release(const std::string& name);

  Clock* const clock_;
  std::mutex mu_;
  std::unordered_map<std::string, State> states_;  // Guarded by mu_.
};

}  // namespace quire

#endif  // QUIRE_SERVER_KEY_LIMITER_H_
