#include "engine/weights/weight_loader.h"

#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace quire {
namespace {

namespace fs = std::filesystem;
using testing::ElementsAre;
using testing::HasSubstr;

// Element (r, c) of a test matrix: exact in f16 and bf16.
float Element(int64_t row, int64_t col) { return row * 8.0f + col; }

class WeightLoaderTest : public testing::Test {
 protected:
  WeightLoaderTest()
      : directory_(fs::path(testing::TempDir()) /
                   absl::StrCat("weights_", ::getpid())) {
    fs::create_directories(directory_);
  }
  ~WeightLoaderTest() override { fs::remove_all(directory_); }

  void AddRaw(const std::string& name, const char* dtype,
              const std::string& shape, const std::string& data) {
    absl::StrAppend(&header_, header_.empty() ? "" : ",", "\"", name,
                    "\":{\"dtype\":\"", dtype, "\",\"shape\":[", shape,
                    "],\"data_offsets\":[", data_.size(), ",",
                    data_.size() + data.size(), "]}");
    data_ += data;
  }

  void AddF32(const std::string& name, int64_t rows, int64_t cols) {
    std::string data(rows * cols * 4, '\0');
    for (int64_t i = 0; i < rows * cols; ++i) {
      const float value = Element(i / cols, i % cols);
      std::memcpy(data.data() + i * 4, &value, 4);
    }
    AddRaw(name, "F32", absl::StrCat(rows, ",", cols), data);
  }

  void AddVector(const std::string& name, std::vector<float> values) {
    std::string data;
    for (const float value : values) {
      const uint16_t bits = FloatToBf16(value);
      data.append(reinterpret_cast<const char*>(&bits), 2);
    }
    AddRaw(name, "BF16", absl::StrCat(values.size()), data);
  }

  // `padding` shifts the data, so that alignment can be lost.
  WeightLoader Loader(std::optional<DType> dtype = std::nullopt,
                      int padding = 0) {
    const std::string header =
        absl::StrCat("{", header_, "}", std::string(padding, ' '));
    const uint64_t size = header.size();
    std::ofstream file(directory_ / "model.safetensors", std::ios::binary);
    file.write(reinterpret_cast<const char*>(&size), 8);
    file << header << data_;
    file.close();
    auto checkpoint = Checkpoint::Open(directory_.string());
    EXPECT_TRUE(checkpoint.ok()) << checkpoint.status();
    return WeightLoader(*checkpoint, dtype,
                        [this](int64_t done, int64_t total) {
                          progress_.emplace_back(done, total);
                        });
  }

  static LinearSource Whole(const char* name, int64_t rows, int64_t cols,
                            bool has_bias = false) {
    return {name, rows, cols, {0, rows}, {0, cols}, has_bias};
  }

