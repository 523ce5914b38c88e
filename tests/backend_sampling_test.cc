// Whole steps of Sample on the CPU backend and on an emulated GPU against
// kernels/reference: slots that come and go, drafts accepted and rejected,
// tokens taken from the device, penalties that follow what was drawn,
// log-probabilities, broken rows.
#include <algorithm>
#include <cmath>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/parallel/sharding.h"
#include "gtest/gtest.h"
#include "kernels/host_communicator_test_group.h"
#include "kernels/reference.h"
#include "tests/backend_harness.h"

namespace quire {
namespace {

constexpr int kVocabSize = 131;
constexpr int kNumSlots = 6;
constexpr int kMaxTokens = 64;
constexpr int kMaxLogits = 40;
constexpr int kMaxModelLen = 96;
constexpr int kEmbeddedCols = 8;
constexpr int kNumFew = 4;  // Ids of histories, bad words and breakers.

class BackendSamplingTest : public testing::TestWithParam<TestBackend> {};

INSTANTIATE_TEST_SUITE_P(Backends, BackendSamplingTest,
                         testing::ValuesIn(AllTestBackends()), TestBackendName);

// A backend whose steps embed their tokens (to see which they are) and sample
// from given logits.
class SamplingRunner {
 public:
  // ranks: null, or those of which each gets a slice of the logits.
  SamplingRunner(Backend& backend, DType activations,
                 Communicator* ranks = nullptr)
      : backend_(backend), ranks_(ranks) {
    // Below 256, hence exact in any dtype.
    std::vector<float> ids(kVocabSize * kEmbeddedCols);
    for (size_t i = 0; i < ids.size(); ++i) ids[i] = i / kEmbeddedCols;
    table_ = HostMatrix(kVocabSize, kEmbeddedCols, activations, ids);
    LinearSpec spec;
    spec.kind = LinearKind::kVocab;
    spec.parts = {{table_.view(), QuantFormat::kDense}};
    weight_ = CheckOk(backend.PackLinear(spec));
    embedded_ = backend.AddActivation(kEmbeddedCols, activations,
                                      ActivationRows::kTokens);
    if (ranks != nullptr) {
      slice_size_ =
          CheckOk(ShardVocab(kVocabSize, {ranks->rank(), ranks->size()}))
              .slice_size;
    }
    logits_ = backend.AddActivation(slice_size_, DType::kF32,
                                    ActivationRows::kLogitRows);
    EngineShape shape;
    shape.tensor_ranks = ranks;
    shape.max_num_seqs = kNumSlots;
    shape.max_num_tokens = kMaxTokens;
    shape.max_logit_rows = kMaxLogits;
    shape.max_model_len = kMaxModelLen;
    shape.vocab_size = kVocabSize;
    shape.steps_in_flight = 2;
    num_blocks_ = CheckOk(backend.Prepare(shape)).num_blocks;
  }

  int num_blocks() const { return num_blocks_; }

  struct Result {
    std::vector<float> tokens_in;
    std::vector<RowResult> rows;  // Valid until the second next step.
  };

  Result Run(const StepPlan& plan, int num_tokens,
             const std::vector<float>& logits) {
    Result result;
    const auto rows = RunStep(backend_, plan, [&](Step& step) {
      CopyIn(backend_, SliceOf(logits), backend_.Activation(logits_));
      CheckOk(backend_.Embed(step, *weight_, nullptr, 1.0f,
                             backend_.Activation(embedded_)));
      result.tokens_in =
          CopyOut(backend_, backend_.Activation(embedded_), num_tokens);
      CheckOk(backend_.Sample(step, backend_.Activation(logits_)));
    });
    result.rows.assign(rows.begin(), rows.end());
    return result;
  }

 private:
  // Beyond the vocabulary a slice has what must not be read.
  std::vector<float> SliceOf(const std::vector<float>& logits) const {
    if (ranks_ == nullptr) return logits;
    std::vector<float> slice;
    for (size_t row = 0; row < logits.size() / kVocabSize; ++row) {
      for (int64_t i = 0; i < slice_size_; ++i) {
        const int64_t id = ranks_->rank() * slice_size_ + i;
        slice.push_back(id < kVocabSize ? logits[row * kVocabSize + id] : NAN);
      }
    }
    return slice;
  }

