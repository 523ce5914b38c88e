// `quire bench model`: rows as llama-bench's.
#include <stdlib.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "benchmarks/ceilings.h"
#include "benchmarks/model_rows.h"
#include "benchmarks/random_model.h"
#include "benchmarks/statistics.h"
#include "cli/bench.h"
#include "cli/bench_output.h"
#include "cli/exit_codes.h"
#include "cli/session.h"
#include "engine/base/cpu_topology.h"
#include "engine/base/status.h"
#include "engine/base/thread_pool.h"
#include "kernels/backend_factory.h"
#include "nlohmann/json.hpp"

namespace quire {
namespace {

using Json = nlohmann::ordered_json;

absl::StatusOr<std::vector<ModelRow>> PlanRows(
    const BenchModelOptions& options) {
  if (!options.preset.empty() && !options.model.model.empty()) {
    return absl::InvalidArgumentError(absl::StrCat("--preset ", options.preset,
                                                   " contradicts --model ",
                                                   options.model.model));
  }
  std::vector<ModelRow> rows;
  for (int depth : options.depth) {
    for (int n : options.num_prompt) {
      if (n > 0) rows.push_back({n, 0, depth, 1});
    }
    for (int n : options.num_gen) {
      if (n > 0) rows.push_back({0, n, depth, 1});
    }
    for (const std::string& text : options.prompt_gen) {
      const std::vector<std::string> parts = absl::StrSplit(text, ',');
      ModelRow row;
      row.depth = depth;
      if (parts.size() != 2 || !absl::SimpleAtoi(parts[0], &row.num_prompt) ||
          !absl::SimpleAtoi(parts[1], &row.num_gen) || row.num_prompt < 1 ||
          row.num_gen < 1 || row.num_prompt > 1 << 24 ||
          row.num_gen > 1 << 24) {
        return absl::InvalidArgumentError(
            absl::StrCat("-pg '", text, "' is not PROMPT,GENERATED"));
      }
      rows.push_back(row);
    }
  }
  const std::vector<int> batched_gen = options.batched_gen > 0
                                           ? std::vector{options.batched_gen}
                                           : options.num_gen;
  for (int num_seqs : options.concurrency) {
    for (int n : batched_gen) {
      if (n > 0) rows.push_back({0, n, options.batched_prompt, num_seqs});
    }
  }
  if (rows.empty()) {
    return absl::InvalidArgumentError("-p, -n and -pg leave nothing to do");
  }
  return rows;
}

// A directory that is removed with the object.
class TemporaryDirectory {
 public:
  TemporaryDirectory() = default;
  TemporaryDirectory(const TemporaryDirectory&) = delete;
  TemporaryDirectory& operator=(const TemporaryDirectory&) = delete;
  ~TemporaryDirectory() {
    std::error_code error;
    if (!path_.empty()) std::filesystem::remove_all(path_, error);
  }
  absl::Status Make() {
    std::error_code error;
    const auto folder = std::filesystem::temp_directory_path(error);
    std::string path = (folder / "quire_bench_XXXXXX").string();
    if (error || mkdtemp(path.data()) == nullptr) {
      return absl::UnavailableError(absl::StrCat(path, ": cannot be made"));
    }
    path_ = path;
    return absl::OkStatus();
  }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

// Of --ceilings.
struct PercentColumn {
  const char* name;
  std::vector<double> ModelRowResult::*values;
};
constexpr PercentColumn kPercentColumns[] = {
    {"percent_of_read_bandwidth", &ModelRowResult::percent_of_read},
    {"percent_of_copy_bandwidth", &ModelRowResult::percent_of_copy},
    {"percent_of_bf16_peak", &ModelRowResult::percent_of_peak}};

// Two halves that no cache holds.
constexpr int64_t kMaxProbeBytes = int64_t{2} << 30;

class ModelBench {
 public:
  explicit ModelBench(const BenchModelOptions& options)
      : options_(options), is_interrupted_(InterruptFlag()) {}

  int Run();

 private:
  // Sets exit_code_ on failure.
  absl::Status Load(const std::vector<ModelRow>& rows);
  // As a command does that serves the model.
  absl::Status LoadServed(const SessionOptions& options);
  absl::Status LoadPreset(SessionOptions options,
                          const PlacementRequest& placement);
  absl::Status MakeCeilingProbe(const PlacementRequest& placement);
  absl::Status Measure(const ModelRow& row);
  LoadedModel& model() { return session_ ? session_->loaded : preset_model_; }
  // "bf16", "q4_k", "gptq"; "gguf" for such a file, whose matrices differ.
  std::string WeightsName() {
    if (!model().quantization.empty()) return model().quantization;
    if (!options_.model.quantization.empty()) {
      return options_.model.quantization;
    }
    return absl::EndsWith(name_, ".gguf") ? "gguf" : DTypeName(model().dtype);
  }
  // Processes that share the model.
  int NumRanks() const {
    if (session_ == nullptr || session_->ranks == nullptr) return 1;
    return session_->ranks->plan().layout.size();
  }
  // Of one of them.
  int NumThreads() const {
    const int share =
        NumRanks() > 1 ? session_->ranks->plan().shares[0].num_threads : 0;
    if (share > 0) return share;
    return options_.model.num_threads > 0 ? options_.model.num_threads
                                          : PlaceThreads({})->num_threads;
  }
  Json Object(const ModelRowResult& result);
  void Print(const ModelRowResult& result);
  void PrintEnd();

