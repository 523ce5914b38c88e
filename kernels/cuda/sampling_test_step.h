// A step of sampling in host memory, which is the emulation's device memory.
#ifndef QUIRE_KERNELS_CUDA_SAMPLING_TEST_STEP_H_
#define QUIRE_KERNELS_CUDA_SAMPLING_TEST_STEP_H_

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <vector>

#include "engine/base/random.h"
#include "gtest/gtest.h"
#include "kernels/backend.h"
#include "kernels/cuda/sampling.h"
#include "kernels/cuda/sampling_kernels.h"
#include "kernels/cuda/sampling_params.h"
#include "kernels/cuda/simt/emulator.h"

namespace quire::cuda {

inline double Normal(SimulationRandom& random) {
  const double u = 1.0 - random.Uniform();
  return std::sqrt(-2 * std::log(u)) * std::cos(2 * M_PI * random.Uniform());
}

// One thread's eight f32 terms, each with an Exp within 2 ulp of a distance
// that was rounded once, which the weight multiplies by at most
// |distance| e^distance <= 1 / e; then double; then one rounding of a result of
// magnitude up to |value|.
inline double LogprobTolerance(double value) {
  return 20 * 0x1p-24 + 2 * 0x1p-24 * std::fabs(value);
}

// Slots and one step after the other. Everything the kernels write starts as
// rubbish.
class SamplingTestStep {
 public:
  SamplingTestStep(int32_t vocab_size, int32_t num_slots, int64_t max_history)
      : vocab_size_(vocab_size),
        max_history_(max_history),
        slots_(num_slots),
        lists_(num_slots * kListsStride, -7),
        token_counts_(int64_t{num_slots} * vocab_size, 0xdeadbeef),
        history_(num_slots * max_history, -9),
        history_sizes_(num_slots, -9),
        num_computed_tokens_(num_slots),
        last_tokens_(num_slots, -1) {}

  void StartSlot(int32_t slot, const SlotParams& params,
                 const std::vector<int32_t>& history,
                 int32_t num_prompt_tokens) {
    std::vector<int32_t> lists;
    slots_[slot] =
        PackSlotSampling(params, num_prompt_tokens, vocab_size_, &lists);
    ASSERT_LE(lists.size(), size_t{kListsStride});
    std::copy(lists.begin(), lists.end(), lists_.begin() + slot * kListsStride);
    num_computed_tokens_[slot] = static_cast<int32_t>(history.size()) - 1;
    ASSERT_TRUE(
        LaunchStartSlot({.slot = slot,
                         .tokens = history.data(),
                         .num_tokens = static_cast<int32_t>(history.size()),
                         .num_prompt_tokens = num_prompt_tokens,
                         .vocab_size = vocab_size_,
                         .token_counts = token_counts_.data(),
                         .history = history_.data(),
                         .history_sizes = history_sizes_.data(),
                         .history_stride = max_history_},
                        nullptr))
        << simt::emulator::LastError();
  }

  // Adds a row: the logits of its scored tokens, then of its draws. `inputs`:
  // one token for each of them, the drafts at the end; the first lies at
  // `position`.
  void AddRow(int32_t slot, const std::vector<std::vector<float>>& logits,
              const std::vector<int32_t>& scored,
              const std::vector<int32_t>& inputs, int32_t position) {
    rows_.push_back(
        {.slot = slot,
         .num_tokens = static_cast<int32_t>(inputs.size()),
         .first_logit = static_cast<int32_t>(logit_rows_.size()),
         .num_scored = static_cast<int32_t>(scored.size()),
         .num_draws = static_cast<int32_t>(logits.size() - scored.size()),
         .first_scored = static_cast<int32_t>(scored_.size())});
    scored_.insert(scored_.end(), scored.begin(), scored.end());
    for (size_t i = 0; i < inputs.size(); ++i) {
      if (i + logits.size() >= inputs.size()) {
        logit_rows_.push_back(static_cast<int32_t>(rows_.size()) - 1);
        logit_tokens_.push_back(static_cast<int32_t>(token_ids_.size()));
      }
      token_ids_.push_back(inputs[i]);
      positions_.push_back(position + static_cast<int32_t>(i));
    }
    for (const std::vector<float>& row : logits) {
      logits_.insert(logits_.end(), row.begin(), row.end());
    }
  }
  void AddPadding(int num_logits) {
    rows_.emplace_back();
    for (int i = 0; i < num_logits; ++i) {
      logit_rows_.push_back(-1);
      logit_tokens_.push_back(0);
      logits_.insert(logits_.end(), vocab_size_, NAN);
    }
  }

