// Fuzz target: request heads and chunked bodies as the event loop reads them.
//
// Beside crashes it looks for answers that depend on how the bytes are cut into
// pieces, and for accepted heads that cpp-httplib could read differently.
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <optional>
#include <string>

#include "absl/strings/match.h"
#include "absl/strings/string_view.h"
#include "engine/base/status.h"
#include "server/http/chunked_decoder.h"
#include "server/http/head_guard.h"

namespace quire {
namespace {

constexpr HeadLimits kLimits = {2048, 20, 256};
constexpr int64_t kMaxBodyBytes = 4096;

struct Outcome {
  int status = 0;  // Of the refusal; 0: none.
  size_t head_size = 0;
  bool is_body_done = false;
  size_t num_consumed = 0;
  std::string body;

  bool operator==(const Outcome&) const = default;
};

// Never holds a line end or another control character that was not there.
void CheckClean(const RequestHead& head) {
  const std::string clean = CleanHead(head);
  QUIRE_CHECK(absl::EndsWith(clean, "\r\n\r\n"));
  QUIRE_CHECK(clean.find("\r\n\r\n") == clean.size() - 4);
  // Empty values are left out, also that of Host, which the guard wants.
  if (head.minor_version == 1 && head.Field("host").empty()) return;
  RequestHead again;
  HeadScanner scanner;
  size_t head_size = 0;
  const HeadLimits limits = {1 << 20, 1000, 1 << 10};
  QUIRE_CHECK(!scanner.Scan(clean, limits, &head_size));
  QUIRE_CHECK(head_size == clean.size());
  // Escaping may make a line longer than the guard takes; nothing else.
  const auto error = ParseHead(clean, limits, &again);
  QUIRE_CHECK(!error || error->status == 431);
  if (error) return;
  QUIRE_CHECK(again.method == head.method && again.path == head.path);
  QUIRE_CHECK(!again.has_body());
  for (const auto& [name, value] : again.fields) {
    QUIRE_CHECK(name != "range" && !absl::StartsWith(name, "remote_"));
  }
}

// `piece`: bytes that arrive at a time.
Outcome Read(absl::string_view data, size_t piece) {
  Outcome outcome;
  HeadScanner scanner;
  for (size_t size = std::min(piece, data.size());;
       size = std::min(size + piece, data.size())) {
    if (auto error =
            scanner.Scan(data.substr(0, size), kLimits, &outcome.head_size)) {
      outcome.status = error->status;
      return outcome;
    }
    if (outcome.head_size != 0) break;
    if (size == data.size()) return outcome;
  }
  RequestHead head;
  if (auto error =
          ParseHead(data.substr(0, outcome.head_size), kLimits, &head)) {
    outcome.status = error->status;
    return outcome;
  }
  CheckClean(head);
  QUIRE_CHECK(!(head.is_chunked && head.content_length > 0));
  if (!head.is_chunked) return outcome;
  data.remove_prefix(outcome.head_size);
  ChunkedDecoder decoder(kMaxBodyBytes);
  while (!data.empty() && !decoder.is_done()) {
    size_t num_consumed = 0;
    const absl::string_view part = data.substr(0, piece);
    if (auto error = decoder.Decode(part, &outcome.body, &num_consumed)) {
      // How much was decoded before depends on the pieces; the refusal not.
      outcome.body.clear();
      outcome.status = error->status;
      outcome.num_consumed = 0;
      return outcome;
    }
    QUIRE_CHECK(num_consumed == part.size() || decoder.is_done());
    outcome.num_consumed += num_consumed;
    data.remove_prefix(num_consumed);
  }
  outcome.is_body_done = decoder.is_done();
  QUIRE_CHECK(static_cast<int64_t>(outcome.body.size()) <= kMaxBodyBytes);
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
