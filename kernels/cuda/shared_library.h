// Finds and opens the shared libraries of CUDA that a program is not linked
// with: they are large (cuBLASLt has 540 MB), and not everybody has them.
#ifndef QUIRE_KERNELS_CUDA_SHARED_LIBRARY_H_
#define QUIRE_KERNELS_CUDA_SHARED_LIBRARY_H_

#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace quire::cuda {

// Where a library may be, in the order of the search. Tests name other places.
struct LibraryPlaces {
  std::vector<std::string> folders;
  // Also as the loader finds it: rpath, LD_LIBRARY_PATH, ld.so.cache.
  bool uses_loader_path = true;
  // Patterns of glob(7) for folders, tried last.
  std::vector<std::string> patterns;
};

// $QUIRE_CUDA_LIBS (folders, separated by ":"); the folder of the executable,
// its lib and ../lib; /usr/local/cuda/lib64; the loader's path; the folders of
// NVIDIA's Python packages.
LibraryPlaces DefaultLibraryPlaces();

// An open library, which stays open as long as the process. Thread-safe.
class SharedLibrary {
 public:
  // Opens the first file with one of the names, which are tried in each place
  // in their order. NOT_FOUND names them and the places; FAILED_PRECONDITION if
  // files were found and none could be opened, with the loader's words.
  static absl::StatusOr<SharedLibrary> Open(
      const std::vector<std::string>& names, const LibraryPlaces& places);

  const std::string& path() const { return path_; }

  // Puts the address of a symbol into *function. FAILED_PRECONDITION with the
  // library's path if there is none.
  template <typename Function>
  absl::Status Load(const char* name, Function** function) const {
    void* symbol = nullptr;
    absl::Status status = Find(name, &symbol);
    *function = reinterpret_cast<Function*>(symbol);
    return status;
  }

 private:
  SharedLibrary(std::string path, void* handle)
      : path_(std::move(path)), handle_(handle) {}
  absl::Status Find(const char* name, void** symbol) const;

  std::string path_;
  void* handle_ = nullptr;
};

}  // namespace quire::cuda

#endif  // QUIRE_KERNELS_CUDA_SHARED_LIBRARY_H_
