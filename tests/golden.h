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
//   num_reported: the most likely ids that the harness's backend reports; one
//     that it does not report should be no more likely than those.
absl::StatusOr<double> MaxLogprobError(ModelHarness* harness,
                                       const nlohmann::json& golden,
                                       int num_reported);

// How much more likely than the recorded greedy token another one is at worst,
// in log-probability: 0 if all are the recorded ones. Each is told what was
// recorded before it, so that all are compared. Infinite if a recorded token is
// not among those reported.
absl::StatusOr<double> MaxGreedyShortfall(ModelHarness* harness,
                                          const nlohmann::json& golden,
                                          int chunk, int num_reported);

}  // namespace quire

#endif  // QUIRE_TESTS_GOLDEN_H_
