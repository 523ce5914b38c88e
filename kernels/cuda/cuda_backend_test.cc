// What the CUDA backend does beside computing: tests/backend_*_test.cc compare
// its results with the reference.
#include "kernels/cuda/cuda_backend.h"

#include <cstdint>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "engine/base/random.h"
#include "gtest/gtest.h"
#include "kernels/cuda/device_emulated.h"
#include "kernels/cuda/simt/emulator.h"
#include "kernels/quant_codec.h"

namespace quire {
namespace {

constexpr int kCols = 16;
constexpr int kVocabSize = 11;

std::vector<uint16_t> Bf16Values(int64_t count, uint64_t seed) {
  SimulationRandom random(seed);
  std::vector<uint16_t> values(count);
  for (uint16_t& value : values) {
    value = FloatToBf16(static_cast<float>(random.Uniform() * 2 - 1));
  }
  return values;
}

std::unique_ptr<CudaBackend> MakeBackend() {
  auto backend = CudaBackend::Create({});
  EXPECT_TRUE(backend.ok()) << backend.status();
  return *std::move(backend);
}

EngineShape SmallShape() {
  EngineShape shape;
  shape.max_num_seqs = 3;
  shape.max_num_tokens = 8;
  shape.max_logit_rows = 4;
  shape.max_model_len = 64;
  shape.vocab_size = kVocabSize;
  shape.block_size = 8;
  shape.steps_in_flight = 2;
  shape.kv_bytes = 1 << 16;
  shape.pooled_cols = kCols;
  return shape;
}

// Embeds tokens, mixes them with attention, and pools.
class SmallModel {
 public:
  explicit SmallModel(Pooling pooling = Pooling::kMean,
                      const EngineShape& shape = SmallShape())
      : backend_(MakeBackend()),
        pooling_(pooling),
        table_(Bf16Values(kVocabSize * kCols, 1)) {
    LinearSpec spec;
    spec.kind = LinearKind::kVocab;
    spec.parts = {
        {TensorView::Matrix(table_.data(), DType::kBF16, kVocabSize, kCols),
         QuantFormat::kDense}};
    vocab_ = *backend_->PackLinear(spec);
    AttentionSpec attention;
    attention.num_layers = 1;
    attention.num_heads = attention.num_kv_heads = 1;
    attention.head_dim = kCols;
    attention.scale = 1.0f;
    attention_ = *backend_->AddAttention(attention);
    const auto add = [&](int cols) {
      return backend_->AddActivation(cols, DType::kBF16,
                                     ActivationRows::kTokens);
    };
    hidden_ = add(kCols);
    qkv_ = add(3 * kCols);
    std::vector<uint16_t> stack(3 * kCols * kCols);
    for (int i = 0; i < 3 * kCols; ++i) {
      stack[i * kCols + i % kCols] = FloatToBf16(1);
    }
    LinearSpec to_qkv;
    to_qkv.parts = {
        {TensorView::Matrix(stack.data(), DType::kBF16, 3 * kCols, kCols),
         QuantFormat::kDense}};
    to_qkv_ = *backend_->PackLinear(to_qkv);
    const auto plan = backend_->Prepare(shape);
    EXPECT_TRUE(plan.ok()) << plan.status();
    plan_ = *plan;
  }

  CudaBackend& backend() { return *backend_; }
  const MemoryPlan& plan() const { return plan_; }

