#include "tokenizer/jinja/format.h"

#include <time.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/civil_time.h"
#include "absl/time/time.h"
#include "tokenizer/jinja/operations.h"

namespace quire::jinja {
namespace {

// Digits after the point that a format may ask for.
constexpr int kMaxPrecision = 100;

// What a conversion asks for, of either kind of formatting.
struct Spec {
  Text fill = Text(" ", true);
  char align = 0;  // < > ^ =, or 0 for the default of the type.
  char sign = '-';
  bool is_alternate = false;
  bool has_commas = false;
  int64_t width = 0;
  int precision = -1;
  char type = 0;
};

// The digits of |value| and its sign, for d x X o b.
std::string IntegerDigits(int64_t value, const Spec& spec) {
  uint64_t rest = value < 0 ? 0 - static_cast<uint64_t>(value) : value;
  const int base = spec.type == 'x' || spec.type == 'X' ? 16
                   : spec.type == 'o'                   ? 8
                   : spec.type == 'b'                   ? 2
                                                        : 10;
  std::string digits;
  do {
    const int digit = static_cast<int>(rest % base);
    digits.push_back("0123456789abcdef"[digit]);
    rest /= base;
    if (spec.has_commas && rest != 0 && digits.size() % 4 == 3) {
      digits.push_back(',');
    }
  } while (rest != 0);
  std::reverse(digits.begin(), digits.end());
  if (spec.type == 'X') absl::AsciiStrToUpper(&digits);
  if (spec.is_alternate && base != 10) {
    digits = absl::StrCat("0", absl::string_view(&spec.type, 1), digits);
  }
  return digits;
}

void AddCommas(std::string* number) {
  const size_t end = std::min(number->find_first_of(".e%"), number->size());
  for (size_t pos = end; pos > 3;) {
    pos -= 3;
    number->insert(pos, 1, ',');
  }
}

// |value| for f F e E g G %, as C prints it.
std::string FloatDigits(double value, const Spec& spec) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return "inf";
  const int precision = spec.precision < 0 ? 6 : spec.precision;
  char format[] = "%.*f";
  format[3] = spec.type == '%' ? 'f' : spec.type;
  if (spec.type == 'n') format[3] = 'g';
  char buffer[512];  // 309 digits, the precision and more.
  std::snprintf(buffer, sizeof(buffer), format, precision,
                std::abs(spec.type == '%' ? value * 100 : value));
  std::string digits = buffer;
  if (spec.has_commas) AddCommas(&digits);
  if (spec.type == '%') digits += '%';
  return digits;
}

Text Pad(Runtime& runtime, const Text& body, absl::string_view sign,
         const Spec& spec, char default_align) {
  const char align = spec.align == 0 ? default_align : spec.align;
  if (align == '=') {
    Text result(sign, true);
    result.Append(PadText(runtime, body,
                          spec.width - static_cast<int64_t>(sign.size()),
                          spec.fill, '>'));
    return result;
  }
  Text signed_body(sign, true);
  signed_body.Append(body);
  return PadText(runtime, signed_body, spec.width, spec.fill, align, false);
}

Text FormatNumber(Runtime& runtime, const Value& value, const Spec& spec) {
  const bool is_float =
      std::string("fFeEgG%n").find(spec.type) != std::string::npos &&
      spec.type != 0;
  bool is_negative;
  std::string digits;
  if (is_float) {
    is_negative = std::signbit(value.number());
    digits = FloatDigits(value.number(), spec);
  } else {
    const int64_t number =
        value.Is(Kind::kFloat)
            ? static_cast<int64_t>(std::clamp(value.number(), -9.2e18, 9.2e18))
            : value.integer();
    is_negative = number < 0;
    digits = IntegerDigits(number, spec);
    // printf's precision of integers: the least number of digits.
    while (static_cast<int>(digits.size()) < spec.precision) {
      digits.insert(0, 1, '0');
    }
  }
  const absl::string_view sign = is_negative        ? "-"
                                 : spec.sign == '+' ? "+"
                                 : spec.sign == ' ' ? " "
                                                    : "";
  return Pad(runtime, Text(digits, true), sign, spec, '>');
}

Text Truncate(Runtime& runtime, const Text& text, int precision) {
  if (precision < 0 || !runtime.ChargeBytes(text.size())) return text;
  const std::vector<size_t> offsets = CodePointOffsets(text.bytes());
  if (static_cast<size_t>(precision) + 1 >= offsets.size()) return text;
  return text.Slice(0, offsets[precision]);
}

Text Repr(Runtime& runtime, const Value& value) {
  std::string out;
  bool has_user_text = false;
  runtime.AppendRepr(value, &out, &has_user_text);
  return Text(out, !has_user_text);
}

// A decimal number at *pos; -1 if there is none, an error if it is too large.
int64_t ParseCount(Runtime& runtime, absl::string_view format, size_t* pos) {
  int64_t number = -1;
  while (*pos < format.size() && absl::ascii_isdigit(format[*pos])) {
    number = std::max<int64_t>(number, 0) * 10 + (format[*pos] - '0');
    if (number > runtime.limits().max_output_bytes) {
      runtime.FailLimit("width of a format is too large");
      return 0;
    }
    ++*pos;
  }
  return number;
}

int CheckPrecision(Runtime& runtime, int64_t precision) {
  if (precision <= kMaxPrecision) return static_cast<int>(precision);
  runtime.FailLimit("precision of a format is too large");
  return 0;
}

// The arguments of a printf-style format, in order.
class PercentArguments {
 public:
  PercentArguments(Runtime& runtime, const Value& arguments)
      : runtime_(runtime), arguments_(arguments) {
    if (arguments.Is(Kind::kSequence) &&
        arguments.sequence().kind == SequenceKind::kTuple) {
      items_ = runtime.Iterate(arguments);
    } else {
      items_ = {arguments};
    }
  }

