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
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"
#include "engine/model/gguf_model.h"

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

bool IsGgufName(absl::string_view name) {
  return absl::EndsWithIgnoreCase(name, ".gguf");
}

// "-00002-of-00005.gguf" at the end of a part of a split model: that suffix;
// empty for other names.
absl::string_view SplitSuffix(absl::string_view name) {
  constexpr absl::string_view kForm = "-00000-of-00000.";
  constexpr size_t kSize = kForm.size() + 4;
  if (!IsGgufName(name) || name.size() <= kSize) return {};
  const absl::string_view suffix = name.substr(name.size() - kSize);
  for (size_t i = 0; i < kForm.size(); ++i) {
    const bool fits = kForm[i] == '0' ? absl::ascii_isdigit(suffix[i])
                                      : suffix[i] == kForm[i];
    if (!fits) return {};
  }
  return suffix;
}

// A file of weights that the Hugging Face layout has.
bool IsDirectoryWeights(absl::string_view name) {
  return absl::EndsWith(name, ".safetensors") ||
         absl::EndsWith(name, ".safetensors.index.json") ||
         absl::StartsWith(name, "pytorch_model");
}

// The GGUF file in `directory`, or `directory` if it has weights in the Hugging
// Face layout, or their configuration at least. NOT_FOUND without any of these.
absl::StatusOr<std::string> ChooseGgufFile(const std::string& directory) {
  std::vector<std::string> found;
  std::string later_part;
  for (const std::string& name : ListDirectory(directory)) {
    if (IsDirectoryWeights(name)) return directory;
    // Projectors of images go with a language model and are none.
    if (!IsGgufName(name) || absl::StartsWith(name, "mmproj")) continue;
    const absl::string_view suffix = SplitSuffix(name);
    if (suffix.empty() || absl::StartsWith(suffix, "-00001-")) {
      found.push_back(name);
    } else if (later_part.empty()) {
      later_part = name;
    }
  }
  if (found.empty() && Exists(absl::StrCat(directory, "/config.json"))) {
    return directory;
  }
  if (found.empty() && !later_part.empty()) {
    return absl::NotFoundError(absl::StrCat(directory, ": holds ", later_part,
                                            ", but not the first part of it"));
  }
  if (found.empty()) {
    return absl::NotFoundError(absl::StrCat(
        directory,
        ": holds no model: neither a config.json nor a GGUF file is there"));
  }
  if (found.size() == 1) return absl::StrCat(directory, "/", found[0]);
  constexpr size_t kMaxShown = 30;
  const size_t num_more =
      found.size() > kMaxShown ? found.size() - kMaxShown : 0;
  found.resize(found.size() - num_more);
  return absl::InvalidArgumentError(absl::StrCat(
      directory, ": holds several GGUF models; choose one with --gguf-file: ",
      absl::StrJoin(found, ", "),
      num_more > 0 ? absl::StrCat(" and ", num_more, " more") : ""));
}

absl::StatusOr<std::string> NamedGgufFile(const std::string& directory,
                                          const std::string& name) {
  const std::string path =
      name[0] == '/' ? name : absl::StrCat(directory, "/", name);
  if (Exists(path)) return path;
  std::vector<std::string> names = ListDirectory(directory);
  names.erase(
      std::remove_if(names.begin(), names.end(),
                     [](const std::string& file) { return !IsGgufName(file); }),
      names.end());
  return absl::NotFoundError(absl::StrCat(
      path, ": no such file; ", directory, " holds ",
      names.empty() ? "no GGUF file" : absl::StrJoin(names, ", ")));
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
      path, ": no such model directory or file",
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

absl::StatusOr<std::string> ResolveModelPath(const std::string& path,
                                             const std::string& gguf_file) {
  struct stat info;
  if (stat(path.c_str(), &info) != 0) return MissingError(path, errno);
  if (!S_ISDIR(info.st_mode)) {
    if (!IsGgufPath(path)) {
      return absl::InvalidArgumentError(
          absl::StrCat(path, ": not a directory and no GGUF file; ",
                       "name the model's directory"));
    }
    if (gguf_file.empty()) return path;
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": --gguf-file is for a model that is a directory"));
  }
  if (access(path.c_str(), R_OK | X_OK) != 0) return MissingError(path, errno);
  std::string directory = path;
  if (!Exists(absl::StrCat(path, "/config.json")) &&
      Exists(absl::StrCat(path, "/snapshots"))) {
    const absl::StatusOr<std::string> snapshot = ResolveSnapshot(path);
    if (!snapshot.ok()) return snapshot;
    directory = *snapshot;
  }
  if (!gguf_file.empty()) return NamedGgufFile(directory, gguf_file);
  return ChooseGgufFile(directory);
}

std::string DefaultModelName(std::string path) {
  while (path.size() > 1 && path.back() == '/') path.pop_back();
  for (absl::string_view component : absl::StrSplit(path, '/')) {
    if (absl::ConsumePrefix(&component, "models--")) {
      return absl::StrReplaceAll(component, {{"--", "/"}});
    }
  }
  std::string name = path.substr(path.rfind('/') + 1);
  if (const absl::string_view suffix = SplitSuffix(name); !suffix.empty()) {
    name.resize(name.size() - suffix.size());
  } else if (IsGgufName(name)) {
    name.resize(name.size() - 5);
  }
  return name;
}

}  // namespace quire
