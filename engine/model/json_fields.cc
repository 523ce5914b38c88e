#include "engine/model/json_fields.h"

#include <cmath>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "engine/base/status.h"

namespace quire {
namespace {

using nlohmann::json;

constexpr size_t kMaxListSize = 10'000;

// A value in a message: short, and valid text whatever the file holds.
std::string Shown(const json& value) {
  constexpr size_t kMaxShown = 80;
  if (value.is_structured()) return value.type_name();
  std::string text = value.dump(-1, ' ', true, json::error_handler_t::replace);
  if (text.size() > kMaxShown) text = text.substr(0, kMaxShown) + "...";
  return text;
}

// True if `value` is an integer in [min, max]; also one written as 32.0.
bool AsInt(const json& value, int64_t min, int64_t max, int64_t& result) {
  if (value.is_number_unsigned()) {
    if (value.get<uint64_t>() > uint64_t{INT64_MAX}) return false;
    result = static_cast<int64_t>(value.get<uint64_t>());
  } else if (value.is_number_integer()) {
    result = value.get<int64_t>();
  } else if (value.is_number_float()) {
    const double number = value.get<double>();
    if (!(std::abs(number) < 0x1p53) || number != std::floor(number)) {
      return false;
    }
    result = static_cast<int64_t>(number);
  } else {
    return false;
  }
  return result >= min && result <= max;
}

std::string IntRange(int64_t min, int64_t max) {
  return absl::StrCat("an integer in [", min, ", ", max, "]");
}

}  // namespace

JsonFields::JsonFields(const json& object, std::string path, std::string prefix)
    : object_(object), path_(std::move(path)), prefix_(std::move(prefix)) {}

const json* JsonFields::Find(const char* name) {
  read_.insert(name);
  const auto it = object_.find(name);
  return it == object_.end() || it->is_null() ? nullptr : &*it;
}

absl::Status JsonFields::Error(absl::string_view name,
                               absl::string_view message) const {
  return absl::InvalidArgumentError(absl::StrCat(
      path_, ": field \"", prefix_, absl::CHexEscape(name), "\": ", message));
}

bool JsonFields::Has(const char* name) { return Find(name) != nullptr; }

bool JsonFields::IsNull(const char* name) {
  read_.insert(name);
  const auto it = object_.find(name);
  return it != object_.end() && it->is_null();
}

absl::Status JsonFields::RequireOff(const char* name) {
  const json* value = Find(name);
  if (value == nullptr || *value == false || *value == 0 ||
      (value->is_structured() && value->empty())) {
    return absl::OkStatus();
  }
  return Error(name, absl::StrCat(Shown(*value), " is not supported"));
}

absl::StatusOr<std::optional<int64_t>> JsonFields::Int(const char* name,
                                                       int64_t min,
                                                       int64_t max) {
  const json* value = Find(name);
  if (value == nullptr) return std::optional<int64_t>();
  int64_t result = 0;
  if (AsInt(*value, min, max, result)) return std::optional<int64_t>(result);
  return Error(name, absl::StrCat("expected ", IntRange(min, max), ", found ",
                                  Shown(*value)));
}

absl::StatusOr<int64_t> JsonFields::RequiredInt(const char* name, int64_t min,
                                                int64_t max) {
  QUIRE_ASSIGN_OR_RETURN(const std::optional<int64_t> value,
                         Int(name, min, max));
  if (!value) {
    return Error(name, absl::StrCat("missing; expected ", IntRange(min, max)));
  }
  return *value;
}

absl::StatusOr<std::optional<double>> JsonFields::Number(const char* name,
                                                         double min,
                                                         double max) {
  const json* value = Find(name);
  if (value == nullptr) return std::optional<double>();
  if (value->is_number()) {
    const double number = value->get<double>();
    if (number >= min && number <= max) return std::optional<double>(number);
  }
  return Error(name, absl::StrCat("expected a number in [", min, ", ", max,
                                  "], found ", Shown(*value)));
}

absl::StatusOr<std::optional<bool>> JsonFields::Bool(const char* name) {
  const json* value = Find(name);
  if (value == nullptr) return std::optional<bool>();
  if (value->is_boolean()) return std::optional<bool>(value->get<bool>());
  return Error(name,
               absl::StrCat("expected true or false, found ", Shown(*value)));
}

absl::StatusOr<std::optional<std::string>> JsonFields::String(
    const char* name) {
  const json* value = Find(name);
  if (value == nullptr) return std::optional<std::string>();
  if (value->is_string()) {
    return std::optional<std::string>(value->get<std::string>());
  }
  return Error(name, absl::StrCat("expected a string, found ", Shown(*value)));
}

absl::StatusOr<std::vector<std::string>> JsonFields::Strings(const char* name) {
  std::vector<std::string> result;
  const json* value = Find(name);
  if (value == nullptr) return result;
  if (!value->is_array() || value->size() > kMaxListSize) {
    return Error(name, absl::StrCat("expected a list of strings, found ",
                                    Shown(*value)));
  }
  for (const json& element : *value) {
    if (!element.is_string()) {
      return Error(name, absl::StrCat("expected a list of strings, found ",
                                      Shown(element), " in it"));
    }
    result.push_back(element.get<std::string>());
  }
  return result;
}

absl::StatusOr<std::vector<int64_t>> JsonFields::Ints(const char* name,
                                                      int64_t min,
                                                      int64_t max) {
  std::vector<int64_t> result;
  const json* value = Find(name);
  if (value == nullptr) return result;
  const json list = value->is_array() ? *value : json::array({*value});
  if (list.size() > kMaxListSize) return Error(name, "the list is too long");
  for (const json& element : list) {
    int64_t number = 0;
    if (!AsInt(element, min, max, number)) {
      return Error(name,
                   absl::StrCat("expected ", IntRange(min, max),
                                " or a list of such, found ", Shown(element)));
    }
    result.push_back(number);
  }
  return result;
}

absl::StatusOr<std::vector<double>> JsonFields::Numbers(const char* name,
                                                        double min,
                                                        double max) {
  std::vector<double> result;
  const json* value = Find(name);
  if (value == nullptr) return result;
  if (!value->is_array() || value->size() > kMaxListSize) {
    return Error(name, absl::StrCat("expected a list of numbers, found ",
                                    Shown(*value)));
  }
  for (const json& element : *value) {
    const double number = element.is_number() ? element.get<double>() : min - 1;
    if (!(number >= min && number <= max)) {
      return Error(name, absl::StrCat("expected numbers in [", min, ", ", max,
                                      "], found ", Shown(element)));
    }
    result.push_back(number);
  }
  return result;
}

absl::StatusOr<const json*> JsonFields::Object(const char* name) {
  const json* value = Find(name);
  if (value != nullptr && !value->is_object()) {
    return Error(name,
                 absl::StrCat("expected an object, found ", Shown(*value)));
  }
  return value;
}

std::vector<std::string> JsonFields::Unread() const {
  std::vector<std::string> names;
  for (const auto& [name, value] : object_.items()) {
    if (read_.count(name) == 0) names.push_back(name);
  }
  return names;
}

}  // namespace quire
