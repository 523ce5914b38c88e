// A connection between every two ranks. All transfers of an operation run at
// once on non-blocking sockets, so that no order of sending and receiving can
// leave two ranks waiting for each other.
//
// A frame is a FrameHead and its payload, in the byte order of the machine
// (ranks compare versions and models before; a foreign order fails the magic
// number). The receiver knows what has to come: a length that is not the
// expected one is an error before anything is read or allocated for it.
#include <fcntl.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "engine/base/clock.h"
#include "engine/base/status.h"
#include "kernels/communicator_bug.h"
#include "kernels/host_communicator.h"
#include "kernels/host_views.h"
#include "kernels/rank_sum.h"

namespace quire {
namespace {

constexpr uint32_t kMagic = 0x71554952;  // "RIUq" in memory.
// Below, every rank sends everything to every other: one trip instead of two.
constexpr int64_t kOneTripBytes = int64_t{64} << 10;
// Non-blocking rounds before the rank sleeps in poll(2): some 20 us, of the
// order of a trip through the loopback device.
constexpr int kSpins = 20;

struct FrameHead {
  uint32_t magic = kMagic;
  uint32_t sequence = 0;  // Frames before, on this connection and direction.
  uint64_t call = 0;      // CollectiveCall::Pack
  uint64_t num_bytes = 0;
};
static_assert(sizeof(FrameHead) == 24);

struct Transfer {
  int peer = -1;
  bool is_send = false;
  char* data = nullptr;
  int64_t num_bytes = 0;
  FrameHead head;
  int64_t num_done = 0;  // Of head and data together.

  bool is_done() const {
    return num_done == int64_t{sizeof(FrameHead)} + num_bytes;
  }
};

class SocketCommunicator : public Communicator {
 public:
  SocketCommunicator(std::vector<int> sockets,
                     const HostCommunicatorOptions& options)
      : sockets_(std::move(sockets)),
        options_(options),
        timeout_(options.timeout),
        wake_fd_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)),
        num_sent_(options.size),
        num_received_(options.size),
        scratch_(options.size) {
    for (const int fd : sockets_) {
      if (fd >= 0) fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
    }
  }

  ~SocketCommunicator() override {
    for (const int fd : sockets_) {
      if (fd >= 0) close(fd);
    }
    if (wake_fd_ >= 0) close(wake_fd_);
  }

  int rank() const override { return options_.rank; }
  int size() const override { return options_.size; }
  std::string Description() const override {
    return absl::StrCat("TCP, ", size(), " ranks");
  }

  absl::Status AllReduceSum(TensorView data, DeviceStream) override {
    QUIRE_RETURN_IF_ERROR(CheckHostView(data));
    const int64_t count = data.rows * data.cols;
    const CollectiveCall call = {CallKind::kAllReduce, data.dtype, 0,
                                 static_cast<uint64_t>(count)};
    char* const values = static_cast<char*>(data.data);
    if (size() == 2 || data.num_bytes() <= kOneTripBytes) {
      for (int peer = 0; peer < size(); ++peer) {
        AddSend(peer, values, data.num_bytes());
        AddReceive(peer, Scratch(peer, data.num_bytes()), data.num_bytes());
      }
      QUIRE_RETURN_IF_ERROR(Run(call));
      Sum(data.dtype, count, values, values);
      return absl::OkStatus();
    }
    const int64_t bytes = DTypeSize(data.dtype);
    const int64_t slice = (count + size() - 1) / size();
    const auto begin = [&](int rank) { return std::min(count, rank * slice); };
    const auto num_bytes = [&](int rank) {
      return (begin(rank + 1) - begin(rank)) * bytes;
    };
    char* const own = values + begin(rank()) * bytes;
    for (int peer = 0; peer < size(); ++peer) {
      AddSend(peer, values + begin(peer) * bytes, num_bytes(peer));
      AddReceive(peer, Scratch(peer, num_bytes(rank())), num_bytes(rank()));
    }
    QUIRE_RETURN_IF_ERROR(Run(call));
    const bool is_lost =
        rank() == size() - 1 && HasCommunicatorBug(CommunicatorBug::kSliceLost);
    if (!is_lost) Sum(data.dtype, num_bytes(rank()) / bytes, own, own);
    for (int peer = 0; peer < size(); ++peer) {
      AddSend(peer, own, num_bytes(rank()));
      AddReceive(peer, values + begin(peer) * bytes, num_bytes(peer));
    }
    return Run(call);
  }

