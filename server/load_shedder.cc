#include "server/load_shedder.h"

#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <string>

#include "absl/strings/str_cat.h"
#include "engine/base/memory_limit.h"
#include "server/api_error.h"

namespace quire {

const char* ShedStageName(ShedStage stage) {
  static constexpr const char* kNames[] = {"none", "extras", "low_priority",
                                           "everything"};
  return kNames[static_cast<size_t>(stage)];
}

double HostMemoryUse() {
  const int64_t limit = CgroupMemoryLimit();
  if (limit == kNoMemoryLimit || limit <= 0) return 0;
  // Mapped weights can be dropped and read again; they do not count.
  std::ifstream statm("/proc/self/statm");
  int64_t num_virtual = 0, num_resident = 0, num_shared = 0;
  if (!(statm >> num_virtual >> num_resident >> num_shared)) return 0;
  const double page = static_cast<double>(sysconf(_SC_PAGESIZE));
  return std::clamp(
      static_cast<double>(num_resident - num_shared) * page / limit, 0.0, 1.0);
}

ShedStage LoadShedder::Update(const LoadSignals& signals) {
  const double use =
      std::max({signals.queue, signals.body_memory, signals.host_memory});
  int begins = 0;  // The highest stage that would begin now,
  int stays = 0;   // and the highest that would go on.
  for (int i = 1; i < kNumShedStages; ++i) {
    if (use >= kThresholds[i]) begins = i;
    if (use > kThresholds[i] - kHysteresis) stays = i;
  }
  // Handlers may disagree for a moment; the next one corrects it.
  const int before = static_cast<int>(stage());
  const auto after =
      static_cast<ShedStage>(std::max(begins, std::min(before, stays)));
  stage_.store(after, std::memory_order_relaxed);
  return after;
}

absl::Status LoadShedder::Refuse(ShedStage stage, absl::Duration wait,
                                 const char* what) {
  num_refused_[static_cast<size_t>(stage)].fetch_add(1,
                                                     std::memory_order_relaxed);
  return OverloadError(
      absl::StrCat("the server is overloaded and refuses ", what), wait);
}

absl::Status LoadShedder::Check(absl::Duration wait) {
  if (stage() < ShedStage::kEverything) return absl::OkStatus();
  return Refuse(ShedStage::kEverything, wait, "new requests");
}

absl::Status LoadShedder::Check(const RequestTraits& traits,
                                absl::Duration wait) {
  const ShedStage now = stage();
  if (now >= ShedStage::kExtras && traits.has_extras) {
    return Refuse(ShedStage::kExtras, wait,
                  "requests for several choices, several prompts or "
                  "log-probabilities of prompts");
  }
  if (now >= ShedStage::kLowPriority && traits.priority > 0) {
    return Refuse(ShedStage::kLowPriority, wait, "requests of low priority");
  }
  return Check(wait);
}

}  // namespace quire
