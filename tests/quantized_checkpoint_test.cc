// Quantized checkpoints of Hugging Face layouts (tools/goldens): the matrices
// bit by bit, whole and cut for ranks, and the model's answers, also those of a
// GPU (test_device.h).
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <memory>
#include <sstream>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/base/random.h"
#include "engine/base/status.h"
#include "engine/model/model_config.h"
#include "engine/weights/weight_loader.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/quant_codec.h"
#include "kernels/reference.h"
#include "nlohmann/json.hpp"
#include "tests/golden.h"
#include "tests/model_harness.h"
#include "tests/test_device.h"

namespace quire {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using testing::HasSubstr;

constexpr char kRoot[] = "tests/testdata/quantized/";

std::string ReadFile(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

struct Module {
  std::string name;
  int64_t rows = 0;
  int64_t cols = 0;
  std::vector<float> values;
};

std::vector<Module> ReadDequantized(const std::string& directory) {
  const std::string path = directory + "/dequantized.safetensors";
  const std::string file = ReadFile(path);
  std::vector<StoredTensor> tensors;
  const absl::Status status = ParseSafetensors(
      absl::MakeConstSpan(reinterpret_cast<const uint8_t*>(file.data()),
                          file.size()),
      &path, tensors);
  EXPECT_TRUE(status.ok()) << status;
  std::vector<Module> modules;
  for (const StoredTensor& tensor : tensors) {
    Module module;
    module.name = tensor.name.substr(0, tensor.name.size() - 7);
    module.rows = tensor.shape[0];
    module.cols = tensor.shape[1];
    module.values.resize(tensor.num_elements);
    std::copy(tensor.data.begin(), tensor.data.end(),
              reinterpret_cast<uint8_t*>(module.values.data()));
    modules.push_back(std::move(module));
  }
  return modules;
}

class QuantizedCheckpointTest : public testing::TestWithParam<const char*> {
 protected:
  absl::StatusOr<std::unique_ptr<WeightLoader>> Loader(
      bool is_supported, std::optional<DType> dtype = std::nullopt) {
    QUIRE_ASSIGN_OR_RETURN(const ModelDirectoryConfig config,
                           ReadModelDirectoryConfig(directory_));
    QUIRE_ASSIGN_OR_RETURN(auto checkpoint, Checkpoint::Open(directory_));
    WeightLoaderOptions options;
    options.dtype = dtype;
    options.num_threads = 1;
    options.stored = config.model.quantization;
    options.supports = [is_supported](DType, QuantFormat format) {
      return is_supported || format == QuantFormat::kDense;
    };
    return std::make_unique<WeightLoader>(checkpoint, std::move(options));
  }

  // The part of the module that a rank with these rows and columns gets.
  void ExpectValues(const Module& module, IndexRange rows, IndexRange cols,
                    bool is_supported) {
    const auto loader = Loader(is_supported, DType::kF32);
    ASSERT_TRUE(loader.ok()) << loader.status();
    const auto spec = (*loader)->Linear(
        LinearKind::kPlain,
        {{module.name, module.rows, module.cols, rows, cols, false}});
    ASSERT_TRUE(spec.ok()) << spec.status();
    const WeightPart& part = spec->parts[0];
    ASSERT_EQ(part.rows(), rows.size());
    ASSERT_EQ(part.cols(), cols.size());
    if (!is_supported) {
      EXPECT_EQ(part.format, QuantFormat::kDense);
      EXPECT_EQ((*loader)->Notes().empty(),
                part.data.dtype == DType::kF32 && WasDense());
    }
    EXPECT_EQ((*loader)->num_parameters(), module.rows * module.cols);
    std::vector<float> row(cols.size());
    for (int64_t r = 0; r < rows.size(); ++r) {
      DequantizeRow(part, r, row.data());
      for (int64_t c = 0; c < cols.size(); ++c) {
        const float expected =
            module.values[(rows.begin + r) * module.cols + cols.begin + c];
        ASSERT_EQ(std::bit_cast<uint32_t>(row[c] + 0.0f),
                  std::bit_cast<uint32_t>(expected + 0.0f))
            << module.name << " " << r << ", " << c;
      }
    }
  }

  // Eight bits are dense from the start.
  bool WasDense() const {
    return directory_.find("8bit") != std::string::npos ||
           directory_.find("int8") != std::string::npos;
  }

  std::string directory_ = absl::StrCat(kRoot, GetParam());
};

TEST_P(QuantizedCheckpointTest, MatricesBitByBit) {
  const std::vector<Module> modules = ReadDequantized(directory_);
  ASSERT_FALSE(modules.empty());
  for (const Module& module : modules) {
    const IndexRange rows = {0, module.rows};
    const IndexRange cols = {0, module.cols};
    for (const bool is_supported : {true, false}) {
      ExpectValues(module, rows, cols, is_supported);
      // As two ranks have it; and at places where nothing can be cut.
      ExpectValues(module, {0, module.rows / 2}, cols, is_supported);
      ExpectValues(module, {module.rows / 2, module.rows}, cols, is_supported);
      ExpectValues(module, rows, {module.cols / 2, module.cols}, is_supported);
      ExpectValues(module, {3, 20}, cols, is_supported);
      ExpectValues(module, rows, {7, 50}, is_supported);
    }
  }
}

// The format reaches the backend where that can be.
TEST_P(QuantizedCheckpointTest, KeepsTheFormat) {
  const std::vector<Module> modules = ReadDequantized(directory_);
  const auto loader = Loader(true);
  ASSERT_TRUE(loader.ok()) << loader.status();
  for (const Module& module : modules) {
    const auto spec = (*loader)->Linear(LinearKind::kPlain, {{module.name,
                                                              module.rows,
                                                              module.cols,
                                                              {0, module.rows},
                                                              {0, module.cols},
                                                              false}});
    ASSERT_TRUE(spec.ok()) << spec.status();
    const QuantFormat expected = WasDense() ? QuantFormat::kDense
                                 : directory_.find("fp8") != std::string::npos
                                     ? QuantFormat::kFp8
                                     : QuantFormat::kInt4;
    EXPECT_EQ(spec->parts[0].format, expected);
    if (directory_.find("fp8_tensor") != std::string::npos) {
      EXPECT_EQ(spec->parts[0].input_scale, 0.03125f);
    }
    EXPECT_EQ(spec->parts[0].column_order.empty(),
              directory_.find("act_order") == std::string::npos &&
                  directory_.find("phi3") == std::string::npos);
  }
  EXPECT_TRUE((*loader)->Notes().empty());
}

struct Errors {
  double divergence = 0.0;  // KL from the golden, in nats, at worst.
  // KL from the model before quantization, mean over the positions.
  double from_original = 0.0;
};

absl::StatusOr<Errors> Compare(const std::string& directory,
                               const ModelHarness::Options& options) {
  QUIRE_ASSIGN_OR_RETURN(const auto harness,
                         ModelHarness::Create(directory, options));
  const json golden = json::parse(ReadFile(directory + "/golden.json"));
  TestSequence sequence =
      harness->MakeSequence(0, golden["prompt"], harness->vocab_size());
  Errors errors;
  for (const json& entry : golden["logprobs"]) {
    const int end = entry["position"].get<int>() + 1;
    QUIRE_RETURN_IF_ERROR(
        harness->Step({{&sequence, end - sequence.num_computed_tokens, true}}));
    const std::vector<float> expected = entry["values"];
    const std::vector<float> original = entry["original"];
    const std::vector<float> found = LogprobsById(sequence.outputs.back());
    double divergence = 0.0;
    for (size_t id = 0; id < found.size(); ++id) {
      divergence += std::exp(expected[id]) * (expected[id] - found[id]);
      errors.from_original += std::exp(original[id]) *
                              (original[id] - found[id]) /
                              golden["logprobs"].size();
    }
    if (!(divergence <= errors.divergence)) errors.divergence = divergence;
  }
  return errors;
}

// Of the reference: the CPU rounds x' to 8 bits (QualityOnTheCpu). Or of a GPU,
// within what its rounding points explain.
TEST_P(QuantizedCheckpointTest, LogprobsOfTheOriginal) {
  ModelHarness::Options options;
  options.make_backend = [] { return std::make_unique<ReferenceBackend>(); };
  if (TestsRunOnCuda()) options = OnTestDevice();
  const json golden = {
      {"cases", json::array({ReadJson(directory_ + "/golden.json")})}};
  const auto harness = ModelHarness::Create(directory_, options);
  ASSERT_TRUE(harness.ok()) << harness.status();
  const auto error =
      MaxLogprobError(harness->get(), golden, NumReportedLogprobs(**harness));
  ASSERT_TRUE(error.ok()) << error.status();
  const auto allowed = AllowedLogprobError(directory_, golden);
  ASSERT_TRUE(allowed.ok()) << allowed.status();
  EXPECT_LE(*error, *allowed);
  std::printf("error of a log-probability %.2g, allowed %.2g\n", *error,
              *allowed);
}

// As served: what the CPU rounds must not add much to what quantization itself
// costs (up to 0.4 nats: the weights are random). bf16 alone costs 0.002.
TEST_P(QuantizedCheckpointTest, QualityOnTheCpu) {
  ModelHarness::Options options;
  options.dtype = std::nullopt;
  options.kv_cache_dtype = DType::kBF16;
  const auto errors = Compare(directory_, options);
  ASSERT_TRUE(errors.ok()) << errors.status();
  EXPECT_LE(errors->divergence, 0.01);
  EXPECT_LE(errors->from_original, 0.5);
}

// The check of memory before a load is about what the CPU then takes, in every
// layout and for those that become bf16.
TEST_P(QuantizedCheckpointTest, ExpectedMemoryIsWhatIsPacked) {
  ModelHarness::Options options;
  options.dtype = std::nullopt;
  const auto harness = ModelHarness::Create(directory_, options);
  ASSERT_TRUE(harness.ok()) << harness.status();
  const LoadedModel& model = (*harness)->model();
  const int64_t rope_bytes = int64_t{model.shape.max_model_len} *
                             model.config.layers[0].head_dim * sizeof(float);
  const auto loader = Loader(true);
  ASSERT_TRUE(loader.ok()) << loader.status();
  const double ratio =
      static_cast<double>(model.memory.weights_bytes - rope_bytes) /
      (*loader)->ExpectedBytes();
  EXPECT_GE(ratio, 0.9);
  EXPECT_LE(ratio, 1.1);
}

INSTANTIATE_TEST_SUITE_P(
    All, QuantizedCheckpointTest,
    testing::Values("gptq", "gptq_act_order", "gptq_v2_8bit", "gptq_phi3",
                    "awq", "fp8_tensor", "fp8_block", "compressed_fp8",
                    "compressed_int4", "compressed_int4_act_order",
                    "compressed_int8"),
    [](const auto& info) { return std::string(info.param); });

// ------------------------------------------------ what is said to be dense

struct DenseModulesCase {
  const char* checkpoint;
  const char* field;
  json entries;
  const char* error;  // Empty: it loads.
};

// A quantized tensor that the configuration says is dense is refused by name; a
// dense one that it does not name is what it is.
TEST(DenseModulesTest, TheConfigurationMustNotContradictTheTensors) {
  const DenseModulesCase cases[] = {
      {"fp8_tensor", "ignored_layers", json::array(), ""},
      {"fp8_tensor",
       "ignored_layers",
       {"lm_head", "model.layers.0.mlp.up_proj"},
       "tensor \"model.layers.0.mlp.up_proj.weight\" is quantized, but "
       "quantization_config.ignored_layers names it "
       "(\"model.layers.0.mlp.up_proj\") as one that is not"},
      {"fp8_block", "modules_to_not_convert", {"lm_head", "mlp.up"}, ""},
      {"fp8_block",
       "modules_to_not_convert",
       {"lm_head", "mlp"},
       "quantization_config.modules_to_not_convert names it (\"mlp\")"},
      {"awq",
       "modules_to_not_convert",
       {"layers.1"},
       "tensor \"model.layers.1.self_attn.q_proj.qweight\" is quantized"},
      {"compressed_int4",
       "ignore",
       {"lm_head", "re:.*down_proj$"},
       "tensor \"model.layers.0.mlp.down_proj.weight_packed\" is quantized"},
      {"compressed_int8",
       "ignore",
       {"re:model.layers.0.*k_proj"},
       "tensor \"model.layers.0.self_attn.k_proj.weight\" is quantized"},
      {"compressed_fp8", "ignore", {"re:vision.*", "mlp", "Linear"}, ""},
  };
  for (const DenseModulesCase& c : cases) {
    const fs::path copy = fs::path(testing::TempDir()) /
                          absl::StrCat("dense_modules_", ::getpid());
    fs::create_directories(copy);
    const std::string source = absl::StrCat(kRoot, c.checkpoint);
    json config = json::parse(ReadFile(source + "/config.json"));
    config["quantization_config"][c.field] = c.entries;
    std::ofstream(copy / "config.json") << config;
    std::ofstream(copy / "model.safetensors", std::ios::binary)
        << ReadFile(source + "/model.safetensors");
    const absl::Status status =
        ModelHarness::Create(copy.string(), {}).status();
    if (*c.error == '\0') {
      EXPECT_TRUE(status.ok()) << c.checkpoint << ": " << status;
    } else {
      EXPECT_THAT(std::string(status.message()), HasSubstr(c.error));
      EXPECT_THAT(std::string(status.message()), HasSubstr(copy.string()));
    }
    fs::remove_all(copy);
  }
}

// ------------------------------------------------------- quantized at load

struct FormatQuality {
  QuantFormat format;
  // KL divergence from the dense model, in nats, mean of 64 positions: what was
  // measured and a tenth. The weights are random, so the model is far more
  // sensitive than a trained one; its 128 columns let no block of 256 fit, and
  // the K formats stand for what takes their place.
  double max_divergence;
};

class QuantizeAtLoadTest : public testing::TestWithParam<FormatQuality> {};

absl::StatusOr<std::unique_ptr<ModelHarness>> LoadGolden(
    std::optional<QuantFormat> format) {
  ModelHarness::Options options;
  options.make_backend = [] { return std::make_unique<ReferenceBackend>(); };
  if (format) options.quantization = QuantizationScheme{.format = *format};
  return ModelHarness::Create("tests/testdata/goldens/llama", options);
}

TEST_P(QuantizeAtLoadTest, AnswersStayNear) {
  const auto dense = LoadGolden(std::nullopt);
  const auto quantized = LoadGolden(GetParam().format);
  ASSERT_TRUE(dense.ok()) << dense.status();
  ASSERT_TRUE(quantized.ok()) << quantized.status();
  const LoadedModel& model = (*quantized)->model();
  EXPECT_EQ(model.quantization, QuantFormatName(GetParam().format));
  EXPECT_EQ(model.num_parameters, (*dense)->model().num_parameters);
  SimulationRandom random(3);
  std::vector<int32_t> prompt(64);
  for (int32_t& id : prompt) {
    id = static_cast<int32_t>(random.Below((*dense)->vocab_size()));
  }
  TestSequence expected =
      (*dense)->MakeSequence(0, prompt, (*dense)->vocab_size());
  TestSequence found =
      (*quantized)->MakeSequence(0, prompt, (*dense)->vocab_size());
  double divergence = 0.0;
  for (size_t i = 0; i < prompt.size(); ++i) {
    ASSERT_TRUE((*dense)->Step({{&expected, 1, true}}).ok());
    ASSERT_TRUE((*quantized)->Step({{&found, 1, true}}).ok());
    const std::vector<float> p = LogprobsById(expected.outputs.back());
    const std::vector<float> q = LogprobsById(found.outputs.back());
    for (size_t id = 0; id < p.size(); ++id) {
      divergence += std::exp(p[id]) * (p[id] - q[id]) / prompt.size();
    }
  }
  EXPECT_GT(divergence, 0.0);  // It was quantized.
  EXPECT_LE(divergence, GetParam().max_divergence);
}

INSTANTIATE_TEST_SUITE_P(
    All, QuantizeAtLoadTest,
    testing::Values(FormatQuality{QuantFormat::kQ8_0, 0.0037},
                    FormatQuality{QuantFormat::kQ4_0, 0.55},
                    FormatQuality{QuantFormat::kQ4_1, 0.54},
                    FormatQuality{QuantFormat::kQ5_0, 0.168},
                    FormatQuality{QuantFormat::kQ5_1, 0.131},
                    FormatQuality{QuantFormat::kQ4_K, 0.185},
                    FormatQuality{QuantFormat::kQ5_K, 0.122},
                    FormatQuality{QuantFormat::kQ6_K, 0.0069},
                    FormatQuality{QuantFormat::kIQ4_NL, 0.484},
                    FormatQuality{QuantFormat::kMXFP4, 0.81},
                    FormatQuality{QuantFormat::kFp8, 0.0683},
                    FormatQuality{QuantFormat::kInt4, 0.7}),
    [](const auto& info) {
      return std::string(QuantFormatName(info.param.format));
    });

TEST(QuantizeAtLoad, RefusesWhatIsQuantizedAlready) {
  LoadOptions options;
  options.quantization = QuantizationScheme{.format = QuantFormat::kQ4_K};
  const auto status = LoadModel(absl::StrCat(kRoot, "gptq"), options,
                                std::make_unique<ReferenceBackend>())
                          .status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("--quantization q4_k: tests/testdata/quantized/gptq is "
                        "quantized already (gptq)"));
}

TEST(QuantizeAtLoad, TakesWhatIsSoAlready) {
  const auto load = [](const char* name, QuantFormat format) {
    LoadOptions options;
    options.quantization = QuantizationScheme{.format = format};
    return LoadModel(absl::StrCat(kRoot, name), options,
                     std::make_unique<ReferenceBackend>());
  };
  EXPECT_TRUE(load("fp8_tensor", QuantFormat::kFp8).ok());
  // The same under the name of a layout that holds other formats, too.
  const auto compressed = load("compressed_fp8", QuantFormat::kFp8);
  ASSERT_TRUE(compressed.ok()) << compressed.status();
  EXPECT_EQ(compressed->quantization, "compressed-tensors");
  for (const char* name : {"compressed_int8", "compressed_int4"}) {
    EXPECT_THAT(std::string(load(name, QuantFormat::kFp8).status().message()),
                HasSubstr("is quantized already (compressed-tensors)"));
  }
  EXPECT_FALSE(load("compressed_fp8", QuantFormat::kQ8_0).ok());
}

TEST(QuantizeAtLoad, SchemesOfMatrices) {
  const auto format = [](QuantFormat wanted, LinearKind kind, int64_t cols) {
    const auto scheme = SchemeForMatrix({.format = wanted}, kind, cols);
    return scheme ? scheme->format : QuantFormat::kDense;
  };
  using F = QuantFormat;
  constexpr auto kPlain = LinearKind::kPlain;
  constexpr auto kVocab = LinearKind::kVocab;
  EXPECT_EQ(format(F::kQ4_K, kPlain, 512), F::kQ4_K);
  EXPECT_EQ(format(F::kQ4_K, kPlain, 896), F::kQ5_0);
  EXPECT_EQ(format(F::kQ5_K, kPlain, 896), F::kQ5_1);
  EXPECT_EQ(format(F::kQ6_K, kPlain, 896), F::kQ8_0);
  EXPECT_EQ(format(F::kQ3_K, kPlain, 896), F::kIQ4_NL);
  EXPECT_EQ(format(F::kQ4_K, kPlain, 40), F::kDense);
  EXPECT_EQ(format(F::kQ4_0, kVocab, 512), F::kQ6_K);
  EXPECT_EQ(format(F::kQ4_0, kVocab, 896), F::kQ8_0);
  EXPECT_EQ(format(F::kQ8_0, kVocab, 512), F::kQ8_0);
  EXPECT_EQ(format(F::kFp8, kPlain, 7), F::kFp8);
  EXPECT_EQ(format(F::kFp8, kVocab, 512), F::kDense);
  EXPECT_EQ(format(F::kInt4, kPlain, 96), F::kInt4);
  EXPECT_EQ(SchemeForMatrix({.format = F::kInt4}, kPlain, 96)->group_size, 32);
  EXPECT_EQ(format(F::kInt4, kPlain, 40), F::kDense);
}

}  // namespace
}  // namespace quire
