// Executes PTX on the host: what nvcc made of a kernel, rather than what g++
// makes of the same source. Threads run one after the other as far as they get
// without others; what a warp does together happens when all have come to it.
// An access outside of what was allocated, a misaligned one, a barrier that not
// all reach and a trap are errors that quote the instruction.
#ifndef QUIRE_TESTS_GPU_PTX_PTX_MACHINE_H_
#define QUIRE_TESTS_GPU_PTX_PTX_MACHINE_H_

#include <array>
#include <cstdint>
#include <cstring>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "tests/gpu/ptx/ptx_program.h"

namespace quire::ptx {

// What kernels may read and write: allocations of the device and pinned memory.
// Addresses are the host's.
class Memory {
 public:
  void Add(const void* begin, int64_t num_bytes) {
    ranges_[reinterpret_cast<uint64_t>(begin)] = num_bytes;
  }
  void Remove(const void* begin) {
    ranges_.erase(reinterpret_cast<uint64_t>(begin));
  }
  // The range that holds these bytes.
  bool Find(uint64_t address, int64_t num_bytes, uint64_t* begin,
            uint64_t* end) const {
    auto range = ranges_.upper_bound(address);
    if (range == ranges_.begin()) return false;
    --range;
    if (address + num_bytes > range->first + range->second) return false;
    *begin = range->first;
    *end = range->first + range->second;
    return true;
  }

 private:
  std::map<uint64_t, uint64_t> ranges_;  // Bytes by where they begin.
};

struct Launch {
  std::array<uint32_t, 3> grid = {1, 1, 1};  // x, y, z
  std::array<uint32_t, 3> block = {1, 1, 1};
  int64_t dynamic_shared_bytes = 0;
  bool is_cooperative = false;
  std::vector<char> parameters;  // The block that the function's offsets name.
};

struct RunOptions {
  // Copies of cp.async happen when they are waited for, else at once.
  bool has_late_copies = true;
  // Warps take turns from the last to the first.
  bool is_reversed = false;
  // After so many turns of 2^16 instructions a loop has no end.
  int64_t max_turns = 1 << 14;
};

// INTERNAL: the first fault.
absl::Status Run(const Program& program, const Function& function,
                 const Launch& launch, const Memory& memory,
                 const RunOptions& options = {});

// ------------------------------------------- for instructions.cc

struct Warpgroups;  // warpgroup_instructions.h

struct Thread;

struct Cta {
  struct Barrier {
    int num_arrived = 0;
    int num_threads = 0;  // 0: all that have not returned.
  };

  const Program* program = nullptr;
  const Memory* memory = nullptr;
  RunOptions options;
  absl::Span<char> shared;           // Static and dynamic.
  Warpgroups* warpgroups = nullptr;  // Of a kernel with wgmma.
  std::string fault;                 // The first.
  absl::Span<Thread> threads;
  std::array<Barrier, 16> barriers;
};

struct Thread {
  enum class State : uint8_t {
    kRunning,
    kAtBarrier,
    kAtCollective,
    kDone,
    kFaulted
  };
  struct Frame {
    const Function* function = nullptr;
    int pc = 0;
    uint64_t* slots = nullptr;
    char* local = nullptr;
  };
  struct Copy {
    char* to;
    const char* from;  // Null: zeros.
    int num_bytes;
    int group;
  };

  State state = State::kRunning;
  const Function* function = nullptr;
  int pc = 0;  // Of the next instruction.
  uint64_t* slots = nullptr;
  char* local = nullptr;
  Cta* cta = nullptr;
  int index = 0;  // In its CTA.
  int lane = 0;
  int barrier = 0;        // Where it waits.
  uint32_t arrivals = 0;  // Bit i: at barrier i, which is not complete.
  std::vector<Frame> callers;
  std::vector<std::vector<uint64_t>> stack;  // Of functions that were called.
  std::vector<std::vector<char>> local_stack;
  std::vector<Copy> copies;
  int num_groups = 0;                       // Of copies, that were committed.
  uint64_t known_begin = 0, known_end = 0;  // A part of memory that is there.
};

template <typename T>
T Get(const Thread& thread, int slot) {
  T value;
  std::memcpy(&value, &thread.slots[slot], sizeof(value));
  return value;
}
template <typename T>
void Set(Thread& thread, int slot, T value) {
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(value));
  thread.slots[slot] = bits;
}

// Puts a function's constants and addresses into its slots.
void PrepareSlots(const Function& function, const Thread& thread,
                  const char* parameters);
void Fault(Thread& thread, const Instruction& instruction,
           const std::string& what);
// Counts the thread at the barrier of the operands, of at least so many
// threads, and lets those who wait there go on if it is complete. False after a
// fault.
bool ArriveAtBarrier(Thread& thread, const Instruction& instruction,
                     int least_threads);

}  // namespace quire::ptx

#endif  // QUIRE_TESTS_GPU_PTX_PTX_MACHINE_H_
