#include "cli/options.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cctype>
#include <exception>
#include <limits>
#include <set>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"
#include "cli/arguments.h"
#include "cli/bench_options.h"
#include "cli/finite_range.h"
#include "cli/group_environment.h"
#include "cli/model_options.h"
#include "engine/base/status.h"

namespace quire {
namespace {

// Moves the default, which is the value of the variable behind the option or
// what default_str() said, to the end of the description: CLI11 would write it
// into the option's type.
void ShowDefault(CLI::Option* option) {
  const std::string captured = option->get_default_str();
  option->default_str("");
  absl::string_view text = captured;
  if (absl::ConsumePrefix(&text, "[")) absl::ConsumeSuffix(&text, "]");
  if (text.empty()) return;
  const std::string& description = option->get_description();
  option->description(absl::StrCat(description, description.empty() ? "" : " ",
                                   "(default: ", text, ")"));
}

// Every option also comes from the environment, and the last one given wins.
void Finish(CLI::App* app) {
  for (CLI::Option* option : app->get_options()) {
    if (option->get_lnames().empty()) continue;
    const std::string& name = option->get_lnames().front();
    if (name == "help") continue;
    ShowDefault(option);
    const std::string variable = absl::StrCat(
        "QUIRE_",
        absl::AsciiStrToUpper(absl::StrReplaceAll(name, {{"-", "_"}})));
    // For a Service named quire, Kubernetes sets QUIRE_PORT=tcp://10.0.0.1:80
    // in every pod of the namespace: that is no port of ours.
    const char* const value = getenv(variable.c_str());
    const bool is_service_link =
        value != nullptr && name == "port" && absl::StartsWith(value, "tcp://");
    if (!is_service_link) option->envname(variable);
    if (option->get_items_expected_max() <= 1) {
      option->multi_option_policy(CLI::MultiOptionPolicy::TakeLast);
    }
  }
}

void AddTelemetryOptions(CLI::App* app, ServeOptions* options) {
  app->add_option("--log-format", options->log_format,
                  "text, or json: one object per line on stdout")
      ->check(CLI::IsMember({"text", "json"}));
  app->add_option("--log-level", options->log_level,
                  "debug (probes, too), info (a line per request), warning or "
                  "error")
      ->check(CLI::IsMember({"debug", "info", "warning", "error"}));
  app->add_flag("--enable-log-requests,--log-prompts",
                options->enable_log_requests,
                "Log what requests ask: the beginning of each body");
  app->add_option("--max-log-len", options->max_log_len,
                  "Bytes of a body that --enable-log-requests logs")
      ->check(CLI::Range(1, 1 << 16));
  app->add_option("--otlp-traces-endpoint", options->otlp_traces_endpoint,
                  "OpenTelemetry collector for traces, OTLP over HTTP: "
                  "http://host:4318/v1/traces (default: "
                  "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT)");
  app->add_flag("--enable-per-request-metrics", options->enable_request_metrics,
                "Answers carry the times of their request, as vLLM's do");
}

void AddEdgeOptions(CLI::App* app, ServeOptions* options) {
  app->add_option("--verify-url", options->verify_url,
                  "Be an edge: this model drafts, and the quire at "
                  "http[s]://HOST[:PORT] (with --enable-verify-link) draws "
                  "every token");
  app->add_option("--verify-api-key-file", options->verify_api_key_file,
                  "File whose first line is this edge's key there; read again "
                  "for each connection");
  app->add_option("--verify-ca", options->verify_ca_file,
                  "PEM authorities of the certificate there (default: the "
                  "system's)");
  app->add_option("--offline", options->offline,
                  "Without the link: error, or draft: this model answers by "
                  "itself and says so")
      ->check(CLI::IsMember({"error", "draft"}));
}

void AddServe(CLI::App* app, ServeOptions* options) {
  AddModelOptions(app, &options->model);
  AddNodeOptions(app, &options->model);
  app->add_option("--host", options->host, "Address to listen on");
  app->add_option("-p,--port", options->port, "Port; 0: any free one")
      ->check(CLI::Range(0, 65535));
  app->add_option("--uds", options->unix_socket,
                  "Unix socket to listen on, in place of host and port");
  app->add_option("--ops-port", options->ops_port,
                  "A second port, for /health, /metrics, /load and /version "
                  "only, always plain HTTP; 0: any free one (default: none)")
      ->check(CLI::Range(0, 65535));
  app->add_option("--ops-host", options->ops_host,
                  "Address of --ops-port (default: --host)");
  app->add_option("--ssl-certfile", options->ssl_certfile,
                  "PEM certificate chain: serve TLS; read again when it "
                  "changes");
  app->add_option("--ssl-keyfile", options->ssl_keyfile,
                  "PEM private key of --ssl-certfile");
  app->add_option("--ssl-ca-certs", options->ssl_ca_certs,
                  "PEM authorities of which clients need a certificate");
  app->add_option("--served-model-name", options->served_model_names,
                  "Names of the model in the API; the first one answers carry")
      ->expected(1, 64);
  app->add_option("--api-key", options->api_keys,
                  "Keys of which requests must bring one (Authorization: "
                  "Bearer KEY)")
      ->expected(1, 1024);
  app->add_option("--api-key-file", options->api_key_file,
                  "YAML file of hashed keys and their limits (README); read "
                  "again when it changes");
  app->add_option("--http-threads", options->num_http_threads,
                  "Threads that parse requests")
      ->check(CLI::Range(1, 256));
  app->add_option("--max-connections", options->max_connections,
                  "Connections at once")
      ->check(CLI::Range(1, 1 << 20));
  app->add_option("--max-body-size", options->max_body_size,
                  "Largest request body");
  app->add_option("--max-parsing-memory", options->max_parsing_memory,
                  "Memory for parsing requests, 32 times their bodies; beyond, "
                  "503");
  app->add_option("--request-timeout", options->request_timeout_seconds,
                  "Seconds after which a request ends with 504, if it asks for "
                  "no other 'timeout'; 0: never")
      ->check(FiniteRange(0.0, 3e7));
  app->add_option("--max-request-timeout", options->max_request_timeout_seconds,
                  "The longest such time, whatever a request asks for; 0: any")
      ->check(FiniteRange(0.0, 3e7));
  AddSwitch(app, "--ui,!--no-ui", &options->enable_ui,
            "Serve the chat page at /");
  AddTelemetryOptions(app, options);
  AddEdgeOptions(app, options);
  app->add_option("--shutdown-timeout", options->shutdown_timeout_seconds,
                  "Seconds that running requests get after SIGTERM")
      ->check(FiniteRange(0.0, 1e6));
}

void AddCaFile(CLI::App* app, std::string* ca_file) {
  app->add_option("--ca-file", *ca_file,
                  "PEM authorities of the certificate at --url (default: the "
                  "system's)");
}

void AddChat(CLI::App* app, ChatOptions* options) {
  AddModelOptions(app, &options->model);
  AddSamplingOptions(app, &options->sampling);
  app->add_option("--url", options->url,
                  "A running server, instead of a model in this process: "
                  "http[s]://HOST[:PORT] or unix:PATH");
  AddCaFile(app, &options->ca_file);
  app->add_option("--api-key", options->api_key, "Key for --url");
  app->add_option("--served-model-name", options->served_model_name,
                  "Name of the model at --url");
  app->add_option("--system", options->system, "System message");
}

void AddGenerate(CLI::App* app, GenerateOptions* options) {
  AddModelOptions(app, &options->model);
  AddSamplingOptions(app, &options->sampling);
  app->add_option("--prompt", options->prompt, "The prompt")->required();
  app->add_flag("--chat", options->is_chat,
                "The prompt is a user's message for the chat template");
  app->add_option("--system", options->system, "System message; with --chat");
  app->add_flag("--json", options->json,
                "One JSON object with ids and log-probabilities");
  app->add_option("--logprobs", options->num_logprobs,
                  "Top log-probabilities per token; with --json")
      ->check(CLI::Range(0, 20));
}

// All options of loading a model that `app` was given, whence ever, as
// arguments.
std::vector<std::string> SessionArgs(const CLI::App& app) {
  // Made once: a grammar takes longer to build than a command line to parse.
  static const CLI::App& known = []() -> CLI::App& {
    SessionOptions& unused = *new SessionOptions;
    CLI::App& app = *new CLI::App;
    AddModelOptions(&app, &unused);
    AddNodeOptions(&app, &unused);
    return app;
  }();
  std::vector<std::string> args;
  for (const CLI::Option* option : app.get_options()) {
    if (option->count() == 0 || option->get_lnames().empty()) continue;
    const std::string name = absl::StrCat("--", option->get_lnames().front());
    if (known.get_option_no_throw(name) == nullptr) continue;
    args.push_back(absl::StrCat(name, "=", option->results().back()));
  }
  return args;
}

}  // namespace

StepSize ChooseStepSize(const SessionOptions& options, const StepSize& useful) {
  const int num_seqs = options.max_num_seqs;
  const int num_tokens = options.max_num_batched_tokens;
  StepSize size = {num_seqs > 0 ? num_seqs : useful.num_seqs,
                   num_tokens > 0 ? num_tokens : useful.num_tokens};
  if (num_tokens == 0) size.num_tokens = std::max(size.num_tokens, num_seqs);
  if (num_seqs == 0) size.num_seqs = std::min(size.num_seqs, size.num_tokens);
  return size;
}

absl::StatusOr<int64_t> ParseSize(const std::string& text) {
  static constexpr struct {
    const char* suffix;
    int64_t factor;
  } kUnits[] = {{"kib", 1 << 10}, {"mib", 1 << 20}, {"gib", 1 << 30},
                {"kb", 1000},     {"mb", 1000000},  {"gb", 1000000000},
                {"k", 1 << 10},   {"m", 1 << 20},   {"g", 1 << 30},
                {"b", 1},         {"", 1}};
  const std::string lower = absl::AsciiStrToLower(text);
  for (const auto& unit : kUnits) {
    if (!absl::EndsWith(lower, unit.suffix)) continue;
    double number = 0;
    const std::string digits =
        lower.substr(0, lower.size() - strlen(unit.suffix));
    if (!absl::SimpleAtod(digits, &number) || !(number >= 0) ||
        number * static_cast<double>(unit.factor) > 9e18) {
      break;
    }
    return static_cast<int64_t>(number * static_cast<double>(unit.factor));
  }
  return absl::InvalidArgumentError(
      absl::StrCat("'", text, "' is not a size (512, 32k, 4GiB)"));
}

namespace {

constexpr absl::string_view kCommands[] = {"serve",    "worker", "chat",
                                           "generate", "drain",  "bench"};

// The command line's grammar, with `result` behind its options.
struct Commands {
  CLI::App app{"quire: serves large language models", "quire"};
  CLI::App* serve = nullptr;
  CLI::App* worker = nullptr;
  CLI::App* chat = nullptr;
  CLI::App* generate = nullptr;
  CLI::App* drain = nullptr;
  CLI::App* bench = nullptr;
  bool wants_version = false;
  ServeOptions worker_options;
  std::shared_ptr<BenchOptions> bench_options =
      std::make_shared<BenchOptions>();
};

void AddDrain(CLI::App* app, DrainOptions* options) {
  app->add_option("--url", options->url,
                  "The server: http[s]://HOST[:PORT] or unix:PATH");
  AddCaFile(app, &options->ca_file);
  app->add_option("--settle", options->settle_seconds,
                  "Seconds to wait at least, while endpoints are withdrawn")
      ->check(FiniteRange(0.0, 1e6));
  app->add_option("--timeout", options->timeout_seconds,
                  "Seconds to wait at most, --settle included: not shorter")
      ->check(FiniteRange(0.0, 1e6));
}

// Only the options of `chosen`, a command's name: there are hundreds, and most
// of the time of a parse goes into them. Their defaults are read for help only.
void AddCommands(absl::string_view chosen, bool wants_help, Commands* commands,
                 CommandLine* result) {
  CLI::App& app = commands->app;
  app.option_defaults()->always_capture_default(wants_help);
  app.require_subcommand(1);
  app.add_flag("--version", commands->wants_version,
               "Version, backends, instruction sets, architectures");
  commands->serve =
      app.add_subcommand("serve", "Serve a model over the OpenAI API");
  commands->chat = app.add_subcommand("chat", "Chat in the terminal");
  commands->generate =
      app.add_subcommand("generate", "Generate from one prompt");
  commands->drain = app.add_subcommand(
      "drain", "Wait until a server has no request running or waiting");
  commands->worker =
      app.add_subcommand("worker", "Compute a part of the model for a server");
  if (chosen == "serve") AddServe(commands->serve, &result->serve);
  if (chosen == "worker") {
    AddServe(commands->worker, &commands->worker_options);
    // What `serve` tells the workers that it starts.
    SessionOptions& worker_model = commands->worker_options.model;
    commands->worker->add_option("--rank", worker_model.rank)->group("");
    commands->worker->add_option("--parent-pid", worker_model.parent_pid)
        ->group("");
  }
  if (chosen == "chat") AddChat(commands->chat, &result->chat);
  if (chosen == "generate") AddGenerate(commands->generate, &result->generate);
  if (chosen == "drain") AddDrain(commands->drain, &result->drain);
  commands->bench = app.add_subcommand("bench", "Measure a server or a model");
  if (chosen == "bench") {
    AddBench(commands->bench, AddModelOptions, commands->bench_options.get());
  }
  result->bench = commands->bench_options;
  std::vector<CLI::App*> subcommands = {commands->serve, commands->worker,
                                        commands->chat, commands->generate,
                                        commands->drain};
  for (CLI::App* benchmark : commands->bench->get_subcommands(nullptr)) {
    subcommands.push_back(benchmark);
  }
  for (CLI::App* subcommand : subcommands) {
    Finish(subcommand);
    subcommand->add_option("--config", "YAML file of options");
  }
}

// What CLI11 does not do: other spellings, the file of --config, and a message
// for what is no command.
absl::Status PrepareArguments(const Commands& commands,
                              std::vector<std::string>* args) {
  const auto is_named = [args](const CLI::App* subcommand) {
    return subcommand->get_name() == (*args)[0];
  };
  if (!args->empty() && !absl::StartsWith((*args)[0], "-") &&
      commands.app.get_subcommands(is_named).empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("'", (*args)[0],
                     "' is no command: serve, worker, chat, generate, drain or "
                     "bench"));
  }
  if (args->size() > 1 && (*args)[0] == "bench") {
    QUIRE_RETURN_IF_ERROR(CheckBenchmark(*commands.bench, (*args)[1]));
  }
  // llama-bench has no commands: `quire bench -p 512` is one of models.
  if (args->size() > 1 && (*args)[0] == "bench" &&
      absl::StartsWith((*args)[1], "-") && (*args)[1] != "--help" &&
      (*args)[1] != "-h") {
    args->insert(args->begin() + 1, "model");
  }
  KeepLast("--served-model-name", args);
  return ExpandConfig(args);
}

// A variable that was not set makes an empty option, and that no server without
// keys.
absl::Status CheckKeys(const CLI::App& app, const ServeOptions& options) {
  const auto is_empty = [](const std::string& key) { return key.empty(); };
  const auto is_given = [&app](const char* option, const char* variable) {
    const char* const value = getenv(variable);
    return app.get_option(option)->count() > 0 ||
           (value != nullptr && *value == '\0');
  };
  if (is_given("--api-key", "QUIRE_API_KEY") &&
      (options.api_keys.empty() ||
       std::any_of(options.api_keys.begin(), options.api_keys.end(),
                   is_empty))) {
    return absl::InvalidArgumentError(
        "--api-key (QUIRE_API_KEY) is empty: give a key, or leave it out to "
        "serve without keys");
  }
  if (is_given("--api-key-file", "QUIRE_API_KEY_FILE") &&
      options.api_key_file.empty()) {
    return absl::InvalidArgumentError(
        "--api-key-file (QUIRE_API_KEY_FILE) is empty: give a file, or leave "
        "it out");
  }
  // Who asks for a socket file expects no port.
  const CLI::Option* const uds = app.get_option_no_throw("--uds");
  if (uds != nullptr && uds->count() > 0 && options.unix_socket.empty()) {
    return absl::InvalidArgumentError(
        "--uds is empty: give a path, or leave it out to listen on a port");
  }
  return absl::OkStatus();
}

absl::Status CheckDrain(const DrainOptions& options) {
  if (options.settle_seconds <= options.timeout_seconds) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(absl::StrCat(
      "--settle ", options.settle_seconds, " is longer than --timeout ",
      options.timeout_seconds, ", which includes it"));
}

absl::Status TakeResult(const Commands& commands, CommandLine* result) {
  const std::pair<const CLI::App*, Command> kinds[] = {
      {commands.serve, Command::kServe},
      {commands.worker, Command::kWorker},
      {commands.chat, Command::kChat},
      {commands.generate, Command::kGenerate},
      {commands.drain, Command::kDrain},
      {commands.bench, Command::kBench}};
  for (const auto& [app, command] : kinds) {
    if (app->parsed()) result->command = command;
  }
  if (commands.worker->parsed()) result->serve = commands.worker_options;
  for (const CLI::App* app : {commands.serve, commands.worker}) {
    if (!app->parsed()) continue;
    QUIRE_RETURN_IF_ERROR(ApplyGroupEnvironment(app->count("--master-port") > 0,
                                                &result->serve.model));
    result->serve.model.args = SessionArgs(*app);
    QUIRE_RETURN_IF_ERROR(CheckKeys(*app, result->serve));
  }
  if (commands.drain->parsed()) {
    QUIRE_RETURN_IF_ERROR(CheckDrain(result->drain));
  }
  if (commands.chat->parsed()) {
    result->chat.model.args = SessionArgs(*commands.chat);
  }
  if (commands.generate->parsed()) {
    result->generate.model.args = SessionArgs(*commands.generate);
  }
  for (const CLI::App* benchmark : commands.bench->get_subcommands()) {
    BenchOptions& bench = *commands.bench_options;
    bench.offline.model.args = bench.model.model.args =
        bench.quality.model.args = SessionArgs(*benchmark);
  }
  return absl::OkStatus();
}

}  // namespace

