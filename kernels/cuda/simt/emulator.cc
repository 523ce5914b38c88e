#include "kernels/cuda/simt/emulator.h"

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/base/status.h"
#include "kernels/cuda/simt/emulator_machine.h"

namespace quire::simt::emulator {

void SwitchToScheduler() {
  Machine& machine = GetMachine();
  Fiber& fiber = *machine.running;
  ++machine.counts.num_switches;
  machine.scheduler.SwitchFrom(fiber.context, fiber.state == State::kDone);
}

namespace {

const char* StateName(const Fiber& fiber) {
  switch (fiber.state) {
    case State::kReady:
      return "ready";
    case State::kAtBarrier:
      return fiber.barrier == kGridBarrier ? "at the grid barrier"
                                           : "at a barrier";
    case State::kInWarp:
      return "in a warp-wide operation";
    case State::kAtWait:
      return "waiting for the previous kernel";
    case State::kDone:
      return "done";
  }
  return "?";
}

}  // namespace

void SetError(const std::string& message, const Fiber& at) {
  Machine& machine = GetMachine();
  if (!machine.error.empty()) return;
  machine.error =
      absl::StrCat("CTA ", at.cta->idx[0], ",", at.cta->idx[1], ",",
                   at.cta->idx[2], " thread ", at.thread_idx, ": ", message);
  int num_listed = 0;
  for (const Fiber& fiber : at.cta->fibers) {
    if (fiber.state == State::kDone || ++num_listed > 8) continue;
    const Warp& warp = at.cta->warps[fiber.thread_idx / kWarpSize];
    absl::StrAppend(&machine.error, "; thread ", fiber.thread_idx, " ",
                    StateName(fiber));
    if (fiber.state == State::kInWarp && warp.name) {
      absl::StrAppend(&machine.error, " ", warp.name);
    }
  }
}

namespace {

// The hardware's limit without asking for more.
constexpr size_t kMaxStaticShared = 48 << 10;

// Shared memory of exactly `num_bytes`, all ones: a NaN in every float format.
std::unique_ptr<unsigned char, FreeDeleter> PoisonedMemory(size_t num_bytes) {
  void* memory = nullptr;
  QUIRE_CHECK(posix_memalign(&memory, 1024, std::max<size_t>(num_bytes, 1)) ==
              0);
  std::memset(memory, 0xff, num_bytes);
  return std::unique_ptr<unsigned char, FreeDeleter>(
      static_cast<unsigned char*>(memory));
}

// Threads that start before the previous kernel has run: as many as a
// multiprocessor may find room for beside it.
constexpr uint32_t kMaxEarlyThreads = 1024;

uint32_t NextRandom(uint32_t& state) {
  state ^= state << 13;
  state ^= state >> 17;
  state ^= state << 5;
  return state;
}

void FinishFiber(Fiber& fiber) {
  Machine& machine = GetMachine();
  Cta& cta = *fiber.cta;
  fiber.state = State::kDone;
  --cta.num_alive;
  --machine.num_alive_in_grid;
  Warp& warp = cta.warps[fiber.thread_idx / kWarpSize];
  warp.alive &= ~(1u << fiber.thread_idx % kWarpSize);
  if (!fiber.open_copies.empty() || !fiber.copy_groups.empty()) {
    SetError("the thread returned with copies that it did not wait for", fiber);
  }
  if (!warp.products.open.empty() || !warp.products.groups.empty()) {
    SetError("the thread returned with products that it did not wait for",
             fiber);
  }
  if (machine.shape.waits_for_previous && !fiber.has_waited) {
    // It would also let the next kernel start before the previous one is done.
    SetError("the thread returned without WaitForPrevious", fiber);
  }
  for (int id = 0; id < kNumBarriers; ++id) {
    CheckBarrier(cta, id);
    if (cta.num_alive == 0 && cta.num_at_barrier[id] > 0) {
      SetError("threads arrived at a barrier that nobody completes", fiber);
    }
  }
  CheckGridBarrier();
}

void FiberMain() {
  Machine& machine = GetMachine();
  FiberContext::Arrived(machine.scheduler);
  (*machine.body)();
  FinishFiber(*machine.running);
  SwitchToScheduler();
  std::abort();  // A finished fiber never continues.
}

bool Step(Fiber& fiber) {
  if (fiber.state != State::kReady) return false;
  Machine& machine = GetMachine();
  machine.running = &fiber;
  fiber.context.SwitchFrom(machine.scheduler);
  machine.running = nullptr;
  return true;
}

// Runs warp after warp, each until all its lanes wait; true if any lane ran.
// Who completes a barrier at which it does not wait itself is as late
// afterwards as the others allow.
bool RunWarps(Cta& cta, bool is_descending) {
  Machine& machine = GetMachine();
  bool any = false;
  const int num_warps = static_cast<int>(cta.warps.size());
  for (int i = 0; i < num_warps; ++i) {
    const size_t first = (is_descending ? num_warps - 1 - i : i) * kWarpSize;
    const size_t end = std::min(first + kWarpSize, cta.fibers.size());
    machine.has_released = false;
    for (bool more = true; more && !machine.has_released;) {
      more = false;
      for (size_t t = first; t < end; ++t) {
        more |= Step(cta.fibers[t]);
        if (!machine.error.empty()) return true;
      }
      any |= more;
    }
    if (machine.has_released) i = -1;  // From the first on.
  }
  return any;
}

bool RunThreads(Cta& cta, std::vector<int>& order) {
  Machine& machine = GetMachine();
  const int num_threads = static_cast<int>(cta.fibers.size());
  order.resize(num_threads);
  for (int i = 0; i < num_threads; ++i) order[i] = i;
  if (machine.options.schedule == Schedule::kDescending) {
    std::reverse(order.begin(), order.end());
  } else if (machine.options.schedule == Schedule::kRandom) {
    for (int i = num_threads - 1; i > 0; --i) {
      std::swap(order[i], order[NextRandom(machine.random_state) % (i + 1)]);
    }
  }
  bool any = false;
  for (int t : order) {
    any |= Step(cta.fibers[t]);
    if (!machine.error.empty()) return true;
  }
  return any;
}

// One round over a CTA; true if any thread ran.
bool RunRound(Cta& cta, std::vector<int>& order) {
  switch (GetMachine().options.schedule) {
    case Schedule::kWarpAscending:
      return RunWarps(cta, false);
    case Schedule::kWarpDescending:
      return RunWarps(cta, true);
    default:
      return RunThreads(cta, order);
  }
}

void StartCta(Cta& cta, uint32_t linear_idx, size_t first_stack) {
  Machine& machine = GetMachine();
  const LaunchShape& shape = machine.shape;
  cta.idx[0] = linear_idx % shape.num_ctas_x;
  cta.idx[1] = linear_idx / shape.num_ctas_x % shape.num_ctas_y;
  cta.idx[2] = linear_idx / shape.num_ctas_x / shape.num_ctas_y;
  const int num_threads = static_cast<int>(shape.num_threads);
  cta.fibers.resize(num_threads);
  cta.warps.resize((num_threads + kWarpSize - 1) / kWarpSize);
  cta.num_alive = num_threads;
  cta.static_shared = PoisonedMemory(kMaxStaticShared);
  cta.dynamic_shared = PoisonedMemory(shape.dynamic_shared_bytes);
  cta.writes.resize((shape.dynamic_shared_bytes + 15) / 16);
  if (machine.options.counts_shared) {
    cta.accesses = std::make_unique<SharedAccesses>();
  }
  for (int t = 0; t < num_threads; ++t) {
    Fiber& fiber = cta.fibers[t];
    fiber.cta = &cta;
    fiber.thread_idx = t;
    cta.warps[t / kWarpSize].alive |= 1u << t % kWarpSize;
    fiber.context.Prepare((*machine.stacks)[first_stack + t], &FiberMain);
  }
}

// Runs the CTAs, all resident, to their end or to the first error.
void RunResident() {
  Machine& machine = GetMachine();
  std::vector<Cta>& ctas = machine.resident;
  std::vector<int> order;
  while (machine.error.empty()) {
    bool any = false, is_done = true;
    for (Cta& cta : ctas) {
      if (cta.num_alive == 0) continue;
      any |= RunRound(cta, order);
      if (!machine.error.empty()) return;
      is_done &= cta.num_alive == 0;
    }
    if (is_done) {
      for (const Cta& cta : ctas) {
        if (cta.accesses) cta.accesses->AddTo(machine.counts);
      }
      return;
    }
    if (any) continue;
    for (Cta& cta : ctas) {
      for (Fiber& fiber : cta.fibers) {
        if (fiber.state == State::kDone) continue;
        SetError(
            "deadlock: a barrier or a warp-wide operation is never "
            "completed",
            fiber);
        return;
      }
    }
  }
}

std::vector<uint32_t> CtaOrder(uint32_t num_ctas) {
  Machine& machine = GetMachine();
  std::vector<uint32_t> order(num_ctas);
  for (uint32_t i = 0; i < num_ctas; ++i) order[i] = i;
  if (machine.options.schedule == Schedule::kDescending ||
      machine.options.schedule == Schedule::kWarpDescending) {
    std::reverse(order.begin(), order.end());
  } else if (machine.options.schedule == Schedule::kRandom) {
    for (uint32_t i = num_ctas; i-- > 1;) {
      std::swap(order[i], order[NextRandom(machine.random_state) % (i + 1)]);
    }
  }
  return order;
}

}  // namespace

Options& CurrentOptions() { return GetMachine().options; }
Counts& CurrentCounts() { return GetMachine().counts; }
const std::string& LastError() { return GetMachine().error; }

namespace {

int TakePool() {
  std::vector<StackPool>& pools = GetMachine().pools;
  const auto free =
      std::find_if(pools.begin(), pools.end(),
                   [](const StackPool& pool) { return !pool.is_taken; });
  const int idx = static_cast<int>(free - pools.begin());
  if (free == pools.end()) pools.emplace_back();
  pools[idx].is_taken = true;
  return idx;
}

// Makes the machine's launch this one.
void Enter(const LaunchShape& shape, const absl::FunctionRef<void()>& body,
           int pool) {
  Machine& machine = GetMachine();
  QUIRE_CHECK(machine.running == nullptr);
  machine.error.clear();
  machine.max_shared_bytes = kMaxSharedBytes;
  machine.shape = shape;
  machine.body = &body;
  machine.stacks = machine.pools[pool].stacks.get();
  machine.num_at_grid_barrier = 0;
}

void Leave() {
  Machine& machine = GetMachine();
  machine.resident.clear();
  machine.running = nullptr;
  machine.body = nullptr;
}

// Makes CTAs order[first, first + count) resident.
void StartCtas(const std::vector<uint32_t>& order, uint32_t first,
               uint32_t count) {
  Machine& machine = GetMachine();
  const uint32_t num_threads = machine.shape.num_threads;
  while (machine.stacks->size() < size_t{count} * num_threads) {
    machine.stacks->emplace_back();
  }
  machine.resident = std::vector<Cta>(count);
  machine.num_alive_in_grid = static_cast<int>(count * num_threads);
  for (uint32_t i = 0; i < count; ++i) {
    StartCta(machine.resident[i], order[first + i], size_t{i} * num_threads);
  }
}

uint32_t NumCtasOf(const LaunchShape& shape) {
  return shape.num_ctas_x * shape.num_ctas_y * shape.num_ctas_z;
}

// Of every GPU; x may have 2^31 - 1.
constexpr uint32_t kMaxCtasYZ = 65535;

// What the hardware would refuse of a shape; empty if nothing.
std::string Refusal(const LaunchShape& shape) {
  if (NumCtasOf(shape) == 0 || shape.num_threads == 0 ||
      shape.num_threads > 1024 || shape.num_ctas_y > kMaxCtasYZ ||
      shape.num_ctas_z > kMaxCtasYZ) {
    return "the launch shape is out of range";
  }
  if (shape.dynamic_shared_bytes > kMaxSharedBytes) {
    return absl::StrCat("a CTA asks for ", shape.dynamic_shared_bytes,
                        " bytes of shared memory");
  }
  return "";
}

// The CTAs from `first` on, one after the other unless all must be resident.
void RunCtas(const std::vector<uint32_t>& order, uint32_t first) {
  Machine& machine = GetMachine();
  const uint32_t num_ctas = static_cast<uint32_t>(order.size());
  const uint32_t num_resident = machine.shape.is_cooperative ? num_ctas : 1;
  for (; first < num_ctas && machine.error.empty(); first += num_resident) {
    StartCtas(order, first, num_resident);
    RunResident();
  }
}

uint32_t FirstRandom() { return GetMachine().options.seed * 2654435761u | 1; }

}  // namespace

class EarlyLaunch {
 public:
  EarlyLaunch(const LaunchShape& shape, absl::FunctionRef<void()> body)
      : shape_(shape), body_(body), pool_(TakePool()) {}
  ~EarlyLaunch() { GetMachine().pools[pool_].is_taken = false; }

