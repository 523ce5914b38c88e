// What the ranks of a tensor group send each other in a step, counted: greedy
// rows and draws without filters cost a few entries for each rank, other rows
// the whole logits.
#include <stdlib.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/base/clock.h"
#include "engine/engine.h"
#include "gtest/gtest.h"
#include "tests/random_family.h"
#include "tests/thread_ranks.h"

namespace quire {
namespace {

namespace fs = std::filesystem;

constexpr int kNumRanks = 4;
constexpr int kVocabSize = 4096;
constexpr int kNumRows = 3;  // Sequences that decode side by side.

// Of one rank, since the last Clear.
struct Traffic {
  std::atomic<int64_t> gathered_bytes{0};  // That this rank gives.
  std::atomic<int64_t> summed_bytes{0};
  std::atomic<int64_t> other_bytes{0};
  void Clear() { gathered_bytes = summed_bytes = other_bytes = 0; }
};

class CountingCommunicator : public Communicator {
 public:
  CountingCommunicator(Communicator* inner, Traffic* traffic)
      : inner_(*inner), traffic_(*traffic) {}

  int rank() const override { return inner_.rank(); }
  int size() const override { return inner_.size(); }
  std::string Description() const override { return inner_.Description(); }
  absl::Status AllReduceSum(TensorView data, DeviceStream stream) override {
    traffic_.summed_bytes += data.num_bytes();
    return inner_.AllReduceSum(data, stream);
  }
  absl::Status AllGather(TensorView from, TensorView to,
                         DeviceStream stream) override {
    traffic_.gathered_bytes += from.num_bytes();
    return inner_.AllGather(from, to, stream);
  }
  absl::Status ReduceScatterSum(TensorView from, TensorView to,
                                DeviceStream stream) override {
    traffic_.other_bytes += from.num_bytes();
    return inner_.ReduceScatterSum(from, to, stream);
  }
  absl::Status Broadcast(TensorView data, int root,
                         DeviceStream stream) override {
    traffic_.other_bytes += data.num_bytes();
    return inner_.Broadcast(data, root, stream);
  }
  absl::Status Send(TensorView data, int peer, DeviceStream stream) override {
    traffic_.other_bytes += data.num_bytes();
    return inner_.Send(data, peer, stream);
  }
  absl::Status Receive(TensorView data, int peer,
                       DeviceStream stream) override {
    return inner_.Receive(data, peer, stream);
  }
  absl::Status Barrier() override { return inner_.Barrier(); }
  void Abort() override { inner_.Abort(); }

 private:
  Communicator& inner_;
  Traffic& traffic_;
};

// What a rank gives in a step that decodes kNumRows sequences with `sampling`;
// the most of all steps and ranks.
struct StepTraffic {
  int64_t gathered = 0, summed = 0, other = 0;
};

class RankTrafficTest : public testing::Test {
 protected:
  RankTrafficTest() {
    std::string path = testing::TempDir() + "/rank_traffic_XXXXXX";
    EXPECT_NE(mkdtemp(path.data()), nullptr);
    directory_ = path;
    RandomFamilyShape shape;
    shape.vocab_size = kVocabSize;
    shape.num_layers = kNumLayers;
    shape.hidden_size = kHiddenSize;
    const absl::Status status = WriteRandomFamily(
        "tests/testdata/goldens/llama", shape, /*seed=*/5, path);
    EXPECT_TRUE(status.ok()) << status;
    LoadOptions load;
    load.dtype = DType::kF32;
    load.kv_cache_dtype = DType::kF32;
    load.max_num_seqs = kNumRows;
    load.max_num_batched_tokens = 64;
    load.max_model_len = 64;
    load.num_threads = 1;
    ThreadRanks::Options options;
    options.tensor_size = kNumRanks;
    options.wrap_tensor = [this](Communicator* inner) {
      return std::make_unique<CountingCommunicator>(inner,
                                                    &traffic_[inner->rank()]);
    };
    auto group = ThreadRanks::Create(path, load, options);
    EXPECT_TRUE(group.ok()) << group.status();
    if (group.ok()) group_ = *std::move(group);
  }
  ~RankTrafficTest() override { fs::remove_all(directory_); }

