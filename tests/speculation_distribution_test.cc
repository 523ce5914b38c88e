// A million draws while drafts are verified: whatever was drafted, each token
// is distributed as the logits say. Pearson's chi-square test; seeds are fixed,
// so a failure is a change of the draws and never bad luck.
#include <algorithm>
#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "tests/backend_harness.h"

namespace quire {
namespace {

constexpr int kVocabSize = 12;
constexpr int kNumSlots = 64;
constexpr int kNumDrafts = 3;
constexpr int kNumDraws = 1'000'000;
constexpr float kTemperature = 0.8f;

enum class Drafts { kUsual, kUniform, kLikeliest };

class SpeculationDistributionTest : public testing::TestWithParam<Drafts> {
 protected:
  // Of what is drawn after i accepted drafts; the drafts do not change it.
  std::vector<double> Distribution(int i) const {
    std::vector<double> p(kVocabSize);
    double sum = 0;
    for (int id = 0; id < kVocabSize; ++id) {
      p[id] = std::exp(LogitOf(i, id) / kTemperature);
      sum += p[id];
    }
    for (double& value : p) value /= sum;
    return p;
  }
  static float LogitOf(int i, int id) {
    return 0.8f * std::sin(1.0f + static_cast<float>(3 * i + id * id));
  }
  int32_t DrawDraft(int i, SimulationRandom& random) const {
    const std::vector<double> p = Distribution(i);
    if (GetParam() == Drafts::kUniform) {
      return static_cast<int32_t>(random.Below(kVocabSize));
    }
    if (GetParam() == Drafts::kLikeliest) {
      return static_cast<int32_t>(std::max_element(p.begin(), p.end()) -
                                  p.begin());
    }
    double u = random.Uniform();
    for (int id = 0; id < kVocabSize; ++id) {
      if ((u -= p[id]) < 0) return id;
    }
    return kVocabSize - 1;
  }
};

TEST_P(SpeculationDistributionTest, DrawsAreThoseOfTheTarget) {
  const std::unique_ptr<Backend> backend = CpuTestBackends().back().Make();
  const int logits_id = backend->AddActivation(kVocabSize, DType::kF32,
                                               ActivationRows::kLogitRows);
  constexpr int kRowTokens = 1 + kNumDrafts;
  EngineShape shape;
  shape.max_num_seqs = kNumSlots;
  shape.max_num_tokens = kNumSlots * kRowTokens;
  shape.max_logit_rows = shape.max_num_tokens;
  shape.max_model_len = 16;
  shape.vocab_size = kVocabSize;
  CheckOk(backend->Prepare(shape));
  std::vector<float> logits;
  for (int row = 0; row < shape.max_logit_rows; ++row) {
    for (int id = 0; id < kVocabSize; ++id) {
      logits.push_back(LogitOf(row % kRowTokens, id));
    }
  }
  SimulationRandom random(11);
  std::vector<std::vector<int64_t>> counts(kRowTokens,
                                           std::vector<int64_t>(kVocabSize, 0));
  std::vector<SlotParams> params(kNumSlots);
  const int32_t history = 0, block = 0;
  int64_t num_draws = 0;
  for (uint64_t key = 1; num_draws < kNumDraws;) {
    std::vector<SlotUpdate> updates;
    std::vector<StepRow> rows;
    std::vector<int32_t> token_ids;
    for (int slot = 0; slot < kNumSlots; ++slot) {
      params[slot].temperature = kTemperature;
      params[slot].draw_key = MixBits(key++, 17);
      SlotUpdate update;
      update.slot = slot;
      update.params = &params[slot];
      update.history = {&history, 1};
      update.num_prompt_tokens = 1;
      update.append_blocks = {&block, 1};
      updates.push_back(update);
      StepRow row;
      row.slot = slot;
      row.num_tokens = kRowTokens;
      row.num_logits = kRowTokens;
      row.num_drafts = kNumDrafts;
      rows.push_back(row);
      token_ids.push_back(0);
      for (int i = 0; i < kNumDrafts; ++i) {
        token_ids.push_back(DrawDraft(i, random));
      }
    }
    StepPlan plan;
    plan.updates = updates;
    plan.rows = rows;
    plan.token_ids = token_ids;
    const auto results = RunStep(*backend, plan, [&](Step& step) {
      CopyIn(*backend, logits, backend->Activation(logits_id));
      CheckOk(backend->Sample(step, backend->Activation(logits_id)));
    });
    for (int slot = 0; slot < kNumSlots; ++slot) {
      const absl::Span<const int32_t> tokens = results[slot].tokens;
      for (size_t i = 0; i < tokens.size(); ++i) {
        ++counts[i][tokens[i]];
        // All but the last one were drafted so.
        const bool is_draft =
            i < kNumDrafts && token_ids[slot * kRowTokens + 1 + i] == tokens[i];
        ASSERT_EQ(is_draft, i + 1 < tokens.size() && i < kNumDrafts);
      }
      num_draws += static_cast<int64_t>(tokens.size());
    }
  }
  // 11 degrees of freedom each: P(X > 45.1) is 5e-6.
  for (int i = 0; i < kRowTokens; ++i) {
    const std::vector<double> p = Distribution(i);
    int64_t total = 0;
    for (int64_t count : counts[i]) total += count;
    double statistic = 0;
    for (int id = 0; id < kVocabSize; ++id) {
      const double expected = p[id] * static_cast<double>(total);
      ASSERT_GT(expected, 10);
      const double difference = static_cast<double>(counts[i][id]) - expected;
      statistic += difference * difference / expected;
    }
    EXPECT_LT(statistic, 45.1) << "draw " << i << " of " << total;
  }
}

std::string NameOf(const testing::TestParamInfo<Drafts>& info) {
  static constexpr const char* kNames[] = {"usual", "uniform", "likeliest"};
  return kNames[static_cast<int>(info.param)];
}

INSTANTIATE_TEST_SUITE_P(All, SpeculationDistributionTest,
                         testing::Values(Drafts::kUsual, Drafts::kUniform,
                                         Drafts::kLikeliest),
                         NameOf);

}  // namespace
}  // namespace quire