  absl::Status AllGather(TensorView from, TensorView to,
                         DeviceStream) override {
    QUIRE_RETURN_IF_ERROR(CheckSameElements(from, to, size(), 1));
    const int64_t num_bytes = from.num_bytes();
    char* const out = static_cast<char*>(to.data);
    for (int peer = 0; peer < size(); ++peer) {
      AddSend(peer, from.data, num_bytes);
      AddReceive(peer, out + peer * num_bytes, num_bytes);
    }
    QUIRE_RETURN_IF_ERROR(Run({CallKind::kAllGather, from.dtype, 0,
                               static_cast<uint64_t>(from.rows * from.cols)}));
    if (num_bytes > 0 && out + rank() * num_bytes != from.data) {
      std::memcpy(out + rank() * num_bytes, from.data, num_bytes);
    }
    return absl::OkStatus();
  }

  absl::Status ReduceScatterSum(TensorView from, TensorView to,
                                DeviceStream) override {
    QUIRE_RETURN_IF_ERROR(CheckSameElements(from, to, 1, size()));
    const int64_t num_bytes = to.num_bytes();
    char* const values = static_cast<char*>(from.data);
    for (int peer = 0; peer < size(); ++peer) {
      AddSend(peer, values + peer * num_bytes, num_bytes);
      AddReceive(peer, Scratch(peer, num_bytes), num_bytes);
    }
    QUIRE_RETURN_IF_ERROR(Run({CallKind::kReduceScatter, from.dtype, 0,
                               static_cast<uint64_t>(to.rows * to.cols)}));
    Sum(from.dtype, to.rows * to.cols, values + rank() * num_bytes, to.data);
    return absl::OkStatus();
  }

  absl::Status Broadcast(TensorView data, int root, DeviceStream) override {
    QUIRE_RETURN_IF_ERROR(CheckHostView(data));
    QUIRE_RETURN_IF_ERROR(CheckPeer(root, -1, size()));
    if (rank() == root) {
      for (int peer = 0; peer < size(); ++peer) {
        AddSend(peer, data.data, data.num_bytes());
      }
    } else {
      AddReceive(root, data.data, data.num_bytes());
    }
    return Run({CallKind::kBroadcast, data.dtype, static_cast<uint8_t>(root),
                static_cast<uint64_t>(data.rows * data.cols)});
  }

  absl::Status Send(TensorView data, int peer, DeviceStream) override {
    QUIRE_RETURN_IF_ERROR(CheckHostView(data));
    QUIRE_RETURN_IF_ERROR(CheckPeer(peer, rank(), size()));
    AddSend(peer, data.data, data.num_bytes());
    return Run({CallKind::kSend, data.dtype, 0,
                static_cast<uint64_t>(data.rows * data.cols)});
  }

  absl::Status Receive(TensorView data, int peer, DeviceStream) override {
    QUIRE_RETURN_IF_ERROR(CheckHostView(data));
    QUIRE_RETURN_IF_ERROR(CheckPeer(peer, rank(), size()));
    AddReceive(peer, data.data, data.num_bytes());
    return Run({CallKind::kSend, data.dtype, 0,
                static_cast<uint64_t>(data.rows * data.cols)});
  }

  absl::Status Barrier() override {
    for (int peer = 0; peer < size(); ++peer) {
      AddSend(peer, nullptr, 0);
      AddReceive(peer, nullptr, 0);
    }
    return Run({});
  }

  void SetTimeout(absl::Duration timeout) override { timeout_ = timeout; }

  void Abort() override {
    is_aborted_ = true;
    const uint64_t one = 1;
    (void)!write(wake_fd_, &one, sizeof(one));
    if (!HasCommunicatorBug(CommunicatorBug::kAbortNotTold)) Disconnect();
  }

 private:
  // The peers see the end of the connection.
  void Disconnect() {
    for (const int fd : sockets_) {
      if (fd >= 0) shutdown(fd, SHUT_RDWR);
    }
  }

  // Calls of the own rank are left out, so that loops need no exception.
  void AddSend(int peer, void* data, int64_t num_bytes) {
    if (peer == rank()) return;
    transfers_.push_back(
        {peer, true, static_cast<char*>(data), num_bytes, {}, 0});
  }
  void AddReceive(int peer, void* data, int64_t num_bytes) {
    if (peer == rank()) return;
    transfers_.push_back(
        {peer, false, static_cast<char*>(data), num_bytes, {}, 0});
  }

