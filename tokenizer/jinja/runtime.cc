#include "tokenizer/jinja/runtime.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <limits>
#include <memory>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "tokenizer/jinja/methods.h"

namespace quire::jinja {

absl::string_view TypeName(const Value& value) {
  switch (value.kind()) {
    case Kind::kUndefined:
      return "Undefined";
    case Kind::kNone:
      return "NoneType";
    case Kind::kBool:
      return "bool";
    case Kind::kInt:
      return "int";
    case Kind::kFloat:
      return "float";
    case Kind::kString:
      return "str";
    case Kind::kDict:
      return "dict";
    case Kind::kNamespace:
      return "Namespace";
    case Kind::kFunction:
      return "function";
    case Kind::kLoop:
      return "LoopContext";
    case Kind::kSequence:
      break;
  }
  switch (value.sequence().kind) {
    case SequenceKind::kList:
      return "list";
    case SequenceKind::kTuple:
      return "tuple";
    case SequenceKind::kRange:
      return "range";
    case SequenceKind::kGenerator:
      return "generator";
    case SequenceKind::kDictKeys:
      return "dict_keys";
    case SequenceKind::kDictValues:
      return "dict_values";
    case SequenceKind::kDictItems:
      return "dict_items";
  }
  return "object";
}

int DepthOf(const Value& value) {
  switch (value.kind()) {
    case Kind::kSequence:
      return value.sequence().depth;
    case Kind::kDict:
      return value.dict().depth;
    case Kind::kFunction:
      return value.function().depth;
    case Kind::kLoop:
      return DepthOf(value.loop().items) + 1;
    default:
      return 0;
  }
}

Runtime::~Runtime() {
  for (const Value& loop : kept_loops_) loop.loop().last_changed = Value();
}

Value Runtime::Fail(absl::string_view message) {
  if (ok()) {
    status_ = absl::InvalidArgumentError(
        absl::StrCat("chat template line ", line_, ": ", message));
  }
  return Value();
}

Value Runtime::FailExactly(absl::string_view message) {
  if (ok()) status_ = absl::InvalidArgumentError(message);
  return Value();
}

Value Runtime::FailLimit(absl::string_view message) {
  if (ok()) {
    status_ = absl::ResourceExhaustedError(
        absl::StrCat("chat template line ", line_, ": ", message));
  }
  return Value();
}

Value Runtime::FailUndefined(const Value& value) {
  return Fail(value.undefined() != nullptr ? value.undefined()->message
                                           : "value is undefined");
}

Value Runtime::String(Text text) {
  if (static_cast<int64_t>(text.size()) > limits_.max_output_bytes) {
    return FailLimit(absl::StrCat("text is longer than ",
                                  limits_.max_output_bytes, " bytes"));
  }
  if (!ChargeBytes(text.size())) return Value();
  return Value(std::make_shared<const Text>(std::move(text)));
}

Value Runtime::List(std::vector<Value> items, SequenceKind kind) {
  if (!Charge(1 + items.size())) return Value();
  auto sequence = std::make_shared<Sequence>();
  for (const Value& item : items) {
    sequence->depth = std::max(sequence->depth, DepthOf(item) + 1);
  }
  if (sequence->depth > kMaxValueDepth) {
    return FailLimit("values are nested too deeply");
  }
  sequence->items = std::move(items);
  sequence->kind = kind;
  return Value(std::shared_ptr<const Sequence>(std::move(sequence)));
}

Value Runtime::Group(const Value& key, const Value& members) {
  const Value plain = List({key, members}, SequenceKind::kTuple);
  if (!ok()) return Value();
  auto group = std::make_shared<Sequence>(plain.sequence());
  group->is_group = true;
  return Value(std::shared_ptr<const Sequence>(std::move(group)));
}

Value Runtime::MakeDict(std::vector<std::pair<Value, Value>> items) {
  if (!Charge(1 + 2 * items.size())) return Value();
  auto dict = std::make_shared<Dict>();
  for (const auto& [key, value] : items) {
    dict->depth = std::max({dict->depth, DepthOf(value) + 1, DepthOf(key) + 1});
  }
  if (dict->depth > kMaxValueDepth) {
    return FailLimit("values are nested too deeply");
  }
  dict->items = std::move(items);
  return Value(std::shared_ptr<const Dict>(std::move(dict)));
}

Value Runtime::Undefined(absl::string_view message) {
  if (!ChargeBytes(message.size())) return Value();
  auto info = std::make_shared<UndefinedInfo>();
  info->message.assign(message.data(), message.size());
  return Value(std::shared_ptr<const UndefinedInfo>(std::move(info)));
}

Value Runtime::Method(const Value& self, absl::string_view name) {
  auto function = std::make_shared<Function>();
  function->type = Function::Type::kMethod;
  function->name.assign(name.data(), name.size());
  function->self = self;
  function->depth = DepthOf(self) + 1;
  if (function->depth > kMaxValueDepth || !Charge(2)) {
    return FailLimit("values are nested too deeply");
  }
  return Value(std::shared_ptr<const Function>(std::move(function)));
}

// Paid for by the item: a tuple that holds another twice, which holds a third
// twice, has twice as many with each level.
bool Runtime::IsHashable(const Value& value) {
  if (value.Is(Kind::kDict)) return false;
  if (!value.Is(Kind::kSequence)) return true;
  if (value.sequence().kind == SequenceKind::kList) return false;
  if (value.sequence().kind != SequenceKind::kTuple) return true;
  if (!Charge(1 + value.sequence().items.size())) return false;
  return std::all_of(value.sequence().items.begin(),
                     value.sequence().items.end(),
                     [this](const Value& item) { return IsHashable(item); });
}

void Runtime::SetEntry(std::vector<std::pair<Value, Value>>* items,
                       const Value& key, const Value& value) {
  if (!IsHashable(key)) {
    Fail(absl::StrCat("unhashable type: '", TypeName(key), "'"));
    return;
  }
  if (!Charge(1 + items->size() / 8)) return;
  for (auto& [name, old_value] : *items) {
    if (Equal(name, key)) {
      old_value = value;
      return;
    }
  }
  items->emplace_back(key, value);
}

bool Runtime::Truthy(const Value& value) {
  switch (value.kind()) {
    case Kind::kUndefined:
    case Kind::kNone:
      return false;
    case Kind::kBool:
    case Kind::kInt:
      return value.integer() != 0;
    case Kind::kFloat:
      return value.number() != 0;
    case Kind::kString:
      return !value.text().empty();
    case Kind::kSequence:
      return value.sequence().kind == SequenceKind::kGenerator ||
             !value.sequence().items.empty();
    case Kind::kDict:
      return !value.dict().items.empty();
    default:
      return true;
  }
}

std::string FloatRepr(double value) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value > 0 ? "inf" : "-inf";
  char buffer[64];
  const auto scientific = std::to_chars(buffer, buffer + sizeof(buffer), value,
                                        std::chars_format::scientific);
  const std::string text(buffer, scientific.ptr);
  const size_t e = text.find('e');
  const int exponent = std::atoi(text.c_str() + e + 1);
  if (exponent < -4 || exponent >= 16) {
    return absl::StrFormat("%se%c%02d", text.substr(0, e),
                           exponent < 0 ? '-' : '+', std::abs(exponent));
  }
  const auto fixed = std::to_chars(buffer, buffer + sizeof(buffer), value,
                                   std::chars_format::fixed);
  std::string result(buffer, fixed.ptr);
  if (result.find('.') == std::string::npos) result += ".0";
  return result;
}

