#include "cli/chat.h"

#include <unistd.h>

#include <cstdio>
#include <iostream>
#include <memory>
#include <string>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "cli/exit_codes.h"
#include "cli/http_client.h"
#include "cli/serve.h"
#include "server/json_text.h"

namespace quire {
namespace {

using Json = nlohmann::ordered_json;

void AddSampling(const SamplingOptions& options, Json* body) {
  if (options.max_tokens > 0) (*body)["max_tokens"] = options.max_tokens;
  if (options.temperature >= 0) (*body)["temperature"] = options.temperature;
  if (options.top_p > 0) (*body)["top_p"] = options.top_p;
  if (options.top_k >= 0) (*body)["top_k"] = options.top_k;
  if (options.seed >= 0) (*body)["seed"] = options.seed;
}

// The text in a chunk of the stream; an error event ends the stream.
absl::StatusOr<std::string> DeltaText(absl::string_view data) {
  absl::StatusOr<Json> chunk = ParseJson(data);
  if (!chunk.ok()) return chunk.status();
  if (!chunk->is_object()) return absl::DataLossError("not an event");
  if (const auto error = chunk->find("error"); error != chunk->end()) {
    return absl::UnknownError(error->value("message", "unknown error"));
  }
  const auto choices = chunk->find("choices");
  if (choices == chunk->end() || !choices->is_array() || choices->empty()) {
    return std::string();
  }
  const Json& choice = choices->front();
  if (!choice.is_object() || !choice.contains("delta")) return std::string();
  const Json& delta = choice["delta"];
  const auto content = delta.find("content");
  if (content == delta.end() || !content->is_string()) return std::string();
  return content->get<std::string>();
}

// Streams the answer to `messages` and appends it to them.
absl::Status Answer(const HttpClient& client, const ChatOptions& options,
                    Json* messages) {
  Json body = {{"messages", *messages}, {"stream", true}};
  if (!options.served_model_name.empty()) {
    body["model"] = options.served_model_name;
  }
  AddSampling(options.sampling, &body);
  std::string answer;
  absl::Status event_status;
  const absl::Status status = client.PostStreaming(
      "/v1/chat/completions", DumpJson(body), [&](absl::string_view data) {
        absl::StatusOr<std::string> text = DeltaText(data);
        if (!text.ok()) {
          event_status = text.status();
          return false;
        }
        answer += *text;
        std::cout << *text << std::flush;
        return true;
      });
  if (!answer.empty() || (status.ok() && event_status.ok())) {
    std::cout << std::endl;
  }
  if (!status.ok()) return status;
  if (!event_status.ok()) return event_status;
  messages->push_back({{"role", "assistant"}, {"content", answer}});
  return absl::OkStatus();
}

// Drops the oldest message of the user and what follows it up to the next one,
// so that the rest fits the context. False if only the last is left.
bool DropOldestTurn(Json* messages) {
  const auto is_user = [&](size_t i) {
    return (*messages)[i]["role"] == "user";
  };
  size_t first = 0;
  while (first < messages->size() && !is_user(first)) ++first;
  size_t next = first + 1;
  while (next < messages->size() && !is_user(next)) ++next;
  if (next >= messages->size()) return false;
  messages->erase(messages->begin() + first, messages->begin() + next);
  return true;
}

// As Answer; a conversation that has outgrown the context loses its beginning.
absl::Status AnswerWithinContext(const HttpClient& client,
                                 const ChatOptions& options, Json* messages) {
  bool was_cut = false;
  for (;;) {
    const absl::Status status = Answer(client, options, messages);
    if (absl::IsInvalidArgument(status) &&
        absl::StrContains(status.message(), "maximum context length") &&
        DropOldestTurn(messages)) {
      was_cut = true;
      continue;
    }
    if (was_cut && status.ok()) {
      absl::FPrintF(stderr,
                    "quire: the conversation has outgrown the context; its "
                    "beginning is forgotten\n");
    }
    return status;
  }
}

int ExitCodeOf(const absl::Status& status) {
  if (absl::IsUnavailable(status) || absl::IsDeadlineExceeded(status) ||
      absl::IsFailedPrecondition(status)) {
    return kExitDevice;
  }
  return absl::IsInvalidArgument(status) ? kExitUsage : kExitEngine;
}

int Converse(const HttpClient& client, const ChatOptions& options) {
  const bool is_terminal = isatty(STDIN_FILENO);
  if (is_terminal) {
    std::cout << "Type a message; /new starts over, /exit or the end of input "
                 "leaves.\n";
  }
  const auto new_conversation = [&] {
    Json messages = Json::array();
    if (!options.system.empty()) {
      messages.push_back({{"role", "system"}, {"content", options.system}});
    }
    return messages;
  };
  Json messages = new_conversation();
  std::string line;
  int exit_code = kExitOk;
  for (;;) {
    if (is_terminal) std::cout << "> " << std::flush;
    if (!std::getline(std::cin, line)) break;
    const absl::string_view text = absl::StripAsciiWhitespace(line);
    if (text.empty()) continue;
    if (text == "/exit") break;
    if (text == "/new") {
      messages = new_conversation();
      continue;
    }
    messages.push_back({{"role", "user"}, {"content", std::string(text)}});
    const absl::Status status = AnswerWithinContext(client, options, &messages);
    if (!status.ok()) {
      absl::FPrintF(stderr, "quire: %s\n", status.message());
      messages.erase(messages.size() - 1);
      exit_code = ExitCodeOf(status);
      if (!is_terminal) break;
    } else {
      exit_code = kExitOk;
    }
  }
  return exit_code;
}

}  // namespace

int RunChat(const ChatOptions& options) {
  // A model in this process is served on a port of its own: one path for both.
  std::unique_ptr<RunningServer> server;
  std::string url = options.url;
  std::string api_key = options.api_key;
  if (url.empty()) {
    ServeOptions serve;
    serve.model = options.model;
    serve.port = 0;
    serve.enable_ui = false;
    serve.log_level = "warning";  // Requests are what the terminal shows.
    CommandError error;
    server = RunningServer::Start(
        serve, [] {}, &error);
    if (server == nullptr) {
      absl::FPrintF(stderr, "quire: %s\n", error.status.message());
      return error.exit_code;
    }
    url = absl::StrCat("http://127.0.0.1:", server->port());
  }
  const auto client = HttpClient::Create(url, api_key, options.ca_file);
  if (!client.ok()) {
    absl::FPrintF(stderr, "quire: %s\n", client.status().message());
    return kExitUsage;
  }
  return Converse(*client, options);
}

}  // namespace quire
