// Whether a value has the type of a row of the table of request fields, and
// lies within its range.
#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "engine/base/status.h"
#include "server/api_error.h"
#include "server/request_fields.h"

namespace quire {
namespace {

using Json = nlohmann::ordered_json;
using enum FieldType;

constexpr double kMaxInt32 = std::numeric_limits<int32_t>::max();

// `what` follows the name.
absl::Status Error(const RequestField& field, absl::string_view what) {
  return ParameterError(field.name, absl::StrCat("'", field.name, "' ", what));
}

std::string WordsOf(const RequestField& field) {
  const std::vector<std::string> words = absl::StrSplit(field.range.words, '|');
  return absl::StrCat("'", absl::StrJoin(words, "' or '"), "'");
}

absl::Status TypeError(const RequestField& field) {
  switch (field.type) {
    case kBool:
      return Error(field, "must be a boolean");
    case kInt:
      return Error(field, "must be an integer");
    case kNumber:
      return Error(field, "must be a number");
    case kString:
      return Error(field, "must be a string");
    case kWord:
      return Error(field, absl::StrCat("must be ", WordsOf(field)));
    case kStringOrList:
      return Error(field, "must be a string or a list of strings");
    case kStringList:
      return Error(field, "must be a list of strings");
    case kIdList:
      return Error(field, "must be a list of token ids");
    case kPrompt:
      return Error(field,
                   "must be a string, a list of strings, a list of token ids "
                   "or a list of lists of token ids");
    case kList:
      return Error(field, "must be a list");
    case kObject:
      return Error(field, "must be an object");
    case kAny:
      break;
  }
  return Error(field, "cannot have this type");
}

// As people write it: no exponent for what is a whole number.
std::string FormatNumber(double value) {
  constexpr double kMaxWhole = 1e15;
  if (value == std::floor(value) && std::abs(value) < kMaxWhole) {
    return absl::StrCat(static_cast<int64_t>(value));
  }
  return absl::StrCat(value);
}

absl::Status CheckNumber(const RequestField& field, double value) {
  const FieldRange& range = field.range;
  // As it is used: what is tiny as a double is 0 as a float.
  if (static_cast<float>(value) == range.excluded) {
    return Error(field, range.error);
  }
  if (value >= range.min && value <= range.max) return absl::OkStatus();
  std::string bounds;
  if (std::isinf(range.max) || range.max == kMaxInt32) {
    bounds = value < range.min
                 ? absl::StrCat("at least ", FormatNumber(range.min))
                 : absl::StrCat("at most ", FormatNumber(range.max));
  } else {
    bounds = absl::StrCat("between ", FormatNumber(range.min), " and ",
                          FormatNumber(range.max));
  }
  return Error(field,
               absl::StrCat("must be ", bounds, ", not ", FormatNumber(value)));
}

absl::Status CheckSize(const RequestField& field, size_t size) {
  const FieldRange& range = field.range;
  const double count = static_cast<double>(size);
  if (count >= range.min && count <= range.max) return absl::OkStatus();
  if (range.error != nullptr) return Error(field, range.error);
  if (field.type == kString) {
    return Error(field,
                 absl::StrCat("must have ", FormatNumber(range.min), " to ",
                              FormatNumber(range.max), " bytes"));
  }
  if (count < range.min) return Error(field, "must not be empty");
  const char* const items =
      field.type == kStringOrList || field.type == kStringList ? " strings"
      : field.type == kIdList                                  ? " token ids"
                                                               : " entries";
  return Error(
      field, absl::StrCat("may hold at most ", FormatNumber(range.max), items));
}

absl::Status CheckItem(const RequestField& field, const std::string& text) {
  const int64_t max_size = field.range.max_item_size;
  if (!text.empty() && static_cast<int64_t>(text.size()) <= max_size) {
    return absl::OkStatus();
  }
  return ParameterError(
      field.name, absl::StrCat("a string of '", field.name, "' must have 1 to ",
                               max_size, " bytes"));
}

absl::Status CheckStrings(const RequestField& field, const Json& list) {
  QUIRE_RETURN_IF_ERROR(CheckSize(field, list.size()));
  for (const Json& item : list) {
    if (!item.is_string()) return TypeError(field);
    QUIRE_RETURN_IF_ERROR(CheckItem(field, item.get_ref<const std::string&>()));
  }
  return absl::OkStatus();
}

absl::Status CheckIds(const RequestField& field, const Json& list) {
  for (const Json& id : list) {
    if (!id.is_number_integer() || id < 0 ||
        id > std::numeric_limits<int32_t>::max()) {
      return Error(field, "must be a list of token ids");
    }
  }
  return absl::OkStatus();
}

absl::Status CheckIdsOfPrompt(const RequestField& field, const Json& list) {
  if (static_cast<int64_t>(list.size()) <= field.range.max_item_size) {
    return CheckIds(field, list);
  }
  return ParameterError(
      field.name,
      absl::StrCat("a list of token ids in '", field.name,
                   "' may hold at most ", field.range.max_item_size));
}

absl::Status CheckPrompt(const RequestField& field, const Json& value) {
  if (value.is_string()) return absl::OkStatus();
  if (!value.is_array()) return TypeError(field);
  if (!value.empty() && value.front().is_number()) {
    return CheckIdsOfPrompt(field, value);
  }
  QUIRE_RETURN_IF_ERROR(CheckSize(field, value.size()));
  for (const Json& prompt : value) {
    if (prompt.is_string()) continue;
    if (!prompt.is_array()) return TypeError(field);
    QUIRE_RETURN_IF_ERROR(CheckIdsOfPrompt(field, prompt));
  }
  return absl::OkStatus();
}

absl::Status CheckWord(const RequestField& field, const Json& value) {
  if (!value.is_string()) return TypeError(field);
  const std::vector<std::string> words = absl::StrSplit(field.range.words, '|');
  const std::string& word = value.get_ref<const std::string&>();
  return std::find(words.begin(), words.end(), word) != words.end()
             ? absl::OkStatus()
             : TypeError(field);
}

absl::Status CheckInt(const RequestField& field, const Json& value) {
  if (!value.is_number_integer()) return TypeError(field);
  // Above int64: unsigned in nlohmann's terms.
  if (value.is_number_unsigned() &&
      value.get<uint64_t>() > std::numeric_limits<int64_t>::max()) {
    return Error(field, "must be a 64-bit integer");
  }
  return CheckNumber(field, static_cast<double>(value.get<int64_t>()));
}

}  // namespace

absl::Status CheckFieldValue(const RequestField& field, const Json& value) {
  switch (field.type) {
    case kBool:
      return value.is_boolean() ? absl::OkStatus() : TypeError(field);
    case kInt:
      return CheckInt(field, value);
    case kNumber:
      return value.is_number() ? CheckNumber(field, value.get<double>())
                               : TypeError(field);
    case kString:
      return value.is_string()
                 ? CheckSize(field, value.get_ref<const std::string&>().size())
                 : TypeError(field);
    case kWord:
      return CheckWord(field, value);
    case kStringOrList:
      if (value.is_string()) {
        return CheckItem(field, value.get_ref<const std::string&>());
      }
      return value.is_array() ? CheckStrings(field, value) : TypeError(field);
    case kStringList:
      return value.is_array() ? CheckStrings(field, value) : TypeError(field);
    case kIdList:
      if (!value.is_array()) return TypeError(field);
      QUIRE_RETURN_IF_ERROR(CheckSize(field, value.size()));
      return CheckIds(field, value);
    case kPrompt:
      return CheckPrompt(field, value);
    case kList:
      return value.is_array() ? CheckSize(field, value.size())
                              : TypeError(field);
    case kObject:
      return value.is_object() ? CheckSize(field, value.size())
                               : TypeError(field);
    case kAny:
      break;
  }
  return absl::OkStatus();
}

}  // namespace quire
