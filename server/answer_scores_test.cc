#include "server/answer_scores.h"

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"

namespace quire {
namespace {

constexpr int kMaxModelLen = 100000;

std::vector<std::vector<int32_t>> Prompts(int count, int length) {
  return {static_cast<size_t>(count), std::vector<int32_t>(length, 1)};
}

// 20 log-probabilities for each token of 4 choices.
ApiRequest ChatRequest() {
  ApiRequest request;
  request.kind = ApiKind::kChat;
  request.wants_logprobs = true;
  request.top_logprobs = 19;
  request.best_of = request.n = 4;
  return request;
}
constexpr int kMostTokens = kMaxScoresOfAnswer / (4 * 20);

void ExpectRefused(const absl::StatusOr<int64_t>& found,
                   const std::string& part) {
  EXPECT_TRUE(absl::IsInvalidArgument(found.status()));
  EXPECT_TRUE(absl::StrContains(found.status().message(), part))
      << found.status();
}

TEST(LimitScoresTest, MaxTokensBeyondTheLimitAreRefused) {
  ApiRequest request = ChatRequest();
  request.sampling.max_tokens = kMostTokens;
  EXPECT_EQ(*LimitScores(Prompts(1, 10), kMaxModelLen, &request), 0);
  EXPECT_EQ(request.sampling.max_tokens, kMostTokens);
  request.sampling.max_tokens = kMostTokens + 1;
  ExpectRefused(
      LimitScores(Prompts(1, 10), kMaxModelLen, &request),
      absl::StrCat(
          "the answer may hold ", (kMostTokens + 1) * 80,
          " log-probabilities, more than 262144: ask for fewer of them or "
          "of tokens, or for a stream"));
  // Two prompts, half as many tokens.
  request.sampling.max_tokens = kMostTokens / 2 + 1;
  ExpectRefused(LimitScores(Prompts(2, 10), kMaxModelLen, &request),
                "the answer may hold");
}

// Whatever max_tokens says, the context ends the answer.
TEST(LimitScoresTest, OnlyTokensThatFitTheContextCount) {
  ApiRequest request = ChatRequest();
  request.sampling.max_tokens = 1 << 30;
  const int length = kMostTokens + 10;
  EXPECT_EQ(*LimitScores(Prompts(1, 10), length, &request), 0);
  ExpectRefused(LimitScores(Prompts(1, 9), length, &request),
                "the answer may hold");
}

TEST(LimitScoresTest, WithoutMaxTokensTheAnswerIsAsLongAsFits) {
  ApiRequest request = ChatRequest();
  request.sampling.max_tokens = 0;
  EXPECT_EQ(*LimitScores(Prompts(1, 10), kMaxModelLen, &request), 0);
  EXPECT_EQ(request.sampling.max_tokens, kMostTokens);
  request.sampling.max_tokens = 0;
  EXPECT_EQ(*LimitScores(Prompts(1, 10), 64, &request), 0);
  EXPECT_EQ(request.sampling.max_tokens, 64);
}

TEST(LimitScoresTest, AStreamHoldsOnlyThoseOfItsPrompts) {
  ApiRequest request = ChatRequest();
  request.stream = true;
  request.sampling.max_tokens = kMaxModelLen;
  EXPECT_EQ(*LimitScores(Prompts(1, 10), kMaxModelLen, &request), 0);
  request.sampling.num_prompt_logprobs = 9;
  EXPECT_EQ(*LimitScores(Prompts(3, 10), kMaxModelLen, &request),
            4 * 10 * 3 * 10);
}

TEST(LimitScoresTest, ThoseOfPromptsHaveTheSameLimit) {
  for (const bool is_stream : {false, true}) {
    ApiRequest request = ChatRequest();
    request.stream = is_stream;
    request.prompt_logprobs = 15;
    request.sampling.num_prompt_logprobs = 15;
    request.sampling.max_tokens = 1;
    // One token of each choice may come all the same.
    EXPECT_EQ(*LimitScores(Prompts(1, 4096), kMaxModelLen, &request),
              kMaxScoresOfAnswer);
    EXPECT_EQ(request.sampling.max_tokens, 1);
    ExpectRefused(LimitScores(Prompts(1, 4097), kMaxModelLen, &request),
                  "the answer would hold 262208 log-probabilities of prompt");
  }
}

TEST(AnswerScoresTest, HalfOfTheBudgetIsForThoseThatGrow) {
  ScoreBudget budget(8 * 1024 * kBytesPerScore);
  auto first = AnswerScores::Admit(4 * 1024, &budget);
  ASSERT_TRUE(first.ok()) << first.status();
  auto second = AnswerScores::Admit(0, &budget);
  ASSERT_TRUE(second.ok()) << second.status();
  EXPECT_TRUE((*second)->Add(21).ok());
  EXPECT_TRUE(absl::IsUnavailable(AnswerScores::Admit(0, &budget).status()));
  // To the last byte.
  for (int i = 0; i < 3; ++i) EXPECT_TRUE((*first)->Add(1024).ok());
  EXPECT_TRUE(absl::IsUnavailable((*first)->Add(1)));
  // What was taken and is not held.
  EXPECT_TRUE((*second)->Add(1003).ok());
  EXPECT_TRUE(absl::IsUnavailable((*second)->Add(1)));
  *first = nullptr;
  EXPECT_TRUE((*second)->Add(1).ok());
  EXPECT_TRUE(AnswerScores::Admit(1, &budget).ok());
  *second = nullptr;
  EXPECT_EQ(budget.use(), 0);
}

TEST(AnswerScoresTest, TheYoungestThatGrowsGivesWay) {
  ScoreBudget budget(16 * 1024 * kBytesPerScore);
  std::vector<std::shared_ptr<AnswerScores>> answers;
  for (int i = 0; i < 4; ++i) {
    auto admitted = AnswerScores::Admit(0, &budget);
    ASSERT_TRUE(admitted.ok());
    answers.push_back(*std::move(admitted));
  }
  // The last one holds nothing: it would make no room.
  for (int i = 0; i < 3; ++i) ASSERT_TRUE(answers[i]->Add(4 * 1024).ok());
  ASSERT_TRUE(answers[0]->Add(2 * 1024 + 1).ok());
  EXPECT_EQ(budget.num_refused(), 0);
  EXPECT_TRUE(absl::IsUnavailable(answers[3]->Add(1)));
  EXPECT_TRUE(absl::IsUnavailable(answers[2]->Add(1)));
  EXPECT_TRUE(answers[1]->Add(1).ok());
  // No room at all, whatever its age.
  EXPECT_TRUE(absl::IsUnavailable(answers[0]->Add(1024)));
  EXPECT_EQ(budget.num_refused(), 3);
  answers[2]->Release();
  for (int i = 0; i < 2; ++i) EXPECT_TRUE(answers[i]->Add(2 * 1024).ok());
  EXPECT_TRUE(absl::IsUnavailable(answers[1]->Add(1024)));
  // Alone it may have all.
  answers[1] = nullptr;
  EXPECT_TRUE(answers[0]->Add(6 * 1024).ok());
  answers.clear();
  EXPECT_EQ(budget.use(), 0);
}

TEST(AnswerScoresTest, WhatDoesNotFitIsNotAdmitted) {
  ScoreBudget budget(1024 * kBytesPerScore);
  const auto small = AnswerScores::Admit(1, &budget);
  ASSERT_TRUE(small.ok());
  EXPECT_TRUE(absl::IsUnavailable(AnswerScores::Admit(1024, &budget).status()));
}

}  // namespace
}  // namespace quire
