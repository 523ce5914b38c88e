// Variables of a template as its caller gives them.
#ifndef QUIRE_TOKENIZER_JINJA_CONTEXT_VALUE_H_
#define QUIRE_TOKENIZER_JINJA_CONTEXT_VALUE_H_

#include <nlohmann/json.hpp>

#include "tokenizer/jinja/runtime.h"
#include "tokenizer/jinja/value.h"

namespace quire::jinja {

// Its strings are control text if `is_control`. Not paid for in steps: the size
// of the context was bounded on arrival. An error if it is nested too deeply.
Value ContextValue(Runtime& runtime, const nlohmann::ordered_json& json,
                   bool is_control);

}  // namespace quire::jinja

#endif  // QUIRE_TOKENIZER_JINJA_CONTEXT_VALUE_H_
