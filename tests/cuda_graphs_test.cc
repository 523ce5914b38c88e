// Steps on a GPU, or on the emulation of one: captured or launched kernel by
// kernel, prepared ahead or not, overlapped or not, they have the same bits.
// tests/gpu runs the same on a real GPU.
#include <bit>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/base/clock.h"
#include "engine/engine.h"
#include "gtest/gtest.h"
#include "kernels/cuda/cuda_backend.h"
#include "tests/cuda_history.h"

namespace quire {
namespace {

enum class Mode : uint8_t { kEager, kOnFirstUse, kAhead };

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
  CudaHistory history(loaded, 7);
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
    modes.push_back(Mode::kOnFirstUse);
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

// ---------------------------------------------------------------- overlap

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
      if (enforce_eager && steps_in_flight == 1) continue;
      SCOPED_TRACE(absl::StrCat(enforce_eager, " ", steps_in_flight));
      EXPECT_EQ(RunEngine(enforce_eager, steps_in_flight), expected);
    }
  }
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

}  // namespace
}  // namespace quire
