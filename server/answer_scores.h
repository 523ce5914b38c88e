// Log-probabilities of answers, which may be much larger than what asks for
// them: how many one answer may hold, and what those of all answers take.
#ifndef QUIRE_SERVER_ANSWER_SCORES_H_
#define QUIRE_SERVER_ANSWER_SCORES_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "server/memory_budget.h"
#include "server/openai_api.h"

namespace quire {

// That one answer holds at a time.
inline constexpr int64_t kMaxScoresOfAnswer = 1 << 18;
// What one takes at most, from its token to the kernel's buffer.
inline constexpr int64_t kBytesPerScore = 160;
// Of all answers together, where nothing else is said.
inline constexpr int64_t kMaxScoreBytes = int64_t{512} << 20;

// Those of prompts that the answer to `request` holds from its beginning: every
// choice repeats its prompt's. Generated ones of a stream are written as they
// come; of a whole answer at most so many may come that all are
// kMaxScoresOfAnswer. INVALID_ARGUMENT if its max_tokens would let more come;
// without max_tokens it gets one.
absl::StatusOr<int64_t> LimitScores(
    const std::vector<std::vector<int32_t>>& prompts, int max_model_len,
    ApiRequest* request);

// What one answer's take of the budget of all, which must outlive it.
// Thread-compatible.
class AnswerScores {
 public:
  // Holds `num_scores`. UNAVAILABLE if there is no room for them, or if half of
  // the budget is taken: the other half is for the answers that grow, most of
  // which end long before their limit.
  static absl::StatusOr<std::shared_ptr<AnswerScores>> Admit(
      int64_t num_scores, MemoryBudget* budget);

  // So many more. UNAVAILABLE if there is no room for them.
  absl::Status Add(int64_t num_scores);

 private:
  explicit AnswerScores(MemoryBudget::Reservation reservation)
      : reservation_(std::move(reservation)) {}

  MemoryBudget::Reservation reservation_;
  int64_t num_free_ = 0;  // Reserved, and not yet held.
};

}  // namespace quire

#endif  // QUIRE_SERVER_ANSWER_SCORES_H_
