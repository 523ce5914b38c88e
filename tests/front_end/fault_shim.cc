// Preloaded into a server: makes one call of an allocator or of the system
// fail, as FaultControl says. (The method: curl's torture tests, SQLite's
// anomaly tests.)
//
// operator new of the shared libstdc++ allocates by malloc, so that it is
// counted here. Errors are such as the call may give.
#include <dlfcn.h>
#include <execinfo.h>
#include <fcntl.h>
#include <netdb.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstddef>
#include <cstdint>

#include "tests/front_end/fault_control.h"

extern "C" {
void* __libc_malloc(size_t);
void* __libc_calloc(size_t, size_t);
void* __libc_realloc(void*, size_t);
void* __libc_memalign(size_t, size_t);
void __libc_free(void*);
}

namespace {

using quire::FaultControl;
using quire::FaultKind;

FaultControl* control = nullptr;

// Of a crash: where, and where the call failed that led to it.
void* failed_at[24];
int num_failed_at = 0;

void PrintTraces(int signal) {
  void* crashed_at[32];
  const int num_crashed_at = backtrace(crashed_at, 32);
  (void)!write(STDERR_FILENO, "crashed at\n", 11);
  backtrace_symbols_fd(crashed_at, num_crashed_at, STDERR_FILENO);
  (void)!write(STDERR_FILENO, "after a call failed at\n", 23);
  backtrace_symbols_fd(failed_at, num_failed_at, STDERR_FILENO);
  _exit(128 + signal);
}

__attribute__((constructor)) void MapControl() {
  const char* const path = getenv(quire::kFaultControlVariable);
  if (path == nullptr) return;
  const int fd = open(path, O_RDWR | O_CLOEXEC);
  if (fd < 0) return;
  void* const page = mmap(nullptr, sizeof(FaultControl), PROT_READ | PROT_WRITE,
                          MAP_SHARED, fd, 0);
  close(fd);
  if (page == MAP_FAILED) return;
  backtrace(failed_at, 1);  // Loads what it needs now, not in a fault.
  for (const int signal : {SIGABRT, SIGSEGV, SIGBUS, SIGILL, SIGFPE}) {
    struct sigaction action = {};
    action.sa_handler = PrintTraces;
    action.sa_flags = SA_RESETHAND;
    sigaction(signal, &action, nullptr);
  }
  control = static_cast<FaultControl*>(page);
}

bool ShallFail(FaultKind kind, const char* function) {
  if (control == nullptr ||
      control->kind.load(std::memory_order_relaxed) != kind ||
      control->num_calls++ != control->fail_at) {
    return false;
  }
  strncpy(control->function, function, sizeof(control->function) - 1);
  num_failed_at = backtrace(failed_at, 24);
  control->has_failed = true;
  return true;
}

bool AllocationFails(const char* function) {
  if (!ShallFail(FaultKind::kAllocations, function)) return false;
  errno = ENOMEM;
  return true;
}

bool CallFails(const char* function, int error) {
  if (!ShallFail(FaultKind::kSystemCalls, function)) return false;
  errno = error;
  return true;
}

void Count(int64_t change) {
  if (control != nullptr) {
    control->num_live_allocations.fetch_add(change, std::memory_order_relaxed);
  }
}

// Where memory was allocated that is not freed yet: a hash table with a bounded
// search, which forgets what finds no place. Nothing here may allocate.
struct Origin {
  std::atomic<void*> memory;
  int num_frames;
  void* frames[24];
};
constexpr size_t kNumOrigins = 1 << 12;
constexpr size_t kSearched = 32;
Origin origins[kNumOrigins];
std::atomic<int> num_origins{0};
__attribute__((tls_model("initial-exec"))) thread_local bool is_recording;

Origin* OriginAt(void* memory, size_t step) {
  const auto address = reinterpret_cast<uintptr_t>(memory) >> 4;
  return &origins[(address * 0x9e3779b97f4a7c15 + step) % kNumOrigins];
}

void Remember(void* memory) {
  if (is_recording) return;
  is_recording = true;
  for (size_t i = 0; i < kSearched; ++i) {
    Origin* const origin = OriginAt(memory, i);
    void* expected = nullptr;
    if (!origin->memory.compare_exchange_strong(expected, memory)) continue;
    origin->num_frames = backtrace(origin->frames, 24);
    ++num_origins;
    break;
  }
  is_recording = false;
}

void Forget(void* memory) {
  if (num_origins == 0) return;
  for (size_t i = 0; i < kSearched; ++i) {
    void* expected = memory;
    if (OriginAt(memory, i)->memory.compare_exchange_strong(expected,
                                                            nullptr)) {
      --num_origins;
      return;
    }
  }
}

void PrintOrigins() {
  for (Origin& origin : origins) {
    if (origin.memory == nullptr) continue;
    (void)!write(STDERR_FILENO, "left behind, allocated at\n", 26);
    backtrace_symbols_fd(origin.frames, origin.num_frames, STDERR_FILENO);
  }
}

void* Counted(void* memory) {
  if (memory == nullptr) return nullptr;
  Count(1);
  if (control == nullptr) return memory;
  if (control->prints.exchange(false)) PrintOrigins();
  if (control->records) Remember(memory);
  return memory;
}

template <typename Function>
Function Next(Function, const char* name) {
  return reinterpret_cast<Function>(dlsym(RTLD_NEXT, name));
}

}  // namespace

