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
#include "tokenizer/jinja/format.h"
#include "tokenizer/jinja/methods.h"
#include "tokenizer/jinja/operations.h"

namespace quire::jinja {
namespace {

bool IsGiven(const Value* value) {
  return value != nullptr && !value->Is(Kind::kNone);
}

int64_t IntegerOr(Runtime& runtime, const Value* value, int64_t otherwise) {
  if (value == nullptr) return otherwise;
  if (value->IsInteger()) return value->integer();
  if (value->IsUndefined()) {
    runtime.FailUndefined(*value);
  } else {
    runtime.Fail(absl::StrCat("expected an integer, got ", TypeName(*value)));
  }
  return otherwise;
}

bool TruthyOr(Runtime& runtime, const Value* value, bool otherwise) {
  return value == nullptr ? otherwise : runtime.Truthy(*value);
}

// A string argument as it is, anything else as str() of it.
Value AsString(Runtime& runtime, const Value& value) {
  return value.IsString() ? value : runtime.String(runtime.ToText(value));
}

// The attribute path "a.b.0" of an item; the item itself without a path.
Value AttributeOf(Runtime& runtime, Value item, const Value* attribute,
                  const Value* otherwise = nullptr) {
  if (!IsGiven(attribute)) return item;
  const auto step = [&](const Value& key) {
    item = runtime.GetItem(item, key);
    if (IsGiven(otherwise) && item.IsUndefined()) item = *otherwise;
  };
  if (!attribute->IsString()) {
    step(*attribute);
    return item;
  }
  for (const absl::string_view part : absl::StrSplit(attribute->bytes(), '.')) {
    const bool is_index =
        !part.empty() && std::all_of(part.begin(), part.end(), [](char c) {
          return absl::ascii_isdigit(c);
        });
    int64_t index = 0;
    if (is_index && absl::SimpleAtoi(part, &index)) {
      step(Value::Int(index));
    } else {
      step(runtime.String(part));
    }
    if (!runtime.ok()) break;
  }
  return item;
}

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

// ---- Text ------------------------------------------------------------------

template <Text (*kMap)(const Text&)>
Value MapText(Runtime& runtime, const Value& input,
              const Arguments& arguments) {
  runtime.Bind("filter", arguments, {});
  const Text text = runtime.ToText(input);
  if (!runtime.ok()) return Value();
  return runtime.String(kMap(text));
}

// Letters after white space, '-' and opening brackets begin a word.
Text TitleText(const Text& text) {
  Text result;
  bool in_word = false;
  int32_t c;
  for (size_t pos = 0; pos < text.size();) {
    const size_t next = pos + DecodeUtf8(text.bytes(), pos, &c);
    const Text letter = text.Slice(pos, next);
    result.Append(in_word ? ToLower(letter) : ToUpper(letter));
    in_word = !(IsSpace(c) || c == '-' || c == '(' || c == '{' || c == '[' ||
                c == '<');
    pos = next;
  }
  return result;
}

Text EscapeHtml(const Text& text) {
  Text result;
  text.ForEachRun([&](absl::string_view run, bool is_control) {
    std::string escaped;
    for (const char c : run) {
      switch (c) {
        case '&':
          escaped += "&amp;";
          break;
        case '<':
          escaped += "&lt;";
          break;
        case '>':
          escaped += "&gt;";
          break;
        case '"':
          escaped += "&#34;";
          break;
        case '\'':
          escaped += "&#39;";
          break;
        default:
          escaped += c;
      }
    }
    result.Append(escaped, is_control);
  });
  return result;
}

Text SameText(const Text& text) { return text; }

Value Trim(Runtime& runtime, const Value& input, const Arguments& arguments) {
  const auto bound = runtime.Bind("trim", arguments, {"chars"});
  const Value text = AsString(runtime, input);
  if (!runtime.ok()) return Value();
  Arguments chars;
  if (IsGiven(bound[0])) chars.positional.push_back(*bound[0]);
  return CallMethod(runtime, text, "strip", chars);
}

Value ReplaceFilter(Runtime& runtime, const Value& input,
                    const Arguments& arguments) {
  const auto bound =
      runtime.Bind("replace", arguments, {"old", "new", "count"}, 2);
  const int64_t count =
      IsGiven(bound[2]) ? IntegerOr(runtime, bound[2], -1) : -1;
  const Value text = AsString(runtime, input);
  const Value old_text = AsString(runtime, *bound[0]);
  const Value new_text = AsString(runtime, *bound[1]);
  if (!runtime.ok()) return Value();
  return runtime.String(ReplaceText(runtime, text.text(), old_text.bytes(),
                                    new_text.text(), count));
}

Value Join(Runtime& runtime, const Value& input, const Arguments& arguments) {
  const auto bound = runtime.Bind("join", arguments, {"d", "attribute"});
  const Text separator =
      bound[0] != nullptr ? runtime.ToText(*bound[0]) : Text();
  Text result;
  bool is_first = true;
  for (const Value& item : runtime.Iterate(input)) {
    if (!is_first) result.Append(separator);
    is_first = false;
    const size_t old_size = result.size();
    const Value value = AttributeOf(runtime, item, bound[1]);
    if (value.IsString()) {
      result.Append(value.text());
    } else {
      result.Append(runtime.ToText(value));
    }
    if (!CheckGrowth(runtime, result,
                     result.size() - old_size + separator.size())) {
      return Value();
    }
  }
  return runtime.String(std::move(result));
}

Value Indent(Runtime& runtime, const Value& input, const Arguments& arguments) {
  const auto bound =
      runtime.Bind("indent", arguments, {"width", "first", "blank"});
  Text indent("    ", true);
  if (bound[0] != nullptr && bound[0]->IsString()) {
    indent = bound[0]->text();
  } else if (bound[0] != nullptr) {
    const int64_t width = IntegerOr(runtime, bound[0], 4);
    if (width > 1024) return runtime.FailLimit("indentation is too wide");
    indent = Text(std::string(std::max<int64_t>(width, 0), ' '), true);
  }
  if (!input.IsString()) {
    return input.IsUndefined() ? runtime.FailUndefined(input)
                               : runtime.Fail("indent: not a string");
  }
  const bool indent_first = TruthyOr(runtime, bound[1], false);
  const bool indent_blank = TruthyOr(runtime, bound[2], false);
  const Value terminated = runtime.Binary("+", input, runtime.String("\n"));
  if (!runtime.ok()) return Value();
  const Value lines = CallMethod(runtime, terminated, "splitlines", {});
  if (!runtime.ok()) return Value();
  Text result;
  bool is_first = true;
  for (const Value& line : lines.sequence().items) {
    if (!is_first) result.Append("\n", true);
    const bool is_indented =
        is_first ? indent_first : indent_blank || !line.text().empty();
    if (is_indented) result.Append(indent);
    result.Append(line.text());
    is_first = false;
    if (!CheckGrowth(runtime, result, indent.size() + line.text().size())) {
      return Value();
    }
  }
  return runtime.String(std::move(result));
}

Value TruncateFilter(Runtime& runtime, const Value& input,
                     const Arguments& arguments) {
  const auto bound = runtime.Bind("truncate", arguments,
                                  {"length", "killwords", "end", "leeway"});
  const int64_t length = IntegerOr(runtime, bound[0], 255);
  const Text end =
      bound[2] != nullptr ? runtime.ToText(*bound[2]) : Text("...", true);
  const int64_t leeway =
      IsGiven(bound[3]) ? IntegerOr(runtime, bound[3], 5) : 5;
  const int64_t end_length = CountCodePoints(end.bytes());
  if (length < end_length || leeway < 0) {
    return runtime.Fail("truncate: length or leeway is too small");
  }
  if (runtime.Length(input) <= length + leeway || !runtime.ok()) return input;
  if (!input.IsString()) return runtime.Fail("truncate: not a string");
  const Text& text = input.text();
  const std::vector<size_t> offsets = CodePointOffsets(text.bytes());
  size_t stop = offsets[length - end_length];
  if (!TruthyOr(runtime, bound[1], false)) {
    const size_t space =
        absl::string_view(text.bytes()).substr(0, stop).rfind(' ');
    if (space != absl::string_view::npos) stop = space;
  }
  Text result = text.Slice(0, stop);
  result.Append(end);
  return runtime.String(std::move(result));
}

Value Center(Runtime& runtime, const Value& input, const Arguments& arguments) {
  const auto bound = runtime.Bind("center", arguments, {"width"});
  const int64_t width = IntegerOr(runtime, bound[0], 80);
  const Value text = AsString(runtime, input);
  if (!runtime.ok()) return Value();
  return runtime.String(
      PadText(runtime, text.text(), width, Text(" ", true), '^'));
}

Value WordCount(Runtime& runtime, const Value& input,
                const Arguments& arguments) {
  runtime.Bind("wordcount", arguments, {});
  const Text text = runtime.ToText(input);
  int64_t count = 0;
  bool in_word = false;
  int32_t c;
  for (size_t pos = 0; pos < text.size();) {
    pos += DecodeUtf8(text.bytes(), pos, &c);
    const bool is_word = IsAlpha(c) || IsDigit(c) || c == '_';
    count += is_word && !in_word;
    in_word = is_word;
  }
  return Value::Int(count);
}

Text QuoteUrl(const Text& text, bool is_query) {
  Text result;
  text.ForEachRun([&](absl::string_view run, bool is_control) {
    std::string quoted;
    for (const char c : run) {
      if (absl::ascii_isalnum(c) || c == '-' || c == '_' || c == '.' ||
          c == '~' || (c == '/' && !is_query)) {
        quoted += c;
      } else if (c == ' ' && is_query) {
        quoted += '+';
      } else {
        absl::StrAppendFormat(&quoted, "%%%02X", static_cast<unsigned char>(c));
      }
    }
    result.Append(quoted, is_control);
  });
  return result;
}

Value UrlEncode(Runtime& runtime, const Value& input,
                const Arguments& arguments) {
  runtime.Bind("urlencode", arguments, {});
  if (input.IsString() || !runtime.IsIterable(input)) {
    return runtime.String(QuoteUrl(runtime.ToText(input), false));
  }
  Text result;
  const Value pairs = input.Is(Kind::kDict) ? DictItems(runtime, input) : input;
  for (const Value& pair : runtime.Iterate(pairs)) {
    const std::vector<Value> entry = runtime.Iterate(pair);
    if (entry.size() != 2) return runtime.Fail("urlencode: not a pair");
    if (!result.empty()) result.Append("&", true);
    result.Append(QuoteUrl(runtime.ToText(entry[0]), true));
    result.Append("=", true);
    result.Append(QuoteUrl(runtime.ToText(entry[1]), true));
    if (!CheckGrowth(runtime, result, 1)) return Value();
  }
  return runtime.String(std::move(result));
}

Value FormatFilter(Runtime& runtime, const Value& input,
                   const Arguments& arguments) {
  const Text format = runtime.ToText(input);
  if (arguments.named.empty()) {
    return PercentFormat(
        runtime, format,
        runtime.List({arguments.positional.begin(), arguments.positional.end()},
                     SequenceKind::kTuple));
  }
  if (!arguments.positional.empty()) {
    return runtime.Fail(
        "can't handle positional and keyword arguments at the same time");
  }
  std::vector<std::pair<Value, Value>> items;
  for (const auto& [name, value] : arguments.named) {
    items.emplace_back(runtime.String(name), value);
  }
  return PercentFormat(runtime, format, runtime.MakeDict(std::move(items)));
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
    if (IsGiven(bound[1])) {
      const int64_t missing = size - static_cast<int64_t>(batch.size());
      if (missing > 0 && runtime.Charge(missing)) {
        batch.insert(batch.end(), missing, *bound[1]);
      }
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
      {"capitalize", MapText<CapitalizeText>},
      {"center", Center},
      {"count", LengthFilter},
      {"d", Default},
      {"default", Default},
      {"dictsort", DictSort},
      {"e", MapText<EscapeHtml>},
      {"escape", MapText<EscapeHtml>},
      {"first", First},
      {"float", ToFloat},
      {"forceescape", MapText<EscapeHtml>},
      {"format", FormatFilter},
      {"groupby", GroupBy},
      {"indent", Indent},
      {"int", ToInt},
      {"items", ItemsFilter},
      {"join", Join},
      {"last", Last},
      {"length", LengthFilter},
      {"list", ToList},
      {"lower", MapText<ToLower>},
      {"map", Map},
      {"max", Extreme<true>},
      {"min", Extreme<false>},
      {"reject", Select<false, false>},
      {"rejectattr", Select<false, true>},
      {"replace", ReplaceFilter},
      {"reverse", Reverse},
      {"round", Round},
      {"safe", MapText<SameText>},
      {"select", Select<true, false>},
      {"selectattr", Select<true, true>},
      {"slice", SliceFilter},
      {"sort", Sort},
      {"string", MapText<SameText>},
      {"sum", Sum},
      {"title", MapText<TitleText>},
      {"tojson", ToJson},
      {"trim", Trim},
      {"truncate", TruncateFilter},
      {"unique", Unique},
      {"upper", MapText<ToUpper>},
      {"urlencode", UrlEncode},
      {"wordcount", WordCount},
  };
  const auto it = table->find(name);
  return it == table->end() ? nullptr : it->second;
}

}  // namespace quire::jinja
