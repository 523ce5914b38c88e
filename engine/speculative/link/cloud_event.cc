#include "engine/speculative/link/cloud_event.h"

#include <algorithm>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

namespace quire {

absl::Status CheckCloudEvent(const OutputEvent& event, const Request& request,
                             int64_t num_heard, int64_t num_scored,
                             int32_t vocab_size) {
  const auto malformed = [](absl::string_view what) {
    return absl::InvalidArgumentError(
        absl::StrCat("verify link: an event with ", what));
  };
  const SamplingParams& sampling = request.sampling;
  const int64_t num_prompt_tokens = request.prompt_token_ids.size();
  const int64_t num_tokens = event.tokens.size();
  if (num_heard + num_tokens > sampling.max_tokens) {
    return malformed("more tokens than were asked for");
  }
  num_scored += static_cast<int64_t>(event.prompt_tokens.size());
  if (num_scored >= num_prompt_tokens ||
      (num_scored > 0 && sampling.num_prompt_logprobs < 0)) {
    return malformed("scores that were not asked for");
  }
  const auto has_odd_token = [vocab_size](
                                 const std::vector<TokenOutput>& tokens,
                                 int max_top) {
    for (const TokenOutput& token : tokens) {
      // The drawn token may be listed besides.
      if (token.token_id >= vocab_size ||
          static_cast<int>(token.top_logprobs.size()) > std::max(max_top, 0)) {
        return true;
      }
      for (const TopLogprob& top : token.top_logprobs) {
        if (top.token_id >= vocab_size) return true;
      }
    }
    return false;
  };
  if (has_odd_token(event.tokens, sampling.num_logprobs) ||
      has_odd_token(event.prompt_tokens, sampling.num_prompt_logprobs)) {
    return malformed("tokens outside the vocabulary, or too many of them");
  }
  if (event.num_draft_tokens < 0 || event.num_accepted_tokens < 0 ||
      event.num_accepted_tokens > event.num_draft_tokens ||
      event.num_accepted_tokens > num_tokens || event.num_cached_tokens < 0 ||
      event.num_cached_tokens > num_prompt_tokens) {
    return malformed("figures that cannot be");
  }
  return absl::OkStatus();
}

}  // namespace quire