  void Start() {
    Machine& machine = GetMachine();
    Enter(shape_, body_, pool_);
    machine.random_state = FirstRandom();
    order_ = CtaOrder(NumCtasOf(shape_));
    num_early_ = std::clamp<uint32_t>(kMaxEarlyThreads / shape_.num_threads, 1,
                                      static_cast<uint32_t>(order_.size()));
    StartCtas(order_, 0, num_early_);
    machine.is_early = true;
    std::vector<int> order;
    for (bool any = true; any && machine.error.empty();) {
      any = false;
      for (Cta& cta : machine.resident) {
        if (machine.error.empty()) any |= RunRound(cta, order);
      }
    }
    machine.is_early = false;
    resident_ = std::move(machine.resident);
    num_alive_in_grid_ = machine.num_alive_in_grid;
    random_state_ = machine.random_state;
    error_ = std::move(machine.error);
    Leave();
  }

  void Finish() {
    Machine& machine = GetMachine();
    Enter(shape_, body_, pool_);
    machine.error = error_;
    if (error_.empty()) {
      machine.random_state = random_state_;
      machine.resident = std::move(resident_);
      machine.num_alive_in_grid = num_alive_in_grid_;
      for (Cta& cta : machine.resident) {
        for (Fiber& fiber : cta.fibers) {
          if (fiber.state == State::kAtWait) fiber.state = State::kReady;
        }
      }
      RunResident();
      RunCtas(order_, num_early_);
    }
    Leave();
  }

