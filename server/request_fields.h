// Every field of every request of the API in one table: its type, range,
// default, error text and what is done with it. Parsers and tests follow from
// it.
#ifndef QUIRE_SERVER_REQUEST_FIELDS_H_
#define QUIRE_SERVER_REQUEST_FIELDS_H_

#include <cstdint>
#include <limits>
#include <string>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "nlohmann/json.hpp"
#include "server/openai_api.h"

namespace quire {

// Kinds of requests, as bits.
using FieldScope = uint8_t;
inline constexpr FieldScope kOfChat = 1;
inline constexpr FieldScope kOfCompletion = 2;
inline constexpr FieldScope kOfEmbeddings = 4;
// Beside the fields of a chat or of a completion: /tokenize takes the body that
// is meant for either.
inline constexpr FieldScope kOfTokenize = 8;
inline constexpr FieldScope kOfDetokenize = 16;
inline constexpr FieldScope kOfGeneration = kOfChat | kOfCompletion;
inline constexpr FieldScope kOfPrompts = kOfGeneration | kOfEmbeddings;

enum class FieldType : uint8_t {
  kBool,
  kInt,
  kNumber,
  kString,
  kWord,          // One of FieldRange::words.
  kStringOrList,  // A string, or a list of strings.
  kStringList,
  kIdList,  // Of token ids.
  kPrompt,  // A string, a list of them, token ids, or a list of lists of these.
  kList,
  kObject,
  kAny,
};

// What of the type is accepted. Both ends are, and what is infinite does not
// bound.
struct FieldRange {
  // Of a number its value, of a string its bytes, of the others how many they
  // hold; a single string counts as one.
  double min = -std::numeric_limits<double>::infinity();
  double max = std::numeric_limits<double>::infinity();
  double excluded = std::numeric_limits<double>::quiet_NaN();  // Of numbers.
  // Of a string in a list, at least 1; or ids of one list of a kPrompt.
  int64_t max_item_size = std::numeric_limits<int64_t>::max();
  const char* words = nullptr;  // Of kWord, "left|right".
  // Follows the name, in place of what type and range say by themselves: the
  // text for a value that has the type and is not accepted.
  const char* error = nullptr;
};

// How a field that is not null is treated.
enum class FieldTreatment : uint8_t {
  kUsed,      // `set` takes it.
  kNoEffect,  // Accepted: cannot change the answer.
  kNotBuilt,  // 400 unless its value is neutral (`neutral`, false, 0, empty).
};

struct RequestField {
  const char* name;
  FieldScope scope;
  FieldType type;
  FieldRange range;
  // JSON of what holds without the field, which may as well be sent: "null" if
  // nothing does; null: the field must be there. Sampling parameters that a
  // model's generation_config.json sets have its value instead.
  const char* by_default;
  FieldTreatment treatment = FieldTreatment::kUsed;
  // Takes a value of the type and within the range. INVALID_ARGUMENT without a
  // message: not accepted, and range.error says why.
  absl::Status (*set)(const nlohmann::ordered_json& value,
                      ApiRequest& request) = nullptr;
  const char* neutral = nullptr;  // JSON of a further neutral value.
};

absl::Span<const RequestField> RequestFields();

// Fills `request` from `body`: what of its members is a field of `scope`, which
// may be several kinds of request. Unknown names go to ignored_fields.
// INVALID_ARGUMENT naming the field; and if `body` is no object.
absl::Status ReadRequestFields(FieldScope scope,
                               const nlohmann::ordered_json& body,
                               ApiRequest* request);

// INVALID_ARGUMENT naming the field unless `value` has the field's type and
// lies within its range. Requires: `value` is not null.
absl::Status CheckFieldValue(const RequestField& field,
                             const nlohmann::ordered_json& value);

}  // namespace quire

#endif  // QUIRE_SERVER_REQUEST_FIELDS_H_
