#include "tokenizer/jinja/filters.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "tokenizer/jinja/filter_arguments.h"
#include "tokenizer/jinja/format.h"
#include "tokenizer/jinja/methods.h"
#include "tokenizer/jinja/operations.h"
#include "tokenizer/jinja/text_filters.h"

namespace quire::jinja {
namespace {

Value FoldCase(Runtime& runtime, const Value& value, bool is_case_sensitive) {
  if (is_case_sensitive || !value.IsString()) return value;
  return runtime.String(ToLower(value.text()));
}

struct Keyed {
  Value key;
  Value item;
};

// Stable, and in the order of the keys; an error if they cannot be ordered.
void SortByKey(Runtime& runtime, std::vector<Keyed>* items, bool is_reversed) {
  std::stable_sort(items->begin(), items->end(),
                   [&](const Keyed& a, const Keyed& b) {
                     if (!runtime.ok()) return false;
                     return is_reversed ? runtime.Less(b.key, a.key)
                                        : runtime.Less(a.key, b.key);
                   });
}

// ---- Numbers ---------------------------------------------------------------

Value Abs(Runtime& runtime, const Value& input, const Arguments& arguments) {
  runtime.Bind("abs", arguments, {});
  if (input.Is(Kind::kFloat)) return Value::Float(std::abs(input.number()));
  if (input.IsInteger() && input.integer() < 0) return runtime.Negate(input);
  if (input.IsInteger()) return Value::Int(input.integer());
  if (input.IsUndefined()) return runtime.FailUndefined(input);
  return runtime.Fail(
      absl::StrCat("bad operand type for abs(): '", TypeName(input), "'"));
}

// A float in the text, as Python's float() reads it.
bool ParseFloat(absl::string_view text, double* number) {
  const auto [begin, end] = StripBounds(text, nullptr, true, true);
  text = text.substr(begin, end - begin);
  // strtod would also take hexadecimal and nan(...).
  for (const char c : text) {
    if (!absl::ascii_isalnum(c) && c != '.' && c != '+' && c != '-') {
      return false;
    }
    if (c == 'x' || c == 'X') return false;
  }
  return absl::SimpleAtod(text, number);
}

// An integer in the text, as Python's int() reads it.
bool ParseInt(absl::string_view text, int64_t base, int64_t* number) {
  const auto [begin, end] = StripBounds(text, nullptr, true, true);
  text = text.substr(begin, end - begin);
  const bool is_negative = absl::ConsumePrefix(&text, "-");
  if (!is_negative) absl::ConsumePrefix(&text, "+");
  if (text.size() > 2 && text[0] == '0') {
    const char prefix = absl::ascii_tolower(text[1]);
    const int64_t named = prefix == 'x'   ? 16
                          : prefix == 'o' ? 8
                          : prefix == 'b' ? 2
                                          : 0;
    if (named != 0 && (base == named || base == 0)) {
      base = named;
      text.remove_prefix(2);
    }
  }
  if (base == 0) base = 10;
  if (text.empty() || text.back() == '_') return false;
  int64_t value = 0;
  bool has_digit = false;
  for (const char c : text) {
    if (c == '_') {
      if (!has_digit) return false;
      has_digit = false;
      continue;
    }
    if (!absl::ascii_isalnum(c)) return false;
    const int digit =
        absl::ascii_isdigit(c) ? c - '0' : absl::ascii_tolower(c) - 'a' + 10;
    if (digit >= base || __builtin_mul_overflow(value, base, &value) ||
        __builtin_sub_overflow(value, digit, &value)) {
      return false;
    }
    has_digit = true;
  }
  // Counted downwards, so that the least number fits.
  if (!is_negative && value == INT64_MIN) return false;
  *number = is_negative ? value : -value;
  return true;
}

Value ToInt(Runtime& runtime, const Value& input, const Arguments& arguments) {
  const auto bound = runtime.Bind("int", arguments, {"default", "base"});
  const int64_t base = IntegerOr(runtime, bound[1], 10);
  if (!runtime.ok()) return Value();
  const Value otherwise = bound[0] != nullptr ? *bound[0] : Value::Int(0);
  if (input.IsInteger()) return Value::Int(input.integer());
  if (input.IsUndefined()) return runtime.FailUndefined(input);
  double number = 0;
  int64_t integer = 0;
  if (input.IsString()) {
    if (!runtime.ChargeBytes(input.text().size())) return Value();
    if (ParseInt(input.bytes(), base, &integer)) return Value::Int(integer);
    if (!ParseFloat(input.bytes(), &number)) return otherwise;
  } else if (input.Is(Kind::kFloat)) {
    number = input.number();
  } else {
    return otherwise;
  }
  if (!std::isfinite(number)) return otherwise;
  if (std::abs(number) >= 0x1p63) {
    return runtime.FailLimit("integer is wider than 64 bits");
  }
  return Value::Int(static_cast<int64_t>(number));
}

Value ToFloat(Runtime& runtime, const Value& input,
              const Arguments& arguments) {
  const auto bound = runtime.Bind("float", arguments, {"default"});
  if (!runtime.ok()) return Value();
  if (input.IsNumber()) return Value::Float(input.number());
  if (input.IsUndefined()) return runtime.FailUndefined(input);
  double number = 0;
  if (input.IsString() && runtime.ChargeBytes(input.text().size()) &&
      ParseFloat(input.bytes(), &number)) {
    return Value::Float(number);
  }
  return bound[0] != nullptr ? *bound[0] : Value::Float(0);
}

Value Round(Runtime& runtime, const Value& input, const Arguments& arguments) {
  const auto bound = runtime.Bind("round", arguments, {"precision", "method"});
  const int64_t precision = IntegerOr(runtime, bound[0], 0);
  if (!runtime.ok()) return Value();
  if (input.IsUndefined()) return runtime.FailUndefined(input);
  if (!input.IsNumber()) return runtime.Fail("round: not a number");
  const absl::string_view method = bound[1] != nullptr && bound[1]->IsString()
                                       ? bound[1]->bytes()
                                       : absl::string_view("common");
  if (bound[1] != nullptr && method != "common" && method != "ceil" &&
      method != "floor") {
    return runtime.Fail("method must be common, ceil or floor");
  }
  const double number = input.number();
  if (method != "common") {
    if (!std::isfinite(number)) return runtime.Fail("cannot round this number");
    const double scale = std::pow(10.0, precision);
    const double scaled = number * scale;
    return Value::Float(
        (method == "ceil" ? std::ceil(scaled) : std::floor(scaled)) / scale);
  }
  if (input.IsInteger() && precision >= 0) return Value::Int(input.integer());
  if (precision < -300 || !std::isfinite(number)) {
    return Value::Float(precision < -300 ? 0.0 : number);
  }
  if (precision > 300) return Value::Float(number);
  if (precision >= 0) {
    // The C library rounds the exact binary value, as Python does.
    char buffer[1024];
    std::snprintf(buffer, sizeof(buffer), "%.*f", static_cast<int>(precision),
                  number);
    return Value::Float(std::strtod(buffer, nullptr));
  }
  const double scale = std::pow(10.0, -precision);
  const double rounded = std::nearbyint(number / scale) * scale;
  return input.IsInteger() && std::abs(rounded) < 0x1p62
             ? Value::Int(static_cast<int64_t>(rounded))
             : Value::Float(rounded);
}

Value Sum(Runtime& runtime, const Value& input, const Arguments& arguments) {
  const auto bound = runtime.Bind("sum", arguments, {"attribute", "start"});
  Value sum = bound[1] != nullptr ? *bound[1] : Value::Int(0);
  if (sum.IsString()) return runtime.Fail("sum() cannot sum strings");
  for (const Value& item : runtime.Iterate(input)) {
    sum = runtime.Binary("+", sum, AttributeOf(runtime, item, bound[0]));
    if (!runtime.ok()) break;
  }
  return sum;
}

// ---- Sequences -------------------------------------------------------------

Value LengthFilter(Runtime& runtime, const Value& input,
                   const Arguments& arguments) {
  runtime.Bind("length", arguments, {});
  return Value::Int(runtime.Length(input));
}

Value First(Runtime& runtime, const Value& input, const Arguments& arguments) {
  runtime.Bind("first", arguments, {});
  const std::vector<Value> items = runtime.Iterate(input);
  return items.empty() ? runtime.Undefined("No first item, sequence was empty.")
                       : items.front();
}

Value Last(Runtime& runtime, const Value& input, const Arguments& arguments) {
  runtime.Bind("last", arguments, {});
  if (input.Is(Kind::kSequence) &&
      input.sequence().kind == SequenceKind::kGenerator) {
    return runtime.Fail("'generator' object is not reversible");
  }
  const std::vector<Value> items = runtime.Iterate(input);
  return items.empty() ? runtime.Undefined("No last item, sequence was empty.")
                       : items.back();
}

Value ToList(Runtime& runtime, const Value& input, const Arguments& arguments) {
  runtime.Bind("list", arguments, {});
  return runtime.List(runtime.Iterate(input));
}

Value ItemsFilter(Runtime& runtime, const Value& input,
                  const Arguments& arguments) {
  runtime.Bind("items", arguments, {});
  if (input.IsUndefined()) return runtime.List({}, SequenceKind::kGenerator);
  if (!input.Is(Kind::kDict)) {
    return runtime.Fail("Can only get item pairs from a mapping.");
  }
  return runtime.List(runtime.Iterate(DictItems(runtime, input)),
                      SequenceKind::kGenerator);
}

Value Reverse(Runtime& runtime, const Value& input,
              const Arguments& arguments) {
  runtime.Bind("reverse", arguments, {});
  if (input.IsString()) {
    const Value minus_one = Value::Int(-1);
    return runtime.Slice(input, Value::None(), Value::None(), minus_one);
  }
  std::vector<Value> items = runtime.Iterate(input);
  std::reverse(items.begin(), items.end());
  return runtime.List(std::move(items), SequenceKind::kGenerator);
}

Value Batch(Runtime& runtime, const Value& input, const Arguments& arguments) {
  const auto bound =
      runtime.Bind("batch", arguments, {"linecount", "fill_with"}, 1);
  const int64_t size = IntegerOr(runtime, bound[0], 0);
  const std::vector<Value> items = runtime.Iterate(input);
  if (!runtime.ok()) return Value();
  std::vector<Value> batches;
  std::vector<Value> batch;
  for (const Value& item : items) {
    // A size below 1 is never reached once an item is in, as in Jinja.
    if (static_cast<int64_t>(batch.size()) == size) {
      batches.push_back(runtime.List(std::exchange(batch, {})));
    }
    batch.push_back(item);
  }
  if (!batch.empty()) {
    if (IsGiven(bound[1]) && size > static_cast<int64_t>(batch.size()) &&
        runtime.Charge(size - static_cast<int64_t>(batch.size()))) {
      batch.resize(size, *bound[1]);
    }
    batches.push_back(runtime.List(std::move(batch)));
  }
  return runtime.List(std::move(batches), SequenceKind::kGenerator);
}

Value SliceFilter(Runtime& runtime, const Value& input,
                  const Arguments& arguments) {
  const auto bound =
      runtime.Bind("slice", arguments, {"slices", "fill_with"}, 1);
  const int64_t count = IntegerOr(runtime, bound[0], 0);
  const std::vector<Value> items = runtime.Iterate(input);
  if (!runtime.ok()) return Value();
  if (count == 0) return runtime.Fail("division by zero");
  if (count > 0 && !runtime.Charge(count)) return Value();
  const int64_t length = items.size();
  std::vector<Value> slices;
  int64_t begin = 0;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t size = length / count + (i < length % count);
    std::vector<Value> slice(items.begin() + begin,
                             items.begin() + begin + size);
    begin += size;
    if (IsGiven(bound[1]) && length % count != 0 && i >= length % count) {
      slice.push_back(*bound[1]);
    }
    slices.push_back(runtime.List(std::move(slice)));
  }
  return runtime.List(std::move(slices), SequenceKind::kGenerator);
}

Value Sort(Runtime& runtime, const Value& input, const Arguments& arguments) {
  const auto bound = runtime.Bind("sort", arguments,
                                  {"reverse", "case_sensitive", "attribute"});
  const bool is_case_sensitive = TruthyOr(runtime, bound[1], false);
  std::vector<Value> attributes;
  if (bound[2] != nullptr && bound[2]->IsString()) {
    for (const absl::string_view part :
         absl::StrSplit(bound[2]->bytes(), ',')) {
      attributes.push_back(runtime.String(part));
    }
  } else {
    attributes.push_back(bound[2] != nullptr ? *bound[2] : Value::None());
  }
  std::vector<Keyed> items;
  for (const Value& item : runtime.Iterate(input)) {
    std::vector<Value> key;
    for (const Value& attribute : attributes) {
      key.push_back(FoldCase(runtime, AttributeOf(runtime, item, &attribute),
                             is_case_sensitive));
    }
    items.push_back({runtime.List(std::move(key)), item});
    if (!runtime.ok()) return Value();
  }
  SortByKey(runtime, &items, TruthyOr(runtime, bound[0], false));
  std::vector<Value> sorted;
  for (Keyed& entry : items) sorted.push_back(std::move(entry.item));
  return runtime.List(std::move(sorted));
}

Value DictSort(Runtime& runtime, const Value& input,
               const Arguments& arguments) {
  const auto bound =
      runtime.Bind("dictsort", arguments, {"case_sensitive", "by", "reverse"});
  if (!runtime.ok()) return Value();
  if (input.IsUndefined()) return runtime.FailUndefined(input);
  if (!input.Is(Kind::kDict)) return runtime.Fail("dictsort: not a mapping");
  const bool is_case_sensitive = TruthyOr(runtime, bound[0], false);
  bool by_value = false;
  if (bound[1] != nullptr) {
    const absl::string_view by =
        bound[1]->IsString() ? bound[1]->bytes() : absl::string_view();
    if (by != "key" && by != "value") {
      return runtime.Fail("You can only sort by either \"key\" or \"value\"");
    }
    by_value = by == "value";
  }
  std::vector<Keyed> items;
  for (const auto& [key, value] : input.dict().items) {
    items.push_back(
        {FoldCase(runtime, by_value ? value : key, is_case_sensitive),
         runtime.List({key, value}, SequenceKind::kTuple)});
    if (!runtime.ok()) return Value();
  }
  SortByKey(runtime, &items, TruthyOr(runtime, bound[2], false));
  std::vector<Value> sorted;
  for (Keyed& entry : items) sorted.push_back(std::move(entry.item));
  return runtime.List(std::move(sorted));
}

Value GroupBy(Runtime& runtime, const Value& input,
              const Arguments& arguments) {
  const auto bound = runtime.Bind(
      "groupby", arguments, {"attribute", "default", "case_sensitive"}, 1);
  const bool is_case_sensitive = TruthyOr(runtime, bound[2], false);
  std::vector<Keyed> items;
  for (const Value& item : runtime.Iterate(input)) {
    items.push_back(
        {FoldCase(runtime, AttributeOf(runtime, item, bound[0], bound[1]),
                  is_case_sensitive),
         item});
    if (!runtime.ok()) return Value();
  }
  SortByKey(runtime, &items, false);
  std::vector<Value> groups;
  for (size_t i = 0; i < items.size() && runtime.ok();) {
    std::vector<Value> members;
    const size_t first = i;
    for (; i < items.size() && runtime.Equal(items[i].key, items[first].key) &&
           runtime.ok();
         ++i) {
      members.push_back(items[i].item);
    }
    if (i == first) break;
    const Value key =
        AttributeOf(runtime, items[first].item, bound[0], bound[1]);
    groups.push_back(runtime.Group(key, runtime.List(std::move(members))));
  }
  return runtime.List(std::move(groups));
}

Value Unique(Runtime& runtime, const Value& input, const Arguments& arguments) {
  const auto bound =
      runtime.Bind("unique", arguments, {"case_sensitive", "attribute"});
  const bool is_case_sensitive = TruthyOr(runtime, bound[0], false);
  std::vector<std::pair<Value, Value>> seen;
  std::vector<Value> kept;
  for (const Value& item : runtime.Iterate(input)) {
    const Value key = FoldCase(runtime, AttributeOf(runtime, item, bound[1]),
                               is_case_sensitive);
    const size_t old_size = seen.size();
    runtime.SetEntry(&seen, key, Value::None());
    if (!runtime.ok()) return Value();
    if (seen.size() > old_size) kept.push_back(item);
  }
  return runtime.List(std::move(kept), SequenceKind::kGenerator);
}

template <bool kMax>
Value Extreme(Runtime& runtime, const Value& input,
              const Arguments& arguments) {
  const auto bound =
      runtime.Bind("min or max", arguments, {"case_sensitive", "attribute"});
  const bool is_case_sensitive = TruthyOr(runtime, bound[0], false);
  const std::vector<Value> items = runtime.Iterate(input);
  if (items.empty()) {
    return runtime.Undefined("No aggregated item, sequence was empty.");
  }
  Value best = items[0];
  Value best_key;
  for (size_t i = 0; i < items.size(); ++i) {
    const Value key = FoldCase(
        runtime, AttributeOf(runtime, items[i], bound[1]), is_case_sensitive);
    if (i == 0 ||
        (kMax ? runtime.Less(best_key, key) : runtime.Less(key, best_key))) {
      best = items[i];
      best_key = key;
    }
    if (!runtime.ok()) return Value();
  }
  return best;
}

// ---- Filters that take filters and tests -----------------------------------

// The arguments from the position `begin` on.
Arguments Rest(const Arguments& arguments, size_t begin) {
  Arguments rest;
  for (size_t i = begin; i < arguments.positional.size(); ++i) {
    rest.positional.push_back(arguments.positional[i]);
  }
  rest.named = arguments.named;
  return rest;
}

Value Map(Runtime& runtime, const Value& input, const Arguments& arguments) {
  std::vector<Value> mapped;
  if (arguments.positional.empty() && !arguments.named.empty()) {
    const auto bound =
        runtime.Bind("map", arguments, {"attribute", "default"}, 1);
    if (!runtime.ok()) return Value();
    for (const Value& item : runtime.Iterate(input)) {
      mapped.push_back(AttributeOf(runtime, item, bound[0], bound[1]));
      if (!runtime.ok()) return Value();
    }
    return runtime.List(std::move(mapped), SequenceKind::kGenerator);
  }
  if (arguments.positional.empty() || !arguments.positional[0].IsString()) {
    return runtime.Fail("map requires a filter argument");
  }
  const FilterFunction filter = FindFilter(arguments.positional[0].bytes());
  if (filter == nullptr) {
    return runtime.Fail(absl::StrCat("no filter named '",
                                     arguments.positional[0].bytes(), "'"));
  }
  const Arguments rest = Rest(arguments, 1);
  for (const Value& item : runtime.Iterate(input)) {
    if (!runtime.Charge(1)) return Value();
    mapped.push_back(filter(runtime, item, rest));
    if (!runtime.ok()) return Value();
  }
  return runtime.List(std::move(mapped), SequenceKind::kGenerator);
}

template <bool kKeepTrue, bool kByAttribute>
Value Select(Runtime& runtime, const Value& input, const Arguments& arguments) {
  const size_t offset = kByAttribute ? 1 : 0;
  const Value* attribute = nullptr;
  if (kByAttribute) {
    if (arguments.positional.empty()) {
      return runtime.Fail("Missing parameter for attribute name");
    }
    attribute = &arguments.positional[0];
  }
  TestFunction test = nullptr;
  if (arguments.positional.size() > offset) {
    const Value& name = arguments.positional[offset];
    if (name.IsString()) test = FindTest(name.bytes());
    if (test == nullptr) return runtime.Fail("no such test");
  }
  const Arguments rest = Rest(arguments, offset + 1);
  std::vector<Value> kept;
  for (const Value& item : runtime.Iterate(input)) {
    if (!runtime.Charge(1)) return Value();
    const Value value = AttributeOf(runtime, item, attribute);
    const bool holds =
        test != nullptr ? test(runtime, value, rest) : runtime.Truthy(value);
    if (!runtime.ok()) return Value();
    if (holds == kKeepTrue) kept.push_back(item);
  }
  return runtime.List(std::move(kept), SequenceKind::kGenerator);
}

// ---- The rest --------------------------------------------------------------

Value Default(Runtime& runtime, const Value& input,
              const Arguments& arguments) {
  const auto bound =
      runtime.Bind("default", arguments, {"default_value", "boolean"});
  const bool boolean = TruthyOr(runtime, bound[1], false);
  if (!input.IsUndefined() && !(boolean && !runtime.Truthy(input))) {
    return input;
  }
  return bound[0] != nullptr ? *bound[0] : runtime.String("");
}

Value Attr(Runtime& runtime, const Value& input, const Arguments& arguments) {
  const auto bound = runtime.Bind("attr", arguments, {"name"}, 1);
  if (!runtime.ok()) return Value();
  const Value name = AsString(runtime, *bound[0]);
  if (!runtime.ok()) return Value();
  // Attributes only, not the entries of a dictionary.
  if (input.Is(Kind::kDict) &&
      FindMethod(input, name.bytes()) == MethodAccess::kNone) {
    return runtime.Undefined(
        absl::StrCat("'dict object' has no attribute '", name.bytes(), "'"));
  }
  return runtime.GetAttr(input, name.text().bytes());
}

}  // namespace

FilterFunction FindFilter(absl::string_view name) {
  using Table = absl::flat_hash_map<absl::string_view, FilterFunction>;
  static const Table* const table = new Table{
      {"abs", Abs},
      {"attr", Attr},
      {"batch", Batch},
      {"count", LengthFilter},
      {"d", Default},
      {"default", Default},
      {"dictsort", DictSort},
      {"first", First},
      {"float", ToFloat},
      {"groupby", GroupBy},
      {"int", ToInt},
      {"items", ItemsFilter},
      {"last", Last},
      {"length", LengthFilter},
      {"list", ToList},
      {"map", Map},
      {"max", Extreme<true>},
      {"min", Extreme<false>},
      {"reject", Select<false, false>},
      {"rejectattr", Select<false, true>},
      {"reverse", Reverse},
      {"round", Round},
      {"select", Select<true, false>},
      {"selectattr", Select<true, true>},
      {"slice", SliceFilter},
      {"sort", Sort},
      {"sum", Sum},
      {"tojson", ToJson},
      {"unique", Unique},
  };
  const auto it = table->find(name);
  return it == table->end() ? FindTextFilter(name) : it->second;
}

}  // namespace quire::jinja
