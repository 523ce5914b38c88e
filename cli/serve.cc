#include "cli/serve.h"

#include <malloc.h>
#include <signal.h>
#include <time.h>
#include <unistd.h>

#include <atomic>
#include <condition_variable>
#include <cstdio>
#include <mutex>
#include <thread>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "cli/edge.h"
#include "cli/end_signals.h"
#include "cli/exit_codes.h"
#include "cli/telemetry.h"
#include "cli/version.h"
#include "cli/worker.h"
#include "engine/base/clock.h"
#include "engine/base/memory_reserve.h"
#include "engine/base/status.h"
#include "engine/base/warning.h"
#include "engine/speculative/link/edge_engine.h"
#include "engine/speculative/link/link_drafter.h"
#include "server/api_error.h"
#include "server/api_server.h"
#include "server/heap_returner.h"
#include "server/http_request_counts.h"
#include "server/http_server.h"
#include "server/output_processor.h"
#include "server/server_metrics.h"
#include "server/ui/chat_page.h"
#include "server/verify_link.h"

namespace quire {
namespace {

class RunningServerImpl : public RunningServer {
 public:
  RunningServerImpl(const ServeOptions& options, const ServeParts& parts)
      : options_(options), parts_(parts) {}

  // Members go in reverse order, which suits all but the two that know each
  // other: the output thread must end before the engine it would call.
  ~RunningServerImpl() override {
    if (http_ != nullptr) http_->Stop(absl::Seconds(2));
    if (output_ != nullptr) output_->Stop();
    const bool has_served = engine_ != nullptr && Health().ok();
    engine_.reset();
    // Nothing runs steps any more. Of what failed another line is the last.
    if (has_served) {
      const std::string steps = session_->loaded.backend->StepsSummary();
      if (!steps.empty()) log().Message(LogLevel::kInfo, steps);
    }
    SetWarningHandler(nullptr);
  }

  absl::Status Listen() {
    QUIRE_ASSIGN_OR_RETURN(telemetry_, StartTelemetry(options_));
    SetWarningHandler([log = telemetry_.log](const std::string& text) {
      log->Message(LogLevel::kWarning, text);
    });
    QUIRE_RETURN_IF_ERROR(CheckLinkOptions(options_));
    if (const std::string warning = LinkWarning(options_); !warning.empty()) {
      Warn(warning);
    }
    QUIRE_ASSIGN_OR_RETURN(HttpServerOptions http,
                           MakeHttpServerOptions(options_));
    http.on_notice = [log = telemetry_.log](const std::string& line) {
      log->Message(LogLevel::kWarning, line);
    };
    http.on_info = [log = telemetry_.log](const std::string& line) {
      log->Message(LogLevel::kInfo, line);
    };
    http.observer = telemetry_.observer;
    http.on_response = [this](absl::string_view method, absl::string_view route,
                              int status) {
      http_requests_.Count(method, route, status);
      // Probes and metrics, which never cease, do not keep anything busy.
      if (method != "GET") ++num_answers_;
    };
    auto created = HttpServer::Create(http);
    if (!created.ok()) return created.status();
    http_ = std::move(*created);
    QUIRE_ASSIGN_OR_RETURN(const RequestGateOptions gate,
                           MakeRequestGateOptions(options_));
    api_ = std::make_unique<ApiServer>(http_.get(), kVersion, gate);
    if (options_.enable_ui) AddChatPage(http_.get());
    if (options_.model.enable_verify_link) {
      VerifyLinkOptions link;
      link.on_notice = http.on_notice;
      verify_link_ = std::make_unique<VerifyLink>(http_.get(), link);
    }
    return StartHttp(options_, http_.get());
  }

