#include "kernels/cuda/simt/emulator_machine.h"

namespace quire::simt::emulator {
namespace {

void ReleaseBarrier(Cta& cta, int id) {
  for (Fiber& fiber : cta.fibers) {
    fiber.arrivals &= ~(1u << id);
    if (fiber.state == State::kAtBarrier && fiber.barrier == id) {
      fiber.state = State::kReady;
    }
  }
  cta.num_at_barrier[id] = 0;
}

// PTX does not say what two sizes, or two arrivals of a thread, make of a
// barrier.
void Arrive(Fiber& fiber, int id, int num_threads, int least_threads) {
  Cta& cta = *fiber.cta;
  if (id < 0 || id >= kNumBarriers || num_threads < least_threads ||
      num_threads % kWarpSize != 0) {
    Fail("a barrier's number or size is out of range");
  }
  if (fiber.arrivals >> id & 1) {
    Fail("a thread arrives twice at a barrier before it is complete");
  }
  if (cta.num_at_barrier[id] > 0 && cta.barrier_size[id] != num_threads) {
    Fail("threads name different sizes of a barrier");
  }
  fiber.arrivals |= 1u << id;
  cta.barrier_size[id] = num_threads;
  ++cta.num_at_barrier[id];
}

}  // namespace

// A barrier of all threads counts those that have not returned, as on the
// hardware since Volta.
bool CheckBarrier(Cta& cta, int id) {
  const int wanted =
      cta.barrier_size[id] > 0 ? cta.barrier_size[id] : cta.num_alive;
  if (cta.num_at_barrier[id] == 0 || cta.num_at_barrier[id] < wanted) {
    return false;
  }
  ReleaseBarrier(cta, id);
  return true;
}

void CheckGridBarrier() {
  Machine& machine = GetMachine();
  if (machine.num_at_grid_barrier == 0 ||
      machine.num_at_grid_barrier < machine.num_alive_in_grid) {
    return;
  }
  machine.num_at_grid_barrier = 0;
  for (Cta& cta : machine.resident) {
    for (Fiber& fiber : cta.fibers) {
      if (fiber.state == State::kAtBarrier && fiber.barrier == kGridBarrier) {
        fiber.state = State::kReady;
      }
    }
  }
}

void Barrier(int id, int num_threads) {
  Fiber& fiber = Running();
  Arrive(fiber, id, num_threads, 0);
  fiber.state = State::kAtBarrier;
  fiber.barrier = id;
  CheckBarrier(*fiber.cta, id);
  // Also when it is complete: others may run first.
  SwitchToScheduler();
}

void GridBarrier() {
  Machine& machine = GetMachine();
  Fiber& fiber = Running();
  if (!machine.shape.is_cooperative) {
    Fail("SyncGrid in a launch that is not cooperative");
  }
  fiber.state = State::kAtBarrier;
  fiber.barrier = kGridBarrier;
  ++machine.num_at_grid_barrier;
  CheckGridBarrier();
  SwitchToScheduler();
}

// A warp arrives as a whole. PTX: "causes executing thread to wait for all
// non-exited threads from its warp and marks warps' arrival".
void ArriveAtBarrier(int id, int num_threads) {
  struct Arrival {
    int id, num_threads;
    bool operator==(const Arrival&) const = default;
  } arrival = {id, num_threads};
  const Fiber& fiber = Running();
  const uint32_t alive = fiber.cta->warps[fiber.thread_idx / kWarpSize].alive;
  Collective(
      alive, "ArriveNamed", &arrival,
      [](void* const* arguments, uint32_t mask) {
        const Fiber& last = Running();
        Cta& cta = *last.cta;
        const int first = last.thread_idx / kWarpSize * kWarpSize;
        const auto of_last =
            *static_cast<const Arrival*>(arguments[last.thread_idx - first]);
        for (int lane = 0; lane < kWarpSize; ++lane) {
          if (!(mask >> lane & 1)) continue;
          if (*static_cast<const Arrival*>(arguments[lane]) != of_last) {
            Fail("the lanes of a warp disagree on a barrier", "ArriveNamed");
          }
          // PTX: "a non-zero thread count is required".
          Arrive(cta.fibers[first + lane], of_last.id, of_last.num_threads,
                 kWarpSize);
        }
        GetMachine().has_released |= CheckBarrier(cta, of_last.id);
      });
  SwitchToScheduler();
}

}  // namespace quire::simt::emulator
