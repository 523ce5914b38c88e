#include "tests/front_end/streams.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdio>
#include <functional>
#include <limits>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/time/clock.h"
#include "benchmarks/serving/load_client.h"
#include "server/http/test_client.h"
#include "tests/front_end/server_process.h"

namespace quire {
namespace {

constexpr double kMiB = 1 << 20;

struct Totals {
  int num_begun = 0;
  int num_failed = 0;  // No connection, not 200, or cut off.
  int64_t num_events = 0;
  std::vector<double> gaps;
};

class Stream : public ResponseHandler {
 public:
  explicit Stream(Totals* totals) : totals_(totals) {}

  void OnEvent(absl::string_view data, double now) override {
    if (data == "[DONE]") {
      is_done_ = true;
      return;
    }
    // The one with the finish reason comes with the last token.
    if (!absl::StrContains(data, R"("finish_reason":null)")) return;
    ++totals_->num_events;
    if (last_event_at_ == 0) {
      ++totals_->num_begun;
    } else {
      totals_->gaps.push_back(now - last_event_at_);
    }
    last_event_at_ = now;
  }
  void OnEnd(const ResponseEnd& end, double) override {
    totals_->num_failed +=
        !end.status.ok() || end.http_status != 200 || !is_done_;
  }

 private:
  Totals* const totals_;
  double last_event_at_ = 0;
  bool is_done_ = false;
};

// Whole letters of the demo model's vocabulary: a piece of a character would be
// held back, and show as a gap.
HttpMessage StreamRequest(int num_tokens) {
  HttpMessage message;
  message.path = "/v1/completions";
  message.headers = {{"Content-Type", "application/json"}};
  message.body = absl::StrCat(
      R"({"prompt":"Once upon a time","stream":true,"ignore_eos":true,)",
      R"("allowed_token_ids":[68,72,81,82,87,269,273],"max_tokens":)",
      num_tokens, "}");
  return message;
}

std::unique_ptr<ServerProcess> StartServer(int num_seqs, int step_ms,
                                           int num_tokens) {
  ServerProcessOptions options;
  options.own_args = {
      "--step-ms", absl::StrCat(step_ms), "--num-blocks",
      absl::StrCat(static_cast<int64_t>(num_seqs) * (num_tokens / 16 + 3))};
  options.serve_args = {
      "--max-num-seqs",           absl::StrCat(num_seqs),
      "--max-num-batched-tokens", absl::StrCat(std::max(512, 8 * num_seqs)),
      "--max-num-queued-reqs",    absl::StrCat(num_seqs),
      "--max-connections",        "16384",
      "--max-model-len",          "2048"};
  return ServerProcess::Start(options);
}

std::unique_ptr<LoadClient> MakeClient(const ServerProcess& server) {
  RaiseOpenFileLimit();
  ServerUrl url;
  url.host = "127.0.0.1";
  url.port = server.port();
  LoadClientOptions options;
  options.idle_timeout_seconds = 60;
  auto client = LoadClient::Create(url, options);
  return client.ok() ? *std::move(client) : nullptr;
}

// Polls until all streams have ended.
void RunAll(int num_streams, int num_tokens, LoadClient* client,
            Totals* totals) {
  const HttpMessage message = StreamRequest(num_tokens);
  std::vector<Stream> streams(num_streams, Stream(totals));
  for (Stream& stream : streams) client->Start(message, &stream);
  while (client->num_open() > 0) client->Poll(0.1);
}

double HttpCpuSeconds(const ServerProcess& server) {
  double sum = 0;
  for (const auto& [name, seconds] : server.CpuSecondsByThread()) {
    if (absl::StartsWith(name, "http-") || name == "output") sum += seconds;
  }
  return sum;
}

// The p99 that TimedSink of hash_server says after `word` of its line; infinite
// if it does not.
double OutputCostMs(const ServerProcess& server, absl::string_view word) {
  const std::string text = server.ErrorText();
  const size_t line = text.rfind("output cost: ");
  const size_t at = line == std::string::npos
                        ? line
                        : text.find("p99 ", text.find(std::string(word), line));
  if (at == std::string::npos) return std::numeric_limits<double>::infinity();
  const size_t begin = at + 4;
  double micros = 0;
  if (!absl::SimpleAtod(text.substr(begin, text.find(' ', begin) - begin),
                        &micros)) {
    return std::numeric_limits<double>::infinity();
  }
  return micros / 1e3;
}

// -1 with errno.
int ConnectRaw(int port, bool waits, int receive_buffer_bytes = 0) {
  const int fd = socket(
      AF_INET, SOCK_STREAM | SOCK_CLOEXEC | (waits ? 0 : SOCK_NONBLOCK), 0);
  if (fd < 0) return -1;
  if (receive_buffer_bytes > 0) {
    setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &receive_buffer_bytes,
               sizeof(receive_buffer_bytes));
  }
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_port = htons(port);
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  if (connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof(address)) !=
          0 &&
      errno != EINPROGRESS) {
    close(fd);
    return -1;
  }
  return fd;
}

