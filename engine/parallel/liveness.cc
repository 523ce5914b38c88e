#include "engine/parallel/liveness.h"

#include <dirent.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <cstring>
#include <fstream>
#include <iterator>
#include <string>

#include "absl/functional/function_ref.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"

namespace quire {
namespace {

// Both ends send every 100 ms or more often, and a kernel acknowledges within
// 40 ms and the time of a round trip.
constexpr uint32_t kMaxMsSinceAck = 500;
// Gaps are forgotten after one or two of these.
constexpr absl::Duration kGapPeriod = absl::Seconds(15);
// Of the threads that answer probes and metrics, while the others do nothing.
constexpr absl::Duration kMaxIdleCpuTime = absl::Milliseconds(5);
// A rank may be silent for so many times its longest recent gap.
constexpr int kGapsAllowed = 3;

std::string ReadProcFile(const std::string& path) {
  std::ifstream file(path);
  return std::string(std::istreambuf_iterator<char>(file), {});
}

// The letter of proc(5); 0 if there is none. `directory`: of a process or of
// one of its threads.
char StateOf(const std::string& directory) {
  const std::string stat = ReadProcFile(directory + "/stat");
  // Behind the name, which may hold anything.
  const size_t end_of_name = stat.rfind(')');
  return end_of_name == std::string::npos || end_of_name + 2 >= stat.size()
             ? 0
             : stat[end_of_name + 2];
}

bool IsStopped(char state) { return state == 'T' || state == 't'; }
bool IsAsleep(char state) { return state == 'S' || state == 'I'; }

// Calls `visit` with the directory of each thread of a process until it returns
// true; whether one did.
bool AnyThread(const std::string& process,
               absl::FunctionRef<bool(const std::string&)> visit) {
  DIR* const tasks = opendir((process + "/task").c_str());
  if (tasks == nullptr) return false;
  bool is_found = false;
  while (const dirent* const entry = is_found ? nullptr : readdir(tasks)) {
    if (entry->d_name[0] == '.') continue;
    is_found = visit(absl::StrCat(process, "/task/", entry->d_name));
  }
  closedir(tasks);
  return is_found;
}

// Of this process, beside the calling one.
bool HasBusyThread() {
  const std::string own = absl::StrCat("/", syscall(SYS_gettid));
  return AnyThread("/proc/self", [&](const std::string& task) {
    if (absl::EndsWith(task, own)) return false;
    const char state = StateOf(task);
    return state != 0 && !IsAsleep(state);
  });
}

absl::Duration ReadCpuClock(clockid_t clock) {
  timespec time = {};
  clock_gettime(clock, &time);
  return absl::DurationFromTimespec(time);
}

}  // namespace

void NameBeatThread() {
  static_assert(sizeof(kBeatThreadName) <= 16);
  pthread_setname_np(pthread_self(), kBeatThreadName);
}

void BeatRecord::Heard(absl::Duration now) {
  if (now - period_begin_ > kGapPeriod) {
    period_begin_ = now;
    previous_longest_gap_ = longest_gap_;
    longest_gap_ = absl::ZeroDuration();
  }
  longest_gap_ = std::max(longest_gap_, now - last_);
  last_ = now;
  outage_ = absl::ZeroDuration();
}

SilenceCause LookAtProcess(int pid) {
  const std::string process = absl::StrCat("/proc/", pid);
  if (IsStopped(StateOf(process))) return SilenceCause::kStopped;
  SilenceCause cause = SilenceCause::kStarved;
  AnyThread(process, [&](const std::string& task) {
    const std::string name = ReadProcFile(task + "/comm");
    if (absl::StripSuffix(name, "\n") != kBeatThreadName) return false;
    const char state = StateOf(task);
    if (IsStopped(state)) cause = SilenceCause::kStopped;
    // Neither R nor D, nor one that has just gone.
    if (IsAsleep(state)) cause = SilenceCause::kHangs;
    return true;
  });
  return cause;
}

absl::Duration IdleRecord::Update(absl::Duration now, bool is_working,
                                  int64_t progress) {
  const absl::Duration cpu_time = ReadCpuClock(CLOCK_PROCESS_CPUTIME_ID) -
                                  ReadCpuClock(CLOCK_THREAD_CPUTIME_ID);
  // The threads are asked last: that costs some reads of /proc.
  const bool is_idle = is_working && progress == progress_ &&
                       cpu_time - cpu_time_ <= kMaxIdleCpuTime &&
                       !HasBusyThread();
  if (!is_idle) {
    since_ = now;
    cpu_time_ = cpu_time;
    progress_ = progress;
  }
  return now - since_;
}

SilenceCause LookAtConnection(int fd) {
  tcp_info info;
  std::memset(&info, 0, sizeof(info));
  socklen_t size = sizeof(info);
  if (getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &size) != 0) {
    return SilenceCause::kHangs;
  }
  // Who takes nothing more has a window of zero, and answers probes of it.
  const bool has_all = info.tcpi_unacked == 0 && info.tcpi_probes <= 1;
  return has_all || info.tcpi_last_ack_recv <= kMaxMsSinceAck
             ? SilenceCause::kHangs
             : SilenceCause::kUnreachable;
}

absl::Duration SilenceToLookInto(const SilenceLimits& limits) {
  return std::min(limits.heartbeat_timeout, limits.watchdog) / 2;
}

absl::Duration MaxSilence(SilenceCause cause, bool is_serving,
                          const BeatRecord& beats,
                          const SilenceLimits& limits) {
  absl::Duration limit = limits.watchdog;
  if (cause == SilenceCause::kStopped) {
    limit = limits.heartbeat_timeout;
  } else if (cause == SilenceCause::kHangs && is_serving) {
    limit =
        std::max(limits.heartbeat_timeout, kGapsAllowed * beats.LongestGap()) +
        2 * beats.outage();
  }
  return std::min(limit, limits.watchdog);
}

std::string DescribeSilence(SilenceCause cause, absl::Duration silence) {
  return absl::StrCat(
      "no sign of life for ", absl::FormatDuration(silence),
      cause == SilenceCause::kStopped ? ", its process is stopped" : "");
}

}  // namespace quire
