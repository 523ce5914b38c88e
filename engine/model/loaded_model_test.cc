#include "engine/model/loaded_model.h"

#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace quire {
namespace {

using testing::HasSubstr;

// 4 layers * (K, V) * 2 heads * 64 = 1024 elements per token.
ModelConfig SmallConfig() {
  ModelConfig config;
  config.max_position_embeddings = 4096;
  LayerConfig layer;
  layer.num_heads = 4;
  layer.num_kv_heads = 2;
  layer.head_dim = 64;
  config.layers.assign(4, layer);
  return config;
}

constexpr int64_t kBytesPerToken = 2048;  // In bf16.

TEST(PlanKvMemoryTest, BytesPerToken) {
  EXPECT_EQ(KvBytesPerToken(SmallConfig(), DType::kBF16), kBytesPerToken);
  EXPECT_EQ(KvBytesPerToken(SmallConfig(), DType::kF32), 2 * kBytesPerToken);
}

TEST(PlanKvMemoryTest, TakesNoMoreThanTheSequencesNeed) {
  LoadOptions options;
  options.max_num_seqs = 3;
  const auto plan = PlanKvMemory(SmallConfig(), options, int64_t{1} << 40);
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_EQ(plan->max_model_len, 4096);
  EXPECT_EQ(plan->kv_bytes, 3 * 4096 * kBytesPerToken);
  EXPECT_EQ(plan->warning, "");
}

TEST(PlanKvMemoryTest, TakesAQuarterOfWhatIsAvailable) {
  const int64_t available = 40 * 4096 * kBytesPerToken;
  const auto plan = PlanKvMemory(SmallConfig(), LoadOptions(), available);
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_EQ(plan->max_model_len, 4096);
  EXPECT_EQ(plan->kv_bytes, available / 4);
}

TEST(PlanKvMemoryTest, LowersTheModelsOwnLengthWithAWarning) {
  const auto automatic =
      PlanKvMemory(SmallConfig(), LoadOptions(), 4 * 1000 * kBytesPerToken);
  ASSERT_TRUE(automatic.ok()) << automatic.status();
  EXPECT_EQ(automatic->max_model_len, 992);  // Whole blocks of 16.
  EXPECT_THAT(automatic->warning, HasSubstr("from 4096 to 992"));

  LoadOptions options;
  options.kv_cache_memory_bytes = 100 * kBytesPerToken;
  const auto given = PlanKvMemory(SmallConfig(), options, int64_t{1} << 40);
  ASSERT_TRUE(given.ok()) << given.status();
  EXPECT_EQ(given->max_model_len, 96);
  EXPECT_EQ(given->kv_bytes, 100 * kBytesPerToken);
}

TEST(PlanKvMemoryTest, ALengthThatWasAskedForIsKept) {
  LoadOptions options;
  options.max_model_len = 1000;
  // One sequence takes more than a quarter.
  const auto plan = PlanKvMemory(SmallConfig(), options, 1100 * kBytesPerToken);
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_EQ(plan->max_model_len, 1000);
  EXPECT_EQ(plan->kv_bytes, 1008 * kBytesPerToken);

  const auto too_long =
      PlanKvMemory(SmallConfig(), options, 900 * kBytesPerToken);
  EXPECT_EQ(too_long.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(too_long.status().message()), HasSubstr("1000"));

  options.kv_cache_memory_bytes = 500 * kBytesPerToken;
  EXPECT_EQ(
      PlanKvMemory(SmallConfig(), options, int64_t{1} << 40).status().code(),
      absl::StatusCode::kResourceExhausted);
}

TEST(PlanKvMemoryTest, LongerThanTheModelKnowsWarns) {
  LoadOptions options;
  options.max_model_len = 8192;
  const auto plan = PlanKvMemory(SmallConfig(), options, int64_t{1} << 40);
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_EQ(plan->max_model_len, 8192);
  EXPECT_THAT(plan->warning, HasSubstr("max_position_embeddings"));
}

TEST(PlanKvMemoryTest, MoreThanThereIsIsRefusedWithTheFigures) {
  LoadOptions options;
  options.kv_cache_memory_bytes = 8000 * kBytesPerToken;
  EXPECT_TRUE(
      PlanKvMemory(SmallConfig(), options, options.kv_cache_memory_bytes).ok());
  const auto plan =
      PlanKvMemory(SmallConfig(), options, options.kv_cache_memory_bytes - 1);
  EXPECT_EQ(plan.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(plan.status().message()), HasSubstr("16384000"));
  EXPECT_THAT(std::string(plan.status().message()), HasSubstr("16383999"));
}

TEST(PlanKvMemoryTest, NoRoomForABlock) {
  EXPECT_EQ(PlanKvMemory(SmallConfig(), LoadOptions(), 1000).status().code(),
            absl::StatusCode::kResourceExhausted);
}

TEST(PlanKvMemoryTest, OptionsOutOfRange) {
  LoadOptions options;
  options.max_num_seqs = 0;
  EXPECT_EQ(PlanKvMemory(SmallConfig(), options, 1 << 30).status().code(),
            absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace quire