extern "C" {

void* malloc(size_t size) {
  return AllocationFails("malloc") ? nullptr : Counted(__libc_malloc(size));
}
void* calloc(size_t count, size_t size) {
  return AllocationFails("calloc") ? nullptr
                                   : Counted(__libc_calloc(count, size));
}
void* realloc(void* memory, size_t size) {
  if (size > 0 && AllocationFails("realloc")) return nullptr;
  void* const moved = __libc_realloc(memory, size);
  if (memory == nullptr) return Counted(moved);
  if (moved != nullptr || size == 0) Forget(memory);
  if (size == 0) Count(-1);
  if (moved != nullptr && control != nullptr && control->records) {
    Remember(moved);
  }
  return moved;
}
void* memalign(size_t alignment, size_t size) {
  return AllocationFails("memalign")
             ? nullptr
             : Counted(__libc_memalign(alignment, size));
}
void* aligned_alloc(size_t alignment, size_t size) {
  return AllocationFails("aligned_alloc")
             ? nullptr
             : Counted(__libc_memalign(alignment, size));
}
int posix_memalign(void** memory, size_t alignment, size_t size) {
  if (AllocationFails("posix_memalign")) return ENOMEM;
  void* const given = Counted(__libc_memalign(alignment, size));
  if (given == nullptr) return ENOMEM;
  *memory = given;
  return 0;
}
void free(void* memory) {
  if (memory != nullptr) {
    Count(-1);
    Forget(memory);
  }
  __libc_free(memory);
}

// One function of the system: its result type, name, parameters, arguments, and
// the error it fails with.
#define QUIRE_FAILING_CALL(type, name, parameters, arguments, error) \
  type name parameters {                                             \
    static const auto next = Next(&::name, #name);                   \
    if (CallFails(#name, error)) return -1;                          \
    return next arguments;                                           \
  }

QUIRE_FAILING_CALL(ssize_t, read, (int fd, void* data, size_t size),
                   (fd, data, size), EIO)
QUIRE_FAILING_CALL(ssize_t, write, (int fd, const void* data, size_t size),
                   (fd, data, size), EIO)
QUIRE_FAILING_CALL(ssize_t, recv, (int fd, void* data, size_t size, int flags),
                   (fd, data, size, flags), ECONNRESET)
QUIRE_FAILING_CALL(ssize_t, send,
                   (int fd, const void* data, size_t size, int flags),
                   (fd, data, size, flags), ENOBUFS)
QUIRE_FAILING_CALL(int, epoll_wait,
                   (int fd, epoll_event* events, int count, int timeout),
                   (fd, events, count, timeout), EINTR)
QUIRE_FAILING_CALL(int, epoll_ctl,
                   (int fd, int operation, int other, epoll_event* event),
                   (fd, operation, other, event), ENOMEM)
QUIRE_FAILING_CALL(int, setsockopt,
                   (int fd, int level, int name, const void* value,
                    socklen_t size),
                   (fd, level, name, value, size), ENOBUFS)
QUIRE_FAILING_CALL(int, shutdown, (int fd, int how), (fd, how), ENOTCONN)

// glibc's own takes another type of its first parameters.
int accept4(int fd, sockaddr* address, socklen_t* size, int flags) {
  using Accept = int (*)(int, sockaddr*, socklen_t*, int);
  static const auto next =
      reinterpret_cast<Accept>(dlsym(RTLD_NEXT, "accept4"));
  // One of the process's limits, and one of the system's.
  static std::atomic<int> num_failures{0};
  if (CallFails("accept4", num_failures % 2 == 0 ? EMFILE : ENOBUFS)) {
    ++num_failures;
    return -1;
  }
  return next(fd, address, size, flags);
}

int eventfd_write(int fd, eventfd_t value) {
  static const auto next = Next(&::eventfd_write, "eventfd_write");
  if (CallFails("eventfd_write", EINTR)) return -1;
  return next(fd, value);
}

// The descriptor is gone all the same (close(2)).
int close(int fd) {
  static const auto next = Next(&::close, "close");
  const bool fails = CallFails("close", EINTR);
  const int error = errno;
  const int result = next(fd);
  if (!fails) return result;
  errno = error;
  return -1;
}

int open(const char* path, int flags, ...) {
  using Open = int (*)(const char*, int, ...);
  static const auto next = reinterpret_cast<Open>(dlsym(RTLD_NEXT, "open"));
  va_list arguments;
  va_start(arguments, flags);
  const mode_t mode =
      flags & (O_CREAT | O_TMPFILE) ? va_arg(arguments, mode_t) : mode_t{0};
  va_end(arguments);
  if (CallFails("open", EMFILE)) return -1;
  return next(path, flags, mode);
}

}  // extern "C"
