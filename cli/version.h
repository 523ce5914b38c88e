// The version of the program, and what this build can do.
#ifndef QUIRE_CLI_VERSION_H_
#define QUIRE_CLI_VERSION_H_

#include <string>

namespace quire {

inline constexpr char kVersion[] = "0.1.0";

// Several lines: version, backends, instruction sets (the one in use first
// marked), model architectures.
std::string DescribeVersion();

}  // namespace quire

#endif  // QUIRE_CLI_VERSION_H_