  bool Load(const std::function<void()>& on_loaded, CommandError* error) {
    // LeaderWorkerSet starts the other hosts' pods when this one is ready.
    const int num_nodes = options_.model.num_nodes;
    RankCallbacks callbacks;
    if (num_nodes > 1) {
      callbacks.on_waiting = [this, num_nodes](int num_joined, int size) {
        const std::string waiting =
            absl::StrCat("waiting for the other nodes: ", num_joined, " of ",
                         size, " processes of ", num_nodes, " nodes are here");
        log().Message(LogLevel::kInfo, waiting);
        api_->SetWaiting(num_joined < size ? waiting : "");
      };
    }
    if (options_.log_format == "json") {
      callbacks.on_message = [log = telemetry_.log](LogLevel level,
                                                    const std::string& text) {
        log->Message(level, text);
        if (level == LogLevel::kError) log->Flush(absl::Seconds(1));
      };
    }
    session_ = LoadSession(
        options_.model, error,
        [this](int64_t done, int64_t total) {
          api_->SetLoadProgress(done, total);
        },
        callbacks);
    if (session_ == nullptr) return false;
    const LoadedModel& loaded = session_->loaded;
    EngineOptions& engine_options = session_->engine_options;
    ModelRunner* runner = session_->runner;
    if (parts_.make_runner) {
      own_runner_ = parts_.make_runner(&engine_options);
      runner = own_runner_.get();
    }
    ServedModel served;
    served.names = options_.served_model_names;
    served.has_priorities = session_->engine_options.scheduling_policy ==
                            SchedulingPolicy::kPriority;
    if (served.names.empty()) served.names.push_back(session_->model_name);

    ServerMetricsOptions metrics;
    metrics.model_name = served.names.front();
    metrics.version = kVersion;
    metrics.block_size = loaded.shape.block_size;
    metrics.num_blocks = engine_options.num_blocks;
    metrics.max_model_len = loaded.shape.max_model_len;
    metrics.cache_dtype = DTypeName(loaded.kv_cache_dtype);
    metrics.enable_prefix_caching =
        session_->engine_options.enable_prefix_caching;
    metrics.num_speculative_tokens =
        session_->engine_options.num_speculative_tokens;
    // Those of an edge are its cloud's to say.
    if (!options_.verify_url.empty()) metrics.num_speculative_tokens = 1;
    metrics.http_requests = &http_requests_;
    metrics.telemetry = telemetry_.counts;
    metrics_ = std::make_unique<ServerMetrics>(metrics);
    output_ = std::make_unique<OutputProcessor>(metrics_.get());
    OutputSink* sink = output_.get();
    if (parts_.wrap_sink) {
      own_sink_ = parts_.wrap_sink(sink);
      sink = own_sink_.get();
    }
    if (const absl::Status status = CreateEngine(runner, sink); !status.ok()) {
      *error = {status, kExitUsage};
      return false;
    }
    output_->Start(engine_.get());
    if (!AwaitCloud(error)) return false;

    served.tokenizer = session_->tokenizer.get();
    served.chat_template = session_->chat_template.get();
    served.engine = engine_.get();
    served.output = output_.get();
    served.metrics = metrics_.get();
    served.block_size = loaded.shape.block_size;
    served.limits =
        MakePromptLimits(*session_->tokenizer, loaded.shape.max_model_len,
                         loaded.config.vocab_size);
    served.defaults = session_->defaults;
    served.eos_token_ids = session_->engine_options.eos_token_ids;
    if (loaded.embedding.has_value()) {
      served.embedding.emplace();
      served.embedding->hidden_size = loaded.config.hidden_size;
      served.embedding->normalize = loaded.embedding->normalize;
      // Twice what runs: the next ones are there when a step ends.
      served.embedding->max_inputs_in_flight = 2 * loaded.shape.max_num_seqs;
    }
    served.created = time(nullptr);
    served.has_request_metrics = options_.enable_request_metrics;
    served.has_drafts = metrics.num_speculative_tokens > 0;
    if (edge_ != nullptr) AddEdge(&served);
    if (verify_link_ != nullptr) ServeLinks(&served);
    on_loaded();
    InstallMemoryReserve();
    api_->Serve(served);
    load_time_ = absl::Now() - started_;
    return true;
  }

  int port() const override { return http_->port(); }
  absl::Status Health() const override {
    // The engine finds a rank lost with its next step, this at once.
    if (session_->ranks != nullptr && !session_->ranks->Health().ok()) {
      return session_->ranks->Health();
    }
    return engine_->Health();
  }
  ServerLog& log() override { return *telemetry_.log; }
  const Session& session() const { return *session_; }

