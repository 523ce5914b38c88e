#include "cli/http_client.h"

#include <httplib.h>

#include <memory>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "server/json_text.h"

namespace quire {
namespace {

// What an error body says, or the start of it.
std::string ErrorMessage(int http_status, const std::string& body) {
  const auto json = ParseJson(body);
  if (json.ok() && json->is_object()) {
    const auto error = json->find("error");
    if (error != json->end() && error->is_object()) {
      const auto message = error->find("message");
      if (message != error->end() && message->is_string()) {
        return message->get<std::string>();
      }
    }
  }
  return absl::StrCat("HTTP status ", http_status, ": ", body.substr(0, 200));
}

absl::Status TransportError(const std::string& origin, httplib::Error error) {
  std::string what = httplib::to_string(error);
  if (error == httplib::Error::Connection) what = "cannot connect";
  if (error == httplib::Error::Read) what = "the connection broke";
  return absl::UnavailableError(absl::StrCat(origin, ": ", what));
}

std::unique_ptr<httplib::Client> Connect(const std::string& origin,
                                         const std::string& api_key) {
  auto client = std::make_unique<httplib::Client>(origin);
  client->set_connection_timeout(5);
  client->set_read_timeout(600);
  if (!api_key.empty()) client->set_bearer_token_auth(api_key.c_str());
  return client;
}

// Cuts a stream of bytes into the data of its events.
class EventParser {
 public:
  explicit EventParser(const std::function<bool(absl::string_view)>& on_event)
      : on_event_(on_event) {}

  // False once on_event wants no more.
  bool Append(absl::string_view bytes) {
    buffer_.append(bytes.data(), bytes.size());
    for (size_t end; (end = buffer_.find("\n\n")) != std::string::npos;) {
      const std::string event = buffer_.substr(0, end);
      buffer_.erase(0, end + 2);
      absl::string_view data = event;
      if (!absl::ConsumePrefix(&data, "data: ")) continue;
      if (data == "[DONE]") continue;
      if (!on_event_(data)) return false;
    }
    return true;
  }

 private:
  const std::function<bool(absl::string_view)>& on_event_;
  std::string buffer_;
};

}  // namespace

absl::StatusOr<HttpClient> HttpClient::Create(const std::string& url,
                                              const std::string& api_key) {
  std::string origin = url;
  while (absl::EndsWith(origin, "/")) origin.pop_back();
  if (absl::EndsWith(origin, "/v1")) origin.resize(origin.size() - 3);
  const bool has_scheme = absl::StartsWith(origin, "http://") ||
                          absl::StartsWith(origin, "https://");
  const size_t host = origin.find("//") + 2;
  if (!has_scheme || host >= origin.size() ||
      origin.find('/', host) != std::string::npos) {
    return absl::InvalidArgumentError(
        absl::StrCat("'", url, "' is not a URL like http://127.0.0.1:8080"));
  }
  return HttpClient(origin, api_key);
}

HttpClient::HttpClient(std::string origin, std::string api_key)
    : origin_(std::move(origin)), api_key_(std::move(api_key)) {}

absl::StatusOr<std::string> HttpClient::Get(const std::string& path) const {
  const auto client = Connect(origin_, api_key_);
  const auto result = client->Get(path);
  if (!result) return TransportError(origin_, result.error());
  if (result->status / 100 != 2) {
    return absl::UnknownError(ErrorMessage(result->status, result->body));
  }
  return result->body;
}

absl::Status HttpClient::PostStreaming(
    const std::string& path, const std::string& body,
    const std::function<bool(absl::string_view data)>& on_event) const {
  const auto client = Connect(origin_, api_key_);
  EventParser parser(on_event);
  bool hung_up = false;
  std::string error_body;
  int http_status = 0;
  httplib::Request request;
  request.method = "POST";
  request.path = path;
  request.body = body;
  request.set_header("Content-Type", "application/json");
  request.response_handler = [&](const httplib::Response& response) {
    http_status = response.status;
    return true;
  };
  request.content_receiver = [&](const char* data, size_t size, uint64_t,
                                 uint64_t) {
    if (http_status / 100 != 2) {
      error_body.append(data, size);
      return true;
    }
    hung_up = !parser.Append(absl::string_view(data, size));
    return !hung_up;
  };
  const auto result = client->send(request);
  if (http_status != 0 && http_status / 100 != 2) {
    const std::string message = ErrorMessage(http_status, error_body);
    return http_status / 100 == 4 ? absl::InvalidArgumentError(message)
                                  : absl::UnknownError(message);
  }
  if (!result && !hung_up) return TransportError(origin_, result.error());
  return absl::OkStatus();
}

}  // namespace quire