  const fs::path directory_;
  std::string header_;
  std::string data_;
  std::vector<std::pair<int64_t, int64_t>> progress_;
};

TEST_F(WeightLoaderTest, ViewsAndProgress) {
  AddF32("q.weight", 4, 6);
  AddF32("k.weight", 2, 6);
  WeightLoader loader = Loader();
  const auto spec =
      loader.Linear(LinearKind::kQkv, {Whole("q", 4, 6), Whole("k", 2, 6)});
  ASSERT_TRUE(spec.ok()) << spec.status();
  ASSERT_EQ(spec->parts.size(), 2u);
  EXPECT_EQ(spec->kind, LinearKind::kQkv);
  EXPECT_TRUE(spec->bias.empty());
  EXPECT_EQ(spec->parts[0].data.rows, 4);
  EXPECT_EQ(spec->parts[0].data.row<float>(3)[5], Element(3, 5));
  EXPECT_EQ(loader.num_parameters(), 36);
  EXPECT_THAT(progress_, ElementsAre(std::pair<int64_t, int64_t>(144, 144)));
  EXPECT_EQ(loader.UnusedTensorsWarning(), "");
}

// The memory behind the parts outlives loader and checkpoint.
TEST_F(WeightLoaderTest, KeepAlive) {
  AddF32("q.weight", 4, 6);
  LinearSpec view, converted;
  {
    WeightLoader loader = Loader();
    view = *loader.Linear(LinearKind::kPlain, {Whole("q", 4, 6)});
  }
  {
    WeightLoader loader = Loader(DType::kBF16);
    converted = *loader.Linear(LinearKind::kPlain, {Whole("q", 4, 6)});
  }
  EXPECT_EQ(view.parts[0].data.row<float>(2)[1], Element(2, 1));
  EXPECT_EQ(Bf16ToFloat(converted.parts[0].data.row<uint16_t>(2)[1]),
            Element(2, 1));
}

// Two ranks: rows of the first matrix of a pair, columns of the second. The
// products of the shards add up to the whole.
TEST_F(WeightLoaderTest, ShardsOfAPairAddUp) {
  constexpr int64_t kHidden = 6, kInner = 4;
  AddF32("up.weight", kInner, kHidden);
  AddF32("down.weight", kHidden, kInner);
  AddVector("up.bias", {1, 2, 3, 4});
  WeightLoader loader = Loader();
  const std::vector<float> x = {1, -1, 2, 0.5, 3, -2};
  const auto apply = [](const LinearSpec& spec, const std::vector<float>& in) {
    const TensorView& w = spec.parts[0].data;
    std::vector<float> out(w.rows, 0.0f);
    for (int64_t row = 0; row < w.rows; ++row) {
      if (!spec.bias.empty()) out[row] = spec.bias.row<float>(0)[row];
      for (int64_t col = 0; col < w.cols; ++col) {
        out[row] += w.row<float>(row)[col] * in[col];
      }
    }
    return out;
  };
  std::vector<std::vector<float>> sums;
  for (const int size : {1, 2, 4}) {
    std::vector<float> sum(kHidden, 0.0f);
    for (int rank = 0; rank < size; ++rank) {
      const auto inner = ShardEvenly(kInner, {rank, size}, "inner");
      ASSERT_TRUE(inner.ok());
      const auto up =
          loader.Linear(LinearKind::kPlain,
                        {{"up", kInner, kHidden, *inner, {0, kHidden}, true}});
      const auto down = loader.Linear(
          LinearKind::kPlain,
          {{"down", kHidden, kInner, {0, kHidden}, *inner, false}});
      ASSERT_TRUE(up.ok() && down.ok());
      const std::vector<float> part = apply(*down, apply(*up, x));
      for (int64_t i = 0; i < kHidden; ++i) sum[i] += part[i];
    }
    sums.push_back(sum);
  }
  EXPECT_EQ(sums[1], sums[0]);  // Small integers and halves: exact.
  EXPECT_EQ(sums[2], sums[0]);
}

TEST_F(WeightLoaderTest, BiasOfSomePartsIsPaddedWithZeros) {
  AddF32("q.weight", 2, 3);
  AddF32("k.weight", 2, 3);
  AddVector("q.bias", {5, 6});
  WeightLoader loader = Loader();
  const auto spec = loader.Linear(
      LinearKind::kQkv, {Whole("q", 2, 3, true), Whole("k", 2, 3, false)});
  ASSERT_TRUE(spec.ok()) << spec.status();
  EXPECT_THAT(std::vector<float>(spec->bias.row<float>(0),
                                 spec->bias.row<float>(0) + spec->bias.cols),
              ElementsAre(5, 6, 0, 0));
}

TEST_F(WeightLoaderTest, ConversionsAreExactWhereTheyCanBe) {
  AddF32("q.weight", 4, 6);
  for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
    WeightLoader loader = Loader(dtype);
    const auto spec =
        loader.Linear(LinearKind::kPlain, {{"q", 4, 6, {1, 3}, {2, 5}, false}});
    ASSERT_TRUE(spec.ok()) << spec.status();
    const TensorView& part = spec->parts[0].data;
    EXPECT_EQ(part.dtype, dtype);
    ASSERT_EQ(part.rows, 2);
    ASSERT_EQ(part.cols, 3);
    for (int64_t row = 0; row < 2; ++row) {
      for (int64_t col = 0; col < 3; ++col) {
        float value = 0;
        if (dtype == DType::kF32) {
          value = part.row<float>(row)[col];
        } else {
          const uint16_t bits = part.row<uint16_t>(row)[col];
          value = dtype == DType::kF16 ? HalfToFloat(bits) : Bf16ToFloat(bits);
        }
        EXPECT_EQ(value, Element(row + 1, col + 2));
      }
    }
  }
}

