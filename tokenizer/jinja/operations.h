// What methods and filters share.
#ifndef QUIRE_TOKENIZER_JINJA_OPERATIONS_H_
#define QUIRE_TOKENIZER_JINJA_OPERATIONS_H_

#include <cstddef>
#include <cstdint>

#include "absl/strings/string_view.h"
#include "tokenizer/jinja/runtime.h"
#include "tokenizer/jinja/text.h"
#include "tokenizer/jinja/value.h"

namespace quire::jinja {

// `text` with the first `count` (negative: all) occurrences of `old_text`
// replaced. An empty `old_text` occurs at every code point and at the end.
Text ReplaceText(Runtime& runtime, const Text& text, absl::string_view old_text,
                 const Text& new_text, int64_t count);

// Where the last `part` in `text` begins, or npos. Charges `text` where that
// takes it all.
size_t FindLastText(Runtime& runtime, absl::string_view text,
                    absl::string_view part);

// What letters that are handled one by one cost, in bytes that are copied.
constexpr int64_t kBytesByLetter = 8;

// First code point in upper case, the rest in lower case.
Text CapitalizeText(const Text& text);

// str.isupper() (or islower()): cased letters exist and all have that case.
bool HasCase(absl::string_view text, bool is_upper);

// `text` filled up to `width` code points; `align` is '<', '>' or '^', and
// where the padding of '^' is odd, the left side gets the smaller half. (The
// method center() gives it the larger half for odd widths: `is_center`.)
Text PadText(Runtime& runtime, const Text& text, int64_t width,
             const Text& fill, char align, bool is_center = true);

// Pays for `num_bytes` appended to a text under construction; false and an
// error if the text or the work passes its limit.
bool CheckGrowth(Runtime& runtime, const Text& text, int64_t num_bytes);

// dict.items(): a view of (key, value) tuples. Requires: `dict` is a dict.
Value DictItems(Runtime& runtime, const Value& dict);

// range(stop) or range(start, stop[, step]) of Python, at most max_range items.
Value MakeRange(Runtime& runtime, const Arguments& arguments);

}  // namespace quire::jinja

#endif  // QUIRE_TOKENIZER_JINJA_OPERATIONS_H_