  LogFields Description() const override {
    return DescribeSession(*session_, Address(), load_time_);
  }

  bool is_hanging() const override { return engine_->is_hanging(); }

  void ReturnMemory() override {
    heap_returner_.Poll(Clock::Monotonic()->Now(), http_->num_open_requests(),
                        num_answers_);
  }

  void AnswerAndExit(int exit_code) override {
    // Nothing here waits for the engine's thread, which may never come back;
    // destructors would.
    output_->FailAll(absl::UnavailableError("the engine has failed"));
    output_->WaitUntilIdle(absl::Seconds(2));
    http_->Stop(absl::Seconds(2));
    telemetry_.log->Flush(absl::Seconds(1));
    fflush(stdout);
    fflush(stderr);
    _exit(exit_code);
  }

  void ReloadKeys() override {
    const absl::StatusOr<bool> is_reloaded = http_->ReloadKeys();
    if (!is_reloaded.ok()) {
      log().Message(LogLevel::kWarning,
                    absl::StrCat("the old keys stay in force: ",
                                 is_reloaded.status().message()));
    } else if (*is_reloaded) {
      log().Message(LogLevel::kInfo, "the file of keys was read again");
    }
  }

  bool Drain(absl::Duration timeout,
             const std::function<bool()>& is_cancelled) override {
    api_->StartDraining();
    http_->SetCloseConnections();
    const absl::Time deadline = Clock::Monotonic()->Now() + timeout;
    bool is_idle = false;
    while (!is_idle && !is_cancelled() && !engine_->is_hanging() &&
           Clock::Monotonic()->Now() < deadline) {
      is_idle = engine_->WaitUntilIdle(absl::Milliseconds(100)) &&
                output_->WaitUntilIdle(absl::Milliseconds(100));
    }
    if (is_idle) return true;
    output_->FailAll(absl::UnavailableError("the server is shutting down"));
    output_->WaitUntilIdle(absl::Seconds(2));
    return false;
  }

 private:
  std::string Address() const {
    if (!options_.unix_socket.empty()) {
      return absl::StrCat("unix:", options_.unix_socket);
    }
    const auto url = [](absl::string_view scheme, const std::string& host,
                        int port) {
      // An IPv6 address has colons of its own.
      return absl::StrContains(host, ':')
                 ? absl::StrCat(scheme, "://[", host, "]:", port)
                 : absl::StrCat(scheme, "://", host, ":", port);
    };
    std::string address = url(options_.ssl_certfile.empty() ? "http" : "https",
                              options_.host, port());
    if (options_.ops_port.has_value()) {
      absl::StrAppend(
          &address, ", operations ",
          url("http",
              options_.ops_host.empty() ? options_.host : options_.ops_host,
              http_->ops_port()));
    }
    return address;
  }

  // The engine that the model draws with, or that of an edge.
  absl::Status CreateEngine(ModelRunner* runner, OutputSink* sink) {
    const EngineOptions& engine_options = session_->engine_options;
    if (!options_.verify_url.empty()) {
      if (!engine_options.enable_generate) {
        return absl::InvalidArgumentError(
            "--verify-url: the model makes embeddings: it drafts nothing");
      }
      QUIRE_ASSIGN_OR_RETURN(
          EdgeEngineOptions edge,
          MakeEdgeEngineOptions(
              options_, *session_,
              [log = telemetry_.log](const std::string& line) {
                log->Message(LogLevel::kWarning, line);
              }));
      edge.link.on_info = [log = telemetry_.log](const std::string& line) {
        log->Message(LogLevel::kInfo, line);
      };
      auto engine = EdgeEngine::Create(edge, engine_options, runner,
                                       Clock::Monotonic(), sink);
      if (!engine.ok()) {
        const absl::Status& status = engine.status();
        const bool is_of_file =
            !edge.link.ca_file.empty() &&
            absl::StartsWith(status.message(), edge.link.ca_file);
        return absl::Status(
            status.code(),
            absl::StrCat(is_of_file ? "--verify-ca " : "", status.message()));
      }
      edge_ = engine->get();
      engine_ = *std::move(engine);
      return absl::OkStatus();
    }
    Drafter* drafter = session_->drafter.get();
    if (verify_link_ != nullptr) {
      link_drafter_ =
          std::make_unique<LinkDrafter>(engine_options.vocab_size, drafter);
      drafter = link_drafter_.get();
    }
    QUIRE_ASSIGN_OR_RETURN(
        engine_, EngineLoop::Create(engine_options, runner, Clock::Monotonic(),
                                    sink, drafter));
    return absl::OkStatus();
  }

