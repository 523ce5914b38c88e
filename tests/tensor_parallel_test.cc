// What several ranks compute together against what one computes, in f32 on the
// CPU and under the real engine, with chunked prefill and the prefix cache on:
// the same tokens, greedy and sampled, and the same bits of the logits on one,
// two and four ranks (log-probabilities within 1e-5 on others).
#include <stdlib.h>

#include <cmath>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/base/random.h"
#include "engine/engine.h"
#include "engine/speculative/drafter.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/reference.h"
#include "tests/gguf_export.h"
#include "tests/random_family.h"
#include "tests/thread_ranks.h"

namespace quire {
namespace {

namespace fs = std::filesystem;

// How far log-probabilities may be apart.
enum class Closeness : uint8_t {
  kBits,
  // Of logits with the same bits, put together from slices of the vocabulary.
  kSlices,
  // Where a split changes the order of additions: a few roundings of 2^-24 of
  // sums of order one.
  kSums,
};

double MaxError(Closeness closeness, double expected) {
  switch (closeness) {
    case Closeness::kBits:
      return 0.0;
    case Closeness::kSlices:
      // e^x in f32, some 2 units in the last place, and the rounding of the
      // whole, which may fall on the other side.
      return 4 * 0x1p-24 + 0x1p-22 * std::abs(expected);
    case Closeness::kSums:
      return 1e-5;
  }
  return 0.0;
}

constexpr int kMaxTokens = 16;
constexpr int kNumRequests = 9;

struct Answer {
  std::vector<TokenOutput> tokens;
  std::vector<TokenOutput> prompt_tokens;
};

// (request, choice) -> what came.
using Answers = std::map<std::pair<RequestId, int>, Answer>;

// Every kind of draw: greedy, unfiltered, each filter, processors with and
// without history, log-probabilities that slices can tell (5) and that they
// cannot (40), scored prompts. Requests 1 to 4 share a prefix of 40 tokens.
Request MakeRequest(RequestId id, int vocab_size) {
  Request request;
  request.id = id;
  SimulationRandom shared(99);
  for (int i = 0; id <= 4 && i < 40; ++i) {
    request.prompt_token_ids.push_back(shared.Below(vocab_size));
  }
  SimulationRandom own(id);
  for (int i = 0; i < 5 + 7 * static_cast<int>(id); ++i) {
    request.prompt_token_ids.push_back(own.Below(vocab_size));
  }
  SamplingParams& sampling = request.sampling;
  sampling.max_tokens = kMaxTokens;
  sampling.ignore_eos = true;
  sampling.num_logprobs = id == 2 ? 40 : id == 8 ? 0 : 5;
  sampling.temperature = id <= 3 ? 0.0f : 1.0f;
  sampling.seed = 1000 + id;
  switch (id) {
    case 3:
      sampling.repetition_penalty = 1.3f;
      sampling.presence_penalty = 0.4f;
      break;
    case 5:
      request.n = 2;
      sampling.frequency_penalty = 0.7f;
      sampling.logit_bias = {{3, 2.5f}, {vocab_size - 1, 2.0f}};
      break;
    case 6:
      sampling.top_p = 0.9f;
      break;
    case 7:
      sampling.top_k = 20;
      sampling.min_p = 0.01f;
      sampling.dry_multiplier = 2.0f;
      sampling.dry_allowed_length = 1;
      break;
    case 8:
      sampling.num_prompt_logprobs = 3;
      for (int32_t token = 0; token < vocab_size; token += 7) {
        sampling.allowed_token_ids.push_back(token);
      }
      break;
    case 9:
      sampling.typical_p = 0.8f;
      sampling.dynatemp_range = 0.5f;
      break;
  }
  return request;
}

// Knows what will be drawn, and is wrong about every fifth token.
class ScriptedDrafter : public Drafter {
 public:
  explicit ScriptedDrafter(const Answers& answers) : answers_(answers) {}

