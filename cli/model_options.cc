#include "cli/model_options.h"

#include <cstdint>
#include <limits>
#include <string>

#include "absl/strings/str_cat.h"
#include "cli/finite_range.h"

namespace quire {

void AddSwitch(CLI::App* app, const std::string& names, bool* is_on,
               const std::string& description) {
  app->add_flag(
      names, *is_on,
      absl::StrCat(description, " (default: ", *is_on ? "on" : "off", ")"));
}

namespace {

void AddWeightOptions(CLI::App* app, SessionOptions* options) {
  app->add_option("model_positional,-m,--model", options->model,
                  "Model: a directory in Hugging Face format or a GGUF file "
                  "(default: the demo model)");
  app->add_option("--gguf-file", options->gguf_file,
                  "Which GGUF file, if the model's directory holds several");
  app->add_option("--tokenizer", options->tokenizer,
                  "Directory or GGUF file of the tokenizer, if not the "
                  "model's");
  app->add_option("--chat-template", options->chat_template,
                  "Jinja chat template: a file or its text");
  app->add_option("--generation-config", options->generation_config,
                  "auto: sampling defaults of generation_config.json; vllm: "
                  "neutral ones")
      ->check(CLI::IsMember({"auto", "vllm"}));
  app->add_option("--device", options->device, "auto, cpu or cuda")
      ->check(CLI::IsMember({"auto", "cpu", "cuda"}));
  // The names of vLLM (--runner, --convert, formerly --task), SGLang
  // (--is-embedding) and llama.cpp (--embeddings, --pooling).
  app->add_option("--runner,--task", options->runner,
                  "auto, generate or pooling (embeddings; also: embed)")
      ->check(
          CLI::IsMember({"auto", "generate", "pooling", "embed", "embedding"}));
  app->add_option("--convert", options->convert,
                  "embed: embeddings with a model that generates text")
      ->check(CLI::IsMember({"auto", "none", "embed"}));
  app->add_flag("--is-embedding,--embeddings,--embedding",
                options->is_embedding, "The same as --runner pooling");
  app->add_option("--pooling", options->pooling,
                  "Of embeddings: auto (as the model says), last or mean")
      ->check(CLI::IsMember({"auto", "last", "mean"}));
  app->add_option("--dtype", options->dtype,
                  "Weights: auto (as stored), float32, float16 or bfloat16");
  app->add_option("--quantization,-q", options->quantization,
                  "Quantize the linear layers at load: q8_0, q4_0, q4_1, "
                  "q5_0, q5_1, q2_k, q3_k, q4_k, q5_k, q6_k, iq4_nl, iq4_xs, "
                  "mxfp4, fp8, int4; or what the model is stored in: gptq, "
                  "awq, compressed-tensors");
  app->add_option(
      "--kv-cache-dtype", options->kv_cache_dtype,
      "KV cache: auto (as the model), bf16, f16, f32, fp8 (e4m3) or, on the "
      "CPU, int8");
  app->add_option("--max-model-len", options->max_model_len,
                  "Longest sequence, prompt and output: 2048, 32k, auto");
  app->add_option("--kv-cache-memory-bytes", options->kv_cache_memory,
                  "Memory of the KV cache: 4GiB, ...; 0: automatic");
  app->add_option("--gpu-memory-utilization,--device-memory-utilization",
                  options->device_memory_utilization,
                  "The part of a GPU's free memory that may be taken")
      ->check(FiniteRange(0.01, 1.0));
  app->add_flag("--enforce-eager", options->enforce_eager,
                "On a GPU: launch kernel by kernel, without CUDA graphs");
}

void AddThreadOptions(CLI::App* app, SessionOptions* options) {
  app->add_option("-t,--threads", options->num_threads,
                  "CPU threads; 0: one for each physical core that may be used")
      ->check(CLI::Range(0, 1024));
  app->add_option("--cpu-cores,--cpu-range", options->cpu_cores,
                  "CPUs to pin compute threads to, one each: 0-3,8");
  app->add_option("--numa", options->numa,
                  "auto (pin threads and place weights if there are several "
                  "nodes), off, or isolate (only the node of the start)")
      ->check(CLI::IsMember({"auto", "off", "isolate"}));
}

void AddSchedulerOptions(CLI::App* app, SessionOptions* options) {
  app->add_option("--block-size", options->block_size,
                  "Tokens of a KV block; on a GPU a power of two")
      ->check(CLI::Range(1, 256));
  app->add_option("--max-num-seqs", options->max_num_seqs,
                  "Sequences running at once")
      ->default_str("64, on a large GPU 256")
      ->check(CLI::Range(0, 4096));
  app->add_option("--max-num-batched-tokens", options->max_num_batched_tokens,
                  "Token budget of one step")
      ->default_str("512, on a large GPU 2048; --max-num-seqs if larger")
      ->check(CLI::Range(0, 1 << 20));
  app->add_option("--long-prefill-token-threshold",
                  options->long_prefill_token_threshold,
                  "Most tokens of one prompt in a step; 0: the budget")
      ->check(CLI::Range(0, 1 << 20));
  app->add_option("--scheduling-policy", options->scheduling_policy,
                  "fcfs: in order of arrival; priority: by the requests' "
                  "'priority', smaller first, then by arrival")
      ->check(CLI::IsMember({"fcfs", "priority"}));
  AddSwitch(app, "--enable-prefix-caching,!--no-enable-prefix-caching",
            &options->enable_prefix_caching,
            "Reuse the KV of equal prompt beginnings");
  app->add_option("--seed", options->seed,
                  "Draws the seeds of requests that bring none");
}

void AddQueueOptions(CLI::App* app, SessionOptions* options) {
  app->add_option("--max-num-queued-reqs", options->max_num_queued_reqs,
                  "Requests that may wait; beyond, 503")
      ->check(CLI::Range(1, 1 << 20));
  app->add_option("--max-num-queued-tokens", options->max_num_queued_tokens,
                  "Prompt tokens that may wait; beyond, 503")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 40));
  app->add_option("--max-num-queued-bytes", options->max_num_queued_bytes,
                  "Memory of the requests that may wait; beyond, 503");
  app->add_option("--target-queue-delay", options->target_queue_delay_seconds,
                  "Predicted wait in seconds that counts as full load in "
                  "quire:saturation")
      ->check(FiniteRange(0.001, 1e6));
  app->add_option(
         "--watchdog-timeout", options->watchdog_timeout_seconds,
         "Seconds without a finished step after which the engine is "
         "taken for dead, and 0.1 s longer for each token of the step; "
         "0: never")
      ->check(FiniteRange(0.0, 1e6));
}

