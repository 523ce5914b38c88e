// What a model takes on an emulated GPU: all of a budget that follows from what
// is free, and an error that says what to lower where that does not suffice.
#include <algorithm>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/match.h"
#include "engine/model/loaded_model.h"
#include "gtest/gtest.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/device_emulated.h"

namespace quire {
namespace {

constexpr char kModel[] = "tests/testdata/goldens/qwen3";

class CudaMemoryTest : public testing::Test {
 protected:
  CudaMemoryTest() {
    options_.max_num_seqs = 4;
    options_.max_num_batched_tokens = 32;
    options_.kv_cache_dtype = DType::kBF16;
  }
  ~CudaMemoryTest() override {
    cuda::EmulatedOptions() = cuda::EmulatedDeviceOptions();
  }

  absl::StatusOr<LoadedModel> Load(int64_t total_bytes) {
    cuda::EmulatedOptions().total_bytes = total_bytes;
    return LoadModel(kModel, options_, *CudaBackend::Create({}));
  }
  static int64_t TotalOf(const MemoryPlan& memory) {
    return memory.weights_bytes + memory.workspace_bytes + memory.graphs_bytes +
           memory.code_bytes + memory.kv_bytes;
  }

  LoadOptions options_;
  int max_model_len_ = 0;
};

TEST_F(CudaMemoryTest, KvTakesWhatTheOthersLeave) {
  constexpr int64_t kTotal = int64_t{200} << 20;
  options_.device_memory_utilization = 0.75;
  const auto loaded = Load(kTotal);
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  const MemoryPlan& memory = loaded->memory;
  EXPECT_EQ(loaded->shape.device_bytes, kTotal / 4 * 3);
  const int64_t bytes_per_block =
      KvBytesPerToken(loaded->config, DType::kBF16) * loaded->shape.block_size;
  EXPECT_EQ(memory.kv_bytes, memory.num_blocks * bytes_per_block);
  EXPECT_LE(TotalOf(memory), loaded->shape.device_bytes);
  // Block tables and lists of copies grow with the blocks.
  EXPECT_GE(TotalOf(memory),
            loaded->shape.device_bytes - loaded->shape.device_bytes / 100);
  EXPECT_GT(memory.weights_bytes, 0);
  EXPECT_GT(memory.workspace_bytes, 0);
  EXPECT_GT(memory.graphs_bytes, 0);
  // Kernels are loaded on first use, also when all is taken.
  EXPECT_EQ(memory.code_bytes, 32 << 20);
  EXPECT_EQ(memory.unused_bytes, 0);
  EXPECT_EQ(loaded->shape.steps_in_flight, 2);

  options_.device_memory_utilization = 0.5;
  const auto less = Load(kTotal);
  ASSERT_TRUE(less.ok()) << less.status();
  EXPECT_LT(less->memory.kv_bytes, memory.kv_bytes);
  EXPECT_LE(TotalOf(less->memory), kTotal / 2);
}

TEST_F(CudaMemoryTest, BytesThatWereAskedForAreWhatTheCacheGets) {
  options_.kv_cache_memory_bytes = int64_t{1} << 20;
  const auto loaded = Load(int64_t{200} << 20);
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  EXPECT_LE(loaded->memory.kv_bytes, 1 << 20);
  EXPECT_GT(loaded->memory.kv_bytes, (1 << 20) - (1 << 14));
}

TEST_F(CudaMemoryTest, LengthIsLoweredToWhatFitsUnlessAskedFor) {
  const auto all = Load(int64_t{400} << 20);
  ASSERT_TRUE(all.ok()) << all.status();
  const int model_len = all->shape.max_model_len;
  const int64_t bytes_per_token = KvBytesPerToken(all->config, DType::kBF16);
  // Room for about half a sequence beside the rest.
  const int64_t budget = all->memory.weights_bytes + all->memory.graphs_bytes +
                         all->memory.code_bytes + all->memory.workspace_bytes +
                         model_len / 2 * bytes_per_token;
  options_.device_memory_utilization = 0.5;
  const auto lowered = Load(2 * budget);
  ASSERT_TRUE(lowered.ok()) << lowered.status();
  EXPECT_LT(lowered->shape.max_model_len, model_len);
  EXPECT_GE(lowered->shape.max_model_len, model_len / 2 - 16);
  ASSERT_FALSE(lowered->warnings.empty());
  EXPECT_TRUE(absl::StrContains(lowered->warnings.back(), "lowered from"))
      << lowered->warnings.back();

  options_.max_model_len = model_len;
  const absl::Status too_long = Load(2 * budget).status();
  EXPECT_EQ(too_long.code(), absl::StatusCode::kResourceExhausted) << too_long;
  EXPECT_TRUE(absl::StrContains(too_long.message(), "workspace of 4 sequences"))
      << too_long;
  options_.max_model_len = 1 << 22;
  const absl::Status far_too_long = Load(int64_t{400} << 20).status();
  for (const absl::Status& status : {too_long, far_too_long}) {
    EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted) << status;
    for (const char* option :
         {"--max-model-len", "--gpu-memory-utilization", "--max-num-seqs"}) {
      EXPECT_TRUE(absl::StrContains(status.message(), option)) << status;
    }
  }
}

TEST_F(CudaMemoryTest, AModelThatDoesNotFitIsToldBeforeAnythingIsRead) {
  int num_calls = 0;
  options_.progress = [&](int64_t, int64_t) { ++num_calls; };
  const absl::Status status = Load(1 << 12).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted) << status;
  EXPECT_TRUE(absl::StrContains(status.message(), "the weights need"));
  EXPECT_TRUE(absl::StrContains(status.message(), "--quantization")) << status;
  EXPECT_EQ(num_calls, 0);
}

