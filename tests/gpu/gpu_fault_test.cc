// The whole program on an emulated GPU that fails in the middle of a step:
// every request in flight ends with an error, what was told before is true,
// nothing is accepted after it, and the process ends with 70 and one line.
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <memory>
#include <optional>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "cli/exit_codes.h"
#include "gtest/gtest.h"
#include "httplib.h"
#include "nlohmann/json.hpp"

extern char** environ;

namespace quire {
namespace {

using Json = nlohmann::json;

constexpr int kNumRunning = 3;  // --max-num-seqs
constexpr int kNumWaiting = 2;
constexpr char kPrompt[] = "Once upon a time";
constexpr int kNumTrueTokens = 12;

class ServedProgram {
 public:
  ServedProgram() {
    error_path_ = testing::TempDir() + "/stderr";
    std::vector<std::string> args = {"quire",
                                     "serve",
                                     "models/demo",
                                     "--port",
                                     "0",
                                     "--device",
                                     "cuda",
                                     "--kv-cache-memory-bytes",
                                     "16M",
                                     "--max-model-len",
                                     "512",
                                     "--max-num-batched-tokens",
                                     "64",
                                     "--max-num-seqs",
                                     absl::StrCat(kNumRunning)};
    std::vector<char*> argv;
    for (std::string& arg : args) argv.push_back(arg.data());
    argv.push_back(nullptr);
    int out[2];
    if (pipe2(out, O_CLOEXEC) != 0) return;
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, out[1], STDOUT_FILENO);
    posix_spawn_file_actions_addopen(&actions, STDERR_FILENO,
                                     error_path_.c_str(),
                                     O_WRONLY | O_CREAT | O_TRUNC, 0644);
    if (posix_spawn(&pid_, "tests/gpu/quire_emulated", &actions, nullptr,
                    argv.data(), environ) != 0) {
      pid_ = -1;
    }
    posix_spawn_file_actions_destroy(&actions);
    close(out[1]);
    output_ = fdopen(out[0], "r");
  }
  ~ServedProgram() {
    if (pid_ > 0) {
      kill(pid_, SIGKILL);
      waitpid(pid_, nullptr, 0);
    }
    if (output_ != nullptr) fclose(output_);
  }

  // Blocks until it is ready; 0 if it ended instead.
  int WaitForPort() {
    char line[4096];
    int port = 0;
    while (output_ != nullptr &&
           fgets(line, sizeof(line), output_) != nullptr) {
      const absl::string_view text = line;
      if (absl::StrContains(text, " address ") &&
          !absl::SimpleAtoi(text.substr(text.rfind(':') + 1), &port)) {
        return 0;
      }
      if (absl::StrContains(text, "ready in")) return port;
    }
    return 0;
  }
  // -1 if a signal ended it.
  int WaitForExit() {
    int status = 0;
    waitpid(pid_, &status, 0);
    pid_ = -1;
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  }
  std::string ErrorText() const {
    std::ifstream file(error_path_);
    std::stringstream text;
    text << file.rdbuf();
    return text.str();
  }
  pid_t pid() const { return pid_; }

