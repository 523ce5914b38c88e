// Typed, bounded access to the fields of a JSON object from an untrusted file.
#ifndef QUIRE_ENGINE_MODEL_JSON_FIELDS_H_
#define QUIRE_ENGINE_MODEL_JSON_FIELDS_H_

#include <cstdint>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "nlohmann/json.hpp"

namespace quire {

// Remembers which fields were asked for. A field that is absent or null is
// "none". Every error is INVALID_ARGUMENT and names the file and the field.
// Thread-compatible; borrows the object.
class JsonFields {
 public:
  // Requires: object.is_object(). `prefix` goes before field names in messages
  // ("rope_scaling.").
  JsonFields(const nlohmann::json& object, std::string path,
             std::string prefix = "");

  bool Has(const char* name);
  // Present and null: for fields where that differs from absent.
  bool IsNull(const char* name);
  // An error if the field is anything but absent, null, false, 0 or empty.
  absl::Status RequireOff(const char* name);
  absl::StatusOr<std::optional<int64_t>> Int(const char* name, int64_t min,
                                             int64_t max);
  absl::StatusOr<int64_t> RequiredInt(const char* name, int64_t min,
                                      int64_t max);
  // Finite, in [min, max].
  absl::StatusOr<std::optional<double>> Number(const char* name, double min,
                                               double max);
  absl::StatusOr<std::optional<bool>> Bool(const char* name);
  absl::StatusOr<std::optional<std::string>> String(const char* name);
  absl::StatusOr<std::vector<std::string>> Strings(const char* name);
  // One integer or a list of them.
  absl::StatusOr<std::vector<int64_t>> Ints(const char* name, int64_t min,
                                            int64_t max);
  // A list of finite numbers in [min, max]; empty if absent.
  absl::StatusOr<std::vector<double>> Numbers(const char* name, double min,
                                              double max);
  // Null if absent; an error if it is not an object.
  absl::StatusOr<const nlohmann::json*> Object(const char* name);

  // Whether anybody asked for the field, be it there or not.
  bool WasRead(const char* name) const { return read_.count(name) != 0; }

  // Names of the fields that nobody asked for.
  std::vector<std::string> Unread() const;

  absl::Status Error(absl::string_view name, absl::string_view message) const;

 private:
  // Null if absent or null.
  const nlohmann::json* Find(const char* name);

  const nlohmann::json& object_;
  std::string path_;
  std::string prefix_;
  std::set<std::string> read_;
};

}  // namespace quire

#endif  // QUIRE_ENGINE_MODEL_JSON_FIELDS_H_
