// Prompt lookup: what followed when the last tokens of a sequence occurred in
// it before. Pays where answers quote what they were given: edits, code,
// retrieval. (Saxena 2023, "Prompt lookup decoding",
// github.com/apoorvumang/prompt-lookup-decoding; the n-gram method of vLLM.
// Here the most recent of the longest occurrences counts, and finding it does
// not depend on the length of the sequence.)
#ifndef QUIRE_ENGINE_SPECULATIVE_NGRAM_DRAFTER_H_
#define QUIRE_ENGINE_SPECULATIVE_NGRAM_DRAFTER_H_

#include <cstdint>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "engine/speculative/drafter.h"
#include "engine/speculative/match_record.h"

namespace quire {

// Where the n-grams of one sequence are. Memory: some 80 bytes for each token.
class NgramIndex {
 public:
  // Looks for the last n tokens, n from max_n down to min_n.
  // Requires: 1 <= min_n <= max_n.
  NgramIndex(int min_n, int max_n);

  // Appends to *draft up to max_drafts tokens that followed the longest match,
  // the most recent one among equals; going beyond the end they repeat what
  // was drafted. Returns the length of the match, at most max_n; 0: none.
  // token_ids: as in the call before, perhaps longer.
  int Propose(absl::Span<const int32_t> token_ids, int max_drafts,
              std::vector<int32_t>* draft);

 private:
  // By the hash of `length` tokens: where their last occurrence ends; and for
  // each such end the one before it with the same hash.
  struct Level {
    int length = 0;
    absl::flat_hash_map<uint64_t, int32_t> last_end;
    std::vector<int32_t> previous_end;  // [num indexed ends]; -1: none.
  };

  static void CatchUp(absl::Span<const int32_t> token_ids, Level* level);
  // The end of the best match that the level knows; -1: none.
  int FindMatch(absl::Span<const int32_t> token_ids, const Level& level,
                int* length) const;

  const int max_n_;
  // Of max_n, of min_n and of one between them: what is frequent as a short
  // match need not be searched for a long one.
  std::vector<Level> levels_;
};

// As Drafter.
class NgramDrafter : public Drafter {
 public:
  NgramDrafter(int min_n, int max_n) : min_n_(min_n), max_n_(max_n) {}

  absl::string_view method() const override { return "ngram"; }
  bool is_costly() const override { return false; }
  absl::Status Propose(absl::Span<const DraftSequence> sequences,
                       absl::Span<Draft> drafts) override;
  void End(uint64_t sequence_id, absl::Span<const int32_t> token_ids,
           int32_t num_prompt_tokens,
           absl::string_view cache_namespace) override;

 private:
  struct Known {
    Known(int min_n, int max_n) : index(min_n, max_n) {}
    NgramIndex index;
    MatchRecord::Proposal proposal;
  };

  const int min_n_;
  const int max_n_;
  MatchRecord record_;
  absl::flat_hash_map<uint64_t, Known> known_;  // By sequence_id.
};

}  // namespace quire

#endif  // QUIRE_ENGINE_SPECULATIVE_NGRAM_DRAFTER_H_
