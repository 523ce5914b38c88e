// What holds after every step of a simulation, and at its end.
#include <algorithm>
#include <memory>
#include <utility>
#include <vector>

#include "engine/base/random.h"
#include "engine/base/status.h"
#include "tests/engine_simulation/simulation_run.h"

namespace quire {

absl::Status Simulation::CheckAfterStep() {
  QUIRE_RETURN_IF_ERROR(engine_->CheckIntegrity());
  QUIRE_RETURN_IF_ERROR(CheckHealth());
  QUIRE_RETURN_IF_ERROR(CheckDrafter());
  const bool is_healthy = engine_->Health().ok();
  for (int32_t block_id : runner_->BlocksInFlight()) {
    if (is_healthy && !engine_->cache().IsReferenced(block_id)) {
      return Error("I5: block ", block_id,
                   " is named by a step in flight and not held");
    }
  }
  for (const Ledger::Entry* entry : must_end_) {
    if (!entry->has_ended) {
      return Error("events: request ", entry->request.id,
                   " outlives the failure of its step");
    }
  }
  must_end_.clear();
  coverage_[Covered::kFullPoolSteps] +=
      engine_->cache().num_available_blocks() == 0;
  for (const Ledger::Entry* entry : ledger_.live()) {
    if (step_ > entry->last_step) {
      return Error("liveness: request ", entry->request.id,
                   " has not ended within ",
                   entry->last_step - entry->first_step, " steps");
    }
  }
  for (const Ledger::Entry* entry : ledger_.TakeEnded()) {
    // One in 50 is asked of a fresh engine, too.
    if (MixBits(history_.seed, entry->request.id) % 50 == 0) {
      QUIRE_RETURN_IF_ERROR(CheckAlone(*entry));
    }
  }
  NoteAdmissions();
  return absl::OkStatus();
}

absl::Status Simulation::CheckHealth() {
  if (engine_->Health().ok() != must_be_dead_) return absl::OkStatus();
  return Error(
      "health: ",
      must_be_dead_ ? "the engine goes on after " : "the engine gave up after ",
      num_failures_in_a_row_, " failures in a row");
}

absl::Status Simulation::CheckQuiescent() {
  if (!ledger_.live().empty()) {
    return Error("events: idle, and request ", ledger_.live()[0]->request.id,
                 " has no last event");
  }
  const EngineStats stats = engine_->Stats();
  if (engine_->cache().num_referenced_blocks() != 0 ||
      stats.num_free_blocks != stats.num_blocks) {
    return Error("leak: ", engine_->cache().num_referenced_blocks(),
                 " blocks are held by nobody");
  }
  if (stats.num_running != 0 || stats.num_waiting != 0 || !stats.is_idle ||
      engine_->scheduler().num_unstarted_requests() != 0 ||
      engine_->scheduler().num_unstarted_tokens() != 0) {
    return Error("leak: idle, but something is still counted");
  }
  QUIRE_RETURN_IF_ERROR(
      ledger_.CheckCounts(stats.num_prompt_tokens, stats.num_generation_tokens,
                          stats.prefix_cache_hits, stats.num_draft_tokens,
                          stats.num_accepted_tokens));
  return engine_->CheckIntegrity();
}

absl::Status Simulation::CheckDrafter() {
  if (drafter_ == nullptr) return absl::OkStatus();
  if (!drafter_->violation().empty()) {
    return Error("drafter: ", drafter_->violation());
  }
  if (drafter_->has_failed() == engine_->DrafterHealth().ok()) {
    return Error("drafter: its health is ",
                 engine_->DrafterHealth().ToString());
  }
  return absl::OkStatus();
}

absl::Status Simulation::CheckAlone(const Ledger::Entry& entry) {
  // A fresh engine that does none of what can go wrong: one request, one step
  // in flight, no cache, all the room it wants.
  EngineOptions options = options_;
  options.enable_prefix_caching = false;
  options.steps_in_flight = options.num_micro_batches = 1;
  options.num_blocks = 4096;
  options.max_model_len = MaxNumTokens(options_);
  options.max_num_batched_tokens = 4096;
  options.max_num_seqs = 1;
  options.num_speculative_tokens = 0;
  HashModelRunner runner(options, history_.model_options);
  FakeClock clock;
  QUIRE_ASSIGN_OR_RETURN(std::unique_ptr<Engine> engine,
                         Engine::Create(options, &runner, &clock));
  Request request = entry.request;
  request.sampling.seed = entry.seed;
  request.deadline = absl::InfiniteFuture();
  QUIRE_RETURN_IF_ERROR(engine->AddRequest(request));
  std::vector<OutputEvent> events;
  while (engine->HasWork()) engine->Step(&events);
  std::vector<std::vector<int32_t>> answers(request.n);
  std::vector<float> embedding;
  for (const OutputEvent& event : events) {
    embedding = event.embedding;
    for (const TokenOutput& token : event.tokens) {
      answers[event.choice_idx].push_back(token.token_id);
    }
  }
  ++coverage_[Covered::kCheckedAlone];
  const std::vector<float>& told_embedding = entry.choices[0].embedding;
  if (!told_embedding.empty() && told_embedding != embedding) {
    return Error("answer: a fresh engine embeds request ", request.id,
                 " differently");
  }
  for (int i = 0; i < request.n; ++i) {
    const std::vector<int32_t>& told = entry.choices[i].token_ids;
    if (told.size() > answers[i].size() ||
        !std::equal(told.begin(), told.end(), answers[i].begin())) {
      return Error("answer: a fresh engine answers request ", request.id,
                   " differently");
    }
  }
  return absl::OkStatus();
}

}  // namespace quire
