// Prints what a decode step costs the host: planning, uploading, replaying and
// collecting, with an emulated GPU that is told to drop what it is given. Of
// the driver's share (some calls and a graph launch a step) it knows nothing.
//
//   bazel run -c opt //benchmarks:cuda_host_time
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <memory>
#include <utility>
#include <vector>

#include "benchmarks/statistics.h"
#include "engine/base/status.h"
#include "engine/engine.h"
#include "kernels/cuda/attention_plan.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/device_emulated.h"
#include "tests/model_harness.h"

namespace quire {
namespace {

constexpr int kNumSteps = 400;

double Now() {
  return std::chrono::duration<double, std::micro>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

// Times the calls of another runner.
class TimedRunner : public ModelRunner {
 public:
  explicit TimedRunner(ModelRunner* runner) : runner_(*runner) {}
  int steps_in_flight() const override { return runner_.steps_in_flight(); }
  absl::Status Submit(const SchedulerOutput& output) override {
    const double start = Now();
    const absl::Status status = runner_.Submit(output);
    submits.push_back(Now() - start);
    return status;
  }
  absl::StatusOr<StepResult> Collect() override {
    const double start = Now();
    auto result = runner_.Collect();
    collects.push_back(Now() - start);
    return result;
  }
  bool Done() const override { return runner_.Done(); }

  std::vector<double> submits, collects;

 private:
  ModelRunner& runner_;
};

void Measure(int num_seqs, bool enforce_eager) {
  CudaBackend* backend = nullptr;
  ModelHarness::Options options;
  options.dtype = options.kv_cache_dtype = DType::kBF16;
  options.max_num_seqs = options.max_num_batched_tokens = num_seqs;
  options.max_model_len = 2 * kNumSteps;
  options.kv_cache_memory_bytes = int64_t{256} << 20;
  options.make_backend = [&]() -> std::unique_ptr<Backend> {
    CudaBackendOptions backend_options;
    backend_options.enforce_eager = enforce_eager;
    auto created = *CudaBackend::Create(backend_options);
    backend = created.get();
    return created;
  };
  auto harness = *ModelHarness::Create("tests/testdata/goldens/qwen3", options);
  const LoadedModel& model = harness->model();
  EngineOptions engine_options;
  engine_options.vocab_size = model.config.vocab_size;
  engine_options.max_model_len = model.shape.max_model_len;
  engine_options.max_num_seqs = num_seqs;
  engine_options.max_num_batched_tokens = num_seqs;
  engine_options.num_blocks = model.memory.num_blocks;
  engine_options.steps_in_flight = model.shape.steps_in_flight;
  TimedRunner runner(model.runner.get());
  auto engine = *Engine::Create(engine_options, &runner, Clock::Monotonic());
  for (int i = 0; i < num_seqs; ++i) {
    Request request;
    request.id = i + 1;
    request.prompt_token_ids = {i};
    request.sampling.max_tokens = kNumSteps + 8;
    request.sampling.ignore_eos = true;
    QUIRE_CHECK(engine->AddRequest(std::move(request)).ok());
  }
  std::vector<OutputEvent> events;
  for (int i = 0; i < 4; ++i) engine->Step(&events);
  QUIRE_CHECK(backend->device().Synchronize().ok());
  // From here on every step has the last one's results.
  cuda::DiscardWork(backend->device(), true);
  runner.submits.clear();
  runner.collects.clear();
  std::vector<double> steps;
  for (int i = 0; i < kNumSteps; ++i) {
    events.clear();
    const double start = Now();
    engine->Step(&events);
    steps.push_back(Now() - start);
  }
  std::printf(
      "%4d sequences, %-6s  %7.1f us a step: submit %.1f, collect %.1f\n",
      num_seqs, enforce_eager ? "eager" : "graphs", Median(steps),
      Median(runner.submits), Median(runner.collects));
  engine->Shutdown(&events);
  cuda::DiscardWork(backend->device(), false);
}

// The attention's work lists of a real shape: those of the model above are
// short.
void MeasurePlan(int num_seqs, int seq_len) {
  cuda::AttentionShape shape;
  shape.num_heads = 32;
  shape.num_kv_heads = 8;
  shape.head_dim = 128;
  std::vector<cuda::AttentionSequence> sequences;
  for (int i = 0; i < num_seqs; ++i) {
    sequences.push_back({i, 1, seq_len - i, i});
  }
  constexpr auto kTile = cuda::AttentionTile::kDecode;
  constexpr cuda::AttentionSplits kSplits;
  const cuda::AttentionPlanSize size =
      cuda::SizeOfAttentionPlan(shape, kTile, kSplits, sequences);
  std::vector<cuda::AttentionTask> tasks(size.num_tasks);
  std::vector<cuda::AttentionMerge> merges(size.num_merges);
  std::vector<double> times;
  for (int i = 0; i < kNumSteps; ++i) {
    const double start = Now();
    (void)cuda::SizeOfAttentionPlan(shape, kTile, kSplits, sequences);
    cuda::WriteAttentionPlan(shape, kTile, kSplits, sequences, tasks.data(),
                             merges.data());
    times.push_back(Now() - start);
  }
  std::printf(
      "%4d sequences of %d tokens, 8 KV heads: %.1f us for the attention's %d "
      "tasks\n",
      num_seqs, seq_len, Median(times), size.num_tasks);
}

}  // namespace
}  // namespace quire

int main() {
  for (const int num_seqs : {1, 64}) {
    for (const bool enforce_eager : {true, false}) {
      quire::Measure(num_seqs, enforce_eager);
    }
  }
  quire::MeasurePlan(64, 1024);
}
