// The names of element types on the command line.
#ifndef QUIRE_CLI_DTYPE_OPTIONS_H_
#define QUIRE_CLI_DTYPE_OPTIONS_H_

#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "kernels/dtype.h"

namespace quire {

// Of --dtype and --kv-cache-dtype; none: auto. Several names mean one type;
// DTypeName's are among them. INVALID_ARGUMENT naming the option.
absl::StatusOr<std::optional<DType>> ParseDTypeOption(const std::string& name);
absl::StatusOr<std::optional<DType>> ParseKvDTypeOption(
    const std::string& name);

}  // namespace quire

#endif  // QUIRE_CLI_DTYPE_OPTIONS_H_
