// Command line, environment and configuration file to plain options.
#ifndef QUIRE_CLI_OPTIONS_H_
#define QUIRE_CLI_OPTIONS_H_

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/backend.h"

namespace quire {

// What loads a model and starts an engine on it.
struct SessionOptions {
  std::string model;          // Directory or GGUF file; empty: the demo model.
  std::string gguf_file;      // In the directory; empty: its only one.
  std::string tokenizer;      // Directory or GGUF file; empty: the model's.
  std::string chat_template;  // File or text; empty: the model's.
  // False: nothing is encoded or decoded, and the model needs no tokenizer;
  // there is none in the session then, nor a template.
  bool needs_tokenizer = true;
  std::string generation_config = "auto";  // auto: the model's; vllm: none.
  std::string device = "auto";
  // That "auto" is the CPU is told; false: only beside an NVIDIA device.
  bool tells_cpu_fallback = true;
  // auto: as the model's directory says; generate; pooling: embeddings.
  std::string runner = "auto";
  std::string convert = "auto";  // embed: as runner "pooling".
  bool is_embedding = false;     // As runner "pooling".
  std::string pooling = "auto";  // Of embeddings: auto, last or mean.
  std::string dtype = "auto";
  // A format to quantize to at load, or the method in which the model's
  // directory must be quantized; empty: as it is.
  std::string quantization;
  std::string kv_cache_dtype = "auto";
  std::string max_model_len = "auto";      // A length, 32k, auto or -1.
  std::string kv_cache_memory = "0";       // Bytes, 4GiB, ...; 0: automatic.
  double device_memory_utilization = 0.9;  // Of what a GPU has free.
  bool enforce_eager = false;              // No CUDA graphs.
  int num_threads = 0;
  std::string cpu_cores;
  std::string numa = "auto";
  int block_size = 16;
  int max_num_seqs = 0;            // 0: see ChooseStepSize.
  int max_num_batched_tokens = 0;  // Likewise.
  int long_prefill_token_threshold = 0;
  std::string scheduling_policy = "fcfs";
  int max_num_queued_reqs = 512;
  int64_t max_num_queued_tokens = 1 << 20;
  std::string max_num_queued_bytes = "256MiB";
  double target_queue_delay_seconds = 2;
  double watchdog_timeout_seconds = 30;  // 0: no watchdog.
  bool enable_prefix_caching = true;
  // Ranks, each a process; auto: all GPUs of all nodes that divide the model,
  // on the CPU one for each node.
  std::string tensor_parallel_size = "auto";
  int pipeline_parallel_size = 1;
  double worker_timeout_seconds = 30;  // A rank that hangs for so long is lost.
  double heartbeat_timeout_seconds = 1;  // Of one that could say something.
  double load_timeout_seconds = 3600;    // Of all ranks together.
  // Of `serve` and `worker` on several nodes. 0 nodes: not said.
  int num_nodes = 0;
  int node_rank = -1;       // -1: not said.
  std::string master_addr;  // Of node 0; with a port or without.
  int master_port = 29500;
  double bootstrap_timeout_seconds = 600;
  std::string group_key_file;  // Empty: QUIRE_GROUP_KEY, or no key.
  // How all that loads a model was given, option by option: a worker of this
  // session is started with the same.
  std::vector<std::string> args;
  // Of a worker process; 0 is the process that serves.
  int rank = 0;
  int parent_pid = 0;  // Not 0: a child, which finds its links at fixed places.
  // As given; cli/speculative_options.h makes sense of them.
  std::string speculative_model;  // [ngram], [suffix], or a draft model's path.
  std::string speculative_config;  // JSON.
  int num_speculative_tokens = 0;  // 0: as the method is used to.
  // Edges may link (server/verify_link.h): drafts come from them, too.
  bool enable_verify_link = false;
  uint64_t seed = 0;
};

struct ServeOptions {
  SessionOptions model;
  std::string host = "127.0.0.1";
  int port = 8080;
  std::string unix_socket;  // Not empty: in place of host and port.
  std::optional<int> ops_port;
  std::string ops_host;                                 // Empty: as host.
  std::string ssl_certfile, ssl_keyfile, ssl_ca_certs;  // Empty: no TLS.
  std::vector<std::string> served_model_names;
  std::vector<std::string> api_keys;
  std::string api_key_file;
  int num_http_threads = 4;
  int max_connections = 8192;
  std::string max_body_size = "8MiB";
  std::string max_parsing_memory = "1GiB";
  double request_timeout_seconds = 0;      // Of who asks for none; 0: none.
  double max_request_timeout_seconds = 0;  // 0: none.
  bool enable_ui = true;                   // The chat page at `/`.
  std::string log_format = "text";         // Or json.
  std::string log_level = "info";          // debug, info, warning or error.
  bool enable_log_requests = false;  // With the beginnings of their bodies,
  int max_log_len = 256;             // so many bytes of each.
  std::string otlp_traces_endpoint;  // Empty: as the environment says.
  bool enable_request_metrics = false;
  double shutdown_timeout_seconds = 120;
  // Of an edge; empty URL: it is none.
  std::string verify_url;
  std::string verify_api_key_file;
  std::string verify_ca_file;
  std::string offline = "error";  // error or draft.
};

// Of one answer; a negative number leaves the default to the model.
struct SamplingOptions {
  int max_tokens = 0;  // 0: to the end of the context.
  double temperature = -1;
  double top_p = -1;
  int top_k = -1;
  int64_t seed = -1;
};

struct ChatOptions {
  SessionOptions model;
  SamplingOptions sampling;
  std::string url;      // Empty: loads `model` in this process.
  std::string ca_file;  // Authorities of the server there; empty: the system's.
  std::string api_key;
  std::string served_model_name;
  std::string system;
};

struct GenerateOptions {
  SessionOptions model;
  SamplingOptions sampling;
  std::string prompt;
  std::string system;
  bool is_chat = false;
  bool json = false;
  int num_logprobs = 0;
};

struct DrainOptions {
  std::string url = "http://127.0.0.1:8080";
  std::string ca_file;  // As of ChatOptions.
  double settle_seconds = 0;
  double timeout_seconds = 120;
};

struct BenchOptions;  // cli/bench_options.h

enum class Command : uint8_t {
  kServe,
  kWorker,
  kChat,
  kGenerate,
  kDrain,
  kBench,
  kVersion,
  kHelp
};

struct CommandLine {
  Command command = Command::kHelp;
  std::string help;    // kHelp: what to print.
  ServeOptions serve;  // Also of kWorker.
  ChatOptions chat;
  GenerateOptions generate;
  DrainOptions drain;
  std::shared_ptr<const BenchOptions> bench;
};

// The last of an option given twice wins (all values of --api-key count, and so
// do those of the last --served-model-name); `-` and `_` in names are the same;
// an option comes from the command line, else from the YAML file of --config,
// else from QUIRE_<NAME>. INVALID_ARGUMENT with a message for the user.
absl::StatusOr<CommandLine> ParseCommandLine(std::vector<std::string> args);

// The same for many command lines, one after another: builds the grammar of
// each command, which takes much longer than to parse with it, only once. The
// environment must not change meanwhile. For one thread at a time.
class CommandLineParser {
 public:
  CommandLineParser();
  ~CommandLineParser();

  absl::StatusOr<CommandLine> Parse(std::vector<std::string> args);

 private:
  struct Grammar;

  std::map<std::string, std::unique_ptr<Grammar>> grammars_;
};

// What the options say, `useful` (Backend::UsefulStepSize) where they do not.
// Every running sequence gets a token per step: of the two, what is not said
// yields.
StepSize ChooseStepSize(const SessionOptions& options, const StepSize& useful);

// "32k" = 32 * 1024, "4GiB", "100MB", "512". vLLM tells "1K" = 1024 from "1k" =
// 1000; here both are 1024. INVALID_ARGUMENT otherwise.
absl::StatusOr<int64_t> ParseSize(const std::string& text);

}  // namespace quire

#endif  // QUIRE_CLI_OPTIONS_H_
