// A served process as its operator sees it: started, watched, signalled.
#ifndef QUIRE_TESTS_FRONT_END_SERVER_PROCESS_H_
#define QUIRE_TESTS_FRONT_END_SERVER_PROCESS_H_

#include <sys/types.h>

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace quire {

struct ServerProcessOptions {
  std::string program = "tests/front_end/hash_server";
  std::vector<std::string> own_args;    // Before "serve".
  std::vector<std::string> serve_args;  // Beside the demo model and the ports.
  std::vector<std::pair<std::string, std::string>> environment;
  int max_open_files = 0;  // RLIMIT_NOFILE, soft and hard; 0: as it is.
  // Where its standard error goes; empty: a file of its own, see ErrorText.
  std::string error_path;
};

// Thread-compatible. Bazel's runfiles, or QUIRE_RUNFILES, hold program and
// model.
class ServerProcess {
 public:
  // Waits until it is ready. Null, with its stderr printed, if it does not
  // become so.
  static std::unique_ptr<ServerProcess> Start(
      const ServerProcessOptions& options);
  // Kills it; under a sanitizer ends it first, so that it tells of leaks.
  ~ServerProcess();
  ServerProcess(const ServerProcess&) = delete;
  ServerProcess& operator=(const ServerProcess&) = delete;

  // Of servers that have ended, so many told of something that a sanitizer
  // found; it is on our stderr.
  static int num_sanitizer_reports();

  pid_t pid() const { return pid_; }
  int port() const { return port_; }
  int ops_port() const { return ops_port_; }
  // Its standard output, to be read on.
  int output_fd() const { return output_fd_; }
  void CloseOutput();
  // What has come there since: the log, which piles up if nobody takes it.
  std::string TakeOutput();

  bool IsAlive();
  void Signal(int signal);
  // The exit code, or minus the signal that ended it; none if it still runs
  // after `timeout`.
  std::optional<int> WaitForExit(absl::Duration timeout);
  // SIGTERM, then WaitForExit.
  std::optional<int> Terminate(absl::Duration timeout = absl::Seconds(30));
  std::string ErrorText() const;

  // From /proc. Bytes; resident and its peak since ResetPeak.
  int64_t ResidentBytes() const;
  int64_t PeakBytes() const;
  void ResetPeak();
  int CountOpenFiles() const;
  int CountThreads() const;
  // CPU seconds by name of the thread; threads of one name together.
  std::map<std::string, double> CpuSecondsByThread() const;
  double CpuSeconds() const;

  // Sum of a metric's series whose line starts with `series` (a name, or a name
  // with labels); negative if there is none or no answer.
  double Metric(absl::string_view series) const;
  // Nothing runs, waits or holds a block, within `timeout`.
  bool WaitUntilIdle(absl::Duration timeout = absl::Seconds(20)) const;

 private:
  ServerProcess() = default;
  void CollectSanitizerReport();
  std::string ProcFile(const char* name) const;
  int64_t StatusKilobytes(const char* field) const;

  pid_t pid_ = -1;
  int port_ = 0;
  int ops_port_ = 0;
  int output_fd_ = -1;
  std::string error_path_;
  bool owns_error_file_ = false;
  std::optional<int> exit_code_;
};

// Where bazel put a file of this folder's data, by its path in the repository.
std::string RunfilePath(const std::string& path);

// The plain GET of a small client: status and body; 0 if nothing came.
std::pair<int, std::string> Get(int port, absl::string_view path);

}  // namespace quire

#endif  // QUIRE_TESTS_FRONT_END_SERVER_PROCESS_H_
