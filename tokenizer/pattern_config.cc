#include "tokenizer/pattern_config.h"

#include <string>
#include <utility>

#include "engine/base/status.h"

namespace quire {

absl::StatusOr<std::unique_ptr<SplitPattern>> ReadPattern(
    const JsonComponent& component) {
  const nlohmann::json* pattern = component.Find("pattern");
  if (pattern == nullptr) return component.Error("pattern", "is missing");
  if (!pattern->is_object() || pattern->size() != 1 ||
      !pattern->begin()->is_string()) {
    return component.Error("pattern",
                           "must be {\"String\": ...} or {\"Regex\": ...}");
  }
  const std::string& kind = pattern->begin().key();
  const std::string& text = pattern->begin()->get_ref<const std::string&>();
  if (kind == "String") return LiteralPattern(text);
  if (kind != "Regex") {
    return component.Error("pattern",
                           "must be {\"String\": ...} or {\"Regex\": ...}");
  }
  absl::StatusOr<std::unique_ptr<SplitPattern>> compiled =
      CompileRegexPattern(text);
  if (!compiled.ok()) {
    return component.Error("pattern.Regex", compiled.status().message());
  }
  return compiled;
}

}  // namespace quire