void AddRankOptions(CLI::App* app, SessionOptions* options) {
  app->add_option("--tensor-parallel-size", options->tensor_parallel_size,
                  "Processes that the model is split over; auto: all GPUs that "
                  "divide it, one on the CPU");
  app->add_option("--pipeline-parallel-size", options->pipeline_parallel_size,
                  "Stages of layers, each on as many processes as the tensor "
                  "parallel size says; they work on different sequences at the "
                  "same time")
      ->check(CLI::Range(1, 64));
  app->add_option(
         "--worker-timeout", options->worker_timeout_seconds,
         "Seconds without a sign of life or any progress after which a "
         "process is given up; 0.1 s longer for each token of its step")
      ->check(FiniteRange(0.1, 1e6));
  app->add_option(
         "--heartbeat-timeout", options->heartbeat_timeout_seconds,
         "Seconds without a sign of life after which a process that serves is "
         "given up, if neither its machine nor the network holds it up")
      ->check(FiniteRange(0.2, 1e6));
  app->add_option("--load-timeout", options->load_timeout_seconds,
                  "Seconds in which all processes must have loaded, once all "
                  "are there")
      ->check(FiniteRange(0.1, 1e6));
}

void AddSpeculationOptions(CLI::App* app, SessionOptions* options) {
  app->add_option(
         "--speculative-model", options->speculative_model,
         "Drafts tokens that are verified together: [ngram], [suffix] "
         "or the directory of a draft model (or its GGUF file) or EAGLE-3 head")
      ->check([](const std::string& value) {
        return value.empty() ? std::string("must not be empty") : std::string();
      });
  app->add_option("--speculative-config", options->speculative_config,
                  "The same as JSON with vLLM's fields: method, model, "
                  "num_speculative_tokens, prompt_lookup_max, ...")
      ->check([](const std::string& value) {
        return value.empty() ? std::string("must not be empty") : std::string();
      });
  app->add_option("--num-speculative-tokens", options->num_speculative_tokens,
                  "Tokens drafted at once, at most (1 to 64)")
      ->check(CLI::Range(1, 64))
      ->default_str("the method's");
  app->add_flag("--enable-verify-link", options->enable_verify_link,
                "serve: edges (--verify-url) may link to this server, with a "
                "key like all clients, and have their drafts verified");
}

}  // namespace

