#include "benchmarks/serving/completion_api.h"

#include <algorithm>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "server/json_text.h"

namespace quire {
namespace {

using Json = nlohmann::ordered_json;

constexpr size_t kMaxDepth = 64;
constexpr char kEmbeddingPath[] = "/data/*/embedding";
// Of an HTML page: its styles may come before the words.
constexpr size_t kMaxPageBytes = 16 << 10;
constexpr size_t kMaxErrorBytes = 200;

// Picks the members of interest out of an event without building a tree: with
// thousands of streams this is most of what the client computes.
class ChunkReader : public nlohmann::json_sax<Json> {
 public:
  explicit ChunkReader(CompletionChunk* chunk) : chunk_(chunk) {}

  bool null() override { return Leave(); }
  bool boolean(bool) override { return Leave(); }
  bool number_integer(number_integer_t) override { return Leave(); }
  bool number_unsigned(number_unsigned_t value) override {
    if (path_ == "/usage/prompt_tokens") chunk_->prompt_tokens = value;
    if (path_ == "/usage/completion_tokens") chunk_->completion_tokens = value;
    return Measured(static_cast<double>(value));
  }
  bool number_float(number_float_t value, const string_t&) override {
    return Measured(value);
  }
  bool string(string_t& value) override {
    if (path_ == "/choices/*/text" || path_ == "/choices/*/delta/content" ||
        path_ == "/choices/*/delta/reasoning_content" ||
        path_ == "/choices/*/delta/reasoning" ||
        path_ == "/choices/*/message/content") {
      chunk_->text += value;
    } else if (path_ == "/choices/*/finish_reason") {
      chunk_->has_finish_reason = true;
    } else if (path_ == kEmbeddingPath) {
      ++chunk_->num_embeddings;  // In base64.
    } else if (path_ == "/error/message" || path_ == "/error") {
      chunk_->error = value.empty() ? "an error without a message" : value;
    } else if (path_ == "/object") {
      is_error_ = value == "error";
    } else if (path_ == "/message") {
      message_ = std::move(value);
    }
    return Leave();
  }
  bool binary(binary_t&) override { return false; }
  bool start_object(std::size_t) override {
    is_object_ |= open_.empty();
    if (path_ == "/choices/*") chunk_->has_choice = true;
    if (path_ == "/error" && chunk_->error.empty()) {
      chunk_->error = "an error without a message";
    }
    open_.push_back(path_.size());
    return open_.size() <= kMaxDepth;
  }
  bool start_array(std::size_t) override {
    if (path_ == kEmbeddingPath) ++chunk_->num_embeddings;
    open_.push_back(path_.size());
    path_ += "/*";
    return open_.size() <= kMaxDepth;
  }
  bool key(string_t& name) override {
    path_.resize(open_.back());
    // Unbounded names must not make unbounded copies.
    absl::StrAppend(&path_, "/", absl::string_view(name).substr(0, 64));
    return true;
  }
  bool end_object() override { return EndContainer(); }
  bool end_array() override { return EndContainer(); }
  bool parse_error(std::size_t, const std::string&,
                   const nlohmann::detail::exception&) override {
    return false;
  }

  bool is_object() const { return is_object_; }
  // Errors of the form {"object": "error", "message": ...}.
  void Finish() {
    if (is_error_ && chunk_->error.empty()) {
      chunk_->error =
          message_.empty() ? "an error without a message" : message_;
    }
  }

 private:
  // A value has ended: the path stays for the next element of an array, and the
  // next key replaces it in an object.
  bool Leave() { return true; }
  bool Measured(double value) {
    if (path_ == "/metrics/queue_time_ms") chunk_->queue_seconds = value * 1e-3;
    return Leave();
  }
  bool EndContainer() {
    path_.resize(open_.back());
    open_.pop_back();
    return true;
  }

