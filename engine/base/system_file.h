// Files of /proc and /sys, which tests stand in for.
#ifndef QUIRE_ENGINE_BASE_SYSTEM_FILE_H_
#define QUIRE_ENGINE_BASE_SYSTEM_FILE_H_

#include <optional>
#include <string>

#include "absl/functional/function_ref.h"

namespace quire {

// The contents of the file at an absolute path; nothing if it cannot be read.
using FileReader =
    absl::FunctionRef<std::optional<std::string>(const std::string&)>;
std::optional<std::string> ReadSystemFile(const std::string& path);

}  // namespace quire

#endif  // QUIRE_ENGINE_BASE_SYSTEM_FILE_H_
