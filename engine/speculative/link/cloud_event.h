// What an edge believes of an event from its cloud.
#ifndef QUIRE_ENGINE_SPECULATIVE_LINK_CLOUD_EVENT_H_
#define QUIRE_ENGINE_SPECULATIVE_LINK_CLOUD_EVENT_H_

#include <cstdint>

#include "absl/status/status.h"
#include "engine/request.h"

namespace quire {

// INVALID_ARGUMENT for what cannot have become of the request: the rest of the
// edge relies on it. num_heard, num_scored: tokens of the choice and scored
// tokens of the prompt that were told before. Requires: 0 <= event.choice_idx <
// request.n.
absl::Status CheckCloudEvent(const OutputEvent& event, const Request& request,
                             int64_t num_heard, int64_t num_scored,
                             int32_t vocab_size);

}  // namespace quire

#endif  // QUIRE_ENGINE_SPECULATIVE_LINK_CLOUD_EVENT_H_
