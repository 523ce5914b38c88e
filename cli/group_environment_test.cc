// Command lines of processes that make a group: nodes, ranks, workers.
#include <cstdlib>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "cli/options.h"
#include "gtest/gtest.h"

namespace quire {
namespace {

// Sets variables for as long as it lives.
class ScopedEnvironment {
 public:
  using Variables = std::vector<std::pair<const char*, const char*>>;
  explicit ScopedEnvironment(Variables variables)
      : variables_(std::move(variables)) {
    for (const auto& [name, value] : variables_) setenv(name, value, 1);
  }
  ~ScopedEnvironment() {
    for (const auto& [name, value] : variables_) unsetenv(name);
  }

 private:
  const Variables variables_;
};

TEST(GroupEnvironmentTest, NodesComeFromTheCommandLineOrTheGroupsEnvironment) {
  auto parsed = ParseCommandLine({"serve"});
  ASSERT_TRUE(parsed.ok());
  EXPECT_EQ(parsed->serve.model.num_nodes, 1);
  EXPECT_EQ(parsed->serve.model.node_rank, 0);
  EXPECT_EQ(parsed->serve.model.tensor_parallel_size, "auto");
  {
    const ScopedEnvironment lws({{"LWS_GROUP_SIZE", "3"},
                                 {"LWS_WORKER_INDEX", "2"},
                                 {"LWS_LEADER_ADDRESS", "leader.group"},
                                 {"WORLD_SIZE", "7"}});
    parsed = ParseCommandLine({"serve"});
    ASSERT_TRUE(parsed.ok()) << parsed.status();
    EXPECT_EQ(parsed->serve.model.num_nodes, 3);
    EXPECT_EQ(parsed->serve.model.node_rank, 2);
    EXPECT_EQ(parsed->serve.model.master_addr, "leader.group");
    EXPECT_EQ(parsed->serve.model.master_port, 29500);
    parsed = ParseCommandLine({"serve", "--nnodes", "2", "--node-rank=1",
                               "--dist-init-addr", "other:20000"});
    ASSERT_TRUE(parsed.ok());
    EXPECT_EQ(parsed->serve.model.num_nodes, 2);
    EXPECT_EQ(parsed->serve.model.node_rank, 1);
    EXPECT_EQ(parsed->serve.model.master_addr, "other:20000");
    // Another command is none of a group.
    EXPECT_EQ(ParseCommandLine({"chat"})->chat.model.num_nodes, 0);
  }
  {
    const ScopedEnvironment torchrun({{"WORLD_SIZE", "2"},
                                      {"RANK", "1"},
                                      {"MASTER_ADDR", "first"},
                                      {"MASTER_PORT", "1234"}});
    parsed = ParseCommandLine({"worker"});
    ASSERT_TRUE(parsed.ok());
    EXPECT_EQ(parsed->command, Command::kWorker);
    EXPECT_EQ(parsed->serve.model.node_rank, 1);
    EXPECT_EQ(parsed->serve.model.master_port, 1234);
  }
  const ScopedEnvironment wrong(
      ScopedEnvironment::Variables{{"LWS_GROUP_SIZE", "two"}});
  EXPECT_FALSE(ParseCommandLine({"serve"}).ok());
  EXPECT_FALSE(ParseCommandLine({"serve", "--nnodes", "2"}).ok());
  EXPECT_FALSE(ParseCommandLine({"serve", "--nnodes", "2", "--node-rank", "2",
                                 "--master-addr", "x"})
                   .ok());
  // One host is one, whatever the environment says of others.
  EXPECT_TRUE(ParseCommandLine({"serve", "--nnodes", "1"}).ok());
}

// "nodes/rank/address:port", or the error.
std::string NodesOf(const ScopedEnvironment::Variables& variables,
                    std::vector<std::string> args) {
  const ScopedEnvironment environment(variables);
  args.insert(args.begin(), "serve");
  const auto parsed = ParseCommandLine(args);
  if (!parsed.ok()) return std::string(parsed.status().message());
  const SessionOptions& model = parsed->serve.model;
  return absl::StrCat(model.num_nodes, "/", model.node_rank, "/",
                      model.master_addr, ":", model.master_port);
}

TEST(GroupEnvironmentTest, AnOptionCountsBeforeItsVariableAlone) {
  const ScopedEnvironment::Variables lws = {{"LWS_GROUP_SIZE", "3"},
                                            {"LWS_WORKER_INDEX", "2"},
                                            {"LWS_LEADER_ADDRESS", "leader"}};
  EXPECT_EQ(NodesOf(lws, {"--nnodes", "4"}), "4/2/leader:29500");
  EXPECT_EQ(NodesOf(lws, {"--node-rank", "1"}), "3/1/leader:29500");
  EXPECT_EQ(NodesOf(lws, {"--master-addr", "a"}), "3/2/a:29500");
  EXPECT_EQ(NodesOf(lws, {"--master-port", "7"}), "3/2/leader:7");
  EXPECT_EQ(NodesOf(lws, {"--nnodes", "1"}), "1/0/:29500");
  EXPECT_EQ(NodesOf(lws, {"--nnodes", "2"}),
            "LWS_WORKER_INDEX=2 is none of 2 nodes (--nnodes)");
  EXPECT_EQ(NodesOf(lws, {"--node-rank", "3"}),
            "--node-rank 3 is none of 3 nodes (LWS_GROUP_SIZE)");
  // The address alone, as a pod's template may set it.
  EXPECT_EQ(NodesOf({{"MASTER_ADDR", "m"}, {"MASTER_PORT", "8"}},
                    {"--nnodes", "2", "--node-rank", "1"}),
            "2/1/m:8");
  EXPECT_EQ(NodesOf({{"MASTER_ADDR", "m"}, {"RANK", "1"}}, {}), "1/0/:29500");
}

TEST(GroupEnvironmentTest, TorchrunCountsProcesses) {
  using Variables = ScopedEnvironment::Variables;
  const auto with = [](Variables more) {
    more.push_back({"MASTER_ADDR", "m"});
    return more;
  };
  // Of an operator that starts one launcher on each host.
  const Variables pods =
      with({{"WORLD_SIZE", "16"}, {"RANK", "8"}, {"LOCAL_WORLD_SIZE", "8"}});
  EXPECT_EQ(NodesOf(pods, {}), "2/1/m:29500");
  EXPECT_EQ(NodesOf(with({{"WORLD_SIZE", "3"}, {"RANK", "2"}}), {}),
            "3/2/m:29500");
  EXPECT_EQ(NodesOf(with({{"WORLD_SIZE", "3"},
                          {"RANK", "2"},
                          {"LOCAL_RANK", "0"},
                          {"LOCAL_WORLD_SIZE", "1"},
                          {"GROUP_WORLD_SIZE", "3"},
                          {"GROUP_RANK", "2"}}),
                    {}),
            "3/2/m:29500");
  EXPECT_EQ(NodesOf(with({{"WORLD_SIZE", "16"},
                          {"NNODES", "2"},
                          {"NODE_RANK", "1"},
                          {"RANK", "8"}}),
                    {}),
            "2/1/m:29500");
  // One of eight processes of a host.
  const std::string one_of_many = NodesOf(with({{"WORLD_SIZE", "16"},
                                                {"RANK", "9"},
                                                {"LOCAL_RANK", "1"},
                                                {"LOCAL_WORLD_SIZE", "8"},
                                                {"GROUP_RANK", "1"}}),
                                          {});
  EXPECT_TRUE(absl::StrContains(one_of_many,
                                "LOCAL_WORLD_SIZE=8 and "
                                "LOCAL_RANK=1: one process"))
      << one_of_many;
  EXPECT_EQ(NodesOf(with({{"WORLD_SIZE", "15"},
                          {"RANK", "0"},
                          {"LOCAL_WORLD_SIZE", "8"}}),
                    {}),
            "WORLD_SIZE=15 processes are no multiple of LOCAL_WORLD_SIZE=8");
}

TEST(GroupEnvironmentTest, TorchrunItselfListensAtMasterPort) {
  const auto with = [](const char* port) {
    return ScopedEnvironment::Variables{
        {"TORCHELASTIC_RUN_ID", "none"},
        {"GROUP_WORLD_SIZE", "2"},
        {"GROUP_RANK", "1"},
        {"MASTER_ADDR", "m"},
        {"MASTER_PORT", port},
    };
  };
  EXPECT_EQ(NodesOf(with("1234"), {}), "2/1/m:1235");
  EXPECT_EQ(NodesOf(with("65535"), {}), "2/1/m:65534");
  EXPECT_EQ(NodesOf(with("1234"), {"--master-port", "1234"}), "2/1/m:1234");
}

TEST(GroupEnvironmentTest, WhatTheGroupsEnvironmentLacksIsNamed) {
  EXPECT_EQ(NodesOf({{"LWS_GROUP_SIZE", "2"}, {"LWS_LEADER_ADDRESS", "x"}}, {}),
            "LWS_GROUP_SIZE says that there are several hosts, and neither "
            "LWS_WORKER_INDEX nor --node-rank which one this is");
  EXPECT_EQ(NodesOf({{"WORLD_SIZE", "2"}, {"MASTER_ADDR", "x"}}, {}),
            "WORLD_SIZE says that there are several hosts, and neither RANK "
            "nor --node-rank which one this is");
  EXPECT_EQ(NodesOf({{"LWS_GROUP_SIZE", "1"}}, {}), "1/0/:29500");
  EXPECT_EQ(NodesOf({{"LWS_GROUP_SIZE", "2"}, {"LWS_WORKER_INDEX", "1"}}, {}),
            "LWS_GROUP_SIZE needs --master-addr or LWS_LEADER_ADDRESS, the "
            "host of node 0");
  EXPECT_EQ(NodesOf({}, {"--nnodes", "2"}),
            "--nnodes needs --master-addr, the host of node 0");
  EXPECT_EQ(NodesOf({{"WORLD_SIZE", "2"},
                     {"RANK", "0"},
                     {"MASTER_ADDR", "x"},
                     {"MASTER_PORT", "70000"}},
                    {}),
            "MASTER_PORT='70000' is no number from 1 to 65535");
  EXPECT_EQ(NodesOf({{"LWS_GROUP_SIZE", "two"}}, {}),
            "LWS_GROUP_SIZE='two' is no number from 1 to 1024");
}

TEST(GroupEnvironmentTest, WorkersAreStartedWithTheSessionsOptions) {
  const ScopedEnvironment environment(
      ScopedEnvironment::Variables{{"QUIRE_BLOCK_SIZE", "32"}});
  const auto parsed = ParseCommandLine(
      {"serve", "m", "-tp", "4", "--port", "1", "--dtype", "float32",
       "--no-enable-prefix-caching", "--dtype", "bfloat16", "-pp", "2"});
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  std::vector<std::string> args = parsed->serve.model.args;
  for (const char* expected :
       {"--model=m", "--tensor-parallel-size=4", "--pipeline-parallel-size=2",
        "--dtype=bfloat16", "--block-size=32",
        "--enable-prefix-caching=false"}) {
    EXPECT_EQ(std::count(args.begin(), args.end(), expected), 1) << expected;
  }
  EXPECT_EQ(args.size(), 6u);
  // Read again, they say the same.
  args.insert(args.begin(), "worker");
  const auto again = ParseCommandLine(args);
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ(again->serve.model.dtype, "bfloat16");
  EXPECT_FALSE(again->serve.model.enable_prefix_caching);
  EXPECT_EQ(again->serve.model.block_size, 32);
}

}  // namespace
}  // namespace quire
