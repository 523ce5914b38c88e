// `quire bench startup`: this program's own `serve`, started again and again.
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "benchmarks/process_use.h"
#include "benchmarks/serving/completion_api.h"
#include "benchmarks/serving/load_client.h"
#include "benchmarks/statistics.h"
#include "cli/bench.h"
#include "cli/bench_output.h"
#include "cli/exit_codes.h"
#include "engine/base/status.h"
#include "nlohmann/json.hpp"

extern char** environ;

namespace quire {
namespace {

using Json = nlohmann::ordered_json;

constexpr double kFirstTokenTimeout = 600;

// How long a server may take to end.
constexpr double kStopTimeout = 20;

// How long a signal may stay unnoticed.
constexpr int kPollMilliseconds = 50;

// What a failed start has said last is kept to so many bytes.
constexpr off_t kMaxErrorBytes = 64 << 10;

// Of "http://127.0.0.1:8080, operations ...": the first; 0 if there is none.
int PortOf(absl::string_view address) {
  address = address.substr(0, address.find(','));
  int port = 0;
  const bool is_number =
      absl::SimpleAtoi(address.substr(address.rfind(':') + 1), &port);
  return is_number ? port : 0;
}

// A `quire serve` process with its standard output as a file here. What it says
// on standard error is shown only if it fails: it would come between the lines
// of the benchmark.
class ServeProcess {
 public:
  ServeProcess() = default;
  ServeProcess(const ServeProcess&) = delete;
  ServeProcess& operator=(const ServeProcess&) = delete;
  ~ServeProcess() {
    if (output_fd_ >= 0) close(output_fd_);
    if (pid_ > 0) Stop();
    if (errors_fd_ >= 0) close(errors_fd_);
  }

  absl::Status Start(const std::vector<std::string>& serve_args) {
    std::vector<std::string> args = {"quire", "serve", "--port", "0"};
    args.insert(args.end(), serve_args.begin(), serve_args.end());
    std::vector<char*> argv;
    for (std::string& arg : args) argv.push_back(arg.data());
    argv.push_back(nullptr);
    int pipe_fds[2];
    if (pipe2(pipe_fds, O_CLOEXEC) != 0) {
      return absl::UnavailableError(std::strerror(errno));
    }
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, pipe_fds[1], STDOUT_FILENO);
    // Not a pipe, which would have to be read lest the process waits.
    errors_fd_ = memfd_create("quire_serve_errors", MFD_CLOEXEC);
    if (errors_fd_ >= 0) {
      posix_spawn_file_actions_adddup2(&actions, errors_fd_, STDERR_FILENO);
    }
    const int error = posix_spawn(&pid_, "/proc/self/exe", &actions, nullptr,
                                  argv.data(), environ);
    posix_spawn_file_actions_destroy(&actions);
    close(pipe_fds[1]);
    output_fd_ = pipe_fds[0];
    if (error != 0) {
      pid_ = -1;
      return absl::UnavailableError(std::strerror(error));
    }
    return absl::OkStatus();
  }

  // Waits for the table that start-up prints; the port in it. UNAVAILABLE if
  // the process ends before; exit_code() is then its own. CANCELLED by a
  // signal.
  absl::StatusOr<int> WaitForPort(const std::atomic<bool>& is_interrupted) {
    int port = 0;
    std::string text;
    for (;;) {
      if (is_interrupted) return absl::CancelledError("interrupted");
      pollfd ready = {output_fd_, POLLIN, 0};
      if (poll(&ready, 1, kPollMilliseconds) <= 0) continue;
      char piece[4096];
      const ssize_t count = read(output_fd_, piece, sizeof(piece));
      if (count < 0 && errno == EINTR) continue;
      if (count <= 0) break;
      text.append(piece, count);
      for (size_t end; (end = text.find('\n')) != std::string::npos;
           text.erase(0, end + 1)) {
        const absl::string_view line = absl::string_view(text).substr(0, end);
        if (absl::StrContains(line, " address ")) port = PortOf(line);
        if (absl::StrContains(line, "ready in") && port > 0) return port;
        // --log-format json
        const Json json = Json::parse(line, nullptr, false);
        if (json.is_object() && json.contains("ready_in")) {
          port = PortOf(json.value("address", ""));
          if (port > 0) return port;
        }
      }
    }
    Wait();
    return absl::UnavailableError(absl::StrCat(
        "quire serve ended with ", exit_code_, " before it was ready"));
  }

