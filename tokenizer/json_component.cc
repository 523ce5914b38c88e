#include "tokenizer/json_component.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"

namespace quire {

absl::StatusOr<JsonComponent> JsonComponent::Create(const nlohmann::json& value,
                                                    std::string path) {
  if (!value.is_object()) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": must be an object, is ", value.type_name()));
  }
  return JsonComponent(&value, std::move(path));
}

absl::Status JsonComponent::Error(absl::string_view field,
                                  absl::string_view what) const {
  return absl::InvalidArgumentError(
      absl::StrCat(path_, ".", field, ": ", what));
}

absl::Status JsonComponent::CheckFields(
    std::initializer_list<absl::string_view> known) const {
  for (auto it = value_->begin(); it != value_->end(); ++it) {
    const absl::string_view key = it.key();
    if (key == "type" ||
        std::find(known.begin(), known.end(), key) != known.end()) {
      continue;
    }
    return Error(key, "unknown field");
  }
  return absl::OkStatus();
}

const nlohmann::json* JsonComponent::Find(absl::string_view field) const {
  const auto it = value_->find(std::string(field));
  if (it == value_->end() || it->is_null()) return nullptr;
  return &*it;
}

absl::StatusOr<std::string> JsonComponent::String(
    absl::string_view field) const {
  const nlohmann::json* value = Find(field);
  if (value == nullptr) return Error(field, "is missing");
  if (!value->is_string()) return Error(field, "must be a string");
  return value->get_ref<const std::string&>();
}

absl::StatusOr<bool> JsonComponent::Bool(absl::string_view field,
                                         std::optional<bool> if_absent) const {
  const nlohmann::json* value = Find(field);
  if (value == nullptr) {
    if (if_absent.has_value()) return *if_absent;
    return Error(field, "is missing");
  }
  if (!value->is_boolean()) return Error(field, "must be true or false");
  return value->get<bool>();
}

absl::StatusOr<int64_t> JsonComponent::Integer(absl::string_view field,
                                               int64_t max) const {
  const nlohmann::json* value = Find(field);
  if (value == nullptr) return Error(field, "is missing");
  int64_t integer = 0;
  if (!ReadInteger(*value, max, &integer)) {
    return Error(field, absl::StrCat("must be an integer in [0, ", max, "]"));
  }
  return integer;
}

absl::StatusOr<const nlohmann::json*> JsonComponent::Array(
    absl::string_view field) const {
  const nlohmann::json* value = Find(field);
  if (value == nullptr) return Error(field, "is missing");
  if (!value->is_array()) return Error(field, "must be an array");
  return value;
}

bool ReadInteger(const nlohmann::json& value, int64_t max, int64_t* out) {
  if (!value.is_number_integer()) return false;
  if (value.is_number_unsigned()) {
    if (value.get<uint64_t>() > static_cast<uint64_t>(max)) return false;
  } else if (value.get<int64_t>() < 0 || value.get<int64_t>() > max) {
    return false;
  }
  *out = value.get<int64_t>();
  return true;
}

}  // namespace quire
