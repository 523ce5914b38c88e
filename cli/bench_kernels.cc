// `quire bench kernels`: each operation of a backend against the ceilings.
#include <algorithm>
#include <cstdio>
#include <memory>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "benchmarks/barrier_rows.h"
#include "benchmarks/ceilings.h"
#include "benchmarks/cpu_rows.h"
#include "benchmarks/kernel_rows.h"
#include "benchmarks/random_model.h"
#include "benchmarks/rank_rows.h"
#include "benchmarks/statistics.h"
#include "cli/bench.h"
#include "cli/bench_output.h"
#include "cli/exit_codes.h"
#include "cli/session.h"
#include "engine/base/cpu_topology.h"
#include "engine/base/status.h"
#include "kernels/backend_factory.h"
#include "nlohmann/json.hpp"

namespace quire {
namespace {

using Json = nlohmann::ordered_json;

constexpr int64_t kProbeBytes = int64_t{2} << 30;

absl::StatusOr<QuantFormat> ParseFormat(const std::string& name) {
  if (name.empty()) return QuantFormat::kDense;
  std::string names;
  for (int i = 0; i <= static_cast<int>(QuantFormat::kInt4); ++i) {
    const auto format = static_cast<QuantFormat>(i);
    if (name == QuantFormatName(format)) return format;
    absl::StrAppend(&names, i == 0 ? "" : ", ", QuantFormatName(format));
  }
  return absl::InvalidArgumentError(
      absl::StrCat("--quantization '", name, "' is none of ", names));
}

DType ParseKernelDType(const std::string& name) {
  return name == "f32"    ? DType::kF32
         : name == "f16"  ? DType::kF16
         : name == "fp8"  ? DType::kF8E4M3
         : name == "int8" ? DType::kI8
                          : DType::kBF16;
}

class KernelsBench {
 public:
  explicit KernelsBench(const BenchKernelOptions& options)
      : options_(options) {}

  int Run();

 private:
  // What the options say, before anything is measured.
  absl::Status CheckOptions();
  absl::Status Init();
  absl::StatusOr<std::unique_ptr<Backend>> NewBackend() const {
    std::string fallback_reason;
    return CreateBackend(
        {options_.device, placement_.num_threads,
         /*enforce_eager=*/false, placement_.cpus, placement_.numa},
        &fallback_reason);
  }
  void PrintCeilings();
  void Add(const KernelRow& row);
  void AddTimed(const std::string& name, const std::vector<double>& seconds);

