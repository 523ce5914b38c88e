// JSON in and out of the server: parsing of untrusted bodies with limits, and
// writing without a document tree on the per-token path.
#ifndef QUIRE_SERVER_JSON_TEXT_H_
#define QUIRE_SERVER_JSON_TEXT_H_

#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "nlohmann/json.hpp"

namespace quire {

struct JsonLimits {
  int max_depth = 64;  // nlohmann's copies and dumps recurse.
  // Strings, lists and objects: what takes memory of its own, up to 27 times
  // its text.
  int max_nodes = 100'000;
  // Numbers, booleans and null: 16 bytes each, three times that while a list
  // grows. As many token ids as the engine lets wait.
  int max_plain_values = 1 << 20;
  // Of one object. They are a list, which whoever looks one up searches.
  int max_keys = 1024;
  // A member of the outermost object that may have max_wide_keys; null: none.
  const char* wide_member = nullptr;
  int max_wide_keys = 65'536;
};

// The payload of a status that names a parameter of the request (api_error.h).
inline constexpr char kParameterPayload[] = "quire/parameter";

// INVALID_ARGUMENT if `text` is not one JSON value in UTF-8, or exceeds the
// limits; it then names the member of the outermost object in which it does.
// The order of keys is kept; of duplicate keys the last one counts.
absl::StatusOr<nlohmann::ordered_json> ParseJson(absl::string_view text,
                                                 const JsonLimits& limits = {});

// Never throws: bytes that are not UTF-8 become U+FFFD.
std::string DumpJson(const nlohmann::ordered_json& value);

// Appends `text` as a JSON string with quotes; invalid UTF-8 becomes U+FFFD.
void AppendJsonString(absl::string_view text, std::string* out);

// Appends a finite number as JSON; infinities and NaN, which JSON lacks, as
// -9999.0, vLLM's stand-in for the logarithm of zero.
void AppendJsonNumber(double value, std::string* out);

// True if `text` is well-formed UTF-8 without surrogates.
bool IsValidUtf8(absl::string_view text);

}  // namespace quire

#endif  // QUIRE_SERVER_JSON_TEXT_H_
