#include "tests/golden.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/base/status.h"

namespace quire {

using nlohmann::json;

json ReadJson(const std::string& path) {
  std::ifstream file(path);
  return json::parse(file, nullptr, /*allow_exceptions=*/false);
}

namespace {

// Of the reported ids, and of those that should have been.
double LogprobError(const TokenOutput& output,
                    const std::vector<float>& expected) {
  std::vector<bool> is_reported(expected.size());
  double max_error = 0;
  float least = 0.0f;
  for (const TopLogprob& top : output.top_logprobs) {
    is_reported[top.token_id] = true;
    least = std::min(least, top.logprob);
    const double error = std::abs(double{top.logprob} - expected[top.token_id]);
    if (std::isnan(error)) return error;
    max_error = std::max(max_error, error);
  }
  for (size_t id = 0; id < expected.size(); ++id) {
    if (is_reported[id]) continue;
    max_error = std::max(max_error, double{expected[id]} - least);
  }
  return max_error;
}

}  // namespace

absl::StatusOr<double> MaxLogprobError(ModelHarness* harness,
                                       const json& golden, int num_reported) {
  double max_error = 0;
  int slot = 0;
  for (const json& golden_case : golden["cases"]) {
    TestSequence sequence =
        harness->MakeSequence(slot++, golden_case["prompt"], num_reported);
    for (const json& entry : golden_case["logprobs"]) {
      const int end = entry["position"].get<int>() + 1;
      QUIRE_RETURN_IF_ERROR(harness->Step(
          {{&sequence, end - sequence.num_computed_tokens, true}}));
      const std::vector<float> expected = entry["values"];
      const TokenOutput& found = sequence.outputs.back();
      if (expected.size() != static_cast<size_t>(harness->vocab_size()) ||
          found.top_logprobs.size() != static_cast<size_t>(num_reported)) {
        return absl::InternalError("another vocabulary");
      }
      const double error = LogprobError(found, expected);
      if (std::isnan(error)) {
        return absl::InternalError(absl::StrCat("a NaN at position ", end - 1));
      }
      max_error = std::max(max_error, error);
    }
  }
  return max_error;
}

absl::StatusOr<double> MaxGreedyShortfall(ModelHarness* harness,
                                          const json& golden, int chunk,
                                          int num_reported) {
  double max_shortfall = 0;
  int slot = 0;
  for (const json& golden_case : golden["cases"]) {
    TestSequence sequence =
        harness->MakeSequence(slot++, golden_case["prompt"], num_reported);
    int num_tokens = 0;
    for (const int32_t expected :
         golden_case["greedy"].get<std::vector<int32_t>>()) {
      QUIRE_RETURN_IF_ERROR(harness->Generate(sequence, chunk, ++num_tokens));
      double shortfall = INFINITY;
      const TokenOutput& found = sequence.outputs.back();
      for (const TopLogprob& top : found.top_logprobs) {
        if (top.token_id != expected) continue;
        shortfall = double{found.top_logprobs[0].logprob} - top.logprob;
      }
      if (std::isnan(shortfall)) return absl::InternalError("a NaN");
      max_shortfall = std::max(max_shortfall, shortfall);
      sequence.tokens.back() = expected;
    }
  }
  return max_shortfall;
}

}  // namespace quire
