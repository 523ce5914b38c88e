// In f32 the CPU backend gives a token the same bits whatever else is in its
// step, however its sequence was cut into chunks, and however many threads
// there are (invariant I7 of engine/DESIGN.md). On a GPU the same holds for a
// linear layer among steps of up to 64 tokens, which one kernel serves where no
// library is measured to be faster.
#include <algorithm>
#include <cmath>
#include <map>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "tests/backend_harness.h"

namespace quire {
namespace {

class LinearInvarianceTest : public testing::TestWithParam<TestBackend> {};

INSTANTIATE_TEST_SUITE_P(Backends, LinearInvarianceTest,
                         testing::ValuesIn(AllTestBackends()), TestBackendName);

class BackendInvarianceTest : public testing::TestWithParam<TestBackend> {};

INSTANTIATE_TEST_SUITE_P(Backends, BackendInvarianceTest,
                         testing::ValuesIn(CpuTestBackends()), TestBackendName);

// ---------------------------------------------------------------- operations

// Rows of x through one Linear, `batch` rows to a step.
std::vector<float> LinearInBatches(const TestBackend& test_backend,
                                   int num_threads, const HostMatrix& x,
                                   const HostMatrix& gate, const HostMatrix& up,
                                   int batch) {
  const auto backend = test_backend.Make(num_threads);
  const DType activations = test_backend.activations;
  LinearSpec spec;
  spec.kind = LinearKind::kGateUp;
  spec.parts = {{gate.view(), QuantFormat::kDense},
                {up.view(), QuantFormat::kDense}};
  const auto weight = CheckOk(backend->PackLinear(spec));
  const int x_id =
      backend->AddActivation(x.cols(), activations, ActivationRows::kTokens);
  const int out_id =
      backend->AddActivation(gate.rows(), activations, ActivationRows::kTokens);
  EngineShape shape;
  shape.max_num_seqs = 1;
  shape.max_num_tokens = batch;
  shape.max_logit_rows = 1;
  shape.max_model_len = x.rows();
  shape.vocab_size = 1;
  const MemoryPlan memory = CheckOk(backend->Prepare(shape));
  std::vector<int32_t> blocks(memory.num_blocks);
  const SlotParams params;
  SlotUpdate update;
  update.params = &params;
  update.append_blocks = blocks;
  StepPlan plan;
  plan.updates = absl::MakeConstSpan(&update, 1);
  std::vector<float> result;
  for (int begin = 0; begin < x.rows(); begin += batch) {
    StepRow row;
    row.num_tokens = std::min<int>(batch, x.rows() - begin);
    const std::vector<int32_t> token_ids(row.num_tokens);
    plan.rows = absl::MakeConstSpan(&row, 1);
    plan.token_ids = token_ids;
    RunStep(*backend, plan, [&](Step& step) {
      const TensorView in = backend->Activation(x_id);
      const auto rows =
          absl::MakeConstSpan(x.values())
              .subspan(begin * x.cols(), row.num_tokens * x.cols());
      CopyIn(*backend, std::vector<float>(rows.begin(), rows.end()), in);
      Prologue prologue;
      prologue.norm.kind = NormSpec::Kind::kNone;
      Epilogue epilogue;
      epilogue.activation = Epilogue::Activation::kSwiGlu;
      CheckOk(backend->Linear(step, in, prologue, *weight, epilogue,
                              backend->Activation(out_id)));
      const std::vector<float> out =
          CopyOut(*backend, backend->Activation(out_id), row.num_tokens);
      result.insert(result.end(), out.begin(), out.end());
    });
    plan.updates = {};
  }
  return result;
}

TEST_P(LinearInvarianceTest, RowsDoNotDependOnTheBatch) {
  SimulationRandom random(1);
  const DType dtype = GetParam().activations;
  const int64_t rows = GetParam().Cols(67);
  for (int64_t case_cols : {17, 256, 1031}) {
    const int64_t cols = GetParam().Cols(case_cols);
    const HostMatrix x = HostMatrix::Random(random, 37, cols, dtype);
    const HostMatrix gate = HostMatrix::Random(random, rows, cols, dtype);
    const HostMatrix up = HostMatrix::Random(random, rows, cols, dtype);
    const std::vector<float> alone =
        LinearInBatches(GetParam(), 1, x, gate, up, 1);
    for (int batch : {2, 3, 4, 7, 16, 37}) {
      for (int num_threads : {1, 3}) {
        EXPECT_EQ(LinearInBatches(GetParam(), num_threads, x, gate, up, batch),
                  alone)
            << "cols " << cols << ", batch " << batch;
      }
    }
  }
}

// ---------------------------------------------------------------- a model

constexpr int kVocabSize = 97;
constexpr int kHiddenSize = 64;
constexpr int kNumLayers = 2;
constexpr int kMaxModelLen = 80;
constexpr int kNumSeqs = 4;

// Llama with QK-norm, a window in one layer, and grouped heads.
class TinyModel {
 public:
  TinyModel(const TestBackend& backend, int num_threads)
      : backend_(backend.Make(num_threads)) {
    SimulationRandom random(7);
    const auto pack = [&](LinearKind kind, std::vector<int64_t> part_rows,
                          int64_t cols) {
      LinearSpec spec;
      spec.kind = kind;
      std::vector<HostMatrix> parts;
      for (int64_t rows : part_rows) {
        parts.push_back(HostMatrix::Random(random, rows, cols, DType::kF32,
                                           1 / std::sqrt(cols)));
      }
      for (const HostMatrix& part : parts) {
        spec.parts.push_back({part.view(), QuantFormat::kDense});
      }
      return CheckOk(backend_->PackLinear(spec));
    };
    const auto norm = [&](int64_t cols) {
      NormSpec spec;
      spec.kind = NormSpec::Kind::kRms;
      spec.weight = CheckOk(backend_->Upload(
          HostMatrix::Random(random, 1, cols, DType::kF32).view()));
      return spec;
    };
    AttentionSpec attention;
    attention.num_layers = 1;
    attention.num_heads = 4;
    attention.num_kv_heads = 2;
    attention.head_dim = 16;
    attention.scale = 0.25f;
    attention.kv_dtype = DType::kF32;
    attention.q_norm = norm(16);
    attention.k_norm = norm(16);
    attention.rope_table = CheckOk(backend_->Upload(
        HostMatrix::Random(random, kMaxModelLen, 16, DType::kF32).view()));
    for (int layer = 0; layer < kNumLayers; ++layer) {
      attention.sliding_window = layer == 0 ? 0 : 19;
      attention_[layer] = CheckOk(backend_->AddAttention(attention));
      qkv_[layer] = pack(LinearKind::kQkv, {64, 32, 32}, kHiddenSize);
      o_[layer] = pack(LinearKind::kPlain, {kHiddenSize}, 64);
      gate_up_[layer] = pack(LinearKind::kGateUp, {112, 112}, kHiddenSize);
      down_[layer] = pack(LinearKind::kPlain, {kHiddenSize}, 112);
      attention_norm_[layer] = norm(kHiddenSize);
      mlp_norm_[layer] = norm(kHiddenSize);
    }
    vocab_ = pack(LinearKind::kVocab, {kVocabSize}, kHiddenSize);
    final_norm_ = norm(kHiddenSize);
    const auto add = [&](int64_t cols, ActivationRows rows) {
      return backend_->AddActivation(cols, DType::kF32, rows);
    };
    hidden_id_ = add(kHiddenSize, ActivationRows::kTokens);
    qkv_id_ = add(128, ActivationRows::kTokens);
    mixed_id_ = add(64, ActivationRows::kTokens);
    mlp_id_ = add(112, ActivationRows::kTokens);
    logits_id_ = add(kVocabSize, ActivationRows::kLogitRows);
    EngineShape shape;
    shape.max_num_seqs = kNumSeqs;
    shape.max_num_tokens = 128;
    shape.max_logit_rows = kNumSeqs;
    shape.max_model_len = kMaxModelLen;
    shape.vocab_size = kVocabSize;
    shape.kv_bytes =
        int64_t{kNumLayers} * 2 * 2 * 16 * 4 * kMaxModelLen * kNumSeqs;
    num_blocks_ = CheckOk(backend_->Prepare(shape)).num_blocks;
  }

