// The group's memory:
//
//   Header | RankCell x size | Channel x size x size   (from * size + to)
//   | data: size x 2 slots | sums: 2 slots | channel data: size x size x 2
//
// Operation n of a rank goes: write into the own slot n % 2, advance `arrived`
// to n, wait until all have arrived at n, read the others' slots. One wait is
// enough, because two slots alternate: who begins operation n + 2 has seen all
// ranks arrive at n + 1, so they have read what belonged to n. (The flags of
// Lamport's bakery, so to say: a rank writes its own cell only, and there is no
// counter that two ranks change.)
//
// A sum of many ranks or bytes takes two operations: each rank adds up its part
// of all slots and writes it where all read it. Each element is read size + 1
// times in one operation and thrice in two.
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <mutex>
#include <new>
#include <thread>

#include "absl/strings/str_cat.h"
#include "engine/base/clock.h"
#include "engine/base/cpu_topology.h"
#include "engine/base/shared_memory.h"
#include "engine/base/status.h"
#include "kernels/communicator_bug.h"
#include "kernels/host_communicator.h"
#include "kernels/host_views.h"
#include "kernels/rank_sum.h"

namespace quire {
namespace {

constexpr int64_t kSlotBytes = int64_t{1} << 20;
constexpr int64_t kChannelBytes = int64_t{128} << 10;
// Below, one operation is faster even for many ranks: the second wait costs
// more than reading again what is in the cache.
constexpr int64_t kOneOperationBytes = int64_t{32} << 10;
// More than it takes to wake a sleeper (5 us, and 55 in a virtual machine under
// load, where it was measured): with less, who has been waiting for a waker
// falls asleep in turn, and each of many small sums costs a wake-up.
constexpr absl::Duration kSpinTime = absl::Microseconds(200);
// Between looks at whether the peer is alive.
constexpr absl::Duration kLookAround = absl::Milliseconds(50);

// Why the group is broken, in Header::failure. 0: it is not.
enum class Failure : uint8_t { kNone, kAborted, kGone, kSilent, kMismatch };

struct alignas(128) Header {
  // Failure << 16 | rank it happened to << 8 | rank that noticed; the first
  // one stays.
  std::atomic<uint32_t> failure;
};

struct alignas(128) RankCell {
  SharedCounter arrived;  // Operations begun.
  // CollectiveCall::Pack of operation n at n % 2.
  std::atomic<uint64_t> calls[2];
  std::atomic<int32_t> pid;        // 0: not here yet.
  std::atomic<uint32_t> has_left;  // Destroyed in good order.
};

// Messages from one rank to another: two places, used in turns.
struct alignas(128) Channel {
  SharedCounter num_sent;  // Pieces.
  SharedCounter num_received;
  std::atomic<uint64_t> calls[2];  // Of the piece's whole message.
};

// What follows keeps its alignment.
static_assert(sizeof(Header) % alignof(RankCell) == 0);
static_assert(sizeof(RankCell) % alignof(Channel) == 0);

// Pieces of empty tensors lie nowhere, which memcpy refuses.
void CopyBytes(void* to, const void* from, int64_t num_bytes) {
  if (num_bytes > 0) std::memcpy(to, from, num_bytes);
}

int64_t CellsOffset() { return sizeof(Header); }
int64_t ChannelsOffset(int size) {
  return CellsOffset() + size * int64_t{sizeof(RankCell)};
}
int64_t DataOffset(int size) {
  const int64_t end =
      ChannelsOffset(size) + int64_t{size} * size * int64_t{sizeof(Channel)};
  return (end + 4095) / 4096 * 4096;
}
int64_t SumsOffset(int size) {
  return DataOffset(size) + size * 2 * kSlotBytes;
}
int64_t ChannelDataOffset(int size) {
  return SumsOffset(size) + 2 * kSlotBytes;
}

class SharedCommunicator : public Communicator {
 public:
  SharedCommunicator(char* memory, const HostCommunicatorOptions& options)
      : memory_(memory),
        options_(options),
        // With fewer CPUs than ranks, who spins keeps out who would be done.
        spins_(static_cast<int>(AllowedCpus().size()) >= options.size),
        timeout_(options.timeout),
        watches_(options.size),
        num_sent_(options.size),
        num_received_(options.size) {}

  ~SharedCommunicator() override {
    cell(rank()).has_left.store(1, std::memory_order_release);
    WakeAll();
  }

