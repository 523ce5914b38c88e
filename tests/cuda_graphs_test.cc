// Steps on an emulated GPU: captured or launched kernel by kernel, prepared
// ahead or on first use, overlapped or not, they have the same bits; none
// allocates.
#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstdlib>
#include <map>
#include <memory>
#include <new>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/base/random.h"
#include "engine/engine.h"
#include "gtest/gtest.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/device_emulated.h"
#include "kernels/random_slot_params.h"
#include "tests/model_harness.h"

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

constexpr int kNumSlots = 12;
constexpr int kMaxModelLen = 192;

struct Loaded {
  std::unique_ptr<ModelHarness> harness;
  CudaBackend* backend = nullptr;
};

Loaded Load(const std::string& name, bool enforce_eager, int steps_in_flight,
            int max_num_batched_tokens = 80) {
  Loaded loaded;
  ModelHarness::Options options;
  options.dtype = options.kv_cache_dtype = DType::kBF16;
  options.kv_cache_memory_bytes = 64 << 20;
  options.max_num_seqs = kNumSlots;
  options.max_num_batched_tokens = max_num_batched_tokens;
  options.max_model_len = kMaxModelLen;
  options.steps_in_flight = steps_in_flight;
  options.make_backend = [&]() -> std::unique_ptr<Backend> {
    CudaBackendOptions backend_options;
    backend_options.enforce_eager = enforce_eager;
    auto backend = *CudaBackend::Create(backend_options);
    loaded.backend = backend.get();
    return backend;
  };
  auto harness = ModelHarness::Create(
      absl::StrCat("tests/testdata/goldens/", name), options);
  EXPECT_TRUE(harness.ok()) << harness.status();
  if (harness.ok()) loaded.harness = *std::move(harness);
  return loaded;
}

// What came of a row, bit by bit.
using RowBits = std::vector<uint32_t>;

template <typename T>
void AddBits(absl::Span<const T> values, RowBits* bits) {
  bits->push_back(static_cast<uint32_t>(values.size()));
  for (const T& value : values) bits->push_back(std::bit_cast<uint32_t>(value));
}

RowBits BitsOf(const RowResult& result) {
  RowBits bits = {static_cast<uint32_t>(result.slot), result.non_finite,
                  result.all_masked};
  AddBits(result.tokens, &bits);
  AddBits(result.logprobs, &bits);
  AddBits(result.top_ids, &bits);
  AddBits(result.top_logprobs, &bits);
  AddBits(result.scored_logprobs, &bits);
  AddBits(result.scored_ranks, &bits);
  return bits;
}

struct Sequence {
  bool is_active = false;
  bool is_new = false;
  SlotParams params;
  std::vector<int32_t> tokens;
  int num_computed = 0;
  int num_prompt_tokens = 0;
  std::vector<int32_t> new_blocks;
  int num_blocks = 0;
};

// A history of steps: sequences come and go; prefills whole and in chunks,
// alone and beside decodes; drafts; scored prompts; every sampling parameter.
class History {
 public:
  History(const Loaded& loaded, uint64_t seed)
      : backend_(*loaded.backend),
        model_(*loaded.harness->model().model),
        vocab_size_(loaded.harness->vocab_size()),
        random_(seed),
        max_tokens_(loaded.harness->model().shape.max_num_tokens),
        max_logits_(loaded.harness->model().shape.max_logit_rows),
        sequences_(kNumSlots) {}

  // `load`: the part of the slots that take part.
  void Run(int num_steps, double load, std::vector<std::vector<RowBits>>* all) {
    for (int i = 0; i < num_steps && !testing::Test::HasFatalFailure(); ++i) {
      for (Sequence& sequence : sequences_) {
        if (!sequence.is_active && random_.Uniform() < 0.3 * load) {
          Start(sequence);
        }
      }
      Step(load, all);
    }
  }

 private:
  void Start(Sequence& sequence) {
    sequence = Sequence();
    sequence.is_active = sequence.is_new = true;
    if (random_.Below(2) == 0) {
      sequence.params = RandomSlotParams(random_, vocab_size_);
      sequence.params.num_logprobs = std::min(sequence.params.num_logprobs, 20);
      sequence.params.num_prompt_logprobs =
          std::min(sequence.params.num_prompt_logprobs, 20);
    } else {
      sequence.params.temperature = 0.0f;
      sequence.params.num_logprobs = 3;
    }
    const int count = random_.Between(1, 30);
    for (int i = 0; i < count; ++i) {
      sequence.tokens.push_back(random_.Below(vocab_size_));
    }
    sequence.num_prompt_tokens = count;
  }

