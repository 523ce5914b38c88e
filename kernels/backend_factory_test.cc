#include "kernels/backend_factory.h"

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
TEST(CreateBackendTest, AutoIsCudaOrSaysWhyNot) {
  std::string reason;
  const auto cuda = CreateBackend(OptionsFor("cuda"), &reason);
  EXPECT_EQ(reason, "");
  const auto backend = CreateBackend(OptionsFor("auto"), &reason);
  if (cuda.ok()) {
    ASSERT_TRUE(backend.ok()) << backend.status();
    EXPECT_EQ((*backend)->Description().substr(0, 6), "cuda (");
    EXPECT_GT((*backend)->FreeDeviceBytes(), 0);
    EXPECT_EQ(reason, "");
  } else if (absl::IsUnavailable(cuda.status())) {
    ASSERT_TRUE(backend.ok()) << backend.status();
    EXPECT_EQ((*backend)->Description().substr(0, 5), "cpu (");
    EXPECT_EQ(reason, cuda.status().message());
    EXPECT_NE(reason, "");
  } else {  // There is a GPU, and it cannot be used.
    EXPECT_EQ(backend.status(), cuda.status());
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
