// A draft model beside a target: what it computes anew and what it does not,
// where it stops, and that it works on a GPU's backend.
#include "engine/speculative/model_drafter.h"

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/base/clock.h"
#include "engine/base/random.h"
#include "engine/engine.h"
#include "gtest/gtest.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/device_emulated.h"
#include "tests/model_harness.h"

namespace quire {
namespace {

constexpr char kModel[] = "tests/testdata/goldens/llama_linear";

class ModelDrafterTest : public testing::Test {
 protected:
  void Load(ModelHarness::Options options, int draft_model_len = 0) {
    auto target = ModelHarness::Create(kModel, options);
    ASSERT_TRUE(target.ok()) << target.status();
    target_ = *std::move(target);
    auto drafter = target_->MakeDrafter(kModel, draft_model_len);
    ASSERT_TRUE(drafter.ok()) << drafter.status();
    drafter_ = *std::move(drafter);
  }

  void MakeEngine(int num_blocks, Drafter* drafter) {
    const LoadedModel& loaded = target_->model();
    const EngineOptions options =
        target_->MakeEngineOptions(num_blocks, drafter == nullptr ? 0 : 4);
    auto engine =
        Engine::Create(options, loaded.runner.get(), &clock_, drafter);
    ASSERT_TRUE(engine.ok()) << engine.status();
    engine_ = *std::move(engine);
  }

  void Add(RequestId id, std::vector<int32_t> prompt, int max_tokens,
           int n = 1) {
    Request request;
    request.id = id;
    request.n = n;
    request.prompt_token_ids = std::move(prompt);
    request.sampling.temperature = 0;
    request.sampling.max_tokens = max_tokens;
    request.sampling.ignore_eos = true;
    ASSERT_TRUE(engine_->AddRequest(request).ok());
  }
  // Returns all tokens of all requests, in order of the events.
  std::vector<std::vector<int32_t>> RunOn(int num_requests) {
    std::vector<OutputEvent> events;
    while (engine_->HasWork()) engine_->Step(&events);
    std::vector<std::vector<int32_t>> tokens(num_requests);
    for (const OutputEvent& event : events) {
      EXPECT_TRUE(event.error.ok()) << event.error;
      if (event.choice_idx > 0) continue;
      for (const TokenOutput& token : event.tokens) {
        tokens[event.request_id - 1].push_back(token.token_id);
      }
    }
    return tokens;
  }
  std::vector<int32_t> Prompt(int num_tokens, uint64_t seed) {
    SimulationRandom random(seed);
    std::vector<int32_t> prompt(num_tokens);
    for (int32_t& id : prompt) id = random.Below(target_->vocab_size());
    return prompt;
  }

  FakeClock clock_;
  std::unique_ptr<ModelHarness> target_;
  std::unique_ptr<ModelDrafter> drafter_;
  std::unique_ptr<Engine> engine_;
};

TEST_F(ModelDrafterTest, ASharedPrefixIsComputedOnce) {
  Load(ModelHarness::Options());
  MakeEngine(40, drafter_.get());
  const std::vector<int32_t> prefix = Prompt(80, 1);
  Add(1, prefix, 20);
  RunOn(1);
  const int64_t num_first = drafter_->num_context_tokens();
  // The prompt, and at most two tokens for each proposal.
  EXPECT_GE(num_first, 80);
  EXPECT_LE(num_first, 80 + 2 * 20);
  std::vector<int32_t> longer = prefix;
  longer.push_back(7);
  Add(2, longer, 20);
  RunOn(2);
  EXPECT_LE(drafter_->num_context_tokens() - num_first, 1 + 2 * 20);
  EXPECT_EQ(engine_->Stats().num_accepted_tokens,
            engine_->Stats().num_draft_tokens);
}

TEST_F(ModelDrafterTest, OtherPrefixesInTheSameBlocksAreNotTakenForIt) {
  Load(ModelHarness::Options());
  // So few that every request gets the blocks of the one before.
  MakeEngine(8, drafter_.get());
  for (RequestId id = 1; id <= 6; ++id) {
    Add(id, Prompt(70, id), 30);
    RunOn(id);
  }
  EXPECT_GT(engine_->Stats().num_draft_tokens, 100);
  EXPECT_EQ(engine_->Stats().num_accepted_tokens,
            engine_->Stats().num_draft_tokens);
}

TEST_F(ModelDrafterTest, ChoicesAndPreemptedSequencesAreDraftedForRightly) {
  Load(ModelHarness::Options());
  MakeEngine(14, drafter_.get());
  for (RequestId id = 1; id <= 4; ++id) Add(id, Prompt(21, id), 60, 2);
  RunOn(4);
  EXPECT_GT(engine_->Stats().num_preemptions, 0);
  EXPECT_GT(engine_->Stats().num_draft_tokens, 200);
  EXPECT_EQ(engine_->Stats().num_accepted_tokens,
            engine_->Stats().num_draft_tokens);
}

TEST_F(ModelDrafterTest, ALongContextIsCaughtUpInPieces) {
  ModelHarness::Options options;
  options.max_num_batched_tokens = 32;
  Load(options);
  MakeEngine(60, drafter_.get());
  for (RequestId id = 1; id <= 3; ++id) Add(id, Prompt(100, id), 40);
  RunOn(3);
  EXPECT_GT(engine_->Stats().num_draft_tokens, 50);
  EXPECT_EQ(engine_->Stats().num_accepted_tokens,
            engine_->Stats().num_draft_tokens);
}

// Compares what the drafter says that it misses with what it then computes.
class AskedDrafter : public Drafter {
 public:
  explicit AskedDrafter(ModelDrafter* inner) : inner_(inner) {}
  absl::string_view method() const override { return inner_->method(); }
  bool is_costly() const override { return true; }
  int NumMissingTokens(const DraftSequence& sequence) override {
    const int num_missing = inner_->NumMissingTokens(sequence);
    EXPECT_EQ(inner_->NumMissingTokens(sequence), num_missing);
    missing_[sequence.sequence_id] = num_missing;
    return num_missing;
  }
  int num_caught_up_tokens() const override {
    return inner_->num_caught_up_tokens();
  }
  absl::Status Propose(absl::Span<const DraftSequence> sequences,
                       absl::Span<Draft> drafts) override {
    const int64_t num_before = inner_->num_context_tokens();
    const absl::Status status = inner_->Propose(sequences, drafts);
    int num_missing = 0;
    for (const DraftSequence& sequence : sequences) {
      num_missing += missing_.at(sequence.sequence_id);
    }
    EXPECT_EQ(inner_->num_caught_up_tokens(), num_missing);
    // And the last token of each.
    EXPECT_EQ(inner_->num_context_tokens() - num_before,
              num_missing + static_cast<int64_t>(sequences.size()));
    num_missing_ += num_missing;
    return status;
  }
  int num_missing() const { return num_missing_; }

