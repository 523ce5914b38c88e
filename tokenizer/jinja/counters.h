// cycler(...) and joiner(...), the callables that count.
#ifndef QUIRE_TOKENIZER_JINJA_COUNTERS_H_
#define QUIRE_TOKENIZER_JINJA_COUNTERS_H_

#include <string>

#include "tokenizer/jinja/runtime.h"
#include "tokenizer/jinja/value.h"

namespace quire::jinja {

// `name` is "cycler" or "joiner". An error of `runtime` if the arguments do not
// fit.
Value MakeCounter(Runtime& runtime, const std::string& name,
                  const Arguments& arguments);

// A call of what MakeCounter returned, or of a cycler's reset.
Value CallCounter(Runtime& runtime, const Function& function,
                  const Arguments& arguments);

}  // namespace quire::jinja

#endif  // QUIRE_TOKENIZER_JINJA_COUNTERS_H_
