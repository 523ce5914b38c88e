// A model with its tokenizer, template and engine, from command-line options.
#ifndef QUIRE_CLI_SESSION_H_
#define QUIRE_CLI_SESSION_H_

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "cli/options.h"
#include "cli/ranks.h"
#include "engine/base/cpu_topology.h"
#include "engine/engine_loop.h"
#include "engine/engine_options.h"
#include "engine/model/loaded_model.h"
#include "engine/speculative/drafter.h"
#include "server/openai_api.h"
#include "server/telemetry/server_log.h"
#include "tokenizer/chat_template.h"
#include "tokenizer/tokenizer.h"

namespace quire {

// An error and how the process should end because of it.
struct CommandError {
  absl::Status status;
  int exit_code = 0;
};

// Everything but the engine thread, which needs somebody to take its output.
struct Session {
  std::string model_path;
  std::string model_name;  // The directory's or file's own name.
  // Null where SessionOptions::needs_tokenizer is not set.
  std::unique_ptr<Tokenizer> tokenizer;
  std::unique_ptr<ChatTemplate> chat_template;  // Null if the model has none.
  std::unique_ptr<SessionRanks> ranks;  // Null: the model runs in one process.
  LoadedModel loaded;
  ModelRunner* runner = nullptr;     // Of all ranks, if there are several.
  std::unique_ptr<Drafter> drafter;  // Null: nothing is drafted.
  std::string drafter_description;   // For a person.
  EngineOptions engine_options;
  SamplingDefaults defaults;
};

// What the options say about loading; INVALID_ARGUMENT naming the option.
absl::StatusOr<LoadOptions> MakeLoadOptions(const SessionOptions& options);

// Where CPU threads go, from the options of that name; INVALID_ARGUMENT naming
// the option.
absl::StatusOr<PlacementRequest> MakePlacementRequest(
    int num_threads, const std::string& cpu_cores, const std::string& numa);

// Loads the model, with all ranks of it; long loads show progress on stderr,
// and so do warnings (or see RankCallbacks::on_message). `on_progress`, which
// may be null, hears of every load. On failure `error` says how to exit and the
// result is null; nothing half-loaded stays. A worker's session ends here, too:
// see SessionRanks.
std::unique_ptr<Session> LoadSession(const SessionOptions& options,
                                     CommandError* error,
                                     LoadProgress on_progress = nullptr,
                                     const RankCallbacks& callbacks = {});

// The directory of the demo model that ships with the program, or empty.
std::string FindDemoModel();

// What start-up tells: model, parameters, dtype, backend, threads, memory for
// weights and KV, longest context, and `address` if not empty.
LogFields DescribeSession(const Session& session, const std::string& address,
                          absl::Duration load_time);

}  // namespace quire

#endif  // QUIRE_CLI_SESSION_H_
