// The options about drafts, in vLLM's spelling.
#ifndef QUIRE_CLI_SPECULATIVE_OPTIONS_H_
#define QUIRE_CLI_SPECULATIVE_OPTIONS_H_

#include "absl/status/statusor.h"
#include "cli/options.h"
#include "engine/speculative/speculative_config.h"

namespace quire {

// What --speculative-model, --num-speculative-tokens and --speculative-config
// ask for; method kNone if none of them is given. INVALID_ARGUMENT naming
// option, field and value.
absl::StatusOr<SpeculativeConfig> MakeSpeculativeConfig(
    const SessionOptions& options);

}  // namespace quire

#endif  // QUIRE_CLI_SPECULATIVE_OPTIONS_H_