// What a driver takes for graphs is measured: where it is more than was left to
// it, fewer are kept.
TEST_F(CudaMemoryTest, GraphsTakeWhatWasLeftToThem) {
  options_.max_num_seqs = options_.max_num_batched_tokens = 64;
  options_.kv_cache_memory_bytes = int64_t{4} << 20;
  for (const int64_t bytes_per_graph : {int64_t{1} << 20, int64_t{8} << 20}) {
    SCOPED_TRACE(bytes_per_graph);
    cuda::EmulatedOptions().bytes_per_graph = bytes_per_graph;
    const auto loaded = Load(int64_t{400} << 20);
    ASSERT_TRUE(loaded.ok()) << loaded.status();
    auto& backend = static_cast<CudaBackend&>(*loaded->backend);
    const int64_t free_before = backend.device().Memory()->free_bytes;
    int num_ahead = 0;
    while (loaded->runner->PrepareAhead()) ++num_ahead;
    const int64_t taken = free_before - backend.device().Memory()->free_bytes;
    EXPECT_EQ(taken, num_ahead * bytes_per_graph);
    EXPECT_EQ(backend.graph_counts().num_bytes, taken);
    EXPECT_EQ(backend.graph_counts().num_captures, num_ahead);
    EXPECT_LE(taken, loaded->memory.graphs_bytes);
    EXPECT_FALSE(backend.graph_counts().is_disabled);
    // 1, 2, 4, and the multiples of 8 up to 64; or as many as there is room
    // for.
    EXPECT_EQ(num_ahead, std::min<int64_t>(11, loaded->memory.graphs_bytes /
                                                   bytes_per_graph));
  }
}

// By public reports a graph of some hundred launches is up to a few MiB: those
// of all sizes of a decode of 256 sequences stay.
TEST_F(CudaMemoryTest, ALargeGpuKeepsLargeGraphs) {
  options_.max_num_seqs = options_.max_num_batched_tokens = 256;
  options_.kv_cache_memory_bytes = int64_t{16} << 20;
  cuda::EmulatedOptions().bytes_per_graph = int64_t{3} << 20;
  const auto loaded = Load(int64_t{80} << 30);
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  EXPECT_EQ(loaded->memory.graphs_bytes, int64_t{512} << 20);
  auto& backend = static_cast<CudaBackend&>(*loaded->backend);
  int num_ahead = 0;
  while (loaded->runner->PrepareAhead()) ++num_ahead;
  EXPECT_EQ(num_ahead, 19);
  EXPECT_EQ(backend.graph_counts().num_captures, 19);
  EXPECT_EQ(backend.graph_counts().num_bytes, 19 * (int64_t{3} << 20));
  EXPECT_EQ(backend.StepsSummary(),
            "CUDA graphs: 19 captured, 0 evicted, 57.0 MiB taken of 512.0 "
            "reserved; 0 steps replayed, 0 eager");
}

// Kernels that the first captures load are no part of a graph.
TEST_F(CudaMemoryTest, LoadedKernelsAreNotCountedAsGraphs) {
  options_.max_num_seqs = options_.max_num_batched_tokens = 64;
  options_.kv_cache_memory_bytes = int64_t{4} << 20;
  cuda::EmulatedOptions().code_bytes = int64_t{12} << 20;
  const int64_t bytes_per_graph = cuda::EmulatedOptions().bytes_per_graph;
  const auto loaded = Load(int64_t{400} << 20);
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  auto& backend = static_cast<CudaBackend&>(*loaded->backend);
  const int64_t free_before = *backend.FreeDeviceBytes();
  int num_ahead = 0;
  while (loaded->runner->PrepareAhead()) ++num_ahead;
  EXPECT_EQ(num_ahead, 11);
  EXPECT_EQ(backend.graph_counts().num_bytes, num_ahead * bytes_per_graph);
  EXPECT_EQ(free_before - *backend.FreeDeviceBytes(),
            num_ahead * bytes_per_graph + (int64_t{12} << 20));
}

