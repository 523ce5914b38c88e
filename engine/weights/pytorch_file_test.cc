#include "engine/weights/pytorch_file.h"

#include <algorithm>
#include <cstring>
#include <fstream>
#include <iterator>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/base/random.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace quire {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

constexpr char kRoot[] = "engine/weights/testdata/pytorch/";

std::string ReadFile(const std::string& name) {
  std::ifstream file(kRoot + name, std::ios::binary);
  EXPECT_TRUE(file.good()) << name;
  return std::string(std::istreambuf_iterator<char>(file), {});
}

absl::Span<const uint8_t> Bytes(const std::string& text) {
  return {reinterpret_cast<const uint8_t*>(text.data()), text.size()};
}

const std::string& Path() {
  static const std::string* path = new std::string("x.bin");
  return *path;
}

// By name.
using Tensors = std::map<std::string, StoredTensor>;

Tensors Parse(const std::string& file) {
  std::vector<StoredTensor> parsed;
  const absl::Status status = ParsePytorchFile(Bytes(file), &Path(), parsed);
  EXPECT_TRUE(status.ok()) << status;
  Tensors tensors;
  for (StoredTensor& tensor : parsed) {
    tensors[tensor.name] = std::move(tensor);
  }
  return tensors;
}

std::string ErrorOf(const std::string& file) {
  std::vector<StoredTensor> parsed;
  const absl::Status status = ParsePytorchFile(Bytes(file), &Path(), parsed);
  EXPECT_FALSE(status.ok());
  EXPECT_TRUE(parsed.empty());
  EXPECT_THAT(std::string(status.message()), HasSubstr("x.bin: "));
  return std::string(status.message());
}

template <typename T>
std::vector<T> ElementsOf(const StoredTensor& tensor) {
  std::vector<T> elements(tensor.num_elements);
  EXPECT_EQ(tensor.data.size(), elements.size() * sizeof(T)) << tensor.name;
  std::memcpy(elements.data(), tensor.data.data(), tensor.data.size());
  return elements;
}

void ExpectSmall(const std::string& name) {
  const std::string file = ReadFile(name);
  Tensors tensors = Parse(file);
  EXPECT_EQ(tensors.size(), 15u);
  EXPECT_EQ(tensors["f32"].dtype, StoredDType::kF32);
  EXPECT_THAT(tensors["f32"].shape, ElementsAre(4, 6));
  const std::vector<float> all = ElementsOf<float>(tensors["f32"]);
  for (int i = 0; i < 24; ++i) EXPECT_EQ(all[i], i);
  EXPECT_THAT(tensors["rows_2_3"].shape, ElementsAre(2, 6));
  EXPECT_EQ(tensors["rows_2_3"].data.data(), tensors["f32"].data.data() + 48);
  EXPECT_EQ(tensors["f16"].dtype, StoredDType::kF16);
  EXPECT_THAT(ElementsOf<uint16_t>(tensors["f16"]),
              ElementsAre(0, 0x3c00, 0x4000, 0x4200, 0x4400, 0x4500));
  EXPECT_EQ(tensors["bf16"].dtype, StoredDType::kBF16);
  EXPECT_THAT(ElementsOf<uint16_t>(tensors["bf16"]),
              ElementsAre(0, 0x3f80, 0x4000, 0x4040, 0x4080, 0x40a0));
  EXPECT_THAT(ElementsOf<double>(tensors["f64"]), ElementsAre(0, 1, 2));
  EXPECT_THAT(ElementsOf<int64_t>(tensors["i64"]), ElementsAre(1, -2, 3));
  EXPECT_THAT(tensors["i32"].shape, ElementsAre(1, 3));
  EXPECT_THAT(ElementsOf<int32_t>(tensors["i32"]), ElementsAre(1, -2, 3));
  EXPECT_THAT(ElementsOf<int8_t>(tensors["i8"]), ElementsAre(1, -2, 3));
  EXPECT_THAT(ElementsOf<uint8_t>(tensors["u8"]), ElementsAre(1, 2, 255));
  EXPECT_EQ(tensors["bool"].dtype, StoredDType::kBool);
  EXPECT_EQ(tensors["fp8"].dtype, StoredDType::kF8E4M3);
  EXPECT_THAT(ElementsOf<uint8_t>(tensors["fp8"]),
              ElementsAre(0x38, 0xc0, 0x7e));
  EXPECT_THAT(ElementsOf<float>(tensors["parameter"]), ElementsAre(7, 7, 7, 7));
  EXPECT_THAT(ElementsOf<float>(tensors["scalar"]), ElementsAre(2.5f));
  EXPECT_TRUE(tensors["scalar"].shape.empty());
  EXPECT_EQ(tensors["empty"].num_elements, 0);
  // Nothing is copied.
  for (const auto& [name, tensor] : tensors) {
    if (tensor.data.empty()) continue;
    EXPECT_GE(tensor.data.data(), Bytes(file).data());
    EXPECT_LE(tensor.data.end(), Bytes(file).end());
  }
}