void AppendStringRepr(absl::string_view text, std::string* out) {
  const bool use_double = text.find('\'') != absl::string_view::npos &&
                          text.find('"') == absl::string_view::npos;
  const char quote = use_double ? '"' : '\'';
  out->push_back(quote);
  int32_t c;
  for (size_t pos = 0; pos < text.size();) {
    const int length = DecodeUtf8(text, pos, &c);
    if (c == quote || c == '\\') {
      out->push_back('\\');
      out->push_back(static_cast<char>(c));
    } else if (c == '\n') {
      out->append("\\n");
    } else if (c == '\r') {
      out->append("\\r");
    } else if (c == '\t') {
      out->append("\\t");
    } else if (IsPrintable(c)) {
      out->append(text.data() + pos, length);
    } else if (c < 0x100) {
      absl::StrAppendFormat(out, "\\x%02x", c);
    } else if (c < 0x10000) {
      absl::StrAppendFormat(out, "\\u%04x", c);
    } else {
      absl::StrAppendFormat(out, "\\U%08x", c);
    }
    pos += length;
  }
  out->push_back(quote);
}

Text Runtime::ToText(const Value& value) {
  switch (value.kind()) {
    case Kind::kString:
      ChargeBytes(value.text().size());
      return value.text();
    case Kind::kUndefined:
      return Text();
    default:
      break;
  }
  std::string out;
  bool has_user_text = false;
  AppendRepr(value, &out, &has_user_text);
  ChargeBytes(out.size());
  return Text(out, !has_user_text);
}