  Value Next() {
    if (next_ < items_.size()) return items_[next_++];
    return runtime_.Fail("not enough arguments for format string");
  }

  Value Named(absl::string_view name) {
    next_ = items_.size();
    if (!arguments_.Is(Kind::kDict)) {
      return runtime_.Fail("format requires a mapping");
    }
    const Value* value = runtime_.FindNamed(arguments_.dict(), name);
    if (value != nullptr) return *value;
    return runtime_.Fail(absl::StrCat("format has no argument '", name, "'"));
  }

  // Left-over arguments are an error, but a mapping may be left unused.
  void Finish() {
    if (next_ < items_.size() && !arguments_.Is(Kind::kDict) &&
        !(arguments_.Is(Kind::kSequence) &&
          arguments_.sequence().kind != SequenceKind::kTuple)) {
      runtime_.Fail("not all arguments converted during string formatting");
    }
  }

 private:
  Runtime& runtime_;
  const Value& arguments_;
  std::vector<Value> items_;
  size_t next_ = 0;
};

Text FormatPercent(Runtime& runtime, const Value& value, Spec spec) {
  const char default_align = spec.align == 0 ? '>' : spec.align;
  switch (spec.type) {
    case 's':
      return Pad(runtime,
                 Truncate(runtime, runtime.ToText(value), spec.precision), "",
                 spec, default_align == '=' ? '>' : default_align);
    case 'r':
    case 'a':
      return Pad(runtime,
                 Truncate(runtime, Repr(runtime, value), spec.precision), "",
                 spec, default_align);
    case 'c':
      if (value.IsString() && runtime.Length(value) == 1) {
        return Pad(runtime, value.text(), "", spec, default_align);
      }
      break;
    default:
      if (value.IsNumber()) {
        const bool is_integral =
            std::string("diuxXo").find(spec.type) != std::string::npos;
        if (is_integral && value.Is(Kind::kFloat) &&
            (std::string("xXo").find(spec.type) != std::string::npos ||
             !std::isfinite(value.number()))) {
          break;
        }
        if (is_integral && spec.type != 'x' && spec.type != 'X' &&
            spec.type != 'o') {
          spec.type = 'd';
        }
        if (spec.precision > 0 && is_integral && spec.align == '=') {
          spec.align = '>';
          spec.fill = Text(" ", true);
        }
        return FormatNumber(runtime, value, spec);
      }
      break;
  }
  if (value.IsUndefined()) {
    runtime.FailUndefined(value);
  } else {
    runtime.Fail(absl::StrCat("%", absl::string_view(&spec.type, 1),
                              " format: a number is required, not ",
                              TypeName(value)));
  }
  return Text();
}

}  // namespace

