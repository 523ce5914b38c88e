#include "cli/model_path.h"

#include <dirent.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"

namespace quire {
namespace {

bool Exists(const std::string& path) {
  struct stat info;
  return stat(path.c_str(), &info) == 0;
}

// Names in `directory` but hidden ones, sorted; empty if it cannot be read.
std::vector<std::string> ListDirectory(const std::string& directory) {
  std::vector<std::string> names;
  DIR* const stream = opendir(directory.c_str());
  if (stream == nullptr) return names;
  while (const dirent* entry = readdir(stream)) {
    if (entry->d_name[0] != '.') names.push_back(entry->d_name);
  }
  closedir(stream);
  std::sort(names.begin(), names.end());
  return names;
}

absl::Status GgufError(const std::string& path) {
  return absl::InvalidArgumentError(
      absl::StrCat(path,
                   ": GGUF is not supported; name a directory in Hugging Face "
                   "format (config.json, *.safetensors, tokenizer.json)"));
}

// `path` cannot be examined, for the reason `error`.
absl::Status MissingError(const std::string& path, int error) {
  if (error != ENOENT && error != ENOTDIR) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": ", std::strerror(error)));
  }
  // "ORG/NAME" and "s3://..." are what llmaz gives with skip-model-loader.
  const bool is_uri = absl::StrContains(path, "://");
  const bool is_hub_name = std::count(path.begin(), path.end(), '/') == 1 &&
                           path[0] != '/' && path[0] != '.';
  return absl::NotFoundError(absl::StrCat(
      path, ": no such model directory",
      is_uri || is_hub_name
          ? "; quire downloads nothing, name a directory that holds the model"
          : ""));
}

absl::StatusOr<std::string> ResolveSnapshot(const std::string& path) {
  const std::string folder = absl::StrCat(path, "/snapshots");
  const std::string ref = absl::StrCat(path, "/refs/main");
  if (Exists(ref)) {
    std::string revision;
    std::ifstream file(ref);
    std::getline(file, revision);
    revision = std::string(absl::StripAsciiWhitespace(revision));
    const std::string snapshot = absl::StrCat(folder, "/", revision);
    // The name of a directory there, nothing that leads elsewhere.
    if (revision.empty() || revision[0] == '.' ||
        absl::StrContains(revision, "/") || !Exists(snapshot)) {
      return absl::NotFoundError(
          absl::StrCat(ref, ": names no directory in ", folder));
    }
    return snapshot;
  }
  const std::vector<std::string> snapshots = ListDirectory(folder);
  if (snapshots.size() != 1) {
    return absl::NotFoundError(
        absl::StrCat(folder, ": holds ", snapshots.size(),
                     " snapshots and there is no refs/main; name one of them"));
  }
  return absl::StrCat(folder, "/", snapshots.front());
}

}  // namespace

absl::StatusOr<std::string> ResolveModelDirectory(const std::string& path) {
  struct stat info;
  if (stat(path.c_str(), &info) != 0) return MissingError(path, errno);
  if (!S_ISDIR(info.st_mode)) {
    if (absl::EndsWithIgnoreCase(path, ".gguf")) return GgufError(path);
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": not a directory; name the model's directory"));
  }
  if (access(path.c_str(), R_OK | X_OK) != 0) return MissingError(path, errno);
  if (Exists(absl::StrCat(path, "/config.json"))) return path;
  if (Exists(absl::StrCat(path, "/snapshots"))) return ResolveSnapshot(path);
  for (const std::string& name : ListDirectory(path)) {
    if (absl::EndsWithIgnoreCase(name, ".gguf")) {
      return GgufError(absl::StrCat(path, "/", name));
    }
  }
  return path;
}

std::string DefaultModelName(std::string path) {
  while (path.size() > 1 && path.back() == '/') path.pop_back();
  for (absl::string_view component : absl::StrSplit(path, '/')) {
    if (absl::ConsumePrefix(&component, "models--")) {
      return absl::StrReplaceAll(component, {{"--", "/"}});
    }
  }
  return path.substr(path.rfind('/') + 1);
}

}  // namespace quire
