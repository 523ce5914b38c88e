// Sheds load in stages, the dearest and least urgent first, before anything
// runs out.
#ifndef QUIRE_SERVER_LOAD_SHEDDER_H_
#define QUIRE_SERVER_LOAD_SHEDDER_H_

#include <array>
#include <atomic>
#include <cstdint>

#include "absl/status/status.h"
#include "absl/time/time.h"

namespace quire {

// In order; each refuses what those before it refuse, too.
enum class ShedStage : uint8_t {
  kNone,
  kExtras,       // What multiplies work: several choices or prompts, scores of
                 // prompts.
  kLowPriority,  // What is less urgent than the default.
  kEverything,   // What is new; what was accepted goes on.
};
inline constexpr int kNumShedStages = 4;
// "none", "extras", "low_priority", "everything": as in metrics.
const char* ShedStageName(ShedStage stage);

// From 0 to 1, the parts in use of what is bounded. KV blocks are not among
// them: they are meant to be full, and what lacks them waits in the queue.
struct LoadSignals {
  double queue = 0;        // EngineStats::queue_use.
  double body_memory = 0;  // MemoryBudget::use.
  double host_memory = 0;  // HostMemoryUse().
};

// What a request asks for that stages look at.
struct RequestTraits {
  bool has_extras = false;
  int32_t priority = 0;  // > 0: less urgent than the default.
};

// Anonymous memory of this process as a part of its cgroup's limit; 0 if there
// is none. Reads some files; cheap enough for every request once a quarter of a
// second, and not for more.
double HostMemoryUse();

// Thread-safe.
class LoadShedder {
 public:
  // A stage begins where the largest signal reaches its threshold, and ends
  // where that has fallen by kHysteresis. (Envoy's overload manager has such
  // steps: 85, 92 and 95 %.)
  static constexpr std::array<double, kNumShedStages> kThresholds = {
      0, 0.85, 0.92, 0.95};
  static constexpr double kHysteresis = 0.03;

  ShedStage Update(const LoadSignals& signals);
  ShedStage stage() const { return stage_.load(std::memory_order_relaxed); }

  // UNAVAILABLE, with the time to wait, if the stage refuses the request;
  // without traits, whatever it asks for.
  absl::Status Check(absl::Duration wait);
  absl::Status Check(const RequestTraits& traits, absl::Duration wait);

  // Since the start, by the least stage that refuses the request.
  int64_t num_refused(ShedStage stage) const {
    return num_refused_[static_cast<size_t>(stage)].load(
        std::memory_order_relaxed);
  }

 private:
  absl::Status Refuse(ShedStage stage, absl::Duration wait, const char* what);

  std::atomic<ShedStage> stage_{ShedStage::kNone};
  std::array<std::atomic<int64_t>, kNumShedStages> num_refused_ = {};
};

}  // namespace quire

#endif  // QUIRE_SERVER_LOAD_SHEDDER_H_