  StepTraffic Decode(const SamplingParams& sampling) {
    StepTraffic most;
    EngineOptions options;
    const LoadedModel& loaded = group_->rank(0);
    options.vocab_size = kVocabSize;
    options.max_model_len = loaded.shape.max_model_len;
    options.max_num_seqs = kNumRows;
    options.max_num_batched_tokens = loaded.shape.max_num_tokens;
    options.num_blocks = loaded.memory.num_blocks;
    options.steps_in_flight = group_->steps_in_flight();
    FakeClock clock;
    auto engine = Engine::Create(options, group_.get(), &clock);
    EXPECT_TRUE(engine.ok()) << engine.status();
    if (!engine.ok()) return most;
    for (int i = 0; i < kNumRows; ++i) {
      Request request;
      request.id = 1 + i;
      request.prompt_token_ids = {7 + i, 8, 9};
      request.sampling = sampling;
      request.sampling.max_tokens = 8;
      request.sampling.ignore_eos = true;
      request.sampling.seed = i;
      const absl::Status status = (*engine)->AddRequest(std::move(request));
      EXPECT_TRUE(status.ok()) << status;
    }
    std::vector<OutputEvent> events;
    (*engine)->Step(&events);  // The prompts.
    while ((*engine)->HasWork()) {
      for (Traffic& traffic : traffic_) traffic.Clear();
      (*engine)->Step(&events);
      for (const Traffic& traffic : traffic_) {
        most.gathered =
            std::max<int64_t>(most.gathered, traffic.gathered_bytes);
        most.summed = std::max<int64_t>(most.summed, traffic.summed_bytes);
        most.other = std::max<int64_t>(most.other, traffic.other_bytes);
      }
    }
    for (const OutputEvent& event : events) {
      EXPECT_TRUE(event.error.ok()) << event.error;
    }
    return most;
  }

  static constexpr int kNumLayers = 2;
  static constexpr int kHiddenSize = 128;
  // A rank's slice of the logits of the rows.
  static constexpr int64_t kSliceBytes =
      int64_t{kNumRows} * kVocabSize / kNumRanks * sizeof(float);

  fs::path directory_;
  Traffic traffic_[kNumRanks];
  std::unique_ptr<ThreadRanks> group_;
};

TEST_F(RankTrafficTest, FewEntriesOfEachSliceWhereTheyDecide) {
  ASSERT_NE(group_, nullptr);
  std::vector<std::pair<std::string, SamplingParams>> draws(5);
  draws[0].first = "greedy";
  draws[0].second.temperature = 0;
  draws[1].first = "unfiltered";
  draws[1].second.temperature = 1;
  draws[2].first = "with log-probabilities";
  draws[2].second.temperature = 1;
  draws[2].second.num_logprobs = 5;
  draws[3].first = "greedy with penalties";
  draws[3].second.temperature = 0;
  draws[3].second.repetition_penalty = 1.2f;
  draws[3].second.presence_penalty = 0.3f;
  draws[4].first = "unfiltered with a bias";
  draws[4].second.temperature = 0.7f;
  draws[4].second.logit_bias = {{3, 2.5f}, {kVocabSize - 1, 2.0f}};
  for (const auto& [name, sampling] : draws) {
    SCOPED_TRACE(name);
    const StepTraffic most = Decode(sampling);
    // Two numbers for a row, or six and two for each alternative.
    const int num_logprobs = sampling.num_logprobs;
    EXPECT_EQ(most.gathered,
              kNumRows * (num_logprobs < 0 ? 2 : 6 + 2 * num_logprobs) * 4);
    // The sums of attention and MLP, and no logits in their guise.
    EXPECT_EQ(most.summed, kNumRows * kNumLayers * 2 * kHiddenSize * 4);
    EXPECT_EQ(most.other, 0);
  }
}

// The counter sees what is sent where whole rows are needed.
TEST_F(RankTrafficTest, WholeRowsWhereAFilterNeedsThem) {
  ASSERT_NE(group_, nullptr);
  SamplingParams sampling;
  sampling.temperature = 1;
  sampling.top_p = 0.9f;
  const StepTraffic most = Decode(sampling);
  EXPECT_GE(most.gathered, kSliceBytes);
  EXPECT_LE(most.gathered, kSliceBytes + kSliceBytes / 8);
  EXPECT_EQ(most.summed, kNumRows * kNumLayers * 2 * kHiddenSize * 4);
}

}  // namespace
}  // namespace quire
