#include "benchmarks/process_use.h"

#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <string>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"

namespace quire {

ProcessUse ReadProcessUse(int pid) {
  ProcessUse use;
  if (pid <= 0) return use;
  std::ifstream stat(absl::StrCat("/proc/", pid, "/stat"));
  const std::string text((std::istreambuf_iterator<char>(stat)), {});
  if (text.empty()) return use;
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
    if (absl::StartsWith(line, "VmHWM:")) {
      use.peak_resident_bytes = 1024.0 * value();
    }
    if (absl::StartsWith(line, "VmRSS:")) use.resident_bytes = 1024.0 * value();
    if (absl::StartsWith(line, "Threads:")) use.num_threads = value();
  }
  return use;
}

}  // namespace quire
