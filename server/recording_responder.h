// A responder that keeps what it is given, and events of a stream as JSON.
#ifndef QUIRE_SERVER_RECORDING_RESPONDER_H_
#define QUIRE_SERVER_RECORDING_RESPONDER_H_

#include <functional>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_split.h"
#include "gtest/gtest.h"
#include "server/http_server.h"
#include "server/json_text.h"

namespace quire {

// What a client has received.
struct RecordedAnswer {
  int status = 0;
  std::string content_type;
  std::string body;
  HttpHeaders headers;
  bool is_stream = false;
  bool is_finished = false;

  std::string Header(absl::string_view name) const {
    for (const auto& [key, value] : headers) {
      if (key == name) return value;
    }
    return "";
  }
  nlohmann::ordered_json Json() const {
    const auto value = ParseJson(body);
    EXPECT_TRUE(value.ok()) << value.status() << "\n" << body;
    return value.ok() ? *value : nlohmann::ordered_json();
  }
};

// The data of an event stream, checking its framing. Without the [DONE] that
// must end it.
inline std::vector<nlohmann::ordered_json> ParseEvents(
    absl::string_view stream) {
  std::vector<nlohmann::ordered_json> events;
  EXPECT_TRUE(absl::EndsWith(stream, "data: [DONE]\n\n")) << stream;
  for (absl::string_view line : absl::StrSplit(stream, "\n\n")) {
    if (line.empty() || line == "data: [DONE]" || line == ": ping") continue;
    EXPECT_TRUE(absl::StartsWith(line, "data: ")) << line;
    EXPECT_EQ(line.find('\n'), absl::string_view::npos) << line;
    const auto value = ParseJson(line.substr(6));
    EXPECT_TRUE(value.ok()) << value.status() << "\n" << line;
    if (value.ok()) events.push_back(*value);
  }
  return events;
}

// Thread-safe. Expects the order that HttpResponder asks for.
class RecordingResponder : public HttpResponder {
 public:
  void Send(int status, absl::string_view content_type, std::string body,
            const HttpHeaders& headers) override {
    std::lock_guard<std::mutex> lock(mu_);
    EXPECT_FALSE(answer_.is_stream || answer_.is_finished);
    answer_.status = status;
    answer_.content_type = std::string(content_type);
    answer_.body = std::move(body);
    answer_.headers = headers;
    answer_.is_finished = true;
  }
  void StartStream(const HttpHeaders& headers) override {
    std::lock_guard<std::mutex> lock(mu_);
    EXPECT_FALSE(answer_.is_stream || answer_.is_finished);
    answer_.status = 200;
    answer_.is_stream = true;
    answer_.headers = headers;
  }
  void Write(std::string data) override {
    std::lock_guard<std::mutex> lock(mu_);
    EXPECT_TRUE(answer_.is_stream && !answer_.is_finished);
    answer_.body += data;
  }
  void Finish() override {
    std::lock_guard<std::mutex> lock(mu_);
    EXPECT_TRUE(answer_.is_stream && !answer_.is_finished);
    answer_.is_finished = true;
  }
  void OnDisconnect(std::function<void()> callback) override {
    std::lock_guard<std::mutex> lock(mu_);
    callback_ = std::move(callback);
  }

  RecordedAnswer answer() const {
    std::lock_guard<std::mutex> lock(mu_);
    return answer_;
  }
  // As if the peer had closed the connection.
  void Disconnect() {
    std::function<void()> callback;
    {
      std::lock_guard<std::mutex> lock(mu_);
      if (!answer_.is_finished) callback.swap(callback_);
    }
    if (callback) callback();
  }

 private:
  mutable std::mutex mu_;
  RecordedAnswer answer_;  // Guarded by mu_, as the next one.
  std::function<void()> callback_;
};

}  // namespace quire

#endif  // QUIRE_SERVER_RECORDING_RESPONDER_H_
