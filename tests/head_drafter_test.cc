// Heads that draft from the target's hidden states: each draft and how likely
// it is are what an oracle in PyTorch says (tools/goldens/
// make_draft_head_goldens.py), for every prefix of an answer.
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "engine/base/clock.h"
#include "engine/engine.h"
#include "engine/speculative/drafter.h"
#include "engine/speculative/speculative_config.h"
#include "gtest/gtest.h"
#include "kernels/cuda/cuda_backend.h"
#include "nlohmann/json.hpp"
#include "tests/model_harness.h"

namespace quire {
namespace {

using Json = nlohmann::json;

constexpr char kHeads[] = "tests/testdata/draft_heads/";
constexpr char kTarget[] = "tests/testdata/goldens/llama";
constexpr int kNumDrafts = 4;

// Remembers what another one proposes for the sequences with so long a prompt,
// by the tokens known then.
class WatchedDrafter : public Drafter {
 public:
  WatchedDrafter(Drafter* inner, size_t num_prompt_tokens)
      : inner_(inner), num_prompt_tokens_(num_prompt_tokens) {}
  std::multimap<size_t, Draft> proposals;

  absl::string_view method() const override { return inner_->method(); }
  bool is_costly() const override { return true; }
  bool UsesTargetSteps() const override { return inner_->UsesTargetSteps(); }
  absl::Status ObserveStep(const TargetStep& step) override {
    return inner_->ObserveStep(step);
  }
  absl::Status Propose(absl::Span<const DraftSequence> sequences,
                       absl::Span<Draft> drafts) override {
    const absl::Status status = inner_->Propose(sequences, drafts);
    for (size_t i = 0; i < sequences.size(); ++i) {
      const DraftSequence& sequence = sequences[i];
      if (size_t(sequence.num_prompt_tokens) != num_prompt_tokens_) continue;
      proposals.emplace(sequence.token_ids.size(), drafts[i]);
    }
    return status;
  }

 private:
  Drafter* const inner_;
  const size_t num_prompt_tokens_;
};

struct Case {
  const char* name;
  DraftMethod method;
};

class HeadDrafterTest : public testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    std::ifstream file(absl::StrCat(kHeads, GetParam().name, "/golden.json"));
    golden_ = Json::parse(file);
    num_tokens_ = static_cast<int>(golden_["greedy"].size());
  }
  void Load(ModelHarness::Options options) {
    const std::string head = absl::StrCat(kHeads, GetParam().name);
    const bool is_mtp = GetParam().method == DraftMethod::kMtp;
    options.speculative.method = GetParam().method;
    options.speculative.num_speculative_tokens = kNumDrafts;
    if (!is_mtp) options.speculative.model = head;
    auto target = ModelHarness::Create(is_mtp ? head : kTarget, options);
    ASSERT_TRUE(target.ok()) << target.status();
    target_ = *std::move(target);
    watched_ =
        std::make_unique<WatchedDrafter>(target_->drafter(), Prompt().size());
  }
  // Returns the answers' tokens.
  std::vector<std::vector<int32_t>> Run(
      const std::vector<std::vector<int32_t>>& prompts, int num_blocks,
      Drafter* drafter) {
    const LoadedModel& loaded = target_->model();
    const EngineOptions options = target_->MakeEngineOptions(
        num_blocks, drafter == nullptr ? 0 : kNumDrafts);
    auto engine =
        Engine::Create(options, loaded.runner.get(), &clock_, drafter);
    EXPECT_TRUE(engine.ok()) << engine.status();
    for (size_t i = 0; i < prompts.size(); ++i) {
      Request request;
      request.id = i + 1;
      request.prompt_token_ids = prompts[i];
      request.sampling.temperature = 0;
      request.sampling.max_tokens = num_tokens_;
      request.sampling.ignore_eos = true;
      EXPECT_TRUE((*engine)->AddRequest(request).ok());
    }
    std::vector<OutputEvent> events;
    while ((*engine)->HasWork()) (*engine)->Step(&events);
    EXPECT_TRUE((*engine)->DrafterHealth().ok()) << (*engine)->DrafterHealth();
    std::vector<std::vector<int32_t>> tokens(prompts.size());
    for (const OutputEvent& event : events) {
      EXPECT_TRUE(event.error.ok()) << event.error;
      for (const TokenOutput& token : event.tokens) {
        tokens[event.request_id - 1].push_back(token.token_id);
      }
    }
    stats_ = (*engine)->Stats();
    return tokens;
  }
  std::vector<int32_t> Prompt() const { return golden_["prompt"]; }
  std::vector<int32_t> Greedy() const { return golden_["greedy"]; }

