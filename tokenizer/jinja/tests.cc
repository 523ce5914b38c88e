// The tests of Jinja (`x is defined`), not tests of this code.
#include <algorithm>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_cat.h"
#include "tokenizer/jinja/filters.h"
#include "tokenizer/jinja/operations.h"

namespace quire::jinja {
namespace {

bool TakesNothing(Runtime& runtime, const Arguments& arguments) {
  runtime.Bind("test", arguments, {});
  return runtime.ok();
}

// The one argument of a test; an error if there are more or fewer.
Value OnlyArgument(Runtime& runtime, const Arguments& arguments) {
  if (arguments.positional.size() == 1 && arguments.named.empty()) {
    return arguments.positional[0];
  }
  return runtime.Fail("the test takes one argument");
}

template <Kind kKind>
bool IsKind(Runtime& runtime, const Value& input, const Arguments& arguments) {
  return TakesNothing(runtime, arguments) && input.Is(kKind);
}

bool Defined(Runtime& runtime, const Value& input, const Arguments& arguments) {
  return TakesNothing(runtime, arguments) && !input.IsUndefined();
}

template <bool kValue>
bool IsBool(Runtime& runtime, const Value& input, const Arguments& arguments) {
  return TakesNothing(runtime, arguments) && input.Is(Kind::kBool) &&
         input.boolean() == kValue;
}

bool Number(Runtime& runtime, const Value& input, const Arguments& arguments) {
  return TakesNothing(runtime, arguments) && input.IsNumber();
}

bool SequenceTest(Runtime& runtime, const Value& input,
                  const Arguments& arguments) {
  if (!TakesNothing(runtime, arguments)) return false;
  if (input.Is(Kind::kSequence)) {
    return input.sequence().kind <= SequenceKind::kRange;
  }
  return runtime.HasLength(input) && !input.Is(Kind::kLoop);
}

bool Iterable(Runtime& runtime, const Value& input,
              const Arguments& arguments) {
  return TakesNothing(runtime, arguments) && runtime.IsIterable(input);
}

bool Callable(Runtime& runtime, const Value& input,
              const Arguments& arguments) {
  if (!TakesNothing(runtime, arguments)) return false;
  if (input.Is(Kind::kFunction)) {
    return input.function().type != Function::Type::kCycler;
  }
  // An undefined value and a loop have __call__, whatever it does.
  return input.IsUndefined() || input.Is(Kind::kLoop);
}

template <bool kUpper>
bool CaseTest(Runtime& runtime, const Value& input,
              const Arguments& arguments) {
  return TakesNothing(runtime, arguments) &&
         HasCase(runtime.ToText(input).bytes(), kUpper);
}

template <int kRemainder>
bool Parity(Runtime& runtime, const Value& input, const Arguments& arguments) {
  if (!TakesNothing(runtime, arguments)) return false;
  return runtime.Equal(runtime.Binary("%", input, Value::Int(2)),
                       Value::Int(kRemainder));
}

bool DivisibleBy(Runtime& runtime, const Value& input,
                 const Arguments& arguments) {
  const auto bound = runtime.Bind("divisibleby", arguments, {"num"}, 1);
  if (!runtime.ok()) return false;
  return runtime.Equal(runtime.Binary("%", input, *bound[0]), Value::Int(0));
}

bool SameAs(Runtime& runtime, const Value& input, const Arguments& arguments) {
  const auto bound = runtime.Bind("sameas", arguments, {"other"}, 1);
  if (!runtime.ok() || input.kind() != bound[0]->kind()) return false;
  if (input.IsString() || input.IsNumber()) {
    return runtime.Equal(input, *bound[0]);
  }
  return input.object() == bound[0]->object();
}

bool InTest(Runtime& runtime, const Value& input, const Arguments& arguments) {
  const auto bound = runtime.Bind("in", arguments, {"seq"}, 1);
  return runtime.ok() && runtime.Contains(*bound[0], input);
}

enum Operator { kEq, kNe, kLt, kLe, kGt, kGe };

template <Operator kOperator>
bool Comparison(Runtime& runtime, const Value& input,
                const Arguments& arguments) {
  static constexpr const char* kNames[] = {"==", "!=", "<", "<=", ">", ">="};
  const Value other = OnlyArgument(runtime, arguments);
  return runtime.ok() && runtime.Compare(kNames[kOperator], input, other);
}

template <bool kFilters>
bool Exists(Runtime& runtime, const Value& input, const Arguments& arguments) {
  if (!TakesNothing(runtime, arguments) || !input.IsString() ||
      !runtime.ChargeBytes(input.text().size())) {
    return false;
  }
  return kFilters ? FindFilter(input.bytes()) != nullptr
                  : FindTest(input.bytes()) != nullptr;
}

bool Never(Runtime& runtime, const Value&, const Arguments& arguments) {
  TakesNothing(runtime, arguments);
  return false;
}

}  // namespace

TestFunction FindTest(absl::string_view name) {
  using Table = absl::flat_hash_map<absl::string_view, TestFunction>;
  static const Table* const table = new Table{
      {"odd", Parity<1>},
      {"even", Parity<0>},
      {"divisibleby", DivisibleBy},
      {"defined", Defined},
      {"undefined", IsKind<Kind::kUndefined>},
      {"filter", Exists<true>},
      {"test", Exists<false>},
      {"none", IsKind<Kind::kNone>},
      {"boolean", IsKind<Kind::kBool>},
      {"false", IsBool<false>},
      {"true", IsBool<true>},
      {"integer", IsKind<Kind::kInt>},
      {"float", IsKind<Kind::kFloat>},
      {"lower", CaseTest<false>},
      {"upper", CaseTest<true>},
      {"string", IsKind<Kind::kString>},
      {"mapping", IsKind<Kind::kDict>},
      {"number", Number},
      {"sequence", SequenceTest},
      {"iterable", Iterable},
      {"callable", Callable},
      {"sameas", SameAs},
      {"escaped", Never},
      {"in", InTest},
      {"==", Comparison<kEq>},
      {"eq", Comparison<kEq>},
      {"equalto", Comparison<kEq>},
      {"!=", Comparison<kNe>},
      {"ne", Comparison<kNe>},
      {">", Comparison<kGt>},
      {"gt", Comparison<kGt>},
      {"greaterthan", Comparison<kGt>},
      {">=", Comparison<kGe>},
      {"ge", Comparison<kGe>},
      {"<", Comparison<kLt>},
      {"lt", Comparison<kLt>},
      {"lessthan", Comparison<kLt>},
      {"<=", Comparison<kLe>},
      {"le", Comparison<kLe>},
  };
  const auto it = table->find(name);
  return it == table->end() ? nullptr : it->second;
}

}  // namespace quire::jinja
