// Ranks as threads, over either kind of host communicator. For tests.
#ifndef QUIRE_KERNELS_HOST_COMMUNICATOR_TEST_GROUP_H_
#define QUIRE_KERNELS_HOST_COMMUNICATOR_TEST_GROUP_H_

#include <sys/socket.h>

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/time/time.h"
#include "engine/base/shared_memory.h"
#include "engine/base/status.h"
#include "kernels/host_communicator.h"

namespace quire {

enum class HostTransport : uint8_t { kSharedMemory, kSockets };

class HostTestGroup {
 public:
  HostTestGroup(HostTransport transport, int size,
                absl::Duration timeout = absl::Seconds(20)) {
    std::vector<std::vector<int>> sockets(size, std::vector<int>(size, -1));
    if (transport == HostTransport::kSockets) {
      for (int a = 0; a < size; ++a) {
        for (int b = a + 1; b < size; ++b) {
          int pair[2];
          QUIRE_CHECK(
              socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) == 0);
          sockets[a][b] = pair[0];
          sockets[b][a] = pair[1];
        }
      }
    } else {
      memory_.emplace(*SharedMemory::Create(SharedCommunicatorBytes(size)));
    }
    for (int rank = 0; rank < size; ++rank) {
      HostCommunicatorOptions options;
      options.rank = rank;
      options.size = size;
      options.timeout = timeout;
      auto created =
          transport == HostTransport::kSockets
              ? NewSocketCommunicator(std::move(sockets[rank]), options)
              : NewSharedCommunicator(memory_->data(), options);
      QUIRE_CHECK(created.ok());
      ranks_.push_back(std::move(*created));
    }
  }

  int size() const { return static_cast<int>(ranks_.size()); }
  std::unique_ptr<Communicator>& operator[](int rank) { return ranks_[rank]; }

  // Runs body(communicator) on a thread for each rank; what they return.
  std::vector<absl::Status> Run(
      const std::function<absl::Status(Communicator&)>& body) {
    std::vector<absl::Status> results(size());
    std::vector<std::thread> threads;
    for (int rank = 0; rank < size(); ++rank) {
      threads.emplace_back([&, rank] { results[rank] = body(*ranks_[rank]); });
    }
    for (std::thread& thread : threads) thread.join();
    return results;
  }

 private:
  std::optional<SharedMemory> memory_;
  std::vector<std::unique_ptr<Communicator>> ranks_;
};

}  // namespace quire

#endif  // QUIRE_KERNELS_HOST_COMMUNICATOR_TEST_GROUP_H_
