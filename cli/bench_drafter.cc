// `quire bench drafter`: what drafting costs beside a step of the model.
//
// One sequence, whose every token is forced by a bias, so that the right draft
// is known and a fixed part of the drafts can be made right, whatever the
// drafter says: random weights will do. Three kinds of runs in turn, all steps
// decoding: without drafts; with drafts that cost nothing; and with the
// drafter's, whose tokens are replaced by the same ones. The last two have the
// same steps of the model, so what they differ by is the drafter.
#include <algorithm>
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "benchmarks/statistics.h"
#include "cli/bench.h"
#include "cli/bench_output.h"
#include "cli/exit_codes.h"
#include "cli/session.h"
#include "engine/base/clock.h"
#include "engine/base/random.h"
#include "engine/base/status.h"
#include "engine/engine.h"
#include "engine/speculative/drafter.h"
#include "nlohmann/json.hpp"

namespace quire {
namespace {

using Json = nlohmann::ordered_json;

constexpr int32_t kRightId = 7;
constexpr int32_t kWrongId = 8;
constexpr float kForced = 1000;

// The drafts of another drafter, or of none, with tokens that are right with a
// fixed probability: a function of their position, the same in every run.
class FixedDrafter : public Drafter {
 public:
  FixedDrafter(Drafter* inner, double acceptance)
      : inner_(inner), acceptance_(acceptance) {}

  absl::string_view method() const override { return "fixed"; }
  bool is_costly() const override {
    return inner_ != nullptr && inner_->is_costly();
  }
  absl::Status Propose(absl::Span<const DraftSequence> sequences,
                       absl::Span<Draft> drafts) override {
    if (inner_ != nullptr) {
      QUIRE_RETURN_IF_ERROR(inner_->Propose(sequences, drafts));
      for (const Draft& draft : drafts) {
        num_proposed_ += static_cast<int64_t>(draft.token_ids.size());
      }
    }
    for (size_t i = 0; i < sequences.size(); ++i) {
      Draft& draft = drafts[i];
      draft.token_ids.clear();
      draft.probabilities.clear();
      for (int k = 0; k < sequences[i].max_num_drafts; ++k) {
        SimulationRandom random(sequences[i].token_ids.size() + k);
        draft.token_ids.push_back(random.Uniform() < acceptance_ ? kRightId
                                                                 : kWrongId);
      }
    }
    return absl::OkStatus();
  }
  int NumMissingTokens(const DraftSequence& sequence) override {
    return inner_ != nullptr ? inner_->NumMissingTokens(sequence) : 0;
  }
  int num_caught_up_tokens() const override {
    return inner_ != nullptr ? inner_->num_caught_up_tokens() : 0;
  }
  // Also without one: the same steps in flight.
  bool UsesTargetSteps() const override { return true; }
  absl::Status ObserveStep(const TargetStep& step) override {
    if (inner_ == nullptr || !inner_->UsesTargetSteps()) {
      return absl::OkStatus();
    }
    return inner_->ObserveStep(step);
  }
  void End(uint64_t sequence_id, absl::Span<const int32_t> token_ids,
           int32_t num_prompt_tokens,
           absl::string_view cache_namespace) override {
    if (inner_ == nullptr) return;
    inner_->End(sequence_id, token_ids, num_prompt_tokens, cache_namespace);
  }
  bool PrepareAhead() override {
    return inner_ != nullptr && inner_->PrepareAhead();
  }

  int64_t num_proposed() const { return num_proposed_; }

 private:
  Drafter* const inner_;
  const double acceptance_;
  int64_t num_proposed_ = 0;
};

struct DecodeRun {
  double seconds = 0;  // From the first token to the last.
  int64_t num_steps = 0;
  int64_t num_drafts = 0;
  int64_t num_accepted = 0;
  double step_seconds() const { return seconds / num_steps; }
};

class DrafterBench {
 public:
  DrafterBench(const BenchDrafterOptions& options, Session* session)
      : options_(options), session_(session) {}

