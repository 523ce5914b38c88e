// Pool of the CPU backend, on every instruction set this machine has, and of
// the CUDA backend on an emulated GPU: against kernels/reference over random
// chunks and batches, and bit for bit against itself under any chunking.
#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "kernels/reference.h"
#include "tests/backend_harness.h"

namespace quire {
namespace {

constexpr double kRoundoff = 0x1p-24;  // Of f32, relative.
constexpr int kNumSeqs = 4;
constexpr int kMaxNumTokens = 64;
constexpr int kMaxModelLen = 96;

class BackendPoolingTest : public testing::TestWithParam<TestBackend> {};

INSTANTIATE_TEST_SUITE_P(Backends, BackendPoolingTest,
                         testing::ValuesIn(AllTestBackends()), TestBackendName);

// A backend that pools hidden states which the test makes up.
class Pooler {
 public:
  Pooler(std::unique_ptr<Backend> backend, DType activations,
         const HostMatrix& norm_weight, Pooling pooling)
      : backend_(std::move(backend)), pooling_(pooling) {
    const int cols = static_cast<int>(norm_weight.cols());
    prologue_.norm.kind = NormSpec::Kind::kRms;
    prologue_.norm.weight = CheckOk(backend_->Upload(norm_weight.view()));
    hidden_id_ =
        backend_->AddActivation(cols, activations, ActivationRows::kTokens);
    EngineShape shape;
    shape.max_num_seqs = kNumSeqs;
    shape.max_num_tokens = kMaxNumTokens;
    shape.max_logit_rows = kNumSeqs;
    shape.max_model_len = kMaxModelLen;
    shape.vocab_size = 8;
    shape.pooled_cols = cols;
    num_blocks_ = CheckOk(backend_->Prepare(shape)).num_blocks;
  }

  void Start(int slot, int num_computed_tokens = 0) {
    std::vector<int32_t> blocks(num_blocks_);
    const std::vector<int32_t> history(num_computed_tokens);
    const SlotParams params;
    SlotUpdate update;
    update.slot = slot;
    update.params = &params;
    update.history = history;
    update.num_prompt_tokens = num_computed_tokens;
    update.num_computed_tokens = num_computed_tokens;
    update.append_blocks = blocks;
    StepPlan plan;
    plan.updates = absl::MakeConstSpan(&update, 1);
    RunStep(*backend_, plan, [](Step&) {});
  }

  // "Rows first .. first + count of `hidden` are the next tokens of `slot`."
  struct Chunk {
    int slot = 0;
    const HostMatrix* hidden = nullptr;
    int first = 0;
    int count = 0;
    bool is_last = false;
  };

  absl::StatusOr<std::vector<RowResult>> Run(const std::vector<Chunk>& chunks) {
    std::vector<StepRow> rows;
    std::vector<float> hidden;
    for (const Chunk& chunk : chunks) {
      StepRow row;
      row.slot = chunk.slot;
      row.num_tokens = chunk.count;
      row.num_logits = chunk.is_last ? 1 : 0;
      rows.push_back(row);
      for (int i = 0; i < chunk.count; ++i) {
        const auto values = chunk.hidden->row(chunk.first + i);
        hidden.insert(hidden.end(), values.begin(), values.end());
      }
    }
    const TensorView view = backend_->Activation(hidden_id_);
    const std::vector<int32_t> token_ids(hidden.size() / view.cols);
    StepPlan plan;
    plan.rows = rows;
    plan.token_ids = token_ids;
    Step* step = CheckOk(backend_->BeginStep(plan));
    CopyIn(*backend_, hidden, view);
    absl::Status status = backend_->Run(*step, GraphKey(), [&] {
      return backend_->Pool(*step, view, prologue_, pooling_);
    });
    status.Update(backend_->EndStep(*step));
    const auto results = backend_->Collect(*step);
    if (!status.ok()) return status;
    return std::vector<RowResult>(results->begin(), results->end());
  }

