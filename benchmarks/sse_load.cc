// Load for event streams: opens many at once and reports what their readers
// see.
//
//   sse_load --port 8080 --streams 1024 [--server-pid PID]
//   sse_load --port 8080 --idle 4096 --seconds 10 --server-pid PID
//
// Works with anything that streams events over HTTP/1.1 (benchmarks/sse_source,
// or an OpenAI API with --path and --body). Gap: time between two events of one
// stream, as received. Delivery: from the time stamp that sse_source puts into
// its events, hence on one machine only. First event: from connect().
#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "benchmarks/process_use.h"
#include "benchmarks/serving/load_client.h"

namespace quire {
namespace {

struct Options {
  std::string host = "127.0.0.1";
  int port = 8080;
  int num_streams = 1024;
  int num_idle = 0;
  double seconds = 10;
  std::string path = "/sse";
  std::string body;  // Not empty: POST as JSON.
  std::string api_key;
  int server_pid = 0;
};

void PrintProcess(const ProcessUse& before, const ProcessUse& after,
                  double seconds) {
  constexpr double kMiB = 1 << 20;
  std::printf(
      "server: %.3f CPU s in %.2f s = %.4f cores, RSS %.1f MiB (peak %.1f), "
      "%lld threads\n",
      after.cpu_seconds - before.cpu_seconds, seconds,
      (after.cpu_seconds - before.cpu_seconds) / seconds,
      after.resident_bytes / kMiB, after.peak_resident_bytes / kMiB,
      static_cast<long long>(after.num_threads));
}

void PrintPercentiles(const char* name, std::vector<double>* seconds) {
  if (seconds->empty()) return;
  std::sort(seconds->begin(), seconds->end());
  const auto at = [&](double q) {
    const size_t i = q * seconds->size();
    return (*seconds)[std::min(i, seconds->size() - 1)] * 1e3;
  };
  std::printf("%-12s p50 %7.2f  p99 %7.2f  p99.9 %7.2f  max %7.2f ms\n", name,
              at(0.5), at(0.99), at(0.999), at(1));
}

// What all streams of a load saw.
struct Totals {
  int num_refused = 0;    // No connection.
  int num_bad = 0;        // Another status than 200.
  int num_truncated = 0;  // Ended without [DONE].
  int64_t num_events = 0;
  std::vector<double> first, gaps, deliveries;
};

class Stream : public ResponseHandler {
 public:
  explicit Stream(Totals* totals) : totals_(totals) {}

  void Start(LoadClient* client, const HttpMessage& message) {
    started_at_ = MonotonicSeconds();
    client->Start(message, this);
  }
  void OnEvent(absl::string_view data, double now) override {
    if (data == "[DONE]") {
      is_done_ = true;
      return;
    }
    ++totals_->num_events;
    double sent_at = 0;
    const absl::string_view stamp = data.substr(0, data.find(' '));
    if (absl::StartsWith(stamp, "@") &&
        absl::SimpleAtod(stamp.substr(1), &sent_at)) {
      totals_->deliveries.push_back(now - sent_at);
    }
    if (last_event_at_ == 0) {
      totals_->first.push_back(now - started_at_);
    } else {
      totals_->gaps.push_back(now - last_event_at_);
    }
    last_event_at_ = now;
  }
  void OnEnd(const ResponseEnd& end, double) override {
    if (end.http_status == 0) {
      ++totals_->num_refused;
    } else if (end.http_status != 200) {
      ++totals_->num_bad;
    } else if (!is_done_) {
      ++totals_->num_truncated;
    }
  }

