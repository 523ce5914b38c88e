#include "server/openai_api.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/types/span.h"
#include "engine/base/status.h"
#include "server/api_error.h"
#include "server/chat_message.h"
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
constexpr size_t kMaxBadWordBytes = 128;  // Every choice keeps their tokens.
constexpr size_t kMaxDryBreakers = 32;
constexpr size_t kMaxDryBreakerBytes = 40;  // As llama.cpp, which cuts there.
constexpr size_t kMaxMessages = 10000;
constexpr size_t kMaxPrompts = 128;
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

// Requires: an array.
absl::StatusOr<std::vector<int32_t>> IdList(const char* name,
                                            const Json& value) {
  if (value.size() > kMaxListLength) {
    return TypeError(name, "a shorter list");
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

absl::Status SetMessages(const Json& value, ApiRequest& request) {
  if (value.empty() || value.size() > kMaxMessages) {
    return ParameterError("messages", absl::StrCat("'messages' must hold 1 to ",
                                                   kMaxMessages, " messages"));
  }
  request.messages = value;
  for (size_t i = 0; i < request.messages.size(); ++i) {
    QUIRE_RETURN_IF_ERROR(NormalizeMessage(absl::StrCat("messages[", i, "]"),
                                           request.messages[i]));
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

// It enters the answer's id and a header.
absl::Status SetRequestId(const Json& value, ApiRequest& request) {
  request.request_id = value.get<std::string>();
  if (IsHarmlessRequestId(request.request_id)) return absl::OkStatus();
  return ParameterError(
      "request_id",
      absl::StrCat("'request_id' must have 1 to ", kMaxRequestIdLength,
                   " letters, digits, '.', '_' or '-'"));
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
    {"truncate_prompt_tokens", kBoth, kInt, -1, kMaxInt32, kUsed,
     [](const Json& v, ApiRequest& r) -> absl::Status {
       r.truncate_prompt_tokens = v.get<int32_t>();
       if (r.truncate_prompt_tokens != 0) return absl::OkStatus();
       return ParameterError("truncate_prompt_tokens",
                             "'truncate_prompt_tokens' must be at least 1, or "
                             "-1 for as many as fit");
     }},
    {"truncation_side", kBoth, kString, -kNone, kNone, kUsed,
     [](const Json& v, ApiRequest& r) -> absl::Status {
       r.truncates_right = v == "right";
       if (v == "left" || v == "right") return absl::OkStatus();
       return TypeError("truncation_side", "'left' or 'right'");
     }},
    {"priority", kBoth, kInt, -kMaxInt32, kMaxInt32, kUsed,
     [](const Json& v, ApiRequest& r) {
       r.priority = v.get<int32_t>();
       return absl::OkStatus();
     }},
    {"timeout", kBoth, kNumber, 0, kMaxTimeoutSeconds, kUsed,
     [](const Json& v, ApiRequest& r) -> absl::Status {
       r.timeout = v.get<double>();
       if (*r.timeout > 0) return absl::OkStatus();
       return ParameterError("timeout",
                             "'timeout' must be a number of seconds above 0");
     }},
    {"request_id", kBoth, kString, -kNone, kNone, kUsed, SetRequestId},
    // Sampling.
    {"temperature", kBoth, kNumber, 0, 2, kUsed,
     SetFloat<&SamplingParams::temperature>},
    {"top_p", kBoth, kNumber, 0, 1, kUsed,
     [](const Json& v, ApiRequest& r) -> absl::Status {
       if (v.get<float>() <= 0) {  // What is tiny as a double is 0.
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
    // As low as a backend takes it (SlotParams): a refusal there fails the
    // step.
    {"repetition_penalty", kBoth, kNumber, 1e-6, 10, kUsed,
     SetFloat<&SamplingParams::repetition_penalty>},
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
    {"max_tokens", kChat, kInt, 1, kMaxInt32, kUsed,
     SetInt<&SamplingParams::max_tokens>},
    {"max_tokens", kCompletion, kInt, 0, kMaxInt32, kUsed,
     [](const Json& v, ApiRequest& r) {
       r.generates_nothing = v == 0;
       r.sampling.max_tokens = std::max(v.get<int32_t>(), 1);
       return absl::OkStatus();
     }},
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
    {"prompt_logprobs", kBoth, kInt, 0, kMaxTopLogprobs, kUsed,
     [](const Json& v, ApiRequest& r) {
       r.prompt_logprobs = v.get<int32_t>();
       return absl::OkStatus();
     }},
    {"echo", kBoth, kBool, -kNone, kNone, kUsed, SetBool<&ApiRequest::echo>},
    {"best_of", kCompletion, kInt, 1, kMaxChoices, kUsed,
     [](const Json& v, ApiRequest& r) {
       r.best_of = v.get<int32_t>();
       return absl::OkStatus();
     }},
    {"return_token_ids", kBoth, kBool, -kNone, kNone, kUsed,
     SetBool<&ApiRequest::return_token_ids>},
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
    {"parallel_tool_calls", kChat, kBool, -kNone, kNone, kNoEffect},
    {"rid", kBoth, kAny, -kNone, kNone, kNoEffect},
    {"session_id", kBoth, kAny, -kNone, kNone, kNoEffect},
    {"stream_interval", kBoth, kInt, 1, kMaxInt32, kNoEffect},
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
    {"functions", kChat, kAny, -kNone, kNone, kNotBuilt},
    {"function_call", kChat, kAny, -kNone, kNone, kNotBuilt, nullptr,
     "\"none\""},
    {"modalities", kChat, kAny, -kNone, kNone, kNotBuilt, nullptr,
     "[\"text\"]"},
    {"audio", kChat, kAny, -kNone, kNone, kNotBuilt},
    {"web_search_options", kChat, kAny, -kNone, kNone, kNotBuilt},
    // Of beam search.
    {"length_penalty", kBoth, kNumber, -kNone, kNone, kNotBuilt, nullptr,
     "1.0"},
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
    {"suffix", kCompletion, kString, -kNone, kNone, kNotBuilt},
    {"prompt_embeds", kCompletion, kAny, -kNone, kNone, kNotBuilt},
    {"logprob_token_ids", kBoth, kAny, -kNone, kNone, kNotBuilt},
    {"thinking_token_budget", kBoth, kAny, -kNone, kNone, kNotBuilt},
    {"repetition_detection", kBoth, kAny, -kNone, kNone, kNotBuilt},
    {"watermarking", kBoth, kAny, -kNone, kNone, kNotBuilt},
    {"chat_template", kChat, kString, -kNone, kNone, kNotBuilt},
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

// As people write it: no exponent for what is a whole number.
std::string FormatNumber(double value) {
  constexpr double kMaxWhole = 1e15;
  if (value == std::floor(value) && std::abs(value) < kMaxWhole) {
    return absl::StrCat(static_cast<int64_t>(value));
  }
  return absl::StrCat(value);
}

absl::Status CheckRange(const Field& field, double value) {
  if (value >= field.min && value <= field.max) return absl::OkStatus();
  std::string range;
  if (std::isinf(field.max) || field.max == kMaxInt32) {
    range = value < field.min
                ? absl::StrCat("at least ", FormatNumber(field.min))
                : absl::StrCat("at most ", FormatNumber(field.max));
  } else {
    range = absl::StrCat("between ", FormatNumber(field.min), " and ",
                         FormatNumber(field.max));
  }
  return ParameterError(
      field.name, absl::StrCat("'", field.name, "' must be ", range, ", not ",
                               FormatNumber(value)));
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
  if (value.is_number()) return value == 0;
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
  if (request.generates_nothing && !request.echo) {
    return ParameterError("max_tokens",
                          "'max_tokens' must be at least 1, or 0 with 'echo'");
  }
  if (request.best_of < request.n) {
    if (request.best_of > 0) {
      return ParameterError("best_of", "'best_of' must not be less than 'n'");
    }
    request.best_of = request.n;
  }
  if (request.best_of > request.n && request.stream) {
    return ParameterError("best_of", "'best_of' above 'n' cannot be streamed");
  }
  if (request.top_logprobs.value_or(0) > 0 && !request.wants_logprobs) {
    return ParameterError("top_logprobs",
                          "'top_logprobs' needs 'logprobs' to be true");
  }
  if (request.wants_logprobs) {
    sampling.num_logprobs = request.top_logprobs.value_or(0);
  } else if (request.best_of > request.n) {
    sampling.num_logprobs = 0;  // To choose by.
  }
  sampling.num_prompt_logprobs = request.prompt_logprobs.value_or(-1);
  if (request.echo && request.wants_logprobs &&
      request.kind == ApiKind::kCompletion) {
    sampling.num_prompt_logprobs =
        std::max(sampling.num_prompt_logprobs, sampling.num_logprobs);
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