  absl::Status Enter() {
    int32_t nobody = 0;
    if (!cell(rank()).pid.compare_exchange_strong(nobody, getpid())) {
      return absl::AlreadyExistsError(absl::StrCat(RankName(options_, rank()),
                                                   " of this group is process ",
                                                   nobody, " already"));
    }
    return absl::OkStatus();
  }

  int rank() const override { return options_.rank; }
  int size() const override { return options_.size; }
  std::string Description() const override {
    return absl::StrCat("shared memory, ", size(), " ranks");
  }

  absl::Status AllReduceSum(TensorView data, DeviceStream) override {
    QUIRE_RETURN_IF_ERROR(CheckHostView(data));
    const CollectiveCall call = {CallKind::kAllReduce, data.dtype, 0,
                                 static_cast<uint64_t>(data.rows * data.cols)};
    const bool is_split = size() > 2 && data.num_bytes() > kOneOperationBytes;
    return ForPieces(
        call, kSlotBytes, [&](int64_t begin, int64_t count) -> absl::Status {
          char* const piece =
              static_cast<char*>(data.data) + begin * DTypeSize(data.dtype);
          return is_split ? SumInTwo(call, piece, count)
                          : SumInOne(call, piece, count);
        });
  }

  absl::Status AllGather(TensorView from, TensorView to,
                         DeviceStream) override {
    QUIRE_RETURN_IF_ERROR(CheckSameElements(from, to, size(), 1));
    const int64_t bytes = DTypeSize(from.dtype);
    const int64_t num_elements = from.rows * from.cols;
    const CollectiveCall call = {CallKind::kAllGather, from.dtype, 0,
                                 static_cast<uint64_t>(num_elements)};
    return ForPieces(
        call, kSlotBytes, [&](int64_t begin, int64_t count) -> absl::Status {
          CopyBytes(OwnSlot(),
                    static_cast<const char*>(from.data) + begin * bytes,
                    count * bytes);
          QUIRE_RETURN_IF_ERROR(Arrive(call));
          for (int peer = 0; peer < size(); ++peer) {
            CopyBytes(static_cast<char*>(to.data) +
                          (peer * num_elements + begin) * bytes,
                      Slot(peer), count * bytes);
          }
          return absl::OkStatus();
        });
  }

  absl::Status ReduceScatterSum(TensorView from, TensorView to,
                                DeviceStream) override {
    QUIRE_RETURN_IF_ERROR(CheckSameElements(from, to, 1, size()));
    const int64_t bytes = DTypeSize(from.dtype);
    // The parts of all ranks side by side in a slot, a piece of each at a time.
    const int64_t part = to.rows * to.cols;
    const CollectiveCall call = {CallKind::kReduceScatter, from.dtype, 0,
                                 static_cast<uint64_t>(part)};
    const int64_t stride = kSlotBytes / size() / 64 * 64;
    return ForPieces(call, stride,
                     [&](int64_t begin, int64_t count) -> absl::Status {
                       for (int peer = 0; peer < size(); ++peer) {
                         CopyBytes(OwnSlot() + peer * stride,
                                   static_cast<const char*>(from.data) +
                                       (peer * part + begin) * bytes,
                                   count * bytes);
                       }
                       QUIRE_RETURN_IF_ERROR(Arrive(call));
                       Sum(call.dtype, count, rank() * stride,
                           static_cast<char*>(to.data) + begin * bytes);
                       return absl::OkStatus();
                     });
  }

  absl::Status Broadcast(TensorView data, int root, DeviceStream) override {
    QUIRE_RETURN_IF_ERROR(CheckHostView(data));
    QUIRE_RETURN_IF_ERROR(CheckPeer(root, -1, size()));
    const int64_t bytes = DTypeSize(data.dtype);
    const CollectiveCall call = {CallKind::kBroadcast, data.dtype,
                                 static_cast<uint8_t>(root),
                                 static_cast<uint64_t>(data.rows * data.cols)};
    return ForPieces(
        call, kSlotBytes, [&](int64_t begin, int64_t count) -> absl::Status {
          char* const piece = static_cast<char*>(data.data) + begin * bytes;
          if (rank() == root) CopyBytes(OwnSlot(), piece, count * bytes);
          QUIRE_RETURN_IF_ERROR(Arrive(call));
          if (rank() != root) CopyBytes(piece, Slot(root), count * bytes);
          return absl::OkStatus();
        });
  }

