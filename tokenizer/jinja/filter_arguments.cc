#include "tokenizer/jinja/filter_arguments.h"

#include <algorithm>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

namespace quire::jinja {

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

Value AsString(Runtime& runtime, const Value& value) {
  return value.IsString() ? value : runtime.String(runtime.ToText(value));
}

Value AttributeOf(Runtime& runtime, Value item, const Value* attribute,
                  const Value* otherwise) {
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

}  // namespace quire::jinja
