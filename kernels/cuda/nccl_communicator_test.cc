// The communicator on emulated GPUs: ranks are threads, and a fake library does
// what NCCL would (fake_nccl.cc).
#include "kernels/cuda/nccl_communicator.h"

#include <dlfcn.h>

#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "gtest/gtest.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/device_emulated.h"
#include "kernels/cuda/nccl_check.h"
#include "tests/gpu/stream_order_kernels.h"

namespace quire::cuda {
namespace {

constexpr char kFake[] = "/kernels/cuda/libfake_nccl.so";

LibraryPlaces Places() {
  static const std::string folder = [] {
    const std::string name = testing::TempDir() + "/fake";
    const std::string command = "mkdir -p " + name + " && ln -sf $PWD" + kFake +
                                " " + name + "/libnccl.so.2";
    EXPECT_EQ(std::system(command.c_str()), 0);
    return name;
  }();
  LibraryPlaces places;
  places.folders = {folder};
  places.uses_loader_path = false;
  return places;
}

// What the fake offers to tests.
template <typename Function>
Function* OfFake(const char* name) {
  void* const handle =
      dlopen((Places().folders[0] + "/libnccl.so.2").c_str(), RTLD_NOW);
  return reinterpret_cast<Function*>(dlsym(handle, name));
}

NcclId NewId() { return *NcclLibrary::Open(Places())->MakeId(); }

// Runs `body` on a thread and a device for each rank.
void OnRanks(int size, const NcclCommunicatorOptions& options,
             const std::function<void(Device&, NcclCommunicator&)>& body) {
  const NcclId id = NewId();
  std::vector<std::thread> threads;
  for (int rank = 0; rank < size; ++rank) {
    threads.emplace_back([&, rank] {
      const auto device = *CreateDevice(0);
      const auto communicator = CreateNcclCommunicator(Places(), id, rank, size,
                                                       device.get(), options);
      ASSERT_TRUE(communicator.ok()) << communicator.status();
      body(*device, **communicator);
    });
  }
  for (std::thread& thread : threads) thread.join();
}

TEST(NcclCommunicatorTest, CollectivesAreWhatTheyShouldBe) {
  for (const int size : {1, 2, 4}) {
    SCOPED_TRACE(size);
    OnRanks(size, {}, [&](Device& device, NcclCommunicator& communicator) {
      EXPECT_EQ(communicator.size(), size);
      EXPECT_TRUE(communicator.is_on_device());
      EXPECT_EQ(communicator.Description(),
                "NCCL 2.30.7, " + std::to_string(size) +
                    (size == 1 ? " rank" : " ranks"));
      const absl::Status status =
          NcclCheck(&device, &communicator, &gpu_check::LaunchLateCopy).Run();
      EXPECT_TRUE(status.ok()) << status;
      EXPECT_TRUE(communicator.AsyncError().ok());
    });
    EXPECT_EQ(OfFake<int()>("FakeNcclNumWindows")(), 0);
  }
}

TEST(NcclCommunicatorTest, WithoutWindowsMemoryIsPlain) {
  setenv("FAKE_NCCL_VERSION", "22105", 1);
  OnRanks(2, {}, [&](Device& device, NcclCommunicator& communicator) {
    EXPECT_FALSE(communicator.has_windows());
    const absl::Status status =
        NcclCheck(&device, &communicator, &gpu_check::LaunchLateCopy).Run();
    EXPECT_TRUE(status.ok()) << status;
  });
  unsetenv("FAKE_NCCL_VERSION");
}

TEST(NcclCommunicatorTest, ViewsAreChecked) {
  OnRanks(1, {}, [](Device& device, NcclCommunicator& communicator) {
    float memory[64];
    const auto view = [&](int64_t rows, DType dtype = DType::kF32) {
      return TensorView::Matrix(memory, dtype, rows, 4);
    };
    TensorView gaps = view(2);
    gaps.row_stride = 8;
    const DeviceStream stream = device.stream();
    for (const absl::Status& status :
         {communicator.AllReduceSum(gaps, stream),
          communicator.AllReduceSum(view(2, DType::kI32), stream),
          communicator.AllGather(view(2), view(3), stream),
          communicator.AllGather(view(2), view(2, DType::kF16), stream),
          communicator.ReduceScatterSum(view(3), view(2), stream),
          communicator.Broadcast(view(2), 1, stream),
          communicator.Send(view(2), 0, stream),
          communicator.Receive(view(2), 1, stream)}) {
      EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
    }
    // None of it has broken anything.
    EXPECT_TRUE(communicator.Barrier().ok());
  });
  const auto device = *CreateDevice(0);
  EXPECT_EQ(
      CreateNcclCommunicator(Places(), NewId(), 2, 2, device.get()).status(),
      absl::InvalidArgumentError("rank 2 of 2"));
}

// What NCCL says is said again by every later call, and by the other ranks'.
TEST(NcclCommunicatorTest, AnErrorBreaksTheGroup) {
  OnRanks(1, {}, [](Device& device, NcclCommunicator& communicator) {
    float value = 0;
    const TensorView view = TensorView::Vector(&value, DType::kF32, 1);
    OfFake<void(int)>("FakeNcclFailNext")(2);
    const absl::Status error = communicator.AllReduceSum(view, device.stream());
    EXPECT_EQ(error, absl::UnavailableError(
                         "rank 0 of 1: ncclAllReduce: unhandled system error: "
                         "the fake was told to fail"));
    EXPECT_EQ(communicator.AllReduceSum(view, device.stream()), error);
    EXPECT_EQ(communicator.Barrier(), error);
    EXPECT_EQ(communicator.AsyncError(), error);
    communicator.Abort();
    EXPECT_EQ(communicator.AsyncError(), error);
  });
}

TEST(NcclCommunicatorTest, ASilentRankIsNoticed) {
  NcclCommunicatorOptions options;
  options.timeout = absl::Milliseconds(200);
  OnRanks(2, options, [](Device& /*device*/, NcclCommunicator& communicator) {
    if (communicator.rank() == 1) return;
    EXPECT_EQ(communicator.Barrier(),
              absl::UnavailableError("rank 0 of 2: nothing was heard of the "
                                     "other ranks for 200ms"));
    EXPECT_EQ(communicator.AsyncError().code(), absl::StatusCode::kUnavailable);
  });
}

// On a device that is broken NCCL could end in good order only by waiting for
// good; the other ranks hear of it by the abort.
TEST(NcclCommunicatorTest, AFaultOfTheDeviceBreaksTheGroup) {
  const int num_aborts = OfFake<int()>("FakeNcclNumAborts")();
  const int num_destroys = OfFake<int()>("FakeNcclNumDestroys")();
  OnRanks(1, {}, [](Device& device, NcclCommunicator& communicator) {
    float value = 0;
    InjectFault(device, 0);
    ASSERT_TRUE(device.CopyToHost(&value, &value, 4).ok());
    const absl::Status error = communicator.Barrier();
    EXPECT_EQ(error, absl::UnavailableError(
                         "rank 0 of 1: GPU error: an illegal address "
                         "(injected)"));
    EXPECT_EQ(communicator.AsyncError(), error);
    EXPECT_EQ(communicator.Barrier(), error);
  });
  EXPECT_EQ(OfFake<int()>("FakeNcclNumAborts")(), num_aborts + 1);
  EXPECT_EQ(OfFake<int()>("FakeNcclNumDestroys")(), num_destroys);
}

TEST(NcclCommunicatorTest, AbortEndsAWait) {
  OnRanks(2, {}, [](Device& /*device*/, NcclCommunicator& communicator) {
    if (communicator.rank() == 1) return;
    std::thread waiting([&] {
      EXPECT_EQ(communicator.Barrier(),
                absl::UnavailableError("rank 0 of 2: aborted"));
    });
    communicator.Abort();
    waiting.join();
  });
}

// A call of the library that waits for a peer holds the lock: Abort does
// without, and the library's communicator, which is freed, is not used again.
TEST(NcclCommunicatorTest, AbortFreesACallThatBlocksAndAbortsOnce) {
  OnRanks(1, {}, [](Device& device, NcclCommunicator& communicator) {
    const int num_aborts = OfFake<int()>("FakeNcclNumAborts")();
    const auto is_blocked = OfFake<bool()>("FakeNcclIsBlocked");
    float value = 0;
    const TensorView view = TensorView::Vector(&value, DType::kF32, 1);
    OfFake<void()>("FakeNcclBlockNext")();
    std::thread waiting([&] {
      EXPECT_TRUE(absl::IsUnavailable(
          communicator.AllReduceSum(view, device.stream())));
    });
    while (!is_blocked()) std::this_thread::yield();
    communicator.Abort();
    waiting.join();
    communicator.Abort();
    EXPECT_TRUE(absl::IsUnavailable(communicator.AsyncError()));
    EXPECT_TRUE(
        absl::IsUnavailable(communicator.AllReduceSum(view, device.stream())));
    // The library's call is a thread's own: it may take its time.
    while (OfFake<int()>("FakeNcclNumAborts")() == num_aborts) {
      std::this_thread::yield();
    }
    EXPECT_EQ(OfFake<int()>("FakeNcclNumAborts")(), num_aborts + 1);
  });
}

// The library ends a communicator only when no graph has a collective of it any
// more, and it is the one who waits for the abort that has these graphs.
TEST(NcclCommunicatorTest, AbortDoesNotWaitForGraphs) {
  NcclCommunicatorOptions options;
  options.timeout = absl::Milliseconds(200);
  OnRanks(2, options, [](Device& device, NcclCommunicator& communicator) {
    if (communicator.rank() == 1) return;
    float value = 0;
    ASSERT_TRUE(device.BeginCapture().ok());
    const absl::Status captured = communicator.AllReduceSum(
        TensorView::Vector(&value, DType::kF32, 1), device.stream());
    const auto graph = device.EndCapture();
    ASSERT_TRUE(captured.ok() && graph.ok());
    ASSERT_TRUE(device.Launch(**graph).ok());
    const auto event = *device.CreateEvent();
    ASSERT_TRUE(device.Record(*event).ok());
    EXPECT_EQ(communicator.WaitFor(*event),
              absl::UnavailableError("rank 0 of 2: nothing was heard of the "
                                     "other ranks for 200ms"));
    communicator.Abort();
    EXPECT_TRUE(device.Synchronize().ok());
  });
}

TEST(NcclCommunicatorTest, WindowsOfDifferentSizesAreAsLargeAsTheLargest) {
  OnRanks(3, {}, [](Device& device, NcclCommunicator& communicator) {
    // Pages: 1, 2 and 3; then 2, 1 and 1.
    for (const int64_t num_bytes : {4096 * communicator.rank() + 1,
                                    communicator.rank() == 0 ? 8192 : 5}) {
      const auto window = communicator.AllocateWindow(num_bytes);
      ASSERT_TRUE(window.ok()) << window.status();
      std::memset(*window, 0, num_bytes);
    }
    EXPECT_TRUE(device.Synchronize().ok());
  });
}

TEST(NcclCommunicatorTest, DetachedAbortMayOutliveTheCommunicator) {
  std::function<void()> abort;
  OnRanks(1, {}, [&](Device& /*device*/, NcclCommunicator& communicator) {
    abort = communicator.DetachedAbort();
    abort();
    EXPECT_EQ(communicator.AsyncError(),
              absl::UnavailableError("rank 0 of 1: aborted"));
  });
  abort();
}

TEST(NcclCommunicatorTest, ARankThatDoesNotJoinIsNoticed) {
  NcclCommunicatorOptions options;
  options.join_timeout = absl::Milliseconds(100);
  const auto device = *CreateDevice(0);
  const NcclId id = NewId();
  EXPECT_EQ(CreateNcclCommunicator(Places(), id, 1, 2, device.get(), options)
                .status(),
            absl::UnavailableError(
                "rank 1 of 2: the others have not joined within 100ms"));
  // The fake's own rank waits on: let it go. The communicator that it then has
  // is nobody's.
  const int num_aborts = OfFake<int()>("FakeNcclNumAborts")();
  const NcclLibrary library = *NcclLibrary::Open(Places());
  nccl::Comm comm = nullptr;
  ASSERT_EQ(library.api().CommInitRank(&comm, 2, id, 0), nccl::kSuccess);
  library.api().CommDestroy(comm);
  while (OfFake<int()>("FakeNcclNumAborts")() == num_aborts) {
    std::this_thread::yield();
  }
}

TEST(NcclCommunicatorTest, WithoutTheLibraryThePlacesAreNamed) {
  const auto device = *CreateDevice(0);
  LibraryPlaces places;
  places.folders = {"/none"};
  places.uses_loader_path = false;
  const absl::Status status =
      CreateNcclCommunicator(places, {}, 0, 1, device.get()).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_TRUE(absl::StrContains(status.message(), "libnccl.so.2")) << status;
}

}  // namespace
}  // namespace quire::cuda
