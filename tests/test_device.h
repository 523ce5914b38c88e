// The device that tests of whole models run on. QUIRE_TEST_DEVICE says which:
// "cpu" (the default), in f32; "cuda", the GPU that the program is linked with
// (emulated in this folder, a real one in tests/gpu), in bf16 or, with
// "cuda_f16", in f16.
//
// What a GPU may differ from goldens in f32 follows from its dtype alone:
// kernels/reference with the GPU's rounding points is `rounding` from the
// golden, and the GPU is at most as far from that reference again
// (tests/model_rounding.h says why).
#ifndef QUIRE_TESTS_TEST_DEVICE_H_
#define QUIRE_TESTS_TEST_DEVICE_H_

#include <string>

#include "absl/status/statusor.h"
#include "nlohmann/json.hpp"
#include "tests/model_harness.h"

namespace quire {

// Aborts for another value of the variable: no test must run elsewhere than it
// was asked to.
bool TestsRunOnCuda();

// `options` on that device: its backend, dtypes, and a KV cache of 64 MiB.
ModelHarness::Options OnTestDevice(ModelHarness::Options options = {});
// On kernels/reference with the weights as that device gets them; rounding as
// it does, in its dtypes, or not at all. Requires: TestsRunOnCuda().
ModelHarness::Options OnRoundingReference(ModelHarness::Options options = {});
ModelHarness::Options OnExactReference(ModelHarness::Options options = {});

// How many log-probabilities of a distribution the device reports.
int NumReportedLogprobs(const ModelHarness& harness);

// The bound on MaxLogprobError of a model on the test device. It loads the
// model on the reference if that is a GPU.
absl::StatusOr<double> AllowedLogprobError(
    const std::string& directory, const nlohmann::json& golden,
    const ModelHarness::Options& options = {});

}  // namespace quire

#endif  // QUIRE_TESTS_TEST_DEVICE_H_
