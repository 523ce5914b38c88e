// What the harness and the preloaded library (fault_shim.cc) share: a page of a
// file, mapped by both.
#ifndef QUIRE_TESTS_FRONT_END_FAULT_CONTROL_H_
#define QUIRE_TESTS_FRONT_END_FAULT_CONTROL_H_

#include <atomic>
#include <cstdint>

namespace quire {

inline constexpr char kFaultControlVariable[] = "QUIRE_FAULT_CONTROL";

enum class FaultKind : int32_t { kNone, kAllocations, kSystemCalls };

// All zeros at first. Calls are counted while `kind` is theirs; the one that
// finds num_calls at fail_at fails.
struct FaultControl {
  std::atomic<FaultKind> kind;
  std::atomic<int64_t> num_calls;
  std::atomic<int64_t> fail_at;
  // Of the call that failed.
  std::atomic<bool> has_failed;
  char function[24];
  // Always: allocated and not freed since the start.
  std::atomic<int64_t> num_live_allocations;
  // While it is set, where memory is allocated is remembered until it is freed.
  std::atomic<bool> records;
  // Set: the next allocation tells stderr what is remembered, and resets this.
  std::atomic<bool> prints;
};

}  // namespace quire

#endif  // QUIRE_TESTS_FRONT_END_FAULT_CONTROL_H_
