// What a chat template may cost: templates come with downloaded models, and
// the messages they walk over come from the network.
#ifndef QUIRE_TOKENIZER_JINJA_LIMITS_H_
#define QUIRE_TOKENIZER_JINJA_LIMITS_H_

#include <cstdint>

namespace quire {

struct TemplateLimits {
  // Work of one rendering: one step for each evaluated node or list element,
  // and one for each 64 bytes of text copied or scanned. It bounds memory too,
  // because everything that a template holds was paid for in steps.
  int64_t max_steps = 1'000'000;
  // Nesting of blocks and brackets in the source, and of macro calls.
  int max_depth = 64;
  // Of the rendered text, and of each string on the way to it.
  int64_t max_output_bytes = 8 << 20;
  // Elements of one range().
  int64_t max_range = 100'000;
  int64_t max_source_bytes = 1 << 20;
};

}  // namespace quire

#endif  // QUIRE_TOKENIZER_JINJA_LIMITS_H_
