// Chat templates: the Jinja programs that come with a model and turn a list of
// messages into its prompt.
#ifndef QUIRE_TOKENIZER_CHAT_TEMPLATE_H_
#define QUIRE_TOKENIZER_CHAT_TEMPLATE_H_

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "nlohmann/json.hpp"
#include "tokenizer/jinja/limits.h"

namespace quire {

namespace jinja {
struct Program;
}  // namespace jinja

// A piece of a prompt, and who wrote it. Special tokens are looked for in
// control text only; a message that contains "<|eot|>" stays plain text.
// Segments say nothing else: the words of a tokenizer may span them, so a
// tokenizer that splits its input at every segment gets other tokens than the
// model was trained with.
struct TextSegment {
  std::string text;
  bool is_control;  // Written by the template itself, not by a message.
};

// A parsed chat template. Immutable and thread-safe.
//
// The language is that of Jinja 3.1 in the environment that the transformers
// library makes for chat templates: an immutable sandbox with trim_blocks,
// lstrip_blocks, `break`, `continue` and `{% generation %}`; functions
// raise_exception and strftime_now; a tojson filter that escapes no HTML.
// Differences: integers have 64 bits (a wider result is RESOURCE_EXHAUSTED; a
// wider number in the context becomes a float), tags that load templates do
// not exist, nor do the filters pprint, random, striptags, urlize and wordwrap,
// and unknown filters and tests are errors when they are reached.
//
// Where text of a message goes through an operation, its result is marked byte
// by byte; only the JSON or Python text of a list or dictionary is marked as a
// whole, as control text if nothing in it came from a message. Numbers count as
// control text.
class ChatTemplate {
 public:
  // INVALID_ARGUMENT with the line number for a mistake in `source` or one
  // that passes a limit.
  static absl::StatusOr<std::unique_ptr<ChatTemplate>> Parse(
      absl::string_view source, const TemplateLimits& limits = {});
  ~ChatTemplate();

  // The prompt, in segments of alternating kinds, none empty.
  // `context`: an object with the template's variables: messages, tools,
  // add_generation_prompt, bos_token, eos_token, ... Strings reached through
  // `trusted_names` (bos_token, eos_token, ...) are control text, as the
  // template's literals are; every other string of the context is not.
  // `now`: what strftime_now() shows, in the local time zone; absent: the
  // current time.
  // INVALID_ARGUMENT for raise_exception (the message is the template's) and
  // other errors of the template (with a line number); RESOURCE_EXHAUSTED for
  // limits.
  absl::StatusOr<std::vector<TextSegment>> Render(
      const nlohmann::ordered_json& context,
      absl::Span<const std::string> trusted_names = {},
      std::optional<absl::Time> now = std::nullopt) const;

 private:
  ChatTemplate(std::unique_ptr<const jinja::Program> program,
               const TemplateLimits& limits);

  const std::unique_ptr<const jinja::Program> program_;
  const TemplateLimits limits_;
};

// The text of all segments, in order.
std::string ConcatenateSegments(absl::Span<const TextSegment> segments);

}  // namespace quire

#endif  // QUIRE_TOKENIZER_CHAT_TEMPLATE_H_