  absl::string_view method() const override { return "script"; }
  bool is_costly() const override { return false; }
  absl::Status Propose(absl::Span<const DraftSequence> sequences,
                       absl::Span<Draft> drafts) override {
    for (size_t i = 0; i < sequences.size(); ++i) {
      const DraftSequence& sequence = sequences[i];
      for (const auto& [key, answer] : answers_) {
        // The prompts' lengths tell the requests apart.
        const Request request = MakeRequest(key.first, 328);
        if (static_cast<int>(request.prompt_token_ids.size()) !=
            sequence.num_prompt_tokens) {
          continue;
        }
        const size_t drawn =
            sequence.token_ids.size() - request.prompt_token_ids.size();
        drafts[i].token_ids.clear();
        for (int k = 0;
             k < sequence.max_num_drafts && drawn + k < answer.tokens.size();
             ++k) {
          const int32_t token = answer.tokens[drawn + k].token_id;
          drafts[i].token_ids.push_back((drawn + k) % 5 == 4 ? (token + 1) % 328
                                                             : token);
        }
        break;
      }
    }
    return absl::OkStatus();
  }

 private:
  const Answers& answers_;
};

// Runs the first num_requests requests, each a few steps after the one before.
//   expected: what is drafted; null: nothing is.
Answers AnswersOf(ThreadRanks& group, int num_requests = kNumRequests,
                  const Answers* expected = nullptr) {
  Answers answers;
  const LoadedModel& loaded = group.rank(0);
  EngineOptions options;
  options.vocab_size = loaded.config.vocab_size;
  options.rope_switch_length = loaded.config.RopeSwitchLength();
  options.max_model_len = loaded.shape.max_model_len;
  options.max_num_seqs = loaded.shape.max_num_seqs;
  options.max_num_batched_tokens = 24;  // Prompts come in chunks.
  options.max_num_scored_tokens = 8;
  options.num_blocks = loaded.memory.num_blocks;
  // Of stages: as many micro-batches.
  options.steps_in_flight = options.num_micro_batches = group.steps_in_flight();
  options.enable_prefix_caching = true;
  options.check_integrity = true;
  FakeClock clock;
  std::unique_ptr<ScriptedDrafter> drafter;
  if (expected != nullptr) {
    drafter = std::make_unique<ScriptedDrafter>(*expected);
    options.num_speculative_tokens = 3;
    options.adapts_drafts = false;
  }
  auto engine = Engine::Create(options, &group, &clock, drafter.get());
  EXPECT_TRUE(engine.ok()) << engine.status();
  if (!engine.ok()) return answers;
  std::vector<OutputEvent> events;
  RequestId next = 1;
  const RequestId last = num_requests;
  for (int step = 0; next <= last || (*engine)->HasWork(); ++step) {
    while (next <= last && step >= 6 * static_cast<int>(next - 1)) {
      const absl::Status status =
          (*engine)->AddRequest(MakeRequest(next++, options.vocab_size));
      EXPECT_TRUE(status.ok()) << status;
    }
    if ((*engine)->HasWork()) (*engine)->Step(&events);
  }
  for (OutputEvent& event : events) {
    EXPECT_TRUE(event.error.ok()) << event.error;
    Answer& answer = answers[{event.request_id, event.choice_idx}];
    for (TokenOutput& token : event.tokens) {
      answer.tokens.push_back(std::move(token));
    }
    for (TokenOutput& token : event.prompt_tokens) {
      answer.prompt_tokens.push_back(std::move(token));
    }
  }
  EXPECT_GT((*engine)->Stats().prefix_cache_hits, 0);
  if (expected != nullptr) {
    EXPECT_TRUE((*engine)->DrafterHealth().ok());
    // Fewer than 40 where LongRoPE computes sequences anew.
    EXPECT_GT((*engine)->Stats().num_accepted_tokens, 20);
  }
  return answers;
}

// What is drawn from whole rows, gathered, and not from their slices: then
// log-probabilities have the same bits as well.
bool IsGathered(RequestId id) {
  return id == 2 || id == 6 || id == 7 || id == 9;
}

// Neighbours that are equal but for what a split changes may change places.
bool MayBeAt(const std::vector<TopLogprob>& expected, size_t place,
             int32_t token_id) {
  for (const TopLogprob& top : expected) {
    if (top.token_id != token_id) continue;
    return std::abs(top.logprob - expected[place].logprob) <=
           MaxError(Closeness::kSums, 0);
  }
  return place + 1 == expected.size();  // It was the first one left out.
}

void ExpectNear(const std::vector<TokenOutput>& found,
                const std::vector<TokenOutput>& expected, Closeness closeness) {
  ASSERT_EQ(found.size(), expected.size());
  for (size_t i = 0; i < expected.size(); ++i) {
    const TokenOutput& a = expected[i];
    const TokenOutput& b = found[i];
    ASSERT_EQ(b.token_id, a.token_id) << "token " << i;
    EXPECT_NEAR(b.logprob, a.logprob, MaxError(closeness, a.logprob));
    EXPECT_EQ(b.rank, a.rank);
    ASSERT_EQ(b.top_logprobs.size(), a.top_logprobs.size());
    for (size_t k = 0; k < a.top_logprobs.size(); ++k) {
      const TopLogprob& top = b.top_logprobs[k];
      EXPECT_TRUE(closeness == Closeness::kSums
                      ? MayBeAt(a.top_logprobs, k, top.token_id)
                      : top.token_id == a.top_logprobs[k].token_id)
          << "token " << i << ", place " << k;
      EXPECT_NEAR(top.logprob, a.top_logprobs[k].logprob,
                  MaxError(closeness, a.top_logprobs[k].logprob));
    }
  }
}

// Whether the logits of a split have the bits of the whole.
enum class Split : uint8_t { kExact, kInexact };

void ExpectNear(const Answers& found, const Answers& expected, Split split) {
  ASSERT_GE(expected.size(), 3u);
  ASSERT_EQ(found.size(), expected.size());
  for (const auto& [key, answer] : expected) {
    SCOPED_TRACE(absl::StrCat("request ", key.first, ", choice ", key.second));
    ASSERT_EQ(answer.tokens.size(), size_t{kMaxTokens});
    const Answer& other = found.at(key);
    const bool is_exact = split == Split::kExact;
    ExpectNear(other.tokens, answer.tokens,
               !is_exact               ? Closeness::kSums
               : IsGathered(key.first) ? Closeness::kBits
                                       : Closeness::kSlices);
    // Scores are of whole rows.
    ExpectNear(other.prompt_tokens, answer.prompt_tokens,
               is_exact ? Closeness::kBits : Closeness::kSums);
  }
}

// Where roundings to 8 bits lie between: of the greedy requests, the first
// token's log-probability.
void ExpectFirstTokensNear(const Answers& found, const Answers& expected) {
  constexpr double kMaxError = 0.05;
  for (const RequestId id : {1, 2, 3}) {
    SCOPED_TRACE(absl::StrCat("request ", id));
    const std::vector<TokenOutput>& a = expected.at({id, 0}).tokens;
    const std::vector<TokenOutput>& b = found.at({id, 0}).tokens;
    ASSERT_EQ(a.size(), b.size());
    EXPECT_NEAR(b[0].top_logprobs[0].logprob, a[0].top_logprobs[0].logprob,
                kMaxError);
  }
}

// A new one: shards of a test are processes of one number in sandboxes that may
// share what is temporary.
fs::path MakeDirectory() {
  std::string path = testing::TempDir() + "/tensor_parallel_XXXXXX";
  EXPECT_NE(mkdtemp(path.data()), nullptr);
  return path;
}

class TensorParallelTest : public testing::Test {
 protected:
  TensorParallelTest() : directory_(MakeDirectory()) {}
  ~TensorParallelTest() override { fs::remove_all(directory_); }