namespace {

// The brackets of a sequence's repr.
std::pair<absl::string_view, absl::string_view> Brackets(SequenceKind kind) {
  switch (kind) {
    case SequenceKind::kList:
      return {"[", "]"};
    case SequenceKind::kTuple:
      return {"(", ")"};
    case SequenceKind::kDictKeys:
      return {"dict_keys([", "])"};
    case SequenceKind::kDictValues:
      return {"dict_values([", "])"};
    case SequenceKind::kDictItems:
      return {"dict_items([", "])"};
    default:
      return {"<", ">"};
  }
}

void AppendRangeRepr(const Sequence& range, std::string* out) {
  // The bounds are not kept; those of an equal range are as good.
  const int64_t start = range.items.empty() ? 0 : range.items[0].integer();
  const int64_t step =
      range.items.size() < 2 ? 1 : range.items[1].integer() - start;
  int64_t stop = 0;
  if (__builtin_mul_overflow(step, range.items.size(), &stop) ||
      __builtin_add_overflow(start, stop, &stop)) {
    stop = step > 0 ? INT64_MAX : INT64_MIN;
  }
  absl::StrAppend(out, "range(", start, ", ", stop);
  if (step != 1) absl::StrAppend(out, ", ", step);
  out->push_back(')');
}

}  // namespace

void Runtime::AppendRepr(const Value& value, std::string* out,
                         bool* has_user_text) {
  if (!Charge(1)) return;
  if (static_cast<int64_t>(out->size()) > limits_.max_output_bytes) {
    FailLimit("text of a value is too long");
    return;
  }
  switch (value.kind()) {
    case Kind::kUndefined:
      out->append("Undefined");
      return;
    case Kind::kNone:
      out->append("None");
      return;
    case Kind::kBool:
      out->append(value.boolean() ? "True" : "False");
      return;
    case Kind::kInt:
      absl::StrAppend(out, value.integer());
      return;
    case Kind::kFloat:
      out->append(FloatRepr(value.number()));
      return;
    case Kind::kString:
      *has_user_text |= !value.text().IsAllControl();
      ChargeBytes(value.text().size());
      AppendStringRepr(value.bytes(), out);
      return;
    case Kind::kFunction:
      absl::StrAppend(out, "<function ", value.function().name, ">");
      return;
    case Kind::kLoop:
      absl::StrAppend(out, "<LoopContext ", value.loop().index0 + 1, "/",
                      value.loop().items.sequence().items.size(), ">");
      return;
    default:
      break;
  }
  if (repr_depth_ >= kMaxValueDepth) {
    FailLimit("values are nested too deeply");
    return;
  }
  ++repr_depth_;
  AppendContainerRepr(value, out, has_user_text);
  --repr_depth_;
}

