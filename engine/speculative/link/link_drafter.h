// Drafts that come from elsewhere: an edge sends them over its link, and each
// step of the target takes what is there by then. It never waits for more: a
// row whose drafts have not come decodes as it would without, so however slow
// the link is, it costs no step any time.
//
// An edge drafts beyond what it has heard, so its drafts begin before where the
// sequence is by now. Those that the sequence has reached are compared with
// what was drawn there: while they agree the rest is proposed; from the first
// that does not on they are of no use: the chain is broken, and what follows of
// it, sent before the edge could know, is ignored by its number.
#ifndef QUIRE_ENGINE_SPECULATIVE_LINK_LINK_DRAFTER_H_
#define QUIRE_ENGINE_SPECULATIVE_LINK_LINK_DRAFTER_H_

#include <cstdint>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "engine/request.h"
#include "engine/speculative/drafter.h"
#include "engine/speculative/link/link_messages.h"

namespace quire {

// Open, Put and Close are thread-safe; the rest is Drafter's.
class LinkDrafter : public Drafter {
 public:
  // `inner`, which may be null and is borrowed, drafts where nothing has come
  // over a link.
  LinkDrafter(int vocab_size, Drafter* inner)
      : vocab_size_(vocab_size), inner_(inner) {}

  // Drafts for the request may come from now on. Requires: it is not open.
  void Open(RequestId id, int n);
  // Nothing is kept of it any more. Unknown requests are ignored.
  void Close(RequestId id);

  // Takes drafts for a request under its id here, `id`. They continue what is
  // there if they begin at its end and are of the same chain, and replace it
  // otherwise. Of what does not fit (an id outside the vocabulary, more than
  // kMaxLinkDrafts) the rest is dropped. Unknown requests and choices are
  // ignored: they may have ended meanwhile.
  void Put(RequestId id, const LinkDrafts& drafts);

  absl::string_view method() const override {
    return inner_ == nullptr ? "link" : inner_->method();
  }
  bool is_costly() const override {
    return inner_ != nullptr && inner_->is_costly();
  }
  absl::Status Propose(absl::Span<const DraftSequence> sequences,
                       absl::Span<Draft> drafts) override;
  bool UsesTargetSteps() const override {
    return inner_ != nullptr && inner_->UsesTargetSteps();
  }
  absl::Status ObserveStep(const TargetStep& step) override {
    return inner_ == nullptr ? absl::OkStatus() : inner_->ObserveStep(step);
  }
  void End(uint64_t sequence_id, absl::Span<const int32_t> token_ids,
           int32_t num_prompt_tokens,
           absl::string_view cache_namespace) override {
    if (inner_ == nullptr) return;
    inner_->End(sequence_id, token_ids, num_prompt_tokens, cache_namespace);
  }
  bool PrepareAhead() override {
    return inner_ != nullptr && inner_->PrepareAhead();
  }

 private:
  // Drafts for one choice: they follow `num_generated` tokens.
  struct Chain {
    uint32_t chain_no = 0;
    bool is_broken = false;
    int64_t num_generated = 0;
    std::vector<int32_t> token_ids;
    std::vector<float> probabilities;  // Empty, or one for each token.
  };
  // Drops what the sequence has passed; all of it if it went on otherwise.
  static void Advance(const DraftSequence& sequence, Chain* chain);
  absl::Status AskInner(absl::Span<const DraftSequence> sequences,
                        absl::Span<Draft> drafts);

  const int vocab_size_;
  Drafter* const inner_;
  std::mutex mu_;
  absl::flat_hash_map<RequestId, std::vector<Chain>>
      chains_;  // Guarded by mu_.
  // Scratch of Propose.
  std::vector<size_t> asked_;
  std::vector<DraftSequence> inner_sequences_;
  std::vector<Draft> inner_drafts_;
};

}  // namespace quire

#endif  // QUIRE_ENGINE_SPECULATIVE_LINK_LINK_DRAFTER_H_
