#include "tests/gpu/ptx/ptx_machine.h"

#include <algorithm>
#include <memory>
#include <optional>

#include "absl/strings/str_cat.h"
#include "tests/gpu/ptx/warpgroup_instructions.h"

namespace quire::ptx {
namespace {

constexpr int kWarp = 32;
// Instructions of a thread before others get their turn: it may be waiting for
// what they write.
constexpr int64_t kTurn = 1 << 16;

// Poisons: no kernel may depend on what was there.
constexpr char kUnwritten = static_cast<char>(0xff);
constexpr uint64_t kUnwrittenSlot = 0xfff1f1f17ff1f1f1;

void RunThread(Thread& thread) {
  using State = Thread::State;
  for (int64_t turn = 0; thread.state == State::kRunning && turn < kTurn;
       ++turn) {
    const Instruction& instruction = thread.function->code[thread.pc];
    if (instruction.guard >= 0 &&
        (thread.slots[instruction.guard] & 1) == instruction.is_guard_negated) {
      ++thread.pc;
      continue;
    }
    if (instruction.collective != nullptr) {
      thread.state = State::kAtCollective;
      return;
    }
    ++thread.pc;
    instruction.handler(thread, instruction);
  }
}

// Who takes part in what lane `lane` has come to.
uint32_t MaskOf(const Thread& thread, const Instruction& instruction) {
  return instruction.has_mask
             ? Get<uint32_t>(thread, instruction.from[instruction.num_from - 1])
             : 0xffffffffu;
}

void ReleaseBarrier(Cta& cta, int id) {
  cta.barriers[id].num_arrived = 0;
  for (Thread& thread : cta.threads) {
    thread.arrivals &= ~(1u << id);
    if (thread.state == Thread::State::kAtBarrier && thread.barrier == id) {
      thread.state = Thread::State::kRunning;
    }
  }
}

struct RunningCta {
  Cta cta;
  std::vector<Thread> threads;
  std::vector<uint64_t> slots;
  std::vector<char> local, shared;
  std::optional<Warpgroups> warpgroups;
  bool is_done = false;

  RunningCta(const Program& program, const Function& function,
             const Launch& launch, const Memory& memory,
             const RunOptions& options, uint64_t workspace,
             std::array<uint32_t, 3> index) {
    cta.program = &program;
    cta.memory = &memory;
    cta.options = options;
    const int64_t alignment = function.dynamic_alignment;
    const int64_t dynamic =
        (function.shared_bytes + alignment - 1) / alignment * alignment;
    const int64_t shared_bytes = function.of_dynamic_shared.empty()
                                     ? function.shared_bytes
                                     : dynamic + launch.dynamic_shared_bytes;
    // Generic addresses are aligned like offsets.
    shared.assign(shared_bytes + alignment, kUnwritten);
    const auto begin = reinterpret_cast<uint64_t>(shared.data());
    cta.shared = absl::MakeSpan(shared).subspan(
        (begin + alignment - 1) / alignment * alignment - begin, shared_bytes);
    const int num_threads =
        static_cast<int>(launch.block[0] * launch.block[1] * launch.block[2]);
    if (function.has_wgmma) {
      cta.warpgroups = &warpgroups.emplace(num_threads, shared_bytes);
    }
    slots.assign(int64_t{num_threads} * function.num_slots, kUnwrittenSlot);
    const int64_t local_bytes = (function.local_bytes + 15) / 16 * 16;
    local.assign(num_threads * local_bytes + 16, kUnwritten);
    char* const aligned = reinterpret_cast<char*>(
        (reinterpret_cast<uint64_t>(local.data()) + 15) / 16 * 16);
    threads.resize(num_threads);
    cta.threads = absl::MakeSpan(threads);
    for (int i = 0; i < num_threads; ++i) {
      Thread& thread = threads[i];
      thread.function = &function;
      thread.slots = slots.data() + int64_t{i} * function.num_slots;
      thread.local = aligned + i * local_bytes;
      thread.cta = &cta;
      thread.index = i;
      thread.lane = i % kWarp;
      const uint32_t x = launch.block[0], y = launch.block[1];
      const uint64_t special[kNumSpecialSlots] = {
          i % x,
          i / x % y,
          i / (x * y),
          launch.block[0],
          launch.block[1],
          launch.block[2],
          index[0],
          index[1],
          index[2],
          launch.grid[0],
          launch.grid[1],
          launch.grid[2],
          static_cast<uint64_t>(thread.lane),
          workspace >> 32,
          workspace & 0xffffffff,
          0};
      std::copy(std::begin(special), std::end(special), thread.slots);
      PrepareSlots(function, thread, launch.parameters.data());
      for (const int slot : function.of_dynamic_shared) {
        thread.slots[slot] = dynamic;
      }
    }
  }

