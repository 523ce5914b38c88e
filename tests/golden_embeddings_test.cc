// Embedding models against transformers (tools/goldens): last-token and mean
// pooling, whole and in chunks, alone and batched; in f32 on the CPU,
// GoldenEmbeddingsTest also in 16 bits on a GPU (tests/test_device.h).
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/base/status.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "server/embedding.h"
#include "tests/golden.h"
#include "tests/model_harness.h"
#include "tests/test_device.h"
#include "tokenizer/tokenizer.h"

namespace quire {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

// Of the vector's length. The oracle in f32 differs from itself in f64 by up to
// 2e-6 (the script asserts it); another order of summation may add as much, and
// a factor of 2 is left. 1e-5 turns a vector by less than 0.05 degrees.
constexpr double kMaxError = 1e-5;
constexpr char kGoldens[] = "tests/testdata/goldens";
constexpr const char* kCheckpoints[] = {"embed_qwen3", "embed_mean"};

double Length(const std::vector<float>& values) {
  double sum = 0;
  for (const float value : values) sum += double{value} * value;
  return std::sqrt(sum);
}

std::vector<float> Finished(const ModelHarness& harness,
                            const TestSequence& sequence) {
  return FinishEmbedding(sequence.embedding, 0,
                         harness.model().embedding->normalize);
}

// Each case alone, in chunks of at most `chunk` tokens.
absl::StatusOr<std::vector<std::vector<float>>> EmbedCases(
    ModelHarness* harness, const json& golden, int chunk) {
  std::vector<std::vector<float>> found;
  for (const json& golden_case : golden["cases"]) {
    TestSequence sequence =
        harness->MakeSequence(/*slot=*/0, golden_case["prompt"], -1);
    while (sequence.embedding.empty()) {
      const int left =
          sequence.num_prompt_tokens - sequence.num_computed_tokens;
      QUIRE_RETURN_IF_ERROR(
          harness->Step({{&sequence, std::min(left, chunk)}}));
    }
    found.push_back(Finished(*harness, sequence));
  }
  return found;
}

// The largest difference of an element relative to the expected vector's
// length; infinite for another size and for NaN.
double Error(const std::vector<float>& found,
             const std::vector<float>& expected) {
  if (found.size() != expected.size()) return INFINITY;
  double max_error = 0;
  for (size_t c = 0; c < expected.size(); ++c) {
    const double error = std::abs(double{found[c]} - expected[c]);
    if (!(error <= 1e30)) return INFINITY;
    max_error = std::max(max_error, error / Length(expected));
  }
  return max_error;
}

double MaxError(const std::vector<std::vector<float>>& found,
                const json& golden) {
  double max_error = 0;
  for (size_t i = 0; i < found.size(); ++i) {
    max_error =
        std::max(max_error, Error(found[i], golden["cases"][i]["embedding"]));
  }
  return max_error;
}

class GoldenEmbeddingsTest : public testing::TestWithParam<const char*> {
 protected:
  std::unique_ptr<ModelHarness> Load() {
    auto harness = ModelHarness::Create(directory_, OnTestDevice());
    EXPECT_TRUE(harness.ok()) << harness.status();
    return harness.ok() ? *std::move(harness) : nullptr;
  }

  // From the golden; of a GPU twice what the reference with its roundings is.
  double AllowedError() {
    if (!TestsRunOnCuda()) return kMaxError;
    const auto reference =
        ModelHarness::Create(directory_, OnRoundingReference());
    EXPECT_TRUE(reference.ok()) << reference.status();
    const auto found = EmbedCases(reference->get(), golden_, 1 << 20);
    EXPECT_TRUE(found.ok()) << found.status();
    return kMaxError + 2 * MaxError(*found, golden_);
  }
  // Between two ways to compute the same: none, on the CPU.
  void ExpectSame(const std::vector<float>& found,
                  const std::vector<float>& expected, double allowed) {
    if (TestsRunOnCuda()) {
      EXPECT_LE(Error(found, expected), allowed);
    } else {
      EXPECT_EQ(found, expected) << "not the same bits";
    }
  }