  absl::Status Send(TensorView data, int peer, DeviceStream) override {
    QUIRE_RETURN_IF_ERROR(CheckHostView(data));
    QUIRE_RETURN_IF_ERROR(CheckPeer(peer, rank(), size()));
    Channel& channel = *ChannelOf(rank(), peer);
    uint32_t& num_sent = num_sent_[peer];
    const int64_t bytes = DTypeSize(data.dtype);
    const CollectiveCall call = {CallKind::kSend, data.dtype, 0,
                                 static_cast<uint64_t>(data.rows * data.cols)};
    return ForPieces(
        call, kChannelBytes, [&](int64_t begin, int64_t count) -> absl::Status {
          // Both places are taken until the piece before the last is received.
          QUIRE_RETURN_IF_ERROR(
              WaitFor(peer, channel.num_received, num_sent - 1));
          CopyBytes(ChannelData(rank(), peer, num_sent),
                    static_cast<const char*>(data.data) + begin * bytes,
                    count * bytes);
          channel.calls[num_sent % 2].store(call.Pack(),
                                            std::memory_order_relaxed);
          channel.num_sent.Store(++num_sent);
          return absl::OkStatus();
        });
  }

  absl::Status Receive(TensorView data, int peer, DeviceStream) override {
    QUIRE_RETURN_IF_ERROR(CheckHostView(data));
    QUIRE_RETURN_IF_ERROR(CheckPeer(peer, rank(), size()));
    Channel& channel = *ChannelOf(peer, rank());
    uint32_t& num_received = num_received_[peer];
    const int64_t bytes = DTypeSize(data.dtype);
    const CollectiveCall call = {CallKind::kSend, data.dtype, 0,
                                 static_cast<uint64_t>(data.rows * data.cols)};
    return ForPieces(
        call, kChannelBytes, [&](int64_t begin, int64_t count) -> absl::Status {
          QUIRE_RETURN_IF_ERROR(
              WaitFor(peer, channel.num_sent, num_received + 1));
          const uint64_t sent =
              channel.calls[num_received % 2].load(std::memory_order_relaxed);
          if (sent != call.Pack() &&
              !HasCommunicatorBug(CommunicatorBug::kMessagesNotMatched)) {
            return Mismatch(peer, CollectiveCall::Unpack(sent), call);
          }
          CopyBytes(static_cast<char*>(data.data) + begin * bytes,
                    ChannelData(peer, rank(), num_received), count * bytes);
          channel.num_received.Store(++num_received);
          return absl::OkStatus();
        });
  }

  absl::Status Barrier() override {
    QUIRE_RETURN_IF_ERROR(Broken());
    return Arrive({});
  }

  void SetTimeout(absl::Duration timeout) override { timeout_ = timeout; }

  void Abort() override { Fail(Failure::kAborted, rank()); }

 private:
  RankCell& cell(int rank) const {
    return reinterpret_cast<RankCell*>(memory_ + CellsOffset())[rank];
  }
  Header& header() const { return *reinterpret_cast<Header*>(memory_); }
  Channel* ChannelOf(int from, int to) const {
    return reinterpret_cast<Channel*>(memory_ + ChannelsOffset(size())) +
           from * size() + to;
  }
  char* ChannelData(int from, int to, uint32_t piece) const {
    return memory_ + ChannelDataOffset(size()) +
           ((from * size() + to) * 2 + piece % 2) * kChannelBytes;
  }
  uint32_t Parity(uint32_t operation) const {
    return HasCommunicatorBug(CommunicatorBug::kOneSlot) ? 0 : operation % 2;
  }
  // Of the operation that Arrive ended; OwnSlot: that it is going to begin.
  char* Slot(int rank) const {
    return memory_ + DataOffset(size()) +
           (rank * 2 + Parity(num_arrived_)) * kSlotBytes;
  }
  char* OwnSlot() const {
    return memory_ + DataOffset(size()) +
           (rank() * 2 + Parity(num_arrived_ + 1)) * kSlotBytes;
  }
  char* SumSlot(uint32_t operation) const {
    return memory_ + SumsOffset(size()) + Parity(operation) * kSlotBytes;
  }

