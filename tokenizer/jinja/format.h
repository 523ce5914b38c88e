// Values as text: printf-style and str.format() formatting, JSON, dates.
#ifndef QUIRE_TOKENIZER_JINJA_FORMAT_H_
#define QUIRE_TOKENIZER_JINJA_FORMAT_H_

#include "absl/strings/string_view.h"
#include "tokenizer/jinja/runtime.h"
#include "tokenizer/jinja/value.h"

namespace quire::jinja {

// `format % arguments` of Python. A tuple is the list of arguments, a
// dictionary serves %(name)s, anything else is the one argument.
Value PercentFormat(Runtime& runtime, const Text& format,
                    const Value& arguments);

// format.format(...) of Python.
Value BraceFormat(Runtime& runtime, const Text& format,
                  const Arguments& arguments);

// The filter tojson(ensure_ascii=False, indent=None, separators=None,
// sort_keys=False): json.dumps() of Python. The text is control text only if
// every string in the value is.
Value ToJson(Runtime& runtime, const Value& value, const Arguments& arguments);

// strftime_now(format) in the local time zone.
Value FormatNow(Runtime& runtime, const Arguments& arguments);

}  // namespace quire::jinja

#endif  // QUIRE_TOKENIZER_JINJA_FORMAT_H_
