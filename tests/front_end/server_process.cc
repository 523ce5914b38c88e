#include "tests/front_end/server_process.h"

#include <dirent.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <sstream>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "server/http/test_client.h"
#include "tests/front_end/sanitized.h"

namespace quire {
namespace {

int num_reports = 0;

std::string ReadFile(const std::string& path) {
  std::ifstream file(path);
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

// "...address ...:8080, operations ...:9090": the last number of each. As JSON
// the whole table is one line, this a field of it.
void ReadPorts(absl::string_view line, int* port, int* ops_port) {
  line.remove_prefix(line.find("http"));
  const std::vector<absl::string_view> addresses =
      absl::StrSplit(line.substr(0, line.find('"')), ',');
  const auto port_of = [](absl::string_view address) {
    int number = 0;
    const size_t colon = address.rfind(':');
    return colon != absl::string_view::npos &&
                   absl::SimpleAtoi(address.substr(colon + 1), &number)
               ? number
               : 0;
  };
  *port = port_of(addresses[0]);
  if (addresses.size() > 1) *ops_port = port_of(addresses[1]);
}

}  // namespace

std::string RunfilePath(const std::string& path) {
  const char* root = getenv("QUIRE_RUNFILES");
  return root == nullptr ? path : absl::StrCat(root, "/", path);
}

std::pair<int, std::string> Get(int port, absl::string_view path) {
  TestClient client;
  if (!client.Connect(port)) return {0, ""};
  TestResponse response = client.Ask(absl::StrCat(
      "GET ", path, " HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"));
  return {response.status, std::move(response.body)};
}

std::unique_ptr<ServerProcess> ServerProcess::Start(
    const ServerProcessOptions& options) {
  std::unique_ptr<ServerProcess> process(new ServerProcess);
  process->error_path_ = options.error_path;
  if (options.error_path.empty()) {
    char path[] = "/tmp/quire_stderr_XXXXXX";
    const int fd = mkstemp(path);
    if (fd < 0) return nullptr;
    close(fd);
    process->error_path_ = path;
    process->owns_error_file_ = true;
  }
  std::vector<std::string> args = {RunfilePath(options.program)};
  args.insert(args.end(), options.own_args.begin(), options.own_args.end());
  for (const std::string& arg :
       {std::string("serve"), RunfilePath("models/demo"), std::string("--port"),
        std::string("0"), std::string("--ops-port"), std::string("0")}) {
    args.push_back(arg);
  }
  args.insert(args.end(), options.serve_args.begin(), options.serve_args.end());
  std::vector<char*> argv;
  for (std::string& arg : args) argv.push_back(arg.data());
  argv.push_back(nullptr);

  int out[2];
  if (pipe2(out, O_CLOEXEC) != 0) return nullptr;
  process->pid_ = fork();
  if (process->pid_ == 0) {
    // Of a single-threaded harness: anything may be called here.
    dup2(out[1], STDOUT_FILENO);
    const int error =
        open(process->error_path_.c_str(), O_WRONLY | O_CREAT | O_APPEND, 0644);
    if (error >= 0) dup2(error, STDERR_FILENO);
    if (options.max_open_files > 0) {
      const rlim_t limit = options.max_open_files;
      const rlimit limits = {limit, limit};
      setrlimit(RLIMIT_NOFILE, &limits);
    }
    for (const auto& [name, value] : options.environment) {
      setenv(name.c_str(), value.c_str(), 1);
    }
    execv(argv[0], argv.data());
    _exit(127);
  }
  close(out[1]);
  process->output_fd_ = out[0];
  std::string banner;
  char byte = 0;
  while (process->pid_ > 0 && read(out[0], &byte, 1) == 1) {
    banner += byte;
    if (byte != '\n') continue;
    const size_t begin = banner.rfind('\n', banner.size() - 2) + 1;
    const absl::string_view line =
        absl::string_view(banner).substr(begin, banner.size() - begin - 1);
    if (absl::StrContains(line, "address") && absl::StrContains(line, "http")) {
      ReadPorts(line, &process->port_, &process->ops_port_);
    }
    if (absl::StrContains(line, "ready in") ||
        absl::StrContains(line, "\"ready_in\"")) {
      return process;
    }
  }
  std::fprintf(stderr, "%s did not start:\n%s\n", args[0].c_str(),
               process->ErrorText().c_str());
  return nullptr;
}

int ServerProcess::num_sanitizer_reports() { return num_reports; }

void ServerProcess::CollectSanitizerReport() {
  // A second signal ends what still runs.
  for (int i = 0; i < 2 && IsAlive(); ++i) Terminate(absl::Seconds(10));
  const std::string text = ErrorText();
  if (absl::StrContains(text, "Sanitizer") ||
      absl::StrContains(text, "runtime error:")) {
    std::fprintf(stderr, "%s\n", text.c_str());
    ++num_reports;
  }
}

ServerProcess::~ServerProcess() {
  if (kIsSanitized && pid_ > 0) CollectSanitizerReport();
  if (pid_ > 0 && !exit_code_.has_value()) {
    kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
  }
  if (output_fd_ >= 0) close(output_fd_);
  if (owns_error_file_) unlink(error_path_.c_str());
}

std::optional<int> ServerProcess::WaitForExit(absl::Duration timeout) {
  const absl::Time deadline = absl::Now() + timeout;
  while (!exit_code_.has_value()) {
    int status = 0;
    if (waitpid(pid_, &status, WNOHANG) == pid_) {
      exit_code_ = WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
    } else if (absl::Now() > deadline) {
      return std::nullopt;
    } else {
      absl::SleepFor(absl::Milliseconds(2));
    }
  }
  return exit_code_;
}

bool ServerProcess::IsAlive() {
  return !WaitForExit(absl::ZeroDuration()).has_value();
}

void ServerProcess::Signal(int signal) {
  if (!exit_code_.has_value()) kill(pid_, signal);
}

std::optional<int> ServerProcess::Terminate(absl::Duration timeout) {
  Signal(SIGTERM);
  return WaitForExit(timeout);
}

void ServerProcess::CloseOutput() {
  if (output_fd_ >= 0) close(output_fd_);
  output_fd_ = -1;
}

std::string ServerProcess::TakeOutput() {
  std::string text;
  char buffer[4096];
  pollfd waiting = {output_fd_, POLLIN, 0};
  while (poll(&waiting, 1, 0) > 0) {
    const ssize_t size = read(output_fd_, buffer, sizeof(buffer));
    if (size <= 0) break;
    text.append(buffer, size);
  }
  return text;
}

std::string ServerProcess::ErrorText() const {
  // A device may be without end, as /dev/full is.
  struct stat info;
  const bool is_file =
      stat(error_path_.c_str(), &info) == 0 && S_ISREG(info.st_mode);
  return is_file ? ReadFile(error_path_) : "";
}

std::string ServerProcess::ProcFile(const char* name) const {
  return absl::StrCat("/proc/", pid_, "/", name);
}

int64_t ServerProcess::StatusKilobytes(const char* field) const {
  const std::string status = ReadFile(ProcFile("status"));
  for (const absl::string_view line : absl::StrSplit(status, '\n')) {
    if (!absl::StartsWith(line, absl::StrCat(field, ":"))) continue;
    const std::vector<absl::string_view> words =
        absl::StrSplit(line, absl::ByAnyChar(" \t"), absl::SkipEmpty());
    int64_t number = 0;
    return words.size() > 1 && absl::SimpleAtoi(words[1], &number) ? number : 0;
  }
  return 0;
}

int64_t ServerProcess::ResidentBytes() const {
  return StatusKilobytes("VmRSS") * 1024;
}
int64_t ServerProcess::PeakBytes() const {
  return StatusKilobytes("VmHWM") * 1024;
}

void ServerProcess::ResetPeak() {
  // "5": the peak becomes what is resident now (proc(5), clear_refs).
  std::ofstream(ProcFile("clear_refs")) << "5";
}

int ServerProcess::CountOpenFiles() const {
  int count = 0;
  DIR* const directory = opendir(ProcFile("fd").c_str());
  if (directory == nullptr) return -1;
  while (const dirent* entry = readdir(directory)) {
    count += entry->d_name[0] != '.';
  }
  closedir(directory);
  return count;
}

int ServerProcess::CountThreads() const {
  return static_cast<int>(StatusKilobytes("Threads"));
}

std::map<std::string, double> ServerProcess::CpuSecondsByThread() const {
  std::map<std::string, double> seconds;
  const std::string folder = ProcFile("task");
  DIR* const directory = opendir(folder.c_str());
  if (directory == nullptr) return seconds;
  while (const dirent* entry = readdir(directory)) {
    if (entry->d_name[0] == '.') continue;
    const std::string task = absl::StrCat(folder, "/", entry->d_name);
    std::string name = ReadFile(task + "/comm");
    if (!name.empty()) name.pop_back();
    // In nanoseconds; stat counts in ticks of 10 ms.
    const std::string schedstat = ReadFile(task + "/schedstat");
    double nanoseconds = 0;
    if (!absl::SimpleAtod(schedstat.substr(0, schedstat.find(' ')),
                          &nanoseconds)) {
      continue;
    }
    seconds[name] += nanoseconds * 1e-9;
  }
  closedir(directory);
  return seconds;
}

double ServerProcess::CpuSeconds() const {
  double sum = 0;
  for (const auto& [name, seconds] : CpuSecondsByThread()) sum += seconds;
  return sum;
}

double ServerProcess::Metric(absl::string_view series) const {
  const auto [status, body] =
      Get(ops_port_ > 0 ? ops_port_ : port_, "/metrics");
  double sum = 0;
  bool is_found = false;
  for (const absl::string_view line : absl::StrSplit(body, '\n')) {
    if (!absl::StartsWith(line, series)) continue;
    const absl::string_view rest = line.substr(series.size());
    if (rest.empty() || (rest[0] != '{' && rest[0] != ' ' && rest[0] != ',')) {
      continue;
    }
    double value = 0;
    if (!absl::SimpleAtod(line.substr(line.rfind(' ') + 1), &value)) continue;
    sum += value;
    is_found = true;
  }
  return status == 200 && is_found ? sum : -1;
}

bool ServerProcess::WaitUntilIdle(absl::Duration timeout) const {
  const absl::Time deadline = absl::Now() + timeout;
  while (true) {
    if (Metric("vllm:num_requests_running") == 0 &&
        Metric("vllm:num_requests_waiting") == 0 &&
        Metric("vllm:kv_cache_usage_perc") == 0) {
      return true;
    }
    if (absl::Now() > deadline) return false;
    absl::SleepFor(absl::Milliseconds(5));
  }
}

}  // namespace quire