TEST(PytorchFileTest, EveryDType) { ExpectSmall("small.bin"); }
TEST(PytorchFileTest, LaterPickleProtocol) { ExpectSmall("protocol4.bin"); }

TEST(PytorchFileTest, StateDictOfAModuleAndInsideACheckpoint) {
  const std::string module = ReadFile("module.bin");
  EXPECT_EQ(Parse(module).size(), 2u);
  const std::string nested = ReadFile("nested.bin");
  Tensors tensors = Parse(nested);
  ASSERT_EQ(tensors.size(), 1u);
  EXPECT_EQ(tensors["w"].num_elements, 24);
}

TEST(PytorchFileTest, NothingIsExecuted) {
  const std::string error = ErrorOf(ReadFile("evil.bin"));
  EXPECT_THAT(error, HasSubstr("system\" is not known"));
  EXPECT_THAT(error, HasSubstr("nothing is executed"));
}

TEST(PytorchFileTest, RefusesOtherFiles) {
  EXPECT_THAT(ErrorOf(ReadFile("legacy.bin")),
              HasSubstr("the older format is not supported"));
  EXPECT_THAT(ErrorOf(ReadFile("compressed.bin")),
              HasSubstr("is compressed (method 8)"));
  EXPECT_THAT(ErrorOf(ReadFile("tensor.bin")),
              HasSubstr("it holds a tensor, not a dictionary"));
  EXPECT_THAT(ErrorOf(ReadFile("transposed.bin")),
              HasSubstr("tensor \"w\": strides [1, 6] of shape [6, 4]"));
  EXPECT_THAT(ErrorOf(""), HasSubstr("not a zip archive"));
}

// ---------------------------------------------------- archives made by hand

void Append(std::string* out, uint64_t value, int num_bytes) {
  for (int i = 0; i < num_bytes; ++i) {
    out->push_back(static_cast<char>(i < 8 ? value >> (8 * i) : 0));
  }
}

struct ZipFile {
  std::string name;
  std::string data;
  int64_t offset = -1;  // In place of the right one.
  int64_t size = -1;
  int flags = 0;
};

// is_64: all sizes and offsets in zip64 fields and records.
std::string Zip(const std::vector<ZipFile>& files, bool is_64 = false) {
  std::string out, central;
  for (const ZipFile& file : files) {
    const uint64_t offset = file.offset < 0 ? out.size() : file.offset;
    const uint64_t size = file.size < 0 ? file.data.size() : file.size;
    out += "PK\x03\x04";
    Append(&out, 0, 22);
    Append(&out, file.name.size(), 2);
    Append(&out, 0, 2);
    out += file.name + file.data;
    central += "PK\x01\x02";
    Append(&central, 0, 4);
    Append(&central, file.flags, 2);
    Append(&central, 0, 10);
    Append(&central, is_64 ? 0xffffffff : size, 4);
    Append(&central, is_64 ? 0xffffffff : size, 4);
    Append(&central, file.name.size(), 2);
    Append(&central, is_64 ? 4 + 4 + 24 : 0, 2);
    Append(&central, 0, 10);
    Append(&central, is_64 ? 0xffffffff : offset, 4);
    central += file.name;
    if (is_64) {
      Append(&central, 7, 2);  // Another field first.
      Append(&central, 0, 2);
      Append(&central, 1, 2);
      Append(&central, 24, 2);
      Append(&central, size, 8);
      Append(&central, size, 8);
      Append(&central, offset, 8);
    }
  }
  const uint64_t directory = out.size();
  out += central;
  if (is_64) {
    const uint64_t end64 = out.size();
    out += "PK\x06\x06";
    Append(&out, 44, 8);
    Append(&out, 0, 12);
    Append(&out, files.size(), 8);
    Append(&out, files.size(), 8);
    Append(&out, central.size(), 8);
    Append(&out, directory, 8);
    out += "PK\x06\x07";
    Append(&out, 0, 4);
    Append(&out, end64, 8);
    Append(&out, 1, 4);
  }
  out += "PK\x05\x06";
  Append(&out, 0, 4);
  Append(&out, is_64 ? 0xffff : files.size(), 2);
  Append(&out, is_64 ? 0xffff : files.size(), 2);
  Append(&out, is_64 ? 0xffffffff : central.size(), 4);
  Append(&out, is_64 ? 0xffffffff : directory, 4);
  Append(&out, 0, 2);
  return out;
}

