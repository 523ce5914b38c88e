#include "tests/engine_simulation/campaign.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <new>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "engine/base/status.h"
#include "tests/engine_simulation/simulation.h"

namespace quire {
namespace {

// Before the child's report, which is the last that it writes.
constexpr char kReportMark = '\1';
constexpr int kFailed = 3;  // The exit status with a report.

absl::Status StatusOfDeath(int wait_status, absl::string_view text) {
  while (!text.empty() && text.back() == '\n') text.remove_suffix(1);
  if (WIFSIGNALED(wait_status) && WTERMSIG(wait_status) == SIGALRM) {
    return absl::InternalError(absl::StrCat("hang: a history takes more than ",
                                            kMaxSecondsPerHistory, " s"));
  }
  constexpr absl::string_view kCheck = "check failed: ";
  const size_t at = text.rfind(kCheck);
  if (WIFSIGNALED(wait_status) && WTERMSIG(wait_status) == SIGABRT &&
      at != absl::string_view::npos) {
    const absl::string_view line = text.substr(text.rfind('\n', at) + 1);
    const absl::string_view place = line.substr(0, line.find(": "));
    return absl::InternalError(absl::StrCat(
        "check: ", text.substr(at + kCheck.size()), " (", place, ")"));
  }
  return absl::InternalError(
      absl::StrCat("crash: ",
                   WIFSIGNALED(wait_status)
                       ? absl::StrCat("signal ", WTERMSIG(wait_status))
                       : absl::StrCat("exit status ", WEXITSTATUS(wait_status)),
                   text.empty() ? "" : "\n", text));
}

void WriteAll(int fd, absl::string_view text) {
  while (!text.empty()) {
    const ssize_t written = write(fd, text.data(), text.size());
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) return;  // The parent has gone: nobody wants to know.
    text.remove_prefix(written);
  }
}

absl::Status RunSeed(uint64_t seed, HistoryKind kind, int64_t max_steps,
                     Progress* progress) {
  progress->seed = seed;
  progress->steps_before = progress->coverage[Covered::kSteps];
  alarm(kMaxSecondsPerHistory);
  const Outcome outcome = Simulate(DrawHistory(seed, kind), max_steps,
                                   &progress->coverage, nullptr);
  alarm(0);
  return outcome.status;
}

}  // namespace

absl::Status RunSeeds(uint64_t first_seed, uint64_t stride, int64_t max_steps,
                      Progress* progress) {
  for (uint64_t seed = first_seed;
       progress->coverage[Covered::kSteps] < max_steps; seed += stride) {
    QUIRE_RETURN_IF_ERROR(
        RunSeed(seed, HistoryKind::kAny,
                max_steps - progress->coverage[Covered::kSteps], progress));
  }
  return absl::OkStatus();
}

absl::Status RunDraftedSeeds(uint64_t first_seed, uint64_t stride,
                             int64_t num_cases, Progress* progress) {
  for (uint64_t seed = first_seed;
       progress->coverage[Covered::kDraftedHistories] < num_cases;
       seed += stride) {
    QUIRE_RETURN_IF_ERROR(
        RunSeed(seed, HistoryKind::kDrafted, INT64_MAX, progress));
  }
  return absl::OkStatus();
}

Campaign::Campaign(const std::function<absl::Status(Progress*)>& body) {
  void* shared = mmap(nullptr, sizeof(Progress), PROT_READ | PROT_WRITE,
                      MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  QUIRE_CHECK(shared != MAP_FAILED);
  progress_ = new (shared) Progress;
  int fds[2];
  QUIRE_CHECK(pipe(fds) == 0);
  std::fflush(nullptr);  // Or the child prints it again.
  pid_ = fork();
  QUIRE_CHECK(pid_ >= 0);
  if (pid_ == 0) {
    close(fds[0]);
    dup2(fds[1], STDERR_FILENO);
    const absl::Status status = body(progress_);
    std::fflush(nullptr);
    if (status.ok()) _exit(0);
    WriteAll(fds[1],
             absl::StrCat(std::string(1, kReportMark), status.message()));
    _exit(kFailed);
  }
  close(fds[1]);
  fd_ = fds[0];
}

Campaign::~Campaign() {
  if (pid_ > 0) {
    kill(pid_, SIGKILL);
    while (waitpid(pid_, nullptr, 0) < 0 && errno == EINTR) {
    }
  }
  close(fd_);
  munmap(progress_, sizeof(Progress));
}

bool Campaign::ReadSome() {
  pollfd poll_fd = {fd_, POLLIN, 0};
  if (poll(&poll_fd, 1, 0) <= 0) return false;
  char buffer[4096];
  const ssize_t size = read(fd_, buffer, sizeof(buffer));
  if (size < 0) return errno != EINTR;
  text_.append(buffer, size);
  return size == 0;
}

absl::Status Campaign::Wait() {
  QUIRE_CHECK(pid_ > 0);
  while (true) {
    pollfd poll_fd = {fd_, POLLIN, 0};
    poll(&poll_fd, 1, -1);
    if (ReadSome()) break;
  }
  int wait_status = 0;
  while (waitpid(pid_, &wait_status, 0) < 0 && errno == EINTR) {
  }
  pid_ = -1;
  if (!WIFEXITED(wait_status)) return StatusOfDeath(wait_status, text_);
  if (WEXITSTATUS(wait_status) == 0) return absl::OkStatus();
  const size_t mark = text_.rfind(kReportMark);
  if (WEXITSTATUS(wait_status) != kFailed || mark == std::string::npos) {
    return StatusOfDeath(wait_status, text_);
  }
  return absl::InternalError(text_.substr(mark + 1));
}

absl::Status RunSeedsApart(uint64_t first_seed, uint64_t stride,
                           int64_t max_steps, Progress* progress) {
  Campaign campaign([=](Progress* shared) {
    return RunSeeds(first_seed, stride, max_steps, shared);
  });
  absl::Status status = campaign.Wait();
  *progress = campaign.progress();
  return status;
}

absl::Status RunDraftedSeedsApart(uint64_t first_seed, uint64_t stride,
                                  int64_t num_cases, Progress* progress) {
  Campaign campaign([=](Progress* shared) {
    return RunDraftedSeeds(first_seed, stride, num_cases, shared);
  });
  absl::Status status = campaign.Wait();
  *progress = campaign.progress();
  return status;
}

absl::Status SimulateApart(const History& history, int64_t max_steps) {
  Campaign campaign([&history, max_steps](Progress* shared) {
    alarm(kMaxSecondsPerHistory);
    return Simulate(history, max_steps, &shared->coverage, nullptr).status;
  });
  return campaign.Wait();
}

}  // namespace quire
