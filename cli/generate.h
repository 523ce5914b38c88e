// `quire generate`: one prompt, one answer, no server.
#ifndef QUIRE_CLI_GENERATE_H_
#define QUIRE_CLI_GENERATE_H_

#include "cli/options.h"

namespace quire {

// Prints the text as it comes, or with --json one object: prompt_token_ids,
// token_ids, logprobs (with --logprobs the top ones too), text, finish_reason.
// Returns the exit code.
int RunGenerate(const GenerateOptions& options);

}  // namespace quire

#endif  // QUIRE_CLI_GENERATE_H_