  // One turn of every warp. False if nothing moved.
  bool Turn() {
    const int num_warps =
        (static_cast<int>(threads.size()) + kWarp - 1) / kWarp;
    bool has_moved = false;
    for (int w = 0; w < num_warps; ++w) {
      const int warp = cta.options.is_reversed ? num_warps - 1 - w : w;
      has_moved |= TurnOfWarp(warp);
      if (!cta.fault.empty()) return true;
    }
    // Who has returned is not waited for.
    const int num_alive = static_cast<int>(std::count_if(
        threads.begin(), threads.end(),
        [](const Thread& t) { return t.state != Thread::State::kDone; }));
    is_done = num_alive == 0;
    for (size_t id = 0; id < cta.barriers.size(); ++id) {
      const Cta::Barrier& barrier = cta.barriers[id];
      if (barrier.num_arrived == 0) continue;
      if (is_done) {
        cta.fault = absl::StrCat("threads arrived at barrier ", id,
                                 " of a CTA, which nobody completes");
      } else if (barrier.num_threads == 0 && barrier.num_arrived >= num_alive) {
        ReleaseBarrier(cta, static_cast<int>(id));
        has_moved = true;
      }
    }
    return has_moved || is_done;
  }

  bool TurnOfWarp(int warp) {
    Thread* lanes[kWarp] = {};
    const int begin = warp * kWarp;
    const int count =
        std::min<int>(kWarp, static_cast<int>(threads.size()) - begin);
    for (int i = 0; i < count; ++i) lanes[i] = &threads[begin + i];
    bool has_moved = false;
    for (bool again = true; again;) {
      for (int i = 0; i < count; ++i) {
        Thread& thread = threads[begin + i];
        if (thread.state != Thread::State::kRunning) continue;
        has_moved = true;
        RunThread(thread);
        if (thread.state == Thread::State::kFaulted) return true;
      }
      again = Together(lanes, count);
      has_moved |= again;
      if (!cta.fault.empty()) return true;
    }
    return has_moved;
  }

  // Executes what all who take part have come to.
  bool Together(Thread* const* lanes, int count) {
    bool has_moved = false;
    for (int i = 0; i < count; ++i) {
      Thread& first = *lanes[i];
      if (first.state != Thread::State::kAtCollective) continue;
      const Instruction& instruction = first.function->code[first.pc];
      const uint32_t mask = MaskOf(first, instruction);
      const uint32_t all = count == kWarp ? 0xffffffffu : (1u << count) - 1;
      bool is_complete = (mask >> i & 1) != 0;
      if (!is_complete) {
        Fault(first, instruction, "its own lane is not in the mask");
        return true;
      }
      for (int j = 0; j < count && is_complete; ++j) {
        if ((mask & all) >> j & 1) {
          is_complete = lanes[j]->state == Thread::State::kAtCollective &&
                        lanes[j]->function == first.function &&
                        lanes[j]->pc == first.pc;
        }
      }
      if (!is_complete) continue;
      for (int j = 0; j < count; ++j) {
        if ((mask & all) >> j & 1) {
          lanes[j]->state = Thread::State::kRunning;
          ++lanes[j]->pc;
        }
      }
      instruction.collective(lanes, mask & all, instruction);
      has_moved = true;
    }
    return has_moved;
  }

