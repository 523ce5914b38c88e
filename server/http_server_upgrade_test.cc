// Connections that go on in another protocol.
#include <atomic>
#include <memory>
#include <string>
#include <utility>

#include "gtest/gtest.h"
#include "server/http/server_fixture.h"

namespace quire {
namespace {

constexpr char kOffer[] =
    "GET /up HTTP/1.1\r\nHost: x\r\nConnection: keep-alive, Upgrade\r\n"
    "Upgrade: echo/1\r\n\r\n";

// GET /up sends back what it gets; "bye" ends it, "bad" is refused.
class UpgradeTest : public HttpServerTest {
 protected:
  void StartEcho(HttpUpgrade upgrade = {}) {
    auto server = HttpServer::Create(options_);
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
    server_->AddRoute(
        "GET", "/up", RouteAccess::kPublic,
        [this, upgrade](const HttpRequest& request,
                        std::shared_ptr<HttpResponder> responder) {
          if (request.upgrade != "echo/1") {
            return responder->Send(426, "text/plain", request.upgrade);
          }
          responder->OnDisconnect([this] { ++num_disconnects_; });
          HttpUpgrade echo = upgrade;
          echo.protocol = "echo/1";
          echo.on_bytes = [responder](absl::string_view bytes) {
            responder->Write(std::string(bytes));
            if (bytes == "bye") responder->Finish();
            return bytes != "bad";
          };
          responder->Upgrade(std::move(echo));
        });
    AddRoutes();
    ASSERT_TRUE(server_->Start().ok());
  }

  std::atomic<int> num_disconnects_{0};
};

TEST_F(UpgradeTest, BytesGoBothWays) {
  StartEcho();
  TestClient client = Connect();
  // Bytes right behind the head belong to the other protocol.
  client.Send(std::string(kOffer) + "first");
  const std::string head = client.ReceiveUntil("first");
  EXPECT_EQ(head,
            "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n"
            "Upgrade: echo/1\r\n\r\nfirst");
  const std::string large(300000, 'x');
  client.Send(large + "\n");
  EXPECT_EQ(client.ReceiveUntil("\n").size(), large.size() + 1);
  client.Send("GET / HTTP/1.1\r\n\r\n");  // No longer a request.
  EXPECT_EQ(client.ReceiveUntil("\r\n\r\n"), "GET / HTTP/1.1\r\n\r\n");
  client.Send("bye");
  std::string rest;
  EXPECT_TRUE(client.ReceiveEof(&rest));
  EXPECT_EQ(rest, "bye");
  EXPECT_EQ(num_disconnects_, 0);
  EXPECT_TRUE(WaitUntil([this] { return server_->num_open_requests() == 0; }));
}

TEST_F(UpgradeTest, OnlyWhereItIsOffered) {
  StartEcho();
  for (const char* fields :
       {"", "Upgrade: echo/1\r\n", "Connection: Upgrade\r\n",
        "Connection: Upgrade\r\nUpgrade: echo/1\r\nContent-Length: 1\r\n"}) {
    const TestResponse response =
        Ask(std::string("GET /up HTTP/1.1\r\nHost: x\r\n") + fields + "\r\nx");
    EXPECT_EQ(response.status, 426) << fields;
  }
  EXPECT_EQ(Ask("GET /up HTTP/1.0\r\nHost: x\r\nConnection: "
                "Upgrade\r\nUpgrade: echo/1\r\n\r\n")
                .status,
            426);
  EXPECT_EQ(Ask("GET /up HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\n"
                "Upgrade: echo/1\r\nUpgrade: other\r\n\r\n")
                .status,
            400);
  // Offers that a handler does not take up are no matter.
  EXPECT_EQ(Ask("GET /health HTTP/1.1\r\nHost: x\r\nConnection: "
                "Upgrade\r\nUpgrade: h2c\r\n\r\n")
                .status,
            200);
}

TEST_F(UpgradeTest, EndsAreTold) {
  StartEcho();
  {
    TestClient client = Connect();
    client.Send(std::string(kOffer) + "bad");
    EXPECT_TRUE(client.ReceiveEof());
  }
  EXPECT_TRUE(WaitUntil([this] { return num_disconnects_ == 1; }));
  {
    TestClient client = Connect();
    client.Send(std::string(kOffer) + "x");
    client.ReceiveUntil("\r\n\r\n");
  }
  EXPECT_TRUE(WaitUntil([this] { return num_disconnects_ == 2; }));
  EXPECT_TRUE(WaitUntil([this] { return server_->num_open_requests() == 0; }));
}

TEST_F(UpgradeTest, SilenceAndSlowReadersAreCut) {
  HttpUpgrade upgrade;
  upgrade.idle_timeout = absl::Milliseconds(50);
  StartEcho(upgrade);
  TestClient client = Connect();
  client.Send(kOffer);
  EXPECT_TRUE(client.ReceiveEof());
  EXPECT_TRUE(WaitUntil([this] { return num_disconnects_ == 1; }));
}

TEST_F(UpgradeTest, AReaderThatDoesNotReadIsCut) {
  HttpUpgrade upgrade;
  upgrade.max_buffered_bytes = 1000;
  StartEcho(upgrade);
  TestClient client = Connect(/*receive_buffer_bytes=*/4096);
  client.Send(kOffer);
  // More than the kernel's buffers take; the peer may be gone meanwhile.
  const std::string piece(100000, 'x');
  for (int i = 0; i < 100 && client.Send(piece); ++i) {
  }
  EXPECT_TRUE(WaitUntil([this] { return num_disconnects_ == 1; }));
}

TEST_F(UpgradeTest, StopDoesNotWait) {
  StartEcho();
  TestClient client = Connect();
  client.Send(kOffer);
  client.ReceiveUntil("\r\n\r\n");
  server_->Stop(absl::Hours(1));
  EXPECT_TRUE(client.ReceiveEof());
  EXPECT_EQ(num_disconnects_, 1);
}

}  // namespace
}  // namespace quire