  // An edge that is refused, or does not trust its cloud, has the wrong
  // options; one whose cloud does not answer may start before it. False with
  // *error set.
  bool AwaitCloud(CommandError* error) {
    if (edge_ == nullptr) return true;
    const absl::Status status = edge_->WaitForCloud(absl::Seconds(10));
    if (status.ok() || absl::IsUnavailable(status)) return true;
    *error = {absl::Status(status.code(),
                           absl::StrCat("--verify-url ", options_.verify_url,
                                        ": ", status.message())),
              absl::IsFailedPrecondition(status) ? kExitModel : kExitUsage};
    return false;
  }

  void AddEdge(ServedModel* served) {
    // The cloud may come up, or come back with another context, at any time.
    served->current_limits = [this, own = served->limits] {
      const LinkPeer cloud = edge_->Cloud();
      PromptLimits limits = WithMaxModelLen(own, cloud.max_model_len);
      limits.vocab_size = cloud.vocab_size;
      return limits;
    };
    served->readiness = [this]() -> absl::StatusOr<std::string> {
      QUIRE_RETURN_IF_ERROR(edge_->Readiness());
      return std::string(
          edge_->LinkStats().is_up ? "ok" : "offline: the draft model answers");
    };
    served->more_metrics = [this, name = served->names.front()] {
      return EdgeMetrics(edge_->LinkStats(), name);
    };
  }

  void ServeLinks(ServedModel* served) {
    served->more_metrics = [this, name = served->names.front()] {
      return VerifyLinkMetrics(verify_link_->Stats(), name);
    };
    VerifyLinkModel model;
    model.engine = engine_.get();
    model.output = output_.get();
    model.drafter = link_drafter_.get();
    model.limiter = api_->limiter();
    model.gate = api_->gate();
    model.peer = MakeLinkPeer(*session_);
    model.peer.model_name = served->names.front();
    model.token_text = [tokenizer = session_->tokenizer.get()](int32_t id) {
      return tokenizer->IdToToken(id);
    };
    model.has_priorities = served->has_priorities;
    verify_link_->Serve(model);
  }

  const ServeOptions options_;
  Telemetry telemetry_;  // Ends last: it is told of what the others end.
  const ServeParts parts_;
  std::unique_ptr<Session> session_;
  std::unique_ptr<ModelRunner> own_runner_;  // Of parts_, as own_sink_.
  HttpRequestCounts http_requests_;
  std::atomic<int64_t> num_answers_{0};  // Without probes.
  std::unique_ptr<ServerMetrics> metrics_;
  std::unique_ptr<HttpServer> http_;
  std::unique_ptr<ApiServer> api_;
  std::unique_ptr<VerifyLink> verify_link_;  // Null: no edges may link.
  std::unique_ptr<OutputProcessor> output_;
  std::unique_ptr<OutputSink> own_sink_;
  std::unique_ptr<LinkDrafter> link_drafter_;  // Of verify_link_.
  std::unique_ptr<EngineLoop> engine_;
  EdgeEngine* edge_ = nullptr;  // engine_, if this is an edge.
  // Of this object, not of the process: a shell that became this program by
  // exec may be old.
  const absl::Time started_ = absl::Now();
  absl::Duration load_time_;
  HeapReturner heap_returner_{[] { malloc_trim(0); }};
};

// Counts signals on a thread of its own: no handler, no races.
class SignalWaiter {
 public:
  SignalWaiter() {
    std::thread([this] {
      for (;;) {
        int signal = 0;
        if (sigwait(&signals_, &signal) != 0) continue;
        // While the model loads there is nothing to drain.
        std::lock_guard<std::mutex> lock(mu_);
        if (!is_serving_) _exit(kExitOk);
        // A terminal that goes sends it more than once.
        if (signal == SIGHUP && num_signals_ > 0) continue;
        ++num_signals_;
        has_signal_.notify_all();
      }
    }).detach();
  }

