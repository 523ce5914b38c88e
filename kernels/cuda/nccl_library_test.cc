// Against the real library, where it is installed; collectives need a GPU.
#include "kernels/cuda/nccl_library.h"

#include <cstdlib>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "gtest/gtest.h"
#include "kernels/cuda/device.h"

namespace quire::cuda {
namespace {

TEST(NcclLibraryTest, SaysWhereItHasLooked) {
  LibraryPlaces places;
  places.folders = {"/none"};
  places.uses_loader_path = false;
  EXPECT_EQ(NcclLibrary::Open(places).status(),
            absl::NotFoundError("libnccl.so.2 is in none of /none; "
                                "QUIRE_CUDA_LIBS names other folders"));
}

TEST(NcclLibraryTest, ALibraryWithoutItsFunctionsIsAnError) {
  const std::string folder = testing::TempDir() + "/other";
  // Any library that is not NCCL, under its name.
  const std::string command = "mkdir -p " + folder +
                              " && ln -sf $(ls /lib/*/libm.so.6 | head -1) " +
                              folder + "/libnccl.so.2";
  ASSERT_EQ(std::system(command.c_str()), 0);
  LibraryPlaces places;
  places.folders = {folder};
  EXPECT_EQ(NcclLibrary::Open(places).status(),
            absl::FailedPreconditionError(folder + "/libnccl.so.2 has no "
                                                   "function ncclAllGather"));
}

// One rank: sums are what they were, through the same calls, captured too.
TEST(NcclLibraryTest, OneRankReducesInAGraph) {
  const auto library = NcclLibrary::Open(DefaultLibraryPlaces());
  if (!library.ok()) {
    GTEST_SKIP() << "NCCL cannot be loaded: " << library.status();
  }
  EXPECT_EQ((*library)->name().rfind("NCCL 2.", 0), 0u);
  auto device = CreateDevice(0);
  if (!device.ok()) GTEST_SKIP() << device.status();
  const auto id = (*library)->MakeId();
  ASSERT_TRUE(id.ok()) << id.status();
  const auto communicator = (*library)->Join(*id, 0, 1);
  ASSERT_TRUE(communicator.ok()) << communicator.status();
  const std::vector<float> values = {1, 2, 3, 4};
  auto from = DeviceBuffer::Create(**device, 16);
  auto to = DeviceBuffer::Create(**device, 16);
  ASSERT_TRUE(from.ok() && to.ok());
  ASSERT_TRUE((*device)->CopyToDevice(from->data(), values.data(), 16).ok());
  ASSERT_TRUE((*device)->BeginCapture().ok());
  ASSERT_TRUE((*communicator)
                  ->AllReduceSum(from->data(), to->data(), 4, DType::kF32,
                                 (*device)->stream())
                  .ok());
  const auto graph = (*device)->EndCapture();
  ASSERT_TRUE(graph.ok()) << graph.status();
  ASSERT_TRUE((*device)->Launch(**graph).ok());
  std::vector<float> sums(4);
  ASSERT_TRUE((*device)->CopyToHost(sums.data(), to->data(), 16).ok());
  ASSERT_TRUE((*device)->Synchronize().ok());
  EXPECT_EQ(sums, values);
  EXPECT_TRUE((*communicator)->AsyncError().ok());
}

}  // namespace
}  // namespace quire::cuda
