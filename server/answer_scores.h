// Log-probabilities of answers, which may be much larger than what asks for
// them: how many one answer may hold, and what those of all answers take.
#ifndef QUIRE_SERVER_ANSWER_SCORES_H_
#define QUIRE_SERVER_ANSWER_SCORES_H_

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "absl/container/btree_set.h"
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

// Of all answers together. Thread-safe.
class ScoreBudget {
 public:
  explicit ScoreBudget(int64_t num_bytes) : memory_(num_bytes) {}

  double use() const { return memory_.use(); }
  // Answers that did not begin, or did not get to their end, for lack of room.
  int64_t num_refused() const { return num_refused_; }

 private:
  friend class AnswerScores;

  absl::Status Refuse();
  // While there is little room, the answers that began last make it: those that
  // are furthest get to their end.
  bool MustGiveWay(int64_t id);

  MemoryBudget memory_;
  std::atomic<int64_t> num_refused_{0};
  std::mutex mu_;
  int64_t next_id_ = 0;               // Guarded by mu_, as the next one.
  absl::btree_set<int64_t> holders_;  // Answers that hold something, by age.
};

// What one answer takes of the budget of all, which must outlive it.
// Thread-compatible.
class AnswerScores {
 public:
  // Holds `num_scores`. UNAVAILABLE if there is no room for them, or if half of
  // the budget is taken: the other half is for the answers that grow, most of
  // which end long before their limit.
  static absl::StatusOr<std::shared_ptr<AnswerScores>> Admit(
      int64_t num_scores, ScoreBudget* budget);
  ~AnswerScores() { Release(); }
  AnswerScores(const AnswerScores&) = delete;
  AnswerScores& operator=(const AnswerScores&) = delete;

  // So many more. UNAVAILABLE if there is no room for them, or from seven
  // eighths of the budget on if no answer that holds something is younger.
  absl::Status Add(int64_t num_scores);
  // Holds nothing from here on, and must get nothing more. Idempotent.
  void Release();

 private:
  AnswerScores(ScoreBudget* budget, int64_t id,
               MemoryBudget::Reservation reservation)
      : budget_(budget), id_(id), reservation_(std::move(reservation)) {}

  ScoreBudget* const budget_;
  const int64_t id_;
  MemoryBudget::Reservation reservation_;
  int64_t num_free_ = 0;  // Reserved, and not yet held.
};

}  // namespace quire

#endif  // QUIRE_SERVER_ANSWER_SCORES_H_
