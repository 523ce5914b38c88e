// NCCL on this machine's GPUs: every collective against its definition, also
// captured in a graph; one rank on one GPU, and a process for each where there
// are more. Run by check.sh; skips what the machine lacks.
#include <spawn.h>
#include <sys/wait.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "engine/base/status.h"
#include "gtest/gtest.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/nccl_check.h"
#include "kernels/cuda/nccl_communicator.h"
#include "tests/gpu/stream_order_kernels.h"

extern char** environ;

namespace quire::cuda {
namespace {

constexpr int kMostRanks = 8;

// The work of a rank; prints what was joined.
absl::Status CheckRank(int device_idx, const NcclId& id, int rank, int size) {
  QUIRE_ASSIGN_OR_RETURN(const auto device, CreateDevice(device_idx));
  NcclCommunicatorOptions options;
  options.join_timeout = absl::Seconds(60);
  QUIRE_ASSIGN_OR_RETURN(
      const auto communicator,
      CreateNcclCommunicator(DefaultLibraryPlaces(), id, rank, size,
                             device.get(), options));
  std::printf("%s%s\n", communicator->Description().c_str(),
              communicator->has_windows() ? ", windows" : "");
  QUIRE_RETURN_IF_ERROR(
      NcclCheck(device.get(), communicator.get(), &gpu_check::LaunchLateCopy)
          .Run());
  return communicator->AsyncError();
}

class NcclGpuTest : public testing::Test {
 protected:
  void SetUp() override {
    const auto library = NcclLibrary::Open(DefaultLibraryPlaces());
    if (!library.ok()) GTEST_SKIP() << library.status().message();
    if (const auto device = CreateDevice(0); !device.ok()) {
      GTEST_SKIP() << device.status().message();
    }
    const auto id = library->MakeId();
    ASSERT_TRUE(id.ok()) << id.status();
    id_ = *id;
  }
  NcclId id_ = {};
};

TEST_F(NcclGpuTest, OneRank) {
  const absl::Status status = CheckRank(0, id_, 0, 1);
  EXPECT_TRUE(status.ok()) << status;
}

// Started by AProcessForEachGpu.
TEST(NcclRank, Runs) {
  const char* const id = getenv("QUIRE_NCCL_TEST_ID");
  if (id == nullptr) return;
  const std::string bytes = absl::HexStringToBytes(id);
  NcclId nccl_id = {};
  ASSERT_EQ(bytes.size(), nccl_id.size());
  std::copy(bytes.begin(), bytes.end(), nccl_id.begin());
  const int rank = std::atoi(getenv("QUIRE_NCCL_TEST_RANK"));
  const int size = std::atoi(getenv("QUIRE_NCCL_TEST_SIZE"));
  const absl::Status status = CheckRank(rank, nccl_id, rank, size);
  EXPECT_TRUE(status.ok()) << status;
}

TEST_F(NcclGpuTest, AProcessForEachGpu) {
  int size = 0;
  while (size < kMostRanks && CreateDevice(size).ok()) ++size;
  if (size < 2) GTEST_SKIP() << "there is one GPU";
  std::vector<pid_t> children;
  for (int rank = 0; rank < size; ++rank) {
    std::vector<std::string> variables = {
        absl::StrCat("QUIRE_NCCL_TEST_ID=",
                     absl::BytesToHexString({id_.data(), id_.size()})),
        absl::StrCat("QUIRE_NCCL_TEST_RANK=", rank),
        absl::StrCat("QUIRE_NCCL_TEST_SIZE=", size)};
    std::vector<char*> environment;
    for (char** variable = environ; *variable != nullptr; ++variable) {
      environment.push_back(*variable);
    }
    for (std::string& variable : variables) {
      environment.push_back(variable.data());
    }
    environment.push_back(nullptr);
    std::string program = "nccl_test", filter = "--gtest_filter=NcclRank.Runs";
    char* const arguments[] = {program.data(), filter.data(), nullptr};
    pid_t child = 0;
    ASSERT_EQ(posix_spawn(&child, "/proc/self/exe", nullptr, nullptr, arguments,
                          environment.data()),
              0);
    children.push_back(child);
  }
  for (int rank = 0; rank < size; ++rank) {
    int status = 0;
    waitpid(children[rank], &status, 0);
    EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0)
        << "rank " << rank << ": status " << status;
  }
}

}  // namespace
}  // namespace quire::cuda
