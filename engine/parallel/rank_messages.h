// What ranks tell each other while they start and run: plain data.
#ifndef QUIRE_ENGINE_PARALLEL_RANK_MESSAGES_H_
#define QUIRE_ENGINE_PARALLEL_RANK_MESSAGES_H_

#include <array>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "engine/parallel/step_plan_codec.h"
#include "engine/parallel/tcp.h"
#include "engine/parallel/wire.h"

namespace quire {

// What has to be the same on all ranks, by name: "version", "model",
// "--dtype", in the order in which it is compared.
using RankFacts = std::vector<std::pair<std::string, std::string>>;

// A worker's first message.
struct Hello {
  int32_t rank = 0;
  std::string name;  // Host and process, for people.
  RankFacts facts;
  int32_t mesh_port = 0;  // Where it listens for other ranks; 0: nowhere.
};

struct Welcome {
  std::string leader_name;
  std::array<uint64_t, 2> token = {};  // Of this run; the mesh asks for it.
  // [size], where ranks listen; an empty host: the leader's.
  std::vector<HostPort> mesh;
};

struct MeshHello {
  std::array<uint64_t, 2> token = {};
  bool is_pipeline = false;
  int32_t from = 0;  // Rank of all.
};

// What a rank's runner was prepared for. All must be the same, but for the
// longest context and the number of blocks, of which the least counts.
struct LoadedFacts {
  StepPlanLimits limits;
  int32_t steps_in_flight = 1;

  bool operator==(const LoadedFacts&) const = default;
};

struct StepDigest {
  int64_t step_idx = 0;  // Plans before it.
  uint64_t hash = 0;     // Of the tokens drawn.
};

struct Heartbeat {
  int64_t num_steps_done = 0;       // Plans executed, and collected.
  int64_t progress = 0;             // Layers done and collectives begun.
  std::vector<StepDigest> digests;  // Of those since the last heartbeat.
};

template <typename Wire>
void Visit(Wire& wire, HostPort& value) {
  auto& [host, port] = value;
  wire(host);
  wire(port);
}
template <typename Wire>
void Visit(Wire& wire, std::array<uint64_t, 2>& value) {
  wire(value[0]);
  wire(value[1]);
}
template <typename Wire>
void Visit(Wire& wire, Hello& value) {
  auto& [rank, name, facts, mesh_port] = value;
  wire(rank);
  wire(name);
  wire(facts);
  wire(mesh_port);
}
template <typename Wire>
void Visit(Wire& wire, Welcome& value) {
  auto& [leader_name, token, mesh] = value;
  wire(leader_name);
  Visit(wire, token);
  wire(mesh);
}
template <typename Wire>
void Visit(Wire& wire, MeshHello& value) {
  auto& [token, is_pipeline, from] = value;
  Visit(wire, token);
  wire(is_pipeline);
  wire(from);
}
template <typename Wire>
void Visit(Wire& wire, StepPlanLimits& value) {
  auto& [max_num_seqs, max_num_batched_tokens, max_model_len, num_blocks,
         vocab_size] = value;
  wire(max_num_seqs);
  wire(max_num_batched_tokens);
  wire(max_model_len);
  wire(num_blocks);
  wire(vocab_size);
}
template <typename Wire>
void Visit(Wire& wire, LoadedFacts& value) {
  auto& [limits, steps_in_flight] = value;
  wire(limits);
  wire(steps_in_flight);
}
template <typename Wire>
void Visit(Wire& wire, StepDigest& value) {
  auto& [step_idx, hash] = value;
  wire(step_idx);
  wire(hash);
}
template <typename Wire>
void Visit(Wire& wire, Heartbeat& value) {
  auto& [num_steps_done, progress, digests] = value;
  wire(num_steps_done);
  wire(progress);
  wire(digests);
}

template <typename T>
std::string ToBytes(const T& value) {
  std::string bytes;
  WireWriter wire(&bytes);
  wire(value);
  return bytes;
}

// DATA_LOSS if the bytes are no T.
template <typename T>
absl::StatusOr<T> FromBytes(absl::string_view bytes) {
  T value;
  WireReader wire(bytes);
  wire(value);
  if (!wire.AtEnd()) {
    return absl::DataLossError(
        absl::StrCat(bytes.size(),
                     " bytes are not the message that they are "
                     "said to be"));
  }
  return value;
}

// OK, or INVALID_ARGUMENT with the first fact that differs and both values:
// "--dtype is bfloat16 on A and auto on B".
absl::Status CompareFacts(const RankFacts& ours, absl::string_view our_name,
                          const RankFacts& theirs,
                          absl::string_view their_name);
absl::Status CompareLoaded(const LoadedFacts& ours, absl::string_view our_name,
                           const LoadedFacts& theirs,
                           absl::string_view their_name);
// What both can do. Requires: CompareLoaded is OK.
LoadedFacts LeastOf(const LoadedFacts& a, const LoadedFacts& b);

}  // namespace quire

#endif  // QUIRE_ENGINE_PARALLEL_RANK_MESSAGES_H_