void Runtime::AppendContainerRepr(const Value& value, std::string* out,
                                  bool* has_user_text) {
  const char* separator = "";
  if (value.Is(Kind::kSequence)) {
    const Sequence& sequence = value.sequence();
    if (sequence.kind == SequenceKind::kRange) {
      AppendRangeRepr(sequence, out);
    } else if (sequence.kind == SequenceKind::kGenerator) {
      out->append("<generator object>");
    } else {
      const auto [open, close] = Brackets(sequence.kind);
      absl::StrAppend(out, open);
      for (const Value& item : sequence.items) {
        absl::StrAppend(out, separator);
        AppendRepr(item, out, has_user_text);
        separator = ", ";
        if (!ok()) break;
      }
      if (sequence.kind == SequenceKind::kTuple && sequence.items.size() == 1) {
        out->push_back(',');
      }
      absl::StrAppend(out, close);
    }
  } else if (value.Is(Kind::kDict)) {
    out->push_back('{');
    for (const auto& [key, item] : value.dict().items) {
      absl::StrAppend(out, separator);
      AppendRepr(key, out, has_user_text);
      out->append(": ");
      AppendRepr(item, out, has_user_text);
      separator = ", ";
      if (!ok()) break;
    }
    out->push_back('}');
  } else {
    out->append("<Namespace {");
    for (const auto& [key, item] : value.ns().items) {
      absl::StrAppend(out, separator);
      AppendStringRepr(key, out);
      out->append(": ");
      AppendRepr(item, out, has_user_text);
      separator = ", ";
      if (!ok()) break;
    }
    out->append("}>");
  }
}

bool Runtime::Equal(const Value& a, const Value& b) {
  if (!Charge(1)) return false;
  if (a.IsNumber() && b.IsNumber()) {
    if (a.IsInteger() && b.IsInteger()) return a.integer() == b.integer();
    return a.number() == b.number();
  }
  if (a.kind() != b.kind()) return false;
  switch (a.kind()) {
    case Kind::kUndefined:
    case Kind::kNone:
      return true;
    case Kind::kString:
      if (a.text().size() != b.text().size()) return false;
      ChargeBytes(a.text().size());
      return a.bytes() == b.bytes();
    case Kind::kSequence: {
      const Sequence& x = a.sequence();
      const Sequence& y = b.sequence();
      if (&x == &y) return true;
      if (x.kind != y.kind || x.items.size() != y.items.size() ||
          x.kind == SequenceKind::kGenerator) {
        return false;
      }
      for (size_t i = 0; i < x.items.size(); ++i) {
        if (!Equal(x.items[i], y.items[i])) return false;
      }
      return true;
    }
    case Kind::kDict: {
      const Dict& x = a.dict();
      const Dict& y = b.dict();
      if (&x == &y) return true;
      if (x.items.size() != y.items.size()) return false;
      for (const auto& [key, value] : x.items) {
        const Value* other = FindEntry(b, key);
        if (other == nullptr || !Equal(value, *other)) return false;
      }
      return true;
    }
    default:
      return a.object() == b.object();
  }
}