  // Where a thread stands that others wait for.
  std::string Stuck() const {
    for (size_t i = 0; i < threads.size(); ++i) {
      const Thread& thread = threads[i];
      if (thread.state == Thread::State::kDone) continue;
      const int at =
          thread.state == Thread::State::kAtBarrier ? thread.pc - 1 : thread.pc;
      return absl::StrCat("thread ", i, " waits for others in vain at \"",
                          thread.function->code[at].text, "\"");
    }
    return "";
  }
};

}  // namespace

void PrepareSlots(const Function& function, const Thread& thread,
                  const char* parameters) {
  for (const auto& [slot, bits] : function.constants) {
    thread.slots[slot] = bits;
  }
  for (const auto& [slot, offset] : function.of_parameters) {
    thread.slots[slot] = reinterpret_cast<uint64_t>(parameters + offset);
  }
  for (const auto& [slot, offset] : function.of_local) {
    thread.slots[slot] = reinterpret_cast<uint64_t>(thread.local + offset);
  }
}

void Fault(Thread& thread, const Instruction& instruction,
           const std::string& what) {
  thread.state = Thread::State::kFaulted;
  if (!thread.cta->fault.empty()) return;
  thread.cta->fault =
      absl::StrCat(what, " at \"", instruction.text, "\" in ",
                   thread.function->name, ", CTA ", thread.slots[kCtaidX], " ",
                   thread.slots[kCtaidY], ", thread ", thread.slots[kTidX]);
}

bool ArriveAtBarrier(Thread& thread, const Instruction& instruction,
                     int least_threads) {
  Cta& cta = *thread.cta;
  const auto id = Get<int32_t>(thread, instruction.from[0]);
  const int num_threads =
      instruction.num_from > 1 ? Get<int32_t>(thread, instruction.from[1]) : 0;
  if (id < 0 || id >= static_cast<int>(cta.barriers.size()) ||
      num_threads < least_threads || num_threads % kWarp != 0) {
    Fault(thread, instruction, "no such barrier");
    return false;
  }
  Cta::Barrier& barrier = cta.barriers[id];
  if ((thread.arrivals >> id & 1) != 0) {
    Fault(thread, instruction,
          "a thread arrives twice at a barrier before it is complete");
    return false;
  }
  if (barrier.num_arrived > 0 && barrier.num_threads != num_threads) {
    Fault(thread, instruction, "different sizes of a barrier");
    return false;
  }
  thread.arrivals |= 1u << id;
  barrier.num_threads = num_threads;
  // One of all threads may also be completed by a return: Turn looks.
  if (++barrier.num_arrived == num_threads) ReleaseBarrier(cta, id);
  return true;
}

absl::Status Run(const Program& program, const Function& function,
                 const Launch& launch, const Memory& memory,
                 const RunOptions& options) {
  if (static_cast<int64_t>(launch.parameters.size()) !=
      function.parameter_bytes) {
    return absl::InternalError("parameters of another size");
  }
  // The counter of a cooperative grid, as cooperative_groups expects it.
  alignas(16) uint32_t workspace[4] = {};
  Memory with_workspace;
  if (launch.is_cooperative) {
    with_workspace = memory;
    with_workspace.Add(workspace, sizeof(workspace));
  }
  const Memory& seen = launch.is_cooperative ? with_workspace : memory;
  const uint64_t address =
      launch.is_cooperative ? reinterpret_cast<uint64_t>(workspace) : 0;
  std::vector<std::unique_ptr<RunningCta>> ctas;
  const int64_t num_ctas =
      int64_t{launch.grid[0]} * launch.grid[1] * launch.grid[2];
  for (int64_t i = 0; i < num_ctas; ++i) {
    const std::array<uint32_t, 3> index = {
        static_cast<uint32_t>(i % launch.grid[0]),
        static_cast<uint32_t>(i / launch.grid[0] % launch.grid[1]),
        static_cast<uint32_t>(i / launch.grid[0] / launch.grid[1])};
    ctas.push_back(std::make_unique<RunningCta>(program, function, launch, seen,
                                                options, address, index));
    if (launch.is_cooperative && i + 1 < num_ctas) continue;
    // The last, or all of a cooperative grid.
    for (int64_t turn = 0; !ctas.empty(); ++turn) {
      bool has_moved = false;
      for (auto& cta : ctas) {
        has_moved |= cta->Turn();
        if (!cta->cta.fault.empty()) {
          return absl::InternalError(cta->cta.fault);
        }
      }
      if (!has_moved || turn == options.max_turns) {
        return absl::InternalError(
            absl::StrCat(function.name, ": ", ctas.front()->Stuck()));
      }
      std::erase_if(ctas, [](const auto& cta) { return cta->is_done; });
    }
  }
  return absl::OkStatus();
}

}  // namespace quire::ptx
