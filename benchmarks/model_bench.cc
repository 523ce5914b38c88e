// A whole model on the CPU backend against the ceilings of the machine: decode
// at batch 1 and N against read bandwidth, prefill against peak arithmetic, and
// the time to load. Each repetition probes the ceiling right before and after
// the measurement: on a shared machine only such ratios mean anything.
//
//   model_bench [--threads=N] [--reps=N] [--batch=N] [--prompt=N] [--steps=N]
//               [--layers=N] [--load-reps=N] [--dir=DIR] [--kv=bf16|f16|f32]
//               [--model=PATH] [--quantization=q8_0|q4_0|q4_k|...]
//
// --model takes a model directory or GGUF file instead, whose embedding is tied
// or is left out of the bytes by hand. With quantized weights the peak is that
// of products of bytes.
//
// The model has random weights in the shape of Qwen2.5-0.5B (or fewer layers of
// it); it is written to a temporary directory, or to DIR, where it stays.
#include <stdlib.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/strip.h"
#include "benchmarks/ceilings.h"
#include "benchmarks/random_model.h"
#include "engine/base/status.h"
#include "engine/base/thread_pool.h"
#include "engine/model/loaded_model.h"
#include "kernels/backend_factory.h"
#include "kernels/cpu/isa.h"

namespace quire {
namespace {

using SteadyClock = std::chrono::steady_clock;

struct Options {
  int num_threads = 0;
  int num_reps = 9;
  int num_load_reps = 5;
  int batch = 16;
  int prompt = 512;
  int steps = 8;  // Decode steps per repetition.
  int num_layers = 0;
  DType kv_dtype = DType::kBF16;
  std::string directory;
  std::string model;
  std::optional<QuantFormat> quantization;
};

double SecondsSince(SteadyClock::time_point start) {
  return std::chrono::duration<double>(SteadyClock::now() - start).count();
}

// "median [min, max]".
std::string Summary(std::vector<double> values, const char* unit) {
  std::sort(values.begin(), values.end());
  const size_t n = values.size();
  const double median =
      n % 2 == 1 ? values[n / 2] : (values[n / 2 - 1] + values[n / 2]) / 2;
  return absl::StrFormat("%9.2f %s [%.2f, %.2f]", median, unit, values.front(),
                         values.back());
}

// Sequences that all have the same length, driven without a scheduler.
class Driver {
 public:
  Driver(LoadedModel* model, int num_seqs, int max_len)
      : model_(model), max_len_(max_len), lengths_(num_seqs, 0) {
    params_.temperature = 0.0f;
  }

  // Starts sequence `slot` with a prompt of `num_tokens`, computed at once.
  absl::Status Prefill(int slot, int num_tokens) {
    SchedulerOutput output;
    SlotStart start;
    start.slot = slot;
    start.params = &params_;
    for (int i = 0; i < num_tokens; ++i) {
      start.history.push_back((slot * 7919 + i * 104729 + 11) %
                              model_->config.vocab_size);
    }
    start.num_prompt_tokens = num_tokens;
    output.token_ids = start.history;
    output.slot_starts.push_back(std::move(start));
    const int block_size = model_->shape.block_size;
    const int blocks_per_seq = (max_len_ + block_size - 1) / block_size;
    BlockAppend append;
    append.slot = slot;
    for (int i = 0; i < blocks_per_seq; ++i) {
      append.block_ids.push_back(slot * blocks_per_seq + i);
    }
    output.block_appends.push_back(std::move(append));
    output.rows.push_back({slot, 0, num_tokens, true, false, 0});
    lengths_[slot] = num_tokens;
    return RunStep(output);
  }

  // One token of the first `num_seqs` sequences.
  absl::Status Decode(int num_seqs) {
    SchedulerOutput output;
    for (int slot = 0; slot < num_seqs; ++slot) {
      output.rows.push_back({slot, lengths_[slot], 1, true, false, slot});
      output.token_ids.push_back(last_tokens_[slot]);
      ++lengths_[slot];
    }
    return RunStep(output);
  }

