#include "engine/parallel/liveness.h"

#include <dirent.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <sys/socket.h>

#include <cstring>
#include <fstream>
#include <iterator>
#include <string>

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
}

SilenceCause LookAtProcess(int pid) {
  const std::string process = absl::StrCat("/proc/", pid);
  if (IsStopped(StateOf(process))) return SilenceCause::kStopped;
  DIR* const tasks = opendir((process + "/task").c_str());
  if (tasks == nullptr) return SilenceCause::kStarved;
  SilenceCause cause = SilenceCause::kStarved;
  while (const dirent* const entry = readdir(tasks)) {
    if (entry->d_name[0] == '.') continue;
    const std::string task = absl::StrCat(process, "/task/", entry->d_name);
    const std::string name = ReadProcFile(task + "/comm");
    if (absl::StripSuffix(name, "\n") != kBeatThreadName) continue;
    const char state = StateOf(task);
    if (IsStopped(state)) cause = SilenceCause::kStopped;
    // Neither R nor D, nor one that has just gone.
    if (state == 'S' || state == 'I') cause = SilenceCause::kHangs;
    break;
  }
  closedir(tasks);
  return cause;
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

absl::Duration MaxSilence(SilenceCause cause, bool is_serving,
                          const BeatRecord& beats,
                          const SilenceLimits& limits) {
  absl::Duration limit = limits.watchdog;
  if (cause == SilenceCause::kStopped) {
    limit = limits.heartbeat_timeout;
  } else if (cause == SilenceCause::kHangs && is_serving) {
    limit =
        std::max(limits.heartbeat_timeout, kGapsAllowed * beats.LongestGap());
  }
  return std::min(limit, limits.watchdog);
}

std::string DescribeSilence(SilenceCause cause, absl::Duration silence) {
  return absl::StrCat(
      "no sign of life for ", absl::FormatDuration(silence),
      cause == SilenceCause::kStopped ? ", its process is stopped" : "");
}

}  // namespace quire
