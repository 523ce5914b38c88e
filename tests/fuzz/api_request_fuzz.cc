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
    QUIRE_CHECK(request->sampling.num_logprobs <= 20);
    QUIRE_CHECK(request->sampling.temperature >= 0);
  }
  // What was parsed can be written, and is the same when read again.
  QUIRE_CHECK(quire::ParseJson(quire::DumpJson(*body)).ok());
  return 0;
}
