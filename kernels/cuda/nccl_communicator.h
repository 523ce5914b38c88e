// The collectives of ranks that compute on a GPU each, by NCCL.
//
// Everything is enqueued on a stream like a kernel, and is captured in a graph
// like one. What waits for other ranks on the host (joining, Barrier, WaitFor)
// has a timeout, and Abort ends it.
#ifndef QUIRE_KERNELS_CUDA_NCCL_COMMUNICATOR_H_
#define QUIRE_KERNELS_CUDA_NCCL_COMMUNICATOR_H_

#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "kernels/communicator.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/nccl_library.h"

namespace quire::cuda {

struct NcclCommunicatorOptions {
  // How long a rank waits for one that says nothing: while joining, and then.
  absl::Duration join_timeout = absl::Minutes(5);
  absl::Duration timeout = absl::Seconds(30);
};

// See Communicator. Views are device memory; the host's thread that enqueues
// has the device as its current one. Sums are NCCL's to round: the same bits on
// every rank, and in every run with the same ranks on the same machines.
//
// Graphs with its collectives go before it, and it goes before the device.
class NcclCommunicator : public Communicator {
 public:
  // Joins the group and waits until all ranks have. NOT_FOUND and
  // FAILED_PRECONDITION as NcclLibrary::Open; INVALID_ARGUMENT for a rank or
  // size out of range; UNAVAILABLE with NCCL's words, or after the timeout.
  static absl::StatusOr<std::unique_ptr<NcclCommunicator>> Create(
      const NcclLibrary& library, const NcclId& id, int rank, int size,
      Device* device, const NcclCommunicatorOptions& options = {});
  ~NcclCommunicator() override;

  int rank() const override { return rank_; }
  int size() const override { return size_; }
  std::string Description() const override;
  bool is_on_device() const override { return true; }
  const NcclCommunicatorOptions& options() const { return options_; }

  absl::Status AllReduceSum(TensorView data, DeviceStream stream) override;
  absl::Status AllGather(TensorView from, TensorView to,
                         DeviceStream stream) override;
  absl::Status ReduceScatterSum(TensorView from, TensorView to,
                                DeviceStream stream) override;
  absl::Status Broadcast(TensorView data, int root,
                         DeviceStream stream) override;
  absl::Status Send(TensorView data, int peer, DeviceStream stream) override;
  absl::Status Receive(TensorView data, int peer, DeviceStream stream) override;
  // On the device's own stream.
  absl::Status Barrier() override;
  absl::Status AsyncError() override;
  // Ends what is enqueued and what waits, also on other ranks. The library's
  // communicator is given up once, whoever else finds the group broken.
  void Abort() override;
  // May be called at any time. The communicator's end waits for a call.
  std::function<void()> DetachedAbort() override;

  // Device memory whose all-reduce is the fastest that the library has: a
  // symmetric window of all ranks, where its version has them (has_windows);
  // else plain device memory. A collective: all ranks ask for as many, in the
  // same order; of different sizes, each has the largest. It lives as long as
  // the communicator.
  // RESOURCE_EXHAUSTED if there is no such memory left.
  absl::StatusOr<void*> AllocateWindow(int64_t num_bytes);
  bool has_windows() const { return library_.api().has_windows(); }

  // Returns when `event` has happened. UNAVAILABLE where it does not within the
  // timeout, or something has gone wrong meanwhile; nothing waits then any
  // more, on any rank.
  absl::Status WaitFor(const Event& event);

 private:
  struct WindowMemory {
    void* memory = nullptr;
    nccl::Window window = nullptr;
  };

  NcclCommunicator(const NcclLibrary& library, int rank, int size,
                   Device* device, const NcclCommunicatorOptions& options)
      : library_(library),
        rank_(rank),
        size_(size),
        device_(device),
        options_(options) {}

  absl::Status Join(const NcclId& id);
  // Calls `enqueue` with the communicator. The first error is kept.
  absl::Status Call(const char* what,
                    absl::FunctionRef<nccl::Result(nccl::Comm)> enqueue);
  // Keeps the first `reason` and ends what is enqueued; always an error.
  // Requires: mu_ is held.
  absl::Status Break(absl::string_view reason);

  // What DetachedAbort refers to.
  struct Gate {
    std::mutex mu;
    NcclCommunicator* communicator = nullptr;  // Null: it has gone.
  };

  // The library's communicator is aborted, if nobody has done so. Returns at
  // once: what is enqueued ends then, but the library's call only when the last
  // graph with a collective in it has gone, which is for others to see to.
  void AbortComm();
  // The size that each rank's window of `num_bytes` or fewer must have.
  absl::StatusOr<int64_t> LargestWindow(int64_t num_bytes);
  // OK, or why nothing more can be called. Requires: mu_ is held.
  absl::Status CheckUsable();

  const std::shared_ptr<Gate> gate_ = std::make_shared<Gate>();
  const NcclLibrary library_;
  const int rank_;
  const int size_;
  Device* const device_;
  const NcclCommunicatorOptions options_;
  DeviceBuffer barrier_;  // One f32.
  std::unique_ptr<Event> barrier_event_;
  std::vector<WindowMemory> windows_;
  std::vector<DeviceBuffer> plain_memory_;

  // Null before joining, and once somebody has taken it to abort it, which
  // frees it: for a call in progress on another thread that means an error.
  std::atomic<nccl::Comm> comm_ = nullptr;
  std::thread aborting_;  // Set by who has taken comm_.
  std::atomic<bool> is_aborted_ = false;
  std::timed_mutex mu_;  // Calls of the library; guards what follows.
  absl::Status broken_;
};

// Opens the library and joins: what a backend's maker calls. The library's
// errors say where it was looked for.
absl::StatusOr<std::unique_ptr<NcclCommunicator>> CreateNcclCommunicator(
    const LibraryPlaces& places, const NcclId& id, int rank, int size,
    Device* device, const NcclCommunicatorOptions& options = {});

}  // namespace quire::cuda

#endif  // QUIRE_KERNELS_CUDA_NCCL_COMMUNICATOR_H_
