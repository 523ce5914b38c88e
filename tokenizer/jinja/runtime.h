// Python's operations on values, within the limits of one rendering.
//
// Errors are sticky: an operation that fails records the first error and
// returns something harmless (undefined, false, empty). All operations are
// total, so callers may go on and need to look at ok() only before loops and
// at the end; the result of a rendering with an error is thrown away.
#ifndef QUIRE_TOKENIZER_JINJA_RUNTIME_H_
#define QUIRE_TOKENIZER_JINJA_RUNTIME_H_

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "tokenizer/jinja/limits.h"
#include "tokenizer/jinja/value.h"

namespace quire::jinja {

// Nesting of the values that a template makes or gets. 256: the walks over a
// value recurse, at some hundred bytes of stack a level.
inline constexpr int kMaxValueDepth = 256;

// Not thread-safe; one for each rendering.
class Runtime {
 public:
  Runtime(const TemplateLimits& limits, absl::Time now)
      : limits_(limits), now_(now) {}
  virtual ~Runtime();
  Runtime(const Runtime&) = delete;
  Runtime& operator=(const Runtime&) = delete;

  const TemplateLimits& limits() const { return limits_; }
  absl::Time now() const { return now_; }
  bool ok() const { return status_.ok(); }
  const absl::Status& status() const { return status_; }
  void set_line(int line) { line_ = line; }

  // Record an error; return undefined.
  Value Fail(absl::string_view message);         // With the line number.
  Value FailExactly(absl::string_view message);  // raise_exception
  Value FailLimit(absl::string_view message);    // RESOURCE_EXHAUSTED
  Value FailUndefined(const Value& value);       // Use of an undefined value.

  // Pays for work; false (and an error) if the budget is spent.
  bool Charge(int64_t steps) {
    // Not by the sum, which may overflow: templates choose some counts freely.
    if (steps <= limits_.max_steps - steps_) {
      steps_ += steps;
      return ok();
    }
    steps_ = limits_.max_steps;
    FailLimit("takes too many steps");
    return false;
  }
  bool ChargeBytes(int64_t num_bytes) { return Charge(1 + num_bytes / 64); }

  // ---- Making values, each paid for ----
  Value String(Text text);
  Value String(absl::string_view bytes) { return String(Text(bytes, true)); }
  Value List(std::vector<Value> items, SequenceKind kind = SequenceKind::kList);
  // A tuple whose items are also the attributes `grouper` and `list`.
  Value Group(const Value& key, const Value& members);
  Value MakeDict(std::vector<std::pair<Value, Value>> items);
  Value Undefined(absl::string_view message);
  Value Method(const Value& self, absl::string_view name);
  // {"a": 1} with later entries replacing earlier ones of the same key.
  void SetEntry(std::vector<std::pair<Value, Value>>* items, const Value& key,
                const Value& value);

  // ---- Python's protocols ----
  bool Truthy(const Value& value);
  // str(value): control text only if every string within is.
  Text ToText(const Value& value);
  // repr(value). `has_user_text` is set if a string within is not control.
  void AppendRepr(const Value& value, std::string* out, bool* has_user_text);
  bool Equal(const Value& a, const Value& b);
  bool Less(const Value& a, const Value& b);  // a < b; an error if unordered.
  // One of == != < <= > >= in "not in".
  bool Compare(absl::string_view op, const Value& a, const Value& b);
  bool Contains(const Value& container, const Value& item);
  bool IsIterable(const Value& value) const;
  // The items of an iterable; an error for others.
  std::vector<Value> Iterate(const Value& value);
  int64_t Length(const Value& value);  // len(); an error if it has none.
  bool HasLength(const Value& value) const;
  Value GetAttr(const Value& object, const std::string& name);
  Value GetItem(const Value& object, const Value& key);
  // The entry under a key, or null: dictionary semantics, no error.
  const Value* FindEntry(const Value& dict, const Value& key);
  const Value* FindNamed(const Dict& dict, absl::string_view key);
  // A null bound is absent (none).
  Value Slice(const Value& object, const Value& start, const Value& stop,
              const Value& step);
  // One of + - * / // % **.
  Value Binary(absl::string_view op, const Value& a, const Value& b);
  Value Negate(const Value& value);

  // Keeps a loop whose changed() holds values, which may be the loop itself,
  // until the end of the rendering; the circle is broken then.
  void Keep(const Value& loop) { kept_loops_.push_back(loop); }

  // Calls a function, method or macro.
  virtual Value Call(const Value& callee, Arguments arguments) = 0;

  // Binds arguments to the parameters `names`; null where not given. The
  // pointers live as long as `arguments`. An error for too many or unknown
  // ones, or if fewer than `num_required` are given.
  std::vector<const Value*> Bind(absl::string_view what,
                                 const Arguments& arguments,
                                 absl::Span<const char* const> names,
                                 int num_required = 0);

 private:
  // Whether Python could hash the value: what a dictionary takes as a key.
  bool IsHashable(const Value& value);
  // The part of AppendRepr for sequences, dicts and namespaces.
  void AppendContainerRepr(const Value& value, std::string* out,
                           bool* has_user_text);
  Value Arithmetic(absl::string_view op, const Value& a, const Value& b);
  Value IntegerPower(int64_t base, int64_t exponent);
  Value Repeat(const Value& value, int64_t count);
  Value LoopAttr(const Value& object, absl::string_view name);
  Value Missing(const Value& object, const Value& key);
  Value StringAt(const Value& text, int64_t index);

  const TemplateLimits limits_;
  const absl::Time now_;
  absl::Status status_;
  int64_t steps_ = 0;
  int line_ = 0;
  int repr_depth_ = 0;
  std::vector<Value> kept_loops_;
};

// A float as Python's repr() writes it: the shortest digits that read back.
std::string FloatRepr(double value);
// A string as Python's repr() writes it.
void AppendStringRepr(absl::string_view text, std::string* out);

}  // namespace quire::jinja

#endif  // QUIRE_TOKENIZER_JINJA_RUNTIME_H_
