// Attention of the CPU backend, on every instruction set, and of the CUDA
// backend on an emulated GPU, against kernels/reference: ragged steps that mix
// prefill chunks, decodes and several query tokens, shared and copied blocks,
// over generated specs.
#include <algorithm>
#include <bit>
#include <cmath>
#include <map>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "kernels/reference.h"
#include "tests/backend_harness.h"

namespace quire {
namespace {

constexpr double kRoundoff = 0x1p-24;  // Of f32, relative.
constexpr float kNormEps = 1e-2f;

class BackendAttentionTest : public testing::TestWithParam<TestBackend> {};

INSTANTIATE_TEST_SUITE_P(Backends, BackendAttentionTest,
                         testing::ValuesIn(AllTestBackends()), TestBackendName);

struct AttentionCase {
  int num_heads = 1;
  int num_kv_heads = 1;
  int head_dim = 64;
  int block_size = 16;
  int sliding_window = 0;
  float softcap = 0.0f;
  int rotary_dim = 0;
  bool rope_interleaved = false;
  int long_rope_after = -1;  // -1: none.
  // What the QK-norm's weights span; see AttentionSpec.
  enum class QkNorm { kNone, kHead, kEachHead, kAllHeads };
  QkNorm qk_norm = QkNorm::kNone;
  bool is_layer_norm = false;
  DType kv_dtype = DType::kF32;
  DType activations = DType::kF32;

  int q_cols() const { return num_heads * head_dim; }
  int kv_cols() const { return num_kv_heads * head_dim; }
  int qkv_cols() const { return q_cols() + 2 * kv_cols(); }
  bool has_qk_norm() const { return qk_norm != QkNorm::kNone; }
  bool changes_k() const { return rotary_dim > 0 || has_qk_norm(); }
  // Rows and columns of the weight for `heads` heads.
  int norm_rows(int heads) const {
    return qk_norm == QkNorm::kEachHead ? heads : 1;
  }
  int norm_cols(int heads) const {
    return qk_norm == QkNorm::kAllHeads ? heads * head_dim : head_dim;
  }

  std::string ToString() const {
    return absl::StrCat(
        "heads ", num_heads, "/", num_kv_heads, " head_dim ", head_dim,
        " block ", block_size, " window ", sliding_window, " softcap ", softcap,
        " rotary ", rotary_dim, rope_interleaved ? " interleaved" : "",
        " long after ", long_rope_after, " qk-norm ", static_cast<int>(qk_norm),
        is_layer_norm ? " layer " : " ", DTypeName(kv_dtype));
  }
};

constexpr int kNumLayers = 2;
constexpr int kMaxModelLen = 400;
constexpr int kMaxTokens = 400;

// A step of the scenario, as plain data that both backends get.
struct ScenarioStep {
  std::vector<SlotUpdate> updates;
  std::vector<std::vector<int32_t>> blocks;  // Behind the updates.
  std::vector<std::pair<int32_t, int32_t>> copies;
  std::vector<StepRow> rows;
  std::vector<float> qkv[kNumLayers];
  int num_tokens = 0;
};

// One backend with its attention layers prepared.
class AttentionRunner {
 public:
  AttentionRunner(Backend& backend, const AttentionCase& c,
                  const HostMatrix& rope, const HostMatrix& long_rope,
                  const HostMatrix& q_weight, const HostMatrix& k_weight)
      : backend_(backend), case_(c) {
    AttentionSpec spec;
    spec.num_layers = kNumLayers;
    spec.num_heads = c.num_heads;
    spec.num_kv_heads = c.num_kv_heads;
    spec.head_dim = c.head_dim;
    spec.sliding_window = c.sliding_window;
    spec.scale = Scale(c);
    spec.softcap = c.softcap;
    spec.kv_dtype = c.kv_dtype;
    spec.rope_interleaved = c.rope_interleaved;
    if (c.rotary_dim > 0)
      spec.rope_table = CheckOk(backend.Upload(rope.view()));
    if (c.rotary_dim > 0 && c.long_rope_after >= 0) {
      spec.long_rope_table = CheckOk(backend.Upload(long_rope.view()));
      spec.long_rope_after = c.long_rope_after;
    }
    if (c.has_qk_norm()) {
      const auto kind =
          c.is_layer_norm ? NormSpec::Kind::kLayer : NormSpec::Kind::kRms;
      spec.q_norm.kind = spec.k_norm.kind = kind;
      spec.q_norm.eps = spec.k_norm.eps = kNormEps;
      spec.q_norm.weight = CheckOk(backend.Upload(q_weight.view()));
      spec.k_norm.weight = CheckOk(backend.Upload(k_weight.view()));
      if (c.is_layer_norm) {
        spec.q_norm.bias = CheckOk(backend.Upload(q_weight.view()));
        spec.k_norm.bias = CheckOk(backend.Upload(k_weight.view()));
      }
    }
    spec_id_ = CheckOk(backend.AddAttention(spec));
    qkv_ = backend.AddActivation(c.qkv_cols(), c.activations,
                                 ActivationRows::kTokens);
    out_ = backend.AddActivation(c.q_cols(), c.activations,
                                 ActivationRows::kTokens);
    EngineShape shape;
    shape.max_num_seqs = 8;
    shape.max_num_tokens = kMaxTokens;
    shape.max_logit_rows = 1;
    shape.max_model_len = kMaxModelLen;
    shape.vocab_size = 4;
    shape.block_size = c.block_size;
    shape.kv_bytes = int64_t{kNumLayers} * 2 * c.num_kv_heads *
                     KvHeadBytes(c.kv_dtype, c.head_dim) * kMaxModelLen * 6;
    num_blocks_ = CheckOk(backend.Prepare(shape)).num_blocks;
  }

