// A drafter of any quality: it is told what the request will be told alone, and
// makes of it what the history says.
#ifndef QUIRE_TESTS_ENGINE_SIMULATION_SIMULATED_DRAFTER_H_
#define QUIRE_TESTS_ENGINE_SIMULATION_SIMULATED_DRAFTER_H_

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "engine/speculative/drafter.h"
#include "tests/engine_simulation/history.h"

namespace quire {

class SimulatedDrafter : public Drafter {
 public:
  // All generated tokens of the sequence in this slot, also those to come.
  using Answer =
      std::function<std::vector<int32_t>(const DraftSequence& sequence)>;
  SimulatedDrafter(const History& history, Answer answer);

  absl::string_view method() const override { return "simulated"; }
  bool is_costly() const override { return plan_.is_costly; }
  absl::Status Propose(absl::Span<const DraftSequence> sequences,
                       absl::Span<Draft> drafts) override;
  bool UsesTargetSteps() const override { return plan_.uses_target_steps; }
  absl::Status ObserveStep(const TargetStep& step) override;
  void End(uint64_t sequence_id, absl::Span<const int32_t> token_ids,
           int32_t num_prompt_tokens,
           absl::string_view cache_namespace) override;

  // Empty, or the first broken rule of Drafter.
  const std::string& violation() const { return violation_; }
  // It has said that it cannot go on, or proposed what is impossible.
  bool has_failed() const { return has_failed_; }

 private:
  struct Shown {
    std::vector<int32_t> token_ids;
    uint64_t start_no = 0;
    int32_t slot = 0;
  };
  void CheckShown(const DraftSequence& sequence);
  void DraftFor(const DraftSequence& sequence, Draft* draft);

  const PlannedDrafter plan_;
  const int vocab_size_;
  const int block_size_;
  const Answer answer_;
  std::map<uint64_t, Shown> shown_;          // By sequence_id.
  std::map<int32_t, int> position_of_slot_;  // Computed, as far as observed.
  std::string violation_;
  int64_t num_calls_ = 0;
  bool has_failed_ = false;
};

}  // namespace quire

#endif  // QUIRE_TESTS_ENGINE_SIMULATION_SIMULATED_DRAFTER_H_
