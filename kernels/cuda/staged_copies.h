// Copies to the device from memory that only the processor can read, as fast as
// a GPU takes them: several threads fill pieces of pinned memory, from which
// the GPU copies by itself while the next pieces are being filled. A cudaMemcpy
// from pageable memory is one thread that does both in turn.
#ifndef QUIRE_KERNELS_CUDA_STAGED_COPIES_H_
#define QUIRE_KERNELS_CUDA_STAGED_COPIES_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "engine/base/thread_pool.h"
#include "kernels/cuda/device.h"

namespace quire::cuda {

struct StagedCopiesOptions {
  // That fill; <= 0: one for each physical core that may be used, within what
  // is of use (kMaxThreads in staged_copies.cc).
  int num_threads = 0;
  // Few, so that what has been filled is still in the processor's cache when
  // the GPU reads it: with four pieces of 16 MiB in place of 4 one thread fills
  // 11 GB/s instead of 20 (RESULTS.md). 76 us of PCIe 5.0 x16, next to which
  // the 5 us of enqueueing a copy are little.
  int64_t piece_bytes = int64_t{4} << 20;
};

// Thread-compatible; the device is borrowed and used by the calling thread
// alone. Memory and threads are there from the first copy that needs them to
// Finish. Where no memory can be pinned (which is a warning), pieces are
// pageable: slower, and the same bytes.
class StagedCopies {
 public:
  // Writes rows [first, first + count), one behind the other, to `out`, which
  // is not initialized. Called on several threads at once, for other rows. The
  // bytes must depend on the rows alone.
  using Fill =
      absl::FunctionRef<absl::Status(int64_t first, int64_t count, char* out)>;

  StagedCopies(Device& device, const StagedCopiesOptions& options)
      : device_(device), options_(options) {}
  // Waits for the copies.
  ~StagedCopies();
  StagedCopies(const StagedCopies&) = delete;
  StagedCopies& operator=(const StagedCopies&) = delete;

  // Enqueues, in the order of the device's stream, copies of num_rows rows of
  // row_bytes each to `to`, in device memory. Returns when all have been
  // filled: what `fill` reads is not needed any more, and what has been copied
  // is there for whatever the stream does next.
  // INTERNAL: of the device, perhaps for an earlier copy; or the error of the
  // first rows whose `fill` failed, whatever the number of threads. The bytes
  // at `to` are unspecified then, and copies to it may still be under way.
  absl::Status CopyRows(void* to, int64_t num_rows, int64_t row_bytes,
                        Fill fill);
  // The same of memory as it is.
  absl::Status Copy(void* to, const void* from, int64_t num_bytes);

  // Waits for all copies, and gives memory and threads back. INTERNAL: one of
  // the copies failed.
  absl::Status Finish();

 private:
  struct Piece {
    DeviceBuffer pinned;
    std::unique_ptr<char[]> pageable;  // If that could not be had.
    char* data = nullptr;
    int64_t num_bytes = 0;
    int64_t num_used = 0;
    std::unique_ptr<Event> copied;  // Of all in it, once it is full.
  };

  absl::Status Allocate(int64_t num_bytes, Piece& piece);
  absl::StatusOr<Piece*> PieceWithRoom(int64_t num_bytes);
  absl::Status FillRows(int64_t first, int64_t count, int64_t row_bytes,
                        Fill fill, char* out);

  Device& device_;
  const StagedCopiesOptions options_;
  std::vector<Piece> pieces_;  // A ring.
  size_t current_ = 0;
  std::unique_ptr<ThreadPool> pool_;
  bool has_warned_ = false;
};

}  // namespace quire::cuda

#endif  // QUIRE_KERNELS_CUDA_STAGED_COPIES_H_