  static float Scale(const AttentionCase& c) {
    return 1.0f / std::sqrt(static_cast<float>(c.head_dim));
  }

  int num_blocks() const { return num_blocks_; }

  // [layer][num_tokens, q_cols]
  std::vector<float> Run(const ScenarioStep& scenario) {
    const std::vector<int32_t> token_ids(scenario.num_tokens);
    StepPlan plan;
    plan.updates = scenario.updates;
    plan.block_copies = scenario.copies;
    plan.rows = scenario.rows;
    plan.token_ids = token_ids;
    std::vector<float> result;
    RunStep(backend_, plan, [&](Step& step) {
      for (int layer = 0; layer < kNumLayers; ++layer) {
        CopyIn(backend_, scenario.qkv[layer], backend_.Activation(qkv_));
        CheckOk(backend_.Attention(step, spec_id_, layer,
                                   backend_.Activation(qkv_),
                                   backend_.Activation(out_)));
        const std::vector<float> out =
            CopyOut(backend_, backend_.Activation(out_), scenario.num_tokens);
        result.insert(result.end(), out.begin(), out.end());
      }
    });
    return result;
  }

 private:
  Backend& backend_;
  AttentionCase case_;
  int spec_id_ = 0;
  int qkv_ = 0;
  int out_ = 0;
  int num_blocks_ = 0;
};

// The largest norms of a q and a k head and the largest |v| seen so far.
struct Extremes {
  double q = 0.0;
  double k = 0.0;
  double v = 0.0;

