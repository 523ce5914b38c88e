// Chunked bodies: the decoder with whatever bytes, in whatever pieces, and with
// bodies that a careful client wrote.
//
// Input: a byte for the size of pieces, then what is decoded.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "engine/base/status.h"
#include "server/http/chunked_decoder.h"

namespace quire {
namespace {

constexpr int64_t kMaxBodyBytes = 1 << 12;

struct Outcome {
  int status = 0;  // Of the refusal; 0: none.
  bool is_done = false;
  size_t num_consumed = 0;
  std::string body;

  bool operator==(const Outcome&) const = default;
};

Outcome Decode(absl::string_view data, size_t piece) {
  ChunkedDecoder decoder(kMaxBodyBytes);
  Outcome outcome;
  while (!data.empty() && !decoder.is_done()) {
    size_t num_consumed = 0;
    const absl::string_view part = data.substr(0, piece);
    if (auto error = decoder.Decode(part, &outcome.body, &num_consumed)) {
      QUIRE_CHECK(error->status == 400 || error->status == 413);
      return {error->status, false, 0, ""};
    }
    QUIRE_CHECK(num_consumed == part.size() || decoder.is_done());
    outcome.num_consumed += num_consumed;
    data.remove_prefix(num_consumed);
  }
  outcome.is_done = decoder.is_done();
  QUIRE_CHECK(static_cast<int64_t>(outcome.body.size()) <= kMaxBodyBytes);
  return outcome;
}

// `body` in chunks of `chunk` bytes, the way a client writes them.
std::string Encode(absl::string_view body, size_t chunk) {
  std::string out;
  while (!body.empty()) {
    const absl::string_view part = body.substr(0, chunk);
    absl::StrAppend(&out, absl::Hex(part.size()), "\r\n", part, "\r\n");
    body.remove_prefix(part.size());
  }
  return out + "0\r\n\r\n";
}

void Run(absl::string_view data) {
  if (data.empty()) return;
  const size_t piece = 1 + static_cast<uint8_t>(data[0]);
  data.remove_prefix(1);
  const Outcome whole = Decode(data, data.size() + 1);
  QUIRE_CHECK(Decode(data, piece) == whole);
  QUIRE_CHECK(Decode(data, 1) == whole);
  const absl::string_view body = data.substr(0, kMaxBodyBytes);
  const std::string encoded = Encode(body, piece);
  // What a client sends behind it belongs to its next request.
  const Outcome again = Decode(absl::StrCat(encoded, "GET /"), piece);
  QUIRE_CHECK(again.status == 0 && again.is_done);
  QUIRE_CHECK(again.body == body && again.num_consumed == encoded.size());
}

}  // namespace
}  // namespace quire

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  quire::Run(absl::string_view(reinterpret_cast<const char*>(data), size));
  return 0;
}
