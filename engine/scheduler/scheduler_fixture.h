// A scheduler with its cache, for tests of what it plans.
#ifndef QUIRE_ENGINE_SCHEDULER_SCHEDULER_FIXTURE_H_
#define QUIRE_ENGINE_SCHEDULER_SCHEDULER_FIXTURE_H_

#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "engine/scheduler/scheduler.h"
#include "gtest/gtest.h"

namespace quire {

// Plans are looked at; results are made up: token 5 for every row.
class SchedulerTest : public testing::Test {
 protected:
  SchedulerTest() {
    options_.block_size = 4;
    options_.num_blocks = 64;
    options_.max_model_len = 200;
    options_.vocab_size = 100;
    options_.max_num_seqs = 4;
    options_.max_num_batched_tokens = 16;
    options_.eos_token_ids = {1};
  }

  void MakeScheduler() {
    cache_ = std::make_unique<KvCacheManager>(
        options_.num_blocks, options_.block_size,
        options_.enable_prefix_caching, 1);
    scheduler_ = std::make_unique<Scheduler>(options_, cache_.get());
  }
  // Prompts of different requests share no block.
  void Add(RequestId id, int num_prompt_tokens, int max_tokens = 50, int n = 1,
           int priority = 0, int num_prompt_logprobs = -1) {
    Request request;
    request.id = id;
    request.n = n;
    request.prompt_token_ids.assign(num_prompt_tokens,
                                    static_cast<int32_t>(10 + id));
    request.sampling.max_tokens = max_tokens;
    request.sampling.num_prompt_logprobs = num_prompt_logprobs;
    request.priority = priority;
    scheduler_->AddRequest(std::move(request), 0);
  }
  const SchedulerOutput& Plan() {
    scheduler_->Schedule(now_, &output_);
    plans_.push_back(output_);
    for (const SlotStart& start : output_.slot_starts) {
      id_of_slot_[start.slot] = start.history[0] - 10;
    }
    CheckIntegrity();
    return output_;
  }
  void Finish(int32_t token = 5) {
    StepResult result;
    result.step_id = plans_.front().step_id;
    for (const ScheduledRow& row : plans_.front().rows) {
      if (!row.has_result()) continue;
      SampledRow sampled;
      sampled.slot = row.slot;
      sampled.scored.resize(row.num_scored);
      if (row.needs_token) sampled.tokens.push_back({token, 0, {}});
      result.rows.push_back(sampled);
    }
    plans_.erase(plans_.begin());
    ASSERT_TRUE(scheduler_->Update(std::move(result), now_, &events_).ok());
    CheckIntegrity();
  }
  void PlanAndFinish() {
    Plan();
    Finish();
  }
  // Draws token 5 for every row of the plan but that of request 1, which has
  // `fault` instead.
  void UpdateWithoutTokenOfFirst(bool SampledRow::*fault) {
    StepResult result;
    result.step_id = output_.step_id;
    for (const ScheduledRow& row : output_.rows) {
      SampledRow sampled;
      sampled.slot = row.slot;
      sampled.*fault = id_of_slot_[row.slot] == 1;
      if (!(sampled.*fault)) sampled.tokens.push_back({5, 0, {}});
      result.rows.push_back(sampled);
    }
    ASSERT_TRUE(scheduler_->Update(std::move(result), now_, &events_).ok());
    CheckIntegrity();
  }

  void CheckIntegrity() {
    const absl::Status status = scheduler_->CheckIntegrity();
    ASSERT_TRUE(status.ok()) << status;
  }
  // Tokens by request in the last plan.
  std::map<int, int> TokensByRequest() {
    std::map<int, int> tokens;
    for (const ScheduledRow& row : output_.rows) {
      tokens[id_of_slot_[row.slot]] += row.num_tokens;
    }
    return tokens;
  }
  using Shares = std::map<int, int>;

  EngineOptions options_;
  absl::Time now_;
  std::unique_ptr<KvCacheManager> cache_;
  std::unique_ptr<Scheduler> scheduler_;
  SchedulerOutput output_;
  std::vector<SchedulerOutput> plans_;  // In flight.
  std::map<int, int> id_of_slot_;
  std::vector<OutputEvent> events_;
};

}  // namespace quire

#endif  // QUIRE_ENGINE_SCHEDULER_SCHEDULER_FIXTURE_H_
