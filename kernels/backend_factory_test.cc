#include "kernels/backend_factory.h"

#include <unistd.h>

#include <optional>
#include <string>

#include "absl/status/status.h"
#include "gtest/gtest.h"

namespace quire {
namespace {

BackendOptions OptionsFor(const char* device) {
  BackendOptions options;
  options.device = device;
  options.num_threads = 1;
  return options;
}

TEST(CreateBackendTest, CpuGivesTheCpuBackend) {
  std::string reason;
  const auto backend = CreateBackend(OptionsFor("cpu"), &reason);
  ASSERT_TRUE(backend.ok()) << backend.status();
  EXPECT_EQ((*backend)->Description().substr(0, 5), "cpu (");
  EXPECT_NE((*backend)->Description().find(", 1 thread)"), std::string::npos);
  EXPECT_EQ((*backend)->FreeDeviceBytes(), std::nullopt);
  EXPECT_EQ(reason, "");
}

// Machines with and without a GPU run this.
TEST(CreateBackendTest, AutoIsTheCpuAndSaysWhyWhereThereIsAGpu) {
  std::string reason;
  const auto backend = CreateBackend(OptionsFor("auto"), &reason);
  ASSERT_TRUE(backend.ok()) << backend.status();
  EXPECT_EQ((*backend)->Description().substr(0, 5), "cpu (");
  EXPECT_EQ(!reason.empty(), access("/dev/nvidiactl", F_OK) == 0);
}

TEST(CreateBackendTest, CudaIsCudaOrAnError) {
  std::string reason;
  const auto cuda = CreateBackend(OptionsFor("cuda"), &reason);
  EXPECT_EQ(reason, "");
  if (cuda.ok()) {
    EXPECT_EQ((*cuda)->Description().substr(0, 6), "cuda (");
    EXPECT_GT((*cuda)->FreeDeviceBytes(), 0);
  } else {
    EXPECT_NE(cuda.status().message(), "");
  }
}

TEST(CreateBackendTest, OtherDevicesAreErrors) {
  std::string reason;
  EXPECT_EQ(CreateBackend(OptionsFor("tpu"), &reason).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(reason, "");
}

}  // namespace
}  // namespace quire