  // Prints what the process has said on standard error.
  void ShowErrors() const {
    if (errors_fd_ < 0) return;
    const off_t size = lseek(errors_fd_, 0, SEEK_END);
    std::string text(std::min(size, kMaxErrorBytes), '\0');
    const ssize_t count =
        pread(errors_fd_, text.data(), text.size(), size - text.size());
    if (count > 0) std::fwrite(text.data(), 1, count, stderr);
  }

  int pid() const { return pid_; }
  int exit_code() const { return exit_code_; }

 private:
  // True if the process has ended.
  bool Reap(int options) {
    int status = 0;
    pid_t pid;
    do {
      pid = waitpid(pid_, &status, options);
    } while (pid < 0 && errno == EINTR);
    if (pid == 0) return false;
    exit_code_ = WIFEXITED(status) ? WEXITSTATUS(status) : kExitEngine;
    pid_ = -1;
    return true;
  }
  void Wait() { Reap(0); }
  // As an operator would end it; by force if it does not.
  void Stop() {
    kill(pid_, SIGTERM);
    const double deadline = MonotonicSeconds() + kStopTimeout;
    while (!Reap(WNOHANG)) {
      if (MonotonicSeconds() >= deadline) {
        kill(pid_, SIGKILL);
        Wait();
        return;
      }
      absl::SleepFor(absl::Milliseconds(5));
    }
  }

  int exit_code_ = kExitDevice;
  pid_t pid_ = -1;
  int output_fd_ = -1;
  int errors_fd_ = -1;
};

// The time of the first event.
class FirstEvent : public ResponseHandler {
 public:
  void OnEvent(absl::string_view, double now) override {
    if (time == 0) time = now;
  }
  void OnEnd(const ResponseEnd& response, double) override {
    is_done = true;
    if (!response.status.ok()) {
      error = std::string(response.status.message());
    } else if (response.http_status != 200) {
      error = ErrorText(response.http_status, response.body);
    }
  }
  double time = 0;
  bool is_done = false;
  std::string error;
};

struct StartupSample {
  double ready_seconds = 0;        // Exec to 200 of /health/ready.
  double first_token_seconds = 0;  // Exec to the first token of a completion.
  double ready_bytes = 0;          // Resident memory then.
  double peak_bytes = 0;           // After the token.
};

// INVALID_ARGUMENT for arguments of `quire serve` that it would refuse, or with
// which it cannot be reached from here.
absl::StatusOr<ServeOptions> ReadServeArgs(
    const std::vector<std::string>& serve_args) {
  std::vector<std::string> args = {"serve"};
  args.insert(args.end(), serve_args.begin(), serve_args.end());
  QUIRE_ASSIGN_OR_RETURN(CommandLine parsed, ParseCommandLine(args));
  if (parsed.command != Command::kServe) {
    return absl::InvalidArgumentError("behind -- are arguments of quire serve");
  }
  for (const auto& [name, value] :
       {std::pair("--uds", &parsed.serve.unix_socket),
        std::pair("--ssl-certfile", &parsed.serve.ssl_certfile)}) {
    if (value->empty()) continue;
    return absl::InvalidArgumentError(absl::StrCat(
        name, " ", *value, ": bench startup reaches a server over plain TCP"));
  }
  return std::move(parsed.serve);
}

// On failure `exit_code` says how to exit; CANCELLED by a signal.
absl::StatusOr<StartupSample> StartOnce(
    const std::vector<std::string>& serve_args, const std::string& api_key,
    ServeProcess& process, const std::atomic<bool>& is_interrupted,
    int* exit_code) {
  StartupSample sample;
  *exit_code = kExitDevice;
  const double start = MonotonicSeconds();
  QUIRE_RETURN_IF_ERROR(process.Start(serve_args));
  const auto found_port = process.WaitForPort(is_interrupted);
  if (!found_port.ok()) {
    *exit_code = process.exit_code();
    return found_port.status();
  }
  const int port = *found_port;
  QUIRE_ASSIGN_OR_RETURN(const ServerUrl url, ParseServerUrl(absl::StrCat(
                                                  "http://127.0.0.1:", port)));
  QUIRE_ASSIGN_OR_RETURN(const std::unique_ptr<LoadClient> client,
                         LoadClient::Create(url, LoadClientOptions()));
  HttpMessage message;
  message.method = "GET";
  message.path = "/health/ready";
  const ResponseEnd ready =
      client->Fetch(message, /*timeout_seconds=*/60, &is_interrupted);
  QUIRE_RETURN_IF_ERROR(ready.status);
  if (ready.http_status != 200) {
    return absl::UnavailableError(ErrorText(ready.http_status, ready.body));
  }
  sample.ready_seconds = MonotonicSeconds() - start;
  sample.ready_bytes = ReadProcessUse(process.pid()).resident_bytes;

  CompletionParams params;
  LoadPrompt prompt;
  prompt.text = "Hello";
  prompt.output_len = 1;
  message = HttpMessage();
  message.path = "/v1/completions";
  message.headers = {{"Content-Type", "application/json"}};
  if (!api_key.empty()) {
    message.headers.emplace_back("Authorization", "Bearer " + api_key);
  }
  message.body = CompletionBody(params, prompt);
  FirstEvent first;
  client->Start(message, &first);
  const double deadline = MonotonicSeconds() + kFirstTokenTimeout;
  while (!first.is_done && !is_interrupted && MonotonicSeconds() < deadline) {
    client->Poll(1e-3 * kPollMilliseconds);
  }
  if (is_interrupted) return absl::CancelledError("interrupted");
  if (!first.error.empty()) return absl::UnavailableError(first.error);
  if (first.time == 0) return absl::UnavailableError("no token came");
  sample.first_token_seconds = first.time - start;
  sample.peak_bytes = ReadProcessUse(process.pid()).peak_resident_bytes;
  return sample;
}

}  // namespace

