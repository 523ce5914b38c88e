// What every host communicator must do, said as checks that return what is
// wrong: the tests expect nothing, those of planted bugs something.
#ifndef QUIRE_KERNELS_HOST_COMMUNICATOR_CHECKS_H_
#define QUIRE_KERNELS_HOST_COMMUNICATOR_CHECKS_H_

#include <string>

#include "kernels/host_communicator_test_group.h"

namespace quire {

// Each returns the first thing that is wrong, or "".

// Sums, gathers, parts and broadcasts of random values in every dtype and of
// sizes from none to several pieces, compared bit by bit with the sum of
// neighbours and their sums; ranks are late at random.
std::string CheckCollectives(HostTransport transport, int size);
// Messages of many sizes between all pairs, in both directions.
std::string CheckMessages(HostTransport transport, int size);
// Ranks that call different things, and Receives of another size.
std::string CheckMismatches(HostTransport transport);
// Abort ends what waits, on every rank, and nothing works after it.
std::string CheckAbort(HostTransport transport);
// Two processes; one is killed while the other waits for it: named within a
// second.
std::string CheckDeath(HostTransport transport);

}  // namespace quire

#endif  // QUIRE_KERNELS_HOST_COMMUNICATOR_CHECKS_H_
