// Every collective of a communicator against its definition, on values whose
// sums are exact in each dtype: for a GPU (nccl_gpu_test) and for the emulation
// of one (nccl_communicator_test). Included by these tests.
#ifndef QUIRE_KERNELS_CUDA_NCCL_CHECK_H_
#define QUIRE_KERNELS_CUDA_NCCL_CHECK_H_

#include <cstdint>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "engine/base/status.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/nccl_communicator.h"
#include "kernels/dtype.h"

namespace quire::cuda {

// One rank's part; all ranks call it. An error tells the first difference.
class NcclCheck {
 public:
  // LaunchLateCopy of tests/gpu/stream_order_kernels.h: a kernel whose
  // successor may start before it has written.
  using LateCopy = bool (*)(const uint32_t* from, uint32_t* to, int num_words,
                            uint32_t* zero, int num_turns, simt::Stream stream);

  NcclCheck(Device* device, NcclCommunicator* communicator, LateCopy late_copy)
      : device_(device),
        communicator_(communicator),
        late_copy_(late_copy),
        rank_(communicator->rank()),
        size_(communicator->size()) {}

  absl::Status Run() {
    QUIRE_ASSIGN_OR_RETURN(from_, DeviceBuffer::Create(*device_, kBytes));
    QUIRE_ASSIGN_OR_RETURN(to_, DeviceBuffer::Create(*device_, kBytes));
    for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
      QUIRE_RETURN_IF_ERROR(AllReduce(dtype));
      QUIRE_RETURN_IF_ERROR(Others(dtype));
    }
    QUIRE_RETURN_IF_ERROR(InAGraph());
    QUIRE_RETURN_IF_ERROR(BehindALateCopy());
    return communicator_->Barrier();
  }

 private:
  static constexpr int64_t kRows = 3, kCols = 40;
  static constexpr int64_t kBytes = 1 << 14;

  // Element i of rank r's input: small integers.
  static float ValueOf(int64_t i, int rank) {
    return static_cast<float>((i * 7 + rank * 3) % 31 - 15);
  }
  float SumOf(int64_t i) const {
    float sum = 0;
    for (int r = 0; r < size_; ++r) sum += ValueOf(i, r);
    return sum;
  }
  static uint32_t BitsOf(float value, DType dtype) {
    if (dtype == DType::kF16) return FloatToHalf(value);
    if (dtype == DType::kBF16) return FloatToBf16(value);
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    return bits;
  }

  // Pageable host memory: waits before it goes.
  absl::Status Write(void* to, DType dtype, int64_t count,
                     const std::function<float(int64_t)>& value) {
    std::vector<char> host(count * DTypeSize(dtype));
    for (int64_t i = 0; i < count; ++i) {
      const uint32_t bits = BitsOf(value(i), dtype);
      std::memcpy(host.data() + i * DTypeSize(dtype), &bits, DTypeSize(dtype));
    }
    QUIRE_RETURN_IF_ERROR(device_->CopyToDevice(
        to, host.data(), static_cast<int64_t>(host.size())));
    return device_->Synchronize();
  }
  absl::Status Expect(const std::string& what, const void* from, DType dtype,
                      int64_t count,
                      const std::function<float(int64_t)>& value) {
    std::vector<char> host(count * DTypeSize(dtype));
    QUIRE_RETURN_IF_ERROR(device_->CopyToHost(
        host.data(), from, static_cast<int64_t>(host.size())));
    QUIRE_RETURN_IF_ERROR(device_->Synchronize());
    for (int64_t i = 0; i < count; ++i) {
      uint32_t bits = 0;
      std::memcpy(&bits, host.data() + i * DTypeSize(dtype), DTypeSize(dtype));
      if (bits == BitsOf(value(i), dtype)) continue;
      return absl::InternalError(
          absl::StrCat(what, " of ", DTypeName(dtype), " on rank ", rank_,
                       " of ", size_, ": element ", i, " has the bits ", bits,
                       ", not those of ", value(i)));
    }
    return absl::OkStatus();
  }

  // In plain memory, and in memory that all ranks share.
  absl::Status AllReduce(DType dtype) {
    QUIRE_ASSIGN_OR_RETURN(void* const window,
                           communicator_->AllocateWindow(kBytes));
    for (void* const memory : {to_.data<void>(), window}) {
      QUIRE_RETURN_IF_ERROR(Write(memory, dtype, kRows * kCols, [&](int64_t i) {
        return ValueOf(i, rank_);
      }));
      QUIRE_RETURN_IF_ERROR(communicator_->AllReduceSum(
          TensorView::Matrix(memory, dtype, kRows, kCols), device_->stream()));
      QUIRE_RETURN_IF_ERROR(Expect("the sum", memory, dtype, kRows * kCols,
                                   [&](int64_t i) { return SumOf(i); }));
    }
    return absl::OkStatus();
  }

