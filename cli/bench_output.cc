#include "cli/bench_output.h"

#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"

namespace quire {
namespace {

std::atomic<bool> is_interrupted{false};

void OnInterrupt(int) { is_interrupted = true; }

// A progress line stands on the terminal, of which there is one.
bool is_line_shown = false;

void ClearLine() {
  if (is_line_shown) std::fputs("\r\033[K", stderr);
  is_line_shown = false;
}

// A pipe or a device (/dev/stdout), which is written to, not replaced.
bool IsDevice(const std::string& path) { return path.rfind("/dev/", 0) == 0; }

}  // namespace

absl::Status WriteTextFile(const std::string& path, absl::string_view text,
                           bool appends) {
  const auto error = [&path] {
    return absl::UnavailableError(
        absl::StrCat(path, ": cannot write: ", std::strerror(errno)));
  };
  const bool is_replaced = !appends && !IsDevice(path);
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

absl::Status CheckWritable(const std::string& path, bool appends) {
  if (path.empty() || IsDevice(path)) return absl::OkStatus();
  std::error_code error;
  const bool is_directory = std::filesystem::is_directory(path, error);
  if (is_directory) errno = EISDIR;
  std::string folder = std::filesystem::path(path).parent_path().string();
  if (folder.empty()) folder = ".";
  // A file that is replaced need not be writable itself.
  const bool is_kept = appends && access(path.c_str(), F_OK) == 0;
  if (!is_directory && (is_kept ? access(path.c_str(), W_OK)
                                : access(folder.c_str(), W_OK | X_OK)) == 0) {
    return absl::OkStatus();
  }
  return absl::UnavailableError(
      absl::StrCat(path, ": cannot write: ", std::strerror(errno)));
}

void PrintRequestErrors(const std::vector<std::string>& errors) {
  std::vector<std::pair<std::string, int>> counts;
  for (const std::string& error : errors) {
    if (error.empty()) continue;
    const auto it =
        std::find_if(counts.begin(), counts.end(),
                     [&](const auto& c) { return c.first == error; });
    if (it == counts.end()) {
      counts.emplace_back(error, 1);
    } else {
      ++it->second;
    }
  }
  std::stable_sort(
      counts.begin(), counts.end(),
      [](const auto& a, const auto& b) { return a.second > b.second; });
  constexpr size_t kMost = 10;
  for (size_t i = 0; i < std::min(counts.size(), kMost); ++i) {
    absl::FPrintF(stderr, "quire: %d request%s failed: %s\n", counts[i].second,
                  counts[i].second == 1 ? "" : "s", counts[i].first);
  }
  if (counts.size() > kMost) {
    absl::FPrintF(stderr, "quire: and %d other errors\n",
                  counts.size() - kMost);
  }
}

int FailBench(const absl::Status& status, int exit_code) {
  ClearLine();
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

void ProgressLine::Clear() { ClearLine(); }

void ProgressLine::Show(absl::string_view label, int64_t done, int64_t total,
                        absl::string_view rest) {
  if (!is_enabled_) return;
  const absl::Time now = absl::Now();
  if (now < next_ && done < total) return;
  next_ = now + absl::Milliseconds(100);
  is_line_shown = true;
  if (total == 0) {
    absl::FPrintF(stderr, "\r\033[K%s %s", label, rest);
    std::fflush(stderr);
    return;
  }
  constexpr int kWidth = 24;
  const int64_t full = done * kWidth / total;
  const std::string bar =
      std::string(full, '#') + std::string(kWidth - full, ' ');
  absl::FPrintF(stderr, "\r\033[K%s %3d%% [%s] %d/%d %s", label,
                done * 100 / total, bar, done, total, rest);
  std::fflush(stderr);
}

}  // namespace quire
