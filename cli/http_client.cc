#include "cli/http_client.h"

#include <httplib.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <memory>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "engine/base/clock.h"
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

absl::Status TransportError(const std::string& origin,
                            const std::string& ca_file, httplib::Error error) {
  const auto text = [&](absl::string_view what) {
    return absl::StrCat(origin, ": ", what);
  };
  const std::string authorities =
      ca_file.empty() ? "the system's certificates" : ca_file;
  switch (error) {
    case httplib::Error::Connection:
      return absl::UnavailableError(text("cannot connect"));
    case httplib::Error::Read:
      return absl::UnavailableError(text("the connection broke"));
    case httplib::Error::ConnectionTimeout:
      return absl::DeadlineExceededError(text("no connection for 5 s"));
    case httplib::Error::SSLLoadingCerts:
      return absl::InvalidArgumentError(
          absl::StrCat(authorities, ": no authorities in PEM"));
    case httplib::Error::SSLServerVerification:
      return absl::FailedPreconditionError(text(absl::StrCat(
          "its certificate is not by an authority of ", authorities)));
    default:
      return absl::UnavailableError(text(httplib::to_string(error)));
  }
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
                                              const std::string& api_key,
                                              const std::string& ca_file) {
  if (!ca_file.empty() && access(ca_file.c_str(), R_OK) != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat(ca_file, ": cannot be read: ", std::strerror(errno)));
  }
  Target target;
  target.api_key = api_key;
  target.ca_file = ca_file;
  absl::string_view socket = url;
  if (absl::ConsumePrefix(&socket, "unix:")) {
    // As in a banner of `quire serve`, or with an authority that is empty.
    absl::ConsumePrefix(&socket, "//");
    if (socket.empty() || socket.size() >= sizeof(sockaddr_un::sun_path)) {
      return absl::InvalidArgumentError(
          absl::StrCat("'", url, "' is not unix:PATH with a path of 1 to ",
                       sizeof(sockaddr_un::sun_path) - 1, " bytes"));
    }
    target.origin = absl::StrCat("unix:", socket);
    target.unix_socket = std::string(socket);
    return HttpClient(std::move(target));
  }
  std::string origin = url;
  while (absl::EndsWith(origin, "/")) origin.pop_back();
  if (absl::EndsWith(origin, "/v1")) origin.resize(origin.size() - 3);
  const bool has_scheme = absl::StartsWith(origin, "http://") ||
                          absl::StartsWith(origin, "https://");
  const size_t host = origin.find("//") + 2;
  if (!has_scheme || host >= origin.size() ||
      origin.find('/', host) != std::string::npos) {
    return absl::InvalidArgumentError(
        absl::StrCat("'", url,
                     "' is not a URL like http://127.0.0.1:8080, "
                     "https://host or unix:/run/quire.sock"));
  }
  target.origin = std::move(origin);
  return HttpClient(std::move(target));
}

HttpClient::HttpClient(Target target) : target_(std::move(target)) {}

std::unique_ptr<httplib::Client> HttpClient::Connect() const {
  std::unique_ptr<httplib::Client> client;
  if (target_.unix_socket.empty()) {
    client = std::make_unique<httplib::Client>(target_.origin);
  } else {
    // The port is for the Host field only, which must be one.
    client = std::make_unique<httplib::Client>(target_.unix_socket, 80);
    client->set_address_family(AF_UNIX);
    client->set_default_headers({{"Host", "localhost"}});
  }
  client->set_connection_timeout(5);
  client->set_read_timeout(600);
  if (!target_.api_key.empty()) {
    client->set_bearer_token_auth(target_.api_key.c_str());
  }
  if (!target_.ca_file.empty()) {
    client->set_ca_cert_path(target_.ca_file.c_str());
  }
  return client;
}

absl::StatusOr<std::string> HttpClient::Get(const std::string& path,
                                            absl::Duration timeout) const {
  const auto client = Connect();
  const int64_t seconds = std::max<int64_t>(1, absl::ToInt64Seconds(timeout));
  client->set_read_timeout(seconds);
  const absl::Time begin = Clock::Monotonic()->Now();
  const auto result = client->Get(path);
  if (!result) {
    // The library calls both an error of reading.
    if (result.error() == httplib::Error::Read &&
        Clock::Monotonic()->Now() - begin >= absl::Seconds(seconds)) {
      return absl::DeadlineExceededError(
          absl::StrCat(target_.origin, ": no answer for ", seconds, " s"));
    }
    return TransportError(target_.origin, target_.ca_file, result.error());
  }
  if (result->status / 100 != 2) {
    return absl::UnknownError(ErrorMessage(result->status, result->body));
  }
  return result->body;
}

absl::Status HttpClient::PostStreaming(
    const std::string& path, const std::string& body,
    const std::function<bool(absl::string_view data)>& on_event) const {
  const auto client = Connect();
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
  if (!result && !hung_up) {
    return TransportError(target_.origin, target_.ca_file, result.error());
  }
  return absl::OkStatus();
}

}  // namespace quire