bool Runtime::Less(const Value& a, const Value& b) {
  if (!Charge(1)) return false;
  if (a.IsNumber() && b.IsNumber()) {
    if (a.IsInteger() && b.IsInteger()) return a.integer() < b.integer();
    return a.number() < b.number();
  }
  if (a.IsString() && b.IsString()) {
    ChargeBytes(std::min(a.text().size(), b.text().size()));
    return a.bytes() < b.bytes();  // UTF-8 sorts as its code points do.
  }
  if (a.Is(Kind::kSequence) && b.Is(Kind::kSequence) &&
      a.sequence().kind == b.sequence().kind &&
      (a.sequence().kind == SequenceKind::kList ||
       a.sequence().kind == SequenceKind::kTuple)) {
    const std::vector<Value>& x = a.sequence().items;
    const std::vector<Value>& y = b.sequence().items;
    for (size_t i = 0; i < std::min(x.size(), y.size()); ++i) {
      if (!Equal(x[i], y[i])) return Less(x[i], y[i]);
      if (!ok()) return false;
    }
    return x.size() < y.size();
  }
  if (a.IsUndefined()) {
    FailUndefined(a);
  } else if (b.IsUndefined()) {
    FailUndefined(b);
  } else {
    Fail(absl::StrCat("'<' not supported between instances of '", TypeName(a),
                      "' and '", TypeName(b), "'"));
  }
  return false;
}

bool Runtime::Compare(absl::string_view op, const Value& a, const Value& b) {
  if (op == "==") return Equal(a, b);
  if (op == "!=") return !Equal(a, b);
  if (op == "<") return Less(a, b);
  if (op == ">") return Less(b, a);
  if (op == "in") return Contains(b, a);
  if (op == "not in") return !Contains(b, a);
  const bool has_nan = (a.Is(Kind::kFloat) && std::isnan(a.number())) ||
                       (b.Is(Kind::kFloat) && std::isnan(b.number()));
  const bool is_greater = op == "<=" ? Less(b, a) : Less(a, b);
  return !is_greater && !has_nan;
}

bool Runtime::Contains(const Value& container, const Value& item) {
  switch (container.kind()) {
    case Kind::kString:
      if (!item.IsString()) {
        if (item.IsUndefined()) {
          FailUndefined(item);
        } else {
          Fail(
              absl::StrCat("'in <string>' requires string as left operand, "
                           "not ",
                           TypeName(item)));
        }
        return false;
      }
      ChargeBytes(container.text().size());
      return FindText(container.bytes(), item.bytes()) !=
             absl::string_view::npos;
    case Kind::kSequence: {
      const Sequence& sequence = container.sequence();
      if (sequence.is_consumed) return false;
      for (const Value& entry : sequence.items) {
        if (Equal(entry, item)) return true;
        if (!ok()) return false;
      }
      return false;
    }
    case Kind::kDict:
      if (!IsHashable(item)) {
        Fail(absl::StrCat("unhashable type: '", TypeName(item), "'"));
        return false;
      }
      return FindEntry(container, item) != nullptr;
    case Kind::kUndefined:
      return false;  // It iterates as an empty list.
    default:
      Fail(absl::StrCat("argument of type '", TypeName(container),
                        "' is not iterable"));
      return false;
  }
}

bool Runtime::IsIterable(const Value& value) const {
  return value.IsUndefined() || value.IsString() || value.Is(Kind::kSequence) ||
         value.Is(Kind::kDict) || value.Is(Kind::kLoop);
}

std::vector<Value> Runtime::Iterate(const Value& value) {
  std::vector<Value> items;
  switch (value.kind()) {
    case Kind::kUndefined:
      break;
    case Kind::kString: {
      const Text& text = value.text();
      int32_t c;
      for (size_t pos = 0; pos < text.size() && ok();) {
        const int length = DecodeUtf8(text.bytes(), pos, &c);
        items.push_back(String(text.Slice(pos, pos + length)));
        pos += length;
      }
      break;
    }
    case Kind::kSequence: {
      const Sequence& sequence = value.sequence();
      if (!Charge(sequence.items.size()) || sequence.is_consumed) break;
      sequence.is_consumed = sequence.kind == SequenceKind::kGenerator;
      items = sequence.items;
      break;
    }
    case Kind::kDict:
      if (!Charge(value.dict().items.size())) break;
      for (const auto& [key, unused] : value.dict().items) items.push_back(key);
      break;
    default:
      Fail(absl::StrCat("'", TypeName(value), "' object is not iterable"));
  }
  return items;
}

