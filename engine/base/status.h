// Helpers around absl::Status, and checks for bugs of our own.
//
// Errors that a client, a file or the environment can cause are absl::Status;
// CHECK and DCHECK are for conditions that only a bug of ours can break.
#ifndef QUIRE_ENGINE_BASE_STATUS_H_
#define QUIRE_ENGINE_BASE_STATUS_H_

#include <cstdio>
#include <cstdlib>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

// Payloads of a Status that refuses a request. After how many seconds the caller
// may come back, in decimal; and that the limit is the caller's own.
namespace quire {
inline constexpr char kRetryAfterPayload[] = "quire/retry-after";
inline constexpr char kOwnLimitPayload[] = "quire/own-limit";
}  // namespace quire

// Returns from the calling function if `expr` is not OK.
#define QUIRE_RETURN_IF_ERROR(expr)                \
  do {                                             \
    ::absl::Status quire_status_ = (expr);         \
    if (!quire_status_.ok()) return quire_status_; \
  } while (false)

#define QUIRE_STATUS_CONCAT_INNER_(a, b) a##b
#define QUIRE_STATUS_CONCAT_(a, b) QUIRE_STATUS_CONCAT_INNER_(a, b)

// QUIRE_ASSIGN_OR_RETURN(auto x, F()) assigns the value of a StatusOr or
// returns its status. Wrap a left side that contains a comma in parentheses.
#define QUIRE_ASSIGN_OR_RETURN(lhs, expr) \
  QUIRE_ASSIGN_OR_RETURN_IMPL_(           \
      QUIRE_STATUS_CONCAT_(quire_statusor_, __LINE__), lhs, expr)
#define QUIRE_ASSIGN_OR_RETURN_IMPL_(statusor, lhs, expr)  \
  auto statusor = (expr);                                  \
  if (!statusor.ok()) return std::move(statusor).status(); \
  lhs = std::move(statusor).value()

// Ends the process with file and line if `condition` is false.
#define QUIRE_CHECK(condition)                                              \
  do {                                                                      \
    if (__builtin_expect(!(condition), 0)) {                                \
      std::fprintf(stderr, "%s:%d: check failed: %s\n", __FILE__, __LINE__, \
                   #condition);                                             \
      std::abort();                                                         \
    }                                                                       \
  } while (false)

// QUIRE_CHECK in debug builds, nothing otherwise.
#ifdef NDEBUG
#define QUIRE_DCHECK(condition) \
  do {                          \
    (void)sizeof(condition);    \
  } while (false)
#else
#define QUIRE_DCHECK(condition) QUIRE_CHECK(condition)
#endif

#endif  // QUIRE_ENGINE_BASE_STATUS_H_
