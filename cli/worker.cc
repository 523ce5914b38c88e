#include "cli/worker.h"

#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <memory>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "cli/end_signals.h"
#include "cli/exit_codes.h"
#include "cli/serve.h"
#include "cli/session.h"
#include "cli/telemetry.h"
#include "cli/version.h"
#include "engine/base/status.h"
#include "engine/parallel/local_ranks.h"
#include "server/api_server.h"
#include "server/http_server.h"

namespace quire {
namespace {

// The probes of a node's first process.
class WorkerProbes {
 public:
  absl::Status Listen(const ServeOptions& options) {
    QUIRE_ASSIGN_OR_RETURN(HttpServerOptions http,
                           MakeHttpServerOptions(options));
    QUIRE_ASSIGN_OR_RETURN(http_, HttpServer::Create(http));
    api_ = std::make_unique<ApiServer>(http_.get(), kVersion);
    return StartHttp(options, http_.get());
  }
  ApiServer& api() { return *api_; }
  int port() const { return http_->port(); }

 private:
  std::unique_ptr<HttpServer> http_;
  std::unique_ptr<ApiServer> api_;
};

// SIGTERM comes to all pods of a group at once: requests may still run, and
// rank 0, which drains them, ends the group. Before the shard serves, and on a
// second signal, the process ends at once.
class WorkerSignals {
 public:
  explicit WorkerSignals(const ServeOptions& options) {
    std::thread([this, options,
                 shutdown_timeout_seconds = options.shutdown_timeout_seconds] {
      WaitForSignal();
      if (!is_serving_) _exit(kExitOk);
      PrintMessage(options, LogLevel::kInfo, "waiting for rank 0 to drain");
      std::thread([shutdown_timeout_seconds] {
        absl::SleepFor(absl::Seconds(shutdown_timeout_seconds));
        _exit(kExitDrainTimeout);
      }).detach();
      // A terminal that goes sends SIGHUP more than once.
      while (WaitForSignal() == SIGHUP) {
      }
      _exit(kExitDrainTimeout);
    }).detach();
  }

  void SetServing() { is_serving_ = true; }

 private:
  int WaitForSignal() {
    int signal = 0;
    while (sigwait(&signals_, &signal) != 0) {
    }
    return signal;
  }

  const sigset_t signals_ = BlockEndSignals();
  std::atomic<bool> is_serving_{false};
};

// Those of a terminal reach children as well: the parent ends them.
void LeaveSignalsToTheParent() {
  signal(SIGHUP, SIG_IGN);
  signal(SIGINT, SIG_IGN);
  signal(SIGTERM, SIG_IGN);
}

int Fail(const ServeOptions& options, const absl::Status& status,
         int exit_code) {
  PrintMessage(options, LogLevel::kError, status.message());
  return exit_code;
}

}  // namespace

int RunWorker(const ServeOptions& options) {
  const SessionOptions& model = options.model;
  const bool is_child = model.parent_pid != 0;
  if (!is_child && model.node_rank == 0) {
    return Fail(options,
                absl::InvalidArgumentError(
                    "a worker needs --nnodes, --node-rank (at least 1) and "
                    "--master-addr; node 0 runs `quire serve`, which starts "
                    "the workers of its own host"),
                kExitUsage);
  }
  std::unique_ptr<WorkerProbes> probes;
  // Lives as long as its threads: to the end of the process.
  WorkerSignals* signals = nullptr;
  if (is_child) {
    DieWithParent(model.parent_pid);
    LeaveSignalsToTheParent();
  } else {
    signals = new WorkerSignals(options);
    probes = std::make_unique<WorkerProbes>();
    if (const absl::Status status = probes->Listen(options); !status.ok()) {
      return Fail(options, status,
                  absl::IsInvalidArgument(status) ? kExitUsage : kExitDevice);
    }
  }
  const absl::Time started = absl::Now();
  CommandError error;
  RankCallbacks callbacks;
  if (options.log_format == "json") {
    callbacks.on_message = [options](LogLevel level, const std::string& text) {
      PrintMessage(options, level, text);
    };
  }
  const std::unique_ptr<Session> session = LoadSession(
      model, &error,
      [&probes](int64_t done, int64_t total) {
        if (probes != nullptr) probes->api().SetLoadProgress(done, total);
      },
      callbacks);
  if (session == nullptr) return Fail(options, error.status, error.exit_code);
  if (session->ranks == nullptr) {
    return Fail(options,
                absl::InvalidArgumentError(
                    "the model runs in one process: there is nothing for a "
                    "worker to do"),
                kExitUsage);
  }
  if (!is_child) {
    signals->SetServing();
    const int rank = session->ranks->plan().rank;
    probes->api().ServeAsWorker(absl::StrCat(
        "this is rank ", rank, " of the model; rank 0 answers requests, at ",
        model.master_addr));
    PrintReady(options, absl::StrCat("quire ", kVersion, ", rank ", rank),
               DescribeSession(*session,
                               absl::StrCat("http://", options.host, ":",
                                            probes->port(), "/health"),
                               absl::Now() - started),
               /*log=*/nullptr);
  }
  const absl::Status status =
      session->ranks->worker()->Run(session->loaded.runner.get());
  return status.ok() ? kExitOk : Fail(options, status, kExitEngine);
}

}  // namespace quire
