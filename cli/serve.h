// `quire serve`: the engine behind the OpenAI API.
#ifndef QUIRE_CLI_SERVE_H_
#define QUIRE_CLI_SERVE_H_

#include <functional>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "cli/options.h"
#include "cli/session.h"
#include "engine/engine_loop.h"
#include "engine/engine_options.h"
#include "engine/model_runner.h"
#include "server/http_server.h"
#include "server/request_gate.h"
#include "server/telemetry/server_log.h"

namespace quire {

// Parts in place of the program's own, for tests of the front end.
struct ServeParts {
  // Computes in the model's place; may change the engine's options.
  std::function<std::unique_ptr<ModelRunner>(EngineOptions* options)>
      make_runner;
  // Stands between the engine and `sink`, which outlives it.
  std::function<std::unique_ptr<OutputSink>(OutputSink* sink)> wrap_sink;
};

// A server with its engine, running until destroyed.
class RunningServer {
 public:
  // Listens first, answering probes with 503, then loads the model; calls
  // `on_loaded` just before the first request is taken. `error` says why the
  // result is null.
  static std::unique_ptr<RunningServer> Start(
      const ServeOptions& options, const std::function<void()>& on_loaded,
      CommandError* error, const ServeParts& parts = {});
  virtual ~RunningServer() = default;

  virtual int port() const = 0;
  virtual LogFields Description() const = 0;  // What start-up tells.
  virtual absl::Status Health() const = 0;
  // The engine's thread has work and does not come back: destroying this object
  // would wait for it.
  virtual bool is_hanging() const = 0;
  // Answers what runs with an error and ends the process; for then.
  [[noreturn]] virtual void AnswerAndExit(int exit_code) = 0;
  // Gives memory back to the system if a burst is over.
  virtual void ReturnMemory() = 0;
  virtual ServerLog& log() = 0;
  // Reads the file of keys again if it has changed, and says so in the log.
  virtual void ReloadKeys() = 0;
  // Refuses new requests and waits for those that run; `is_cancelled` ends the
  // wait early. Requests that are left get an error. True if none was left.
  virtual bool Drain(absl::Duration timeout,
                     const std::function<bool()>& is_cancelled) = 0;
};

// What the transport is told by the options. INVALID_ARGUMENT naming one.
absl::StatusOr<HttpServerOptions> MakeHttpServerOptions(
    const ServeOptions& options);

// Starts it; where it cannot listen, the error names the option and, of several
// nodes, which one this is.
absl::Status StartHttp(const ServeOptions& options, HttpServer* http);

// INVALID_ARGUMENT naming the option.
absl::StatusOr<RequestGateOptions> MakeRequestGateOptions(
    const ServeOptions& options);

// Serves until SIGTERM or SIGINT; returns the exit code. On any node but the
// first: RunWorker.
int RunServe(const ServeOptions& options, const ServeParts& parts = {});

}  // namespace quire

#endif  // QUIRE_CLI_SERVE_H_