  void ExpectOraclesDrafts(double tolerance) {
    int num_drafts = 0;
    for (const auto& [num_tokens, draft] : watched_->proposals) {
      SCOPED_TRACE(absl::StrCat("after ", num_tokens, " tokens"));
      const Json& chain = golden_["drafts"][std::to_string(num_tokens)];
      ASSERT_LE(draft.token_ids.size(), chain.size());
      // All but at the answer's end, where fewer are asked for.
      for (size_t k = 0; k < draft.token_ids.size(); ++k) {
        ++num_drafts;
        EXPECT_EQ(draft.token_ids[k], chain[k][0].get<int32_t>());
        EXPECT_NEAR(draft.probabilities[k], chain[k][1].get<double>(),
                    tolerance);
      }
    }
    EXPECT_GT(num_drafts, 40);
  }

  FakeClock clock_;
  Json golden_;
  int num_tokens_ = 0;  // Of an answer.
  std::unique_ptr<ModelHarness> target_;
  std::unique_ptr<WatchedDrafter> watched_;
  EngineStats stats_;
};

// The tolerance: f32 against f64 through four forwards, as for logits in
// tests/golden_logits_test.
TEST_P(HeadDrafterTest, DraftsAreTheOracles) {
  Load(ModelHarness::Options());
  EXPECT_EQ(Run({Prompt()}, 20, watched_.get())[0], Greedy());
  ExpectOraclesDrafts(1e-4);
}

TEST_P(HeadDrafterTest, InChunksAndAmongOthersToo) {
  ModelHarness::Options options;
  options.max_num_batched_tokens = 16;
  Load(options);
  const std::vector<std::vector<int32_t>> others = {
      {5, 6, 7},
      {9, 8, 7, 6, 5, 4, 3, 9, 9, 9, 10, 11, 12, 13, 14, 15, 16, 17}};
  const auto expected = Run(others, 30, nullptr);
  // A whole prefix of the prompt's first block is found in the cache.
  const auto answers =
      Run({others[0], Prompt(), others[1], Prompt()}, 30, watched_.get());
  EXPECT_EQ(answers[0], expected[0]);
  EXPECT_EQ(answers[2], expected[1]);
  EXPECT_EQ(answers[1], Greedy());
  EXPECT_EQ(answers[3], Greedy());
  EXPECT_GT(stats_.num_draft_tokens, 100);
  // And so are the drafts for both of them, those of a whole run.
  ExpectOraclesDrafts(1e-4);
  EXPECT_GT(watched_->proposals.size(), 20u);
  // Alone, after others' prefix, as well.
  watched_->proposals.clear();
  EXPECT_EQ(Run({Prompt()}, 20, watched_.get())[0], Greedy());
  ExpectOraclesDrafts(1e-4);
}

TEST_P(HeadDrafterTest, DraftsOnAGpu) {
  ModelHarness::Options options;
  options.make_backend = [] { return CudaBackend::Create({}).value(); };
  options.dtype = DType::kBF16;
  options.kv_cache_dtype = DType::kBF16;
  options.kv_cache_memory_bytes = 16 << 20;
  options.max_num_seqs = 2;
  options.max_num_batched_tokens = 64;
  options.max_model_len = 96;
  Load(options);
  num_tokens_ = 8;
  const auto expected = Run({Prompt(), {5, 6, 7, 8}}, 20, nullptr);
  EXPECT_EQ(Run({Prompt(), {5, 6, 7, 8}}, 20, watched_.get()), expected);
  EXPECT_GT(stats_.num_draft_tokens, 20);
  // In bf16 some draws differ. Of the first drafts of each chain, for as long
  // as the answer is the oracle's, most are the same.
  size_t num_alike = 0;
  while (num_alike < expected[0].size() &&
         expected[0][num_alike] == Greedy()[num_alike]) {
    ++num_alike;
  }
  int num_same = 0, num_all = 0;
  for (const auto& [num_tokens, draft] : watched_->proposals) {
    const Json& drafts = golden_["drafts"];
    if (num_tokens > Prompt().size() + num_alike || draft.token_ids.empty() ||
        !drafts.contains(std::to_string(num_tokens))) {
      continue;
    }
    ++num_all;
    num_same += draft.token_ids[0] ==
                drafts[std::to_string(num_tokens)][0][0].get<int32_t>();
  }
  std::printf("%d of %d drafts as the oracle's\n", num_same, num_all);
  EXPECT_GT(num_all, 0);
  EXPECT_GE(num_same, num_all * 3 / 4);
}

