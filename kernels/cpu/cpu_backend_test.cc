// State, checks and memory of the CPU backend. That its arithmetic is right is
// tested in tests/backend_*_test.cc.
#include "kernels/cpu/cpu_backend.h"

#include <atomic>
#include <cmath>
#include <cstdlib>
#include <new>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace {

std::atomic<bool> g_counts_allocations{false};
std::atomic<int> g_num_allocations{0};

}  // namespace

// Every allocation of the process while counting is on, of any thread. Not
// inlined: g++ 12 would see malloc meet operator delete.
__attribute__((noinline)) void* operator new(std::size_t size) {
  if (g_counts_allocations) ++g_num_allocations;
  void* memory = std::malloc(size);
  if (memory == nullptr) std::abort();
  return memory;
}
__attribute__((noinline)) void operator delete(void* memory) noexcept {
  std::free(memory);
}
__attribute__((noinline)) void operator delete(void* memory,
                                               std::size_t) noexcept {
  std::free(memory);
}

namespace quire {
namespace {

using absl::StatusCode;

constexpr int kVocabSize = 300;
constexpr int kHidden = 32;
constexpr int kHeadDim = 16;

std::unique_ptr<CpuBackend> MakeBackend() {
  CpuBackendOptions options;
  options.threads.num_threads = 2;
  return std::move(CpuBackend::Create(options)).value();
}

// A backend with one layer of everything.
class CpuBackendTest : public testing::Test {
 protected:
  CpuBackendTest() : backend_(MakeBackend()) {
    for (size_t i = 0; i < values_.size(); ++i) {
      values_[i] = std::sin(static_cast<float>(i));
    }
    LinearSpec vocab;
    vocab.kind = LinearKind::kVocab;
    vocab.parts = {Part(kVocabSize, kHidden)};
    vocab_ = std::move(backend_->PackLinear(vocab)).value();
    LinearSpec qkv;
    qkv.kind = LinearKind::kQkv;
    qkv.parts = {Part(2 * kHeadDim, kHidden), Part(kHeadDim, kHidden),
                 Part(kHeadDim, kHidden)};
    qkv_ = std::move(backend_->PackLinear(qkv)).value();
    attention_.num_layers = 1;
    attention_.num_heads = 2;
    attention_.num_kv_heads = 1;
    attention_.head_dim = kHeadDim;
    attention_.scale = 0.25f;
    attention_.kv_dtype = DType::kF16;
    EXPECT_TRUE(backend_->AddAttention(attention_).ok());
    hidden_id_ = Add(kHidden, ActivationRows::kTokens);
    qkv_id_ = Add(4 * kHeadDim, ActivationRows::kTokens);
    mixed_id_ = Add(2 * kHeadDim, ActivationRows::kTokens);
    logits_id_ = Add(kVocabSize, ActivationRows::kLogitRows);
    norm_.kind = NormSpec::Kind::kRms;
    norm_.weight = std::move(backend_->Upload(TensorView::Vector(
                                 values_.data(), DType::kF32, kHidden)))
                       .value();
    shape_.max_num_seqs = 3;
    shape_.max_num_tokens = 40;
    shape_.max_logit_rows = 6;
    shape_.max_model_len = 64;
    shape_.vocab_size = kVocabSize;
    shape_.kv_bytes = 8 * kBlockBytes;
    params_.temperature = 0.0f;
  }

  // K and V of 16 positions of one head in f16.
  static constexpr int64_t kBlockBytes = 2 * 16 * kHeadDim * 2;

  WeightPart Part(int64_t rows, int64_t cols) const {
    return {TensorView::Matrix(values_.data(), DType::kF32, rows, cols),
            QuantFormat::kDense};
  }

  int Add(int64_t cols, ActivationRows rows) {
    return backend_->AddActivation(cols, DType::kF32, rows);
  }

  void Prepare() { ASSERT_TRUE(backend_->Prepare(shape_).ok()); }

  // Starts slot 0 with blocks 0 and 1.
  SlotUpdate StartUpdate() const {
    static constexpr int32_t kBlocks[] = {0, 1};
    SlotUpdate update;
    update.params = &params_;
    update.append_blocks = kBlocks;
    return update;
  }

  static StepRow Row(int num_tokens, int num_logits = 0, int num_drafts = 0) {
    StepRow row;
    row.num_tokens = num_tokens;
    row.num_logits = num_logits;
    row.num_drafts = num_drafts;
    return row;
  }

