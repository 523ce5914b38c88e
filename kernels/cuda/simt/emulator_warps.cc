// What the lanes of a warp do together: votes, and matrices spread over their
// registers.
#include <algorithm>

#include "kernels/cuda/simt/emulator_machine.h"

namespace quire::simt {

namespace emulator {

void Collective(uint32_t mask, const char* name, void* argument,
                Combine combine) {
  Machine& machine = GetMachine();
  Fiber& fiber = Running();
  Warp& warp = fiber.cta->warps[fiber.thread_idx / kWarpSize];
  const int lane = fiber.thread_idx % kWarpSize;
  if (!(mask >> lane & 1)) {
    Fail("the calling lane is not in the mask", name);
  }
  if (mask & ~warp.alive) {
    Fail("the mask names a lane that has returned", name);
  }
  if (warp.arrived != 0 && (warp.name != name || warp.mask != mask)) {
    Fail("the lanes of a warp diverge", name);
  }
  warp.name = name;
  warp.mask = mask;
  warp.arguments[lane] = argument;
  warp.arrived |= 1u << lane;
  if (warp.arrived != mask) {
    fiber.state = State::kInWarp;
    ++machine.counts.num_switches;
    machine.scheduler.SwitchFrom(fiber.context);
    return;
  }
  combine(warp.arguments, mask);
  warp.arrived = 0;
  const int first = fiber.thread_idx - lane;
  for (int l = 0; l < kWarpSize; ++l) {
    if (!(mask >> l & 1)) continue;
    Fiber& other = fiber.cta->fibers[first + l];
    if (other.state == State::kInWarp) other.state = State::kReady;
  }
}

}  // namespace emulator

// ---------------------------------------------------------------- votes

namespace {

struct VoteArgument {
  uint32_t value;
  uint32_t result;
};

template <typename Fold>
void FoldLanes(void* const* arguments, uint32_t mask, Fold fold) {
  uint32_t total = 0;
  bool is_first = true;
  for (int lane = 0; lane < kWarpSize; ++lane) {
    if (!(mask >> lane & 1)) continue;
    const uint32_t value =
        static_cast<const VoteArgument*>(arguments[lane])->value;
    total = is_first ? value : fold(total, value);
    is_first = false;
  }
  for (int lane = 0; lane < kWarpSize; ++lane) {
    if (mask >> lane & 1) {
      static_cast<VoteArgument*>(arguments[lane])->result = total;
    }
  }
}

uint32_t Vote(uint32_t value, uint32_t mask, const char* name,
              emulator::Combine combine) {
  VoteArgument argument{value, 0};
  emulator::Collective(mask, name, &argument, combine);
  return argument.result;
}

}  // namespace

uint32_t Ballot(bool predicate, uint32_t mask) {
  const uint32_t bit = predicate ? 1u << emulator::Lane() : 0;
  return Vote(bit, mask, "Ballot", [](void* const* arguments, uint32_t mask) {
    FoldLanes(arguments, mask, [](uint32_t a, uint32_t b) { return a | b; });
  });
}

uint32_t ReduceAdd(uint32_t value, uint32_t mask) {
  return Vote(value, mask, "ReduceAdd",
              [](void* const* arguments, uint32_t mask) {
                FoldLanes(arguments, mask,
                          [](uint32_t a, uint32_t b) { return a + b; });
              });
}

uint32_t ReduceMax(uint32_t value, uint32_t mask) {
  return Vote(
      value, mask, "ReduceMax", [](void* const* arguments, uint32_t mask) {
        FoldLanes(arguments, mask,
                  [](uint32_t a, uint32_t b) { return std::max(a, b); });
      });
}

// ---------------------------------------------------------------- matrices

namespace {

struct LdMatrixArgument {
  const void* row;
  uint32_t* registers;
};

// PTX ISA, ldmatrix: lanes 8m to 8m + 7 hold the rows of matrix m; lane l gets
// elements 2 (l % 4) and the next one of row l / 4 (or of column l / 4).
template <bool kTransposed>
void CombineLdMatrix(void* const* arguments, uint32_t /*mask*/) {
  const auto argument = [&](int lane) {
    return static_cast<const LdMatrixArgument*>(arguments[lane]);
  };
  emulator::Counts& counts = emulator::CurrentCounts();
  for (int m = 0; m < 4; ++m) {
    uint16_t matrix[8][8];
    int rows_of_bank[8] = {};  // Groups of four banks: 16 bytes.
    int num_passes = 0;
    for (int i = 0; i < 8; ++i) {
      const void* row = argument(m * 8 + i)->row;
      std::memcpy(matrix[i], row, 16);
      const int bank = reinterpret_cast<uintptr_t>(row) / 16 % 8;
      num_passes = std::max(num_passes, ++rows_of_bank[bank]);
    }
    ++counts.num_matrices;
    counts.num_matrix_passes += num_passes;
    for (int lane = 0; lane < kWarpSize; ++lane) {
      const int i = lane / 4, j = lane % 4 * 2;
      const uint32_t low = kTransposed ? matrix[j][i] : matrix[i][j];
      const uint32_t high = kTransposed ? matrix[j + 1][i] : matrix[i][j + 1];
      argument(lane)->registers[m] = low | high << 16;
    }
  }
}

template <bool kTransposed>
void LdMatrix(uint32_t (&registers)[4], const void* row, const char* name) {
  if (reinterpret_cast<uintptr_t>(row) % 16 != 0) {
    emulator::Fail("a row of ldmatrix is not aligned to 16 bytes");
  }
  LdMatrixArgument argument{row, registers};
  emulator::Collective(kAllLanes, name, &argument,
                       &CombineLdMatrix<kTransposed>);
}

template <typename T>
struct MmaArgument {
  T* c;
  const uint32_t* a;
  uint32_t b[2];
};

// PTX ISA, "Matrix fragments for mma.m16n8k16" and "m16n8k32": with g = lane /
// 4 and t = lane % 4, register a0 holds row g, a1 row g + 8, a2 and a3 the same
// rows in the upper half of k; each register holds consecutive k from t times
// its element count. c0 and c1 are row g, columns 2t and 2t + 1; c2 and c3 row
// g + 8.
template <typename T, int kPerRegister, typename Decode>
void CombineMma(void* const* arguments, Decode decode) {
  constexpr int kDepth = 8 * kPerRegister;
  constexpr int kBits = 32 / kPerRegister;
  T a[16][kDepth], b[8][kDepth];
  const auto element = [&](uint32_t word, int i) {
    return decode(word >> (i * kBits) & ((uint64_t{1} << kBits) - 1));
  };
  const auto argument = [&](int lane) {
    return static_cast<const MmaArgument<T>*>(arguments[lane]);
  };
  ++emulator::CurrentCounts().num_mma;
  for (int lane = 0; lane < kWarpSize; ++lane) {
    const int g = lane / 4, k0 = lane % 4 * kPerRegister;
    for (int e = 0; e < kPerRegister; ++e) {
      for (int r = 0; r < 4; ++r) {
        a[g + r % 2 * 8][k0 + r / 2 * (kDepth / 2) + e] =
            element(argument(lane)->a[r], e);
      }
      for (int r = 0; r < 2; ++r) {
        b[g][k0 + r * (kDepth / 2) + e] = element(argument(lane)->b[r], e);
      }
    }
  }
  for (int lane = 0; lane < kWarpSize; ++lane) {
    for (int r = 0; r < 4; ++r) {
      const int row = lane / 4 + r / 2 * 8, column = lane % 4 * 2 + r % 2;
      T sum = 0;
      for (int k = 0; k < kDepth; ++k) sum += a[row][k] * b[column][k];
      argument(lane)->c[r] += sum;
    }
  }
}

template <typename T>
void Mma(T (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
         const char* name, emulator::Combine combine) {
  MmaArgument<T> argument{c, a, {b0, b1}};
  emulator::Collective(kAllLanes, name, &argument, combine);
}

}  // namespace

void LdMatrixX4(uint32_t (&registers)[4], const void* row) {
  LdMatrix<false>(registers, row, "LdMatrixX4");
}
void LdMatrixX4Transposed(uint32_t (&registers)[4], const void* row) {
  LdMatrix<true>(registers, row, "LdMatrixX4Transposed");
}

void MmaBf16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  emulator::RequireCapability(80, "MmaBf16");
  Mma(c, a, b0, b1, "MmaBf16", [](void* const* arguments, uint32_t) {
    CombineMma<float, 2>(arguments, [](uint32_t bits) {
      return Bf16ToFloat(static_cast<uint16_t>(bits));
    });
  });
}
void MmaF16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  Mma(c, a, b0, b1, "MmaF16", [](void* const* arguments, uint32_t) {
    CombineMma<float, 2>(arguments, [](uint32_t bits) {
      return HalfToFloat(static_cast<uint16_t>(bits));
    });
  });
}
void MmaE4M3(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  emulator::RequireCapability(89, "MmaE4M3");
  Mma(c, a, b0, b1, "MmaE4M3", [](void* const* arguments, uint32_t) {
    CombineMma<float, 4>(arguments, [](uint32_t bits) {
      return E4M3ToFloat(static_cast<uint8_t>(bits));
    });
  });
}
void MmaS8(int32_t (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  emulator::RequireCapability(80, "MmaS8");
  Mma(c, a, b0, b1, "MmaS8", [](void* const* arguments, uint32_t) {
    CombineMma<int32_t, 4>(arguments, [](uint32_t bits) {
      return int32_t{static_cast<int8_t>(bits)};
    });
  });
}

}  // namespace quire::simt
