#include "server/openai_api.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/types/span.h"
#include "engine/base/status.h"
#include "server/api_error.h"
#include "server/json_text.h"

namespace quire {
namespace {

using Json = nlohmann::ordered_json;

constexpr int kMaxChoices = 128;  // OpenAI's limit.
constexpr int kMaxStopStrings = 64;
constexpr size_t kMaxStopBytes = 1024;
constexpr int kMaxTopLogprobs = 20;
constexpr size_t kMaxListLength = 65536;
constexpr size_t kMaxBadWords = 1024;
constexpr size_t kMaxBadWordBytes = 1024;
constexpr size_t kMaxDryBreakers = 32;
constexpr size_t kMaxDryBreakerBytes = 40;  // As llama.cpp, which cuts there.
constexpr size_t kMaxMessages = 10000;
constexpr size_t kMaxPrompts = 128;
// A call's arguments stand within the body, which may have JsonLimits's depth.
constexpr JsonLimits kToolCallLimits = {.max_depth = 32, .max_nodes = 10'000};
constexpr double kMaxInt32 = std::numeric_limits<int32_t>::max();

enum class FieldType : uint8_t {
  kBool,
  kInt,
  kNumber,
  kString,
  kStringOrList,
  kList,
  kObject,
  kAny,
};

enum class AppliesTo : uint8_t { kBoth, kChat, kCompletion };

// How a field that is not null is treated.
enum class Treatment : uint8_t {
  kUsed,      // `set` takes it.
  kNoEffect,  // Accepted: cannot change the answer.
  kNotBuilt,  // 400 unless its value is neutral (`neutral`, false, 0, empty).
};

struct Field {
  const char* name;
  AppliesTo applies_to;
  FieldType type;
  double min = -std::numeric_limits<double>::infinity();
  double max = std::numeric_limits<double>::infinity();
  Treatment treatment = Treatment::kUsed;
  absl::Status (*set)(const Json& value, ApiRequest& request) = nullptr;
  const char* neutral = nullptr;  // JSON text of a further neutral value.
};

absl::Status TypeError(const char* name, absl::string_view expected) {
  return ParameterError(name, absl::StrCat("'", name, "' must be ", expected));
}

absl::StatusOr<std::vector<int32_t>> IdList(const char* name,
                                            const Json& value) {
  if (!value.is_array() || value.size() > kMaxListLength) {
    return TypeError(name, "a list of token ids");
  }
  std::vector<int32_t> ids;
  ids.reserve(value.size());
  for (const Json& id : value) {
    if (!id.is_number_integer() || id < 0 ||
        id > std::numeric_limits<int32_t>::max()) {
      return TypeError(name, "a list of token ids");
    }
    ids.push_back(id.get<int32_t>());
  }
  return ids;
}

// A list of at most `max_strings` strings of 1 to `max_bytes` bytes.
absl::StatusOr<std::vector<std::string>> StringList(const char* name,
                                                    const Json& value,
                                                    size_t max_strings,
                                                    size_t max_bytes) {
  if (value.size() > max_strings) {
    return ParameterError(name, absl::StrCat("'", name, "' may hold at most ",
                                             max_strings, " strings"));
  }
  std::vector<std::string> strings;
  for (const Json& item : value) {
    if (!item.is_string()) return TypeError(name, "a list of strings");
    const std::string& text = item.get_ref<const std::string&>();
    if (text.empty() || text.size() > max_bytes) {
      return ParameterError(
          name, absl::StrCat("a string of '", name, "' must have 1 to ",
                             max_bytes, " bytes"));
    }
    strings.push_back(text);
  }
  return strings;
}

absl::Status SetStop(const Json& value, ApiRequest& request) {
  const auto add = [&](const Json& stop) -> absl::Status {
    if (!stop.is_string())
      return TypeError("stop", "a string or a list of strings");
    const std::string& text = stop.get_ref<const std::string&>();
    if (text.empty() || text.size() > kMaxStopBytes) {
      return ParameterError(
          "stop", absl::StrCat("a stop string must have 1 to ", kMaxStopBytes,
                               " bytes"));
    }
    request.stop_strings.push_back(text);
    return absl::OkStatus();
  };
  if (value.is_string()) return add(value);
  if (value.size() > kMaxStopStrings) {
    return ParameterError("stop", absl::StrCat("'stop' may hold at most ",
                                               kMaxStopStrings, " strings"));
  }
  for (const Json& stop : value) QUIRE_RETURN_IF_ERROR(add(stop));
  return absl::OkStatus();
}

absl::Status SetLogitBias(const Json& value, ApiRequest& request) {
  if (value.size() > kMaxListLength) {
    return TypeError("logit_bias", "a map of fewer entries");
  }
  for (const auto& [key, bias] : value.items()) {
    int32_t id = 0;
    if (!absl::SimpleAtoi(key, &id) || id < 0 || !bias.is_number()) {
      return TypeError("logit_bias", "a map from token ids to numbers");
    }
    const double amount = bias.get<double>();
    if (!(std::abs(amount) <= 100)) {
      return ParameterError("logit_bias",
                            "a logit bias must lie between -100 and 100");
    }
    request.sampling.logit_bias.emplace_back(id, static_cast<float>(amount));
  }
  return absl::OkStatus();
}

absl::Status SetStreamOptions(const Json& value, ApiRequest& request) {
  for (const auto& [key, option] : value.items()) {
    const bool known =
        key == "include_usage" || key == "continuous_usage_stats";
    if (!known) {
      request.ignored_fields.push_back(absl::StrCat("stream_options.", key));
      continue;
    }
    if (option.is_null()) continue;
    if (!option.is_boolean()) {
      return ParameterError(
          absl::StrCat("stream_options.", key),
          absl::StrCat("'stream_options.", key, "' must be a boolean"));
    }
    (key == "include_usage" ? request.include_usage
                            : request.continuous_usage_stats) =
        option.get<bool>();
  }
  return absl::OkStatus();
}

absl::Status SetResponseFormat(const Json& value, ApiRequest&) {
  const auto type = value.find("type");
  if (type == value.end() || !type->is_string()) {
    return TypeError("response_format", "an object with a 'type'");
  }
  if (*type != "text") {
    return ParameterError("response_format",
                          "only the response format 'text' is supported");
  }
  return absl::OkStatus();
}

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

absl::Status CheckMessage(const std::string& parameter, Json& message) {
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

absl::Status SetMessages(const Json& value, ApiRequest& request) {
  if (value.empty() || value.size() > kMaxMessages) {
    return ParameterError("messages", absl::StrCat("'messages' must hold 1 to ",
                                                   kMaxMessages, " messages"));
  }
  request.messages = value;
  for (size_t i = 0; i < request.messages.size(); ++i) {
    QUIRE_RETURN_IF_ERROR(
        CheckMessage(absl::StrCat("messages[", i, "]"), request.messages[i]));
  }
  return absl::OkStatus();
}

absl::Status SetPrompt(const Json& value, ApiRequest& request) {
  const absl::Status type_error =
      TypeError("prompt",
                "a string, a list of strings, a list of token ids or a list of "
                "lists of token ids");
  if (value.is_string()) {
    request.prompts.emplace_back(value.get<std::string>());
    return absl::OkStatus();
  }
  if (!value.is_array()) return type_error;
  if (value.empty()) {
    return ParameterError("prompt", "'prompt' must not be empty");
  }
  if (value.front().is_number()) {
    QUIRE_ASSIGN_OR_RETURN(std::vector<int32_t> ids, IdList("prompt", value));
    request.prompts.emplace_back(std::move(ids));
    return absl::OkStatus();
  }
  if (value.size() > kMaxPrompts) {
    return ParameterError("prompt", absl::StrCat("'prompt' may hold at most ",
                                                 kMaxPrompts, " prompts"));
  }
  for (const Json& prompt : value) {
    if (prompt.is_string()) {
      request.prompts.emplace_back(prompt.get<std::string>());
    } else if (prompt.is_array()) {
      QUIRE_ASSIGN_OR_RETURN(std::vector<int32_t> ids,
                             IdList("prompt", prompt));
      request.prompts.emplace_back(std::move(ids));
    } else {
      return type_error;
    }
  }
  return absl::OkStatus();
}

absl::Status SetToolChoice(const Json& value, ApiRequest&) {
  if (value == "none") return absl::OkStatus();
  return ParameterError("tool_choice",
                        "only the tool_choice 'none' is supported");
}

absl::Status SetCacheSalt(const Json& value, ApiRequest& request) {
  request.cache_salt = value.get<std::string>();
  if (request.cache_salt.empty() || request.cache_salt.size() > 128) {
    return ParameterError("cache_salt",
                          "'cache_salt' must have 1 to 128 characters");
  }
  return absl::OkStatus();
}

template <float SamplingParams::*member>
absl::Status SetFloat(const Json& value, ApiRequest& request) {
  request.sampling.*member = value.get<float>();
  return absl::OkStatus();
}

template <int32_t SamplingParams::*member>
absl::Status SetInt(const Json& value, ApiRequest& request) {
  request.sampling.*member = value.get<int32_t>();
  return absl::OkStatus();
}

template <bool ApiRequest::*member>
absl::Status SetBool(const Json& value, ApiRequest& request) {
  request.*member = value.get<bool>();
  return absl::OkStatus();
}

using enum FieldType;
using enum AppliesTo;
using enum Treatment;
constexpr double kNone = std::numeric_limits<double>::infinity();

// Fields that more than one engine's clients send (names as in OpenAI, vLLM,
// SGLang and llama.cpp).
const Field kFields[] = {
    // What to answer.
    {"messages", kChat, kList, -kNone, kNone, kUsed, SetMessages},
    {"prompt", kCompletion, kAny, -kNone, kNone, kUsed, SetPrompt},
    {"model", kBoth, kString, -kNone, kNone, kUsed,
     [](const Json& v, ApiRequest& r) {
       r.model = v.get<std::string>();
       return absl::OkStatus();
     }},
    {"documents", kChat, kList, -kNone, kNone, kUsed,
     [](const Json& v, ApiRequest& r) {
       r.documents = v;
       return absl::OkStatus();
     }},
    {"chat_template_kwargs", kChat, kObject, -kNone, kNone, kUsed,
     [](const Json& v, ApiRequest& r) {
       // Both may be given: the request's own names stay.
       for (const auto& [key, value] : v.items()) {
         r.chat_template_kwargs[key] = value;
       }
       return absl::OkStatus();
     }},
    {"reasoning_effort", kChat, kString, -kNone, kNone, kUsed,
     [](const Json& v, ApiRequest& r) {
       r.chat_template_kwargs["reasoning_effort"] = v;
       return absl::OkStatus();
     }},
    {"add_generation_prompt", kChat, kBool, -kNone, kNone, kUsed,
     SetBool<&ApiRequest::add_generation_prompt>},
    {"continue_final_message", kChat, kBool, -kNone, kNone, kUsed,
     SetBool<&ApiRequest::continue_final_message>},
    {"add_special_tokens", kBoth, kBool, -kNone, kNone, kUsed,
     SetBool<&ApiRequest::add_special_tokens>},
    {"truncate_prompt_tokens", kBoth, kInt, 1, kMaxInt32, kUsed,
     [](const Json& v, ApiRequest& r) {
       r.truncate_prompt_tokens = v.get<int32_t>();
       return absl::OkStatus();
     }},
    // Sampling.
    {"temperature", kBoth, kNumber, 0, 2, kUsed,
     SetFloat<&SamplingParams::temperature>},
    {"top_p", kBoth, kNumber, 0, 1, kUsed,
     [](const Json& v, ApiRequest& r) -> absl::Status {
       if (v.get<double>() <= 0) {
         return ParameterError("top_p", "'top_p' must lie in (0, 1]");
       }
       r.sampling.top_p = v.get<float>();
       return absl::OkStatus();
     }},
    {"min_p", kBoth, kNumber, 0, 1, kUsed, SetFloat<&SamplingParams::min_p>},
    {"top_k", kBoth, kInt, -1, kMaxInt32, kUsed,
     [](const Json& v, ApiRequest& r) {
       r.sampling.top_k = std::max(0, v.get<int32_t>());  // -1, too, means all.
       return absl::OkStatus();
     }},
    {"presence_penalty", kBoth, kNumber, -2, 2, kUsed,
     SetFloat<&SamplingParams::presence_penalty>},
    {"frequency_penalty", kBoth, kNumber, -2, 2, kUsed,
     SetFloat<&SamplingParams::frequency_penalty>},
    {"repetition_penalty", kBoth, kNumber, 0, 10, kUsed,
     [](const Json& v, ApiRequest& r) -> absl::Status {
       if (v.get<double>() <= 0) {
         return ParameterError("repetition_penalty",
                               "'repetition_penalty' must lie in (0, 10]");
       }
       r.sampling.repetition_penalty = v.get<float>();
       return absl::OkStatus();
     }},
    {"seed", kBoth, kInt, -kNone, kNone, kUsed,
     [](const Json& v, ApiRequest& r) {
       r.sampling.seed = static_cast<uint64_t>(v.get<int64_t>());
       return absl::OkStatus();
     }},
    {"logit_bias", kBoth, kObject, -kNone, kNone, kUsed, SetLogitBias},
    {"allowed_token_ids", kBoth, kList, -kNone, kNone, kUsed,
     [](const Json& v, ApiRequest& r) -> absl::Status {
       QUIRE_ASSIGN_OR_RETURN(r.sampling.allowed_token_ids,
                              IdList("allowed_token_ids", v));
       if (r.sampling.allowed_token_ids.empty()) {
         return ParameterError("allowed_token_ids",
                               "'allowed_token_ids' must not be empty");
       }
       return absl::OkStatus();
     }},
    {"bad_words", kBoth, kList, -kNone, kNone, kUsed,
     [](const Json& v, ApiRequest& r) -> absl::Status {
       QUIRE_ASSIGN_OR_RETURN(
           r.bad_words,
           StringList("bad_words", v, kMaxBadWords, kMaxBadWordBytes));
       return absl::OkStatus();
     }},
    // llama.cpp's; the meanings are in kernels/sampling.h.
    {"dry_multiplier", kBoth, kNumber, 0, 1000, kUsed,
     SetFloat<&SamplingParams::dry_multiplier>},
    {"dry_base", kBoth, kNumber, 1, 1000, kUsed,
     SetFloat<&SamplingParams::dry_base>},
    {"dry_allowed_length", kBoth, kInt, 0, kMaxInt32, kUsed,
     SetInt<&SamplingParams::dry_allowed_length>},
    {"dry_penalty_last_n", kBoth, kInt, -1, kMaxInt32, kUsed,
     SetInt<&SamplingParams::dry_penalty_last_n>},
    {"dry_sequence_breakers", kBoth, kList, -kNone, kNone, kUsed,
     [](const Json& v, ApiRequest& r) -> absl::Status {
       QUIRE_ASSIGN_OR_RETURN(r.dry_sequence_breakers,
                              StringList("dry_sequence_breakers", v,
                                         kMaxDryBreakers, kMaxDryBreakerBytes));
       return absl::OkStatus();
     }},
    {"dynatemp_range", kBoth, kNumber, 0, 10, kUsed,
     SetFloat<&SamplingParams::dynatemp_range>},
    {"dynatemp_exponent", kBoth, kNumber, 0, 100, kUsed,
     SetFloat<&SamplingParams::dynatemp_exponent>},
    {"top_n_sigma", kBoth, kNumber, -1, 1000, kUsed,
     [](const Json& v, ApiRequest& r) {
       // -1, too, means off.
       r.sampling.top_n_sigma = std::max(0.0f, v.get<float>());
       return absl::OkStatus();
     }},
    {"typical_p", kBoth, kNumber, 0, 1, kUsed,
     SetFloat<&SamplingParams::typical_p>},
    {"xtc_probability", kBoth, kNumber, 0, 1, kUsed,
     SetFloat<&SamplingParams::xtc_probability>},
    {"xtc_threshold", kBoth, kNumber, 0, 1, kUsed,
     SetFloat<&SamplingParams::xtc_threshold>},
    {"n", kBoth, kInt, 1, kMaxChoices, kUsed,
     [](const Json& v, ApiRequest& r) {
       r.n = v.get<int32_t>();
       return absl::OkStatus();
     }},
    // Where to end.
    {"max_tokens", kBoth, kInt, 1, kMaxInt32, kUsed,
     SetInt<&SamplingParams::max_tokens>},
    {"max_completion_tokens", kChat, kInt, 1, kMaxInt32, kUsed,
     [](const Json& v, ApiRequest& r) {
       r.max_completion_tokens = v.get<int32_t>();
       return absl::OkStatus();
     }},
    {"n_predict", kBoth, kInt, -1, kMaxInt32, kUsed,
     [](const Json& v, ApiRequest& r) {
       if (v.get<int32_t>() > 0) r.sampling.max_tokens = v.get<int32_t>();
       return absl::OkStatus();
     }},
    {"min_tokens", kBoth, kInt, 0, kMaxInt32, kUsed,
     SetInt<&SamplingParams::min_tokens>},
    {"stop", kBoth, kStringOrList, -kNone, kNone, kUsed, SetStop},
    {"stop_token_ids", kBoth, kList, -kNone, kNone, kUsed,
     [](const Json& v, ApiRequest& r) -> absl::Status {
       QUIRE_ASSIGN_OR_RETURN(r.sampling.stop_token_ids,
                              IdList("stop_token_ids", v));
       return absl::OkStatus();
     }},
    {"include_stop_str_in_output", kBoth, kBool, -kNone, kNone, kUsed,
     SetBool<&ApiRequest::include_stop_str_in_output>},
    {"no_stop_trim", kBoth, kBool, -kNone, kNone, kUsed,
     SetBool<&ApiRequest::include_stop_str_in_output>},
    {"ignore_eos", kBoth, kBool, -kNone, kNone, kUsed,
     [](const Json& v, ApiRequest& r) {
       r.sampling.ignore_eos = v.get<bool>();
       return absl::OkStatus();
     }},
    // What to report.
    {"stream", kBoth, kBool, -kNone, kNone, kUsed,
     SetBool<&ApiRequest::stream>},
    {"stream_options", kBoth, kObject, -kNone, kNone, kUsed, SetStreamOptions},
    {"logprobs", kChat, kBool, -kNone, kNone, kUsed,
     SetBool<&ApiRequest::wants_logprobs>},
    {"logprobs", kCompletion, kInt, 0, kMaxTopLogprobs, kUsed,
     [](const Json& v, ApiRequest& r) {
       r.wants_logprobs = true;
       r.top_logprobs = v.get<int32_t>();
       return absl::OkStatus();
     }},
    {"top_logprobs", kChat, kInt, 0, kMaxTopLogprobs, kUsed,
     [](const Json& v, ApiRequest& r) {
       r.top_logprobs = v.get<int32_t>();
       return absl::OkStatus();
     }},
    {"skip_special_tokens", kBoth, kBool, -kNone, kNone, kUsed,
     SetBool<&ApiRequest::skip_special_tokens>},
    {"return_tokens_as_token_ids", kBoth, kBool, -kNone, kNone, kUsed,
     SetBool<&ApiRequest::return_tokens_as_token_ids>},
    {"cache_salt", kBoth, kString, -kNone, kNone, kUsed, SetCacheSalt},
    {"extra_key", kBoth, kString, -kNone, kNone, kUsed, SetCacheSalt},
    // Understood in the one form that needs nothing.
    {"response_format", kBoth, kObject, -kNone, kNone, kUsed,
     SetResponseFormat},
    {"tool_choice", kChat, kAny, -kNone, kNone, kUsed, SetToolChoice},

    // Cannot change the answer here.
    {"user", kBoth, kString, -kNone, kNone, kNoEffect},
    {"store", kBoth, kAny, -kNone, kNone, kNoEffect},
    {"metadata", kBoth, kAny, -kNone, kNone, kNoEffect},
    {"service_tier", kBoth, kAny, -kNone, kNone, kNoEffect},
    {"prompt_cache_key", kBoth, kAny, -kNone, kNone, kNoEffect},
    {"safety_identifier", kBoth, kAny, -kNone, kNone, kNoEffect},
    {"verbosity", kBoth, kAny, -kNone, kNone, kNoEffect},
    {"prediction", kBoth, kAny, -kNone, kNone, kNoEffect},
    {"modalities", kChat, kAny, -kNone, kNone, kNoEffect},
    {"audio", kChat, kAny, -kNone, kNone, kNoEffect},
    {"web_search_options", kChat, kAny, -kNone, kNone, kNoEffect},
    {"functions", kChat, kAny, -kNone, kNone, kNoEffect},
    {"function_call", kChat, kAny, -kNone, kNone, kNoEffect},
    {"parallel_tool_calls", kChat, kBool, -kNone, kNone, kNoEffect},
    {"priority", kBoth, kInt, -kNone, kNone, kNoEffect},
    {"request_id", kBoth, kString, -kNone, kNone, kNoEffect},
    {"rid", kBoth, kAny, -kNone, kNone, kNoEffect},
    {"session_id", kBoth, kAny, -kNone, kNone, kNoEffect},
    {"stream_interval", kBoth, kInt, 1, kMaxInt32, kNoEffect},
    {"length_penalty", kBoth, kNumber, -kNone, kNone, kNoEffect},
    {"spaces_between_special_tokens", kBoth, kBool, -kNone, kNone, kNoEffect},
    {"include_reasoning", kBoth, kBool, -kNone, kNone, kNoEffect},
    {"separate_reasoning", kBoth, kBool, -kNone, kNone, kNoEffect},
    {"stream_reasoning", kBoth, kBool, -kNone, kNone, kNoEffect},
    {"reasoning_format", kBoth, kAny, -kNone, kNone, kNoEffect},
    {"media_io_kwargs", kBoth, kAny, -kNone, kNone, kNoEffect},
    {"mm_processor_kwargs", kBoth, kAny, -kNone, kNone, kNoEffect},
    {"cache_prompt", kBoth, kBool, -kNone, kNone, kNoEffect},
    {"id_slot", kBoth, kInt, -kNone, kNone, kNoEffect},
    {"timings_per_token", kBoth, kBool, -kNone, kNone, kNoEffect},
    {"return_progress", kBoth, kBool, -kNone, kNone, kNoEffect},

    // Would change the answer and are not built.
    {"tools", kChat, kList, -kNone, kNone, kNotBuilt},
    {"structured_outputs", kBoth, kAny, -kNone, kNone, kNotBuilt, nullptr,
     "{}"},
    {"guided_json", kBoth, kAny, -kNone, kNone, kNotBuilt},
    {"guided_regex", kBoth, kAny, -kNone, kNone, kNotBuilt},
    {"guided_choice", kBoth, kAny, -kNone, kNone, kNotBuilt},
    {"guided_grammar", kBoth, kAny, -kNone, kNone, kNotBuilt},
    {"guided_decoding_backend", kBoth, kAny, -kNone, kNone, kNoEffect},
    {"json_schema", kBoth, kAny, -kNone, kNone, kNotBuilt},
    {"regex", kBoth, kAny, -kNone, kNone, kNotBuilt},
    {"ebnf", kBoth, kAny, -kNone, kNone, kNotBuilt},
    {"grammar", kBoth, kAny, -kNone, kNone, kNotBuilt},
    {"use_beam_search", kBoth, kBool, -kNone, kNone, kNotBuilt},
    {"best_of", kCompletion, kInt, 1, kMaxChoices, kUsed,
     [](const Json& v, ApiRequest& r) {
       r.best_of = v.get<int32_t>();
       return absl::OkStatus();
     }},
    {"echo", kBoth, kBool, -kNone, kNone, kNotBuilt},
    {"suffix", kCompletion, kString, -kNone, kNone, kNotBuilt},
    {"prompt_embeds", kCompletion, kAny, -kNone, kNone, kNotBuilt},
    {"prompt_logprobs", kBoth, kInt, -kNone, kNone, kNotBuilt},
    {"logprob_token_ids", kBoth, kAny, -kNone, kNone, kNotBuilt},
    {"truncation_side", kBoth, kString, -kNone, kNone, kNotBuilt, nullptr,
     "\"left\""},
    {"thinking_token_budget", kBoth, kAny, -kNone, kNone, kNotBuilt},
    {"repetition_detection", kBoth, kAny, -kNone, kNone, kNotBuilt},
    {"watermarking", kBoth, kAny, -kNone, kNone, kNotBuilt},
    {"chat_template", kChat, kString, -kNone, kNone, kNotBuilt},
    {"return_token_ids", kBoth, kBool, -kNone, kNone, kNotBuilt},
    {"return_prompt_text", kBoth, kBool, -kNone, kNone, kNotBuilt},
    {"return_hidden_states", kBoth, kBool, -kNone, kNone, kNotBuilt},
    {"kv_transfer_params", kBoth, kAny, -kNone, kNone, kNotBuilt, nullptr,
     "{}"},
    {"ec_transfer_params", kBoth, kAny, -kNone, kNone, kNotBuilt, nullptr,
     "{}"},
    {"vllm_xargs", kBoth, kAny, -kNone, kNone, kNotBuilt, nullptr, "{}"},
    {"stop_regex", kBoth, kAny, -kNone, kNone, kNotBuilt},
    {"lora_path", kBoth, kAny, -kNone, kNone, kNotBuilt},
    {"lora", kBoth, kAny, -kNone, kNone, kNotBuilt},
    {"session_params", kBoth, kAny, -kNone, kNone, kNotBuilt},
    {"custom_logit_processor", kBoth, kAny, -kNone, kNone, kNotBuilt},
    {"n_keep", kBoth, kInt, -kNone, kNone, kNotBuilt},
    {"n_probs", kBoth, kInt, -kNone, kNone, kNotBuilt},
    {"samplers", kBoth, kAny, -kNone, kNone, kNotBuilt},
    {"response_fields", kBoth, kAny, -kNone, kNone, kNotBuilt},
    {"t_max_predict_ms", kBoth, kNumber, -kNone, kNone, kNotBuilt},
    {"mirostat", kBoth, kInt, -kNone, kNone, kNotBuilt},
    // Parameters of mirostat: without effect while it is neutral.
    {"mirostat_tau", kBoth, kNumber, -kNone, kNone, kNoEffect},
    {"mirostat_eta", kBoth, kNumber, -kNone, kNone, kNoEffect},
};

const Field* FindField(ApiKind kind, const std::string& name) {
  for (const Field& field : kFields) {
    const bool applies =
        field.applies_to == kBoth ||
        (field.applies_to == kChat) == (kind == ApiKind::kChat);
    if (applies && name == field.name) return &field;
  }
  return nullptr;
}

absl::Status CheckRange(const Field& field, double value) {
  if (value >= field.min && value <= field.max) return absl::OkStatus();
  std::string range;
  if (std::isinf(field.max) || field.max == kMaxInt32) {
    range = absl::StrCat("at least ", field.min);
  } else {
    range = absl::StrCat("between ", field.min, " and ", field.max);
  }
  return ParameterError(field.name, absl::StrCat("'", field.name, "' must be ",
                                                 range, ", not ", value));
}

absl::Status CheckType(const Field& field, const Json& value) {
  switch (field.type) {
    case kBool:
      if (!value.is_boolean()) return TypeError(field.name, "a boolean");
      break;
    case kInt:
      if (!value.is_number_integer()) {
        return TypeError(field.name, "an integer");
      }
      // Above int64: unsigned in nlohmann's terms.
      if (value.is_number_unsigned() &&
          value.get<uint64_t>() > std::numeric_limits<int64_t>::max()) {
        return TypeError(field.name, "a 64-bit integer");
      }
      return CheckRange(field, static_cast<double>(value.get<int64_t>()));
    case kNumber:
      if (!value.is_number()) return TypeError(field.name, "a number");
      return CheckRange(field, value.get<double>());
    case kString:
      if (!value.is_string()) return TypeError(field.name, "a string");
      break;
    case kStringOrList:
      if (!value.is_string() && !value.is_array()) {
        return TypeError(field.name, "a string or a list of strings");
      }
      break;
    case kList:
      if (!value.is_array()) return TypeError(field.name, "a list");
      break;
    case kObject:
      if (!value.is_object()) return TypeError(field.name, "an object");
      break;
    case kAny:
      break;
  }
  return absl::OkStatus();
}

// False, zero, "" and [] ask for nothing; {} may be a schema.
bool IsNeutral(const Field& field, const Json& value) {
  if (field.neutral != nullptr && value == Json::parse(field.neutral)) {
    return true;
  }
  if (value.is_boolean()) return !value.get<bool>();
  // prompt_logprobs: 0 asks for the log-probability of each prompt token.
  if (value.is_number()) {
    return value == 0 && absl::string_view(field.name) != "prompt_logprobs";
  }
  return (value.is_string() && value.get_ref<const std::string&>().empty()) ||
         (value.is_array() && value.empty());
}

absl::Status ApplyField(ApiKind kind, const std::string& name,
                        const Json& value, ApiRequest& request) {
  const Field* field = FindField(kind, name);
  if (field == nullptr) {
    request.ignored_fields.push_back(name);
    return absl::OkStatus();
  }
  if (value.is_null()) return absl::OkStatus();
  QUIRE_RETURN_IF_ERROR(CheckType(*field, value));
  switch (field->treatment) {
    case kUsed:
      return field->set(value, request);
    case kNoEffect:
      return absl::OkStatus();
    case kNotBuilt:
      if (IsNeutral(*field, value)) return absl::OkStatus();
      return ParameterError(name, absl::StrCat("'", name, "' is not supported"),
                            "unsupported_parameter");
  }
  return absl::OkStatus();
}

// What one field alone cannot tell.
absl::Status CheckTogether(ApiRequest& request) {
  SamplingParams& sampling = request.sampling;
  if (request.kind == ApiKind::kChat && request.messages.is_null()) {
    return ParameterError("messages", "'messages' is missing");
  }
  if (request.kind == ApiKind::kCompletion && request.prompts.empty()) {
    return ParameterError("prompt", "'prompt' is missing");
  }
  if (request.max_completion_tokens.has_value()) {
    sampling.max_tokens = *request.max_completion_tokens;
  }
  if (sampling.max_tokens > 0 && sampling.min_tokens > sampling.max_tokens) {
    return ParameterError("min_tokens",
                          "'min_tokens' must not exceed 'max_tokens'");
  }
  // As many as are returned: nothing to choose from.
  if (request.best_of.value_or(request.n) != request.n) {
    return ParameterError("best_of", "'best_of' must equal 'n'",
                          "unsupported_parameter");
  }
  if (request.top_logprobs.value_or(0) > 0 && !request.wants_logprobs) {
    return ParameterError("top_logprobs",
                          "'top_logprobs' needs 'logprobs' to be true");
  }
  if (request.wants_logprobs) {
    sampling.num_logprobs = request.top_logprobs.value_or(0);
  }
  if (request.kind == ApiKind::kChat && request.continue_final_message) {
    if (request.messages.back()["role"] != "assistant") {
      return ParameterError("continue_final_message",
                            "the final message must be the assistant's");
    }
    request.add_generation_prompt = false;
  }
  if ((request.include_usage || request.continuous_usage_stats) &&
      !request.stream) {
    return ParameterError("stream_options",
                          "'stream_options' needs 'stream' to be true");
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<ApiRequest> ParseApiRequest(ApiKind kind, const Json& body,
                                           const SamplingDefaults& defaults) {
  if (!body.is_object()) {
    return absl::InvalidArgumentError("the body must be a JSON object");
  }
  ApiRequest request;
  request.kind = kind;
  request.add_special_tokens = kind == ApiKind::kCompletion;
  request.sampling.temperature = defaults.temperature;
  request.sampling.top_p = defaults.top_p;
  request.sampling.min_p = defaults.min_p;
  request.sampling.top_k = defaults.top_k;
  request.sampling.repetition_penalty = defaults.repetition_penalty;
  // OpenAI's default for completions; a chat runs to the end of the context.
  request.sampling.max_tokens = kind == ApiKind::kCompletion ? 16 : 0;
  // Tools that may not be called are without effect.
  const auto tool_choice = body.find("tool_choice");
  const bool calls_no_tool =
      tool_choice != body.end() && *tool_choice == "none";
  for (const auto& [name, value] : body.items()) {
    if (name == "tools" && calls_no_tool) continue;
    QUIRE_RETURN_IF_ERROR(ApplyField(kind, name, value, request));
  }
  QUIRE_RETURN_IF_ERROR(CheckTogether(request));
  return request;
}

}  // namespace quire
