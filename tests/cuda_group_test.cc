// A GPU as a rank of a group: collectives are captured in the graphs of steps,
// and ranks that are gone end the step that waits for them. On the emulation a
// library stands for NCCL; on a real GPU (tests/gpu) one rank uses NCCL itself.
#include <dlfcn.h>

#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/match.h"
#include "engine/base/status.h"
#include "gtest/gtest.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/group_of_gpus.h"
#include "tests/model_harness.h"

namespace quire {
namespace {

constexpr int kNumDecodes = 12;

constexpr char kFakeLibrary[] = "kernels/cuda/libfake_nccl.so";

bool IsFake() { return std::filesystem::exists(kFakeLibrary); }

cuda::LibraryPlaces Places() {
  if (!IsFake()) return cuda::DefaultLibraryPlaces();
  static const std::string folder = [] {
    const std::string name = testing::TempDir() + "/fake";
    const std::string command = "mkdir -p " + name + " && ln -sf $PWD/" +
                                kFakeLibrary + " " + name + "/libnccl.so.2";
    EXPECT_EQ(std::system(command.c_str()), 0);
    return name;
  }();
  cuda::LibraryPlaces places;
  places.folders = {folder};
  places.uses_loader_path = false;
  return places;
}
int CountOfFake(const char* name) {
  void* const handle =
      dlopen((Places().folders[0] + "/libnccl.so.2").c_str(), RTLD_NOW);
  return reinterpret_cast<int (*)()>(dlsym(handle, name))();
}

cuda::NcclId NewId() {
  const std::string text = *cuda::MakeGroupId(Places());
  cuda::NcclId id;
  std::copy(text.begin(), text.end(), id.begin());
  return id;
}

struct Loaded {
  std::unique_ptr<ModelHarness> harness;
  CudaBackend* backend = nullptr;
  Communicator* ranks = nullptr;
};

// `size` 0: in no group.
Loaded Load(const cuda::NcclId& id, int size,
            const cuda::NcclCommunicatorOptions& group_options = {},
            bool enforce_eager = false, int rank = 0) {
  Loaded loaded;
  ModelHarness::Options options;
  options.dtype = options.kv_cache_dtype = DType::kBF16;
  options.kv_cache_memory_bytes = 8 << 20;
  options.max_num_seqs = 4;
  options.max_num_batched_tokens = 16;
  options.max_model_len = 64;
  options.steps_in_flight = 1;
  options.make_backend = [&]() -> std::unique_ptr<Backend> {
    CudaBackendOptions backend_options;
    backend_options.enforce_eager = enforce_eager;
    auto backend = *CudaBackend::Create(backend_options);
    loaded.backend = backend.get();
    if (size > 0) {
      auto ranks = backend->JoinGroup(Places(), id, rank, size, group_options);
      EXPECT_TRUE(ranks.ok()) << ranks.status();
      if (ranks.ok()) loaded.ranks = *ranks;
    }
    return backend;
  };
  auto harness = ModelHarness::Create("tests/testdata/goldens/qwen3", options);
  EXPECT_TRUE(harness.ok()) << harness.status();
  if (harness.ok()) loaded.harness = *std::move(harness);
  return loaded;
}

// A step of one sequence, with a sum over the ranks of what its layers hand on
// to the next one.
absl::StatusOr<std::vector<uint32_t>> RunStep(const Loaded& loaded,
                                              bool is_first) {
  CudaBackend& backend = *loaded.backend;
  const SlotParams params;
  const std::vector<int32_t> blocks = {0, 1, 2, 3}, ids = {1, 2, 3};
  SlotUpdate update;
  update.params = &params;
  update.history = ids;
  update.num_prompt_tokens = 3;
  update.append_blocks = blocks;
  StepRow row;
  row.num_tokens = is_first ? 3 : 1;
  row.num_logits = 1;
  row.source = is_first ? TokenSource::kHost : TokenSource::kDeviceLast;
  StepPlan plan;
  plan.rows = absl::MakeConstSpan(&row, 1);
  if (is_first) {
    plan.updates = absl::MakeConstSpan(&update, 1);
    plan.token_ids = ids;
  }
  QUIRE_ASSIGN_OR_RETURN(Step* const step, backend.BeginStep(plan));
  const GraphKey key = {0, 1, row.num_tokens, 1};
  absl::Status status = backend.Run(*step, key, [&]() -> absl::Status {
    Model& model = *loaded.harness->model().model;
    if (loaded.ranks != nullptr) {
      QUIRE_RETURN_IF_ERROR(loaded.ranks->AllReduceSum(
          backend.Activation(0), backend.device().stream()));
    }
    return model.Forward(backend, *step);
  });
  status.Update(backend.EndStep(*step));
  const auto results = backend.Collect(*step);
  QUIRE_RETURN_IF_ERROR(results.status());
  QUIRE_RETURN_IF_ERROR(status);
  const RowResult& result = results->front();
  return std::vector<uint32_t>{
      static_cast<uint32_t>(result.tokens[0]),
      std::bit_cast<uint32_t>(result.logprobs.empty() ? 0.0f
                                                      : result.logprobs[0])};
}

std::vector<std::vector<uint32_t>> RunAll(const Loaded& loaded) {
  std::vector<std::vector<uint32_t>> all;
  for (int i = 0; i < 1 + kNumDecodes; ++i) {
    auto bits = RunStep(loaded, i == 0);
    EXPECT_TRUE(bits.ok()) << bits.status();
    if (bits.ok()) all.push_back(*std::move(bits));
  }
  return all;
}

TEST(CudaGroupTest, OneRankReducesInTheGraphOfAStep) {
  const Loaded alone = Load({}, 0);
  ASSERT_NE(alone.harness, nullptr);
  const auto expected = RunAll(alone);
  for (const bool enforce_eager : {false, true}) {
    const Loaded loaded = Load(NewId(), 1, {}, enforce_eager);
    ASSERT_NE(loaded.ranks, nullptr);
    if (IsFake()) {
      EXPECT_EQ(loaded.ranks->Description(), "NCCL 2.30.7, 1 rank");
      EXPECT_GT(CountOfFake("FakeNcclNumWindows"), 0);
      const int num_before = CountOfFake("FakeNcclNumCollectives");
      EXPECT_EQ(RunAll(loaded), expected);
      EXPECT_EQ(CountOfFake("FakeNcclNumCollectives"),
                num_before + 1 + kNumDecodes);
    } else {
      EXPECT_EQ(RunAll(loaded), expected);
    }
    if (enforce_eager) continue;
    EXPECT_EQ(loaded.backend->graph_counts().num_captures, 2);
    EXPECT_EQ(loaded.backend->graph_counts().num_replays, 1 + kNumDecodes);
    EXPECT_FALSE(loaded.backend->graph_counts().is_disabled);
  }
  if (IsFake()) {
    EXPECT_EQ(CountOfFake("FakeNcclNumWindows"), 0);
  }
}

// The other rank loads, and runs as many steps; then it does nothing more.
void TestSilentRank(int num_steps) {
  cuda::NcclCommunicatorOptions options;
  options.timeout = absl::Seconds(2);
  const cuda::NcclId id = NewId();
  const auto run = [num_steps](const Loaded& loaded) {
    ASSERT_NE(loaded.ranks, nullptr);
    for (int i = 0; i < num_steps; ++i) {
      const absl::Status status = RunStep(loaded, i == 0).status();
      EXPECT_TRUE(status.ok()) << status;
    }
  };
  Loaded silent;
  std::thread other([&] {
    silent = Load(id, 2, options, false, 1);
    run(silent);
  });
  const Loaded loaded = Load(id, 2, options);
  run(loaded);
  other.join();
  ASSERT_TRUE(loaded.ranks != nullptr && silent.ranks != nullptr);
  // Capturing would need the other rank.
  EXPECT_FALSE(loaded.harness->model().runner->PrepareAhead());
  const absl::Status status = RunStep(loaded, num_steps == 0).status();
  EXPECT_EQ(status, absl::UnavailableError("rank 0 of 2: nothing was heard of "
                                           "the other ranks for 2s"));
  EXPECT_EQ(RunStep(loaded, num_steps == 0).status(), status);
}

TEST(CudaGroupTest, AStepThatWaitsForASilentRankEnds) { TestSilentRank(0); }
// Its graphs are there, and NCCL's abort waits until they have gone.
TEST(CudaGroupTest, AStepThatIsReplayedForASilentRankEnds) {
  TestSilentRank(4);
}

// What nobody collects does not keep a model from going.
TEST(CudaGroupTest, AModelWhoseStepWaitsForASilentRankGoes) {
  cuda::NcclCommunicatorOptions options;
  options.timeout = absl::Seconds(2);
  const cuda::NcclId id = NewId();
  Loaded silent;
  std::thread other([&] { silent = Load(id, 2, options, false, 1); });
  Loaded loaded = Load(id, 2, options);
  other.join();
  ASSERT_TRUE(loaded.ranks != nullptr && silent.ranks != nullptr);
  const int num_aborts = CountOfFake("FakeNcclNumAborts");
  CudaBackend& backend = *loaded.backend;
  absl::Status status = loaded.ranks->AllReduceSum(backend.Activation(0),
                                                   backend.device().stream());
  const SamplingParams params;
  SchedulerOutput output;
  output.slot_starts.resize(1);
  output.slot_starts[0].params = &params;
  output.slot_starts[0].history = {1, 2, 3};
  output.slot_starts[0].num_prompt_tokens = 3;
  output.block_appends = {{.slot = 0, .block_ids = {0}}};
  output.rows.resize(1);
  output.rows[0].num_tokens = 3;
  output.token_ids = {1, 2, 3};
  status.Update(loaded.harness->model().runner->Submit(output));
  EXPECT_TRUE(status.ok()) << status;
  loaded.harness.reset();
  EXPECT_EQ(CountOfFake("FakeNcclNumAborts"), num_aborts + 1);
}

// Nor a backend, with the timeout far away.
TEST(CudaGroupTest, ABackendWhoseStepWaitsForASilentRankGoes) {
  cuda::NcclCommunicatorOptions options;
  options.timeout = absl::InfiniteDuration();
  const cuda::NcclId id = NewId();
  std::unique_ptr<CudaBackend> backends[2];
  Communicator* communicator = nullptr;
  const auto prepare = [&](int rank) {
    auto backend = *CudaBackend::Create({});
    const auto ranks = backend->JoinGroup(Places(), id, rank, 2, options);
    ASSERT_TRUE(ranks.ok()) << ranks.status();
    if (rank == 0) communicator = *ranks;
    backend->AddActivation(8, DType::kF32, ActivationRows::kTokens);
    EngineShape shape;
    shape.max_num_seqs = shape.max_logit_rows = 1;
    shape.max_num_tokens = 8;
    shape.max_model_len = shape.vocab_size = 64;
    shape.block_size = 16;
    shape.kv_bytes = 1 << 20;
    const auto plan = backend->Prepare(shape);
    ASSERT_TRUE(plan.ok()) << plan.status();
    backends[rank] = std::move(backend);
  };
  std::thread other([&] { prepare(1); });
  prepare(0);
  other.join();
  ASSERT_TRUE(backends[0] != nullptr && backends[1] != nullptr);
  const int num_aborts = CountOfFake("FakeNcclNumAborts");
  CudaBackend& backend = *backends[0];
  Step* const step = *backend.BeginStep(StepPlan());
  absl::Status status = backend.Run(*step, GraphKey(), [&] {
    return communicator->AllReduceSum(backend.Activation(0),
                                      backend.device().stream());
  });
  status.Update(backend.EndStep(*step));
  EXPECT_TRUE(status.ok()) << status;
  backends[0].reset();
  EXPECT_EQ(CountOfFake("FakeNcclNumAborts"), num_aborts + 1);
}

TEST(CudaGroupTest, WhoJoinsNamesWhatIsMissing) {
  cuda::LibraryPlaces places;
  places.folders = {"/none"};
  places.uses_loader_path = false;
  const absl::Status status = cuda::MakeGroupId(places).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_TRUE(absl::StrContains(status.message(), "libnccl.so.2")) << status;
  auto backend = *CudaBackend::Create({});
  EXPECT_EQ(cuda::JoinGroup(backend.get(), places, std::string(128, '\0'), 0, 2)
                .status(),
            status);
}

}  // namespace
}  // namespace quire
