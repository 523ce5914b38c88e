// What the host communicators check alike. Internal to them.
#ifndef QUIRE_KERNELS_HOST_VIEWS_H_
#define QUIRE_KERNELS_HOST_VIEWS_H_

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "kernels/host_communicator.h"
#include "kernels/tensor_view.h"

namespace quire {

// INVALID_ARGUMENT, saying what is wrong, for a view that cannot take part.
absl::Status CheckHostView(TensorView view);
// Of both views, and from.rows * from_factor == to.rows * to_factor.
absl::Status CheckSameElements(TensorView from, TensorView to,
                               int64_t from_factor, int64_t to_factor);
absl::Status CheckPeer(int peer, int rank, int size);
absl::Status CheckHostOptions(const HostCommunicatorOptions& options);
std::string RankName(const HostCommunicatorOptions& options, int rank);

enum class CallKind : uint8_t {
  kBarrier,
  kAllReduce,
  kAllGather,
  kReduceScatter,
  kBroadcast,
  kSend,
};

// What a rank calls, told to its peers beside the data: ranks that do not call
// the same have lost each other, and must not take rubbish for a result.
struct CollectiveCall {
  CallKind kind = CallKind::kBarrier;
  DType dtype = DType::kF32;
  uint8_t root = 0;
  uint64_t num_elements = 0;  // Of this rank's `from`; below 2^40.

  uint64_t Pack() const {
    return uint64_t(kind) << 56 | uint64_t(dtype) << 48 | uint64_t{root} << 40 |
           (num_elements & ((uint64_t{1} << 40) - 1));
  }
  static CollectiveCall Unpack(uint64_t bits) {
    CollectiveCall call;
    call.kind = static_cast<CallKind>(bits >> 56);
    call.dtype = static_cast<DType>((bits >> 48) & 0xff);
    call.root = static_cast<uint8_t>(bits >> 40);
    call.num_elements = bits & ((uint64_t{1} << 40) - 1);
    return call;
  }
  std::string ToString() const;
};

}  // namespace quire

#endif  // QUIRE_KERNELS_HOST_VIEWS_H_