  void Add(const AttentionCase& c, const std::vector<float>& qkv,
           const HostMatrix& q_weight, const HostMatrix& k_weight) {
    const int num_heads = c.num_heads + 2 * c.num_kv_heads;
    for (size_t i = 0; i < qkv.size() / c.head_dim; ++i) {
      const int head = static_cast<int>(i % num_heads);
      double squares = 0.0;
      double largest = 0.0;
      for (int j = 0; j < c.head_dim; ++j) {
        const double value = qkv[i * c.head_dim + j];
        squares += value * value;
        largest = std::max(largest, std::abs(value));
      }
      double norm = std::sqrt(squares);
      if (head >= c.num_heads + c.num_kv_heads) {
        v = std::max(v, largest);
        continue;
      }
      const bool is_q = head < c.num_heads;
      if (c.has_qk_norm()) {
        // Normalized: the root mean square of what is normed together is 1, so
        // a head has a norm of at most the root of that size, times the largest
        // weight; with a LayerNorm, a bias of the same size is added.
        double weight = 0.0;
        for (float w : (is_q ? q_weight : k_weight).values()) {
          weight = std::max(weight, std::abs(static_cast<double>(w)));
        }
        const int size = c.norm_cols(is_q ? c.num_heads : c.num_kv_heads);
        norm = std::sqrt(static_cast<double>(size)) * weight *
               (c.is_layer_norm ? 2 : 1);
      }
      (is_q ? q : k) = std::max(is_q ? q : k, norm);
    }
  }
};

// Bounds the error of an output. A score is a dot product of head_dim terms
// (Cauchy-Schwarz bounds the sum of their magnitudes) of q and k that carry the
// roundings of norm and RoPE; where K is computed and then rounded to the
// cache, the error may straddle a boundary and move an element by a whole step:
// 2^-7 relative for bf16, 2^-10 for f16, 2^-3 for e4m3, but at least its
// smallest, 2^-9; for i8 a 127th of the largest element, whose own error moves
// the scale. An error d of all scores changes probabilities by at most a factor
// e^2d. The weighted sum and the division add one rounding for each position
// and a few for exp (2 ulp, twice); the scales of i8 add two, to scores and
// sum.
//
// With activations of 16 bits, each element of a q that is computed is rounded
// once, which moves a score by as much as one rounding of itself; each
// probability is rounded, which moves the weighted sum by one rounding of the
// largest |v| (and, for f16, by the smallest step for each position, as
// probabilities are not larger than their sum); and the output is stored.
double AttentionTolerance(const TestBackend& backend, const AttentionCase& c,
                          const Extremes& extremes, int num_positions) {
  const double largest_score =
      extremes.q * extremes.k * AttentionRunner::Scale(c);
  double relative = 2.0 * c.head_dim * kRoundoff;
  if (c.has_qk_norm()) {
    // A LayerNorm sums twice, and the error of the mean (relative to the
    // largest element, below 6 here) is magnified by 1 / sqrt(eps) at most: a
    // head of few elements can have almost no variance.
    const double size = c.norm_cols(c.num_heads);
    relative += 2 * (0.5 * size + 10) * kRoundoff *
                (c.is_layer_norm ? 2 + 6 / std::sqrt(kNormEps) : 1);
  }
  if (c.rotary_dim > 0) relative += 2 * 4 * kRoundoff;
  if (c.changes_k() && c.kv_dtype == DType::kBF16) relative += 0x1p-7;
  if (c.changes_k() && c.kv_dtype == DType::kF16) relative += 0x1p-10;
  if (c.changes_k()) relative += backend.RoundingError(1.0);
  if (c.changes_k() && c.kv_dtype == DType::kF8E4M3) relative += 0x1p-3;
  // Scaling, and subtracting the maximum.
  double score_error = largest_score * (relative + 6 * kRoundoff);
  if (c.changes_k() && c.kv_dtype == DType::kF8E4M3) {
    // A vector of smallest steps has a norm, too.
    score_error +=
        extremes.q * std::sqrt(c.head_dim) * 0x1p-9 * AttentionRunner::Scale(c);
  }
  if (c.changes_k() && c.kv_dtype == DType::kI8) {
    score_error += largest_score * std::sqrt(c.head_dim) / 127;
  }
  if (c.softcap > 0.0f) score_error += 16 * kRoundoff * c.softcap;
  const double probability_error =
      backend.RoundingError(1.0) + num_positions * backend.RoundingError(0.0);
  return backend.Stored(
      extremes.v,
      extremes.v * (std::expm1(2 * score_error) +
                    (1 + std::expm1(2 * score_error)) * probability_error +
                    (2.0 * num_positions + 18) * kRoundoff));
}

// Plans the steps: sequences arrive, are computed in chunks, decode, take
// several tokens at once, share the first blocks of another, or continue from a
// copy of its last block.
class Scenario {
 public:
  Scenario(const AttentionCase& c, int num_blocks, SimulationRandom& random)
      : case_(c), random_(random) {
    for (int i = 0; i < num_blocks; ++i) free_.push_back(i);
    for (int i = num_blocks - 1; i > 0; --i) {
      std::swap(free_[i], free_[random.Below(i + 1)]);
    }
  }

  // A row of `num_tokens` more tokens of `slot`; starts it if it is new.
  void Add(ScenarioStep& step, int slot, int num_tokens) {
    std::vector<int32_t> append;
    const bool is_new = tables_.count(slot) == 0;
    std::vector<int32_t>& table = tables_[slot];
    if (is_new) append = table;
    Grow(slot, num_tokens, &append);
    Push(step, slot, is_new, 0, append);
    AddRow(step, slot, num_tokens);
  }

  // `slot` starts with the full blocks of `from` shared, its partial block
  // copied, and adds `num_tokens`.
  void Fork(ScenarioStep& step, int slot, int from, int num_tokens) {
    const int computed = computed_[from];
    const std::vector<int32_t> source = tables_[from];
    std::vector<int32_t> append(source.begin(),
                                source.begin() + computed / case_.block_size);
    tables_[slot] = append;
    computed_[slot] = computed;
    if (computed % case_.block_size != 0) {
      const int32_t copy = Take();
      step.copies.push_back({source[computed / case_.block_size], copy});
      tables_[slot].push_back(copy);
      append.push_back(copy);
    }
    Grow(slot, num_tokens, &append);
    Push(step, slot, true, computed, append);
    AddRow(step, slot, num_tokens);
  }

