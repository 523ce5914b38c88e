#include "benchmarks/model_rows.h"

#include <memory>
#include <string>
#include <utility>

#include "gtest/gtest.h"
#include "kernels/backend_factory.h"

namespace quire {
namespace {

class ModelRowsTest : public testing::Test {
 protected:
  ModelRowsTest() {
    LoadOptions options;
    options.max_num_seqs = 3;
    options.max_num_batched_tokens = 16;  // Prompts take several steps.
    options.max_model_len = 64;
    BackendOptions backend_options;
    backend_options.device = "cpu";
    backend_options.num_threads = 1;
    std::string fallback_reason;
    auto backend = CreateBackend(backend_options, &fallback_reason);
    model_ = *LoadModel("models/demo-draft", options, *std::move(backend));
  }

  LoadedModel model_;
};

TEST(ModelRowTest, Names) {
  EXPECT_EQ((ModelRow{512, 0, 0, 1}).Name(), "pp512");
  EXPECT_EQ((ModelRow{0, 128, 0, 1}).Name(), "tg128");
  EXPECT_EQ((ModelRow{512, 128, 1024, 1}).Name(), "pp512+tg128 @ d1024");
  EXPECT_EQ((ModelRow{0, 32, 128, 16}).Name(), "tg32 x 16 @ d128");
}

TEST_F(ModelRowsTest, MeasuresEveryKindOfRow) {
  auto driver = ModelDriver::Create(&model_, 3, 60);
  ASSERT_TRUE(driver.ok()) << driver.status();
  for (const ModelRow& row :
       {ModelRow{40, 0, 0, 1}, ModelRow{0, 8, 0, 1}, ModelRow{20, 5, 0, 1},
        ModelRow{20, 5, 30, 1}, ModelRow{0, 6, 20, 3}, ModelRow{0, 1, 0, 2}}) {
    const auto result =
        MeasureModelRow(model_, &*driver, row, /*repetitions=*/2, nullptr);
    ASSERT_TRUE(result.ok()) << row.Name() << ": " << result.status();
    EXPECT_EQ(result->seconds.size(), 2u);
    EXPECT_GT(result->seconds[0], 0) << row.Name();
    EXPECT_TRUE(result->percent_of_read.empty());
  }
}

// Cancelled in the second repetition, which is not counted then; at once
// afterwards.
TEST_F(ModelRowsTest, CancellationKeepsWholeRepetitions) {
  std::atomic<bool> is_cancelled{false};
  auto driver = ModelDriver::Create(&model_, 1, 60, nullptr, &is_cancelled);
  ASSERT_TRUE(driver.ok()) << driver.status();
  int num_probes = 0;
  const auto probe = [&]() -> absl::StatusOr<ModelCeilings> {
    is_cancelled = ++num_probes == 2;
    return ModelCeilings{1e9, 0, 1e12};
  };
  const ModelRow row = {20, 5, 0, 1};
  const auto result = MeasureModelRow(model_, &*driver, row, 3, probe);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->seconds.size(), 1u);
  EXPECT_EQ(result->percent_of_read.size(), 1u);
  EXPECT_EQ(MeasureModelRow(model_, &*driver, row, 3, probe).status().code(),
            absl::StatusCode::kCancelled);
  is_cancelled = false;
  EXPECT_TRUE(MeasureModelRow(model_, &*driver, row, 1, nullptr).ok());
}

TEST_F(ModelRowsTest, WhatDoesNotFitIsAnError) {
  for (const auto& [num_seqs, max_len] :
       {std::pair(4, 60), std::pair(3, 65), std::pair(3, 100000)}) {
    EXPECT_EQ(ModelDriver::Create(&model_, num_seqs, max_len).status().code(),
              absl::StatusCode::kResourceExhausted);
  }
}

}  // namespace
}  // namespace quire
