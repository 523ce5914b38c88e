// What tools/goldens recorded of a model, and how far a loaded model is from
// it.
#ifndef QUIRE_TESTS_GOLDEN_H_
#define QUIRE_TESTS_GOLDEN_H_

#include <string>

#include "absl/status/statusor.h"
#include "nlohmann/json.hpp"
#include "tests/model_harness.h"

namespace quire {

// Of log-probabilities in f32.
inline constexpr double kMaxLogprobError = 1e-4;

// Discarded (nlohmann's is_discarded) if there is no such file or it is not
// JSON.
nlohmann::json ReadJson(const std::string& path);

// The largest error of a log-probability over the recorded positions of all
// cases; the prompts are prefilled in pieces that end at those positions.
absl::StatusOr<double> MaxLogprobError(ModelHarness* harness,
                                       const nlohmann::json& golden);

}  // namespace quire

#endif  // QUIRE_TESTS_GOLDEN_H_
