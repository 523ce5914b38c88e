#include "server/answer_scores.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/api_error.h"

namespace quire {
namespace {

// Answers grow by so many: threads need not meet at the budget for each token.
constexpr int64_t kScoresOfGrowth = 1024;

// From this part of the budget on the youngest answers give way. What is left
// is for the others' next growth, of 160 KiB each.
constexpr double kUseOfGivingWay = 7.0 / 8;

}  // namespace

absl::StatusOr<int64_t> LimitScores(
    const std::vector<std::vector<int32_t>>& prompts, int max_model_len,
    ApiRequest* request) {
  const int64_t num_choices = request->best_of;
  const int64_t num_of_prompt_token = request->sampling.num_prompt_logprobs + 1;
  int64_t num_scores = 0;
  for (const std::vector<int32_t>& prompt : prompts) {
    num_scores +=
        num_choices * num_of_prompt_token * static_cast<int64_t>(prompt.size());
  }
  if (num_scores > kMaxScoresOfAnswer) {
    return ParameterError(
        request->prompt_logprobs.has_value() ? "prompt_logprobs" : "logprobs",
        absl::StrCat("the answer would hold ", num_scores,
                     " log-probabilities of prompt tokens, more than ",
                     kMaxScoresOfAnswer));
  }
  if (!request->wants_logprobs || request->stream) return num_scores;
  const int64_t num_of_token =
      num_choices * (request->top_logprobs.value_or(0) + 1);
  const int64_t num_of_step =
      num_of_token * static_cast<int64_t>(prompts.size());
  // A token of each choice may always come.
  const int64_t num_fitting =
      std::max<int64_t>((kMaxScoresOfAnswer - num_scores) / num_of_step, 1);
  int32_t& max_tokens = request->sampling.max_tokens;
  if (max_tokens == 0) {
    max_tokens =
        static_cast<int32_t>(std::min<int64_t>(num_fitting, max_model_len));
    return num_scores;
  }
  if (max_tokens <= num_fitting) return num_scores;
  int64_t num_possible = num_scores;
  for (const std::vector<int32_t>& prompt : prompts) {
    const int64_t room = max_model_len - static_cast<int64_t>(prompt.size());
    num_possible += num_of_token * std::min<int64_t>(max_tokens, room);
  }
  if (num_possible <= kMaxScoresOfAnswer) return num_scores;
  return ParameterError(
      request->kind == ApiKind::kChat ? "top_logprobs" : "logprobs",
      absl::StrCat("the answer may hold ", num_possible,
                   " log-probabilities, more than ", kMaxScoresOfAnswer,
                   ": ask for fewer of them or of tokens, or for a stream"));
}

absl::Status ScoreBudget::Refuse() {
  ++num_refused_;
  return absl::UnavailableError(
      "the answers with log-probabilities take too much memory");
}

bool ScoreBudget::MustGiveWay(int64_t id) {
  if (use() <= kUseOfGivingWay) return false;
  std::lock_guard<std::mutex> lock(mu_);
  if (holders_.empty() || *holders_.rbegin() > id) return false;
  // Alone, it may have all.
  return *holders_.begin() != id;
}

absl::StatusOr<std::shared_ptr<AnswerScores>> AnswerScores::Admit(
    int64_t num_scores, ScoreBudget* budget) {
  if (budget->use() > 0.5) return budget->Refuse();
  MemoryBudget::Reservation reservation =
      budget->memory_.TryReserve(num_scores * kBytesPerScore);
  if (!reservation) return budget->Refuse();
  std::lock_guard<std::mutex> lock(budget->mu_);
  const int64_t id = budget->next_id_++;
  if (num_scores > 0) budget->holders_.insert(id);
  return std::shared_ptr<AnswerScores>(
      new AnswerScores(budget, id, std::move(reservation)));
}

absl::Status AnswerScores::Add(int64_t num_scores) {
  if (num_free_ < num_scores) {
    const int64_t growth = std::max(num_scores, kScoresOfGrowth);
    if (budget_->MustGiveWay(id_) ||
        !reservation_.Grow(growth * kBytesPerScore)) {
      return budget_->Refuse();
    }
    num_free_ += growth;
    std::lock_guard<std::mutex> lock(budget_->mu_);
    budget_->holders_.insert(id_);
  }
  num_free_ -= num_scores;
  return absl::OkStatus();
}

void AnswerScores::Release() {
  if (!reservation_) return;
  reservation_ = MemoryBudget::Reservation();
  std::lock_guard<std::mutex> lock(budget_->mu_);
  budget_->holders_.erase(id_);
}

}  // namespace quire