  // The file's name behind the directory's; empty: the directory.
  std::string file_;
  // In place of the CPU's backend: that rounds x to 8 bits for quantized
  // weights, where a difference in the last place may become one of 2^-8.
  bool uses_reference_ = false;

  // Writes the family's model in `shape`.
  void Write(const std::string& family, const RandomFamilyShape& shape) {
    const absl::Status status =
        WriteRandomFamily(absl::StrCat("tests/testdata/goldens/", family),
                          shape, /*seed=*/7, directory_.string());
    ASSERT_TRUE(status.ok()) << status;
  }

  static LoadOptions F32() {
    LoadOptions options;
    options.dtype = DType::kF32;
    options.kv_cache_dtype = DType::kF32;
    options.max_num_seqs = 16;
    options.max_num_batched_tokens = 64;
    options.max_model_len = 160;
    options.num_threads = 1;
    return options;
  }

  absl::StatusOr<std::unique_ptr<ThreadRanks>> Load(const LoadOptions& options,
                                                    int size) {
    ThreadRanks::Options group_options;
    group_options.tensor_size = size;
    if (uses_reference_) {
      group_options.make_backend = [] {
        return std::make_unique<ReferenceBackend>();
      };
    }
    return ThreadRanks::Create(directory_.string() + file_, options,
                               group_options);
  }

