#include "engine/weights/safetensors.h"

#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/base/random.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace quire {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

std::string File(const std::string& header, size_t data_bytes) {
  const uint64_t size = header.size();
  std::string file(8, '\0');
  std::memcpy(file.data(), &size, 8);
  file += header;
  for (size_t i = 0; i < data_bytes; ++i) file.push_back(static_cast<char>(i));
  return file;
}

absl::Status Parse(const std::string& file,
                   std::vector<StoredTensor>* tensors = nullptr) {
  static const std::string* const path = new std::string("dir/x.safetensors");
  std::vector<StoredTensor> own;
  return ParseSafetensors(
      absl::MakeConstSpan(reinterpret_cast<const uint8_t*>(file.data()),
                          file.size()),
      path, tensors != nullptr ? *tensors : own);
}

constexpr char kTwoTensors[] =
    R"({"__metadata__":{"format":"pt"},)"
    R"("b":{"dtype":"F32","shape":[2],"data_offsets":[12,20]},)"
    R"("a":{"dtype":"BF16","shape":[2,3],"data_offsets":[0,12]}}  )";

TEST(SafetensorsTest, ReadsTensorsInFileOrder) {
  const std::string file = File(kTwoTensors, 20);
  std::vector<StoredTensor> tensors;
  ASSERT_TRUE(Parse(file, &tensors).ok());
  ASSERT_EQ(tensors.size(), 2u);
  EXPECT_EQ(tensors[0].name, "a");
  EXPECT_EQ(tensors[0].dtype, StoredDType::kBF16);
  EXPECT_THAT(tensors[0].shape, testing::ElementsAre(2, 3));
  EXPECT_EQ(tensors[0].num_elements, 6);
  EXPECT_EQ(tensors[0].data.size(), 12u);
  EXPECT_EQ(tensors[0].data[0], 0);
  EXPECT_EQ(tensors[1].name, "b");
  EXPECT_EQ(tensors[1].data[0], 12);
}

TEST(SafetensorsTest, ScalarsAndEmptyTensors) {
  std::vector<StoredTensor> tensors;
  const std::string file =
      File(R"({"s":{"dtype":"F32","shape":[],"data_offsets":[0,4]},)"
           R"("e":{"dtype":"F32","shape":[0,7],"data_offsets":[0,0]}})",
           4);
  ASSERT_TRUE(Parse(file, &tensors).ok());
  EXPECT_EQ(tensors[0].num_elements, 0);
  EXPECT_EQ(tensors[1].num_elements, 1);
  EXPECT_TRUE(Parse(File("{}", 0)).ok());
}

struct BadHeader {
  const char* header;
  int data_bytes;
  const char* message;  // A part of it.
};

TEST(SafetensorsTest, BadHeadersNameFileAndTensor) {
  const BadHeader cases[] = {
      {R"([1])", 0, "not a JSON object"},
      {R"({"a":1})", 0, "tensor \"a\""},
      {R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]})", 8,
       "not valid JSON"},
      {R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}} x)", 8,
       "not valid JSON"},
      {R"({"a":{"dtype":"Q9","shape":[2],"data_offsets":[0,8]}})", 8,
       "tensor \"a\": unknown dtype \"Q9\""},
      {R"({"a":{"dtype":"F32","shape":[2]}})", 8, "tensor \"a\": lacks one of"},
      {R"({"a":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}})", 8,
       "tensor \"a\": data_offsets [0, 8) do not hold [3] elements"},
      {R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}})", 8,
       "tensor \"a\": data_offsets"},
      {R"({"a":{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}})", 8,
       "tensor \"a\": negative number -2"},
      {R"({"a":{"dtype":"F32","shape":[2.5],"data_offsets":[0,8]}})", 8,
       "tensor \"a\": not an integer"},
      {R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8,9]}})", 8,
       "tensor \"a\": more than two data_offsets"},
      {R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0]}})", 8,
       "tensor \"a\": data_offsets must hold two"},
      {R"({"a":{"dtype":"F32","shape":[2],"shape":[2],"data_offsets":[0,8]}})",
       8, "tensor \"a\": duplicate field"},
      {R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8],"x":1}})", 8,
       "tensor \"a\": unknown field \"x\""},
      {R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},)"
       R"("a":{"dtype":"F32","shape":[2],"data_offsets":[8,16]}})",
       16, "tensor \"a\": duplicate key"},
      {R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},)"
       R"("b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}})",
       12, "tensor \"b\": data begins at 4, inside"},
      {R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},)"
       R"("b":{"dtype":"F32","shape":[2],"data_offsets":[12,20]}})",
       20, "tensor \"b\": data begins at 12, leaving a hole"},
      {R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})", 9,
       "1 bytes after the last tensor"},
      {R"({"a":{"dtype":"F32","shape":[4611686018427387904,4],)"
       R"("data_offsets":[0,0]}})",
       0, "tensor \"a\": shape"},
      {R"({"a":{"dtype":"F32","shape":[9223372036854775808],)"
       R"("data_offsets":[0,0]}})",
       0, "tensor \"a\": dimension 9223372036854775808 is too large"},
      {R"({"a":{"dtype":"F32","shape":[1,1,1,1,1,1,1,1,1],)"
       R"("data_offsets":[0,4]}})",
       4, "tensor \"a\": shape has more than 8 dimensions"},
      {R"({"a":{"dtype":{"x":1},"shape":[2],"data_offsets":[0,8]}})", 8,
       "tensor \"a\": unexpected nested object"},
  };
  for (const BadHeader& bad : cases) {
    const absl::Status status = Parse(File(bad.header, bad.data_bytes));
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << bad.header;
    EXPECT_THAT(std::string(status.message()), HasSubstr("dir/x.safetensors"));
    EXPECT_THAT(std::string(status.message()), HasSubstr(bad.message));
  }
}