  CompletionChunk* const chunk_;
  std::string path_;
  std::vector<size_t> open_;  // Lengths of the paths of open containers.
  bool is_object_ = false;
  bool is_error_ = false;
  std::string message_;
};

Json EmbeddingInput(const LoadPrompt& prompt) {
  const auto input = [](const LoadPrompt& one) {
    return one.token_ids.empty() ? Json(one.text) : Json(one.token_ids);
  };
  if (prompt.further_inputs.empty()) return input(prompt);
  Json list = Json::array({input(prompt)});
  for (const LoadPrompt& one : prompt.further_inputs) {
    list.push_back(input(one));
  }
  return list;
}

// The words of the beginning of an HTML page, without its tags, styles and
// scripts.
std::string HtmlText(absl::string_view page) {
  std::string text;
  while (!page.empty()) {
    const size_t tag = std::min(page.find('<'), page.size());
    absl::StrAppend(&text, page.substr(0, tag), " ");
    page.remove_prefix(tag);
    // Up to the end of the tag, or of what it encloses.
    size_t end = page.find('>');
    for (const char* hidden : {"style", "script"}) {
      if (!absl::StartsWithIgnoreCase(page, absl::StrCat("<", hidden)))
        continue;
      end = page.find(absl::StrCat("</", hidden));
      if (end != absl::string_view::npos) end = page.find('>', end);
    }
    if (end == absl::string_view::npos) break;
    page.remove_prefix(end + 1);
  }
  absl::RemoveExtraAsciiWhitespace(&text);
  return text;
}

bool IsHtml(absl::string_view body) {
  body = absl::StripLeadingAsciiWhitespace(body);
  return absl::StartsWithIgnoreCase(body, "<!doctype html") ||
         absl::StartsWithIgnoreCase(body, "<html");
}

}  // namespace

std::string CompletionBody(const CompletionParams& params,
                           const LoadPrompt& prompt) {
  Json body = Json::object();
  const std::string& model = prompt.model.empty() ? params.model : prompt.model;
  if (!model.empty()) body["model"] = model;
  if (params.api == CompletionApi::kEmbeddings) {
    body["input"] = EmbeddingInput(prompt);
    body["truncate_prompt_tokens"] = -1;
    for (const auto& [name, value] : params.extra.items()) body[name] = value;
    return DumpJson(body);
  }
  if (params.api == CompletionApi::kChat) {
    body["messages"] =
        Json::array({{{"role", "user"}, {"content", prompt.text}}});
    body["max_completion_tokens"] = prompt.output_len;
  } else {
    if (prompt.token_ids.empty()) {
      body["prompt"] = prompt.text;
    } else {
      body["prompt"] = prompt.token_ids;
    }
    body["max_tokens"] = prompt.output_len;
  }
  body["temperature"] = 0.0;
  body["stream"] = true;
  body["stream_options"] = {{"include_usage", true}};
  if (params.ignore_eos) body["ignore_eos"] = true;
  if (params.num_logprobs >= 0) {
    if (params.api == CompletionApi::kChat) {
      body["logprobs"] = true;
      body["top_logprobs"] = params.num_logprobs;
    } else {
      body["logprobs"] = params.num_logprobs;
    }
  }
  for (const auto& [name, value] : params.extra.items()) body[name] = value;
  return DumpJson(body);
}

absl::Status ReadCompletionChunk(absl::string_view data,
                                 CompletionChunk* chunk) {
  ChunkReader reader(chunk);
  const bool is_json = Json::sax_parse(data.begin(), data.end(), &reader);
  if (!is_json || !reader.is_object()) {
    return absl::DataLossError(absl::StrCat(
        "an event is not a JSON object: \"",
        absl::CHexEscape(data.substr(0, std::min<size_t>(data.size(), 60))),
        "\""));
  }
  reader.Finish();
  return absl::OkStatus();
}

std::string ErrorText(int http_status, absl::string_view body) {
  CompletionChunk chunk;
  if (ReadCompletionChunk(body, &chunk).ok() && !chunk.error.empty()) {
    return absl::StrCat("HTTP ", http_status, ": ",
                        absl::string_view(chunk.error).substr(0, 1000));
  }
  const std::string text = IsHtml(body)
                               ? HtmlText(body.substr(0, kMaxPageBytes))
                               : std::string(body.substr(0, kMaxErrorBytes));
  const absl::string_view start = absl::StripAsciiWhitespace(
      absl::string_view(text).substr(0, kMaxErrorBytes));
  if (start.empty()) return absl::StrCat("HTTP ", http_status);
  return absl::StrCat("HTTP ", http_status, ": ", absl::CHexEscape(start));
}

}  // namespace quire
