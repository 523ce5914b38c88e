// The filters of filters.h that make text of their input.
#ifndef QUIRE_TOKENIZER_JINJA_TEXT_FILTERS_H_
#define QUIRE_TOKENIZER_JINJA_TEXT_FILTERS_H_

#include "absl/strings/string_view.h"
#include "tokenizer/jinja/filters.h"

namespace quire::jinja {

// Null if there is none.
FilterFunction FindTextFilter(absl::string_view name);

}  // namespace quire::jinja

#endif  // QUIRE_TOKENIZER_JINJA_TEXT_FILTERS_H_
