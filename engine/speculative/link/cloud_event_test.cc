#include "engine/speculative/link/cloud_event.h"

#include <cstdint>
#include <functional>
#include <iterator>

#include "gtest/gtest.h"

namespace quire {
namespace {

TEST(CloudEventTest, WhatCannotBeIsNotBelieved) {
  Request request;
  request.prompt_token_ids = {1, 2, 3};
  request.sampling.max_tokens = 4;
  request.sampling.num_logprobs = 1;
  request.sampling.num_prompt_logprobs = 0;
  OutputEvent event;
  event.tokens.resize(2);
  event.prompt_tokens.resize(2);
  event.num_draft_tokens = 3;
  event.num_accepted_tokens = 1;
  event.num_cached_tokens = 3;
  const auto check = [&](const OutputEvent& checked, int64_t num_heard = 2,
                         int64_t num_scored = 0) {
    return CheckCloudEvent(checked, request, num_heard, num_scored,
                           /*vocab_size=*/10)
        .ok();
  };
  EXPECT_TRUE(check(event));
  EXPECT_FALSE(check(event, /*num_heard=*/3));
  EXPECT_FALSE(check(event, 2, /*num_scored=*/1));
  const std::function<void(OutputEvent*)> faults[] = {
      [](OutputEvent* e) { e->tokens[1].token_id = 10; },
      [](OutputEvent* e) { e->prompt_tokens[0].token_id = 10; },
      [](OutputEvent* e) { e->tokens[0].top_logprobs.resize(2); },
      [](OutputEvent* e) {
        e->tokens[0].top_logprobs.resize(1);
        e->tokens[0].top_logprobs[0].token_id = 10;
      },
      [](OutputEvent* e) { e->prompt_tokens[0].top_logprobs.resize(1); },
      [](OutputEvent* e) { e->num_draft_tokens = -1; },
      [](OutputEvent* e) { e->num_accepted_tokens = -1; },
      [](OutputEvent* e) { e->num_accepted_tokens = 3; },
      [](OutputEvent* e) { e->num_draft_tokens = 0; },
      [](OutputEvent* e) { e->num_cached_tokens = -1; },
      [](OutputEvent* e) { e->num_cached_tokens = 4; },
  };
  for (size_t i = 0; i < std::size(faults); ++i) {
    OutputEvent spoilt = event;
    faults[i](&spoilt);
    EXPECT_FALSE(check(spoilt)) << "fault " << i;
  }
  request.sampling.num_prompt_logprobs = -1;
  EXPECT_FALSE(check(event));
}

}  // namespace
}  // namespace quire
