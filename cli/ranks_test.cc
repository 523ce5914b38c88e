#include "cli/ranks.h"

#include <stdlib.h>

#include <filesystem>
#include <fstream>

#include "absl/strings/match.h"
#include "absl/strings/str_format.h"
#include "engine/parallel/rank_messages.h"
#include "gtest/gtest.h"

namespace quire {
namespace {

absl::Status FitsAll(int) { return absl::OkStatus(); }
absl::Status FitsPowersOfTwo(int size) {
  return (size & (size - 1)) == 0
             ? absl::OkStatus()
             : absl::InvalidArgumentError("heads are not divisible");
}

NodeDevices Gpus(int count) {
  NodeDevices devices;
  devices.is_gpu = true;
  for (int i = 0; i < count; ++i) devices.gpus.push_back(absl::StrCat(i + 4));
  return devices;
}

NodeDevices Cpu(int num_threads, int num_nodes = 1) {
  NodeDevices devices;
  devices.num_threads = num_threads;
  for (int node = 0; node < num_nodes; ++node) {
    devices.cpus_of_nodes.push_back({2 * node, 2 * node + 1});
  }
  return devices;
}

TEST(PlanRanksTest, AutoTakesTheGpusThatDivideTheModel) {
  SessionOptions options;
  EXPECT_EQ(PlanRanks(options, Gpus(4), FitsAll)->layout.tensor_size, 4);
  EXPECT_EQ(PlanRanks(options, Gpus(3), FitsPowersOfTwo)->layout.tensor_size,
            2);
  EXPECT_EQ(PlanRanks(options, Gpus(1), FitsAll)->layout.size(), 1);
  // A GPU whose number is not known.
  EXPECT_EQ(PlanRanks(options, Gpus(0), FitsAll)->layout.size(), 1);
  EXPECT_EQ(PlanRanks(options, Cpu(16), FitsAll)->layout.size(), 1);
  options.num_nodes = 2;
  options.node_rank = 1;
  const auto plan = PlanRanks(options, Gpus(4), FitsAll);
  EXPECT_EQ(plan->layout.tensor_size, 8);
  EXPECT_EQ(plan->rank, 4);
  EXPECT_EQ(PlanRanks(options, Cpu(16), FitsAll)->layout.tensor_size, 2);
}

TEST(PlanRanksTest, AutoDoesWithoutNcclByUsingOneGpu) {
  SessionOptions options;
  NodeDevices devices = Gpus(2);
  devices.no_collectives = "libnccl.so.2 is not found";
  const auto plan = PlanRanks(options, devices, FitsAll);
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_EQ(plan->layout.size(), 1);
  EXPECT_EQ(plan->notice,
            "computing on one of 2 GPUs: libnccl.so.2 is not found");
  // Who says a number is told when the ranks join.
  options.tensor_parallel_size = "2";
  EXPECT_EQ(PlanRanks(options, devices, FitsAll)->layout.size(), 2);
}

TEST(PlanRanksTest, EachRankGetsItsGpu) {
  SessionOptions options;
  options.tensor_parallel_size = "2";
  const auto plan = PlanRanks(options, Gpus(3), FitsAll);
  ASSERT_TRUE(plan.ok());
  ASSERT_EQ(plan->shares.size(), 2u);
  EXPECT_EQ(plan->shares[0].gpu, "4");
  EXPECT_EQ(plan->shares[1].gpu, "5");
}

TEST(PlanRanksTest, RanksOnGpusShareTheThreadsThatLoad) {
  SessionOptions options;
  options.tensor_parallel_size = "2";
  NodeDevices devices = Gpus(2);
  devices.num_threads = 17;
  auto plan = PlanRanks(options, devices, FitsAll);
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_EQ(plan->shares[0].num_threads, 8);
  EXPECT_EQ(plan->shares[1].num_threads, 8);
  devices.num_threads = 1;
  EXPECT_EQ(PlanRanks(options, devices, FitsAll)->shares[1].num_threads, 1);
  options.num_threads = 3;  // Of each.
  EXPECT_EQ(PlanRanks(options, devices, FitsAll)->shares[1].num_threads, 0);
}

TEST(PlanRanksTest, RanksShareTheThreadsOrTheNodesOfTheCpu) {
  SessionOptions options;
  options.tensor_parallel_size = "2";
  auto plan = PlanRanks(options, Cpu(5), FitsAll);
  EXPECT_EQ(plan->shares[0].num_threads, 2);
  EXPECT_EQ(plan->shares[1].cpu_cores, "");
  plan = PlanRanks(options, Cpu(8, 4), FitsAll);
  EXPECT_EQ(plan->shares[0].cpu_cores, "0,1,2,3");
  EXPECT_EQ(plan->shares[1].cpu_cores, "4,5,6,7");
  options.cpu_cores = "8-11";
  plan = PlanRanks(options, Cpu(8, 4), FitsAll);
  EXPECT_EQ(plan->shares[0].cpu_cores, "8,9");
  EXPECT_EQ(plan->shares[1].cpu_cores, "10,11");
  options.cpu_cores = "";
  options.num_threads = 3;  // Of each.
  EXPECT_EQ(PlanRanks(options, Cpu(8), FitsAll)->shares[1].num_threads, 0);
}

// Ranks that pin their threads pin them to different CPUs.
TEST(PlanRanksTest, RanksThatTakeTheWholeMachineHaveCpusOfTheirOwn) {
  const auto cpus_of = [](const SessionOptions& options,
                          const NodeDevices& devices) {
    std::vector<std::string> cpus;
    const auto plan = PlanRanks(options, devices, FitsAll);
    EXPECT_TRUE(plan.ok()) << plan.status();
    if (!plan.ok()) return cpus;
    for (const RankShare& share : plan->shares) {
      cpus.push_back(share.cpu_cores);
    }
    return cpus;
  };
  using Cpus = std::vector<std::string>;
  SessionOptions options;
  options.tensor_parallel_size = "2";
  NodeDevices devices;
  devices.num_threads = 4;
  devices.cpus_of_nodes = {{0, 2, 4, 6}};
  EXPECT_EQ(cpus_of(options, devices), (Cpus{"0,2", "4,6"}));
  options.num_threads = 2;
  EXPECT_EQ(cpus_of(options, devices), (Cpus{"0,2", "4,6"}));
  // A part of the machine, and more than there is of it.
  options.num_threads = 1;
  EXPECT_EQ(cpus_of(options, devices), (Cpus{"", ""}));
  options.num_threads = 3;
  EXPECT_EQ(cpus_of(options, devices), (Cpus{"", ""}));
  options.num_threads = 2;
  options.numa = "off";
  EXPECT_EQ(cpus_of(options, devices), (Cpus{"", ""}));
  // A quota of two CPUs: which ones they are the system says.
  options = SessionOptions();
  options.tensor_parallel_size = "2";
  devices.num_threads = 2;
  EXPECT_EQ(cpus_of(options, devices), (Cpus{"", ""}));
  // Four ranks on two nodes.
  options.tensor_parallel_size = "4";
  devices.num_threads = 8;
  devices.cpus_of_nodes = {{0, 1, 2, 3}, {8, 9, 10, 11}};
  EXPECT_EQ(cpus_of(options, devices), (Cpus{"0,1", "2,3", "8,9", "10,11"}));
  options.num_threads = 1;
  EXPECT_EQ(cpus_of(options, devices), (Cpus{"0,1", "2,3", "8,9", "10,11"}));
  // Fewer CPUs than ranks take turns.
  options.cpu_cores = "3,5";
  EXPECT_EQ(cpus_of(options, devices), (Cpus{"3", "5", "3", "5"}));
}

TEST(PlanRanksTest, AListOfCpusIsSharedWhateverTheMachineHas) {
  // "cpus*threads" of each rank, on a machine of four CPUs. 0: as the options
  // say, by default one for each CPU of the list.
  const auto shares_of = [](int size, const char* cpu_cores, int num_threads) {
    SessionOptions options;
    options.tensor_parallel_size = absl::StrCat(size);
    options.cpu_cores = cpu_cores;
    options.num_threads = num_threads;
    const auto plan = PlanRanks(options, Cpu(4, 2), FitsAll);
    EXPECT_TRUE(plan.ok()) << plan.status();
    std::vector<std::string> shares;
    if (!plan.ok()) return shares;
    for (const RankShare& share : plan->shares) {
      shares.push_back(absl::StrCat(share.cpu_cores, "*", share.num_threads));
    }
    return shares;
  };
  using Shares = std::vector<std::string>;
  EXPECT_EQ(shares_of(2, "0,1", 0), (Shares{"0*0", "1*0"}));
  EXPECT_EQ(shares_of(2, "0-3", 0), (Shares{"0,1*0", "2,3*0"}));
  // The first ranks get what is left over.
  EXPECT_EQ(shares_of(2, "0-2", 0), (Shares{"0,1*0", "2*0"}));
  EXPECT_EQ(shares_of(3, "7,5,3,1,9", 0), (Shares{"7,5*0", "3,1*0", "9*0"}));
  EXPECT_EQ(shares_of(2, "3", 0), (Shares{"3*0", "3*0"}));
  EXPECT_EQ(shares_of(2, "0,1", 2), (Shares{"0*0", "1*0"}));
}

TEST(PlanRanksTest, StagesMultiplyTheRanks) {
  SessionOptions options;
  options.pipeline_parallel_size = 2;
  // Of the CPU one process for each stage.
  auto plan = PlanRanks(options, Cpu(8), FitsAll);
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_EQ(plan->layout.tensor_size, 1);
  EXPECT_EQ(plan->layout.size(), 2);
  EXPECT_EQ(plan->shares[1].num_threads, 4);
  // All GPUs, of one node and of two.
  EXPECT_EQ(PlanRanks(options, Gpus(4), FitsAll)->layout.tensor_size, 2);
  options.num_nodes = 2;
  options.node_rank = 1;
  plan = PlanRanks(options, Gpus(4), FitsAll);
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_EQ(plan->layout.tensor_size, 4);
  EXPECT_EQ(plan->rank, 4);
  EXPECT_EQ(plan->layout.StageOf(4), 1);
}

TEST(PlanRanksTest, WhatCannotBeIsRefusedWithTheFigures) {
  const auto error = [](const SessionOptions& options,
                        const NodeDevices& devices) {
    const absl::Status status =
        PlanRanks(options, devices, FitsPowersOfTwo).status();
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
    return std::string(status.message());
  };
  SessionOptions options;
  options.tensor_parallel_size = "4";
  EXPECT_TRUE(absl::StrContains(error(options, Gpus(2)), "needs 4 GPUs"));
  EXPECT_TRUE(absl::StrContains(error(options, Gpus(2)), "has 2"));
  options.pipeline_parallel_size = 2;
  EXPECT_TRUE(
      absl::StrContains(error(options, Gpus(4)),
                        "--pipeline-parallel-size 2 on 1 nodes needs 8 GPUs"));
  options.pipeline_parallel_size = 1;
  options.tensor_parallel_size = "3";
  EXPECT_TRUE(absl::StrContains(error(options, Cpu(4)), "not divisible"));
  for (const char* wrong : {"0", "-1", "two", ""}) {
    options.tensor_parallel_size = wrong;
    EXPECT_TRUE(absl::StrContains(error(options, Cpu(4)), "neither")) << wrong;
  }
  options.tensor_parallel_size = "1";
  options.num_nodes = 2;
  EXPECT_TRUE(absl::StrContains(error(options, Cpu(4)), "2 nodes"));
  // One process on each of three nodes, and no such split.
  options.tensor_parallel_size = "auto";
  options.num_nodes = 3;
  EXPECT_EQ(error(options, Cpu(4)),
            "--tensor-parallel-size auto: on 3 nodes (--nnodes) no number of "
            "ranks up to 3 that is a multiple of them divides the model: heads "
            "are not divisible; --pipeline-parallel-size 3 cuts its layers "
            "instead");
  EXPECT_TRUE(absl::StrContains(error(options, Gpus(2)), "ranks up to 6"));
  options.pipeline_parallel_size = 3;
  EXPECT_EQ(PlanRanks(options, Cpu(4), FitsPowersOfTwo)->layout.size(), 3);
}

TEST(ModelFactsTest, WhatDiffersIsNamed) {
  const std::vector<ModelFile> files = {{"config.json", 700, "00ff"},
                                        {"model.safetensors", 9000, "abcd"}};
  const RankFacts facts = ModelFacts(files);
  ASSERT_EQ(facts.size(), 2u);
  std::vector<ModelFile> others = files;
  others[1].hash = "abce";
  absl::Status status = CompareFacts(facts, "A", ModelFacts(others), "B");
  EXPECT_EQ(status.message(),
            "the model's file model.safetensors is 9000 bytes with hash abcd "
            "on A and 9000 bytes with hash abce on B");
  others.pop_back();
  status = CompareFacts(facts, "A", ModelFacts(others), "B");
  EXPECT_EQ(status.message(),
            "the model's file model.safetensors is 9000 bytes with hash abcd "
            "on A and missing on B");
}

TEST(SessionFactsTest, WhatMeansTheSameIsTheSame) {
  const auto compare = [](const SessionOptions& a, const SessionOptions& b) {
    const absl::Status status = CompareFacts(SessionFacts(a, "", false), "A",
                                             SessionFacts(b, "", false), "B");
    return std::string(status.message());
  };
  SessionOptions a, b;
  a.dtype = "float32";
  b.dtype = "f32";
  a.kv_cache_dtype = "fp8";
  b.kv_cache_dtype = "fp8_e4m3";
  a.max_model_len = "2k";
  b.max_model_len = "2048";
  a.quantization = "GPTQ";
  b.quantization = "gptq_marlin";
  a.runner = "embed";
  b.runner = "pooling";
  EXPECT_EQ(compare(a, b), "");
  b.dtype = "bfloat16";
  EXPECT_EQ(compare(a, b), "--dtype is f32 on A and bf16 on B");
  b = SessionOptions();
  b.max_model_len = "-1";
  EXPECT_EQ(compare(SessionOptions(), b), "");
  b.max_model_len = "4k";
  EXPECT_EQ(compare(SessionOptions(), b),
            "--max-model-len is auto on A and 4096 on B");
  // An edge's drafts make steps larger on every rank.
  b = SessionOptions();
  b.enable_verify_link = true;
  EXPECT_EQ(compare(SessionOptions(), b),
            "--enable-verify-link is false on A and true on B");
}

TEST(SessionFactsTest, WhatOptionsComeToIsCompared) {
  const auto compare = [](const SessionOptions& a, const SessionOptions& b,
                          bool b_is_gpu = false) {
    const absl::Status status = CompareFacts(
        SessionFacts(a, "", false), "A", SessionFacts(b, "", b_is_gpu), "B");
    return std::string(status.message());
  };
  SessionOptions a, b;
  b.max_num_batched_tokens = 512;
  b.device = "cpu";
  EXPECT_EQ(compare(a, b), "");
  a.max_num_seqs = b.max_num_seqs = 1000;
  EXPECT_EQ(compare(a, b),
            "--max-num-batched-tokens is 1000 on A and 512 on B");
  b = SessionOptions();
  EXPECT_EQ(compare(SessionOptions(), b, /*b_is_gpu=*/true),
            "the device is the CPU on A and the GPU on B");
  b.max_num_batched_tokens = 512;
  EXPECT_EQ(CompareFacts(SessionFacts(SessionOptions(), "", true), "A",
                         SessionFacts(b, "", true), "B")
                .message(),
            "--max-num-batched-tokens is the GPU's on A and 512 on B");

  a = b = SessionOptions();
  a.speculative_model = "[ngram]";
  EXPECT_EQ(
      compare(a, b),
      "speculative decoding is ngram of 10 tokens, looking up 1 to 5 on A "
      "and none on B");
  b.speculative_config = R"({"method": "ngram", "num_speculative_tokens": 10})";
  EXPECT_EQ(compare(a, b), "");
  a.num_speculative_tokens = 4;
  EXPECT_EQ(compare(a, b),
            "speculative decoding is ngram of 4 tokens, looking up 1 to 5 on A "
            "and ngram of 10 tokens, looking up 1 to 5 on B");
}

// Two places of the same model, and another one.
TEST(SessionFactsTest, ADraftModelIsItsFiles) {
  const auto facts_of = [](const std::string& draft) {
    SessionOptions options;
    options.speculative_model = draft;
    return SessionFacts(options, "", false);
  };
  const std::string directory = testing::TempDir() + "/ranks_test_draft";
  for (const char* name : {"/a", "/b", "/c"}) {
    std::filesystem::create_directories(directory + name);
    std::ofstream(directory + name + "/config.json")
        << (name[1] == 'c' ? "{\"a\": 1}" : "{}");
  }
  const RankFacts a = facts_of(directory + "/a");
  absl::Status status = CompareFacts(a, "A", facts_of(directory + "/b"), "B");
  EXPECT_TRUE(status.ok()) << status;
  status = CompareFacts(a, "A", facts_of(directory + "/c"), "B");
  EXPECT_TRUE(absl::StrContains(
      status.message(), "the draft model's file config.json is 2 bytes"))
      << status;
}

TEST(ModelFactsTest, VeryManyFilesFitAHelloAndCountAll) {
  std::vector<ModelFile> files;
  for (int i = 0; i < 1000; ++i) {
    files.push_back({absl::StrFormat("model-%05d-of-01000.safetensors", i),
                     int64_t{5} << 30, "0123456789abcdef"});
  }
  const RankFacts facts = ModelFacts(files);
  EXPECT_LT(ToBytes(facts).size(), 12u << 10);
  EXPECT_TRUE(absl::StrContains(facts.back().second, " with hash "));
  files.back().hash = "0123456789abcdee";
  const absl::Status status = CompareFacts(facts, "A", ModelFacts(files), "B");
  EXPECT_TRUE(absl::StrContains(status.message(), "the rest of the model's"))
      << status;
}

}  // namespace
}  // namespace quire
