// The server's other ways in: the operations listener, Unix sockets, TLS.
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/x509.h>
#include <openssl/x509v3.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "gtest/gtest.h"
#include "server/http/server_fixture.h"
#include "server/http/socket_directory.h"
#include "server/http/test_certificate.h"

namespace quire {
namespace {

constexpr char kHealth[] = "GET /health HTTP/1.1\r\nHost: x\r\n\r\n";
constexpr char kEcho[] = "GET /echo HTTP/1.1\r\nHost: x\r\n\r\n";

class ListenersTest : public HttpServerTest {
 protected:
  ListenersTest() {
    options_.on_notice = [this](const std::string& line) {
      std::lock_guard<std::mutex> lock(notices_mu_);
      notices_.push_back(line);
    };
  }

  TestClient ConnectOps() {
    TestClient client;
    EXPECT_TRUE(client.Connect(server_->ops_port()));
    return client;
  }
  std::string Notices() {
    std::lock_guard<std::mutex> lock(notices_mu_);
    return absl::StrJoin(notices_, "\n");
  }

 private:
  std::mutex notices_mu_;
  std::vector<std::string> notices_;
};

TEST_F(ListenersTest, OperationsListenerHasItsRoutesOnly) {
  options_.ops_port = 0;
  options_.api_keys = {"secret"};
  Start();
  ASSERT_GT(server_->ops_port(), 0);
  ASSERT_NE(server_->ops_port(), port());
  EXPECT_EQ(ConnectOps().Ask(kHealth).status, 200);
  // Not there at all: no hint of what a key would open.
  EXPECT_EQ(ConnectOps().Ask(kEcho).status, 404);
  EXPECT_EQ(ConnectOps()
                .Ask("GET /echo HTTP/1.1\r\nHost: x\r\n"
                     "Authorization: Bearer secret\r\n\r\n")
                .status,
            404);
  EXPECT_EQ(ConnectOps()
                .Ask("POST /health HTTP/1.1\r\nHost: x\r\n"
                     "Content-Length: 0\r\n\r\n")
                .status,
            405);
  EXPECT_EQ(Ask(kHealth).status, 200);
  EXPECT_EQ(Ask(kEcho).status, 401);
}

TEST_F(ListenersTest, NoOperationsListenerUnlessAsked) {
  Start();
  EXPECT_EQ(server_->ops_port(), 0);
}

TEST_F(ListenersTest, ProbesDoNotWaitForWorkers) {
  options_.num_workers = 1;
  options_.ops_port = 0;
  auto server = HttpServer::Create(options_);
  ASSERT_TRUE(server.ok());
  server_ = *std::move(server);
  AddRoutes();
  std::atomic<bool> goes_on{false};
  server_->AddRoute("GET", "/block", RouteAccess::kPublic,
                    [&](const HttpRequest&, auto responder) {
                      EXPECT_TRUE(WaitUntil([&] { return goes_on.load(); }));
                      responder->Send(200, "text/plain", "ok");
                    });
  ASSERT_TRUE(server_->Start().ok());
  // One runs, 512 wait, the next is refused.
  std::vector<TestClient> clients;
  for (int i = 0; i < 514; ++i) {
    clients.push_back(Connect());
    clients.back().Send("GET /block HTTP/1.1\r\nHost: x\r\n\r\n");
  }
  EXPECT_EQ(clients.back().Receive().status, 503);
  EXPECT_EQ(Ask(kHealth).status, 200);
  EXPECT_EQ(ConnectOps().Ask(kHealth).status, 200);
  goes_on = true;
  EXPECT_EQ(clients.front().Receive().status, 200);
  // The handlers of those that waited look at goes_on, too.
  server_->Stop(absl::ZeroDuration());
}

TEST_F(ListenersTest, OperationsListenerHasRoomWhileTheOtherIsFull) {
  options_.max_connections = 2;
  options_.ops_port = 0;
  Start();
  const auto first = Park(), second = Park();
  EXPECT_EQ(Ask(kEcho).status, 503);
  EXPECT_EQ(ConnectOps().Ask(kHealth).status, 200);
}

TEST_F(ListenersTest, ServesAUnixSocket) {
  const SocketDirectory directory;
  options_.unix_socket_path = directory.PathOf("socket");
  Start();
  EXPECT_EQ(port(), 0);
  {
    TestClient client = TestClient::ConnectUnix(options_.unix_socket_path);
    EXPECT_EQ(client.Ask(kHealth).body, "ok");
    EXPECT_EQ(client.Ask(kEcho).status, 200);
  }
  server_->Stop(absl::ZeroDuration());
  EXPECT_NE(access(options_.unix_socket_path.c_str(), F_OK), 0);
}

// ---------------------------------------------------------------- TLS

class TlsTest : public ListenersTest {
 protected:
  TlsTest() : server_certificate_(Stem("server"), "first") {
    options_.tls_certificate_file = server_certificate_.certificate_file;
    options_.tls_private_key_file = server_certificate_.key_file;
    client_files_.authorities = server_certificate_.certificate_file;
  }

