#include "benchmarks/serving/prompt_codec.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "benchmarks/serving/completion_api.h"
#include "engine/base/status.h"
#include "nlohmann/json.hpp"
#include "server/json_text.h"

namespace quire {
namespace {

using Json = nlohmann::ordered_json;

class LocalCodec : public PromptCodec {
 public:
  explicit LocalCodec(const Tokenizer* tokenizer) : tokenizer_(tokenizer) {
    for (int32_t id = 0; id < tokenizer->vocab_size(); ++id) {
      if (tokenizer->IsSpecial(id) || tokenizer->TokenBytes(id).empty()) {
        continue;
      }
      plain_ids_.push_back(id);
    }
  }
  absl::StatusOr<std::vector<int32_t>> Encode(absl::string_view text) override {
    // Not what a user sent: a data set may hold rendered templates.
    EncodeOptions options;
    options.parse_special_tokens = true;
    return tokenizer_->Encode(text, options);
  }
  absl::Span<const int32_t> PlainIds() const override { return plain_ids_; }
  std::string Decode(absl::Span<const int32_t> ids) override {
    return tokenizer_->Decode(ids);
  }

 private:
  const Tokenizer* const tokenizer_;
  std::vector<int32_t> plain_ids_;
};

class ServerCodec : public PromptCodec {
 public:
  ServerCodec(LoadClient* client, std::string model,
              std::vector<std::pair<std::string, std::string>> headers,
              const std::atomic<bool>* is_cancelled)
      : client_(client),
        model_(std::move(model)),
        headers_(std::move(headers)),
        is_cancelled_(is_cancelled) {}

  absl::StatusOr<std::vector<int32_t>> Encode(absl::string_view text) override {
    HttpMessage message;
    message.path = "/tokenize";
    message.headers = headers_;
    Json body = {{"prompt", std::string(text)},
                 {"content", std::string(text)},
                 {"add_special", true}};
    if (!model_.empty()) body["model"] = model_;
    message.body = DumpJson(body);
    const ResponseEnd end =
        client_->Fetch(message, /*timeout_seconds=*/30, is_cancelled_);
    constexpr char kWhere[] = "/tokenize, asked for the prompts' tokens: ";
    if (!end.status.ok()) {
      return absl::Status(end.status.code(),
                          absl::StrCat(kWhere, end.status.message()));
    }
    if (end.http_status != 200) {
      return absl::UnknownError(
          absl::StrCat(kWhere, ErrorText(end.http_status, end.body)));
    }
    JsonLimits limits;
    limits.max_nodes = 1 << 24;
    QUIRE_ASSIGN_OR_RETURN(const Json answer, ParseJson(end.body, limits));
    const auto tokens = answer.find("tokens");
    if (!answer.is_object() || tokens == answer.end() || !tokens->is_array()) {
      return absl::DataLossError("the answer of /tokenize has no \"tokens\"");
    }
    std::vector<int32_t> ids;
    for (const Json& id : *tokens) {
      if (!id.is_number_integer()) {
        return absl::DataLossError("/tokenize: a token is not an integer");
      }
      ids.push_back(id.get<int32_t>());
    }
    return ids;
  }
  std::string Decode(absl::Span<const int32_t>) override { return ""; }

 private:
  LoadClient* const client_;
  const std::string model_;
  const std::vector<std::pair<std::string, std::string>> headers_;
  const std::atomic<bool>* const is_cancelled_;
};

}  // namespace

std::unique_ptr<PromptCodec> NewLocalCodec(const Tokenizer* tokenizer) {
  return std::make_unique<LocalCodec>(tokenizer);
}

absl::StatusOr<std::unique_ptr<PromptCodec>> NewServerCodec(
    LoadClient* client, const std::string& model,
    std::vector<std::pair<std::string, std::string>> headers,
    const std::atomic<bool>* is_cancelled) {
  auto codec = std::make_unique<ServerCodec>(client, model, std::move(headers),
                                             is_cancelled);
  QUIRE_RETURN_IF_ERROR(codec->Encode("one two").status());
  return codec;
}

}  // namespace quire
