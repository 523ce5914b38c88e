// `quire serve` with the hash model in the place of a model's computations: the
// program's whole front end, scheduler and life cycle, tokens for nothing.
//
//   hash_server [--step-ms N] [--num-blocks N] [--hang-at-step N]
//       serve <arguments of quire serve>
//
// A step takes N ms of waiting, as one of a GPU does. Blocks are those of the
// hash model's cache. The step of --hang-at-step, from 1, never ends. At its
// end it prints to stderr what the engine's thread spent on handing out the
// events of a step.
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "cli/options.h"
#include "cli/serve.h"
#include "tests/hash_model_runner.h"

namespace quire {
namespace {

using SteadyClock = std::chrono::steady_clock;

// Sleeps to the next multiple of the step since the last one; what is computed
// meanwhile is part of the step.
class Pace {
 public:
  explicit Pace(int step_ms) : step_(step_ms) {}
  void WaitForEndOfStep() {
    if (step_.count() == 0) return;
    const auto now = SteadyClock::now();
    end_ = std::max(end_ + step_, now - step_);
    if (end_ < now) end_ = now + step_;  // The first one after a rest.
    std::this_thread::sleep_until(end_);
  }

 private:
  const std::chrono::milliseconds step_;
  SteadyClock::time_point end_;
};

std::chrono::nanoseconds ThreadCpuTime() {
  timespec time = {};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return std::chrono::seconds(time.tv_sec) +
         std::chrono::nanoseconds(time.tv_nsec);
}

// By the engine's thread alone; reports when that has ended: by the clock,
// which counts also when others have the thread's core, and by what it
// computes.
class TimedSink : public OutputSink {
 public:
  explicit TimedSink(OutputSink* sink) : sink_(sink) {
    pushes_.reserve(kMaxPushes);
  }
  ~TimedSink() override {
    size_t most = 0;
    for (const Cost& push : pushes_) most = std::max(most, push.num_events);
    std::vector<double> wall, cpu;
    for (const Cost& push : pushes_) {
      if (2 * push.num_events < most) continue;
      wall.push_back(push.wall.count() / 1e3);
      cpu.push_back(push.cpu.count() / 1e3);
    }
    if (wall.empty()) return;
    std::sort(wall.begin(), wall.end());
    std::sort(cpu.begin(), cpu.end());
    const auto at = [](const std::vector<double>& sorted, size_t percent) {
      return sorted[sorted.size() * percent / 100];
    };
    std::fprintf(stderr,
                 "output cost: %zu steps of up to %zu events, p50 %.1f p99 "
                 "%.1f max %.1f us; CPU p50 %.1f p99 %.1f max %.1f us\n",
                 wall.size(), most, at(wall, 50), at(wall, 99), wall.back(),
                 at(cpu, 50), at(cpu, 99), cpu.back());
  }
  void Push(std::vector<OutputEvent> events) override {
    const size_t num_events = events.size();
    const auto cpu_begin = ThreadCpuTime();
    const auto begin = SteadyClock::now();
    sink_->Push(std::move(events));
    const auto end = SteadyClock::now();
    // The newest of a long run, so that memory stays flat.
    if (pushes_.size() < kMaxPushes) pushes_.emplace_back();
    pushes_[num_pushes_++ % kMaxPushes] = {num_events, end - begin,
                                           ThreadCpuTime() - cpu_begin};
  }

 private:
  struct Cost {
    size_t num_events = 0;
    std::chrono::nanoseconds wall{0};
    std::chrono::nanoseconds cpu{0};
  };

  static constexpr size_t kMaxPushes = 1 << 14;
  OutputSink* const sink_;
  std::vector<Cost> pushes_;
  size_t num_pushes_ = 0;
};

int Main(std::vector<std::string> args) {
  int step_ms = 0;
  int num_blocks = 1 << 14;
  int hang_at_step = 0;
  while (args.size() > 1 && args[0] != "serve") {
    int* const option = args[0] == "--step-ms"        ? &step_ms
                        : args[0] == "--num-blocks"   ? &num_blocks
                        : args[0] == "--hang-at-step" ? &hang_at_step
                                                      : nullptr;
    if (option == nullptr || !absl::SimpleAtoi(args[1], option)) break;
    args.erase(args.begin(), args.begin() + 2);
  }
  const absl::StatusOr<CommandLine> parsed = ParseCommandLine(std::move(args));
  if (!parsed.ok() || parsed->command != Command::kServe) {
    std::fprintf(stderr, "hash_server: %s\n",
                 std::string(parsed.status().message()).c_str());
    return 64;
  }
  Pace pace(step_ms);
  ServeParts parts;
  parts.make_runner = [&](EngineOptions* options) {
    options->num_blocks = num_blocks;
    options->steps_in_flight = 1;
    HashModelOptions model_options;
    model_options.reads_last_slot_only = true;
    auto runner = std::make_unique<HashModelRunner>(*options, model_options);
    runner->on_collect = [&pace, hang_at_step, num_steps = 0]() mutable {
      // A kernel that never ends, a collective whose other side has gone.
      if (++num_steps == hang_at_step) {
        while (true) pause();
      }
      pace.WaitForEndOfStep();
    };
    return runner;
  };
  parts.wrap_sink = [](OutputSink* sink) {
    return std::make_unique<TimedSink>(sink);
  };
  return RunServe(parsed->serve, parts);
}

}  // namespace
}  // namespace quire

int main(int argc, char** argv) {
  return quire::Main(std::vector<std::string>(argv + 1, argv + argc));
}
