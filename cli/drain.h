// `quire drain`: waits until a server is idle; a preStop hook without a shell.
#ifndef QUIRE_CLI_DRAIN_H_
#define QUIRE_CLI_DRAIN_H_

#include "cli/options.h"

namespace quire {

// Polls /metrics until no request runs or waits, or the server that has
// answered is there no more. Returns the exit code: 75 if the timeout passed,
// 69 if nobody ever answered, 64 for a URL or authorities that are none.
int RunDrain(const DrainOptions& options);

}  // namespace quire

#endif  // QUIRE_CLI_DRAIN_H_
