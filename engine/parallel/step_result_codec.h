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

// INVALID_ARGUMENT if the bytes are no result, or name a token outside the
// vocabulary. Whether it is the result of a step is the scheduler's to say.
absl::StatusOr<StepResult> DecodeStepResult(absl::string_view bytes,
                                            int vocab_size);

}  // namespace quire

#endif  // QUIRE_ENGINE_PARALLEL_STEP_RESULT_CODEC_H_
