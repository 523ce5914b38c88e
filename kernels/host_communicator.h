// Collectives between ranks that compute on CPUs: over memory that processes
// (or threads) of one host share, or over TCP between hosts.
//
// Both give the same bits, on every rank and in every run: sums are f32, in one
// order of the ranks, rounded once (rank_sum.h).
#ifndef QUIRE_KERNELS_HOST_COMMUNICATOR_H_
#define QUIRE_KERNELS_HOST_COMMUNICATOR_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "kernels/communicator.h"

namespace quire {

// More ranks than one host has GPUs or NUMA nodes; bounds the shared memory.
inline constexpr int kMaxHostRanks = 64;

struct HostCommunicatorOptions {
  int rank = 0;  // In [0, size).
  int size = 1;
  // How long a rank waits for a peer that says nothing.
  absl::Duration timeout = absl::Seconds(30);
  // How this rank is called in errors, "rank 5" of all; -1: as in the group.
  std::vector<int> global_ranks = {};
};

// Of a group of one rank: copies where something is to be copied.
std::unique_ptr<Communicator> NewNullCommunicator();

// Bytes of shared memory that a group of `size` ranks needs. Only what is used
// takes memory.
int64_t SharedCommunicatorBytes(int size);

// `memory`: SharedCommunicatorBytes(size) bytes, all zero before the first rank
// comes, the same for all ranks; borrowed. Ranks may be threads of a process. A
// peer process that dies is noticed within a tenth of a second by who waits for
// it. INVALID_ARGUMENT for a rank or size out of range, ALREADY_EXISTS if this
// rank is there already.
absl::StatusOr<std::unique_ptr<Communicator>> NewSharedCommunicator(
    char* memory, const HostCommunicatorOptions& options);

// `sockets`: one connected stream socket per peer, -1 for this rank; taken
// over, also on failure. A peer whose process dies is noticed at once (its
// kernel closes the connection), one whose host falls silent after the timeout.
absl::StatusOr<std::unique_ptr<Communicator>> NewSocketCommunicator(
    std::vector<int> sockets, const HostCommunicatorOptions& options);

}  // namespace quire

#endif  // QUIRE_KERNELS_HOST_COMMUNICATOR_H_
