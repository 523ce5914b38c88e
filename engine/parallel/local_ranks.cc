#include "engine/parallel/local_ranks.h"

#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <memory>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "engine/base/clock.h"
#include "engine/base/status.h"

extern char** environ;

namespace quire {
namespace {

// Out of the way of the places where children find descriptors.
constexpr int kFirstFreeFd = 16;

std::vector<std::string> Environment(const WorkerCommand& command) {
  std::vector<std::string> result;
  const auto is_replaced = [&](absl::string_view entry) {
    for (const auto& [name, value] : command.environment) {
      if (absl::StartsWith(entry, absl::StrCat(name, "="))) return true;
    }
    return false;
  };
  for (char** entry = environ; *entry != nullptr; ++entry) {
    if (!is_replaced(*entry)) result.push_back(*entry);
  }
  for (const auto& [name, value] : command.environment) {
    result.push_back(absl::StrCat(name, "=", value));
  }
  return result;
}

std::vector<char*> Pointers(std::vector<std::string>& strings) {
  std::vector<char*> pointers;
  for (std::string& text : strings) pointers.push_back(text.data());
  pointers.push_back(nullptr);
  return pointers;
}

// The child's process id. -1 for a descriptor that it does not get.
absl::StatusOr<int> Spawn(const WorkerCommand& command, int link_fd,
                          int memory_fd) {
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  std::vector<OwnedFd> copies;
  int next = kWorkerLinkFd;
  for (const auto& [fd, target] : {std::pair{link_fd, kWorkerLinkFd},
                                   std::pair{memory_fd, kWorkerMemoryFd}}) {
    if (fd < 0) continue;
    // dup2 would overwrite a source that lies at a target.
    copies.emplace_back(fcntl(fd, F_DUPFD_CLOEXEC, kFirstFreeFd));
    posix_spawn_file_actions_adddup2(&actions, copies.back().get(), target);
    next = target + 1;
  }
  // The server's socket, above all: a child must not keep its port.
  posix_spawn_file_actions_addclosefrom_np(&actions, next);
  std::vector<std::string> args = command.args;
  std::vector<std::string> environment = Environment(command);
  int pid = 0;
  const int error =
      posix_spawn(&pid, args[0].c_str(), &actions, nullptr,
                  Pointers(args).data(), Pointers(environment).data());
  posix_spawn_file_actions_destroy(&actions);
  if (error != 0) {
    return absl::ResourceExhaustedError(
        absl::StrCat("cannot start rank ", command.rank, " (", args[0],
                     "): ", strerror(error)));
  }
  return pid;
}

}  // namespace

absl::StatusOr<LocalRanks> LocalRanks::Start(
    const std::vector<WorkerCommand>& commands, int memory_fd,
    std::vector<OwnedFd>* links) {
  LocalRanks ranks;
  for (const WorkerCommand& command : commands) {
    OwnedFd own, theirs;
    if (links != nullptr) {
      int pair[2];
      if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) != 0) {
        return absl::ResourceExhaustedError(
            absl::StrCat("cannot make a socket pair: ", strerror(errno)));
      }
      own = OwnedFd(pair[0]);
      theirs = OwnedFd(pair[1]);
    }
    QUIRE_ASSIGN_OR_RETURN(const int pid,
                           Spawn(command, theirs.get(), memory_fd));
    ranks.children_.push_back({command.rank, pid, false, 0});
    if (links != nullptr) links->push_back(std::move(own));
  }
  return ranks;
}

LocalRanks& LocalRanks::operator=(LocalRanks&& other) noexcept {
  std::swap(children_, other.children_);
  return *this;
}

LocalRanks::~LocalRanks() {
  Kill();
  for (Child& child : children_) {
    if (!child.has_ended) waitpid(child.pid, nullptr, 0);
  }
}

void LocalRanks::Reap() {
  for (Child& child : children_) {
    if (child.has_ended) continue;
    if (waitpid(child.pid, &child.wait_status, WNOHANG) == child.pid) {
      child.has_ended = true;
    }
  }
}

absl::Status LocalRanks::EndOf(const Child& child) {
  return absl::UnavailableError(absl::StrCat(
      "rank ", child.rank, " (", OwnHostName(), ", process ", child.pid, ") ",
      WIFSIGNALED(child.wait_status)
          ? absl::StrCat("was ended by signal ", WTERMSIG(child.wait_status))
          : absl::StrCat("has ended with exit code ",
                         WEXITSTATUS(child.wait_status))));
}

absl::Status LocalRanks::CheckKilled() {
  Reap();
  for (const Child& child : children_) {
    if (child.has_ended && WIFSIGNALED(child.wait_status)) return EndOf(child);
  }
  return absl::OkStatus();
}

absl::Status LocalRanks::Check() {
  const absl::Status killed = CheckKilled();
  if (!killed.ok()) return killed;
  for (const Child& child : children_) {
    if (child.has_ended) return EndOf(child);
  }
  return absl::OkStatus();
}

int LocalRanks::PidOf(int rank) const {
  for (const Child& child : children_) {
    if (child.rank == rank) return child.pid;
  }
  return 0;
}

void LocalRanks::Kill() {
  Reap();
  for (const Child& child : children_) {
    if (!child.has_ended) kill(child.pid, SIGKILL);
  }
}

void LocalRanks::WaitAndKill(absl::Duration timeout) {
  const absl::Time deadline = Clock::Monotonic()->Now() + timeout;
  for (Child& child : children_) {
    if (child.has_ended) continue;
    ProcessWatch watch(child.pid);
    while (!watch.IsGone() && Clock::Monotonic()->Now() < deadline) {
      absl::SleepFor(absl::Milliseconds(2));
    }
  }
  Kill();
}

void DieWithParent(int parent_pid) {
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  // It may have ended before.
  if (getppid() != parent_pid) _exit(1);
}

}  // namespace quire
