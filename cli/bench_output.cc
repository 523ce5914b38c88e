#include "cli/bench_output.h"

#include <signal.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace quire {
namespace {

std::atomic<bool> is_interrupted{false};

void OnInterrupt(int) { is_interrupted = true; }

}  // namespace

absl::Status WriteTextFile(const std::string& path, absl::string_view text,
                           bool appends) {
  const auto error = [&path] {
    return absl::UnavailableError(
        absl::StrCat(path, ": cannot write: ", std::strerror(errno)));
  };
  // A pipe or a device (/dev/stdout) is written to, not replaced.
  const bool is_replaced = !appends && path.rfind("/dev/", 0) != 0;
  const std::string target = is_replaced ? path + ".part" : path;
  std::FILE* const file = std::fopen(target.c_str(), appends ? "ae" : "we");
  if (file == nullptr) return error();
  const bool is_written =
      std::fwrite(text.data(), 1, text.size(), file) == text.size();
  if (std::fclose(file) != 0 || !is_written) return error();
  if (is_replaced && std::rename(target.c_str(), path.c_str()) != 0) {
    return error();
  }
  return absl::OkStatus();
}

int FailBench(const absl::Status& status, int exit_code) {
  absl::FPrintF(stderr, "quire: %s\n", status.message());
  return exit_code;
}

const std::atomic<bool>& InterruptFlag() {
  struct sigaction action = {};
  action.sa_handler = OnInterrupt;
  // The second signal has its usual effect: a benchmark that hangs can be
  // ended.
  action.sa_flags = SA_RESETHAND;
  sigaction(SIGINT, &action, nullptr);
  sigaction(SIGTERM, &action, nullptr);
  return is_interrupted;
}

ProgressLine::ProgressLine(bool is_enabled)
    : is_enabled_(is_enabled && isatty(STDERR_FILENO)) {}

ProgressLine::~ProgressLine() {
  if (is_shown_) std::fputc('\n', stderr);
}

void ProgressLine::Show(absl::string_view label, int64_t done, int64_t total,
                        absl::string_view rest) {
  if (!is_enabled_) return;
  is_shown_ = true;
  constexpr int kWidth = 24;
  const int64_t full = total > 0 ? done * kWidth / total : 0;
  const std::string bar =
      std::string(full, '#') + std::string(kWidth - full, ' ');
  absl::FPrintF(stderr, "\r\033[K%s %3d%% [%s] %d/%d %s", label,
                total > 0 ? done * 100 / total : 0, bar, done, total, rest);
  std::fflush(stderr);
}

}  // namespace quire
