// Collectives among the ranks of a model that is split over processes.
#ifndef QUIRE_KERNELS_COMMUNICATOR_H_
#define QUIRE_KERNELS_COMMUNICATOR_H_

#include <functional>
#include <string>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "kernels/tensor_view.h"

namespace quire {

// What is enqueued on a device runs on its stream; null for host memory, where
// every operation is done when it returns.
using DeviceStream = void*;

// Every rank of the group makes the same calls in the same order, with views of
// equal shape and dtype (f32, f16 or bf16) whose rows lie one behind the other.
// Thread-compatible, but for Abort.
//
// Errors: UNAVAILABLE where a peer is gone, silent for longer than the group's
// timeout, or Abort was called: the group is broken for good, and every later
// call says the same. INVALID_ARGUMENT for views that are not as said.
class Communicator {
 public:
  virtual ~Communicator() = default;

  virtual int rank() const = 0;
  virtual int size() const = 0;
  // "shared memory, 4 ranks", "NCCL 2.28.9, 2 ranks".
  virtual std::string Description() const = 0;
  // Of device memory: operations are enqueued and may be captured in a graph.
  virtual bool is_on_device() const { return false; }

  // data = sum of all ranks' data. On the host in f32, neighbours first
  // (rank_sum.h), rounded once to the dtype: the same bits on every rank and in
  // every run. NCCL rounds as it does.
  virtual absl::Status AllReduceSum(TensorView data, DeviceStream stream) = 0;

  // to: [size * from.rows, cols]; rank r's `from` are rows r * from.rows
  // onwards.
  virtual absl::Status AllGather(TensorView from, TensorView to,
                                 DeviceStream stream) = 0;

  // to: this rank's part of the sum of all ranks' `from`, [from.rows / size,
  // cols]; as AllReduceSum.
  virtual absl::Status ReduceScatterSum(TensorView from, TensorView to,
                                        DeviceStream stream) = 0;

  virtual absl::Status Broadcast(TensorView data, int root,
                                 DeviceStream stream) = 0;

  // Between two ranks; each Send meets the peer's next Receive.
  virtual absl::Status Send(TensorView data, int peer, DeviceStream stream) = 0;
  virtual absl::Status Receive(TensorView data, int peer,
                               DeviceStream stream) = 0;

  // Returns when all ranks have called it (and, on a device, what they have
  // enqueued before it has run).
  virtual absl::Status Barrier() = 0;

  // How long the operations from now on wait for a peer that says nothing.
  // Without effect where the library has a limit of its own.
  virtual void SetTimeout(absl::Duration /*timeout*/) {}

  // OK while nothing has gone wrong with what was enqueued.
  virtual absl::Status AsyncError() { return absl::OkStatus(); }

  // Ends, with an error, what waits here and on the other ranks. From any
  // thread.
  virtual void Abort() = 0;
  // Abort for somebody who may outlive the communicator, and then does nothing.
  // Unless a subclass says so it must not be called then.
  virtual std::function<void()> DetachedAbort() {
    return [this] { Abort(); };
  }
};

}  // namespace quire

#endif  // QUIRE_KERNELS_COMMUNICATOR_H_