// Data that is not aligned to its elements is copied, never read in place.
TEST_F(WeightLoaderTest, UnalignedData) {
  AddF32("q.weight", 4, 6);
  for (int padding = 0; padding < 4; ++padding) {
    WeightLoader loader = Loader(std::nullopt, padding);
    const auto spec = loader.Linear(LinearKind::kPlain, {Whole("q", 4, 6)});
    ASSERT_TRUE(spec.ok());
    const TensorView& part = spec->parts[0].data;
    EXPECT_EQ(reinterpret_cast<uintptr_t>(part.data) % 4, 0u);
    EXPECT_EQ(part.row<float>(3)[5], Element(3, 5));
  }
}

TEST_F(WeightLoaderTest, ErrorsNameFileTensorAndShapes) {
  AddF32("q.weight", 4, 6);
  AddRaw("i.weight", "I32", "1,1", std::string(4, '\0'));
  WeightLoader loader = Loader();
  const auto missing = loader.Linear(LinearKind::kPlain, {Whole("v", 4, 6)});
  EXPECT_EQ(missing.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(missing.status().message()),
              testing::AllOf(HasSubstr("model.safetensors"),
                             HasSubstr("\"v.weight\" is missing"),
                             HasSubstr("[4, 6]")));
  const auto wrong = loader.Linear(LinearKind::kPlain, {Whole("q", 6, 4)});
  EXPECT_THAT(
      std::string(wrong.status().message()),
      testing::AllOf(HasSubstr("model.safetensors"), HasSubstr("\"q.weight\""),
                     HasSubstr("shape is [4, 6], expected [6, 4]")));
  const auto dtype = loader.Linear(LinearKind::kPlain, {Whole("i", 1, 1)});
  EXPECT_THAT(std::string(dtype.status().message()),
              testing::AllOf(HasSubstr("\"i.weight\""), HasSubstr("I32")));
  const auto bias = loader.Linear(LinearKind::kPlain, {Whole("q", 4, 6, true)});
  EXPECT_THAT(std::string(bias.status().message()),
              HasSubstr("\"q.bias\" is missing"));
}

TEST_F(WeightLoaderTest, UnusedTensorsAreNamed) {
  AddF32("q.weight", 4, 6);
  AddVector("q.bias", {1, 2, 3, 4});
  AddVector("model.layers.0.self_attn.rotary_emb.inv_freq", {1});
  AddVector("lm_head.weight", {1});
  WeightLoader loader = Loader();
  ASSERT_TRUE(loader.Linear(LinearKind::kPlain, {Whole("q", 4, 6)}).ok());
  loader.Ignore("lm_head.weight");
  loader.Ignore("not there");
  EXPECT_THAT(loader.UnusedTensorsWarning(),
              testing::AllOf(HasSubstr("1 tensors"), HasSubstr("q.bias")));
}

TEST_F(WeightLoaderTest, VectorsBecomeF32) {
  AddVector("norm.weight", {1, 0.5, -2});
  WeightLoader loader = Loader(DType::kF16);
  const auto values = loader.Vector("norm.weight", 3);
  ASSERT_TRUE(values.ok()) << values.status();
  EXPECT_THAT(*values, ElementsAre(1, 0.5, -2));
  EXPECT_FALSE(loader.Vector("norm.weight", 4).ok());
}

// ------------------------------------------------------------- quantized

// A tensor of GGUF: [rows, cols] in blocks, with the values it stands for.
struct BlockTensor {
  std::vector<uint8_t> blocks;
  std::vector<float> values;
  StoredTensor stored;
};

const std::string& Path() {
  static const std::string* path = new std::string("x.gguf");
  return *path;
}