Value PercentFormat(Runtime& runtime, const Text& format,
                    const Value& arguments) {
  const std::string& bytes = format.bytes();
  // Flags and widths may be all of it and add nothing to the result.
  if (!runtime.ChargeBytes(format.size())) return Value();
  PercentArguments source(runtime, arguments);
  Text result;
  size_t pos = 0;
  while (runtime.ok()) {
    const size_t percent = bytes.find('%', pos);
    if (percent == std::string::npos) break;
    result.AppendRange(format, pos, percent);
    pos = percent + 1;
    if (pos < bytes.size() && bytes[pos] == '%') {
      result.AppendRange(format, pos, pos + 1);
      ++pos;
      continue;
    }
    Value value;
    bool is_named = false;
    if (pos < bytes.size() && bytes[pos] == '(') {
      const size_t close = bytes.find(')', pos);
      if (close == std::string::npos) {
        return runtime.Fail("incomplete format key");
      }
      value = source.Named(
          absl::string_view(bytes).substr(pos + 1, close - pos - 1));
      is_named = true;
      pos = close + 1;
    }
    Spec spec;
    for (; pos < bytes.size(); ++pos) {
      const char c = bytes[pos];
      if (c == '-') {
        if (spec.align != '<') spec.fill = Text(" ", true);
        spec.align = '<';
      } else if (c == '0') {
        if (spec.align == 0) {
          spec.align = '=';
          spec.fill = Text("0", true);
        }
      } else if (c == '+' || c == ' ') {
        if (spec.sign != '+') spec.sign = c;
      } else if (c == '#') {
        spec.is_alternate = true;
      } else {
        break;
      }
    }
    if (pos < bytes.size() && bytes[pos] == '*') {
      return runtime.Fail("a format width of '*' is not supported");
    }
    spec.width = std::max<int64_t>(ParseCount(runtime, bytes, &pos), 0);
    if (pos < bytes.size() && bytes[pos] == '.') {
      ++pos;
      spec.precision = CheckPrecision(
          runtime, std::max<int64_t>(ParseCount(runtime, bytes, &pos), 0));
    }
    while (pos < bytes.size() && (bytes[pos] == 'l' || bytes[pos] == 'h')) {
      ++pos;
    }
    if (pos >= bytes.size()) return runtime.Fail("incomplete format");
    spec.type = bytes[pos++];
    if (std::string("sracdiuxXofFeEgG").find(spec.type) == std::string::npos) {
      return runtime.Fail("unsupported format character");
    }
    if (spec.type == 's' || spec.type == 'r' || spec.type == 'a' ||
        spec.type == 'c') {
      if (spec.align == '=') spec.align = 0;
      spec.fill = Text(" ", true);
    }
    if (!is_named) value = source.Next();
    if (!runtime.ok()) return Value();
    const Text piece = FormatPercent(runtime, value, spec);
    result.Append(piece);
    if (!CheckGrowth(runtime, result, piece.size())) return Value();
  }
  source.Finish();
  result.AppendRange(format, pos, bytes.size());
  return runtime.String(std::move(result));
}