 private:
  absl::Status RunStep(const SchedulerOutput& output) {
    QUIRE_RETURN_IF_ERROR(model_->runner->Submit(output));
    QUIRE_ASSIGN_OR_RETURN(const StepResult result, model_->runner->Collect());
    last_tokens_.resize(lengths_.size());
    for (const SampledRow& row : result.rows) {
      if (row.non_finite) return absl::InternalError("logits are not finite");
      last_tokens_[row.slot] = row.tokens[0].token_id;
    }
    return absl::OkStatus();
  }

  LoadedModel* const model_;
  const int max_len_;
  SamplingParams params_;
  std::vector<int> lengths_;
  std::vector<int32_t> last_tokens_;
};

class ModelBench {
 public:
  ModelBench(const Options& options, const RandomModelShape& shape, Isa isa)
      : options_(options),
        shape_(shape),
        pool_(options.num_threads),
        probe_(&pool_, isa, int64_t{1} << 30) {}

  absl::Status Load(const std::string& directory);
  absl::Status Measure();

 private:
  // `steps` decode steps of `num_seqs` sequences between two probes.
  absl::Status MeasureDecode(Driver& driver, int num_seqs,
                             std::vector<double>& tokens_per_second,
                             std::vector<double>& fractions);
  absl::Status MeasurePrefill(Driver& driver, std::vector<double>& flops,
                              std::vector<double>& fractions);

  // In bf16, of shape_.
  bool IsRandom() const {
    return options_.model.empty() && !options_.quantization.has_value();
  }
  double Peak() {
    return model_.quantization.empty() ? probe_.Bf16Peak() : probe_.Int8Peak();
  }

