#include "engine/parallel/plan_ring.h"

#include <algorithm>
#include <atomic>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "engine/base/clock.h"
#include "engine/base/shared_memory.h"
#include "engine/base/status.h"

namespace quire {
namespace {

// A decode of 64 sequences takes 2 KiB, a prompt of 100k tokens 400.
constexpr uint32_t kRingBytes = 1 << 20;
// Between two steps under load a reader need not be woken, which would cost the
// writer a system call (5 us, and 55 in a virtual machine under load).
constexpr absl::Duration kSpinTime = absl::Microseconds(200);

// The ring's data lie behind the header and one counter for each reader, of
// which there are less than ranks of a host.
constexpr int kMaxReaders = 64;
constexpr int64_t kDataOffset = 8192;

// All counters are of bytes, and wrap around at 2^32, of which the ring's size
// is a part.
struct Header {
  SharedCounter num_written;
  alignas(64) std::atomic<uint32_t> is_stopped;
};
static_assert(sizeof(Header) + kMaxReaders * sizeof(SharedCounter) <=
              kDataOffset);

Header& HeaderOf(char* memory) { return *reinterpret_cast<Header*>(memory); }

SharedCounter& NumRead(char* memory, int reader_idx) {
  return reinterpret_cast<SharedCounter*>(memory + sizeof(Header))[reader_idx];
}

}  // namespace

int64_t PlanRingBytes() { return kDataOffset + kRingBytes; }

PlanRingWriter::PlanRingWriter(char* memory, int num_readers)
    : memory_(memory), num_readers_(num_readers) {
  QUIRE_CHECK(num_readers >= 0 && num_readers <= kMaxReaders);
}

absl::StatusOr<uint32_t> PlanRingWriter::WaitForSpace(absl::Duration timeout) {
  uint32_t num_free = kRingBytes;
  for (int i = 0; i < num_readers_; ++i) {
    SharedCounter& num_read = NumRead(memory_, i);
    uint32_t unread = num_written_ - num_read.Load();
    const absl::Time deadline = unread < kRingBytes
                                    ? absl::InfinitePast()
                                    : Clock::Monotonic()->Now() + timeout;
    while (unread >= kRingBytes) {
      if (HeaderOf(memory_).is_stopped.load(std::memory_order_acquire) != 0) {
        return absl::UnavailableError("the ranks have been stopped");
      }
      const absl::Duration left = deadline - Clock::Monotonic()->Now();
      if (left <= absl::ZeroDuration()) {
        return absl::UnavailableError(
            absl::StrCat("reader ", i, " has not read a plan for ",
                         absl::FormatDuration(timeout)));
      }
      // In slices, so that Stop need not know who waits where.
      num_read.WaitWhile(num_written_ - unread,
                         std::min(left, absl::Milliseconds(50)));
      unread = num_written_ - num_read.Load();
    }
    num_free = std::min(num_free, kRingBytes - unread);
  }
  return num_free;
}

absl::Status PlanRingWriter::Write(absl::string_view message,
                                   absl::Duration timeout) {
  if (static_cast<int64_t>(message.size()) > kMaxPlanBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("a plan of ", message.size(), " bytes"));
  }
  const uint32_t length = static_cast<uint32_t>(message.size());
  char head[sizeof(length)];
  std::memcpy(head, &length, sizeof(length));
  absl::string_view parts[] = {{head, sizeof(head)}, message};
  // What fits into the ring becomes visible as a whole.
  for (absl::string_view& part : parts) {
    while (!part.empty()) {
      QUIRE_ASSIGN_OR_RETURN(const uint32_t num_free, WaitForSpace(timeout));
      const uint32_t at = num_written_ % kRingBytes;
      const uint32_t size = std::min(
          {num_free, kRingBytes - at, static_cast<uint32_t>(part.size())});
      std::memcpy(memory_ + kDataOffset + at, part.data(), size);
      num_written_ += size;
      part.remove_prefix(size);
      const bool is_last = &part == &parts[1] || message.empty();
      const bool is_full = num_free == size;
      if (is_full || (part.empty() && is_last)) {
        HeaderOf(memory_).num_written.Store(num_written_);
      }
    }
  }
  return absl::OkStatus();
}

void PlanRingWriter::Stop() {
  HeaderOf(memory_).is_stopped.store(1, std::memory_order_release);
}

PlanRingReader::PlanRingReader(char* memory, int reader_idx)
    : memory_(memory), reader_idx_(reader_idx) {
  QUIRE_CHECK(reader_idx >= 0 && reader_idx < kMaxReaders);
}

bool PlanRingReader::HasMessage() const {
  return HeaderOf(memory_).num_written.Load() != num_read_;
}

uint32_t PlanRingReader::WaitForBytes(absl::Duration timeout) {
  SharedCounter& num_written = HeaderOf(memory_).num_written;
  // A yield between looks would let the writer of very fast steps run ahead.
  SpinUntil([&] { return num_written.Load() != num_read_; }, kSpinTime,
            SpinBetween::kPause);
  absl::Time deadline = absl::InfiniteFuture();
  while (num_written.Load() == num_read_) {
    if (deadline == absl::InfiniteFuture())
      deadline = Clock::Monotonic()->Now() + timeout;
    const absl::Duration left = deadline - Clock::Monotonic()->Now();
    if (left <= absl::ZeroDuration()) return 0;
    num_written.WaitWhile(num_read_, left);
  }
  return num_written.Load() - num_read_;
}

absl::Status PlanRingReader::Take(char* to, int64_t size,
                                  absl::Duration timeout) {
  while (size > 0) {
    const uint32_t num_unread = WaitForBytes(timeout);
    if (num_unread == 0) {
      return absl::DataLossError("a plan does not go on");
    }
    if (num_unread > kRingBytes) {
      return absl::DataLossError("the ring of plans is damaged");
    }
    const uint32_t at = num_read_ % kRingBytes;
    const uint32_t piece = static_cast<uint32_t>(
        std::min<int64_t>({size, num_unread, kRingBytes - at}));
    std::memcpy(to, memory_ + kDataOffset + at, piece);
    num_read_ += piece;
    NumRead(memory_, reader_idx_).Store(num_read_);
    to += piece;
    size -= piece;
  }
  return absl::OkStatus();
}

absl::StatusOr<bool> PlanRingReader::Read(std::string* message,
                                          absl::Duration timeout,
                                          absl::Duration message_timeout) {
  if (WaitForBytes(timeout) == 0) return false;
  uint32_t length = 0;
  QUIRE_RETURN_IF_ERROR(
      Take(reinterpret_cast<char*>(&length), sizeof(length), message_timeout));
  if (length > kMaxPlanBytes) {
    return absl::DataLossError(absl::StrCat("a plan of ", length, " bytes"));
  }
  message->resize(length);
  QUIRE_RETURN_IF_ERROR(Take(message->data(), length, message_timeout));
  return true;
}

}  // namespace quire