// The grammar of the command that a command line names, if any.
struct CommandLineParser::Grammar {
  Grammar(absl::string_view command, bool wants_help) {
    AddCommands(command, wants_help, &commands, &result);
  }

  // What the options fill is as before the first parse; CLI11 clears its own.
  void Reset() {
    result = CommandLine();
    result.bench = commands.bench_options;
    *commands.bench_options = BenchOptions();
    commands.worker_options = ServeOptions();
    commands.wants_version = false;
  }

  absl::Status Parse(std::vector<std::string> args);

  CommandLine result;
  Commands commands;
};

absl::Status CommandLineParser::Grammar::Parse(std::vector<std::string> args) {
  for (std::string& argument : args) {
    if (argument == "--") break;
    argument = NormalizeArgument(argument);
  }
  if (args.size() == 1 && args[0] == "--version") {
    result.command = Command::kVersion;
    return absl::OkStatus();
  }
  QUIRE_RETURN_IF_ERROR(PrepareArguments(commands, &args));
  std::reverse(args.begin(), args.end());  // As CLI11 takes a vector.
  try {
    commands.app.parse(args);
  } catch (const CLI::CallForHelp&) {
    // Of the subcommand that was parsed, with the names before it.
    result.help = commands.app.help();
    return absl::OkStatus();
  } catch (const CLI::ParseError& error) {
    return absl::InvalidArgumentError(absl::StrCat(
        RangeErrorText(error.what()), "\nRun with --help for the options."));
  } catch (const std::exception&) {
    // CLI11 lets through what std::stoll says of --no-ui=99999999999999999999.
    return absl::InvalidArgumentError(
        "the value of a flag is out of range\n"
        "Run with --help for the options.");
  }
  return TakeResult(commands, &result);
}

