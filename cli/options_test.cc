#include "cli/options.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "cli/bench_options.h"
#include "gtest/gtest.h"

namespace quire {
namespace {

std::string WriteTempFile(const std::string& text) {
  const std::string path =
      std::string(getenv("TEST_TMPDIR")) + "/options_test.yaml";
  std::ofstream(path) << text;
  return path;
}

TEST(ParseSizeTest, KnowsUnits) {
  EXPECT_EQ(*ParseSize("512"), 512);
  EXPECT_EQ(*ParseSize("32k"), 32768);
  EXPECT_EQ(*ParseSize("1.5GiB"), int64_t{3} << 29);
  EXPECT_EQ(*ParseSize("2MB"), 2000000);
  for (const char* text : {"", "x", "-1", "1.2.3", "1e300", "4 GiB!"}) {
    EXPECT_FALSE(ParseSize(text).ok()) << text;
  }
}

TEST(ParseCommandLineTest, LastOptionWinsAndUnderscoresAreDashes) {
  const auto parsed = ParseCommandLine(
      {"serve", "dir", "--port", "1", "--max_num_seqs=4", "--port", "2", "-tp",
       "1", "--no-enable-prefix-caching", "--api-key", "a", "--api-key", "b"});
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  EXPECT_EQ(parsed->command, Command::kServe);
  EXPECT_EQ(parsed->serve.model.model, "dir");
  EXPECT_EQ(parsed->serve.port, 2);
  EXPECT_EQ(parsed->serve.model.max_num_seqs, 4);
  EXPECT_FALSE(parsed->serve.model.enable_prefix_caching);
  EXPECT_EQ(parsed->serve.api_keys, (std::vector<std::string>{"a", "b"}));
}

TEST(ParseCommandLineTest, LimitsOfLoad) {
  const auto parsed = ParseCommandLine(
      {"serve", "--request-timeout", "30", "--max-request-timeout=90.5",
       "--watchdog-timeout", "0", "--target-queue-delay", "0.5",
       "--max-num-queued-bytes", "64MiB", "--max-parsing-memory", "2GiB"});
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  EXPECT_EQ(parsed->serve.request_timeout_seconds, 30);
  EXPECT_EQ(parsed->serve.max_request_timeout_seconds, 90.5);
  EXPECT_EQ(parsed->serve.model.watchdog_timeout_seconds, 0);
  EXPECT_EQ(parsed->serve.model.target_queue_delay_seconds, 0.5);
  EXPECT_EQ(parsed->serve.model.max_num_queued_bytes, "64MiB");
  EXPECT_EQ(parsed->serve.max_parsing_memory, "2GiB");
  for (const char* option :
       {"--request-timeout", "--watchdog-timeout", "--target-queue-delay"}) {
    EXPECT_FALSE(ParseCommandLine({"serve", option, "-1"}).ok()) << option;
  }
}

// What a parse says, for comparisons.
std::string Describe(const absl::StatusOr<CommandLine>& parsed) {
  if (!parsed.ok()) return std::string(parsed.status().message());
  std::string text = absl::StrCat(
      static_cast<int>(parsed->command), " port ", parsed->serve.port, " url ",
      parsed->drain.url, " prompt ", parsed->generate.prompt, " repetitions ",
      parsed->bench->model.repetitions, " help ", parsed->help);
  for (const auto* names :
       {&parsed->serve.api_keys, &parsed->serve.model.args,
        &parsed->chat.model.args, &parsed->bench->model.model.args}) {
    absl::StrAppend(&text, " [", absl::StrJoin(*names, ","), "]");
  }
  return text;
}

TEST(CommandLineParserTest, ForgetsWhatItParsedBefore) {
  const std::vector<std::string> lines[] = {
      {"serve", "m", "--port=1", "--api-key", "a", "b", "--seed=3"},
      {"serve", "--port", "x"},
      {"serve", "--no-such-option"},
      {"serve"},
      {"serve", "--help"},
      {"worker", "--port=7", "--rank=1"},
      {"worker"},
      {"bench", "model", "-r", "7", "--model=m"},
      {"bench", "model"},
      {"bench", "serve", "--num-prompts=0"},
      {"chat", "--threads=2"},
      {"chat"},
      {"generate", "--prompt", "hi"},
      {"generate"},
      {"drain", "--url=u"},
      {"drain"},
      {"--version"},
      {"nothing"},
      {}};
  CommandLineParser parser;
  for (const auto& first : lines) {
    for (const auto& line : lines) {
      (void)parser.Parse(first);
      EXPECT_EQ(Describe(parser.Parse(line)), Describe(ParseCommandLine(line)))
          << absl::StrJoin(line, " ") << " after " << absl::StrJoin(first, " ");
    }
  }
}

TEST(ParseCommandLineTest, NotANumberIsInNoRange) {
  for (const char* option : {"--shutdown-timeout", "--request-timeout",
                             "--watchdog-timeout", "--gpu-memory-utilization",
                             "--worker-timeout", "--heartbeat-timeout"}) {
    for (const char* value : {"nan", "-nan", "NAN(1)", "inf", "-inf"}) {
      EXPECT_FALSE(ParseCommandLine({"serve", option, value}).ok())
          << option << " " << value;
    }
  }
  EXPECT_FALSE(ParseCommandLine({"chat", "--temperature=nan"}).ok());
  EXPECT_FALSE(ParseCommandLine({"bench", "serve", "--top-p=nan"}).ok());
  EXPECT_FALSE(ParseCommandLine({"drain", "--timeout=nan"}).ok());
}

TEST(ParseCommandLineTest, FlagsOutOfRangeAreRefused) {
  for (const char* option :
       {"--no-ui=99999999999999999999", "--no-ui=-99999999999999999999",
        "--no-enable-prefix-caching=99999999999999999999"}) {
    EXPECT_FALSE(ParseCommandLine({"serve", option}).ok()) << option;
  }
}

TEST(ParseCommandLineTest, GpuMemoryUnderBothNames) {
  for (const char* name :
       {"--gpu-memory-utilization", "--device_memory_utilization"}) {
    const auto parsed =
        ParseCommandLine({"serve", name, "0.5", "--enforce-eager"});
    ASSERT_TRUE(parsed.ok()) << parsed.status();
    EXPECT_EQ(parsed->serve.model.device_memory_utilization, 0.5);
    EXPECT_TRUE(parsed->serve.model.enforce_eager);
  }
  for (const char* value : {"0", "1.01", "-1", "x"}) {
    EXPECT_FALSE(
        ParseCommandLine({"serve", "--gpu-memory-utilization", value}).ok())
        << value;
  }
}

// A Playground's arguments come behind those of the BackendRuntime.
TEST(ParseCommandLineTest, LaterArgumentsOverrideInEverySpelling) {
  const std::vector<std::vector<std::string>> overrides = {
      {"--max-model-len", "16384", "--served-model-name", "b", "c"},
      {"--max-model-len=16384", "--served-model-name=b", "c"},
      {"--max_model_len", "16384", "--served_model_name", "b", "c"},
      {"--max_model_len=16384", "--served_model_name=b", "c"},
  };
  for (const auto& override : overrides) {
    std::vector<std::string> args = {"serve",  "--model",
                                     "/m",     "--served-model-name",
                                     "a",      "--max_model_len=1k",
                                     "--host", "0.0.0.0",
                                     "--port", "8080"};
    args.insert(args.end(), override.begin(), override.end());
    const auto parsed = ParseCommandLine(args);
    ASSERT_TRUE(parsed.ok()) << parsed.status() << " " << override[0];
    EXPECT_EQ(parsed->serve.model.model, "/m");
    EXPECT_EQ(parsed->serve.model.max_model_len, "16384");
    EXPECT_EQ(parsed->serve.port, 8080);
    // All values of the last one.
    EXPECT_EQ(parsed->serve.served_model_names,
              (std::vector<std::string>{"b", "c"}));
  }
}

TEST(ParseCommandLineTest, QuantizationUnderBothNames) {
  for (const char* name : {"--quantization", "-q"}) {
    const auto parsed = ParseCommandLine({"serve", "dir", name, "q4_k"});
    ASSERT_TRUE(parsed.ok()) << parsed.status();
    EXPECT_EQ(parsed->serve.model.quantization, "q4_k");
  }
  EXPECT_EQ(ParseCommandLine({"serve"})->serve.model.quantization, "");
}

TEST(ParseCommandLineTest, DraftModel) {
  const auto parsed =
      ParseCommandLine({"serve", "--speculative_model", "/d",
                        "--num_speculative_tokens", "7", "-tp", "1"});
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  EXPECT_EQ(parsed->serve.model.speculative_model, "/d");
  EXPECT_EQ(parsed->serve.model.num_speculative_tokens, 7);
  EXPECT_EQ(ParseCommandLine({"serve"})->serve.model.speculative_model, "");
  EXPECT_EQ(
      ParseCommandLine({"serve", "--speculative-config", R"({"method": "x"})"})
          ->serve.model.speculative_config,
      R"({"method": "x"})");
  EXPECT_FALSE(ParseCommandLine({"serve", "--num-speculative-tokens=0"}).ok());
  // A variable of a script that was not set.
  for (const char* name : {"--speculative-model", "--speculative-config"}) {
    const auto empty = ParseCommandLine({"serve", name, ""});
    ASSERT_FALSE(empty.ok()) << name;
    EXPECT_TRUE(absl::StrContains(empty.status().message(), name))
        << empty.status();
  }
}

TEST(ParseCommandLineTest, Drain) {
  const auto parsed = ParseCommandLine({"drain", "--url", "http://127.0.0.1:1",
                                        "--settle", "5", "--timeout", "110"});
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  EXPECT_EQ(parsed->command, Command::kDrain);
  EXPECT_EQ(parsed->drain.url, "http://127.0.0.1:1");
  EXPECT_EQ(parsed->drain.settle_seconds, 5);
  EXPECT_EQ(parsed->drain.timeout_seconds, 110);
  EXPECT_FALSE(ParseCommandLine({"drain", "--timeout", "5x"}).ok());
  // It would end too early, or never in good order.
  EXPECT_EQ(ParseCommandLine({"drain", "--settle", "5", "--timeout", "1"})
                .status()
                .message(),
            "--settle 5 is longer than --timeout 1, which includes it");
  EXPECT_TRUE(
      ParseCommandLine({"drain", "--settle", "5", "--timeout", "5"}).ok());
  const auto socket = ParseCommandLine(
      {"drain", "--url=unix:/run/q.sock", "--ca-file", "ca.pem"});
  ASSERT_TRUE(socket.ok()) << socket.status();
  EXPECT_EQ(socket->drain.url, "unix:/run/q.sock");
  EXPECT_EQ(socket->drain.ca_file, "ca.pem");
  EXPECT_EQ(ParseCommandLine({"chat", "--ca-file=ca.pem"})->chat.ca_file,
            "ca.pem");
}

TEST(ParseCommandLineTest, AnEmptySocketPathIsNoPort) {
  const absl::Status status = ParseCommandLine({"serve", "--uds", ""}).status();
  EXPECT_TRUE(absl::StartsWith(status.message(), "--uds is empty")) << status;
}

// What a variable that nobody has set makes of a command line.
TEST(ParseCommandLineTest, AnEmptyKeyIsNoServerWithoutKeys) {
  const auto message = [](std::vector<std::string> args) {
    return std::string(ParseCommandLine(std::move(args)).status().message());
  };
  for (const std::vector<std::string>& args :
       {std::vector<std::string>{"serve", "--api-key", ""},
        {"serve", "--api-key", "a", "--api-key", ""},
        {"serve", "--api-key", "a", "", "--port=1"}}) {
    EXPECT_TRUE(absl::StartsWith(message(args), "--api-key"))
        << absl::StrJoin(args, " ");
  }
  EXPECT_TRUE(absl::StartsWith(message({"serve", "--api-key-file", ""}),
                               "--api-key-file"));
  setenv("QUIRE_API_KEY", "", 1);
  EXPECT_TRUE(absl::StrContains(message({"serve"}), "QUIRE_API_KEY"));
  EXPECT_TRUE(ParseCommandLine({"serve", "--api-key", "a"}).ok());
  setenv("QUIRE_API_KEY", "b", 1);
  EXPECT_EQ(ParseCommandLine({"serve"})->serve.api_keys,
            std::vector<std::string>{"b"});
  unsetenv("QUIRE_API_KEY");
  EXPECT_TRUE(ParseCommandLine({"serve"}).ok());
}

TEST(ParseCommandLineTest, ModelIsPositionalOrNamed) {
  EXPECT_EQ(ParseCommandLine({"serve", "--model", "m"})->serve.model.model,
            "m");
  EXPECT_EQ(ParseCommandLine({"serve"})->serve.model.model, "");
}

TEST(ParseCommandLineTest, ConfigFileYieldsToTheCommandLine) {
  const std::string path = WriteTempFile(
      "port: 11\nmax-num-seqs: 3\nenable-prefix-caching: false\n"
      "api-key: [x, y]\nserved_model_name: [name, other]\n");
  const auto parsed =
      ParseCommandLine({"serve", "--port", "12", "--config", path});
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  EXPECT_EQ(parsed->serve.port, 12);
  EXPECT_EQ(parsed->serve.model.max_num_seqs, 3);
  EXPECT_FALSE(parsed->serve.model.enable_prefix_caching);
  EXPECT_EQ(parsed->serve.api_keys, (std::vector<std::string>{"x", "y"}));
  EXPECT_EQ(parsed->serve.served_model_names,
            (std::vector<std::string>{"name", "other"}));
  // Also where values would otherwise add up.
  const auto named = ParseCommandLine({"serve", "--served_model_name", "mine",
                                       "--api-key=z", "--config", path});
  ASSERT_TRUE(named.ok()) << named.status();
  EXPECT_EQ(named->serve.served_model_names, std::vector<std::string>{"mine"});
  EXPECT_EQ(named->serve.api_keys, std::vector<std::string>{"z"});
}

TEST(ParseCommandLineTest, ConfigFileFaultsAreErrors) {
  for (const char* text : {"- a\n", "port: {a: 1}\n", "a: [\n", "nope: 1\n"}) {
    const std::string path = WriteTempFile(text);
    EXPECT_FALSE(ParseCommandLine({"serve", "--config", path}).ok()) << text;
  }
  EXPECT_FALSE(ParseCommandLine({"serve", "--config", "/nonexistent"}).ok());
  EXPECT_EQ(
      ParseCommandLine({"serve", "--config", "/nowhere"}).status().message(),
      "--config /nowhere: No such file or directory");
}

TEST(ParseCommandLineTest, ConfigFileIsNamedByTheEnvironmentToo) {
  setenv("QUIRE_CONFIG", WriteTempFile("port: 31\n").c_str(), 1);
  const auto parsed = ParseCommandLine({"serve"});
  const auto nothing = ParseCommandLine({});
  const auto help = ParseCommandLine({"--help"});
  unsetenv("QUIRE_CONFIG");
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  EXPECT_EQ(parsed->serve.port, 31);
  EXPECT_FALSE(nothing.ok());
  ASSERT_TRUE(help.ok()) << help.status();
  EXPECT_EQ(help->command, Command::kHelp);
}

TEST(ParseCommandLineTest, WhatIsNoBenchmarkIsNamed) {
  const absl::Status status = ParseCommandLine({"bench", "foo"}).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_TRUE(absl::StartsWith(
      status.message(), "'foo' is no benchmark: serve, throughput, latency"))
      << status;
  EXPECT_FALSE(ParseCommandLine({"bench"}).ok());
}

TEST(ParseCommandLineTest, UsageBeginsWithTheProgram) {
  for (const auto& [args, usage] :
       {std::pair(std::vector<std::string>{"--help"}, "Usage: quire "),
        std::pair(std::vector<std::string>{"drain", "--help"},
                  "Usage: quire drain "),
        std::pair(std::vector<std::string>{"bench", "--help"},
                  "Usage: quire bench "),
        std::pair(std::vector<std::string>{"bench", "serve", "--help"},
                  "Usage: quire bench serve ")}) {
    const auto parsed = ParseCommandLine(args);
    ASSERT_TRUE(parsed.ok()) << parsed.status();
    EXPECT_TRUE(absl::StrContains(parsed->help, usage)) << parsed->help;
  }
}

TEST(ParseCommandLineTest, EnvironmentYieldsToTheRest) {
  setenv("QUIRE_PORT", "21", 1);
  setenv("QUIRE_MAX_NUM_SEQS", "5", 1);
  const auto parsed = ParseCommandLine({"serve", "--port", "22"});
  unsetenv("QUIRE_PORT");
  unsetenv("QUIRE_MAX_NUM_SEQS");
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  EXPECT_EQ(parsed->serve.port, 22);
  EXPECT_EQ(parsed->serve.model.max_num_seqs, 5);
}

TEST(ParseCommandLineTest, AServiceLinkIsNoPort) {
  setenv("QUIRE_PORT", "tcp://10.0.0.1:80", 1);
  const auto link = ParseCommandLine({"serve"});
  setenv("QUIRE_PORT", "udp", 1);
  const auto wrong = ParseCommandLine({"serve"});
  unsetenv("QUIRE_PORT");
  ASSERT_TRUE(link.ok()) << link.status();
  EXPECT_EQ(link->serve.port, 8080);
  EXPECT_FALSE(wrong.ok());
}

TEST(ParseCommandLineTest, NegativeCountsAreRefusedInAFewWords) {
  for (const char* option : {"--max-tokens", "--top-k", "--sampling-seed"}) {
    const auto parsed =
        ParseCommandLine({"generate", "--prompt", "x", option, "-4"});
    ASSERT_FALSE(parsed.ok()) << option;
    EXPECT_LT(parsed.status().message().size(), 120u) << parsed.status();
  }
}

TEST(ParseCommandLineTest, RefusesWhatItDoesNotKnow) {
  EXPECT_FALSE(ParseCommandLine({}).ok());
  const auto fly = ParseCommandLine({"fly"});
  ASSERT_FALSE(fly.ok());
  EXPECT_NE(fly.status().message().find("'fly'"), absl::string_view::npos);
  EXPECT_FALSE(ParseCommandLine({"serve", "--nope"}).ok());
  EXPECT_FALSE(ParseCommandLine({"serve", "--port", "70000"}).ok());
  EXPECT_FALSE(ParseCommandLine({"serve", "--device", "tpu"}).ok());
  EXPECT_FALSE(ParseCommandLine({"serve", "-pp", "65"}).ok());
  EXPECT_FALSE(ParseCommandLine({"generate"}).ok());
}

TEST(ParseCommandLineTest, EmbeddingsByTheNamesOfOthers) {
  EXPECT_EQ(
      ParseCommandLine({"serve", "--runner", "pooling"})->serve.model.runner,
      "pooling");
  EXPECT_EQ(ParseCommandLine({"serve", "--task", "embed"})->serve.model.runner,
            "embed");
  EXPECT_EQ(
      ParseCommandLine({"serve", "--convert", "embed"})->serve.model.convert,
      "embed");
  for (const char* flag : {"--is-embedding", "--embeddings", "--embedding"}) {
    EXPECT_TRUE(ParseCommandLine({"serve", flag})->serve.model.is_embedding);
  }
  EXPECT_FALSE(ParseCommandLine({"serve"})->serve.model.is_embedding);
  EXPECT_EQ(
      ParseCommandLine({"serve", "--pooling", "mean"})->serve.model.pooling,
      "mean");
  EXPECT_FALSE(ParseCommandLine({"serve", "--runner", "draft"}).ok());
  EXPECT_FALSE(ParseCommandLine({"serve", "--pooling", "cls"}).ok());
}

TEST(ParseCommandLineTest, HelpAndVersion) {
  EXPECT_EQ(ParseCommandLine({"--version"})->command, Command::kVersion);
  const auto help = ParseCommandLine({"serve", "--help"});
  ASSERT_TRUE(help.ok());
  EXPECT_EQ(help->command, Command::kHelp);
  EXPECT_NE(help->help.find("--max-model-len"), std::string::npos);
}

// The options of a command's help, each with its description, by long name.
std::map<std::string, std::string> HelpOf(std::vector<std::string> command) {
  command.push_back("--help");
  const auto parsed = ParseCommandLine(command);
  EXPECT_TRUE(parsed.ok()) << parsed.status();
  std::map<std::string, std::string> entries;
  std::string entry;
  const auto finish = [&] {
    const size_t begin = entry.find("--");
    if (begin != std::string::npos) {
      entries[entry.substr(begin, entry.find_first_of(" ,\n", begin) - begin)] =
          entry;
    }
  };
  for (const absl::string_view line : absl::StrSplit(parsed->help, '\n')) {
    if (absl::StartsWith(line, "  -")) {
      finish();
      entry.clear();
    }
    absl::StrAppend(&entry, line, "\n");
  }
  finish();
  return entries;
}

TEST(OptionsTest, StepsHoldWhatTheDeviceMakesUseOfUnlessTold) {
  const StepSize useful = {.num_seqs = 256, .num_tokens = 2048};
  const auto choose = [&](int max_num_seqs, int max_num_batched_tokens) {
    SessionOptions options;
    options.max_num_seqs = max_num_seqs;
    options.max_num_batched_tokens = max_num_batched_tokens;
    const StepSize size = ChooseStepSize(options, useful);
    return std::pair(size.num_seqs, size.num_tokens);
  };
  EXPECT_EQ(choose(0, 0), std::pair(256, 2048));
  EXPECT_EQ(choose(8, 0), std::pair(8, 2048));
  EXPECT_EQ(choose(3000, 0), std::pair(3000, 3000));
  EXPECT_EQ(choose(0, 300), std::pair(256, 300));
  EXPECT_EQ(choose(0, 9), std::pair(9, 9));
  EXPECT_EQ(choose(64, 9), std::pair(64, 9));  // An error, later.
}

TEST(OptionsTest, HelpShowsTheDefaultsOfTheStructs) {
  const auto serve = HelpOf({"serve"});
  const ServeOptions defaults;
  const auto expect = [](const std::map<std::string, std::string>& help,
                         const char* name, const std::string& value) {
    ASSERT_EQ(help.count(name), 1u) << name;
    EXPECT_TRUE(absl::StrContains(help.at(name),
                                  absl::StrCat("(default: ", value, ")")))
        << help.at(name);
  };
  expect(serve, "--port", absl::StrCat(defaults.port));
  expect(serve, "--host", defaults.host);
  expect(serve, "--device", defaults.model.device);
  expect(serve, "--max-body-size", defaults.max_body_size);
  expect(serve, "--max-num-queued-reqs",
         absl::StrCat(defaults.model.max_num_queued_reqs));
  expect(serve, "--gpu-memory-utilization", "0.9");
  expect(serve, "--shutdown-timeout", "120");
  expect(serve, "--max-num-queued-tokens", "1048576");
  expect(serve, "--ui", "on");
  expect(serve, "--enable-prefix-caching", "on");
  // Where a number stands for what is decided later.
  expect(serve, "--max-num-seqs", "64, on a large GPU 256");
  expect(serve, "--nnodes", "1");
  expect(serve, "--num-speculative-tokens", "the method's");
  expect(HelpOf({"generate"}), "--temperature", "the model's");
  expect(HelpOf({"drain"}), "--url", DrainOptions().url);
  expect(HelpOf({"bench", "serve"}), "--random-input-len", "1024");
  expect(HelpOf({"bench", "model"}), "--n-prompt", "512");
  expect(HelpOf({"bench", "kernels"}), "--rows", "1,16,512");
  expect(HelpOf({"bench", "throughput"}), "--enable-prefix-caching", "off");
}

// Each once, and none that says nothing.
TEST(OptionsTest, HelpShowsOneDefaultOfEachOption) {
  const std::vector<std::string> commands[] = {{"serve"},
                                               {"worker"},
                                               {"chat"},
                                               {"generate"},
                                               {"drain"},
                                               {"bench", "serve"},
                                               {"bench", "model"},
                                               {"bench", "latency"},
                                               {"bench", "throughput"},
                                               {"bench", "kernels"},
                                               {"bench", "quality"},
                                               {"bench", "startup"}};
  for (const std::vector<std::string>& command : commands) {
    const auto help = HelpOf(command);
    EXPECT_GE(help.size(), 4u) << command.back();
    for (const auto& [name, entry] : help) {
      const std::vector<std::string> parts =
          absl::StrSplit(entry, "(default: ");
      EXPECT_LE(parts.size(), 2u) << entry;
      EXPECT_FALSE(absl::StrContains(entry, "(default: )")) << entry;
      // A number that stands for what is decided later.
      EXPECT_FALSE(absl::StrContains(entry, "(default: -1)")) << entry;
      EXPECT_FALSE(absl::StrContains(entry, "(default: -2)")) << entry;
      const bool is_number = absl::StrContains(entry, " INT") ||
                             absl::StrContains(entry, " UINT") ||
                             absl::StrContains(entry, " FLOAT");
      if (is_number && !absl::StartsWith(name, "--ramp-up") &&
          name != "--concurrency") {
        EXPECT_EQ(parts.size(), 2u) << entry;
      }
    }
  }
}

TEST(OptionsTest, WhatIsNoNumberIsNotCalledOutOfRange) {
  const auto error = [](const char* option, const char* value) {
    const std::string message(
        ParseCommandLine({"bench", "serve", option, value}).status().message());
    return message.substr(0, message.find('\n'));
  };
  for (const char* value : {"abc", "1.5", "1e3", "", "-"}) {
    EXPECT_EQ(error("--port", value),
              absl::StrCat("--port: '", value, "' is not a whole number"));
  }
  for (const char* value : {"0", "-5", "65536", "99999999999999999999"}) {
    EXPECT_EQ(error("--port", value), absl::StrCat("--port: Value ", value,
                                                   " not in range 1 to 65535"));
  }
  EXPECT_EQ(error("--top-p", "abc"), "--top-p: 'abc' is not a number");
  EXPECT_EQ(error("--top-p", "1.5"),
            "--top-p: Value 1.5 not in range 0.000000 to 1.000000");
}

}  // namespace
}  // namespace quire
