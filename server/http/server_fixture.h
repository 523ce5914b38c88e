// A server with routes that tests of the transport need.
#ifndef QUIRE_SERVER_HTTP_SERVER_FIXTURE_H_
#define QUIRE_SERVER_HTTP_SERVER_FIXTURE_H_

#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "gtest/gtest.h"
#include "server/http/test_client.h"
#include "server/http_server.h"

namespace quire {

class HttpServerTest : public testing::Test {
 protected:
  // Port 0 and few threads; change before Start.
  HttpServerTest() {
    options_.port = 0;
    options_.num_workers = 4;
  }
  ~HttpServerTest() override {
    if (server_ != nullptr) server_->Stop(absl::ZeroDuration());
  }

  // Routes: GET /health (public, "ok"), GET and POST /echo (kApi; headers, then
  // the body), GET /names/{name} (kApi; the tail of the path), /park (keeps the
  // responder for the test), /throw, /drop.
  void Start() {
    auto server = HttpServer::Create(options_);
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
    AddRoutes();
    const absl::Status status = server_->Start();
    ASSERT_TRUE(status.ok()) << status;
    ASSERT_TRUE(server_->port() > 0 || !options_.unix_socket_path.empty());
  }

  void AddRoutes() {
    const auto add = [this](absl::string_view method, absl::string_view path,
                            HttpHandler handler) {
      server_->AddRoute(method, path, RouteAccess::kPublic, std::move(handler));
    };
    server_->AddRoute("GET", "/health", RouteAccess::kOperations,
                      [](const HttpRequest&, auto responder) {
                        responder->Send(200, "text/plain", "ok");
                      });
    const HttpHandler echo = [this](const HttpRequest& request,
                                    auto responder) {
      ++num_echoes_;
      std::string out = absl::StrCat(request.method, " ", request.path, "\n");
      for (const auto& [name, value] : request.headers) {
        absl::StrAppend(&out, name, "=", value, "\n");
      }
      responder->Send(200, "text/plain", absl::StrCat(out, "\n", request.body));
    };
    server_->AddRoute("GET", "/echo", RouteAccess::kApi, echo);
    server_->AddRoute("POST", "/echo", RouteAccess::kApi, echo);
    server_->AddRoute(
        "GET", "/names/{name}", RouteAccess::kApi,
        [](const HttpRequest& request, auto responder) {
          responder->Send(200, "text/plain",
                          absl::StrCat(request.path, "\n", request.path_tail));
        });
    add("GET", "/names/literal",
        [](const HttpRequest& request, auto responder) {
          responder->Send(200, "text/plain",
                          absl::StrCat("literal", request.path_tail));
        });
    for (const char* method : {"GET", "POST"}) {
      add(method, "/park", [this](const HttpRequest&, auto responder) {
        std::lock_guard<std::mutex> lock(mu_);
        parked_.push_back(std::move(responder));
      });
    }
    add("GET", "/throw", [](const HttpRequest&, auto) {
      throw std::runtime_error("a secret of the server");
    });
    add("GET", "/drop", [](const HttpRequest&, auto) {});
  }

  int port() const { return server_->port(); }
  TestClient Connect(int receive_buffer_bytes = 0) {
    TestClient client(receive_buffer_bytes);
    EXPECT_TRUE(client.Connect(port()));
    return client;
  }
  TestResponse Ask(absl::string_view request) { return Connect().Ask(request); }

  size_t num_parked() {
    std::lock_guard<std::mutex> lock(mu_);
    return parked_.size();
  }
  // Waits until `count` requests reached /park and takes their responders.
  std::vector<std::shared_ptr<HttpResponder>> TakeParked(size_t count) {
    EXPECT_TRUE(WaitUntil([&] { return num_parked() >= count; }));
    std::lock_guard<std::mutex> lock(mu_);
    return std::exchange(parked_, {});
  }
  // A client whose request has been parked, and its responder.
  std::pair<TestClient, std::shared_ptr<HttpResponder>> Park(
      int receive_buffer_bytes = 0) {
    TestClient client = Connect(receive_buffer_bytes);
    client.Send("GET /park HTTP/1.1\r\nHost: x\r\n\r\n");
    auto parked = TakeParked(1);
    return {std::move(client), parked.empty() ? nullptr : parked[0]};
  }

  HttpServerOptions options_;
  std::unique_ptr<HttpServer> server_;
  std::atomic<int> num_echoes_{0};

 private:
  std::mutex mu_;
  std::vector<std::shared_ptr<HttpResponder>> parked_;
};

}  // namespace quire

#endif  // QUIRE_SERVER_HTTP_SERVER_FIXTURE_H_
