// Runs a parsed template.
#ifndef QUIRE_TOKENIZER_JINJA_INTERPRETER_H_
#define QUIRE_TOKENIZER_JINJA_INTERPRETER_H_

#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "nlohmann/json.hpp"
#include "tokenizer/jinja/ast.h"
#include "tokenizer/jinja/limits.h"
#include "tokenizer/jinja/text.h"

namespace quire::jinja {

// The output of `program`. Variables are the entries of the object `context`;
// text is control text if it is a literal of the template or lies under one of
// `trusted_names`. `now` is what strftime_now() sees. INVALID_ARGUMENT for
// errors of the template, RESOURCE_EXHAUSTED for limits. Thread-safe.
absl::StatusOr<Text> RunTemplate(const Program& program,
                                 const nlohmann::ordered_json& context,
                                 absl::Span<const std::string> trusted_names,
                                 absl::Time now, const TemplateLimits& limits);

}  // namespace quire::jinja

#endif  // QUIRE_TOKENIZER_JINJA_INTERPRETER_H_
