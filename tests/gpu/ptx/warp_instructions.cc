// What the lanes of a warp do together. The fragments of matrices are those of
// PTX ISA 9.0, section "Warp-level matrix instructions".
#include <bit>
#include <cstdint>
#include <cstring>
#include <map>
#include <string>
#include <type_traits>

#include "absl/strings/str_cat.h"
#include "kernels/dtype.h"
#include "tests/gpu/ptx/memory_instructions.h"
#include "tests/gpu/ptx/number_instructions.h"
#include "tests/gpu/ptx/ptx_machine.h"
#include "tests/gpu/ptx/ptx_program.h"

namespace quire::ptx {
namespace {

constexpr int kWarp = 32;

// shfl.MODE d|p, a, b, c, mask.
enum class Shuffle : uint8_t { kUp, kDown, kXor, kIdx };
template <Shuffle kMode>
void ShuffleLanes(Thread* const* lanes, uint32_t mask, const Instruction& i) {
  uint32_t values[kWarp] = {};
  for (int lane = 0; lane < kWarp; ++lane) {
    if (mask >> lane & 1) values[lane] = Get<uint32_t>(*lanes[lane], i.from[0]);
  }
  for (int lane = 0; lane < kWarp; ++lane) {
    if ((mask >> lane & 1) == 0) continue;
    Thread& t = *lanes[lane];
    const int b = Get<int32_t>(t, i.from[1]) & 31;
    const int c = Get<int32_t>(t, i.from[2]);
    const int segment = c >> 8 & 31;
    const int last = (lane & segment) | (c & 31 & ~segment);
    const int first = lane & segment;
    int from = lane;
    bool is_inside = false;
    switch (kMode) {
      case Shuffle::kUp:
        from = lane - b;
        is_inside = from >= last;
        break;
      case Shuffle::kDown:
        from = lane + b;
        is_inside = from <= last;
        break;
      case Shuffle::kXor:
        from = lane ^ b;
        is_inside = from <= last;
        break;
      case Shuffle::kIdx:
        from = first | (b & ~segment);
        is_inside = from <= last;
        break;
    }
    if (!is_inside) from = lane;
    if ((mask >> from & 1) == 0) {
      return Fault(t, i, absl::StrCat("lane ", from, " takes no part"));
    }
    Set(t, i.to[0], values[from]);
    t.slots[i.to[1]] = is_inside;
  }
}
enum class Vote : uint8_t { kBallot, kAny, kAll };
template <Vote kMode>
void VoteOfLanes(Thread* const* lanes, uint32_t mask, const Instruction& i) {
  uint32_t votes = 0;
  for (int lane = 0; lane < kWarp; ++lane) {
    if ((mask >> lane & 1) == 0) continue;
    const bool is_set =
        ((lanes[lane]->slots[i.from[0]] & 1) != 0) != i.is_predicate_negated;
    votes |= uint32_t{is_set} << lane;
  }
  for (int lane = 0; lane < kWarp; ++lane) {
    if ((mask >> lane & 1) == 0) continue;
    lanes[lane]->slots[i.to[0]] = kMode == Vote::kBallot ? votes
                                  : kMode == Vote::kAny  ? votes != 0
                                                         : votes == mask;
  }
}
template <typename Op, typename T>
void Reduce(Thread* const* lanes, uint32_t mask, const Instruction& i) {
  bool is_first = true;
  T result = {};
  for (int lane = 0; lane < kWarp; ++lane) {
    if ((mask >> lane & 1) == 0) continue;
    const T value = Get<T>(*lanes[lane], i.from[0]);
    result = is_first ? value : Op::template Do<T>(result, value);
    is_first = false;
  }
  for (int lane = 0; lane < kWarp; ++lane) {
    if (mask >> lane & 1) Set(*lanes[lane], i.to[0], result);
  }
}
void Together(Thread* const* /*lanes*/, uint32_t /*mask*/,
              const Instruction& /*i*/) {}

bool IsWhole(Thread* const* lanes, uint32_t mask, const Instruction& i) {
  if (mask == 0xffffffffu) return true;
  Fault(*lanes[std::countr_zero(mask)], i, "not a whole warp");
  return false;
}

// Four matrices of 8 x 8 16-bit elements; lanes 8m to 8m + 7 name the rows of
// matrix m.
template <bool kTransposes>
void LdMatrixX4(Thread* const* lanes, uint32_t mask, const Instruction& i) {
  if (!IsWhole(lanes, mask, i)) return;
  uint16_t rows[kWarp][8];
  for (int lane = 0; lane < kWarp; ++lane) {
    const char* const row = At<Space::kShared>(*lanes[lane], i, i.from[0], 16);
    if (row == nullptr) return;
    std::memcpy(rows[lane], row, 16);
  }
  for (int lane = 0; lane < kWarp; ++lane) {
    const int line = lane / 4, pair = lane % 4 * 2;
    for (int m = 0; m < 4; ++m) {
      const auto element = [&](int e) {
        return kTransposes ? rows[8 * m + pair + e][line]
                           : rows[8 * m + line][pair + e];
      };
      Set(*lanes[lane], i.to[m], Pair(element(0), element(1)));
    }
  }
}

// c [16, 8] += a [16, kDepth] b [kDepth, 8], a by rows and b by columns; each
// register holds kPer elements next to each other.
template <typename Element, typename Sum, int kDepth, int kPer, typename Decode>
void Mma(Thread* const* lanes, uint32_t mask, const Instruction& i,
         Decode decode) {
  if (!IsWhole(lanes, mask, i)) return;
  constexpr int kStep = 4 * kPer;  // Of columns that four lanes hold.
  constexpr int kNumA = 2 * kDepth / kStep, kNumB = kDepth / kStep;
  static Element a[16][kDepth], b[kDepth][8];
  for (int lane = 0; lane < kWarp; ++lane) {
    const int group = lane / 4, first = lane % 4 * kPer;
    for (int r = 0; r < kNumA; ++r) {
      const uint32_t word = Get<uint32_t>(*lanes[lane], i.from[r]);
      for (int e = 0; e < kPer; ++e) {
        a[group + r % 2 * 8][r / 2 * kStep + first + e] =
            decode(word >> (32 / kPer * e));
      }
    }
    for (int r = 0; r < kNumB; ++r) {
      const uint32_t word = Get<uint32_t>(*lanes[lane], i.from[kNumA + r]);
      for (int e = 0; e < kPer; ++e) {
        b[r * kStep + first + e][group] = decode(word >> (32 / kPer * e));
      }
    }
  }
  for (int lane = 0; lane < kWarp; ++lane) {
    Thread& t = *lanes[lane];
    Sum out[4];
    for (int c = 0; c < 4; ++c) {
      const int row = lane / 4 + c / 2 * 8, col = lane % 4 * 2 + c % 2;
      using Wide = std::conditional_t<std::is_integral_v<Sum>, int64_t, double>;
      Wide sum = Get<Sum>(t, i.from[kNumA + kNumB + c]);
      for (int k = 0; k < kDepth; ++k) sum += Wide{a[row][k]} * Wide{b[k][col]};
      out[c] = static_cast<Sum>(sum);
    }
    for (int c = 0; c < 4; ++c) Set(t, i.to[c], out[c]);
  }
}
template <int kDepth>
void MmaBf16(Thread* const* lanes, uint32_t mask, const Instruction& i) {
  Mma<float, float, kDepth, 2>(lanes, mask, i, [](uint32_t bits) {
    return Bf16ToFloat(static_cast<uint16_t>(bits));
  });
}
template <int kDepth>
void MmaF16(Thread* const* lanes, uint32_t mask, const Instruction& i) {
  Mma<float, float, kDepth, 2>(lanes, mask, i, [](uint32_t bits) {
    return HalfToFloat(static_cast<uint16_t>(bits));
  });
}
void MmaE4M3(Thread* const* lanes, uint32_t mask, const Instruction& i) {
  Mma<float, float, 32, 4>(lanes, mask, i, [](uint32_t bits) {
    return E4M3ToFloat(static_cast<uint8_t>(bits));
  });
}
void MmaS8(Thread* const* lanes, uint32_t mask, const Instruction& i) {
  Mma<int32_t, int32_t, 32, 4>(lanes, mask, i, [](uint32_t bits) {
    return int32_t{static_cast<int8_t>(bits)};
  });
}

// bar.arrive: "causes executing thread to wait for all non-exited threads from
// its warp and marks warps' arrival", of an aligned instruction all of it.
void Arrive(Thread* const* lanes, uint32_t mask, const Instruction& i) {
  const auto operand = [&](int lane, int k) {
    return Get<int32_t>(*lanes[lane], i.from[k]);
  };
  for (int lane = 0; lane < kWarp; ++lane) {
    if ((mask >> lane & 1) == 0) continue;
    for (int k = 0; k < i.num_from; ++k) {
      if (operand(lane, k) != operand(0, k)) {
        return Fault(*lanes[lane], i, "lanes disagree on a barrier");
      }
    }
    if (!ArriveAtBarrier(*lanes[lane], i, kWarp)) return;
  }
}

}  // namespace

Instruction::Collective FindCollective(const std::string& text) {
  static const auto* const known =
      new std::map<std::string, Instruction::Collective>{
          {"shfl.sync.up.b32", &ShuffleLanes<Shuffle::kUp>},
          {"shfl.sync.down.b32", &ShuffleLanes<Shuffle::kDown>},
          {"shfl.sync.bfly.b32", &ShuffleLanes<Shuffle::kXor>},
          {"shfl.sync.idx.b32", &ShuffleLanes<Shuffle::kIdx>},
          {"vote.sync.ballot.b32", &VoteOfLanes<Vote::kBallot>},
          {"vote.sync.any.pred", &VoteOfLanes<Vote::kAny>},
          {"vote.sync.all.pred", &VoteOfLanes<Vote::kAll>},
          {"redux.sync.add.u32", &Reduce<Add, uint32_t>},
          {"redux.sync.max.u32", &Reduce<Max, uint32_t>},
          {"redux.sync.min.u32", &Reduce<Min, uint32_t>},
          {"bar.warp.sync", &Together},
          {"bar.arrive", &Arrive},
          {"ldmatrix.sync.aligned.m8n8.x4.shared.b16", &LdMatrixX4<false>},
          {"ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16", &LdMatrixX4<true>},
          {"mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32", &MmaBf16<16>},
          {"mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32", &MmaF16<16>},
          {"mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32", &MmaF16<8>},
          {"mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32", &MmaE4M3},
          {"mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32", &MmaS8},
      };
  const auto found = known->find(text);
  return found == known->end() ? nullptr : found->second;
}

}  // namespace quire::ptx
