#include "engine/sequence.h"

#include <algorithm>

#include "engine/base/planted_bug.h"
#include "engine/base/random.h"
#include "engine/base/status.h"

namespace quire {

Sequence::Sequence(RequestState* request, int choice_idx, int max_num_tokens)
    : request(request),
      choice_idx(choice_idx),
      num_prompt_tokens(
          static_cast<int>(request->request.prompt_token_ids.size())),
      max_num_tokens(max_num_tokens +
                     HasPlantedBug(PlantedBug::kMaxTokensOffByOne)) {}

void Sequence::Start(int slot, int num_computed_tokens) {
  QUIRE_CHECK(state == SequenceState::kWaiting);
  QUIRE_CHECK(num_inflight_rows == 0 && num_pending_tokens == 0);
  if (!has_started) {
    has_started = true;
    // One allocation for the common short answer; a long one grows.
    token_ids.reserve(std::min(max_num_tokens, num_prompt_tokens + 256));
    token_ids = request->request.prompt_token_ids;
  }
  state = SequenceState::kRunning;
  ++request->num_running;
  this->slot = slot;
  this->num_computed_tokens = num_computed_tokens;
  num_submitted_tokens = num_computed_tokens;
  is_slot_announced = false;
  num_announced_blocks = 0;
}

void Sequence::Preempt() {
  QUIRE_CHECK(state == SequenceState::kRunning);
  state = SequenceState::kWaiting;
  --request->num_running;
  if (HasPlantedBug(PlantedBug::kWrongDrawKey)) ++request->seed;
  if (HasPlantedBug(PlantedBug::kBansNotResent)) {
    request->banned_before_min.clear();
  }
}

void Sequence::Finish() {
  QUIRE_CHECK(state != SequenceState::kFinished);
  if (state == SequenceState::kRunning) --request->num_running;
  state = SequenceState::kFinished;
  --request->num_unfinished;
}

std::optional<FinishReason> Sequence::Append(
    int32_t token_id, absl::Span<const int32_t> eos_token_ids,
    std::optional<int32_t>* stop_token_id) {
  const SamplingParams& sampling = request->request.sampling;
  const int num_before =
      num_generated_tokens() - HasPlantedBug(PlantedBug::kMinTokensOffByOne);
  const bool may_stop = num_before >= sampling.min_tokens;
  token_ids.push_back(token_id);
  if (may_stop) {
    if (!sampling.ignore_eos &&
        std::find(eos_token_ids.begin(), eos_token_ids.end(), token_id) !=
            eos_token_ids.end()) {
      return FinishReason::kStop;
    }
    const std::vector<int32_t>& stops = sampling.stop_token_ids;
    if (std::find(stops.begin(), stops.end(), token_id) != stops.end()) {
      *stop_token_id = token_id;
      return FinishReason::kStop;
    }
  }
  if (num_known_tokens() >= max_num_tokens) return FinishReason::kLength;
  return std::nullopt;
}

bool Sequence::WouldStopAt(int32_t token_id, int num_after,
                           absl::Span<const int32_t> eos_token_ids) const {
  const SamplingParams& sampling = request->request.sampling;
  if (num_generated_tokens() + num_after < sampling.min_tokens) return false;
  const std::vector<int32_t>& stops = sampling.stop_token_ids;
  return (!sampling.ignore_eos &&
          std::find(eos_token_ids.begin(), eos_token_ids.end(), token_id) !=
              eos_token_ids.end()) ||
         std::find(stops.begin(), stops.end(), token_id) != stops.end();
}

uint64_t Sequence::sequence_id() const {
  return (request->arrival_no << 7) + choice_idx;
}

uint64_t Sequence::draw_key() const {
  return MixBits(request->seed, choice_idx);
}

absl::Span<const int32_t> Sequence::known_tokens() const {
  return has_started ? absl::MakeConstSpan(token_ids)
                     : absl::MakeConstSpan(request->request.prompt_token_ids);
}

int Sequence::NumScoredAmong(int num_tokens) const {
  if (!request->needs_scores()) return 0;
  const int begin = std::max(num_submitted_tokens, request->num_scored_tokens);
  const int end =
      std::min(num_submitted_tokens + num_tokens, num_prompt_tokens - 1);
  return std::max(end - begin, 0);
}

int Sequence::NumTokensScoringAtMost(int max_scored) const {
  const int num_remaining = num_remaining_tokens();
  if (NumScoredAmong(num_remaining) <= max_scored) return num_remaining;
  return std::max(request->num_scored_tokens - num_submitted_tokens, 0) +
         max_scored;
}

bool Sequence::IsBefore(const Sequence& other) const {
  if (request->priority != other.request->priority) {
    return request->priority < other.request->priority;
  }
  if (request->tag != other.request->tag) {
    return request->tag < other.request->tag;
  }
  if (request->arrival_no != other.request->arrival_no) {
    return request->arrival_no < other.request->arrival_no;
  }
  return choice_idx < other.choice_idx;
}

}  // namespace quire
