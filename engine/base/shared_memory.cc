#include "engine/base/shared_memory.h"

#include <fcntl.h>
#include <linux/futex.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <climits>
#include <cstdio>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace quire {
namespace {

absl::StatusOr<char*> MapShared(int fd, int64_t num_bytes) {
  void* const data =
      mmap(nullptr, num_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (data == MAP_FAILED) {
    return absl::ResourceExhaustedError(
        absl::StrCat("cannot map ", num_bytes,
                     " bytes of shared memory: ", strerror(errno)));
  }
  return static_cast<char*>(data);
}

// The state letter of /proc/PID/stat follows the last parenthesis.
bool IsZombie(int pid) {
  char path[32], text[512];
  snprintf(path, sizeof(path), "/proc/%d/stat", pid);
  FILE* const file = fopen(path, "re");
  if (file == nullptr) return false;
  const size_t size = fread(text, 1, sizeof(text) - 1, file);
  fclose(file);
  text[size] = '\0';
  const char* const end = strrchr(text, ')');
  return end != nullptr && end[1] == ' ' && (end[2] == 'Z' || end[2] == 'X');
}

}  // namespace

absl::StatusOr<SharedMemory> SharedMemory::Create(int64_t num_bytes) {
  const int fd = memfd_create("quire", MFD_CLOEXEC | MFD_ALLOW_SEALING);
  if (fd < 0) {
    return absl::ResourceExhaustedError(
        absl::StrCat("cannot create shared memory: ", strerror(errno)));
  }
  // Sealed: a file that shrinks would end its readers with SIGBUS.
  if (ftruncate(fd, num_bytes) != 0 ||
      fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW) != 0) {
    const int error = errno;
    close(fd);
    return absl::ResourceExhaustedError(
        absl::StrCat("cannot create ", num_bytes,
                     " bytes of shared memory: ", strerror(error)));
  }
  const absl::StatusOr<char*> data = MapShared(fd, num_bytes);
  if (!data.ok()) {
    close(fd);
    return data.status();
  }
  return SharedMemory(fd, *data, num_bytes);
}

absl::StatusOr<SharedMemory> SharedMemory::Map(int fd) {
  struct stat info;
  const int seals = fcntl(fd, F_GET_SEALS);
  if (seals < 0 || (seals & F_SEAL_SHRINK) == 0 || fstat(fd, &info) != 0 ||
      info.st_size <= 0) {
    if (fd >= 0) close(fd);
    return absl::InvalidArgumentError(
        absl::StrCat("descriptor ", fd, " is no shared memory of quire"));
  }
  fcntl(fd, F_SETFD, FD_CLOEXEC);
  const absl::StatusOr<char*> data = MapShared(fd, info.st_size);
  if (!data.ok()) {
    close(fd);
    return data.status();
  }
  return SharedMemory(fd, *data, info.st_size);
}

SharedMemory::SharedMemory(SharedMemory&& other) noexcept
    : fd_(std::exchange(other.fd_, -1)),
      data_(std::exchange(other.data_, nullptr)),
      num_bytes_(std::exchange(other.num_bytes_, 0)) {}

SharedMemory& SharedMemory::operator=(SharedMemory&& other) noexcept {
  std::swap(fd_, other.fd_);
  std::swap(data_, other.data_);
  std::swap(num_bytes_, other.num_bytes_);
  return *this;
}

SharedMemory::~SharedMemory() {
  if (data_ != nullptr) munmap(data_, num_bytes_);
  if (fd_ >= 0) close(fd_);
}

// Sequentially consistent with the waiter's increment and load: either the
// waiter sees the new value, or this sees the waiter.
void SharedCounter::Store(uint32_t new_value) {
  value.store(new_value, std::memory_order_seq_cst);
  if (num_waiters.load(std::memory_order_seq_cst) != 0) WakeAll();
}

void SharedCounter::WaitWhile(uint32_t seen, absl::Duration timeout) {
  num_waiters.fetch_add(1, std::memory_order_seq_cst);
  if (value.load(std::memory_order_seq_cst) == seen) {
    const timespec wait =
        absl::ToTimespec(std::max(timeout, absl::ZeroDuration()));
    syscall(SYS_futex, reinterpret_cast<uint32_t*>(&value), FUTEX_WAIT, seen,
            &wait, nullptr, 0);
  }
  // A process that dies before this leaves the number too high for good: the
  // others then wake in vain, which costs a system call.
  num_waiters.fetch_sub(1, std::memory_order_seq_cst);
}

void SharedCounter::WakeAll() {
  syscall(SYS_futex, reinterpret_cast<uint32_t*>(&value), FUTEX_WAKE, INT_MAX,
          nullptr, nullptr, 0);
}

void PauseSpinning() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

void YieldSpinning() { sched_yield(); }

ProcessWatch::ProcessWatch(int pid)
    : pid_(pid), fd_(static_cast<int>(syscall(SYS_pidfd_open, pid, 0))) {
  if (fd_ < 0) fd_ = -1;
}

ProcessWatch::ProcessWatch(ProcessWatch&& other) noexcept
    : pid_(std::exchange(other.pid_, 0)), fd_(std::exchange(other.fd_, -1)) {}

ProcessWatch& ProcessWatch::operator=(ProcessWatch&& other) noexcept {
  std::swap(pid_, other.pid_);
  std::swap(fd_, other.fd_);
  return *this;
}

ProcessWatch::~ProcessWatch() {
  if (fd_ >= 0) close(fd_);
}

bool ProcessWatch::IsGone() const {
  if (pid_ == 0) return false;
  if (fd_ >= 0) {
    pollfd poll_fd = {fd_, POLLIN, 0};
    return poll(&poll_fd, 1, 0) > 0;
  }
  // A kernel, or a seccomp profile, without pidfd_open.
  return (kill(pid_, 0) != 0 && errno == ESRCH) || IsZombie(pid_);
}

}  // namespace quire