  // Enqueues a step of one row; starts the sequence if there are blocks.
  Step* Submit(int slot, const std::vector<int32_t>& token_ids,
               const std::vector<int32_t>& blocks, bool is_last,
               const std::vector<std::pair<int32_t, int32_t>>& copies = {}) {
    SlotUpdate update;
    update.slot = slot;
    update.params = &params_;
    update.append_blocks = blocks;
    StepRow row;
    row.slot = slot;
    row.num_tokens = static_cast<int32_t>(token_ids.size());
    row.num_logits = is_last ? 1 : 0;
    StepPlan plan;
    if (!blocks.empty()) plan.updates = absl::MakeConstSpan(&update, 1);
    plan.block_copies = copies;
    plan.rows = absl::MakeConstSpan(&row, 1);
    plan.token_ids = token_ids;
    const auto step = backend_->BeginStep(plan);
    EXPECT_TRUE(step.ok()) << step.status();
    EXPECT_EQ(backend_->Run(
                  **step, GraphKey(),
                  [&] {
                    const TensorView hidden = backend_->Activation(hidden_);
                    const TensorView qkv = backend_->Activation(qkv_);
                    auto status =
                        backend_->Embed(**step, *vocab_, nullptr, 1.0f, hidden);
                    status.Update(backend_->Linear(**step, hidden, Prologue(),
                                                   *to_qkv_, Epilogue(), qkv));
                    status.Update(backend_->Attention(**step, attention_, 0,
                                                      qkv, hidden));
                    status.Update(
                        backend_->Pool(**step, hidden, Prologue(), pooling_));
                    return status;
                  }),
              absl::OkStatus());
    EXPECT_EQ(backend_->EndStep(**step), absl::OkStatus());
    return *step;
  }

  std::vector<float> Collect(Step* step) {
    const auto results = backend_->Collect(*step);
    EXPECT_TRUE(results.ok()) << results.status();
    if (!results.ok() || results->empty()) return {};
    const absl::Span<const float> embedding = (*results)[0].embedding;
    return {embedding.begin(), embedding.end()};
  }