  Backend& backend_;
  Communicator* const ranks_;
  int64_t slice_size_ = kVocabSize;
  HostMatrix table_;
  std::unique_ptr<PackedWeight> weight_;
  int embedded_ = 0;
  int logits_ = 0;
  int num_blocks_ = 0;
};

// The same on several ranks, a thread each: what rank 0 finds, which all must.
class SamplingRanks {
 public:
  // make_backend: of each rank.
  SamplingRanks(int size, DType activations,
                const std::function<std::unique_ptr<Backend>()>& make_backend)
      : group_(HostTransport::kSharedMemory, size) {
    for (int rank = 0; rank < size; ++rank) {
      backends_.push_back(make_backend());
      runners_.push_back(std::make_unique<SamplingRunner>(
          *backends_[rank], activations,
          size > 1 ? group_[rank].get() : nullptr));
    }
  }

  int num_blocks() const { return runners_[0]->num_blocks(); }

  SamplingRunner::Result Run(const StepPlan& plan, int num_tokens,
                             const std::vector<float>& logits) {
    std::vector<SamplingRunner::Result> results(runners_.size());
    group_.Run([&](Communicator& ranks) {
      results[ranks.rank()] =
          runners_[ranks.rank()]->Run(plan, num_tokens, logits);
      return absl::OkStatus();
    });
    for (const SamplingRunner::Result& result : results) {
      EXPECT_EQ(result.tokens_in, results[0].tokens_in);
      EXPECT_EQ(result.rows.size(), results[0].rows.size());
      for (size_t i = 0; i < result.rows.size(); ++i) {
        const RowResult& a = result.rows[i];
        const RowResult& b = results[0].rows[i];
        EXPECT_EQ(a.tokens, b.tokens);
        EXPECT_EQ(a.non_finite, b.non_finite);
        EXPECT_EQ(a.all_masked, b.all_masked);
        if (a.non_finite) continue;
        EXPECT_EQ(a.logprobs, b.logprobs);
        EXPECT_EQ(a.top_ids, b.top_ids);
        EXPECT_EQ(a.top_logprobs, b.top_logprobs);
        EXPECT_EQ(a.scored_logprobs, b.scored_logprobs);
        EXPECT_EQ(a.scored_top_ids, b.scored_top_ids);
        EXPECT_EQ(a.scored_ranks, b.scored_ranks);
      }
    }
    return results[0];
  }

 private:
  HostTestGroup group_;
  std::vector<std::unique_ptr<Backend>> backends_;
  std::vector<std::unique_ptr<SamplingRunner>> runners_;
};

SlotParams RandomParams(SimulationRandom& random) {
  SlotParams params;
  const auto one_in = [&random](int n) { return random.Below(n) == 0; };
  params.temperature = one_in(2) ? 0.0f : 0.7f;
  if (one_in(4)) {
    // What slices of the vocabulary tell without being gathered.
    if (one_in(2)) params.num_logprobs = one_in(2) ? 0 : 4;
    if (one_in(2)) params.bias_ids = {3, 130}, params.bias = {2.0f, 1.0f};
    params.draw_key = random.Next();
    return params;
  }
  if (one_in(2)) params.top_k = random.Between(1, 30);
  if (one_in(2)) params.top_p = 0.8f;
  if (one_in(3)) params.min_p = 0.02f;
  if (one_in(2)) params.repetition_penalty = 1.3f;
  if (one_in(2)) params.frequency_penalty = 0.4f;
  if (one_in(2)) params.presence_penalty = -0.3f;
  if (one_in(2)) params.num_logprobs = random.Below(6);
  if (one_in(2)) params.num_prompt_logprobs = random.Below(6);
  params.draw_key = random.Next();
  if (one_in(3)) {
    params.bias_ids = {3, 130};
    params.bias = {2.0f, -INFINITY};
  }
  if (one_in(4)) params.allowed_ids = {1, 2, 3, 5, 8, 13, 21, 34, 55, 89};
  if (one_in(3)) {
    params.banned_before_min = {0, 7};
    params.min_tokens = random.Between(1, 20);
  }
  if (one_in(4)) params.top_n_sigma = 1.5f;
  if (one_in(4)) params.typical_p = 0.7f;
  if (one_in(4)) params.dynatemp_range = 0.5f;
  if (one_in(4)) {
    params.xtc_probability = 0.6f;
    params.xtc_threshold = 0.05f;
  }
  // Over the few ids that are often drawn and often drafted.
  const auto few = [&] { return static_cast<int32_t>(random.Below(kNumFew)); };
  for (int i = one_in(2) ? 6 : 0; i > 0; --i) {
    params.bad_word_lengths.push_back(random.Between(1, 3));
    for (int j = 0; j < params.bad_word_lengths.back(); ++j) {
      params.bad_word_ids.push_back(few());
    }
  }
  if (one_in(2)) {
    params.dry_multiplier = 3.0f;
    params.dry_allowed_length = random.Between(0, 2);
    params.dry_penalty_last_n = one_in(2) ? -1 : random.Between(1, 40);
    if (one_in(2)) {
      params.dry_breakers = std::make_shared<TokenSequenceSet>(
          std::vector<std::vector<int32_t>>{{few()}, {few(), few()}});
    }
  }
  return params;
}

// f32 sums of up to 64 terms within a chunk, exp within 2 ulp, one rounding.
double LogprobTolerance(double value) {
  return 70 * 0x1p-24 + 2 * 0x1p-24 * std::abs(value);
}

void ExpectSameLogprobs(absl::Span<const float> got,
                        absl::Span<const float> expected) {
  ASSERT_EQ(got.size(), expected.size());
  for (size_t i = 0; i < got.size(); ++i) {
    ASSERT_TRUE(std::abs(got[i] - expected[i]) <= LogprobTolerance(expected[i]))
        << got[i] << " vs " << expected[i];
  }
}

// The host's view of a sequence while it plans.
struct Planned {
  bool is_active = false;
  int num_computed = 0;
  int num_blocks = 0;
  int32_t last_token = -1;
};

class Planner {
 public:
  Planner(int num_blocks, SimulationRandom& random)
      : num_blocks_(num_blocks), random_(random) {}