  void Step(double load, std::vector<std::vector<RowBits>>* all) {
    std::vector<SlotUpdate> updates;
    std::vector<StepRow> rows;
    std::vector<int32_t> ids, scored;
    GraphKey key;
    for (int slot = 0; slot < kNumSlots; ++slot) {
      Sequence& sequence = sequences_[slot];
      if (!sequence.is_active || random_.Uniform() > load) continue;
      StepRow row;
      row.slot = slot;
      const int left =
          static_cast<int>(sequence.tokens.size()) - sequence.num_computed;
      row.num_tokens = random_.Below(3) == 0 ? random_.Between(1, left) : left;
      std::vector<int32_t> drafts;
      if (left == 1 && random_.Below(3) == 0) {
        row.num_drafts = random_.Between(1, 3);
        row.num_tokens += row.num_drafts;
        // Such models like to repeat themselves.
        drafts.assign(row.num_drafts, sequence.tokens.back());
      }
      const bool is_last = row.num_tokens >= left;
      row.num_logits = is_last ? 1 + row.num_drafts : 0;
      if (row.num_drafts == 0 && row.num_tokens > 2 && random_.Below(4) == 0) {
        row.num_scored = random_.Between(1, row.num_tokens - 1);
        row.num_logits += row.num_scored;
      }
      if (key.num_tokens + row.num_tokens > max_tokens_ ||
          key.num_logit_rows + row.num_logits > max_logits_) {
        continue;
      }
      const auto first = sequence.tokens.begin() + sequence.num_computed;
      ids.insert(ids.end(), first, first + row.num_tokens - row.num_drafts);
      ids.insert(ids.end(), drafts.begin(), drafts.end());
      for (int i = 0; i < row.num_scored; ++i) {
        scored.push_back(random_.Below(vocab_size_));
      }
      key.num_tokens += row.num_tokens;
      key.num_logit_rows += row.num_logits;
      rows.push_back(row);
    }
    key.num_rows = static_cast<int32_t>(rows.size());
    num_empty_steps_ += rows.empty();
    for (const StepRow& row : rows) {
      Sequence& sequence = sequences_[row.slot];
      SlotUpdate update;
      update.slot = row.slot;
      if (sequence.is_new) {
        update.params = &sequence.params;
        update.history = sequence.tokens;
        update.num_prompt_tokens = sequence.num_prompt_tokens;
        sequence.is_new = false;
      }
      sequence.new_blocks.clear();
      while (sequence.num_blocks * 16 <
             sequence.num_computed + row.num_tokens) {
        sequence.new_blocks.push_back(row.slot * (kMaxModelLen / 16) +
                                      sequence.num_blocks++);
      }
      update.append_blocks = sequence.new_blocks;
      updates.push_back(update);
    }
    StepPlan plan;
    plan.updates = updates;
    plan.rows = rows;
    plan.token_ids = ids;
    plan.scored_ids = scored;
    const auto step = backend_.BeginStep(plan);
    ASSERT_TRUE(step.ok()) << step.status();
    const absl::Status run = backend_.Run(
        **step, key, [&] { return model_.Forward(backend_, **step); });
    ASSERT_TRUE(run.ok()) << run;
    ASSERT_TRUE(backend_.EndStep(**step).ok());
    const auto results = backend_.Collect(**step);
    ASSERT_TRUE(results.ok()) << results.status();
    Update(rows, *results, &all->emplace_back());
  }

  void Update(const std::vector<StepRow>& rows,
              absl::Span<const RowResult> results, std::vector<RowBits>* bits) {
    size_t next = 0;
    for (const StepRow& row : rows) {
      Sequence& sequence = sequences_[row.slot];
      sequence.num_computed += row.num_tokens;
      if (row.num_logits == 0) continue;
      ASSERT_LT(next, results.size());
      const RowResult& result = results[next++];
      bits->push_back(BitsOf(result));
      if (result.tokens.empty()) continue;
      num_accepted_ += static_cast<int>(result.tokens.size()) - 1;
      sequence.num_computed -=
          1 + row.num_drafts - static_cast<int>(result.tokens.size());
      sequence.tokens.insert(sequence.tokens.end(), result.tokens.begin(),
                             result.tokens.end());
      if (result.all_masked || sequence.tokens.size() > 90 ||
          random_.Below(20) == 0) {
        sequence.is_active = false;
      }
    }
  }

 public:
  int num_accepted() const { return num_accepted_; }
  int num_empty_steps() const { return num_empty_steps_; }

 private:
  CudaBackend& backend_;
  Model& model_;
  const int vocab_size_;
  SimulationRandom random_;
  const int max_tokens_, max_logits_;
  std::vector<Sequence> sequences_;
  int num_accepted_ = 0;
  int num_empty_steps_ = 0;
};

enum class Mode : uint8_t { kEager, kOnFirstUse, kAhead, kCaptureFails };

constexpr int kNumSteps = 20;

