#include "cli/speculative_options.h"

#include <cmath>
#include <optional>
#include <string>

#include "absl/strings/str_cat.h"
#include "engine/base/status.h"
#include "engine/engine_options.h"
#include "nlohmann/json.hpp"

namespace quire {
namespace {

using Json = nlohmann::json;

// Lookups cost nothing, so that only verification limits them.
constexpr int kDefaultNgramTokens = 10;

template <typename... Parts>
absl::Status Error(const Parts&... parts) {
  return absl::InvalidArgumentError(
      absl::StrCat("--speculative-config: ", parts...));
}

absl::Status ReadInt(const std::string& key, const Json& value, int low,
                     int high, int* to) {
  if (!value.is_number_integer() || value < low || value > high) {
    return Error(key, " is ",
                 value.dump(-1, ' ', false, Json::error_handler_t::replace),
                 ", must be an integer in [", low, ", ", high, "]");
  }
  *to = value.get<int>();
  return absl::OkStatus();
}

absl::Status ReadNumber(const std::string& key, const Json& value, double low,
                        double high, float* to) {
  if (!value.is_number() || !(value.get<double>() >= low) ||
      !(value.get<double>() <= high)) {
    return Error(key, " is ",
                 value.dump(-1, ' ', false, Json::error_handler_t::replace),
                 ", must be a number in [", low, ", ", high, "]");
  }
  *to = value.get<float>();
  return absl::OkStatus();
}

absl::Status ReadString(const std::string& key, const Json& value,
                        std::string* to) {
  if (!value.is_string()) return Error(key, " must be a string");
  *to = value.get<std::string>();
  return absl::OkStatus();
}

absl::StatusOr<DraftMethod> ParseMethod(const std::string& name) {
  for (const DraftMethod method :
       {DraftMethod::kNgram, DraftMethod::kSuffix, DraftMethod::kDraftModel,
        DraftMethod::kEagle3, DraftMethod::kMtp}) {
    if (name == DraftMethodName(method)) return method;
  }
  return Error("method '", name,
               "' is not ngram, suffix, draft_model, eagle3 or mtp");
}

// "[ngram]" or "ngram", where vLLM takes a model's name; else a model.
DraftMethod MethodOfModel(const std::string& model) {
  if (model == "[ngram]" || model == "ngram") return DraftMethod::kNgram;
  if (model == "[suffix]" || model == "suffix") return DraftMethod::kSuffix;
  return DraftMethod::kDraftModel;
}

bool IsLookup(DraftMethod method) {
  return method == DraftMethod::kNgram || method == DraftMethod::kSuffix;
}

// "[mtp]": of that form a method's name is meant.
bool IsBracketed(const std::string& model) {
  return model.size() >= 2 && model.front() == '[' && model.back() == ']';
}

// OK if the model may be one.
absl::Status CheckModelName(const std::string& option,
                            const std::string& model) {
  if (!IsBracketed(model) || MethodOfModel(model) != DraftMethod::kDraftModel) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(absl::StrCat(
      option, " ", model,
      ": there are [ngram], [suffix], the directory or GGUF file of a draft "
      "model, and the directory of an EAGLE-3 head; a model's own layer drafts "
      "by --speculative-config '{\"method\": \"mtp\"}'"));
}

// What was given, beside the fields of the configuration itself.
struct Given {
  std::optional<DraftMethod> method;
  bool has_num_tokens = false;
  bool has_lookup_min = false;
  bool has_lookup_max = false;
};

absl::Status ReadField(const std::string& key, const Json& value,
                       SpeculativeConfig* config, Given* given) {
  constexpr int kMaxNgram = 64;
  if (key == "method") {
    std::string name;
    QUIRE_RETURN_IF_ERROR(ReadString(key, value, &name));
    QUIRE_ASSIGN_OR_RETURN(given->method, ParseMethod(name));
    return absl::OkStatus();
  }
  if (key == "model") return ReadString(key, value, &config->model);
  if (key == "num_speculative_tokens") {
    given->has_num_tokens = true;
    return ReadInt(key, value, 1, kMaxSpeculativeTokens,
                   &config->num_speculative_tokens);
  }
  if (key == "draft_tensor_parallel_size") {
    if (value == 1) return absl::OkStatus();
    return Error(key, " is ",
                 value.dump(-1, ' ', false, Json::error_handler_t::replace),
                 ", must be 1: what drafts runs in one process");
  }
  if (key == "prompt_lookup_min") {
    given->has_lookup_min = true;
    return ReadInt(key, value, 1, kMaxNgram, &config->prompt_lookup_min);
  }
  if (key == "prompt_lookup_max") {
    given->has_lookup_max = true;
    return ReadInt(key, value, 1, kMaxNgram, &config->prompt_lookup_max);
  }
  SuffixOptions& suffix = config->suffix;
  if (key == "suffix_decoding_max_tree_depth") {
    return ReadInt(key, value, 1, 1024, &suffix.max_tree_depth);
  }
  if (key == "suffix_decoding_max_cached_requests") {
    return ReadInt(key, value, 0, 1 << 30, &suffix.max_cached_requests);
  }
  if (key == "suffix_decoding_max_spec_factor") {
    return ReadNumber(key, value, 0, 1000, &suffix.max_spec_factor);
  }
  if (key == "suffix_decoding_min_token_prob") {
    return ReadNumber(key, value, 0, 1, &suffix.min_token_prob);
  }
  return Error("there is no field '", key, "'");
}

absl::Status ReadConfig(const std::string& text, SpeculativeConfig* config,
                        Given* given) {
  const Json json = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) return Error("'", text, "' is not a JSON object");
  for (const auto& [key, value] : json.items()) {
    QUIRE_RETURN_IF_ERROR(ReadField(key, value, config, given));
  }
  if (!given->method.has_value() && config->model.empty()) {
    return Error("neither method nor model is given");
  }
  QUIRE_RETURN_IF_ERROR(
      CheckModelName("--speculative-config: model", config->model));
  const DraftMethod of_model = MethodOfModel(config->model);
  if (!given->method.has_value()) {
    given->method = of_model;
  } else if (!config->model.empty() && of_model != *given->method &&
             of_model != DraftMethod::kDraftModel) {
    return Error("method ", DraftMethodName(*given->method),
                 " contradicts model '", config->model, "'");
  } else if (!config->model.empty() && of_model == DraftMethod::kDraftModel &&
             (IsLookup(*given->method) ||
              *given->method == DraftMethod::kMtp)) {
    return Error("method ", DraftMethodName(*given->method),
                 " takes no model, and '", config->model, "' is given",
                 *given->method == DraftMethod::kMtp
                     ? ": its layer is in the model that is served"
                     : "; draft_model and eagle3 take one");
  }
  return absl::OkStatus();
}

// As vLLM: one of the two stands for both.
absl::Status CompleteLookup(const Given& given, SpeculativeConfig* config) {
  if (given.has_lookup_min && !given.has_lookup_max) {
    config->prompt_lookup_max = config->prompt_lookup_min;
  } else if (given.has_lookup_max && !given.has_lookup_min) {
    config->prompt_lookup_min = config->prompt_lookup_max;
  }
  if (config->prompt_lookup_min > config->prompt_lookup_max) {
    return Error("prompt_lookup_min is ", config->prompt_lookup_min,
                 ", prompt_lookup_max is ", config->prompt_lookup_max);
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<SpeculativeConfig> MakeSpeculativeConfig(
    const SessionOptions& options) {
  SpeculativeConfig config;
  Given given;
  if (!options.speculative_config.empty()) {
    if (!options.speculative_model.empty()) {
      return absl::InvalidArgumentError(
          "--speculative-model and --speculative-config exclude each other");
    }
    QUIRE_RETURN_IF_ERROR(
        ReadConfig(options.speculative_config, &config, &given));
  } else if (!options.speculative_model.empty()) {
    config.model = options.speculative_model;
    QUIRE_RETURN_IF_ERROR(CheckModelName("--speculative-model", config.model));
    given.method = MethodOfModel(config.model);
  }
  if (!given.method.has_value()) {
    if (options.num_speculative_tokens > 0 && !options.enable_verify_link) {
      return absl::InvalidArgumentError(
          "--num-speculative-tokens needs --speculative-model, "
          "--speculative-config or --enable-verify-link");
    }
    if (options.num_speculative_tokens > 0) {
      config.num_speculative_tokens = options.num_speculative_tokens;
    }
    return config;
  }
  config.method = *given.method;
  if (options.num_speculative_tokens > 0) {
    if (given.has_num_tokens) {
      return absl::InvalidArgumentError(
          "--num-speculative-tokens and num_speculative_tokens of "
          "--speculative-config exclude each other");
    }
    given.has_num_tokens = true;
    config.num_speculative_tokens = options.num_speculative_tokens;
  }
  if (IsLookup(config.method)) config.model.clear();
  if (config.model.empty() && (config.method == DraftMethod::kDraftModel ||
                               config.method == DraftMethod::kEagle3)) {
    return Error("method ", DraftMethodName(config.method), " needs a model");
  }
  if (config.method == DraftMethod::kNgram && !given.has_num_tokens) {
    config.num_speculative_tokens = kDefaultNgramTokens;
  }
  if (config.method == DraftMethod::kSuffix && !given.has_num_tokens) {
    config.num_speculative_tokens =
        std::min(config.suffix.max_tree_depth, kMaxSpeculativeTokens);
  }
  QUIRE_RETURN_IF_ERROR(CompleteLookup(given, &config));
  return config;
}

}  // namespace quire