std::string Text(const std::string& text) {
  std::string out = "X";
  Append(&out, text.size(), 4);
  return out + text;
}

std::string Storage(const std::string& type, const std::string& key) {
  return absl::StrCat("(", Text("storage"), "ctorch\n", type, "\n", Text(key),
                      Text("cpu"), "K\x04tQ");
}

// A tensor of four: [2, 2].
std::string Tensor(const std::string& storage, const std::string& offset,
                   const std::string& shape, const std::string& strides) {
  return absl::StrCat("ctorch._utils\n_rebuild_tensor_v2\n(", storage, offset,
                      "(", shape, "t(", strides, "t\x89", "Ntq\x01R");
}

std::string Pickle(const std::string& items) {
  return absl::StrCat("\x80\x02}(", items, "u.");
}

std::string File(const std::string& pickle) {
  return Zip({{"a/data.pkl", pickle},
              {"a/data/0", std::string(16, '\1')},
              {"a/byteorder", "little"}});
}

const std::string kOne = "K\x01";
const std::string kTwo = "K\x02";
const std::string kZero("K\0", 2);

std::string Good() {
  return Text("w") +
         Tensor(Storage("FloatStorage", "0"), kZero, kTwo + kTwo, kTwo + kOne);
}

TEST(PytorchFileTest, ArchivesByHand) {
  const std::string file = File(Pickle(Good()));
  EXPECT_EQ(Parse(file).size(), 1u);
  const std::string zip64 =
      Zip({{"a/data.pkl", Pickle(Good())}, {"a/data/0", std::string(16, '\1')}},
          /*is_64=*/true);
  EXPECT_EQ(Parse(zip64)["w"].data.size(), 16u);
}

TEST(PytorchFileTest, BadArchives) {
  const std::string pickle = Pickle(Good());
  const std::string data(16, '\1');
  EXPECT_THAT(ErrorOf(Zip({{"a/data/0", data}})), HasSubstr("no data.pkl"));
  EXPECT_THAT(ErrorOf(Zip({{"a/data.pkl", pickle}, {"b/data.pkl", pickle}})),
              HasSubstr("more than one data.pkl"));
  EXPECT_THAT(ErrorOf(Zip({{"a/data.pkl", pickle}, {"a/data.pkl", pickle}})),
              HasSubstr("is in it twice"));
  EXPECT_THAT(ErrorOf(Zip({{"a/data.pkl", pickle}, {"a/data/0", data, 0}})),
              HasSubstr("overlaps"));
  EXPECT_THAT(
      ErrorOf(Zip({{"a/data.pkl", pickle, -1, 1000}, {"a/data/0", data}})),
      HasSubstr("outside the archive"));
  EXPECT_THAT(
      ErrorOf(Zip({{"a/data.pkl", pickle, -1, int64_t{1} << 62}}, true)),
      HasSubstr("outside the archive"));
  EXPECT_THAT(ErrorOf(Zip({{"a/data.pkl", pickle, int64_t{1} << 62}}, true)),
              HasSubstr("outside the archive"));
  EXPECT_THAT(ErrorOf(Zip({{"a/data.pkl", pickle, -1, -1, 1}})),
              HasSubstr("encrypted"));
  EXPECT_THAT(ErrorOf(Zip({{"a/data.pkl", pickle}, {"a/byteorder", "big"}})),
              HasSubstr("byte order"));
  EXPECT_THAT(ErrorOf(Zip({{"a/data.pkl", pickle}})),
              HasSubstr("storage \"0\" is not in the archive"));
}

