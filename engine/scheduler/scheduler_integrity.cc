// The invariants of the scheduler, tested on its state.
#include <algorithm>

#include "absl/strings/str_cat.h"
#include "engine/base/status.h"
#include "engine/scheduler/scheduler.h"

namespace quire {

absl::Status Scheduler::CheckSequence(const Sequence& sequence) const {
  const auto error = [&sequence](absl::string_view what) {
    return absl::InternalError(
        absl::StrCat(what, " (request ", sequence.request->request.id,
                     ", choice ", sequence.choice_idx, ")"));
  };
  const int num_known = sequence.num_known_tokens();
  const int num_blocks = static_cast<int>(sequence.blocks.block_table.size());
  if (sequence.num_computed_tokens > sequence.num_submitted_tokens ||
      sequence.num_submitted_tokens >
          num_known + std::max(sequence.num_pending_tokens - 1, 0) +
              sequence.num_pending_drafts ||
      num_known + sequence.num_pending_tokens + sequence.num_pending_drafts >
          sequence.max_num_tokens) {
    // A finished sequence may have a row in flight beyond its end.
    if (sequence.state != SequenceState::kFinished) {
      return error("I5: more tokens computed than known, or too many");
    }
  }
  if (sequence.state == SequenceState::kRunning) {
    // The newest known token may still lack its block: it is appended with the
    // row that computes it.
    if (num_blocks < cache_->NumBlocksFor(num_known - 1) ||
        num_blocks > cache_->NumBlocksFor(
                         std::max({num_known, sequence.num_submitted_tokens,
                                   sequence.num_covered_tokens})) ||
        sequence.num_covered_tokens > sequence.max_num_tokens) {
      return error("I5: too few or too many blocks");
    }
    if (!sequence.has_holdings())
      return error("I9: a running sequence has no slot");
  } else if (sequence.has_holdings() && sequence.num_inflight_rows == 0) {
    return error("I9: holds a slot and no step needs it");
  }
  if (!sequence.has_holdings() && num_blocks > 0) {
    return error("I9: blocks without a slot");
  }
  const RequestState& request = *sequence.request;
  if (request.request.kind == RequestKind::kEmbed) {
    if (num_known != sequence.num_prompt_tokens ||
        sequence.num_pending_tokens > 1) {
      return error("I5: an embed request goes on after its prompt");
    }
    if (options_.embeds_every_token && request.num_cached_tokens > 0) {
      return error("I10: an embedding of every token skipped some");
    }
  }
  return absl::OkStatus();
}

absl::Status Scheduler::CheckQueues() const {
  size_t num_running = 0;
  size_t num_waiting = 0;
  for (const auto& [id, request] : requests_) {
    for (const std::unique_ptr<Sequence>& sequence : request->sequences) {
      num_running += sequence->state == SequenceState::kRunning;
      num_waiting += sequence->state == SequenceState::kWaiting;
    }
  }
  if (num_running != running_.size() || num_waiting != waiting_.size()) {
    return absl::InternalError("I9: the queues do not hold all sequences");
  }
  for (const auto* queue : {&running_, &waiting_}) {
    for (size_t i = 0; i < queue->size(); ++i) {
      if (i > 0 && !(*queue)[i - 1]->IsBefore(*(*queue)[i])) {
        return absl::InternalError("I8: a queue is not in order of arrival");
      }
      if (((*queue)[i]->state == SequenceState::kRunning) !=
          (queue == &running_)) {
        return absl::InternalError("I9: a sequence is in the wrong queue");
      }
    }
  }
  return absl::OkStatus();
}

absl::Status Scheduler::CheckIntegrity() const {
  QUIRE_RETURN_IF_ERROR(CheckQueues());
  absl::flat_hash_map<const Sequence*, int> num_rows;
  for (const InFlightStep& step : steps_) {
    for (const InFlightRow& row : step.rows) {
      ++num_rows[row.sequence];
      if (cache_->NumBlocksFor(row.first_position + row.num_tokens) >
          static_cast<int>(row.sequence->blocks.block_table.size())) {
        return absl::InternalError(
            "I5: a step in flight names blocks that were given back");
      }
    }
  }
  std::vector<KvCacheManager::TableView> tables;
  std::vector<char> slot_is_used(options_.max_num_seqs, 0);
  for (int32_t slot : free_slots_) ++slot_is_used[slot];
  int num_releasing = 0;
  for (const auto& [id, request] : requests_) {
    const int num_scored = request->num_scored_tokens;
    const int num_prompt_tokens =
        static_cast<int>(request->request.prompt_token_ids.size());
    if (num_scored < 0 || num_scored >= num_prompt_tokens) {
      return absl::InternalError(
          "I5: more prompt tokens scored than there are");
    }
    int num_request_rows = 0;
    int num_unfinished = 0;
    for (const std::unique_ptr<Sequence>& sequence : request->sequences) {
      QUIRE_RETURN_IF_ERROR(CheckSequence(*sequence));
      if (sequence->num_generated_tokens() > 0 && request->needs_scores()) {
        return absl::InternalError("I5: generates before the prompt is scored");
      }
      const auto it = num_rows.find(sequence.get());
      if (sequence->num_inflight_rows !=
          (it == num_rows.end() ? 0 : it->second)) {
        return absl::InternalError("I5: rows in flight are miscounted");
      }
      num_request_rows += sequence->num_inflight_rows;
      num_unfinished += sequence->state != SequenceState::kFinished;
      if (!sequence->has_holdings()) continue;
      num_releasing += sequence->state != SequenceState::kRunning;
      ++slot_is_used[sequence->slot];
      tables.push_back({&sequence->blocks, sequence->known_tokens(),
                        sequence->num_computed_tokens,
                        sequence->num_submitted_tokens});
    }
    if (num_request_rows != request->num_inflight_rows ||
        num_unfinished != request->num_unfinished) {
      return absl::InternalError("I9: a request's counts are wrong");
    }
    if (num_unfinished == 0 && num_request_rows == 0) {
      return absl::InternalError("I9: a request outlives its last event");
    }
  }
  if (num_releasing != num_releasing_) {
    return absl::InternalError("I9: sequences to release are miscounted");
  }
  for (char count : slot_is_used) {
    if (count != 1) {
      return absl::InternalError("I9: a slot is lost or used twice");
    }
  }
  return cache_->CheckIntegrity(tables);
}

}  // namespace quire
