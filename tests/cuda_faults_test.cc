// What goes wrong on a GPU, and what its steps allocate: only an emulated one
// can be told to fail, or to drop the work so that the host's part is left.
#include <dlfcn.h>

#include <cstdint>
#include <cstdlib>
#include <map>
#include <memory>
#include <new>
#include <string>
#include <vector>

#include "engine/base/clock.h"
#include "engine/engine.h"
#include "gtest/gtest.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/device_emulated.h"
#include "kernels/cuda/group_of_gpus.h"
#include "tests/cuda_history.h"

namespace {
bool g_is_counting = false;
int64_t g_num_new = 0;
}  // namespace

// Not inlined, where compilers would see malloc meet delete.
[[gnu::noinline]] void* operator new(size_t size) {
  if (g_is_counting) ++g_num_new;
  void* memory = std::malloc(size > 0 ? size : 1);
  if (memory == nullptr) std::abort();
  return memory;
}
[[gnu::noinline]] void operator delete(void* memory) noexcept {
  std::free(memory);
}
[[gnu::noinline]] void operator delete(void* memory, size_t) noexcept {
  std::free(memory);
}

namespace quire {
namespace {

// A capture that fails costs speed, no answer.
TEST(CudaCaptureTest, StepsGoOnEagerlyWhereACaptureFailed) {
  std::vector<std::vector<RowBits>> results[2];
  for (const bool fails : {false, true}) {
    const Loaded loaded = Load("qwen3", /*enforce_eager=*/!fails, 1);
    ASSERT_NE(loaded.harness, nullptr);
    if (fails) cuda::FailCaptures(loaded.backend->device(), 1);
    CudaHistory history(loaded, 7);
    history.Run(6, 0.25, &results[fails]);
    EXPECT_EQ(loaded.backend->graph_counts().is_disabled, fails);
    EXPECT_EQ(loaded.backend->graph_counts().num_captures, 0);
  }
  EXPECT_EQ(results[0], results[1]);
}

// Steps of as many shapes as there are numbers, of a backend that has room for
// 128 graphs.
TEST(CudaGraphCacheTest, WithoutRoomAShapeIsCapturedWhenItComesAgain) {
  const Loaded loaded = Load("qwen3", false, 1);
  ASSERT_NE(loaded.harness, nullptr);
  CudaBackend& backend = *loaded.backend;
  Model& model = *loaded.harness->model().model;
  cuda::DiscardWork(backend.device(), true);
  const SlotParams params;
  const std::vector<int32_t> blocks = {0}, ids = {1, 2, 3};
  SlotUpdate update;
  update.params = &params;
  update.append_blocks = blocks;
  StepRow row;
  row.num_tokens = 3;
  StepPlan plan;
  plan.updates = absl::MakeConstSpan(&update, 1);
  plan.rows = absl::MakeConstSpan(&row, 1);
  plan.token_ids = ids;
  const CudaGraphCounts& counts = backend.graph_counts();
  // Graphs of different models, which need not differ in what they hold.
  const auto captures = [&](int model_id) {
    const int64_t before = counts.num_captures;
    Step* const step = *backend.BeginStep(plan);
    absl::Status status =
        backend.Run(*step, {.model = model_id, .num_rows = 1, .num_tokens = 3},
                    [&] { return model.Forward(backend, *step); });
    status.Update(backend.EndStep(*step));
    EXPECT_TRUE(status.ok()) << status;
    EXPECT_TRUE(backend.Collect(*step).ok());
    return counts.num_captures > before;
  };
  constexpr int kNumKept = 128, kNumRemembered = 64;
  for (int i = 0; i < kNumKept; ++i) EXPECT_TRUE(captures(i));
  EXPECT_EQ(counts.num_replays, kNumKept);
  EXPECT_EQ(counts.num_eager, 0);
  // Each once: whatever they are, they cost no graph that is there.
  constexpr int kNumOnce = 2 * kNumRemembered;
  for (int i = 0; i < kNumOnce; ++i) EXPECT_FALSE(captures(kNumKept + i));
  EXPECT_EQ(counts.num_captures, kNumKept);
  EXPECT_EQ(counts.num_eager, kNumOnce);
  for (int i = 0; i < kNumKept; ++i) EXPECT_FALSE(captures(i));
  EXPECT_EQ(counts.num_replays, 2 * kNumKept);
  EXPECT_EQ(counts.num_evictions, 0);

  // The second time, while it is remembered.
  constexpr int kEnd = kNumKept + kNumOnce;
  EXPECT_FALSE(captures(0));
  EXPECT_TRUE(captures(kEnd - 1));  // In the place of 1, the longest unused.
  EXPECT_FALSE(captures(kEnd - 1));
  EXPECT_TRUE(captures(kEnd - kNumRemembered));  // In the place of 2.
  EXPECT_FALSE(captures(kEnd - kNumRemembered - 1));
  EXPECT_EQ(counts.num_evictions, 2);
  const int64_t num_eager = counts.num_eager;
  EXPECT_FALSE(captures(0));
  EXPECT_FALSE(captures(3));
  EXPECT_EQ(counts.num_eager, num_eager);
  // Who has gone begins anew.
  EXPECT_FALSE(captures(1));
  EXPECT_EQ(counts.num_eager, num_eager + 1);
  EXPECT_TRUE(captures(1));  // In the place of 4.
  EXPECT_FALSE(captures(4));
  EXPECT_EQ(counts.num_eager, num_eager + 2);
  EXPECT_EQ(counts.num_captures, kNumKept + 3);
}

// With room for three graphs, shapes come and go: whether a step was the first
// of its shape, the second or a later one shows nowhere.
TEST(CudaGraphCacheTest, StepsHaveTheSameBitsWhereThereIsRoomForFewGraphs) {
  const cuda::EmulatedDeviceOptions before = cuda::EmulatedOptions();
  cuda::EmulatedOptions().total_bytes = int64_t{2} << 30;
  cuda::EmulatedOptions().bytes_per_graph = int64_t{16} << 20;
  std::vector<std::vector<RowBits>> results[2];
  for (const bool enforce_eager : {true, false}) {
    const Loaded loaded = Load("qwen3", enforce_eager, 1);
    ASSERT_NE(loaded.harness, nullptr);
    CudaHistory history(loaded, 7);
    history.Run(6, 0.25, &results[enforce_eager]);
    history.Run(9, 0.95, &results[enforce_eager]);
    history.Run(15, 0.2, &results[enforce_eager]);
    if (enforce_eager) continue;
    const CudaGraphCounts& counts = loaded.backend->graph_counts();
    EXPECT_EQ(counts.num_captures - counts.num_evictions, 3);
    EXPECT_GT(counts.num_evictions, 0);
    EXPECT_GT(counts.num_eager, history.num_empty_steps());
    EXPECT_GT(counts.num_replays, counts.num_captures);
    EXPECT_FALSE(counts.is_disabled);
  }
  EXPECT_EQ(results[0], results[1]);
  cuda::EmulatedOptions() = before;
}

// ----------------------------------------------------------------- faults

// A fault of the GPU ends what runs, with an error for each request, and the
// engine: nothing that was computed after it is told to anybody.
TEST(CudaFaultTest, EndsTheEngineAndEveryRequest) {
  const Loaded loaded = Load("qwen3", false, 2, 64);
  ASSERT_NE(loaded.harness, nullptr);
  const EngineOptions options = OptionsOf(loaded, 2);
  FakeClock clock;
  auto engine =
      *Engine::Create(options, loaded.harness->model().runner.get(), &clock);
  std::vector<OutputEvent> events;
  for (RequestId id = 2; id <= 6; ++id) {
    ASSERT_TRUE(engine->AddRequest(MakeRequest(id, options.vocab_size)).ok());
  }
  for (int i = 0; i < 4; ++i) engine->Step(&events);
  const size_t num_before = events.size();
  EXPECT_GT(num_before, 0u);
  cuda::InjectFault(loaded.backend->device(), 5);
  while (engine->HasWork()) engine->Step(&events);
  std::map<RequestId, int> num_last;
  for (size_t i = num_before; i < events.size(); ++i) {
    const OutputEvent& event = events[i];
    EXPECT_TRUE(event.tokens.empty());
    EXPECT_EQ(event.finish_reason, FinishReason::kError);
    EXPECT_EQ(event.error, EngineHasFailed());
    num_last[event.request_id] += event.is_last;
  }
  EXPECT_EQ(num_last,
            (std::map<RequestId, int>{{2, 1}, {3, 1}, {4, 1}, {5, 1}, {6, 1}}));
  EXPECT_EQ(engine->Health().code(), absl::StatusCode::kUnavailable);
  EXPECT_NE(engine->Health().message().find("illegal address"),
            absl::string_view::npos)
      << engine->Health();
  EXPECT_EQ(engine->AddRequest(MakeRequest(9, options.vocab_size)).code(),
            absl::StatusCode::kUnavailable);
}

// Also where the next step is the first to hear of it, and not who waits.
TEST(CudaFaultTest, EndsTheEngineWhereAStepBegins) {
  const Loaded loaded = Load("qwen3", false, 1, 64);
  ASSERT_NE(loaded.harness, nullptr);
  cuda::Device& device = loaded.backend->device();
  const EngineOptions options = OptionsOf(loaded, 1);
  FakeClock clock;
  auto engine =
      *Engine::Create(options, loaded.harness->model().runner.get(), &clock);
  ASSERT_TRUE(engine->AddRequest(MakeRequest(2, options.vocab_size)).ok());
  std::vector<OutputEvent> events;
  engine->Step(&events);
  cuda::InjectFault(device, 0);
  std::vector<char> memory(16);
  (void)device.CopyToHost(memory.data(), memory.data(), 16);
  ASSERT_FALSE(device.Synchronize().ok());
  engine->Step(&events);
  EXPECT_EQ(engine->Health().code(), absl::StatusCode::kUnavailable);
  ASSERT_FALSE(events.empty());
  EXPECT_TRUE(events.back().is_last);
  EXPECT_EQ(events.back().finish_reason, FinishReason::kError);
}

// A rank whose GPU is broken does not ask NCCL for an orderly end, which would
// wait for that GPU.
TEST(CudaFaultTest, ABrokenRankAbortsItsGroup) {
  const std::string folder = testing::TempDir() + "/fake";
  const std::string command = "mkdir -p " + folder +
                              " && ln -sf $PWD/kernels/cuda/libfake_nccl.so " +
                              folder + "/libnccl.so.2";
  ASSERT_EQ(std::system(command.c_str()), 0);
  cuda::LibraryPlaces places;
  places.folders = {folder};
  places.uses_loader_path = false;
  const auto count = [&](const char* name) {
    void* const handle = dlopen((folder + "/libnccl.so.2").c_str(), RTLD_NOW);
    return reinterpret_cast<int (*)()>(dlsym(handle, name))();
  };
  for (const bool is_broken : {false, true}) {
    SCOPED_TRACE(is_broken);
    auto backend = *CudaBackend::Create({});
    const auto ranks = cuda::JoinGroup(backend.get(), places,
                                       *cuda::MakeGroupId(places), 0, 1);
    ASSERT_TRUE(ranks.ok()) << ranks.status();
    const int num_aborts = count("FakeNcclNumAborts");
    const int num_destroys = count("FakeNcclNumDestroys");
    if (is_broken) cuda::InjectFault(backend->device(), 0);
    std::vector<char> memory(16);
    (void)backend->device().CopyToHost(memory.data(), memory.data(), 16);
    backend.reset();
    EXPECT_EQ(count("FakeNcclNumAborts"), num_aborts + is_broken);
    EXPECT_EQ(count("FakeNcclNumDestroys"), num_destroys + !is_broken);
  }
}

// ------------------------------------------------------------- allocations

// The host's part of a step alone: what it would enqueue is dropped, so that
// only our own code is counted. The results are those of the last real step.
TEST(CudaAllocationTest, AStepAllocatesNothing) {
  const Loaded loaded = Load("qwen3", false, 2);
  ASSERT_NE(loaded.harness, nullptr);
  CudaBackend& backend = *loaded.backend;
  Model& model = *loaded.harness->model().model;
  constexpr int kNumRows = kNumSlots;
  std::vector<SlotParams> params(kNumRows);
  std::vector<std::vector<int32_t>> blocks(kNumRows);
  std::vector<SlotUpdate> starts(kNumRows);
  std::vector<StepRow> rows(kNumRows);
  const std::vector<int32_t> prompt = {1, 2, 3};
  std::vector<int32_t> ids;
  for (int i = 0; i < kNumRows; ++i) {
    params[i].num_logprobs = 5;
    params[i].top_p = 0.9f;
    params[i].repetition_penalty = 1.1f;
    for (int k = 0; k < 100; ++k) {
      params[i].bias_ids.push_back(k % 50);
      params[i].bias.push_back(0.1f);
      params[i].allowed_ids.push_back(k % 40);
      params[i].bad_word_ids.push_back(k % 60);
      params[i].bad_word_lengths.push_back(1);
    }
    for (int k = 0; k < kMaxModelLen / 16; ++k) {
      blocks[i].push_back(i * (kMaxModelLen / 16) + k);
    }
    starts[i].slot = rows[i].slot = i;
    starts[i].params = &params[i];
    starts[i].history = prompt;
    starts[i].num_prompt_tokens = 3;
    starts[i].append_blocks = blocks[i];
    rows[i].num_tokens = 3;
    rows[i].num_logits = 1;
    ids.insert(ids.end(), prompt.begin(), prompt.end());
  }
  GraphKey key = {0, kNumRows, 3 * kNumRows, kNumRows};
  StepPlan first;
  first.updates = starts;
  first.rows = rows;
  first.token_ids = ids;
  const auto submit = [&](const StepPlan& plan) {
    Step* const step = *backend.BeginStep(plan);
    absl::Status status =
        backend.Run(*step, key, [&] { return model.Forward(backend, *step); });
    status.Update(backend.EndStep(*step));
    EXPECT_TRUE(status.ok()) << status;
    return step;
  };
  const auto collect = [&](Step* step) {
    const auto results = backend.Collect(*step);
    EXPECT_TRUE(results.ok());
    EXPECT_EQ(results->size(), size_t{kNumRows});
  };
  // Each step's pinned memory once.
  Step* const one = submit(first);
  std::vector<StepRow> decode_rows = rows;
  for (StepRow& row : decode_rows) {
    row.num_tokens = 1;
    row.source = TokenSource::kDeviceLast;
  }
  StepPlan decode;
  decode.rows = decode_rows;
  key = {0, kNumRows, kNumRows, kNumRows};
  Step* const two = submit(decode);
  collect(one);
  collect(two);
  collect(submit(decode));
  ASSERT_TRUE(backend.device().Synchronize().ok());
  const int64_t num_allocations = backend.device().num_allocations();

  cuda::DiscardWork(backend.device(), true);
  g_num_new = 0;
  g_is_counting = true;
  Step* pending = submit(decode);
  for (int i = 0; i < 50; ++i) {
    Step* const next = submit(decode);
    collect(pending);
    pending = next;
  }
  collect(pending);
  g_is_counting = false;
  EXPECT_EQ(g_num_new, 0);
  // Sequences that start, too.
  key = {0, kNumRows, 3 * kNumRows, kNumRows};
  g_is_counting = true;
  for (int i = 0; i < 3; ++i) collect(submit(first));
  g_is_counting = false;
  EXPECT_EQ(g_num_new, 0);
  EXPECT_EQ(backend.device().num_allocations(), num_allocations);
  cuda::DiscardWork(backend.device(), false);
}

// The same through the runner, as an engine drives it.
TEST(CudaAllocationTest, TheRunnersPartOfADecodeAllocatesNothing) {
  const Loaded loaded = Load("qwen3", false, 2);
  ASSERT_NE(loaded.harness, nullptr);
  ModelRunner& runner = *loaded.harness->model().runner;
  const SamplingParams params;
  SchedulerOutput first, decode;
  for (int i = 0; i < kNumSlots; ++i) {
    SlotStart start;
    start.slot = i;
    start.params = &params;
    start.history = {1, 2, 3};
    start.num_prompt_tokens = 3;
    first.slot_starts.push_back(start);
    BlockAppend blocks{.slot = i};
    for (int k = 0; k < kMaxModelLen / 16; ++k) {
      blocks.block_ids.push_back(i * (kMaxModelLen / 16) + k);
    }
    first.block_appends.push_back(blocks);
    ScheduledRow row;
    row.slot = i;
    row.num_tokens = 3;
    row.needs_token = true;
    row.first_token_idx = 3 * i;
    first.rows.push_back(row);
    first.token_ids.insert(first.token_ids.end(), {1, 2, 3});
    row.num_tokens = 1;
    row.first_token_idx = 0;
    row.input_on_device = true;
    decode.rows.push_back(row);
  }
  const auto submit = [&](const SchedulerOutput& output) {
    const absl::Status status = runner.Submit(output);
    EXPECT_TRUE(status.ok()) << status;
  };
  const auto collect = [&] {
    absl::StatusOr<StepResult> result = runner.Collect();
    ASSERT_TRUE(result.ok()) << result.status();
    ASSERT_EQ(result->rows.size(), size_t{kNumSlots});
    ASSERT_EQ(result->rows[0].tokens.size(), 1u);
    runner.Recycle(*std::move(result));
  };
  submit(first);
  submit(decode);
  collect();
  collect();
  ASSERT_TRUE(loaded.backend->device().Synchronize().ok());
  cuda::DiscardWork(loaded.backend->device(), true);
  g_num_new = 0;
  g_is_counting = true;
  submit(decode);
  for (int i = 0; i < 30; ++i) {
    submit(decode);
    collect();
  }
  collect();
  g_is_counting = false;
  EXPECT_EQ(g_num_new, 0);
  cuda::DiscardWork(loaded.backend->device(), false);
}

// And what is left of an engine's step: the tokens that clients are told, and
// what the scheduler notes of new blocks.
TEST(CudaAllocationTest, AnEnginesDecodeAllocatesWhatItTellsClients) {
  const Loaded loaded = Load("qwen3", false, 2, 64);
  ASSERT_NE(loaded.harness, nullptr);
  EngineOptions options = OptionsOf(loaded, 2);
  options.check_integrity = false;
  FakeClock clock;
  auto engine =
      *Engine::Create(options, loaded.harness->model().runner.get(), &clock);
  for (RequestId id = 1; id <= kNumSlots; ++id) {
    Request request;
    request.id = id;
    request.prompt_token_ids = {1, 2, 3};
    request.sampling.max_tokens = 150;
    request.sampling.ignore_eos = true;
    request.sampling.seed = id;
    ASSERT_TRUE(engine->AddRequest(std::move(request)).ok());
  }
  std::vector<OutputEvent> events;
  const auto step = [&] {
    events.clear();
    engine->Step(&events);
  };
  for (int i = 0; i < 20; ++i) step();
  ASSERT_TRUE(loaded.backend->device().Synchronize().ok());
  cuda::DiscardWork(loaded.backend->device(), true);
  int num_more = 0;
  for (int i = 0; i < 14; ++i) {
    g_num_new = 0;
    g_is_counting = true;
    step();
    g_is_counting = false;
    ASSERT_EQ(events.size(), size_t{kNumSlots});
    num_more += g_num_new > kNumSlots;
  }
  // All get a block in the same step; now and then a queue grows.
  EXPECT_LE(num_more, 2);
  cuda::DiscardWork(loaded.backend->device(), false);
}

}  // namespace
}  // namespace quire
