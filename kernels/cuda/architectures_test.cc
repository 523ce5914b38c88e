#include "kernels/cuda/architectures.h"

#include <string>

#include "absl/status/status.h"
#include "gtest/gtest.h"

namespace quire::cuda {
namespace {

bool Runs(const char* architectures, int major, int minor) {
  const absl::Status status =
      CheckArchitecture(architectures, "GPU", major, minor);
  if (!status.ok()) {
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  }
  return status.ok();
}

TEST(ArchitecturesTest, AReleaseRunsOnEverythingSinceTheT4) {
  for (const auto [major, minor] : {std::pair{7, 5},
                                    {8, 0},
                                    {8, 6},
                                    {8, 7},
                                    {8, 9},
                                    {9, 0},
                                    {10, 0},
                                    {10, 3},
                                    {11, 0},
                                    {12, 0},
                                    {12, 1},
                                    {13, 0}}) {
    EXPECT_TRUE(Runs("all", major, minor)) << major << "." << minor;
  }
  for (const auto [major, minor] : {std::pair{7, 0}, {7, 2}, {6, 1}}) {
    EXPECT_FALSE(Runs("all", major, minor)) << major << "." << minor;
  }
}

TEST(ArchitecturesTest, ABuildForOneRunsOnItsClass) {
  EXPECT_TRUE(Runs("90a", 9, 0));
  EXPECT_FALSE(Runs("90a", 10, 0));
  EXPECT_FALSE(Runs("90a", 8, 9));
  EXPECT_TRUE(Runs("80", 8, 6));
  EXPECT_FALSE(Runs("86", 8, 0));
  EXPECT_FALSE(Runs("80", 8, 9));  // Would trap in products of fp8.
  EXPECT_TRUE(Runs("80,89", 8, 9));
  EXPECT_TRUE(Runs("100", 10, 3));
  EXPECT_FALSE(Runs("100", 12, 0));
}

TEST(ArchitecturesTest, NamesWhatIsThereAndWhatIsNeeded) {
  EXPECT_EQ(CheckArchitecture("all", "Tesla V100", 7, 0).message(),
            "Tesla V100 has compute capability 7.0, the kernels need 7.5 or "
            "newer");
  EXPECT_EQ(CheckArchitecture("90a,100", "NVIDIA A10", 8, 6).message(),
            "NVIDIA A10 has compute capability 8.6, this program has kernels "
            "for 9.0, 10.0; build with --//kernels/cuda:architectures=all");
}

TEST(ArchitecturesTest, WarpgroupsAreOfOneGpuAndItsOwnCode) {
  EXPECT_TRUE(HasWarpgroups("all", 9, 0, nullptr));
  EXPECT_TRUE(HasWarpgroups("80,90a", 9, 0, "1"));
  EXPECT_FALSE(HasWarpgroups("all", 9, 0, "0"));
  // Portable code of 9.0 has none.
  EXPECT_FALSE(HasWarpgroups("80,90", 9, 0, nullptr));
  EXPECT_FALSE(HasWarpgroups("all", 10, 0, nullptr));
  EXPECT_FALSE(HasWarpgroups("all", 8, 9, nullptr));
}

}  // namespace
}  // namespace quire::cuda
