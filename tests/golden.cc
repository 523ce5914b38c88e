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

absl::StatusOr<double> MaxLogprobError(ModelHarness* harness,
                                       const json& golden) {
  double max_error = 0;
  int slot = 0;
  for (const json& golden_case : golden["cases"]) {
    TestSequence sequence = harness->MakeSequence(slot++, golden_case["prompt"],
                                                  harness->vocab_size());
    for (const json& entry : golden_case["logprobs"]) {
      const int end = entry["position"].get<int>() + 1;
      QUIRE_RETURN_IF_ERROR(harness->Step(
          {{&sequence, end - sequence.num_computed_tokens, true}}));
      const std::vector<float> expected = entry["values"];
      const std::vector<float> found = LogprobsById(sequence.outputs.back());
      if (found.size() != expected.size()) {
        return absl::InternalError("another vocabulary");
      }
      for (size_t id = 0; id < found.size(); ++id) {
        const double error = std::abs(double{found[id]} - expected[id]);
        if (std::isnan(error)) {
          return absl::InternalError(absl::StrCat("id ", id, " at position ",
                                                  end - 1, " has ", found[id]));
        }
        max_error = std::max(max_error, error);
      }
    }
  }
  return max_error;
}

}  // namespace quire
