// Instructions on numbers and predicates, and conversions. Of instructions.cc.
#ifndef QUIRE_TESTS_GPU_PTX_NUMBER_INSTRUCTIONS_H_
#define QUIRE_TESTS_GPU_PTX_NUMBER_INSTRUCTIONS_H_

#include <algorithm>
#include <bit>
#include <cfenv>
#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "kernels/dtype.h"
#include "tests/gpu/ptx/ptx_machine.h"
#include "tests/gpu/ptx/ptx_program.h"

namespace quire::ptx {

// ------------------------------------------------------------ numbers

template <typename T>
using Unsigned = std::make_unsigned_t<T>;

struct Add {
  template <typename T>
  static T Do(T a, T b) {
    if constexpr (std::is_integral_v<T>) {
      return static_cast<T>(Unsigned<T>(a) + Unsigned<T>(b));
    } else {
      return a + b;
    }
  }
};
struct Sub {
  template <typename T>
  static T Do(T a, T b) {
    if constexpr (std::is_integral_v<T>) {
      return static_cast<T>(Unsigned<T>(a) - Unsigned<T>(b));
    } else {
      return a - b;
    }
  }
};
struct Mul {
  template <typename T>
  static T Do(T a, T b) {
    if constexpr (std::is_integral_v<T>) {
      return static_cast<T>(uint64_t(a) * uint64_t(b));
    } else {
      return a * b;
    }
  }
};
struct MulHigh {
  template <typename T>
  static T Do(T a, T b) {
    using Wide =
        std::conditional_t<std::is_signed_v<T>, __int128, unsigned __int128>;
    return static_cast<T>((Wide{a} * Wide{b}) >> (8 * sizeof(T)));
  }
};
struct Div {
  template <typename T>
  static T Do(T a, T b) {
    if constexpr (std::is_integral_v<T>) {
      // Without a value of its own; the hardware gives all ones.
      if (b == 0) return static_cast<T>(-1);
      if constexpr (std::is_signed_v<T>) {
        if (b == -1) return Sub::Do(T{0}, a);
      }
      return a / b;
    } else {
      return a / b;
    }
  }
};
struct Rem {
  template <typename T>
  static T Do(T a, T b) {
    if (b == 0) return a;
    if constexpr (std::is_signed_v<T>) {
      if (b == -1) return 0;
    }
    return a % b;
  }
};
struct Min {
  template <typename T>
  static T Do(T a, T b) {
    if constexpr (std::is_floating_point_v<T>) {
      if (a == 0 && b == 0) return std::signbit(a) ? a : b;
      return std::fmin(a, b);  // The other of a NaN.
    } else {
      return std::min(a, b);
    }
  }
};
struct Max {
  template <typename T>
  static T Do(T a, T b) {
    if constexpr (std::is_floating_point_v<T>) {
      if (a == 0 && b == 0) return std::signbit(a) ? b : a;
      return std::fmax(a, b);
    } else {
      return std::max(a, b);
    }
  }
};
struct And {
  template <typename T>
  static T Do(T a, T b) {
    return a & b;
  }
};
struct Or {
  template <typename T>
  static T Do(T a, T b) {
    return a | b;
  }
};
struct Xor {
  template <typename T>
  static T Do(T a, T b) {
    return a ^ b;
  }
};
// The sign of a, the rest of b.
struct CopySign {
  template <typename T>
  static T Do(T a, T b) {
    return std::copysign(b, a);
  }
};
struct Neg {
  template <typename T>
  static T Do(T a) {
    if constexpr (std::is_integral_v<T>) {
      return Sub::Do(T{0}, a);
    } else {
      return -a;
    }
  }
};
struct Abs {
  template <typename T>
  static T Do(T a) {
    if constexpr (std::is_integral_v<T>) {
      return a < 0 ? Sub::Do(T{0}, a) : a;
    } else {
      return std::fabs(a);
    }
  }
};
struct Not {
  template <typename T>
  static T Do(T a) {
    return static_cast<T>(~a);
  }
};
struct Popc {
  template <typename T>
  static uint32_t Do(T a) {
    return std::popcount(a);
  }
};
struct Clz {
  template <typename T>
  static uint32_t Do(T a) {
    return std::countl_zero(a);
  }
};
// Where the highest bit is, or how far it is from the top; all ones of 0.
template <bool kIsShift>
struct Bfind {
  template <typename T>
  static uint32_t Do(T a) {
    if (a == 0) return 0xffffffffu;
    return kIsShift ? std::countl_zero(a)
                    : 8 * sizeof(T) - 1 - std::countl_zero(a);
  }
};
struct Brev {
  template <typename T>
  static T Do(T a) {
    T reversed = 0;
    for (size_t i = 0; i < 8 * sizeof(T); ++i) {
      reversed = static_cast<T>(reversed << 1 | (a >> i & 1));
    }
    return reversed;
  }
};
struct Move {
  template <typename T>
  static T Do(T a) {
    return a;
  }
};
struct Rcp {
  template <typename T>
  static T Do(T a) {
    return 1 / a;
  }
};
struct Sqrt {
  template <typename T>
  static T Do(T a) {
    return std::sqrt(a);
  }
};
struct Rsqrt {
  template <typename T>
  static T Do(T a) {
    return static_cast<T>(1 / std::sqrt(double{a}));
  }
};
struct Ex2 {
  template <typename T>
  static T Do(T a) {
    return static_cast<T>(std::exp2(double{a}));
  }
};
struct Lg2 {
  template <typename T>
  static T Do(T a) {
    return static_cast<T>(std::log2(double{a}));
  }
};

template <typename Op, typename T>
void Unary(Thread& t, const Instruction& i) {
  Set(t, i.to[0], Op::template Do<T>(Get<T>(t, i.from[0])));
}
// Subnormal numbers become zeros.
template <typename Op, typename T>
void UnaryFlushed(Thread& t, const Instruction& i) {
  const auto flush = [](T x) {
    return std::fpclassify(x) == FP_SUBNORMAL ? std::copysign(T{0}, x) : x;
  };
  Set(t, i.to[0], flush(Op::template Do<T>(flush(Get<T>(t, i.from[0])))));
}
template <typename Op, typename T>
void Binary(Thread& t, const Instruction& i) {
  Set(t, i.to[0],
      Op::template Do<T>(Get<T>(t, i.from[0]), Get<T>(t, i.from[1])));
}
template <typename T>
void MulWide(Thread& t, const Instruction& i) {
  using Wide = std::conditional_t<
      sizeof(T) == 2,
      std::conditional_t<std::is_signed_v<T>, int32_t, uint32_t>,
      std::conditional_t<std::is_signed_v<T>, int64_t, uint64_t>>;
  Set<Wide>(t, i.to[0], Wide{Get<T>(t, i.from[0])} * Get<T>(t, i.from[1]));
}
template <typename T>
void MadLow(Thread& t, const Instruction& i) {
  Set(t, i.to[0],
      Add::Do(Mul::Do(Get<T>(t, i.from[0]), Get<T>(t, i.from[1])),
              Get<T>(t, i.from[2])));
}
template <typename T>
void MadWide(Thread& t, const Instruction& i) {
  using Wide = std::conditional_t<std::is_signed_v<T>, int64_t, uint64_t>;
  Set<Wide>(t, i.to[0],
            Add::Do<Wide>(Wide{Get<T>(t, i.from[0])} * Get<T>(t, i.from[1]),
                          Get<Wide>(t, i.from[2])));
}
template <typename T, int kRounding>
void Fma(Thread& t, const Instruction& i) {
  volatile T a = Get<T>(t, i.from[0]), b = Get<T>(t, i.from[1]),
             c = Get<T>(t, i.from[2]);
  if constexpr (kRounding != FE_TONEAREST) std::fesetround(kRounding);
  volatile T sum = std::fma(a, b, c);
  if constexpr (kRounding != FE_TONEAREST) std::fesetround(FE_TONEAREST);
  Set<T>(t, i.to[0], sum);
}
template <typename T>
void ShiftLeft(Thread& t, const Instruction& i) {
  const uint32_t by = Get<uint32_t>(t, i.from[1]);
  Set<T>(
      t, i.to[0],
      by >= 8 * sizeof(T) ? T{0} : static_cast<T>(Get<T>(t, i.from[0]) << by));
}
template <typename T>
void ShiftRight(Thread& t, const Instruction& i) {
  const uint32_t by =
      std::min<uint32_t>(Get<uint32_t>(t, i.from[1]), 8 * sizeof(T));
  const T a = Get<T>(t, i.from[0]);
  Set<T>(t, i.to[0],
         by == 8 * sizeof(T) ? (a < T{0} ? static_cast<T>(-1) : T{0})
                             : static_cast<T>(a >> by));
}
template <bool kLeft>
void FunnelShift(Thread& t, const Instruction& i) {
  const uint64_t both =
      uint64_t{Get<uint32_t>(t, i.from[1])} << 32 | Get<uint32_t>(t, i.from[0]);
  const uint32_t by = Get<uint32_t>(t, i.from[2]) & 31;
  Set<uint32_t>(t, i.to[0],
                kLeft ? static_cast<uint32_t>(both << by >> 32)
                      : static_cast<uint32_t>(both >> by));
}
inline void Lop3(Thread& t, const Instruction& i) {
  const uint32_t a = Get<uint32_t>(t, i.from[0]),
                 b = Get<uint32_t>(t, i.from[1]),
                 c = Get<uint32_t>(t, i.from[2]),
                 table = Get<uint32_t>(t, i.from[3]);
  uint32_t result = 0;
  for (uint32_t row = 0; row < 8; ++row) {
    if ((table >> row & 1) == 0) continue;
    result |= (row & 4 ? a : ~a) & (row & 2 ? b : ~b) & (row & 1 ? c : ~c);
  }
  Set(t, i.to[0], result);
}
inline void Prmt(Thread& t, const Instruction& i) {
  const uint64_t bytes =
      uint64_t{Get<uint32_t>(t, i.from[1])} << 32 | Get<uint32_t>(t, i.from[0]);
  const uint32_t selector = Get<uint32_t>(t, i.from[2]);
  uint32_t result = 0;
  for (int b = 0; b < 4; ++b) {
    const uint32_t which = selector >> (4 * b) & 15;
    uint32_t byte = static_cast<uint32_t>(bytes >> (8 * (which & 7))) & 0xff;
    if (which & 8) byte = byte & 0x80 ? 0xff : 0;
    result |= byte << (8 * b);
  }
  Set(t, i.to[0], result);
}
// bfi d, a, b, position, length: a's lowest bits into b.
template <typename T>
void BitInsert(Thread& t, const Instruction& i) {
  const uint32_t position = Get<uint32_t>(t, i.from[2]) & 0xff;
  const uint32_t length = Get<uint32_t>(t, i.from[3]) & 0xff;
  const T a = Get<T>(t, i.from[0]), b = Get<T>(t, i.from[1]);
  const T ones = length >= 8 * sizeof(T) ? static_cast<T>(~T{0})
                                         : static_cast<T>((T{1} << length) - 1);
  if (position >= 8 * sizeof(T)) return Set<T>(t, i.to[0], b);
  const T mask = static_cast<T>(ones << position);
  Set<T>(t, i.to[0], (b & ~mask) | (static_cast<T>(a << position) & mask));
}
// bfe d, a, position, length.
template <typename T>
void BitExtract(Thread& t, const Instruction& i) {
  const int position = Get<uint32_t>(t, i.from[1]) & 0xff;
  const int length = Get<uint32_t>(t, i.from[2]) & 0xff;
  constexpr int kBits = 8 * sizeof(T);
  const T a = Get<T>(t, i.from[0]);
  T result = 0;
  const int last = std::min(position + length - 1, kBits - 1);
  const bool sign = std::is_signed_v<T> && length > 0 && (a >> last & 1);
  for (int bit = 0; bit < kBits; ++bit) {
    const bool one = bit < length && position + bit < kBits
                         ? (a >> (position + bit) & 1)
                         : sign;
    result = static_cast<T>(result | (Unsigned<T>{one} << bit));
  }
  Set<T>(t, i.to[0], result);
}

// ------------------------------------------------------------ predicates

enum class Compare : uint8_t {
  kEq,
  kNe,
  kLt,
  kLe,
  kGt,
  kGe,
  kEqu,
  kNeu,
  kLtu,
  kLeu,
  kGtu,
  kGeu,
  kNum,
  kNan,
};
template <typename T, Compare kCompare>
bool Holds(T a, T b) {
  const bool is_nan = a != a || b != b;
  switch (kCompare) {
    case Compare::kEq:
      return !is_nan && a == b;
    case Compare::kNe:
      return !is_nan && a != b;
    case Compare::kLt:
      return a < b;
    case Compare::kLe:
      return a <= b;
    case Compare::kGt:
      return a > b;
    case Compare::kGe:
      return a >= b;
    case Compare::kEqu:
      return is_nan || a == b;
    case Compare::kNeu:
      return is_nan || a != b;
    case Compare::kLtu:
      return is_nan || a < b;
    case Compare::kLeu:
      return is_nan || a <= b;
    case Compare::kGtu:
      return is_nan || a > b;
    case Compare::kGeu:
      return is_nan || a >= b;
    case Compare::kNum:
      return !is_nan;
    case Compare::kNan:
      return is_nan;
  }
  return false;
}
// setp.CMP[.BOOL] p|q, a, b[, c]: q is of the negated comparison.
enum class Combine : uint8_t { kNone, kAnd, kOr, kXor };
template <typename T, Compare kCompare, Combine kCombine>
void SetPredicate(Thread& t, const Instruction& i) {
  const bool holds =
      Holds<T, kCompare>(Get<T>(t, i.from[0]), Get<T>(t, i.from[1]));
  const bool other =
      kCombine == Combine::kNone
          ? false
          : ((t.slots[i.from[2]] & 1) != 0) != i.is_predicate_negated;
  const auto combine = [other](bool value) {
    switch (kCombine) {
      case Combine::kNone:
        return value;
      case Combine::kAnd:
        return value && other;
      case Combine::kOr:
        return value || other;
      case Combine::kXor:
        return value != other;
    }
    return value;
  };
  const uint64_t first = combine(holds), second = combine(!holds);
  t.slots[i.to[0]] = first;
  t.slots[i.to[1]] = second;
}
template <typename T>
void Select(Thread& t, const Instruction& i) {
  const bool is_first =
      ((t.slots[i.from[2]] & 1) != 0) != i.is_predicate_negated;
  Set<T>(t, i.to[0], Get<T>(t, i.from[is_first ? 0 : 1]));
}
template <typename Op>
void OfPredicates(Thread& t, const Instruction& i) {
  t.slots[i.to[0]] =
      Op::template Do<uint64_t>(t.slots[i.from[0]], t.slots[i.from[1]]) & 1;
}
inline void NotPredicate(Thread& t, const Instruction& i) {
  t.slots[i.to[0]] = ~t.slots[i.from[0]] & 1;
}
inline void MovePredicate(Thread& t, const Instruction& i) {
  t.slots[i.to[0]] = t.slots[i.from[0]] & 1;
}

// ------------------------------------------------------------ conversions

// To the next integer as `kHow` says.
enum class Round : uint8_t { kNone, kNearest, kZero, kDown, kUp };
template <Round kHow, typename T>
T ToInteger(T value) {
  switch (kHow) {
    case Round::kNone:
      return value;
    case Round::kNearest:
      return std::nearbyint(value);
    case Round::kZero:
      return std::trunc(value);
    case Round::kDown:
      return std::floor(value);
    case Round::kUp:
      return std::ceil(value);
  }
  return value;
}
template <typename To, typename From, Round kHow, bool kSaturates>
void Convert(Thread& t, const Instruction& i) {
  From value = Get<From>(t, i.from[0]);
  if constexpr (std::is_floating_point_v<From>) {
    value = ToInteger<kHow>(value);
    if constexpr (std::is_integral_v<To>) {
      // Clamped; a NaN is 0.
      To result;
      if (value != value) {
        result = 0;
      } else if (value <= static_cast<From>(std::numeric_limits<To>::min())) {
        result = std::numeric_limits<To>::min();
      } else if (value >= static_cast<From>(std::numeric_limits<To>::max())) {
        result = std::numeric_limits<To>::max();
      } else {
        result = static_cast<To>(value);
      }
      return Set<To>(t, i.to[0], result);
    }
  }
  To result = static_cast<To>(value);
  if constexpr (kSaturates && std::is_floating_point_v<To>) {
    result = result != result ? To{0} : std::clamp(result, To{0}, To{1});
  }
  Set<To>(t, i.to[0], result);
}
inline uint32_t Pair(uint16_t low, uint16_t high) {
  return low | uint32_t{high} << 16;
}
inline void HalfToF32(Thread& t, const Instruction& i) {
  Set(t, i.to[0], HalfToFloat(Get<uint16_t>(t, i.from[0])));
}
inline void Bf16ToF32(Thread& t, const Instruction& i) {
  Set(t, i.to[0], Bf16ToFloat(Get<uint16_t>(t, i.from[0])));
}
inline void F32ToHalf(Thread& t, const Instruction& i) {
  Set(t, i.to[0], FloatToHalf(Get<float>(t, i.from[0])));
}
inline void F32ToBf16(Thread& t, const Instruction& i) {
  Set(t, i.to[0], FloatToBf16(Get<float>(t, i.from[0])));
}
// The first operand is the higher half.
inline void F32ToHalf2(Thread& t, const Instruction& i) {
  Set(t, i.to[0],
      Pair(FloatToHalf(Get<float>(t, i.from[1])),
           FloatToHalf(Get<float>(t, i.from[0]))));
}
inline void F32ToBf16x2(Thread& t, const Instruction& i) {
  Set(t, i.to[0],
      Pair(FloatToBf16(Get<float>(t, i.from[1])),
           FloatToBf16(Get<float>(t, i.from[0]))));
}
inline void F32ToE4M3x2(Thread& t, const Instruction& i) {
  Set<uint16_t>(
      t, i.to[0],
      static_cast<uint16_t>(FloatToE4M3(Get<float>(t, i.from[1])) |
                            FloatToE4M3(Get<float>(t, i.from[0])) << 8));
}
inline void E4M3x2ToHalf2(Thread& t, const Instruction& i) {
  const uint16_t pair = Get<uint16_t>(t, i.from[0]);
  Set(t, i.to[0],
      Pair(FloatToHalf(E4M3ToFloat(pair & 0xff)),
           FloatToHalf(E4M3ToFloat(pair >> 8))));
}

// Of two 16-bit floats each, rounded once (f32 holds products and sums of two
// exactly enough: 24 >= 2 * 11 + 2).
template <typename Op, float (*kTo)(uint16_t), uint16_t (*kFrom)(float)>
void BinaryPair(Thread& t, const Instruction& i) {
  const uint32_t a = Get<uint32_t>(t, i.from[0]);
  const uint32_t b = Get<uint32_t>(t, i.from[1]);
  const auto half = [&](int shift) {
    return kFrom(
        Op::template Do<float>(kTo(static_cast<uint16_t>(a >> shift)),
                               kTo(static_cast<uint16_t>(b >> shift))));
  };
  Set(t, i.to[0], Pair(half(0), half(16)));
}
template <float (*kTo)(uint16_t), uint16_t (*kFrom)(float)>
void FmaPair(Thread& t, const Instruction& i) {
  const uint32_t a = Get<uint32_t>(t, i.from[0]);
  const uint32_t b = Get<uint32_t>(t, i.from[1]);
  const uint32_t c = Get<uint32_t>(t, i.from[2]);
  const auto half = [&](int shift) {
    const auto of = [shift](uint32_t pair) {
      return double{kTo(static_cast<uint16_t>(pair >> shift))};
    };
    return kFrom(static_cast<float>(of(a) * of(b) + of(c)));
  };
  Set(t, i.to[0], Pair(half(0), half(16)));
}

}  // namespace quire::ptx

#endif  // QUIRE_TESTS_GPU_PTX_NUMBER_INSTRUCTIONS_H_
