// What a step drew as bytes: the last stage of a pipeline sends it to rank 0.
#ifndef QUIRE_ENGINE_PARALLEL_STEP_RESULT_CODEC_H_
#define QUIRE_ENGINE_PARALLEL_STEP_RESULT_CODEC_H_

#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "engine/scheduler/scheduler_output.h"

namespace quire {

// Appends the result to `out`.
void EncodeStepResult(const StepResult& result, std::string* out);

// INVALID_ARGUMENT if the bytes are no result. Whether it is the result of a
// step, and its tokens are in the vocabulary, is the scheduler's to say: there
// a token that cannot be costs its request alone, as it does without stages.
absl::StatusOr<StepResult> DecodeStepResult(absl::string_view bytes);

}  // namespace quire

#endif  // QUIRE_ENGINE_PARALLEL_STEP_RESULT_CODEC_H_
