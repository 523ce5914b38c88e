#include "kernels/cuda/staged_copies.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <mutex>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/base/cpu_topology.h"
#include "engine/base/status.h"
#include "engine/base/warning.h"

namespace quire::cuda {
namespace {

// One is filled, one is copied, and two are left for when either is late.
constexpr size_t kNumPieces = 4;

// PCIe 5.0 x16 carries at most 63 GB/s, and one thread that faults a mapped
// file in copies 4 GB/s and more. What is packed beside, from int4, is no
// faster.
constexpr int kMaxThreads = 16;

// What a thread takes at a time: of a piece two for each of the most threads,
// so that who comes late does not delay the others by a whole share.
constexpr int64_t kChunkBytes = int64_t{128} << 10;

// Rows of one copy do not share cache lines with those of the next.
constexpr int64_t kAlignment = 64;

int64_t RoundUp(int64_t value) {
  return (value + kAlignment - 1) / kAlignment * kAlignment;
}

int NumThreads(int wanted) {
  if (wanted > 0) return wanted;
  const auto placement = PlaceThreads({0, {}, NumaPolicy::kOff});
  QUIRE_CHECK(placement.ok());  // Only a list of CPUs can be wrong.
  return std::min(placement->num_threads, kMaxThreads);
}

}  // namespace

StagedCopies::~StagedCopies() { (void)Finish(); }

absl::Status StagedCopies::Allocate(int64_t num_bytes, Piece& piece) {
  piece = Piece();
  auto pinned = DeviceBuffer::Create(device_, num_bytes, /*is_pinned=*/true);
  if (pinned.ok()) {
    piece.pinned = *std::move(pinned);
    piece.data = piece.pinned.data();
  } else {
    // An error that sticks is met again by the copy.
    if (!std::exchange(has_warned_, true)) {
      Warn(
          absl::StrCat("weights are copied to the GPU from pageable memory, "
                       "which is slower: ",
                       pinned.status().message()));
    }
    piece.pageable.reset(new char[num_bytes]);
    piece.data = piece.pageable.get();
  }
  piece.num_bytes = num_bytes;
  QUIRE_ASSIGN_OR_RETURN(piece.copied, device_.CreateEvent());
  return absl::OkStatus();
}

absl::StatusOr<StagedCopies::Piece*> StagedCopies::PieceWithRoom(
    int64_t num_bytes) {
  if (!pieces_.empty()) {
    Piece& current = pieces_[current_];
    if (current.num_bytes - current.num_used >= num_bytes) return &current;
    QUIRE_RETURN_IF_ERROR(device_.Record(*current.copied));
    current_ = (current_ + 1) % kNumPieces;
  }
  // A row may be larger than a piece.
  const int64_t wanted = RoundUp(std::max(options_.piece_bytes, num_bytes));
  if (current_ == pieces_.size()) {
    pieces_.emplace_back();
    QUIRE_RETURN_IF_ERROR(Allocate(wanted, pieces_.back()));
    return &pieces_.back();
  }
  Piece& next = pieces_[current_];
  QUIRE_RETURN_IF_ERROR(device_.Wait(*next.copied));
  next.num_used = 0;
  if (next.num_bytes < wanted) QUIRE_RETURN_IF_ERROR(Allocate(wanted, next));
  return &next;
}

absl::Status StagedCopies::FillRows(int64_t first, int64_t count,
                                    int64_t row_bytes, Fill fill, char* out) {
  const int64_t chunk = std::max<int64_t>(1, kChunkBytes / row_bytes);
  if (count <= chunk) return fill(first, count, out);
  if (pool_ == nullptr) {
    pool_ = std::make_unique<ThreadPool>(NumThreads(options_.num_threads));
  }
  std::mutex mu;
  int64_t failed_at = std::numeric_limits<int64_t>::max();
  absl::Status failure;
  pool_->ParallelFor(count, chunk, [&](int64_t begin, int64_t end, int) {
    absl::Status status =
        fill(first + begin, end - begin, out + begin * row_bytes);
    if (status.ok()) return;
    std::lock_guard<std::mutex> lock(mu);
    if (begin >= failed_at) return;
    failed_at = begin;
    failure = std::move(status);
  });
  return failure;
}

absl::Status StagedCopies::CopyRows(void* to, int64_t num_rows,
                                    int64_t row_bytes, Fill fill) {
  QUIRE_CHECK(row_bytes > 0);
  char* out = static_cast<char*>(to);
  for (int64_t first = 0; first < num_rows;) {
    QUIRE_ASSIGN_OR_RETURN(Piece* const piece, PieceWithRoom(row_bytes));
    const int64_t room = piece->num_bytes - piece->num_used;
    const int64_t count = std::min(num_rows - first, room / row_bytes);
    char* const staged = piece->data + piece->num_used;
    QUIRE_RETURN_IF_ERROR(FillRows(first, count, row_bytes, fill, staged));
    QUIRE_RETURN_IF_ERROR(device_.CopyToDevice(out + first * row_bytes, staged,
                                               count * row_bytes));
    piece->num_used += RoundUp(count * row_bytes);
    first += count;
  }
  return absl::OkStatus();
}

absl::Status StagedCopies::Copy(void* to, const void* from, int64_t num_bytes) {
  return CopyRows(
      to, num_bytes, 1, [from](int64_t first, int64_t count, char* out) {
        std::memcpy(out, static_cast<const char*>(from) + first, count);
        return absl::OkStatus();
      });
}

absl::Status StagedCopies::Finish() {
  if (pieces_.empty()) return absl::OkStatus();
  const absl::Status status = device_.Synchronize();
  pieces_.clear();
  current_ = 0;
  pool_ = nullptr;
  return status;
}

}  // namespace quire::cuda