  static std::string Stem(const std::string& name) {
    return absl::StrCat(
        testing::TempDir(), "/", name, "_",
        testing::UnitTest::GetInstance()->current_test_info()->name());
  }
  TestClient ConnectTls(int receive_buffer_bytes = 0) {
    TestClient client = Connect(receive_buffer_bytes);
    EXPECT_TRUE(client.StartTls(client_files_));
    return client;
  }

  Certificate server_certificate_;
  TestTlsFiles client_files_;
};

TEST_F(TlsTest, AnswersRequestsOnOneConnection) {
  Start();
  TestClient client = ConnectTls();
  EXPECT_EQ(client.PeerCommonName(), "first");
  for (int i = 0; i < 3; ++i) EXPECT_EQ(client.Ask(kHealth).body, "ok");
  // Two in one record: the second lies in TLS's buffer when the first is
  // answered, where no event of the socket tells of it.
  client.Send(absl::StrCat(kHealth, kEcho, kHealth));
  EXPECT_EQ(client.Receive().body, "ok");
  EXPECT_EQ(client.Receive().status, 200);
  EXPECT_EQ(client.Receive().body, "ok");
  EXPECT_EQ(client
                .Ask("GET /health HTTP/1.1\r\nHost: x\r\n"
                     "Connection: close\r\n\r\n")
                .status,
            200);
  EXPECT_TRUE(client.ReceiveEof());
}

TEST_F(TlsTest, CarriesLargeBodiesBothWays) {
  Start();
  std::string body(3 << 20, 'x');
  for (size_t i = 0; i < body.size(); i += 997) body[i] = 'a' + i % 23;
  TestClient client = ConnectTls();
  ASSERT_TRUE(client.Send(absl::StrCat(
      "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: ", body.size(),
      "\r\n\r\n", body)));
  const TestResponse response = client.Receive();
  EXPECT_TRUE(response.is_complete);
  EXPECT_TRUE(response.body.size() > body.size() &&
              response.body.substr(response.body.size() - body.size()) == body);
}

TEST_F(TlsTest, StreamsAndSeesThePeerGo) {
  Start();
  TestClient client = ConnectTls();
  client.Send("GET /park HTTP/1.1\r\nHost: x\r\n\r\n");
  auto parked = TakeParked(1);
  ASSERT_EQ(parked.size(), 1u);
  std::atomic<bool> is_gone{false};
  parked[0]->OnDisconnect([&] { is_gone = true; });
  parked[0]->StartStream();
  for (int i = 0; i < 3; ++i) {
    const std::string data = absl::StrCat("data: ", i, "\n\n");
    parked[0]->Write(data);
    EXPECT_NE(client.ReceiveUntil(data).find(data), std::string::npos);
  }
  EXPECT_FALSE(is_gone);
  client.Close();
  EXPECT_TRUE(WaitUntil([&] { return is_gone.load(); }));
}

TEST_F(TlsTest, SlowReaderOfAStreamGetsAllOfIt) {
  options_.max_buffered_bytes = 64 << 20;
  Start();
  TestClient client = ConnectTls(/*receive_buffer_bytes=*/4096);
  client.Send("GET /park HTTP/1.1\r\nHost: x\r\n\r\n");
  auto parked = TakeParked(1);
  ASSERT_EQ(parked.size(), 1u);
  std::string expected;
  parked[0]->StartStream();
  for (int i = 0; i < 2000; ++i) {
    const std::string data =
        absl::StrCat("data: ", std::string(500, 'y'), i, "\n\n");
    expected += data;
    parked[0]->Write(data);
  }
  parked[0]->Finish();
  const TestResponse response = client.Receive();
  EXPECT_TRUE(response.is_complete);
  EXPECT_TRUE(response.body == expected);
}

TEST_F(TlsTest, WhoDoesNotSpeakTlsIsCutOff) {
  options_.head_timeout = absl::Milliseconds(200);
  Start();
  TestClient plain = Connect();
  plain.Send(kHealth);
  EXPECT_TRUE(plain.ReceiveEof());
  // A handshake that does not go on has the time of a head.
  TestClient silent = Connect();
  EXPECT_TRUE(silent.ReceiveEof());
  EXPECT_EQ(ConnectTls().Ask(kHealth).status, 200);
}

TEST_F(TlsTest, OperationsListenerIsPlain) {
  options_.ops_port = 0;
  Start();
  EXPECT_EQ(ConnectOps().Ask(kHealth).status, 200);
}

TEST_F(TlsTest, RenewedCertificateIsUsedAndABadOneIsNot) {
  Start();
  TestClient old_client = ConnectTls();
  const Certificate second(Stem("server"), "second");
  const auto presented = [&] {
    TestClient client = Connect();
    client.StartTls(client_files_);
    return client.PeerCommonName();
  };
  EXPECT_TRUE(WaitUntil([&] { return presented() == "second"; }));
  // Whoever is connected stays.
  EXPECT_EQ(old_client.Ask(kHealth).status, 200);

  FILE* const file = std::fopen(second.key_file.c_str(), "w");
  std::fputs("no key\n", file);
  std::fclose(file);
  EXPECT_TRUE(WaitUntil([&] {
    return Notices().find(
               "the old certificate stays in force: TLS private "
               "key") != std::string::npos;
  }));
  EXPECT_EQ(presented(), "second");
}

TEST_F(TlsTest, ClientsWithoutACertificateAreRefusedWhereOneIsAsked) {
  const Certificate known(Stem("known"), "known");
  const Certificate unknown(Stem("unknown"), "unknown");
  options_.tls_client_ca_file = known.certificate_file;
  Start();
  TestClient none = Connect();
  none.StartTls(client_files_);
  EXPECT_EQ(none.Ask(kHealth).status, 0);
  client_files_.certificate = unknown.certificate_file;
  client_files_.private_key = unknown.key_file;
  TestClient stranger = Connect();
  stranger.StartTls(client_files_);
  EXPECT_EQ(stranger.Ask(kHealth).status, 0);
  client_files_.certificate = known.certificate_file;
  client_files_.private_key = known.key_file;
  EXPECT_EQ(ConnectTls().Ask(kHealth).status, 200);
}

TEST_F(TlsTest, BadFilesAreErrorsAtStart) {
  const Certificate other(Stem("other"), "other");
  const auto start = [&] {
    auto server = HttpServer::Create(options_);
    return server.ok() ? (*server)->Start() : server.status();
  };
  options_.tls_private_key_file = other.key_file;
  EXPECT_EQ(start().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_NE(start().message().find(other.key_file), std::string::npos);
  options_.tls_certificate_file = "/nowhere.pem";
  EXPECT_NE(start().message().find("TLS certificate /nowhere.pem"),
            std::string::npos);
  options_.tls_private_key_file = "";
  EXPECT_EQ(start().message(),
            "HTTP server options: TLS needs both a certificate and its "
            "private key");
}

}  // namespace
}  // namespace quire