// A head in f16 and f32 computes on the target's activations, which are bf16.
TEST(MixedDTypesTest, OnAGpuAHeadHasItsTargetsDType) {
  ModelHarness::Options options;
  options.make_backend = [] { return CudaBackend::Create({}).value(); };
  options.dtype = std::nullopt;  // As stored.
  options.kv_cache_dtype = DType::kBF16;
  options.kv_cache_memory_bytes = 16 << 20;
  options.max_num_seqs = 2;
  options.max_num_batched_tokens = 64;
  options.max_model_len = 96;
  options.speculative.method = DraftMethod::kEagle3;
  options.speculative.num_speculative_tokens = kNumDrafts;
  options.speculative.model = absl::StrCat(kHeads, "eagle3_authors");
  auto target = ModelHarness::Create(kTarget, options);
  ASSERT_TRUE(target.ok()) << target.status();
  EngineOptions engine_options = (*target)->MakeEngineOptions(20, kNumDrafts);
  FakeClock clock;
  auto engine = Engine::Create(engine_options, (*target)->model().runner.get(),
                               &clock, (*target)->drafter());
  ASSERT_TRUE(engine.ok()) << engine.status();
  Request request;
  request.id = 1;
  request.prompt_token_ids = {5, 6, 7, 8};
  request.sampling.temperature = 0;
  request.sampling.max_tokens = 8;
  request.sampling.ignore_eos = true;
  ASSERT_TRUE((*engine)->AddRequest(request).ok());
  std::vector<OutputEvent> events;
  while ((*engine)->HasWork()) (*engine)->Step(&events);
  EXPECT_TRUE((*engine)->DrafterHealth().ok()) << (*engine)->DrafterHealth();
  EXPECT_GT((*engine)->Stats().num_draft_tokens, 5);
}

// A head whose tensors say what cannot be: an error that names file and tensor.
TEST(BadHeadTest, IdsOutsideTheVocabulary) {
  const std::string source = absl::StrCat(kHeads, "eagle3");
  const std::string copy = testing::TempDir() + "/bad_head";
  for (const int64_t offset :
       {int64_t{-1}, int64_t{320}, INT64_MAX, INT64_MIN}) {
    std::filesystem::remove_all(copy);
    std::filesystem::create_directories(copy);
    std::filesystem::copy(source + "/config.json", copy + "/config.json");
    std::ifstream in(source + "/model.safetensors", std::ios::binary);
    std::string file((std::istreambuf_iterator<char>(in)),
                     std::istreambuf_iterator<char>());
    uint64_t header_size;
    std::memcpy(&header_size, file.data(), sizeof(header_size));
    const Json header = Json::parse(file.substr(8, header_size));
    const size_t begin = header["d2t"]["data_offsets"][0];
    std::memcpy(&file[8 + header_size + begin], &offset, sizeof(offset));
    std::ofstream(copy + "/model.safetensors", std::ios::binary) << file;
    ModelHarness::Options options;
    options.speculative.method = DraftMethod::kEagle3;
    options.speculative.model = copy;
    const absl::Status status = ModelHarness::Create(kTarget, options).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
    EXPECT_TRUE(absl::StrContains(status.message(), "d2t")) << status;
    EXPECT_TRUE(absl::StrContains(status.message(), copy)) << status;
  }
}

INSTANTIATE_TEST_SUITE_P(
    Heads, HeadDrafterTest,
    testing::Values(Case{"eagle3", DraftMethod::kEagle3},
                    Case{"eagle3_own_embedding", DraftMethod::kEagle3},
                    Case{"eagle3_authors", DraftMethod::kEagle3},
                    Case{"eagle3_speculators", DraftMethod::kEagle3},
                    Case{"mimo", DraftMethod::kMtp}),
    [](const auto& info) { return std::string(info.param.name); });

}  // namespace
}  // namespace quire
