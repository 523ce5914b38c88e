#include "kernels/backend_factory.h"

#include "gtest/gtest.h"

namespace quire {
namespace {

TEST(CreateBackendTest, AutoAndCpuGiveTheCpuBackend) {
  for (const char* device : {"auto", "cpu"}) {
    BackendOptions options;
    options.device = device;
    options.num_threads = 1;
    absl::StatusOr<std::unique_ptr<Backend>> backend = CreateBackend(options);
    ASSERT_TRUE(backend.ok()) << backend.status();
    EXPECT_EQ((*backend)->Description().substr(0, 5), "cpu (");
    EXPECT_NE((*backend)->Description().find(", 1 thread)"), std::string::npos);
  }
}

TEST(CreateBackendTest, OtherDevicesAreErrors) {
  BackendOptions options;
  options.device = "cuda";
  EXPECT_EQ(CreateBackend(options).status().code(),
            absl::StatusCode::kUnavailable);
  options.device = "tpu";
  EXPECT_EQ(CreateBackend(options).status().code(),
            absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace quire
