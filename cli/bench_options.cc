#include "cli/bench_options.h"

#include <CLI/CLI.hpp>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "cli/finite_range.h"

namespace quire {
namespace {

using AddModel = std::function<void(CLI::App*, SessionOptions*)>;

constexpr int kMaxLen = 1 << 24;
constexpr double kMaxRate = 1e9;

// CLI11's own check has no infinity.
std::string CheckPositive(const std::string& text) {
  double value = 0;
  if (absl::SimpleAtod(text, &value) && value > 0) return "";
  return absl::StrCat("'", text, "' is not a positive number or inf");
}

void AddTarget(CLI::App* app, BenchServeOptions* options) {
  app->add_option("--backend,--endpoint-type", options->backend,
                  "openai or vllm: completions; openai-chat: chat; "
                  "openai-embeddings: embeddings")
      ->check(CLI::IsMember(
          {"openai", "openai-chat", "openai-embeddings", "vllm"}));
  app->add_option("--base-url", options->base_url,
                  "http(s)://HOST[:PORT], instead of --host and --port");
  app->add_option("--host", options->host, "Name or address of the server");
  app->add_option("--port", options->port, "Port of the server")
      ->check(CLI::Range(1, 65535));
  app->add_option("--endpoint", options->endpoint,
                  "Path of the API (default: /v1/completions, "
                  "/v1/chat/completions or /v1/embeddings)");
  app->add_option("--model", options->model,
                  "The model's name in the API (default: the first one that "
                  "/v1/models lists), or its directory");
  app->add_option("--served-model-name", options->served_model_name,
                  "Name in the API, where --model is a directory");
  app->add_option("--tokenizer", options->tokenizer,
                  "Directory with the model's tokenizer (default: --model, or "
                  "the server's /tokenize)");
  app->add_flag("--skip-tokenizer-init", options->skip_tokenizer,
                "No tokenizer: prompts are random token ids");
  app->add_flag("--insecure", options->insecure,
                "Do not verify the server's certificate");
  app->add_option("--header", options->headers, "NAME=VALUE ...")
      ->expected(1, 64);
}

void AddDataset(CLI::App* app, BenchServeOptions* options) {
  app->add_option("--dataset-name", options->dataset_name,
                  "random, sharegpt, prefix_repetition or custom (JSON lines)")
      ->check(
          CLI::IsMember({"random", "sharegpt", "prefix_repetition", "custom"}));
  app->add_option("--dataset-path", options->dataset_path,
                  "File of sharegpt and custom");
  app->add_option("--num-prompts", options->num_prompts, "Requests")
      ->check(CLI::Range(1, 1 << 24));
  app->add_option("--input-len", options->input_len,
                  "Prompt tokens, whatever the dataset")
      ->check(CLI::Range(1, kMaxLen))
      ->default_str("the dataset's");
  app->add_option("--output-len", options->output_len,
                  "Output tokens, whatever the dataset")
      ->check(CLI::Range(1, kMaxLen))
      ->default_str("the dataset's");
  app->add_option("--random-input-len", options->random_input_len)
      ->check(CLI::Range(0, kMaxLen));
  app->add_option("--random-output-len", options->random_output_len)
      ->check(CLI::Range(1, kMaxLen));
  app->add_option("--random-range-ratio", options->random_range_ratio,
                  "Lengths vary by this part of themselves")
      ->check(FiniteRange(0.0, 0.999));
  app->add_option("--random-prefix-len", options->random_prefix_len,
                  "Tokens that all prompts share, before the rest")
      ->check(CLI::Range(0, kMaxLen));
  app->add_option("--random-batch-size", options->random_batch_size,
                  "Inputs of a request for embeddings; --num-prompts counts "
                  "inputs")
      ->check(CLI::Range(1, 1 << 16));
  app->add_option("--sharegpt-output-len", options->sharegpt_output_len)
      ->check(CLI::Range(1, kMaxLen))
      ->default_str("those of its answers");
  app->add_option("--custom-output-len", options->custom_output_len,
                  "-1: as each line's output_tokens says")
      ->check(CLI::Range(-1, kMaxLen));
  app->add_option("--prefix-repetition-prefix-len",
                  options->prefix_repetition_prefix_len)
      ->check(CLI::Range(0, kMaxLen));
  app->add_option("--prefix-repetition-suffix-len",
                  options->prefix_repetition_suffix_len)
      ->check(CLI::Range(1, kMaxLen));
  app->add_option("--prefix-repetition-num-prefixes",
                  options->prefix_repetition_num_prefixes)
      ->check(CLI::Range(1, 1 << 24));
  app->add_option("--prefix-repetition-output-len",
                  options->prefix_repetition_output_len)
      ->check(CLI::Range(1, kMaxLen));
}

void AddLoad(CLI::App* app, BenchServeOptions* options) {
  app->add_option("--request-rate", options->request_rate,
                  "Requests a second; inf: all at once")
      ->check(CheckPositive)
      ->default_str("inf");
  app->add_option("--burstiness", options->burstiness,
                  "Shape of the gaps' gamma distribution; 1: Poisson")
      ->check(CheckPositive);
  app->add_option("--max-concurrency", options->max_concurrency,
                  "Most requests at once")
      ->check(CLI::Range(1, 1 << 20))
      ->default_str("any");
  app->add_option("--ramp-up-strategy", options->ramp_up_strategy,
                  "linear or exponential: the rate goes from "
                  "--ramp-up-start-rps to --ramp-up-end-rps")
      ->check(CLI::IsMember({"linear", "exponential"}));
  app->add_option("--ramp-up-start-rps", options->ramp_up_start_rps)
      ->check(FiniteRange(1e-6, kMaxRate))
      ->default_str("");
  app->add_option("--ramp-up-end-rps", options->ramp_up_end_rps)
      ->check(FiniteRange(1e-6, kMaxRate))
      ->default_str("");
  app->add_option("--num-warmups", options->num_warmups,
                  "Requests before the measurement")
      ->check(CLI::Range(0, 1 << 20));
  app->add_option("--ready-check-timeout-sec",
                  options->ready_check_timeout_seconds,
                  "Seconds to wait until the server answers a request")
      ->check(FiniteRange(0.0, 1e6));
  app->add_option("--probe-request-rate", options->probe_request_rate,
                  "Beside the load, and its concurrency, probes of one token a "
                  "second, reported apart; 0: none")
      ->check(FiniteRange(0.0, kMaxRate));
  app->add_flag("--profile", options->profile,
                "POST /start_profile before and /stop_profile after the load");
  app->add_option("--lora-modules", options->lora_modules,
                  "Names of adapters: each request names one as its model")
      ->expected(1, 1024);
  app->add_option("--lora-assignment", options->lora_assignment,
                  "Which: random or round-robin")
      ->check(CLI::IsMember({"random", "round-robin"}));
  app->add_option("--request-timeout", options->request_timeout_seconds,
                  "Seconds of silence after which a request has failed")
      ->check(FiniteRange(0.01, 1e6));
  app->add_option("--seed", options->seed, "Of prompts and arrivals");
  app->add_flag("--ignore-eos", options->ignore_eos,
                "Generate to the asked length");
  app->add_option("--temperature", options->temperature, "0: greedy")
      ->check(FiniteRange(0.0, 100.0))
      ->default_str("0");
  app->add_option("--top-p", options->top_p)
      ->check(FiniteRange(0.0, 1.0))
      ->default_str("the server's");
  app->add_option("--top-k", options->top_k)
      ->check(CLI::Range(-1, 1 << 30))
      ->default_str("the server's");
  app->add_option("--min-p", options->min_p)
      ->check(FiniteRange(0.0, 1.0))
      ->default_str("the server's");
  app->add_option("--logprobs", options->num_logprobs,
                  "Log-probabilities to ask for with each token")
      ->check(CLI::Range(0, 1 << 20))
      ->default_str("none");
  app->add_option("--extra-body", options->extra_body,
                  "JSON object whose members go into every request");
}

void AddResult(CLI::App* app, BenchServeOptions* options) {
  app->add_option("--percentile-metrics", options->percentile_metrics,
                  "Of ttft,tpot,itl,e2el (default: the first three; of "
                  "embeddings the last)");
  app->add_option("--metric-percentiles", options->metric_percentiles,
                  "25,50,75,99");
  app->add_option("--goodput", options->goodput,
                  "ttft:MS tpot:MS e2el:MS: count requests that keep to these")
      ->expected(1, 3);
  app->add_flag("--save-result", options->save_result,
                "Write the result as JSON");
  app->add_flag("--save-detailed", options->save_detailed,
                "The same with every request's figures and text");
  app->add_flag("--append-result", options->append_result,
                "Append to the file, one object a line");
  app->add_option("--result-dir", options->result_dir,
                  "Directory of the result (default: the current one)");
  app->add_option("--result-filename", options->result_filename,
                  "Default: BACKEND-RATEqps-MODEL-DATE-TIME.json");
  app->add_option("--metadata", options->metadata,
                  "KEY=VALUE ...: members of the result")
      ->expected(1, 64);
  app->add_option("--label", options->label,
                  "In place of BACKEND in the file's name");
  app->add_option("--plot", options->plot,
                  "SVG file of latencies and throughput over time");
  app->add_flag("--plot-timeline", options->plot_timeline,
                "HTML page of when each request's tokens came, beside the "
                "result's file (.timeline.html)");
  app->add_option("--timeline-itl-thresholds", options->timeline_itl_thresholds,
                  "Milliseconds from which its gaps are orange and red");
  app->add_flag("--disable-tqdm", options->disable_tqdm, "No progress bar");
}

void AddThroughput(CLI::App* app, const AddModel& add_model,
                   BenchOfflineOptions* options) {
  add_model(app, &options->model);
  app->add_option("--dataset-name", options->dataset_name,
                  "random, sharegpt or custom (JSON lines)")
      ->check(CLI::IsMember({"random", "sharegpt", "custom"}));
  app->add_option("--dataset-path,--dataset", options->dataset_path,
                  "File of sharegpt and custom");
  app->add_option("--num-prompts", options->num_prompts, "Requests")
      ->check(CLI::Range(1, 1 << 24));
  app->add_option("--input-len,--random-input-len", options->input_len,
                  "Prompt tokens of random")
      ->check(CLI::Range(1, kMaxLen))
      ->default_str("1024");
  app->add_option("--output-len,--random-output-len", options->output_len,
                  "Output tokens; 0: of custom, each line's output_tokens")
      ->check(CLI::Range(0, kMaxLen));
  app->add_option("--random-range-ratio", options->random_range_ratio)
      ->check(FiniteRange(0.0, 0.999));
  app->add_option("--random-prefix-len", options->random_prefix_len)
      ->check(CLI::Range(0, kMaxLen));
  app->add_option("--temperature", options->temperature, "0: greedy")
      ->check(FiniteRange(0.0, 100.0));
  app->add_flag("--stop-at-eos", options->stop_at_eos,
                "Answers end where the model ends them; lengths are limits");
  app->add_option("--output-json", options->output_json, "File of the result");
}

void AddLatency(CLI::App* app, const AddModel& add_model,
                BenchOfflineOptions* options) {
  add_model(app, &options->model);
  app->add_option("--input-len", options->input_len, "Prompt tokens")
      ->check(CLI::Range(1, kMaxLen))
      ->default_str("32");
  app->add_option("--output-len", options->output_len, "Output tokens")
      ->check(CLI::Range(1, kMaxLen));
  app->add_option("--batch-size", options->batch_size, "Requests at once")
      ->check(CLI::Range(1, 4096));
  app->add_option("--num-iters-warmup", options->num_iters_warmup)
      ->check(CLI::Range(0, 1 << 20));
  app->add_option("--num-iters", options->num_iters)
      ->check(CLI::Range(1, 1 << 20));
  app->add_option("--output-json", options->output_json, "File of the result");
}

void AddModelRows(CLI::App* app, const AddModel& add_model,
                  BenchModelOptions* options) {
  add_model(app, &options->model);
  app->add_option("--preset", options->preset,
                  "Random bf16 weights of this shape instead of a model: "
                  "tiny, qwen2.5-0.5b, llama-3.2-1b, qwen3-8b, "
                  "llama-3.1-8b");
  app->add_option("--save-model", options->save_to,
                  "Only write the preset's checkpoint into this directory, "
                  "made if need be, which serves with --tokenizer")
      ->needs("--preset");
  app->add_option("--save-head", options->save_head_to,
                  "The same of an EAGLE-3 head that drafts for the preset")
      ->needs("--preset");
  // Names and short names of llama-bench.
  app->add_option("-p,--n-prompt", options->num_prompt,
                  "Prompt tokens: 512,...")
      ->delimiter(',')
      ->check(CLI::Range(0, kMaxLen));
  app->add_option("-n,--n-gen", options->num_gen, "Generated tokens: 128,...")
      ->delimiter(',')
      ->check(CLI::Range(0, kMaxLen));
  app->add_option("--prompt-gen", options->prompt_gen,
                  "-pg PROMPT,GENERATED: both in one measurement")
      ->expected(1, 64);
  app->add_option("-d,--n-depth", options->depth,
                  "Tokens in the KV cache before: 0,...")
      ->delimiter(',')
      ->check(CLI::Range(0, kMaxLen));
  app->add_option("--concurrency", options->concurrency,
                  "Sequences that decode at once: 1,8,16,32")
      ->delimiter(',')
      ->check(CLI::Range(1, 4096));
  app->add_option("--batched-prompt", options->batched_prompt,
                  "Prompt tokens of each of these")
      ->check(CLI::Range(1, kMaxLen));
  app->add_option("--batched-gen", options->batched_gen,
                  "Their generated tokens; 0: as -n")
      ->check(CLI::Range(0, kMaxLen));
  app->add_option("-b,--batch-size", options->batch_size,
                  "Most tokens of a step")
      ->check(CLI::Range(1, 1 << 20));
  app->add_option("-r,--repetitions", options->repetitions)
      ->check(CLI::Range(1, 1 << 20));
  app->add_flag("--ceilings", options->has_ceilings,
                "Probe the bandwidth and peak arithmetic of the device beside "
                "each repetition");
  app->add_option("-o,--format,--output", options->format,
                  "md, csv, json or jsonl")
      ->check(CLI::IsMember({"md", "csv", "json", "jsonl"}));
}

void AddKernels(CLI::App* app, BenchKernelOptions* options) {
  app->add_option("--preset", options->presets,
                  "Shapes: tiny, qwen2.5-0.5b, llama-3.2-1b, qwen3-8b, "
                  "llama-3.1-8b")
      ->delimiter(',');
  app->add_option("--device", options->device, "cpu or cuda")
      ->check(CLI::IsMember({"cpu", "cuda"}));
  app->add_option("-t,--threads", options->num_threads,
                  "CPU threads; 0: all that may be used")
      ->check(CLI::Range(0, 1024));
  app->add_option("--cpu-cores,--cpu-range", options->cpu_cores,
                  "CPUs to pin the threads to, one each: 0-3,8");
  app->add_option("--numa", options->numa, "auto, off or isolate")
      ->check(CLI::IsMember({"auto", "off", "isolate"}));
  app->add_option("--dtype", options->dtype, "Weights: bf16, f16 or f32")
      ->check(CLI::IsMember({"bf16", "f16", "f32"}));
  app->add_option("--quantization", options->quantization,
                  "Weights in a block format: q8_0, q4_0, q4_k, ...");
  app->add_option("--kv-cache-dtype", options->kv_cache_dtype,
                  "bf16, f16, f32, fp8 or int8")
      ->check(CLI::IsMember({"bf16", "f16", "f32", "fp8", "int8"}));
  app->add_option("--rows", options->num_rows, "Tokens of a step: 1,16,512")
      ->delimiter(',')
      ->check(CLI::Range(1, 1 << 16));
  app->add_option("-r,--repetitions", options->repetitions)
      ->check(CLI::Range(1, 1 << 20));
  app->add_option("--filter", options->filter,
                  "Only what has this text in its name; ceilings: no "
                  "operation");
  app->add_option("--output-json", options->output_json, "File of the result");
}

void AddQuality(CLI::App* app, const AddModel& add_model,
                BenchQualityOptions* options) {
  add_model(app, &options->model);
  // Those of several processes, which it refuses.
  for (const char* name :
       {"--tensor-parallel-size", "--pipeline-parallel-size",
        "--worker-timeout", "--heartbeat-timeout", "--load-timeout"}) {
    app->get_option(name)->group("");
  }
  app->add_option("--reference", options->reference,
                  "The exact form of the model: directory or GGUF file")
      ->required();
  app->add_option("--text", options->text, "File of the text to score")
      ->required();
  app->add_option("--context", options->context,
                  "Tokens of a chunk, of which the second half is scored")
      ->check(CLI::Range(4, 1 << 20));
  app->add_option("--output-json", options->output_json, "File of the result");
}

void AddDrafter(CLI::App* app, const AddModel& add_model,
                BenchDrafterOptions* options) {
  add_model(app, &options->model);
  app->add_option("--acceptance", options->acceptance,
                  "How likely each draft is made right, whatever it is")
      ->check(FiniteRange(0.0, 1.0));
  app->add_option("--input-len", options->input_len, "Prompt tokens")
      ->check(CLI::Range(1, kMaxLen));
  app->add_option("--output-len", options->output_len, "Output tokens")
      ->check(CLI::Range(2, kMaxLen));
  app->add_option("-r,--repetitions", options->repetitions)
      ->check(CLI::Range(1, 10000));
  app->add_option("--output-json", options->output_json, "File of the result");
}

void AddStartup(CLI::App* app, BenchStartupOptions* options) {
  app->add_option("serve_args", options->serve_args,
                  "Behind `--`: arguments of quire serve");
  app->add_option("-r,--repetitions", options->repetitions)
      ->check(CLI::Range(1, 10000));
  app->add_option("--output-json", options->output_json, "File of the result");
}

}  // namespace

void AddBench(CLI::App* bench, const AddModel& add_model,
              BenchOptions* options) {
  bench->require_subcommand(1);
  const auto add = [&](const char* name, const char* text,
                       BenchOptions::Kind kind) {
    CLI::App* app = bench->add_subcommand(name, text);
    app->final_callback([options, kind] { options->kind = kind; });
    return app;
  };
  using Kind = BenchOptions::Kind;
  CLI::App* serve =
      add("serve", "Load an OpenAI-compatible server", Kind::kServe);
  AddTarget(serve, &options->serve);
  AddDataset(serve, &options->serve);
  AddLoad(serve, &options->serve);
  AddResult(serve, &options->serve);
  AddThroughput(add("throughput", "Many requests in this process, no HTTP",
                    Kind::kThroughput),
                add_model, &options->offline);
  AddLatency(
      add("latency", "One batch in this process, no HTTP", Kind::kLatency),
      add_model, &options->offline);
  AddModelRows(
      add("model", "Prefill and decode without a scheduler", Kind::kModel),
      add_model, &options->model);
  AddKernels(add("kernels", "Each operation against the machine's ceilings",
                 Kind::kKernels),
             &options->kernels);
  AddQuality(
      add("quality", "Divergence of a quantized model from its exact form",
          Kind::kQuality),
      add_model, &options->quality);
  AddStartup(add("startup", "From exec to ready and to the first token",
                 Kind::kStartup),
             &options->startup);
  AddDrafter(add("drafter", "What drafting costs beside a step of the model",
                 Kind::kDrafter),
             add_model, &options->drafter);
}

absl::Status CheckBenchmark(const CLI::App& bench,
                            const std::string& argument) {
  if (absl::StartsWith(argument, "-")) return absl::OkStatus();
  std::vector<std::string> names;
  for (const CLI::App* benchmark : bench.get_subcommands(nullptr)) {
    if (benchmark->get_name() == argument) return absl::OkStatus();
    names.push_back(benchmark->get_name());
  }
  return absl::InvalidArgumentError(absl::StrCat(
      "'", argument, "' is no benchmark: ", absl::StrJoin(names, ", ")));
}

}  // namespace quire
