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
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "engine/base/clock.h"

namespace quire {
namespace {

struct Options {
  std::string host = "127.0.0.1";  // An address.
  int port = 8080;
  int num_streams = 1024;
  int num_idle = 0;
  double seconds = 10;
  std::string path = "/sse";
  std::string body;  // Not empty: POST as JSON.
  std::string api_key;
  int server_pid = 0;
};

double NowSeconds() {
  return absl::ToDoubleSeconds(Clock::Monotonic()->Now() - absl::UnixEpoch());
}

// CPU time and memory of another process, from /proc.
struct ProcessUse {
  double cpu_seconds = 0;
  int64_t peak_rss_kib = 0;
  int64_t rss_kib = 0;
  int64_t num_threads = 0;
};

ProcessUse ReadProcess(int pid) {
  ProcessUse use;
  if (pid <= 0) return use;
  std::ifstream stat(absl::StrCat("/proc/", pid, "/stat"));
  std::string text((std::istreambuf_iterator<char>(stat)), {});
  // Fields 14 and 15, counted from the state (3) after the name in brackets.
  const char* position = text.c_str() + text.rfind(')') + 1;
  unsigned long user = 0;
  unsigned long system = 0;
  std::sscanf(position, " %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %lu %lu",
              &user, &system);
  use.cpu_seconds = double(user + system) / sysconf(_SC_CLK_TCK);
  std::ifstream status(absl::StrCat("/proc/", pid, "/status"));
  for (std::string line; std::getline(status, line);) {
    const auto value = [&] {
      return std::atoll(line.c_str() + line.find(':') + 1);
    };
    if (absl::StartsWith(line, "VmHWM:")) use.peak_rss_kib = value();
    if (absl::StartsWith(line, "VmRSS:")) use.rss_kib = value();
    if (absl::StartsWith(line, "Threads:")) use.num_threads = value();
  }
  return use;
}

void PrintProcess(const ProcessUse& before, const ProcessUse& after,
                  double seconds) {
  std::printf(
      "server: %.3f CPU s in %.2f s = %.4f cores, RSS %.1f MiB (peak %.1f), "
      "%lld threads\n",
      after.cpu_seconds - before.cpu_seconds, seconds,
      (after.cpu_seconds - before.cpu_seconds) / seconds,
      after.rss_kib / 1024.0, after.peak_rss_kib / 1024.0,
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

struct Stream {
  int fd = -1;
  bool is_connecting = true;
  bool has_head = false;
  bool is_done = false;  // Saw [DONE].
  double started_at = 0;
  double last_event_at = 0;
  std::string received;
};

class Load {
 public:
  explicit Load(const Options& options) : options_(options) {
    epoll_fd_ = epoll_create1(EPOLL_CLOEXEC);
    address_.sin_family = AF_INET;
    address_.sin_port = htons(options.port);
    if (inet_pton(AF_INET, options.host.c_str(), &address_.sin_addr) != 1) {
      std::fprintf(stderr, "--host takes an IPv4 address\n");
      std::exit(64);
    }
    request_ = absl::StrCat(options.body.empty() ? "GET " : "POST ",
                            options.path, " HTTP/1.1\r\nHost: ", options.host,
                            "\r\nConnection: close\r\n");
    if (!options.api_key.empty()) {
      absl::StrAppend(&request_, "Authorization: Bearer ", options.api_key,
                      "\r\n");
    }
    if (!options.body.empty()) {
      absl::StrAppend(&request_, "Content-Type: application/json\r\n",
                      "Content-Length: ", options.body.size(), "\r\n");
    }
    absl::StrAppend(&request_, "\r\n", options.body);
  }
  ~Load() { close(epoll_fd_); }

  int RunStreams();
  int RunIdle();

 private:
  bool Open(Stream* stream);
  void OnEvent(Stream* stream, uint32_t events);
  void Parse(Stream* stream, double now);
  void End(Stream* stream);

  const Options options_;
  int epoll_fd_;
  sockaddr_in address_ = {};
  std::string request_;
  int num_left_ = 0;
  int num_refused_ = 0;    // No connection.
  int num_bad_ = 0;        // Another status than 200.
  int num_truncated_ = 0;  // Ended without [DONE].
  int64_t num_events_ = 0;
  std::vector<double> first_, gaps_, deliveries_;
};

bool Load::Open(Stream* stream) {
  stream->started_at = NowSeconds();
  stream->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  if (stream->fd < 0) return false;
  if (connect(stream->fd, reinterpret_cast<sockaddr*>(&address_),
              sizeof(address_)) != 0 &&
      errno != EINPROGRESS) {
    return false;
  }
  epoll_event event = {};
  event.events = EPOLLOUT;
  event.data.ptr = stream;
  return epoll_ctl(epoll_fd_, EPOLL_CTL_ADD, stream->fd, &event) == 0;
}

void Load::End(Stream* stream) {
  if (!stream->is_done && !stream->is_connecting && stream->has_head) {
    ++num_truncated_;
  }
  close(stream->fd);
  stream->fd = -1;
  --num_left_;
}

void Load::OnEvent(Stream* stream, uint32_t events) {
  if (stream->is_connecting) {
    int error = 0;
    socklen_t size = sizeof(error);
    getsockopt(stream->fd, SOL_SOCKET, SO_ERROR, &error, &size);
    // The request fits into an empty socket buffer.
    if (error != 0 ||
        send(stream->fd, request_.data(), request_.size(), MSG_NOSIGNAL) !=
            static_cast<ssize_t>(request_.size())) {
      ++num_refused_;
      return End(stream);
    }
    stream->is_connecting = false;
    epoll_event event = {};
    event.events = EPOLLIN;
    event.data.ptr = stream;
    epoll_ctl(epoll_fd_, EPOLL_CTL_MOD, stream->fd, &event);
    return;
  }
  char bytes[64 << 10];
  const ssize_t size = recv(stream->fd, bytes, sizeof(bytes), 0);
  if (size < 0 && (errno == EAGAIN || errno == EINTR)) return;
  if (size <= 0) {
    if (!stream->has_head) ++num_bad_;
    return End(stream);
  }
  stream->received.append(bytes, size);
  Parse(stream, NowSeconds());
}

// Chunk framing needs no decoding: every event is within one line.
void Load::Parse(Stream* stream, double now) {
  if (!stream->has_head) {
    const size_t end = stream->received.find("\r\n\r\n");
    if (end == std::string::npos) return;
    stream->has_head = true;
    if (!absl::StartsWith(stream->received, "HTTP/1.1 200")) {
      ++num_bad_;
      stream->is_done = true;
    }
    stream->received.erase(0, end + 4);
  }
  size_t start = 0;
  for (size_t end;
       (end = stream->received.find('\n', start)) != std::string::npos;
       start = end + 1) {
    const absl::string_view line =
        absl::string_view(stream->received).substr(start, end - start);
    if (!absl::StartsWith(line, "data: ")) continue;
    if (absl::StartsWith(line, "data: [DONE]")) {
      stream->is_done = true;
      continue;
    }
    ++num_events_;
    if (line.size() > 8 && line[6] == '@') {
      deliveries_.push_back(now -
                            std::atof(std::string(line.substr(7)).c_str()));
    }
    if (stream->last_event_at == 0) {
      first_.push_back(now - stream->started_at);
    } else {
      gaps_.push_back(now - stream->last_event_at);
    }
    stream->last_event_at = now;
  }
  stream->received.erase(0, start);
}

int Load::RunStreams() {
  const ProcessUse before = ReadProcess(options_.server_pid);
  const double start = NowSeconds();
  std::vector<Stream> streams(options_.num_streams);
  num_left_ = options_.num_streams;
  for (Stream& stream : streams) {
    if (Open(&stream)) continue;
    ++num_refused_;
    End(&stream);
  }
  std::vector<epoll_event> events(1024);
  while (num_left_ > 0) {
    const int count =
        epoll_wait(epoll_fd_, events.data(), events.size(), 60000);
    if (count == 0) break;  // Nothing from any stream for a minute.
    for (int i = 0; i < count; ++i) {
      OnEvent(static_cast<Stream*>(events[i].data.ptr), events[i].events);
    }
  }
  const double seconds = NowSeconds() - start;
  const ProcessUse after = ReadProcess(options_.server_pid);
  std::printf(
      "%d streams, %lld events in %.2f s; %d not connected, %d not 200, "
      "%d truncated, %d hanging\n",
      options_.num_streams, static_cast<long long>(num_events_), seconds,
      num_refused_, num_bad_, num_truncated_, num_left_);
  PrintPercentiles("first event", &first_);
  PrintPercentiles("gap", &gaps_);
  PrintPercentiles("delivery", &deliveries_);
  if (options_.server_pid > 0) PrintProcess(before, after, seconds);
  return num_refused_ + num_bad_ + num_truncated_ + num_left_ == 0 ? 0 : 1;
}

// Connections that have had one request answered and then say nothing.
int Load::RunIdle() {
  const std::string request =
      absl::StrCat("GET ", options_.path, " HTTP/1.1\r\nHost: x\r\n\r\n");
  std::vector<int> fds;
  for (int i = 0; i < options_.num_idle; ++i) {
    const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    char bytes[4096];
    if (fd < 0 ||
        connect(fd, reinterpret_cast<sockaddr*>(&address_), sizeof(address_)) !=
            0 ||
        send(fd, request.data(), request.size(), MSG_NOSIGNAL) < 0 ||
        recv(fd, bytes, sizeof(bytes), 0) <= 0) {
      std::fprintf(stderr, "connection %d of %d failed\n", i,
                   options_.num_idle);
      return 1;
    }
    fds.push_back(fd);
  }
  const ProcessUse before = ReadProcess(options_.server_pid);
  const double start = NowSeconds();
  usleep(options_.seconds * 1e6);
  const ProcessUse after = ReadProcess(options_.server_pid);
  const double seconds = NowSeconds() - start;
  int num_open = 0;
  for (int fd : fds) {
    char byte;
    num_open += recv(fd, &byte, 1, MSG_DONTWAIT) < 0 && errno == EAGAIN;
  }
  std::printf("%d idle connections, %d still open after %.1f s\n",
              options_.num_idle, num_open, seconds);
  PrintProcess(before, after, seconds);
  return 0;
}

int Main(int argc, char** argv) {
  Options options;
  CLI::App app("Load for event streams");
  app.add_option("--host", options.host, "IPv4 address");
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
  rlimit limit;
  if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
  }
  Load load(options);
  return options.num_idle > 0 ? load.RunIdle() : load.RunStreams();
}

}  // namespace
}  // namespace quire

int main(int argc, char** argv) { return quire::Main(argc, argv); }