  // Runs body(begin, count) over the call's elements, in pieces of at most
  // max_bytes; once if there are none, so that all ranks meet.
  template <typename Body>
  absl::Status ForPieces(const CollectiveCall& call, int64_t max_bytes,
                         const Body& body) {
    QUIRE_RETURN_IF_ERROR(Broken());
    const int64_t num_elements = static_cast<int64_t>(call.num_elements);
    const int64_t step = max_bytes / DTypeSize(call.dtype);
    int64_t begin = 0;
    do {
      const int64_t count = std::min(step, num_elements - begin);
      if (begin > 0 && begin + count == num_elements &&
          HasCommunicatorBug(CommunicatorBug::kPieceLost)) {
        break;
      }
      QUIRE_RETURN_IF_ERROR(body(begin, count));
      begin += count;
    } while (begin < num_elements);
    return absl::OkStatus();
  }

  // out = the sum of what lies at `offset` in all slots.
  void Sum(DType dtype, int64_t count, int64_t offset, void* out) const {
    const void* parts[kMaxHostRanks];
    for (int peer = 0; peer < size(); ++peer) {
      const int from = HasCommunicatorBug(CommunicatorBug::kOwnRankFirst)
                           ? (peer + rank()) % size()
                           : peer;
      parts[peer] = Slot(from) + offset;
    }
    if (HasCommunicatorBug(CommunicatorBug::kRoundedTwice)) {
      CopyBytes(out, parts[0], count * DTypeSize(dtype));
      for (int peer = 1; peer < size(); ++peer) {
        const void* const pair[] = {out, parts[peer]};
        SumInRankOrder(pair, dtype, count, out);
      }
      return;
    }
    SumInRankOrder({parts, static_cast<size_t>(size())}, dtype, count, out);
  }

  absl::Status SumInOne(const CollectiveCall& call, char* piece,
                        int64_t count) {
    CopyBytes(OwnSlot(), piece, count * DTypeSize(call.dtype));
    QUIRE_RETURN_IF_ERROR(Arrive(call));
    Sum(call.dtype, count, 0, piece);
    return absl::OkStatus();
  }

  absl::Status SumInTwo(const CollectiveCall& call, char* piece,
                        int64_t count) {
    const int64_t bytes = DTypeSize(call.dtype);
    CopyBytes(OwnSlot(), piece, count * bytes);
    QUIRE_RETURN_IF_ERROR(Arrive(call));
    // Whole cache lines, so that no line has two writers.
    const int64_t slice = ((count + size() - 1) / size() + 31) / 32 * 32;
    const int64_t begin = std::min(count, rank() * slice);
    const int64_t end = std::min(count, begin + slice);
    // That of the operation to come; free as its data slot is.
    char* const sums = SumSlot(num_arrived_ + 1);
    const bool is_lost =
        rank() == size() - 1 && HasCommunicatorBug(CommunicatorBug::kSliceLost);
    if (end > begin && !is_lost) {
      Sum(call.dtype, end - begin, begin * bytes, sums + begin * bytes);
    }
    QUIRE_RETURN_IF_ERROR(Arrive(call));
    CopyBytes(piece, SumSlot(num_arrived_), count * bytes);
    return absl::OkStatus();
  }

  // Begins the next operation, whose data are in OwnSlot(), and waits for all.
  absl::Status Arrive(const CollectiveCall& call) {
    const uint32_t operation = ++num_arrived_;
    RankCell& own = cell(rank());
    own.calls[operation % 2].store(call.Pack(), std::memory_order_relaxed);
    own.arrived.Store(operation);
    for (int peer = 0; peer < size(); ++peer) {
      if (peer == rank()) continue;
      QUIRE_RETURN_IF_ERROR(WaitFor(peer, cell(peer).arrived, operation));
    }
    if (HasCommunicatorBug(CommunicatorBug::kCallsNotCompared)) {
      return absl::OkStatus();
    }
    for (int peer = 0; peer < size(); ++peer) {
      const uint64_t theirs =
          cell(peer).calls[operation % 2].load(std::memory_order_relaxed);
      if (theirs != call.Pack()) {
        return Mismatch(peer, CollectiveCall::Unpack(theirs), call);
      }
    }
    return absl::OkStatus();
  }