 private:
  std::unique_ptr<Backend> backend_;
  const Pooling pooling_;
  Prologue prologue_;
  int hidden_id_ = 0;
  int num_blocks_ = 0;
};

std::vector<float> ToVector(absl::Span<const float> values) {
  return {values.begin(), values.end()};
}

// Each sequence whole and alone.
std::vector<float> PoolAlone(Pooler& pooler, const HostMatrix& hidden) {
  pooler.Start(0);
  for (int first = 0; first < hidden.rows(); first += kMaxNumTokens) {
    const int count =
        std::min<int>(kMaxNumTokens, static_cast<int>(hidden.rows()) - first);
    const bool is_last = first + count == hidden.rows();
    const auto results =
        CheckOk(pooler.Run({{0, &hidden, first, count, is_last}}));
    if (is_last) return ToVector(results.at(0).embedding);
  }
  return {};
}

// An RMS norm in f32 (see backend_conformance_test.cc) and the rounding of the
// result; the sum itself is in double.
void ExpectPooled(const HostMatrix& hidden, const HostMatrix& weight,
                  Pooling pooling, const std::vector<float>& got,
                  const std::vector<float>& expected) {
  const int64_t cols = hidden.cols();
  ASSERT_EQ(got.size(), static_cast<size_t>(cols));
  ASSERT_EQ(expected.size(), static_cast<size_t>(cols));
  NormSpec norm;
  norm.kind = NormSpec::Kind::kRms;
  norm.weight = weight.view();
  std::vector<double> magnitude(cols);
  for (int64_t t = 0; t < hidden.rows(); ++t) {
    if (pooling == Pooling::kLast && t + 1 < hidden.rows()) continue;
    const absl::Span<const float> row = hidden.row(t);
    const std::vector<double> x =
        ReferenceNorm(norm, std::vector<double>(row.begin(), row.end()));
    const double share = pooling == Pooling::kMean ? 1.0 / hidden.rows() : 1.0;
    for (int64_t c = 0; c < cols; ++c) magnitude[c] += share * std::abs(x[c]);
  }
  for (int64_t c = 0; c < cols; ++c) {
    const double tolerance = (0.5 * cols + 12) * kRoundoff * magnitude[c];
    ASSERT_TRUE(std::abs(double{got[c]} - expected[c]) <= tolerance)
        << "column " << c << " of " << cols << ": " << got[c] << " vs "
        << expected[c] << ", tolerance " << tolerance;
  }
}

TEST_P(BackendPoolingTest, EqualsTheReferenceUnderAnyChunking) {
  SimulationRandom random(17);
  for (const Pooling pooling : {Pooling::kLast, Pooling::kMean}) {
    for (const int case_cols : {1, 17, 64, 130}) {
      const int cols = static_cast<int>(GetParam().Cols(case_cols));
      const DType activations = GetParam().activations;
      const HostMatrix weight =
          HostMatrix::Random(random, 1, cols, DType::kF32);
      std::vector<HostMatrix> sequences;
      for (int i = 0; i < 12; ++i) {
        const int length =
            i == 0 ? 1 : static_cast<int>(random.Between(1, kMaxModelLen));
        sequences.push_back(
            HostMatrix::Random(random, length, cols, activations, 3.0));
      }
      Pooler alone(GetParam().Make(1), activations, weight, pooling);
      Pooler reference(std::make_unique<ReferenceBackend>(), activations,
                       weight, pooling);
      std::vector<std::vector<float>> expected;
      for (const HostMatrix& hidden : sequences) {
        expected.push_back(PoolAlone(alone, hidden));
        ExpectPooled(hidden, weight, pooling, expected.back(),
                     PoolAlone(reference, hidden));
        if (HasFatalFailure()) return;
      }

      // The sequences one after the other through random slots.
      Pooler batched(GetParam().Make(3), activations, weight, pooling);
      size_t next = 0;
      int num_ended = 0;
      int sequence_of[kNumSeqs];
      int num_done[kNumSeqs] = {};
      std::fill_n(sequence_of, kNumSeqs, -1);
      while (num_ended < static_cast<int>(sequences.size())) {
        std::vector<Pooler::Chunk> chunks;
        for (int slot = 0; slot < kNumSeqs; ++slot) {
          if (sequence_of[slot] < 0 && next < sequences.size()) {
            sequence_of[slot] = static_cast<int>(next++);
            num_done[slot] = 0;
            batched.Start(slot);
          }
          if (sequence_of[slot] < 0 || random.Below(4) == 0) continue;
          const HostMatrix& hidden = sequences[sequence_of[slot]];
          const int left = static_cast<int>(hidden.rows()) - num_done[slot];
          const int count = std::min<int>(
              left,
              static_cast<int>(random.Between(1, kMaxNumTokens / kNumSeqs)));
          chunks.push_back(
              {slot, &hidden, num_done[slot], count, count == left});
          num_done[slot] += count;
        }
        const auto results = CheckOk(batched.Run(chunks));
        size_t result_idx = 0;
        for (const Pooler::Chunk& chunk : chunks) {
          if (!chunk.is_last) continue;
          const RowResult& result = results.at(result_idx++);
          EXPECT_EQ(result.slot, chunk.slot);
          EXPECT_TRUE(result.tokens.empty());
          EXPECT_FALSE(result.non_finite);
          EXPECT_EQ(ToVector(result.embedding),
                    expected[sequence_of[chunk.slot]])
              << "sequence " << sequence_of[chunk.slot] << ", cols " << cols;
          sequence_of[chunk.slot] = -1;
          ++num_ended;
        }
        EXPECT_EQ(result_idx, results.size());
      }
    }
  }
}

TEST_P(BackendPoolingTest, NonFiniteRowsSaySo) {
  constexpr int kCols = 24;
  const HostMatrix weight(1, kCols, DType::kF32, std::vector<float>(kCols, 1));
  std::vector<float> values(2 * kCols, 1.0f);
  const HostMatrix good(2, kCols, DType::kF32, values);
  values[7] = std::numeric_limits<float>::quiet_NaN();
  const HostMatrix bad(2, kCols, DType::kF32, values);  // In its first token.
  for (const Pooling pooling : {Pooling::kLast, Pooling::kMean}) {
    Pooler pooler(GetParam().Make(), GetParam().activations, weight, pooling);
    pooler.Start(0);
    pooler.Start(1);
    const auto results =
        CheckOk(pooler.Run({{0, &bad, 0, 2, true}, {1, &good, 0, 2, true}}));
    ASSERT_EQ(results.size(), 2u);
    EXPECT_EQ(results[0].non_finite, pooling == Pooling::kMean);
    EXPECT_FALSE(results[1].non_finite);
  }
}

// What the prefix cache skips has no hidden states: only the last token's
// pooling can do without.
TEST_P(BackendPoolingTest, MeanNeedsEveryToken) {
  const HostMatrix weight(1, 8, DType::kF32, std::vector<float>(8, 1));
  const HostMatrix hidden(2, 8, DType::kF32, std::vector<float>(16, 3));
  Pooler mean(GetParam().Make(), GetParam().activations, weight,
              Pooling::kMean);
  mean.Start(0, /*num_computed_tokens=*/16);
  EXPECT_EQ(mean.Run({{0, &hidden, 0, 2, true}}).status().code(),
            absl::StatusCode::kFailedPrecondition);
  Pooler last(GetParam().Make(), GetParam().activations, weight,
              Pooling::kLast);
  last.Start(0, /*num_computed_tokens=*/16);
  EXPECT_TRUE(last.Run({{0, &hidden, 0, 2, true}}).ok());
}

}  // namespace
}  // namespace quire
