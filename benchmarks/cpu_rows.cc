#include "benchmarks/cpu_rows.h"

#include <algorithm>
#include <chrono>
#include <cmath>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "engine/base/random.h"
#include "kernels/cpu/sampling.h"

namespace quire {
namespace {

using Clock = std::chrono::steady_clock;

}  // namespace

void MeasureSampling(Isa isa, int32_t vocab_size, int64_t history_size,
                     int repetitions, const std::string& filter,
                     const TimedRow& on_row) {
  SimulationRandom random(3);
  std::vector<float> logits(vocab_size);
  for (float& logit : logits) {
    // Normal with deviation 3: at temperature 1 about a fifth of the entries
    // hold 90 %.
    logit = static_cast<float>(
        3 * std::sqrt(-2 * std::log(1.0 - random.Uniform())) *
        std::cos(2 * M_PI * random.Uniform()));
  }
  std::vector<int32_t> history(history_size);
  for (int32_t& id : history) id = random.Below(vocab_size);
  std::vector<TokenCounts::Entry> entries(history_size);
  std::vector<int32_t> cells(4 * history_size);
  TokenCounts counts(entries.data(), history_size, cells.data(), cells.size());
  for (int32_t id : history) counts.AddGeneratedToken(id);
  SamplingScratch scratch(vocab_size, history_size);
  std::vector<int32_t> top_ids(20);
  std::vector<float> top_logprobs(20);
  const auto measure = [&](const char* what, auto set) {
    const std::string name = absl::StrCat("sampling ", vocab_size, " ", what);
    if (!absl::StrContains(name, filter)) return;
    SlotParams params;
    params.draw_key = 1;
    SampleInput input;
    input.logits = logits.data();
    input.vocab_size = vocab_size;
    input.params = &params;
    input.history = history;
    set(params);
    if (params.repetition_penalty != 1.0f) input.counts = &counts;
    SampleOutput output;
    output.top_ids = top_ids.data();
    output.top_logprobs = top_logprobs.data();
    std::vector<double> seconds;
    for (int rep = 0; rep < repetitions; ++rep) {
      constexpr int kDraws = 20;
      const Clock::time_point start = Clock::now();
      for (int i = 0; i < kDraws; ++i) {
        ++input.position;
        SampleRow(isa, input, scratch, &output);
      }
      seconds.push_back(
          std::chrono::duration<double>(Clock::now() - start).count() / kDraws);
    }
    on_row(name, seconds);
  };
  measure("greedy", [](SlotParams& p) { p.temperature = 0.0f; });
  measure("greedy, 5 logprobs", [](SlotParams& p) {
    p.temperature = 0.0f;
    p.num_logprobs = 5;
  });
  measure("no filter", [](SlotParams&) {});
  measure("top_k 50, top_p 0.9", [](SlotParams& p) {
    p.top_k = 50;
    p.top_p = 0.9f;
  });
  measure("top_p 0.95, temperature 1.5", [](SlotParams& p) {
    p.top_p = 0.95f;
    p.temperature = 1.5f;
  });
  measure("min_p 0.05", [](SlotParams& p) { p.min_p = 0.05f; });
  measure("penalties", [](SlotParams& p) { p.repetition_penalty = 1.1f; });
  measure("top_n_sigma 1", [](SlotParams& p) { p.top_n_sigma = 1.0f; });
  measure("typical_p 0.9", [](SlotParams& p) { p.typical_p = 0.9f; });
  measure("top_k 50, typical_p 0.9", [](SlotParams& p) {
    p.top_k = 50;
    p.typical_p = 0.9f;
  });
  measure("xtc", [](SlotParams& p) {
    p.xtc_probability = 1.0f;
    p.xtc_threshold = 0.001f;
  });
  measure("dynatemp", [](SlotParams& p) { p.dynatemp_range = 0.5f; });
  measure("100 bad words", [](SlotParams& p) {
    p.bad_word_lengths.assign(100, 3);
    p.bad_word_ids.assign(300, 7);
  });
  measure("dry", [](SlotParams& p) { p.dry_multiplier = 0.8f; });
  std::fill(history.begin(), history.end(), 7);
  measure("dry in a loop", [](SlotParams& p) { p.dry_multiplier = 0.8f; });
}

}  // namespace quire
