// Runs a history through the engine on the hash model, and checks after every
// step what must hold: CheckIntegrity, the runner's rules of a plan, what the
// sampler is told at every start of a slot, what the clients are told
// (ledger.h), the bound within which each request has to end, and at quiescence
// that nothing is held or counted any more.
//
// Deterministic: one thread, no clock, no device. The same history gives the
// same outcome and the same trace.
#ifndef QUIRE_TESTS_ENGINE_SIMULATION_SIMULATION_H_
#define QUIRE_TESTS_ENGINE_SIMULATION_SIMULATION_H_

#include <cstdint>
#include <functional>
#include <string>

#include "absl/status/status.h"
#include "tests/engine_simulation/coverage.h"
#include "tests/engine_simulation/history.h"

namespace quire {

struct Outcome {
  // INTERNAL "<kind>: <what>" if something is wrong. Kinds: I1 to I9 (the
  // invariants of engine/DESIGN.md), plan, sampler, answer, events, usage,
  // contamination, liveness, leak, health; and of campaign.h: check, crash,
  // hang.
  absl::Status status;
  int64_t num_steps = 0;  // Calls of Engine::Step until the end or the failure.
};

// The message without its numbers: equal for failures of the same sort in two
// histories. Empty for an OK status.
std::string SignatureOf(const absl::Status& status);

// Ends early, without the checks of the end, after max_steps steps. Adds to
// *coverage as it goes. `trace`, unless empty, gets a line for whatever
// happens.
using TraceSink = std::function<void(const std::string& line)>;
Outcome Simulate(const History& history, int64_t max_steps, Coverage* coverage,
                 const TraceSink& trace);

}  // namespace quire

#endif  // QUIRE_TESTS_ENGINE_SIMULATION_SIMULATION_H_