  // Starts sequence `seq` in the slot of its number; its blocks are spread
  // over the cache.
  void Start(int seq) {
    std::vector<int32_t> blocks;
    for (int i = seq; i < num_blocks_; i += kNumSeqs) blocks.push_back(i);
    SlotUpdate update;
    update.slot = seq;
    update.params = &params_;
    update.append_blocks = blocks;
    StepPlan plan;
    plan.updates = absl::MakeConstSpan(&update, 1);
    RunStep(*backend_, plan, [](Step&) {});
  }

  struct Chunk {
    int seq = 0;
    std::vector<int32_t> token_ids;
  };

  // One step; the logits after the last token of each chunk.
  std::vector<std::vector<float>> Forward(const std::vector<Chunk>& chunks) {
    std::vector<StepRow> rows;
    std::vector<int32_t> token_ids;
    for (const Chunk& chunk : chunks) {
      StepRow row;
      row.slot = chunk.seq;
      row.num_tokens = static_cast<int32_t>(chunk.token_ids.size());
      row.num_logits = 1;
      rows.push_back(row);
      token_ids.insert(token_ids.end(), chunk.token_ids.begin(),
                       chunk.token_ids.end());
    }
    StepPlan plan;
    plan.rows = rows;
    plan.token_ids = token_ids;
    std::vector<std::vector<float>> logits;
    RunStep(*backend_, plan, [&](Step& step) {
      Enqueue(step);
      const TensorView view = backend_->Activation(logits_id_);
      for (size_t i = 0; i < rows.size(); ++i) {
        logits.emplace_back(view.row<float>(i),
                            view.row<float>(i) + kVocabSize);
      }
      CheckOk(backend_->Sample(step, view));
    });
    return logits;
  }