  Answers RunOn(const LoadOptions& options, int size) {
    auto group = Load(options, size);
    EXPECT_TRUE(group.ok()) << group.status();
    if (!group.ok()) return Answers();
    // The reference takes its time.
    return AnswersOf(**group, uses_reference_ ? 3 : kNumRequests);
  }

  void ExpectSameOn(const LoadOptions& options, const std::vector<int>& sizes,
                    Split split) {
    const Answers expected = RunOn(options, 1);
    for (const int size : sizes) {
      SCOPED_TRACE(absl::StrCat(size, " ranks"));
      ExpectNear(RunOn(options, size), expected, split);
    }
  }

  const fs::path directory_;
};

class FamilyTest : public TensorParallelTest,
                   public testing::WithParamInterface<const char*> {};

// Two KV heads: four ranks hold each of them twice.
TEST_P(FamilyTest, SameAsOneRank) {
  Write(GetParam(), RandomFamilyShape());
  ExpectSameOn(F32(), {2, 4}, Split::kExact);
}

// A trained model has larger activations and sharper logits than random ones,
// so that the order of additions shows most.
TEST_F(TensorParallelTest, TheDemoModel) {
  file_ = "/demo";
  fs::create_directory_symlink(fs::absolute("models/demo"),
                               directory_.string() + file_);
  const Answers expected = RunOn(F32(), 1);
  for (const auto& [tensor_size, pipeline_size] :
       {std::pair(2, 1), std::pair(4, 1), std::pair(1, 2), std::pair(2, 2)}) {
    SCOPED_TRACE(absl::StrCat(tensor_size, " x ", pipeline_size));
    ThreadRanks::Options group;
    group.tensor_size = tensor_size;
    group.pipeline_size = pipeline_size;
    auto ranks = ThreadRanks::Create(directory_.string() + file_, F32(), group);
    ASSERT_TRUE(ranks.ok()) << ranks.status();
    ExpectNear(AnswersOf(**ranks), expected, Split::kExact);
  }
}

// Drafts change how many steps it takes and nothing else, on ranks and stages.
TEST_P(FamilyTest, Speculation) {
  Write(GetParam(), RandomFamilyShape());
  const Answers expected = RunOn(F32(), 1);
  for (const auto& [tensor_size, pipeline_size] :
       {std::pair(4, 1), std::pair(2, 2)}) {
    SCOPED_TRACE(absl::StrCat(tensor_size, " x ", pipeline_size));
    ThreadRanks::Options group;
    group.tensor_size = tensor_size;
    group.pipeline_size = pipeline_size;
    auto ranks = ThreadRanks::Create(directory_.string(), F32(), group);
    ASSERT_TRUE(ranks.ok()) << ranks.status();
    ExpectNear(AnswersOf(**ranks, kNumRequests, &expected), expected,
               Split::kExact);
  }
}

// Two stages, and both kinds of parallelism together.
TEST_P(FamilyTest, Stages) {
  Write(GetParam(), RandomFamilyShape());
  auto one = Load(F32(), 1);
  ASSERT_TRUE(one.ok()) << one.status();
  const Answers expected = AnswersOf(**one);
  for (const auto& [tensor_size, pipeline_size] :
       {std::pair(1, 2), std::pair(2, 2)}) {
    SCOPED_TRACE(absl::StrCat(tensor_size, " x ", pipeline_size));
    ThreadRanks::Options group;
    group.tensor_size = tensor_size;
    group.pipeline_size = pipeline_size;
    auto ranks = ThreadRanks::Create(directory_.string(), F32(), group);
    ASSERT_TRUE(ranks.ok()) << ranks.status();
    for (int i = 0; i < (*ranks)->size(); ++i) {
      EXPECT_THAT(
          (*ranks)->rank(i).warnings,
          testing::Not(testing::Contains(testing::HasSubstr("are not used"))));
      // Of the model, whichever part of it is here.
      EXPECT_EQ((*ranks)->rank(i).num_parameters,
                (*one)->rank(0).num_parameters);
    }
    ExpectNear(AnswersOf(**ranks), expected, Split::kExact);
  }
}

INSTANTIATE_TEST_SUITE_P(
    Families, FamilyTest,
    testing::Values("llama", "llama_bias", "llama_gelu", "llama_linear",
                    "llama_llama3", "llama_yarn", "llama_yarn_mscale",
                    "mistral", "qwen2", "qwen2_window", "qwen3", "gemma2",
                    "gemma3", "gemma3_nested", "granite", "olmo2", "opt",
                    "opt_gelu", "opt_post_norm", "phi3", "phi3_longrope",
                    "smollm3", "stablelm", "stablelm_parallel"),
    [](const auto& info) { return std::string(info.param); });

// Shapes of whole blocks of 256 columns for each of four ranks.
RandomFamilyShape WideShape() {
  RandomFamilyShape shape;
  shape.hidden_size = 256;
  shape.num_kv_heads = 4;
  shape.intermediate_size = 1280;  // Five blocks: the first rank has two.
  shape.num_layers = 1;
  return shape;
}

class QuantizedAtLoadTest : public TensorParallelTest,
                            public testing::WithParamInterface<QuantFormat> {};

// Slices are encoded as the whole would be: block by block.
TEST_P(QuantizedAtLoadTest, SameAsOneRank) {
  Write("mistral", WideShape());
  LoadOptions options = F32();
  options.quantization =
      QuantizationScheme{.format = GetParam(), .group_size = 64};
  uses_reference_ = true;
  // Four ranks have two heads each, 128 columns of the attention's output: that
  // is no block of 256, and gets a format of 32.
  const bool fits_four = QuantBlockOf(GetParam()).cols < 256;
  ExpectSameOn(options,
               fits_four ? std::vector<int>{2, 4} : std::vector<int>{2},
               Split::kInexact);
  uses_reference_ = false;
  ExpectFirstTokensNear(RunOn(options, 2), RunOn(options, 1));
}

INSTANTIATE_TEST_SUITE_P(Formats, QuantizedAtLoadTest,
                         testing::Values(QuantFormat::kQ4_0, QuantFormat::kQ8_0,
                                         QuantFormat::kQ4_K,
                                         QuantFormat::kInt4),
                         [](const auto& info) {
                           return std::string(QuantFormatName(info.param));
                         });

// q and k come in llama.cpp's order of rows, which is undone before they are
// cut.
TEST_F(TensorParallelTest, Gguf) {
  for (const uint32_t type : {GgufTensorType::kQ8_0, GgufTensorType::kQ4_K}) {
    SCOPED_TRACE(type);
    file_ = "";
    Write("llama", WideShape());
    GgufWriter writer;
    GgufExportOptions export_options;
    export_options.matrix_type = type;
    const absl::Status status =
        ExportGgufModel(directory_.string(), export_options, &writer);
    ASSERT_TRUE(status.ok()) << status;
    file_ = "/model.gguf";
    std::ofstream(directory_.string() + file_, std::ios::binary)
        << writer.Build();
    uses_reference_ = true;
    ExpectSameOn(F32(), {2, 4}, Split::kInexact);
    uses_reference_ = false;
    ExpectFirstTokensNear(RunOn(F32(), 4), RunOn(F32(), 1));
  }
}

// GPTQ, AWQ, compressed-tensors and fp8 in squares; two heads, so two ranks.
TEST_F(TensorParallelTest, QuantizedCheckpoints) {
  for (const char* name :
       {"awq", "gptq", "gptq_v2_8bit", "compressed_int4", "compressed_int8",
        "compressed_fp8", "fp8_tensor", "fp8_block"}) {
    SCOPED_TRACE(name);
    file_ = absl::StrCat("/", name);
    fs::create_directory_symlink(
        fs::absolute(absl::StrCat("tests/testdata/quantized/", name)),
        directory_.string() + file_);
    uses_reference_ = true;
    ExpectSameOn(F32(), {2}, Split::kInexact);
    uses_reference_ = false;
    auto one = Load(F32(), 1);
    ASSERT_TRUE(one.ok()) << one.status();
    ExpectFirstTokensNear(RunOn(F32(), 2), AnswersOf(**one));
    // Scales and the like are no parameters, wherever they are.
    ThreadRanks::Options stages;
    stages.pipeline_size = 2;
    auto two = ThreadRanks::Create(directory_.string() + file_, F32(), stages);
    ASSERT_TRUE(two.ok()) << two.status();
    EXPECT_EQ((*two)->rank(0).num_parameters, (*one)->rank(0).num_parameters);
    EXPECT_EQ((*two)->rank(1).num_parameters, (*one)->rank(0).num_parameters);
  }
}

// Columns in act-order belong to groups all over the matrix: what is cut by
// columns is computed without its format, which a note says.
TEST_F(TensorParallelTest, ActOrder) {
  file_ = "/gptq_act_order";
  fs::create_directory_symlink(
      fs::absolute("tests/testdata/quantized/gptq_act_order"),
      directory_.string() + file_);
  auto one = Load(F32(), 1);
  auto two = Load(F32(), 2);
  ASSERT_TRUE(one.ok() && two.ok()) << one.status() << two.status();
  EXPECT_THAT((*two)->rank(1).warnings,
              testing::Contains(testing::HasSubstr(
                  "they are cut where the format cannot be")));
  ExpectFirstTokensNear(AnswersOf(**two), AnswersOf(**one));
}

// 12 heads and 3 KV heads: two ranks cannot have whole KV heads.
TEST_F(TensorParallelTest, ASplitThatIsNoneNamesTheSizesThatWork) {
  RandomFamilyShape shape;
  shape.num_heads = 12;
  shape.num_kv_heads = 3;
  shape.hidden_size = 192;
  Write("llama", shape);
  const auto refused = Load(F32(), 2);
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(refused.status().message()),
              testing::HasSubstr("over 1, 3, 6 or 12"));
  ExpectSameOn(F32(), {3, 6}, Split::kInexact);

