#include "tokenizer/jinja/text_filters.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/string_view.h"
#include "tokenizer/jinja/filter_arguments.h"
#include "tokenizer/jinja/filters.h"
#include "tokenizer/jinja/format.h"
#include "tokenizer/jinja/methods.h"
#include "tokenizer/jinja/operations.h"

namespace quire::jinja {
namespace {

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

Value Title(Runtime& runtime, const Value& input, const Arguments& arguments) {
  runtime.Bind("title", arguments, {});
  const Text text = runtime.ToText(input);
  if (!runtime.ok() || !runtime.ChargeBytes(kBytesByLetter * text.size())) {
    return Value();
  }
  return runtime.String(TitleText(text));
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
  const int64_t size = runtime.Length(input);
  // Not length + leeway: the template chooses both, and the sum may overflow.
  if (size <= length || size - length <= leeway || !runtime.ok()) return input;
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

// A dictionary as attributes of a tag.
Value XmlAttributes(Runtime& runtime, const Value& input,
                    const Arguments& arguments) {
  const auto bound = runtime.Bind("xmlattr", arguments, {"autospace"});
  const bool begins_with_space = TruthyOr(runtime, bound[0], true);
  if (!runtime.ok()) return Value();
  if (input.IsUndefined()) return runtime.FailUndefined(input);
  if (!input.Is(Kind::kDict)) return runtime.Fail("xmlattr: not a mapping");
  Text result;
  for (const auto& [key, value] : input.dict().items) {
    if (value.Is(Kind::kNone) || value.IsUndefined()) continue;
    if (!key.IsString() || key.bytes().find_first_of(" \t\n\v\f\r/>=") !=
                               absl::string_view::npos) {
      return runtime.Fail("invalid character in attribute name");
    }
    if (begins_with_space || !result.empty()) result.Append(" ", true);
    const size_t old_size = result.size();
    result.Append(EscapeHtml(key.text()));
    result.Append("=\"", true);
    result.Append(EscapeHtml(runtime.ToText(value)));
    result.Append("\"", true);
    if (!CheckGrowth(runtime, result, result.size() - old_size)) return Value();
  }
  return runtime.String(std::move(result));
}

Value FileSizeFormat(Runtime& runtime, const Value& input,
                     const Arguments& arguments) {
  static constexpr absl::string_view kUnits = "kMGTPEZY";
  const auto bound = runtime.Bind("filesizeformat", arguments, {"binary"});
  const bool is_binary = TruthyOr(runtime, bound[0], false);
  // float(value) of Python: an error where the filter `float` has a default.
  Arguments unusual;
  unusual.positional.push_back(Value::None());
  const Value size = FindFilter("float")(runtime, input, unusual);
  if (!runtime.ok()) return Value();
  if (!size.IsNumber()) return runtime.Fail("filesizeformat: not a number");
  const double num_bytes = size.number();
  if (num_bytes == 1) return runtime.String("1 Byte");
  const double base = is_binary ? 1024 : 1000;
  if (num_bytes < base) {
    if (!(num_bytes > -0x1p63)) return runtime.Fail("cannot show this number");
    return runtime.String(
        absl::StrCat(static_cast<int64_t>(num_bytes), " Bytes"));
  }
  if (std::isnan(num_bytes)) return runtime.Fail("cannot show this number");
  // Exact, as Python's integers: 1e24 is a little less than 10^24.
  long double unit = base * base;
  size_t i = 0;
  for (; i + 1 < kUnits.size() && num_bytes >= unit; ++i) unit *= base;
  const char prefix = is_binary ? absl::ascii_toupper(kUnits[i]) : kUnits[i];
  return runtime.String(absl::StrFormat(
      "%.1f %c%sB", base * num_bytes / static_cast<double>(unit), prefix,
      is_binary ? "i" : ""));
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

}  // namespace

FilterFunction FindTextFilter(absl::string_view name) {
  using Table = absl::flat_hash_map<absl::string_view, FilterFunction>;
  static const Table* const table = new Table{
      {"capitalize", MapText<CapitalizeText>},
      {"center", Center},
      {"e", MapText<EscapeHtml>},
      {"escape", MapText<EscapeHtml>},
      {"filesizeformat", FileSizeFormat},
      {"forceescape", MapText<EscapeHtml>},
      {"format", FormatFilter},
      {"indent", Indent},
      {"join", Join},
      {"lower", MapText<ToLower>},
      {"replace", ReplaceFilter},
      {"safe", MapText<SameText>},
      {"string", MapText<SameText>},
      {"title", Title},
      {"trim", Trim},
      {"truncate", TruncateFilter},
      {"upper", MapText<ToUpper>},
      {"urlencode", UrlEncode},
      {"wordcount", WordCount},
      {"xmlattr", XmlAttributes},
  };
  const auto it = table->find(name);
  return it == table->end() ? nullptr : it->second;
}

}  // namespace quire::jinja
