// The operators of Runtime: slices and arithmetic.
#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "tokenizer/jinja/format.h"
#include "tokenizer/jinja/runtime.h"

namespace quire::jinja {
namespace {

// Start, stop and step of a slice over `length` items, as Python clamps them.
// False if a bound is not an integer or none.
struct SliceBounds {
  int64_t start;
  int64_t count;
  int64_t step;
};

bool ResolveSlice(const Value& start, const Value& stop, const Value& step,
                  int64_t length, SliceBounds* bounds) {
  for (const Value* value : {&start, &stop, &step}) {
    if (!value->IsInteger() && !value->Is(Kind::kNone)) return false;
  }
  bounds->step = step.IsInteger() ? step.integer() : 1;
  if (bounds->step == 0) return false;
  // A larger step selects the same one item.
  bounds->step = std::clamp<int64_t>(bounds->step, -length - 1, length + 1);
  const bool is_forward = bounds->step > 0;
  const auto clamp = [&](const Value& value, int64_t absent) {
    if (!value.IsInteger()) return absent;
    int64_t index = value.integer();
    if (index < 0) index += length;
    return is_forward ? std::clamp<int64_t>(index, 0, length)
                      : std::clamp<int64_t>(index, -1, length - 1);
  };
  bounds->start = clamp(start, is_forward ? 0 : length - 1);
  const int64_t end = clamp(stop, is_forward ? length : -1);
  const int64_t span = is_forward ? end - bounds->start : bounds->start - end;
  const int64_t stride = std::abs(bounds->step);
  bounds->count = span <= 0 ? 0 : (span + stride - 1) / stride;
  return true;
}

}  // namespace

Value Runtime::Slice(const Value& object, const Value& start, const Value& stop,
                     const Value& step) {
  if (object.IsUndefined()) return FailUndefined(object);
  if (step.IsInteger() && step.integer() == 0) {
    return Fail("slice step cannot be zero");
  }
  SliceBounds bounds;
  if (object.IsString()) {
    const Text& text = object.text();
    if (!ChargeBytes(text.size())) return Value();
    const std::vector<size_t> offsets = CodePointOffsets(text.bytes());
    if (!ResolveSlice(start, stop, step, offsets.size() - 1, &bounds)) {
      return Undefined("slice indices must be integers");
    }
    Text result;
    if (bounds.step == 1) {
      result.AppendRange(text, offsets[bounds.start],
                         offsets[bounds.start + bounds.count]);
      return String(std::move(result));
    }
    if (!Charge(bounds.count)) return Value();
    for (int64_t i = 0; i < bounds.count; ++i) {
      const int64_t at = bounds.start + i * bounds.step;
      result.AppendRange(text, offsets[at], offsets[at + 1]);
    }
    return String(std::move(result));
  }
  if (object.Is(Kind::kSequence) &&
      object.sequence().kind <= SequenceKind::kRange) {
    const Sequence& sequence = object.sequence();
    if (!ResolveSlice(start, stop, step, sequence.items.size(), &bounds)) {
      return Undefined("slice indices must be integers");
    }
    if (!Charge(bounds.count)) return Value();
    std::vector<Value> items;
    items.reserve(bounds.count);
    for (int64_t i = 0; i < bounds.count; ++i) {
      items.push_back(sequence.items[bounds.start + i * bounds.step]);
    }
    return List(std::move(items), sequence.kind);
  }
  return Undefined(
      absl::StrCat("'", TypeName(object), " object' cannot be sliced"));
}

Value Runtime::Repeat(const Value& value, int64_t count) {
  // Of nothing there is no limit to how often it may be repeated.
  const bool is_empty = value.IsString() ? value.text().size() == 0
                                         : value.sequence().items.empty();
  count = is_empty ? 0 : std::max<int64_t>(count, 0);
  if (value.IsString()) {
    const Text& text = value.text();
    const int64_t size = text.size();
    if (!is_empty && count > limits_.max_output_bytes / size) {
      return FailLimit("repeated text is too long");
    }
    if (!ChargeBytes(size * count)) return Value();
    Text result;
    for (int64_t i = 0; i < count; ++i) result.Append(text);
    return String(std::move(result));
  }
  const Sequence& sequence = value.sequence();
  const int64_t size = sequence.items.size();
  if (!is_empty && count > limits_.max_steps / size) {
    return FailLimit("repeated list is too long");
  }
  if (!Charge(size * count)) return Value();
  std::vector<Value> items;
  items.reserve(size * count);
  for (int64_t i = 0; i < count; ++i) {
    items.insert(items.end(), sequence.items.begin(), sequence.items.end());
  }
  return List(std::move(items), sequence.kind);
}

Value Runtime::IntegerPower(int64_t base, int64_t exponent) {
  int64_t result = 1;
  bool overflows = false;
  while (exponent > 0) {
    if (exponent & 1) {
      overflows |= __builtin_mul_overflow(result, base, &result);
    }
    exponent >>= 1;
    if (exponent > 0) overflows |= __builtin_mul_overflow(base, base, &base);
    if (overflows) return FailLimit("integer is wider than 64 bits");
  }
  return Value::Int(result);
}

Value Runtime::Arithmetic(absl::string_view op, const Value& a,
                          const Value& b) {
  const bool divides = op == "/" || op == "//" || op == "%";
  if (divides && b.number() == 0) return Fail("division by zero");
  if (a.IsInteger() && b.IsInteger() && op != "/") {
    const int64_t x = a.integer();
    const int64_t y = b.integer();
    int64_t result = 0;
    bool overflows = false;
    if (op == "+") {
      overflows = __builtin_add_overflow(x, y, &result);
    } else if (op == "-") {
      overflows = __builtin_sub_overflow(x, y, &result);
    } else if (op == "*") {
      overflows = __builtin_mul_overflow(x, y, &result);
    } else if (op == "**") {
      if (y >= 0) return IntegerPower(x, y);
      if (x == 0) return Fail("0.0 cannot be raised to a negative power");
      return Value::Float(std::pow(static_cast<double>(x), y));
    } else if (y == -1) {
      // The one quotient that may overflow.
      if (op == "//")
        overflows = __builtin_sub_overflow(int64_t{0}, x, &result);
    } else {
      const bool rounds_down = x % y != 0 && (x % y < 0) != (y < 0);
      result = op == "//" ? x / y - rounds_down : x % y + rounds_down * y;
    }
    if (overflows) return FailLimit("integer is wider than 64 bits");
    return Value::Int(result);
  }
  const double x = a.number();
  const double y = b.number();
  if (op == "+") return Value::Float(x + y);
  if (op == "-") return Value::Float(x - y);
  if (op == "*") return Value::Float(x * y);
  if (op == "/") return Value::Float(x / y);
  if (op == "**") {
    if (x == 0 && y < 0)
      return Fail("0.0 cannot be raised to a negative power");
    if (x < 0 && y != std::floor(y)) {
      return Fail("a negative number has no real fractional power");
    }
    const double power = std::pow(x, y);
    if (std::isinf(power) && !std::isinf(x) && !std::isinf(y)) {
      return Fail("numerical result out of range");
    }
    return Value::Float(power);
  }
  double remainder = std::fmod(x, y);
  if (remainder != 0) {
    if ((remainder < 0) != (y < 0)) remainder += y;
  } else {
    remainder = std::copysign(0.0, y);
  }
  if (op == "%") return Value::Float(remainder);
  const double quotient = (x - remainder) / y;
  double floored = std::floor(quotient);
  if (quotient - floored > 0.5) floored += 1;
  return Value::Float(quotient == 0 ? std::copysign(0.0, x / y) : floored);
}

Value Runtime::Binary(absl::string_view op, const Value& a, const Value& b) {
  if (!Charge(1)) return Value();
  if (a.IsNumber() && b.IsNumber()) return Arithmetic(op, a, b);
  if (op == "%" && a.IsString()) return PercentFormat(*this, a.text(), b);
  if (a.IsUndefined()) return FailUndefined(a);
  if (b.IsUndefined()) return FailUndefined(b);
  const auto is_list = [](const Value& value) {
    return value.Is(Kind::kSequence) &&
           value.sequence().kind <= SequenceKind::kTuple;
  };
  if (op == "+") {
    if (a.IsString() && b.IsString()) {
      if (!ChargeBytes(a.text().size() + b.text().size())) return Value();
      Text result = a.text();
      result.Append(b.text());
      return String(std::move(result));
    }
    if (is_list(a) && is_list(b) && a.sequence().kind == b.sequence().kind) {
      if (!Charge(a.sequence().items.size() + b.sequence().items.size())) {
        return Value();
      }
      std::vector<Value> items = a.sequence().items;
      items.insert(items.end(), b.sequence().items.begin(),
                   b.sequence().items.end());
      return List(std::move(items), a.sequence().kind);
    }
  }
  if (op == "*") {
    if (b.IsInteger() && (a.IsString() || is_list(a))) {
      return Repeat(a, b.integer());
    }
    if (a.IsInteger() && (b.IsString() || is_list(b))) {
      return Repeat(b, a.integer());
    }
  }
  return Fail(absl::StrCat("unsupported operand type(s) for ", op, ": '",
                           TypeName(a), "' and '", TypeName(b), "'"));
}

Value Runtime::Negate(const Value& value) {
  if (value.Is(Kind::kFloat)) return Value::Float(-value.number());
  if (value.IsInteger()) {
    int64_t result;
    if (__builtin_sub_overflow(int64_t{0}, value.integer(), &result)) {
      return FailLimit("integer is wider than 64 bits");
    }
    return Value::Int(result);
  }
  if (value.IsUndefined()) return FailUndefined(value);
  return Fail(
      absl::StrCat("bad operand type for unary -: '", TypeName(value), "'"));
}

}  // namespace quire::jinja
