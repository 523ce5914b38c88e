// A libnccl.so.2 for tests: ranks are threads of one process, memory is the
// host's, streams are the emulated device's (device_emulated.cc). A collective
// waits in its stream until every rank's has come to it.
//
// FAKE_NCCL_VERSION: the version it says; 23007 by default.
#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "kernels/cuda/nccl_api.h"
#include "kernels/cuda/simt/emulator.h"
#include "kernels/dtype.h"

namespace quire::cuda {
namespace {

using nccl::DataType;
using nccl::Result;

constexpr Result kSystemError = Result(2);
constexpr Result kInvalidArgument = Result(4);

int64_t SizeOf(DataType type) { return type == nccl::kFloat32 ? 4 : 2; }

float Load(const char* from, DataType type) {
  if (type == nccl::kFloat32) {
    float value;
    std::memcpy(&value, from, 4);
    return value;
  }
  uint16_t bits;
  std::memcpy(&bits, from, 2);
  return type == nccl::kFloat16 ? HalfToFloat(bits) : Bf16ToFloat(bits);
}

void Store(float value, DataType type, char* to) {
  if (type == nccl::kFloat32) {
    std::memcpy(to, &value, 4);
    return;
  }
  const uint16_t bits =
      type == nccl::kFloat16 ? FloatToHalf(value) : FloatToBf16(value);
  std::memcpy(to, &bits, 2);
}

enum class Kind : uint8_t {
  kAllReduce,
  kAllGather,
  kReduceScatter,
  kBroadcast
};

struct Buffers {
  const char* from = nullptr;
  char* to = nullptr;
};

// What the ranks of a group have come to.
struct Collective {
  std::vector<Buffers> ranks;
  int num_arrived = 0;
  bool is_done = false;
};
struct Message {
  const char* from = nullptr;
  bool is_taken = false;
};

struct Group {
  std::mutex mu;
  std::condition_variable has_joined;
  int size = 0;
  int num_joined = 0;
  bool is_aborted = false;
  std::map<int64_t, Collective> collectives;  // By their number.
  std::map<int, size_t> window_bytes;         // Of each window, by its number.
  std::map<std::pair<int, int>, std::vector<std::shared_ptr<Message>>> messages;
};

struct Rank {
  std::shared_ptr<Group> group;
  int rank = 0;
  // Also held by each graph with one of its collectives.
  std::shared_ptr<int> in_graphs = std::make_shared<int>();
  int64_t num_collectives = 0;  // That its stream has come to.
  int num_windows = 0;
  Result async_error = nccl::kSuccess;
};

std::mutex g_mu;
std::map<std::string, std::shared_ptr<Group>> g_groups;
int g_num_ids = 0;
Result g_next_result = nccl::kSuccess;
int g_num_windows = 0;
std::atomic<int> g_num_collectives = 0;
std::atomic<int> g_num_aborts = 0;
std::atomic<int> g_num_destroys = 0;
std::atomic<bool> g_blocks_next = false;
std::atomic<bool> g_is_blocked = false;

Rank* ToRank(nccl::Comm comm) { return reinterpret_cast<Rank*>(comm); }

// As NCCL's, which "keeps polling until all graphs referencing us die".
void Free(Rank* rank) {
  while (rank->in_graphs.use_count() > 1) std::this_thread::yield();
  delete rank;
}

// Every rank's output, of [count] elements (of ranks, for some).
void Compute(Kind kind, int64_t count, DataType type, int root,
             const std::vector<Buffers>& ranks) {
  const int64_t size = SizeOf(type);
  const int64_t num_ranks = static_cast<int64_t>(ranks.size());
  std::vector<std::vector<char>> outputs;
  for (int64_t rank = 0; rank < num_ranks; ++rank) {
    std::vector<char> output;
    if (kind == Kind::kAllGather) {
      for (const Buffers& peer : ranks) {
        output.insert(output.end(), peer.from, peer.from + count * size);
      }
    } else if (kind == Kind::kBroadcast) {
      output.assign(ranks[root].from, ranks[root].from + count * size);
    } else {
      const int64_t first = kind == Kind::kReduceScatter ? rank * count : 0;
      output.resize(count * size);
      for (int64_t i = 0; i < count; ++i) {
        float sum = 0;
        for (const Buffers& peer : ranks) {
          sum += Load(peer.from + (first + i) * size, type);
        }
        Store(sum, type, output.data() + i * size);
      }
    }
    outputs.push_back(std::move(output));
  }
  for (int64_t rank = 0; rank < num_ranks; ++rank) {
    std::memcpy(ranks[rank].to, outputs[rank].data(), outputs[rank].size());
  }
}

Result TakeNextResult() {
  std::lock_guard<std::mutex> lock(g_mu);
  return std::exchange(g_next_result, nccl::kSuccess);
}

void Enqueue(simt::Stream stream, std::function<bool()> attempt) {
  simt::emulator::Queue& queue = *simt::emulator::AsQueue(stream);
  simt::emulator::QueueEntry entry;
  entry.attempt = std::move(attempt);
  queue.entries.push_back(std::move(entry));
}

Result EnqueueCollective(Kind kind, const void* from, void* to, size_t count,
                         DataType type, int root, nccl::Comm comm,
                         simt::Stream stream) {
  if (const Result result = TakeNextResult(); result != nccl::kSuccess) {
    return result;
  }
  Rank* const rank = ToRank(comm);
  const bool is_captured = simt::emulator::AsQueue(stream)->is_capturing;
  // The number is drawn when the stream comes here: each replay is another.
  Enqueue(stream, [=, group = rank->group, own = rank->rank,
                   in_graph = is_captured ? rank->in_graphs : nullptr,
                   number = int64_t{-1}]() mutable {
    std::lock_guard<std::mutex> lock(group->mu);
    if (group->is_aborted) return true;
    if (number < 0) {
      number = rank->num_collectives++;
      Collective& collective = group->collectives[number];
      collective.ranks.resize(group->size);
      collective.ranks[own] = {static_cast<const char*>(from),
                               static_cast<char*>(to)};
      if (++collective.num_arrived == group->size) {
        Compute(kind, static_cast<int64_t>(count), type, root,
                collective.ranks);
        collective.is_done = true;
        ++g_num_collectives;
      }
    }
    return group->collectives[number].is_done;
  });
  return nccl::kSuccess;
}

}  // namespace
}  // namespace quire::cuda