  const BenchKernelOptions& options_;
  std::unique_ptr<HostCeilingProbe> probe_;
  std::unique_ptr<KernelCeilings> ceilings_;
  PlacementRequest placement_;
  KernelBenchPlan plan_;
  Json rows_ = Json::array();
  Json ceilings_json_ = Json::array();
  int exit_code_ = kExitDevice;
};

absl::Status KernelsBench::CheckOptions() {
  QUIRE_ASSIGN_OR_RETURN(plan_.format, ParseFormat(options_.quantization));
  QUIRE_ASSIGN_OR_RETURN(
      placement_, MakePlacementRequest(options_.num_threads, options_.cpu_cores,
                                       options_.numa));
  for (const std::string& name : options_.presets) {
    QUIRE_RETURN_IF_ERROR(PresetShape(name).status());
  }
  return absl::OkStatus();
}

absl::Status KernelsBench::Init() {
  QUIRE_ASSIGN_OR_RETURN(std::unique_ptr<Backend> backend, NewBackend());
  absl::PrintF(
      "%s, weights %s; median [min, max] of %d\n", backend->Description(),
      plan_.format == QuantFormat::kDense ? options_.dtype
                                          : QuantFormatName(plan_.format),
      options_.repetitions);
  if (options_.device == "cpu") {
    backend.reset();
    QUIRE_ASSIGN_OR_RETURN(probe_, HostCeilingProbe::Create(placement_));
    ceilings_ = NewCpuCeilings(&probe_->probe);
  } else {
    // A slice of a GPU may have little memory.
    QUIRE_ASSIGN_OR_RETURN(const int64_t free_bytes,
                           backend->FreeDeviceBytes());
    QUIRE_ASSIGN_OR_RETURN(
        ceilings_, NewDeviceCeilings(std::move(backend),
                                     std::min(kProbeBytes, free_bytes / 16)));
    plan_.rotation_bytes = std::min(plan_.rotation_bytes, free_bytes / 16);
  }
  plan_.new_backend = [this] { return NewBackend(); };
  plan_.ceilings = ceilings_.get();
  plan_.dtype = ParseKernelDType(options_.dtype);
  plan_.kv_dtype = ParseKernelDType(options_.kv_cache_dtype);
  plan_.num_rows = options_.num_rows;
  plan_.repetitions = options_.repetitions;
  plan_.filter = options_.filter;
  exit_code_ = kExitEngine;
  return absl::OkStatus();
}

void KernelsBench::PrintCeilings() {
  std::vector<double> bandwidth, copy, f32, bf16, int8;
  for (int i = 0; i < options_.repetitions; ++i) {
    bandwidth.push_back(ceilings_->Bandwidth());
    copy.push_back(ceilings_->CopyBandwidth());
    f32.push_back(ceilings_->Peak(Arithmetic::kF32));
    bf16.push_back(ceilings_->Peak(Arithmetic::kBf16));
    int8.push_back(ceilings_->Peak(Arithmetic::kInt8));
  }
  absl::PrintF("%-40s %s %s GB/s", "ceilings", ceilings_->BandwidthName(),
               Spread(bandwidth, 1e9, "%.1f"));
  if (copy.front() > 0) {
    absl::PrintF(", copy %s GB/s", Spread(copy, 1e9, "%.1f"));
  }
  if (f32.front() > 0) {
    absl::PrintF(", f32 %s, bf16 %s, int8 %s TFLOP/s",
                 Spread(f32, 1e12, "%.2f"), Spread(bf16, 1e12, "%.2f"),
                 Spread(int8, 1e12, "%.2f"));
  } else if (bf16.front() > 0) {
    absl::PrintF(", bf16 %s TFLOP/s", Spread(bf16, 1e12, "%.2f"));
  }
  absl::PrintF("\n");
  std::fflush(stdout);
  ceilings_json_.push_back(
      {{absl::StrCat(ceilings_->BandwidthName(), "_bytes_per_second"),
        bandwidth},
       {"copy_bytes_per_second", copy},
       {"f32_flops", f32},
       {"bf16_flops", bf16},
       {"int8_flops", int8}});
}

void KernelsBench::Add(const KernelRow& row) {
  const double seconds = Median(row.seconds);
  absl::PrintF("%-40s %10.1f us %8.1f GB/s %8.3f TFLOP/s", row.name,
               seconds * 1e6, row.bytes / seconds / 1e9,
               row.flops / seconds / 1e12);
  if (!row.percent_of_bandwidth.empty()) {
    absl::PrintF("  %s %% of %s", Spread(row.percent_of_bandwidth, 1, "%.0f"),
                 ceilings_->BandwidthName());
  }
  if (!row.percent_of_peak.empty()) {
    absl::PrintF("  %s %% of peak", Spread(row.percent_of_peak, 1, "%.0f"));
  }
  absl::PrintF("\n");
  std::fflush(stdout);
  rows_.push_back({{"name", row.name},
                   {"bytes", row.bytes},
                   {"flops", row.flops},
                   {"seconds", row.seconds},
                   {"percent_of_bandwidth", row.percent_of_bandwidth},
                   {"percent_of_peak", row.percent_of_peak}});
}

void KernelsBench::AddTimed(const std::string& name,
                            const std::vector<double>& seconds) {
  absl::PrintF("%-40s %s us\n", name, Spread(seconds, 1e-6, "%.2f"));
  std::fflush(stdout);
  rows_.push_back({{"name", name}, {"seconds", seconds}});
}

int KernelsBench::Run() {
  if (const absl::Status status = CheckOptions(); !status.ok()) {
    return FailBench(status, kExitUsage);
  }
  // First of all: it forks, and there are no threads yet.
  if (options_.device == "cpu") {
    const absl::Status status = MeasureRanks(
        options_.repetitions, options_.filter,
        [this](const std::string& name, const std::vector<double>& seconds) {
          AddTimed(name, seconds);
        });
    if (!status.ok()) return FailBench(status, kExitEngine);
  }
  if (const absl::Status status = Init(); !status.ok()) {
    return FailBench(status, exit_code_);
  }
  PrintCeilings();
  if (probe_ != nullptr) {
    const auto add = [this](const std::string& name,
                            const std::vector<double>& seconds) {
      AddTimed(name, seconds);
    };
    const auto threads = PlaceThreads(placement_);
    if (!threads.ok()) return FailBench(threads.status(), kExitUsage);
    MeasureBarriers(*threads, options_.repetitions, options_.filter, add);
    // Qwen2.5's vocabulary.
    MeasureSampling(probe_->isa, 151936, 4096, options_.repetitions,
                    options_.filter, add);
  }
  for (const std::string& name : options_.presets) {
    const absl::Status status = MeasureKernels(
        plan_, name, *PresetShape(name),
        [this](const KernelRow& row) { Add(row); },
        [](const std::string& reason) {
          absl::PrintF("%s: skipped\n", reason);
        });
    if (!status.ok()) return FailBench(status, kExitEngine);
  }
  // The ceilings are a row, too: --filter ceilings measures nothing else.
  if (rows_.empty() && !absl::StrContains("ceilings", options_.filter)) {
    return FailBench(
        absl::InvalidArgumentError(absl::StrCat("--filter '", options_.filter,
                                                "' leaves no row to measure")),
        kExitUsage);
  }
  PrintCeilings();
  if (options_.output_json.empty()) return kExitOk;
  const Json json = {{"device", options_.device},
                     {"dtype", options_.dtype},
                     {"quantization", options_.quantization},
                     {"ceilings", ceilings_json_},
                     {"rows", rows_}};
  const absl::Status status =
      WriteTextFile(options_.output_json, json.dump(2) + "\n");
  return status.ok() ? kExitOk : FailBench(status, kExitDevice);
}

}  // namespace

int RunBenchKernels(const BenchKernelOptions& options) {
  return KernelsBench(options).Run();
}

}  // namespace quire
