// `quire worker`: a rank of a model that another process serves.
#ifndef QUIRE_CLI_WORKER_H_
#define QUIRE_CLI_WORKER_H_

#include "cli/options.h"

namespace quire {

// Computes until the process that serves ends the group; returns the exit code.
// Either a child of that process, or the first process of another node, which
// answers probes on its own port.
int RunWorker(const ServeOptions& options);

}  // namespace quire

#endif  // QUIRE_CLI_WORKER_H_
