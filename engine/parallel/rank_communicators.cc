#include "engine/parallel/rank_communicators.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "engine/base/clock.h"
#include "engine/base/status.h"
#include "engine/parallel/control_link.h"
#include "kernels/host_communicator.h"

namespace quire {
namespace {

// Connections of this rank's groups, [0] tensor and [1] pipeline.
struct Mesh {
  std::array<std::vector<int>, 2> groups;     // Ranks of all.
  std::array<std::vector<OwnedFd>, 2> links;  // [group size]
};

int IndexIn(const std::vector<int>& group, int rank) {
  return static_cast<int>(std::find(group.begin(), group.end(), rank) -
                          group.begin());
}

// Each pair of ranks has one connection, made by the higher one.
absl::Status ConnectToLower(const CommunicatorOptions& options, Mesh& mesh) {
  for (int kind = 0; kind < 2; ++kind) {
    for (size_t i = 0; i < mesh.links[kind].size(); ++i) {
      const int peer = mesh.groups[kind][i];
      if (peer >= options.rank) break;
      HostPort address = options.welcome.mesh[peer];
      if (address.host.empty()) address.host = options.master_host;
      absl::StatusOr<OwnedFd> fd = ConnectTcp(address, options.deadline);
      if (!fd.ok()) {
        return absl::UnavailableError(absl::StrCat("rank ", options.rank, " ",
                                                   fd.status().message(),
                                                   " (rank ", peer, ")"));
      }
      SetTcpOptions(fd->get(), options.timeout);
      // The hello, then the connection is the communicator's.
      ControlLink link(OwnedFd(dup(fd->get())));
      const MeshHello hello = {options.welcome.token, kind == 1, options.rank};
      QUIRE_RETURN_IF_ERROR(
          link.Send(MessageType::kMeshHello, ToBytes(hello), absl::Seconds(5)));
      mesh.links[kind][i] = std::move(*fd);
    }
  }
  return absl::OkStatus();
}

// Where the connection belongs; null if it is not one of this mesh.
OwnedFd* PlaceFor(const CommunicatorOptions& options, const MeshHello& hello,
                  Mesh& mesh) {
  if (hello.token != options.welcome.token) return nullptr;
  const int kind = hello.is_pipeline ? 1 : 0;
  const size_t at = IndexIn(mesh.groups[kind], hello.from);
  if (at >= mesh.links[kind].size() || hello.from <= options.rank ||
      mesh.links[kind][at].get() >= 0) {
    return nullptr;
  }
  return &mesh.links[kind][at];
}

std::vector<int> MissingRanks(const CommunicatorOptions& options,
                              const Mesh& mesh) {
  std::vector<int> missing;
  for (int kind = 0; kind < 2; ++kind) {
    for (size_t i = 0; i < mesh.links[kind].size(); ++i) {
      const int peer = mesh.groups[kind][i];
      if (peer > options.rank && mesh.links[kind][i].get() < 0) {
        missing.push_back(peer);
      }
    }
  }
  return missing;
}

absl::Status AcceptHigher(const CommunicatorOptions& options, Mesh& mesh) {
  for (;;) {
    const std::vector<int> missing = MissingRanks(options, mesh);
    if (missing.empty()) return absl::OkStatus();
    absl::StatusOr<OwnedFd> fd =
        AcceptTcp(options.mesh_listener, options.deadline);
    if (!fd.ok()) {
      return absl::UnavailableError(
          absl::StrCat("rank ", options.rank, ": rank ",
                       absl::StrJoin(missing, ", "), " has not connected"));
    }
    // A connection of somebody else must not hold up the ranks.
    ControlLink link(OwnedFd(dup(fd->get())));
    const auto message =
        link.Receive(256, Clock::Monotonic()->Now() + absl::Seconds(2));
    if (!message.ok() || message->type != MessageType::kMeshHello) continue;
    const auto hello = FromBytes<MeshHello>(message->body);
    if (!hello.ok()) continue;
    OwnedFd* const place = PlaceFor(options, *hello, mesh);
    if (place == nullptr) continue;
    SetTcpOptions(fd->get(), options.timeout);
    *place = std::move(*fd);
  }
}

absl::StatusOr<std::unique_ptr<Communicator>> NewGroup(
    const CommunicatorOptions& options, std::vector<int> group,
    int64_t memory_offset, std::vector<OwnedFd> links) {
  HostCommunicatorOptions host;
  host.rank = IndexIn(group, options.rank);
  host.size = static_cast<int>(group.size());
  host.timeout = options.timeout;
  host.global_ranks = std::move(group);
  if (host.size == 1) return std::unique_ptr<Communicator>();
  if (memory_offset >= 0) {
    return NewSharedCommunicator(options.memory->data() + memory_offset, host);
  }
  std::vector<int> sockets;
  for (OwnedFd& link : links) sockets.push_back(link.release());
  return NewSocketCommunicator(std::move(sockets), host);
}

}  // namespace

ParallelConfig RankCommunicators::Config(const RankLayout& layout,
                                         int rank) const {
  ParallelConfig config;
  config.tensor_size = layout.tensor_size;
  config.pipeline_size = layout.pipeline_size;
  config.rank = rank;
  config.size = layout.size();
  config.local_size = layout.local_size();
  config.tensor = tensor.get();
  config.pipeline = pipeline.get();
  return config;
}

void RankCommunicators::Abort() {
  if (tensor != nullptr) tensor->Abort();
  if (pipeline != nullptr) pipeline->Abort();
}

bool NeedsMesh(const RankLayout& layout, int rank) {
  for (const bool is_pipeline : {false, true}) {
    if (!IsLocal(layout, GroupOf(layout, rank, is_pipeline))) return true;
  }
  return false;
}

absl::StatusOr<RankCommunicators> ConnectRanks(
    const CommunicatorOptions& options) {
  const RankLayout& layout = options.layout;
  Mesh mesh;
  for (int kind = 0; kind < 2; ++kind) {
    mesh.groups[kind] = GroupOf(layout, options.rank, kind == 1);
    if (!IsLocal(layout, mesh.groups[kind])) {
      mesh.links[kind].resize(mesh.groups[kind].size());
    }
  }
  QUIRE_RETURN_IF_ERROR(ConnectToLower(options, mesh));
  QUIRE_RETURN_IF_ERROR(AcceptHigher(options, mesh));
  const NodeMemoryLayout memory =
      LayOutNodeMemory(layout, layout.NodeOf(options.rank));
  if (options.memory != nullptr &&
      options.memory->num_bytes() < memory.num_bytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("the node shares ", options.memory->num_bytes(),
                     " bytes instead of ", memory.num_bytes));
  }
  const int local_rank = options.rank % layout.local_size();
  RankCommunicators ranks;
  QUIRE_ASSIGN_OR_RETURN(
      ranks.tensor,
      NewGroup(options, mesh.groups[0], memory.tensor_groups[local_rank],
               std::move(mesh.links[0])));
  QUIRE_ASSIGN_OR_RETURN(
      ranks.pipeline,
      NewGroup(options, mesh.groups[1], memory.pipeline_groups[local_rank],
               std::move(mesh.links[1])));
  const auto activity = std::make_shared<CollectiveActivity>();
  for (auto* group : {&ranks.tensor, &ranks.pipeline}) {
    if (*group != nullptr)
      *group = NoteCollectives(std::move(*group), activity);
  }
  ranks.activity = activity;
  return ranks;
}

}  // namespace quire
