// Instructions that load, store, copy, or move between registers, and those
// that say what comes next. Of instructions.cc.
#ifndef QUIRE_TESTS_GPU_PTX_MEMORY_INSTRUCTIONS_H_
#define QUIRE_TESTS_GPU_PTX_MEMORY_INSTRUCTIONS_H_

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "absl/strings/str_cat.h"
#include "tests/gpu/ptx/ptx_machine.h"
#include "tests/gpu/ptx/ptx_program.h"
#include "tests/gpu/ptx/warpgroup_instructions.h"

namespace quire::ptx {

// ------------------------------------------------------------ memory

enum class Space : uint8_t { kGeneric, kGlobal, kShared, kLocal, kParam };

// The host's address of `num_bytes` that an instruction is about to access;
// null after a fault.
template <Space kSpace>
char* At(Thread& t, const Instruction& i, int slot, int64_t num_bytes) {
  uint64_t address = t.slots[slot];
  if constexpr (kSpace == Space::kShared) {
    // 32 bits of an address suffice, and are all that some registers have.
    address = (address + i.offset) & 0xffffffffu;
    if (address + num_bytes > t.cta->shared.size()) {
      Fault(t, i,
            absl::StrCat("shared memory has ", t.cta->shared.size(),
                         " bytes, not ", address + num_bytes));
      return nullptr;
    }
    if (address % num_bytes != 0) {
      Fault(t, i, "a misaligned address");
      return nullptr;
    }
    return t.cta->shared.data() + address;
  }
  address += i.offset;
  if constexpr (kSpace == Space::kParam || kSpace == Space::kLocal) {
    return reinterpret_cast<char*>(address);
  }
  if (address % num_bytes != 0) {
    Fault(t, i, "a misaligned address");
    return nullptr;
  }
  if (address >= t.known_begin && address + num_bytes <= t.known_end) {
    return reinterpret_cast<char*>(address);
  }
  if constexpr (kSpace == Space::kGeneric) {
    const auto begin = reinterpret_cast<uint64_t>(t.cta->shared.data());
    if (address >= begin &&
        address + num_bytes <= begin + t.cta->shared.size()) {
      return reinterpret_cast<char*>(address);
    }
    const auto local = reinterpret_cast<uint64_t>(t.local);
    if (address >= local &&
        address + num_bytes <= local + t.function->local_bytes) {
      return reinterpret_cast<char*>(address);
    }
  }
  if (!t.cta->memory->Find(address, num_bytes, &t.known_begin, &t.known_end)) {
    Fault(t, i,
          absl::StrCat("no memory of ", num_bytes, " bytes at ",
                       absl::Hex(address)));
    return nullptr;
  }
  return reinterpret_cast<char*>(address);
}

// Told to what reads shared memory apart from other accesses.
template <Space kSpace>
void NoteWrite(const Thread& t, const char* to) {
  if constexpr (kSpace == Space::kShared || kSpace == Space::kGeneric) {
    if (t.cta->warpgroups == nullptr) return;
    const int64_t offset = to - t.cta->shared.data();
    if (offset < 0 || offset >= static_cast<int64_t>(t.cta->shared.size())) {
      return;
    }
    t.cta->warpgroups->proxy.Write(t.index, offset);
  }
}

// Vectors are aligned as a whole.
template <typename T, Space kSpace>
void Load(Thread& t, const Instruction& i) {
  const char* const from =
      At<kSpace>(t, i, i.from[0], i.num_elements * int64_t{sizeof(T)});
  if (from == nullptr) return;
  for (int e = 0; e < i.num_elements; ++e) {
    T value;
    std::memcpy(&value, from + e * sizeof(T), sizeof(T));
    // A register may be wider than what it gets.
    if constexpr (std::is_signed_v<T> && std::is_integral_v<T>) {
      Set<int64_t>(t, i.to[e], value);
    } else {
      Set<T>(t, i.to[e], value);
    }
  }
}
template <typename T, Space kSpace>
void Store(Thread& t, const Instruction& i) {
  char* const to =
      At<kSpace>(t, i, i.from[0], i.num_elements * int64_t{sizeof(T)});
  if (to == nullptr) return;
  for (int e = 0; e < i.num_elements; ++e) {
    const T value = Get<T>(t, i.from[1 + e]);
    std::memcpy(to + e * sizeof(T), &value, sizeof(T));
  }
  NoteWrite<kSpace>(t, to);
}

struct Exchange {
  template <typename T>
  static T Do(T /*a*/, T b) {
    return b;
  }
};
template <typename Op, typename T, Space kSpace>
void Atomic(Thread& t, const Instruction& i) {
  char* const at = At<kSpace>(t, i, i.from[0], sizeof(T));
  if (at == nullptr) return;
  T old;
  std::memcpy(&old, at, sizeof(T));
  const T value = Op::template Do<T>(old, Get<T>(t, i.from[1]));
  std::memcpy(at, &value, sizeof(T));
  NoteWrite<kSpace>(t, at);
  Set<T>(t, i.to[0], old);
}
template <typename T, Space kSpace>
void AtomicCas(Thread& t, const Instruction& i) {
  char* const at = At<kSpace>(t, i, i.from[0], sizeof(T));
  if (at == nullptr) return;
  T old;
  std::memcpy(&old, at, sizeof(T));
  if (old == Get<T>(t, i.from[1])) {
    const T value = Get<T>(t, i.from[2]);
    std::memcpy(at, &value, sizeof(T));
    NoteWrite<kSpace>(t, at);
  }
  Set<T>(t, i.to[0], old);
}

// Between the offsets of shared memory and generic addresses.
inline void SharedToGeneric(Thread& t, const Instruction& i) {
  t.slots[i.to[0]] =
      t.slots[i.from[0]] + reinterpret_cast<uint64_t>(t.cta->shared.data());
}
inline void GenericToShared(Thread& t, const Instruction& i) {
  t.slots[i.to[0]] =
      t.slots[i.from[0]] - reinterpret_cast<uint64_t>(t.cta->shared.data());
}

inline void CpAsync(Thread& t, const Instruction& i) {
  const int num_bytes = Get<int32_t>(t, i.from[2]);
  const int num_read = i.num_from > 3 ? Get<int32_t>(t, i.from[3]) : num_bytes;
  char* const to = At<Space::kShared>(t, i, i.from[0], num_bytes);
  if (to == nullptr) return;
  const char* from = nullptr;
  if (num_read == num_bytes) {
    from = At<Space::kGlobal>(t, i, i.from[1], num_bytes);
    if (from == nullptr) return;
  } else if (num_read != 0) {
    return Fault(t, i, "a part of the bytes");
  }
  if (t.cta->warpgroups != nullptr) {
    t.cta->warpgroups->proxy.BeginCopy(t.index, to - t.cta->shared.data(),
                                       t.num_groups);
  }
  if (t.cta->options.has_late_copies) {
    t.copies.push_back({to, from, num_bytes, t.num_groups});
  } else if (from != nullptr) {
    std::memcpy(to, from, num_bytes);
  } else {
    std::memset(to, 0, num_bytes);
  }
}
inline void CpAsyncCommit(Thread& t, const Instruction& /*i*/) {
  ++t.num_groups;
}
// All but the last `n` groups have been copied.
inline void FinishCopies(Thread& t, int end) {
  size_t kept = 0;
  for (const Thread::Copy& copy : t.copies) {
    if (copy.group >= end) {
      t.copies[kept++] = copy;
    } else if (copy.from != nullptr) {
      std::memcpy(copy.to, copy.from, copy.num_bytes);
    } else {
      std::memset(copy.to, 0, copy.num_bytes);
    }
  }
  t.copies.resize(kept);
  if (t.cta->warpgroups != nullptr) {
    t.cta->warpgroups->proxy.EndCopies(t.index, end);
  }
}
inline void CpAsyncWaitGroup(Thread& t, const Instruction& i) {
  FinishCopies(t, t.num_groups - Get<int32_t>(t, i.from[0]));
}
inline void CpAsyncWaitAll(Thread& t, const Instruction& /*i*/) {
  FinishCopies(t, t.num_groups + 1);
}

// mov of a vector: elements into one register, or one register into elements.
template <typename Whole>
void MovePack(Thread& t, const Instruction& i) {
  const int bits = 8 * sizeof(Whole) / i.num_from;
  uint64_t whole = 0;
  for (int e = 0; e < i.num_from; ++e) {
    const uint64_t mask = bits == 64 ? ~uint64_t{0} : (uint64_t{1} << bits) - 1;
    whole |= (t.slots[i.from[e]] & mask) << (e * bits);
  }
  t.slots[i.to[0]] = whole;
}
template <typename Whole>
void MoveUnpack(Thread& t, const Instruction& i) {
  const int bits = 8 * sizeof(Whole) / i.num_elements;
  const uint64_t whole = Get<Whole>(t, i.from[0]);
  const uint64_t mask = (uint64_t{1} << bits) - 1;
  for (int e = 0; e < i.num_elements; ++e) {
    t.slots[i.to[e]] = whole >> (e * bits) & mask;
  }
}

// ------------------------------------------------------------ control

inline void Nothing(Thread& /*t*/, const Instruction& /*i*/) {}
inline void FenceProxy(Thread& t, const Instruction& /*i*/) {
  if (t.cta->warpgroups != nullptr) t.cta->warpgroups->proxy.Fence(t.index);
}
inline void Branch(Thread& t, const Instruction& i) { t.pc = i.target; }
inline void Exit(Thread& t, const Instruction& i) {
  if (t.cta->warpgroups != nullptr) {
    const auto& warps = t.cta->warpgroups->warps;
    const size_t warp = t.index / Warpgroups::kLanes;
    if (warp < warps.size() && !warps[warp].products.empty()) {
      return Fault(t, i, "a product is not waited for");
    }
  }
  t.state = Thread::State::kDone;
}
inline void Trap(Thread& t, const Instruction& i) { Fault(t, i, "a trap"); }
inline void Barrier(Thread& t, const Instruction& i) {
  t.state = Thread::State::kAtBarrier;
  t.barrier = Get<int32_t>(t, i.from[0]);
  ArriveAtBarrier(t, i, 0);
}
inline void Call(Thread& t, const Instruction& i) {
  const Function& callee = *t.cta->program->functions()[i.target];
  t.callers.push_back({t.function, t.pc, t.slots, t.local});
  t.stack.emplace_back(callee.num_slots);
  t.local_stack.emplace_back(callee.local_bytes + 16);
  char* const local = reinterpret_cast<char*>(
      (reinterpret_cast<uint64_t>(t.local_stack.back().data()) + 15) / 16 * 16);
  for (size_t p = 0; p < i.call_in.size(); ++p) {
    std::memcpy(local + callee.local_in[p].first, t.local + i.call_in[p],
                callee.local_in[p].second);
  }
  uint64_t* const slots = t.stack.back().data();
  std::copy(t.slots, t.slots + kNumSpecialSlots, slots);
  t.function = &callee;
  t.pc = 0;
  t.slots = slots;
  t.local = local;
  PrepareSlots(callee, t, nullptr);
}
inline void Return(Thread& t, const Instruction& i) {
  if (t.callers.empty()) return Exit(t, i);
  const Function& callee = *t.function;
  const Thread::Frame caller = t.callers.back();
  const Instruction& call = caller.function->code[caller.pc - 1];
  for (size_t r = 0; r < call.call_out.size(); ++r) {
    std::memcpy(caller.local + call.call_out[r],
                t.local + callee.local_out[r].first,
                callee.local_out[r].second);
  }
  t.function = caller.function;
  t.pc = caller.pc;
  t.slots = caller.slots;
  t.local = caller.local;
  t.callers.pop_back();
  t.stack.pop_back();
  t.local_stack.pop_back();
}

}  // namespace quire::ptx

#endif  // QUIRE_TESTS_GPU_PTX_MEMORY_INSTRUCTIONS_H_