  // Begins a step of one row; returns the error, or ends the step.
  absl::Status Try(const SlotUpdate& update, const StepRow& row,
                   std::vector<int32_t> token_ids) {
    StepPlan plan;
    plan.updates = absl::MakeConstSpan(&update, 1);
    plan.rows = absl::MakeConstSpan(&row, 1);
    plan.token_ids = token_ids;
    return Finish(plan);
  }

  absl::Status Finish(const StepPlan& plan) {
    absl::StatusOr<Step*> step = backend_->BeginStep(plan);
    if (!step.ok()) return step.status();
    absl::Status status = backend_->EndStep(**step);
    EXPECT_EQ(backend_->Collect(**step).ok(), status.ok());
    return status;
  }

  absl::Status Forward(Step& step) {
    Prologue prologue;
    prologue.norm = norm_;
    Epilogue epilogue;
    const auto view = [this](int id) { return backend_->Activation(id); };
    absl::Status status;
    status.Update(
        backend_->Embed(step, *vocab_, nullptr, 1.0f, view(hidden_id_)));
    status.Update(backend_->Linear(step, view(hidden_id_), prologue, *qkv_,
                                   epilogue, view(qkv_id_)));
    status.Update(
        backend_->Attention(step, 0, 0, view(qkv_id_), view(mixed_id_)));
    status.Update(backend_->Logits(step, view(mixed_id_), prologue, *vocab_,
                                   1.0f, 0.0f, view(logits_id_)));
    status.Update(backend_->Sample(step, view(logits_id_)));
    return status;
  }