  char* Scratch(int peer, int64_t num_bytes) {
    if (peer == rank()) return nullptr;
    if (static_cast<int64_t>(scratch_[peer].size()) < num_bytes) {
      scratch_[peer].resize(num_bytes);
    }
    return scratch_[peer].data();
  }

  // out = the sum of `own` and of what has come into the scratch buffers.
  void Sum(DType dtype, int64_t count, const void* own, void* out) {
    const void* parts[kMaxHostRanks];
    for (int peer = 0; peer < size(); ++peer) {
      const int from = HasCommunicatorBug(CommunicatorBug::kOwnRankFirst)
                           ? (peer + rank()) % size()
                           : peer;
      parts[peer] = from == rank() ? own : scratch_[from].data();
    }
    if (HasCommunicatorBug(CommunicatorBug::kRoundedTwice)) {
      const void* sum = parts[0];
      std::vector<char> rounded(count * DTypeSize(dtype));
      for (int peer = 1; peer < size(); ++peer) {
        const void* const pair[] = {sum, parts[peer]};
        SumInRankOrder(pair, dtype, count, rounded.data());
        sum = rounded.data();
      }
      if (!rounded.empty()) std::memcpy(out, sum, rounded.size());
      return;
    }
    SumInRankOrder({parts, static_cast<size_t>(size())}, dtype, count, out);
  }

  // Runs what was added, all at once.
  absl::Status Run(const CollectiveCall& call) {
    absl::Status status = broken_;
    if (status.ok()) status = RunAll(call);
    transfers_.clear();
    if (!status.ok() && broken_.ok()) {
      broken_ = absl::UnavailableError(status.message());
      Disconnect();
    }
    return status;
  }

  absl::Status RunAll(const CollectiveCall& call) {
    if (HasCommunicatorBug(CommunicatorBug::kPieceLost)) {
      for (Transfer& transfer : transfers_) {
        transfer.num_bytes = std::min(transfer.num_bytes, int64_t{1} << 20);
      }
    }
    for (Transfer& transfer : transfers_) {
      if (!transfer.is_send) continue;
      transfer.head.sequence = num_sent_[transfer.peer]++;
      transfer.head.call = call.Pack();
      transfer.head.num_bytes = transfer.num_bytes;
    }
    absl::Time deadline = absl::InfiniteFuture();
    int num_spins = 0;
    for (;;) {
      bool is_done = true, has_progress = false;
      for (Transfer& transfer : transfers_) {
        if (transfer.is_done()) continue;
        QUIRE_ASSIGN_OR_RETURN(const bool has_moved, Move(call, transfer));
        has_progress |= has_moved;
        is_done &= transfer.is_done();
      }
      if (is_done) return absl::OkStatus();
      if (has_progress) {
        num_spins = 0;
        continue;
      }
      if (++num_spins <= kSpins) continue;
      if (num_spins == kSpins + 1)
        deadline = Clock::Monotonic()->Now() + timeout_;
      QUIRE_RETURN_IF_ERROR(Wait(deadline));
    }
  }

  // Sends or receives what goes without waiting; false if nothing went.
  absl::StatusOr<bool> Move(const CollectiveCall& call, Transfer& transfer) {
    if (is_aborted_) return Aborted();
    iovec parts[2];
    size_t num_parts = 0;
    constexpr int64_t kHeadBytes = sizeof(FrameHead);
    const bool is_in_head = transfer.num_done < kHeadBytes;
    if (is_in_head) {
      parts[num_parts++] = {
          reinterpret_cast<char*>(&transfer.head) + transfer.num_done,
          static_cast<size_t>(kHeadBytes - transfer.num_done)};
    }
    // Of a frame to receive the head is checked before the payload is read.
    if (transfer.is_send || !is_in_head) {
      const int64_t done = std::max<int64_t>(0, transfer.num_done - kHeadBytes);
      parts[num_parts++] = {transfer.data + done,
                            static_cast<size_t>(transfer.num_bytes - done)};
    }
    msghdr message = {};
    message.msg_iov = parts;
    message.msg_iovlen = num_parts;
    const int fd = sockets_[transfer.peer];
    const ssize_t moved = transfer.is_send ? sendmsg(fd, &message, MSG_NOSIGNAL)
                                           : recvmsg(fd, &message, 0);
    if (moved < 0 && (errno == EAGAIN || errno == EINTR)) return false;
    if (moved < 0 || (moved == 0 && !transfer.is_send)) {
      return Gone(transfer.peer, moved < 0 ? errno : 0);
    }
    transfer.num_done += moved;
    if (!transfer.is_send && is_in_head && transfer.num_done == kHeadBytes) {
      QUIRE_RETURN_IF_ERROR(CheckHead(call, transfer));
    }
    return moved > 0;
  }

