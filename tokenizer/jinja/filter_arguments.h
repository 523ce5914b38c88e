// What filters read from their arguments; a wrong type is an error of the
// runtime, as everywhere.
#ifndef QUIRE_TOKENIZER_JINJA_FILTER_ARGUMENTS_H_
#define QUIRE_TOKENIZER_JINJA_FILTER_ARGUMENTS_H_

#include <cstdint>

#include "tokenizer/jinja/runtime.h"
#include "tokenizer/jinja/value.h"

namespace quire::jinja {

// Neither left out nor none.
bool IsGiven(const Value* value);

// `otherwise` if the argument was left out.
int64_t IntegerOr(Runtime& runtime, const Value* value, int64_t otherwise);
bool TruthyOr(Runtime& runtime, const Value* value, bool otherwise);

// A string argument as it is, anything else as str() of it.
Value AsString(Runtime& runtime, const Value& value);

// The attribute path "a.b.0" of an item; the item itself without a path.
Value AttributeOf(Runtime& runtime, Value item, const Value* attribute,
                  const Value* otherwise = nullptr);

}  // namespace quire::jinja

#endif  // QUIRE_TOKENIZER_JINJA_FILTER_ARGUMENTS_H_
