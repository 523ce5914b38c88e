// The command line: arguments, one per line, of which an empty one ends them;
// what follows is the file of --config.
//
// One parser takes many inputs, since to build a grammar costs most of a
// millisecond; now and then a new one must say the same.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/string_view.h"
#include "cli/options.h"
#include "engine/base/status.h"
#include "tests/fuzz/memory_file.h"

namespace quire {
namespace {

constexpr size_t kMaxArguments = 64;
// CLI11 keeps the order of all options ever parsed, so no parser lives forever.
constexpr int kParsesOfOne = 1024;

absl::StatusOr<CommandLine> Parse(const std::vector<std::string>& args) {
  static CommandLineParser* parser = nullptr;
  static int num_parses = 0;
  if (parser == nullptr) parser = new CommandLineParser;
  auto parsed = parser->Parse(args);
  if (++num_parses % kParsesOfOne != 0) return parsed;
  delete std::exchange(parser, nullptr);
  const auto again = ParseCommandLine(args);
  QUIRE_CHECK(again.status() == parsed.status());
  if (parsed.ok()) {
    QUIRE_CHECK(again->command == parsed->command);
    QUIRE_CHECK(again->help == parsed->help);
    QUIRE_CHECK(again->serve.model.args == parsed->serve.model.args);
    QUIRE_CHECK(again->chat.model.args == parsed->chat.model.args);
  }
  return parsed;
}

void Run(absl::string_view input) {
  static MemoryFile& config = *new MemoryFile;
  std::vector<std::string> args;
  while (!input.empty() && args.size() < kMaxArguments) {
    const size_t end = std::min(input.find('\n'), input.size());
    const absl::string_view line = input.substr(0, end);
    input.remove_prefix(std::min(end + 1, input.size()));
    if (line.empty()) break;
    // A system's arguments hold no NUL.
    if (absl::StrContains(line, '\0')) return;
    args.emplace_back(line);
  }
  // Files of this machine are nobody's input.
  for (std::string& argument : args) {
    if (absl::StartsWith(argument, "--config=")) {
      argument = "--config=" + config.path();
    }
    if (argument == "--config") argument = "--config=" + config.path();
  }
  config.Set(input);
  const auto parsed = Parse(args);
  if (!parsed.ok()) {
    QUIRE_CHECK(absl::IsInvalidArgument(parsed.status()));
    QUIRE_CHECK(!parsed.status().message().empty());
    return;
  }
  if (parsed->command == Command::kHelp) {
    QUIRE_CHECK(!parsed->help.empty());
    return;
  }
  // What later code relies on without another look.
  const ServeOptions& serve = parsed->serve;
  QUIRE_CHECK(serve.port >= 0 && serve.port <= 65535);
  QUIRE_CHECK(serve.num_http_threads >= 1 && serve.max_connections >= 1);
  QUIRE_CHECK(serve.model.num_threads >= 0 && serve.model.block_size >= 1);
  const StepSize steps = ChooseStepSize(serve.model, StepSize());
  QUIRE_CHECK(steps.num_seqs >= 1 && steps.num_tokens >= 1);
  QUIRE_CHECK(serve.shutdown_timeout_seconds >= 0);
  QUIRE_CHECK(serve.max_log_len >= 1);
}

}  // namespace
}  // namespace quire

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  quire::Run(absl::string_view(reinterpret_cast<const char*>(data), size));
  return 0;
}
