// Every supported family against transformers (tools/goldens):
// log-probabilities of whole distributions and greedy continuations, in f32 on
// the CPU; GoldenTest also in 16 bits on a GPU (tests/test_device.h).
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "engine/base/status.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/golden.h"
#include "tests/model_harness.h"
#include "tests/test_device.h"

namespace quire {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr char kGoldens[] = "tests/testdata/goldens";

class GoldenTest : public testing::TestWithParam<const char*> {
 protected:
  std::string directory_ = absl::StrCat(kGoldens, "/", GetParam());
  json golden_ = ReadJson(directory_ + "/golden.json");
};

TEST_P(GoldenTest, LogprobsInChunks) {
  const auto harness = ModelHarness::Create(directory_, OnTestDevice());
  ASSERT_TRUE(harness.ok()) << harness.status();
  const absl::StatusOr<double> error =
      MaxLogprobError(harness->get(), golden_, NumReportedLogprobs(**harness));
  ASSERT_TRUE(error.ok()) << error.status();
  const auto allowed = AllowedLogprobError(directory_, golden_);
  ASSERT_TRUE(allowed.ok()) << allowed.status();
  EXPECT_LE(*error, *allowed);
  RecordProperty("allowed_logprob_error", absl::StrCat(*allowed));
  RecordProperty("max_logprob_error", absl::StrCat(*error));
}

// Every recorded token is the most likely one, up to ties: of two tokens, both
// may be off by what is allowed.
TEST_P(GoldenTest, GreedyTokensAreTheMostLikely) {
  const auto harness = ModelHarness::Create(directory_, OnTestDevice());
  ASSERT_TRUE(harness.ok()) << harness.status();
  const auto allowed = AllowedLogprobError(directory_, golden_);
  ASSERT_TRUE(allowed.ok()) << allowed.status();
  const auto shortfall = MaxGreedyShortfall(
      harness->get(), golden_, /*chunk=*/16, NumReportedLogprobs(**harness));
  ASSERT_TRUE(shortfall.ok()) << shortfall.status();
  EXPECT_LE(*shortfall, 2 * *allowed);
}

// The last position of a prompt that is prefilled in one piece, and what
// follows it; then the same in small chunks.
TEST_P(GoldenTest, GreedyContinuations) {
  auto harness = ModelHarness::Create(directory_, {});
  ASSERT_TRUE(harness.ok()) << harness.status();
  int slot = 0;
  for (const json& golden_case : golden_["cases"]) {
    const std::vector<int32_t> prompt = golden_case["prompt"];
    const std::vector<int32_t> expected = golden_case["greedy"];
    ASSERT_EQ(expected.size(), 64u);
    for (const int chunk : {1 << 20, 7}) {
      TestSequence sequence =
          (*harness)->MakeSequence(slot++, prompt, (*harness)->vocab_size());
      const absl::Status status =
          (*harness)->Generate(sequence, chunk, expected.size());
      ASSERT_TRUE(status.ok()) << status;
      EXPECT_EQ(std::vector<int32_t>(sequence.tokens.begin() + prompt.size(),
                                     sequence.tokens.end()),
                expected)
          << "chunk " << chunk << ", prompt of " << prompt.size();
      const json& last = golden_case["logprobs"].back();
      ASSERT_EQ(last["position"].get<size_t>(), prompt.size() - 1);
      const std::vector<float> logprobs = last["values"];
      EXPECT_THAT(
          LogprobsById(sequence.outputs[0]),
          testing::Pointwise(testing::FloatNear(kMaxLogprobError), logprobs));
    }
  }
}

// What an 8-bit cache costs. The rounding error of an element, root mean
// square, is max|x| / 127 / sqrt(12) = max|x| / 440 for int8. For bf16 it is
// about |x| / 900, and with |x| = max|x| / 2.5 (a normal distribution of 64
// elements or so) max|x| / 2200: a fifth. Errors propagate to the
// log-probabilities linearly as long as they are small, so int8 should be 5
// times as far from the golden as bf16 is; the bound allows 5 times that, as
// both are maxima over some thousand log-probabilities and positions of few,
// small models. e4m3 rounds elements by 2^-4 relative, 16 times as coarsely as
// bf16; the same margin.
TEST_P(GoldenTest, EightBitCaches) {
  const auto error_with = [&](DType dtype) {
    ModelHarness::Options options;
    options.kv_cache_dtype = dtype;
    const auto harness = ModelHarness::Create(directory_, options);
    QUIRE_CHECK(harness.ok());
    const absl::StatusOr<double> error =
        MaxLogprobError(harness->get(), golden_, (*harness)->vocab_size());
    QUIRE_CHECK(error.ok());
    return *error;
  };
  const double bf16 = error_with(DType::kBF16);
  const double i8 = error_with(DType::kI8);
  const double e4m3 = error_with(DType::kF8E4M3);
  EXPECT_LE(i8, 5 * 5 * bf16);
  EXPECT_LE(e4m3, 5 * 16 * bf16);
  // And they are not some other cache.
  EXPECT_GT(i8, bf16);
  EXPECT_GT(e4m3, i8);
  std::printf(
      "largest error of a log-probability: bf16 %.2g, int8 %.2g, "
      "e4m3 %.2g\n",
      bf16, i8, e4m3);
}

constexpr const char* kFamilies[] = {
    "llama",
    "llama_bias",
    "llama_gelu",
    "llama_linear",
    "llama_llama3",
    "llama_yarn",
    "llama_yarn_mscale",
    "mistral",
    "qwen2",
    "qwen2_window",
    "qwen3",
    "gemma2",
    "gemma3",
    "gemma3_nested",
    "granite",
    "olmo2",
    "opt",
    "opt_gelu",
    "opt_post_norm",
    "phi3",
    "phi3_longrope",
    "smollm3",
    "stablelm",
    "stablelm_parallel",
};

INSTANTIATE_TEST_SUITE_P(Families, GoldenTest, testing::ValuesIn(kFamilies),
                         [](const auto& info) {
                           return std::string(info.param);
                         });

// A change of config.json that the goldens must notice.
struct Perturbation {
  const char* family;
  const char* pointer;  // JSON pointer into config.json.
  const char* value;    // JSON; "" removes the field.
};

std::ostream& operator<<(std::ostream& out, const Perturbation& p) {
  return out << p.family << " " << p.pointer << " = " << p.value;
}

class PerturbationTest : public testing::TestWithParam<Perturbation> {};

TEST_P(PerturbationTest, IsNoticed) {
  const Perturbation& change = GetParam();
  const fs::path source = fs::path(kGoldens) / change.family;
  const fs::path copy =
      fs::path(testing::TempDir()) /
      absl::StrCat("golden_", testing::UnitTest::GetInstance()->random_seed(),
                   "_", ::getpid());
  fs::remove_all(copy);
  fs::create_directories(copy);
  for (const auto& entry : fs::directory_iterator(source)) {
    fs::create_symlink(fs::absolute(fs::canonical(entry.path())),
                       copy / entry.path().filename());
  }
  json config = ReadJson(source / "config.json");
  const json::json_pointer pointer{std::string(change.pointer)};
  ASSERT_TRUE(config.contains(pointer)) << "the field is not in the golden";
  if (*change.value == '\0') {
    config[pointer.parent_pointer()].erase(pointer.back());
  } else {
    ASSERT_NE(config[pointer], json::parse(change.value));
    config[pointer] = json::parse(change.value);
  }
  fs::remove(copy / "config.json");
  std::ofstream(copy / "config.json") << config.dump();

  // Either a refusal to load that names a file, or numbers that are clearly
  // wrong.
  const auto harness = ModelHarness::Create(copy.string(), {});
  if (!harness.ok()) {
    EXPECT_EQ(harness.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(harness.status().message()),
                testing::HasSubstr(copy.string()));
  } else {
    const absl::StatusOr<double> error =
        MaxLogprobError(harness->get(), ReadJson(source / "golden.json"),
                        (*harness)->vocab_size());
    ASSERT_TRUE(error.ok()) << error.status();
    EXPECT_GT(*error, 10 * kMaxLogprobError);
  }
  fs::remove_all(copy);
}

constexpr Perturbation kPerturbations[] = {
    {"llama", "/vocab_size", "319"},
    {"llama", "/hidden_size", "256"},
    {"llama", "/intermediate_size", "256"},
    {"llama", "/num_hidden_layers", "2"},
    {"llama", "/num_hidden_layers", "4"},
    {"llama", "/num_attention_heads", "2"},
    {"llama", "/num_key_value_heads", "4"},
    {"llama", "/num_key_value_heads", ""},
    {"llama", "/head_dim", "32"},
    {"llama", "/head_dim", ""},
    {"llama", "/hidden_act", "\"gelu\""},
    {"llama", "/rms_norm_eps", "2e-3"},
    {"llama", "/rms_norm_eps", ""},
    {"llama", "/rope_theta", "11000.0"},
    {"llama", "/tie_word_embeddings", "true"},
    {"llama", "/model_type", "\"qwen2\""},
    {"llama", "/model_type", "\"qwen3\""},
    {"llama", "/architectures", "[\"LlamaForSequenceClassification\"]"},
    {"llama_bias", "/attention_bias", "false"},
    {"llama_bias", "/mlp_bias", "false"},
    {"llama_bias", "/tie_word_embeddings", "false"},
    {"llama_bias", "/rope_theta", ""},
    // The tanh form, which is within 5e-4 of the exact one.
    {"llama_gelu", "/hidden_act", "\"gelu_new\""},
    {"llama_gelu", "/hidden_act", "\"silu\""},
    {"llama_linear", "/rope_scaling/factor", "4.5"},
    {"llama_linear", "/rope_scaling/type", "\"default\""},
    {"llama_linear", "/rope_scaling", ""},
    {"llama_llama3", "/rope_scaling/factor", "7.0"},
    {"llama_llama3", "/rope_scaling/low_freq_factor", "1.5"},
    {"llama_llama3", "/rope_scaling/high_freq_factor", "5.0"},
    {"llama_llama3", "/rope_scaling/original_max_position_embeddings", "80"},
    {"llama_llama3", "/rope_scaling/original_max_position_embeddings", ""},
    {"llama_llama3", "/rope_scaling/rope_type", "\"linear\""},
    {"llama_llama3", "/rope_scaling", ""},
    {"llama_llama3", "/rope_theta", "12000.0"},
    {"llama_yarn", "/rope_parameters/factor", "5.0"},
    {"llama_yarn", "/rope_parameters/beta_fast", "1.0"},
    {"llama_yarn", "/rope_parameters/beta_slow", "0.2"},
    {"llama_yarn", "/rope_parameters/rope_theta", "12000.0"},
    {"llama_yarn", "/rope_parameters/original_max_position_embeddings", "96"},
    {"llama_yarn", "/rope_parameters/rope_type", "\"default\""},
    {"llama_yarn", "/rope_parameters", ""},
    {"llama_yarn_mscale", "/rope_parameters/mscale", "0.9"},
    {"llama_yarn_mscale", "/rope_parameters/mscale_all_dim", "0.4"},
    {"llama_yarn_mscale", "/rope_parameters/mscale_all_dim", ""},
    {"llama_yarn_mscale", "/rope_parameters/truncate", "true"},
    {"mistral", "/sliding_window", "25"},
    {"mistral", "/sliding_window", "23"},
    {"mistral", "/sliding_window", "null"},
    {"mistral", "/sliding_window", ""},
    {"mistral", "/num_attention_heads", "2"},
    {"mistral", "/rope_theta", "20000.0"},
    {"qwen2", "/use_sliding_window", "true"},
    {"qwen2", "/rope_theta", "900000.0"},
    {"qwen2", "/rms_norm_eps", "5e-4"},
    {"qwen2", "/model_type", "\"llama\""},
    {"qwen2_window", "/use_sliding_window", "false"},
    {"qwen2_window", "/sliding_window", "21"},
    {"qwen2_window", "/max_window_layers", "0"},
    {"qwen2_window", "/max_window_layers", "2"},
    {"qwen3", "/head_dim", "32"},
    {"qwen3", "/head_dim", ""},
    {"qwen3", "/attention_bias", "true"},
    {"qwen3", "/rms_norm_eps", "2e-3"},
    {"qwen3", "/rope_parameters/rope_theta", "90000.0"},
    {"qwen3", "/model_type", "\"qwen2\""},
    {"opt", "/hidden_size", "128"},
    {"opt", "/ffn_dim", "64"},
    {"opt", "/num_attention_heads", "4"},
    {"opt", "/max_position_embeddings", "512"},
    {"opt", "/activation_function", "\"gelu_new\""},
    {"opt", "/activation_function", "\"gelu\""},
    {"opt", "/do_layer_norm_before", "false"},
    {"opt", "/word_embed_proj_dim", "32"},
    {"gemma2", "/query_pre_attn_scalar", "24"},
    {"gemma2", "/attn_logit_softcapping", "3.0"},
    {"gemma2", "/attn_logit_softcapping", "null"},
    {"gemma2", "/final_logit_softcapping", "7.0"},
    {"gemma2", "/final_logit_softcapping", "null"},
    {"gemma2", "/final_logit_softcapping", ""},
    {"gemma2", "/hidden_activation", "\"silu\""},
    {"gemma2", "/hidden_activation", "\"gelu\""},
    {"gemma2", "/attention_bias", "true"},
    {"gemma2", "/sliding_window", "25"},
    {"gemma2", "/sliding_window", ""},
    {"gemma2", "/head_dim", ""},
    {"gemma2", "/rms_norm_eps", ""},
    {"gemma2", "/tie_word_embeddings", "false"},
    {"gemma2", "/model_type", "\"gemma3_text\""},
    {"gemma3", "/sliding_window_pattern", "3"},
    {"gemma3", "/rope_local_base_freq", "6000.0"},
    {"gemma3", "/rope_local_base_freq", ""},
    {"gemma3", "/rope_theta", "120000.0"},
    {"gemma3", "/rope_scaling/factor", "7.0"},
    {"gemma3", "/rope_scaling", ""},
    {"gemma3", "/query_pre_attn_scalar", ""},
    {"gemma3", "/sliding_window", "23"},
    {"gemma3", "/model_type", "\"gemma2\""},
    {"gemma3_nested", "/text_config/layer_types", ""},
    {"gemma3_nested", "/text_config/sliding_window", "25"},
    {"gemma3_nested", "/text_config/num_hidden_layers", "2"},
    {"gemma3_nested",
     "/text_config/rope_parameters/sliding_attention/rope_theta", "4000.0"},
    {"gemma3_nested",
     "/text_config/rope_parameters/sliding_attention/rope_type",
     "\"longrope\""},
    {"gemma3_nested", "/text_config/rope_parameters/full_attention/rope_theta",
     "150000.0"},
    {"gemma3_nested", "/text_config/rope_parameters/full_attention/factor",
     "5.0"},
    {"gemma3_nested", "/text_config/rope_parameters/full_attention/rope_type",
     "\"default\""},
    {"gemma3_nested", "/text_config/model_type", "\"gemma2\""},
    {"granite", "/embedding_multiplier", "5.0"},
    {"granite", "/residual_multiplier", "0.7"},
    {"granite", "/attention_multiplier", "0.1"},
    {"granite", "/logits_scaling", "0.8"},
    {"granite", "/logits_scaling", ""},
    {"granite", "/attention_bias", "true"},
    {"granite", "/mlp_bias", "true"},
    {"granite", "/model_type", "\"llama\""},
    {"olmo2", "/num_attention_heads", "2"},
    {"olmo2", "/rms_norm_eps", ""},
    {"olmo2", "/attention_bias", "true"},
    {"olmo2", "/rope_theta", "20000.0"},
    {"olmo2", "/model_type", "\"llama\""},
    {"olmo2", "/model_type", "\"qwen3\""},
    {"opt_gelu", "/activation_function", "\"relu\""},
    {"opt_gelu", "/enable_bias", "true"},
    {"opt_gelu", "/layer_norm_elementwise_affine", "false"},
    {"opt_post_norm", "/do_layer_norm_before", "true"},
    {"opt_post_norm", "/word_embed_proj_dim", ""},
    {"opt_post_norm", "/enable_bias", "false"},
    {"opt", "/_remove_final_layer_norm", "true"},
    {"phi3", "/sliding_window", "25"},
    {"phi3", "/sliding_window", ""},
    {"phi3", "/num_key_value_heads", "2"},
    {"phi3", "/intermediate_size", "64"},
    {"phi3", "/rope_theta", "20000.0"},
    {"phi3", "/model_type", "\"llama\""},
    {"phi3_longrope", "/partial_rotary_factor", "0.5"},
    {"phi3_longrope", "/partial_rotary_factor", ""},
    {"phi3_longrope", "/original_max_position_embeddings", "96"},
    {"phi3_longrope", "/original_max_position_embeddings", "32"},
    {"phi3_longrope", "/max_position_embeddings", "1024"},
    {"phi3_longrope", "/sliding_window", "24"},
    {"phi3_longrope", "/rope_scaling/type", "\"default\""},
    {"phi3_longrope", "/rope_scaling/short_factor/3", "1.1"},
    {"phi3_longrope", "/rope_scaling/long_factor/3", "2.3"},
    {"phi3_longrope", "/rope_scaling/short_factor", ""},
    {"phi3_longrope", "/rope_scaling/long_factor", ""},
    {"smollm3", "/no_rope_layers", "[1, 1, 1]"},
    {"smollm3", "/no_rope_layers", ""},
    {"smollm3", "/use_sliding_window", "false"},
    {"smollm3", "/sliding_window", "25"},
    {"smollm3", "/layer_types", ""},
    {"smollm3", "/rope_theta", ""},
    {"smollm3", "/attention_bias", "true"},
    {"smollm3", "/mlp_bias", "true"},
    {"stablelm", "/layer_norm_eps", "2e-3"},
    {"stablelm", "/layer_norm_eps", ""},
    {"stablelm", "/use_qkv_bias", "false"},
    {"stablelm", "/qk_layernorm", "true"},
    {"stablelm", "/use_parallel_residual", "true"},
    {"stablelm", "/partial_rotary_factor", "1.0"},
    {"stablelm", "/partial_rotary_factor", ""},
    {"stablelm_parallel", "/qk_layernorm", "false"},
    {"stablelm_parallel", "/use_parallel_residual", "false"},
    {"stablelm_parallel", "/num_attention_heads", "2"},
};

INSTANTIATE_TEST_SUITE_P(Fields, PerturbationTest,
                         testing::ValuesIn(kPerturbations));

// Pointers to all fields that are not objects. Those of a nested text model
// count as if they were not nested, but for its RoPE.
std::set<std::string> FieldsOf(const json& object, const std::string& pointer) {
  std::set<std::string> fields;
  for (const auto& [name, value] : object.items()) {
    const std::string own = absl::StrCat(pointer, "/", name);
    if (!value.is_object()) {
      fields.insert(own);
    } else if (name == "text_config") {
      json parts = value;
      parts.erase("rope_parameters");
      fields.merge(FieldsOf(parts, ""));
      fields.merge(
          FieldsOf(value["rope_parameters"], "/text_config/rope_parameters"));
    } else if (name != "vision_config") {  // Images are left out.
      fields.merge(FieldsOf(value, own));
    }
  }
  return fields;
}

// Every field of the goldens' configurations is in the list above for some
// family, but for those that have no effect on the numbers.
TEST(PerturbationListTest, CoversEveryField) {
  std::set<std::string> covered = {
      "/bos_token_id", "/eos_token_id",         "/max_position_embeddings",
      "/pad_token_id", "/mm_tokens_per_image",  "/torch_dtype",
      "/use_cache",    "/transformers_version",
  };
  for (const Perturbation& change : kPerturbations) {
    covered.insert(change.pointer);
  }
  for (const char* family : kFamilies) {
    const json config =
        ReadJson(absl::StrCat(kGoldens, "/", family, "/config.json"));
    for (const std::string& pointer : FieldsOf(config, "")) {
      EXPECT_TRUE(covered.count(pointer)) << family << " " << pointer;
    }
  }
}

}  // namespace
}  // namespace quire