  void SetServing() {
    std::lock_guard<std::mutex> lock(mu_);
    is_serving_ = true;
  }

  int num_signals() const {
    std::lock_guard<std::mutex> lock(mu_);
    return num_signals_;
  }

  // Blocks until a signal has come or `timeout` is over; true if one has.
  bool WaitForSignal(absl::Duration timeout) const {
    std::unique_lock<std::mutex> lock(mu_);
    return has_signal_.wait_for(lock, absl::ToChronoNanoseconds(timeout),
                                [this] { return num_signals_ > 0; });
  }

 private:
  const sigset_t signals_ = BlockEndSignals();
  mutable std::mutex mu_;
  mutable std::condition_variable has_signal_;
  bool is_serving_ = false;  // Guarded by mu_, as the next one.
  int num_signals_ = 0;
};

}  // namespace

absl::StatusOr<HttpServerOptions> MakeHttpServerOptions(
    const ServeOptions& options) {
  absl::StatusOr<int64_t> max_body = ParseSize(options.max_body_size);
  if (!max_body.ok()) {
    return absl::InvalidArgumentError(
        absl::StrCat("--max-body-size: ", max_body.status().message()));
  }
  if (*max_body < 1) {
    return absl::InvalidArgumentError(
        "--max-body-size must be at least 1 byte: every request has a body");
  }
  // Bodies together are counted, in bytes and in what parsing them takes.
  constexpr int64_t kMaxBody = int64_t{1} << 40;
  if (*max_body > kMaxBody) {
    return absl::InvalidArgumentError("--max-body-size must be at most 1 TiB");
  }
  if (options.ssl_certfile.empty() != options.ssl_keyfile.empty()) {
    return absl::InvalidArgumentError(
        options.ssl_certfile.empty()
            ? "--ssl-keyfile needs the certificate of the key: --ssl-certfile"
            : "--ssl-certfile needs the key of the certificate: --ssl-keyfile");
  }
  if (options.ssl_certfile.empty() && !options.ssl_ca_certs.empty()) {
    return absl::InvalidArgumentError(
        "--ssl-ca-certs needs a certificate of the server's own: "
        "--ssl-certfile and --ssl-keyfile");
  }
  HttpServerOptions http;
  http.host = options.host;
  http.port = options.port;
  http.unix_socket_path = options.unix_socket;
  http.ops_port = options.ops_port;
  http.ops_host = options.ops_host.empty() ? options.host : options.ops_host;
  http.tls_certificate_file = options.ssl_certfile;
  http.tls_private_key_file = options.ssl_keyfile;
  http.tls_client_ca_file = options.ssl_ca_certs;
  http.on_notice = [options](const std::string& line) {
    PrintMessage(options, LogLevel::kWarning, line);
  };
  http.on_info = [options](const std::string& line) {
    PrintMessage(options, LogLevel::kInfo, line);
  };
  http.num_workers = options.num_http_threads;
  http.max_connections = options.max_connections;
  http.max_body_bytes = *max_body;
  http.api_keys = options.api_keys;
  http.api_keys_file = options.api_key_file;
  http.error_body = [](int status, absl::string_view message) {
    return ErrorBody(status, message);
  };
  return http;
}

absl::Status StartHttp(const ServeOptions& options, HttpServer* http) {
  const absl::Status status = http->Start();
  if (!absl::IsUnavailable(status)) return status;
  const auto is_of = [&](int port) {
    return absl::StrContains(status.message(), absl::StrCat(":", port, ": "));
  };
  std::string where;
  if (options.ops_port.has_value() && is_of(*options.ops_port)) {
    where = *options.ops_port == options.port && options.unix_socket.empty()
                ? "--port, --ops-port"
                : "--ops-port";
  } else {
    where = options.unix_socket.empty() ? "--port" : "--uds";
  }
  if (options.model.num_nodes > 1) {
    absl::StrAppend(&where, ", node ", options.model.node_rank);
  }
  return absl::UnavailableError(
      absl::StrCat(status.message(), " (", where, ")"));
}

absl::StatusOr<RequestGateOptions> MakeRequestGateOptions(
    const ServeOptions& options) {
  const absl::StatusOr<int64_t> memory = ParseSize(options.max_parsing_memory);
  if (!memory.ok() || *memory < 1) {
    return absl::InvalidArgumentError(absl::StrCat("--max-parsing-memory: '",
                                                   options.max_parsing_memory,
                                                   "' is not a size"));
  }
  RequestGateOptions gate;
  gate.max_parsing_bytes = *memory;
  gate.default_timeout = absl::Seconds(options.request_timeout_seconds);
  gate.max_timeout = absl::Seconds(options.max_request_timeout_seconds);
  return gate;
}

std::unique_ptr<RunningServer> RunningServer::Start(
    const ServeOptions& options, const std::function<void()>& on_loaded,
    CommandError* error, const ServeParts& parts) {
  auto server = std::make_unique<RunningServerImpl>(options, parts);
  if (const absl::Status status = server->Listen(); !status.ok()) {
    *error = {status,
              absl::IsInvalidArgument(status) ? kExitUsage : kExitDevice};
    return nullptr;
  }
  if (!server->Load(on_loaded, error)) return nullptr;
  return server;
}

int RunServe(const ServeOptions& options, const ServeParts& parts) {
  if (options.model.node_rank > 0) return RunWorker(options);
  LimitFreeMemory();
  // Lives as long as its thread: to the end of the process.
  SignalWaiter& signals = *new SignalWaiter;
  CommandError error;
  // Before the first request can come: no signal may cut off its answer.
  std::unique_ptr<RunningServer> server = RunningServer::Start(
      options, [&signals] { signals.SetServing(); }, &error, parts);
  if (server == nullptr) {
    PrintMessage(options, LogLevel::kError, error.status.message());
    return error.exit_code;
  }
  PrintReady(options, absl::StrCat("quire ", kVersion), server->Description(),
             &server->log());
  int exit_code = kExitOk;
  // A process that was frozen as a whole finds its engine late, too: what hangs
  // does so for twenty of our own waits.
  int num_hanging = 0;
  // A quarter of a second bounds how late a failed engine ends the process, and
  // how late a changed file of keys counts.
  while (!signals.WaitForSignal(absl::Milliseconds(250))) {
    server->ReloadKeys();
    server->ReturnMemory();
    num_hanging = server->is_hanging() ? num_hanging + 1 : 0;
    if (num_hanging > 0 && num_hanging < 20) continue;
    if (!server->Health().ok()) {
      server->log().Message(LogLevel::kError, server->Health().message());
      exit_code = kExitEngine;
      if (server->is_hanging()) server->AnswerAndExit(exit_code);
      break;
    }
  }
  if (exit_code == kExitOk) {
    server->log().Message(LogLevel::kInfo, "draining");
    const bool is_drained =
        server->Drain(absl::Seconds(options.shutdown_timeout_seconds),
                      [&] { return signals.num_signals() > 1; });
    if (!is_drained) {
      server->log().Message(LogLevel::kWarning,
                            absl::StrCat("what still ran after ",
                                         signals.num_signals() > 1
                                             ? "the second signal"
                                             : "the end of --shutdown-timeout",
                                         " was ended with an error"));
      exit_code = kExitDrainTimeout;
    }
    // What fails ends its requests, too, but not in good order.
    if (const absl::Status health = server->Health(); !health.ok()) {
      server->log().Message(LogLevel::kError, health.message());
      exit_code = kExitEngine;
      if (server->is_hanging()) server->AnswerAndExit(exit_code);
    }
  }
  server.reset();
  return exit_code;
}

}  // namespace quire
