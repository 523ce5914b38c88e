// What happens to the engine in one simulated life, as plain data: drawn from a
// seed, run by simulation.h, made smaller by shrink.h, printed for a reader.
//
// Nothing in a history depends on what the engine does, so that dropping a part
// of it leaves the other parts as they were. What has to hit a state of the
// engine (an abort during prefill) is a trigger that waits for the state.
//
// To add a kind of request: give it a place in DrawRequest, in the reductions
// of shrink.cc, and in Describe; its oracle belongs into ledger.cc.
#ifndef QUIRE_TESTS_ENGINE_SIMULATION_HISTORY_H_
#define QUIRE_TESTS_ENGINE_SIMULATION_HISTORY_H_

#include <cstdint>
#include <string>
#include <vector>

#include "engine/engine_options.h"
#include "engine/request.h"
#include "tests/hash_model_runner.h"

namespace quire {

// The state of a choice in which an abort strikes.
enum class AbortTrigger : uint8_t {
  kWaiting,     // Never started.
  kPrefill,     // Runs, prompt tokens are left.
  kDecode,      // Runs, one token per step.
  kPreempted,   // Started, and waits.
  kFinishing,   // Its last token is being drawn.
  kCollecting,  // Anything, while the runner collects a step.
  kAnyState,    // Between steps.
};
inline constexpr int kNumAbortTriggers = 7;
const char* AbortTriggerName(AbortTrigger trigger);

struct PlannedAbort {
  AbortTrigger trigger = AbortTrigger::kAnyState;
  int countdown = 0;    // So often it lets the state pass first.
  int choice_idx = -1;  // -1: all; the first unfinished one is watched.
  bool is_stop = false;
};

// What the model does wrong for one choice, once.
enum class ModelFault : uint8_t {
  kNone,
  kNotFinite,      // From position `at` on.
  kTokenOutside,   // Instead of the generated token no. `at`, and so on:
  kTokenNegative,  //
  kNoToken,        // Or no embedding, whichever of these it is.
  kTooManyTokens,  // One more than the row has drafts for, or as is not
                   // drafted.
  kNumModelFaults,
};
struct PlannedModelFault {
  ModelFault fault = ModelFault::kNone;
  int choice_idx = 0;
  int at = 0;
};

// A request that has to be refused.
enum class Flaw : uint8_t {
  kNone,
  kPromptTooLong,
  kPromptEmpty,
  kTokenOutside,
  kNoChoices,
  kIdInUse,  // Of another request, if one is there.
  kNumFlaws,
};

struct PlannedRequest {
  // Arrives in this step, or later if kMaxLive requests are in the engine.
  int64_t arrival_step = 0;
  Request request;
  // Its deadline, from its arrival on; < 0: none.
  int64_t timeout_micros = -1;
  Flaw flaw = Flaw::kNone;
  std::vector<PlannedAbort> aborts;
  PlannedModelFault fault;
};
inline constexpr int kMaxLive = 40;

enum class StepFault : uint8_t {
  kSubmitRefused,    // The runner does nothing.
  kSubmitApplied,    // It leaves rubbish, then refuses.
  kCollectFails,     // It leaves rubbish and says so when collected.
  kResultEarly,      // The number of the next step.
  kResultDuplicate,  // The result of the step before, again.
  kResultTooShort,
  kResultTooLong,
  kResultWrongSlot,
  kResultLacksScore,  // One prompt token fewer than the plan has.
  kNumStepFaults,
};
struct PlannedStepFault {
  int64_t submit_no = 0;  // Which Submit, counted from 0.
  StepFault fault = StepFault::kSubmitRefused;
};

// The clock, beside its steady advance.
struct PlannedJump {
  int64_t step = 0;
  int64_t nanos = 0;         // Negative: backwards.
  bool within_step = false;  // Between Submit and Collect.
};

struct PlannedCommotion {
  int64_t step = 0;
  // All requests are aborted; or requests that do not exist.
  bool aborts_everything = false;
};

enum class DraftQuality : uint8_t {
  kNone,    // There is no drafter.
  kRight,   // Always what will be drawn.
  kWrong,   // Never.
  kRandom,  // Any token.
  kMixed,   // Three of four right, and often fewer than asked for.
};
struct PlannedDrafter {
  DraftQuality quality = DraftQuality::kNone;
  bool is_costly = false;
  bool uses_target_steps = false;
  bool gives_probabilities = false;
  int64_t fails_at = -1;           // In this call; < 0: never.
  bool fails_by_nonsense = false;  // It proposes a token that there is not.
};

struct History {
  uint64_t seed = 0;
  EngineOptions options;
  HashModelOptions model_options;
  PlannedDrafter drafter;
  std::vector<PlannedRequest> requests;       // In order of arrival.
  std::vector<PlannedStepFault> step_faults;  // In order.
  std::vector<PlannedJump> jumps;             // In order.
  std::vector<PlannedCommotion> commotions;   // In order.
  // Shutdown comes so many steps after the last request was to arrive, unless
  // everything has ended by then; < 0: never.
  int shutdown_delay = -1;
};

enum class HistoryKind : uint8_t {
  kAny,
  kDrafted,  // With a drafter and few requests: many cases in little time.
};

// A pure function of its arguments.
History DrawHistory(uint64_t seed, HistoryKind kind = HistoryKind::kAny);

// Tokens that a sequence can have under these options.
int MaxNumTokens(const EngineOptions& options);

// Some lines of text, for a small history.
std::string Describe(const History& history);

}  // namespace quire

#endif  // QUIRE_TESTS_ENGINE_SIMULATION_HISTORY_H_
