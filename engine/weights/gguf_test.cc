#include "engine/weights/gguf.h"

#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "engine/base/random.h"
#include "engine/weights/gguf_fixture.h"
#include "gtest/gtest.h"

namespace quire {
namespace {

using Type = GgufTensorType;

const std::string& Path() {
  static const std::string* const path = new std::string("m.gguf");
  return *path;
}

struct Parsed {
  absl::Status status;
  GgufMetadata metadata;
  std::vector<StoredTensor> tensors;
};

Parsed Parse(const std::string& file) {
  Parsed parsed;
  parsed.status =
      ParseGguf(absl::MakeConstSpan(
                    reinterpret_cast<const uint8_t*>(file.data()), file.size()),
                &Path(), parsed.metadata, parsed.tensors);
  return parsed;
}

void ExpectError(const std::string& file, const std::string& part) {
  const Parsed parsed = Parse(file);
  ASSERT_FALSE(parsed.status.ok()) << part;
  const std::string message(parsed.status.message());
  EXPECT_TRUE(absl::StartsWith(message, "m.gguf: ")) << message;
  EXPECT_TRUE(absl::StrContains(message, part)) << message;
  EXPECT_TRUE(parsed.metadata.empty());
  EXPECT_TRUE(parsed.tensors.empty());
}

// Something of everything.
GgufWriter Sample() {
  GgufWriter writer;
  writer.String("general.architecture", "llama");
  writer.U32("llama.block_count", 2);
  writer.F32("llama.rope.freq_base", 500000.0f);
  writer.Bool("tokenizer.ggml.add_bos_token", true);
  writer.Strings("tokenizer.ggml.tokens", {"<s>", "a", ""});
  writer.I32s("tokenizer.ggml.token_type", {3, 1, -1});
  writer.F32s("tokenizer.ggml.scores", {0.0f, -1.5f, 2.0f});
  // [[1, 2], [3]] of u8.
  const std::string u8 = GgufWriter::Bytes(uint32_t{0});
  writer.Array("nested", GgufType::kArray, 2,
               u8 + GgufWriter::Bytes(uint64_t{2}) + "\1\2" + u8 +
                   GgufWriter::Bytes(uint64_t{1}) + "\3");
  writer.Tensor("dense", Type::kF32, {2, 3}, std::string(24, '\1'));
  writer.Tensor("half", Type::kF16, {5}, std::string(10, '\2'));
  writer.Tensor("blocks", Type::kQ8_0, {3, 64}, std::string(3 * 68, '\3'));
  writer.Tensor("k", Type::kQ4_K, {2, 256}, std::string(2 * 144, '\4'));
  writer.Tensor("scalar", Type::kBF16, {}, std::string(2, '\5'));
  return writer;
}

class GgufFileTest : public testing::Test {
 protected:
  void SetUp() override {
    directory_ = absl::StrCat(testing::TempDir(), "/gguf_", getpid());
    std::filesystem::create_directories(directory_);
  }
  void TearDown() override { std::filesystem::remove_all(directory_); }
  std::string Write(const std::string& name, const GgufWriter& writer) {
    const std::string path = absl::StrCat(directory_, "/", name);
    std::ofstream(path, std::ios::binary) << writer.Build();
    return path;
  }
  void ExpectOpenError(const std::string& path, const std::string& part) {
    const auto file = GgufFile::Open(path);
    ASSERT_FALSE(file.ok());
    EXPECT_TRUE(absl::StrContains(file.status().message(), directory_))
        << file.status();
    EXPECT_TRUE(absl::StrContains(file.status().message(), part))
        << file.status();
  }
  std::string directory_;
};

TEST(ParseGgufTest, ReadsKeysAndTensors) {
  for (const uint32_t version : {2, 3}) {
    GgufWriter writer = Sample();
    writer.set_version(version);
    const std::string file = writer.Build();
    const Parsed parsed = Parse(file);
    ASSERT_TRUE(parsed.status.ok()) << parsed.status;
    ASSERT_EQ(parsed.metadata.size(), 8u);
    EXPECT_EQ(parsed.metadata.at("general.architecture").text(), "llama");
    EXPECT_EQ(parsed.metadata.at("tokenizer.ggml.tokens").strings,
              (std::vector<absl::string_view>{"<s>", "a", ""}));
    const GgufValue& nested = parsed.metadata.at("nested");
    ASSERT_EQ(nested.arrays.size(), 2u);
    EXPECT_EQ(nested.arrays[0].text(), "\1\2");
    EXPECT_EQ(nested.arrays[1].count, 1);
    ASSERT_EQ(parsed.tensors.size(), 5u);
    EXPECT_EQ(parsed.tensors[0].name, "dense");
    EXPECT_EQ(parsed.tensors[0].shape, (std::vector<int64_t>{2, 3}));
    EXPECT_EQ(parsed.tensors[0].dtype, StoredDType::kF32);
    EXPECT_EQ(parsed.tensors[0].data.size(), 24u);
    const StoredTensor& blocks = parsed.tensors[2];
    EXPECT_EQ(blocks.format, QuantFormat::kQ8_0);
    EXPECT_EQ(blocks.dtype, StoredDType::kU8);
    EXPECT_EQ(blocks.shape, (std::vector<int64_t>{3, 64}));
    EXPECT_EQ(blocks.num_elements, 192);
    ASSERT_EQ(blocks.data.size(), 204u);
    EXPECT_EQ(blocks.data[0], 3);
    EXPECT_EQ(blocks.path, &Path());
    EXPECT_EQ(parsed.tensors[3].format, QuantFormat::kQ4_K);
    EXPECT_EQ(parsed.tensors[4].num_elements, 1);
  }
}

TEST(ParseGgufTest, HonoursTheAlignment) {
  GgufWriter writer;
  writer.set_alignment(128);
  writer.U32("general.alignment", 128);
  writer.Tensor("a", Type::kF32, {1}, GgufWriter::Bytes(1.0f));
  writer.Tensor("b", Type::kF32, {1}, GgufWriter::Bytes(2.0f));
  const std::string file = writer.Build();
  const Parsed parsed = Parse(file);
  ASSERT_TRUE(parsed.status.ok()) << parsed.status;
  const auto* begin = reinterpret_cast<const uint8_t*>(file.data());
  EXPECT_EQ(parsed.tensors[0].data.data() - begin, 128);
  EXPECT_EQ(parsed.tensors[1].data.data() - begin, 256);
  for (const uint32_t alignment : {0u, 12u, 1u << 30}) {
    GgufWriter bad;
    bad.U32("general.alignment", alignment);
    ExpectError(bad.Build(), "\"general.alignment\"");
  }
}

TEST(ParseGgufTest, RefusesWhatIsNoGgufFileOrAnotherVersion) {
  ExpectError("", "truncated");
  ExpectError("GGML" + std::string(64, '\0'), "not a GGUF file");
  GgufWriter writer;
  writer.set_version(1);
  ExpectError(writer.Build(), "version 1 is not supported (supported: 2, 3)");
  writer.set_version(__builtin_bswap32(3));
  ExpectError(writer.Build(), "big endian");
}

TEST(ParseGgufTest, AnUnknownTensorTypeIsNamedBesideTheSupportedOnes) {
  GgufWriter writer;
  writer.Tensor("blk.0.ffn_up.weight", 16, {256}, std::string(66, '\0'));
  ExpectError(writer.Build(), "tensor \"blk.0.ffn_up.weight\": type IQ2_XXS");
  ExpectError(writer.Build(),
              "(supported: F32, F16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K, Q3_K, "
              "Q4_K, Q5_K, Q6_K, IQ4_NL, IQ4_XS, BF16, MXFP4)");
  GgufWriter other;
  other.Tensor("x", 99, {256}, "");
  ExpectError(other.Build(), "type number 99 is not supported");
}

TEST(ParseGgufTest, RefusesSizesThatDoNotFit) {
  const auto with_tensor = [](const std::vector<int64_t>& shape, uint32_t type,
                              uint64_t offset) {
    GgufWriter writer;
    writer.Tensor("first", Type::kF32, {8}, std::string(32, '\0'));
    writer.TensorAt("t", type, shape, offset);
    return writer.Build();
  };
  const int64_t big = int64_t{1} << 40;
  ExpectError(with_tensor({big, big}, Type::kF32, 32), "more elements than");
  ExpectError(with_tensor({INT64_MAX}, Type::kF32, 32), "more bytes than fit");
  ExpectError(with_tensor({big}, Type::kF32, 32), "end beyond");
  ExpectError(with_tensor({1}, Type::kF32, uint64_t{1} << 63), "end beyond");
  ExpectError(with_tensor({1}, Type::kF32, UINT64_MAX - 31), "end beyond");
  ExpectError(with_tensor({1}, Type::kF32, 4), "no multiple of the alignment");
  ExpectError(with_tensor({1}, Type::kF32, 0), "overlaps that of");
  ExpectError(with_tensor({2, 48}, Type::kQ8_0, 32), "no multiple of the 32");
  ExpectError(with_tensor({}, Type::kQ4_K, 32), "no multiple of the 256");
  ExpectError(with_tensor({1, 1, 1, 1, 1}, Type::kF32, 32), "5 dimensions");
  ExpectError(with_tensor({-1}, Type::kF32, 32), "a dimension of");
}

TEST(ParseGgufTest, RefusesDuplicates) {
  GgufWriter keys;
  keys.U32("a", 1);
  keys.U32("a", 1);
  ExpectError(keys.Build(), "key \"a\": duplicate key");
  GgufWriter tensors;
  tensors.Tensor("t", Type::kF32, {1}, std::string(4, '\0'));
  tensors.Tensor("t", Type::kF32, {1}, std::string(4, '\0'));
  ExpectError(tensors.Build(), "tensor \"t\": is listed twice");
}

TEST(ParseGgufTest, RefusesBadValues) {
  GgufWriter type;
  type.Raw("k", static_cast<GgufType>(13), "");
  ExpectError(type.Build(), "key \"k\": unknown type of value 13");
  GgufWriter flag;
  flag.Raw("k", GgufType::kBool, "\2");
  ExpectError(flag.Build(), "neither 0 nor 1");
  GgufWriter text;
  text.Raw("k", GgufType::kString, GgufWriter::Bytes(UINT64_MAX));
  ExpectError(text.Build(), "more than the limit");
  GgufWriter count;
  count.Array("k", GgufType::kU8, UINT64_MAX, "");
  ExpectError(count.Build(), "key \"k\": an array of");
  GgufWriter strings;
  strings.Array("k", GgufType::kString, 1 << 20, "");
  ExpectError(strings.Build(), "do not fit into the file");
  GgufWriter nested;
  std::string arrays;
  for (int depth = 0; depth < 8; ++depth) {
    arrays += GgufWriter::Bytes(static_cast<uint32_t>(GgufType::kArray)) +
              GgufWriter::Bytes(uint64_t{1});
  }
  nested.Raw("k", GgufType::kArray, arrays);
  ExpectError(nested.Build(), "nested deeper");
}

TEST(ParseGgufTest, RefusesCountsBeyondTheFile) {
  std::string file = GgufWriter().Build();
  const uint64_t many = 900'000;
  std::memcpy(file.data() + 8, &many, 8);
  ExpectError(file, "900000 tensors do not fit");
  const uint64_t too_many = 5'000'000;
  std::memcpy(file.data() + 8, &too_many, 8);
  ExpectError(file, "5000000 tensors");
}

// Every byte of what a parse yields lies in the file.
void CheckParsed(const std::string& file) {
  const Parsed parsed = Parse(file);
  if (!parsed.status.ok()) {
    EXPECT_TRUE(absl::StartsWith(parsed.status.message(), "m.gguf: "))
        << parsed.status;
    return;
  }
  uint64_t sum = 0;
  for (const auto& [key, value] : parsed.metadata) {
    for (const uint8_t byte : value.bytes) sum += byte;
    for (const absl::string_view text : value.strings) {
      for (const char c : text) sum += c;
    }
  }
  for (const StoredTensor& tensor : parsed.tensors) {
    for (const uint8_t byte : tensor.data) sum += byte;
  }
  ASSERT_NE(sum, 1u);  // Keeps the reads.
}

TEST(ParseGgufTest, TruncationsAreErrors) {
  const std::string file = Sample().Build();
  for (size_t size = 0; size < file.size(); ++size) {
    // A copy of exactly this size, for the address sanitizer.
    const std::string cut(file.data(), size);
    EXPECT_FALSE(Parse(cut).status.ok()) << size;
  }
  SimulationRandom random(5);
  for (int i = 0; i < 1000; ++i) {
    CheckParsed(std::string(file.data(), random.Below(file.size())));
  }
}

TEST(ParseGgufTest, BitFlipsDoNotCrash) {
  const std::string file = Sample().Build();
  SimulationRandom random(6);
  const size_t header_size = file.find(std::string(24, '\1'));
  ASSERT_NE(header_size, std::string::npos);
  for (size_t byte = 0; byte < header_size; ++byte) {
    for (int bit = 0; bit < 8; ++bit) {
      std::string changed = file;
      changed[byte] = static_cast<char>(changed[byte] ^ (1 << bit));
      CheckParsed(changed);
    }
  }
  for (int i = 0; i < 1000; ++i) {
    std::string changed = file;
    const int num_flips = 1 + static_cast<int>(random.Below(16));
    for (int k = 0; k < num_flips; ++k) {
      char& byte = changed[random.Below(header_size)];
      byte = static_cast<char>(random.Below(4) == 0
                                   ? random.Below(256)
                                   : byte ^ (1 << random.Below(8)));
    }
    CheckParsed(changed);
  }
}

TEST_F(GgufFileTest, ReadsValuesByType) {
  const auto file = GgufFile::Open(Write("m.gguf", Sample()));
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ(*(*file)->Int("llama.block_count", 0, 10), 2);
  EXPECT_EQ(*(*file)->Int("nothing", 0, 10), std::nullopt);
  EXPECT_EQ(*(*file)->Number("llama.rope.freq_base", 0, 1e9), 500000.0);
  EXPECT_EQ(*(*file)->Number("llama.block_count", 0, 1e9), 2.0);
  EXPECT_EQ(*(*file)->Bool("tokenizer.ggml.add_bos_token"), true);
  EXPECT_EQ(*(*file)->String("general.architecture"), "llama");
  EXPECT_EQ(*(*file)->Ints("tokenizer.ggml.token_type", -1, 3),
            (std::vector<int64_t>{3, 1, -1}));
  EXPECT_EQ(*(*file)->Ints("llama.block_count", 0, 3),
            (std::vector<int64_t>{2}));
  EXPECT_EQ(*(*file)->Floats("tokenizer.ggml.scores"),
            (std::vector<float>{0.0f, -1.5f, 2.0f}));
  EXPECT_EQ((*(*file)->Strings("tokenizer.ggml.tokens"))->size(), 3u);
  EXPECT_NE((*file)->FindTensor("blocks"), nullptr);
  EXPECT_EQ((*file)->FindTensor("nothing"), nullptr);

  const auto names = [&](const absl::Status& status, const char* key) {
    return status.code() == absl::StatusCode::kInvalidArgument &&
           absl::StrContains(status.message(), (*file)->path()) &&
           absl::StrContains(status.message(), absl::StrCat("\"", key, "\""));
  };
  EXPECT_TRUE(names((*file)->Int("llama.block_count", 3, 10).status(),
                    "llama.block_count"));
  EXPECT_TRUE(names((*file)->Int("general.architecture", 0, 10).status(),
                    "general.architecture"));
  EXPECT_TRUE(names((*file)->Int("llama.rope.freq_base", 0, 1 << 30).status(),
                    "llama.rope.freq_base"));
  EXPECT_TRUE(names((*file)->Number("llama.rope.freq_base", 0, 1).status(),
                    "llama.rope.freq_base"));
  EXPECT_TRUE(
      names((*file)->Bool("llama.block_count").status(), "llama.block_count"));
  EXPECT_TRUE(names((*file)->String("llama.block_count").status(),
                    "llama.block_count"));
  EXPECT_TRUE(names((*file)->Ints("tokenizer.ggml.scores", 0, 9).status(),
                    "tokenizer.ggml.scores"));
  EXPECT_TRUE(names((*file)->Floats("tokenizer.ggml.token_type").status(),
                    "tokenizer.ggml.token_type"));
  EXPECT_TRUE(names((*file)->Strings("tokenizer.ggml.scores").status(),
                    "tokenizer.ggml.scores"));
  EXPECT_TRUE(names((*file)->Bytes("tokenizer.ggml.scores").status(),
                    "tokenizer.ggml.scores"));
}

TEST_F(GgufFileTest, OpensSplitModelsByAnyPart) {
  std::vector<std::string> paths;
  for (uint32_t part = 0; part < 3; ++part) {
    GgufWriter writer;
    if (part == 0) writer.String("general.architecture", "llama");
    writer.Raw("split.no", GgufType::kU16,
               GgufWriter::Bytes(static_cast<uint16_t>(part)));
    writer.Raw("split.count", GgufType::kU16, GgufWriter::Bytes(uint16_t{3}));
    writer.Raw("split.tensors.count", GgufType::kI32,
               GgufWriter::Bytes(int32_t{2}));
    // The first part often has keys alone.
    if (part > 0) {
      writer.Tensor(absl::StrCat("t", part), Type::kF32, {1},
                    GgufWriter::Bytes(static_cast<float>(part)));
    }
    paths.push_back(
        Write(absl::StrFormat("m-%05d-of-00003.gguf", part + 1), writer));
  }
  for (const std::string& path : paths) {
    const auto file = GgufFile::Open(path);
    ASSERT_TRUE(file.ok()) << file.status();
    EXPECT_EQ((*file)->path(), paths[0]);
    EXPECT_EQ((*file)->tensors().size(), 2u);
    EXPECT_EQ(*(*file)->String("general.architecture"), "llama");
    EXPECT_EQ(*(*file)->FindTensor("t2")->path, paths[2]);
  }
  std::filesystem::copy_file(paths[2], absl::StrCat(directory_, "/x.gguf"));
  ExpectOpenError(absl::StrCat(directory_, "/x.gguf"), "not called");
  std::filesystem::copy_file(paths[0], absl::StrCat(directory_, "/y.gguf"));
  ExpectOpenError(absl::StrCat(directory_, "/y.gguf"),
                  "name does not end in -00001-of-00003.gguf");
  std::filesystem::copy_file(paths[2], paths[1],
                             std::filesystem::copy_options::overwrite_existing);
  ExpectOpenError(paths[0], "expected part 1 of 3, found 2 of 3");
  std::filesystem::remove(paths[1]);
  const auto missing = GgufFile::Open(paths[0]);
  EXPECT_EQ(missing.status().code(), absl::StatusCode::kNotFound);
  EXPECT_TRUE(absl::StrContains(missing.status().message(), paths[1]));
}

TEST_F(GgufFileTest, RefusesPartsThatDoNotFitTogether) {
  const auto part = [](uint32_t number, uint32_t num_tensors) {
    GgufWriter writer;
    writer.U32("split.no", number);
    writer.U32("split.count", 2);
    writer.U32("split.tensors.count", num_tensors);
    writer.Tensor("same", Type::kF32, {1}, std::string(4, '\0'));
    return writer;
  };
  const std::string first = Write("m-00001-of-00002.gguf", part(0, 2));
  Write("m-00002-of-00002.gguf", part(1, 2));
  ExpectOpenError(first, "tensor \"same\" is also in");
  GgufWriter empty;
  empty.U32("split.no", 1);
  empty.U32("split.count", 2);
  Write("m-00002-of-00002.gguf", empty);
  ExpectOpenError(first, "\"split.tensors.count\": 2, but the parts have 1");
}

}  // namespace
}  // namespace quire
