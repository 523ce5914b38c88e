// The other ranks of this host, as child processes.
#ifndef QUIRE_ENGINE_PARALLEL_LOCAL_RANKS_H_
#define QUIRE_ENGINE_PARALLEL_LOCAL_RANKS_H_

#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/base/shared_memory.h"
#include "engine/parallel/tcp.h"

namespace quire {

// What a child finds at fixed places.
inline constexpr int kWorkerLinkFd = 3;    // If rank 0 is its parent.
inline constexpr int kWorkerMemoryFd = 4;  // The node's shared memory.

struct WorkerCommand {
  int rank = 0;
  std::vector<std::string> args;  // With the program first.
  // Set, or replaced, in the environment.
  std::vector<std::pair<std::string, std::string>> environment;
};

// Thread-compatible. The destructor ends what still runs, by SIGKILL, and waits
// for it.
class LocalRanks {
 public:
  // Starts one process for each command. Children are ended by the kernel with
  // the thread that calls this (a child asks for that: DieWithParent), so it
  // must live as long as the process. `links`: filled with one connection per
  // child if not null. RESOURCE_EXHAUSTED with the reason.
  static absl::StatusOr<LocalRanks> Start(
      const std::vector<WorkerCommand>& commands, int memory_fd,
      std::vector<OwnedFd>* links);

  LocalRanks() = default;
  LocalRanks(LocalRanks&&) = default;
  LocalRanks& operator=(LocalRanks&& other) noexcept;
  ~LocalRanks();

  // UNAVAILABLE "rank 2 (process 123) was ended by signal 9" for the first one
  // that has ended, those that were killed before those that ended themselves:
  // a rank that loses another ends, too.
  absl::Status Check();
  // Of those alone that were killed.
  absl::Status CheckKilled();
  // 0: not one of these.
  int PidOf(int rank) const;
  void Kill();
  // Waits until all have ended by themselves; kills the rest.
  void WaitAndKill(absl::Duration timeout);

 private:
  struct Child {
    int rank = 0;
    int pid = 0;
    bool has_ended = false;
    int wait_status = 0;
  };
  void Reap();
  static absl::Status EndOf(const Child& child);

  std::vector<Child> children_;
};

// In a child: the process ends when its parent does, also if that was before
// this call. `parent_pid`: as the parent said.
void DieWithParent(int parent_pid);

}  // namespace quire

#endif  // QUIRE_ENGINE_PARALLEL_LOCAL_RANKS_H_