void AddModelOptions(CLI::App* app, SessionOptions* options) {
  AddWeightOptions(app, options);
  AddThreadOptions(app, options);
  AddSchedulerOptions(app, options);
  AddQueueOptions(app, options);
  AddRankOptions(app, options);
  AddSpeculationOptions(app, options);
}

void AddSamplingOptions(CLI::App* app, SamplingOptions* options) {
  app->add_option("-n,--max-tokens", options->max_tokens,
                  "Tokens to generate at most; 0: to the end of the context")
      ->check(CLI::Range(0, std::numeric_limits<int>::max()));
  app->add_option("--temperature", options->temperature, "0: greedy")
      ->check(FiniteRange(0.0, 2.0))
      ->default_str("the model's");
  app->add_option("--top-p", options->top_p, "Nucleus sampling")
      ->check(FiniteRange(0.0, 1.0))
      ->default_str("the model's");
  app->add_option("--top-k", options->top_k, "Most likely tokens to draw from")
      ->check(CLI::Range(0, std::numeric_limits<int>::max()))
      ->default_str("the model's");
  app->add_option("--sampling-seed", options->seed, "Repeats a draw")
      ->check(CLI::Range(int64_t{0}, std::numeric_limits<int64_t>::max()))
      ->default_str("another one each time");
}

void AddNodeOptions(CLI::App* app, SessionOptions* options) {
  app->add_option("--nnodes", options->num_nodes,
                  "Hosts that run the model together (LWS_GROUP_SIZE, "
                  "GROUP_WORLD_SIZE, WORLD_SIZE / LOCAL_WORLD_SIZE)")
      ->check(CLI::Range(1, 1024))
      ->default_str("1");
  app->add_option("--node-rank", options->node_rank,
                  "Which of them this is; 0 serves (LWS_WORKER_INDEX, "
                  "GROUP_RANK, RANK / LOCAL_WORLD_SIZE)")
      ->check(CLI::Range(0, 1023))
      ->default_str("0");
  app->add_option("--master-addr,--dist-init-addr", options->master_addr,
                  "Host of node 0, or host:port (LWS_LEADER_ADDRESS, "
                  "MASTER_ADDR)");
  app->add_option("--master-port", options->master_port,
                  "Where node 0 waits for the others (MASTER_PORT, under "
                  "torchrun the port after it)")
      ->check(CLI::Range(1, 65535));
  app->add_option("--bootstrap-timeout", options->bootstrap_timeout_seconds,
                  "Seconds in which all must have come")
      ->check(FiniteRange(0.1, 1e6));
  app->add_option("--group-key-file", options->group_key_file,
                  "A secret of at least 16 bytes that all hosts have; who does "
                  "not know it cannot join (or its text in QUIRE_GROUP_KEY)");
}

}  // namespace quire