using quire::cuda::Kind;
using quire::cuda::NcclId;
using quire::cuda::Rank;
using quire::cuda::ToRank;
using quire::cuda::nccl::Comm;
using quire::cuda::nccl::DataType;
using quire::cuda::nccl::Result;
using quire::cuda::nccl::Window;
using quire::simt::Stream;
namespace cuda = quire::cuda;

extern "C" {

// ---------------------------------------------------------- for the tests

// Of all groups.
int FakeNcclNumAborts() { return cuda::g_num_aborts.load(); }
int FakeNcclNumDestroys() { return cuda::g_num_destroys.load(); }
// The next all-reduce does not return before its group is aborted.
void FakeNcclBlockNext() { cuda::g_blocks_next = true; }
bool FakeNcclIsBlocked() { return cuda::g_is_blocked; }
// The next call that enqueues returns this.
void FakeNcclFailNext(int result) {
  std::lock_guard<std::mutex> lock(cuda::g_mu);
  cuda::g_next_result = Result(result);
}
void FakeNcclSetAsyncError(void* comm, int result) {
  ToRank(static_cast<Comm>(comm))->async_error = Result(result);
}
int FakeNcclNumWindows() { return cuda::g_num_windows; }
// Collectives that have run, of all groups.
int FakeNcclNumCollectives() { return cuda::g_num_collectives.load(); }

// ---------------------------------------------------------- of NCCL

Result ncclGetVersion(int* version) {
  const char* asked = getenv("FAKE_NCCL_VERSION");
  *version = asked == nullptr ? 23007 : atoi(asked);
  return Result(0);
}

Result ncclGetUniqueId(NcclId* id) {
  std::lock_guard<std::mutex> lock(cuda::g_mu);
  id->fill(0);
  std::memcpy(id->data(), &++cuda::g_num_ids, sizeof(int));
  return Result(0);
}

const char* ncclGetErrorString(Result result) {
  return result == cuda::kSystemError ? "unhandled system error"
                                      : "invalid argument";
}

const char* ncclGetLastError(Comm) { return "the fake was told to fail"; }

Result ncclCommInitRank(Comm* comm, int num_ranks, NcclId id, int rank) {
  std::shared_ptr<cuda::Group> group;
  {
    std::lock_guard<std::mutex> lock(cuda::g_mu);
    auto& entry = cuda::g_groups[std::string(id.data(), id.size())];
    if (entry == nullptr) entry = std::make_shared<cuda::Group>();
    group = entry;
  }
  std::unique_lock<std::mutex> lock(group->mu);
  if (group->size != 0 && group->size != num_ranks) {
    return cuda::kInvalidArgument;
  }
  group->size = num_ranks;
  ++group->num_joined;
  group->has_joined.notify_all();
  group->has_joined.wait(lock,
                         [&] { return group->num_joined == group->size; });
  *comm = reinterpret_cast<Comm>(new Rank{group, rank});
  return Result(0);
}

Result ncclCommDestroy(Comm comm) {
  ++cuda::g_num_destroys;
  cuda::Free(ToRank(comm));
  return Result(0);
}

Result ncclCommAbort(Comm comm) {
  {
    std::lock_guard<std::mutex> lock(ToRank(comm)->group->mu);
    ToRank(comm)->group->is_aborted = true;
  }
  cuda::Free(ToRank(comm));
  ++cuda::g_num_aborts;
  return Result(0);
}

Result ncclCommGetAsyncError(Comm comm, Result* error) {
  *error = ToRank(comm)->async_error;
  return Result(0);
}

Result ncclAllReduce(const void* from, void* to, size_t count, DataType type,
                     cuda::nccl::ReduceOp, Comm comm, Stream stream) {
  if (cuda::g_blocks_next.exchange(false)) {
    // As NCCL does while a peer is not there; what the communicator was is
    // freed by the abort.
    const std::shared_ptr<cuda::Group> group = ToRank(comm)->group;
    cuda::g_is_blocked = true;
    for (;;) {
      std::this_thread::yield();
      std::lock_guard<std::mutex> lock(group->mu);
      if (group->is_aborted) break;
    }
    cuda::g_is_blocked = false;
    return cuda::kSystemError;
  }
  return EnqueueCollective(Kind::kAllReduce, from, to, count, type, 0, comm,
                           stream);
}
Result ncclAllGather(const void* from, void* to, size_t count, DataType type,
                     Comm comm, Stream stream) {
  return EnqueueCollective(Kind::kAllGather, from, to, count, type, 0, comm,
                           stream);
}
Result ncclReduceScatter(const void* from, void* to, size_t count,
                         DataType type, cuda::nccl::ReduceOp, Comm comm,
                         Stream stream) {
  return EnqueueCollective(Kind::kReduceScatter, from, to, count, type, 0, comm,
                           stream);
}
Result ncclBroadcast(const void* from, void* to, size_t count, DataType type,
                     int root, Comm comm, Stream stream) {
  return EnqueueCollective(Kind::kBroadcast, from, to, count, type, root, comm,
                           stream);
}

Result ncclSend(const void* from, size_t, DataType, int peer, Comm comm,
                Stream stream) {
  cuda::Enqueue(stream,
                [group = ToRank(comm)->group, own = ToRank(comm)->rank, peer,
                 from, message = std::shared_ptr<cuda::Message>()]() mutable {
                  std::lock_guard<std::mutex> lock(group->mu);
                  if (message == nullptr) {
                    message = std::make_shared<cuda::Message>();
                    message->from = static_cast<const char*>(from);
                    group->messages[{own, peer}].push_back(message);
                  }
                  return group->is_aborted || message->is_taken;
                });
  return Result(0);
}
Result ncclRecv(void* to, size_t count, DataType type, int peer, Comm comm,
                Stream stream) {
  cuda::Enqueue(stream, [group = ToRank(comm)->group, own = ToRank(comm)->rank,
                         peer, to, num_bytes = count * cuda::SizeOf(type)] {
    std::lock_guard<std::mutex> lock(group->mu);
    auto& messages = group->messages[{peer, own}];
    if (group->is_aborted) return true;
    if (messages.empty()) return false;
    std::memcpy(to, messages.front()->from, num_bytes);
    messages.front()->is_taken = true;
    messages.erase(messages.begin());
    return true;
  });
  return Result(0);
}

Result ncclMemAlloc(void** memory, size_t num_bytes) {
  return posix_memalign(memory, 4096, num_bytes) == 0 ? Result(0)
                                                      : cuda::kSystemError;
}
Result ncclMemFree(void* memory) {
  free(memory);
  return Result(0);
}
Result ncclCommWindowRegister(Comm comm, void* memory, size_t num_bytes,
                              Window* window, int flags) {
  const bool is_aligned =
      reinterpret_cast<uintptr_t>(memory) % 4096 == 0 && num_bytes % 4096 == 0;
  if (!is_aligned || flags != cuda::nccl::kWindowSymmetric) {
    return cuda::kInvalidArgument;
  }
  {
    // Up to 2.30.4 all ranks' have one size.
    Rank* const rank = ToRank(comm);
    std::lock_guard<std::mutex> lock(rank->group->mu);
    const auto [first, is_new] =
        rank->group->window_bytes.emplace(rank->num_windows++, num_bytes);
    if (!is_new && first->second != num_bytes) return cuda::kInvalidArgument;
  }
  std::lock_guard<std::mutex> lock(cuda::g_mu);
  ++cuda::g_num_windows;
  *window = reinterpret_cast<Window>(memory);
  return Result(0);
}
Result ncclCommWindowDeregister(Comm, Window) {
  std::lock_guard<std::mutex> lock(cuda::g_mu);
  --cuda::g_num_windows;
  return Result(0);
}

}  // extern "C"