 private:
  Totals* const totals_;
  double started_at_ = 0;
  double last_event_at_ = 0;
  bool is_done_ = false;
};

int RunStreams(const Options& options, LoadClient* client) {
  HttpMessage message;
  message.method = options.body.empty() ? "GET" : "POST";
  message.path = options.path;
  message.body = options.body;
  if (!options.api_key.empty()) {
    message.headers.emplace_back("Authorization",
                                 absl::StrCat("Bearer ", options.api_key));
  }
  if (!options.body.empty()) {
    message.headers.emplace_back("Content-Type", "application/json");
  }
  Totals totals;
  const ProcessUse before = ReadProcessUse(options.server_pid);
  const double start = MonotonicSeconds();
  std::vector<Stream> streams(options.num_streams, Stream(&totals));
  for (Stream& stream : streams) stream.Start(client, message);
  while (client->num_open() > 0) client->Poll(1);
  const double seconds = MonotonicSeconds() - start;
  const ProcessUse after = ReadProcessUse(options.server_pid);
  std::printf(
      "%d streams, %lld events in %.2f s; %d not connected, %d not 200, "
      "%d truncated\n",
      options.num_streams, static_cast<long long>(totals.num_events), seconds,
      totals.num_refused, totals.num_bad, totals.num_truncated);
  PrintPercentiles("first event", &totals.first);
  PrintPercentiles("gap", &totals.gaps);
  PrintPercentiles("delivery", &totals.deliveries);
  if (options.server_pid > 0) PrintProcess(before, after, seconds);
  const ProcessUse own = ReadProcessUse(getpid());
  std::printf("client: %.3f CPU s\n", own.cpu_seconds);
  return totals.num_refused + totals.num_bad + totals.num_truncated == 0 ? 0
                                                                         : 1;
}

// Connections that have had one request answered and then say nothing.
int RunIdle(const Options& options) {
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_port = htons(options.port);
  if (inet_pton(AF_INET, options.host.c_str(), &address.sin_addr) != 1) {
    std::fprintf(stderr, "--idle needs an IPv4 address as --host\n");
    return 64;
  }
  const std::string request =
      absl::StrCat("GET ", options.path, " HTTP/1.1\r\nHost: x\r\n\r\n");
  std::vector<int> fds;
  for (int i = 0; i < options.num_idle; ++i) {
    const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    char bytes[4096];
    if (fd < 0 ||
        connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof(address)) !=
            0 ||
        send(fd, request.data(), request.size(), MSG_NOSIGNAL) < 0 ||
        recv(fd, bytes, sizeof(bytes), 0) <= 0) {
      std::fprintf(stderr, "connection %d of %d failed\n", i, options.num_idle);
      return 1;
    }
    fds.push_back(fd);
  }
  const ProcessUse before = ReadProcessUse(options.server_pid);
  const double start = MonotonicSeconds();
  usleep(options.seconds * 1e6);
  const ProcessUse after = ReadProcessUse(options.server_pid);
  const double seconds = MonotonicSeconds() - start;
  int num_open = 0;
  for (int fd : fds) {
    char byte;
    num_open += recv(fd, &byte, 1, MSG_DONTWAIT) < 0 && errno == EAGAIN;
  }
  std::printf("%d idle connections, %d still open after %.1f s\n",
              options.num_idle, num_open, seconds);
  PrintProcess(before, after, seconds);
  return 0;
}

int Main(int argc, char** argv) {
  Options options;
  CLI::App app("Load for event streams");
  app.add_option("--host", options.host, "name or address");
  app.add_option("--port", options.port);
  app.add_option("--streams", options.num_streams, "opened at once");
  app.add_option("--idle", options.num_idle,
                 "instead: keep-alive connections that stay idle");
  app.add_option("--seconds", options.seconds, "how long they stay idle");
  app.add_option("--path", options.path);
  app.add_option("--body", options.body, "JSON to POST; else GET");
  app.add_option("--api-key", options.api_key);
  app.add_option("--server-pid", options.server_pid,
                 "process whose CPU time and memory are reported");
  CLI11_PARSE(app, argc, argv);
  RaiseOpenFileLimit();
  if (options.num_idle > 0) return RunIdle(options);
  ServerUrl url;
  url.host = options.host;
  url.port = options.port;
  LoadClientOptions client_options;
  client_options.idle_timeout_seconds = 60;
  const auto client = LoadClient::Create(url, client_options);
  if (!client.ok()) {
    std::fprintf(stderr, "%s\n", client.status().ToString().c_str());
    return 69;
  }
  return RunStreams(options, client->get());
}

}  // namespace
}  // namespace quire

int main(int argc, char** argv) { return quire::Main(argc, argv); }
