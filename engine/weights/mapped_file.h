// A whole file in memory, read only.
#ifndef QUIRE_ENGINE_WEIGHTS_MAPPED_FILE_H_
#define QUIRE_ENGINE_WEIGHTS_MAPPED_FILE_H_

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/types/span.h"

namespace quire {

// Immutable after Open; thread-safe. The file must not shrink while it is
// mapped: reading past its new end raises SIGBUS, as with any mapping.
class MappedFile {
 public:
  // NOT_FOUND if there is no such file, INVALID_ARGUMENT if it is not a regular
  // file or cannot be read; the message names the file.
  static absl::StatusOr<std::shared_ptr<const MappedFile>> Open(
      const std::string& path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  const std::string& path() const { return path_; }
  absl::Span<const uint8_t> bytes() const { return bytes_; }

  // Takes the whole pages of `bytes` out of this process, if they are part of
  // the file; what is read of them later comes from the page cache again.
  void ReleasePages(absl::Span<const uint8_t> bytes) const;

 private:
  MappedFile(std::string path, absl::Span<const uint8_t> bytes)
      : path_(std::move(path)), bytes_(bytes) {}

  std::string path_;
  absl::Span<const uint8_t> bytes_;
};

// Reads a text file of at most `max_bytes`. NOT_FOUND or INVALID_ARGUMENT,
// naming the file and, if it is too large, both sizes.
absl::StatusOr<std::string> ReadTextFile(const std::string& path,
                                         int64_t max_bytes);

}  // namespace quire

#endif  // QUIRE_ENGINE_WEIGHTS_MAPPED_FILE_H_