 private:
  ModelDrafter* const inner_;
  std::map<uint64_t, int> missing_;
  int num_missing_ = 0;
};

TEST_F(ModelDrafterTest, SaysWhatItMisses) {
  ModelHarness::Options options;
  options.max_num_batched_tokens = 512;
  Load(options);
  AskedDrafter asked(drafter_.get());
  MakeEngine(60, &asked);
  for (RequestId id = 1; id <= 3; ++id) Add(id, Prompt(30 * id, id), 20, 2);
  RunOn(3);
  // The prompts; the second choices take over whole blocks of them.
  EXPECT_GE(asked.num_missing(), 30 + 60 + 90);
  EXPECT_LE(asked.num_missing(), 30 + 60 + 90 + 3 * 16 + 6 * 20);
}

TEST_F(ModelDrafterTest, BeyondItsContextNothingIsDrafted) {
  Load(ModelHarness::Options(), /*draft_model_len=*/64);
  MakeEngine(40, nullptr);
  Add(1, Prompt(40, 1), 100);
  Add(2, Prompt(90, 2), 10);
  const auto expected = RunOn(2);
  MakeEngine(40, drafter_.get());
  Add(1, Prompt(40, 1), 100);
  Add(2, Prompt(90, 2), 10);
  EXPECT_EQ(RunOn(2), expected);
  EXPECT_TRUE(engine_->DrafterHealth().ok()) << engine_->DrafterHealth();
  // The first 24 tokens, four of five drafted.
  EXPECT_GT(engine_->Stats().num_draft_tokens, 12);
  EXPECT_LE(engine_->Stats().num_draft_tokens, 24);
}

class EmulatedModelDrafterTest : public ModelDrafterTest {
 protected:
  void SetUp() override {
    ModelHarness::Options options;
    options.make_backend = [] { return CudaBackend::Create({}).value(); };
    options.dtype = DType::kBF16;
    options.kv_cache_dtype = DType::kBF16;
    options.kv_cache_memory_bytes = 16 << 20;
    options.max_num_seqs = 2;
    options.max_num_batched_tokens = 64;
    options.max_model_len = 96;
    Load(options);
  }
};

// With two steps in flight, each of a chain takes its token on the device.
TEST_F(EmulatedModelDrafterTest, DraftsOnAGpu) {
  ASSERT_EQ(drafter_->model().runner->steps_in_flight(), 2);
  MakeEngine(20, nullptr);
  Add(1, Prompt(20, 1), 14);
  Add(2, Prompt(30, 2), 14);
  const auto expected = RunOn(2);
  MakeEngine(20, drafter_.get());
  Add(1, Prompt(20, 1), 14);
  Add(2, Prompt(30, 2), 14);
  // No near-tie is among these tokens.
  EXPECT_EQ(RunOn(2), expected);
  const EngineStats stats = engine_->Stats();
  EXPECT_GT(stats.num_draft_tokens, 16);
  EXPECT_GT(stats.num_accepted_tokens, stats.num_draft_tokens * 9 / 10);
}

TEST_F(EmulatedModelDrafterTest, AFailureEndsDraftingAndNothingElse) {
  MakeEngine(20, nullptr);
  Add(1, Prompt(20, 1), 14);
  const auto expected = RunOn(1);
  MakeEngine(20, drafter_.get());
  Add(1, Prompt(20, 1), 14);
  cuda::InjectFault(
      static_cast<CudaBackend&>(*drafter_->model().backend).device(), 60);
  EXPECT_EQ(RunOn(1), expected);
  EXPECT_EQ(engine_->Stats().num_drafter_failures, 1);
  EXPECT_TRUE(engine_->Health().ok()) << engine_->Health();
  EXPECT_FALSE(engine_->DrafterHealth().ok());
}

}  // namespace
}  // namespace quire