 private:
  std::unique_ptr<CudaBackend> backend_;
  const Pooling pooling_;
  const std::vector<uint16_t> table_;
  const SlotParams params_;
  std::unique_ptr<PackedWeight> vocab_, to_qkv_;
  MemoryPlan plan_;
  int attention_ = 0, hidden_ = 0, qkv_ = 0;
};

// Kernels that `num_layers` decoder layers of a usual model are: the difference
// of a step with them and one without.
int64_t KernelsOf(int num_layers, int num_tokens, bool sum_aliases_x) {
  const std::unique_ptr<CudaBackend> backend = MakeBackend();
  const std::vector<uint16_t> values = Bf16Values(64 * kCols, 3);
  const auto pack = [&](LinearKind kind, int num_parts, int rows) {
    LinearSpec spec;
    spec.kind = kind;
    spec.parts.resize(num_parts);
    for (WeightPart& part : spec.parts) {
      part.data = TensorView::Matrix(values.data(), DType::kBF16, rows, kCols);
    }
    return *backend->PackLinear(spec);
  };
  const auto qkv_weight = pack(LinearKind::kQkv, 3, kCols);
  const auto o_weight = pack(LinearKind::kPlain, 1, kCols);
  const auto gate_up_weight = pack(LinearKind::kGateUp, 2, kCols);
  const auto down_weight = pack(LinearKind::kPlain, 1, kCols);
  const std::vector<float> ones(kCols, 1.0f);
  Prologue norm;
  norm.norm.kind = NormSpec::Kind::kRms;
  norm.norm.weight =
      *backend->Upload(TensorView::Vector(ones.data(), DType::kF32, kCols));
  AttentionSpec attention;
  attention.num_layers = attention.num_heads = attention.num_kv_heads = 1;
  attention.head_dim = kCols;
  attention.scale = 1.0f;
  const int attention_id = *backend->AddAttention(attention);
  const auto add = [&](int cols) {
    return backend->AddActivation(cols, DType::kBF16, ActivationRows::kTokens);
  };
  const int hidden_id = add(kCols), qkv_id = add(3 * kCols), x_id = add(kCols);
  EngineShape shape = SmallShape();
  shape.max_num_tokens = 16;
  EXPECT_EQ(backend->Prepare(shape).status(), absl::OkStatus());

  SlotUpdate update;
  const SlotParams params;
  const std::vector<int32_t> blocks = {0, 1}, token_ids(num_tokens, 1);
  update.params = &params;
  update.append_blocks = blocks;
  StepRow row;
  row.num_tokens = num_tokens;
  StepPlan plan;
  plan.updates = absl::MakeConstSpan(&update, 1);
  plan.rows = absl::MakeConstSpan(&row, 1);
  plan.token_ids = token_ids;
  Step* step = *backend->BeginStep(plan);
  EXPECT_EQ(
      backend->Run(
          *step, GraphKey(),
          [&] {
            absl::Status status;
            const TensorView hidden = backend->Activation(hidden_id);
            const TensorView qkv = backend->Activation(qkv_id);
            const TensorView x = backend->Activation(x_id);
            Prologue mlp_norm = norm;
            if (sum_aliases_x) mlp_norm.residual_out = hidden;
            Epilogue residual, swiglu;
            residual.residual = hidden;
            swiglu.activation = Epilogue::Activation::kSwiGlu;
            for (int i = 0; i < num_layers; ++i) {
              status.Update(backend->Linear(*step, hidden, norm, *qkv_weight,
                                            Epilogue(), qkv));
              status.Update(backend->Attention(*step, attention_id, 0, qkv, x));
              status.Update(backend->Linear(*step, x, Prologue(), *o_weight,
                                            residual, hidden));
              status.Update(backend->Linear(*step, hidden, mlp_norm,
                                            *gate_up_weight, swiglu, x));
              status.Update(backend->Linear(*step, x, Prologue(), *down_weight,
                                            residual, hidden));
            }
            return status;
          }),
      absl::OkStatus());
  EXPECT_EQ(backend->EndStep(*step), absl::OkStatus());
  EXPECT_EQ(backend->Collect(*step).status(), absl::OkStatus());
  return cuda::NumRunOf(backend->device());
}

// Norm, q k v; RoPE; attention; o; norm, gate, up; down: up to eight tokens
// the norms are part of the linear layers.
TEST(CudaBackendTest, ALayerIsSixKernelsForFewTokens) {
  for (const int num_tokens : {1, 8}) {
    EXPECT_EQ(KernelsOf(3, num_tokens, false) - KernelsOf(1, num_tokens, false),
              2 * 6);
  }
  EXPECT_EQ(KernelsOf(3, 9, false) - KernelsOf(1, 9, false), 2 * 8);
  // What one CTA writes and others still read keeps a kernel of its own.
  EXPECT_EQ(KernelsOf(3, 1, true) - KernelsOf(1, 1, true), 2 * 7);
}

// From 65 queries on, on the GPU that has them: here one head, of 16
// dimensions.
TEST(CudaBackendTest, ManyQueriesTakeTheTileOfWarpgroups) {
  EngineShape shape = SmallShape();
  shape.max_num_tokens = shape.max_model_len = 80;
  std::vector<int32_t> blocks(10);
  std::iota(blocks.begin(), blocks.end(), 0);
  const cuda::EmulatedDeviceOptions options = cuda::EmulatedOptions();
  for (const int num_tokens : {64, 65, 80}) {
    std::vector<int32_t> token_ids(num_tokens);
    for (int i = 0; i < num_tokens; ++i) token_ids[i] = i * 5 % kVocabSize;
    std::vector<float> expected;
    for (const int major : {8, 9}) {
      cuda::EmulatedOptions().major = major;
      SmallModel model(Pooling::kMean, shape);
      simt::emulator::CurrentCounts() = {};
      const std::vector<float> got =
          model.Collect(model.Submit(0, token_ids, blocks, true));
      cuda::EmulatedOptions() = options;
      EXPECT_EQ(simt::emulator::CurrentCounts().num_wgmma > 0,
                major == 9 && num_tokens > 64)
          << num_tokens << " tokens on " << major << ".0";
      if (major == 8) expected = got;
      ASSERT_EQ(got.size(), expected.size());
      for (size_t i = 0; i < got.size(); ++i) {
        EXPECT_NEAR(got[i], expected[i], 0.01) << i;
      }
    }
  }
}

// The second step is planned and enqueued before anything of the first has run:
// the emulated stream waits for Collect.
TEST(CudaBackendTest, LargeGpusTakeLargeSteps) {
  const cuda::EmulatedDeviceOptions options = cuda::EmulatedOptions();
  const auto useful = [&](int num_sms, double gib) {
    cuda::EmulatedOptions().num_sms = num_sms;
    cuda::EmulatedOptions().total_bytes = static_cast<int64_t>(gib * (1 << 30));
    const auto backend = std::move(CudaBackend::Create({})).value();
    const StepSize size = backend->UsefulStepSize();
    cuda::EmulatedOptions() = options;
    return std::pair(size.num_seqs, size.num_tokens);
  };
  EXPECT_EQ(useful(132, 79.2), std::pair(256, 2048));  // H100
  EXPECT_EQ(useful(108, 39.4), std::pair(256, 2048));  // A100
  EXPECT_EQ(useful(58, 22.0), std::pair(128, 512));    // L4
  EXPECT_EQ(useful(40, 14.6), std::pair(64, 512));     // T4
  EXPECT_EQ(useful(16, 9.5), std::pair(64, 512));      // A seventh of an H100.
}

TEST(CudaBackendTest, TwoStepsInFlightEqualOneAfterTheOther) {
  std::vector<std::vector<float>> expected;
  {
    SmallModel model;
    for (const int slot : {0, 2}) {
      model.Collect(model.Submit(slot, {1, 2, 3}, {slot, 4 + slot}, false));
      expected.push_back(
          model.Collect(model.Submit(slot, {4, 5, 6, 7, 8, 9}, {}, true)));
      ASSERT_EQ(expected.back().size(), size_t{kCols});
    }
  }
  EXPECT_EQ(expected[0], expected[1]);
  SmallModel model;
  Step* first = model.Submit(0, {1, 2, 3}, {0, 4}, false);
  Step* second = model.Submit(0, {4, 5, 6, 7, 8, 9}, {}, true);
  EXPECT_FALSE(model.backend().Done(*first));
  EXPECT_FALSE(model.backend().Done(*second));
  StepPlan empty;
  EXPECT_EQ(model.backend().BeginStep(empty).status().code(),
            absl::StatusCode::kFailedPrecondition);
  model.Collect(first);
  EXPECT_TRUE(model.backend().Done(*first));
  EXPECT_FALSE(model.backend().Done(*second));
  // The first step's staging memory is used again while the second waits.
  Step* third = model.Submit(2, {9, 9}, {2, 6}, false);
  EXPECT_EQ(model.Collect(second), expected[0]);
  Step* fourth = model.Submit(1, {1, 2, 3}, {1, 5}, false);
  model.Collect(third);
  Step* fifth = model.Submit(1, {4, 5, 6, 7, 8, 9}, {}, true);
  model.Collect(fourth);
  EXPECT_EQ(model.Collect(fifth), expected[0]);
}

TEST(CudaBackendTest, NothingIsAllocatedAfterPrepare) {
  SmallModel model;
  const int64_t before = model.backend().device().num_allocations();
  EXPECT_GT(before, 0);
  for (int i = 0; i < 20; ++i) {
    const int slot = i % 3;
    model.Collect(
        model.Submit(slot, {1, 2, 3, 4}, {slot, 3 + slot}, false, {{7, 6}}));
    model.Collect(model.Submit(slot, {5, 6, 7, 8, 9}, {}, true));
  }
  EXPECT_EQ(model.backend().device().num_allocations(), before);
}

// The copies of one step run in order, also where one reads what another wrote.
TEST(CudaBackendTest, BlocksAreCopiedInOrder) {
  SmallModel model(Pooling::kLast);
  const std::vector<int32_t> tokens = {3, 1, 4, 1, 5, 9, 2, 6};
  model.Collect(model.Submit(0, tokens, {0, 1}, false));
  const std::vector<float> expected =
      model.Collect(model.Submit(0, {7}, {}, true));
  ASSERT_EQ(expected.size(), size_t{kCols});

  SmallModel copied(Pooling::kLast);
  copied.Collect(copied.Submit(0, tokens, {0, 1}, false));
  copied.Collect(copied.Submit(1, {2, 2, 2, 2, 2, 2, 2, 2}, {2, 4}, false));
  // The sequence goes on from block 5, a copy of a copy of block 0; then both
  // of those are overwritten.
  const SlotParams params;
  const std::vector<int32_t> blocks = {5, 6};
  SlotUpdate update;
  update.slot = 2;
  update.params = &params;
  update.history = tokens;
  update.num_prompt_tokens = update.num_computed_tokens = 8;
  update.append_blocks = blocks;
  const std::vector<std::pair<int32_t, int32_t>> copies = {
      {0, 3}, {3, 5}, {2, 3}, {2, 0}};
  StepPlan plan;
  plan.updates = absl::MakeConstSpan(&update, 1);
  plan.block_copies = copies;
  const auto step = copied.backend().BeginStep(plan);
  ASSERT_TRUE(step.ok()) << step.status();
  ASSERT_TRUE(copied.backend().EndStep(**step).ok());
  copied.Collect(*step);
  EXPECT_EQ(copied.Collect(copied.Submit(2, {7}, {}, true)), expected);
}

TEST(CudaBackendTest, MemoryPlanAddsUp) {
  SmallModel model;
  const MemoryPlan& plan = model.plan();
  // K and V of one head of 16 dimensions and 8 positions in bf16.
  EXPECT_EQ(plan.num_blocks, (1 << 16) / (2 * kCols * 8 * 2));
  EXPECT_EQ(plan.kv_bytes, 1 << 16);
  EXPECT_EQ(plan.weights_bytes, (kVocabSize + 3 * kCols) * kCols * 2);
  const cuda::DeviceMemory memory = *model.backend().device().Memory();
  // Pinned memory counts as device memory in the emulation.
  EXPECT_GE(memory.total_bytes - memory.free_bytes,
            plan.weights_bytes + plan.kv_bytes + plan.workspace_bytes);
}

TEST(CudaBackendTest, F32WeightsBecomeBf16) {
  const auto backend = MakeBackend();
  EXPECT_EQ(backend->ActivationDType(DType::kF32), DType::kBF16);
  EXPECT_EQ(backend->ActivationDType(DType::kBF16), DType::kBF16);
  EXPECT_EQ(backend->ActivationDType(DType::kF16), DType::kF16);
  const std::vector<float> values(8 * 8, 1.0f);
  LinearSpec spec;
  spec.parts = {{TensorView::Matrix(values.data(), DType::kF32, 8, 8),
                 QuantFormat::kDense}};
  const auto weight = backend->PackLinear(spec);
  ASSERT_TRUE(weight.ok()) << weight.status();
  EXPECT_EQ((*weight)->num_bytes, 8 * 8 * 2);
}

TEST(CudaBackendTest, RefusesWhatTheKernelsCannotDo) {
  const auto backend = MakeBackend();
  const auto expect_refusal = [](const absl::Status& status,
                                 const std::string& text) {
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
    EXPECT_NE(std::string(status.message()).find(text), std::string::npos)
        << status;
  };
  const std::vector<float> values(24 * 24);
  const auto part = [&](int64_t rows, int64_t cols) {
    return WeightPart{
        TensorView::Matrix(values.data(), DType::kF32, rows, cols),
        QuantFormat::kDense};
  };
  LinearSpec linear;
  linear.parts = {part(8, 12)};
  expect_refusal(backend->PackLinear(linear).status(), "12 columns");
  linear.kind = LinearKind::kGateUp;
  linear.parts = {part(12, 8), part(12, 8)};
  expect_refusal(backend->PackLinear(linear).status(), "12 rows");
  linear.parts = {part(8, 8), part(16, 8)};
  expect_refusal(backend->PackLinear(linear).status(), "up has 16");

  AttentionSpec attention;
  attention.num_layers = attention.num_heads = attention.num_kv_heads = 1;
  attention.head_dim = 64;
  expect_refusal(backend->AddAttention(attention).status(), "scale is 0");
  attention.scale = 0.125f;
  attention.head_dim = 20;
  expect_refusal(backend->AddAttention(attention).status(), "head_dim is 20");
  attention.head_dim = 264;
  expect_refusal(backend->AddAttention(attention).status(), "head_dim is 264");
  attention.head_dim = 64;
  attention.kv_dtype = DType::kF32;
  expect_refusal(backend->AddAttention(attention).status(), "f32");
  attention.kv_dtype = DType::kF16;
  ASSERT_TRUE(backend->AddAttention(attention).ok());
  backend->AddActivation(64, DType::kBF16, ActivationRows::kTokens);
  EngineShape shape = SmallShape();
  expect_refusal(backend->Prepare(shape).status(),
                 "f16 for activations in bf16");
  shape.block_size = 12;
  expect_refusal(backend->Prepare(shape).status(), "block_size is 12");
}

// A weight of `rows` rows a part that PackLinear keeps as it is.
struct StoredWeight {
  LinearSpec spec;
  std::vector<float> dense, bias;
  std::vector<uint16_t> narrow;
  std::vector<QuantizedMatrix> quantized;
  std::vector<int32_t> column_order;
};

StoredWeight MakeWeight(LinearKind kind, int64_t rows, int64_t cols,
                        DType dtype, const QuantizationScheme& scheme) {
  const int num_parts = kind == LinearKind::kQkv      ? 3
                        : kind == LinearKind::kGateUp ? 2
                                                      : 1;
  StoredWeight weight;
  weight.spec.kind = kind;
  SimulationRandom random(rows * cols);
  for (int64_t i = 0; i < num_parts * rows * cols; ++i) {
    const auto value = static_cast<float>(random.Uniform() * 2 - 1);
    weight.dense.push_back(value);
    weight.narrow.push_back(dtype == DType::kF16 ? FloatToHalf(value)
                                                 : FloatToBf16(value));
  }
  for (int i = 0; i < num_parts; ++i) {
    const int64_t first = i * rows * cols;
    WeightPart part;
    part.data =
        dtype == DType::kF32
            ? TensorView::Matrix(&weight.dense[first], dtype, rows, cols)
            : TensorView::Matrix(&weight.narrow[first], dtype, rows, cols);
    if (scheme.format != QuantFormat::kDense) {
      weight.quantized.push_back(*QuantizeMatrix(part.data, scheme));
      part = weight.quantized.back().part;
    }
    weight.spec.parts.push_back(part);
  }
  weight.bias.assign(num_parts * rows, 0.5f);
  weight.spec.bias =
      TensorView::Vector(weight.bias.data(), DType::kF32, weight.bias.size());
  return weight;
}

// What is in device memory once all have been packed, and a table uploaded.
std::vector<std::string> Pack(const std::vector<StoredWeight>& weights,
                              int num_threads, int64_t piece_bytes) {
  CudaBackendOptions options;
  options.copies = {num_threads, piece_bytes};
  const auto backend = *CudaBackend::Create(options);
  std::vector<std::unique_ptr<PackedWeight>> packed;
  for (const StoredWeight& weight : weights) {
    auto linear = backend->PackLinear(weight.spec);
    EXPECT_TRUE(linear.ok()) << linear.status();
    packed.push_back(*std::move(linear));
  }
  const std::vector<uint16_t> table = Bf16Values(3000 * 64, 9);
  EXPECT_TRUE(
      backend->Upload(TensorView::Matrix(table.data(), DType::kBF16, 3000, 64))
          .ok());
  return cuda::ContentsOf(backend->device());
}

// Rows of all lengths of a last block, and more of them than a thread takes at
// a time.
TEST(CudaBackendTest, PackedBytesDoNotDependOnThreadsOrStaging) {
  using Scales = QuantizationScheme::Fp8Scales;
  std::vector<StoredWeight> weights;
  for (const DType dtype : {DType::kBF16, DType::kF16, DType::kF32}) {
    weights.push_back(MakeWeight(LinearKind::kPlain, 517, 200, dtype,
                                 {.format = QuantFormat::kDense}));
  }
  for (const LinearKind kind :
       {LinearKind::kPlain, LinearKind::kQkv, LinearKind::kGateUp}) {
    for (const QuantizationScheme& scheme : std::vector<QuantizationScheme>{
             {.format = QuantFormat::kDense},
             {.format = QuantFormat::kFp8, .fp8_scales = Scales::kRow},
             {.format = QuantFormat::kFp8, .fp8_scales = Scales::kTensor},
             {.format = QuantFormat::kFp8,
             .fp8_scales = Scales::kBlock,
             .group_size = 128},
             {.format = QuantFormat::kInt4, .group_size = 32},
             {.format = QuantFormat::kInt4, .group_size = 96},
             {.format = QuantFormat::kInt4,
             .group_size = 128,
             .is_symmetric = true},
             {.format = QuantFormat::kQ8_0},
             {.format = QuantFormat::kQ4_0},
             {.format = QuantFormat::kQ4_K}}) {
      const int64_t cols = scheme.format == QuantFormat::kQ4_K ? 512 : 288;
      weights.push_back(MakeWeight(kind, 1048, cols, DType::kBF16, scheme));
    }
  }
  const std::vector<std::string> expected = Pack(weights, 1, 64 << 20);
  ASSERT_GT(expected.size(), 3 * weights.size() / 2);
  for (const int num_threads : {1, 3}) {
    for (const int64_t piece_bytes : {5000, 300 << 10, 64 << 20}) {
      const std::vector<std::string> found =
          Pack(weights, num_threads, piece_bytes);
      ASSERT_EQ(found.size(), expected.size());
      for (size_t i = 0; i < found.size(); ++i) {
        EXPECT_TRUE(found[i] == expected[i])
            << "allocation " << i << ", " << num_threads << " threads, pieces "
            << "of " << piece_bytes;
      }
    }
  }
}

TEST(CudaBackendTest, AValueBeyondTheKeptDTypeNamesTheFirstSuchRow) {
  for (const int num_threads : {1, 3}) {
    StoredWeight weight = MakeWeight(LinearKind::kPlain, 4000, 200, DType::kF32,
                                     {.format = QuantFormat::kDense});
    weight.spec.model_dtype = DType::kF16;
    weight.dense[3100 * 200 + 7] = weight.dense[2900 * 200] = 1e6f;
    CudaBackendOptions options;
    options.copies = {num_threads, 1 << 20};
    const auto backend = *CudaBackend::Create(options);
    const absl::Status status = backend->PackLinear(weight.spec).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_NE(status.message().find("row 2900 of"), absl::string_view::npos)
        << status;
  }
}

TEST(CudaBackendTest, StagingEndsWithLoading) {
  const auto backend = MakeBackend();
  const StoredWeight weight =
      MakeWeight(LinearKind::kPlain, 4000, 512, DType::kBF16,
                 {.format = QuantFormat::kDense});
  const auto packed = backend->PackLinear(weight.spec);
  ASSERT_TRUE(packed.ok());
  EXPECT_GT(cuda::NumPinnedBytesOf(backend->device()), 0);
  EngineShape shape = SmallShape();
  shape.steps_in_flight = 1;
  ASSERT_TRUE(backend->Prepare(shape).ok());
  // What a step keeps: far less than the smallest piece.
  EXPECT_LT(cuda::NumPinnedBytesOf(backend->device()), 3 << 20);
}

TEST(CudaBackendTest, AFaultWhileLoadingIsTold) {
  const auto backend = MakeBackend();
  const StoredWeight weight =
      MakeWeight(LinearKind::kPlain, 40, 16, DType::kBF16,
                 {.format = QuantFormat::kDense});
  cuda::InjectFault(backend->device(), 0);
  // The copy is under way when PackLinear returns.
  const auto packed = backend->PackLinear(weight.spec);
  ASSERT_TRUE(packed.ok());
  const absl::Status status = backend->Prepare(SmallShape()).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInternal);
  EXPECT_NE(status.message().find("illegal address"), absl::string_view::npos);
}

TEST(CudaBackendTest, TooLittleMemoryNamesBothFigures) {
  const auto backend = MakeBackend();
  AttentionSpec attention;
  attention.num_layers = attention.num_heads = attention.num_kv_heads = 1;
  attention.head_dim = 16;
  attention.scale = 0.25f;
  ASSERT_TRUE(backend->AddAttention(attention).ok());
  EngineShape shape = SmallShape();
  shape.kv_bytes = 4095;
  const absl::Status status = backend->Prepare(shape).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  // 64 positions of 64 bytes.
  EXPECT_NE(status.message().find("needs 4096 bytes"), absl::string_view::npos)
      << status;
  // More than the device has: the driver's figures, and what to lower.
  shape.kv_bytes = int64_t{1} << 40;
  const absl::Status too_much = backend->Prepare(shape).status();
  EXPECT_EQ(too_much.code(), absl::StatusCode::kResourceExhausted) << too_much;
  EXPECT_NE(too_much.message().find("KV cache"), absl::string_view::npos)
      << too_much;
}

}  // namespace
}  // namespace quire
