// Options of `quire bench`.
#ifndef QUIRE_CLI_BENCH_OPTIONS_H_
#define QUIRE_CLI_BENCH_OPTIONS_H_

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "cli/options.h"

namespace CLI {
class App;
}

namespace quire {

// A load over HTTP; the names are those of `vllm bench serve`.
struct BenchServeOptions {
  std::string backend = "openai";
  std::string base_url;  // Empty: http://host:port.
  std::string host = "127.0.0.1";
  int port = 8080;
  std::string endpoint;  // Empty: the backend's.
  std::string model;
  std::string served_model_name;
  std::string tokenizer;
  bool skip_tokenizer = false;
  bool insecure = false;
  std::vector<std::string> headers;  // "NAME=VALUE".

  std::string dataset_name = "random";
  std::string dataset_path;
  int num_prompts = 1000;
  int64_t input_len = 0;  // 0: as the dataset's own option says.
  int64_t output_len = 0;
  int64_t random_input_len = 1024;
  int64_t random_output_len = 128;
  double random_range_ratio = 0;
  int64_t random_prefix_len = 0;
  int random_batch_size = 1;
  int64_t sharegpt_output_len = 0;
  int64_t custom_output_len = 256;
  int64_t prefix_repetition_prefix_len = 256;
  int64_t prefix_repetition_suffix_len = 256;
  int prefix_repetition_num_prefixes = 10;
  int64_t prefix_repetition_output_len = 128;

  double request_rate = 0;  // 0: infinite.
  double burstiness = 1;
  int max_concurrency = 0;
  std::string ramp_up_strategy;
  double ramp_up_start_rps = 0;
  double ramp_up_end_rps = 0;
  int num_warmups = 0;
  double ready_check_timeout_seconds = 0;
  double probe_request_rate = 0;  // 0: no probes.
  bool profile = false;
  std::vector<std::string> lora_modules;
  std::string lora_assignment = "random";
  double request_timeout_seconds = 600;
  uint64_t seed = 0;

  bool ignore_eos = false;
  double temperature = -1;
  double top_p = -1;
  int top_k = -2;
  double min_p = -1;
  int num_logprobs = -1;  // -1: none.
  std::string extra_body;

  // Empty: ttft,tpot,itl (e2el with goodput); of embeddings e2el.
  std::string percentile_metrics;
  std::string metric_percentiles = "99";
  std::vector<std::string> goodput;
  bool save_result = false;
  bool save_detailed = false;
  bool append_result = false;
  std::string result_dir;
  std::string result_filename;
  std::vector<std::string> metadata;  // "KEY=VALUE".
  std::string label;
  std::string plot;  // SVG file.
  bool plot_timeline = false;
  std::string timeline_itl_thresholds = "25,50";
  bool disable_tqdm = false;
};

// Without HTTP, through the engine; `vllm bench throughput` and `latency`.
struct BenchOfflineOptions {
  BenchOfflineOptions() {
    // Prompts that repeat would measure the prefix cache.
    model.enable_prefix_caching = false;
    model.tells_cpu_fallback = false;
  }

  SessionOptions model;
  int64_t input_len = 0;
  int64_t output_len = 128;
  std::string output_json;
  // throughput.
  std::string dataset_name = "random";
  std::string dataset_path;
  int num_prompts = 1000;
  double random_range_ratio = 0;
  int64_t random_prefix_len = 0;
  double temperature = 1;  // As vLLM's; 0: greedy, as `bench serve` asks for.
  bool stop_at_eos = false;
  // latency.
  int batch_size = 8;
  int num_iters_warmup = 10;
  int num_iters = 30;
};

// Rows of prefill and decode, as llama-bench.
struct BenchModelOptions {
  BenchModelOptions() {
    model.needs_tokenizer = false;  // Its tokens are drawn.
    model.tells_cpu_fallback = false;
  }

  SessionOptions model;
  std::string preset;  // Random weights of this shape instead of a model.
  // Not empty: the preset's weights go there, and no more.
  std::string save_to;
  std::string save_head_to;  // The same, of a head that drafts for it.
  std::vector<int> num_prompt = {512};
  std::vector<int> num_gen = {128};
  std::vector<std::string> prompt_gen;  // "512,128" each.
  std::vector<int> depth = {0};
  std::vector<int> concurrency;  // Batched decode rows.
  // Of those: tokens in the KV cache before (llama-batched-bench's usual
  // prompt), and tokens to generate, 0: as num_gen.
  int batched_prompt = 128;
  int batched_gen = 0;
  int batch_size = 2048;  // Tokens of one step.
  int repetitions = 5;
  bool has_ceilings = false;
  std::string format = "md";
};

struct BenchKernelOptions {
  std::vector<std::string> presets = {"qwen2.5-0.5b", "llama-3.2-1b"};
  std::string device = "cpu";
  int num_threads = 0;
  std::string cpu_cores;
  std::string numa = "auto";
  std::string dtype = "bf16";
  std::string quantization;  // A block format; empty: none.
  std::string kv_cache_dtype = "bf16";
  std::vector<int> num_rows = {1, 16, 512};
  int repetitions = 9;
  std::string filter;
  std::string output_json;
};

// Divergence of a model from its exact form.
struct BenchQualityOptions {
  BenchQualityOptions() { model.tells_cpu_fallback = false; }

  SessionOptions model;
  std::string reference;  // The exact form, computed in f32.
  std::string text;       // File.
  int context = 512;      // Tokens of a chunk.
  std::string output_json;
};

// What drafting costs, with a fixed part of the drafts accepted.
struct BenchDrafterOptions {
  BenchDrafterOptions() {
    model.enable_prefix_caching = false;
    model.tells_cpu_fallback = false;
  }

  SessionOptions model;
  double acceptance = 0.6;
  int input_len = 64;
  int output_len = 128;
  int repetitions = 5;
  std::string output_json;
};

struct BenchStartupOptions {
  std::vector<std::string> serve_args;  // Go on to `quire serve`.
  int repetitions = 11;
  std::string output_json;
};

struct BenchOptions {
  enum class Kind : uint8_t {
    kServe,
    kThroughput,
    kLatency,
    kModel,
    kKernels,
    kQuality,
    kStartup,
    kDrafter
  };
  Kind kind = Kind::kServe;
  BenchServeOptions serve;
  BenchOfflineOptions offline;  // throughput and latency.
  BenchModelOptions model;
  BenchKernelOptions kernels;
  BenchQualityOptions quality;
  BenchStartupOptions startup;
  BenchDrafterOptions drafter;
};

// Adds the benchmarks as subcommands of `bench`; `add_model_options` adds those
// of a SessionOptions.
void AddBench(
    CLI::App* bench,
    const std::function<void(CLI::App*, SessionOptions*)>& add_model_options,
    BenchOptions* options);

// INVALID_ARGUMENT, with the benchmarks that there are, if `argument` is
// neither one of `bench` nor an option.
absl::Status CheckBenchmark(const CLI::App& bench, const std::string& argument);

}  // namespace quire

#endif  // QUIRE_CLI_BENCH_OPTIONS_H_
