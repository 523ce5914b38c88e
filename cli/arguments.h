// A command line's arguments before CLI11 has them: other spellings, options
// given twice, and the file of --config.
#ifndef QUIRE_CLI_ARGUMENTS_H_
#define QUIRE_CLI_ARGUMENTS_H_

#include <string>
#include <vector>

#include "absl/status/status.h"

namespace quire {

// CLI11 knows neither `_` for `-` nor multi-letter short options.
std::string NormalizeArgument(const std::string& argument);

// Takes every `name` but the last out of `args`, with its values: CLI11 would
// join the values of all of them.
void KeepLast(const std::string& name, std::vector<std::string>* args);

// Takes `--config FILE` out of `args` and puts the file's options right behind
// the subcommand, where the command line's own, being later, win.
// INVALID_ARGUMENT naming the file.
absl::Status ExpandConfig(std::vector<std::string>* args);

}  // namespace quire

#endif  // QUIRE_CLI_ARGUMENTS_H_
