#include "server/embeddings_api.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/base/status.h"
#include "server/api_error.h"
#include "server/openai_api.h"

namespace quire {
namespace {

using Json = nlohmann::ordered_json;

constexpr size_t kMaxSaltBytes = 128;  // As for completions.

absl::Status TypeError(const std::string& name, absl::string_view expected) {
  return ParameterError(name, absl::StrCat("'", name, "' must be ", expected));
}

absl::StatusOr<int32_t> IntIn(const std::string& name, const Json& value,
                              int64_t min, int64_t max) {
  // Unsigned in nlohmann's terms if above int64.
  const bool is_int64 =
      value.is_number_integer() &&
      (!value.is_number_unsigned() ||
       value.get<uint64_t>() <=
           static_cast<uint64_t>(std::numeric_limits<int64_t>::max()));
  if (!is_int64) return TypeError(name, "an integer");
  const int64_t number = value.get<int64_t>();
  if (number >= min && number <= max) return static_cast<int32_t>(number);
  return ParameterError(name, absl::StrCat("'", name, "' must be between ", min,
                                           " and ", max, ", not ", number));
}

// One of `allowed`.
absl::Status CheckWord(const std::string& name, const Json& value,
                       absl::Span<const absl::string_view> allowed) {
  if (value.is_string()) {
    const std::string& word = value.get_ref<const std::string&>();
    for (absl::string_view each : allowed) {
      if (word == each) return absl::OkStatus();
    }
  }
  std::string list;
  for (absl::string_view each : allowed) {
    absl::StrAppend(&list, list.empty() ? "'" : " or '", each, "'");
  }
  return TypeError(name, list);
}

absl::StatusOr<std::vector<int32_t>> TokenIds(const Json& value) {
  std::vector<int32_t> ids;
  ids.reserve(value.size());
  for (const Json& id : value) {
    QUIRE_ASSIGN_OR_RETURN(
        const int32_t number,
        IntIn("input", id, 0, std::numeric_limits<int32_t>::max()));
    ids.push_back(number);
  }
  return ids;
}

absl::Status SetInput(const Json& value, EmbeddingsRequest& request) {
  const absl::Status type_error =
      TypeError("input",
                "a string, a list of strings, a list of token ids or a list "
                "of lists of token ids");
  if (value.is_string()) {
    request.inputs.emplace_back(value.get<std::string>());
    return absl::OkStatus();
  }
  if (!value.is_array()) return type_error;
  if (value.empty()) {
    return ParameterError("input", "'input' must not be empty");
  }
  if (value.front().is_number()) {
    QUIRE_ASSIGN_OR_RETURN(std::vector<int32_t> ids, TokenIds(value));
    request.inputs.emplace_back(std::move(ids));
    return absl::OkStatus();
  }
  if (value.size() > kMaxEmbeddingInputs) {
    return ParameterError(
        "input",
        absl::StrCat("'input' has ", value.size(),
                     " elements and may have at most ", kMaxEmbeddingInputs));
  }
  for (const Json& input : value) {
    if (input.is_string()) {
      request.inputs.emplace_back(input.get<std::string>());
    } else if (input.is_array()) {
      QUIRE_ASSIGN_OR_RETURN(std::vector<int32_t> ids, TokenIds(input));
      request.inputs.emplace_back(std::move(ids));
    } else {
      return type_error;
    }
  }
  return absl::OkStatus();
}

absl::Status SetBool(const std::string& name, const Json& value, bool* out) {
  if (!value.is_boolean()) return TypeError(name, "a boolean");
  *out = value.get<bool>();
  return absl::OkStatus();
}

absl::Status SetTruncation(const std::string& name, const Json& value,
                           EmbeddingsRequest& request) {
  QUIRE_ASSIGN_OR_RETURN(
      const int32_t count,
      IntIn(name, value, -1, std::numeric_limits<int32_t>::max()));
  if (count == 0) return TypeError(name, "-1 or at least 1");
  request.truncate_prompt_tokens = count;
  return absl::OkStatus();
}

absl::Status SetField(const std::string& name, const Json& value,
                      int hidden_size, EmbeddingsRequest& request) {
  if (name == "model") {
    if (!value.is_string()) return TypeError(name, "a string");
    request.model = value.get<std::string>();
  } else if (name == "input") {
    return SetInput(value, request);
  } else if (name == "encoding_format") {
    QUIRE_RETURN_IF_ERROR(CheckWord(name, value, {"float", "base64"}));
    request.is_base64 = value == "base64";
  } else if (name == "dimensions") {
    QUIRE_ASSIGN_OR_RETURN(request.dimensions,
                           IntIn(name, value, 1, hidden_size));
  } else if (name == "normalize" || name == "use_activation") {
    bool normalize = false;
    QUIRE_RETURN_IF_ERROR(SetBool(name, value, &normalize));
    request.normalize = normalize;
  } else if (name == "add_special_tokens") {
    return SetBool(name, value, &request.add_special_tokens);
  } else if (name == "truncate_prompt_tokens") {
    return SetTruncation(name, value, request);
  } else if (name == "truncation_side") {
    QUIRE_RETURN_IF_ERROR(CheckWord(name, value, {"left", "right"}));
    request.truncates_left = value == "left";
  } else if (name == "cache_salt") {
    if (!value.is_string()) return TypeError(name, "a string");
    request.cache_salt = value.get<std::string>();
    if (request.cache_salt.empty() ||
        request.cache_salt.size() > kMaxSaltBytes) {
      return TypeError(name,
                       absl::StrCat("of 1 to ", kMaxSaltBytes, " characters"));
    }
  } else if (name == "embed_dtype") {  // Of base64.
    return CheckWord(name, value, {"float32"});
  } else if (name == "endianness") {
    return CheckWord(name, value, {"native", "little"});
  } else if (name == "user") {
    // Accepted: cannot change the answer.
    if (!value.is_string()) return TypeError(name, "a string");
  } else if (name == "request_id") {
    if (!value.is_string() ||
        !IsHarmlessRequestId(value.get_ref<const std::string&>())) {
      return TypeError(name, "1 to 64 letters, digits, '.', '_' or '-'");
    }
    request.request_id = value.get<std::string>();
  } else if (name == "priority") {
    QUIRE_ASSIGN_OR_RETURN(
        request.priority,
        IntIn(name, value, -std::numeric_limits<int32_t>::max(),
              std::numeric_limits<int32_t>::max()));
  } else if (name == "timeout") {
    if (!value.is_number() || !(value.get<double>() > 0) ||
        !(value.get<double>() <= kMaxTimeoutSeconds)) {
      return TypeError(name, "a number of seconds above 0, at most a year");
    }
    request.timeout = value.get<double>();
  } else if (name == "messages") {
    return ParameterError(name, "'messages' is not supported: use 'input'",
                          "unsupported_parameter");
  } else {
    request.ignored_fields.push_back(name);
  }
  return absl::OkStatus();
}

// Keeps max_tokens of `ids`, which hold `content` between what the
// post-processor adds: that stays, as in the tokenizers library.
absl::Status Truncate(size_t max_tokens, const std::vector<int32_t>& content,
                      bool left, std::vector<int32_t>* ids) {
  const auto begin =
      std::search(ids->begin(), ids->end(), content.begin(), content.end());
  const size_t num_special = ids->size() - content.size();
  if (begin == ids->end() && !content.empty()) {
    return ParameterError("truncate_prompt_tokens",
                          "this model's inputs cannot be truncated");
  }
  if (num_special >= max_tokens) {
    return ParameterError(
        "truncate_prompt_tokens",
        absl::StrCat("'truncate_prompt_tokens' is ", max_tokens,
                     ", but the special tokens of an input are ", num_special));
  }
  const size_t num_cut = ids->size() - max_tokens;
  const auto first_cut = left ? begin : begin + (content.size() - num_cut);
  ids->erase(first_cut, first_cut + num_cut);
  return absl::OkStatus();
}

// "input" or "input[3]".
std::string InputName(const EmbeddingsRequest& request, size_t index) {
  return request.inputs.size() == 1 ? "the input"
                                    : absl::StrCat("input[", index, "]");
}

absl::StatusOr<std::vector<int32_t>> EncodeInput(
    const EmbeddingsRequest& request, size_t index, size_t max_tokens,
    const Tokenizer& tokenizer, const PromptLimits& limits) {
  const auto& input = request.inputs[index];
  const bool truncates = request.truncate_prompt_tokens.has_value();
  if (const auto* given = std::get_if<std::vector<int32_t>>(&input)) {
    std::vector<int32_t> ids = *given;
    if (truncates && ids.size() > max_tokens) {
      QUIRE_RETURN_IF_ERROR(
          Truncate(max_tokens, *given, request.truncates_left, &ids));
    }
    return ids;
  }
  const std::string& text = std::get<std::string>(input);
  if (text.empty()) {
    return ParameterError("input",
                          absl::StrCat(InputName(request, index), " is empty"));
  }
  if (!truncates && text.size() > static_cast<size_t>(limits.max_text_bytes)) {
    return ParameterError(
        "input",
        absl::StrCat("This model's maximum context length is ",
                     limits.max_model_len, " tokens. However, ",
                     InputName(request, index), " has ", text.size(),
                     " bytes, which cannot fit."),
        "context_length_exceeded");
  }
  EncodeOptions options;
  options.add_special_tokens = request.add_special_tokens;
  // As for completions: the caller's own text, in which an instruction model's
  // control tokens count.
  options.parse_special_tokens = true;
  QUIRE_ASSIGN_OR_RETURN(std::vector<int32_t> ids,
                         tokenizer.Encode(text, options));
  if (truncates && ids.size() > max_tokens) {
    options.add_special_tokens = false;
    QUIRE_ASSIGN_OR_RETURN(const std::vector<int32_t> content,
                           tokenizer.Encode(text, options));
    QUIRE_RETURN_IF_ERROR(
        Truncate(max_tokens, content, request.truncates_left, &ids));
  }
  return ids;
}

}  // namespace

absl::StatusOr<EmbeddingsRequest> ParseEmbeddingsRequest(const Json& body,
                                                         int hidden_size) {
  if (!body.is_object()) {
    return absl::InvalidArgumentError("the body must be a JSON object");
  }
  EmbeddingsRequest request;
  for (const auto& [name, value] : body.items()) {
    if (value.is_null()) continue;
    QUIRE_RETURN_IF_ERROR(SetField(name, value, hidden_size, request));
  }
  if (request.inputs.empty()) {
    return ParameterError("input", "'input' is missing");
  }
  return request;
}

absl::StatusOr<std::vector<std::vector<int32_t>>> EncodeInputs(
    const EmbeddingsRequest& request, const Tokenizer& tokenizer,
    const PromptLimits& limits) {
  const size_t limit = static_cast<size_t>(limits.max_model_len);
  size_t max_tokens = limit;
  if (request.truncate_prompt_tokens.value_or(-1) > 0) {
    max_tokens = std::min<size_t>(*request.truncate_prompt_tokens, limit);
  }
  std::vector<std::vector<int32_t>> inputs;
  inputs.reserve(request.inputs.size());
  for (size_t i = 0; i < request.inputs.size(); ++i) {
    QUIRE_ASSIGN_OR_RETURN(
        std::vector<int32_t> ids,
        EncodeInput(request, i, max_tokens, tokenizer, limits));
    if (ids.empty()) {
      return ParameterError("input",
                            absl::StrCat(InputName(request, i), " is empty"));
    }
    if (ids.size() > limit) {
      return ParameterError(
          "input",
          absl::StrCat("This model's maximum context length is ", limit,
                       " tokens. However, ", InputName(request, i), " has ",
                       ids.size(), " tokens."),
          "context_length_exceeded");
    }
    for (const int32_t id : ids) {
      if (id < 0 || id >= limits.vocab_size) {
        return ParameterError(
            "input", absl::StrCat(InputName(request, i), " has token id ", id,
                                  ", which is not in the vocabulary of ",
                                  limits.vocab_size, " tokens"));
      }
    }
    inputs.push_back(std::move(ids));
  }
  return inputs;
}

}  // namespace quire
