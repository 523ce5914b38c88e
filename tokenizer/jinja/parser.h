// Recursive-descent parser for the template language.
#ifndef QUIRE_TOKENIZER_JINJA_PARSER_H_
#define QUIRE_TOKENIZER_JINJA_PARSER_H_

#include <memory>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "tokenizer/jinja/ast.h"
#include "tokenizer/jinja/limits.h"

namespace quire::jinja {

// INVALID_ARGUMENT with the line number for a mistake in the source, for tags
// that load other templates, and for nesting or size over the limits.
absl::StatusOr<std::unique_ptr<const Program>> ParseTemplate(
    absl::string_view source, const TemplateLimits& limits);

}  // namespace quire::jinja

#endif  // QUIRE_TOKENIZER_JINJA_PARSER_H_
