// The program: command line to options, options to the command's own file.
#include <signal.h>

#include <cstdio>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_format.h"
#include "cli/bench.h"
#include "cli/chat.h"
#include "cli/drain.h"
#include "cli/exit_codes.h"
#include "cli/generate.h"
#include "cli/options.h"
#include "cli/serve.h"
#include "cli/version.h"
#include "cli/worker.h"

int main(int argc, char** argv) {
  // A peer or a pipe that has gone is an error of the write, not of the
  // process.
  signal(SIGPIPE, SIG_IGN);
  const absl::StatusOr<quire::CommandLine> parsed =
      quire::ParseCommandLine(std::vector<std::string>(argv + 1, argv + argc));
  if (!parsed.ok()) {
    absl::FPrintF(stderr, "quire: %s\n", parsed.status().message());
    return quire::kExitUsage;
  }
  switch (parsed->command) {
    case quire::Command::kServe:
      return quire::RunServe(parsed->serve);
    case quire::Command::kWorker:
      return quire::RunWorker(parsed->serve);
    case quire::Command::kChat:
      return quire::RunChat(parsed->chat);
    case quire::Command::kGenerate:
      return quire::RunGenerate(parsed->generate);
    case quire::Command::kDrain:
      return quire::RunDrain(parsed->drain);
    case quire::Command::kBench:
      return quire::RunBench(*parsed->bench);
    case quire::Command::kVersion:
      absl::PrintF("%s", quire::DescribeVersion());
      return quire::kExitOk;
    case quire::Command::kHelp:
      absl::PrintF("%s", parsed->help);
      return quire::kExitOk;
  }
  return quire::kExitUsage;
}