TEST(SafetensorsTest, HeaderLengthIsChecked) {
  std::string file(8, '\xff');
  EXPECT_THAT(std::string(Parse(file).message()), HasSubstr("limit"));
  file = File(kTwoTensors, 20);
  file.resize(40);
  EXPECT_EQ(Parse(file).code(), absl::StatusCode::kDataLoss);
  EXPECT_EQ(Parse("").code(), absl::StatusCode::kDataLoss);
}

TEST(SafetensorsTest, TruncatedDataNamesTheTensor) {
  const std::string file = File(kTwoTensors, 19);
  const absl::Status status = Parse(file);
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(status.message()), HasSubstr("tensor \"b\""));
}

// Deep nesting must end the parse, not the stack.
TEST(SafetensorsTest, DeepNesting) {
  EXPECT_FALSE(Parse(File(std::string(1 << 20, '['), 0)).ok());
  std::string nested = R"({"a":)";
  for (int i = 0; i < 100'000; ++i) nested += R"({"a":)";
  EXPECT_FALSE(Parse(File(nested, 0)).ok());
}

// A file with many tensors, for damage.
std::string RealisticFile() {
  std::string header = R"({"__metadata__":{"format":"pt"})";
  int64_t offset = 0;
  for (int i = 0; i < 20; ++i) {
    const int64_t rows = 1 + i % 5;
    absl::StrAppend(&header, ",\"model.layers.", i, ".weight\":{\"dtype\":\"",
                    i % 2 == 0 ? "F16" : "F32", "\",\"shape\":[", rows,
                    ",4],\"data_offsets\":[", offset, ",");
    offset += rows * 4 * (i % 2 == 0 ? 2 : 4);
    absl::StrAppend(&header, offset, "]}");
  }
  header += "}";
  return File(header, offset);
}

// Success or an error, never a crash; and what succeeds lies within the file.
void ExpectSafe(const std::string& file) {
  std::vector<StoredTensor> tensors;
  const absl::Status status = Parse(file, &tensors);
  if (!status.ok()) {
    EXPECT_TRUE(tensors.empty());
    return;
  }
  const uint8_t* begin = reinterpret_cast<const uint8_t*>(file.data());
  for (const StoredTensor& tensor : tensors) {
    ASSERT_GE(tensor.data.data(), begin);
    ASSERT_LE(tensor.data.data() + tensor.data.size(), begin + file.size());
    ASSERT_EQ(tensor.data.size(),
              tensor.num_elements * StoredDTypeSize(tensor.dtype));
  }
}

TEST(SafetensorsTest, ThousandTruncationsAllFail) {
  const std::string file = RealisticFile();
  ASSERT_TRUE(Parse(file).ok());
  SimulationRandom random(1);
  for (int i = 0; i < 1000; ++i) {
    const std::string truncated = file.substr(0, random.Below(file.size()));
    EXPECT_FALSE(Parse(truncated).ok());
    ExpectSafe(truncated);
  }
}

TEST(SafetensorsTest, ThousandBitFlips) {
  const std::string file = RealisticFile();
  SimulationRandom random(2);
  for (int i = 0; i < 1000; ++i) {
    std::string damaged = file;
    damaged[random.Below(damaged.size())] ^= 1 << random.Below(8);
    ExpectSafe(damaged);
  }
}

class CheckpointTest : public testing::Test {
 protected:
  CheckpointTest()
      : directory_(fs::path(testing::TempDir()) /
                   absl::StrCat("checkpoint_", ::getpid())) {
    fs::create_directories(directory_);
  }
  ~CheckpointTest() override { fs::remove_all(directory_); }

  void Write(const char* name, const std::string& content) {
    std::ofstream(directory_ / name, std::ios::binary) << content;
  }
  void WriteTensor(const char* file, const char* tensor) {
    Write(file, File(absl::StrCat("{\"", tensor,
                                  "\":{\"dtype\":\"F32\",\"shape\":[2],"
                                  "\"data_offsets\":[0,8]}}"),
                     8));
  }
  void WriteIndex(const std::string& map) {
    Write("model.safetensors.index.json",
          absl::StrCat("{\"metadata\":{},\"weight_map\":", map, "}"));
  }
  absl::Status OpenStatus() {
    return Checkpoint::Open(directory_.string()).status();
  }

  const fs::path directory_;
};

TEST_F(CheckpointTest, SingleFile) {
  WriteTensor("model.safetensors", "a");
  const auto checkpoint = Checkpoint::Open(directory_.string());
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  ASSERT_NE((*checkpoint)->Find("a"), nullptr);
  EXPECT_EQ((*checkpoint)->Find("b"), nullptr);
  EXPECT_EQ((*checkpoint)->num_bytes(), 8);
}

TEST_F(CheckpointTest, Shards) {
  WriteTensor("one.safetensors", "a");
  WriteTensor("two.safetensors", "b");
  WriteIndex(R"({"a":"one.safetensors","b":"two.safetensors"})");
  const auto checkpoint = Checkpoint::Open(directory_.string());
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  EXPECT_THAT(*(*checkpoint)->Find("b")->path, HasSubstr("two.safetensors"));
}

TEST_F(CheckpointTest, NothingThere) {
  EXPECT_EQ(OpenStatus().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(OpenStatus().message()),
              HasSubstr("model.safetensors"));
}

TEST_F(CheckpointTest, NotARegularFile) {
  fs::create_directory(directory_ / "model.safetensors");
  EXPECT_EQ(OpenStatus().code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(CheckpointTest, BadIndexes) {
  WriteTensor("one.safetensors", "a");
  const std::pair<const char*, const char*> cases[] = {
      {R"({"a":"two.safetensors"})", "two.safetensors"},
      {R"({"b":"one.safetensors"})", "tensor \"b\" is not in"},
      {R"({"a":"../one.safetensors"})", "not a plain file name"},
      {R"({"a":"/etc/passwd"})", "not a plain file name"},
      {R"({"a":".."})", "not a plain file name"},
      {R"({"a":""})", "not a plain file name"},
      {R"({"a":"one\u0000.safetensors"})", "not a plain file name"},
      {R"({"a":3})", "not a string"},
      {R"([])", "weight_map"},
  };
  for (const auto& [map, message] : cases) {
    WriteIndex(map);
    const absl::Status status = OpenStatus();
    EXPECT_TRUE(status.code() == absl::StatusCode::kInvalidArgument ||
                status.code() == absl::StatusCode::kNotFound)
        << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(message));
  }
  Write("model.safetensors.index.json", "{");
  EXPECT_THAT(std::string(OpenStatus().message()),
              HasSubstr("model.safetensors.index.json"));
}

TEST_F(CheckpointTest, TensorInTwoFiles) {
  WriteTensor("one.safetensors", "a");
  Write("two.safetensors",
        File(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},)"
             R"("b":{"dtype":"F32","shape":[2],"data_offsets":[8,16]}})",
             16));
  WriteIndex(R"({"a":"one.safetensors","b":"two.safetensors"})");
  EXPECT_THAT(std::string(OpenStatus().message()),
              HasSubstr("tensor \"a\" is also in"));
}

}  // namespace
}  // namespace quire