  absl::Status Measure(ProgressLine* line);
  bool has_results() const { return !drafted_.empty(); }
  Json Report() const;

 private:
  // drafter null: without drafts. One engine for all runs of a drafter: it
  // tells sequences apart by their ids.
  absl::StatusOr<std::unique_ptr<Engine>> NewEngine(Drafter* drafter) const;
  absl::StatusOr<DecodeRun> Run(Engine* engine);

  const BenchDrafterOptions& options_;
  Session* const session_;
  RequestId next_id_ = 1;
  std::vector<DecodeRun> plain_, verified_, drafted_;
  int64_t num_proposed_ = 0;
};

absl::StatusOr<std::unique_ptr<Engine>> DrafterBench::NewEngine(
    Drafter* drafter) const {
  EngineOptions options = session_->engine_options;
  options.adapts_drafts = false;
  if (drafter == nullptr) options.num_speculative_tokens = 0;
  return Engine::Create(options, session_->runner, Clock::Monotonic(), drafter);
}

absl::StatusOr<DecodeRun> DrafterBench::Run(Engine* engine) {
  const EngineStats before = engine->Stats();
  Request request;
  request.id = next_id_++;
  request.prompt_token_ids.assign(options_.input_len, kRightId);
  request.sampling.temperature = 0;
  request.sampling.max_tokens = options_.output_len;
  request.sampling.ignore_eos = true;
  request.sampling.logit_bias = {{kRightId, kForced}};
  request.arrival_time = Clock::Monotonic()->Now();
  QUIRE_RETURN_IF_ERROR(engine->AddRequest(std::move(request)));
  DecodeRun run;
  std::vector<OutputEvent> events;
  bool has_begun = false;
  EngineStats first;
  absl::Time start;
  while (engine->HasWork()) {
    events.clear();
    engine->Step(&events);
    for (const OutputEvent& event : events) {
      QUIRE_RETURN_IF_ERROR(event.error);
      for (const TokenOutput& token : event.tokens) {
        if (token.token_id == kRightId) continue;
        return absl::InternalError("a token is not the one that was forced");
      }
    }
    if (!has_begun && !events.empty()) {
      has_begun = true;
      start = Clock::Monotonic()->Now();
      first = engine->Stats();
    }
  }
  run.seconds = absl::ToDoubleSeconds(Clock::Monotonic()->Now() - start);
  QUIRE_RETURN_IF_ERROR(engine->DrafterHealth());
  const EngineStats stats = engine->Stats();
  run.num_steps = stats.num_steps - first.num_steps;
  run.num_drafts = stats.num_draft_tokens - before.num_draft_tokens;
  run.num_accepted = stats.num_accepted_tokens - before.num_accepted_tokens;
  if (run.num_steps < 1) {
    return absl::InvalidArgumentError("--output-len leaves no step to measure");
  }
  return run;
}

absl::Status DrafterBench::Measure(ProgressLine* line) {
  FixedDrafter free(nullptr, options_.acceptance);
  FixedDrafter real(session_->drafter.get(), options_.acceptance);
  QUIRE_ASSIGN_OR_RETURN(const std::unique_ptr<Engine> without,
                         NewEngine(nullptr));
  QUIRE_ASSIGN_OR_RETURN(const std::unique_ptr<Engine> with_free,
                         NewEngine(&free));
  QUIRE_ASSIGN_OR_RETURN(const std::unique_ptr<Engine> with_real,
                         NewEngine(&real));
  // The first of each does not count: graphs are made, caches are cold.
  for (int i = 0; i <= options_.repetitions && !InterruptFlag(); ++i) {
    line->Show("repetitions", i, options_.repetitions + 1, "");
    QUIRE_ASSIGN_OR_RETURN(const DecodeRun plain, Run(without.get()));
    QUIRE_ASSIGN_OR_RETURN(const DecodeRun verified, Run(with_free.get()));
    QUIRE_ASSIGN_OR_RETURN(const DecodeRun drafted, Run(with_real.get()));
    if (verified.num_steps != drafted.num_steps) {
      return absl::InternalError(
          absl::StrCat(verified.num_steps, " steps with free drafts, ",
                       drafted.num_steps, " with the drafter's"));
    }
    if (i == 0 || InterruptFlag()) continue;
    plain_.push_back(plain);
    verified_.push_back(verified);
    drafted_.push_back(drafted);
  }
  num_proposed_ = real.num_proposed();
  if (num_proposed_ == 0) {
    return absl::FailedPreconditionError("the drafter has proposed nothing");
  }
  return absl::OkStatus();
}

Json DrafterBench::Report() const {
  const auto median = [](const std::vector<DecodeRun>& runs) {
    std::vector<double> milliseconds;
    for (const DecodeRun& run : runs) {
      milliseconds.push_back(1e3 * run.step_seconds());
    }
    return Percentile(milliseconds, 50);
  };
  std::vector<double> costs, percents;
  for (size_t i = 0; i < drafted_.size(); ++i) {
    const double whole = drafted_[i].step_seconds();
    const double cost = whole - verified_[i].step_seconds();
    costs.push_back(1e3 * cost);
    percents.push_back(100 * cost / whole);
  }
  const auto [least, most] =
      std::minmax_element(percents.begin(), percents.end());
  const DecodeRun& last = drafted_.back();
  const double num_tokens = options_.output_len - 1;
  const double accepted =
      last.num_drafts == 0
          ? 0
          : static_cast<double>(last.num_accepted) / last.num_drafts;
  const double tokens_per_step = num_tokens / last.num_steps;
  absl::PrintF("Drafter:            %s\n", session_->drafter_description);
  absl::PrintF(
      "Drafts made right:  %.2f of each, %.2f of all; %.2f tokens a step\n",
      options_.acceptance, accepted, tokens_per_step);
  absl::PrintF("Step without drafts:   %9.3f ms, %.1f tokens/s\n",
               median(plain_), 1e3 / median(plain_));
  absl::PrintF("Step that verifies:    %9.3f ms\n", median(verified_));
  absl::PrintF("Step with the drafter: %9.3f ms, %.1f tokens/s\n",
               median(drafted_), 1e3 * tokens_per_step / median(drafted_));
  absl::PrintF(
      "Cost of the drafter:   %9.3f ms, %.1f %% of the whole step "
      "[%.1f, %.1f]\n",
      Percentile(costs, 50), Percentile(percents, 50), *least, *most);
  return {{"plain_step_ms", median(plain_)},
          {"verifying_step_ms", median(verified_)},
          {"drafting_step_ms", median(drafted_)},
          {"drafter_ms", costs},
          {"drafter_percent", percents},
          {"acceptance", accepted},
          {"tokens_per_step", tokens_per_step}};
}

}  // namespace

int RunBenchDrafter(const BenchDrafterOptions& options) {
  if (options.model.speculative_model.empty() &&
      options.model.speculative_config.empty()) {
    return FailBench(
        absl::InvalidArgumentError(
            "bench drafter needs --speculative-model or --speculative-config"),
        kExitUsage);
  }
  SessionOptions model = options.model;
  model.max_num_seqs = 1;
  CommandError error;
  const std::unique_ptr<Session> session = LoadSession(model, &error);
  if (session == nullptr) return FailBench(error.status, error.exit_code);
  DrafterBench bench(options, session.get());
  ProgressLine line(true);
  const absl::Status status = bench.Measure(&line);
  line.Clear();
  if (!status.ok()) {
    return FailBench(
        status, absl::IsInvalidArgument(status) ? kExitUsage : kExitEngine);
  }
  if (!bench.has_results()) return kExitInterrupted;
  const Json json = bench.Report();
  if (!options.output_json.empty()) {
    const absl::Status written = WriteTextFile(
        options.output_json,
        json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n");
    if (!written.ok()) return FailBench(written, kExitDevice);
  }
  return InterruptFlag() ? kExitInterrupted : kExitOk;
}

}  // namespace quire