namespace {

// [[fill]align][sign][#][0][width][,][.precision][type]
Spec ParseSpec(Runtime& runtime, const Text& text) {
  Spec spec;
  const absl::string_view bytes = text.bytes();
  size_t pos = 0;
  int32_t c;
  const auto is_align = [&](size_t at) {
    return at < bytes.size() &&
           absl::string_view("<>^=").find(bytes[at]) != absl::string_view::npos;
  };
  const size_t fill_size = bytes.empty() ? 0 : DecodeUtf8(bytes, 0, &c);
  if (is_align(fill_size)) {
    spec.fill = text.Slice(0, fill_size);
    spec.align = bytes[fill_size];
    pos = fill_size + 1;
  } else if (is_align(0)) {
    spec.align = bytes[0];
    pos = 1;
  }
  const auto take = [&](absl::string_view any) {
    if (pos >= bytes.size() || any.find(bytes[pos]) == absl::string_view::npos)
      return '\0';
    return bytes[pos++];
  };
  const char sign = take("+- ");
  if (sign != 0) spec.sign = sign;
  spec.is_alternate = take("#") != 0;
  if (take("0") != 0 && spec.align == 0) {
    spec.align = '=';
    spec.fill = Text("0", true);
  }
  spec.width = std::max<int64_t>(ParseCount(runtime, bytes, &pos), 0);
  spec.has_commas = take(",") != 0;
  if (take(".") != 0) {
    const int64_t precision = ParseCount(runtime, bytes, &pos);
    if (precision < 0) runtime.Fail("format specifier missing precision");
    spec.precision = CheckPrecision(runtime, precision);
  }
  spec.type = take("sdxXobfFeEgG%nc");
  if (pos != bytes.size()) runtime.Fail("invalid format specifier");
  return spec;
}

Text FormatWithSpec(Runtime& runtime, const Value& value, const Text& text) {
  if (text.empty()) return runtime.ToText(value);
  Spec spec = ParseSpec(runtime, text);
  if (!runtime.ok()) return Text();
  if (value.IsString() && (spec.type == 0 || spec.type == 's') &&
      spec.sign == '-' && !spec.has_commas) {
    if (spec.align == '=') {
      spec.align = '<';
    }
    return Pad(runtime, Truncate(runtime, value.text(), spec.precision), "",
               spec, '<');
  }
  if (value.IsNumber() && spec.type != 's' && spec.type != 'c') {
    if (value.Is(Kind::kFloat)) {
      if (spec.type == 0 && spec.precision < 0) {
        Spec plain = spec;
        std::string digits = FloatRepr(std::abs(value.number()));
        if (spec.has_commas) AddCommas(&digits);
        const bool is_negative = std::signbit(value.number());
        return Pad(runtime, Text(digits, true),
                   is_negative        ? "-"
                   : spec.sign == '+' ? "+"
                   : spec.sign == ' ' ? " "
                                      : "",
                   plain, '>');
      }
      if (spec.type == 0) spec.type = 'g';
      if (std::string("dxXob").find(spec.type) == std::string::npos) {
        return FormatNumber(runtime, value, spec);
      }
    } else if (spec.type == 0 || spec.type == 'd' ||
               std::string("xXobn").find(spec.type) != std::string::npos) {
      if (spec.precision >= 0) {
        runtime.Fail("precision not allowed in integer format specifier");
        return Text();
      }
      if (spec.type == 0 || spec.type == 'n') spec.type = 'd';
      return FormatNumber(runtime, value, spec);
    } else {
      return FormatNumber(runtime, value, spec);
    }
  }
  runtime.Fail(absl::StrCat("unsupported format for '", TypeName(value), "'"));
  return Text();
}

// One {field} of a brace format: the value it names.
class FieldResolver {
 public:
  FieldResolver(Runtime& runtime, const Arguments& arguments)
      : runtime_(runtime), arguments_(arguments) {}

  Value Resolve(absl::string_view field) {
    size_t pos = std::min(field.find_first_of(".["), field.size());
    Value value = First(field.substr(0, pos));
    while (pos < field.size() && runtime_.ok()) {
      if (field[pos] == '.') {
        const size_t end =
            std::min(field.find_first_of(".[", pos + 1), field.size());
        value = runtime_.GetAttr(
            value, std::string(field.substr(pos + 1, end - pos - 1)));
        pos = end;
        continue;
      }
      const size_t close = field.find(']', pos);
      if (field[pos] != '[' || close == absl::string_view::npos) {
        return runtime_.Fail("invalid replacement field");
      }
      const absl::string_view key = field.substr(pos + 1, close - pos - 1);
      int64_t index;
      value = runtime_.GetItem(value, absl::SimpleAtoi(key, &index)
                                          ? Value::Int(index)
                                          : runtime_.String(key));
      pos = close + 1;
    }
    return value;
  }

 private:
  Value First(absl::string_view name) {
    int64_t index = 0;
    if (name.empty()) {
      if (is_numbered_) {
        return runtime_.Fail(
            "cannot switch from manual field numbering to automatic");
      }
      is_automatic_ = true;
      index = next_++;
    } else if (absl::SimpleAtoi(name, &index)) {
      if (is_automatic_) {
        return runtime_.Fail(
            "cannot switch from automatic field numbering to manual");
      }
      is_numbered_ = true;
    } else {
      if (!runtime_.Charge(1 + arguments_.named.size() / 8)) return Value();
      for (const auto& [key, value] : arguments_.named) {
        if (key == name) return value;
      }
      return runtime_.Fail(absl::StrCat("format has no argument '", name, "'"));
    }
    if (index < 0 ||
        index >= static_cast<int64_t>(arguments_.positional.size())) {
      return runtime_.Fail(
          "replacement index out of range for positional arguments");
    }
    return arguments_.positional[index];
  }

