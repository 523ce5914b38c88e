#include "cli/arguments.h"

#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <set>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "engine/base/status.h"

namespace quire {
namespace {

// The options of a flat YAML mapping as arguments: `name: value`, a list for an
// option that may repeat, true or false for a flag.
absl::StatusOr<std::vector<std::string>> ReadConfigFile(
    const std::string& path) {
  std::vector<std::string> args;
  const auto add = [&](const std::string& name, const YAML::Node& value) {
    args.push_back(NormalizeArgument(
        absl::StrCat("--", name, "=", value.as<std::string>())));
  };
  std::ifstream file(path);
  if (!file) {
    return absl::InvalidArgumentError(
        absl::StrCat("--config ", path, ": ", std::strerror(errno)));
  }
  try {
    const YAML::Node root = YAML::Load(file);
    if (root.IsNull()) return args;
    if (!root.IsMap()) {
      return absl::InvalidArgumentError(
          absl::StrCat(path, ": not a mapping of options"));
    }
    for (const auto& entry : root) {
      const std::string name = entry.first.as<std::string>();
      if (entry.second.IsScalar()) {
        add(name, entry.second);
      } else if (entry.second.IsSequence()) {
        for (const auto& value : entry.second) add(name, value);
      } else if (!entry.second.IsNull()) {
        return absl::InvalidArgumentError(
            absl::StrCat(path, ": '", name, "' must be a value or a list"));
      }
    }
  } catch (const YAML::Exception& error) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": ", error.what()));
  }
  return args;
}

std::string OptionName(const std::string& argument) {
  return argument.substr(0, argument.find('='));
}

}  // namespace

std::string NormalizeArgument(const std::string& argument) {
  if (argument == "-tp") return "--tensor-parallel-size";
  if (argument == "-pp") return "--pipeline-parallel-size";
  if (argument == "-pg") return "--prompt-gen";
  if (absl::StartsWith(argument, "-tp=")) {
    return absl::StrCat("--tensor-parallel-size=", argument.substr(4));
  }
  if (absl::StartsWith(argument, "-pp=")) {
    return absl::StrCat("--pipeline-parallel-size=", argument.substr(4));
  }
  if (!absl::StartsWith(argument, "--")) return argument;
  const size_t end = std::min(argument.find('='), argument.size());
  std::string name = argument.substr(0, end);
  std::replace(name.begin() + 2, name.end(), '_', '-');
  return name + argument.substr(end);
}

void KeepLast(const std::string& name, std::vector<std::string>* args) {
  bool is_last = true;
  for (size_t i = args->size(); i-- > 0;) {
    if (OptionName((*args)[i]) != name) continue;
    if (std::exchange(is_last, false)) continue;
    size_t end = i + 1;
    while (end < args->size() && !absl::StartsWith((*args)[end], "-")) ++end;
    args->erase(args->begin() + i, args->begin() + end);
  }
}

absl::Status ExpandConfig(std::vector<std::string>* args) {
  std::string path;
  for (size_t i = 1; i < args->size();) {
    const std::string& argument = (*args)[i];
    if (argument == "--config") {
      if (i + 1 == args->size()) {
        return absl::InvalidArgumentError("--config needs a file");
      }
      path = (*args)[i + 1];
      args->erase(args->begin() + i, args->begin() + i + 2);
    } else if (absl::StartsWith(argument, "--config=")) {
      path = argument.substr(9);
      args->erase(args->begin() + i);
    } else {
      ++i;
    }
  }
  if (path.empty()) {
    if (const char* from_environment = getenv("QUIRE_CONFIG")) {
      path = from_environment;
    }
  }
  // Without a subcommand there is nothing that the file could set.
  if (path.empty() || args->empty() || absl::StartsWith((*args)[0], "-")) {
    return absl::OkStatus();
  }
  QUIRE_ASSIGN_OR_RETURN(std::vector<std::string> options,
                         ReadConfigFile(path));
  // Values of an option that may repeat would join those of the command line.
  std::set<std::string> given;
  for (const std::string& argument : *args) given.insert(OptionName(argument));
  std::erase_if(options, [&given](const std::string& option) {
    return given.count(OptionName(option)) > 0;
  });
  // Behind the benchmark's own name, too.
  const size_t at = (*args)[0] == "bench" && args->size() > 1 ? 2 : 1;
  args->insert(args->begin() + at, options.begin(), options.end());
  return absl::OkStatus();
}

}  // namespace quire