// Descriptors that are closed in the end.
struct Sockets {
  std::vector<int> fds;
  ~Sockets() {
    for (const int fd : fds) close(fd);
  }
};

Figure NoError(const std::string& what, double value) {
  return {what, value, "", Bound::kExactly, 0};
}

}  // namespace

std::vector<Figure> RunStreams(const StreamsScale& scale) {
  const std::string name = absl::StrCat(scale.num_streams, " streams: ");
  auto server = StartServer(scale.num_streams, scale.step_ms, scale.num_tokens);
  if (server == nullptr) return {NoError(name + "server not started", 1)};
  const auto client = MakeClient(*server);
  if (client == nullptr) return {NoError(name + "client not connected", 1)};
  Totals warm_up;
  RunAll(1, 2, client.get(), &warm_up);

  server->ResetPeak();
  const int64_t before = server->ResidentBytes();
  const double cpu_before = HttpCpuSeconds(*server);
  const double begin = MonotonicSeconds();
  Totals totals;
  RunAll(scale.num_streams, scale.num_tokens, client.get(), &totals);
  const double seconds = MonotonicSeconds() - begin;
  const double cores = (HttpCpuSeconds(*server) - cpu_before) / seconds;
  const double growth = server->PeakBytes() - before;

  std::vector<Figure> figures;
  figures.push_back(NoError(name + "errors", totals.num_failed));
  figures.push_back({name + "streams begun", double(totals.num_begun), "",
                     Bound::kExactly, double(scale.num_streams)});
  figures.push_back({name + "gap p50", 1e3 * Percentile(totals.gaps, 0.5), "ms",
                     Bound::kAtMost, 1.2 * scale.step_ms, true});
  figures.push_back({name + "gap p99", 1e3 * Percentile(totals.gaps, 0.99),
                     "ms", Bound::kAtMost, scale.max_gap_ms, true});
  if (scale.num_streams <= 1024) {
    figures.push_back({name + "cores for HTTP (io, workers, output)", cores, "",
                       Bound::kAtMost, 0.5, true});
  }
  figures.push_back({name + "memory", growth / kMiB, "MiB", Bound::kAtMost,
                     64.0 * std::max(1, scale.num_streams / 1024)});
  figures.push_back({name + "still running or held afterwards",
                     server->WaitUntilIdle() ? 0.0 : 1.0, "", Bound::kExactly,
                     0});
  const std::optional<int> exit_code = server->Terminate();
  figures.push_back(NoError(name + "exit code", exit_code.value_or(-1)));
  figures.push_back({name + "engine thread's output, p99 of a step",
                     OutputCostMs(*server, "events"), "ms", Bound::kAtMost, 0.2,
                     true});
  figures.push_back({name + "the same in CPU time",
                     OutputCostMs(*server, "CPU"), "ms", Bound::kAtMost, 0.2,
                     true});
  return figures;
}