  // Fills in the inputs; call when all rows are there.
  void Finish(ScenarioStep& step) {
    for (size_t i = 0; i < step.updates.size(); ++i) {
      step.updates[i].append_blocks = step.blocks[i];
    }
    for (std::vector<float>& qkv : step.qkv) {
      qkv = HostMatrix::Random(random_, step.num_tokens, case_.qkv_cols(),
                               case_.activations)
                .values();
    }
  }

  int longest() const {
    int longest = 0;
    for (const auto& [slot, computed] : computed_) {
      longest = std::max(longest, computed);
    }
    return longest;
  }

 private:
  int32_t Take() {
    const int32_t block = free_.back();
    free_.pop_back();
    return block;
  }

  void Grow(int slot, int num_tokens, std::vector<int32_t>* append) {
    std::vector<int32_t>& table = tables_[slot];
    while (static_cast<int>(table.size()) * case_.block_size <
           computed_[slot] + num_tokens) {
      table.push_back(Take());
      append->push_back(table.back());
    }
  }

  void Push(ScenarioStep& step, int slot, bool is_new, int computed,
            const std::vector<int32_t>& append) {
    SlotUpdate update;
    update.slot = slot;
    if (is_new) {
      update.params = &params_;
      update.history = absl::MakeConstSpan(history_).subspan(0, computed);
      update.num_prompt_tokens = computed;
      update.num_computed_tokens = computed;
    }
    step.updates.push_back(update);
    step.blocks.push_back(append);
  }

  void AddRow(ScenarioStep& step, int slot, int num_tokens) {
    StepRow row;
    row.slot = slot;
    row.num_tokens = num_tokens;
    step.rows.push_back(row);
    step.num_tokens += num_tokens;
    computed_[slot] += num_tokens;
  }

