#include "engine/engine_options.h"

#include <functional>
#include <string>

#include "absl/strings/match.h"
#include "gtest/gtest.h"

namespace quire {
namespace {

EngineOptions ValidOptions() {
  EngineOptions options;
  options.num_blocks = 10;
  options.max_model_len = 100;
  options.vocab_size = 1000;
  options.eos_token_ids = {0, 999};
  return options;
}

TEST(ValidateEngineOptionsTest, AcceptsValidOptions) {
  EXPECT_TRUE(ValidateEngineOptions(ValidOptions()).ok());
}

TEST(ValidateEngineOptionsTest, NamesTheOptionAndItsValue) {
  const struct {
    std::string name;
    std::string value;
    std::function<void(EngineOptions*)> spoil;
  } cases[] = {
      {"block_size", "0", [](EngineOptions* o) { o->block_size = 0; }},
      {"block_size", "257", [](EngineOptions* o) { o->block_size = 257; }},
      {"num_blocks", "0", [](EngineOptions* o) { o->num_blocks = 0; }},
      {"max_model_len", "1", [](EngineOptions* o) { o->max_model_len = 1; }},
      {"vocab_size", "0", [](EngineOptions* o) { o->vocab_size = 0; }},
      {"max_num_seqs", "0", [](EngineOptions* o) { o->max_num_seqs = 0; }},
      {"max_num_batched_tokens", "63",
       [](EngineOptions* o) { o->max_num_batched_tokens = 63; }},
      {"long_prefill_token_threshold", "-1",
       [](EngineOptions* o) { o->long_prefill_token_threshold = -1; }},
      {"max_num_queued_reqs", "0",
       [](EngineOptions* o) { o->max_num_queued_reqs = 0; }},
      {"max_num_queued_tokens", "0",
       [](EngineOptions* o) { o->max_num_queued_tokens = 0; }},
      {"steps_in_flight", "0",
       [](EngineOptions* o) { o->steps_in_flight = 0; }},
      {"eos_token_ids", "1000",
       [](EngineOptions* o) { o->eos_token_ids = {1000}; }},
      {"eos_token_ids", "-1",
       [](EngineOptions* o) { o->eos_token_ids = {-1}; }},
  };
  for (const auto& c : cases) {
    EngineOptions options = ValidOptions();
    c.spoil(&options);
    const absl::Status status = ValidateEngineOptions(options);
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << c.name;
    EXPECT_TRUE(absl::StrContains(status.message(), c.name)) << status;
    EXPECT_TRUE(absl::StrContains(status.message(), c.value)) << status;
  }
}

}  // namespace
}  // namespace quire