 private:
  void Enqueue(Step& step) {
    const TensorView hidden = backend_->Activation(hidden_id_);
    const TensorView qkv = backend_->Activation(qkv_id_);
    const TensorView mixed = backend_->Activation(mixed_id_);
    const TensorView mlp = backend_->Activation(mlp_id_);
    CheckOk(backend_->Embed(step, *vocab_, nullptr, 1.0f, hidden));
    Epilogue add_to_hidden;
    add_to_hidden.residual = hidden;
    Epilogue gated;
    gated.activation = Epilogue::Activation::kSwiGlu;
    for (int layer = 0; layer < kNumLayers; ++layer) {
      Prologue prologue;
      prologue.norm = attention_norm_[layer];
      CheckOk(backend_->Linear(step, hidden, prologue, *qkv_[layer], Epilogue(),
                               qkv));
      CheckOk(backend_->Attention(step, attention_[layer], 0, qkv, mixed));
      CheckOk(backend_->Linear(step, mixed, Prologue(), *o_[layer],
                               add_to_hidden, hidden));
      prologue.norm = mlp_norm_[layer];
      CheckOk(backend_->Linear(step, hidden, prologue, *gate_up_[layer], gated,
                               mlp));
      CheckOk(backend_->Linear(step, mlp, Prologue(), *down_[layer],
                               add_to_hidden, hidden));
    }
    Prologue final;
    final.norm = final_norm_;
    CheckOk(backend_->Logits(step, hidden, final, *vocab_, 1.0f, 0.0f,
                             backend_->Activation(logits_id_)));
  }

  std::unique_ptr<Backend> backend_;
  SlotParams params_;
  int attention_[kNumLayers];
  std::unique_ptr<PackedWeight> qkv_[kNumLayers], o_[kNumLayers],
      gate_up_[kNumLayers], down_[kNumLayers], vocab_;
  NormSpec attention_norm_[kNumLayers], mlp_norm_[kNumLayers], final_norm_;
  int hidden_id_ = 0, qkv_id_ = 0, mixed_id_ = 0, mlp_id_ = 0, logits_id_ = 0;
  int num_blocks_ = 0;
};

TEST_P(BackendInvarianceTest, LogitsDoNotDependOnBatchChunksOrThreads) {
  SimulationRandom random(3);
  std::vector<std::vector<int32_t>> sequences(kNumSeqs);
  for (std::vector<int32_t>& tokens : sequences) {
    tokens.resize(random.Between(40, kMaxModelLen));
    for (int32_t& token : tokens) token = random.Below(kVocabSize);
  }
  // One token at a time, alone, on one thread.
  std::map<std::pair<int, int>, std::vector<float>> expected;
  for (int seq = 0; seq < kNumSeqs; ++seq) {
    TinyModel model(GetParam(), 1);
    model.Start(seq);
    for (size_t i = 0; i < sequences[seq].size(); ++i) {
      expected[{seq, static_cast<int>(i)}] =
          model.Forward({{seq, {sequences[seq][i]}}})[0];
    }
  }
  for (float logit : expected[{0, 39}]) ASSERT_TRUE(std::isfinite(logit));
  ASSERT_NE((expected[{0, 39}]), (expected[{0, 38}]));

  for (int trial = 0; trial < 6; ++trial) {
    TinyModel model(GetParam(), trial % 3 + 1);
    std::vector<size_t> num_computed(kNumSeqs);
    for (int seq = 0; seq < kNumSeqs; ++seq) model.Start(seq);
    while (true) {
      std::vector<TinyModel::Chunk> chunks;
      for (int seq = 0; seq < kNumSeqs; ++seq) {
        const size_t left = sequences[seq].size() - num_computed[seq];
        if (left == 0 || random.Below(4) == 0) continue;
        const size_t longest = trial == 0 ? 80 : random.Below(2) == 0 ? 1 : 30;
        const size_t count = std::min<size_t>(
            {left, static_cast<size_t>(random.Between(1, longest)),
             128 / kNumSeqs});
        const auto begin = sequences[seq].begin() + num_computed[seq];
        chunks.push_back({seq, {begin, begin + count}});
      }
      const auto logits = model.Forward(chunks);
      for (size_t i = 0; i < chunks.size(); ++i) {
        const int seq = chunks[i].seq;
        num_computed[seq] += chunks[i].token_ids.size();
        ASSERT_EQ(logits[i],
                  (expected[{seq, static_cast<int>(num_computed[seq]) - 1}]))
            << "trial " << trial << ", sequence " << seq << ", position "
            << num_computed[seq] - 1;
      }
      bool is_done = true;
      for (int seq = 0; seq < kNumSeqs; ++seq) {
        is_done &= num_computed[seq] == sequences[seq].size();
      }
      if (is_done) break;
    }
  }
}

}  // namespace
}  // namespace quire
