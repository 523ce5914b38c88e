#include "server/prompt.h"

#include <algorithm>
#include <optional>
#include <string>
#include <utility>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "engine/base/status.h"
#include "server/api_error.h"

namespace quire {
namespace {

using Json = nlohmann::ordered_json;

// Variables that a request may not set through chat_template_kwargs.
constexpr const char* kReservedNames[] = {"messages",
                                          "tools",
                                          "documents",
                                          "add_generation_prompt",
                                          "chat_template",
                                          "tokenize",
                                          "continue_final_message"};
constexpr const char* kSpecialTokenNames[] = {"bos_token", "eos_token",
                                              "unk_token", "pad_token"};

// Where `part` last occurs in `text`, or npos. Takes time linear in both,
// unlike rfind (Knuth, Morris and Pratt 1977, run backwards): both may be
// megabytes that a client chose.
size_t FindLast(absl::string_view text, absl::string_view part) {
  const size_t size = part.size();
  if (size == 0) return text.size();
  const auto from_end = [](absl::string_view s, size_t i) {
    return s[s.size() - 1 - i];
  };
  // borders[i]: the longest proper border of the last i + 1 bytes of `part`.
  std::vector<size_t> borders(size, 0);
  for (size_t i = 1, matched = 0; i < size; ++i) {
    while (matched > 0 && from_end(part, i) != from_end(part, matched)) {
      matched = borders[matched - 1];
    }
    if (from_end(part, i) == from_end(part, matched)) ++matched;
    borders[i] = matched;
  }
  for (size_t i = 0, matched = 0; i < text.size(); ++i) {
    while (matched > 0 && from_end(text, i) != from_end(part, matched)) {
      matched = borders[matched - 1];
    }
    if (from_end(text, i) == from_end(part, matched)) ++matched;
    if (matched == size) return text.size() - 1 - i;
  }
  return absl::string_view::npos;
}

// Cuts what the template wrote after the final message, so that the model goes
// on with it.
void CutAfterFinalMessage(const std::string& content,
                          std::vector<TextSegment>* segments) {
  const std::string text = ConcatenateSegments(*segments);
  const absl::string_view stripped = absl::StripAsciiWhitespace(content);
  const size_t at = FindLast(text, stripped);
  if (at == absl::string_view::npos) return;
  size_t keep = at + stripped.size();
  for (size_t i = 0; i < segments->size(); ++i) {
    std::string& segment = (*segments)[i].text;
    if (segment.size() >= keep) {
      segment.resize(keep);
      segments->resize(i + 1);
      return;
    }
    keep -= segment.size();
  }
}

}  // namespace

absl::Status CheckTokenizedLength(absl::string_view parameter, size_t num_bytes,
                                  const PromptLimits& limits) {
  const size_t max_bytes = std::max<size_t>(limits.max_text_bytes, 2 << 20);
  if (num_bytes <= max_bytes) return absl::OkStatus();
  return ParameterError(
      parameter,
      absl::StrCat("a text of ", num_bytes, " bytes is more than the ",
                   max_bytes, " that are tokenized at once"));
}

namespace {

absl::Status CheckTextLength(const ApiRequest& request, size_t num_bytes,
                             const PromptLimits& limits) {
  if (num_bytes <= static_cast<size_t>(limits.max_text_bytes)) {
    return absl::OkStatus();
  }
  // To be cut only when it is tokens.
  if (request.truncate_prompt_tokens.has_value()) {
    return CheckTokenizedLength(
        request.kind == ApiKind::kChat ? "messages" : "prompt", num_bytes,
        limits);
  }
  return ParameterError(
      request.kind == ApiKind::kChat ? "messages" : "prompt",
      absl::StrCat("This model's maximum context length is ",
                   limits.max_model_len, " tokens. However, your prompt has ",
                   num_bytes, " bytes, which cannot fit."),
      "context_length_exceeded");
}

// Tokens to keep of a prompt, if it is to be cut.
std::optional<size_t> NumKeptTokens(const ApiRequest& request,
                                    int32_t max_model_len) {
  if (!request.truncate_prompt_tokens.has_value()) return std::nullopt;
  if (*request.truncate_prompt_tokens > 0) {
    return *request.truncate_prompt_tokens;
  }
  return std::max(max_model_len - std::max(request.sampling.max_tokens, 1), 1);
}

void Truncate(bool keeps_first, size_t num_kept, std::vector<int32_t>* ids) {
  if (ids->size() <= num_kept) return;
  if (keeps_first) {
    ids->resize(num_kept);
  } else {
    ids->erase(ids->begin(), ids->end() - num_kept);
  }
}

// The tokens of a text, cut to `num_kept`. What the tokenizer adds around a
// text (a begin token) is kept, as the Hugging Face tokenizers do.
absl::StatusOr<std::vector<int32_t>> EncodeTruncated(const ApiRequest& request,
                                                     const Tokenizer& tokenizer,
                                                     const std::string& text,
                                                     EncodeOptions options,
                                                     size_t num_kept) {
  QUIRE_ASSIGN_OR_RETURN(std::vector<int32_t> ids,
                         tokenizer.Encode(text, options));
  if (ids.size() <= num_kept) return ids;
  options.add_special_tokens = false;
  QUIRE_ASSIGN_OR_RETURN(std::vector<int32_t> plain,
                         tokenizer.Encode(text, options));
  const auto found =
      std::search(ids.begin(), ids.end(), plain.begin(), plain.end());
  const size_t num_added = ids.size() - std::min(plain.size(), ids.size());
  if (found == ids.end() || num_added >= num_kept) {
    Truncate(request.truncates_right, num_kept, &ids);
    return ids;
  }
  const std::vector<int32_t> before(ids.begin(), found);
  const std::vector<int32_t> after(found + plain.size(), ids.end());
  Truncate(request.truncates_right, num_kept - num_added, &plain);
  ids = before;
  ids.insert(ids.end(), plain.begin(), plain.end());
  ids.insert(ids.end(), after.begin(), after.end());
  return ids;
}

absl::Status CheckLength(const ApiRequest& request, size_t num_tokens,
                         int32_t max_model_len) {
  const char* parameter =
      request.kind == ApiKind::kChat ? "messages" : "prompt";
  if (num_tokens == 0) {
    return ParameterError(parameter, "the prompt is empty");
  }
  // At least one token must be generated.
  if (num_tokens < static_cast<size_t>(max_model_len)) return absl::OkStatus();
  return ParameterError(
      parameter,
      absl::StrCat("This model's maximum context length is ", max_model_len,
                   " tokens. However, your prompt has ", num_tokens,
                   " tokens, and at least one must be left to generate."),
      "context_length_exceeded");
}

}  // namespace

PromptLimits MakePromptLimits(const Tokenizer& tokenizer, int32_t max_model_len,
                              int32_t vocab_size) {
  size_t longest = 1;
  for (int32_t id = 0; id < tokenizer.vocab_size(); ++id) {
    longest = std::max(longest, tokenizer.TokenBytes(id).size());
  }
  PromptLimits limits;
  limits.max_model_len = max_model_len;
  limits.vocab_size = vocab_size;
  // Twice: normalization may shorten a text before it becomes tokens.
  limits.max_text_bytes = 2 * static_cast<int64_t>(longest) * max_model_len;
  return limits;
}

PromptLimits WithMaxModelLen(const PromptLimits& limits,
                             int32_t max_model_len) {
  PromptLimits result = limits;
  result.max_model_len = max_model_len;
  result.max_text_bytes =
      limits.max_text_bytes / limits.max_model_len * max_model_len;
  return result;
}

absl::StatusOr<std::vector<int32_t>> EncodeChat(
    const ApiRequest& request, const Tokenizer& tokenizer,
    const ChatTemplate* chat_template, const PromptLimits& limits) {
  if (chat_template == nullptr) {
    return ParameterError("messages",
                          "the model has no chat template; use /v1/completions "
                          "or start the server with --chat-template");
  }
  Json context = {{"messages", request.messages},
                  {"tools", nullptr},
                  {"documents", request.documents},
                  {"add_generation_prompt", request.add_generation_prompt}};
  std::vector<std::string> trusted_names;
  for (const char* name : kSpecialTokenNames) {
    context[name] = tokenizer.SpecialTokenText(name);
    trusted_names.push_back(name);
  }
  if (request.chat_template_kwargs.is_object()) {
    for (const auto& [name, value] : request.chat_template_kwargs.items()) {
      if (context.contains(name) ||
          std::find(std::begin(kReservedNames), std::end(kReservedNames),
                    name) != std::end(kReservedNames)) {
        return ParameterError(
            "chat_template_kwargs",
            absl::StrCat("'chat_template_kwargs' may not set '", name, "'"));
      }
      context[name] = value;
    }
  }
  auto rendered = chat_template->Render(context, trusted_names);
  if (!rendered.ok()) {
    return ParameterError(
        "messages", absl::StrCat("the chat template refused the request: ",
                                 rendered.status().message()));
  }
  std::vector<TextSegment>& segments = *rendered;
  if (request.continue_final_message) {
    CutAfterFinalMessage(request.messages.back()["content"].get<std::string>(),
                         &segments);
  }
  std::vector<EncodeSegment> pieces;
  pieces.reserve(segments.size());
  size_t num_bytes = 0;
  for (const TextSegment& segment : segments) {
    pieces.push_back({segment.text, segment.is_control});
    num_bytes += segment.text.size();
  }
  QUIRE_RETURN_IF_ERROR(CheckTextLength(request, num_bytes, limits));
  return tokenizer.EncodeSegments(pieces, request.add_special_tokens);
}

absl::StatusOr<std::vector<std::vector<int32_t>>> EncodePrompts(
    const ApiRequest& request, const Tokenizer& tokenizer,
    const ChatTemplate* chat_template, const PromptLimits& limits) {
  const std::optional<size_t> num_kept =
      NumKeptTokens(request, limits.max_model_len);
  std::vector<std::vector<int32_t>> prompts;
  if (request.kind == ApiKind::kChat) {
    QUIRE_ASSIGN_OR_RETURN(
        std::vector<int32_t> ids,
        EncodeChat(request, tokenizer, chat_template, limits));
    prompts.push_back(std::move(ids));
  }
  for (const auto& prompt : request.prompts) {
    if (const auto* ids = std::get_if<std::vector<int32_t>>(&prompt)) {
      prompts.push_back(*ids);
      continue;
    }
    const std::string& text = std::get<std::string>(prompt);
    // Even if the tokenizer would put a begin token in its place.
    if (text.empty()) {
      return ParameterError("prompt", "the prompt is empty");
    }
    QUIRE_RETURN_IF_ERROR(CheckTextLength(request, text.size(), limits));
    EncodeOptions options;
    options.add_special_tokens = request.add_special_tokens;
    // A completion's prompt is the caller's own: control tokens count in it.
    options.parse_special_tokens = true;
    QUIRE_ASSIGN_OR_RETURN(
        std::vector<int32_t> ids,
        num_kept.has_value()
            ? EncodeTruncated(request, tokenizer, text, options, *num_kept)
            : tokenizer.Encode(text, options));
    prompts.push_back(std::move(ids));
  }
  for (std::vector<int32_t>& ids : prompts) {
    if (num_kept.has_value()) {
      Truncate(request.truncates_right, *num_kept, &ids);
    }
    QUIRE_RETURN_IF_ERROR(
        CheckLength(request, ids.size(), limits.max_model_len));
    for (const int32_t id : ids) {
      if (id < 0 || id >= limits.vocab_size) {
        return ParameterError(
            "prompt",
            absl::StrCat("token id ", id, " is not in the vocabulary of ",
                         limits.vocab_size, " tokens"));
      }
    }
  }
  return prompts;
}

absl::Status CheckSamplingIds(const SamplingParams& sampling,
                              int32_t vocab_size) {
  const auto check = [&](const char* parameter, int32_t id) -> absl::Status {
    if (id >= 0 && id < vocab_size) return absl::OkStatus();
    return ParameterError(parameter,
                          absl::StrCat("'", parameter, "' names token id ", id,
                                       ", which is not in the vocabulary of ",
                                       vocab_size, " tokens"));
  };
  for (const auto& [id, bias] : sampling.logit_bias) {
    QUIRE_RETURN_IF_ERROR(check("logit_bias", id));
  }
  for (const int32_t id : sampling.allowed_token_ids) {
    QUIRE_RETURN_IF_ERROR(check("allowed_token_ids", id));
  }
  for (const int32_t id : sampling.stop_token_ids) {
    QUIRE_RETURN_IF_ERROR(check("stop_token_ids", id));
  }
  return absl::OkStatus();
}

absl::Status CheckSomeTokenIsAllowed(const SamplingParams& sampling,
                                     absl::Span<const int32_t> eos_token_ids) {
  if (sampling.allowed_token_ids.empty()) return absl::OkStatus();
  absl::flat_hash_set<int32_t> banned;
  if (sampling.min_tokens > 0) {
    banned.insert(sampling.stop_token_ids.begin(),
                  sampling.stop_token_ids.end());
    if (!sampling.ignore_eos) {
      banned.insert(eos_token_ids.begin(), eos_token_ids.end());
    }
  }
  if (sampling.bad_words != nullptr) {
    for (const std::vector<int32_t>& word : *sampling.bad_words) {
      if (word.size() == 1) banned.insert(word.front());
    }
  }
  for (const int32_t id : sampling.allowed_token_ids) {
    if (!banned.contains(id)) return absl::OkStatus();
  }
  return ParameterError(
      "allowed_token_ids",
      "'allowed_token_ids' leaves no token: each is forbidden by 'bad_words', "
      "or ends the text before 'min_tokens'");
}

}  // namespace quire
