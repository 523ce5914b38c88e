#include "tokenizer/jinja/operations.h"

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"

namespace quire::jinja {

bool CheckGrowth(Runtime& runtime, const Text& text, int64_t num_bytes) {
  if (static_cast<int64_t>(text.size()) > runtime.limits().max_output_bytes) {
    runtime.FailLimit("text is too long");
    return false;
  }
  return runtime.ChargeBytes(num_bytes);
}

Text ReplaceText(Runtime& runtime, const Text& text, absl::string_view old_text,
                 const Text& new_text, int64_t count) {
  Text result;
  if (!runtime.ChargeBytes(text.size())) return result;
  const std::string& bytes = text.bytes();
  size_t pos = 0;
  for (int64_t replaced = 0; count < 0 || replaced < count; ++replaced) {
    if (old_text.empty()) {
      result.Append(new_text);
      if (pos >= bytes.size()) return result;
      int32_t c;
      const size_t next = pos + DecodeUtf8(bytes, pos, &c);
      result.AppendRange(text, pos, next);
      pos = next;
    } else {
      const size_t found = FindText(bytes, old_text, pos);
      if (found == std::string::npos) break;
      result.AppendRange(text, pos, found);
      result.Append(new_text);
      pos = found + old_text.size();
    }
    if (!CheckGrowth(runtime, result, new_text.size())) return Text();
  }
  result.AppendRange(text, pos, bytes.size());
  return result;
}

size_t FindLastText(Runtime& runtime, absl::string_view text,
                    absl::string_view part) {
  if (part.size() > text.size()) return absl::string_view::npos;
  // It compares all of `part` at each place.
  if (part.size() < 64) return text.rfind(part);
  if (!runtime.ChargeBytes(text.size())) return absl::string_view::npos;
  const std::string reversed_text(text.rbegin(), text.rend());
  const std::string reversed_part(part.rbegin(), part.rend());
  const size_t found = FindText(reversed_text, reversed_part);
  return found == absl::string_view::npos ? found
                                          : text.size() - found - part.size();
}

Text CapitalizeText(const Text& text) {
  if (text.empty()) return text;
  int32_t c;
  const size_t first = DecodeUtf8(text.bytes(), 0, &c);
  Text result = ToUpper(text.Slice(0, first));
  result.Append(ToLower(text.Slice(first, text.size())));
  return result;
}

bool HasCase(absl::string_view text, bool is_upper) {
  bool found = false;
  int32_t c;
  for (size_t pos = 0; pos < text.size();) {
    pos += DecodeUtf8(text, pos, &c);
    if (is_upper ? IsLower(c) : IsUpper(c)) return false;
    found |= is_upper ? IsUpper(c) : IsLower(c);
  }
  return found;
}

Text PadText(Runtime& runtime, const Text& text, int64_t width,
             const Text& fill, char align, bool is_center) {
  const int64_t missing =
      std::max<int64_t>(width, 0) - CountCodePoints(text.bytes());
  if (missing <= 0) return text;
  if (missing > runtime.limits().max_output_bytes ||
      !runtime.ChargeBytes(missing * static_cast<int64_t>(fill.size()))) {
    runtime.FailLimit("padded text is too long");
    return Text();
  }
  int64_t left = align == '>' ? missing : 0;
  if (align == '^') {
    left = missing / 2 + (is_center ? (missing & width & 1) : 0);
  }
  Text result;
  for (int64_t i = 0; i < left; ++i) result.Append(fill);
  result.Append(text);
  for (int64_t i = left; i < missing; ++i) result.Append(fill);
  return result;
}

Value DictItems(Runtime& runtime, const Value& dict) {
  std::vector<Value> items;
  for (const auto& [key, value] : dict.dict().items) {
    if (!runtime.ok()) break;
    items.push_back(runtime.List({key, value}, SequenceKind::kTuple));
  }
  return runtime.List(std::move(items), SequenceKind::kDictItems);
}

Value MakeRange(Runtime& runtime, const Arguments& arguments) {
  const size_t count = arguments.positional.size();
  if (count < 1 || count > 3 || !arguments.named.empty()) {
    return runtime.Fail("range takes 1 to 3 arguments");
  }
  for (const Value& value : arguments.positional) {
    if (value.IsUndefined()) return runtime.FailUndefined(value);
    if (!value.IsInteger()) {
      return runtime.Fail(absl::StrCat("'", TypeName(value),
                                       "' object cannot be interpreted as an "
                                       "integer"));
    }
  }
  const int64_t start = count > 1 ? arguments.positional[0].integer() : 0;
  const int64_t stop = arguments.positional[count > 1 ? 1 : 0].integer();
  const int64_t step = count > 2 ? arguments.positional[2].integer() : 1;
  if (step == 0) return runtime.Fail("range() arg 3 must not be zero");
  // 128 bits: the difference of two 64-bit bounds may need 65.
  const __int128 span =
      step > 0 ? __int128{stop} - start : __int128{start} - stop;
  const __int128 stride = step > 0 ? __int128{step} : -__int128{step};
  const __int128 length = span <= 0 ? 0 : (span + stride - 1) / stride;
  if (length > runtime.limits().max_range) {
    return runtime.FailLimit(absl::StrCat(
        "range is longer than ", runtime.limits().max_range, " items"));
  }
  std::vector<Value> items;
  items.reserve(static_cast<size_t>(length));
  for (int64_t i = 0; i < static_cast<int64_t>(length); ++i) {
    items.push_back(Value::Int(start + i * step));
  }
  return runtime.List(std::move(items), SequenceKind::kRange);
}

}  // namespace quire::jinja
