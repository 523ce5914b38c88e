// Which function executes an instruction: PTX ISA 9.0, chapter 9, as far as
// nvcc makes use of it for our kernels.
#include <cfenv>
#include <cstdint>
#include <set>
#include <string>
#include <type_traits>
#include <vector>

#include "absl/strings/str_cat.h"
#include "tests/gpu/ptx/memory_instructions.h"
#include "tests/gpu/ptx/number_instructions.h"
#include "tests/gpu/ptx/ptx_machine.h"
#include "tests/gpu/ptx/ptx_program.h"
#include "tests/gpu/ptx/warpgroup_instructions.h"

namespace quire::ptx {
namespace {

using Handler = Instruction::Handler;

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

// "cvt.rn.f16.f32": op "cvt", type "f32", and between them modifiers.
struct Operation {
  const std::vector<std::string>& name;
  std::string op;
  std::string type;
  std::set<std::string> modifiers;

  bool has(const char* modifier) const { return modifiers.contains(modifier); }
};

Handler ControlOf(const Operation& operation) {
  const std::string& op = operation.op;
  const std::string& type = operation.type;
  if (op == "ret") return &Return;
  if (op == "exit") return &Exit;
  if (op == "trap") return &Trap;
  if (op == "bra") return &Branch;
  if (op == "call") return &Call;
  if (op == "fence" && operation.has("proxy")) {
    return operation.has("async") && type == "shared::cta" ? &FenceProxy
                                                           : nullptr;
  }
  if (op == "membar" || op == "fence" || op == "griddepcontrol") {
    return &Nothing;
  }
  if (op == "bar" || op == "barrier") {
    return type == "sync" ? &Barrier : nullptr;
  }
  return nullptr;
}

Handler MoveOf(const Operation& operation, const Instruction& instruction) {
  const std::string& op = operation.op;
  const std::string& type = operation.type;
  if (op == "cvta") {
    const bool is_shared = operation.has("shared");
    if (!is_shared && !operation.has("global") && !operation.has("local")) {
      return nullptr;
    }
    if (!is_shared) return &Unary<Move, uint64_t>;
    return operation.has("to") ? &GenericToShared : &SharedToGeneric;
  }
  if (op == "cp") {
    if (type == "commit_group") return &CpAsyncCommit;
    if (type == "wait_group") return &CpAsyncWaitGroup;
    if (type == "wait_all") return &CpAsyncWaitAll;
    return operation.has("async") && operation.has("shared") ? &CpAsync
                                                             : nullptr;
  }
  if (op == "ld" || op == "st") {
    Space space;
    if (!SpaceOf(operation.name, space)) return nullptr;
    const bool is_load = op == "ld";
    return ForMemory(type, [&](auto v) {
      using T = decltype(v);
      return ForSpace(space, [&](auto s) -> Handler {
        constexpr Space kSpace = decltype(s)::value;
        return is_load ? &Load<T, kSpace> : &Store<T, kSpace>;
      });
    });
  }
  if (op == "atom" || op == "red") return AtomOf(operation.name);
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
  return nullptr;
}

Handler BitsOf(const Operation& operation) {
  const std::string& op = operation.op;
  const std::string& type = operation.type;
  if (op == "lop3") return &Lop3;
  if (op == "prmt") return type == "b32" ? &Prmt : nullptr;
  if (op == "shf") {
    return operation.has("l") ? &FunnelShift<true> : &FunnelShift<false>;
  }
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
    return operation.has("shiftamt") ? &Unary<Bfind<true>, uint32_t>
                                     : &Unary<Bfind<false>, uint32_t>;
  }
  if (op == "brev") {
    return is_unsigned32 ? &Unary<Brev, uint32_t> : &Unary<Brev, uint64_t>;
  }
  if (op == "not") {
    if (type == "pred") return &NotPredicate;
    return ForInteger(type, [](auto v) { return &Unary<Not, decltype(v)>; });
  }
  return nullptr;
}

Handler NumbersOf(const Operation& operation) {
  const std::vector<std::string>& name = operation.name;
  const std::string& op = operation.op;
  const std::string& type = operation.type;
  const bool is_flushed = operation.has("ftz");
  if (op == "setp") {
    Combine combine = Combine::kNone;
    if (operation.has("and")) combine = Combine::kAnd;
    if (operation.has("or")) combine = Combine::kOr;
    if (operation.has("xor")) combine = Combine::kXor;
    return is_flushed ? nullptr : SetpOf(name[1], type, combine);
  }
  if (op == "cvt") {
    if (name.size() < 3 || is_flushed) return nullptr;
    return CvtOf(name[name.size() - 2], type,
                 std::set<std::string>(name.begin() + 1, name.end() - 2));
  }
  if (op == "neg" || op == "abs") {
    const bool is_neg = op == "neg";
    if (is_flushed) return nullptr;
    return ForNumber(type, [&](auto v) -> Handler {
      return is_neg ? &Unary<Neg, decltype(v)> : &Unary<Abs, decltype(v)>;
    });
  }
  // Rounding to nearest is what the host does.
  if (operation.has("rz") || operation.has("rp") ||
      (operation.has("rm") && op != "fma")) {
    return nullptr;
  }
  if (op == "rcp") return UnaryOfFloat<Rcp>(type, is_flushed);
  if (op == "sqrt") return UnaryOfFloat<Sqrt>(type, is_flushed);
  if (op == "rsqrt") return UnaryOfFloat<Rsqrt>(type, is_flushed);
  if (op == "ex2") return UnaryOfFloat<Ex2>(type, is_flushed);
  if (op == "lg2") return UnaryOfFloat<Lg2>(type, is_flushed);
  if (is_flushed) return nullptr;
  if (op == "fma") {
    if (type == "f16x2") return &FmaPair<&HalfToFloat, &FloatToHalf>;
    if (type == "bf16x2") return &FmaPair<&Bf16ToFloat, &FloatToBf16>;
    const bool is_down = operation.has("rm");
    return ForFloat(type, [&](auto v) -> Handler {
      using T = decltype(v);
      return is_down ? &Fma<T, FE_DOWNWARD> : &Fma<T, FE_TONEAREST>;
    });
  }
  if (op == "mul" && operation.has("wide")) {
    return ForInteger(type, [](auto v) -> Handler {
      if constexpr (sizeof(v) == 8)
        return nullptr;
      else
        return &MulWide<decltype(v)>;
    });
  }
  if (op == "mul" && operation.has("hi")) return BinaryOf<MulHigh>(type);
  if (op == "mad") {
    const bool is_wide = operation.has("wide"), is_low = operation.has("lo");
    return ForInteger(type, [&](auto v) -> Handler {
      using T = decltype(v);
      if (is_low) return &MadLow<T>;
      if constexpr (sizeof(T) == 4) {
        if (is_wide) return &MadWide<T>;
      }
      return nullptr;
    });
  }
  if (op == "add") return operation.has("cc") ? nullptr : BinaryOf<Add>(type);
  if (op == "sub") return operation.has("cc") ? nullptr : BinaryOf<Sub>(type);
  if (op == "mul") return BinaryOf<Mul>(type);
  if (op == "div") return BinaryOf<Div>(type);
  if (op == "rem") return BinaryOf<Rem>(type);
  if (op == "min") return operation.has("NaN") ? nullptr : BinaryOf<Min>(type);
  if (op == "max") return operation.has("NaN") ? nullptr : BinaryOf<Max>(type);
  if (op == "and") return BinaryOf<And>(type);
  if (op == "or") return BinaryOf<Or>(type);
  if (op == "xor") return BinaryOf<Xor>(type);
  if (op == "copysign") return BinaryOf<CopySign>(type);
  return nullptr;
}

// Null: not executed here.
Handler HandlerOf(const std::vector<std::string>& name,
                  const Instruction& instruction) {
  const Operation operation = {
      name, name[0], name.back(),
      std::set<std::string>(name.begin() + 1,
                            name.end() - (name.size() > 1 ? 1 : 0))};
  if (const Handler handler = ControlOf(operation)) return handler;
  if (const Handler handler = MoveOf(operation, instruction)) {
    return handler;
  }
  if (const Handler handler = BitsOf(operation)) return handler;
  return NumbersOf(operation);
}

}  // namespace

bool FindHandler(const std::vector<std::string>& name, Instruction& found) {
  std::string text = name[0];
  for (size_t p = 1; p < name.size(); ++p) absl::StrAppend(&text, ".", name[p]);
  found.collective = FindCollective(text);
  if (found.collective != nullptr) {
    found.has_mask =
        name[0] != "mma" && name[0] != "ldmatrix" && text != "bar.arrive";
    return true;
  }
  found.collective = FindWarpgroupCollective(text, found);
  if (found.collective != nullptr) return true;
  found.handler = HandlerOf(name, found);
  return found.handler != nullptr;
}

}  // namespace quire::ptx
