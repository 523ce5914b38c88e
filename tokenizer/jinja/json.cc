#include <algorithm>
#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "tokenizer/jinja/format.h"

namespace quire::jinja {
namespace {

class JsonWriter {
 public:
  JsonWriter(Runtime& runtime) : runtime_(runtime) {}

  bool ensure_ascii = false;
  bool sort_keys = false;
  bool is_indented = false;
  std::string indent;
  std::string item_separator = ", ";
  std::string key_separator = ": ";

  void Write(const Value& value, int level) {
    if (!runtime_.Charge(1)) return;
    if (static_cast<int64_t>(out_.size()) >
        runtime_.limits().max_output_bytes) {
      runtime_.FailLimit("JSON text is too long");
      return;
    }
    switch (value.kind()) {
      case Kind::kNone:
        out_ += "null";
        return;
      case Kind::kBool:
        out_ += value.boolean() ? "true" : "false";
        return;
      case Kind::kInt:
        absl::StrAppend(&out_, value.integer());
        return;
      case Kind::kFloat:
        out_ += Number(value.number());
        return;
      case Kind::kString:
        has_user_text_ |= !value.text().IsAllControl();
        runtime_.ChargeBytes(value.text().size());
        WriteString(value.bytes());
        return;
      case Kind::kSequence:
        if (value.sequence().kind <= SequenceKind::kTuple) {
          WriteList(value.sequence(), level);
          return;
        }
        break;
      case Kind::kDict:
        WriteDict(value, level);
        return;
      default:
        break;
    }
    runtime_.Fail(absl::StrCat("Object of type ", TypeName(value),
                               " is not JSON serializable"));
  }

  Text Take() { return Text(out_, !has_user_text_); }

 private:
  static std::string Number(double number) {
    if (std::isnan(number)) return "NaN";
    if (std::isinf(number)) return number > 0 ? "Infinity" : "-Infinity";
    return FloatRepr(number);
  }

  void NewLine(int level) {
    if (!is_indented) return;
    out_ += '\n';
    for (int i = 0; i < level; ++i) out_ += indent;
    runtime_.ChargeBytes(level * static_cast<int64_t>(indent.size()));
  }

  void WriteList(const Sequence& list, int level) {
    if (list.items.empty()) {
      out_ += "[]";
      return;
    }
    out_ += '[';
    bool is_first = true;
    for (const Value& item : list.items) {
      if (!is_first) out_ += item_separator;
      is_first = false;
      NewLine(level + 1);
      Write(item, level + 1);
      if (!runtime_.ok()) return;
    }
    NewLine(level);
    out_ += ']';
  }

  void WriteDict(const Value& dict, int level) {
    std::vector<std::pair<Value, Value>> items = dict.dict().items;
    if (items.empty()) {
      out_ += "{}";
      return;
    }
    if (sort_keys) {
      std::stable_sort(items.begin(), items.end(),
                       [this](const auto& a, const auto& b) {
                         return runtime_.Less(a.first, b.first);
                       });
    }
    out_ += '{';
    bool is_first = true;
    for (const auto& [key, item] : items) {
      if (!is_first) out_ += item_separator;
      is_first = false;
      NewLine(level + 1);
      WriteKey(key);
      out_ += key_separator;
      Write(item, level + 1);
      if (!runtime_.ok()) return;
    }
    NewLine(level);
    out_ += '}';
  }

  void WriteKey(const Value& key) {
    if (key.IsString()) {
      Write(key, 0);
    } else if (key.IsNumber() || key.Is(Kind::kNone)) {
      out_ += '"';
      Write(key, 0);
      out_ += '"';
    } else {
      runtime_.Fail(absl::StrCat(
          "keys must be str, int, float, bool or None, not ", TypeName(key)));
    }
  }

  void WriteString(absl::string_view text) {
    out_ += '"';
    int32_t c;
    for (size_t pos = 0; pos < text.size();) {
      const int length = DecodeUtf8(text, pos, &c);
      if (c == '"' || c == '\\') {
        out_ += '\\';
        out_ += static_cast<char>(c);
      } else if (c < 0x20) {
        WriteControl(c);
      } else if (ensure_ascii && c > 0x7E) {
        if (c == 0x7F) {
          out_ += '\x7F';
        } else if (c < 0x10000) {
          absl::StrAppendFormat(&out_, "\\u%04x", c);
        } else {
          absl::StrAppendFormat(&out_, "\\u%04x\\u%04x",
                                0xD800 + ((c - 0x10000) >> 10),
                                0xDC00 + ((c - 0x10000) & 0x3FF));
        }
      } else {
        out_.append(text.data() + pos, length);
      }
      pos += length;
    }
    out_ += '"';
  }

  void WriteControl(int32_t c) {
    static constexpr absl::string_view kCodes = "\b\f\n\r\t";
    static constexpr absl::string_view kLetters = "bfnrt";
    const size_t at = kCodes.find(static_cast<char>(c));
    if (at != absl::string_view::npos) {
      out_ += '\\';
      out_ += kLetters[at];
    } else {
      absl::StrAppendFormat(&out_, "\\u%04x", c);
    }
  }

  Runtime& runtime_;
  std::string out_;
  bool has_user_text_ = false;
};

}  // namespace

Value ToJson(Runtime& runtime, const Value& value, const Arguments& arguments) {
  const auto bound =
      runtime.Bind("tojson", arguments,
                   {"ensure_ascii", "indent", "separators", "sort_keys"});
  if (!runtime.ok()) return Value();
  JsonWriter writer(runtime);
  writer.ensure_ascii = bound[0] != nullptr && runtime.Truthy(*bound[0]);
  writer.sort_keys = bound[3] != nullptr && runtime.Truthy(*bound[3]);
  if (bound[1] != nullptr && !bound[1]->Is(Kind::kNone)) {
    writer.is_indented = true;
    writer.item_separator.assign(1, ',');
    if (bound[1]->IsString()) {
      writer.indent = bound[1]->text().bytes();
    } else if (bound[1]->IsInteger()) {
      // Wider than any use; keeps nesting times indentation small.
      if (bound[1]->integer() > 1024) {
        return runtime.FailLimit("indentation is too wide");
      }
      writer.indent.assign(std::max<int64_t>(bound[1]->integer(), 0), ' ');
    } else {
      return runtime.Fail("tojson: indent must be an integer or a string");
    }
    if (writer.indent.size() > 1024) {
      return runtime.FailLimit("indentation is too wide");
    }
  }
  if (bound[2] != nullptr && !bound[2]->Is(Kind::kNone)) {
    const std::vector<Value> separators = runtime.Iterate(*bound[2]);
    if (separators.size() != 2 || !separators[0].IsString() ||
        !separators[1].IsString()) {
      return runtime.Fail("tojson: separators must be two strings");
    }
    writer.item_separator = separators[0].text().bytes();
    writer.key_separator = separators[1].text().bytes();
    runtime.Charge(writer.item_separator.size() + writer.key_separator.size());
    if (writer.item_separator.size() + writer.key_separator.size() > 1024) {
      return runtime.FailLimit("tojson: separators are too long");
    }
  }
  writer.Write(value, 0);
  if (!runtime.ok()) return Value();
  return runtime.String(writer.Take());
}

}  // namespace quire::jinja
