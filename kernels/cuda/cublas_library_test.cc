#include <string>

#include "absl/status/status.h"
#include "gtest/gtest.h"
#include "kernels/cuda/matrix_library.h"
#include "kernels/cuda/shared_library.h"

namespace quire::cuda {
namespace {

// Without a GPU the library says so itself; with one it works; where it is
// missing we say where we have looked.
TEST(CublasLibraryTest, OpensOrSaysWhy) {
  const auto installed = SharedLibrary::Open(
      {"libcublasLt.so.13", "libcublasLt.so.12"}, DefaultLibraryPlaces());
  const auto library = OpenMatrixLibrary();
  if (!installed.ok()) {
    EXPECT_EQ(library.status().code(), absl::StatusCode::kNotFound);
    GTEST_SKIP() << "cuBLASLt is not installed: "
                 << installed.status().message();
  }
  if (library.ok()) {
    EXPECT_EQ((*library)->name().rfind("cuBLASLt 1", 0), 0u);
    return;
  }
  // All functions were found: what failed is what needs a GPU.
  EXPECT_EQ(library.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_NE(library.status().message().find("cublasLtCreate: "),
            std::string::npos)
      << library.status();
}

}  // namespace
}  // namespace quire::cuda
