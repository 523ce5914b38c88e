#include "server/chat_message.h"

#include <utility>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "engine/base/status.h"
#include "server/api_error.h"
#include "server/json_text.h"

namespace quire {
namespace {

using Json = nlohmann::ordered_json;

// A call's arguments stand within the body, which may have JsonLimits's depth.
constexpr JsonLimits kToolCallLimits = {.max_depth = 32, .max_nodes = 10'000};

// The joined text of a message's content, which is a string or a list of parts.
absl::StatusOr<std::string> ContentText(const std::string& parameter,
                                        const Json& content) {
  if (content.is_string()) return content.get<std::string>();
  const auto error = [&](absl::string_view message) {
    return ParameterError(parameter, message);
  };
  if (!content.is_array()) {
    return error(
        absl::StrCat("'", parameter, "' must be a string or a list of parts"));
  }
  std::string text;
  for (const Json& part : content) {
    const auto type = part.is_object() ? part.find("type") : part.end();
    if (!part.is_object() || type == part.end() || !type->is_string()) {
      return error(absl::StrCat("a part of '", parameter, "' has no 'type'"));
    }
    if (*type != "text" && *type != "refusal") {
      return error(absl::StrCat("content of type '",
                                type->get_ref<const std::string&>(),
                                "' is not supported: this model reads text"));
    }
    const auto part_text = part.find(type->get_ref<const std::string&>());
    if (part_text == part.end() || !part_text->is_string()) {
      return error(
          absl::StrCat("a text part of '", parameter, "' has no text"));
    }
    if (&part != &content.front()) text += '\n';
    text += part_text->get_ref<const std::string&>();
  }
  return text;
}

// Templates want the arguments of a call as an object, the API sends their
// JSON.
absl::Status ParseToolCallArguments(const std::string& parameter, Json& calls) {
  if (!calls.is_array()) {
    return ParameterError(parameter,
                          absl::StrCat("'", parameter, "' must be a list"));
  }
  for (Json& call : calls) {
    const auto function = call.is_object() ? call.find("function") : call.end();
    if (!call.is_object() || function == call.end() || !function->is_object() ||
        !function->contains("name") || !(*function)["name"].is_string()) {
      return ParameterError(parameter,
                            absl::StrCat("a call in '", parameter,
                                         "' has no function with a name"));
    }
    const auto arguments = function->find("arguments");
    if (arguments != function->end() && arguments->is_string()) {
      // With limits: this JSON comes from the client as much as the body does.
      auto parsed =
          ParseJson(arguments->get_ref<const std::string&>(), kToolCallLimits);
      if (parsed.ok() && parsed->is_object()) *arguments = *std::move(parsed);
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status NormalizeMessage(const std::string& parameter, Json& message) {
  const auto field_error = [&](const char* field, absl::string_view problem) {
    return ParameterError(
        absl::StrCat(parameter, ".", field),
        absl::StrCat("'", parameter, ".", field, "' ", problem));
  };
  if (!message.is_object()) {
    return ParameterError(parameter,
                          absl::StrCat("'", parameter, "' must be an object"));
  }
  const auto role = message.find("role");
  if (role == message.end() || !role->is_string()) {
    return field_error("role", "must be a string");
  }
  const std::string role_name = role->get<std::string>();
  // Templates know the older name.
  if (role_name == "developer") *role = "system";
  if (role_name != "developer" && role_name != "system" &&
      role_name != "user" && role_name != "assistant" && role_name != "tool" &&
      role_name != "function") {
    return field_error(
        "role", "must be one of system, developer, user, assistant, tool");
  }
  const auto calls = message.find("tool_calls");
  const bool has_calls = calls != message.end() && !calls->is_null();
  if (has_calls) {
    QUIRE_RETURN_IF_ERROR(
        ParseToolCallArguments(absl::StrCat(parameter, ".tool_calls"), *calls));
  }
  const auto content = message.find("content");
  if (content == message.end() || content->is_null()) {
    if (role_name != "assistant" || !has_calls) {
      return field_error("content", "is missing");
    }
    message["content"] = "";
    return absl::OkStatus();
  }
  QUIRE_ASSIGN_OR_RETURN(
      std::string text,
      ContentText(absl::StrCat(parameter, ".content"), *content));
  *content = std::move(text);
  return absl::OkStatus();
}

}  // namespace quire
