#include "cli/bench.h"

#include "cli/exit_codes.h"

namespace quire {

int RunBench(const BenchOptions& options) {
  switch (options.kind) {
    case BenchOptions::Kind::kServe:
      return RunBenchServe(options.serve);
    case BenchOptions::Kind::kThroughput:
      return RunBenchThroughput(options.offline);
    case BenchOptions::Kind::kLatency:
      return RunBenchLatency(options.offline);
    case BenchOptions::Kind::kModel:
      return RunBenchModel(options.model);
    case BenchOptions::Kind::kKernels:
      return RunBenchKernels(options.kernels);
    case BenchOptions::Kind::kQuality:
      return RunBenchQuality(options.quality);
    case BenchOptions::Kind::kStartup:
      return RunBenchStartup(options.startup);
  }
  return kExitUsage;
}

}  // namespace quire