bool Runtime::HasLength(const Value& value) const {
  if (value.Is(Kind::kSequence)) {
    return value.sequence().kind != SequenceKind::kGenerator;
  }
  return value.IsUndefined() || value.IsString() || value.Is(Kind::kDict) ||
         value.Is(Kind::kLoop);
}

int64_t Runtime::Length(const Value& value) {
  switch (value.kind()) {
    case Kind::kUndefined:
      return 0;
    case Kind::kString:
      ChargeBytes(value.text().size());
      return CountCodePoints(value.bytes());
    case Kind::kDict:
      return value.dict().items.size();
    case Kind::kLoop:
      return value.loop().items.sequence().items.size();
    default:
      if (HasLength(value)) return value.sequence().items.size();
      Fail(absl::StrCat("object of type '", TypeName(value), "' has no len()"));
      return 0;
  }
}

// The undefined value for a missing key or attribute, in Jinja's words.
Value Runtime::Missing(const Value& object, const Value& key) {
  const std::string type = object.Is(Kind::kNone)
                               ? "None"
                               : absl::StrCat(TypeName(object), " object");
  std::string repr;
  bool unused = false;
  AppendRepr(key, &repr, &unused);
  return Undefined(key.IsString()
                       ? absl::StrCat("'", type, "' has no attribute ", repr)
                       : absl::StrCat(type, " has no element ", repr));
}

Value Runtime::LoopAttr(const Value& object, absl::string_view name) {
  const LoopState& loop = object.loop();
  const std::vector<Value>& items = loop.items.sequence().items;
  const int64_t length = items.size();
  const int64_t i = loop.index0;
  if (name == "index0") return Value::Int(i);
  if (name == "index") return Value::Int(i + 1);
  if (name == "first") return Value::Bool(i == 0);
  if (name == "last") return Value::Bool(i + 1 >= length);
  if (name == "length") return Value::Int(length);
  if (name == "revindex") return Value::Int(length - i);
  if (name == "revindex0") return Value::Int(length - i - 1);
  if (name == "depth") return Value::Int(loop.depth0 + 1);
  if (name == "depth0") return Value::Int(loop.depth0);
  if (name == "previtem") {
    return i > 0 ? items[i - 1] : Undefined("there is no previous item");
  }
  if (name == "nextitem") {
    return i + 1 < length ? items[i + 1] : Undefined("there is no next item");
  }
  if (name == "cycle" || name == "changed") return Method(object, name);
  return Missing(object, String(name));
}

Value Runtime::GetAttr(const Value& object, const std::string& name) {
  switch (object.kind()) {
    case Kind::kUndefined:
      return FailUndefined(object);
    case Kind::kNamespace: {
      if (!Charge(1 + object.ns().items.size() / 8)) return Value();
      const Value* value = object.ns().Find(name);
      return value != nullptr ? *value : Missing(object, String(name));
    }
    case Kind::kLoop:
      return LoopAttr(object, name);
    default:
      break;
  }
  switch (FindMethod(object, name)) {
    case MethodAccess::kSafe:
      return Method(object, name);
    case MethodAccess::kUnsafe:
      return Undefined(absl::StrCat("access to attribute '", name, "' of '",
                                    TypeName(object), "' object is unsafe."));
    case MethodAccess::kNone:
      break;
  }
  if (object.Is(Kind::kDict)) {
    const Value* value = FindNamed(object.dict(), name);
    if (value != nullptr) return *value;
  }
  if (object.Is(Kind::kSequence) && object.sequence().is_group) {
    if (name == "grouper") return object.sequence().items[0];
    if (name == "list") return object.sequence().items[1];
  }
  if (object.Is(Kind::kFunction) && name == "name" &&
      object.function().type == Function::Type::kMacro) {
    return String(object.function().name);
  }
  return Missing(object, String(name));
}

