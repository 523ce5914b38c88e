#include "engine/base/system_file.h"

#include <fstream>
#include <iterator>

namespace quire {

std::optional<std::string> ReadSystemFile(const std::string& path) {
  std::ifstream file(path);
  if (!file) return std::nullopt;
  return std::string(std::istreambuf_iterator<char>(file), {});
}

}  // namespace quire
