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

}  // namespace
}  // namespace quire
