#include "engine/model/pack_linear.h"

#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <optional>
#include <string>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "engine/model/recording_backend.h"
#include "engine/weights/safetensors.h"
#include "gtest/gtest.h"

namespace quire {
namespace {

namespace fs = std::filesystem;

class FullBackend : public RecordingBackend {
 public:
  absl::StatusOr<std::unique_ptr<PackedWeight>> PackLinear(
      const LinearSpec&) override {
    return absl::ResourceExhaustedError("no room");
  }
};

class PackLinearTest : public testing::Test {
 protected:
  PackLinearTest()
      : directory_(fs::path(testing::TempDir()) /
                   absl::StrCat("pack_linear_", ::getpid())) {
    fs::create_directories(directory_);
    // a and b in f32, c in f16, each [2, 4].
    const std::string header =
        R"({"a.weight":{"dtype":"F32","shape":[2,4],"data_offsets":[0,32]},)"
        R"("b.weight":{"dtype":"F32","shape":[2,4],"data_offsets":[32,64]},)"
        R"("c.weight":{"dtype":"F16","shape":[2,4],"data_offsets":[64,80]}})";
    const uint64_t size = header.size();
    std::ofstream file(directory_ / "model.safetensors", std::ios::binary);
    file.write(reinterpret_cast<const char*>(&size), 8);
    file << header << std::string(80, '\0');
  }
  ~PackLinearTest() override { fs::remove_all(directory_); }

  absl::StatusOr<std::unique_ptr<PackedWeight>> Pack(
      const std::vector<const char*>& names, Backend& backend) {
    auto checkpoint = Checkpoint::Open(directory_.string());
    if (!checkpoint.ok()) return checkpoint.status();
    WeightLoader weights(*checkpoint, std::nullopt, nullptr);
    std::vector<LinearSource> sources;
    for (const char* name : names) {
      sources.push_back({name, 2, 4, {0, 2}, {0, 4}, /*has_bias=*/false});
    }
    const auto spec = weights.Linear(LinearKind::kPlain, sources);
    if (!spec.ok()) return spec.status();
    return PackLinear(*spec, sources, weights, backend);
  }

  const fs::path directory_;
};

TEST_F(PackLinearTest, PacksWhatTheBackendTakes) {
  RecordingBackend backend;
  const auto packed = Pack({"a", "b"}, backend);
  ASSERT_TRUE(packed.ok()) << packed.status();
  EXPECT_EQ((*packed)->rows, 4);
}

// Whichever the part, and whoever refuses it.
TEST_F(PackLinearTest, ErrorsNameFileAndTensor) {
  RecordingBackend backend;
  absl::Status status = Pack({"c"}, backend).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_TRUE(absl::StartsWith(status.message(), directory_.string()))
      << status;
  EXPECT_TRUE(absl::StrContains(
      status.message(), "tensor \"c.weight\": recording does not compute"))
      << status;
  FullBackend full;
  status = Pack({"b", "a"}, full).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_TRUE(absl::StartsWith(status.message(), directory_.string()))
      << status;
  EXPECT_TRUE(
      absl::StrContains(status.message(), "tensor \"b.weight\": no room"))
      << status;
}

}  // namespace
}  // namespace quire