void MakeBlocks(const std::string& name, QuantFormat format, int64_t rows,
                int64_t cols, BlockTensor* tensor) {
  std::vector<float> values(rows * cols);
  for (size_t i = 0; i < values.size(); ++i) {
    values[i] = static_cast<float>((i * 37 % 101) - 50.0) / 50.0f;
  }
  tensor->blocks.resize(rows * QuantRowBytes(format, cols));
  tensor->values.resize(values.size());
  QuantizeBlocks(format, values.data(), values.size(), tensor->blocks.data());
  DequantizeBlocks(format, tensor->blocks.data(), values.size(),
                   tensor->values.data());
  StoredTensor& stored = tensor->stored;
  stored.name = name;
  stored.dtype = StoredDType::kU8;
  stored.format = format;
  stored.shape = {rows, cols};
  stored.num_elements = rows * cols;
  stored.data = tensor->blocks;
  stored.path = &Path();
}

std::unique_ptr<WeightLoader> BlockLoader(
    std::vector<const BlockTensor*> tensors, WeightLoaderOptions options) {
  std::vector<StoredTensor> stored;
  for (const BlockTensor* tensor : tensors) stored.push_back(tensor->stored);
  auto checkpoint = Checkpoint::FromTensors(Path(), std::move(stored), nullptr);
  EXPECT_TRUE(checkpoint.ok()) << checkpoint.status();
  options.num_threads = 1;
  return std::make_unique<WeightLoader>(*checkpoint, std::move(options));
}

void ExpectPart(const WeightPart& part, const BlockTensor& tensor,
                IndexRange rows, IndexRange cols, float tolerance) {
  ASSERT_EQ(part.rows(), rows.size());
  ASSERT_EQ(part.cols(), cols.size());
  const int64_t stride = tensor.stored.shape[1];
  std::vector<float> row(cols.size());
  for (int64_t r = 0; r < rows.size(); ++r) {
    DequantizeRow(part, r, row.data());
    for (int64_t c = 0; c < cols.size(); ++c) {
      ASSERT_NEAR(row[c],
                  tensor.values[(rows.begin + r) * stride + cols.begin + c],
                  tolerance)
          << r << ", " << c;
    }
  }
}

// Blocks go to the backend as they are, in place; parts of one layer may be of
// several formats.
TEST(BlockWeightTest, PartsAreViews) {
  BlockTensor q, v;
  MakeBlocks("q.weight", QuantFormat::kQ4_K, 6, 512, &q);
  MakeBlocks("v.weight", QuantFormat::kQ6_K, 4, 512, &v);
  const auto loader = BlockLoader({&q, &v}, {});
  const auto spec = loader->Linear(LinearKind::kQkv,
                                   {{"q", 6, 512, {2, 6}, {0, 512}, false},
                                    {"v", 4, 512, {0, 4}, {0, 512}, false}});
  ASSERT_TRUE(spec.ok()) << spec.status();
  EXPECT_EQ(spec->parts[0].format, QuantFormat::kQ4_K);
  EXPECT_EQ(spec->parts[1].format, QuantFormat::kQ6_K);
  EXPECT_EQ(spec->parts[0].data.data, q.blocks.data() + 2 * 288);
  ExpectPart(spec->parts[0], q, {2, 6}, {0, 512}, 0.0f);
  ExpectPart(spec->parts[1], v, {0, 4}, {0, 512}, 0.0f);
  EXPECT_EQ(loader->num_parameters(), 10 * 512);
  EXPECT_TRUE(loader->Notes().empty());
}

