#include "server/request_fields.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <string>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "engine/base/status.h"
#include "server/api_error.h"
#include "server/chat_message.h"

namespace quire {
namespace {

using Json = nlohmann::ordered_json;
using enum FieldType;
using enum FieldTreatment;

constexpr int kMaxChoices = 128;  // OpenAI's limit.
constexpr int kMaxTopLogprobs = 20;
constexpr double kMaxListLength = 65536;
constexpr int64_t kMaxIdsOfPrompt = 65536;
constexpr double kMaxInt32 = std::numeric_limits<int32_t>::max();
constexpr double kMaxIds = 1 << 20;  // As JsonLimits has them.
constexpr double kMaxLogitBias = 100;

constexpr FieldRange Any() { return {}; }
constexpr FieldRange Between(double min, double max) { return {min, max}; }
constexpr FieldRange AtLeast(double min) { return {min, kMaxInt32}; }
constexpr FieldRange Words(const char* words) { return {.words = words}; }
// Elements, of which each has at most max_item_size bytes or token ids.
constexpr FieldRange Items(
    double min, double max,
    int64_t max_item_size = std::numeric_limits<int64_t>::max()) {
  return {.min = min, .max = max, .max_item_size = max_item_size};
}
constexpr FieldRange With(FieldRange range, const char* error) {
  range.error = error;
  return range;
}
constexpr FieldRange Without(double excluded, FieldRange range,
                             const char* error) {
  range.excluded = excluded;
  range.error = error;
  return range;
}

// The row's own text says why.
absl::Status NotAccepted() { return absl::InvalidArgumentError(""); }

template <typename Class, typename Member>
Class ClassOf(Member Class::*);
template <typename Class, typename Member>
Member MemberOf(Member Class::*);
template <typename T>
struct ValueOf {
  using Type = T;
};
template <typename T>
struct ValueOf<std::optional<T>> {
  using Type = T;
};

// Into a member of the request or of its sampling parameters. The value has the
// member's type: CheckFieldValue was here.
template <auto member>
absl::Status Set(const Json& value, ApiRequest& request) {
  using Value = typename ValueOf<decltype(MemberOf(member))>::Type;
  if constexpr (std::is_same_v<decltype(ClassOf(member)), SamplingParams>) {
    request.sampling.*member = value.get<Value>();
  } else {
    request.*member = value.get<Value>();
  }
  return absl::OkStatus();
}

absl::Status SetPrompts(const Json& value, ApiRequest& request) {
  const auto add = [&](const Json& prompt) {
    if (prompt.is_string()) {
      request.prompts.emplace_back(prompt.get<std::string>());
    } else {
      request.prompts.emplace_back(prompt.get<std::vector<int32_t>>());
    }
  };
  if (value.is_string() || value.empty() || value.front().is_number()) {
    add(value);
  } else {
    for (const Json& prompt : value) add(prompt);
  }
  return absl::OkStatus();
}

absl::Status SetStop(const Json& value, ApiRequest& request) {
  if (value.is_string()) {
    request.stop_strings = {value.get<std::string>()};
  } else {
    request.stop_strings = value.get<std::vector<std::string>>();
  }
  return absl::OkStatus();
}

absl::Status SetLogitBias(const Json& value, ApiRequest& request) {
  for (const auto& [key, bias] : value.items()) {
    int32_t id = 0;
    if (!absl::SimpleAtoi(key, &id) || id < 0 || !bias.is_number()) {
      return NotAccepted();
    }
    const double amount = bias.get<double>();
    if (!(std::abs(amount) <= kMaxLogitBias)) {
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
  if (type == value.end() || !type->is_string()) return NotAccepted();
  if (*type != "text") {
    return ParameterError("response_format",
                          "only the response format 'text' is supported");
  }
  return absl::OkStatus();
}

absl::Status SetMessages(const Json& value, ApiRequest& request) {
  request.messages = value;
  for (size_t i = 0; i < request.messages.size(); ++i) {
    QUIRE_RETURN_IF_ERROR(NormalizeMessage(absl::StrCat("messages[", i, "]"),
                                           request.messages[i]));
  }
  return absl::OkStatus();
}

// It enters the answer's id and a header.
absl::Status SetRequestId(const Json& value, ApiRequest& request) {
  request.request_id = value.get<std::string>();
  return IsHarmlessRequestId(request.request_id) ? absl::OkStatus()
                                                 : NotAccepted();
}

absl::Status SetTruncationSide(const Json& value, ApiRequest& request) {
  request.truncates_right = value == "right";
  return absl::OkStatus();
}

// Names as in OpenAI, vLLM, SGLang and llama.cpp: fields that more than one
// engine's clients send.
const RequestField kFields[] = {
    // What to answer.
    {"messages", kOfChat, kList, Items(1, 10000), nullptr, kUsed, SetMessages},
    {"prompt", kOfCompletion, kPrompt, Items(1, 128, kMaxIdsOfPrompt), nullptr,
     kUsed, SetPrompts},
    {"input", kOfEmbeddings, kPrompt, Items(1, kMaxEmbeddingInputs, kMaxIds),
     nullptr, kUsed, SetPrompts},
    {"tokens", kOfDetokenize, kIdList, Items(0, kMaxIds), nullptr, kUsed,
     SetPrompts},
    {"model", kOfPrompts | kOfDetokenize, kString, Any(), R"("")", kUsed,
     Set<&ApiRequest::model>},
    {"documents", kOfChat, kList, Any(), "null", kUsed,
     Set<&ApiRequest::documents>},
    {"chat_template_kwargs", kOfChat, kObject, Any(), "null", kUsed,
     [](const Json& v, ApiRequest& r) {
       // Both may be given: the request's own names stay.
       for (const auto& [key, value] : v.items()) {
         r.chat_template_kwargs[key] = value;
       }
       return absl::OkStatus();
     }},
    {"reasoning_effort", kOfChat, kString, Any(), "null", kUsed,
     [](const Json& v, ApiRequest& r) {
       r.chat_template_kwargs["reasoning_effort"] = v;
       return absl::OkStatus();
     }},
    {"add_generation_prompt", kOfChat, kBool, Any(), "true", kUsed,
     Set<&ApiRequest::add_generation_prompt>},
    {"continue_final_message", kOfChat, kBool, Any(), "false", kUsed,
     Set<&ApiRequest::continue_final_message>},
    // The template writes those of a chat.
    {"add_special_tokens", kOfChat, kBool, Any(), "false", kUsed,
     Set<&ApiRequest::add_special_tokens>},
    {"add_special_tokens", kOfCompletion | kOfEmbeddings, kBool, Any(), "true",
     kUsed, Set<&ApiRequest::add_special_tokens>},
    {"truncate_prompt_tokens", kOfPrompts, kInt,
     Without(0, AtLeast(-1), "must be at least 1, or -1 for as many as fit"),
     "null", kUsed, Set<&ApiRequest::truncate_prompt_tokens>},
    {"truncation_side", kOfGeneration, kWord, Words("left|right"), R"("left")",
     kUsed, SetTruncationSide},
    {"truncation_side", kOfEmbeddings, kWord, Words("left|right"),
     R"("right")", kUsed, SetTruncationSide},
    {"priority", kOfPrompts, kInt, Between(-kMaxInt32, kMaxInt32), "0", kUsed,
     Set<&ApiRequest::priority>},
    {"timeout", kOfPrompts, kNumber,
     Without(0, Between(0, kMaxTimeoutSeconds),
             "must be a number of seconds above 0"),
     "null", kUsed, Set<&ApiRequest::timeout>},
    {"request_id", kOfPrompts, kString,
     With(Between(1, kMaxRequestIdLength),
          "must have 1 to 64 letters, digits, '.', '_' or '-'"),
     "null", kUsed, SetRequestId},
    {"cache_salt", kOfPrompts, kString, Between(1, 128), "null", kUsed,
     Set<&ApiRequest::cache_salt>},
    {"extra_key", kOfGeneration, kString, Between(1, 128), "null", kUsed,
     Set<&ApiRequest::cache_salt>},
    // Sampling.
    {"temperature", kOfGeneration, kNumber, Between(0, 2), "1.0", kUsed,
     Set<&SamplingParams::temperature>},
    {"top_p", kOfGeneration, kNumber,
     Without(0, Between(0, 1), "must lie in (0, 1]"), "1.0", kUsed,
     Set<&SamplingParams::top_p>},
    {"min_p", kOfGeneration, kNumber, Between(0, 1), "0.0", kUsed,
     Set<&SamplingParams::min_p>},
    {"top_k", kOfGeneration, kInt, AtLeast(-1), "0", kUsed,
     [](const Json& v, ApiRequest& r) {
       r.sampling.top_k = std::max(0, v.get<int32_t>());  // -1, too, means all.
       return absl::OkStatus();
     }},
    {"presence_penalty", kOfGeneration, kNumber, Between(-2, 2), "0.0", kUsed,
     Set<&SamplingParams::presence_penalty>},
    {"frequency_penalty", kOfGeneration, kNumber, Between(-2, 2), "0.0", kUsed,
     Set<&SamplingParams::frequency_penalty>},
    // As low as a backend takes it (SlotParams): a refusal there fails the
    // step.
    {"repetition_penalty", kOfGeneration, kNumber, Between(1e-6, 10), "1.0",
     kUsed, Set<&SamplingParams::repetition_penalty>},
    {"seed", kOfGeneration, kInt, Any(), "null", kUsed,
     [](const Json& v, ApiRequest& r) {
       r.sampling.seed = static_cast<uint64_t>(v.get<int64_t>());
       return absl::OkStatus();
     }},
    {"logit_bias", kOfGeneration, kObject,
     With(Items(0, kMaxListLength),
          "must be a map from at most 65536 token ids to numbers"),
     "{}", kUsed, SetLogitBias},
    {"allowed_token_ids", kOfGeneration, kIdList, Items(1, kMaxListLength),
     "null", kUsed, Set<&SamplingParams::allowed_token_ids>},
    // Every choice keeps their tokens.
    {"bad_words", kOfGeneration, kStringList, Items(0, 1024, 128), "[]", kUsed,
     Set<&ApiRequest::bad_words>},
    // llama.cpp's; the meanings are in kernels/sampling.h.
    {"dry_multiplier", kOfGeneration, kNumber, Between(0, 1000), "0.0", kUsed,
     Set<&SamplingParams::dry_multiplier>},
    {"dry_base", kOfGeneration, kNumber, Between(1, 1000), "1.75", kUsed,
     Set<&SamplingParams::dry_base>},
    {"dry_allowed_length", kOfGeneration, kInt, AtLeast(0), "2", kUsed,
     Set<&SamplingParams::dry_allowed_length>},
    {"dry_penalty_last_n", kOfGeneration, kInt, AtLeast(-1), "-1", kUsed,
     Set<&SamplingParams::dry_penalty_last_n>},
    // Of 40 bytes at most, as llama.cpp, which cuts there.
    {"dry_sequence_breakers", kOfGeneration, kStringList, Items(0, 32, 40),
     "null", kUsed, Set<&ApiRequest::dry_sequence_breakers>},
    {"dynatemp_range", kOfGeneration, kNumber, Between(0, 10), "0.0", kUsed,
     Set<&SamplingParams::dynatemp_range>},
    {"dynatemp_exponent", kOfGeneration, kNumber, Between(0, 100), "1.0", kUsed,
     Set<&SamplingParams::dynatemp_exponent>},
    {"top_n_sigma", kOfGeneration, kNumber, Between(-1, 1000), "0.0", kUsed,
     [](const Json& v, ApiRequest& r) {
       // -1, too, means off.
       r.sampling.top_n_sigma = std::max(0.0f, v.get<float>());
       return absl::OkStatus();
     }},
    {"typical_p", kOfGeneration, kNumber, Between(0, 1), "1.0", kUsed,
     Set<&SamplingParams::typical_p>},
    {"xtc_probability", kOfGeneration, kNumber, Between(0, 1), "0.0", kUsed,
     Set<&SamplingParams::xtc_probability>},
    {"xtc_threshold", kOfGeneration, kNumber, Between(0, 1), "0.1", kUsed,
     Set<&SamplingParams::xtc_threshold>},
    {"n", kOfGeneration, kInt, Between(1, kMaxChoices), "1", kUsed,
     Set<&ApiRequest::n>},
    // Where to end. A chat runs to the end of the context.
    {"max_tokens", kOfChat, kInt, AtLeast(1), "null", kUsed,
     Set<&SamplingParams::max_tokens>},
    {"max_tokens", kOfCompletion, kInt, AtLeast(0), "16", kUsed,
     [](const Json& v, ApiRequest& r) {
       r.generates_nothing = v == 0;
       r.sampling.max_tokens = std::max(v.get<int32_t>(), 1);
       return absl::OkStatus();
     }},
    {"max_completion_tokens", kOfChat, kInt, AtLeast(1), "null", kUsed,
     Set<&ApiRequest::max_completion_tokens>},
    {"n_predict", kOfGeneration, kInt, AtLeast(-1), "-1", kUsed,
     [](const Json& v, ApiRequest& r) {
       if (v.get<int32_t>() > 0) r.sampling.max_tokens = v.get<int32_t>();
       return absl::OkStatus();
     }},
    {"min_tokens", kOfGeneration, kInt, AtLeast(0), "0", kUsed,
     Set<&SamplingParams::min_tokens>},
    {"stop", kOfGeneration, kStringOrList, Items(0, 64, 1024), "[]", kUsed,
     SetStop},
    {"stop_token_ids", kOfGeneration, kIdList, Items(0, kMaxListLength), "[]",
     kUsed, Set<&SamplingParams::stop_token_ids>},
    {"include_stop_str_in_output", kOfGeneration, kBool, Any(), "false", kUsed,
     Set<&ApiRequest::include_stop_str_in_output>},
    {"no_stop_trim", kOfGeneration, kBool, Any(), "false", kUsed,
     Set<&ApiRequest::include_stop_str_in_output>},
    {"ignore_eos", kOfGeneration, kBool, Any(), "false", kUsed,
     Set<&SamplingParams::ignore_eos>},
    // What to report.
    {"stream", kOfGeneration, kBool, Any(), "false", kUsed,
     Set<&ApiRequest::stream>},
    {"stream_options", kOfGeneration, kObject, Any(), "{}", kUsed,
     SetStreamOptions},
    {"logprobs", kOfChat, kBool, Any(), "false", kUsed,
     Set<&ApiRequest::wants_logprobs>},
    {"logprobs", kOfCompletion, kInt, Between(0, kMaxTopLogprobs), "null",
     kUsed,
     [](const Json& v, ApiRequest& r) {
       r.wants_logprobs = true;
       r.top_logprobs = v.get<int32_t>();
       return absl::OkStatus();
     }},
    {"top_logprobs", kOfChat, kInt, Between(0, kMaxTopLogprobs), "null", kUsed,
     Set<&ApiRequest::top_logprobs>},
    {"prompt_logprobs", kOfGeneration, kInt, Between(0, kMaxTopLogprobs),
     "null", kUsed, Set<&ApiRequest::prompt_logprobs>},
    {"echo", kOfGeneration, kBool, Any(), "false", kUsed,
     Set<&ApiRequest::echo>},
    {"best_of", kOfCompletion, kInt, Between(1, kMaxChoices), "null", kUsed,
     Set<&ApiRequest::best_of>},
    {"return_token_ids", kOfGeneration, kBool, Any(), "false", kUsed,
     Set<&ApiRequest::return_token_ids>},
    {"return_token_strs", kOfTokenize, kBool, Any(), "false", kUsed,
     Set<&ApiRequest::return_token_strs>},
    {"skip_special_tokens", kOfGeneration, kBool, Any(), "true", kUsed,
     Set<&ApiRequest::skip_special_tokens>},
    {"return_tokens_as_token_ids", kOfGeneration, kBool, Any(), "false", kUsed,
     Set<&ApiRequest::return_tokens_as_token_ids>},
    {"encoding_format", kOfEmbeddings, kWord, Words("float|base64"),
     R"("float")", kUsed,
     [](const Json& v, ApiRequest& r) {
       r.is_base64 = v == "base64";
       return absl::OkStatus();
     }},
    // And no more than the model has.
    {"dimensions", kOfEmbeddings, kInt, AtLeast(1), "null", kUsed,
     Set<&ApiRequest::dimensions>},
    // As the model does it.
    {"normalize", kOfEmbeddings, kBool, Any(), "null", kUsed,
     Set<&ApiRequest::normalize>},
    {"use_activation", kOfEmbeddings, kBool, Any(), "null", kUsed,
     Set<&ApiRequest::normalize>},
    // Understood in the one form that needs nothing.
    {"response_format", kOfGeneration, kObject,
     With(Any(), "must be an object with a 'type'"), R"({"type":"text"})",
     kUsed, SetResponseFormat},
    {"tool_choice", kOfChat, kWord, Words("none"), R"("none")", kNoEffect},

    // Cannot change the answer here.
    {"user", kOfPrompts, kString, Any(), "null", kNoEffect},
    {"embed_dtype", kOfEmbeddings, kWord, Words("float32"), R"("float32")",
     kNoEffect},
    {"endianness", kOfEmbeddings, kWord, Words("native|little"),
     R"("native")", kNoEffect},
    {"store", kOfGeneration, kAny, Any(), "null", kNoEffect},
    {"metadata", kOfGeneration, kAny, Any(), "null", kNoEffect},
    {"service_tier", kOfGeneration, kAny, Any(), "null", kNoEffect},
    {"prompt_cache_key", kOfGeneration, kAny, Any(), "null", kNoEffect},
    {"safety_identifier", kOfGeneration, kAny, Any(), "null", kNoEffect},
    {"verbosity", kOfGeneration, kAny, Any(), "null", kNoEffect},
    {"prediction", kOfGeneration, kAny, Any(), "null", kNoEffect},
    {"parallel_tool_calls", kOfChat, kBool, Any(), "null", kNoEffect},
    {"rid", kOfGeneration, kAny, Any(), "null", kNoEffect},
    {"session_id", kOfGeneration, kAny, Any(), "null", kNoEffect},
    {"stream_interval", kOfGeneration, kInt, AtLeast(1), "null", kNoEffect},
    {"spaces_between_special_tokens", kOfGeneration, kBool, Any(), "null", kNoEffect},
    {"include_reasoning", kOfGeneration, kBool, Any(), "null", kNoEffect},
    {"separate_reasoning", kOfGeneration, kBool, Any(), "null", kNoEffect},
    {"stream_reasoning", kOfGeneration, kBool, Any(), "null", kNoEffect},
    {"reasoning_format", kOfGeneration, kAny, Any(), "null", kNoEffect},
    {"media_io_kwargs", kOfGeneration, kAny, Any(), "null", kNoEffect},
    {"mm_processor_kwargs", kOfGeneration, kAny, Any(), "null", kNoEffect},
    {"cache_prompt", kOfGeneration, kBool, Any(), "null", kNoEffect},
    {"id_slot", kOfGeneration, kInt, Any(), "null", kNoEffect},
    {"timings_per_token", kOfGeneration, kBool, Any(), "null", kNoEffect},
    {"return_progress", kOfGeneration, kBool, Any(), "null", kNoEffect},

    // Would change the answer and are not built.
    {"tools", kOfChat, kList, Any(), "null", kNotBuilt},
    {"functions", kOfChat, kAny, Any(), "null", kNotBuilt},
    {"function_call", kOfChat, kAny, Any(), "null", kNotBuilt, nullptr,
     "\"none\""},
    {"modalities", kOfChat, kAny, Any(), "null", kNotBuilt, nullptr,
     "[\"text\"]"},
    {"audio", kOfChat, kAny, Any(), "null", kNotBuilt},
    {"web_search_options", kOfChat, kAny, Any(), "null", kNotBuilt},
    // Of beam search.
    {"length_penalty", kOfGeneration, kNumber, Any(), "null", kNotBuilt, nullptr,
     "1.0"},
    {"structured_outputs", kOfGeneration, kAny, Any(), "null", kNotBuilt, nullptr,
     "{}"},
    {"guided_json", kOfGeneration, kAny, Any(), "null", kNotBuilt},
    {"guided_regex", kOfGeneration, kAny, Any(), "null", kNotBuilt},
    {"guided_choice", kOfGeneration, kAny, Any(), "null", kNotBuilt},
    {"guided_grammar", kOfGeneration, kAny, Any(), "null", kNotBuilt},
    {"guided_decoding_backend", kOfGeneration, kAny, Any(), "null", kNoEffect},
    {"json_schema", kOfGeneration, kAny, Any(), "null", kNotBuilt},
    {"regex", kOfGeneration, kAny, Any(), "null", kNotBuilt},
    {"ebnf", kOfGeneration, kAny, Any(), "null", kNotBuilt},
    {"grammar", kOfGeneration, kAny, Any(), "null", kNotBuilt},
    {"use_beam_search", kOfGeneration, kBool, Any(), "null", kNotBuilt},
    {"suffix", kOfCompletion, kString, Any(), "null", kNotBuilt},
    {"prompt_embeds", kOfCompletion, kAny, Any(), "null", kNotBuilt},
    {"logprob_token_ids", kOfGeneration, kAny, Any(), "null", kNotBuilt},
    {"thinking_token_budget", kOfGeneration, kAny, Any(), "null", kNotBuilt},
    {"repetition_detection", kOfGeneration, kAny, Any(), "null", kNotBuilt},
    {"watermarking", kOfGeneration, kAny, Any(), "null", kNotBuilt},
    {"chat_template", kOfChat, kString, Any(), "null", kNotBuilt},
    {"return_prompt_text", kOfGeneration, kBool, Any(), "null", kNotBuilt},
    {"return_hidden_states", kOfGeneration, kBool, Any(), "null", kNotBuilt},
    {"kv_transfer_params", kOfGeneration, kAny, Any(), "null", kNotBuilt, nullptr,
     "{}"},
    {"ec_transfer_params", kOfGeneration, kAny, Any(), "null", kNotBuilt, nullptr,
     "{}"},
    {"vllm_xargs", kOfGeneration, kAny, Any(), "null", kNotBuilt, nullptr, "{}"},
    {"stop_regex", kOfGeneration, kAny, Any(), "null", kNotBuilt},
    {"lora_path", kOfGeneration, kAny, Any(), "null", kNotBuilt},
    {"lora", kOfGeneration, kAny, Any(), "null", kNotBuilt},
    {"session_params", kOfGeneration, kAny, Any(), "null", kNotBuilt},
    {"custom_logit_processor", kOfGeneration, kAny, Any(), "null", kNotBuilt},
    {"n_keep", kOfGeneration, kInt, Any(), "null", kNotBuilt},
    {"n_probs", kOfGeneration, kInt, Any(), "null", kNotBuilt},
    {"samplers", kOfGeneration, kAny, Any(), "null", kNotBuilt},
    {"response_fields", kOfGeneration, kAny, Any(), "null", kNotBuilt},
    {"t_max_predict_ms", kOfGeneration, kNumber, Any(), "null", kNotBuilt},
    {"mirostat", kOfGeneration, kInt, Any(), "null", kNotBuilt},
    // Parameters of mirostat: without effect while it is neutral.
    {"mirostat_tau", kOfGeneration, kNumber, Any(), "null", kNoEffect},
    {"mirostat_eta", kOfGeneration, kNumber, Any(), "null", kNoEffect},
    {"messages", kOfEmbeddings, kAny, Any(), "null", kNotBuilt},
};

const RequestField* FindField(FieldScope scope, const std::string& name) {
  for (const RequestField& field : kFields) {
    if ((field.scope & scope) != 0 && name == field.name) return &field;
  }
  return nullptr;
}

// False, zero, "" and [] ask for nothing; {} may be a schema.
bool IsNeutral(const RequestField& field, const Json& value) {
  if (field.neutral != nullptr && value == Json::parse(field.neutral)) {
    return true;
  }
  if (value.is_boolean()) return !value.get<bool>();
  if (value.is_number()) return value == 0;
  return (value.is_string() && value.get_ref<const std::string&>().empty()) ||
         (value.is_array() && value.empty());
}

absl::Status ReadField(const RequestField& field, const Json& value,
                       ApiRequest& request) {
  QUIRE_RETURN_IF_ERROR(CheckFieldValue(field, value));
  switch (field.treatment) {
    case kUsed: {
      absl::Status status = field.set(value, request);
      if (status.ok() || !status.message().empty()) return status;
      return ParameterError(
          field.name, absl::StrCat("'", field.name, "' ", field.range.error));
    }
    case kNoEffect:
      return absl::OkStatus();
    case kNotBuilt:
      if (IsNeutral(field, value)) return absl::OkStatus();
      return ParameterError(field.name,
                            absl::StrCat("'", field.name, "' is not supported"),
                            "unsupported_parameter");
  }
  return absl::OkStatus();
}

}  // namespace

absl::Span<const RequestField> RequestFields() { return kFields; }

absl::Status ReadRequestFields(FieldScope scope, const Json& body,
                               ApiRequest* request) {
  if (!body.is_object()) {
    return absl::InvalidArgumentError("the body must be a JSON object");
  }
  // Tools that may not be called are without effect.
  const auto tool_choice = body.find("tool_choice");
  const bool calls_no_tool =
      tool_choice != body.end() && *tool_choice == "none";
  for (const auto& [name, value] : body.items()) {
    if (name == "tools" && calls_no_tool) continue;
    const RequestField* const field = FindField(scope, name);
    if (field == nullptr) {
      request->ignored_fields.push_back(name);
    } else if (!value.is_null()) {
      QUIRE_RETURN_IF_ERROR(ReadField(*field, value, *request));
    }
  }
  for (const RequestField& field : kFields) {
    if ((field.scope & scope) == 0 || field.by_default != nullptr) continue;
    const auto found = body.find(field.name);
    if (found == body.end() || found->is_null()) {
      return ParameterError(field.name,
                            absl::StrCat("'", field.name, "' is missing"));
    }
  }
  return absl::OkStatus();
}

}  // namespace quire
