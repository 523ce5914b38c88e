// Embedding models on several ranks and stages: the same bits as on one, with
// prompts in chunks and side by side.
#include <stdlib.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/base/clock.h"
#include "engine/base/random.h"
#include "engine/engine.h"
#include "gtest/gtest.h"
#include "tests/random_family.h"
#include "tests/thread_ranks.h"

namespace quire {
namespace {

namespace fs = std::filesystem;

constexpr int kNumRequests = 5;
constexpr int kNumTokensPerStep = 24;  // Prompts come in chunks.

struct Checkpoint {
  const char* name;
  Pooling pooling;
};

class RankEmbeddingsTest : public testing::TestWithParam<Checkpoint> {
 protected:
  RankEmbeddingsTest() {
    std::string path = testing::TempDir() + "/rank_embeddings_XXXXXX";
    EXPECT_NE(mkdtemp(path.data()), nullptr);
    directory_ = path;
    const fs::path golden =
        fs::path("tests/testdata/goldens") / GetParam().name;
    const absl::Status status = WriteRandomFamily(
        golden.string(), RandomFamilyShape(), /*seed=*/3, path);
    EXPECT_TRUE(status.ok()) << status;
    fs::create_directory(directory_ / "1_Pooling");
    for (const char* file : {"modules.json", "1_Pooling/config.json"}) {
      std::ofstream(directory_ / file) << Text(golden / file);
    }
  }
  ~RankEmbeddingsTest() override { fs::remove_all(directory_); }

  static std::string Text(const fs::path& path) {
    std::ifstream file(path);
    std::string text(std::istreambuf_iterator<char>(file), {});
    // The model is wider than the golden's.
    const std::string dimension = "word_embedding_dimension\": 64";
    if (const size_t at = text.find(dimension); at != std::string::npos) {
      text.replace(at, dimension.size(), "word_embedding_dimension\": 128");
    }
    return text;
  }

  // The vectors of the requests, in their order.
  std::vector<std::vector<float>> Embed(int tensor_size, int pipeline_size) {
    LoadOptions load;
    load.dtype = DType::kF32;
    load.kv_cache_dtype = DType::kF32;
    load.max_num_seqs = 8;
    load.max_num_batched_tokens = kNumTokensPerStep;
    load.max_model_len = 160;
    load.num_threads = 1;
    ThreadRanks::Options group_options;
    group_options.tensor_size = tensor_size;
    group_options.pipeline_size = pipeline_size;
    auto group = ThreadRanks::Create(directory_.string(), load, group_options);
    EXPECT_TRUE(group.ok()) << group.status();
    if (!group.ok()) return {};
    const LoadedModel& loaded = (*group)->rank(0);
    EXPECT_TRUE(loaded.embedding.has_value());
    if (!loaded.embedding.has_value()) return {};
    EXPECT_EQ(loaded.embedding->pooling, GetParam().pooling);
    EngineOptions options;
    options.vocab_size = loaded.config.vocab_size;
    options.max_model_len = loaded.shape.max_model_len;
    options.max_num_seqs = loaded.shape.max_num_seqs;
    options.max_num_batched_tokens = kNumTokensPerStep;
    options.num_blocks = loaded.memory.num_blocks;
    options.steps_in_flight = options.num_micro_batches =
        (*group)->steps_in_flight();
    options.enable_generate = false;
    options.enable_embed = true;
    options.embeds_every_token = loaded.embedding->pooling == Pooling::kMean;
    options.check_integrity = true;
    FakeClock clock;
    auto engine = Engine::Create(options, group->get(), &clock);
    EXPECT_TRUE(engine.ok()) << engine.status();
    if (!engine.ok()) return {};
    for (int i = 0; i < kNumRequests; ++i) {
      Request request;
      request.id = 1 + i;
      request.kind = RequestKind::kEmbed;
      SimulationRandom random(i);
      for (int k = 0; k < 1 + 17 * i; ++k) {
        request.prompt_token_ids.push_back(random.Below(options.vocab_size));
      }
      const absl::Status status = (*engine)->AddRequest(std::move(request));
      EXPECT_TRUE(status.ok()) << status;
    }
    std::vector<OutputEvent> events;
    while ((*engine)->HasWork()) (*engine)->Step(&events);
    std::vector<std::vector<float>> vectors(kNumRequests);
    for (OutputEvent& event : events) {
      EXPECT_TRUE(event.error.ok()) << event.error;
      if (!event.embedding.empty()) {
        vectors[event.request_id - 1] = std::move(event.embedding);
      }
    }
    return vectors;
  }

  fs::path directory_;
};

TEST_P(RankEmbeddingsTest, TheSameBitsAsOnOneRank) {
  const std::vector<std::vector<float>> expected = Embed(1, 1);
  ASSERT_EQ(expected.size(), size_t{kNumRequests});
  for (const std::vector<float>& vector : expected) {
    ASSERT_EQ(vector.size(), 128u);
  }
  // They are no constant.
  EXPECT_NE(expected[1], expected[2]);
  for (const auto& [tensor_size, pipeline_size] :
       {std::pair(2, 1), std::pair(4, 1), std::pair(1, 2), std::pair(2, 2)}) {
    SCOPED_TRACE(absl::StrCat(tensor_size, " x ", pipeline_size));
    const std::vector<std::vector<float>> found =
        Embed(tensor_size, pipeline_size);
    ASSERT_EQ(found.size(), expected.size());
    for (size_t i = 0; i < expected.size(); ++i) {
      ASSERT_EQ(found[i].size(), expected[i].size());
      EXPECT_EQ(std::memcmp(found[i].data(), expected[i].data(),
                            expected[i].size() * sizeof(float)),
                0)
          << "request " << i;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(
    Checkpoints, RankEmbeddingsTest,
    testing::Values(Checkpoint{"embed_qwen3", Pooling::kLast},
                    Checkpoint{"embed_mean", Pooling::kMean}),
    [](const auto& info) { return std::string(info.param.name); });

}  // namespace
}  // namespace quire
