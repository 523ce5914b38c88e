#include "kernels/cuda/shared_library.h"

#include <cstdlib>
#include <fstream>
#include <string>

#include "absl/status/status.h"
#include "gtest/gtest.h"

namespace quire::cuda {
namespace {

LibraryPlaces Nowhere() {
  LibraryPlaces places;
  places.uses_loader_path = false;
  return places;
}

TEST(SharedLibraryTest, OpensTheFirstNameThatExistsAndFindsFunctions) {
  LibraryPlaces places;
  const auto library =
      SharedLibrary::Open({"libquire-none.so.1", "libm.so.6"}, places);
  ASSERT_TRUE(library.ok()) << library.status();
  EXPECT_EQ(library->path(), "libm.so.6");
  double (*cosine)(double) = nullptr;
  ASSERT_TRUE(library->Load("cos", &cosine).ok());
  EXPECT_EQ(cosine(0), 1);
  void (*none)() = nullptr;
  const absl::Status status = library->Load("quire_none", &none);
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(status.message(), "libm.so.6 has no function quire_none");
}

TEST(SharedLibraryTest, SaysWhereItHasLooked) {
  LibraryPlaces places = Nowhere();
  places.folders = {"/none/a", "/none/b"};
  places.patterns = {"/none/*/lib"};
  EXPECT_EQ(SharedLibrary::Open({"libx.so.2", "libx.so.1"}, places).status(),
            absl::NotFoundError(
                "libx.so.2 or libx.so.1 is in none of /none/a, /none/b, "
                "/none/*/lib; QUIRE_CUDA_LIBS names other folders"));
}

TEST(SharedLibraryTest, AFileThatIsNoLibraryIsAnErrorOfItsOwn) {
  const std::string folder = testing::TempDir();
  std::ofstream(folder + "/libbroken.so.1") << "not a library";
  LibraryPlaces places = Nowhere();
  places.folders = {folder};
  const absl::Status status =
      SharedLibrary::Open({"libbroken.so.1"}, places).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_NE(status.message().find("libbroken.so.1"), std::string::npos);
}

TEST(SharedLibraryTest, PatternsAreTriedLast) {
  LibraryPlaces places = Nowhere();
  const std::string folder = testing::TempDir() + "/pattern";
  ASSERT_EQ(std::system(("mkdir -p " + folder + "/one/lib").c_str()), 0);
  std::ofstream(folder + "/one/lib/libbroken.so.1") << "not a library";
  places.patterns = {folder + "/*/lib"};
  EXPECT_NE(SharedLibrary::Open({"libbroken.so.1"}, places)
                .status()
                .message()
                .find("one/lib/libbroken.so.1"),
            std::string::npos);
}

TEST(LibraryPlacesTest, TheVariableComesFirst) {
  setenv("QUIRE_CUDA_LIBS", "/first:/second", 1);
  const LibraryPlaces places = DefaultLibraryPlaces();
  unsetenv("QUIRE_CUDA_LIBS");
  ASSERT_GE(places.folders.size(), 5u);
  EXPECT_EQ(places.folders[0], "/first");
  EXPECT_EQ(places.folders[1], "/second");
  EXPECT_EQ(places.folders.back(), "/usr/local/cuda/lib64");
  EXPECT_EQ(DefaultLibraryPlaces().folders.size(), places.folders.size() - 2);
}

}  // namespace
}  // namespace quire::cuda
