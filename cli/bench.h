// `quire bench`: measurements of servers, models and kernels.
#ifndef QUIRE_CLI_BENCH_H_
#define QUIRE_CLI_BENCH_H_

#include "cli/bench_options.h"

namespace quire {

// Each runs one benchmark, reports on standard output and returns the exit
// code. Progress and errors go to standard error.
int RunBench(const BenchOptions& options);

int RunBenchServe(const BenchServeOptions& options);
int RunBenchThroughput(const BenchOfflineOptions& options);
int RunBenchLatency(const BenchOfflineOptions& options);
int RunBenchModel(const BenchModelOptions& options);
int RunBenchKernels(const BenchKernelOptions& options);
int RunBenchQuality(const BenchQualityOptions& options);
int RunBenchStartup(const BenchStartupOptions& options);
int RunBenchDrafter(const BenchDrafterOptions& options);

}  // namespace quire

#endif  // QUIRE_CLI_BENCH_H_