  Runtime& runtime_;
  const Arguments& arguments_;
  int64_t next_ = 0;
  bool is_automatic_ = false;
  bool is_numbered_ = false;
};

// Formats `format`; fields may stand inside the format of a field (level 1).
Text FormatBraces(Runtime& runtime, FieldResolver* resolver, const Text& format,
                  int level) {
  const absl::string_view bytes = format.bytes();
  Text result;
  size_t pos = 0;
  while (pos < bytes.size() && runtime.ok()) {
    const size_t brace = bytes.find_first_of("{}", pos);
    if (brace == absl::string_view::npos) break;
    result.AppendRange(format, pos, brace);
    if (brace + 1 < bytes.size() && bytes[brace + 1] == bytes[brace]) {
      result.AppendRange(format, brace, brace + 1);
      pos = brace + 2;
      continue;
    }
    if (bytes[brace] == '}' || level > 1) {
      runtime.Fail("single or too deeply nested brace in format string");
      return Text();
    }
    size_t end = brace + 1;
    for (int depth = 1; end < bytes.size(); ++end) {
      if (bytes[end] == '{') ++depth;
      if (bytes[end] == '}' && --depth == 0) break;
    }
    if (end >= bytes.size()) {
      runtime.Fail("expected '}' before end of string");
      return Text();
    }
    const absl::string_view inside = bytes.substr(brace + 1, end - brace - 1);
    const size_t name_end = std::min(inside.find_first_of("!:"), inside.size());
    Value value = resolver->Resolve(inside.substr(0, name_end));
    size_t at = name_end;
    if (at < inside.size() && inside[at] == '!') {
      const char conversion = at + 1 < inside.size() ? inside[at + 1] : '\0';
      if (conversion == 'r') {
        value = runtime.String(Repr(runtime, value));
      } else if (conversion == 's') {
        value = runtime.String(runtime.ToText(value));
      } else {
        runtime.Fail("unknown conversion specifier");
        return Text();
      }
      at += 2;
      if (at < inside.size() && inside[at] != ':') {
        runtime.Fail("expected ':' after conversion specifier");
        return Text();
      }
    }
    Text spec;
    if (at < inside.size()) {
      spec = FormatBraces(runtime, resolver, format.Slice(brace + 2 + at, end),
                          level + 1);
    }
    if (!runtime.ok()) return Text();
    const Text piece = FormatWithSpec(runtime, value, spec);
    result.Append(piece);
    if (!CheckGrowth(runtime, result, piece.size())) return Text();
    pos = end + 1;
  }
  result.AppendRange(format, pos, bytes.size());
  return result;
}

}  // namespace

Value BraceFormat(Runtime& runtime, const Text& format,
                  const Arguments& arguments) {
  if (!runtime.ChargeBytes(format.size())) return Value();
  FieldResolver resolver(runtime, arguments);
  return runtime.String(FormatBraces(runtime, &resolver, format, 0));
}

Value FormatNow(Runtime& runtime, const Arguments& arguments) {
  const auto bound = runtime.Bind("strftime_now", arguments, {"format"}, 1);
  if (!runtime.ok()) return Value();
  if (!bound[0]->IsString()) {
    return runtime.Fail("strftime_now: the format must be a string");
  }
  if (bound[0]->text().size() > 256) {
    return runtime.FailLimit("strftime_now: the format is too long");
  }
  const absl::TimeZone zone = absl::LocalTimeZone();
  const tm fields = absl::ToTM(runtime.now(), zone);
  // Python's datetime without a zone: %z and %Z are empty, %f is microseconds.
  std::string format;
  const std::string& source = bound[0]->text().bytes();
  for (size_t i = 0; i < source.size(); ++i) {
    if (source[i] != '%' || i + 1 >= source.size()) {
      format.push_back(source[i]);
      continue;
    }
    const char directive = source[++i];
    if (directive == 'f') {
      const int64_t micros = absl::ToInt64Microseconds(
          runtime.now() -
          absl::FromUnixSeconds(absl::ToUnixSeconds(runtime.now())));
      absl::StrAppendFormat(&format, "%06d", micros);
    } else if (directive != 'z' && directive != 'Z') {
      format.push_back('%');
      format.push_back(directive);
    }
  }
  if (format.empty()) return runtime.String("");
  // 256 bytes of format, at most some 30 for each two of them.
  char buffer[8192];
  const size_t size = strftime(buffer, sizeof(buffer), format.c_str(), &fields);
  return runtime.String(
      Text(absl::string_view(buffer, size), bound[0]->text().IsAllControl()));
}

}  // namespace quire::jinja
