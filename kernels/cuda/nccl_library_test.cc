// Which libraries are taken for NCCL, and what is said of the others.
#include "kernels/cuda/nccl_library.h"

#include <cstdlib>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "gtest/gtest.h"

namespace quire::cuda {
namespace {

// A folder where libnccl.so.2 is `file`.
LibraryPlaces PlacesOf(const std::string& file) {
  static int num_folders = 0;
  const std::string folder =
      testing::TempDir() + "/nccl" + std::to_string(num_folders++);
  const std::string command = "mkdir -p " + folder + " && ln -sf " + file +
                              " " + folder + "/libnccl.so.2";
  EXPECT_EQ(std::system(command.c_str()), 0);
  LibraryPlaces places;
  places.folders = {folder};
  places.uses_loader_path = false;
  return places;
}
LibraryPlaces Fake(const std::string& name = "libfake_nccl.so") {
  return PlacesOf("$PWD/kernels/cuda/" + name);
}

TEST(NcclLibraryTest, SaysWhereItHasLooked) {
  LibraryPlaces places;
  places.folders = {"/none"};
  places.uses_loader_path = false;
  EXPECT_EQ(NcclLibrary::Open(places).status(),
            absl::NotFoundError("libnccl.so.2 is in none of /none; "
                                "QUIRE_CUDA_LIBS names other folders"));
}

TEST(NcclLibraryTest, NamesItsVersionAndMakesIds) {
  const auto library = NcclLibrary::Open(Fake());
  ASSERT_TRUE(library.ok()) << library.status();
  EXPECT_EQ(library->name(), "NCCL 2.30.7");
  EXPECT_TRUE(library->api().has_windows());
  const auto first = library->MakeId(), second = library->MakeId();
  ASSERT_TRUE(first.ok() && second.ok());
  EXPECT_NE(*first, *second);
  EXPECT_EQ(library->ToStatus(nccl::Result(2), "ncclSend"),
            absl::InternalError("ncclSend: unhandled system error: the fake "
                                "was told to fail"));
}

TEST(NcclLibraryTest, WindowsAreOfVersionsThatSumThemRight) {
  const struct {
    const char* version;
    const char* name;
    bool has_windows;
  } cases[] = {
      {"22603", "NCCL 2.26.3", false}, {"22703", "NCCL 2.27.3", true},
      {"22707", "NCCL 2.27.7", true},  {"22803", "NCCL 2.28.3", false},
      {"22809", "NCCL 2.28.9", false}, {"23004", "NCCL 2.30.4", false},
      {"23007", "NCCL 2.30.7", true},  {"23100", "NCCL 2.31.0", true},
  };
  for (const auto& c : cases) {
    setenv("FAKE_NCCL_VERSION", c.version, 1);
    const auto library = NcclLibrary::Open(Fake());
    unsetenv("FAKE_NCCL_VERSION");
    ASSERT_TRUE(library.ok()) << library.status();
    EXPECT_EQ(library->name(), c.name);
    EXPECT_EQ(library->api().has_windows(), c.has_windows) << c.name;
  }
}

TEST(NcclLibraryTest, AnOldLibraryIsAnError) {
  const LibraryPlaces places = Fake();
  setenv("FAKE_NCCL_VERSION", "21705", 1);
  const auto library = NcclLibrary::Open(places);
  unsetenv("FAKE_NCCL_VERSION");
  EXPECT_EQ(library.status(),
            absl::FailedPreconditionError(
                places.folders[0] + "/libnccl.so.2 is NCCL 2.17.5; 2.18.0 or "
                                    "newer is needed"));
}

TEST(NcclLibraryTest, ALibraryWithoutItsFunctionsIsAnError) {
  // Some of them, and none: any library under its name.
  LibraryPlaces places = Fake("libpartial_fake_nccl.so");
  EXPECT_EQ(
      NcclLibrary::Open(places).status(),
      absl::FailedPreconditionError(
          places.folders[0] + "/libnccl.so.2 has no function ncclGetUniqueId"));
  places = PlacesOf("$(ls /lib/*/libm.so.6 | head -1)");
  EXPECT_EQ(
      NcclLibrary::Open(places).status(),
      absl::FailedPreconditionError(
          places.folders[0] + "/libnccl.so.2 has no function ncclGetVersion"));
}

// Where it is installed; it opens without a driver, and says that there is
// none.
TEST(NcclLibraryTest, TheRealOneOpens) {
  const auto library = NcclLibrary::Open(DefaultLibraryPlaces());
  if (!library.ok()) {
    GTEST_SKIP() << "NCCL cannot be loaded: " << library.status();
  }
  EXPECT_TRUE(absl::StartsWith(library->name(), "NCCL 2.")) << library->name();
  const absl::Status status = library->MakeId().status();
  if (!status.ok()) {
    EXPECT_TRUE(absl::StrContains(status.message(), "ncclGetUniqueId: "))
        << status;
  }
}

}  // namespace
}  // namespace quire::cuda
