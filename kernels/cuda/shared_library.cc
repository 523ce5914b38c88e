#include "kernels/cuda/shared_library.h"

#include <dlfcn.h>
#include <glob.h>
#include <limits.h>
#include <unistd.h>

#include <cstdlib>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"

namespace quire::cuda {
namespace {

std::string ExecutableFolder() {
  char buffer[PATH_MAX];
  const ssize_t length = readlink("/proc/self/exe", buffer, sizeof(buffer));
  if (length <= 0 || length == sizeof(buffer)) return "";
  const std::string path(buffer, length);
  return path.substr(0, path.rfind('/'));
}

std::vector<std::string> Glob(const std::string& pattern) {
  glob_t found = {};
  std::vector<std::string> paths;
  if (glob(pattern.c_str(), 0, nullptr, &found) == 0) {
    paths.assign(found.gl_pathv, found.gl_pathv + found.gl_pathc);
  }
  globfree(&found);
  return paths;
}

}  // namespace

LibraryPlaces DefaultLibraryPlaces() {
  LibraryPlaces places;
  if (const char* folders = getenv("QUIRE_CUDA_LIBS")) {
    places.folders = absl::StrSplit(folders, ':', absl::SkipEmpty());
  }
  if (const std::string folder = ExecutableFolder(); !folder.empty()) {
    places.folders.push_back(folder);
    places.folders.push_back(absl::StrCat(folder, "/lib"));
    places.folders.push_back(absl::StrCat(folder, "/../lib"));
  }
  places.folders.push_back("/usr/local/cuda/lib64");
  std::vector<std::string> prefixes = {"/usr/local", "/usr"};
  if (const char* home = getenv("HOME")) {
    prefixes.insert(prefixes.begin(), absl::StrCat(home, "/.local"));
  }
  if (const char* environment = getenv("VIRTUAL_ENV")) {
    prefixes.insert(prefixes.begin(), environment);
  }
  for (const std::string& prefix : prefixes) {
    for (const char* packages : {"site-packages", "dist-packages"}) {
      places.patterns.push_back(
          absl::StrCat(prefix, "/lib/python3*/", packages, "/nvidia/*/lib"));
    }
  }
  return places;
}

absl::StatusOr<SharedLibrary> SharedLibrary::Open(
    const std::vector<std::string>& names, const LibraryPlaces& places) {
  std::vector<std::string> errors;
  const auto open = [&](const std::string& path) {
    void* handle = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (handle == nullptr) errors.push_back(dlerror());
    return handle;
  };
  const auto open_in = [&](const std::string& folder,
                           std::string* path) -> void* {
    for (const std::string& name : names) {
      *path = absl::StrCat(folder, "/", name);
      if (access(path->c_str(), F_OK) != 0) continue;
      if (void* handle = open(*path)) return handle;
    }
    return nullptr;
  };
  std::string path;
  for (const std::string& folder : places.folders) {
    if (void* handle = open_in(folder, &path)) {
      return SharedLibrary(path, handle);
    }
  }
  if (places.uses_loader_path) {
    for (const std::string& name : names) {
      // That it is in none of the loader's places is no error to tell.
      if (void* handle = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL)) {
        return SharedLibrary(name, handle);
      }
    }
  }
  for (const std::string& pattern : places.patterns) {
    for (const std::string& folder : Glob(pattern)) {
      if (void* handle = open_in(folder, &path)) {
        return SharedLibrary(path, handle);
      }
    }
  }
  if (!errors.empty()) {
    return absl::FailedPreconditionError(absl::StrJoin(errors, "; "));
  }
  std::vector<std::string> searched = places.folders;
  if (places.uses_loader_path) searched.push_back("the loader's path");
  searched.insert(searched.end(), places.patterns.begin(),
                  places.patterns.end());
  return absl::NotFoundError(absl::StrCat(
      absl::StrJoin(names, " or "), " is in none of ",
      absl::StrJoin(searched, ", "), "; QUIRE_CUDA_LIBS names other folders"));
}

absl::Status SharedLibrary::Find(const char* name, void** symbol) const {
  *symbol = dlsym(handle_, name);
  if (*symbol != nullptr) return absl::OkStatus();
  return absl::FailedPreconditionError(
      absl::StrCat(path_, " has no function ", name));
}

}  // namespace quire::cuda