  const Options& options_;
  const RandomModelShape& shape_;
  ThreadPool pool_;
  CeilingProbe probe_;
  LoadedModel model_;
  std::vector<double> read_, peak_, prompt_rate_;
};

absl::Status ModelBench::Load(const std::string& directory) {
  LoadOptions load_options;
  if (options_.quantization.has_value()) {
    load_options.quantization =
        QuantizationScheme{.format = *options_.quantization};
  }
  load_options.kv_cache_dtype = options_.kv_dtype;
  load_options.max_num_seqs = options_.batch;
  load_options.max_num_batched_tokens =
      std::max(options_.prompt, options_.batch);
  load_options.max_model_len =
      options_.prompt + (options_.num_reps + 2) * options_.steps;
  std::vector<double> seconds, rates, read;
  for (int rep = 0; rep < options_.num_load_reps; ++rep) {
    model_ = LoadedModel();  // Frees the last one.
    read.push_back(probe_.ReadBandwidth() / 1e9);
    const SteadyClock::time_point start = SteadyClock::now();
    BackendOptions backend_options;
    backend_options.device = "cpu";
    backend_options.num_threads = options_.num_threads;
    std::string fallback_reason;  // Of auto only.
    QUIRE_ASSIGN_OR_RETURN(std::unique_ptr<Backend> backend,
                           CreateBackend(backend_options, &fallback_reason));
    QUIRE_ASSIGN_OR_RETURN(
        model_, LoadModel(directory, load_options, std::move(backend)));
    seconds.push_back(SecondsSince(start));
    rates.push_back(1e-9 * model_.memory.weights_bytes / seconds.back());
  }
  std::printf("%s\n", model_.backend->Description().c_str());
  std::printf(
      "%.1fM parameters, %.1f MB of weights as packed, %.1f MB of KV, %.1f MB "
      "of workspace\n",
      model_.num_parameters / 1e6, model_.memory.weights_bytes / 1e6,
      model_.memory.kv_bytes / 1e6, model_.memory.workspace_bytes / 1e6);
  std::printf("load             %s, %s; read bandwidth %s\n",
              Summary(seconds, "s").c_str(), Summary(rates, "GB/s").c_str(),
              Summary(read, "GB/s").c_str());
  return absl::OkStatus();
}

absl::Status ModelBench::MeasureDecode(Driver& driver, int num_seqs,
                                       std::vector<double>& tokens_per_second,
                                       std::vector<double>& fractions) {
  const double before = probe_.ReadBandwidth();
  const SteadyClock::time_point start = SteadyClock::now();
  for (int step = 0; step < options_.steps; ++step) {
    QUIRE_RETURN_IF_ERROR(driver.Decode(num_seqs));
  }
  const double seconds = SecondsSince(start) / options_.steps;
  const double after = probe_.ReadBandwidth();
  // Every matrix once; bytes as the file has them, without padding, where they
  // are known.
  const double bytes =
      IsRandom() ? 2.0 * (shape_.LayerMatrixElements() + shape_.HeadElements())
                 : static_cast<double>(model_.memory.weights_bytes);
  tokens_per_second.push_back(num_seqs / seconds);
  fractions.push_back(100 * bytes / seconds / ((before + after) / 2));
  read_.push_back(before / 1e9);
  read_.push_back(after / 1e9);
  return absl::OkStatus();
}

absl::Status ModelBench::MeasurePrefill(Driver& driver,
                                        std::vector<double>& flops,
                                        std::vector<double>& fractions) {
  const double before = Peak();
  const SteadyClock::time_point start = SteadyClock::now();
  QUIRE_RETURN_IF_ERROR(driver.Prefill(0, options_.prompt));
  const double seconds = SecondsSince(start);
  const double after = Peak();
  const double tokens = options_.prompt;
  // Matrices of all tokens, the head of one, and q . k and p . v over all
  // positions up to each token's own.
  const ModelConfig& config = model_.config;
  const double head =
      static_cast<double>(config.vocab_size) * config.hidden_size;
  const double layers = IsRandom()
                            ? static_cast<double>(shape_.LayerMatrixElements())
                            : model_.num_parameters - head;
  const double work = 2 * tokens * layers + 2 * head +
                      4.0 * config.layers.size() * config.hidden_size *
                          (tokens * (tokens + 1) / 2);
  flops.push_back(work / seconds / 1e12);
  prompt_rate_.push_back(tokens / seconds);
  fractions.push_back(100 * work / seconds / ((before + after) / 2));
  peak_.push_back(before / 1e12);
  peak_.push_back(after / 1e12);
  return absl::OkStatus();
}

absl::Status ModelBench::Measure() {
  Driver driver(&model_, options_.batch, model_.shape.max_model_len);
  const int context = std::min(options_.prompt, 128);
  std::vector<double> one, one_fraction, many, many_fraction, speedup;
  std::vector<double> prefill, prefill_fraction;
  for (int rep = -1; rep < options_.num_reps; ++rep) {
    if (rep == 0) {  // What came before warmed up.
      for (std::vector<double>* values :
           {&one, &one_fraction, &many, &many_fraction, &speedup, &prefill,
            &prefill_fraction, &read_, &peak_, &prompt_rate_}) {
        values->clear();
      }
    }
    QUIRE_RETURN_IF_ERROR(MeasurePrefill(driver, prefill, prefill_fraction));
    for (int slot = 0; slot < options_.batch; ++slot) {
      QUIRE_RETURN_IF_ERROR(driver.Prefill(slot, context));
    }
    QUIRE_RETURN_IF_ERROR(MeasureDecode(driver, 1, one, one_fraction));
    QUIRE_RETURN_IF_ERROR(
        MeasureDecode(driver, options_.batch, many, many_fraction));
    speedup.push_back(many.back() / one.back());
  }
  std::printf("read bandwidth   %s\n", Summary(read_, "GB/s").c_str());
  const char* const arithmetic = model_.quantization.empty() ? "bf16" : "int8";
  std::printf("%s peak        %s\n", arithmetic,
              Summary(peak_, "TFLOP/s").c_str());
  std::printf("decode, batch 1  %s, %s of read bandwidth\n",
              Summary(one, "tokens/s").c_str(),
              Summary(one_fraction, "%").c_str());
  std::printf("decode, batch %-2d %s, %s of read bandwidth, %s batch 1\n",
              options_.batch, Summary(many, "tokens/s").c_str(),
              Summary(many_fraction, "%").c_str(),
              Summary(speedup, "x").c_str());
  std::printf("prefill, %-4d    %s, %s, %s of %s peak\n", options_.prompt,
              Summary(prompt_rate_, "tokens/s").c_str(),
              Summary(prefill, "TFLOP/s").c_str(),
              Summary(prefill_fraction, "%").c_str(), arithmetic);
  return absl::OkStatus();
}

bool ParseArgument(absl::string_view argument, Options& options) {
  const auto number = [&](const char* name, int& value) {
    absl::string_view rest = argument;
    return absl::ConsumePrefix(&rest, name) && absl::SimpleAtoi(rest, &value) &&
           value >= 0;
  };
  if (absl::ConsumePrefix(&argument, "--dir=")) {
    options.directory = std::string(argument);
    return true;
  }
  if (absl::ConsumePrefix(&argument, "--model=")) {
    options.model = std::string(argument);
    return true;
  }
  for (int i = 1; i <= static_cast<int>(QuantFormat::kInt4); ++i) {
    const QuantFormat format = static_cast<QuantFormat>(i);
    if (argument == absl::StrCat("--quantization=", QuantFormatName(format))) {
      options.quantization = format;
      return true;
    }
  }
  for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
    if (argument == absl::StrCat("--kv=", DTypeName(dtype))) {
      options.kv_dtype = dtype;
      return true;
    }
  }
  return number("--threads=", options.num_threads) ||
         number("--reps=", options.num_reps) ||
         number("--load-reps=", options.num_load_reps) ||
         number("--batch=", options.batch) ||
         number("--prompt=", options.prompt) ||
         number("--steps=", options.steps) ||
         number("--layers=", options.num_layers);
}

absl::Status RunBench(const Options& options, const std::string& directory) {
  RandomModelShape shape = Qwen25Half();
  if (options.num_layers > 0) shape.num_layers = options.num_layers;
  const SteadyClock::time_point start = SteadyClock::now();
  if (options.model.empty()) {
    QUIRE_RETURN_IF_ERROR(WriteRandomModel(shape, /*seed=*/1, directory));
    std::printf("wrote the model in %.1f s\n", SecondsSince(start));
  }
  QUIRE_ASSIGN_OR_RETURN(const Isa isa, SelectIsa());
  ModelBench bench(options, shape, isa);
  QUIRE_RETURN_IF_ERROR(
      bench.Load(options.model.empty() ? directory : options.model));
  return bench.Measure();
}

int Main(int argc, char** argv) {
  Options options;
  for (int i = 1; i < argc; ++i) {
    if (!ParseArgument(argv[i], options)) {
      std::fprintf(stderr, "unknown argument %s\n", argv[i]);
      return 64;
    }
  }
  if (options.num_reps < 1 || options.num_load_reps < 1 || options.batch < 1 ||
      options.prompt < 1 || options.steps < 1) {
    std::fprintf(stderr, "every count must be at least 1\n");
    return 64;
  }
  std::string directory = options.directory;
  const bool is_temporary = directory.empty();
  if (is_temporary) {
    directory = (std::filesystem::temp_directory_path() / "quire_bench_XXXXXX")
                    .string();
    if (mkdtemp(directory.data()) == nullptr) {
      std::perror("mkdtemp");
      return 69;
    }
  }
  const absl::Status status = RunBench(options, directory);
  if (is_temporary) std::filesystem::remove_all(directory);
  if (!status.ok()) {
    std::fprintf(stderr, "%s\n", status.ToString().c_str());
    return 70;
  }
  return 0;
}

}  // namespace
}  // namespace quire

int main(int argc, char** argv) { return quire::Main(argc, argv); }
