// What each instruction does. PTX ISA 9.0, chapter 9; the fragments of matrices
// are those of section "Warp-level matrix instructions".
#include <algorithm>
#include <atomic>
#include <bit>
#include <cfenv>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <map>
#include <set>
#include <string>
#include <type_traits>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "kernels/dtype.h"
#include "tests/gpu/ptx/ptx_machine.h"
#include "tests/gpu/ptx/ptx_program.h"

namespace quire::ptx {
namespace {

using Handler = Instruction::Handler;

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
void Lop3(Thread& t, const Instruction& i) {
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
void Prmt(Thread& t, const Instruction& i) {
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
void NotPredicate(Thread& t, const Instruction& i) {
  t.slots[i.to[0]] = ~t.slots[i.from[0]] & 1;
}
void MovePredicate(Thread& t, const Instruction& i) {
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
uint32_t Pair(uint16_t low, uint16_t high) {
  return low | uint32_t{high} << 16;
}
void HalfToF32(Thread& t, const Instruction& i) {
  Set(t, i.to[0], HalfToFloat(Get<uint16_t>(t, i.from[0])));
}
void Bf16ToF32(Thread& t, const Instruction& i) {
  Set(t, i.to[0], Bf16ToFloat(Get<uint16_t>(t, i.from[0])));
}
void F32ToHalf(Thread& t, const Instruction& i) {
  Set(t, i.to[0], FloatToHalf(Get<float>(t, i.from[0])));
}
void F32ToBf16(Thread& t, const Instruction& i) {
  Set(t, i.to[0], FloatToBf16(Get<float>(t, i.from[0])));
}
// The first operand is the higher half.
void F32ToHalf2(Thread& t, const Instruction& i) {
  Set(t, i.to[0],
      Pair(FloatToHalf(Get<float>(t, i.from[1])),
           FloatToHalf(Get<float>(t, i.from[0]))));
}
void F32ToBf16x2(Thread& t, const Instruction& i) {
  Set(t, i.to[0],
      Pair(FloatToBf16(Get<float>(t, i.from[1])),
           FloatToBf16(Get<float>(t, i.from[0]))));
}
void F32ToE4M3x2(Thread& t, const Instruction& i) {
  Set<uint16_t>(
      t, i.to[0],
      static_cast<uint16_t>(FloatToE4M3(Get<float>(t, i.from[1])) |
                            FloatToE4M3(Get<float>(t, i.from[0])) << 8));
}
void E4M3x2ToHalf2(Thread& t, const Instruction& i) {
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
  }
  Set<T>(t, i.to[0], old);
}

// Between the offsets of shared memory and generic addresses.
void SharedToGeneric(Thread& t, const Instruction& i) {
  t.slots[i.to[0]] =
      t.slots[i.from[0]] + reinterpret_cast<uint64_t>(t.cta->shared.data());
}
void GenericToShared(Thread& t, const Instruction& i) {
  t.slots[i.to[0]] =
      t.slots[i.from[0]] - reinterpret_cast<uint64_t>(t.cta->shared.data());
}

void CpAsync(Thread& t, const Instruction& i) {
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
  if (t.cta->options.has_late_copies) {
    t.copies.push_back({to, from, num_bytes, t.num_groups});
  } else if (from != nullptr) {
    std::memcpy(to, from, num_bytes);
  } else {
    std::memset(to, 0, num_bytes);
  }
}
void CpAsyncCommit(Thread& t, const Instruction& /*i*/) { ++t.num_groups; }
// All but the last `n` groups have been copied.
void FinishCopies(Thread& t, int end) {
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
}
void CpAsyncWaitGroup(Thread& t, const Instruction& i) {
  FinishCopies(t, t.num_groups - Get<int32_t>(t, i.from[0]));
}
void CpAsyncWaitAll(Thread& t, const Instruction& /*i*/) {
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

void Nothing(Thread& /*t*/, const Instruction& /*i*/) {}
void Branch(Thread& t, const Instruction& i) { t.pc = i.target; }
void Exit(Thread& t, const Instruction& /*i*/) {
  t.state = Thread::State::kDone;
}
void Trap(Thread& t, const Instruction& i) { Fault(t, i, "a trap"); }
void Barrier(Thread& t, const Instruction& i) {
  t.state = Thread::State::kAtBarrier;
  t.barrier = Get<int32_t>(t, i.from[0]);
  t.barrier_threads = i.num_from > 1 ? Get<int32_t>(t, i.from[1]) : 0;
  if (t.barrier < 0 || t.barrier > 15 || t.barrier_threads % 32 != 0) {
    Fault(t, i, "no such barrier");
  }
}
void Call(Thread& t, const Instruction& i) {
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
void Return(Thread& t, const Instruction& i) {
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

// ------------------------------------------------------------ warps

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

// ------------------------------------------------------------ names

// `function` is a generic lambda of a value of the type.
template <typename F>
Handler ForInteger(const std::string& type, const F& function) {
  if (type == "u16" || type == "b16") return function(uint16_t{});
  if (type == "u32" || type == "b32") return function(uint32_t{});
  if (type == "u64" || type == "b64") return function(uint64_t{});
  if (type == "s16") return function(int16_t{});
  if (type == "s32") return function(int32_t{});
  if (type == "s64") return function(int64_t{});
  return nullptr;
}
template <typename F>
Handler ForFloat(const std::string& type, const F& function) {
  if (type == "f32") return function(float{});
  if (type == "f64") return function(double{});
  return nullptr;
}
template <typename F>
Handler ForNumber(const std::string& type, const F& function) {
  const Handler handler = ForInteger(type, function);
  return handler != nullptr ? handler : ForFloat(type, function);
}
template <typename F>
Handler ForMemory(const std::string& type, const F& function) {
  if (type == "u8" || type == "b8") return function(uint8_t{});
  if (type == "s8") return function(int8_t{});
  return ForNumber(type, function);
}

template <typename Op>
Handler BinaryOf(const std::string& type) {
  if constexpr (std::is_same_v<Op, CopySign>) {
    return ForFloat(type, [](auto v) { return &Binary<Op, decltype(v)>; });
  } else if constexpr (std::is_same_v<Op, And> || std::is_same_v<Op, Or> ||
                       std::is_same_v<Op, Xor>) {
    if (type == "pred") return &OfPredicates<Op>;
    return ForInteger(type, [](auto v) { return &Binary<Op, decltype(v)>; });
  } else if constexpr (std::is_same_v<Op, Rem> || std::is_same_v<Op, MulHigh>) {
    return ForInteger(type, [](auto v) { return &Binary<Op, decltype(v)>; });
  } else {
    if constexpr (!std::is_same_v<Op, Div> && !std::is_same_v<Op, Min> &&
                  !std::is_same_v<Op, Max>) {
      if (type == "f16x2") return &BinaryPair<Op, &HalfToFloat, &FloatToHalf>;
      if (type == "bf16x2") return &BinaryPair<Op, &Bf16ToFloat, &FloatToBf16>;
    }
    return ForNumber(type, [](auto v) { return &Binary<Op, decltype(v)>; });
  }
}
template <typename Op>
Handler UnaryOfFloat(const std::string& type, bool is_flushed) {
  return ForFloat(type, [&](auto v) -> Handler {
    if (is_flushed) return &UnaryFlushed<Op, decltype(v)>;
    return &Unary<Op, decltype(v)>;
  });
}

template <Compare kCompare>
Handler CompareOf(const std::string& type, Combine combine) {
  const auto of = [&](auto v) -> Handler {
    using T = decltype(v);
    switch (combine) {
      case Combine::kNone:
        return &SetPredicate<T, kCompare, Combine::kNone>;
      case Combine::kAnd:
        return &SetPredicate<T, kCompare, Combine::kAnd>;
      case Combine::kOr:
        return &SetPredicate<T, kCompare, Combine::kOr>;
      case Combine::kXor:
        return &SetPredicate<T, kCompare, Combine::kXor>;
    }
    return nullptr;
  };
  return ForNumber(type, of);
}
Handler SetpOf(const std::string& compare, const std::string& type,
               Combine combine) {
  if (compare == "eq") return CompareOf<Compare::kEq>(type, combine);
  if (compare == "ne") return CompareOf<Compare::kNe>(type, combine);
  if (compare == "lt" || compare == "lo") {
    return CompareOf<Compare::kLt>(type, combine);
  }
  if (compare == "le" || compare == "ls") {
    return CompareOf<Compare::kLe>(type, combine);
  }
  if (compare == "gt" || compare == "hi") {
    return CompareOf<Compare::kGt>(type, combine);
  }
  if (compare == "ge" || compare == "hs") {
    return CompareOf<Compare::kGe>(type, combine);
  }
  if (compare == "equ") return CompareOf<Compare::kEqu>(type, combine);
  if (compare == "neu") return CompareOf<Compare::kNeu>(type, combine);
  if (compare == "ltu") return CompareOf<Compare::kLtu>(type, combine);
  if (compare == "leu") return CompareOf<Compare::kLeu>(type, combine);
  if (compare == "gtu") return CompareOf<Compare::kGtu>(type, combine);
  if (compare == "geu") return CompareOf<Compare::kGeu>(type, combine);
  if (compare == "num") return CompareOf<Compare::kNum>(type, combine);
  if (compare == "nan") return CompareOf<Compare::kNan>(type, combine);
  return nullptr;
}

template <typename To, typename From>
Handler ConvertOf(const std::set<std::string>& modifiers) {
  const bool saturates = modifiers.contains("sat");
  const auto of = [&](auto round) -> Handler {
    constexpr Round kHow = decltype(round)::value;
    return saturates ? &Convert<To, From, kHow, true>
                     : &Convert<To, From, kHow, false>;
  };
  using std::integral_constant;
  if (modifiers.contains("rzi")) {
    return of(integral_constant<Round, Round::kZero>{});
  }
  if (modifiers.contains("rni")) {
    return of(integral_constant<Round, Round::kNearest>{});
  }
  if (modifiers.contains("rmi")) {
    return of(integral_constant<Round, Round::kDown>{});
  }
  if (modifiers.contains("rpi")) {
    return of(integral_constant<Round, Round::kUp>{});
  }
  return of(integral_constant<Round, Round::kNone>{});
}
Handler CvtOf(const std::string& to, const std::string& from,
              const std::set<std::string>& modifiers) {
  for (const std::string& modifier : modifiers) {
    if (modifier != "rn" && modifier != "rzi" && modifier != "rni" &&
        modifier != "rmi" && modifier != "rpi" && modifier != "sat" &&
        modifier != "satfinite") {
      return nullptr;
    }
  }
  const bool saturates = modifiers.contains("satfinite");
  if (to == "e4m3x2" && from == "f32") {
    return saturates ? &F32ToE4M3x2 : nullptr;
  }
  if (saturates) return nullptr;
  if (to == "f16x2") {
    return from == "f32"      ? &F32ToHalf2
           : from == "e4m3x2" ? &E4M3x2ToHalf2
                              : nullptr;
  }
  if (to == "bf16x2" && from == "f32") return &F32ToBf16x2;
  if (to == "f16" && from == "f32") return &F32ToHalf;
  if (to == "bf16" && from == "f32") return &F32ToBf16;
  if (to == "f32" && from == "f16") return &HalfToF32;
  if (to == "f32" && from == "bf16") return &Bf16ToF32;
  return ForMemory(to, [&](auto t) {
    using To = decltype(t);
    return ForMemory(from, [&](auto f) -> Handler {
      using From = decltype(f);
      if (modifiers.contains("sat") && !std::is_floating_point_v<To>) {
        return nullptr;
      }
      return ConvertOf<To, From>(modifiers);
    });
  });
}

// Of ld, st, atom: the space, and whether all else is known not to matter here.
bool SpaceOf(const std::vector<std::string>& name, Space& space) {
  space = Space::kGeneric;
  for (size_t p = 1; p + 1 < name.size(); ++p) {
    const std::string& part = name[p];
    if (part == "global") {
      space = Space::kGlobal;
    } else if (part == "shared" || part == "shared::cta") {
      space = Space::kShared;
    } else if (part == "local") {
      space = Space::kLocal;
    } else if (part == "param") {
      space = Space::kParam;
    } else if (part != "nc" && part != "v2" && part != "v4" &&
               part != "volatile" && part != "relaxed" && part != "acquire" &&
               part != "release" && part != "acq_rel" && part != "gpu" &&
               part != "sys" && part != "cta" && part != "L1::no_allocate" &&
               part != "L2::256B" && part != "L2::128B" && part != "add" &&
               part != "max" && part != "min" && part != "cas" &&
               part != "exch" && part != "or" && part != "and") {
      return false;
    }
  }
  return true;
}
template <typename F>
Handler ForSpace(Space space, const F& function) {
  using std::integral_constant;
  switch (space) {
    case Space::kGeneric:
      return function(integral_constant<Space, Space::kGeneric>{});
    case Space::kGlobal:
      return function(integral_constant<Space, Space::kGlobal>{});
    case Space::kShared:
      return function(integral_constant<Space, Space::kShared>{});
    case Space::kLocal:
      return function(integral_constant<Space, Space::kLocal>{});
    case Space::kParam:
      return function(integral_constant<Space, Space::kParam>{});
  }
  return nullptr;
}
Handler AtomOf(const std::vector<std::string>& name) {
  Space space;
  if (!SpaceOf(name, space)) return nullptr;
  const std::set<std::string> parts(name.begin() + 1, name.end() - 1);
  return ForInteger(name.back(), [&](auto v) {
    using T = decltype(v);
    return ForSpace(space, [&](auto s) -> Handler {
      constexpr Space kSpace = decltype(s)::value;
      if (parts.contains("cas")) return &AtomicCas<T, kSpace>;
      if (parts.contains("add")) return &Atomic<Add, T, kSpace>;
      if (parts.contains("max")) return &Atomic<Max, T, kSpace>;
      if (parts.contains("min")) return &Atomic<Min, T, kSpace>;
      if (parts.contains("or")) return &Atomic<Or, T, kSpace>;
      if (parts.contains("and")) return &Atomic<And, T, kSpace>;
      if (parts.contains("exch")) return &Atomic<Exchange, T, kSpace>;
      return nullptr;
    });
  });
}

Instruction::Collective CollectiveOf(const std::string& text) {
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

Handler HandlerOf(const std::vector<std::string>& name,
                  const Instruction& instruction) {
  const std::string& op = name[0];
  const std::string& type = name.back();
  const std::set<std::string> modifiers(name.begin() + 1,
                                        name.end() - (name.size() > 1 ? 1 : 0));
  const auto has = [&](const char* modifier) {
    return modifiers.contains(modifier);
  };
  const bool is_flushed = has("ftz");
  if (op == "ret") return &Return;
  if (op == "exit") return &Exit;
  if (op == "trap") return &Trap;
  if (op == "bra") return &Branch;
  if (op == "call") return &Call;
  if (op == "membar" || op == "fence" || op == "griddepcontrol") {
    return &Nothing;
  }
  if (op == "bar" || op == "barrier") {
    return type == "sync" ? &Barrier : nullptr;
  }
  if (op == "cvta") {
    const bool is_shared = has("shared");
    if (!is_shared && !has("global") && !has("local")) return nullptr;
    if (!is_shared) return &Unary<Move, uint64_t>;
    return has("to") ? &GenericToShared : &SharedToGeneric;
  }
  if (op == "cp") {
    if (type == "commit_group") return &CpAsyncCommit;
    if (type == "wait_group") return &CpAsyncWaitGroup;
    if (type == "wait_all") return &CpAsyncWaitAll;
    return has("async") && has("shared") ? &CpAsync : nullptr;
  }
  if (op == "ld" || op == "st") {
    Space space;
    if (!SpaceOf(name, space)) return nullptr;
    const bool is_load = op == "ld";
    return ForMemory(type, [&](auto v) {
      using T = decltype(v);
      return ForSpace(space, [&](auto s) -> Handler {
        constexpr Space kSpace = decltype(s)::value;
        return is_load ? &Load<T, kSpace> : &Store<T, kSpace>;
      });
    });
  }
  if (op == "atom" || op == "red") return AtomOf(name);
  if (op == "mov") {
    if (type == "pred") return &MovePredicate;
    if (instruction.num_elements > 1) {
      const bool is_unpack = instruction.num_from == 1;
      return ForInteger(type, [&](auto v) -> Handler {
        return is_unpack ? &MoveUnpack<decltype(v)> : &MovePack<decltype(v)>;
      });
    }
    return ForNumber(type, [](auto v) { return &Unary<Move, decltype(v)>; });
  }
  if (op == "selp") {
    return ForNumber(type, [](auto v) { return &Select<decltype(v)>; });
  }
  if (op == "setp") {
    Combine combine = Combine::kNone;
    if (has("and")) combine = Combine::kAnd;
    if (has("or")) combine = Combine::kOr;
    if (has("xor")) combine = Combine::kXor;
    return is_flushed ? nullptr : SetpOf(name[1], type, combine);
  }
  if (op == "cvt") {
    if (name.size() < 3 || is_flushed) return nullptr;
    return CvtOf(name[name.size() - 2], type,
                 std::set<std::string>(name.begin() + 1, name.end() - 2));
  }
  if (op == "lop3") return &Lop3;
  if (op == "prmt") return type == "b32" ? &Prmt : nullptr;
  if (op == "shf") return has("l") ? &FunnelShift<true> : &FunnelShift<false>;
  if (op == "shl") {
    return ForInteger(type, [](auto v) { return &ShiftLeft<decltype(v)>; });
  }
  if (op == "shr") {
    return ForInteger(type, [](auto v) { return &ShiftRight<decltype(v)>; });
  }
  const bool is_unsigned32 = type == "b32" || type == "u32";
  if (op == "bfi") {
    return is_unsigned32   ? &BitInsert<uint32_t>
           : type == "b64" ? &BitInsert<uint64_t>
                           : nullptr;
  }
  if (op == "bfe") {
    return ForInteger(type, [](auto v) { return &BitExtract<decltype(v)>; });
  }
  if (op == "popc") {
    return is_unsigned32 ? &Unary<Popc, uint32_t> : &Unary<Popc, uint64_t>;
  }
  if (op == "clz") {
    return is_unsigned32 ? &Unary<Clz, uint32_t> : &Unary<Clz, uint64_t>;
  }
  if (op == "bfind" && is_unsigned32) {
    return has("shiftamt") ? &Unary<Bfind<true>, uint32_t>
                           : &Unary<Bfind<false>, uint32_t>;
  }
  if (op == "brev") {
    return is_unsigned32 ? &Unary<Brev, uint32_t> : &Unary<Brev, uint64_t>;
  }
  if (op == "not") {
    if (type == "pred") return &NotPredicate;
    return ForInteger(type, [](auto v) { return &Unary<Not, decltype(v)>; });
  }
  if (op == "neg" || op == "abs") {
    const bool is_neg = op == "neg";
    if (is_flushed) return nullptr;
    return ForNumber(type, [&](auto v) -> Handler {
      return is_neg ? &Unary<Neg, decltype(v)> : &Unary<Abs, decltype(v)>;
    });
  }
  // Rounding to nearest is what the host does.
  if (has("rz") || has("rp") || (has("rm") && op != "fma")) return nullptr;
  if (op == "rcp") return UnaryOfFloat<Rcp>(type, is_flushed);
  if (op == "sqrt") return UnaryOfFloat<Sqrt>(type, is_flushed);
  if (op == "rsqrt") return UnaryOfFloat<Rsqrt>(type, is_flushed);
  if (op == "ex2") return UnaryOfFloat<Ex2>(type, is_flushed);
  if (op == "lg2") return UnaryOfFloat<Lg2>(type, is_flushed);
  if (is_flushed) return nullptr;
  if (op == "fma") {
    if (type == "f16x2") return &FmaPair<&HalfToFloat, &FloatToHalf>;
    if (type == "bf16x2") return &FmaPair<&Bf16ToFloat, &FloatToBf16>;
    const bool is_down = has("rm");
    return ForFloat(type, [&](auto v) -> Handler {
      using T = decltype(v);
      return is_down ? &Fma<T, FE_DOWNWARD> : &Fma<T, FE_TONEAREST>;
    });
  }
  if (op == "mul" && has("wide")) {
    return ForInteger(type, [](auto v) -> Handler {
      if constexpr (sizeof(v) == 8)
        return nullptr;
      else
        return &MulWide<decltype(v)>;
    });
  }
  if (op == "mul" && has("hi")) return BinaryOf<MulHigh>(type);
  if (op == "mad") {
    const bool is_wide = has("wide"), is_low = has("lo");
    return ForInteger(type, [&](auto v) -> Handler {
      using T = decltype(v);
      if (is_low) return &MadLow<T>;
      if constexpr (sizeof(T) == 4) {
        if (is_wide) return &MadWide<T>;
      }
      return nullptr;
    });
  }
  if (op == "add") return has("cc") ? nullptr : BinaryOf<Add>(type);
  if (op == "sub") return has("cc") ? nullptr : BinaryOf<Sub>(type);
  if (op == "mul") return BinaryOf<Mul>(type);
  if (op == "div") return BinaryOf<Div>(type);
  if (op == "rem") return BinaryOf<Rem>(type);
  if (op == "min") return has("NaN") ? nullptr : BinaryOf<Min>(type);
  if (op == "max") return has("NaN") ? nullptr : BinaryOf<Max>(type);
  if (op == "and") return BinaryOf<And>(type);
  if (op == "or") return BinaryOf<Or>(type);
  if (op == "xor") return BinaryOf<Xor>(type);
  if (op == "copysign") return BinaryOf<CopySign>(type);
  return nullptr;
}

}  // namespace

bool FindHandler(const std::vector<std::string>& name, Instruction& found) {
  std::string text = name[0];
  for (size_t p = 1; p < name.size(); ++p) absl::StrAppend(&text, ".", name[p]);
  found.collective = CollectiveOf(text);
  if (found.collective != nullptr) {
    found.has_mask = name[0] != "mma" && name[0] != "ldmatrix";
    return true;
  }
  found.handler = HandlerOf(name, found);
  return found.handler != nullptr;
}

}  // namespace quire::ptx