  absl::Status WaitFor(int peer, SharedCounter& counter, uint32_t target) {
    if (counter.HasReached(target)) return absl::OkStatus();
    // Where CPUs are taken, the rank that is waited for may want this one.
    if (spins_ && SpinUntil([&] { return counter.HasReached(target); },
                            kSpinTime, SpinBetween::kYield)) {
      return absl::OkStatus();
    }
    const absl::Time deadline = Clock::Monotonic()->Now() + timeout_;
    for (;;) {
      const uint32_t seen = counter.Load();
      if (static_cast<int32_t>(seen - target) >= 0) return absl::OkStatus();
      QUIRE_RETURN_IF_ERROR(Broken());
      if (HasLeft(peer)) {
        // What it did before it went counts.
        if (counter.HasReached(target)) return absl::OkStatus();
        Fail(Failure::kGone, peer);
        return Broken();
      }
      if (Clock::Monotonic()->Now() > deadline) {
        Fail(Failure::kSilent, peer);
        return Broken();
      }
      counter.WaitWhile(seen, std::min(kLookAround, timeout_));
    }
  }

  bool HasLeft(int peer) {
    if (HasCommunicatorBug(CommunicatorBug::kPeersNotWatched)) return false;
    const RankCell& theirs = cell(peer);
    if (theirs.has_left.load(std::memory_order_acquire) != 0) return true;
    const int pid = theirs.pid.load(std::memory_order_acquire);
    if (pid == 0 || pid == getpid()) return false;
    if (!watches_[peer].has_process()) watches_[peer] = ProcessWatch(pid);
    return watches_[peer].IsGone();
  }

  // The first failure stays, and all that wait look around.
  void Fail(Failure failure, int rank_of_failure) {
    uint32_t none = 0;
    header().failure.compare_exchange_strong(
        none, uint32_t(failure) << 16 | uint32_t(rank_of_failure) << 8 |
                  uint32_t(rank()));
    if (failure == Failure::kAborted &&
        HasCommunicatorBug(CommunicatorBug::kAbortNotTold)) {
      header().failure.store(0);
      is_aborted_here_ = true;
    }
    WakeAll();
  }

  void WakeAll() {
    for (int from = 0; from < size(); ++from) {
      cell(from).arrived.WakeAll();
      for (int to = 0; to < size(); ++to) {
        ChannelOf(from, to)->num_sent.WakeAll();
        ChannelOf(from, to)->num_received.WakeAll();
      }
    }
  }

  absl::Status Broken() const {
    const uint32_t failure = header().failure.load(std::memory_order_acquire);
    if (failure == 0 && !is_aborted_here_) return absl::OkStatus();
    const std::string who = RankName(options_, (failure >> 8) & 0xff);
    const std::string noticed =
        absl::StrCat(" (noticed by ", RankName(options_, failure & 0xff), ")");
    switch (static_cast<Failure>(failure >> 16)) {
      case Failure::kGone:
        return absl::UnavailableError(absl::StrCat(who, " has gone", noticed));
      case Failure::kSilent:
        return absl::UnavailableError(
            absl::StrCat(who, " has been silent for ",
                         absl::FormatDuration(timeout_), noticed));
      case Failure::kMismatch:
        return absl::UnavailableError(
            absl::StrCat(who, " called another operation", noticed));
      default:
        return absl::UnavailableError(
            absl::StrCat("the group was ended by ", who));
    }
  }

  absl::Status Mismatch(int peer, const CollectiveCall& theirs,
                        const CollectiveCall& ours) {
    Fail(Failure::kMismatch, peer);
    return absl::InvalidArgumentError(absl::StrCat(
        RankName(options_, peer), " calls ", theirs.ToString(), ", ",
        RankName(options_, rank()), " calls ", ours.ToString()));
  }

  char* const memory_;
  const HostCommunicatorOptions options_;
  const bool spins_;
  absl::Duration timeout_;
  std::vector<ProcessWatch> watches_;  // [size], opened when first needed.
  uint32_t num_arrived_ = 0;
  std::vector<uint32_t> num_sent_, num_received_;  // [size], pieces.
  std::atomic<bool> is_aborted_here_{false};
};

}  // namespace

int64_t SharedCommunicatorBytes(int size) {
  return ChannelDataOffset(size) + int64_t{size} * size * 2 * kChannelBytes;
}

absl::StatusOr<std::unique_ptr<Communicator>> NewSharedCommunicator(
    char* memory, const HostCommunicatorOptions& options) {
  QUIRE_RETURN_IF_ERROR(CheckHostOptions(options));
  auto communicator = std::make_unique<SharedCommunicator>(memory, options);
  QUIRE_RETURN_IF_ERROR(communicator->Enter());
  return communicator;
}

}  // namespace quire
