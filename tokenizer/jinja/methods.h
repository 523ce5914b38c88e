// Methods of strings, dictionaries, lists and tuples: those that Python has
// and the immutable sandbox of Jinja lets a template call.
#ifndef QUIRE_TOKENIZER_JINJA_METHODS_H_
#define QUIRE_TOKENIZER_JINJA_METHODS_H_

#include "absl/strings/string_view.h"
#include "tokenizer/jinja/runtime.h"
#include "tokenizer/jinja/value.h"

namespace quire::jinja {

enum class MethodAccess {
  kNone,    // The type has no such method (here).
  kSafe,    // CallMethod() takes it.
  kUnsafe,  // It exists but would change the object, or is internal.
};

MethodAccess FindMethod(const Value& self, absl::string_view name);

// Requires: FindMethod(self, name) is kSafe, or self is a loop and the name
// `cycle` or `changed`.
Value CallMethod(Runtime& runtime, const Value& self, absl::string_view name,
                 const Arguments& arguments);

}  // namespace quire::jinja

#endif  // QUIRE_TOKENIZER_JINJA_METHODS_H_
