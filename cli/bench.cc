#include "cli/bench.h"

#include <string>

#include "cli/bench_output.h"
#include "cli/exit_codes.h"

namespace quire {
namespace {

// The file of the result; that of `serve` has options of its own.
std::string OutputJson(const BenchOptions& options) {
  switch (options.kind) {
    case BenchOptions::Kind::kThroughput:
    case BenchOptions::Kind::kLatency:
      return options.offline.output_json;
    case BenchOptions::Kind::kKernels:
      return options.kernels.output_json;
    case BenchOptions::Kind::kQuality:
      return options.quality.output_json;
    case BenchOptions::Kind::kStartup:
      return options.startup.output_json;
    case BenchOptions::Kind::kDrafter:
      return options.drafter.output_json;
    case BenchOptions::Kind::kServe:
    case BenchOptions::Kind::kModel:
      break;
  }
  return "";
}

}  // namespace

int RunBench(const BenchOptions& options) {
  if (const absl::Status status = CheckWritable(OutputJson(options));
      !status.ok()) {
    return FailBench(status, kExitDevice);
  }
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
    case BenchOptions::Kind::kDrafter:
      return RunBenchDrafter(options.drafter);
  }
  return kExitUsage;
}

}  // namespace quire