std::vector<Figure> RunConnectStorm(int num_clients) {
  const std::string name = absl::StrCat(num_clients, " connects: ");
  auto server = StartServer(64, 0, 16);
  if (server == nullptr) return {NoError(name + "server not started", 1)};
  RaiseOpenFileLimit();
  constexpr absl::string_view kRequest =
      "GET /version HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
  Sockets sockets;
  struct Client {
    bool is_sent = false;
    bool is_answered = false;
    bool is_done = false;
  };
  std::vector<Client> clients(num_clients);
  const int epoll_fd = epoll_create1(EPOLL_CLOEXEC);
  const double begin = MonotonicSeconds();
  int num_reset = 0;
  for (int i = 0; i < num_clients; ++i) {
    const int fd = ConnectRaw(server->port(), /*waits=*/false);
    if (fd < 0) {
      ++num_reset;
      clients[i].is_done = true;
      continue;
    }
    sockets.fds.push_back(fd);
    epoll_event event = {};
    event.events = EPOLLIN | EPOLLOUT;
    event.data.u64 = (uint64_t{static_cast<uint32_t>(i)} << 32) | fd;
    epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event);
  }
  int num_open = num_clients - num_reset;
  int num_answered = 0;
  double last_answer = begin;
  while (num_open > 0 && MonotonicSeconds() - begin < 20) {
    epoll_event events[256];
    const int count = epoll_wait(epoll_fd, events, 256, 100);
    for (int i = 0; i < count; ++i) {
      const int fd = static_cast<int>(events[i].data.u64 & 0xffffffff);
      Client& client = clients[events[i].data.u64 >> 32];
      if (client.is_done) continue;
      if (!client.is_sent && (events[i].events & EPOLLOUT)) {
        client.is_sent = send(fd, kRequest.data(), kRequest.size(),
                              MSG_NOSIGNAL) == ssize_t{kRequest.size()};
        epoll_event event = {};
        event.events = EPOLLIN;
        event.data.u64 = events[i].data.u64;
        epoll_ctl(epoll_fd, EPOLL_CTL_MOD, fd, &event);
      }
      char bytes[4096];
      const ssize_t size = recv(fd, bytes, sizeof(bytes), MSG_DONTWAIT);
      if (size < 0 && (errno == EAGAIN || errno == EINTR)) continue;
      if (size > 0) {
        const absl::string_view text(bytes, size);
        if (!client.is_answered && (absl::StartsWith(text, "HTTP/1.1 200") ||
                                    absl::StartsWith(text, "HTTP/1.1 503"))) {
          client.is_answered = true;
          ++num_answered;
          last_answer = MonotonicSeconds();
        }
        continue;
      }
      num_reset += !client.is_answered;
      client.is_done = true;
      --num_open;
      epoll_ctl(epoll_fd, EPOLL_CTL_DEL, fd, nullptr);
    }
  }
  close(epoll_fd);
  return {{name + "answered", double(num_answered), "", Bound::kExactly,
           double(num_clients)},
          NoError(name + "reset", num_reset),
          {name + "last answer after", 1e3 * (last_answer - begin), "ms",
           Bound::kAtMost, 1000, true},
          NoError(name + "server gone", server->IsAlive() ? 0 : 1)};
}