// Columns are cut between blocks; elsewhere the part becomes bf16.
TEST(BlockWeightTest, ColumnsAreCutBetweenBlocks) {
  BlockTensor down;
  MakeBlocks("down.weight", QuantFormat::kQ8_0, 3, 128, &down);
  const auto loader = BlockLoader({&down}, {});
  const auto cut = loader->Linear(LinearKind::kPlain,
                                  {{"down", 3, 128, {0, 3}, {64, 96}, false}});
  ASSERT_TRUE(cut.ok()) << cut.status();
  EXPECT_EQ(cut->parts[0].format, QuantFormat::kQ8_0);
  ExpectPart(cut->parts[0], down, {0, 3}, {64, 96}, 0.0f);
  EXPECT_TRUE(loader->Notes().empty());
  const auto dense = loader->Linear(
      LinearKind::kPlain, {{"down", 3, 128, {1, 3}, {48, 80}, false}});
  ASSERT_TRUE(dense.ok()) << dense.status();
  EXPECT_EQ(dense->parts[0].format, QuantFormat::kDense);
  EXPECT_EQ(dense->parts[0].data.dtype, DType::kBF16);
  ExpectPart(dense->parts[0], down, {1, 3}, {48, 80}, 0x1p-8f);
  EXPECT_THAT(loader->Notes(),
              ElementsAre(HasSubstr("1 matrices of q8_0 are computed as bf16: "
                                    "they are cut where")));
  // The whole matrix counts once.
  EXPECT_EQ(loader->num_parameters(), 3 * 128);
}

TEST(BlockWeightTest, IsDequantizedWhereTheBackendHasNoKernels) {
  BlockTensor q;
  MakeBlocks("q.weight", QuantFormat::kQ5_K, 2, 256, &q);
  WeightLoaderOptions options;
  options.supports = [](DType, QuantFormat format) {
    return format == QuantFormat::kDense;
  };
  for (const auto dtype :
       {std::optional<DType>(), std::optional(DType::kF32)}) {
    options.dtype = dtype;
    const auto loader = BlockLoader({&q}, options);
    EXPECT_EQ(loader->ExpectedBytes(), 512 * (dtype ? 4 : 2));
    EXPECT_EQ(*loader->PackedDType("q.weight"), dtype.value_or(DType::kBF16));
    const auto spec = loader->Linear(LinearKind::kPlain,
                                     {{"q", 2, 256, {0, 2}, {0, 256}, false}});
    ASSERT_TRUE(spec.ok()) << spec.status();
    EXPECT_EQ(spec->parts[0].data.dtype, dtype.value_or(DType::kBF16));
    ExpectPart(spec->parts[0], q, {0, 2}, {0, 256}, dtype ? 0.0f : 0x1p-8f);
    EXPECT_THAT(loader->Notes(),
                ElementsAre(HasSubstr("1 matrices of q5_k are computed as ")));
  }
  options.supports = nullptr;
  EXPECT_EQ(BlockLoader({&q}, options)->ExpectedBytes(), 2 * 176);
}

TEST(BlockWeightTest, ColumnsMustFitTheBlocks) {
  BlockTensor q;
  MakeBlocks("q.weight", QuantFormat::kQ8_0, 2, 64, &q);
  q.stored.shape = {4, 32};
  const auto loader = BlockLoader({&q}, {});
  EXPECT_TRUE(
      loader->Linear(LinearKind::kPlain, {{"q", 4, 32, {0, 4}, {0, 32}, false}})
          .ok());
  q.stored.shape = {8, 16};
  EXPECT_THAT(
      std::string(BlockLoader({&q}, {})
                      ->Linear(LinearKind::kPlain,
                               {{"q", 8, 16, {0, 8}, {0, 16}, false}})
                      .status()
                      .message()),
      HasSubstr("\"q.weight\": 16 columns are no multiple of the 32 of q8_0"));
}

// A scale for each of the matrices that a fused one consists of.
TEST_F(WeightLoaderTest, Fp8ScalesOfFusedMatrices) {
  AddRaw("qkv.weight", "F8_E4M3", "4,2",
         std::string("\x38\x38\x38\x38\x38\x38\x38\x38", 8));
  const float scales[] = {1.0f, 2.0f, 3.0f};
  AddRaw("qkv.weight_scale", "F32", "3",
         std::string(reinterpret_cast<const char*>(scales), 12));
  const float input_scale = 0.5f;
  AddRaw("qkv.input_scale", "F32", "",
         std::string(reinterpret_cast<const char*>(&input_scale), 4));
  WeightLoader loader = Loader();
  const auto spec =
      loader.Linear(LinearKind::kQkv, {{"qkv", 4, 2, {0, 2}, {0, 2}, false},
                                       {"qkv", 4, 2, {2, 3}, {0, 2}, false},
                                       {"qkv", 4, 2, {3, 4}, {0, 2}, false}});
  ASSERT_TRUE(spec.ok()) << spec.status();
  for (int i = 0; i < 3; ++i) {
    float row[2];
    DequantizeRow(spec->parts[i], 0, row);
    EXPECT_EQ(row[0], scales[i]);
    EXPECT_EQ(spec->parts[i].input_scale, 0.5f);
  }
  EXPECT_EQ(loader.num_parameters(), 8);
  EXPECT_EQ(loader.UnusedTensorsWarning(), "");
}

