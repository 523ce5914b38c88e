// Filters and tests of Jinja, by name.
#ifndef QUIRE_TOKENIZER_JINJA_FILTERS_H_
#define QUIRE_TOKENIZER_JINJA_FILTERS_H_

#include "absl/strings/string_view.h"
#include "tokenizer/jinja/runtime.h"
#include "tokenizer/jinja/value.h"

namespace quire::jinja {

using FilterFunction = Value (*)(Runtime& runtime, const Value& input,
                                 const Arguments& arguments);
using TestFunction = bool (*)(Runtime& runtime, const Value& input,
                              const Arguments& arguments);

// Null if there is none.
FilterFunction FindFilter(absl::string_view name);
TestFunction FindTest(absl::string_view name);

}  // namespace quire::jinja

#endif  // QUIRE_TOKENIZER_JINJA_FILTERS_H_