TEST(PytorchFileTest, BadTensors) {
  const std::string storage = Storage("FloatStorage", "0");
  const auto error = [&](const std::string& tensor) {
    return ErrorOf(File(Pickle(Text("w") + tensor)));
  };
  const std::string huge = std::string("\x8a\x08\0\0\0\0\0\0\0\x40", 10);
  const std::string negative = std::string("J\xff\xff\xff\xff", 5);
  EXPECT_THAT(error(Tensor(storage, kOne, kTwo + kTwo, kTwo + kOne)),
              HasSubstr("tensor \"w\": shape [2, 2] at element 1 lies outside "
                        "its storage of 4 elements"));
  EXPECT_THAT(error(Tensor(storage, huge, kTwo, kOne)),
              HasSubstr("lies outside its storage"));
  EXPECT_THAT(error(Tensor(storage, kZero, huge + huge, kOne + kOne)),
              HasSubstr("more elements than fit"));
  EXPECT_THAT(error(Tensor(storage, kZero, huge, kOne)),
              HasSubstr("more elements than fit"));
  EXPECT_THAT(error(Tensor(storage, negative, kTwo, kOne)),
              HasSubstr("a tensor of something else than a storage"));
  EXPECT_THAT(error(Tensor(storage, kZero, negative, kOne)),
              HasSubstr("natural numbers"));
  EXPECT_THAT(error(Tensor(storage, kZero, kTwo + kTwo, kOne)),
              HasSubstr("strides"));
  EXPECT_THAT(error(Tensor(storage, kZero, kTwo + kTwo, kOne + kTwo)),
              HasSubstr("only contiguous tensors"));
  EXPECT_THAT(error(Tensor(kOne, kZero, kTwo, kOne)),
              HasSubstr("something else than a storage"));
  EXPECT_THAT(error(Tensor(Storage("DoubleStorage", "0"), kZero, kTwo + kTwo,
                           kTwo + kOne)),
              HasSubstr("storage of 2 elements"));
  EXPECT_THAT(ErrorOf(File(Pickle(Good() + Good()))),
              HasSubstr("tensor \"w\": duplicate key"));
}

TEST(PytorchFileTest, BadPickles) {
  const auto error = [](const std::string& pickle) {
    return ErrorOf(File(pickle));
  };
  EXPECT_THAT(error(""), HasSubstr("ends in the middle"));
  EXPECT_THAT(error("."), HasSubstr("the stack is empty"));
  EXPECT_THAT(error("}"), HasSubstr("ends in the middle"));
  EXPECT_THAT(error("N."), HasSubstr("it holds None"));
  EXPECT_THAT(error("(."), HasSubstr("it holds a mark"));
  EXPECT_THAT(error("}u."), HasSubstr("no mark"));
  EXPECT_THAT(error("}(Nu."), HasSubstr("items"));
  EXPECT_THAT(error("]]Ns."), HasSubstr("items"));
  EXPECT_THAT(error("}Na."), HasSubstr("no list"));
  EXPECT_THAT(error("h\x05."), HasSubstr("remembered"));
  EXPECT_THAT(error("P1\n."), HasSubstr("opcode 0x50 is not known"));
  EXPECT_THAT(error("i."), HasSubstr("opcode 0x69 is not known"));
  EXPECT_THAT(error("cos\nsystem\n."), HasSubstr("\"os.system\" is not known"));
  EXPECT_THAT(error("c__builtin__\neval\n(X\x01\0\0\0xtR."),
              HasSubstr("__builtin__.eval"));
  EXPECT_THAT(error("ctorch\nFloatStorage\n)R."), HasSubstr("nothing to call"));
  EXPECT_THAT(error("ctorch._tensor\n_rebuild_from_type_v2\n(NNNNtR."),
              HasSubstr("_rebuild_from_type_v2"));
  EXPECT_THAT(error(")Q."), HasSubstr("none"));
  EXPECT_THAT(error(std::string("X\xff\xff\xff\xff", 5)),
              HasSubstr("ends in the middle"));
  EXPECT_THAT(error("\x8a\x09" + std::string(9, '\1') + "."),
              HasSubstr("64 bits"));
  // A list that holds itself; many values.
  EXPECT_THAT(error("]q\x01h\x01"
                    "a."),
              HasSubstr("it holds a list"));
  EXPECT_THAT(error("(" + std::string(3'000'000, 'N') + "t."),
              HasSubstr("too many values"));
}

// A thousand truncations and bit flips, on buffers of the exact size.
TEST(PytorchFileTest, DamagedFiles) {
  const std::string original = ReadFile("small.bin");
  SimulationRandom random(11);
  int num_errors = 0;
  for (int i = 0; i < 2000; ++i) {
    std::string file = original;
    if (i % 2 == 0) {
      file.resize(random.Below(file.size()));
    } else {
      for (int k = 0; k < 1 + i % 3; ++k) {
        file[random.Below(file.size())] ^= 1 << random.Below(8);
      }
    }
    const std::vector<uint8_t> exact(file.begin(), file.end());
    std::vector<StoredTensor> tensors;
    num_errors += !ParsePytorchFile(exact, &Path(), tensors).ok();
    uint8_t sum = 0;
    for (const StoredTensor& tensor : tensors) {
      for (const uint8_t byte : tensor.data) sum ^= byte;
    }
    testing::Test::RecordProperty("sum", sum);  // So that they are read.
  }
  EXPECT_GE(num_errors, 1000);
}

}  // namespace
}  // namespace quire
