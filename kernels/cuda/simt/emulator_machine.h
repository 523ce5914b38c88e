// What the emulator knows of a launch, for its sources: who runs, and what each
// thread, warp and CTA is at.
#ifndef QUIRE_KERNELS_CUDA_SIMT_EMULATOR_MACHINE_H_
#define QUIRE_KERNELS_CUDA_SIMT_EMULATOR_MACHINE_H_

#include <cstdint>
#include <cstdlib>
#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "engine/base/status.h"
#include "kernels/cuda/simt/emulator.h"
#include "kernels/cuda/simt/emulator_shared.h"
#include "kernels/cuda/simt/emulator_warpgroups.h"
#include "kernels/cuda/simt/fiber.h"
#include "kernels/cuda/simt/simt.h"

namespace quire::simt::emulator {

inline constexpr int kNumBarriers = 16;
inline constexpr int kGridBarrier = -2;

enum class State : uint8_t {
  kReady,
  kAtBarrier,
  kInWarp,
  kAtWait,  // For the previous kernel.
  kDone
};

struct Copy {
  void* to;
  const void* from;
  bool is_valid;
};

struct Cta;

struct Fiber {
  FiberContext context;
  Cta* cta = nullptr;
  State state = State::kReady;
  int thread_idx = 0;
  int barrier = -1;
  uint32_t arrivals = 0;    // Bit i: at barrier i, which is not complete.
  bool has_waited = false;  // For the previous kernel.
  size_t static_shared_used = 0;
  std::vector<Copy> open_copies;
  std::deque<std::vector<Copy>> copy_groups;
  uint32_t num_proxy_fences = 0;
};

struct Warp {
  uint32_t alive = 0;
  // The collective that lanes are waiting in.
  uint32_t arrived = 0;
  uint32_t mask = 0;
  const char* name = nullptr;
  void* arguments[kWarpSize] = {};
  WarpProducts products;
};

struct FreeDeleter {
  void operator()(void* p) const { std::free(p); }
};

// Who wrote sixteen bytes last, and how many of its fences came before.
inline constexpr uint32_t kUnderWay = ~0u;  // A copy: no fence is behind it.
struct SharedWrite {
  uint32_t num_fences = 0;
  int32_t thread_idx = -1;
};

struct Cta {
  uint32_t idx[3] = {};
  std::vector<Fiber> fibers;
  std::vector<Warp> warps;
  int num_alive = 0;
  int num_at_barrier[kNumBarriers] = {};
  int barrier_size[kNumBarriers] = {};
  std::unique_ptr<unsigned char, FreeDeleter> static_shared;
  std::unique_ptr<unsigned char, FreeDeleter> dynamic_shared;
  std::vector<SharedWrite> writes;           // Of dynamic_shared.
  std::unique_ptr<SharedAccesses> accesses;  // If they are counted.
};

struct StackPool {
  std::unique_ptr<std::vector<FiberStack>> stacks =
      std::make_unique<std::vector<FiberStack>>();
  bool is_taken = false;
};

struct Machine {
  Options options;
  Counts counts;
  std::string error;
  LaunchShape shape;
  size_t max_shared_bytes = kMaxSharedBytes;  // Of a CTA.
  const absl::FunctionRef<void()>* body = nullptr;
  bool is_early = false;  // The previous kernel has not run.
  // Stacks of the launches that have begun; a launch takes a free one.
  std::vector<StackPool> pools;
  std::vector<FiberStack>* stacks = nullptr;  // Of the current launch.
  FiberContext scheduler;
  Fiber* running = nullptr;
  std::vector<Cta> resident;
  int num_at_grid_barrier = 0;
  int num_alive_in_grid = 0;
  uint32_t random_state = 1;
  // Others may go on, since RunWarps looked, by who does not wait itself.
  bool has_released = false;
};

inline Machine& GetMachine() {
  static Machine machine;
  return machine;
}

inline Fiber& Running() {
  Fiber* fiber = GetMachine().running;
  QUIRE_CHECK(fiber != nullptr);  // Called outside a kernel otherwise.
  return *fiber;
}

void SwitchToScheduler();
// The first one counts; the scheduler ends the launch.
void SetError(const std::string& message, const Fiber& at);

// Let who waits go on, if all have come or returned; true if they have.
bool CheckBarrier(Cta& cta, int id);
void CheckGridBarrier();

}  // namespace quire::simt::emulator

#endif  // QUIRE_KERNELS_CUDA_SIMT_EMULATOR_MACHINE_H_
