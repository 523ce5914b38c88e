// Points of edge_cloud_model.h in real time: the edge's engine, link and
// threads and a cloud's server over loopback, through a proxy that delays. The
// models are the hash model; a step and a draft sleep for as long as the model
// says they take.
#include <cstdio>
#include <memory>

#include "absl/time/clock.h"
#include "benchmarks/edge_cloud_model.h"
#include "engine/base/clock.h"
#include "engine/base/random.h"
#include "engine/base/status.h"
#include "engine/speculative/link/edge_engine.h"
#include "tests/edge_cloud.h"
#include "tests/hash_model_runner.h"

namespace quire {
namespace {

constexpr int kMaxDrafts = 5;
constexpr int kNumTokens = 256;

EngineOptions MakeOptions(int num_speculative_tokens) {
  EngineOptions options;
  options.num_blocks = 256;
  options.max_model_len = 1024;
  options.vocab_size = 1000;
  options.max_num_seqs = 4;
  options.num_speculative_tokens = num_speculative_tokens;
  return options;
}

// Takes base + per_token * tokens for a step.
class SleepingRunner : public HashModelRunner {
 public:
  SleepingRunner(const EngineOptions& options, absl::Duration base,
                 absl::Duration per_token)
      : HashModelRunner(options, HashModelOptions()),
        base_(base),
        per_token_(per_token) {}
  absl::Status Submit(const SchedulerOutput& output) override {
    int64_t num_tokens = 0;
    for (const ScheduledRow& row : output.rows) num_tokens += row.num_tokens;
    until_ = absl::Now() + base_ + num_tokens * per_token_;
    return HashModelRunner::Submit(output);
  }
  absl::StatusOr<StepResult> Collect() override {
    absl::SleepFor(until_ - absl::Now());
    return HashModelRunner::Collect();
  }

 private:
  const absl::Duration base_, per_token_;
  absl::Time until_;
};

double TokensPerSecond(const EdgeCloudParameters& parameters) {
  const bool drafts = parameters.place == DraftPlace::kEdge;
  TestCloud::Options cloud_options;
  cloud_options.engine = MakeOptions(drafts ? kMaxDrafts : 0);
  SleepingRunner target(cloud_options.engine, parameters.step_base,
                        parameters.step_per_token);
  cloud_options.runner = &target;
  cloud_options.peer = TestPeer(cloud_options.engine, "cloud");
  TestCloud cloud(cloud_options);
  LinkProxy proxy(cloud.port(), parameters.round_trip / 2);
  SleepingRunner draft(MakeOptions(0), parameters.edge_draft,
                       absl::ZeroDuration());
  SimulationRandom random(1);
  draft.on_result = [&](StepResult* result) {
    for (SampledRow& row : result->rows) {
      for (TokenOutput& token : row.tokens) {
        token.logprob = 0;  // As likely as any: the hash knows nothing.
        if (random.Uniform() < parameters.acceptance) continue;
        token.token_id = (token.token_id + 1) % 1000;
      }
    }
  };
  EdgeEngineOptions edge_options;
  edge_options.link.url = {false, "127.0.0.1", proxy.port()};
  edge_options.link.peer = cloud_options.peer;
  edge_options.link.ping_interval = absl::Milliseconds(100);
  TestSink sink;
  auto edge = EdgeEngine::Create(edge_options, MakeOptions(0), &draft,
                                 Clock::Monotonic(), &sink);
  QUIRE_CHECK(edge.ok());
  QUIRE_CHECK((*edge)->WaitForCloud(absl::Seconds(10)).ok());
  absl::SleepFor(absl::Milliseconds(400));  // Some pings.
  const absl::Time start = absl::Now();
  for (RequestId id = 1; id <= 2; ++id) {
    Request request;
    request.id = id;
    request.prompt_token_ids.assign(64, static_cast<int32_t>(id));
    request.sampling.temperature = 0;
    request.sampling.seed = id;
    request.sampling.ignore_eos = true;
    request.sampling.max_tokens = kNumTokens;
    QUIRE_CHECK((*edge)->Submit(std::move(request)).ok());
    QUIRE_CHECK(sink.Wait(id).choices[0].tokens.size() == kNumTokens);
  }
  return 2 * kNumTokens / absl::ToDoubleSeconds(absl::Now() - start);
}

}  // namespace
}  // namespace quire

int main() {
  std::printf("| round trip, acceptance | sockets | model |\n|---|---|---|\n");
  for (const double acceptance : {0.8, 0.3}) {
    for (const int round_trip_ms : {0, 20, 50}) {
      quire::EdgeCloudParameters parameters;
      parameters.num_requests_per_edge = 2;
      parameters.acceptance = acceptance;
      parameters.round_trip = absl::Milliseconds(round_trip_ms);
      const double with = quire::TokensPerSecond(parameters);
      const double model_with = RunEdgeCloud(parameters).tokens_per_second;
      parameters.place = quire::DraftPlace::kNowhere;
      const double alone = quire::TokensPerSecond(parameters);
      const double model_alone = RunEdgeCloud(parameters).tokens_per_second;
      std::printf("| %d ms, %g | %.1f / %.1f = %.2f | %.1f / %.1f = %.2f |\n",
                  round_trip_ms, acceptance, with, alone, with / alone,
                  model_with, model_alone, model_with / model_alone);
      std::fflush(stdout);
    }
  }
  return 0;
}
