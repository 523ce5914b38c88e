// What the environment says about the hosts that run a model together.
#ifndef QUIRE_CLI_GROUP_ENVIRONMENT_H_
#define QUIRE_CLI_GROUP_ENVIRONMENT_H_

#include "absl/status/status.h"
#include "cli/options.h"

namespace quire {

// Fills in, value by value, what the command line does not say: the number of
// hosts, this one's, the leader's address and port, from the variables of a
// LeaderWorkerSet or else of torchrun (and of operators that set its names).
// There WORLD_SIZE and RANK count processes, LOCAL_WORLD_SIZE of them on each
// host; GROUP_WORLD_SIZE and GROUP_RANK (also NNODES and NODE_RANK) count
// hosts. At MASTER_PORT torchrun (TORCHELASTIC_RUN_ID) listens itself: the port
// is the next one then. Who says one host (--nnodes 1) is not asked for more,
// nor is a child. has_master_port: --master-port was given. INVALID_ARGUMENT
// naming the option or variable, also where the environment says how many hosts
// there are and nobody says which one this is.
absl::Status ApplyGroupEnvironment(bool has_master_port,
                                   SessionOptions* options);

}  // namespace quire

#endif  // QUIRE_CLI_GROUP_ENVIRONMENT_H_
