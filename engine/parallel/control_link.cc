#include "engine/parallel/control_link.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "engine/base/clock.h"
#include "engine/base/status.h"

namespace quire {
namespace {

constexpr uint32_t kMagic = 0x4c495551;  // "QUIL" in memory.

struct Head {
  uint32_t magic = kMagic;
  uint32_t type = 0;
  uint64_t num_bytes = 0;
};

bool IsHead(const Head& head) {
  return head.magic == kMagic && head.type != 0 &&
         head.type <= static_cast<uint32_t>(MessageType::kMeshHello);
}

// False after the deadline.
bool WaitUntil(int fd, short events, absl::Time deadline) {
  for (;;) {
    const absl::Duration left = deadline - Clock::Monotonic()->Now();
    if (left <= absl::ZeroDuration()) return false;
    pollfd poll_fd = {fd, events, 0};
    // An InfiniteFuture comes in pieces, too.
    const int64_t milliseconds =
        absl::ToInt64Milliseconds(std::min(left, absl::Hours(1)));
    if (poll(&poll_fd, 1, static_cast<int>(milliseconds) + 1) > 0) return true;
  }
}

}  // namespace

ControlLink::ControlLink(OwnedFd fd) : fd_(std::move(fd)) {
  fcntl(fd_.get(), F_SETFL, fcntl(fd_.get(), F_GETFL) | O_NONBLOCK);
}

absl::Status ControlLink::Send(MessageType type, absl::string_view body,
                               absl::Duration timeout) {
  std::lock_guard<std::mutex> lock(send_mu_);
  return SendLocked(type, body, timeout);
}

absl::StatusOr<bool> ControlLink::TrySend(MessageType type,
                                          absl::string_view body) {
  // A socket that can be written has room for more than a short message; if it
  // has not after all, half a message must not stay.
  constexpr absl::Duration kTimeout = absl::Milliseconds(100);
  std::unique_lock<std::mutex> lock(send_mu_, std::try_to_lock);
  if (!lock.owns_lock()) return false;
  pollfd poll_fd = {fd_.get(), POLLOUT, 0};
  if (poll(&poll_fd, 1, 0) <= 0) return false;
  QUIRE_RETURN_IF_ERROR(SendLocked(type, body, kTimeout));
  return true;
}

absl::Status ControlLink::SendLocked(MessageType type, absl::string_view body,
                                     absl::Duration timeout) {
  Head head;
  head.type = static_cast<uint32_t>(type);
  head.num_bytes = body.size();
  const int64_t total = sizeof(head) + body.size();
  absl::Time deadline = absl::InfinitePast();  // Set when it has to wait.
  for (int64_t done = 0; done < total;) {
    iovec parts[2];
    size_t num_parts = 0;
    if (done < int64_t{sizeof(head)}) {
      parts[num_parts++] = {reinterpret_cast<char*>(&head) + done,
                            sizeof(head) - done};
    }
    const int64_t body_done = std::max<int64_t>(0, done - sizeof(head));
    parts[num_parts++] = {const_cast<char*>(body.data()) + body_done,
                          body.size() - body_done};
    msghdr message = {};
    message.msg_iov = parts;
    message.msg_iovlen = num_parts;
    const ssize_t sent = sendmsg(fd_.get(), &message, MSG_NOSIGNAL);
    if (sent > 0) {
      done += sent;
      deadline = absl::InfinitePast();
      continue;
    }
    if (sent < 0 && errno == EINTR) continue;
    if (sent < 0 && errno != EAGAIN) {
      return absl::UnavailableError(
          absl::StrCat("the connection has ended: ", strerror(errno)));
    }
    if (deadline == absl::InfinitePast())
      deadline = Clock::Monotonic()->Now() + timeout;
    if (!WaitUntil(fd_.get(), POLLOUT, deadline)) {
      return absl::UnavailableError(absl::StrCat(
          "nothing was taken for ", absl::FormatDuration(timeout)));
    }
  }
  return absl::OkStatus();
}

absl::Status ControlLink::ReceiveBytes(char* to, size_t size,
                                       absl::Time deadline) {
  while (size > 0) {
    const ssize_t received = recv(fd_.get(), to, size, 0);
    if (received > 0) {
      num_received_bytes_ += received;
      to += received;
      size -= received;
      // A peer that sends a byte now and then is not waited for either.
      if (size > 0 && Clock::Monotonic()->Now() >= deadline) {
        return absl::DataLossError("a message takes too long");
      }
      continue;
    }
    if (received < 0 && errno == EINTR) continue;
    if (received == 0 || errno != EAGAIN) {
      return absl::UnavailableError(absl::StrCat(
          "the connection has ended",
          received < 0 ? absl::StrCat(": ", strerror(errno)) : ""));
    }
    if (!WaitUntil(fd_.get(), POLLIN, deadline)) {
      return absl::DataLossError("a message does not go on");
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<Message> ControlLink::Receive(int64_t max_bytes,
                                             absl::Time deadline,
                                             absl::Duration message_timeout) {
  std::lock_guard<std::mutex> lock(receive_mu_);
  return ReceiveLocked(max_bytes, deadline, message_timeout);
}

std::optional<Message> ControlLink::TryReceive(int64_t max_bytes) {
  std::unique_lock<std::mutex> lock(receive_mu_, std::try_to_lock);
  if (!lock.owns_lock() || !HasMessage()) return std::nullopt;
  auto message =
      ReceiveLocked(max_bytes, absl::InfinitePast(), absl::ZeroDuration());
  if (!message.ok()) return std::nullopt;
  return *std::move(message);
}

void ControlLink::SkipHeartbeats() {
  std::unique_lock<std::mutex> lock(receive_mu_, std::try_to_lock);
  if (!lock.owns_lock()) return;
  for (;;) {
    Head head;
    const ssize_t peeked = recv(fd_.get(), &head, sizeof(head), MSG_PEEK);
    if (peeked < ssize_t{sizeof(head)} || !IsHead(head) ||
        head.type != static_cast<uint32_t>(MessageType::kHeartbeat) ||
        head.num_bytes != 0) {
      return;
    }
    // All of it is there.
    num_received_bytes_ += recv(fd_.get(), &head, sizeof(head), 0);
  }
}

int64_t ControlLink::NumBytesArrived() const {
  const int64_t num_received = num_received_bytes_;
  int num_waiting = 0;
  ioctl(fd_.get(), FIONREAD, &num_waiting);
  return num_received + num_waiting;
}

absl::StatusOr<Message> ControlLink::ReceiveLocked(
    int64_t max_bytes, absl::Time deadline, absl::Duration message_timeout) {
  if (!WaitUntil(fd_.get(), POLLIN, deadline) && !HasMessage()) {
    return absl::DeadlineExceededError("no message has come in time");
  }
  const absl::Time end = Clock::Monotonic()->Now() + message_timeout;
  Head head;
  QUIRE_RETURN_IF_ERROR(
      ReceiveBytes(reinterpret_cast<char*>(&head), sizeof(head), end));
  if (!IsHead(head)) {
    return absl::DataLossError("the peer does not speak quire's protocol");
  }
  if (head.num_bytes > static_cast<uint64_t>(max_bytes)) {
    return absl::DataLossError(absl::StrCat("a message of ", head.num_bytes,
                                            " bytes, at most ", max_bytes,
                                            " are taken"));
  }
  Message message;
  message.type = static_cast<MessageType>(head.type);
  message.body.resize(head.num_bytes);
  QUIRE_RETURN_IF_ERROR(
      ReceiveBytes(message.body.data(), message.body.size(), end));
  return message;
}

bool ControlLink::HasMessage() const {
  pollfd poll_fd = {fd_.get(), POLLIN, 0};
  return poll(&poll_fd, 1, 0) > 0;
}

bool ControlLink::HasWholeHello() const {
  Head head;
  const ssize_t peeked = recv(fd_.get(), &head, sizeof(head), MSG_PEEK);
  if (peeked <= 0) return peeked == 0 || (errno != EAGAIN && errno != EINTR);
  if (peeked < ssize_t{sizeof(head)}) return HasEnded();
  int num_bytes = 0;
  return !IsHead(head) || head.num_bytes > uint64_t{kMaxHelloBytes} ||
         ioctl(fd_.get(), FIONREAD, &num_bytes) != 0 ||
         num_bytes >= int64_t{sizeof(head)} + int64_t(head.num_bytes) ||
         HasEnded();
}

bool ControlLink::HasEnded() const {
  pollfd poll_fd = {fd_.get(), POLLRDHUP, 0};
  return poll(&poll_fd, 1, 0) > 0;
}

void ControlLink::Disconnect() { shutdown(fd_.get(), SHUT_RDWR); }

}  // namespace quire
