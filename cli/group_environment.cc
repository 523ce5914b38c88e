#include "cli/group_environment.h"

#include <cstdlib>
#include <optional>
#include <string>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "engine/base/status.h"

namespace quire {
namespace {

// As --nnodes allows.
constexpr int kMaxNodes = 1024;
constexpr int kMaxProcesses = 1 << 20;

// The text of a variable; empty: it says nothing.
std::string Text(const char* variable) {
  const char* const text = getenv(variable);
  return text == nullptr ? "" : text;
}

// A number and the variable that says it.
struct Said {
  const char* variable = "";
  int value = 0;

  std::string ToString() const { return absl::StrCat(variable, "=", value); }
};

absl::StatusOr<std::optional<Said>> Number(const char* variable, int min,
                                           int max) {
  const std::string text = Text(variable);
  if (text.empty()) return std::optional<Said>();
  Said said{variable, 0};
  if (!absl::SimpleAtoi(text, &said.value) || said.value < min ||
      said.value > max) {
    return absl::InvalidArgumentError(absl::StrCat(
        variable, "='", text, "' is no number from ", min, " to ", max));
  }
  return std::optional<Said>(said);
}

// What one set of names says.
struct Group {
  std::optional<Said> num_nodes, node_rank;
  std::optional<Said> port;
  std::string address;
  // For who looks for what is missing.
  const char* rank_variable = "";
  const char* address_variable = "";
};

absl::StatusOr<Group> ReadLeaderWorkerSet() {
  Group group;
  group.rank_variable = "LWS_WORKER_INDEX";
  group.address_variable = "LWS_LEADER_ADDRESS";
  QUIRE_ASSIGN_OR_RETURN(group.num_nodes,
                         Number("LWS_GROUP_SIZE", 1, kMaxNodes));
  QUIRE_ASSIGN_OR_RETURN(group.node_rank,
                         Number("LWS_WORKER_INDEX", 0, kMaxNodes - 1));
  group.address = Text("LWS_LEADER_ADDRESS");
  return group;
}

absl::StatusOr<Group> ReadTorchrun() {
  Group group;
  group.rank_variable = "RANK";
  group.address_variable = "MASTER_ADDR";
  QUIRE_ASSIGN_OR_RETURN(const std::optional<Said> local_size,
                         Number("LOCAL_WORLD_SIZE", 1, kMaxProcesses));
  const int per_node = local_size ? local_size->value : 1;
  if (per_node > 1 && !Text("LOCAL_RANK").empty()) {
    return absl::InvalidArgumentError(absl::StrCat(
        local_size->ToString(), " and LOCAL_RANK=", Text("LOCAL_RANK"),
        ": one process on each host is enough, it starts the others "
        "(torchrun --nproc-per-node 1, --tensor-parallel-size)"));
  }
  for (const char* variable : {"GROUP_WORLD_SIZE", "NNODES"}) {
    if (group.num_nodes) break;
    QUIRE_ASSIGN_OR_RETURN(group.num_nodes, Number(variable, 1, kMaxNodes));
  }
  for (const char* variable : {"GROUP_RANK", "NODE_RANK"}) {
    if (group.node_rank) break;
    QUIRE_ASSIGN_OR_RETURN(group.node_rank, Number(variable, 0, kMaxNodes - 1));
  }
  if (!group.num_nodes) {
    QUIRE_ASSIGN_OR_RETURN(group.num_nodes,
                           Number("WORLD_SIZE", 1, kMaxProcesses));
    if (group.num_nodes) {
      if (group.num_nodes->value % per_node != 0) {
        return absl::InvalidArgumentError(absl::StrCat(
            group.num_nodes->ToString(), " processes are no multiple of ",
            local_size->ToString()));
      }
      group.num_nodes->value /= per_node;
    }
  }
  if (!group.node_rank) {
    QUIRE_ASSIGN_OR_RETURN(group.node_rank,
                           Number("RANK", 0, kMaxProcesses - 1));
    if (group.node_rank) group.node_rank->value /= per_node;
  }
  QUIRE_ASSIGN_OR_RETURN(group.port, Number("MASTER_PORT", 1, 65535));
  // There torchrun itself listens, for as long as what it started runs.
  if (group.port && !Text("TORCHELASTIC_RUN_ID").empty()) {
    group.port->value += group.port->value < 65535 ? 1 : -1;
  }
  group.address = Text("MASTER_ADDR");
  return group;
}

}  // namespace

absl::Status ApplyGroupEnvironment(bool has_master_port,
                                   SessionOptions* options) {
  Group group;
  if (options->parent_pid == 0 && options->num_nodes != 1) {
    const bool is_lws =
        !Text("LWS_GROUP_SIZE").empty() || !Text("LWS_WORKER_INDEX").empty();
    QUIRE_ASSIGN_OR_RETURN(group,
                           is_lws ? ReadLeaderWorkerSet() : ReadTorchrun());
  }
  // A rank or an address alone makes no group.
  if (options->num_nodes == 0 && !group.num_nodes) group = Group();
  std::string nodes_said_by = "--nnodes";
  if (options->num_nodes == 0) {
    options->num_nodes = 1;
    if (group.num_nodes) {
      options->num_nodes = group.num_nodes->value;
      nodes_said_by = group.num_nodes->variable;
    }
  }
  std::string rank_said_by = absl::StrCat("--node-rank ", options->node_rank);
  if (options->node_rank < 0) {
    if (group.num_nodes && !group.node_rank && options->num_nodes > 1) {
      return absl::InvalidArgumentError(absl::StrCat(
          group.num_nodes->variable,
          " says that there are several hosts, and "
          "neither ",
          group.rank_variable, " nor --node-rank which one this is"));
    }
    options->node_rank = 0;
    if (group.node_rank && options->num_nodes > 1) {
      options->node_rank = group.node_rank->value;
      rank_said_by = Text(group.node_rank->variable);
      rank_said_by = absl::StrCat(group.node_rank->variable, "=", rank_said_by);
    }
  }
  if (options->node_rank >= options->num_nodes) {
    return absl::InvalidArgumentError(
        absl::StrCat(rank_said_by, " is none of ", options->num_nodes,
                     " nodes (", nodes_said_by, ")"));
  }
  if (options->master_addr.empty()) options->master_addr = group.address;
  if (!has_master_port && group.port) options->master_port = group.port->value;
  if (options->num_nodes > 1 && options->master_addr.empty()) {
    return absl::InvalidArgumentError(absl::StrCat(
        nodes_said_by, " needs --master-addr",
        group.num_nodes ? absl::StrCat(" or ", group.address_variable) : "",
        ", the host of node 0"));
  }
  return absl::OkStatus();
}

}  // namespace quire