  shape = RandomFamilyShape();
  shape.intermediate_size = 512;
  Write("llama", shape);
  LoadOptions options = F32();
  options.quantization = QuantizationScheme{.format = QuantFormat::kQ4_K};
  const auto too_few = Load(options, 4);
  EXPECT_EQ(too_few.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(
      std::string(too_few.status().message()),
      testing::AllOf(testing::HasSubstr("intermediate_size 512"),
                     testing::HasSubstr("with these weights 1 or 2 work")));
}

// What can be told from headers alone, before any process is started: blocks
// of 256 columns make two parts of 512, and of 1280 five.
TEST_F(TensorParallelTest, HeadersSayOverHowManyRanksAModelCanBeSplit) {
  RandomFamilyShape shape = WideShape();
  shape.intermediate_size = 512;
  Write("llama", shape);
  const auto dense = TensorSplit::Open(directory_.string(), std::nullopt);
  ASSERT_TRUE(dense.ok()) << dense.status();
  EXPECT_TRUE(dense->Check(4).ok());
  EXPECT_TRUE(dense->Check(8).ok());
  EXPECT_EQ(dense->Check(3).message(),
            "num_attention_heads 8 and num_key_value_heads 4 cannot be split "
            "over 3 ranks, but over 1, 2, 4 or 8");
  const std::string refused =
      "intermediate_size 512 can be cut every 256, into 2 parts at most, which "
      "is not enough for 4 ranks; with these weights 1 or 2 work";
  const auto quantized = TensorSplit::Open(
      directory_.string(), QuantizationScheme{.format = QuantFormat::kQ4_K});
  ASSERT_TRUE(quantized.ok()) << quantized.status();
  EXPECT_TRUE(quantized->Check(2).ok());
  EXPECT_EQ(quantized->Check(4).message(), refused);
  EXPECT_THAT(std::string(quantized->Check(3).message()),
              testing::HasSubstr("; with these weights 1 or 2 work"));

  GgufWriter writer;
  GgufExportOptions export_options;
  export_options.matrix_type = GgufTensorType::kQ4_K;
  const absl::Status status =
      ExportGgufModel(directory_.string(), export_options, &writer);
  ASSERT_TRUE(status.ok()) << status;
  const std::string path = directory_.string() + "/model.gguf";
  std::ofstream(path, std::ios::binary) << writer.Build();
  const auto gguf = TensorSplit::Open(path, std::nullopt);
  ASSERT_TRUE(gguf.ok()) << gguf.status();
  EXPECT_TRUE(gguf->Check(2).ok());
  EXPECT_EQ(gguf->Check(4).message(), refused);
  EXPECT_FALSE(TensorSplit::Open(path + "x", std::nullopt).ok());
}

// Over sockets, and with an 8-bit KV cache.
TEST_F(TensorParallelTest, SocketsAndAnInt8Cache) {
  Write("qwen2", RandomFamilyShape());
  LoadOptions options = F32();
  options.kv_cache_dtype = DType::kI8;
  auto one = Load(options, 1);
  ThreadRanks::Options group;
  group.tensor_size = 4;
  group.transport = HostTransport::kSockets;
  auto four = ThreadRanks::Create(directory_.string(), options, group);
  ASSERT_TRUE(one.ok() && four.ok()) << one.status() << four.status();
  const Answers expected = AnswersOf(**one);
  const Answers found = AnswersOf(**four);
  ExpectNear(found, expected, Split::kExact);
  // Every run gives the same bits.
  auto again = ThreadRanks::Create(directory_.string(), options, group);
  ASSERT_TRUE(again.ok()) << again.status();
  const Answers repeated = AnswersOf(**again);
  for (const auto& [key, answer] : found) {
    const std::vector<TokenOutput>& tokens = repeated.at(key).tokens;
    ASSERT_EQ(tokens.size(), answer.tokens.size());
    for (size_t i = 0; i < tokens.size(); ++i) {
      EXPECT_EQ(tokens[i].token_id, answer.tokens[i].token_id);
      EXPECT_EQ(tokens[i].logprob, answer.tokens[i].logprob);
    }
  }
}

}  // namespace
}  // namespace quire