TEST_F(WeightLoaderTest, QuantizedErrorsNameTheTensor) {
  const std::string four(4, '\0');
  AddRaw("a.weight", "F8_E4M3", "2,2", four);
  AddRaw("b.weight", "F8_E4M3", "2,2", four);
  AddRaw("b.weight_scale", "F32", "1,1,1,1", four);
  AddRaw("c.weight", "F8_E4M3", "2,2", four);
  AddRaw("c.weight_scale", "F16", "2", four);
  AddRaw("c.input_scale", "F32", "1", four);
  AddRaw("d.weight", "F8_E4M3", "8,2", four + four + four + four);
  AddRaw("d.weight_scale", "F32", "3", four + four + four);
  AddRaw("e.qweight", "I32", "1,1", four);
  AddRaw("f.qweight", "I32", "1,1", four);
  AddRaw("f.qzeros", "I32", "1,1", four);
  AddRaw("g.qweight", "I32", "1,1", four);
  AddRaw("g.qzeros", "I32", "1,1", four);
  AddRaw("g.scales", "F32", "1,2", four + four);
  AddRaw("h.qweight", "I32", "1,1", four);
  AddRaw("h.qzeros", "I32", "2,1", four + four);
  AddRaw("h.scales", "F32", "1,1", four);
  AddRaw("i.qweight", "I32", "3,1", four + four + four);
  AddRaw("i.qzeros", "I32", "1,1", four);
  AddRaw("i.scales", "F32", "1,1", four);
  AddRaw("j.qweight", "I32", "1,1", four);
  AddRaw("j.qzeros", "I32", "1,1", four);
  AddRaw("j.scales", "F32", "1,1", four);
  AddRaw("j.g_idx", "I32", "8", std::string(28, '\0') + std::string(4, '\1'));
  AddRaw("k.weight_packed", "I32", "1,1", four);
  WeightLoader loader = Loader();
  struct Case {
    const char* name;
    int64_t rows, cols;
    const char* message;
  };
  for (const Case& c : {
           Case{"a", 2, 2, "\"a.weight_scale\" is missing"},
           Case{"b", 3, 2, "\"b.weight\": shape is [2, 2], expected [3, 2]"},
           Case{"c", 2, 2, "\"c.input_scale\": 0 is not a scale"},
           Case{"d", 8, 2, "\"d.weight_scale\": shape [3] is none of"},
           Case{"e", 1, 8, "\"e.qzeros\" is missing"},
           Case{"f", 1, 8, "\"f.scales\" is missing"},
           Case{"g", 1, 8, "\"g.scales\": shape [1, 2] does not hold"},
           Case{"h", 1, 8, "\"h.qzeros\": shape is [2, 1], expected [1, 1]"},
           Case{"i", 1, 8, "\"i.qweight\": shape [3, 1] does not hold [1, 8]"},
           Case{"j", 1, 8, "\"j.g_idx\": column 7 is in group 16843009 of 1"},
           Case{"k", 1, 8, "\"k.weight_scale\" is missing"},
       }) {
    const auto spec =
        loader.Linear(LinearKind::kPlain, {Whole(c.name, c.rows, c.cols)});
    EXPECT_EQ(spec.status().code(), absl::StatusCode::kInvalidArgument)
        << c.name;
    EXPECT_THAT(
        std::string(spec.status().message()),
        testing::AllOf(HasSubstr("model.safetensors"), HasSubstr(c.message)));
  }
}

