// Request bodies: JSON with limits, then the table of fields. The first byte
// chooses between chat and completion.
#include <cstddef>
#include <cstdint>

#include "absl/strings/string_view.h"
#include "engine/base/status.h"
#include "server/json_text.h"
#include "server/openai_api.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const auto kind =
      data[0] % 2 == 0 ? quire::ApiKind::kChat : quire::ApiKind::kCompletion;
  const absl::string_view text(reinterpret_cast<const char*>(data + 1),
                               size - 1);
  const auto body = quire::ParseJson(text, quire::kGenerateJsonLimits);
  if (!body.ok()) return 0;
  const auto request = quire::ParseApiRequest(kind, *body, {});
  // What is accepted lies within the limits that memory and time depend on.
  if (request.ok()) {
    QUIRE_CHECK(request->n >= 1 && request->n <= 128);
    QUIRE_CHECK(request->best_of >= request->n && request->best_of <= 128);
    QUIRE_CHECK(!request->stream || request->best_of == request->n);
    const quire::SamplingParams& sampling = request->sampling;
    QUIRE_CHECK(sampling.num_logprobs <= 20);
    QUIRE_CHECK(sampling.num_prompt_logprobs <= 20);
    QUIRE_CHECK(request->bad_words.size() <= 1024);
    QUIRE_CHECK(!request->generates_nothing || request->echo);
    QUIRE_CHECK(request->truncate_prompt_tokens.value_or(1) != 0);
    // What a backend takes: its refusal would fail the whole step.
    QUIRE_CHECK(sampling.temperature >= 0);
    QUIRE_CHECK(sampling.top_p > 0 && sampling.top_p <= 1);
    QUIRE_CHECK(sampling.repetition_penalty >= 1e-6f);
    QUIRE_CHECK(sampling.dry_base >= 1 && sampling.dry_multiplier >= 0);
    QUIRE_CHECK(sampling.dry_allowed_length >= 0);
    QUIRE_CHECK(sampling.xtc_probability >= 0 && sampling.xtc_threshold >= 0);
  }
  // What was parsed can be written, and is the same when read again.
  QUIRE_CHECK(quire::ParseJson(quire::DumpJson(*body)).ok());
  return 0;
}