std::vector<std::vector<RowBits>> RunHistory(const std::string& model,
                                             Mode mode) {
  std::vector<std::vector<RowBits>> all;
  const Loaded loaded = Load(model, mode == Mode::kEager, 1);
  if (loaded.harness == nullptr) return all;
  CudaBackend& backend = *loaded.backend;
  const int64_t num_allocations = backend.device().num_allocations();
  int num_ahead = 0;
  if (mode == Mode::kAhead) {
    while (loaded.harness->model().runner->PrepareAhead()) ++num_ahead;
    EXPECT_EQ(num_ahead, 5);  // 1, 2, 4, 8 and all 12.
    EXPECT_EQ(backend.graph_counts().num_captures, 5);
  }
  if (mode == Mode::kCaptureFails) cuda::FailCaptures(backend.device(), 1);
  History history(loaded, 7);
  history.Run(6, 0.25, &all);  // Few at a time,
  history.Run(9, 0.95, &all);  // then all slots,
  history.Run(5, 0.4, &all);   // and fewer again.
  const int num_empty = history.num_empty_steps();
  EXPECT_LT(num_empty, 3);
  const CudaGraphCounts& counts = backend.graph_counts();
  if (mode == Mode::kEager) {
    EXPECT_EQ(counts.num_captures + counts.num_replays, 0);
    EXPECT_EQ(counts.num_eager, kNumSteps);
    EXPECT_FALSE(loaded.harness->model().runner->PrepareAhead());
  } else if (mode == Mode::kCaptureFails) {
    EXPECT_TRUE(counts.is_disabled);
    EXPECT_EQ(counts.num_captures, 0);
  } else {
    EXPECT_FALSE(counts.is_disabled);
    EXPECT_EQ(counts.num_replays, kNumSteps - num_empty);
    EXPECT_EQ(counts.num_eager, num_empty);
    EXPECT_LT(counts.num_captures, counts.num_replays + num_ahead);
  }
  EXPECT_GT(history.num_accepted(), 0);
  EXPECT_EQ(backend.device().num_allocations(), num_allocations);
  return all;
}

class CudaGraphsTest : public testing::TestWithParam<const char*> {};

TEST_P(CudaGraphsTest, ReplayedStepsHaveTheBitsOfEagerOnes) {
  const auto expected = RunHistory(GetParam(), Mode::kEager);
  ASSERT_EQ(expected.size(), size_t{kNumSteps});
  std::vector<Mode> modes = {Mode::kAhead};
  if (GetParam() == std::string("qwen3")) {
    modes.insert(modes.end(), {Mode::kOnFirstUse, Mode::kCaptureFails});
  }
  for (const Mode mode : modes) {
    SCOPED_TRACE(static_cast<int>(mode));
    const auto found = RunHistory(GetParam(), mode);
    ASSERT_EQ(found.size(), expected.size());
    for (size_t i = 0; i < found.size(); ++i) {
      ASSERT_EQ(found[i], expected[i]) << "step " << i;
    }
  }
}

// Sliding windows give two planners; biases and norms of heads; long RoPE.
INSTANTIATE_TEST_SUITE_P(Families, CudaGraphsTest,
                         testing::Values("gemma3", "qwen3", "phi3_longrope"),
                         [](const auto& info) {
                           return std::string(info.param);
                         });

TEST(CudaGraphCacheTest, TheLeastRecentlyUsedGraphGoes) {
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
  constexpr int kNumKept = 128;
  for (int i = 0; i < kNumKept; ++i) EXPECT_TRUE(captures(i));
  EXPECT_FALSE(captures(0));
  EXPECT_TRUE(captures(kNumKept));  // In the place of 1.
  EXPECT_FALSE(captures(0));
  EXPECT_FALSE(captures(2));
  EXPECT_TRUE(captures(1));  // In the place of 3.
  EXPECT_TRUE(captures(3));
  EXPECT_FALSE(captures(0));
  EXPECT_EQ(counts.num_replays, kNumKept + 7);
  EXPECT_EQ(counts.num_eager, 0);
}

// ---------------------------------------------------------------- overlap

Request MakeRequest(RequestId id, int vocab_size) {
  SimulationRandom random(id);
  Request request;
  request.id = id;
  for (int i = 0; i < 3 + static_cast<int>(id); ++i) {
    request.prompt_token_ids.push_back(random.Below(vocab_size));
  }
  SamplingParams& sampling = request.sampling;
  sampling.max_tokens = 3 + 5 * static_cast<int>(id);
  sampling.ignore_eos = true;
  sampling.num_logprobs = 4;
  sampling.seed = id;
  sampling.temperature = id % 2 == 0 ? 0.0f : 0.9f;
  sampling.top_p = id == 3 ? 0.8f : 1.0f;
  sampling.repetition_penalty = id == 4 ? 1.3f : 1.0f;
  if (id == 5) {
    sampling.dry_multiplier = 2.0f;
    sampling.dry_allowed_length = 1;
  }
  // More ids than a few thousand: lists of their own length.
  if (id == 1) {
    for (int i = 0; i < 30000; ++i) {
      sampling.logit_bias.push_back({i % vocab_size, 1e-4f * (i % 7)});
    }
  }
  return request;
}

