// Fuzz target: what a server under `quire bench serve` may answer, as HTTP and
// as the events in it.
//
// Beside crashes it looks for answers that depend on how the bytes are cut into
// pieces.
#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "benchmarks/serving/completion_api.h"
#include "benchmarks/serving/response_reader.h"
#include "engine/base/status.h"

namespace quire {
namespace {

struct Outcome {
  bool is_ok = true;
  bool is_done = false;
  int http_status = 0;
  std::string body;
  std::vector<std::string> events;

  bool operator==(const Outcome&) const = default;
};

Outcome Read(absl::string_view data, size_t piece) {
  ResponseLimits limits;
  limits.max_head_bytes = 1024;
  limits.max_event_bytes = 512;
  limits.max_kept_bytes = 2048;
  ResponseReader reader(limits);
  Outcome outcome;
  const auto on_event = [&](absl::string_view event) {
    QUIRE_CHECK(event.size() <= 512);
    outcome.events.emplace_back(event);
    CompletionChunk chunk;
    (void)ReadCompletionChunk(event, &chunk);
  };
  while (!data.empty() && outcome.is_ok && !reader.is_done()) {
    const absl::string_view part = data.substr(0, piece);
    // What comes behind the end is an error only in the same piece.
    outcome.is_ok = reader.Append(part, on_event).ok() || reader.is_done();
    data.remove_prefix(part.size());
  }
  if (outcome.is_ok) outcome.is_ok = reader.Close(on_event).ok();
  outcome.is_done = reader.is_done();
  outcome.http_status = reader.http_status();
  outcome.body = reader.body();
  (void)ErrorText(outcome.http_status, outcome.body);
  QUIRE_CHECK(outcome.body.size() <= 2048);
  return outcome;
}

}  // namespace
}  // namespace quire

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const absl::string_view text(reinterpret_cast<const char*>(data), size);
  const quire::Outcome whole = quire::Read(text, size + 1);
  QUIRE_CHECK(quire::Read(text, 1) == whole);
  QUIRE_CHECK(quire::Read(text, 7) == whole);
  return 0;
}
