#include "kernels/cuda/nccl_communicator.h"

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <thread>

#include "absl/strings/str_cat.h"
#include "engine/base/clock.h"
#include "engine/base/status.h"

namespace quire::cuda {
namespace {

// How long Abort waits for a call of the library on another thread to return.
// After that the call itself waits for a rank that is gone, and ends with the
// abort.
constexpr std::chrono::seconds kAbortPatience(1);

absl::StatusOr<nccl::DataType> ToNcclType(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return nccl::kFloat32;
    case DType::kF16:
      return nccl::kFloat16;
    case DType::kBF16:
      return nccl::kBfloat16;
    default:
      return absl::InvalidArgumentError(
          absl::StrCat("a collective of ", DTypeName(dtype)));
  }
}

// The type of a view without gaps.
absl::StatusOr<nccl::DataType> TypeOf(const TensorView& view) {
  if (view.rows > 1 && view.row_stride != view.cols) {
    return absl::InvalidArgumentError(absl::StrCat("a collective of rows of ",
                                                   view.cols, " elements, ",
                                                   view.row_stride, " apart"));
  }
  if (view.rows < 0 || view.cols < 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        "a collective of ", view.rows, " rows of ", view.cols, " elements"));
  }
  return ToNcclType(view.dtype);
}

// INVALID_ARGUMENT unless `all` is `part`, `size` times.
absl::Status CheckParts(const TensorView& part, const TensorView& all,
                        int size) {
  if (part.dtype != all.dtype || part.cols != all.cols ||
      part.rows * size != all.rows) {
    return absl::InvalidArgumentError(
        absl::StrCat("of ", size, " ranks, [", part.rows, ", ", part.cols,
                     "] of ", DTypeName(part.dtype), " is no part of [",
                     all.rows, ", ", all.cols, "] of ", DTypeName(all.dtype)));
  }
  return absl::OkStatus();
}

simt::Stream ToStream(DeviceStream stream) {
  return static_cast<simt::Stream>(stream);
}

}  // namespace

absl::StatusOr<std::unique_ptr<NcclCommunicator>> NcclCommunicator::Create(
    const NcclLibrary& library, const NcclId& id, int rank, int size,
    Device* device, const NcclCommunicatorOptions& options) {
  if (size < 1 || rank < 0 || rank >= size) {
    return absl::InvalidArgumentError(
        absl::StrCat("rank ", rank, " of ", size));
  }
  auto communicator = std::unique_ptr<NcclCommunicator>(
      new NcclCommunicator(library, rank, size, device, options));
  QUIRE_RETURN_IF_ERROR(communicator->Join(id));
  return communicator;
}

absl::Status NcclCommunicator::Join(const NcclId& id) {
  QUIRE_ASSIGN_OR_RETURN(barrier_,
                         DeviceBuffer::Create(*device_, sizeof(float)));
  QUIRE_ASSIGN_OR_RETURN(barrier_event_, device_->CreateEvent());
  // The library waits for the other ranks as long as it takes, and there is no
  // communicator to abort yet: a thread that can be left behind.
  struct Joining {
    std::mutex mu;
    std::condition_variable is_done_changed;
    bool is_done = false;
    bool is_abandoned = false;  // Nobody waits for it any more.
    nccl::Result result = nccl::kSuccess;
    nccl::Comm comm = nullptr;
  };
  auto joining = std::make_shared<Joining>();
  std::thread([joining, id, api = library_.api(), device = device_,
               rank = rank_, size = size_] {
    device->MakeCurrent();
    nccl::Comm comm = nullptr;
    const nccl::Result result = api.CommInitRank(&comm, size, id, rank);
    {
      std::lock_guard<std::mutex> lock(joining->mu);
      joining->is_done = true;
      joining->result = result;
      joining->comm = comm;
      joining->is_done_changed.notify_all();
      if (!joining->is_abandoned) return;
    }
    // The others came too late; nobody else has it.
    if (comm != nullptr) api.CommAbort(comm);
  }).detach();
  {
    std::unique_lock<std::mutex> lock(joining->mu);
    if (!joining->is_done_changed.wait_for(
            lock, absl::ToChronoNanoseconds(options_.join_timeout),
            [&] { return joining->is_done; })) {
      joining->is_abandoned = true;
      return absl::UnavailableError(absl::StrCat(
          "rank ", rank_, " of ", size_, ": the others have not joined within ",
          absl::FormatDuration(options_.join_timeout)));
    }
  }
  if (const absl::Status joined =
          library_.ToStatus(joining->result, "ncclCommInitRank");
      !joined.ok()) {
    return absl::UnavailableError(
        absl::StrCat("rank ", rank_, " of ", size_, ": ", joined.message()));
  }
  comm_ = joining->comm;
  // Connections are made by their first use: now, so that the memory they take
  // is taken before anybody asks what is free.
  return Barrier();
}

