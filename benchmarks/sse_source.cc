// The HTTP front end without an engine: every GET /sse is a stream of
// `--events` events, one per step of `--step-ms` on all streams at once, as a
// decode step of a full batch makes them. For sse_load.
//
// Runs until SIGINT or SIGTERM; then prints what the writing thread spent per
// step, which is what the front end costs an engine's output thread.
#include <pthread.h>
#include <signal.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_format.h"
#include "engine/base/clock.h"
#include "server/http_server.h"

namespace quire {
namespace {

struct Stream {
  std::shared_ptr<HttpResponder> responder;
  int num_left = 0;
};

double NowSeconds() {
  return absl::ToDoubleSeconds(Clock::Monotonic()->Now() - absl::UnixEpoch());
}

class Source {
 public:
  Source(int num_events, int step_ms, int event_bytes)
      : num_events_(num_events),
        step_(std::chrono::milliseconds(step_ms)),
        event_bytes_(event_bytes),
        thread_([this] { Run(); }) {}

  void Add(std::shared_ptr<HttpResponder> responder) {
    responder->StartStream();
    std::lock_guard<std::mutex> lock(mu_);
    added_.push_back({std::move(responder), num_events_});
  }
  void StopAndReport();

 private:
  void Run();
  void Step(std::vector<Stream>* streams);

  const int num_events_;
  const std::chrono::milliseconds step_;
  const size_t event_bytes_;
  std::atomic<bool> is_stopping_{false};
  std::mutex mu_;
  std::vector<Stream> added_;  // Guarded by mu_.
  // Of steps with at least half of the largest number of streams seen.
  std::vector<std::pair<size_t, double>> costs_;
  std::thread thread_;
};

void Source::Run() {
  std::vector<Stream> streams;
  auto next = std::chrono::steady_clock::now();
  while (!is_stopping_) {
    next += step_;
    std::this_thread::sleep_until(next);
    {
      std::lock_guard<std::mutex> lock(mu_);
      std::move(added_.begin(), added_.end(), std::back_inserter(streams));
      added_.clear();
    }
    if (!streams.empty()) Step(&streams);
  }
}

void Source::Step(std::vector<Stream>* streams) {
  // Rendering is the API's part, not the transport's.
  std::string event = absl::StrFormat("data: @%.9f ", NowSeconds());
  event.resize(std::max(event.size(), event_bytes_), 'x');
  event += "\n\n";
  std::vector<std::string> events(streams->size(), event);
  const double start = NowSeconds();
  for (size_t i = 0; i < streams->size(); ++i) {
    (*streams)[i].responder->Write(std::move(events[i]));
  }
  costs_.emplace_back(streams->size(), NowSeconds() - start);
  for (Stream& stream : *streams) {
    if (--stream.num_left > 0) continue;
    stream.responder->Write("data: [DONE]\n\n");
    stream.responder->Finish();
  }
  std::erase_if(*streams, [](const Stream& s) { return s.num_left <= 0; });
}

void Source::StopAndReport() {
  is_stopping_ = true;
  thread_.join();
  if (costs_.empty()) return;
  const size_t most = std::max_element(costs_.begin(), costs_.end())->first;
  std::vector<double> full;
  for (const auto& [num_streams, seconds] : costs_) {
    if (num_streams == most) full.push_back(seconds);
  }
  std::sort(full.begin(), full.end());
  std::printf("%zu Writes took p50 %.3f ms, p99 %.3f ms, max %.3f ms (%zu)\n",
              most, full[full.size() / 2] * 1e3,
              full[full.size() * 99 / 100] * 1e3, full.back() * 1e3,
              full.size());
}

int Main(int argc, char** argv) {
  HttpServerOptions options;
  int num_events = 200;
  int step_ms = 30;
  int event_bytes = 180;
  CLI::App app("Event streams without an engine");
  app.add_option("--port", options.port);
  app.add_option("--workers", options.num_workers);
  app.add_option("--events", num_events, "per stream");
  app.add_option("--step-ms", step_ms, "between two events of a stream");
  app.add_option("--event-bytes", event_bytes);
  CLI11_PARSE(app, argc, argv);

  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGINT);
  sigaddset(&signals, SIGTERM);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);

  Source source(num_events, step_ms, event_bytes);
  auto server = HttpServer::Create(options);
  if (!server.ok()) {
    std::fprintf(stderr, "%s\n", server.status().ToString().c_str());
    return 64;
  }
  (*server)->AddRoute("GET", "/sse", RouteAccess::kPublic,
                      [&](const HttpRequest&, auto responder) {
                        source.Add(std::move(responder));
                      });
  (*server)->AddRoute("GET", "/health", RouteAccess::kPublic,
                      [](const HttpRequest&, auto responder) {
                        responder->Send(200, "text/plain", "ok");
                      });
  if (absl::Status status = (*server)->Start(); !status.ok()) {
    std::fprintf(stderr, "%s\n", status.ToString().c_str());
    return 1;
  }
  std::printf("pid %d port %d\n", getpid(), (*server)->port());
  std::fflush(stdout);
  int signal = 0;
  sigwait(&signals, &signal);
  source.StopAndReport();
  (*server)->Stop(absl::Seconds(1));
  return 0;
}

}  // namespace
}  // namespace quire

int main(int argc, char** argv) { return quire::Main(argc, argv); }