int RunBenchStartup(const BenchStartupOptions& options) {
  const std::atomic<bool>& is_interrupted = InterruptFlag();
  const auto serve = ReadServeArgs(options.serve_args);
  if (!serve.ok()) return FailBench(serve.status(), kExitUsage);
  const std::string api_key =
      serve->api_keys.empty() ? "" : serve->api_keys.front();
  struct Row {
    const char* name;
    const char* key;
    double StartupSample::*member;
    double unit;
    const char* unit_name;
  };
  constexpr Row kRows[] = {{"exec to ready", "ready_seconds",
                            &StartupSample::ready_seconds, 1e-3, "ms"},
                           {"exec to first token", "first_token_seconds",
                            &StartupSample::first_token_seconds, 1e-3, "ms"},
                           {"memory when ready", "ready_bytes",
                            &StartupSample::ready_bytes, 1 << 20, "MiB"},
                           {"peak memory", "peak_bytes",
                            &StartupSample::peak_bytes, 1 << 20, "MiB"}};
  std::vector<StartupSample> samples;
  ProgressLine line(true);
  for (int i = 0; i < options.repetitions && !is_interrupted; ++i) {
    line.Show("starts", i, options.repetitions, "");
    int exit_code = 0;
    ServeProcess process;
    auto sample = StartOnce(options.serve_args, api_key, process,
                            is_interrupted, &exit_code);
    if (!sample.ok() && is_interrupted) break;
    if (!sample.ok()) {
      line.Clear();
      process.ShowErrors();
      return FailBench(sample.status(), exit_code);
    }
    samples.push_back(*sample);
  }
  line.Clear();
  if (samples.empty()) return kExitInterrupted;
  Json json = {{"repetitions", samples.size()}};
  for (const Row& row : kRows) {
    std::vector<double> values;
    for (const StartupSample& sample : samples) {
      values.push_back(sample.*row.member);
    }
    json[row.key] = values;
    absl::PrintF("%-20s %s %s\n", row.name, Spread(values, row.unit, "%.1f"),
                 row.unit_name);
  }
  absl::PrintF("median [min, max] of %d\n", samples.size());
  if (!options.output_json.empty()) {
    const absl::Status status =
        WriteTextFile(options.output_json, json.dump(2) + "\n");
    if (!status.ok()) return FailBench(status, kExitDevice);
  }
  return is_interrupted ? kExitInterrupted : kExitOk;
}

}  // namespace quire