  absl::Status CheckHead(const CollectiveCall& call, const Transfer& transfer) {
    const FrameHead& head = transfer.head;
    if (head.magic != kMagic ||
        head.sequence != num_received_[transfer.peer]++) {
      return absl::UnavailableError(
          absl::StrCat("what ", RankName(options_, transfer.peer),
                       " sends is no frame of this group"));
    }
    const bool is_matched =
        HasCommunicatorBug(CommunicatorBug::kCallsNotCompared) ||
        HasCommunicatorBug(CommunicatorBug::kMessagesNotMatched) ||
        head.call == call.Pack();
    if (is_matched &&
        head.num_bytes == static_cast<uint64_t>(transfer.num_bytes)) {
      return absl::OkStatus();
    }
    return absl::InvalidArgumentError(absl::StrCat(
        RankName(options_, transfer.peer), " calls ",
        CollectiveCall::Unpack(head.call).ToString(), " (", head.num_bytes,
        " bytes), ", RankName(options_, rank()), " calls ", call.ToString(),
        " (", transfer.num_bytes, " bytes)"));
  }

  absl::Status Wait(absl::Time deadline) {
    std::vector<pollfd> fds = {{wake_fd_, POLLIN, 0}};
    for (const Transfer& transfer : transfers_) {
      if (transfer.is_done()) continue;
      fds.push_back({sockets_[transfer.peer],
                     static_cast<short>(transfer.is_send ? POLLOUT : POLLIN),
                     0});
    }
    const absl::Duration left = deadline - Clock::Monotonic()->Now();
    if (left <= absl::ZeroDuration()) {
      for (const Transfer& transfer : transfers_) {
        if (transfer.is_done()) continue;
        return absl::UnavailableError(absl::StrCat(
            RankName(options_, transfer.peer), " has been silent for ",
            absl::FormatDuration(timeout_)));
      }
    }
    poll(fds.data(), fds.size(),
         static_cast<int>(absl::ToInt64Milliseconds(left)) + 1);
    return absl::OkStatus();
  }

  absl::Status Gone(int peer, int error) const {
    if (is_aborted_) return Aborted();
    return absl::UnavailableError(
        absl::StrCat(RankName(options_, peer), " has gone",
                     error != 0 ? absl::StrCat(": ", strerror(error)) : ""));
  }

  absl::Status Aborted() const {
    return absl::UnavailableError(
        absl::StrCat("the group was ended by ", RankName(options_, rank())));
  }

  const std::vector<int> sockets_;  // [size], -1 for this rank.
  const HostCommunicatorOptions options_;
  absl::Duration timeout_;
  const int wake_fd_;  // Readable once Abort was called.
  std::atomic<bool> is_aborted_{false};
  absl::Status broken_;
  std::vector<uint32_t> num_sent_, num_received_;  // [size], frames.
  std::vector<std::vector<char>> scratch_;         // [size]
  std::vector<Transfer> transfers_;                // Of the operation.
};

}  // namespace

absl::StatusOr<std::unique_ptr<Communicator>> NewSocketCommunicator(
    std::vector<int> sockets, const HostCommunicatorOptions& options) {
  absl::Status status = CheckHostOptions(options);
  if (status.ok() && sockets.size() != size_t(options.size)) {
    status = absl::InvalidArgumentError(
        absl::StrCat(sockets.size(), " sockets for ", options.size, " ranks"));
  }
  for (size_t i = 0; status.ok() && i < sockets.size(); ++i) {
    if ((sockets[i] < 0) != (static_cast<int>(i) == options.rank)) {
      status =
          absl::InvalidArgumentError(absl::StrCat("no socket for rank ", i));
    }
  }
  if (!status.ok()) {
    for (const int fd : sockets) {
      if (fd >= 0) close(fd);
    }
    return status;
  }
  return std::make_unique<SocketCommunicator>(std::move(sockets), options);
}

}  // namespace quire