NcclCommunicator::~NcclCommunicator() {
  {
    std::lock_guard<std::mutex> lock(gate_->mu);
    gate_->communicator = nullptr;
  }
  const NcclApi& api = library_.api();
  const nccl::Comm comm = comm_.exchange(nullptr);
  for (const WindowMemory& memory : windows_) {
    if (comm != nullptr && memory.window != nullptr) {
      api.CommWindowDeregister(comm, memory.window);
    }
  }
  if (comm != nullptr) api.CommDestroy(comm);
  if (aborting_.joinable()) aborting_.join();
  for (const WindowMemory& memory : windows_) api.MemFree(memory.memory);
}

std::string NcclCommunicator::Description() const {
  return absl::StrCat(library_.name(), ", ", size_,
                      size_ == 1 ? " rank" : " ranks");
}

absl::Status NcclCommunicator::Break(absl::string_view reason) {
  if (broken_.ok()) {
    broken_ = absl::UnavailableError(
        absl::StrCat("rank ", rank_, " of ", size_, ": ", reason));
  }
  AbortComm();
  return broken_;
}

void NcclCommunicator::AbortComm() {
  is_aborted_ = true;
  const nccl::Comm comm = comm_.exchange(nullptr);
  if (comm == nullptr) return;
  aborting_ = std::thread([api = library_.api(), device = device_, comm] {
    device->MakeCurrent();
    api.CommAbort(comm);
  });
}

absl::Status NcclCommunicator::CheckUsable() {
  if (broken_.ok() && is_aborted_) return Break("aborted");
  return broken_;
}

absl::Status NcclCommunicator::Call(
    const char* what, absl::FunctionRef<nccl::Result(nccl::Comm)> enqueue) {
  std::lock_guard<std::timed_mutex> lock(mu_);
  QUIRE_RETURN_IF_ERROR(CheckUsable());
  const nccl::Comm comm = comm_;
  if (comm == nullptr) return Break("aborted");
  const absl::Status status = library_.ToStatus(enqueue(comm), what);
  return status.ok() ? status : Break(status.message());
}

absl::Status NcclCommunicator::AllReduceSum(TensorView data,
                                            DeviceStream stream) {
  QUIRE_ASSIGN_OR_RETURN(const nccl::DataType type, TypeOf(data));
  return Call("ncclAllReduce", [&](nccl::Comm comm) {
    return library_.api().AllReduce(data.data, data.data, data.rows * data.cols,
                                    type, nccl::kSum, comm, ToStream(stream));
  });
}

absl::Status NcclCommunicator::AllGather(TensorView from, TensorView to,
                                         DeviceStream stream) {
  QUIRE_ASSIGN_OR_RETURN(const nccl::DataType type, TypeOf(from));
  QUIRE_RETURN_IF_ERROR(TypeOf(to).status());
  QUIRE_RETURN_IF_ERROR(CheckParts(from, to, size_));
  return Call("ncclAllGather", [&](nccl::Comm comm) {
    return library_.api().AllGather(from.data, to.data, from.rows * from.cols,
                                    type, comm, ToStream(stream));
  });
}

