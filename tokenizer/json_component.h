// Typed reading of the components of tokenizer.json, with errors that name the
// field.
#ifndef QUIRE_TOKENIZER_JSON_COMPONENT_H_
#define QUIRE_TOKENIZER_JSON_COMPONENT_H_

#include <cstdint>
#include <initializer_list>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace quire {

// A JSON object at `path` ("pre_tokenizer.pretokenizers[0]"). Borrows the
// object. Every error is INVALID_ARGUMENT and begins with the path.
class JsonComponent {
 public:
  static absl::StatusOr<JsonComponent> Create(const nlohmann::json& value,
                                              std::string path);

  const std::string& path() const { return path_; }
  absl::Status Error(absl::string_view field, absl::string_view what) const;
  // Refuses fields other than `known` and "type".
  absl::Status CheckFields(
      std::initializer_list<absl::string_view> known) const;

  // Null counts as absent.
  const nlohmann::json* Find(absl::string_view field) const;
  absl::StatusOr<std::string> String(absl::string_view field) const;
  absl::StatusOr<bool> Bool(absl::string_view field,
                            std::optional<bool> if_absent = {}) const;
  // In [0, max].
  absl::StatusOr<int64_t> Integer(absl::string_view field, int64_t max) const;
  // The elements of an array.
  absl::StatusOr<const nlohmann::json*> Array(absl::string_view field) const;

 private:
  JsonComponent(const nlohmann::json* value, std::string path)
      : value_(value), path_(std::move(path)) {}
  const nlohmann::json* value_;
  std::string path_;
};

// True if `value` is an integer in [0, max]; stores it.
bool ReadInteger(const nlohmann::json& value, int64_t max, int64_t* out);

}  // namespace quire

#endif  // QUIRE_TOKENIZER_JSON_COMPONENT_H_
