// Suffix decoding: what followed when a sequence's last tokens occurred before,
// in itself or in recent answers, as often as it pays to guess. Pays where
// answers resemble each other or their prompts: agents, edits, structured text.
// Oliaro et al. 2024, "SuffixDecoding", arXiv:2411.04975, with the names of its
// parameters in vLLM. Differences: automata in place of trees (the same
// substrings and counts, memory linear in the tokens whatever the depth), and a
// chain of drafts, no tree.
#ifndef QUIRE_ENGINE_SPECULATIVE_SUFFIX_DRAFTER_H_
#define QUIRE_ENGINE_SPECULATIVE_SUFFIX_DRAFTER_H_

#include <cstddef>
#include <cstdint>
#include <list>
#include <memory>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/string_view.h"
#include "engine/speculative/drafter.h"
#include "engine/speculative/match_record.h"
#include "engine/speculative/suffix_automaton.h"

namespace quire {

struct SuffixOptions {
  // Longest context that is looked up (vLLM: with the drafts together).
  int max_tree_depth = 24;
  // Recent answers that are kept; 0: none, a sequence then sees itself only.
  int max_cached_requests = 10000;
  // Drafts at most, for each token of the context found.
  float max_spec_factor = 1.0f;
  // A draft less likely than this ends the proposal.
  float min_token_prob = 0.1f;
  // Bounds of memory, 170 bytes for each token: of recent answers, and of
  // running sequences. Sequences beyond it draw on recent answers alone.
  int64_t max_cached_tokens = 1 << 19;
  // Of recent answers with what each namespace costs besides.
  int64_t max_cached_bytes = 128 << 20;
  int64_t max_local_tokens = 1 << 20;
};

// As Drafter.
class SuffixDrafter : public Drafter {
 public:
  explicit SuffixDrafter(const SuffixOptions& options) : options_(options) {}

  absl::string_view method() const override { return "suffix"; }
  bool is_costly() const override { return false; }
  absl::Status Propose(absl::Span<const DraftSequence> sequences,
                       absl::Span<Draft> drafts) override;
  void End(uint64_t sequence_id, absl::Span<const int32_t> token_ids,
           int32_t num_prompt_tokens,
           absl::string_view cache_namespace) override;

  int64_t num_cached_tokens() const { return num_cached_tokens_; }
  int64_t num_cached_bytes() const { return num_cached_bytes_; }
  size_t num_namespaces() const { return recent_.size(); }
  int64_t num_local_tokens() const { return num_local_tokens_; }

 private:
  // Answers of one namespace. When `current` is full it becomes `previous`, and
  // what was there is forgotten.
  struct Generation {
    uint64_t serial_no = 0;
    int num_requests = 0;
    SuffixAutomaton answers;
  };
  struct Recent {
    std::string name;
    std::unique_ptr<Generation> current;
    std::unique_ptr<Generation> previous;
    int64_t num_bytes = 0;  // As counted in num_cached_bytes_.
  };
  // The namespace used last comes first.
  using RecentList = std::list<Recent>;
  // Where a sequence is in a generation.
  struct Cursor {
    uint64_t serial_no = 0;
    size_t num_tokens = 0;
    SuffixMatch match;
  };
  struct Local {
    bool has_index = false;
    SuffixAutomaton tokens;
    size_t num_tokens = 0;
    Cursor cursors[2];
    MatchRecord::Proposal proposal;
  };
  struct Guess {
    std::vector<int32_t> token_ids;
    std::vector<float> probabilities;
    std::vector<uint8_t> cells;
    float score = 0;  // Expected accepted tokens.
  };

  void CatchUp(const DraftSequence& sequence, Local* local);
  void MoveCursor(const DraftSequence& sequence, const Generation& generation,
                  Cursor* cursor) const;
  // Keeps the best of the guesses from this context and shorter ones.
  void GuessFrom(const SuffixAutomaton& automaton, SuffixMatch match,
                 int max_drafts, Guess* best);
  // The namespace, which is now the one used last; made if there is none.
  Recent* UseNamespace(absl::string_view name);
  void CountBytes(Recent* recent);
  void Forget(Generation* generation);
  void ForgetOldestNamespace();

  const SuffixOptions options_;
  absl::flat_hash_map<uint64_t, std::unique_ptr<Local>> locals_;
  RecentList recent_;
  // By Recent::name, which they point into.
  absl::flat_hash_map<absl::string_view, RecentList::iterator> recent_of_;
  int64_t num_cached_tokens_ = 0;
  int64_t num_cached_bytes_ = 0;
  int64_t num_local_tokens_ = 0;
  uint64_t next_serial_no_ = 1;
  MatchRecord record_;
  Guess guess_;  // Scratch.
  Guess best_;   // Scratch.
};

}  // namespace quire

#endif  // QUIRE_ENGINE_SPECULATIVE_SUFFIX_DRAFTER_H_