  const BenchModelOptions& options_;
  const std::atomic<bool>& is_interrupted_;
  std::unique_ptr<Session> session_;
  LoadedModel preset_model_;
  std::string name_;
  // Of --ceilings; one of them, and how it is asked.
  std::unique_ptr<HostCeilingProbe> host_probe_;
  std::unique_ptr<DeviceProbe> device_probe_;
  ModelCeilingProbe probe_;
  ModelCeilings last_ceilings_;  // Of a GPU.
  std::unique_ptr<ModelDriver> driver_;
  int num_printed_ = 0;
  int exit_code_ = kExitEngine;
};

absl::Status ModelBench::Load(const std::vector<ModelRow>& rows) {
  int num_seqs = 1, longest = 2, most_tokens = 1;
  for (const ModelRow& row : rows) {
    num_seqs = std::max(num_seqs, row.num_seqs);
    longest = std::max(longest, row.length());
    most_tokens = std::max({most_tokens, row.num_prompt, row.depth});
  }
  const int step_tokens =
      std::max(num_seqs, std::min(options_.batch_size, most_tokens));
  exit_code_ = kExitUsage;
  QUIRE_ASSIGN_OR_RETURN(
      const PlacementRequest placement,
      MakePlacementRequest(options_.model.num_threads, options_.model.cpu_cores,
                           options_.model.numa));
  SessionOptions session = options_.model;
  session.max_num_seqs = num_seqs;
  session.max_num_batched_tokens = step_tokens;
  session.max_model_len = absl::StrCat(longest + 1);
  QUIRE_RETURN_IF_ERROR(options_.preset.empty()
                            ? LoadServed(session)
                            : LoadPreset(std::move(session), placement));
  name_ = options_.preset.empty() ? session_->model_path : options_.preset;
  if (options_.has_ceilings) {
    exit_code_ = kExitDevice;
    QUIRE_RETURN_IF_ERROR(MakeCeilingProbe(placement));
  }
  exit_code_ = kExitDevice;
  QUIRE_ASSIGN_OR_RETURN(
      ModelDriver driver,
      ModelDriver::Create(&model(), num_seqs, longest,
                          session_ != nullptr ? session_->runner : nullptr,
                          &is_interrupted_));
  driver_ = std::make_unique<ModelDriver>(std::move(driver));
  exit_code_ = kExitEngine;
  return absl::OkStatus();
}

absl::Status ModelBench::LoadServed(const SessionOptions& options) {
  CommandError error;
  session_ = LoadSession(options, &error);
  if (session_ != nullptr) return absl::OkStatus();
  exit_code_ = error.exit_code;
  return error.status;
}

absl::Status ModelBench::LoadPreset(SessionOptions options,
                                    const PlacementRequest& placement) {
  QUIRE_ASSIGN_OR_RETURN(const RandomModelShape shape,
                         PresetShape(options_.preset));
  exit_code_ = kExitDevice;
  TemporaryDirectory directory;
  QUIRE_RETURN_IF_ERROR(directory.Make());
  QUIRE_RETURN_IF_ERROR(WriteRandomModel(shape, 1, directory.path()));
  if (options.tensor_parallel_size != "auto" &&
      options.tensor_parallel_size != "1") {
    // The ranks are processes that load a directory and want a tokenizer.
    options.model = directory.path();
    options.tokenizer = FindDemoModel();
    options.args.push_back(absl::StrCat("--tokenizer=", options.tokenizer));
    return LoadServed(options);
  }
  QUIRE_ASSIGN_OR_RETURN(const LoadOptions load, MakeLoadOptions(options));
  std::string fallback_reason;
  QUIRE_ASSIGN_OR_RETURN(
      std::unique_ptr<Backend> backend,
      CreateBackend({options.device, placement.num_threads,
                     options.enforce_eager, placement.cpus, placement.numa},
                    &fallback_reason));
  QUIRE_ASSIGN_OR_RETURN(preset_model_,
                         LoadModel(directory.path(), load, std::move(backend)));
  return absl::OkStatus();
}

// Of the device that computes, whatever --device auto has chosen.
absl::Status ModelBench::MakeCeilingProbe(const PlacementRequest& placement) {
  Backend& backend = *model().backend;
  if (!backend.OwnsMemory()) {
    QUIRE_ASSIGN_OR_RETURN(host_probe_, HostCeilingProbe::Create(placement));
    probe_ = [this]() -> absl::StatusOr<ModelCeilings> {
      return ModelCeilings{host_probe_->probe.ReadBandwidth(), 0,
                           host_probe_->probe.Bf16Peak()};
    };
    return absl::OkStatus();
  }
  // What --gpu-memory-utilization has left.
  QUIRE_ASSIGN_OR_RETURN(const int64_t free_bytes, backend.FreeDeviceBytes());
  QUIRE_ASSIGN_OR_RETURN(device_probe_, backend.NewProbe(std::min(
                                            kMaxProbeBytes, free_bytes / 2)));
  const auto peak = device_probe_->Bf16Peak();
  if (!peak.ok()) {
    std::fprintf(stderr, "quire: no bf16 peak: %s\n",
                 std::string(peak.status().message()).c_str());
  }
  probe_ = [this, has_peak = peak.ok()]() -> absl::StatusOr<ModelCeilings> {
    ModelCeilings ceilings;
    QUIRE_ASSIGN_OR_RETURN(ceilings.read, device_probe_->ReadBandwidth());
    QUIRE_ASSIGN_OR_RETURN(ceilings.copy, device_probe_->CopyBandwidth());
    if (has_peak) {
      QUIRE_ASSIGN_OR_RETURN(ceilings.bf16_peak, device_probe_->Bf16Peak());
    }
    last_ceilings_ = ceilings;
    return ceilings;
  };
  return absl::OkStatus();
}

Json ModelBench::Object(const ModelRowResult& result) {
  std::vector<double> nanoseconds, rates;
  for (double seconds : result.seconds) {
    nanoseconds.push_back(seconds * 1e9);
    rates.push_back(result.row.num_tokens() / seconds);
  }
  Json json = {{"model_filename", name_},
               {"model_type",
                absl::StrCat(model().config.model_type, " ", WeightsName())},
               {"model_size", model().memory.weights_bytes},
               {"model_n_params", model().num_parameters},
               {"backends", model().backend->Description()},
               {"n_batch", model().shape.max_num_tokens},
               {"n_ranks", NumRanks()},
               {"n_threads", NumThreads()},
               {"type_k", DTypeName(model().kv_cache_dtype)},
               {"type_v", DTypeName(model().kv_cache_dtype)},
               {"n_prompt", result.row.num_prompt},
               {"n_gen", result.row.num_gen},
               {"n_depth", result.row.depth},
               {"n_seqs", result.row.num_seqs},
               {"test", result.row.Name()},
               {"test_time", absl::FormatTime("%Y-%m-%dT%H:%M:%SZ", absl::Now(),
                                              absl::UTCTimeZone())},
               {"avg_ns", Mean(nanoseconds)},
               {"stddev_ns", SampleDeviation(nanoseconds)},
               {"avg_ts", Mean(rates)},
               {"stddev_ts", SampleDeviation(rates)},
               {"samples_ns", nanoseconds},
               {"samples_ts", rates}};
  for (const PercentColumn& column : kPercentColumns) {
    const std::vector<double>& percents = result.*column.values;
    if (!percents.empty()) json[column.name] = percents;
  }
  return json;
}

// As llama-bench writes them.
std::string SizeText(int64_t num_bytes) {
  return num_bytes >= int64_t{1} << 30
             ? absl::StrFormat("%.2f GiB", num_bytes / double(1 << 30))
             : absl::StrFormat("%.2f MiB", num_bytes / double(1 << 20));
}

std::string CountText(int64_t count) {
  return count >= 1000000000 ? absl::StrFormat("%.2f B", count / 1e9)
                             : absl::StrFormat("%.2f M", count / 1e6);
}

// Names of files need not be UTF-8.
std::string Dump(const Json& json, int indent = -1) {
  return json.dump(indent, ' ', false, Json::error_handler_t::replace);
}

std::string CsvField(const Json& value) {
  const std::string text =
      value.is_string() ? value.get<std::string>() : Dump(value);
  std::string quoted = "\"";
  for (char c : text) {
    if (c == '"') quoted += '"';
    quoted += c;
  }
  return quoted + "\"";
}

void ModelBench::Print(const ModelRowResult& result) {
  const Json json = Object(result);
  const bool is_first = num_printed_++ == 0;
  const std::string& format = options_.format;
  if (format == "md") {
    if (is_first) {
      std::printf("| model | size | params | backend | test | t/s |%s\n",
                  probe_ != nullptr
                      ? " of read bandwidth | of copy | of bf16 peak |"
                      : "");
      std::printf("| --- | ---: | ---: | --- | ---: | ---: |%s\n",
                  probe_ != nullptr ? " ---: | ---: | ---: |" : "");
    }
    // Size and threads are a rank's.
    const std::string ranks =
        NumRanks() > 1 ? absl::StrCat(" x ", NumRanks()) : "";
    absl::PrintF("| %s %s | %s%s | %s | %s%s | %s | %.2f ± %.2f |",
                 name_.substr(name_.rfind('/') + 1), WeightsName(),
                 SizeText(model().memory.weights_bytes), ranks,
                 CountText(model().num_parameters),
                 model().backend->Description(), ranks, result.row.Name(),
                 json["avg_ts"].get<double>(), json["stddev_ts"].get<double>());
    if (probe_ != nullptr) {
      for (const PercentColumn& column : kPercentColumns) {
        const std::vector<double>& percents = result.*column.values;
        absl::PrintF(" %s |", percents.empty()
                                  ? "-"
                                  : Spread(percents, 1, "%.0f") + " %");
      }
    }
    std::printf("\n");
  } else if (format == "csv") {
    std::vector<std::string> names, values;
    for (const auto& [name, value] : json.items()) {
      if (value.is_array()) continue;
      names.push_back(name);
      values.push_back(CsvField(value));
    }
    for (const PercentColumn& column : kPercentColumns) {
      if (probe_ == nullptr) break;
      // In every row, or rows would differ in their columns.
      const std::vector<double>& percents = result.*column.values;
      names.push_back(column.name);
      values.push_back(
          CsvField(percents.empty() ? Json("") : Json(Median(percents))));
    }
    if (is_first) std::printf("%s\n", absl::StrJoin(names, ",").c_str());
    std::printf("%s\n", absl::StrJoin(values, ",").c_str());
  } else if (format == "jsonl") {
    std::printf("%s\n", Dump(json).c_str());
  } else {
    std::printf("%s%s", is_first ? "[\n" : ",\n", Dump(json, 2).c_str());
  }
  std::fflush(stdout);
}

void ModelBench::PrintEnd() {
  // Of the end of the run, where a GPU computed.
  if (options_.format == "md" && last_ceilings_.read > 0) {
    absl::PrintF("ceilings read %.1f GB/s, copy %.1f GB/s, bf16 %.1f TFLOP/s\n",
                 last_ceilings_.read / 1e9, last_ceilings_.copy / 1e9,
                 last_ceilings_.bf16_peak / 1e12);
  }
  const std::string steps = model().backend->StepsSummary();
  if (options_.format == "md" && !steps.empty()) {
    absl::PrintF("%s\n", steps);
  }
  if (options_.format != "json") return;
  std::printf(num_printed_ == 0 ? "[]\n" : "\n]\n");
}

absl::Status ModelBench::Measure(const ModelRow& row) {
  QUIRE_ASSIGN_OR_RETURN(const ModelRowResult result,
                         MeasureModelRow(model(), driver_.get(), row,
                                         options_.repetitions, probe_));
  Print(result);
  return absl::OkStatus();
}

int ModelBench::Run() {
  const auto rows = PlanRows(options_);
  if (!rows.ok()) return FailBench(rows.status(), kExitUsage);
  if (const absl::Status status = Load(*rows); !status.ok()) {
    return FailBench(status, exit_code_);
  }
  for (const ModelRow& row : *rows) {
    if (is_interrupted_) break;
    const absl::Status status = Measure(row);
    if (absl::IsCancelled(status)) break;
    if (!status.ok()) {
      PrintEnd();
      return FailBench(status, kExitEngine);
    }
  }
  PrintEnd();
  return is_interrupted_ ? kExitInterrupted : kExitOk;
}

}  // namespace

int RunBenchModel(const BenchModelOptions& options) {
  if (!options.save_to.empty() || !options.save_head_to.empty()) {
    const auto shape = PresetShape(options.preset);
    if (!shape.ok()) return FailBench(shape.status(), kExitUsage);
    absl::Status status;
    if (!options.save_to.empty()) {
      status = WriteRandomModel(*shape, 1, options.save_to);
    }
    if (status.ok() && !options.save_head_to.empty()) {
      status = WriteRandomHead(*shape, 2, options.save_head_to);
    }
    return status.ok() ? kExitOk : FailBench(status, kExitDevice);
  }
  if (options.model.pipeline_parallel_size > 1) {
    // One batch is in one stage at a time: that is not what stages are for.
    return FailBench(absl::InvalidArgumentError(
                         "--pipeline-parallel-size: bench throughput and bench "
                         "serve measure stages, bench model does not"),
                     kExitUsage);
  }
  return ModelBench(options).Run();
}

}  // namespace quire
