// Messages between rank 0 and one other rank, beside the collectives: the
// bootstrap, plans to other hosts, signs of life, failures.
#ifndef QUIRE_ENGINE_PARALLEL_CONTROL_LINK_H_
#define QUIRE_ENGINE_PARALLEL_CONTROL_LINK_H_

#include <atomic>
#include <cstdint>
#include <mutex>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "engine/parallel/tcp.h"

namespace quire {

enum class MessageType : uint8_t {
  // From a worker.
  kHello = 1,  // Hello.
  kJoined,     // Its communicators are there.
  kLoaded,     // StepPlanLimits and more: what its shard was prepared for.
  kHeartbeat,  // Heartbeat, again and again; of rank 0 without a body.
  kFailure,    // Text: why it ends; of rank 0: why the group ends.
  kResult,     // Of a step, from who draws for rank 0 (step_result_codec.h).
  kKnock,      // A nonce, before the hello, of who knows the group's key.
  kProof,      // Of the key: a MAC, then a Hello.
  // From rank 0.
  kWelcome,    // Welcome.
  kChallenge,  // Answers kKnock: a nonce, and rank 0's proof of the key.
  kRefusal,    // Text: why this rank cannot take part.
  kShared,     // Bytes that rank 0 shares with all.
  kServe,      // All ranks have loaded.
  kPlan,       // A step (step_plan_codec.h).
  kPrepareAhead,
  kShutdown,  // In good order.
  // Between two ranks of a mesh.
  kMeshHello,
};

struct Message {
  MessageType type = MessageType::kFailure;
  std::string body;
};

// What a message that is no plan may take.
inline constexpr int64_t kMaxControlBytes = int64_t{1} << 20;
// And what says who it is: whoever finds the port may send one.
inline constexpr int64_t kMaxHelloBytes = int64_t{16} << 10;

// Owns a connected stream socket. Sending is thread-safe; Receive belongs to
// one thread, and what is called Try or Skip may be called beside it.
class ControlLink {
 public:
  explicit ControlLink(OwnedFd fd);

  // UNAVAILABLE if the peer has gone or takes nothing for `timeout`.
  absl::Status Send(MessageType type, absl::string_view body,
                    absl::Duration timeout);

  // Sends unless that would have to wait for another thread or for the peer;
  // false: it would. For short messages. UNAVAILABLE if the peer has gone.
  absl::StatusOr<bool> TrySend(MessageType type, absl::string_view body);

  // DEADLINE_EXCEEDED if no message has begun until then; UNAVAILABLE if the
  // connection has ended; DATA_LOSS if what comes is no message, is longer than
  // max_bytes or is not there as a whole `message_timeout` after its beginning,
  // however steadily it comes. Times are those of Clock::Monotonic.
  absl::StatusOr<Message> Receive(
      int64_t max_bytes, absl::Time deadline,
      absl::Duration message_timeout = absl::Seconds(1));

  // A message that is there, unless another thread receives; none: there is
  // none, or it is of no use.
  std::optional<Message> TryReceive(int64_t max_bytes);
  // Takes heartbeats without a body out of the front of what has come.
  void SkipHeartbeats();
  // Changes with every byte that comes, received or not.
  int64_t NumBytesArrived() const;

  bool HasMessage() const;
  // Receive(kMaxHelloBytes) would not wait: a message is there as a whole, or
  // what is there is none.
  bool HasWholeHello() const;
  // The peer has closed its side, whatever is still to be read.
  bool HasEnded() const;
  // The peer sees the end of the connection. From any thread.
  void Disconnect();

  int fd() const { return fd_.get(); }

 private:
  // Requires: send_mu_ is held.
  absl::Status SendLocked(MessageType type, absl::string_view body,
                          absl::Duration timeout);
  // Requires: receive_mu_ is held.
  absl::StatusOr<Message> ReceiveLocked(int64_t max_bytes, absl::Time deadline,
                                        absl::Duration message_timeout);
  absl::Status ReceiveBytes(char* to, size_t size, absl::Time deadline);

  OwnedFd fd_;
  std::mutex send_mu_, receive_mu_;
  std::atomic<int64_t> num_received_bytes_{0};
};

}  // namespace quire

#endif  // QUIRE_ENGINE_PARALLEL_CONTROL_LINK_H_