  absl::Status Others(DType dtype) {
    void* const from = from_.data();
    void* const to = to_.data();
    const int64_t part = kRows * kCols;
    const TensorView small = TensorView::Matrix(from, dtype, kRows, kCols);
    const TensorView all = TensorView::Matrix(to, dtype, kRows * size_, kCols);
    const auto own = [&](int64_t i) { return ValueOf(i, rank_); };
    QUIRE_RETURN_IF_ERROR(Write(from, dtype, part, own));
    QUIRE_RETURN_IF_ERROR(
        communicator_->AllGather(small, all, device_->stream()));
    QUIRE_RETURN_IF_ERROR(
        Expect("what was gathered", to, dtype, part * size_, [&](int64_t i) {
          return ValueOf(i % part, static_cast<int>(i / part));
        }));

    QUIRE_RETURN_IF_ERROR(Write(to, dtype, part * size_, own));
    QUIRE_RETURN_IF_ERROR(
        communicator_->ReduceScatterSum(all, small, device_->stream()));
    QUIRE_RETURN_IF_ERROR(
        Expect("the part of the sum", from, dtype, part,
               [&](int64_t i) { return SumOf(rank_ * part + i); }));

    const int root = size_ - 1;
    QUIRE_RETURN_IF_ERROR(Write(from, dtype, part, own));
    QUIRE_RETURN_IF_ERROR(
        communicator_->Broadcast(small, root, device_->stream()));
    QUIRE_RETURN_IF_ERROR(Expect("what was broadcast", from, dtype, part,
                                 [&](int64_t i) { return ValueOf(i, root); }));
    if (size_ == 1) return absl::OkStatus();

    // From each rank to the next, one after the other.
    QUIRE_RETURN_IF_ERROR(Write(from, dtype, part, own));
    for (int sender = 0; sender < size_; ++sender) {
      const int receiver = (sender + 1) % size_;
      if (sender == rank_) {
        QUIRE_RETURN_IF_ERROR(
            communicator_->Send(small, receiver, device_->stream()));
      } else if (receiver == rank_) {
        QUIRE_RETURN_IF_ERROR(
            communicator_->Receive(TensorView::Matrix(to, dtype, kRows, kCols),
                                   sender, device_->stream()));
      }
    }
    const int sender = (rank_ + size_ - 1) % size_;
    return Expect("what was received", to, dtype, part,
                  [&](int64_t i) { return ValueOf(i, sender); });
  }

  // Captured once, launched thrice: the sum of sums of sums.
  absl::Status InAGraph() {
    QUIRE_ASSIGN_OR_RETURN(void* const window,
                           communicator_->AllocateWindow(kBytes));
    QUIRE_RETURN_IF_ERROR(device_->BeginCapture());
    const absl::Status enqueued = communicator_->AllReduceSum(
        TensorView::Matrix(window, DType::kF32, kRows, kCols),
        device_->stream());
    QUIRE_ASSIGN_OR_RETURN(const std::unique_ptr<Graph> graph,
                           device_->EndCapture());
    QUIRE_RETURN_IF_ERROR(enqueued);
    QUIRE_RETURN_IF_ERROR(Write(window, DType::kF32, kRows * kCols,
                                [&](int64_t i) { return ValueOf(i, rank_); }));
    for (int i = 0; i < 3; ++i) {
      QUIRE_RETURN_IF_ERROR(device_->Launch(*graph));
    }
    return Expect("the sum in a graph", window, DType::kF32, kRows * kCols,
                  [&](int64_t i) { return SumOf(i) * size_ * size_; });
  }

  // A sum of what the kernel before it writes late, into memory that this
  // kernel reads again for the next; in the stream, and in a graph.
  absl::Status BehindALateCopy() {
    constexpr int kWords = 128;
    constexpr int kTurns = 1000;  // Some 0.7 ms on an H100.
    static_assert(kWords >= kRows * kCols);
    QUIRE_ASSIGN_OR_RETURN(void* const window,
                           communicator_->AllocateWindow(kBytes));
    auto* const zero = to_.data<uint32_t>();
    QUIRE_RETURN_IF_ERROR(
        Write(zero, DType::kF32, 1, [](int64_t) { return 0.0f; }));
    QUIRE_RETURN_IF_ERROR(Write(from_.data(), DType::kF32, kWords,
                                [&](int64_t i) { return ValueOf(i, rank_); }));
    const auto enqueue = [&]() -> absl::Status {
      for (int i = 0; i < 2; ++i) {
        if (!late_copy_(from_.data<uint32_t>(), static_cast<uint32_t*>(window),
                        kWords, zero, kTurns, device_->stream())) {
          return device_->LaunchError("LateCopy");
        }
        QUIRE_RETURN_IF_ERROR(communicator_->AllReduceSum(
            TensorView::Matrix(window, DType::kF32, kRows, kCols),
            device_->stream()));
      }
      return absl::OkStatus();
    };
    const auto expect = [&](const char* what) {
      return Expect(what, window, DType::kF32, kRows * kCols,
                    [&](int64_t i) { return SumOf(i); });
    };
    QUIRE_RETURN_IF_ERROR(enqueue());
    QUIRE_RETURN_IF_ERROR(expect("the sum behind a late copy"));
    QUIRE_RETURN_IF_ERROR(device_->BeginCapture());
    const absl::Status enqueued = enqueue();
    QUIRE_ASSIGN_OR_RETURN(const std::unique_ptr<Graph> graph,
                           device_->EndCapture());
    QUIRE_RETURN_IF_ERROR(enqueued);
    for (int i = 0; i < 3; ++i) {
      QUIRE_RETURN_IF_ERROR(device_->Launch(*graph));
    }
    return expect("the sum behind a late copy in a graph");
  }

  Device* const device_;
  NcclCommunicator* const communicator_;
  const LateCopy late_copy_;
  const int rank_;
  const int size_;
  DeviceBuffer from_, to_;
};

}  // namespace quire::cuda

#endif  // QUIRE_KERNELS_CUDA_NCCL_CHECK_H_