std::vector<Figure> RunIdleConnections(int num_connections, double seconds) {
  const std::string name = absl::StrCat(num_connections, " idle: ");
  auto server = StartServer(64, 0, 16);
  if (server == nullptr) return {NoError(name + "server not started", 1)};
  RaiseOpenFileLimit();
  constexpr absl::string_view kRequest =
      "GET /version HTTP/1.1\r\nHost: x\r\n\r\n";
  Sockets sockets;
  const int64_t before = server->ResidentBytes();
  int num_failed = 0;
  for (int i = 0; i < num_connections; ++i) {
    const int fd = ConnectRaw(server->port(), /*waits=*/true);
    char bytes[4096];
    num_failed +=
        fd < 0 ||
        send(fd, kRequest.data(), kRequest.size(), MSG_NOSIGNAL) < 0 ||
        recv(fd, bytes, sizeof(bytes), 0) <= 0;
    if (fd >= 0) sockets.fds.push_back(fd);
  }
  const double cpu_before = server->CpuSeconds();
  const double begin = MonotonicSeconds();
  absl::SleepFor(absl::Seconds(seconds));
  const double cores =
      (server->CpuSeconds() - cpu_before) / (MonotonicSeconds() - begin);
  return {NoError(name + "not answered", num_failed),
          {name + "cores", cores, "", Bound::kAtMost, 0.02, true},
          {name + "memory", (server->ResidentBytes() - before) / kMiB, "MiB",
           Bound::kAtMost, 64},
          {name + "answers the next one",
           double(Get(server->port(), "/version").first), "", Bound::kExactly,
           200}};
}

std::vector<Figure> RunFullPort(int num_connections, int num_probes) {
  const std::string name = absl::StrCat(num_connections, " silent: ");
  ServerProcessOptions options;
  options.serve_args = {"--max-connections",
                        absl::StrCat(std::max(1, num_connections / 8))};
  auto server = ServerProcess::Start(options);
  if (server == nullptr) return {NoError(name + "server not started", 1)};
  RaiseOpenFileLimit();
  Sockets sockets;
  int num_refused = 0;
  size_t oldest = 0;
  for (int probe = 0; probe < num_probes; ++probe) {
    for (int i = 0; i < num_connections / num_probes; ++i) {
      if (static_cast<int>(sockets.fds.size()) < num_connections) {
        sockets.fds.push_back(-1);
      }
      int& fd = sockets.fds[oldest++ % num_connections];
      if (fd >= 0) close(fd);
      fd = ConnectRaw(server->port(), /*waits=*/true);
      // Every other one begins a request that does not come.
      if (i % 2) (void)!send(fd, "GET /hea", 8, MSG_NOSIGNAL);
    }
    for (const char* path : {"/health/live", "/metrics", "/v1/models"}) {
      num_refused += Get(server->port(), path).first != 200;
    }
  }
  return {NoError(name + "probes and requests refused", num_refused),
          NoError(name + "server gone", server->IsAlive() ? 0 : 1)};
}

namespace {

// Streams alone, then beside what `hinder` does, again and again, on a thread
// of its own: what it costs is not to show in the gaps.
std::vector<Figure> RunHindered(const std::string& name,
                                const HinderedScale& scale,
                                ServerProcess* server, Sockets* sockets,
                                const std::function<void()>& hinder) {
  const auto client = MakeClient(*server);
  if (client == nullptr) return {NoError(name + "client not connected", 1)};
  const int num_tokens = static_cast<int>(scale.seconds * 1000 / 30);
  const HttpMessage message = StreamRequest(num_tokens);
  // Alone, hindered, alone, hindered: the machine's own noise hits both.
  constexpr int kNumRounds = 2;
  Totals totals[2];
  int64_t growth = 0;
  int num_connected = 0;
  bool is_freed = true;
  for (int round = 0; round < kNumRounds; ++round) {
    for (const bool is_hindered : {false, true}) {
      server->ResetPeak();
      const int64_t before = server->ResidentBytes();
      std::atomic<bool> is_over{false};
      std::thread hindering;
      if (is_hindered) {
        hinder();
        hindering = std::thread([&] {
          while (!is_over) {
            absl::SleepFor(absl::Milliseconds(10));
            hinder();
          }
        });
      }
      Totals& sum = totals[is_hindered ? 1 : 0];
      std::vector<Stream> streams(scale.num_streams, Stream(&sum));
      for (Stream& stream : streams) client->Start(message, &stream);
      while (client->num_open() > 0) client->Poll(0.05);
      is_over = true;
      if (is_hindered) {
        hindering.join();
        num_connected = static_cast<int>(sockets->fds.size());
        for (const int fd : sockets->fds) close(fd);
        sockets->fds.clear();
        is_freed = is_freed && server->WaitUntilIdle();
      }
      if (is_hindered) {
        growth = std::max(growth, server->PeakBytes() - before);
      }
    }
  }
  const double alone = 1e3 * Percentile(totals[0].gaps, 0.99);
  const double hindered = 1e3 * Percentile(totals[1].gaps, 0.99);
  return {NoError(name + "errors of others",
                  totals[0].num_failed + totals[1].num_failed),
          {name + "gap p99 without", alone, "ms", Bound::kAtMost, 45, true},
          {name + "gap p99 of others, over that without", hindered / alone, "",
           Bound::kAtMost, 1.1, true},
          {name + "memory", growth / kMiB, "MiB", Bound::kAtMost, 400},
          {name + "connected", double(num_connected), "", Bound::kExactly,
           double(scale.num_hindering)},
          NoError(name + "still held after they have gone", is_freed ? 0 : 1)};
}

}  // namespace

