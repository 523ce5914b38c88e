// Answers: streams, slow and vanishing peers, shutdown.
#include <sys/socket.h>

#include <atomic>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "gtest/gtest.h"
#include "server/http/server_fixture.h"
#include "server/http_server.h"

namespace quire {
namespace {

constexpr absl::string_view kPark = "GET /park HTTP/1.1\r\nHost: x\r\n\r\n";
constexpr absl::string_view kHealth = "GET /health HTTP/1.1\r\nHost: x\r\n\r\n";

TEST_F(HttpServerTest, StreamsInChunksAndKeepsTheConnection) {
  Start();
  auto [client, responder] = Park();
  responder->StartStream({{"X-A", "b"}, {"X-Bad", "a\r\nb"}, {"Date", "no"}});
  responder->Write("data: 1\n\n");
  std::string received = client.ReceiveUntil("data: 1\n\n\r\n");
  EXPECT_TRUE(absl::StartsWith(received, "HTTP/1.1 200 OK\r\n"));
  EXPECT_TRUE(absl::StrContains(received, "\r\nX-A: b\r\n"));
  EXPECT_FALSE(absl::StrContains(received, "X-Bad"));
  EXPECT_FALSE(absl::StrContains(received, "Date: no"));
  EXPECT_TRUE(
      absl::StrContains(received, "\r\nContent-Type: text/event-stream\r\n"));
  EXPECT_TRUE(
      absl::StrContains(received, "\r\nTransfer-Encoding: chunked\r\n"));
  EXPECT_FALSE(absl::StrContains(received, "Content-Length"));
  EXPECT_TRUE(absl::EndsWith(received, "\r\n\r\n9\r\ndata: 1\n\n\r\n"));
  EXPECT_EQ(server_->num_open_requests(), 1);
  responder->Write("");
  responder->Write("data: 2\n\n");
  responder->Finish();
  responder->Write("data: late\n\n");
  EXPECT_EQ(client.ReceiveUntil("\r\n0\r\n\r\n"),
            "9\r\ndata: 2\n\n\r\n0\r\n\r\n");
  EXPECT_EQ(client.Ask(kHealth).body, "ok");
  EXPECT_TRUE(WaitUntil([&] { return server_->num_open_requests() == 0; }));
}

TEST_F(HttpServerTest, CoalescingKeepsOrder) {
  Start();
  auto [client, responder] = Park();
  std::string expected;
  std::thread writer([&responder = responder, &expected] {
    responder->StartStream();
    for (int i = 0; i < 20000; ++i) {
      const std::string event = absl::StrCat("data: ", i, "\n\n");
      expected += event;
      responder->Write(event);
    }
    responder->Finish();
  });
  const TestResponse response = client.Receive();
  writer.join();
  EXPECT_TRUE(response.is_complete);
  EXPECT_EQ(response.body, expected);
  EXPECT_LE(response.chunks.size(), 20000);
}

TEST_F(HttpServerTest, StreamsToHttp10WithoutChunks) {
  Start();
  TestClient client = Connect();
  client.Send("GET /park HTTP/1.0\r\n\r\n");
  auto responder = TakeParked(1)[0];
  responder->StartStream();
  responder->Write("data: 1\n\n");
  responder->Finish();
  std::string received;
  EXPECT_TRUE(client.ReceiveEof(&received));
  EXPECT_FALSE(absl::StrContains(received, "Transfer-Encoding"));
  EXPECT_TRUE(absl::EndsWith(received, "\r\n\r\ndata: 1\n\n"));
}

TEST_F(HttpServerTest, HeadOfAStreamHasNoBody) {
  Start();
  TestClient client = Connect();
  client.Send("HEAD /park HTTP/1.1\r\nHost: x\r\n\r\n");
  auto responder = TakeParked(1)[0];
  responder->StartStream();
  responder->Write("data: 1\n\n");
  responder->Finish();
  EXPECT_EQ(client.Receive(/*has_no_body=*/true).status, 200);
  EXPECT_EQ(client.Ask(kHealth).body, "ok");
}

TEST_F(HttpServerTest, OnlyTheFirstAnswerCounts) {
  Start();
  auto [client, responder] = Park();
  responder->Write("nothing has begun");
  responder->Finish();
  responder->Send(201, "text/plain", "first");
  responder->Send(200, "text/plain", "second");
  responder->StartStream();
  const TestResponse response = client.Receive();
  EXPECT_EQ(response.status, 201);
  EXPECT_EQ(response.body, "first");
  EXPECT_EQ(client.Ask(kHealth).body, "ok");
}

TEST_F(HttpServerTest, DroppedResponders) {
  Start();
  auto [client, responder] = Park();
  responder.reset();
  EXPECT_EQ(client.Receive().status, 500);
  // A stream cannot be turned into an error: it ends without its last chunk.
  client.Send(kPark);
  responder = TakeParked(1)[0];
  responder->StartStream();
  responder->Write("data: 1\n\n");
  EXPECT_TRUE(absl::StrContains(client.ReceiveUntil("data: 1"), "data: 1"));
  responder.reset();
  std::string rest;
  EXPECT_TRUE(client.ReceiveEof(&rest));
  EXPECT_FALSE(absl::StrContains(rest, "0\r\n\r\n"));
}

TEST_F(HttpServerTest, LargeAnswersToSlowReaders) {
  options_.max_buffered_bytes = 1024;  // Of streams; not of whole answers.
  Start();
  auto [client, responder] = Park(/*receive_buffer_bytes=*/4096);
  const std::string body(4 << 20, 'b');
  responder->Send(200, "text/plain", body);
  EXPECT_EQ(client.Receive().body, body);
  EXPECT_EQ(client.Ask(kHealth).body, "ok");
}

// Scores of a whole prompt are one event.
TEST_F(HttpServerTest, OneEventMayBeLargerThanWhatIsBuffered) {
  options_.max_buffered_bytes = 1024;
  Start();
  auto [client, responder] = Park(/*receive_buffer_bytes=*/4096);
  responder->StartStream();
  const std::string large(4 << 20, 'x');
  responder->Write(large);
  // What follows while it is read.
  for (int i = 0; i < 8; ++i) {
    client.ReceiveUntil(std::string(4096, 'x'));
    responder->Write("data: 1\n\n");
  }
  responder->Write("data: last\n\n");
  EXPECT_TRUE(absl::EndsWith(client.ReceiveUntil("data: last\n\n\r\n"),
                             "data: last\n\n\r\n"));
  responder->Finish();
  EXPECT_EQ(client.ReceiveUntil("0\r\n\r\n"), "0\r\n\r\n");
}

TEST_F(HttpServerTest, WhoHoldsMostForLongestIsCutOff) {
  options_.max_unsent_bytes = 32 << 20;
  Start();
  const std::string body(12 << 20, 'b');
  std::vector<std::pair<TestClient, std::shared_ptr<HttpResponder>>> parked;
  std::atomic<int> num_cut{0};
  for (int i = 0; i < 3; ++i) {
    parked.push_back(Park(/*receive_buffer_bytes=*/4096));
    parked.back().second->OnDisconnect([&] { ++num_cut; });
  }
  for (const auto& [client, responder] : parked) {
    responder->Send(200, "text/plain", body);
  }
  EXPECT_TRUE(WaitUntil([&] { return num_cut == 1; }));
  // The others are whole, and a stream is not concerned.
  auto [client, responder] = Park();
  responder->StartStream();
  responder->Write("data: 1\n\n");
  client.ReceiveUntil("data: 1\n\n\r\n");
  responder->Finish();
  int num_whole = 0;
  for (auto& [reader, answer] : parked) {
    num_whole += reader.Receive().body == body;
  }
  EXPECT_EQ(num_whole, 2);
  EXPECT_EQ(num_cut, 1);
}

TEST_F(HttpServerTest, PingsWhileThereIsNothingToSay) {
  options_.stream_ping_interval = absl::Milliseconds(20);
  Start();
  auto [client, responder] = Park();
  responder->StartStream();
  EXPECT_TRUE(absl::EndsWith(
      client.ReceiveUntil("8\r\n: ping\n\n\r\n8\r\n: ping\n\n\r\n"),
      "8\r\n: ping\n\n\r\n"));
  responder->Write("data: 1\n\n");
  responder->Finish();
  EXPECT_TRUE(absl::StrContains(client.ReceiveUntil("\r\n0\r\n\r\n"),
                                "9\r\ndata: 1\n\n\r\n0\r\n\r\n"));
  // None before a stream has begun.
  client.Send(kPark);
  responder = TakeParked(1)[0];
  EXPECT_EQ(Ask(kHealth).body, "ok");
  responder->Send(200, "text/plain", "x");
  EXPECT_TRUE(absl::StartsWith(client.ReceiveUntil("\r\n\r\nx"), "HTTP/1.1"));
}

// Fills a stream that is not read until the server gives up.
TEST_F(HttpServerTest, SlowReadersAreDisconnected) {
  options_.max_buffered_bytes = 64 << 10;
  Start();
  auto [client, responder] = Park(/*receive_buffer_bytes=*/4096);
  std::atomic<bool> is_disconnected{false};
  responder->OnDisconnect([&] { is_disconnected = true; });
  responder->StartStream();
  int64_t num_written = 0;
  EXPECT_TRUE(WaitUntil([&, &responder = responder] {
    responder->Write(std::string(4096, 'x'));
    num_written += 4096;
    return is_disconnected.load();
  }));
  // The kernel's buffers, ours, and what was written before it was seen.
  EXPECT_LT(num_written, 8 << 20);
  EXPECT_EQ(Ask(kHealth).body, "ok");
}

TEST_F(HttpServerTest, SaysWhichReadersAreBehind) {
  options_.max_buffered_bytes = 64 << 20;
  Start();
  auto [client, responder] = Park(/*receive_buffer_bytes=*/4096);
  const auto is_behind = [&responder = responder] {
    return responder->is_behind();
  };
  responder->StartStream();
  responder->Write("data: 1\n\n");
  client.ReceiveUntil("data: 1\n\n\r\n");
  EXPECT_FALSE(is_behind());
  responder->Write(std::string(4 << 20, 'x'));
  EXPECT_TRUE(WaitUntil(is_behind));
  // Nothing is lost of what comes meanwhile.
  responder->Write("data: 2\n\n");
  responder->Write("data: 3\n\n");
  client.ReceiveUntil("data: 3\n\n\r\n");
  // Known with the next write.
  EXPECT_TRUE(WaitUntil([&, &responder = responder] {
    responder->Write("data: 4\n\n");
    client.ReceiveUntil("data: 4\n\n\r\n");
    return !is_behind();
  }));
  responder->Write("data: 5\n\n");
  responder->Finish();
  EXPECT_EQ(client.ReceiveUntil("\r\n0\r\n\r\n"),
            "9\r\ndata: 5\n\n\r\n0\r\n\r\n");
}

// Long before a send fails: the kernel's buffer takes half a minute of text.
TEST_F(HttpServerTest, ReadersAreBehindWhileTheKernelHoldsALot) {
  Start();
  auto [client, responder] = Park(/*receive_buffer_bytes=*/4096);
  responder->StartStream();
  int num_events = 0;
  // Nobody reads.
  EXPECT_TRUE(WaitUntil([&, &responder = responder] {
    ++num_events;
    responder->Write(absl::StrCat("data: ", std::string(1000, 'x'), "\n\n"));
    return responder->is_behind() || num_events == 1000;
  }));
  EXPECT_LT(num_events, 100);
  responder->Write("data: last\n\n");
  client.ReceiveUntil("data: last\n\n\r\n");
  EXPECT_TRUE(WaitUntil([&, &responder = responder] {
    responder->Write("data: 4\n\n");
    client.ReceiveUntil("data: 4\n\n\r\n");
    return !responder->is_behind();
  }));
  responder->Finish();
}

TEST_F(HttpServerTest, StalledReadersAreDisconnected) {
  options_.write_stall_timeout = absl::Milliseconds(100);
  options_.max_buffered_bytes = 64 << 20;
  Start();
  auto [client, responder] = Park(/*receive_buffer_bytes=*/4096);
  std::atomic<bool> is_disconnected{false};
  responder->OnDisconnect([&] { is_disconnected = true; });
  responder->StartStream();
  responder->Write(std::string(8 << 20, 'x'));
  EXPECT_TRUE(WaitUntil([&] { return is_disconnected.load(); }));
}

TEST_F(HttpServerTest, SeesADisconnectBeforeTheFirstByte) {
  Start();
  auto [client, responder] = Park();
  std::atomic<int> num_calls{0};
  std::atomic<std::thread::id> thread;
  responder->OnDisconnect([&] {
    thread = std::this_thread::get_id();
    ++num_calls;
  });
  const absl::Time start = absl::Now();
  client.Close();
  EXPECT_TRUE(WaitUntil([&] { return num_calls > 0; }));
  // Promised: 100 ms. The margin is for a busy machine; a poll of any kind
  // would be seconds.
  EXPECT_LT(absl::Now() - start, absl::Milliseconds(500));
  EXPECT_NE(thread.load(), std::this_thread::get_id());
  responder->Send(200, "text/plain", "for nobody");
  EXPECT_TRUE(WaitUntil([&] { return server_->num_open_requests() == 0; }));
  EXPECT_EQ(num_calls, 1);
}

TEST_F(HttpServerTest, SeesADisconnectBehindUnreadBytes) {
  Start();
  auto [client, responder] = Park();
  std::atomic<bool> is_disconnected{false};
  responder->OnDisconnect([&] { is_disconnected = true; });
  // The start of a next request stays unread while this one is answered.
  client.Send("GET /health HTTP/1.1\r\nHo");
  client.Close();
  EXPECT_TRUE(WaitUntil([&] { return is_disconnected.load(); }));
}

TEST_F(HttpServerTest, SeesADisconnectInAStream) {
  Start();
  auto [client, responder] = Park();
  std::atomic<bool> is_disconnected{false};
  responder->OnDisconnect([&] { is_disconnected = true; });
  responder->StartStream();
  responder->Write("data: 1\n\n");
  client.ReceiveUntil("data: 1");
  EXPECT_FALSE(is_disconnected);
  client.Close();
  EXPECT_TRUE(WaitUntil([&] { return is_disconnected.load(); }));
  responder->Write("data: 2\n\n");
  responder->Finish();
}

TEST_F(HttpServerTest, HalfClosedCountsAsGone) {
  Start();
  auto [client, responder] = Park();
  std::atomic<bool> is_disconnected{false};
  responder->OnDisconnect([&] { is_disconnected = true; });
  client.ShutdownWrite();
  EXPECT_TRUE(WaitUntil([&] { return is_disconnected.load(); }));
  EXPECT_TRUE(client.ReceiveEof());
}

TEST_F(HttpServerTest, NoDisconnectAfterTheAnswer) {
  Start();
  auto [client, responder] = Park();
  auto alive = std::make_shared<int>(0);
  std::atomic<bool> is_disconnected{false};
  responder->OnDisconnect([&, alive] { is_disconnected = true; });
  responder->StartStream();
  responder->Finish();
  EXPECT_TRUE(client.Receive().is_complete);
  // The callback is let go, too: it may hold the responder.
  EXPECT_TRUE(WaitUntil([&] { return alive.use_count() == 1; }));
  client.Close();
  // Later events of the same thread have passed when this one is answered.
  EXPECT_EQ(Ask(kHealth).body, "ok");
  responder->OnDisconnect([&] { is_disconnected = true; });
  EXPECT_EQ(Ask(kHealth).body, "ok");
  EXPECT_FALSE(is_disconnected);
}

TEST_F(HttpServerTest, DisconnectCallbackRegisteredLate) {
  Start();
  auto [client, responder] = Park();
  client.Close();
  ASSERT_TRUE(WaitUntil([&] { return server_->num_open_requests() == 0; }));
  std::atomic<bool> is_disconnected{false};
  std::atomic<std::thread::id> thread;
  responder->OnDisconnect([&] {
    thread = std::this_thread::get_id();
    is_disconnected = true;
  });
  EXPECT_TRUE(WaitUntil([&] { return is_disconnected.load(); }));
  EXPECT_NE(thread.load(), std::this_thread::get_id());
}

TEST_F(HttpServerTest, DisconnectCallbacksMayThrow) {
  Start();
  auto [client, responder] = Park();
  responder->OnDisconnect([] { throw 1; });
  client.Close();
  ASSERT_TRUE(WaitUntil([&] { return server_->num_open_requests() == 0; }));
  EXPECT_EQ(Ask(kHealth).body, "ok");
}

TEST_F(HttpServerTest, ServesAThousandStreamsWithFourWorkers) {
  constexpr int kNumStreams = 1000;
  constexpr int kNumEvents = 20;
  Start();
  std::vector<TestClient> clients;
  for (int i = 0; i < kNumStreams; ++i) {
    clients.push_back(Connect());
    ASSERT_TRUE(clients.back().Send(kPark));
  }
  auto responders = TakeParked(kNumStreams);
  ASSERT_EQ(responders.size(), kNumStreams);
  EXPECT_EQ(server_->num_open_requests(), kNumStreams);
  EXPECT_EQ(Ask(kHealth).body, "ok");
  std::string expected;
  for (auto& responder : responders) responder->StartStream();
  for (int event = 0; event < kNumEvents; ++event) {
    const std::string data = absl::StrCat("data: ", event, "\n\n");
    expected += data;
    for (auto& responder : responders) responder->Write(data);
  }
  for (auto& responder : responders) responder->Finish();
  for (TestClient& client : clients) {
    const TestResponse response = client.Receive();
    ASSERT_TRUE(response.is_complete);
    ASSERT_EQ(response.body, expected);
  }
}

TEST_F(HttpServerTest, OverloadAnswers503) {
  options_.num_workers = 1;
  auto server = HttpServer::Create(options_);
  ASSERT_TRUE(server.ok());
  server_ = *std::move(server);
  std::atomic<bool> goes_on{false};
  server_->AddRoute("GET", "/block", RouteAccess::kPublic,
                    [&](const HttpRequest&, auto responder) {
                      EXPECT_TRUE(WaitUntil([&] { return goes_on.load(); }));
                      responder->Send(200, "text/plain", "ok");
                    });
  ASSERT_TRUE(server_->Start().ok());
  // One runs, 512 wait, the rest is refused at once.
  constexpr int kNumRequests = 512 + 1 + 20;
  std::vector<TestClient> clients;
  for (int i = 0; i < kNumRequests; ++i) {
    clients.push_back(Connect());
    ASSERT_TRUE(clients.back().Send("GET /block HTTP/1.1\r\nHost: x\r\n\r\n"));
  }
  int num_refused = 0;
  EXPECT_EQ(clients.back().Receive().status, 503);
  goes_on = true;
  for (int i = 0; i + 1 < kNumRequests; ++i) {
    const TestResponse response = clients[i].Receive();
    if (response.status == 503) {
      EXPECT_EQ(response.Field("retry-after"), "1");
      ++num_refused;
    } else {
      EXPECT_EQ(response.status, 200);
    }
  }
  EXPECT_GE(num_refused, 1);
  EXPECT_LT(num_refused, 40);
}

TEST_F(HttpServerTest, CloseConnectionsWhileDraining) {
  Start();
  TestClient idle = Connect();
  EXPECT_EQ(idle.Ask(kHealth).Field("connection"), "");
  server_->SetCloseConnections();
  const TestResponse response = idle.Ask(kHealth);
  EXPECT_EQ(response.status, 200);
  EXPECT_EQ(response.Field("connection"), "close");
  EXPECT_TRUE(idle.ReceiveEof());
  EXPECT_EQ(Ask(kHealth).Field("connection"), "close");
}

TEST_F(HttpServerTest, StopLetsOpenAnswersFinish) {
  Start();
  auto [client, responder] = Park();
  TestClient idle = Connect();
  EXPECT_EQ(idle.Ask(kHealth).status, 200);
  responder->StartStream();
  client.ReceiveUntil("\r\n\r\n");
  std::thread stopper([&] { server_->Stop(absl::Seconds(60)); });
  EXPECT_TRUE(idle.ReceiveEof());  // Idle connections go at once.
  TestClient late;
  EXPECT_FALSE(late.Connect(port()));
  responder->Write("data: 1\n\n");
  responder->Finish();
  stopper.join();
  std::string received;
  EXPECT_TRUE(client.ReceiveEof(&received));
  EXPECT_EQ(received.substr(received.size() - 5), "0\r\n\r\n");
  server_->Stop(absl::Seconds(60));  // Idempotent.
}

TEST_F(HttpServerTest, StopWaitsForABegunBody) {
  Start();
  TestClient idle = Connect();
  TestClient client = Connect();
  client.Send(
      "POST /echo HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\n"
      "Content-Length: 4\r\n\r\n");
  EXPECT_EQ(client.Receive().status, 100);  // Its head has been read.
  client.Send("ab");
  std::thread stopper([&] { server_->Stop(absl::Seconds(60)); });
  EXPECT_TRUE(idle.ReceiveEof());  // Stop has begun.
  client.Send("cd");
  const TestResponse response = client.Receive();
  stopper.join();
  EXPECT_EQ(response.status, 200);
  EXPECT_EQ(response.Field("connection"), "close");
  EXPECT_TRUE(absl::EndsWith(response.body, "abcd"));
}

TEST_F(HttpServerTest, StopWithoutGraceClosesEverything) {
  Start();
  auto [client, responder] = Park();
  std::atomic<int> num_calls{0};
  responder->OnDisconnect([&] { ++num_calls; });
  responder->StartStream();
  client.ReceiveUntil("\r\n\r\n");
  const absl::Time start = absl::Now();
  server_->Stop(absl::Milliseconds(50));
  EXPECT_GE(absl::Now() - start, absl::Milliseconds(50));
  EXPECT_EQ(num_calls, 1);
  EXPECT_TRUE(client.ReceiveEof());
  EXPECT_EQ(server_->num_open_requests(), 0);
}

TEST_F(HttpServerTest, RespondersOutliveTheServer) {
  Start();
  auto [client, responder] = Park();
  auto [other_client, streaming] = Park();
  streaming->StartStream();
  server_.reset();
  responder->Send(200, "text/plain", "x");
  streaming->Write("data: 1\n\n");
  streaming->Finish();
  bool is_disconnected = false;
  responder->OnDisconnect([&] { is_disconnected = true; });
  EXPECT_TRUE(is_disconnected);
  std::string received;
  EXPECT_TRUE(client.ReceiveEof(&received));
  EXPECT_EQ(received, "");
}

// Random answers, disconnects and threads; sanitizers find what is wrong.
TEST_F(HttpServerTest, RacesOfAnswersAndDisconnects) {
  Start();
  // Callbacks may run until the server stops, after this test has returned.
  const auto num_ended = std::make_shared<std::atomic<int>>(0);
  for (int round = 0; round < 20; ++round) {
    std::vector<TestClient> clients;
    for (int i = 0; i < 40; ++i) {
      clients.push_back(Connect());
      clients.back().Send(kPark);
    }
    auto responders = TakeParked(clients.size());
    std::vector<std::thread> threads;
    for (int t = 0; t < 3; ++t) {
      threads.emplace_back([&, t] {
        for (size_t i = 0; i < responders.size(); ++i) {
          // The callback holds the responder, as handlers' do.
          responders[i]->OnDisconnect(
              [num_ended, held = responders[i]] { ++*num_ended; });
          if ((i + t) % 3 == 0) responders[i]->Send(200, "text/plain", "x");
          responders[i]->StartStream();
          responders[i]->Write("data: 1\n\n");
          responders[i]->Finish();
        }
      });
    }
    for (size_t i = 0; i < clients.size(); i += 2) clients[i].Close();
    for (std::thread& thread : threads) thread.join();
    responders.clear();
    for (size_t i = 1; i < clients.size(); i += 2) {
      EXPECT_TRUE(clients[i].Receive().is_complete);
    }
  }
  EXPECT_TRUE(WaitUntil([&] { return server_->num_open_requests() == 0; }));
}

}  // namespace
}  // namespace quire
