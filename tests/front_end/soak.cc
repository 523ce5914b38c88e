// All promises of the front end in full, beside their targets (tools/soak.sh).
//
//   soak [--brief] [--only NAME]...
//
// Exits with 1 if one is broken. Built with a sanitizer it holds counts, leaks
// and order only, and what the sanitizer finds in the servers.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <functional>
#include <string>
#include <vector>

#include "tests/front_end/attacks.h"
#include "tests/front_end/failing_calls.h"
#include "tests/front_end/figure.h"
#include "tests/front_end/life.h"
#include "tests/front_end/request_table.h"
#include "tests/front_end/sanitized.h"
#include "tests/front_end/server_process.h"
#include "tests/front_end/streams.h"

namespace quire {
namespace {

constexpr char kHashServer[] = "tests/front_end/hash_server";

struct Part {
  const char* name;
  std::function<std::vector<Figure>()> run;
};

std::vector<Part> Parts(bool is_brief) {
  const double seconds = is_brief ? 8 : 60;
  const int num_tokens = static_cast<int>(seconds * 1000 / 30);
  return {
      {"attacks", [] { return RunAttacks(/*is_full=*/true); }},
      {"bad_requests",
       [=] {
         return RunRequestTable(RequestTable::kBad, is_brief ? 20 : 100,
                                kHashServer);
       }},
      {"odd_requests",
       [] { return RunRequestTable(RequestTable::kOdd, 1, "cli/quire"); }},
      {"failing_allocations",
       [=] {
         return RunFailingCalls(FaultKind::kAllocations, is_brief ? 4 : 1, 0,
                                kHashServer);
       }},
      {"failing_system_calls",
       [] {
         return RunFailingCalls(FaultKind::kSystemCalls, 1, 0, kHashServer);
       }},
      {"disconnects", [] { return RunDisconnects(1000); }},
      {"overload", [=] { return RunOverload(is_brief ? 5 : 30); }},
      {"shutdowns", [] { return RunShutdowns(100, 256); }},
      {"hung_engine", [] { return RunHungEngine(32); }},
      {"system_faults", [] { return RunSystemFaults(); }},
      {"idle_program", [=] { return RunIdleProgram(is_brief ? 5 : 60); }},
      {"many_requests",
       [=] { return RunManyRequests(is_brief ? 200'000 : 1'000'000); }},
      {"streams_1024",
       [=] {
         return RunStreams({.num_streams = 1024, .num_tokens = num_tokens});
       }},
      {"streams_4096",
       [=] {
         return RunStreams(
             {.num_streams = 4096, .num_tokens = num_tokens, .max_gap_ms = 60});
       }},
      {"connect_storm", [] { return RunConnectStorm(4096); }},
      // Within the keep-alive timeout.
      {"idle", [] { return RunIdleConnections(4096, 8); }},
      {"full_port", [=] { return RunFullPort(is_brief ? 4096 : 16384, 128); }},
      {"slow_readers",
       [=] {
         return RunSlowReaders(
             {.num_streams = 64, .num_hindering = 1000, .seconds = seconds});
       }},
      {"slowloris",
       [=] {
         return RunSlowloris(
             {.num_streams = 64, .num_hindering = 1000, .seconds = seconds});
       }},
  };
}

int Main(int argc, char** argv) {
  bool is_brief = false;
  std::vector<std::string> only;
  CLI::App app("Promises of the front end, measured");
  app.add_flag("--brief", is_brief, "every figure, in less time");
  app.add_option("--only", only, "parts by name");
  CLI11_PARSE(app, argc, argv);
  const std::vector<Part> parts = Parts(is_brief);
  for (const std::string& name : only) {
    if (std::any_of(parts.begin(), parts.end(),
                    [&](const Part& part) { return name == part.name; })) {
      continue;
    }
    std::fprintf(stderr, "soak: '%s' is no part; there are", name.c_str());
    for (const Part& part : parts) std::fprintf(stderr, " %s", part.name);
    std::fprintf(stderr, "\n");
    return 64;
  }
  int num_broken = 0;
  int num_figures = 0;
  std::printf("| %-58s | %-16s | %-11s | %s |\n", "promise", "measured",
              "target", "");
  std::printf("|---|---|---|---|\n");
  for (const Part& part : parts) {
    if (!only.empty() &&
        std::find(only.begin(), only.end(), part.name) == only.end()) {
      continue;
    }
    if (kIsSanitized && std::string(part.name).rfind("failing_", 0) == 0) {
      std::printf("skipped: %s: a sanitizer takes the calls itself\n",
                  part.name);
      continue;
    }
    const int num_reports = ServerProcess::num_sanitizer_reports();
    std::vector<Figure> figures = part.run();
    if (kIsSanitized) {
      figures.push_back(
          {std::string(part.name) + ": found by the sanitizer",
           double(ServerProcess::num_sanitizer_reports() - num_reports)});
    }
    for (const Figure& figure : figures) {
      std::printf("%s\n", Describe(figure).c_str());
      ++num_figures;
      num_broken +=
          !IsKept(figure) && !(kIsSanitized && DependsOnTheMachine(figure));
    }
    std::fflush(stdout);
  }
  std::printf("%d figures, %d broken\n", num_figures, num_broken);
  return num_figures > 0 && num_broken == 0 ? 0 : 1;
}

}  // namespace
}  // namespace quire

int main(int argc, char** argv) { return quire::Main(argc, argv); }