  AttentionCase case_;
  SimulationRandom& random_;
  SlotParams params_;
  std::vector<int32_t> history_ = std::vector<int32_t>(kMaxModelLen);
  std::vector<int32_t> free_;
  std::map<int, std::vector<int32_t>> tables_;
  std::map<int, int> computed_;
};

HostMatrix RopeTable(int rotary_dim, double theta) {
  std::vector<float> values;
  for (int position = 0; position < kMaxModelLen; ++position) {
    for (int is_sine = 0; is_sine < 2; ++is_sine) {
      for (int i = 0; i < rotary_dim / 2; ++i) {
        const double angle = position * std::pow(theta, -2.0 * i / rotary_dim);
        values.push_back(is_sine == 1 ? std::sin(angle) : std::cos(angle));
      }
    }
  }
  return HostMatrix(kMaxModelLen, rotary_dim, DType::kF32, values);
}

// long_chunk: of one prompt, which goes on with half as many tokens; another
// backend then computes the same bits.
void CheckAttention(const TestBackend& test_backend, AttentionCase c,
                    uint64_t seed, int long_chunk = 0) {
  SimulationRandom random(seed);
  c.activations = test_backend.activations;
  if (c.kv_dtype == DType::kF8E4M3) {
    c.head_dim = (c.head_dim + 15) / 16 * 16;
  } else if (c.kv_dtype != DType::kI8) {
    c.kv_dtype = test_backend.Weights(c.kv_dtype);
    c.head_dim = static_cast<int>(test_backend.Cols(c.head_dim));
  }
  if (test_backend.is_cuda()) {
    c.block_size = std::bit_ceil(static_cast<unsigned>(c.block_size));
  }
  const HostMatrix rope = RopeTable(c.rotary_dim, 10000.0);
  const HostMatrix long_rope = RopeTable(c.rotary_dim, 500.0);
  const HostMatrix q_weight = HostMatrix::Random(
      random, c.norm_rows(c.num_heads), c.norm_cols(c.num_heads), DType::kF32);
  const HostMatrix k_weight =
      HostMatrix::Random(random, c.norm_rows(c.num_kv_heads),
                         c.norm_cols(c.num_kv_heads), DType::kF32);
  ReferenceBackend reference;
  const auto backend = test_backend.Make();
  AttentionRunner expected_runner(reference, c, rope, long_rope, q_weight,
                                  k_weight);
  AttentionRunner got_runner(*backend, c, rope, long_rope, q_weight, k_weight);
  const auto backend_again = test_backend.Make();
  AttentionRunner runner_again(*backend_again, c, rope, long_rope, q_weight,
                               k_weight);
  ASSERT_EQ(expected_runner.num_blocks(), got_runner.num_blocks());

  Scenario scenario(c, got_runner.num_blocks(), random);
  const int edge = c.block_size * static_cast<int>(random.Between(1, 3));
  std::vector<ScenarioStep> steps(6);
  scenario.Add(steps[0], 3,
               std::max(1, edge + static_cast<int>(random.Between(-1, 1))));
  scenario.Add(steps[0], 0, 1);
  scenario.Add(steps[1], 3, 1);
  scenario.Add(steps[1], 5, static_cast<int>(random.Between(1, 40)));
  scenario.Add(steps[1], 0, 5);
  scenario.Fork(steps[2], 1, 3, static_cast<int>(random.Between(1, 7)));
  scenario.Add(steps[2], 5, static_cast<int>(random.Between(1, 17)));
  scenario.Fork(steps[3], 7, 5, 3);
  scenario.Add(steps[3], 3, 4);
  scenario.Add(steps[3], 1, 1);
  scenario.Add(steps[3], 0, 1);
  scenario.Add(steps[3], 5, 1);
  if (long_chunk > 0) {
    scenario.Add(steps[3], 6, long_chunk);
    scenario.Add(steps[4], 6, long_chunk / 2);
  }
  // The last one stays empty: no rows at all.
  Extremes extremes;
  for (size_t i = 0; i < steps.size(); ++i) {
    scenario.Finish(steps[i]);
    for (const std::vector<float>& qkv : steps[i].qkv) {
      extremes.Add(c, qkv, q_weight, k_weight);
    }
    const std::vector<float> expected = expected_runner.Run(steps[i]);
    const std::vector<float> got = got_runner.Run(steps[i]);
    const double tolerance =
        AttentionTolerance(test_backend, c, extremes, scenario.longest());
    ASSERT_EQ(got.size(), expected.size());
    if (long_chunk > 0) {
      ASSERT_EQ(runner_again.Run(steps[i]), got) << c.ToString();
    }
    for (size_t j = 0; j < got.size(); ++j) {
      ASSERT_TRUE(std::abs(static_cast<double>(got[j]) - expected[j]) <=
                  tolerance)
          << c.ToString() << ", step " << i << ", element " << j << ": "
          << got[j] << " vs " << expected[j] << ", tolerance " << tolerance;
    }
  }
}

TEST_P(BackendAttentionTest, HeadDimsAndGroups) {
  uint64_t seed = 1;
  for (int head_dim : {1, 5, 16, 33, 64, 80, 96, 128, 256}) {
    for (const auto& [num_heads, num_kv_heads] :
         {std::pair(1, 1), std::pair(4, 4), std::pair(6, 2), std::pair(7, 1)}) {
      AttentionCase c;
      c.num_heads = num_heads;
      c.num_kv_heads = num_kv_heads;
      c.head_dim = head_dim;
      for (DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
        // One dtype for each shape, rotating.
        if (++seed % 3 != 0) continue;
        c.kv_dtype = dtype;
        CheckAttention(GetParam(), c, seed);
        if (HasFatalFailure()) return;
      }
    }
  }
}

// Five and then seven tiles of 64 keys, for all rows of a tile of queries: each
// of what a kernel has in shared memory is used again, twice, beside all that
// goes on at the same time.
TEST_P(BackendAttentionTest, LongPrompts) {
  for (const int head_dim : {64, 80, 128}) {
    AttentionCase c;
    c.num_kv_heads = head_dim == 80 ? 2 : 1;
    c.num_heads = head_dim == 128 ? 3 : 2;
    c.head_dim = head_dim;
    c.kv_dtype = GetParam().Weights(DType::kF32);
    if (head_dim == 64) c.softcap = 2.0f;
    if (head_dim == 80) c.sliding_window = 150;
    CheckAttention(GetParam(), c, 700 + head_dim, 260);
    if (HasFatalFailure()) return;
  }
}

// Every head of the same values has the same bits, with more tiles than the
// device computes at a time: what one disturbs of another, or comes too late
// where memory is busy, shows.
TEST_P(BackendAttentionTest, HeadsDoNotDisturbEachOther) {
  for (const int head_dim : {64, 128}) {
    AttentionCase c;
    c.num_kv_heads = GetParam().is_cuda() ? 2 + NumMultiprocessors() / 2 : 4;
    c.num_heads = 2 * c.num_kv_heads;
    c.head_dim = head_dim;
    c.activations = GetParam().activations;
    c.kv_dtype = GetParam().Weights(DType::kF32);
    const HostMatrix none = RopeTable(2, 10000.0);
    const auto backend = GetParam().Make();
    AttentionRunner runner(*backend, c, none, none, none, none);
    SimulationRandom random(head_dim);
    Scenario scenario(c, runner.num_blocks(), random);
    std::vector<ScenarioStep> steps(3);
    scenario.Add(steps[0], 0, 260);
    scenario.Add(steps[1], 0, 130);
    scenario.Add(steps[2], 0, 1);
    for (ScenarioStep& step : steps) {
      scenario.Finish(step);
      // Queries of two heads, a key and a value are those of the first.
      for (std::vector<float>& qkv : step.qkv) {
        for (size_t row = 0; row < qkv.size(); row += c.qkv_cols()) {
          for (int col = 0; col < c.qkv_cols(); ++col) {
            const int first = col < c.q_cols() ? 0
                              : col < c.q_cols() + c.kv_cols()
                                  ? c.q_cols()
                                  : c.q_cols() + c.kv_cols();
            const int size = first == 0 ? 2 * head_dim : head_dim;
            qkv[row + col] = qkv[row + first + (col - first) % size];
          }
        }
      }
      const std::vector<float> got = runner.Run(step);
      for (size_t i = 0; i < got.size(); ++i) {
        const size_t col = i % c.q_cols();
        const size_t same = i - col + col % (2 * head_dim);
        ASSERT_EQ(got[i], got[same]) << c.ToString() << ", element " << i;
      }
    }
  }
}

// K and V as they are given are rounded once, to the same codes on both sides:
// the tolerance is that of the others.
TEST_P(BackendAttentionTest, EightBitCaches) {
  uint64_t seed = 500;
  for (DType dtype : {DType::kF8E4M3, DType::kI8}) {
    if (dtype == DType::kI8 && GetParam().is_cuda()) continue;
    for (int head_dim : {16, 33, 64, 80, 96, 128, 256}) {
      for (const auto& [num_heads, num_kv_heads] :
           {std::pair(1, 1), std::pair(6, 2), std::pair(7, 1)}) {
        AttentionCase c;
        c.num_heads = num_heads;
        c.num_kv_heads = num_kv_heads;
        c.head_dim = head_dim;
        c.kv_dtype = dtype;
        if (++seed % 2 == 0) c.sliding_window = 20;
        CheckAttention(GetParam(), c, seed);
        if (HasFatalFailure()) return;
      }
    }
  }
}

TEST_P(BackendAttentionTest, Features) {
  SimulationRandom random(9);
  const int num_trials = GetParam().is_cuda() ? 30 : 90;
  for (int trial = 0; trial < num_trials; ++trial) {
    AttentionCase c;
    c.num_kv_heads = random.Between(1, 3);
    c.num_heads = c.num_kv_heads * random.Between(1, 5);
    const int head_dims[] = {2, 6, 16, 40, 64, 64, 80, 128};
    c.head_dim = head_dims[random.Below(8)];
    const int block_sizes[] = {16, 16, 16, 1, 5, 8, 32};
    c.block_size = block_sizes[random.Below(7)];
    const int windows[] = {0, 0, 1, 7, 16, 17, 33};
    c.sliding_window = windows[random.Below(7)];
    if (random.Below(3) == 0) c.softcap = 2.0f;
    if (random.Below(2) == 0) {
      c.rotary_dim = random.Below(2) == 0
                         ? c.head_dim
                         : 2 * random.Between(1, c.head_dim / 2);
      c.rope_interleaved = random.Below(2) == 0;
      // Sequences that continue from others start with what those computed.
      if (random.Below(2) == 0) c.long_rope_after = random.Between(0, 40);
    }
    if (random.Below(2) == 0) {
      c.qk_norm = static_cast<AttentionCase::QkNorm>(random.Between(1, 3));
      c.is_layer_norm = random.Below(3) == 0;
    }
    const DType dtypes[] = {DType::kF32, DType::kF16, DType::kBF16};
    c.kv_dtype = dtypes[random.Below(3)];
    if (trial % 3 == 0) {
      c.kv_dtype =
          trial % 2 == 0 && !GetParam().is_cuda() ? DType::kI8 : DType::kF8E4M3;
    }
    CheckAttention(GetParam(), c, 100 + trial);
    if (HasFatalFailure()) return;
  }
}

}  // namespace
}  // namespace quire