TEST_F(CudaMemoryTest, TheSummarySaysThatGraphsAreOff) {
  cuda::EmulatedOptions().total_bytes = int64_t{400} << 20;
  options_.kv_cache_memory_bytes = int64_t{4} << 20;
  CudaBackendOptions backend_options;
  backend_options.enforce_eager = true;
  const auto eager =
      LoadModel(kModel, options_, *CudaBackend::Create(backend_options));
  ASSERT_TRUE(eager.ok()) << eager.status();
  EXPECT_EQ(eager->backend->StepsSummary(), "CUDA graphs: off; 0 eager steps");

  const auto loaded = Load(int64_t{400} << 20);
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  cuda::FailCaptures(static_cast<CudaBackend&>(*loaded->backend).device(), 1);
  while (loaded->runner->PrepareAhead()) {
  }
  EXPECT_EQ(loaded->backend->StepsSummary(),
            "CUDA graphs: 0 captured, 0 evicted, 0.0 MiB taken of 56.2 "
            "reserved; 0 steps replayed, 0 eager; disabled");
}

// Blocks beyond what is of use cost the host memory and time.
TEST_F(CudaMemoryTest, TheCacheOfASmallModelIsBounded) {
  constexpr int64_t kDeviceBytes = int64_t{80} << 30;
  options_.kv_cache_memory_bytes = int64_t{4} << 20;
  const auto plan_of = [&](int64_t kv_bytes, int max_num_seqs) {
    // Nothing of it is allocated.
    options_.max_num_seqs = max_num_seqs;
    LoadOptions options = options_;
    cuda::EmulatedOptions().total_bytes = int64_t{400} << 20;
    auto companion =
        *BeginLoadingCompanion(kModel, options, *CudaBackend::Create({}));
    EngineShape shape = companion.shape;
    shape.device_bytes = kDeviceBytes;
    shape.kv_bytes = kv_bytes;
    max_model_len_ = shape.max_model_len;
    return *companion.backend->PlanMemory(shape);
  };
  const MemoryPlan few = plan_of(0, 4);
  EXPECT_EQ(few.num_blocks, 1 << 17);
  EXPECT_GT(few.unused_bytes, 0);
  EXPECT_EQ(TotalOf(few) + few.unused_bytes, kDeviceBytes);
  // All that many sequences need, four times.
  const MemoryPlan many = plan_of(0, 4096);
  EXPECT_EQ(many.num_blocks, 4 * 4096 * (max_model_len_ / 16));
  EXPECT_GT(many.num_blocks, 1 << 17);
  EXPECT_EQ(TotalOf(many) + many.unused_bytes, kDeviceBytes);
  // Who asks for more gets it.
  const MemoryPlan asked = plan_of(2 * few.kv_bytes, 4);
  EXPECT_EQ(asked.num_blocks, 1 << 18);
  EXPECT_EQ(asked.unused_bytes, 0);
}

// What a broken GPU says reaches who loads: not that nothing is free.
TEST_F(CudaMemoryTest, ABrokenDeviceIsNotToldAsAFullOne) {
  auto backend = *CudaBackend::Create({});
  cuda::InjectFault(backend->device(), 0);
  std::vector<char> memory(16);
  (void)backend->device().CopyToHost(memory.data(), memory.data(), 16);
  ASSERT_FALSE(backend->device().Synchronize().ok());
  const absl::Status status =
      LoadModel(kModel, options_, std::move(backend)).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInternal) << status;
  EXPECT_TRUE(absl::StrContains(status.message(), "illegal address")) << status;
}

// Where another program takes memory during a capture, captures go on.
TEST_F(CudaMemoryTest, WhatNoGraphTakesIsNotCounted) {
  options_.max_num_seqs = options_.max_num_batched_tokens = 64;
  options_.kv_cache_memory_bytes = int64_t{4} << 20;
  cuda::EmulatedOptions().bytes_per_graph = int64_t{1} << 30;
  const auto loaded = Load(int64_t{8} << 30);
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  auto& backend = static_cast<CudaBackend&>(*loaded->backend);
  ASSERT_TRUE(loaded->runner->PrepareAhead());
  EXPECT_EQ(backend.graph_counts().num_bytes, int64_t{16} << 20);
  EXPECT_TRUE(loaded->runner->PrepareAhead());
  EXPECT_EQ(backend.graph_counts().num_captures, 2);
}

// With drafts, steps have 1 + num_drafts tokens and logits for each row.
TEST_F(CudaMemoryTest, GraphsOfDraftsArePreparedToo) {
  options_.max_num_seqs = 16;
  options_.max_num_batched_tokens = 64;
  options_.kv_cache_memory_bytes = int64_t{4} << 20;
  options_.num_drafts = 3;
  const auto loaded = Load(int64_t{400} << 20);
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  EXPECT_EQ(loaded->shape.max_logit_rows, 64);
  int num_ahead = 0;
  while (loaded->runner->PrepareAhead()) ++num_ahead;
  // Decodes of 1, 2, 4, 8 and 16 rows; with drafts 4 tokens and the multiples
  // of 8 up to 64, of which 8 look like the decode of 8 rows.
  EXPECT_EQ(num_ahead, 5 + 8);
}

}  // namespace
}  // namespace quire