 private:
  std::string error_path_;
  pid_t pid_ = -1;
  FILE* output_ = nullptr;
};

std::unique_ptr<httplib::Client> Connect(int port) {
  auto client = std::make_unique<httplib::Client>("127.0.0.1", port);
  client->set_read_timeout(60, 0);
  return client;
}

std::string Body(int max_tokens, bool is_stream) {
  return Json({{"model", "demo"},
               {"prompt", kPrompt},
               {"max_tokens", max_tokens},
               {"temperature", 0},
               {"ignore_eos", true},
               // Special tokens have no text.
               {"logit_bias",
                {{"0", -100}, {"1", -100}, {"2", -100}, {"3", -100}}},
               {"stream", is_stream}})
      .dump();
}

// What a client sees of a streamed completion.
struct Stream {
  int http_status = 0;
  std::string body;
  std::atomic<int> num_pieces = 0;
};

void ReadStream(int port, Stream* stream) {
  httplib::Request request;
  request.method = "POST";
  request.path = "/v1/completions";
  request.headers = {{"Content-Type", "application/json"}};
  request.body = Body(400, true);
  request.content_receiver = [stream](const char* data, size_t size, uint64_t,
                                      uint64_t) {
    stream->body.append(data, size);
    ++stream->num_pieces;
    return true;
  };
  const httplib::Result result = Connect(port)->send(request);
  if (result) stream->http_status = result->status;
}

// The text that was told, and how many events were errors; nothing follows one.
void Parse(const Stream& stream, std::string* text, int* num_errors,
           std::string* error) {
  *num_errors = 0;
  for (absl::string_view line : absl::StrSplit(stream.body, '\n')) {
    if (!absl::ConsumePrefix(&line, "data: ") || line == "[DONE]") continue;
    const Json event = Json::parse(line.begin(), line.end(), nullptr, false);
    ASSERT_FALSE(event.is_discarded()) << line;
    ASSERT_EQ(*num_errors, 0) << "after an error: " << line;
    if (event.contains("error")) {
      ++*num_errors;
      *error = event["error"]["message"];
    } else if (!event["choices"].empty()) {
      *text += event["choices"][0]["text"].get<std::string>();
    }
  }
}

TEST(GpuDrainTest, SaysWhatGraphsCost) {
  ServedProgram program;
  const int port = program.WaitForPort();
  ASSERT_GT(port, 0) << program.ErrorText();
  const httplib::Result answer = Connect(port)->Post(
      "/v1/completions", Body(kNumTrueTokens, false), "application/json");
  ASSERT_TRUE(answer);
  ASSERT_EQ(answer->status, 200) << answer->body;
  ASSERT_EQ(kill(program.pid(), SIGTERM), 0);
  EXPECT_EQ(program.WaitForExit(), kExitOk);
  const std::string said = program.ErrorText();
  EXPECT_TRUE(absl::StrContains(said, " INFO quire: CUDA graphs: ")) << said;
  EXPECT_TRUE(absl::StrContains(said, " steps replayed, ")) << said;
}

TEST(GpuFaultTest, EndsEveryRequestAndTheProcess) {
  ServedProgram program;
  const int port = program.WaitForPort();
  ASSERT_GT(port, 0) << program.ErrorText();
  // What a GPU without faults answers.
  const httplib::Result whole = Connect(port)->Post(
      "/v1/completions", Body(kNumTrueTokens, false), "application/json");
  ASSERT_TRUE(whole);
  ASSERT_EQ(whole->status, 200) << whole->body;
  const std::string truth =
      Json::parse(whole->body)["choices"][0]["text"].get<std::string>();

  std::vector<Stream> streams(kNumRunning + kNumWaiting);
  std::vector<std::thread> threads;
  const auto start = [&](size_t begin, size_t end) {
    for (size_t i = begin; i < end; ++i) {
      threads.emplace_back(ReadStream, port, &streams[i]);
    }
  };
  start(0, kNumRunning);
  for (int i = 0; i < kNumRunning; ++i) {
    while (streams[i].num_pieces < 2) std::this_thread::yield();
  }
  // Beyond the slots: they wait, and no token of theirs is ever computed.
  start(kNumRunning, streams.size());
  std::optional<httplib::Result> unstreamed;
  threads.emplace_back([&] {
    unstreamed.emplace(Connect(port)->Post("/v1/completions", Body(60, false),
                                           "application/json"));
  });
  const auto num_waiting = [&]() -> int {
    const httplib::Result metrics = Connect(port)->Get("/metrics");
    if (!metrics) return -1;
    for (absl::string_view line : absl::StrSplit(metrics->body, '\n')) {
      if (!absl::StartsWith(line, "vllm:num_requests_waiting{")) continue;
      double value = 0;
      return absl::SimpleAtod(line.substr(line.rfind(' ') + 1), &value)
                 ? static_cast<int>(value)
                 : -1;
    }
    return -1;
  };
  int waiting = 0;
  while (waiting >= 0 && waiting < kNumWaiting + 1) waiting = num_waiting();
  ASSERT_EQ(waiting, kNumWaiting + 1);

  ASSERT_EQ(kill(program.pid(), SIGUSR1), 0);
  threads[0].join();
  // From here to the end of the process nobody gets an answer.
  for (bool is_there = true; is_there;) {
    const httplib::Result late = Connect(port)->Post(
        "/v1/completions", Body(1, false), "application/json");
    is_there = late != nullptr;
    if (is_there) {
      EXPECT_EQ(late->status, 503) << late->body;
    }
  }
  for (size_t i = 1; i < threads.size(); ++i) threads[i].join();

  for (size_t i = 0; i < streams.size(); ++i) {
    SCOPED_TRACE(absl::StrCat("stream ", i));
    std::string text, error;
    int num_errors = 0;
    const bool has_started = streams[i].http_status == 200;
    if (has_started) {
      Parse(streams[i], &text, &num_errors, &error);
      EXPECT_EQ(num_errors, 1) << streams[i].body;
    } else {
      // Its headers were not sent yet.
      EXPECT_EQ(streams[i].http_status, 503) << streams[i].body;
      error = streams[i].body;
    }
    // Why, the log says.
    EXPECT_TRUE(absl::StrContains(error, "the engine has failed")) << error;
    EXPECT_FALSE(absl::StrContains(error, "GPU")) << error;
    EXPECT_EQ(text.substr(0, truth.size()), truth.substr(0, text.size()));
    if (i < kNumRunning) {
      EXPECT_TRUE(has_started);
      EXPECT_FALSE(text.empty());
    } else {
      EXPECT_EQ(text, "");
    }
  }
  ASSERT_TRUE(*unstreamed);
  const httplib::Response& refused = unstreamed->value();
  EXPECT_EQ(refused.status, 503) << refused.body;
  EXPECT_TRUE(absl::StrContains(refused.body, "the engine has failed"))
      << refused.body;

  EXPECT_EQ(program.WaitForExit(), kExitEngine);
  const std::string said = program.ErrorText();
  EXPECT_TRUE(absl::EndsWith(said,
                             " ERROR quire: the engine stopped: GPU error: an "
                             "illegal address (injected)\n"))
      << said;
  EXPECT_EQ(std::count(said.begin(), said.end(), '\n'), 1) << said;
}

}  // namespace
}  // namespace quire
