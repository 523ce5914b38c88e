// How far drafts can be trusted that were found by matching a context: by the
// length of the match, and by how often what followed it was this token.
// Learnt from what the sequences went on with, whether the drafts were verified
// or not.
#ifndef QUIRE_ENGINE_SPECULATIVE_MATCH_RECORD_H_
#define QUIRE_ENGINE_SPECULATIVE_MATCH_RECORD_H_

#include <algorithm>
#include <cstdint>
#include <vector>

#include "absl/types/span.h"

namespace quire {

class MatchRecord {
 public:
  // Drafts proposed for one sequence, until it is known what became of them.
  struct Proposal {
    size_t position = 0;  // Of the first draft.
    std::vector<int32_t> token_ids;
    std::vector<uint8_t> cells;  // Of each token: CellOf.
  };

  // match_length: tokens of the context, those of the drafts before it
  // included. share: of its occurrences that went on with this token, in [0,
  // 1].
  static uint8_t CellOf(int match_length, float share) {
    const int length = std::clamp(match_length, 0, kNumLengths - 1);
    const int quarter =
        std::clamp(static_cast<int>(share * kNumShares), 0, kNumShares - 1);
    return static_cast<uint8_t>(length * kNumShares + quarter);
  }
  // How likely a draft of this cell is right if those before it are.
  float ProbabilityOf(uint8_t cell) const {
    const Cell& found = cells_[cell];
    // To begin with, a match of n tokens is trusted by n / (n + 1).
    const float length = static_cast<float>(cell / kNumShares);
    const float share =
        (static_cast<float>(cell % kNumShares) + 1) / kNumShares;
    const float prior = share * length / (length + 1);
    return (found.num_right + kPriorWeight * prior) /
           (found.num_tested + kPriorWeight);
  }
  // Compares the proposal with what the sequence has become, and empties it.
  void Learn(absl::Span<const int32_t> token_ids, Proposal* proposal) {
    for (size_t i = 0; i < proposal->token_ids.size(); ++i) {
      const size_t position = proposal->position + i;
      if (position >= token_ids.size()) break;
      const bool is_right = token_ids[position] == proposal->token_ids[i];
      Cell& cell = cells_[proposal->cells[i]];
      cell.num_tested = kFade * cell.num_tested + 1;
      cell.num_right = kFade * cell.num_right + (is_right ? 1.0f : 0.0f);
      if (!is_right) break;
    }
    proposal->token_ids.clear();
    proposal->cells.clear();
  }

 private:
  struct Cell {
    float num_tested = 0;
    float num_right = 0;
  };
  static constexpr int kNumLengths = 32;
  static constexpr int kNumShares = 4;
  static constexpr float kPriorWeight = 4;
  static constexpr float kFade = 0.995f;  // The last 200 drafts decide.

  Cell cells_[kNumLengths * kNumShares];
};

}  // namespace quire

#endif  // QUIRE_ENGINE_SPECULATIVE_MATCH_RECORD_H_
