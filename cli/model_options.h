// Options of the commands that load a model.
#ifndef QUIRE_CLI_MODEL_OPTIONS_H_
#define QUIRE_CLI_MODEL_OPTIONS_H_

#include <CLI/CLI.hpp>
#include <string>

#include "cli/options.h"

namespace quire {

// A flag with an opposite.
void AddSwitch(CLI::App* app, const std::string& names, bool* is_on,
               const std::string& description);

// `options` must outlive `app`.
void AddModelOptions(CLI::App* app, SessionOptions* options);
void AddSamplingOptions(CLI::App* app, SamplingOptions* options);
// Of several nodes, each with processes of its own.
void AddNodeOptions(CLI::App* app, SessionOptions* options);

}  // namespace quire

#endif  // QUIRE_CLI_MODEL_OPTIONS_H_