CommandLineParser::CommandLineParser() = default;
CommandLineParser::~CommandLineParser() = default;

absl::StatusOr<CommandLine> CommandLineParser::Parse(
    std::vector<std::string> args) {
  const auto chosen =
      std::find_if(args.begin(), args.end(), [](const std::string& argument) {
        return std::find(std::begin(kCommands), std::end(kCommands),
                         argument) != std::end(kCommands);
      });
  const std::string command = chosen == args.end() ? "" : *chosen;
  const bool wants_help =
      std::any_of(args.begin(), args.end(), [](const std::string& argument) {
        return argument == "--help" || argument == "-h";
      });
  std::unique_ptr<Grammar>& grammar =
      grammars_[absl::StrCat(command, wants_help ? " --help" : "")];
  if (grammar == nullptr) {
    grammar = std::make_unique<Grammar>(command, wants_help);
  } else {
    grammar->Reset();
  }
  QUIRE_RETURN_IF_ERROR(grammar->Parse(std::move(args)));
  CommandLine result = grammar->result;
  // The next parse writes into the grammar's own.
  result.bench =
      std::make_shared<BenchOptions>(*grammar->commands.bench_options);
  return result;
}

absl::StatusOr<CommandLine> ParseCommandLine(std::vector<std::string> args) {
  return CommandLineParser().Parse(std::move(args));
}

}  // namespace quire
