#include "tokenizer/chat_template.h"

#include <utility>

#include "absl/time/clock.h"
#include "engine/base/status.h"
#include "tokenizer/jinja/interpreter.h"
#include "tokenizer/jinja/parser.h"

namespace quire {

ChatTemplate::ChatTemplate(std::unique_ptr<const jinja::Program> program,
                           const TemplateLimits& limits)
    : program_(std::move(program)), limits_(limits) {}

ChatTemplate::~ChatTemplate() = default;

absl::StatusOr<std::unique_ptr<ChatTemplate>> ChatTemplate::Parse(
    absl::string_view source, const TemplateLimits& limits) {
  QUIRE_ASSIGN_OR_RETURN(auto program, jinja::ParseTemplate(source, limits));
  return std::unique_ptr<ChatTemplate>(
      new ChatTemplate(std::move(program), limits));
}

absl::StatusOr<std::vector<TextSegment>> ChatTemplate::Render(
    const nlohmann::ordered_json& context,
    absl::Span<const std::string> trusted_names,
    std::optional<absl::Time> now) const {
  QUIRE_ASSIGN_OR_RETURN(
      const jinja::Text text,
      jinja::RunTemplate(*program_, context, trusted_names,
                         now.has_value() ? *now : absl::Now(), limits_));
  std::vector<TextSegment> segments;
  text.ForEachRun([&](absl::string_view run, bool is_control) {
    segments.push_back({std::string(run), is_control});
  });
  return segments;
}

std::string ConcatenateSegments(absl::Span<const TextSegment> segments) {
  std::string text;
  for (const TextSegment& segment : segments) text += segment.text;
  return text;
}

}  // namespace quire
