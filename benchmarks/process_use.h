// CPU time and memory of a process, from /proc.
#ifndef QUIRE_BENCHMARKS_PROCESS_USE_H_
#define QUIRE_BENCHMARKS_PROCESS_USE_H_

#include <cstdint>

namespace quire {

struct ProcessUse {
  double cpu_seconds = 0;  // User and system.
  double resident_bytes = 0;
  double peak_resident_bytes = 0;
  int64_t num_threads = 0;
};

// All zeros if there is no such process.
ProcessUse ReadProcessUse(int pid);

}  // namespace quire

#endif  // QUIRE_BENCHMARKS_PROCESS_USE_H_