std::vector<Figure> RunSlowReaders(const HinderedScale& scale) {
  const std::string name = absl::StrCat(scale.num_hindering, " slow readers: ");
  auto server = StartServer(scale.num_streams + scale.num_hindering, 30, 2000);
  if (server == nullptr) return {NoError(name + "server not started", 1)};
  RaiseOpenFileLimit();
  // With log-probabilities: some 25 KiB a second each that nobody reads.
  const std::string body =
      R"({"prompt":"Once","stream":true,"ignore_eos":true,"max_tokens":1900,)"
      R"("logprobs":8})";
  const std::string request = absl::StrCat(
      "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: ",
      body.size(), "\r\n\r\n", body);
  Sockets sockets;
  return RunHindered(name, scale, server.get(), &sockets, [&] {
    while (static_cast<int>(sockets.fds.size()) < scale.num_hindering) {
      const int fd = ConnectRaw(server->port(), /*waits=*/true,
                                /*receive_buffer_bytes=*/4096);
      if (fd < 0) break;
      (void)!send(fd, request.data(), request.size(), MSG_NOSIGNAL);
      sockets.fds.push_back(fd);
    }
  });
}

std::vector<Figure> RunSlowloris(const HinderedScale& scale) {
  const std::string name = absl::StrCat(scale.num_hindering, " slowloris: ");
  auto server = StartServer(scale.num_streams, 30, 2000);
  if (server == nullptr) return {NoError(name + "server not started", 1)};
  RaiseOpenFileLimit();
  Sockets sockets;
  // Half of them in the head, half in the body.
  const std::string starts[] = {
      "GET /version HTTP/1.1\r\nHost: x\r\nX: ",
      "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: "
      "1000000\r\n\r\n{"};
  double next_bytes = 0;
  int num_opened = 0;
  return RunHindered(name, scale, server.get(), &sockets, [&] {
    const double now = MonotonicSeconds();
    if (now < next_bytes) return;
    next_bytes = now + 0.2;
    for (int& fd : sockets.fds) {
      char bytes[1024];
      const bool is_cut = send(fd, "a", 1, MSG_NOSIGNAL | MSG_DONTWAIT) < 0 ||
                          recv(fd, bytes, sizeof(bytes), MSG_DONTWAIT) >= 0;
      if (!is_cut) continue;
      close(fd);  // The deadline has come: again.
      fd = -1;
    }
    std::erase(sockets.fds, -1);
    while (static_cast<int>(sockets.fds.size()) < scale.num_hindering) {
      const int fd = ConnectRaw(server->port(), /*waits=*/true);
      if (fd < 0) break;
      const std::string& start = starts[num_opened++ % 2];
      (void)!send(fd, start.data(), start.size(), MSG_NOSIGNAL);
      sockets.fds.push_back(fd);
    }
  });
}

}  // namespace quire
