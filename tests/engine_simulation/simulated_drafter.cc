#include "tests/engine_simulation/simulated_drafter.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/base/random.h"

namespace quire {

SimulatedDrafter::SimulatedDrafter(const History& history, Answer answer)
    : plan_(history.drafter),
      vocab_size_(history.options.vocab_size),
      block_size_(history.options.block_size),
      answer_(std::move(answer)) {}

void SimulatedDrafter::CheckShown(const DraftSequence& sequence) {
  const int num_tokens = static_cast<int>(sequence.token_ids.size());
  const auto fail = [&](absl::string_view what) {
    if (violation_.empty()) {
      violation_ = absl::StrCat("sequence ", sequence.sequence_id, " ", what);
    }
  };
  if (sequence.max_num_drafts < 1) fail("has room for no draft");
  if (num_tokens + sequence.max_num_drafts >
      static_cast<int>(sequence.block_table.size()) * block_size_) {
    fail("has too few blocks for its drafts");
  }
  if (plan_.uses_target_steps) {
    const auto it = position_of_slot_.find(sequence.slot);
    if (it == position_of_slot_.end() || it->second != num_tokens - 1) {
      fail("is not where the observed steps left it");
    }
  }
  const auto [it, is_new] = shown_.try_emplace(sequence.sequence_id);
  Shown& shown = it->second;
  if (!is_new) {
    if (shown.token_ids.size() > sequence.token_ids.size() ||
        !std::equal(shown.token_ids.begin(), shown.token_ids.end(),
                    sequence.token_ids.begin())) {
      fail("has lost tokens that were shown");
    }
    if (sequence.start_no < shown.start_no ||
        (sequence.start_no == shown.start_no && sequence.slot != shown.slot)) {
      fail("has moved without a start");
    }
  }
  shown.token_ids.assign(sequence.token_ids.begin(), sequence.token_ids.end());
  shown.start_no = sequence.start_no;
  shown.slot = sequence.slot;
}

void SimulatedDrafter::DraftFor(const DraftSequence& sequence, Draft* draft) {
  const std::vector<int32_t> answer = answer_(sequence);
  const size_t num_told =
      sequence.token_ids.size() - sequence.num_prompt_tokens;
  // Of the sequence alone, so that a smaller history drafts alike.
  SimulationRandom random(
      MixBits(sequence.token_ids.size(), sequence.token_ids.back()));
  int length = sequence.max_num_drafts;
  if (plan_.quality == DraftQuality::kMixed) {
    length = static_cast<int>(random.Between(0, length));
  }
  for (int i = 0; i < length; ++i) {
    // Beyond the end of the answer anything may be drafted.
    const size_t at = num_told + i;
    const int32_t right = at < answer.size()
                              ? answer[at]
                              : static_cast<int32_t>(at % vocab_size_);
    int32_t token = right;
    switch (plan_.quality) {
      case DraftQuality::kWrong:
        token = (right + 1) % vocab_size_;
        break;
      case DraftQuality::kRandom:
        token = static_cast<int32_t>(random.Below(vocab_size_));
        break;
      case DraftQuality::kMixed:
        if (random.Below(4) == 0) token = (right + 1) % vocab_size_;
        break;
      default:
        break;
    }
    draft->token_ids.push_back(token);
    if (plan_.gives_probabilities) {
      draft->probabilities.push_back(static_cast<float>(random.Uniform()));
    }
  }
}

absl::Status SimulatedDrafter::Propose(
    absl::Span<const DraftSequence> sequences, absl::Span<Draft> drafts) {
  if (has_failed_ && violation_.empty()) violation_ = "asked after it failed";
  if (sequences.empty() || sequences.size() != drafts.size()) {
    violation_ = "asked for nothing";
    return absl::OkStatus();
  }
  for (size_t i = 0; i < sequences.size(); ++i) {
    CheckShown(sequences[i]);
    DraftFor(sequences[i], &drafts[i]);
  }
  if (num_calls_++ != plan_.fails_at) return absl::OkStatus();
  has_failed_ = true;
  if (!plan_.fails_by_nonsense) return absl::InternalError("injected: drafter");
  drafts[0].token_ids.assign(1, vocab_size_);
  drafts[0].probabilities.clear();
  return absl::OkStatus();
}

absl::Status SimulatedDrafter::ObserveStep(const TargetStep& step) {
  int32_t num_tokens = 0;
  for (const TargetRow& row : step.rows) {
    const size_t num_kept = row.num_kept_tokens;
    if (row.first_token_idx != num_tokens || row.num_kept_tokens < 1 ||
        row.num_kept_tokens > row.num_tokens ||
        row.next_ids.size() != num_kept ||
        // All but the last are known.
        std::count(row.next_ids.begin(), row.next_ids.end() - 1, -1) > 0 ||
        row.block_table.size() * block_size_ <
            row.first_position + size_t(row.num_tokens)) {
      violation_ = absl::StrCat("observed row of slot ", row.slot);
    }
    num_tokens += row.num_tokens;
    position_of_slot_[row.slot] = row.first_position + row.num_kept_tokens;
  }
  return absl::OkStatus();
}

void SimulatedDrafter::End(uint64_t sequence_id,
                           absl::Span<const int32_t> token_ids,
                           int32_t num_prompt_tokens,
                           absl::string_view /*cache_namespace*/) {
  const auto it = shown_.find(sequence_id);
  if (it == shown_.end()) return;
  if (it->second.token_ids.size() > token_ids.size() ||
      static_cast<int>(token_ids.size()) < num_prompt_tokens) {
    violation_ = absl::StrCat("sequence ", sequence_id, " ends without all");
  }
  shown_.erase(it);
}

}  // namespace quire