EngineOptions OptionsOf(const Loaded& loaded, int steps_in_flight) {
  const LoadedModel& model = loaded.harness->model();
  EngineOptions options;
  options.vocab_size = model.config.vocab_size;
  options.max_model_len = model.shape.max_model_len;
  options.max_num_seqs = model.shape.max_num_seqs;
  options.max_num_batched_tokens = model.shape.max_num_tokens;
  options.num_blocks = model.memory.num_blocks;
  options.max_list_entries = model.memory.max_list_entries;
  options.steps_in_flight = steps_in_flight;
  options.check_integrity = true;
  return options;
}

using Outputs = std::map<RequestId, std::vector<uint32_t>>;

// Requests 1 to 6, the last three later; their tokens and the bits of the
// log-probabilities.
Outputs RunEngine(bool enforce_eager, int steps_in_flight) {
  Outputs outputs;
  // All tokens of a step fit one kernel, so that bits do not depend on company.
  const Loaded loaded = Load("qwen3", enforce_eager, steps_in_flight, 64);
  if (loaded.harness == nullptr) return outputs;
  const EngineOptions options = OptionsOf(loaded, steps_in_flight);
  FakeClock clock;
  auto engine =
      Engine::Create(options, loaded.harness->model().runner.get(), &clock);
  EXPECT_TRUE(engine.ok()) << engine.status();
  if (!engine.ok()) return outputs;
  std::vector<OutputEvent> events;
  RequestId next = 1;
  for (int step = 0; next <= 6 || (*engine)->HasWork(); ++step) {
    while (next <= 6 && step >= (next <= 3 ? 0 : 4 * static_cast<int>(next))) {
      const absl::Status status =
          (*engine)->AddRequest(MakeRequest(next++, options.vocab_size));
      EXPECT_TRUE(status.ok()) << status;
    }
    if ((*engine)->HasWork()) (*engine)->Step(&events);
  }
  for (const OutputEvent& event : events) {
    EXPECT_TRUE(event.error.ok()) << event.error;
    for (const TokenOutput& token : event.tokens) {
      std::vector<uint32_t>& bits = outputs[event.request_id];
      bits.push_back(token.token_id);
      bits.push_back(std::bit_cast<uint32_t>(token.logprob));
      for (const TopLogprob& top : token.top_logprobs) {
        bits.push_back(top.token_id);
        bits.push_back(std::bit_cast<uint32_t>(top.logprob));
      }
    }
  }
  return outputs;
}

TEST(CudaOverlapTest, StepsInFlightHaveTheBitsOfOneAfterTheOther) {
  const Outputs expected = RunEngine(/*enforce_eager=*/true, 1);
  ASSERT_EQ(expected.size(), 6u);
  for (const auto& [id, bits] : expected) {
    EXPECT_EQ(bits.size(), (3 + 5 * id) * (2 + 2 * 4));
  }
  for (const bool enforce_eager : {true, false}) {
    for (const int steps_in_flight : {1, 2, 3}) {
      SCOPED_TRACE(absl::StrCat(enforce_eager, " ", steps_in_flight));
      EXPECT_EQ(RunEngine(enforce_eager, steps_in_flight), expected);
    }
  }
}

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
    EXPECT_NE(event.error.message().find("illegal address"),
              absl::string_view::npos)
        << event.error;
    num_last[event.request_id] += event.is_last;
  }
  EXPECT_EQ(num_last,
            (std::map<RequestId, int>{{2, 1}, {3, 1}, {4, 1}, {5, 1}, {6, 1}}));
  EXPECT_EQ(engine->Health().code(), absl::StatusCode::kUnavailable);
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

TEST(CudaListsTest, MoreIdsThanTheDeviceTakesAreRefused) {
  const Loaded loaded = Load("qwen3", false, 2, 64);
  ASSERT_NE(loaded.harness, nullptr);
  const EngineOptions options = OptionsOf(loaded, 2);
  EXPECT_EQ(options.max_list_entries, 1 << 17);
  Request request = MakeRequest(2, options.vocab_size);
  request.sampling.logit_bias.assign((1 << 16) - 8, {1, 0.5f});
  EXPECT_TRUE(ValidateRequest(options, request).ok());
  request.sampling.logit_bias.assign((1 << 16) + 1, {1, 0.5f});
  const absl::Status status = ValidateRequest(options, request);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_NE(status.message().find("131074 token ids"), absl::string_view::npos)
      << status;
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