 private:
  const LaunchShape shape_;
  const absl::FunctionRef<void()> body_;
  const int pool_;
  std::vector<uint32_t> order_;
  uint32_t num_early_ = 0;
  std::vector<Cta> resident_;
  int num_alive_in_grid_ = 0;
  uint32_t random_state_ = 1;
  std::string error_;
};

std::shared_ptr<EarlyLaunch> StartEarly(const LaunchShape& shape,
                                        absl::FunctionRef<void()> body) {
  if (!shape.waits_for_previous || shape.is_cooperative ||
      !Refusal(shape).empty()) {
    return nullptr;
  }
  auto launch = std::make_shared<EarlyLaunch>(shape, body);
  launch->Start();
  return launch;
}

void Finish(EarlyLaunch& launch) { launch.Finish(); }

void Run(const LaunchShape& shape, absl::FunctionRef<void()> body) {
  Machine& machine = GetMachine();
  const int pool = TakePool();
  Enter(shape, body, pool);
  machine.random_state = FirstRandom();
  machine.error = Refusal(shape);
  if (machine.error.empty()) RunCtas(CtaOrder(NumCtasOf(shape)), 0);
  machine.pools[pool].is_taken = false;
  Leave();
}

void Fail(const char* message, const char* operation) {
  // In a scope of its own: this frame is never left, so nothing on it is
  // destroyed.
  {
    Fiber& fiber = Running();
    SetError(operation ? absl::StrCat(operation, ": ", message) : message,
             fiber);
  }
  SwitchToScheduler();  // The scheduler sees the error and never comes back.
  std::abort();
}

void LimitShared(size_t num_bytes) {
  Machine& machine = GetMachine();
  machine.max_shared_bytes = num_bytes;
  if (machine.shape.dynamic_shared_bytes > num_bytes) {
    Fail("the CTA has more shared memory than this GPU");
  }
}

void* StaticShared(size_t num_bytes, size_t alignment) {
  Fiber& fiber = Running();
  const size_t begin =
      (fiber.static_shared_used + alignment - 1) / alignment * alignment;
  fiber.static_shared_used = begin + num_bytes;
  if (fiber.static_shared_used > kMaxStaticShared) {
    Fail("static shared memory is over 48 KiB");
  }
  // Dynamic memory begins where it is aligned.
  const size_t num_dynamic = GetMachine().shape.dynamic_shared_bytes;
  const size_t num_static = (fiber.static_shared_used + 1023) / 1024 * 1024;
  if (num_dynamic > 0 &&
      num_static + num_dynamic > GetMachine().max_shared_bytes) {
    Fail("static and dynamic shared memory are more than this GPU has");
  }
  return fiber.cta->static_shared.get() + begin;
}

unsigned char* DynamicShared() { return Running().cta->dynamic_shared.get(); }
uint32_t ThreadIdx() { return static_cast<uint32_t>(Running().thread_idx); }
uint32_t NumThreadsOfCta() { return GetMachine().shape.num_threads; }
uint32_t CtaIdx(int axis) { return Running().cta->idx[axis]; }
uint32_t NumCtas(int axis) {
  const LaunchShape& shape = GetMachine().shape;
  return axis == 0   ? shape.num_ctas_x
         : axis == 1 ? shape.num_ctas_y
                     : shape.num_ctas_z;
}

void Yield() { SwitchToScheduler(); }

void WaitForPrevious() {
  Fiber& fiber = Running();
  fiber.has_waited = true;
  if (!GetMachine().is_early) return;
  fiber.state = State::kAtWait;
  SwitchToScheduler();
}

void LaunchNext() {
  if (GetMachine().shape.waits_for_previous && !Running().has_waited) {
    Fail(
        "LaunchNext before WaitForPrevious: the next kernel could start "
        "before the previous one is done");
  }
}

}  // namespace quire::simt::emulator
