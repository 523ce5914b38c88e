#include "engine/base/process_start.h"

#include <time.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace quire {

absl::Duration TimeSinceProcessStart() {
  FILE* file = fopen("/proc/self/stat", "r");
  if (file == nullptr) return absl::ZeroDuration();
  char text[1024];
  const size_t size = fread(text, 1, sizeof(text) - 1, file);
  fclose(file);
  text[size] = 0;
  // Field 22 (proc(5)), counted behind the name, which may hold spaces.
  const char* at = strrchr(text, ')');
  for (int field = 2; at != nullptr && field < 22; ++field) {
    at = strchr(at + 1, ' ');
  }
  if (at == nullptr) return absl::ZeroDuration();
  const double start =
      strtod(at, nullptr) / static_cast<double>(sysconf(_SC_CLK_TCK));
  timespec now;
  clock_gettime(CLOCK_BOOTTIME, &now);
  return absl::Seconds(static_cast<double>(now.tv_sec) + now.tv_nsec * 1e-9 -
                       start);
}

}  // namespace quire