  // Random rows for random slots; starts and restarts sequences.
  void Plan() {
    updates_.clear();
    histories_.assign(kNumSlots, {});
    blocks_.assign(kNumSlots, {});
    params_.assign(kNumSlots, SlotParams());
    rows_.clear();
    token_ids_.clear();
    scored_ids_.clear();
    num_tokens_ = 0;
    num_logits_ = 0;
    for (int slot = 0; slot < kNumSlots; ++slot) {
      if (random_.Below(3) == 0) continue;
      PlanRow(slot);
    }
  }

  StepPlan plan() const {
    StepPlan plan;
    plan.updates = updates_;
    plan.rows = rows_;
    plan.token_ids = token_ids_;
    plan.scored_ids = scored_ids_;
    return plan;
  }
  int num_tokens() const { return num_tokens_; }
  int num_logits() const { return num_logits_; }
  const std::vector<int32_t>& drafts_of(int logit_row) const {
    return drafts_.at(logit_row);
  }
  const std::map<int, std::vector<int32_t>>& drafts() const { return drafts_; }

  void Update(const std::vector<RowResult>& results) {
    std::map<int, const RowResult*> by_slot;
    for (const RowResult& result : results) by_slot[result.slot] = &result;
    for (const StepRow& row : rows_) {
      Planned& planned = planned_[row.slot];
      planned.num_computed += row.num_tokens;
      if (row.num_logits == row.num_scored) continue;
      const RowResult& result = *by_slot.at(row.slot);
      planned.num_computed -= row.num_logits - row.num_scored -
                              static_cast<int>(result.tokens.size());
      planned.last_token = result.tokens.back();
    }
    drafts_.clear();
  }

 private:
  void PlanRow(int slot) {
    Planned& planned = planned_[slot];
    if (!planned.is_active || planned.num_computed > kMaxModelLen - 12 ||
        random_.Below(12) == 0) {
      Start(slot);
    }
    StepRow row;
    row.slot = slot;
    row.num_tokens = random_.Between(1, 4);
    row.num_logits = random_.Below(4) == 0 ? 0 : 1;
    if (planned.last_token >= 0 && random_.Below(3) == 0) {
      row.source = TokenSource::kDeviceLast;
      row.num_tokens = 1;
    } else {
      if (random_.Below(2) == 0) {
        row.num_drafts = random_.Between(1, 5);
        row.num_tokens += row.num_drafts;
        row.num_logits = 1 + row.num_drafts;
      } else {
        row.num_scored = random_.Between(0, row.num_tokens - row.num_logits);
        row.num_logits += row.num_scored;
        for (int i = 0; i < row.num_scored; ++i) {
          scored_ids_.push_back(random_.Below(kVocabSize));
        }
      }
      std::vector<int32_t> ids(row.num_tokens);
      const int num_ids = random_.Below(2) == 0 ? kVocabSize : kNumFew;
      for (int32_t& id : ids) id = random_.Below(num_ids);
      if (row.num_drafts > 0) {
        drafts_[num_logits_] = {ids.end() - row.num_drafts, ids.end()};
      }
      token_ids_.insert(token_ids_.end(), ids.begin(), ids.end());
    }
    rows_.push_back(row);
    num_tokens_ += row.num_tokens;
    num_logits_ += row.num_logits;
  }

