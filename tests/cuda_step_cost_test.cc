// What kernels/cuda/step_cost.h says of a step, against what a step of a model
// on an emulated GPU does: kernels launched, and bytes of packed weights.
#include <cstdint>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/device_emulated.h"
#include "kernels/cuda/step_cost.h"
#include "kernels/quant_codec.h"
#include "tests/model_harness.h"

namespace quire {
namespace {

// Beside what is counted: the start of the step, and sampling.
constexpr int64_t kOtherKernels = 1 + 6;

struct Format {
  const char* name;
  std::optional<QuantizationScheme> scheme;
};

const Format kFormats[] = {
    {"bf16", std::nullopt},
    {"fp8", QuantizationScheme{.format = QuantFormat::kFp8}},
    {"int4",
     QuantizationScheme{.format = QuantFormat::kInt4, .group_size = 32}},
    {"symmetric int4", QuantizationScheme{.format = QuantFormat::kInt4,
                                          .group_size = 128,
                                          .is_symmetric = true}}};

struct ModelCase {
  const char* golden;
  bool has_branch_norms;
  bool is_tied;     // The head is the embedding.
  int64_t num_f32;  // Weights of norms, and biases.
};

cuda::CostModel CostModelOf(const ModelConfig& config, const ModelCase& c,
                            const Format& format, int max_model_len) {
  cuda::CostModel model;
  const LayerConfig& layer = config.layers[0];
  model.num_layers = static_cast<int64_t>(config.layers.size());
  model.hidden_size = config.hidden_size;
  model.num_heads = layer.num_heads;
  model.num_kv_heads = layer.num_kv_heads;
  model.head_dim = layer.head_dim;
  model.intermediate_size = layer.intermediate_size;
  model.vocab_size = config.vocab_size;
  model.has_branch_norms = c.has_branch_norms;
  model.splits_keys = max_model_len > 256;
  if (!format.scheme.has_value()) return model;
  if (format.scheme->format == QuantFormat::kInt4) {
    // A scale for each group, and a zero point if it is not always the same.
    const int group_bits = format.scheme->is_symmetric ? 16 : 16 + 8;
    model.bits_per_weight =
        4 + static_cast<double>(group_bits) / format.scheme->group_size;
    return model;
  }
  // A scale in f32 for each row.
  model.rounds_to_fp8 = true;
  const int64_t num_rows =
      model.num_layers *
      ((model.num_heads + 2 * model.num_kv_heads) * model.head_dim +
       2 * model.hidden_size + 2 * model.intermediate_size);
  model.bits_per_weight = 8 + 32.0 * static_cast<double>(num_rows) /
                                  static_cast<double>(model.num_weights());
  return model;
}

class CudaStepCostTest : public testing::TestWithParam<ModelCase> {
 protected:
  void Load(const Format& format, int max_model_len) {
    ModelHarness::Options options;
    options.dtype = options.kv_cache_dtype = DType::kBF16;
    options.kv_cache_memory_bytes = 64 << 20;
    options.max_num_seqs = 16;
    options.max_num_batched_tokens = 80;
    options.max_model_len = max_model_len;
    options.quantization = format.scheme;
    options.make_backend = [this] {
      auto made = std::move(CudaBackend::Create({})).value();
      backend_ = made.get();
      return made;
    };
    auto harness = ModelHarness::Create(
        absl::StrCat("tests/testdata/goldens/", GetParam().golden), options);
    ASSERT_TRUE(harness.ok()) << harness.status();
    harness_ = *std::move(harness);
    model_ = CostModelOf(harness_->model().config, GetParam(), format,
                         max_model_len);
  }

  void ExpectPlanned(const char* what, const std::vector<TestRow>& rows) {
    std::vector<cuda::CostRow> cost_rows;
    for (const TestRow& row : rows) {
      cost_rows.push_back(
          {row.num_tokens, row.sequence->num_computed_tokens + row.num_tokens});
    }
    const int64_t before = cuda::NumLaunchesOf(backend_->device());
    ASSERT_TRUE(harness_->Step(rows).ok());
    const cuda::StepCost cost = cuda::PlanStepCost(
        model_, cost_rows, static_cast<int64_t>(rows.size()));
    EXPECT_EQ(cuda::NumLaunchesOf(backend_->device()) - before,
              cost.num_kernels + kOtherKernels)
        << what;
  }

  std::unique_ptr<ModelHarness> harness_;
  CudaBackend* backend_ = nullptr;
  cuda::CostModel model_;
};

TEST_P(CudaStepCostTest, KernelsAreWhatAStepLaunches) {
  for (const Format& format : kFormats) {
    for (const int max_model_len : {192, 600}) {
      SCOPED_TRACE(absl::StrCat(format.name, " ", max_model_len));
      ASSERT_NO_FATAL_FAILURE(Load(format, max_model_len));
      std::vector<TestSequence> sequences;
      for (int slot = 0; slot < 9; ++slot) {
        sequences.push_back(harness_->MakeSequence(
            slot, std::vector<int32_t>(slot == 0 ? 70 : 2, 5), 0));
      }
      ExpectPlanned("prefill", {{&sequences[0], 70}});
      ExpectPlanned("decode", {{&sequences[0], 1}});
      std::vector<TestRow> rows;
      for (int slot = 1; slot < 9; ++slot)
        rows.push_back({&sequences[slot], 2});
      ExpectPlanned("short prompts", rows);
      for (TestRow& row : rows) row.num_tokens = 1;
      ExpectPlanned("decode of eight", rows);
      rows.push_back({&sequences[0], 1});
      ExpectPlanned("decode of nine", rows);
      TestSequence late =
          harness_->MakeSequence(9, std::vector<int32_t>(20, 7), 0);
      ExpectPlanned("decode and prefill", {{&sequences[1], 1}, {&late, 20}});
    }
  }
}

TEST_P(CudaStepCostTest, WeightBytesAreWhatIsPacked) {
  constexpr int kMaxModelLen = 192;
  for (const Format& format : kFormats) {
    SCOPED_TRACE(format.name);
    ASSERT_NO_FATAL_FAILURE(Load(format, kMaxModelLen));
    // Columns of int4 are padded to multiples of 128.
    if (format.scheme.has_value() &&
        format.scheme->format == QuantFormat::kInt4 &&
        model_.hidden_size % 128 != 0) {
      continue;
    }
    const double planned = cuda::PlanStepCost(model_, {}, 1).weight_bytes;
    // What no step reads as a whole.
    const int64_t embedding_bytes =
        GetParam().is_tied ? 0 : 2 * model_.vocab_size * model_.hidden_size;
    const int64_t f32_bytes =
        4 * (GetParam().num_f32 + kMaxModelLen * model_.head_dim);  // RoPE.
    EXPECT_DOUBLE_EQ(
        static_cast<double>(harness_->model().memory.weights_bytes -
                            embedding_bytes - f32_bytes),
        planned);
  }
}

INSTANTIATE_TEST_SUITE_P(
    Models, CudaStepCostTest,
    testing::Values(ModelCase{"llama", false, false, 7 * 128},
                    // Norms of the heads of q and k.
                    ModelCase{"qwen3", false, false, 5 * 64 + 2 * 2 * 64},
                    ModelCase{"gemma2", true, true, 13 * 64},
                    // Biases of q, k and v.
                    ModelCase{"qwen2", false, true, 5 * 128 + 2 * 4 * 64}),
    [](const auto& info) { return info.param.golden; });

}  // namespace
}  // namespace quire