absl::Status NcclCommunicator::ReduceScatterSum(TensorView from, TensorView to,
                                                DeviceStream stream) {
  QUIRE_ASSIGN_OR_RETURN(const nccl::DataType type, TypeOf(from));
  QUIRE_RETURN_IF_ERROR(TypeOf(to).status());
  QUIRE_RETURN_IF_ERROR(CheckParts(to, from, size_));
  return Call("ncclReduceScatter", [&](nccl::Comm comm) {
    return library_.api().ReduceScatter(from.data, to.data, to.rows * to.cols,
                                        type, nccl::kSum, comm,
                                        ToStream(stream));
  });
}

absl::Status NcclCommunicator::Broadcast(TensorView data, int root,
                                         DeviceStream stream) {
  QUIRE_ASSIGN_OR_RETURN(const nccl::DataType type, TypeOf(data));
  if (root < 0 || root >= size_) {
    return absl::InvalidArgumentError(
        absl::StrCat("broadcast of rank ", root, " of ", size_));
  }
  return Call("ncclBroadcast", [&](nccl::Comm comm) {
    return library_.api().Broadcast(data.data, data.data, data.rows * data.cols,
                                    type, root, comm, ToStream(stream));
  });
}

absl::Status NcclCommunicator::Send(TensorView data, int peer,
                                    DeviceStream stream) {
  QUIRE_ASSIGN_OR_RETURN(const nccl::DataType type, TypeOf(data));
  if (peer < 0 || peer >= size_ || peer == rank_) {
    return absl::InvalidArgumentError(
        absl::StrCat("rank ", rank_, " of ", size_, " sends to ", peer));
  }
  return Call("ncclSend", [&](nccl::Comm comm) {
    return library_.api().Send(data.data, data.rows * data.cols, type, peer,
                               comm, ToStream(stream));
  });
}

absl::Status NcclCommunicator::Receive(TensorView data, int peer,
                                       DeviceStream stream) {
  QUIRE_ASSIGN_OR_RETURN(const nccl::DataType type, TypeOf(data));
  if (peer < 0 || peer >= size_ || peer == rank_) {
    return absl::InvalidArgumentError(
        absl::StrCat("rank ", rank_, " of ", size_, " receives from ", peer));
  }
  return Call("ncclRecv", [&](nccl::Comm comm) {
    return library_.api().Recv(data.data, data.rows * data.cols, type, peer,
                               comm, ToStream(stream));
  });
}

absl::Status NcclCommunicator::Barrier() {
  // What is in it does not matter.
  QUIRE_RETURN_IF_ERROR(AllReduceSum(
      TensorView::Vector(barrier_.data(), DType::kF32, 1), device_->stream()));
  QUIRE_RETURN_IF_ERROR(device_->Record(*barrier_event_));
  return WaitFor(*barrier_event_);
}

absl::Status NcclCommunicator::WaitFor(const Event& event) {
  const absl::Time start = Clock::Monotonic()->Now();
  while (!device_->Poll(event)) {
    QUIRE_RETURN_IF_ERROR(AsyncError());
    if (Clock::Monotonic()->Now() - start > options_.timeout) {
      std::lock_guard<std::timed_mutex> lock(mu_);
      return Break(absl::StrCat("nothing was heard of the other ranks for ",
                                absl::FormatDuration(options_.timeout)));
    }
    // A step is a millisecond: no time to sleep.
    std::this_thread::yield();
  }
  // A collective that was aborted has happened, too.
  QUIRE_RETURN_IF_ERROR(AsyncError());
  const absl::Status status = device_->Wait(event);
  if (status.ok()) return status;
  // The device is broken: the library has nothing to say to it but an abort,
  // and the others need not wait for their timeout.
  std::lock_guard<std::timed_mutex> lock(mu_);
  return Break(status.message());
}

absl::Status NcclCommunicator::AsyncError() {
  std::lock_guard<std::timed_mutex> lock(mu_);
  QUIRE_RETURN_IF_ERROR(CheckUsable());
  const nccl::Comm comm = comm_;
  if (comm == nullptr) return Break("aborted");
  nccl::Result error = nccl::kSuccess;
  absl::Status status = library_.ToStatus(
      library_.api().CommGetAsyncError(comm, &error), "ncclCommGetAsyncError");
  if (status.ok()) status = library_.ToStatus(error, "NCCL");
  return status.ok() ? status : Break(status.message());
}

