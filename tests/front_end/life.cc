#include "tests/front_end/life.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <memory>
#include <string>
#include <thread>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "benchmarks/serving/load_client.h"
#include "server/http/test_client.h"
#include "tests/front_end/server_process.h"

namespace quire {
namespace {

constexpr double kMiB = 1 << 20;

std::string Post(absl::string_view body) {
  return absl::StrCat(
      "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: ",
      body.size(), "\r\n\r\n", body);
}

std::string StreamBody(int num_tokens) {
  return absl::StrCat(
      R"({"prompt":"Once","stream":true,"ignore_eos":true,)",
      R"("allowed_token_ids":[68,72,81,82,87,269,273],"max_tokens":)",
      num_tokens, "}");
}

std::vector<std::string> ServeArgs(int num_seqs, int num_queued) {
  return {"--max-num-seqs",           absl::StrCat(num_seqs),
          "--max-num-queued-reqs",    absl::StrCat(num_queued),
          "--max-num-batched-tokens", absl::StrCat(std::max(512, 8 * num_seqs)),
          "--max-model-len",          "2048"};
}

std::unique_ptr<ServerProcess> StartServer(int step_ms, int num_seqs,
                                           int num_queued) {
  ServerProcessOptions options;
  options.own_args = {"--step-ms", absl::StrCat(step_ms), "--num-blocks",
                      absl::StrCat(std::max(4096, 32 * num_seqs))};
  options.serve_args = ServeArgs(num_seqs, num_queued);
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

HttpMessage Message(std::string body) {
  HttpMessage message;
  message.path = "/v1/completions";
  message.body = std::move(body);
  return message;
}

// Milliseconds until `series` is `value`; at most 20 s.
double MillisUntil(const ServerProcess& server, const char* series,
                   double value) {
  const absl::Time begin = absl::Now();
  while (server.Metric(series) != value &&
         absl::Now() - begin < absl::Seconds(20)) {
  }
  return absl::ToDoubleMilliseconds(absl::Now() - begin);
}

constexpr char kRunning[] = "vllm:num_requests_running";
constexpr char kWaiting[] = "vllm:num_requests_waiting";

struct Totals {
  int num_done = 0;     // 200, and to the end.
  int num_refused = 0;  // 503 or 429.
  int num_errors = 0;   // 200 with an error event, and to the end.
  int num_other = 0;
  int64_t num_tokens = 0;  // Of those that are done.
  std::vector<double> refusal_seconds;
  std::vector<double> first_seconds;
};

class Client : public ResponseHandler {
 public:
  explicit Client(Totals* totals) : totals_(totals) {}

  void Start(LoadClient* client, const HttpMessage& message) {
    *this = Client(totals_);
    started_at_ = MonotonicSeconds();
    is_open_ = true;
    client->Start(message, this);
  }
  void OnEvent(absl::string_view data, double now) override {
    if (data == "[DONE]") is_done_ = true;
    if (absl::StartsWith(data, "{\"error\"")) has_error_ = true;
    if (!absl::StrContains(data, R"("finish_reason":null)")) return;
    if (num_tokens_++ == 0) first_seconds_ = now - started_at_;
  }
  void OnEnd(const ResponseEnd& end, double now) override {
    is_open_ = false;
    if (end.http_status == 503 || end.http_status == 429) {
      ++totals_->num_refused;
      totals_->refusal_seconds.push_back(now - started_at_);
    } else if (end.http_status != 200 || !end.status.ok() ||
               (end.is_event_stream && !is_done_)) {
      ++totals_->num_other;
    } else if (has_error_) {
      ++totals_->num_errors;
    } else {
      ++totals_->num_done;
      totals_->num_tokens += num_tokens_;
      totals_->first_seconds.push_back(first_seconds_);
    }
  }
  bool is_open() const { return is_open_; }
  bool has_begun() const { return num_tokens_ > 0; }

 private:
  Totals* totals_;
  double started_at_ = 0;
  double first_seconds_ = 0;
  int num_tokens_ = 0;
  bool is_open_ = false, is_done_ = false, has_error_ = false;
};

// All of `clients` have had a token, or 20 s are over.
void PollUntilBegun(const std::vector<Client>& clients, LoadClient* client) {
  const double deadline = MonotonicSeconds() + 20;
  while (MonotonicSeconds() < deadline &&
         !std::all_of(clients.begin(), clients.end(),
                      [](const Client& c) { return c.has_begun(); })) {
    client->Poll(0.01);
  }
}

}  // namespace

std::vector<Figure> RunDisconnects(int num_clients) {
  const std::string name = absl::StrCat(num_clients, " disconnects: ");
  auto server =
      StartServer(/*step_ms=*/20, /*num_seqs=*/num_clients / 2, num_clients);
  if (server == nullptr) return {{name + "server not started", 1}};
  std::vector<Figure> figures;
  RaiseOpenFileLimit();
  // While it streams; before its first token (the prompt takes steps of 512
  // tokens); with bytes sent ahead that nobody has read.
  const std::string long_prompt =
      absl::StrCat(R"({"max_tokens":9,"prompt":[72)",
                   [] {
                     std::string ids;
                     for (int i = 0; i < 2000; ++i) ids += ",72";
                     return ids;
                   }(),
                   "]}");
  const std::pair<const char*, std::string> kinds[] = {
      {"in a stream", Post(StreamBody(1900))},
      {"before the first token", Post(long_prompt)},
      {"with unread bytes", Post(StreamBody(1900)) + "GET / HTTP/1.1\r\n"}};
  for (const auto& [kind, request] : kinds) {
    std::vector<double> millis;
    for (int i = 0; i < 10; ++i) {
      TestClient client;
      client.Connect(server->port());
      client.Send(request);
      MillisUntil(*server, kRunning, 1);
      client.Close();
      millis.push_back(MillisUntil(*server, kRunning, 0));
    }
    figures.push_back({absl::StrCat("disconnect ", kind, ": p99 to the end"),
                       Percentile(millis, 0.99), "ms", Bound::kAtMost, 100,
                       true});
  }
  // All at once: half of them run, half wait.
  std::vector<TestClient> clients(num_clients);
  for (TestClient& client : clients) {
    client.Connect(server->port());
    client.Send(Post(StreamBody(1900)));
  }
  const bool is_full = WaitUntil([&] {
    return server->Metric(kWaiting) == num_clients - num_clients / 2;
  });
  figures.push_back({name + "half run and half wait", is_full ? 0.0 : 1.0});
  clients.clear();
  const double gone = std::max(MillisUntil(*server, kRunning, 0),
                               MillisUntil(*server, kWaiting, 0));
  figures.push_back({name + "nothing runs or waits after", gone, "ms",
                     Bound::kAtMost, 2000, true});
  figures.push_back(
      {name + "blocks held in the end", server->WaitUntilIdle() ? 0.0 : 1.0});
  figures.push_back({name + "status of the next request",
                     double(Get(server->port(), "/version").first), "",
                     Bound::kExactly, 200});
  return figures;
}

std::vector<Figure> RunOverload(double seconds) {
  const std::string name = "4x overload: ";
  constexpr int kNumSeqs = 64;
  constexpr int kNumTokens = 20;
  auto server = StartServer(/*step_ms=*/10, kNumSeqs, /*num_queued=*/kNumSeqs);
  if (server == nullptr) return {{name + "server not started", 1}};
  const auto client = MakeClient(*server);
  if (client == nullptr) return {{name + "client not connected", 1}};
  const HttpMessage message = Message(StreamBody(kNumTokens));
  // Each asks again as soon as it was answered; who was refused, after a while,
  // as Retry-After says, or four times the load would be one of refusals only.
  // They begin one after the other: four times the rate is not four hundred
  // connects in one moment, which is RunConnectStorm's, and all of which would
  // come back together.
  constexpr double kPause = 0.2;
  const auto run = [&](int num_clients, Totals* totals) {
    std::vector<Client> clients(num_clients, Client(totals));
    const double begin = MonotonicSeconds();
    std::vector<double> next_start(num_clients);
    for (int i = 0; i < num_clients; ++i) {
      next_start[i] = begin + kPause * i / num_clients;
    }
    while (MonotonicSeconds() - begin < seconds) {
      const double now = MonotonicSeconds();
      for (int i = 0; i < num_clients; ++i) {
        if (clients[i].is_open() || now < next_start[i]) continue;
        clients[i].Start(client.get(), message);
        next_start[i] = now + kPause;
      }
      client->Poll(0.002);
    }
    const double took = MonotonicSeconds() - begin;
    client->CancelAll();
    return totals->num_tokens / took;
  };
  Totals warm_up, at_capacity, overloaded;
  std::vector<double> probes;
  run(kNumSeqs, &warm_up);
  const double peak = run(kNumSeqs + kNumSeqs / 2, &at_capacity);
  std::atomic<bool> is_over{false};
  std::thread prober([&] {
    while (!is_over) {
      for (const int port : {server->port(), server->ops_port()}) {
        for (const char* path : {"/health/live", "/health/ready"}) {
          const double asked_at = MonotonicSeconds();
          const bool is_ok = Get(port, path).first == 200;
          probes.push_back(is_ok ? MonotonicSeconds() - asked_at : 1e3);
        }
      }
      absl::SleepFor(absl::Milliseconds(20));
    }
  });
  const double goodput = run(4 * (kNumSeqs + kNumSeqs / 2), &overloaded);
  is_over = true;
  prober.join();
  return {
      {name + "goodput over its peak", goodput / peak, "", Bound::kAtLeast, 0.9,
       true},
      {name + "requests refused", double(overloaded.num_refused), "",
       Bound::kAtLeast, 1},
      {name + "p99 of a refusal",
       1e3 * Percentile(overloaded.refusal_seconds, 0.99), "ms", Bound::kAtMost,
       20, true},
      {name + "p99 of first tokens of admitted requests",
       1e3 * Percentile(overloaded.first_seconds, 0.99), "ms", Bound::kAtMost,
       1000, true},
      {name + "p99 of probes", 1e3 * Percentile(probes, 0.99), "ms",
       Bound::kAtMost, 50, true},
      {name + "probes that failed",
       double(std::count_if(probes.begin(), probes.end(),
                            [](double s) { return s >= 1e3; }))},
      {name + "still held afterwards", server->WaitUntilIdle() ? 0.0 : 1.0}};
}

namespace {

struct Shutdown {
  Totals totals;
  double ready_millis = 0;
  double end_millis = 0;  // From the last stream's end to that of the process.
  int exit_code = -1;
  bool is_new_refused = false;
};

// `signals`: sent one after the other.
Shutdown ShutDown(int num_streams, int num_tokens,
                  const std::vector<std::string>& more_args, int num_signals) {
  Shutdown result;
  ServerProcessOptions options;
  options.own_args = {"--step-ms", "5", "--num-blocks", "65536"};
  options.serve_args = ServeArgs(num_streams, num_streams);
  options.serve_args.insert(options.serve_args.end(), more_args.begin(),
                            more_args.end());
  auto server = ServerProcess::Start(options);
  const auto client = server == nullptr ? nullptr : MakeClient(*server);
  if (client == nullptr) return result;
  std::vector<Client> clients(num_streams, Client(&result.totals));
  const HttpMessage message = Message(StreamBody(num_tokens));
  for (Client& stream : clients) stream.Start(client.get(), message);
  PollUntilBegun(clients, client.get());
  const double begin = MonotonicSeconds();
  server->Signal(SIGTERM);
  while (Get(server->ops_port(), "/health/ready").first == 200) {
  }
  result.ready_millis = 1e3 * (MonotonicSeconds() - begin);
  TestClient late;
  if (late.Connect(server->port())) {
    const TestResponse refused = late.Ask(Post(StreamBody(1)));
    result.is_new_refused = refused.status == 503 &&
                            !refused.Field("retry-after").empty() &&
                            refused.Field("connection") == "close";
  }
  if (num_signals > 1) server->Signal(SIGTERM);
  double last_end = MonotonicSeconds();
  while (client->num_open() > 0) {
    client->Poll(0.01);
    last_end = MonotonicSeconds();
  }
  result.exit_code = server->WaitForExit(absl::Seconds(20)).value_or(-1);
  result.end_millis = 1e3 * (MonotonicSeconds() - last_end);
  return result;
}

}  // namespace

std::vector<Figure> RunShutdowns(int num_runs, int num_streams) {
  const std::string name =
      absl::StrCat(num_runs, " SIGTERMs with ", num_streams, " streams: ");
  int num_not_done = 0, num_bad_exits = 0, num_late_served = 0;
  std::vector<double> ready, ends;
  for (int run = 0; run < num_runs; ++run) {
    const Shutdown result = ShutDown(num_streams, /*num_tokens=*/100, {}, 1);
    num_not_done += num_streams - result.totals.num_done;
    num_bad_exits += result.exit_code != 0;
    num_late_served += !result.is_new_refused;
    ready.push_back(result.ready_millis);
    ends.push_back(result.end_millis);
  }
  std::vector<Figure> figures = {
      {name + "streams that did not end properly", double(num_not_done)},
      {name + "exit codes other than 0", double(num_bad_exits)},
      {name + "new requests not refused as they should",
       double(num_late_served)},
      {name + "ready is 503 after, at most", Percentile(ready, 1), "ms",
       Bound::kAtMost, 100, true},
      {name + "the process ends after its last stream, at most",
       Percentile(ends, 1), "ms", Bound::kAtMost, 1000, true}};
  for (const bool is_second : {true, false}) {
    const std::string kind = is_second ? "second SIGTERM: " : "end of grace: ";
    const std::vector<std::string> args =
        is_second ? std::vector<std::string>()
                  : std::vector<std::string>{"--shutdown-timeout", "0.5"};
    const Shutdown result =
        ShutDown(num_streams, /*num_tokens=*/1900, args, is_second ? 2 : 1);
    figures.push_back({kind + "streams without an error event and an end",
                       double(num_streams - result.totals.num_errors)});
    figures.push_back({kind + "exit code", double(result.exit_code), "",
                       Bound::kExactly, 75});
    figures.push_back({kind + "the process ends after", result.end_millis, "ms",
                       Bound::kAtMost, 2000, true});
  }
  return figures;
}

std::vector<Figure> RunHungEngine(int num_streams) {
  const std::string name = "hung engine: ";
  constexpr int kHangAtStep = 20;
  ServerProcessOptions options;
  options.own_args = {"--step-ms", "5", "--hang-at-step",
                      absl::StrCat(kHangAtStep)};
  options.serve_args = ServeArgs(num_streams, num_streams);
  options.serve_args.push_back("--watchdog-timeout");
  options.serve_args.push_back("0.5");
  auto server = ServerProcess::Start(options);
  if (server == nullptr) return {{name + "server not started", 1}};
  const auto client = MakeClient(*server);
  if (client == nullptr) return {{name + "client not connected", 1}};
  const int before = Get(server->ops_port(), "/health/live").first;

  Totals totals;
  std::vector<Client> streams(num_streams, Client(&totals));
  const HttpMessage message = Message(StreamBody(1900));
  for (Client& stream : streams) stream.Start(client.get(), message);
  const bool hangs = WaitUntil([&] {
    client->Poll(0.001);
    return Get(server->ops_port(), "/health/live").first == 503;
  });
  Totals late_totals;
  Client late_stream(&late_totals), late(&late_totals);
  late_stream.Start(client.get(), message);
  late.Start(client.get(), Message(R"({"prompt":"a","max_tokens":2})"));
  int num_wrong_probes = 0;
  for (const int port : {server->port(), server->ops_port()}) {
    for (const auto& [path, status] :
         {std::pair("/health/live", 503), std::pair("/health/ready", 503),
          std::pair("/health", 503), std::pair("/metrics", 200),
          std::pair("/version", 200)}) {
      num_wrong_probes += Get(port, path).first != status;
    }
  }
  const double begin = MonotonicSeconds();
  while (client->num_open() > 0) client->Poll(0.01);
  const int exit_code = server->WaitForExit(absl::Seconds(20)).value_or(-1);
  const double seconds = MonotonicSeconds() - begin;
  int num_begun = 0;
  for (const Client& stream : streams) num_begun += stream.has_begun();
  return {
      {name + "/health/live before it hangs", double(before), "",
       Bound::kExactly, 200},
      {name + "/health/live is not 503 when it does", hangs ? 0.0 : 1.0},
      {name + "probes with another status than they should have",
       double(num_wrong_probes)},
      // How many have begun when it stands still is up to the machine.
      {name + "streams with a token before", double(num_begun), "",
       Bound::kAtLeast, 1},
      {name + "streams without an error event and an end",
       double(num_streams - totals.num_errors)},
      {name + "later stream without an error event and an end",
       1.0 - late_totals.num_errors},
      {name + "later request not answered with 503",
       1.0 - late_totals.num_refused},
      {name + "exit code", double(exit_code), "", Bound::kExactly, 70},
      {name + "log without a word of it",
       absl::StrContains(server->ErrorText(), "the engine hangs") ? 0.0 : 1.0},
      {name + "the process ends after", seconds, "s", Bound::kAtMost, 15,
       true}};
}

std::vector<Figure> RunManyRequests(int64_t num_requests) {
  const std::string name = absl::StrCat(num_requests, " requests: ");
  auto server = StartServer(/*step_ms=*/0, /*num_seqs=*/32, /*num_queued=*/512);
  if (server == nullptr) return {{name + "server not started", 1}};
  const auto client = MakeClient(*server);
  if (client == nullptr) return {{name + "client not connected", 1}};
  constexpr int kNumClients = 16;
  Totals totals;
  std::vector<Client> clients(kNumClients, Client(&totals));
  int64_t num_started = 0;
  int64_t warm_bytes = 0;
  int64_t num_aborted = 0;
  int warm_files = 0, warm_threads = 0;
  double begin = MonotonicSeconds();
  // Prompts that differ, so that caches turn over; streams and whole answers;
  // one in ten leaves.
  const int64_t num_warm = num_requests / 10;
  while (num_started < num_requests) {
    for (Client& each : clients) {
      if (each.is_open() || num_started == num_requests) continue;
      ++num_started;
      if (num_started % 10 == 0) {
        ++num_aborted;
        TestClient leaves;
        leaves.Connect(server->port());
        leaves.Send(Post(StreamBody(400)));
        continue;
      }
      each.Start(client.get(),
                 Message(absl::StrCat(
                     R"({"max_tokens":2,"prompt":"question )", num_started,
                     num_started % 3 == 0 ? R"(","stream":true})" : R"("})")));
    }
    client->Poll(0.01);
    if (warm_bytes == 0) {
      warm_files = std::max(warm_files, server->CountOpenFiles());
    }
    if (warm_bytes == 0 && num_started >= num_warm) {
      warm_bytes = server->ResidentBytes();
      warm_threads = server->CountThreads();
      begin = MonotonicSeconds();
    }
  }
  while (client->num_open() > 0) client->Poll(0.01);
  const double rate = (num_requests - num_warm) / (MonotonicSeconds() - begin);
  const bool is_idle = server->WaitUntilIdle();
  const double growth = (server->ResidentBytes() - warm_bytes) / kMiB;
  // The server may not have seen yet that the last ones hung up.
  const double deadline = MonotonicSeconds() + 10;
  while (server->CountOpenFiles() > warm_files &&
         MonotonicSeconds() < deadline) {
    absl::SleepFor(absl::Milliseconds(5));
  }
  return {
      {name + "failed or refused",
       double(totals.num_refused + totals.num_errors + totals.num_other)},
      {name + "answered", double(totals.num_done), "", Bound::kExactly,
       double(num_requests - num_aborted)},
      // Of few requests a page is a slope.
      {name + "growth for each 100,000",
       growth / std::max(1.0, (num_requests - num_warm) / 1e5), "MiB",
       Bound::kAtMost, 1, num_requests < 100'000},
      {name + "growth of threads",
       double(server->CountThreads() - warm_threads)},
      {name + "more descriptors than at most before",
       double(std::max(0, server->CountOpenFiles() - warm_files))},
      {name + "still held afterwards", is_idle ? 0.0 : 1.0},
      {name + "requests per second", rate, "1/s", Bound::kAtLeast, 100, true}};
}

std::vector<Figure> RunIdleProgram(double seconds) {
  ServerProcessOptions options;
  options.program = "cli/quire";
  auto server = ServerProcess::Start(options);
  if (server == nullptr) return {{"idle program: server not started", 1}};
  Get(server->port(), "/version");
  // What is prepared ahead once it serves.
  absl::SleepFor(absl::Seconds(1));
  const double before = server->CpuSeconds();
  const double begin = MonotonicSeconds();
  absl::SleepFor(absl::Seconds(seconds));
  const double cores =
      (server->CpuSeconds() - before) / (MonotonicSeconds() - begin);
  return {{"idle program: resident", server->ResidentBytes() / kMiB, "MiB",
           Bound::kAtMost, 300},
          {"idle program: cores", cores, "", Bound::kAtMost, 0.01, true}};
}

namespace {

// Asks for an answer; the status.
int AskOnce(const ServerProcess& server) {
  TestClient client;
  if (!client.Connect(server.port())) return 0;
  return client.Ask(Post(R"({"prompt":"a","max_tokens":2})")).status;
}

std::vector<Figure> RunFewDescriptors() {
  const std::string name = "64 descriptors: ";
  ServerProcessOptions options;
  options.max_open_files = 64;
  options.serve_args = {"--max-num-seqs", "64"};
  auto server = ServerProcess::Start(options);
  if (server == nullptr) return {{name + "server not started", 1}};
  // More connections than descriptors: served, refused or closed, never left
  // without an answer; then all is as before.
  int num_unanswered = 0;
  {
    std::vector<TestClient> clients(200);
    for (TestClient& client : clients) {
      client.Connect(server->port());
      client.Send("GET /version HTTP/1.1\r\nHost: x\r\n\r\n");
    }
    for (TestClient& client : clients) {
      const absl::Time begin = absl::Now();
      const int status = client.Receive().status;
      num_unanswered += status != 200 && status != 503 &&
                        absl::Now() - begin > absl::Seconds(15);
    }
  }
  // The server may not have seen yet that the last ones hung up.
  const double deadline = MonotonicSeconds() + 10;
  int status = 0;
  while (status != 200 && MonotonicSeconds() < deadline) {
    status = AskOnce(*server);
  }
  return {{name + "connections without an answer", double(num_unanswered)},
          {name + "status of the next request once they are gone",
           double(status), "", Bound::kExactly, 200},
          {name + "exit code", double(server->Terminate().value_or(-1))}};
}

// Standard output that nobody reads, or nobody has, and an error output on a
// full disk: none of it delays or ends anything.
std::vector<Figure> RunOutputFaults() {
  std::vector<Figure> figures;
  for (const char* fault : {"stdout not read", "stdout closed", "disk full"}) {
    const std::string name = absl::StrCat(fault, ": ");
    ServerProcessOptions options;
    options.serve_args = {"--max-num-seqs", "64"};
    if (absl::StartsWith(fault, "disk")) options.error_path = "/dev/full";
    auto server = ServerProcess::Start(options);
    if (server == nullptr) return {{name + "server not started", 1}};
    if (absl::StrContains(fault, "closed")) server->CloseOutput();
    int num_failed = 0;
    for (int i = 0; i < 500; ++i) num_failed += AskOnce(*server) != 200;
    figures.push_back({name + "requests failed", double(num_failed)});
    figures.push_back(
        {name + "exit code", double(server->Terminate().value_or(-1))});
  }
  return figures;
}

}  // namespace

std::vector<Figure> RunSystemFaults() {
  std::vector<Figure> figures = RunFewDescriptors();
  for (Figure& figure : RunOutputFaults()) figures.push_back(std::move(figure));
  return figures;
}

}  // namespace quire
