// Simulates histories from a seed on, for as many steps as asked, on several
// processes; shrinks and prints the first one that fails. Started by
// tools/simulate.sh.
#include <poll.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "tests/engine_simulation/campaign.h"
#include "tests/engine_simulation/planted_bugs.h"
#include "tests/engine_simulation/shrink.h"
#include "tests/engine_simulation/simulation.h"

namespace quire {
namespace {

constexpr int kMaxShrinkRuns = 5000;
constexpr int kReportEveryMs = 60'000;

struct Args {
  uint64_t seed = 1;
  int64_t steps = 1'000'000;
  int64_t drafted_cases = 0;  // Not 0: in place of steps.
  int jobs = 1;
  bool trace = false;
  bool no_shrink = false;
  std::string bug;
};

HistoryKind KindOf(const Args& args) {
  return args.drafted_cases > 0 ? HistoryKind::kDrafted : HistoryKind::kAny;
}

void Print(const std::string& line) { std::printf("%s\n", line.c_str()); }

// In a child, so that what was printed before a crash stays printed.
void PrintTrace(const History& history, int64_t max_steps) {
  Campaign campaign([&](Progress* progress) {
    return Simulate(history, max_steps, &progress->coverage,
                    [](const std::string& line) {
                      Print(line);
                      std::fflush(stdout);
                    })
        .status;
  });
  const absl::Status status = campaign.Wait();
  Print(status.ok() ? "clean" : std::string(status.message()));
}

void ReportFailure(const Args& args, const Campaign& campaign,
                   const absl::Status& status) {
  const uint64_t seed = campaign.progress().seed;
  const int64_t num_steps = campaign.progress().num_steps();
  std::printf("FAILED: %s\nreplay: --seed %llu --steps %lld%s%s%s\n",
              std::string(status.message()).c_str(),
              static_cast<unsigned long long>(seed),
              static_cast<long long>(num_steps),
              args.drafted_cases > 0 ? " --drafted-cases 1" : "",
              args.bug.empty() ? "" : " --bug ", args.bug.c_str());
  if (args.no_shrink) return;
  const std::string signature = SignatureOf(status);
  // Enough for a history that is slower with less in it.
  const int64_t max_steps = 2 * num_steps + 100;
  const auto fails = [&](const History& history) {
    return SignatureOf(SimulateApart(history, max_steps)) == signature;
  };
  const History small =
      Shrink(DrawHistory(seed, KindOf(args)), fails, kMaxShrinkRuns);
  std::printf("\nshrunk:\n%s\n", Describe(small).c_str());
  PrintTrace(small, max_steps);
}

int Run(const Args& args) {
  const auto start = std::chrono::steady_clock::now();
  const auto seconds = [start] {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() -
                                         start)
        .count();
  };
  std::vector<std::unique_ptr<Campaign>> campaigns;
  std::vector<pollfd> fds;
  for (int i = 0; i < args.jobs; ++i) {
    const int64_t total =
        args.drafted_cases > 0 ? args.drafted_cases : args.steps;
    const int64_t share = total / args.jobs + (i < total % args.jobs);
    campaigns.push_back(std::make_unique<Campaign>([&args, i,
                                                    share](Progress* progress) {
      return args.drafted_cases > 0
                 ? RunDraftedSeeds(args.seed + i, args.jobs, share, progress)
                 : RunSeeds(args.seed + i, args.jobs, share, progress);
    }));
    fds.push_back({campaigns.back()->fd(), POLLIN, 0});
  }
  const auto total = [&campaigns] {
    Coverage coverage;
    for (const auto& campaign : campaigns) {
      coverage.Add(campaign->progress().coverage);
    }
    return coverage;
  };
  for (int num_left = args.jobs; num_left > 0;) {
    if (poll(fds.data(), fds.size(), kReportEveryMs) == 0) {
      const int64_t steps = total()[Covered::kSteps];
      std::printf("%lld steps, %.0f per second\n",
                  static_cast<long long>(steps), steps / seconds());
      std::fflush(stdout);
      continue;
    }
    for (int i = 0; i < args.jobs; ++i) {
      if (fds[i].fd < 0 || fds[i].revents == 0) continue;
      if (!campaigns[i]->ReadSome()) continue;
      fds[i].fd = -1;
      --num_left;
      const absl::Status status = campaigns[i]->Wait();
      if (status.ok()) continue;
      ReportFailure(args, *campaigns[i], status);
      return 1;
    }
  }
  const Coverage coverage = total();
  std::printf("clean: %s\n%.0f s, %.0f steps per second\n",
              coverage.ToString().c_str(), seconds(),
              coverage[Covered::kSteps] / seconds());
  return 0;
}

bool PlantBug(const std::string& name) {
#ifdef QUIRE_SIM_BUG
  for (const PlantedBugInfo& info : AllPlantedBugs()) {
    if (name == info.name) active_planted_bug = info.bug;
  }
  if (active_planted_bug != PlantedBug::kNone) return true;
  std::fprintf(stderr, "no bug is called %s; there are:", name.c_str());
  for (const PlantedBugInfo& info : AllPlantedBugs()) {
    std::fprintf(stderr, " %s", info.name);
  }
  std::fprintf(stderr, "\n");
#else
  std::fprintf(stderr, "%s: this build has no planted bugs\n", name.c_str());
#endif
  return false;
}

}  // namespace
}  // namespace quire

int main(int argc, char** argv) {
  quire::Args args;
  CLI::App app("Simulates random histories of the engine.");
  app.add_option("--seed", args.seed, "Of the first history");
  app.add_option("--steps", args.steps, "Of the engine, in all")
      ->check(CLI::PositiveNumber);
  app.add_option("--drafted-cases", args.drafted_cases,
                 "In place of --steps: small histories with a drafter, until "
                 "drafts were verified in so many")
      ->check(CLI::PositiveNumber);
  app.add_option("--jobs", args.jobs, "Processes")->check(CLI::Range(1, 256));
  app.add_flag("--trace", args.trace,
               "Print what happens in the first history, and stop");
  app.add_flag("--no-shrink", args.no_shrink, "Do not look for less");
  app.add_option("--bug", args.bug, "Switch on this planted bug");
  CLI11_PARSE(app, argc, argv);
  if (!args.bug.empty() && !quire::PlantBug(args.bug)) return 2;
  if (args.trace) {
    const quire::History history =
        quire::DrawHistory(args.seed, quire::KindOf(args));
    quire::Print(quire::Describe(history));
    quire::PrintTrace(history, args.steps);
    return 0;
  }
  return quire::Run(args);
}
