#include "engine/weights/mapped_file.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/base/status.h"

namespace quire {
namespace {

absl::Status FileError(const std::string& path, const char* action, int error) {
  const std::string message =
      absl::StrCat(path, ": cannot ", action, ": ", strerror(error));
  if (error == ENOENT || error == ENOTDIR) return absl::NotFoundError(message);
  return absl::InvalidArgumentError(message);
}

// Closes the descriptor on every way out.
struct Descriptor {
  int fd = -1;
  ~Descriptor() {
    if (fd >= 0) close(fd);
  }
};

absl::StatusOr<int64_t> OpenRegularFile(const std::string& path,
                                        Descriptor& file) {
  // O_NONBLOCK: a FIFO in the model's place must not hang the start.
  file.fd = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (file.fd < 0) return FileError(path, "open", errno);
  struct stat info;
  if (fstat(file.fd, &info) != 0) return FileError(path, "stat", errno);
  if (!S_ISREG(info.st_mode)) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": not a regular file"));
  }
  return info.st_size;
}

}  // namespace

absl::StatusOr<std::shared_ptr<const MappedFile>> MappedFile::Open(
    const std::string& path) {
  Descriptor file;
  QUIRE_ASSIGN_OR_RETURN(const int64_t size, OpenRegularFile(path, file));
  absl::Span<const uint8_t> bytes;
  if (size > 0) {
    void* data = mmap(nullptr, size, PROT_READ, MAP_PRIVATE, file.fd, 0);
    if (data == MAP_FAILED) return FileError(path, "map", errno);
    // Starts reading ahead; the packing that follows then finds the pages.
    madvise(data, size, MADV_WILLNEED);
    bytes = absl::MakeConstSpan(static_cast<const uint8_t*>(data), size);
  }
  return std::shared_ptr<const MappedFile>(new MappedFile(path, bytes));
}

MappedFile::~MappedFile() {
  if (!bytes_.empty()) {
    munmap(const_cast<uint8_t*>(bytes_.data()), bytes_.size());
  }
}

void MappedFile::ReleasePages(absl::Span<const uint8_t> bytes) const {
  const uintptr_t file_begin = reinterpret_cast<uintptr_t>(bytes_.data());
  const uintptr_t page = sysconf(_SC_PAGESIZE);
  uintptr_t begin = reinterpret_cast<uintptr_t>(bytes.data());
  uintptr_t end = begin + bytes.size();
  if (begin < file_begin || end > file_begin + bytes_.size()) return;
  begin = (begin + page - 1) / page * page;
  end = end / page * page;
  // Advice: a kernel that refuses leaves the pages where they are.
  if (begin < end) {
    (void)madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);
  }
}

absl::StatusOr<std::string> ReadTextFile(const std::string& path,
                                         int64_t max_bytes) {
  Descriptor file;
  QUIRE_ASSIGN_OR_RETURN(const int64_t size, OpenRegularFile(path, file));
  if (size > max_bytes) {
    return absl::InvalidArgumentError(absl::StrCat(
        path, ": ", size, " bytes, more than the limit of ", max_bytes));
  }
  std::string text(size, '\0');
  int64_t num_read = 0;
  while (num_read < size) {
    const ssize_t got = read(file.fd, text.data() + num_read, size - num_read);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return FileError(path, "read", errno);
    if (got == 0) break;
    num_read += got;
  }
  text.resize(num_read);
  return text;
}

}  // namespace quire
