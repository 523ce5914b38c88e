#include "server/embeddings_api.h"

#include <algorithm>
#include <optional>
#include <string>
#include <utility>
#include <variant>

#include "absl/strings/str_cat.h"
#include "engine/base/status.h"
#include "server/api_error.h"

namespace quire {
namespace {

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
std::string InputName(const ApiRequest& request, size_t index) {
  return request.prompts.size() == 1 ? "the input"
                                     : absl::StrCat("input[", index, "]");
}

absl::StatusOr<std::vector<int32_t>> EncodeInput(const ApiRequest& request,
                                                 size_t index,
                                                 size_t max_tokens,
                                                 const Tokenizer& tokenizer,
                                                 const PromptLimits& limits) {
  const auto& input = request.prompts[index];
  const bool truncates = request.truncate_prompt_tokens.has_value();
  if (const auto* given = std::get_if<std::vector<int32_t>>(&input)) {
    std::vector<int32_t> ids = *given;
    if (truncates && ids.size() > max_tokens) {
      QUIRE_RETURN_IF_ERROR(
          Truncate(max_tokens, *given, !request.truncates_right, &ids));
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
        Truncate(max_tokens, content, !request.truncates_right, &ids));
  }
  return ids;
}

}  // namespace

absl::StatusOr<std::vector<std::vector<int32_t>>> EncodeInputs(
    const ApiRequest& request, const Tokenizer& tokenizer,
    const PromptLimits& limits) {
  const size_t limit = static_cast<size_t>(limits.max_model_len);
  size_t max_tokens = limit;
  if (request.truncate_prompt_tokens.value_or(-1) > 0) {
    max_tokens = std::min<size_t>(*request.truncate_prompt_tokens, limit);
  }
  std::vector<std::vector<int32_t>> inputs;
  inputs.reserve(request.prompts.size());
  for (size_t i = 0; i < request.prompts.size(); ++i) {
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
