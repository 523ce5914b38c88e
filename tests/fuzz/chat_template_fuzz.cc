// Fuzzes chat templates: the input is the source, rendered with a fixed context
// and small limits. The sources in tokenizer/testdata/template_goldens.json
// make a good corpus.
#include <cstddef>
#include <cstdint>

#include "absl/strings/string_view.h"
#include "engine/base/status.h"
#include "tokenizer/chat_template.h"

namespace {

const nlohmann::ordered_json& Context() {
  static const auto* const context =
      new nlohmann::ordered_json(nlohmann::ordered_json::parse(R"({
    "bos_token": "<s>", "s": "Hello World", "n": 42, "f": 3.75, "t": true,
    "u": "\u00dcn\u00ef \u0391\u0392\u03a3 \u65e5\u672c \ud83d\ude00",
    "none_value": null, "l": [3, 1, 2], "d": {"b": 1, "a": [1, {"x": null}]},
    "w": ["b", "A", "a"], "empty": [], "lines": "one\n two\r\n\nthree\n",
    "rows": [{"name": "Zoe", "age": 31}, {"name": "adam", "tags": []}],
    "messages": [{"role": "system", "content": " x "},
                 {"role": "user", "content": "<|eot|>"}],
    "add_generation_prompt": true})"));
  return *context;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  quire::TemplateLimits limits;
  // Enough for every loop over the context; the rest only takes time.
  limits.max_steps = 4'000;
  limits.max_output_bytes = 1 << 16;
  const auto parsed = quire::ChatTemplate::Parse(
      absl::string_view(reinterpret_cast<const char*>(data), size), limits);
  if (!parsed.ok()) return 0;
  const auto segments =
      (*parsed)->Render(Context(), {"bos_token"}, absl::UnixEpoch());
  if (!segments.ok()) return 0;
  size_t num_bytes = 0;
  for (size_t i = 0; i < segments->size(); ++i) {
    const quire::TextSegment& segment = (*segments)[i];
    num_bytes += segment.text.size();
    QUIRE_CHECK(!segment.text.empty());
    QUIRE_CHECK(i == 0 || segment.is_control != (*segments)[i - 1].is_control);
  }
  QUIRE_CHECK(num_bytes <= static_cast<size_t>(limits.max_output_bytes));
  return 0;
}