  void Start(int slot) {
    params_[slot] = RandomParams(random_);
    histories_[slot].resize(random_.Between(1, 30));
    const int num_ids = random_.Below(2) == 0 ? kVocabSize : kNumFew;
    for (int32_t& id : histories_[slot]) id = random_.Below(num_ids);
    for (int i = 0; i < num_blocks_; ++i) blocks_[slot].push_back(i);
    SlotUpdate update;
    update.slot = slot;
    update.params = &params_[slot];
    update.history = histories_[slot];
    update.num_prompt_tokens = random_.Between(1, histories_[slot].size());
    update.num_computed_tokens = histories_[slot].size() - 1;
    update.append_blocks = blocks_[slot];
    updates_.push_back(update);
    planned_[slot] = {true, update.num_computed_tokens, num_blocks_, -1};
  }

  int num_blocks_;
  SimulationRandom& random_;
  Planned planned_[kNumSlots];
  std::vector<SlotUpdate> updates_;
  std::vector<SlotParams> params_;
  std::vector<std::vector<int32_t>> histories_, blocks_;
  std::vector<StepRow> rows_;
  std::vector<int32_t> token_ids_;
  std::vector<int32_t> scored_ids_;
  std::map<int, std::vector<int32_t>> drafts_;  // By first logit row.
  int num_tokens_ = 0;
  int num_logits_ = 0;
};

// Random steps on `num_ranks` ranks against the reference on one.
void ExpectReference(
    const TestBackend& test_backend, int num_ranks, int num_steps,
    const std::function<std::unique_ptr<Backend>()>& make_backend) {
  using testing::Test;
  SimulationRandom random(1);
  ReferenceBackend reference;
  SamplingRunner expected_runner(reference, test_backend.activations);
  SamplingRanks got_runner(num_ranks, test_backend.activations, make_backend);
  ASSERT_EQ(expected_runner.num_blocks(), got_runner.num_blocks());
  Planner planner(got_runner.num_blocks(), random);
  int num_accepted = 0;
  int num_rejected = 0;
  int num_broken = 0;
  int num_broken_later = 0;  // Behind accepted drafts.
  int num_scored = 0;
  for (int i = 0; i < num_steps; ++i) {
    planner.Plan();
    std::vector<float> logits =
        RandomValues(random, int64_t{planner.num_logits()} * kVocabSize, 3.0);
    // Often one of the few wins, so that what was generated repeats.
    for (size_t row = 0; row < logits.size() / kVocabSize; ++row) {
      if (random.Below(2) == 0) {
        for (int id = 0; id < kNumFew; ++id) logits[row * kVocabSize + id] += 8;
      }
    }
    for (const auto& [row, drafts] : planner.drafts()) {
      // Most drafts are likely tokens.
      for (size_t j = 0; j < drafts.size(); ++j) {
        if (random.Below(5) > 0)
          logits[(row + j) * kVocabSize + drafts[j]] = 30;
      }
    }
    if (!logits.empty() && random.Below(5) == 0) {
      logits[random.Below(logits.size())] =
          random.Below(2) == 0 ? NAN : INFINITY;
    }
    const auto expected =
        expected_runner.Run(planner.plan(), planner.num_tokens(), logits);
    const auto got =
        got_runner.Run(planner.plan(), planner.num_tokens(), logits);
    ASSERT_EQ(got.tokens_in, expected.tokens_in) << "step " << i;
    ASSERT_EQ(got.rows.size(), expected.rows.size()) << "step " << i;
    for (size_t j = 0; j < got.rows.size(); ++j) {
      SCOPED_TRACE(absl::StrCat("step ", i, ", result ", j));
      const RowResult& a = got.rows[j];
      const RowResult& b = expected.rows[j];
      ASSERT_EQ(a.slot, b.slot);
      ASSERT_EQ(a.tokens, b.tokens);
      ASSERT_EQ(a.non_finite, b.non_finite);
      ASSERT_EQ(a.all_masked, b.all_masked);
      ASSERT_EQ(a.top_ids.size(), b.top_ids.size());
      // Of a broken token they mean nothing; the CPU reports zeros.
      if (a.non_finite && test_backend.is_cuda() && !a.tokens.empty()) {
        const size_t num_good = a.tokens.size() - 1;
        const size_t num_top = a.top_ids.size() / a.tokens.size();
        ASSERT_EQ(a.top_ids.first(num_good * num_top),
                  b.top_ids.first(num_good * num_top));
        if (!a.logprobs.empty()) {
          ExpectSameLogprobs(a.logprobs.first(num_good),
                             b.logprobs.first(num_good));
        }
      } else {
        ASSERT_EQ(a.top_ids, b.top_ids);
        ExpectSameLogprobs(a.logprobs, b.logprobs);
        ExpectSameLogprobs(a.top_logprobs, b.top_logprobs);
      }
      if (Test::HasFatalFailure()) return;
      if (!a.non_finite) {
        ExpectSameLogprobs(a.scored_logprobs, b.scored_logprobs);
        ExpectSameLogprobs(a.scored_top_logprobs, b.scored_top_logprobs);
        ASSERT_EQ(a.scored_ranks, b.scored_ranks);
        ASSERT_EQ(a.scored_top_ids, b.scored_top_ids);
      }
      if (Test::HasFatalFailure()) return;
      num_scored += static_cast<int>(a.scored_ranks.size());
      num_accepted += std::max(static_cast<int>(a.tokens.size()) - 1, 0);
      num_broken += a.non_finite ? 1 : 0;
      num_broken_later += a.non_finite && a.tokens.size() > 1;
    }
    for (const StepRow& row : planner.plan().rows)
      num_rejected += row.num_drafts;
    planner.Update(got.rows);
  }
  // The scenario covers what it claims to.
  EXPECT_GT(num_accepted, num_steps / 3);
  EXPECT_GT(num_rejected - num_accepted, num_steps / 3);
  EXPECT_GT(num_broken, num_steps / 30);
  EXPECT_GT(num_broken_later, 0);
  EXPECT_GT(num_scored, num_steps * 2 / 3);
}

TEST_P(BackendSamplingTest, RandomStepsEqualTheReference) {
  // The emulation takes 20 ms for a step, and every schedule of these kernels
  // is kernels/cuda/sampling_random_test's. Logits are f32 whatever the
  // activations are: f16 brings nothing but its own way through the backend.
  const int num_steps = !GetParam().is_cuda()                    ? 1500
                        : GetParam().activations == DType::kBF16 ? 800
                                                                 : 200;
  ExpectReference(GetParam(), 1, num_steps, [] { return GetParam().Make(); });
}

// 131 ids over two ranks are 128 and 3, over four 36, 36, 36 and 23.
TEST_P(BackendSamplingTest, SlicesOfTheVocabulary) {
  // The emulation takes its time.
  const bool is_cuda = GetParam().is_cuda();
  for (const int num_ranks : {2, 4}) {
    if (is_cuda && num_ranks == (GetParam().activations == DType::kF16 ? 2 : 4))
      continue;
    SCOPED_TRACE(absl::StrCat(num_ranks, " ranks"));
    ExpectReference(GetParam(), num_ranks, is_cuda ? 60 : 300,
                    [] { return GetParam().Make(/*num_threads=*/1); });
  }
}

TEST(ReferenceSamplingTest, SlicesOfTheVocabulary) {
  TestBackend reference;
  reference.name = "reference";
  reference.isa = SelectIsa().value();
  ExpectReference(reference, 3, 100,
                  [] { return std::make_unique<ReferenceBackend>(); });
}

// Drafts 20, 21 and 22 behind token 5; the third logits are broken, or nothing
// is allowed there.
TEST_P(BackendSamplingTest, OnlyWhatIsReachedCountsOfFaults) {
  for (const bool is_masked : {false, true}) {
    for (const int num_accepted : {0, 1, 2, 3}) {
      SCOPED_TRACE(absl::StrCat(is_masked, " ", num_accepted));
      const auto backend = GetParam().Make();
      SamplingRunner runner(*backend, GetParam().activations);
      SlotParams params;
      params.temperature = 0.0f;
      params.num_logprobs = 1;
      const int32_t blocks[] = {0};
      SlotUpdate update;
      update.params = &params;
      update.append_blocks = blocks;
      StepRow row;
      row.num_tokens = 4;
      row.num_drafts = 3;
      row.num_logits = 4;
      const int32_t tokens[] = {5, 20, 21, 22};
      StepPlan plan;
      plan.updates = absl::MakeConstSpan(&update, 1);
      plan.rows = absl::MakeConstSpan(&row, 1);
      plan.token_ids = tokens;
      std::vector<float> logits(4 * kVocabSize);
      for (int i = 0; i < 4; ++i) {
        logits[i * kVocabSize + (i < num_accepted ? 20 + i : 40)] = 9;
      }
      if (is_masked) {
        // Nothing may follow 21.
        params.allowed_ids = {20, 21, 40, 22};
        params.bad_word_ids = {21, 20, 21, 21, 21, 40, 21, 22};
        params.bad_word_lengths = {2, 2, 2, 2};
      } else {
        logits[2 * kVocabSize + 3] = NAN;
      }
      const std::vector<RowResult> results = runner.Run(plan, 4, logits).rows;
      ASSERT_EQ(results.size(), 1u);
      const RowResult& result = results[0];
      const bool is_reached = num_accepted >= 2;
      EXPECT_EQ(result.non_finite, is_reached && !is_masked);
      EXPECT_EQ(result.all_masked, is_reached && is_masked);
      std::vector<int32_t> expected = {20, 21, 0};
      if (!is_reached) {
        expected.resize(num_accepted);
        expected.push_back(40);
      }
      EXPECT_EQ(result.tokens, absl::MakeConstSpan(expected));
      EXPECT_EQ(result.logprobs.size(), expected.size());
    }
  }
}

TEST_P(BackendSamplingTest, StepsInFlightKeepTheirResults) {
  const auto backend = GetParam().Make();
  const int logits_id = backend->AddActivation(kVocabSize, DType::kF32,
                                               ActivationRows::kLogitRows);
  EngineShape shape;
  shape.max_num_seqs = 1;
  shape.max_num_tokens = 4;
  shape.max_logit_rows = 4;
  shape.max_model_len = 32;
  shape.vocab_size = kVocabSize;
  shape.steps_in_flight = 2;
  CheckOk(backend->Prepare(shape));
  SlotParams params;
  params.temperature = 0.0f;
  const int32_t blocks[] = {0, 1};
  SlotUpdate update;
  update.params = &params;
  update.append_blocks = blocks;
  StepRow row;
  row.num_tokens = 1;
  row.num_logits = 1;
  const int32_t first_token[] = {5};
  StepPlan plan;
  plan.rows = absl::MakeConstSpan(&row, 1);
  Step* steps[2];
  for (int i = 0; i < 2; ++i) {
    if (i == 0) {
      plan.updates = absl::MakeConstSpan(&update, 1);
      plan.token_ids = first_token;
    } else {
      plan.updates = {};
      plan.token_ids = {};
      row.source = TokenSource::kDeviceLast;
    }
    steps[i] = CheckOk(backend->BeginStep(plan));
    std::vector<float> logits(kVocabSize);
    logits[40 + i] = 1.0f;
    CheckOk(backend->Run(*steps[i], GraphKey(), [&] {
      CopyIn(*backend, logits, backend->Activation(logits_id));
      return backend->Sample(*steps[i], backend->Activation(logits_id));
    }));
    CheckOk(backend->EndStep(*steps[i]));
  }
  // The ring is full until one is collected.
  EXPECT_EQ(backend->BeginStep(plan).status().code(),
            absl::StatusCode::kFailedPrecondition);
  for (int i = 0; i < 2; ++i) {
    const auto results = CheckOk(backend->Collect(*steps[i]));
    ASSERT_EQ(results.size(), 1u);
    EXPECT_EQ(results[0].tokens, absl::MakeConstSpan({40 + i}));
  }
}

}  // namespace
}  // namespace quire