void NcclCommunicator::Abort() {
  std::unique_lock<std::timed_mutex> lock(mu_, kAbortPatience);
  if (!lock.owns_lock()) {
    // Who holds it keeps the error that its call returns then; or the next one
    // finds that it was aborted.
    AbortComm();
    return;
  }
  (void)Break("aborted");
}

std::function<void()> NcclCommunicator::DetachedAbort() {
  {
    std::lock_guard<std::mutex> lock(gate_->mu);
    gate_->communicator = this;
  }
  return [gate = gate_] {
    std::lock_guard<std::mutex> lock(gate->mu);
    if (gate->communicator != nullptr) gate->communicator->Abort();
  };
}

// The library maps a peer's window with its own size, so that all have to be
// equal (it allows others from 2.30.7 on).
absl::StatusOr<int64_t> NcclCommunicator::LargestWindow(int64_t num_bytes) {
  // Windows begin and end at pages, of which an f32 counts enough exactly.
  constexpr int64_t kPageBytes = 4096;
  const float num_pages =
      static_cast<float>((num_bytes + kPageBytes - 1) / kPageBytes);
  QUIRE_ASSIGN_OR_RETURN(const DeviceBuffer own,
                         DeviceBuffer::Create(*device_, sizeof(float)));
  QUIRE_ASSIGN_OR_RETURN(
      const DeviceBuffer all,
      DeviceBuffer::Create(*device_, size_ * int64_t{sizeof(float)}));
  QUIRE_RETURN_IF_ERROR(
      device_->CopyToDevice(own.data(), &num_pages, own.num_bytes()));
  QUIRE_RETURN_IF_ERROR(
      AllGather(TensorView::Matrix(own.data(), DType::kF32, 1, 1),
                TensorView::Matrix(all.data(), DType::kF32, size_, 1),
                device_->stream()));
  std::vector<float> of_ranks(size_);
  QUIRE_RETURN_IF_ERROR(
      device_->CopyToHost(of_ranks.data(), all.data(), all.num_bytes()));
  QUIRE_RETURN_IF_ERROR(device_->Record(*barrier_event_));
  QUIRE_RETURN_IF_ERROR(WaitFor(*barrier_event_));
  return static_cast<int64_t>(
             *std::max_element(of_ranks.begin(), of_ranks.end())) *
         kPageBytes;
}

absl::StatusOr<void*> NcclCommunicator::AllocateWindow(int64_t num_bytes) {
  if (!has_windows()) {
    QUIRE_ASSIGN_OR_RETURN(DeviceBuffer buffer,
                           DeviceBuffer::Create(*device_, num_bytes));
    return plain_memory_.emplace_back(std::move(buffer)).data<void>();
  }
  QUIRE_ASSIGN_OR_RETURN(const int64_t rounded, LargestWindow(num_bytes));
  const NcclApi& api = library_.api();
  WindowMemory memory;
  if (const absl::Status status = library_.ToStatus(
          api.MemAlloc(&memory.memory, rounded), "ncclMemAlloc");
      !status.ok()) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "cannot allocate ", rounded, " bytes of a window: ", status.message()));
  }
  windows_.push_back(memory);
  QUIRE_RETURN_IF_ERROR(Call("ncclCommWindowRegister", [&](nccl::Comm comm) {
    return api.CommWindowRegister(comm, memory.memory, rounded,
                                  &windows_.back().window,
                                  nccl::kWindowSymmetric);
  }));
  return memory.memory;
}

absl::StatusOr<std::unique_ptr<NcclCommunicator>> CreateNcclCommunicator(
    const LibraryPlaces& places, const NcclId& id, int rank, int size,
    Device* device, const NcclCommunicatorOptions& options) {
  QUIRE_ASSIGN_OR_RETURN(const NcclLibrary library, NcclLibrary::Open(places));
  return NcclCommunicator::Create(library, id, rank, size, device, options);
}

}  // namespace quire::cuda
