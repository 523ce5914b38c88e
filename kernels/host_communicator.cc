#include "kernels/host_communicator.h"

#include <cstring>

#include "absl/strings/str_cat.h"
#include "engine/base/status.h"
#include "kernels/host_views.h"

namespace quire {
namespace {

class NullCommunicator : public Communicator {
 public:
  int rank() const override { return 0; }
  int size() const override { return 1; }
  std::string Description() const override { return "1 rank"; }
  absl::Status AllReduceSum(TensorView data, DeviceStream) override {
    return CheckHostView(data);
  }
  absl::Status AllGather(TensorView from, TensorView to,
                         DeviceStream) override {
    return Copy(from, to);
  }
  absl::Status ReduceScatterSum(TensorView from, TensorView to,
                                DeviceStream) override {
    return Copy(from, to);
  }
  absl::Status Broadcast(TensorView data, int root, DeviceStream) override {
    QUIRE_RETURN_IF_ERROR(CheckPeer(root, -1, 1));
    return CheckHostView(data);
  }
  absl::Status Send(TensorView, int peer, DeviceStream) override {
    return CheckPeer(peer, 0, 1);
  }
  absl::Status Receive(TensorView, int peer, DeviceStream) override {
    return CheckPeer(peer, 0, 1);
  }
  absl::Status Barrier() override { return absl::OkStatus(); }
  void Abort() override {}

 private:
  static absl::Status Copy(TensorView from, TensorView to) {
    QUIRE_RETURN_IF_ERROR(CheckSameElements(from, to, 1, 1));
    if (from.data != to.data && from.num_bytes() > 0) {
      std::memcpy(to.data, from.data, from.num_bytes());
    }
    return absl::OkStatus();
  }
};

}  // namespace

std::unique_ptr<Communicator> NewNullCommunicator() {
  return std::make_unique<NullCommunicator>();
}

absl::Status CheckHostView(TensorView view) {
  if (!IsFloatDType(view.dtype)) {
    return absl::InvalidArgumentError(
        absl::StrCat("a view of ", DTypeName(view.dtype),
                     " instead of f32, f16 or bf16 elements"));
  }
  if (view.rows < 0 || view.cols < 0 ||
      (view.rows > 1 && view.row_stride != view.cols)) {
    return absl::InvalidArgumentError(
        absl::StrCat("a view of [", view.rows, ", ", view.cols, "] with rows ",
                     view.row_stride, " elements apart"));
  }
  if (view.data == nullptr && view.num_bytes() > 0) {
    return absl::InvalidArgumentError("a view of nothing");
  }
  return absl::OkStatus();
}

absl::Status CheckSameElements(TensorView from, TensorView to,
                               int64_t from_factor, int64_t to_factor) {
  QUIRE_RETURN_IF_ERROR(CheckHostView(from));
  QUIRE_RETURN_IF_ERROR(CheckHostView(to));
  if (from.dtype != to.dtype || from.cols != to.cols ||
      from.rows * from_factor != to.rows * to_factor) {
    return absl::InvalidArgumentError(absl::StrCat(
        "from [", from.rows, ", ", from.cols, "] ", DTypeName(from.dtype),
        " to [", to.rows, ", ", to.cols, "] ", DTypeName(to.dtype), " with ",
        std::max(from_factor, to_factor), " ranks"));
  }
  return absl::OkStatus();
}

absl::Status CheckPeer(int peer, int rank, int size) {
  if (peer >= 0 && peer < size && peer != rank) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      "rank ", peer, " is no peer in a group of ", size, " ranks"));
}

absl::Status CheckHostOptions(const HostCommunicatorOptions& options) {
  if (options.size < 1 || options.size > kMaxHostRanks || options.rank < 0 ||
      options.rank >= options.size ||
      (!options.global_ranks.empty() &&
       options.global_ranks.size() != size_t(options.size))) {
    return absl::InvalidArgumentError(
        absl::StrCat("no such group: rank ", options.rank, " of ", options.size,
                     ", at most ", kMaxHostRanks, " ranks"));
  }
  return absl::OkStatus();
}

std::string RankName(const HostCommunicatorOptions& options, int rank) {
  return absl::StrCat("rank ", options.global_ranks.empty()
                                   ? rank
                                   : options.global_ranks[rank]);
}

std::string CollectiveCall::ToString() const {
  static constexpr const char* kNames[] = {"Barrier",   "AllReduceSum",
                                           "AllGather", "ReduceScatterSum",
                                           "Broadcast", "Send"};
  const uint8_t name_idx = static_cast<uint8_t>(kind);
  return absl::StrCat(
      name_idx < std::size(kNames) ? kNames[name_idx] : "an unknown operation",
      " of ", num_elements, " ", DTypeName(dtype),
      kind == CallKind::kBroadcast ? absl::StrCat(" from ", int{root}) : "");
}

}  // namespace quire