  // Runs the step and clears it for the next one.
  void Run() { ASSERT_TRUE(Launch()) << simt::emulator::LastError(); }

  // The same; false if a launch failed.
  bool Launch() {
    const int32_t num_logits = static_cast<int32_t>(logit_rows_.size());
    tokens.assign(num_logits, -5);
    logprobs.assign(num_logits, NAN);
    ranks.assign(num_logits, -5);
    top_ids.assign(num_logits * kMaxTopLogprobs, -5);
    top_logprobs.assign(num_logits * kMaxTopLogprobs, NAN);
    num_drawn.assign(rows_.size(), -5);
    faults.assign(rows_.size(), -5);
    const int64_t num_bytes = SamplingWorkspaceBytes(num_logits, vocab_size_);
    workspace_.assign(num_bytes / 16, {{~0u, ~0u, ~0u, ~0u}});
    const bool is_launched =
        LaunchSample({.logits = logits_.data(),
                      .logits_stride = vocab_size_,
                      .vocab_size = vocab_size_,
                      .num_logits = num_logits,
                      .num_rows = static_cast<int32_t>(rows_.size()),
                      .rows = rows_.data(),
                      .logit_rows = logit_rows_.data(),
                      .logit_tokens = logit_tokens_.data(),
                      .positions = positions_.data(),
                      .token_ids = token_ids_.data(),
                      .scored_ids = scored_.data(),
                      .slots = slots_.data(),
                      .lists = lists_.data(),
                      .lists_stride = kListsStride,
                      .token_counts = token_counts_.data(),
                      .history = history_.data(),
                      .history_sizes = history_sizes_.data(),
                      .history_stride = max_history_,
                      .num_computed_tokens = num_computed_tokens_.data(),
                      .last_tokens = last_tokens_.data(),
                      .tokens = tokens.data(),
                      .logprobs = logprobs.data(),
                      .ranks = ranks.data(),
                      .top_ids = top_ids.data(),
                      .top_logprobs = top_logprobs.data(),
                      .num_drawn = num_drawn.data(),
                      .faults = faults.data(),
                      .workspace = workspace_.data()},
                     nullptr);
    rows_.clear();
    logit_rows_.clear();
    logit_tokens_.clear();
    token_ids_.clear();
    positions_.clear();
    scored_.clear();
    logits_.clear();
    return is_launched;
  }

  // Of the latest step: what the filters have kept of a row of logits.
  RowFilter Kept(int logit) {
    return SamplingWorkspaceAt(workspace_.data(),
                               static_cast<int32_t>(tokens.size()), vocab_size_,
                               nullptr)
        .filters[logit];
  }

  int32_t num_computed_tokens(int slot) const {
    return num_computed_tokens_[slot];
  }
  int32_t last_token(int slot) const { return last_tokens_[slot]; }

  // Of the latest step.
  std::vector<int32_t> tokens, ranks, top_ids, num_drawn, faults;
  std::vector<float> logprobs, top_logprobs;

 private:
  static constexpr int64_t kListsStride = 1 << 13;

  const int32_t vocab_size_;
  const int64_t max_history_;
  std::vector<SlotSampling> slots_;
  std::vector<int32_t> lists_;
  std::vector<uint32_t> token_counts_;
  std::vector<int32_t> history_, history_sizes_;
  std::vector<int32_t> num_computed_tokens_, last_tokens_;

  std::vector<SamplingRow> rows_;
  std::vector<int32_t> logit_rows_, logit_tokens_, token_ids_, positions_;
  std::vector<int32_t> scored_;
  std::vector<float> logits_;
  std::vector<simt::Bytes16> workspace_;
};

}  // namespace quire::cuda

#endif  // QUIRE_KERNELS_CUDA_SAMPLING_TEST_STEP_H_
