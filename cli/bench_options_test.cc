// The command line of `quire bench`.
#include "cli/bench_options.h"

#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "cli/options.h"
#include "gtest/gtest.h"

namespace quire {
namespace {

TEST(BenchOptionsTest, BenchCommands) {
  const auto kind = [](std::vector<std::string> args) {
    args.insert(args.begin(), "bench");
    const auto parsed = ParseCommandLine(args);
    EXPECT_TRUE(parsed.ok()) << parsed.status();
    EXPECT_EQ(parsed->command, Command::kBench);
    return parsed->bench->kind;
  };
  using Kind = BenchOptions::Kind;
  EXPECT_EQ(kind({"serve"}), Kind::kServe);
  EXPECT_EQ(kind({"throughput", "models/x"}), Kind::kThroughput);
  EXPECT_EQ(kind({"latency"}), Kind::kLatency);
  EXPECT_EQ(kind({"model"}), Kind::kModel);
  EXPECT_EQ(kind({"kernels"}), Kind::kKernels);
  EXPECT_EQ(kind({"startup", "--", "--port", "1"}), Kind::kStartup);
  EXPECT_EQ(kind({"drafter", "models/x", "--acceptance", "0.5"}),
            Kind::kDrafter);
  // As llama-bench.
  EXPECT_EQ(kind({"-p", "512", "-n", "128"}), Kind::kModel);
  EXPECT_FALSE(ParseCommandLine({"bench"}).ok());
  EXPECT_FALSE(ParseCommandLine({"bench", "nothing"}).ok());
}

TEST(BenchOptionsTest, BenchServeTakesTheFlagsOfVllm) {
  const auto parsed = ParseCommandLine({"bench",
                                        "serve",
                                        "--backend",
                                        "openai-chat",
                                        "--base_url",
                                        "http://h:1",
                                        "--dataset-name",
                                        "prefix_repetition",
                                        "--request-rate",
                                        "inf",
                                        "--goodput",
                                        "ttft:200",
                                        "tpot:50",
                                        "--metadata",
                                        "a=1",
                                        "b=2",
                                        "--header",
                                        "X=Y",
                                        "--top-k",
                                        "5",
                                        "--logprobs",
                                        "3",
                                        "--lora-modules",
                                        "one",
                                        "two",
                                        "--lora-assignment",
                                        "round-robin",
                                        "--probe-request-rate",
                                        "2.5",
                                        "--profile",
                                        "--plot-timeline",
                                        "--timeline-itl-thresholds",
                                        "2,5",
                                        "--save-result"});
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  const BenchServeOptions& serve = parsed->bench->serve;
  EXPECT_EQ(serve.base_url, "http://h:1");
  EXPECT_TRUE(std::isinf(serve.request_rate));
  EXPECT_EQ(serve.goodput.size(), 2u);
  EXPECT_EQ(serve.metadata.size(), 2u);
  EXPECT_EQ(serve.top_k, 5);
  EXPECT_EQ(serve.num_logprobs, 3);
  EXPECT_EQ(serve.lora_modules, std::vector<std::string>({"one", "two"}));
  EXPECT_EQ(serve.lora_assignment, "round-robin");
  EXPECT_EQ(serve.probe_request_rate, 2.5);
  EXPECT_TRUE(serve.profile);
  EXPECT_TRUE(serve.plot_timeline);
  EXPECT_EQ(serve.timeline_itl_thresholds, "2,5");
  EXPECT_TRUE(serve.save_result);
  for (const std::vector<std::string>& wrong :
       {std::vector<std::string>{"--backend", "tgi"},
        {"--num-prompts", "0"},
        {"--request-rate", "0"},
        {"--logprobs", "-1"},
        {"--probe-request-rate", "-1"},
        {"--lora-assignment", "best"},
        {"--dataset-name", "sonnet"}}) {
    std::vector<std::string> args = {"bench", "serve"};
    args.insert(args.end(), wrong.begin(), wrong.end());
    EXPECT_FALSE(ParseCommandLine(args).ok()) << wrong[0];
  }
}

TEST(BenchOptionsTest, BenchModelTakesTheFlagsOfLlamaBench) {
  const auto parsed = ParseCommandLine(
      {"bench", "-m", "x.gguf", "-p", "64,512", "-n", "32", "-pg", "512,128",
       "-d", "0,1024", "-r", "3", "-t", "2", "-b", "256", "-o", "json"});
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  const BenchModelOptions& model = parsed->bench->model;
  EXPECT_EQ(model.model.model, "x.gguf");
  EXPECT_EQ(model.num_prompt, std::vector<int>({64, 512}));
  EXPECT_EQ(model.num_gen, std::vector<int>({32}));
  EXPECT_EQ(model.prompt_gen, std::vector<std::string>({"512,128"}));
  EXPECT_EQ(model.depth, std::vector<int>({0, 1024}));
  EXPECT_EQ(model.repetitions, 3);
  EXPECT_EQ(model.model.num_threads, 2);
  EXPECT_EQ(model.batch_size, 256);
  EXPECT_EQ(model.format, "json");
}

}  // namespace
}  // namespace quire