  std::vector<float> values_ = std::vector<float>(kVocabSize * kHidden);
  std::unique_ptr<CpuBackend> backend_;
  std::unique_ptr<PackedWeight> vocab_, qkv_;
  AttentionSpec attention_;
  NormSpec norm_;
  SlotParams params_;
  EngineShape shape_;
  int hidden_id_ = 0, qkv_id_ = 0, mixed_id_ = 0, logits_id_ = 0;
};

TEST_F(CpuBackendTest, PackLinearNamesWhatDoesNotFit) {
  LinearSpec spec;
  EXPECT_EQ(backend_->PackLinear(spec).status().code(),
            StatusCode::kInvalidArgument);
  spec.parts = {Part(4, 8), Part(4, 7)};
  EXPECT_EQ(backend_->PackLinear(spec).status().code(),
            StatusCode::kInvalidArgument);
  spec.kind = LinearKind::kGateUp;
  spec.parts = {Part(4, 8), Part(5, 8)};
  EXPECT_EQ(backend_->PackLinear(spec).status().message(),
            "gate has 4 rows, up has 5");
  spec.kind = LinearKind::kPlain;
  spec.parts = {Part(4, 8)};
  spec.bias = TensorView::Vector(values_.data(), DType::kF32, 3);
  EXPECT_EQ(backend_->PackLinear(spec).status().code(),
            StatusCode::kInvalidArgument);
}

TEST_F(CpuBackendTest, AddAttentionRejectsWhatItCannotRun) {
  AttentionSpec spec = attention_;
  spec.num_heads = 3;
  spec.num_kv_heads = 2;
  EXPECT_FALSE(backend_->AddAttention(spec).ok());
  spec = attention_;
  spec.kv_dtype = DType::kI32;
  EXPECT_FALSE(backend_->AddAttention(spec).ok());
  spec = attention_;
  spec.rope_table = TensorView::Matrix(values_.data(), DType::kF32, 64, 18);
  EXPECT_FALSE(backend_->AddAttention(spec).ok());  // Wider than a head.
  spec = attention_;
  spec.scale = NAN;
  EXPECT_FALSE(backend_->AddAttention(spec).ok());
}

TEST_F(CpuBackendTest, PrepareCountsBlocksAndRefusesLessThanOneSequence) {
  shape_.kv_bytes = 4 * kBlockBytes - 1;
  const absl::Status status = backend_->Prepare(shape_).status();
  EXPECT_EQ(status.code(), StatusCode::kResourceExhausted);
  EXPECT_EQ(status.message(),
            "the KV cache of 4095 bytes holds 48 tokens; one sequence of "
            "max_model_len 64 needs 4096 bytes");
  shape_.kv_bytes = 4 * kBlockBytes + 1;
  const absl::StatusOr<MemoryPlan> plan = backend_->Prepare(shape_);
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_EQ(plan->num_blocks, 4);
  EXPECT_EQ(plan->kv_bytes, 4 * kBlockBytes);
  EXPECT_GE(plan->weights_bytes, vocab_->num_bytes + qkv_->num_bytes);
  EXPECT_EQ(backend_->Prepare(shape_).status().code(),
            StatusCode::kFailedPrecondition);
}

TEST_F(CpuBackendTest, ALargeBudgetStartsAtOnce) {
  shape_.kv_bytes = int64_t{1} << 40;  // More than the machine has.
  const absl::StatusOr<MemoryPlan> plan = backend_->Prepare(shape_);
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_EQ(plan->num_blocks,
            std::min<int64_t>(shape_.kv_bytes / kBlockBytes, 2147483647 / 16));
}

TEST_F(CpuBackendTest, ActivationsKeepTheirPlace) {
  Prepare();
  const TensorView hidden = backend_->Activation(hidden_id_);
  EXPECT_EQ(hidden.rows, 40);
  EXPECT_EQ(hidden.cols, kHidden);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(hidden.data) % 64, 0u);
  EXPECT_EQ(backend_->Activation(logits_id_).rows, 6);
  EXPECT_EQ(backend_->Activation(hidden_id_).data, hidden.data);
}

TEST_F(CpuBackendTest, BeginStepRejectsBadRows) {
  Prepare();
  const SlotUpdate start = StartUpdate();
  EXPECT_TRUE(Try(start, Row(2), {1, 2}).ok());
  EXPECT_FALSE(Try(start, Row(0), {}).ok());
  EXPECT_FALSE(Try(start, Row(2), {1}).ok());
  EXPECT_FALSE(Try(start, Row(2), {1, 2, 3}).ok());
  EXPECT_FALSE(Try(start, Row(1), {kVocabSize}).ok());
  EXPECT_FALSE(Try(start, Row(1), {-1}).ok());
  EXPECT_FALSE(Try(start, Row(2, 2), {1, 2}).ok());     // Drafts are missing.
  EXPECT_FALSE(Try(start, Row(2, 1, 1), {1, 2}).ok());  // Logits are missing.
  EXPECT_FALSE(Try(start, Row(1, 2, 1), {1}).ok());
  // Two blocks hold 32 positions.
  EXPECT_FALSE(Try(start, Row(33), std::vector<int32_t>(33)).ok());
  StepRow row = Row(1);
  row.source = TokenSource::kDeviceLast;  // Nothing was drawn.
  EXPECT_FALSE(Try(start, row, {}).ok());
  row = Row(1);
  row.slot = 1;  // Never started.
  EXPECT_FALSE(Try(start, row, {1}).ok());
  row.slot = 3;
  EXPECT_FALSE(Try(start, row, {1}).ok());
  const StepRow twice[] = {Row(1), Row(1)};
  const int32_t ids[] = {1, 2};
  StepPlan plan;
  plan.updates = absl::MakeConstSpan(&start, 1);
  plan.rows = twice;
  plan.token_ids = ids;
  EXPECT_FALSE(Finish(plan).ok());
  // None of that keeps the next step from running.
  EXPECT_TRUE(Try(start, Row(2), {1, 2}).ok());
}

TEST_F(CpuBackendTest, BeginStepRejectsBadUpdates) {
  Prepare();
  const auto try_update = [this](const SlotUpdate& update) {
    StepPlan plan;
    plan.updates = absl::MakeConstSpan(&update, 1);
    return Finish(plan);
  };
  SlotUpdate update = StartUpdate();
  EXPECT_TRUE(try_update(update).ok());
  update.slot = 3;
  EXPECT_FALSE(try_update(update).ok());
  update = SlotUpdate();
  update.slot = 2;  // Only more blocks, for a slot that holds nothing.
  EXPECT_FALSE(try_update(update).ok());
  update = StartUpdate();
  const int32_t bad_block[] = {8};
  update.append_blocks = bad_block;
  EXPECT_EQ(try_update(update).message(), "slot 0: block 8 is not in [0, 8)");
  const int32_t five_blocks[] = {0, 1, 2, 3, 4};  // max_model_len needs four.
  update.append_blocks = five_blocks;
  EXPECT_FALSE(try_update(update).ok());
  const int32_t history[] = {1, 2, 3};
  update = StartUpdate();
  update.history = history;
  update.num_computed_tokens = 4;
  EXPECT_FALSE(try_update(update).ok());

  const auto try_params = [&](auto change) {
    SlotParams params;
    change(params);
    SlotUpdate with_params;
    with_params.params = &params;
    return try_update(with_params).ok();
  };
  EXPECT_TRUE(try_params([](SlotParams&) {}));
  EXPECT_FALSE(try_params([](SlotParams& p) { p.temperature = NAN; }));
  EXPECT_FALSE(try_params([](SlotParams& p) { p.temperature = -1; }));
  EXPECT_FALSE(try_params([](SlotParams& p) { p.top_p = 1.5f; }));
  EXPECT_FALSE(try_params([](SlotParams& p) { p.top_k = -1; }));
  EXPECT_FALSE(try_params([](SlotParams& p) { p.repetition_penalty = 0; }));
  EXPECT_FALSE(try_params([](SlotParams& p) { p.bias_ids = {1}; }));
  EXPECT_FALSE(try_params([](SlotParams& p) {
    p.bias_ids = {kVocabSize};
    p.bias = {1};
  }));
  EXPECT_FALSE(try_params([](SlotParams& p) { p.allowed_ids = {-1}; }));
  EXPECT_FALSE(try_params([](SlotParams& p) { p.num_logprobs = 301; }));
  EXPECT_FALSE(try_params([](SlotParams& p) { p.bad_word_ids = {1}; }));
  EXPECT_FALSE(try_params([](SlotParams& p) { p.bad_word_lengths = {1}; }));
  EXPECT_FALSE(try_params([](SlotParams& p) {
    p.bad_word_ids = {1};
    p.bad_word_lengths = {2, -1};
  }));
  EXPECT_FALSE(try_params([](SlotParams& p) {
    p.bad_word_ids = {kVocabSize};
    p.bad_word_lengths = {1};
  }));
  EXPECT_FALSE(try_params([](SlotParams& p) { p.dry_multiplier = INFINITY; }));
  EXPECT_FALSE(try_params([](SlotParams& p) { p.dry_base = NAN; }));
  EXPECT_FALSE(try_params([](SlotParams& p) { p.dry_allowed_length = -1; }));
  EXPECT_FALSE(try_params([](SlotParams& p) { p.dry_penalty_last_n = -2; }));
  EXPECT_FALSE(try_params([](SlotParams& p) { p.dynatemp_range = -1; }));
  EXPECT_FALSE(try_params([](SlotParams& p) { p.dynatemp_exponent = -1; }));
  EXPECT_FALSE(try_params([](SlotParams& p) { p.top_n_sigma = -1; }));
  EXPECT_FALSE(try_params([](SlotParams& p) { p.typical_p = 1.1f; }));
  EXPECT_FALSE(try_params([](SlotParams& p) { p.xtc_probability = NAN; }));
  EXPECT_FALSE(try_params([](SlotParams& p) { p.xtc_threshold = 2; }));
  const std::pair<int32_t, int32_t> copy[] = {{0, 8}};
  StepPlan plan;
  plan.block_copies = copy;
  EXPECT_FALSE(Finish(plan).ok());
}

TEST_F(CpuBackendTest, AStepThatAsksForLogitsMustSample) {
  Prepare();
  EXPECT_EQ(Try(StartUpdate(), Row(1, 1), {1}).code(),
            StatusCode::kFailedPrecondition);
}

TEST_F(CpuBackendTest, OperationsRejectWrongShapes) {
  Prepare();
  const SlotUpdate start = StartUpdate();
  const StepRow row = Row(1);
  const int32_t ids[] = {1};
  StepPlan plan;
  plan.updates = absl::MakeConstSpan(&start, 1);
  plan.rows = absl::MakeConstSpan(&row, 1);
  plan.token_ids = ids;
  Step& step = *backend_->BeginStep(plan).value();
  const TensorView hidden = backend_->Activation(hidden_id_);
  const TensorView mixed = backend_->Activation(mixed_id_);
  const TensorView qkv = backend_->Activation(qkv_id_);
  const TensorView logits = backend_->Activation(logits_id_);
  EXPECT_FALSE(backend_->Embed(step, *vocab_, nullptr, 1.0f, qkv).ok());
  EXPECT_FALSE(backend_->Norm(step, hidden, Prologue(), qkv).ok());
  EXPECT_FALSE(
      backend_->Linear(step, qkv, Prologue(), *qkv_, Epilogue(), hidden).ok());
  Epilogue gated;
  gated.activation = Epilogue::Activation::kSwiGlu;
  EXPECT_FALSE(
      backend_->Linear(step, hidden, Prologue(), *qkv_, gated, mixed).ok());
  EXPECT_FALSE(backend_->Attention(step, 0, 1, qkv, mixed).ok());
  EXPECT_FALSE(backend_->Attention(step, 1, 0, qkv, mixed).ok());
  EXPECT_FALSE(backend_->Attention(step, 0, 0, mixed, mixed).ok());
  EXPECT_FALSE(
      backend_->Logits(step, hidden, Prologue(), *qkv_, 1, 0, logits).ok());
}

TEST_F(CpuBackendTest, AFailedRunEndsInAnError) {
  Prepare();
  const SlotUpdate start = StartUpdate();
  StepPlan plan;
  plan.updates = absl::MakeConstSpan(&start, 1);
  Step& step = *backend_->BeginStep(plan).value();
  EXPECT_EQ(
      backend_
          ->Run(step, GraphKey(), [] { return absl::InternalError("broken"); })
          .message(),
      "broken");
  EXPECT_FALSE(backend_->EndStep(step).ok());
  EXPECT_EQ(backend_->Collect(step).status().message(), "broken");
  EXPECT_TRUE(Finish(plan).ok());
}

TEST_F(CpuBackendTest, StepsDoNotAllocate) {
  Prepare();
  params_.temperature = 0.8f;
  params_.top_k = 40;
  params_.top_p = 0.9f;
  params_.frequency_penalty = 0.5f;
  params_.num_logprobs = 5;
  params_.bad_word_ids = {1, 2, 3, 4};
  params_.bad_word_lengths = {3, 1};
  params_.dry_multiplier = 0.8f;
  params_.dry_allowed_length = 0;
  params_.dry_breakers = std::make_shared<TokenSequenceSet>(
      std::vector<std::vector<int32_t>>{{5}, {3, 4}});
  params_.dynatemp_range = 0.2f;
  params_.top_n_sigma = 3.0f;
  params_.typical_p = 0.95f;
  params_.xtc_probability = 0.5f;
  const int32_t history[] = {1, 2, 3, 4, 5};
  const int32_t ids[] = {1, 2, 3, 4, 5};
  SlotUpdate start = StartUpdate();
  start.history = history;
  start.num_prompt_tokens = 5;
  StepRow row = Row(5, 1);
  StepPlan prefill;
  prefill.updates = absl::MakeConstSpan(&start, 1);
  prefill.rows = absl::MakeConstSpan(&row, 1);
  prefill.token_ids = ids;
  StepRow decode_row = Row(1, 1);
  decode_row.source = TokenSource::kDeviceLast;
  StepPlan decode;
  decode.rows = absl::MakeConstSpan(&decode_row, 1);
  int num_failed = 0;
  const auto run = [&](const StepPlan& plan) {
    Step& step = *backend_->BeginStep(plan).value();
    num_failed +=
        !backend_->Run(step, GraphKey(), [&] { return Forward(step); }).ok();
    num_failed += !backend_->EndStep(step).ok();
    num_failed += backend_->Collect(step).value().size() != 1;
  };
  run(prefill);  // Warms the workers up.
  g_counts_allocations = true;
  run(prefill);
  for (int i = 0; i < 5; ++i) run(decode);
  g_counts_allocations = false;
  EXPECT_EQ(g_num_allocations, 0);
  EXPECT_EQ(num_failed, 0);
}

TEST(CpuBackendCreateTest, DescribesItself) {
  CpuBackendOptions options;
  options.isa = Isa::kScalar;
  options.threads.num_threads = 1;
  EXPECT_EQ(CpuBackend::Create(options).value()->Description(),
            "cpu (scalar, 1 thread)");
}

TEST(CpuBackendThreadsTest, PinnedToTheCpusGiven) {
  CpuBackendOptions options;
  options.threads.cpus = {AllowedCpus().back()};
  const auto backend = CpuBackend::Create(options);
  ASSERT_TRUE(backend.ok()) << backend.status();
  EXPECT_THAT((*backend)->Description(), testing::HasSubstr("1 thread"));
  options.threads.cpus = {65535};
  EXPECT_EQ(CpuBackend::Create(options).status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST(MappedMemoryTest, InterleavingIsOnlyAdvice) {
  auto memory = MappedMemory::Create(1 << 20, MappedMemory::Pages::kHuge);
  ASSERT_TRUE(memory.ok());
  memory->InterleaveOver({0, 1000});  // There may be no such node.
  memory->InterleaveOver({0});
  memory->data()[12345] = 7;
  EXPECT_EQ(memory->data()[12345], 7);
  MappedMemory().InterleaveOver({0});
}

}  // namespace
}  // namespace quire
