// Values of a running template, with the types of Python that templates see.
//
// Values are immutable, except for namespaces and the loop's own state, and a
// template shared by threads holds only literals, so sharing needs no lock.
#ifndef QUIRE_TOKENIZER_JINJA_VALUE_H_
#define QUIRE_TOKENIZER_JINJA_VALUE_H_

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/inlined_vector.h"
#include "absl/strings/string_view.h"
#include "tokenizer/jinja/text.h"

namespace quire::jinja {

struct Sequence;
struct Dict;
struct UndefinedInfo;
struct Namespace;
struct Function;
struct LoopState;

enum class Kind : uint8_t {
  kUndefined,
  kNone,
  kBool,
  kInt,
  kFloat,
  kString,
  kSequence,  // list, tuple, range, views and generators
  kDict,
  kNamespace,
  kFunction,
  kLoop,
};

// A small handle; copies share the object. Integers are 64 bits wide: a result
// outside is an error, never a wrapped number.
class Value {
 public:
  Value() = default;  // Undefined, without a name.
  static Value None() { return Value(Kind::kNone); }
  static Value Bool(bool value) {
    Value result(Kind::kBool);
    result.integer_ = value;
    return result;
  }
  static Value Int(int64_t value) {
    Value result(Kind::kInt);
    result.integer_ = value;
    return result;
  }
  static Value Float(double value) {
    Value result(Kind::kFloat);
    result.number_ = value;
    return result;
  }
  explicit Value(std::shared_ptr<const Text> text)
      : kind_(Kind::kString), object_(std::move(text)) {}
  explicit Value(std::shared_ptr<const Sequence> sequence)
      : kind_(Kind::kSequence), object_(std::move(sequence)) {}
  explicit Value(std::shared_ptr<const Dict> dict)
      : kind_(Kind::kDict), object_(std::move(dict)) {}
  explicit Value(std::shared_ptr<const UndefinedInfo> info)
      : kind_(Kind::kUndefined), object_(std::move(info)) {}
  explicit Value(std::shared_ptr<Namespace> ns)
      : kind_(Kind::kNamespace), object_(std::move(ns)) {}
  explicit Value(std::shared_ptr<const Function> function)
      : kind_(Kind::kFunction), object_(std::move(function)) {}
  explicit Value(std::shared_ptr<LoopState> loop)
      : kind_(Kind::kLoop), object_(std::move(loop)) {}

  Kind kind() const { return kind_; }
  bool Is(Kind kind) const { return kind_ == kind; }
  bool IsUndefined() const { return kind_ == Kind::kUndefined; }
  bool IsString() const { return kind_ == Kind::kString; }
  // bool counts as an integer, as in Python.
  bool IsInteger() const { return kind_ == Kind::kInt || kind_ == Kind::kBool; }
  bool IsNumber() const { return IsInteger() || kind_ == Kind::kFloat; }

  // Requires: the kind matches.
  int64_t integer() const { return integer_; }
  bool boolean() const { return integer_ != 0; }
  double number() const {
    return kind_ == Kind::kFloat ? number_ : static_cast<double>(integer_);
  }
  const Text& text() const { return *static_cast<const Text*>(object_.get()); }
  absl::string_view bytes() const { return text().bytes(); }
  const Sequence& sequence() const {
    return *static_cast<const Sequence*>(object_.get());
  }
  const Dict& dict() const { return *static_cast<const Dict*>(object_.get()); }
  // Null for an undefined value without a name.
  const UndefinedInfo* undefined() const {
    return static_cast<const UndefinedInfo*>(object_.get());
  }
  Namespace& ns() const {
    return *static_cast<Namespace*>(const_cast<void*>(object_.get()));
  }
  const Function& function() const {
    return *static_cast<const Function*>(object_.get());
  }
  LoopState& loop() const {
    return *static_cast<LoopState*>(const_cast<void*>(object_.get()));
  }
  // Identity of the shared object; null for scalars.
  const void* object() const { return object_.get(); }

 private:
  explicit Value(Kind kind) : kind_(kind) {}

  Kind kind_ = Kind::kUndefined;
  union {
    int64_t integer_ = 0;
    double number_;
  };
  std::shared_ptr<const void> object_;
};

enum class SequenceKind : uint8_t {
  kList,
  kTuple,
  kRange,
  kGenerator,  // What filters such as map return: read once, has no length.
  kDictKeys,
  kDictValues,
  kDictItems,
};

// `depth` bounds the recursion of everything that walks a value, its
// destructor included.
struct Sequence {
  std::vector<Value> items;
  SequenceKind kind = SequenceKind::kList;
  int depth = 1;
  mutable bool is_consumed = false;  // Of a generator.
  bool is_group = false;             // A tuple of groupby: (grouper, list).
};

// In the order of insertion. Lookups are linear: dictionaries of templates are
// small, and the runtime charges steps for the entries (Runtime::FindNamed).
struct Dict {
  std::vector<std::pair<Value, Value>> items;
  int depth = 1;
};

// What is missing, so that its use can be reported as Jinja does.
struct UndefinedInfo {
  std::string message;
};

struct Namespace {
  std::vector<std::pair<std::string, Value>> items;

  const Value* Find(absl::string_view key) const {
    for (const auto& [name, value] : items) {
      if (name == key) return &value;
    }
    return nullptr;
  }
};

// Positional and named arguments of one call.
struct Arguments {
  absl::InlinedVector<Value, 4> positional;
  absl::InlinedVector<std::pair<std::string, Value>, 2> named;
};

struct MacroNode;
struct Scope;

struct Function {
  enum class Type {
    kGlobal,  // `name` is a function of the environment.
    kMethod,  // `name` of the value `self`.
    kMacro,
    kLoop,    // loop(...) of a recursive loop, in `self`.
    kCycler,  // cycler(...): `self` is the tuple of items.
    kJoiner,  // joiner(sep): `self` is the separator.
  };
  Type type = Type::kGlobal;
  std::string name;
  Value self;
  const MacroNode* macro = nullptr;  // Owned by the template.
  std::shared_ptr<Scope> scope;      // Where the macro was defined.
  mutable int64_t position = 0;      // Of a cycler or joiner.
  int depth = 1;
};

struct LoopState {
  Value items;  // A sequence.
  int64_t index0 = 0;
  int64_t depth0 = 0;
  Value last_changed;  // A tuple: the arguments of the last changed() call.
  bool has_changed = false;
  const void* recursive_node = nullptr;  // The loop's node, if recursive.
  std::shared_ptr<Scope> scope;          // Where a recursive loop runs.
};

// Name of the type as Python's error messages have it: "str", "list", ...
absl::string_view TypeName(const Value& value);

// Nesting of the value, 0 for scalars.
int DepthOf(const Value& value);

}  // namespace quire::jinja

#endif  // QUIRE_TOKENIZER_JINJA_VALUE_H_
