#include "tokenizer/jinja/methods.h"

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "tokenizer/jinja/format.h"
#include "tokenizer/jinja/operations.h"

namespace quire::jinja {
namespace {

using MethodFunction = Value (*)(Runtime&, const Value& self,
                                 const Arguments& arguments);

// An optional integer argument; an error for another type.
int64_t IntegerOr(Runtime& runtime, const Value* value, int64_t otherwise) {
  if (value == nullptr) return otherwise;
  if (value->IsInteger()) return value->integer();
  runtime.Fail(absl::StrCat("expected an integer, got ", TypeName(*value)));
  return otherwise;
}

bool RequireString(Runtime& runtime, const Value& value) {
  if (value.IsString()) return true;
  if (value.IsUndefined()) {
    runtime.FailUndefined(value);
  } else {
    runtime.Fail(absl::StrCat("must be str, not ", TypeName(value)));
  }
  return false;
}

template <bool kLeft, bool kRight>
Value Strip(Runtime& runtime, const Value& self, const Arguments& arguments) {
  const auto bound = runtime.Bind("strip", arguments, {"chars"});
  if (!runtime.ok()) return Value();
  const Text& text = self.text();
  std::pair<size_t, size_t> bounds;
  if (bound[0] == nullptr || bound[0]->Is(Kind::kNone)) {
    bounds = StripBounds(text.bytes(), nullptr, kLeft, kRight);
  } else {
    if (!RequireString(runtime, *bound[0])) return Value();
    const absl::string_view chars = bound[0]->bytes();
    // Each byte of the text may be looked for in all of `chars`.
    if (!runtime.Charge(1 + text.size() * (chars.size() / 64))) return Value();
    bounds = StripBounds(text.bytes(), &chars, kLeft, kRight);
  }
  // What is left is paid for below.
  if (!runtime.ChargeBytes(text.size() - (bounds.second - bounds.first))) {
    return Value();
  }
  return runtime.String(text.Slice(bounds.first, bounds.second));
}

Value SplitWhitespace(Runtime& runtime, const Text& text, int64_t max_splits,
                      bool from_right) {
  std::vector<Value> parts;
  size_t begin = 0;
  size_t end = text.size();
  const absl::string_view bytes = text.bytes();
  while (runtime.ok()) {
    const bool may_split =
        max_splits < 0 || static_cast<int64_t>(parts.size()) < max_splits;
    // Only the near end: the last part keeps the space at its far end.
    const auto [left, right] = StripBounds(bytes.substr(begin, end - begin),
                                           nullptr, !from_right, from_right);
    end = begin + right;
    begin += left;
    if (begin >= end) break;
    // Words are taken from one end; the last part keeps what is left.
    size_t cut = from_right ? begin : end;
    if (may_split) {
      int32_t c;
      size_t word_begin = begin;
      size_t pos = begin;
      while (pos < end) {
        const int length = DecodeUtf8(bytes, pos, &c);
        if (IsSpace(c)) {
          if (!from_right) {
            cut = pos;
            break;
          }
          word_begin = pos + length;
        }
        pos += length;
      }
      // From the right the whole rest is scanned for each word.
      if (from_right) {
        runtime.ChargeBytes(end - begin);
        cut = word_begin;
      }
    }
    if (from_right) {
      parts.push_back(runtime.String(text.Slice(cut, end)));
      end = cut;
    } else {
      parts.push_back(runtime.String(text.Slice(begin, cut)));
      begin = cut;
    }
  }
  if (from_right) std::reverse(parts.begin(), parts.end());
  return runtime.List(std::move(parts));
}

template <bool kFromRight>
Value Split(Runtime& runtime, const Value& self, const Arguments& arguments) {
  const auto bound = runtime.Bind("split", arguments, {"sep", "maxsplit"});
  const int64_t max_splits = IntegerOr(runtime, bound[1], -1);
  const Text& text = self.text();
  if (!runtime.ok() || !runtime.ChargeBytes(text.size())) return Value();
  if (bound[0] == nullptr || bound[0]->Is(Kind::kNone)) {
    return SplitWhitespace(runtime, text, max_splits, kFromRight);
  }
  if (!RequireString(runtime, *bound[0])) return Value();
  const std::string& separator = bound[0]->text().bytes();
  if (separator.empty()) return runtime.Fail("empty separator");
  std::vector<Value> parts;
  const auto may_split = [&] {
    return runtime.ok() &&
           (max_splits < 0 || static_cast<int64_t>(parts.size()) < max_splits);
  };
  size_t begin = 0;
  size_t end = text.size();
  while (may_split()) {
    const absl::string_view rest(text.bytes().data() + begin, end - begin);
    const size_t found = kFromRight ? FindLastText(runtime, rest, separator)
                                    : FindText(rest, separator);
    if (found == absl::string_view::npos) break;
    if (kFromRight) {
      parts.push_back(
          runtime.String(text.Slice(found + separator.size(), end)));
      end = found;
    } else {
      parts.push_back(runtime.String(text.Slice(begin, begin + found)));
      begin += found + separator.size();
    }
  }
  parts.push_back(runtime.String(text.Slice(begin, end)));
  if (kFromRight) std::reverse(parts.begin(), parts.end());
  return runtime.List(std::move(parts));
}

Value SplitLines(Runtime& runtime, const Value& self,
                 const Arguments& arguments) {
  const auto bound = runtime.Bind("splitlines", arguments, {"keepends"});
  const bool keep_ends = bound[0] != nullptr && runtime.Truthy(*bound[0]);
  const Text& text = self.text();
  std::vector<Value> lines;
  size_t begin = 0;
  int32_t c;
  for (size_t pos = 0; pos < text.size() && runtime.ok();) {
    size_t next = pos + DecodeUtf8(text.bytes(), pos, &c);
    const bool ends_line = (c >= 0x0A && c <= 0x0D) ||
                           (c >= 0x1C && c <= 0x1E) || c == 0x85 ||
                           c == 0x2028 || c == 0x2029;
    if (ends_line) {
      if (c == '\r' && next < text.size() && text.bytes()[next] == '\n') ++next;
      lines.push_back(
          runtime.String(text.Slice(begin, keep_ends ? next : pos)));
      begin = next;
    }
    pos = next;
  }
  if (begin < text.size()) {
    lines.push_back(runtime.String(text.Slice(begin, text.size())));
  }
  return runtime.List(std::move(lines));
}

// startswith and endswith with a string or a tuple of strings. Their optional
// bounds are taken as Python does.
template <bool kAtStart>
Value HasAffix(Runtime& runtime, const Value& self,
               const Arguments& arguments) {
  const auto bound =
      runtime.Bind("startswith", arguments, {"prefix", "start", "end"}, 1);
  if (!runtime.ok()) return Value();
  Value text = self;
  if (bound[1] != nullptr || bound[2] != nullptr) {
    text = runtime.Slice(self, bound[1] != nullptr ? *bound[1] : Value::None(),
                         bound[2] != nullptr ? *bound[2] : Value::None(),
                         Value::None());
    if (!text.IsString()) return runtime.Fail("slice indices must be integers");
  }
  std::vector<Value> affixes = {*bound[0]};
  if (bound[0]->Is(Kind::kSequence) &&
      bound[0]->sequence().kind == SequenceKind::kTuple) {
    affixes = runtime.Iterate(*bound[0]);
  }
  for (const Value& affix : affixes) {
    if (!RequireString(runtime, affix)) return Value();
    if (!runtime.ChargeBytes(affix.text().size())) return Value();
    if (kAtStart ? absl::StartsWith(text.bytes(), affix.bytes())
                 : absl::EndsWith(text.bytes(), affix.bytes())) {
      return Value::Bool(true);
    }
  }
  return Value::Bool(false);
}

// removeprefix and removesuffix.
template <bool kAtStart>
Value RemoveAffix(Runtime& runtime, const Value& self,
                  const Arguments& arguments) {
  const auto bound = runtime.Bind("removeprefix", arguments, {"affix"}, 1);
  if (!runtime.ok() || !RequireString(runtime, *bound[0])) return Value();
  const absl::string_view affix = bound[0]->bytes();
  const Text& text = self.text();
  if (!runtime.ChargeBytes(affix.size())) return Value();
  if (kAtStart && absl::StartsWith(text.bytes(), affix)) {
    return runtime.String(text.Slice(affix.size(), text.size()));
  }
  if (!kAtStart && absl::EndsWith(text.bytes(), affix)) {
    return runtime.String(text.Slice(0, text.size() - affix.size()));
  }
  return self;
}

Value Replace(Runtime& runtime, const Value& self, const Arguments& arguments) {
  const auto bound =
      runtime.Bind("replace", arguments, {"old", "new", "count"}, 2);
  int64_t count = IntegerOr(runtime, bound[2], -1);
  if (!runtime.ok() || !RequireString(runtime, *bound[0]) ||
      !RequireString(runtime, *bound[1])) {
    return Value();
  }
  return runtime.String(ReplaceText(runtime, self.text(), bound[0]->bytes(),
                                    bound[1]->text(), count));
}

// find, rfind, index and rindex: positions in code points.
template <bool kFromRight, bool kMustFind>
Value Find(Runtime& runtime, const Value& self, const Arguments& arguments) {
  const auto bound =
      runtime.Bind("find", arguments, {"sub", "start", "end"}, 1);
  if (!runtime.ok() || !RequireString(runtime, *bound[0])) return Value();
  const Text& text = self.text();
  if (!runtime.ChargeBytes(2 * text.size())) return Value();
  const std::vector<size_t> offsets = CodePointOffsets(text.bytes());
  const int64_t length = static_cast<int64_t>(offsets.size()) - 1;
  const auto resolve = [&](const Value* value, int64_t absent) {
    if (value != nullptr && value->Is(Kind::kNone)) value = nullptr;
    int64_t index = IntegerOr(runtime, value, absent);
    if (index < 0) index = std::max<int64_t>(index + length, 0);
    return index;
  };
  const int64_t start = resolve(bound[1], 0);
  const int64_t end = std::min(resolve(bound[2], length), length);
  size_t found = absl::string_view::npos;
  if (start <= end) {
    const absl::string_view range(text.bytes().data() + offsets[start],
                                  offsets[end] - offsets[start]);
    found = kFromRight ? FindLastText(runtime, range, bound[0]->bytes())
                       : FindText(range, bound[0]->bytes());
  }
  if (found == absl::string_view::npos) {
    return kMustFind ? runtime.Fail("substring not found") : Value::Int(-1);
  }
  const auto at =
      std::lower_bound(offsets.begin(), offsets.end(), offsets[start] + found);
  return Value::Int(at - offsets.begin());
}

Value CountSubstring(Runtime& runtime, const Value& self,
                     const Arguments& arguments) {
  const auto bound =
      runtime.Bind("count", arguments, {"sub", "start", "end"}, 1);
  if (!runtime.ok() || !RequireString(runtime, *bound[0])) return Value();
  Value text = self;
  if (bound[1] != nullptr || bound[2] != nullptr) {
    text = runtime.Slice(self, bound[1] != nullptr ? *bound[1] : Value::None(),
                         bound[2] != nullptr ? *bound[2] : Value::None(),
                         Value::None());
    if (!text.IsString()) return runtime.Fail("slice indices must be integers");
  }
  const absl::string_view sub = bound[0]->bytes();
  if (sub.empty()) return Value::Int(runtime.Length(text) + 1);
  if (!runtime.ChargeBytes(text.text().size())) return Value();
  int64_t count = 0;
  for (size_t pos = FindText(text.bytes(), sub); pos != absl::string_view::npos;
       pos = FindText(text.bytes(), sub, pos + sub.size())) {
    ++count;
  }
  return Value::Int(count);
}

bool TakesNothing(Runtime& runtime, const Arguments& arguments) {
  runtime.Bind("method", arguments, {});
  return runtime.ok();
}

Value Upper(Runtime& runtime, const Value& self, const Arguments& arguments) {
  if (!TakesNothing(runtime, arguments)) return Value();
  return runtime.String(ToUpper(self.text()));
}

Value Lower(Runtime& runtime, const Value& self, const Arguments& arguments) {
  if (!TakesNothing(runtime, arguments)) return Value();
  return runtime.String(ToLower(self.text()));
}

Value Capitalize(Runtime& runtime, const Value& self,
                 const Arguments& arguments) {
  if (!TakesNothing(runtime, arguments)) return Value();
  return runtime.String(CapitalizeText(self.text()));
}

Value Title(Runtime& runtime, const Value& self, const Arguments& arguments) {
  if (!TakesNothing(runtime, arguments)) return Value();
  const Text& text = self.text();
  if (!runtime.ChargeBytes(kBytesByLetter * text.size())) return Value();
  Text result;
  bool in_word = false;
  int32_t c;
  for (size_t pos = 0; pos < text.size();) {
    const size_t next = pos + DecodeUtf8(text.bytes(), pos, &c);
    const Text letter = text.Slice(pos, next);
    result.Append(in_word ? ToLower(letter) : ToUpper(letter));
    in_word = IsAlpha(c);
    pos = next;
  }
  return runtime.String(std::move(result));
}

Value SwapCase(Runtime& runtime, const Value& self,
               const Arguments& arguments) {
  if (!TakesNothing(runtime, arguments)) return Value();
  const Text& text = self.text();
  if (!runtime.ChargeBytes(kBytesByLetter * text.size())) return Value();
  Text result;
  int32_t c;
  for (size_t pos = 0; pos < text.size();) {
    const size_t next = pos + DecodeUtf8(text.bytes(), pos, &c);
    const Text letter = text.Slice(pos, next);
    result.Append(IsUpper(c) ? ToLower(letter) : ToUpper(letter));
    pos = next;
  }
  return runtime.String(std::move(result));
}

// isdigit and its like: the text is not empty and every code point qualifies.
template <bool (*kQualifies)(int32_t)>
Value All(Runtime& runtime, const Value& self, const Arguments& arguments) {
  if (!TakesNothing(runtime, arguments)) return Value();
  const absl::string_view bytes = self.bytes();
  if (!runtime.ChargeBytes(bytes.size())) return Value();
  int32_t c;
  for (size_t pos = 0; pos < bytes.size();) {
    pos += DecodeUtf8(bytes, pos, &c);
    if (!kQualifies(c)) return Value::Bool(false);
  }
  return Value::Bool(!bytes.empty());
}

bool IsAlphaOrDigit(int32_t c) { return IsAlpha(c) || IsDigit(c); }
bool IsAscii(int32_t c) { return c < 0x80; }

Value IsAsciiText(Runtime& runtime, const Value& self,
                  const Arguments& arguments) {
  return Value::Bool(self.text().empty() ||
                     All<IsAscii>(runtime, self, arguments).boolean());
}

Value IsUpperText(Runtime& runtime, const Value& self,
                  const Arguments& arguments) {
  return Value::Bool(TakesNothing(runtime, arguments) &&
                     runtime.ChargeBytes(self.text().size()) &&
                     HasCase(self.bytes(), true));
}

Value IsLowerText(Runtime& runtime, const Value& self,
                  const Arguments& arguments) {
  return Value::Bool(TakesNothing(runtime, arguments) &&
                     runtime.ChargeBytes(self.text().size()) &&
                     HasCase(self.bytes(), false));
}

Value JoinStrings(Runtime& runtime, const Value& self,
                  const Arguments& arguments) {
  const auto bound = runtime.Bind("join", arguments, {"iterable"}, 1);
  if (!runtime.ok()) return Value();
  Text result;
  bool is_first = true;
  for (const Value& item : runtime.Iterate(*bound[0])) {
    if (!RequireString(runtime, item)) return Value();
    if (!is_first) result.Append(self.text());
    is_first = false;
    result.Append(item.text());
    if (!CheckGrowth(runtime, result, item.text().size() + self.text().size()))
      return Value();
  }
  return runtime.String(std::move(result));
}

Value FormatString(Runtime& runtime, const Value& self,
                   const Arguments& arguments) {
  return BraceFormat(runtime, self.text(), arguments);
}

// ljust, rjust and center; `kWhere` is '<', '>' or '^'.
template <char kWhere>
Value Justify(Runtime& runtime, const Value& self, const Arguments& arguments) {
  const auto bound =
      runtime.Bind("justify", arguments, {"width", "fillchar"}, 1);
  const int64_t width = IntegerOr(runtime, bound[0], 0);
  if (!runtime.ok()) return Value();
  Text fill(" ", true);
  if (bound[1] != nullptr) {
    if (!RequireString(runtime, *bound[1])) return Value();
    fill = bound[1]->text();
    if (CountCodePoints(fill.bytes()) != 1) {
      return runtime.Fail("the fill character must be one character");
    }
  }
  return runtime.String(PadText(runtime, self.text(), width, fill, kWhere));
}

Value ZeroFill(Runtime& runtime, const Value& self,
               const Arguments& arguments) {
  const auto bound = runtime.Bind("zfill", arguments, {"width"}, 1);
  const int64_t width = IntegerOr(runtime, bound[0], 0);
  if (!runtime.ok()) return Value();
  const Text& text = self.text();
  const bool has_sign =
      !text.empty() && (text.bytes()[0] == '+' || text.bytes()[0] == '-');
  Text result = text.Slice(0, has_sign);
  result.Append(PadText(runtime, text.Slice(has_sign, text.size()),
                        std::max<int64_t>(width, 1) - has_sign, Text("0", true),
                        '>'));
  return runtime.String(std::move(result));
}

// partition and rpartition.
template <bool kFromRight>
Value Partition(Runtime& runtime, const Value& self,
                const Arguments& arguments) {
  const auto bound = runtime.Bind("partition", arguments, {"sep"}, 1);
  if (!runtime.ok() || !RequireString(runtime, *bound[0])) return Value();
  const Text& text = self.text();
  const std::string& separator = bound[0]->text().bytes();
  if (separator.empty()) return runtime.Fail("empty separator");
  if (!runtime.ChargeBytes(text.size())) return Value();
  const size_t found = kFromRight
                           ? FindLastText(runtime, text.bytes(), separator)
                           : FindText(text.bytes(), separator);
  const Value empty = runtime.String("");
  if (found == std::string::npos) {
    return kFromRight
               ? runtime.List({empty, empty, self}, SequenceKind::kTuple)
               : runtime.List({self, empty, empty}, SequenceKind::kTuple);
  }
  return runtime.List(
      {runtime.String(text.Slice(0, found)), *bound[0],
       runtime.String(text.Slice(found + separator.size(), text.size()))},
      SequenceKind::kTuple);
}

// ---- Dictionaries ----------------------------------------------------------

Value Keys(Runtime& runtime, const Value& self, const Arguments& arguments) {
  if (!TakesNothing(runtime, arguments)) return Value();
  return runtime.List(runtime.Iterate(self), SequenceKind::kDictKeys);
}

Value Values(Runtime& runtime, const Value& self, const Arguments& arguments) {
  if (!TakesNothing(runtime, arguments)) return Value();
  std::vector<Value> items;
  for (const auto& [key, value] : self.dict().items) items.push_back(value);
  return runtime.List(std::move(items), SequenceKind::kDictValues);
}

Value Items(Runtime& runtime, const Value& self, const Arguments& arguments) {
  if (!TakesNothing(runtime, arguments)) return Value();
  return DictItems(runtime, self);
}

Value Get(Runtime& runtime, const Value& self, const Arguments& arguments) {
  if (!arguments.named.empty()) {
    return runtime.Fail("get() takes no keyword arguments");
  }
  const auto bound = runtime.Bind("get", arguments, {"key", "default"}, 1);
  if (!runtime.ok()) return Value();
  const Value* value = runtime.FindEntry(self, *bound[0]);
  if (value != nullptr) return *value;
  return bound[1] != nullptr ? *bound[1] : Value::None();
}

Value CopyOf(Runtime& runtime, const Value& self, const Arguments& arguments) {
  TakesNothing(runtime, arguments);
  return self;  // Neither can change.
}

// ---- Lists and tuples ------------------------------------------------------

Value CountItem(Runtime& runtime, const Value& self,
                const Arguments& arguments) {
  const auto bound = runtime.Bind("count", arguments, {"value"}, 1);
  int64_t count = 0;
  for (const Value& item : self.sequence().items) {
    if (!runtime.ok()) break;
    count += runtime.Equal(item, *bound[0]);
  }
  return Value::Int(count);
}

Value IndexOfItem(Runtime& runtime, const Value& self,
                  const Arguments& arguments) {
  const auto bound = runtime.Bind("index", arguments, {"value"}, 1);
  const std::vector<Value>& items = self.sequence().items;
  for (size_t i = 0; i < items.size() && runtime.ok(); ++i) {
    if (runtime.Equal(items[i], *bound[0])) return Value::Int(i);
  }
  return runtime.Fail("value is not in list");
}

// ---- Loops and cyclers -----------------------------------------------------

Value Cycle(Runtime& runtime, const Value& self, const Arguments& arguments) {
  if (arguments.positional.empty()) {
    return runtime.Fail("no items for cycling given");
  }
  return arguments.positional[self.loop().index0 % arguments.positional.size()];
}

Value Changed(Runtime& runtime, const Value& self, const Arguments& arguments) {
  LoopState& loop = self.loop();
  const Value now =
      runtime.List({arguments.positional.begin(), arguments.positional.end()},
                   SequenceKind::kTuple);
  if (DepthOf(now) + 1 > kMaxValueDepth || !runtime.ok()) return Value();
  const bool is_same =
      loop.has_changed && runtime.Equal(loop.last_changed, now);
  if (!loop.has_changed) runtime.Keep(self);
  loop.has_changed = true;
  loop.last_changed = now;
  return Value::Bool(!is_same);
}

Value NextOfCycler(Runtime& runtime, const Value& self,
                   const Arguments& arguments) {
  if (!TakesNothing(runtime, arguments)) return Value();
  const Function& cycler = self.function();
  const std::vector<Value>& items = cycler.self.sequence().items;
  return items[cycler.position++ % items.size()];
}

Value ResetCycler(Runtime& runtime, const Value& self,
                  const Arguments& arguments) {
  if (TakesNothing(runtime, arguments)) self.function().position = 0;
  return Value::None();
}

using MethodTable = absl::flat_hash_map<absl::string_view, MethodFunction>;

const MethodTable& StringMethods() {
  static const MethodTable* const table = new MethodTable{
      {"strip", Strip<true, true>},
      {"lstrip", Strip<true, false>},
      {"rstrip", Strip<false, true>},
      {"split", Split<false>},
      {"rsplit", Split<true>},
      {"splitlines", SplitLines},
      {"startswith", HasAffix<true>},
      {"endswith", HasAffix<false>},
      {"removeprefix", RemoveAffix<true>},
      {"removesuffix", RemoveAffix<false>},
      {"replace", Replace},
      {"find", Find<false, false>},
      {"rfind", Find<true, false>},
      {"index", Find<false, true>},
      {"rindex", Find<true, true>},
      {"count", CountSubstring},
      {"upper", Upper},
      {"lower", Lower},
      {"casefold", Lower},
      {"capitalize", Capitalize},
      {"title", Title},
      {"swapcase", SwapCase},
      {"isdigit", All<IsDigit>},
      {"isdecimal", All<IsDigit>},
      {"isnumeric", All<IsDigit>},
      {"isalpha", All<IsAlpha>},
      {"isalnum", All<IsAlphaOrDigit>},
      {"isspace", All<IsSpace>},
      {"isascii", IsAsciiText},
      {"isupper", IsUpperText},
      {"islower", IsLowerText},
      {"join", JoinStrings},
      {"format", FormatString},
      {"ljust", Justify<'<'>},
      {"rjust", Justify<'>'>},
      {"center", Justify<'^'>},
      {"zfill", ZeroFill},
      {"partition", Partition<false>},
      {"rpartition", Partition<true>},
  };
  return *table;
}

const MethodTable& DictMethods() {
  static const MethodTable* const table = new MethodTable{
      {"keys", Keys}, {"values", Values}, {"items", Items},
      {"get", Get},   {"copy", CopyOf},
  };
  return *table;
}

const MethodTable& ListMethods() {
  static const MethodTable* const table = new MethodTable{
      {"count", CountItem}, {"index", IndexOfItem}, {"copy", CopyOf}};
  return *table;
}

const MethodTable& LoopMethods() {
  static const MethodTable* const table =
      new MethodTable{{"cycle", Cycle}, {"changed", Changed}};
  return *table;
}

const MethodTable& CyclerMethods() {
  static const MethodTable* const table =
      new MethodTable{{"next", NextOfCycler}, {"reset", ResetCycler}};
  return *table;
}

const MethodTable* TableFor(const Value& self) {
  switch (self.kind()) {
    case Kind::kString:
      return &StringMethods();
    case Kind::kDict:
      return &DictMethods();
    case Kind::kSequence:
      return self.sequence().kind <= SequenceKind::kRange ? &ListMethods()
                                                          : nullptr;
    case Kind::kLoop:
      return &LoopMethods();
    case Kind::kFunction:
      return self.function().type == Function::Type::kCycler ? &CyclerMethods()
                                                             : nullptr;
    default:
      return nullptr;
  }
}

bool IsMutator(const Value& self, absl::string_view name) {
  static constexpr absl::string_view kDict[] = {"clear", "pop", "popitem",
                                                "setdefault", "update"};
  static constexpr absl::string_view kList[] = {"append",  "clear",  "pop",
                                                "reverse", "insert", "sort",
                                                "extend",  "remove"};
  if (self.Is(Kind::kDict)) {
    return std::find(std::begin(kDict), std::end(kDict), name) !=
           std::end(kDict);
  }
  if (!self.Is(Kind::kSequence)) return false;
  if (self.sequence().kind == SequenceKind::kTuple) return false;
  return std::find(std::begin(kList), std::end(kList), name) != std::end(kList);
}

}  // namespace

MethodAccess FindMethod(const Value& self, absl::string_view name) {
  const MethodTable* const table = TableFor(self);
  if (table == nullptr) return MethodAccess::kNone;
  if (table->contains(name)) {
    // A tuple or range has fewer than a list.
    if (name == "copy" && self.Is(Kind::kSequence) &&
        self.sequence().kind != SequenceKind::kList) {
      return MethodAccess::kNone;
    }
    return MethodAccess::kSafe;
  }
  return IsMutator(self, name) ? MethodAccess::kUnsafe : MethodAccess::kNone;
}

Value CallMethod(Runtime& runtime, const Value& self, absl::string_view name,
                 const Arguments& arguments) {
  const MethodTable* const table = TableFor(self);
  if (table != nullptr) {
    const auto it = table->find(name);
    if (it != table->end()) return it->second(runtime, self, arguments);
  }
  return runtime.Fail(absl::StrCat("no method '", name, "'"));
}

}  // namespace quire::jinja
