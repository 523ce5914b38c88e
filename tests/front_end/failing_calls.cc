#include "tests/front_end/failing_calls.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <map>
#include <memory>
#include <set>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "nlohmann/json.hpp"
#include "server/http/test_client.h"
#include "tests/front_end/server_process.h"

namespace quire {
namespace {

constexpr absl::Duration kHang = absl::Seconds(8);
// A leak grows whenever a call fails, caches a few times, not always in a row:
// which thread, slot, or of two buffers that take turns, comes first is chance.
constexpr int kGrowthsOfALeak = 12;
constexpr int kSameAfterCaches = 4;
// A call beyond these does not end the loop.
constexpr int kMaxCalls = 100'000;

class SharedControl {
 public:
  SharedControl() {
    const int fd = mkstemp(path_);
    if (fd < 0 || ftruncate(fd, sizeof(FaultControl)) != 0) return;
    void* const page = mmap(nullptr, sizeof(FaultControl),
                            PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    if (page != MAP_FAILED) control_ = static_cast<FaultControl*>(page);
  }
  ~SharedControl() {
    if (control_ != nullptr) munmap(control_, sizeof(FaultControl));
    unlink(path_);
  }
  FaultControl* get() { return control_; }
  const char* path() const { return path_; }

 private:
  char path_[32] = "/tmp/quire_fault_XXXXXX";
  FaultControl* control_ = nullptr;
};

std::string RequestBytes(bool is_stream) {
  const std::string body =
      is_stream
          ? R"({"prompt":"Once upon a time","max_tokens":4,"seed":1,)"
            R"("ignore_eos":true,"stream":true})"
          : R"({"messages":[{"role":"user","content":"Tell me a story."}],)"
            R"("max_tokens":4,"seed":1,"ignore_eos":true,"stop":["<stop>"],)"
            R"("logprobs":true,"top_logprobs":2})";
  return absl::StrCat("POST /v1/", is_stream ? "" : "chat/",
                      "completions HTTP/1.1\r\nHost: x\r\nContent-Type: "
                      "application/json\r\nX-Request-Id: r\r\n",
                      "Content-Length: ", body.size(), "\r\n\r\n", body);
}

// What is the same in every answer to the request.
std::string Essence(const TestResponse& response) {
  std::string text = response.body;
  for (const char* field :
       {"\"created\":", "\"id\":\"cmpl-", "\"id\":\"chatcmpl-"}) {
    const size_t length = std::char_traits<char>::length(field);
    for (size_t at = 0; (at = text.find(field, at)) != std::string::npos;) {
      at += length;
      text.erase(at, text.find_first_of(",\"", at) - at);
    }
  }
  // Tokens are coalesced by time: the order counts, not the pieces.
  if (response.Field("content-type") != "text/event-stream") return text;
  std::string joined;
  for (size_t at = 0;
       (at = text.find("\"text\":\"", at)) != std::string::npos;) {
    at += 8;
    joined += text.substr(at, text.find("\",\"logprobs\"", at) - at);
  }
  return joined + (absl::EndsWith(text, "data: [DONE]\n\n") ? "." : "?");
}

class Torture {
 public:
  Torture(ServerProcess* server, FaultControl* control)
      : server_(server), control_(control) {}

  // Caches, arenas and metrics fill up. False: not even this works.
  bool WarmUp() {
    for (int i = 0; i < 20; ++i) {
      for (const bool is_stream : {false, true}) {
        const TestResponse response = Ask(is_stream);
        if (response.status != 200 || !response.is_complete) return false;
        expected_[is_stream] = Essence(response);
      }
      Get(server_->port(), "/metrics");
      // The mailbox's tasks and the engine's aborts have buffers, too, which a
      // client that leaves at once is the first to use.
      TestClient leaves;
      if (leaves.Connect(server_->port())) leaves.Send(RequestBytes(true));
    }
    if (!Settle()) return false;
    num_files_ = server_->CountOpenFiles();
    num_live_ = control_->num_live_allocations;
    return true;
  }

  // Call `index` fails. False: there are no more so many.
  bool Fail(FaultKind kind, int64_t index) {
    const bool has_failed = FailOnce(kind, index);
    if (!is_usable_ || !has_failed) return has_failed;
    ++num_failed_;
    ++by_function_[control_->function];
    int num_grown = 0;
    int num_same = 0;
    for (bool has_grown = Grows(); num_same < kSameAfterCaches;) {
      num_same = has_grown ? 0 : num_same + 1;
      num_grown += has_grown;
      if (num_grown == 0 || num_grown == kGrowthsOfALeak) break;
      // What the last round leaves behind is told.
      control_->records = num_grown == kGrowthsOfALeak - 1;
      const bool goes_on = FailOnce(kind, index) && is_usable_;
      control_->records = false;
      if (!goes_on) return is_usable_;
      has_grown = Grows();
    }
    if (num_grown == kGrowthsOfALeak) {
      Report(index, "memory leaks", &num_leaks_);
      control_->prints = true;
      Ask(/*is_stream=*/false);
      std::fprintf(stderr, "%s\n", server_->ErrorText().c_str());
    }
    return true;
  }

  std::vector<Figure> Figures(const std::string& name) const {
    std::vector<Figure> figures = {
        {name + "calls failed", double(num_failed_), "", Bound::kAtLeast, 10},
        {name + "crashes", double(num_crashes_)},
        {name + "hangs", double(num_hangs_)},
        {name + "answers neither right, errors nor cut off",
         double(num_wrong_)},
        {name + "next requests not served", double(num_not_served_)},
        {name + "leaks of memory, blocks or descriptors", double(num_leaks_)}};
    std::string functions;
    for (const auto& [function, count] : by_function_) {
      absl::StrAppend(&functions, " ", function, " ", count);
    }
    std::fprintf(stderr, "%s%lld calls failed:%s; answers:", name.c_str(),
                 static_cast<long long>(num_failed_), functions.c_str());
    for (const auto& [answer, count] : answers_) {
      std::fprintf(stderr, " %s %d", answer.c_str(), count);
    }
    std::fprintf(stderr, "\n");
    return figures;
  }
  bool is_usable() const { return is_usable_; }

