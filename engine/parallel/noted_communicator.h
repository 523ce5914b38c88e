// A communicator whose use can be seen by who watches the rank.
#ifndef QUIRE_ENGINE_PARALLEL_NOTED_COMMUNICATOR_H_
#define QUIRE_ENGINE_PARALLEL_NOTED_COMMUNICATOR_H_

#include <atomic>
#include <cstdint>
#include <memory>

#include "kernels/communicator.h"

namespace quire {

// Operations of one rank, in all of its groups. One thread calls them, any may
// read. Whoever waits for the others is inside of one.
struct CollectiveActivity {
  std::atomic<int64_t> num_begun{0};
  std::atomic<int64_t> num_ended{0};

  bool IsInside() const { return num_begun != num_ended; }
};

// `inner`, noting its operations in `activity`.
std::unique_ptr<Communicator> NoteCollectives(
    std::unique_ptr<Communicator> inner,
    std::shared_ptr<CollectiveActivity> activity);

}  // namespace quire

#endif  // QUIRE_ENGINE_PARALLEL_NOTED_COMMUNICATOR_H_