// Writers that give every layer a bias, of zeros where the model has none.
TEST_F(WeightLoaderTest, BiasOfZerosIsNoUnusedTensor) {
  for (const char* name : {"a", "b"}) {
    AddRaw(absl::StrCat(name, ".qweight"), "I32", "1,1", std::string(4, '\0'));
    AddRaw(absl::StrCat(name, ".qzeros"), "I32", "1,1", std::string(4, '\0'));
    AddRaw(absl::StrCat(name, ".scales"), "F32", "1,1", std::string(4, '\0'));
  }
  AddVector("a.bias", {0});
  AddVector("b.bias", {1});
  WeightLoader loader = Loader();
  ASSERT_TRUE(loader.Linear(LinearKind::kPlain, {Whole("a", 1, 8)}).ok());
  ASSERT_TRUE(loader.Linear(LinearKind::kPlain, {Whole("b", 1, 8)}).ok());
  EXPECT_THAT(loader.UnusedTensorsWarning(),
              testing::AllOf(HasSubstr("1 tensors"), HasSubstr("b.bias")));
}

TEST_F(WeightLoaderTest, QuantizesAtLoad) {
  AddF32("q.weight", 4, 64);
  AddF32("odd.weight", 4, 6);
  AddF32("table.weight", 4, 64);
  const WeightLoader dense = Loader();
  auto checkpoint = Checkpoint::Open(directory_.string());
  ASSERT_TRUE(checkpoint.ok());
  WeightLoaderOptions options;
  options.num_threads = 2;
  options.dtype = DType::kBF16;
  options.quantization = QuantizationScheme{.format = QuantFormat::kQ4_0};
  WeightLoader loader(*checkpoint, options);
  const auto q = loader.Linear(LinearKind::kPlain, {Whole("q", 4, 64)});
  ASSERT_TRUE(q.ok()) << q.status();
  EXPECT_EQ(q->parts[0].format, QuantFormat::kQ4_0);
  // The stored values are encoded, not their bf16.
  std::vector<float> values(64);
  for (int64_t c = 0; c < 64; ++c) values[c] = Element(1, c);
  std::vector<uint8_t> expected(QuantRowBytes(QuantFormat::kQ4_0, 64));
  QuantizeBlocks(QuantFormat::kQ4_0, values.data(), 64, expected.data());
  EXPECT_EQ(std::memcmp(q->parts[0].data.row<uint8_t>(1), expected.data(),
                        expected.size()),
            0);
  const auto vocab = loader.Linear(LinearKind::kVocab, {Whole("q", 4, 64)});
  EXPECT_EQ(vocab->parts[0].format, QuantFormat::kQ8_0);
  EXPECT_TRUE(loader.Notes().empty());
  const auto odd = loader.Linear(LinearKind::kPlain, {Whole("odd", 4, 6)});
  EXPECT_EQ(odd->parts[0].format, QuantFormat::kDense);
  EXPECT_EQ(odd->parts[0].data.dtype, DType::kBF16);
  EXPECT_THAT(loader.Notes(),
              ElementsAre(HasSubstr("1 matrices are not quantized to q4_0")));
  LinearSource table = Whole("table", 4, 64);
  table.keeps_precision = true;
  EXPECT_EQ(loader.Linear(LinearKind::kVocab, {table})->parts[0].format,
            QuantFormat::kDense);
}

TEST_F(WeightLoaderTest, QuantizationNamesWhatIsNotFinite) {
  AddRaw("q.weight", "BF16", "1,32", std::string(64, '\xff'));
  const WeightLoader dense = Loader();
  WeightLoaderOptions options;
  options.quantization = QuantizationScheme{.format = QuantFormat::kQ8_0};
  WeightLoader loader(*Checkpoint::Open(directory_.string()), options);
  EXPECT_THAT(std::string(loader.Linear(LinearKind::kPlain, {Whole("q", 1, 32)})
                              .status()
                              .message()),
              HasSubstr("\"q.weight\": row 0 has a value that is not finite"));
}

}  // namespace
}  // namespace quire