  std::string directory_ = absl::StrCat(kGoldens, "/", GetParam());
  json golden_ = ReadJson(directory_ + "/golden.json");
};

INSTANTIATE_TEST_SUITE_P(Checkpoints, GoldenEmbeddingsTest,
                         testing::ValuesIn(kCheckpoints), [](const auto& info) {
                           return std::string(info.param);
                         });

TEST_P(GoldenEmbeddingsTest, AloneWholeAndInChunks) {
  const auto harness = Load();
  ASSERT_NE(harness, nullptr);
  ASSERT_TRUE(harness->model().embedding.has_value());
  EXPECT_THAT(harness->model().warnings, testing::IsEmpty());
  const auto whole = EmbedCases(harness.get(), golden_, 1 << 20);
  ASSERT_TRUE(whole.ok()) << whole.status();
  const double error = MaxError(*whole, golden_);
  const double allowed = AllowedError();
  EXPECT_LE(error, allowed);
  RecordProperty("max_error", absl::StrCat(error));
  RecordProperty("allowed_error", absl::StrCat(allowed));
  for (const int chunk : {TestsRunOnCuda() ? 5 : 1, 7, 16}) {
    SCOPED_TRACE(absl::StrCat("in chunks of ", chunk));
    const auto chunked = EmbedCases(harness.get(), golden_, chunk);
    ASSERT_TRUE(chunked.ok()) << chunked.status();
    for (size_t i = 0; i < whole->size(); ++i) {
      ExpectSame((*chunked)[i], (*whole)[i], allowed);
    }
  }
}

// All cases side by side, each in chunks of another size.
TEST_P(GoldenEmbeddingsTest, Batched) {
  const auto harness = Load();
  ASSERT_NE(harness, nullptr);
  const auto alone = EmbedCases(harness.get(), golden_, 1 << 20);
  ASSERT_TRUE(alone.ok()) << alone.status();
  std::vector<TestSequence> sequences;
  for (const json& golden_case : golden_["cases"]) {
    if (sequences.size() == 8) break;  // The harness's slots.
    sequences.push_back(harness->MakeSequence(
        static_cast<int>(sequences.size()), golden_case["prompt"], -1));
  }
  while (true) {
    std::vector<TestRow> rows;
    for (TestSequence& sequence : sequences) {
      const int left =
          sequence.num_prompt_tokens - sequence.num_computed_tokens;
      if (left > 0) {
        rows.push_back({&sequence, std::min(left, 5 + 4 * sequence.slot)});
      }
    }
    if (rows.empty()) break;
    ASSERT_TRUE(harness->Step(rows).ok());
  }
  const double allowed = AllowedError();
  for (const TestSequence& sequence : sequences) {
    ExpectSame(Finished(*harness, sequence), (*alone)[sequence.slot], allowed);
  }
}

// The tokenizer's post-processor appends the end token that is pooled.
TEST(GoldenEmbeddingTokensTest, TextsBecomeTheSameTokens) {
  const std::string directory = absl::StrCat(kGoldens, "/embed_qwen3");
  const auto tokenizer = Tokenizer::Create(directory);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  int num_texts = 0;
  const json golden = ReadJson(directory + "/golden.json");
  for (const json& golden_case : golden["cases"]) {
    if (!golden_case.contains("text")) continue;
    ++num_texts;
    EncodeOptions options;
    options.add_special_tokens = true;
    const auto ids =
        (*tokenizer)->Encode(golden_case["text"].get<std::string>(), options);
    ASSERT_TRUE(ids.ok()) << ids.status();
    EXPECT_EQ(*ids, golden_case["prompt"].get<std::vector<int32_t>>());
  }
  EXPECT_GE(num_texts, 4);
}

// ------------------------------------------------------------- perturbations

// A change of a file that the goldens must notice.
struct Perturbation {
  const char* checkpoint;
  const char* file;
  const char* pointer;  // JSON pointer into the file.
  const char* value;    // JSON; "" removes the field.
};

std::ostream& operator<<(std::ostream& out, const Perturbation& p) {
  return out << p.checkpoint << " " << p.file << " " << p.pointer << " = "
             << p.value;
}

class EmbeddingPerturbationTest : public testing::TestWithParam<Perturbation> {
};

// A copy of `checkpoint` whose `file` is `content`.
fs::path CopyWith(const std::string& checkpoint, const fs::path& file,
                  const json& content) {
  const fs::path copy =
      fs::path(testing::TempDir()) / absl::StrCat("embedding_", ::getpid());
  fs::remove_all(copy);
  fs::copy(fs::path(kGoldens) / checkpoint, copy, fs::copy_options::recursive);
  fs::permissions(copy, fs::perms::owner_all);
  for (const auto& entry : fs::recursive_directory_iterator(copy)) {
    fs::permissions(entry.path(), fs::perms::owner_all);
  }
  fs::remove(copy / file);
  std::ofstream(copy / file) << content.dump();
  return copy;
}

TEST_P(EmbeddingPerturbationTest, IsNoticed) {
  const Perturbation& change = GetParam();
  const fs::path source = fs::path(kGoldens) / change.checkpoint;
  json content = ReadJson(source / change.file);
  const json::json_pointer pointer{std::string(change.pointer)};
  ASSERT_TRUE(content.contains(pointer)) << "the field is not in the golden";
  if (*change.value == '\0') {
    json& parent = content[pointer.parent_pointer()];
    if (parent.is_array()) {
      parent.erase(std::stoul(pointer.back()));
    } else {
      parent.erase(pointer.back());
    }
  } else {
    ASSERT_NE(content[pointer], json::parse(change.value));
    content[pointer] = json::parse(change.value);
  }
  const fs::path copy = CopyWith(change.checkpoint, change.file, content);
  // Either a refusal to load that names a file, or vectors that are clearly
  // others.
  const auto harness = ModelHarness::Create(copy.string(), {});
  if (!harness.ok()) {
    EXPECT_TRUE(absl::IsInvalidArgument(harness.status()) ||
                absl::IsNotFound(harness.status()));
    EXPECT_THAT(std::string(harness.status().message()),
                testing::HasSubstr(copy.string()));
  } else {
    ASSERT_TRUE((*harness)->model().embedding.has_value());
    const json golden = ReadJson(source / "golden.json");
    const auto found = EmbedCases(harness->get(), golden, 1 << 20);
    ASSERT_TRUE(found.ok()) << found.status();
    EXPECT_GT(MaxError(*found, golden), 10 * kMaxError);
  }
  fs::remove_all(copy);
}

constexpr Perturbation kPerturbations[] = {
    {"embed_qwen3", "config.json", "/hidden_size", "128"},
    {"embed_qwen3", "config.json", "/num_hidden_layers", "1"},
    {"embed_qwen3", "config.json", "/num_attention_heads", "2"},
    {"embed_qwen3", "config.json", "/num_key_value_heads", "4"},
    {"embed_qwen3", "config.json", "/rms_norm_eps", "2e-3"},
    {"embed_qwen3", "config.json", "/rope_theta", "90000.0"},
    {"embed_qwen3", "config.json", "/model_type", "\"qwen2\""},
    {"embed_qwen3", "config.json", "/architectures",
     "[\"Qwen3ForSequenceClassification\"]"},
    {"embed_mean", "config.json", "/sliding_window", "23"},
    {"embed_mean", "config.json", "/sliding_window", "null"},
    {"embed_mean", "config.json", "/rope_theta", "9000.0"},
    {"embed_mean", "config.json", "/rms_norm_eps", "2e-3"},
    {"embed_qwen3", "modules.json", "/2", ""},  // Not normalized.
    {"embed_qwen3", "modules.json", "/2/type",
     "\"sentence_transformers.models.Dense\""},
    {"embed_mean", "modules.json", "/1/path", "\"2_Pooling\""},
    {"embed_mean", "modules.json", "/1/path", "\"../1_Pooling\""},
    {"embed_mean", "modules.json", "/1/type", "7"},
    {"embed_qwen3", "1_Pooling/config.json", "/word_embedding_dimension", "63"},
    {"embed_qwen3", "1_Pooling/config.json", "/pooling_mode_lasttoken",
     "false"},
    {"embed_qwen3", "1_Pooling/config.json", "/pooling_mode_mean_tokens",
     "true"},
    {"embed_qwen3", "1_Pooling/config.json", "/pooling_mode_cls_token", "true"},
    {"embed_qwen3", "1_Pooling/config.json", "/pooling_mode_max_tokens",
     "true"},
    {"embed_qwen3", "1_Pooling/config.json",
     "/pooling_mode_mean_sqrt_len_tokens", "true"},
    {"embed_qwen3", "1_Pooling/config.json",
     "/pooling_mode_weightedmean_tokens", "true"},
    {"embed_qwen3", "1_Pooling/config.json", "/include_prompt", "false"},
};

INSTANTIATE_TEST_SUITE_P(Fields, EmbeddingPerturbationTest,
                         testing::ValuesIn(kPerturbations));

// Every field of the pooling's file is in the list above.
TEST(EmbeddingPerturbationListTest, CoversThePooling) {
  std::set<std::string> covered;
  for (const Perturbation& change : kPerturbations) {
    covered.insert(change.pointer);
  }
  const json pooling =
      ReadJson(absl::StrCat(kGoldens, "/embed_qwen3/1_Pooling/config.json"));
  for (const auto& [name, value] : pooling.items()) {
    EXPECT_TRUE(covered.count("/" + name)) << name;
  }
}

// --------------------------------------------------------------- what to load

TEST(EmbeddingTaskTest, PoolingFromTheCommandLineWins) {
  ModelHarness::Options options;
  options.pooling = Pooling::kMean;
  const std::string directory = absl::StrCat(kGoldens, "/embed_qwen3");
  const auto mean = ModelHarness::Create(directory, options);
  ASSERT_TRUE(mean.ok()) << mean.status();
  const json golden = ReadJson(directory + "/golden.json");
  const auto found = EmbedCases(mean->get(), golden, 7);
  ASSERT_TRUE(found.ok()) << found.status();
  EXPECT_GT(MaxError(*found, golden), 1e-2);
  // Of one token, the mean is the last.
  const std::vector<float> first = golden["cases"][0]["embedding"];
  ASSERT_EQ(golden["cases"][0]["prompt"].size(), 1u);
  EXPECT_THAT((*found)[0],
              testing::Pointwise(testing::FloatNear(kMaxError), first));
}

TEST(EmbeddingTaskTest, AGenerativeModelEmbedsIfAsked) {
  ModelHarness::Options options;
  const std::string directory = absl::StrCat(kGoldens, "/llama");
  const auto generates = ModelHarness::Create(directory, options);
  ASSERT_TRUE(generates.ok()) << generates.status();
  EXPECT_FALSE((*generates)->model().embedding.has_value());
  options.task = ModelTask::kEmbed;
  const auto embeds = ModelHarness::Create(directory, options);
  ASSERT_TRUE(embeds.ok()) << embeds.status();
  ASSERT_TRUE((*embeds)->model().embedding.has_value());
  EXPECT_EQ((*embeds)->model().embedding->pooling, Pooling::kLast);
  EXPECT_TRUE((*embeds)->model().embedding->normalize);
  // Without its head: that is not even read.
  EXPECT_LT((*embeds)->model().memory.weights_bytes,
            (*generates)->model().memory.weights_bytes);
}

// Its table serves as the head, so a text model is in there too.
TEST(EmbeddingTaskTest, ATiedEmbeddingModelGeneratesIfAsked) {
  ModelHarness::Options options;
  options.task = ModelTask::kGenerate;
  const auto harness =
      ModelHarness::Create(absl::StrCat(kGoldens, "/embed_qwen3"), options);
  ASSERT_TRUE(harness.ok()) << harness.status();
  TestSequence sequence = (*harness)->MakeSequence(0, {5, 6, 7}, 0);
  EXPECT_TRUE((*harness)->Generate(sequence, 16, 2).ok());
  EXPECT_EQ(sequence.tokens.size(), 5u);
}

TEST(EmbeddingTaskTest, AModelWithoutAHeadCannotGenerate) {
  ModelHarness::Options options;
  options.task = ModelTask::kGenerate;
  const auto harness =
      ModelHarness::Create(absl::StrCat(kGoldens, "/embed_mean"), options);
  EXPECT_EQ(harness.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(harness.status().message()),
              testing::HasSubstr("lm_head"));
}

}  // namespace
}  // namespace quire