 private:
  TestResponse Ask(bool is_stream) {
    TestClient client;
    if (!client.Connect(server_->port())) return {};
    return client.Ask(RequestBytes(is_stream));
  }

  bool Settle() {
    if (!server_->WaitUntilIdle()) return false;
    // Connections linger until their peers' ends are seen.
    return WaitUntil([&] {
      return num_files_ == 0 || server_->CountOpenFiles() <= num_files_;
    });
  }

  bool Grows() {
    // Threads free what they still hold when they next wake.
    int64_t least = control_->num_live_allocations;
    for (int i = 0; i < 5 && least > num_live_; ++i) {
      absl::SleepFor(absl::Milliseconds(2));
      least = std::min<int64_t>(least, control_->num_live_allocations);
    }
    const bool grows = least > num_live_;
    if (grows) num_live_ = least;
    return grows;
  }

  void Report(int64_t index, const std::string& problem, int* count) {
    ++*count;
    std::fprintf(stderr, "call %lld (%s): %s\n", static_cast<long long>(index),
                 control_->function, problem.c_str());
  }

  bool FailOnce(FaultKind kind, int64_t index) {
    control_->num_calls = 0;
    control_->fail_at = index;
    control_->has_failed = false;
    control_->kind = kind;
    for (const bool is_stream : {false, true}) {
      const absl::Time begin = absl::Now();
      const TestResponse response = Ask(is_stream);
      if (absl::Now() - begin > kHang) Report(index, "hangs", &num_hangs_);
      Judge(index, is_stream, response);
    }
    control_->kind = FaultKind::kNone;
    for (const bool is_stream : {false, true}) {
      const TestResponse next = Ask(is_stream);
      if (next.status != 200 || Essence(next) != expected_[is_stream]) {
        Report(index,
               absl::StrCat("next request: ", next.status, " ",
                            next.body.substr(0, 300)),
               &num_not_served_);
      }
    }
    // One that crashes prints its traces first.
    if (server_->WaitForExit(num_not_served_ > 0 ? absl::Seconds(1)
                                                 : absl::ZeroDuration())) {
      Report(index, "the server has ended", &num_crashes_);
      std::fprintf(stderr, "%s\n", server_->ErrorText().c_str());
      is_usable_ = false;
      return true;
    }
    if (!Settle()) {
      Report(index, "something is held", &num_leaks_);
      is_usable_ = false;
    }
    return control_->has_failed;
  }

  void Judge(int64_t index, bool is_stream, const TestResponse& response) {
    if (response.status == 200 && response.is_complete) {
      const bool is_right = Essence(response) == expected_[is_stream];
      const bool is_error = absl::StrContains(response.body, "{\"error\":");
      ++answers_[is_right ? "right" : "error event"];
      if (is_right || (is_stream && is_error)) return;
    } else if (response.status == 200 || response.status == 0) {
      ++answers_["cut off"];
      return;
    } else if (response.is_complete &&
               (response.status == 503 || response.status == 500)) {
      ++answers_[absl::StrCat(response.status)];
      const auto body = nlohmann::json::parse(response.body, nullptr, false);
      if (body.is_object() && body.contains("error")) return;
    }
    Report(index,
           absl::StrCat("wrong answer: ", response.status, " ",
                        response.body.substr(0, 300)),
           &num_wrong_);
  }

  ServerProcess* const server_;
  FaultControl* const control_;
  std::string expected_[2];  // By is_stream.
  int num_files_ = 0;
  int64_t num_live_ = 0;
  int64_t num_failed_ = 0;
  int num_crashes_ = 0, num_hangs_ = 0, num_wrong_ = 0, num_not_served_ = 0;
  int num_leaks_ = 0;
  bool is_usable_ = true;
  std::map<std::string, int> by_function_;
  std::map<std::string, int> answers_;
};

}  // namespace

std::vector<Figure> RunFailingCalls(FaultKind kind, int stride, int offset,
                                    const std::string& program) {
  const std::string name = kind == FaultKind::kAllocations
                               ? "failing allocations: "
                               : "failing system calls: ";
  SharedControl control;
  if (control.get() == nullptr) return {{name + "no control page", 1}};
  ServerProcessOptions options;
  options.program = program;
  options.serve_args = {"--max-num-seqs", "8", "--max-model-len", "512"};
  options.environment = {
      {"LD_PRELOAD", RunfilePath("tests/front_end/fault_shim.so")},
      {kFaultControlVariable, control.path()},
      // One arena: counts, not addresses, matter, and freed pieces come back.
      {"MALLOC_ARENA_MAX", "1"}};
  auto server = ServerProcess::Start(options);
  if (server == nullptr) return {{name + "server not started", 1}};
  Torture torture(server.get(), control.get());
  if (!torture.WarmUp()) return {{name + "no answers before any fault", 1}};
  for (int64_t index = offset; index < kMaxCalls && torture.is_usable();
       index += stride) {
    if (!torture.Fail(kind, index)) break;
  }
  std::vector<Figure> figures = torture.Figures(name);
  if (server->IsAlive()) {
    const std::optional<int> exit_code = server->Terminate();
    figures.push_back({name + "exit code", double(exit_code.value_or(-1))});
  }
  return figures;
}

}  // namespace quire
