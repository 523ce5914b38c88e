// The processes that a session is spread over: who they are, how they are
// started, and what this one does among them.
#ifndef QUIRE_CLI_RANKS_H_
#define QUIRE_CLI_RANKS_H_

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "cli/model_fingerprint.h"
#include "cli/options.h"
#include "engine/model/loaded_model.h"
#include "engine/parallel/rank_group.h"
#include "engine/parallel/rank_worker.h"
#include "kernels/backend.h"
#include "kernels/backend_factory.h"
#include "server/telemetry/server_log.h"

namespace quire {

// What a node computes with; tests give other answers.
struct NodeDevices {
  bool is_gpu = false;
  std::vector<std::string> gpus;  // As CUDA_VISIBLE_DEVICES names them.
  // Why GPUs cannot compute together; looked for if a number of ranks is to be
  // found (auto) for several GPUs. Empty: they can.
  std::string no_collectives;
  int num_threads = 1;  // Of one process that has the CPU for itself.
  // Of each NUMA node; one entry: threads need not be kept apart.
  std::vector<std::vector<int>> cpus_of_nodes;
};
NodeDevices FindNodeDevices(const SessionOptions& options);

// What one rank differs in from the others.
struct RankShare {
  std::string gpu;        // CUDA_VISIBLE_DEVICES; empty: as it is.
  int num_threads = 0;    // 0: as the session's options say.
  std::string cpu_cores;  // As --cpu-cores; empty: as the options say.
};

struct RankPlan {
  RankLayout layout;
  int rank = 0;                   // Of this process.
  std::vector<RankShare> shares;  // [local_size]
  std::string notice;             // A line for the log, or empty.
};

// How many ranks there are and what this node's get. `fits(n)`: OK if the model
// can be split over n ranks. INVALID_ARGUMENT naming the option, with both
// figures where there are more ranks than GPUs.
absl::StatusOr<RankPlan> PlanRanks(
    const SessionOptions& options, const NodeDevices& devices,
    const std::function<absl::Status(int)>& fits);

// What any two copies of a model share, file by file, so that what differs can
// be named; of very many files the last ones together. max_bytes: of a hello's
// kMaxHelloBytes.
RankFacts ModelFacts(const std::vector<ModelFile>& files,
                     absl::string_view model = "the model",
                     size_t max_bytes = 8 << 10);

// What all ranks must have in common, by name of option, with what the options
// come to: what means the same is the same. is_gpu: NodeDevices::is_gpu.
RankFacts SessionFacts(const SessionOptions& options,
                       const std::string& model_path, bool is_gpu);

struct RankCallbacks {
  std::function<void(int num_joined, int size)> on_waiting;
  // What loading and the ranks have to tell, from any thread; null: lines on
  // stderr. At kError the process ends next.
  std::function<void(LogLevel level, const std::string& text)> on_message;
};

// A message to who listens.
void Tell(const RankCallbacks& callbacks, LogLevel level,
          const std::string& text);

// This process among the ranks of a session of more than one. Thread-compatible
// but for Health.
class SessionRanks {
 public:
  // Starts or awaits the others (rank 0), or joins them; blocks. Null if the
  // session is one process. `options` is changed to what this rank computes
  // with. quantization: LoadOptions::quantization. INVALID_ARGUMENT, before any
  // process is started, if the model cannot be split so; other errors as of
  // RankGroup and RankWorker.
  static absl::StatusOr<std::unique_ptr<SessionRanks>> Create(
      const std::string& model_path,
      const std::optional<QuantizationScheme>& quantization,
      const RankCallbacks& callbacks, SessionOptions* options);

  // Joins the collectives of GPUs, if `backend` is one; what to load with.
  absl::StatusOr<ParallelConfig> JoinDevices(Backend* backend);
  // Blocks until all ranks have loaded; what rank 0 may use of what this one
  // can do (RankGroup::FinishLoading).
  absl::StatusOr<LoadedFacts> FinishLoading(const LoadedFacts& facts);
  // Of rank 0: see RankGroup.
  ModelRunner* WrapRunner(ModelRunner* own);

  // OK, or why the ranks are no longer all there. Thread-safe.
  absl::Status Health() const;
  RankWorker* worker() const { return worker_.get(); }  // Null of rank 0.
  const RankPlan& plan() const { return plan_; }
  // "4: tensor parallel 4 (shared memory, 4 ranks)".
  std::string Description() const;

 private:
  RankPlan plan_;
  std::unique_ptr<RankGroup> group_;  // One of the two.
  std::unique_ptr<RankWorker> worker_;
  ParallelConfig config_;
  DeviceGroupOptions device_options_;
};

}  // namespace quire

#endif  // QUIRE_CLI_RANKS_H_