const Value* Runtime::FindNamed(const Dict& dict, absl::string_view key) {
  if (!Charge(1 + dict.items.size() / 8)) return nullptr;
  for (const auto& [name, value] : dict.items) {
    if (!name.IsString() || name.bytes().size() != key.size()) continue;
    // Long keys may differ in their last byte only.
    if (key.size() >= 64 && !ChargeBytes(key.size())) return nullptr;
    if (name.bytes() == key) return &value;
  }
  return nullptr;
}

const Value* Runtime::FindEntry(const Value& dict, const Value& key) {
  if (key.IsString()) return FindNamed(dict.dict(), key.bytes());
  if (!Charge(1 + dict.dict().items.size() / 8)) return nullptr;
  for (const auto& [name, value] : dict.dict().items) {
    if (Equal(name, key)) return &value;
  }
  return nullptr;
}

Value Runtime::StringAt(const Value& value, int64_t index) {
  const Text& text = value.text();
  if (!ChargeBytes(text.size())) return Value();
  const std::vector<size_t> offsets = CodePointOffsets(text.bytes());
  const int64_t length = static_cast<int64_t>(offsets.size()) - 1;
  if (index < 0) index += length;
  if (index < 0 || index >= length) return Missing(value, Value::Int(index));
  return String(text.Slice(offsets[index], offsets[index + 1]));
}

Value Runtime::GetItem(const Value& object, const Value& key) {
  switch (object.kind()) {
    case Kind::kUndefined:
      return FailUndefined(object);
    case Kind::kDict:
      if (const Value* value = FindEntry(object, key)) return *value;
      break;
    case Kind::kString:
      if (key.IsInteger()) return StringAt(object, key.integer());
      break;
    case Kind::kSequence: {
      const Sequence& sequence = object.sequence();
      if (!key.IsInteger() || (sequence.kind != SequenceKind::kList &&
                               sequence.kind != SequenceKind::kTuple &&
                               sequence.kind != SequenceKind::kRange)) {
        break;
      }
      const int64_t length = sequence.items.size();
      const int64_t index =
          key.integer() < 0 ? key.integer() + length : key.integer();
      if (index >= 0 && index < length) return sequence.items[index];
      break;
    }
    default:
      break;
  }
  if (key.IsString() && !object.Is(Kind::kDict)) {
    return GetAttr(object, key.text().bytes());
  }
  if (key.IsString()) {
    const MethodAccess access = FindMethod(object, key.bytes());
    if (access == MethodAccess::kSafe) return Method(object, key.bytes());
  }
  return Missing(object, key);
}

std::vector<const Value*> Runtime::Bind(absl::string_view what,
                                        const Arguments& arguments,
                                        absl::Span<const char* const> names,
                                        int num_required) {
  std::vector<const Value*> bound(names.size(), nullptr);
  if (arguments.positional.size() > names.size()) {
    Fail(absl::StrCat(what, " takes at most ", names.size(), " arguments, got ",
                      arguments.positional.size()));
    return bound;
  }
  for (size_t i = 0; i < arguments.positional.size(); ++i) {
    bound[i] = &arguments.positional[i];
  }
  for (const auto& [name, value] : arguments.named) {
    const auto it = std::find(names.begin(), names.end(), name);
    if (it == names.end() || bound[it - names.begin()] != nullptr) {
      Fail(absl::StrCat(what, " got an unexpected argument '", name, "'"));
      return bound;
    }
    bound[it - names.begin()] = &value;
  }
  for (int i = 0; i < num_required; ++i) {
    if (bound[i] == nullptr) {
      Fail(absl::StrCat(what, " is missing the argument '", names[i], "'"));
      static const Value* const kNothing = new Value;
      bound[i] = kNothing;  // So that callers need not look.
    }
  }
  return bound;
}

}  // namespace quire::jinja
