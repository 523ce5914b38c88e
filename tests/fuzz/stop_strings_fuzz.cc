// Stop strings and detokenizing, as text that arrives in pieces.
//
// Input: a byte of flags, then stop strings up to an empty one, each ended by
// 0xFF, then token ids, one byte each. The text that is given out must be that
// of a matcher which looks at the whole text after each token, and with one
// stop string it must not depend on the pieces at all.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "engine/base/status.h"
#include "server/fake_tokenizer.h"
#include "server/stop_strings.h"
#include "tokenizer/incremental_detokenizer.h"
#include "tokenizer/unicode.h"

namespace quire {
namespace {

constexpr size_t kMaxStops = 8;

struct Result {
  std::string text;
  std::optional<std::string> stopped;

  bool operator==(const Result&) const = default;
};

// By the definition in stop_strings.h, without holding anything back.
Result FindInWhole(const std::vector<std::string>& pieces,
                   const std::vector<std::string>& stops, bool include_stop,
                   size_t num_ordinary) {
  std::string text;
  for (size_t i = 0; i < pieces.size(); ++i) {
    const size_t old_size = text.size();
    text += pieces[i];
    if (i < num_ordinary) continue;
    size_t first = std::string::npos;
    const std::string* found = nullptr;
    for (const std::string& stop : stops) {
      const size_t begin =
          old_size < stop.size() ? 0 : old_size - stop.size() + 1;
      const size_t at = text.find(stop, begin);
      if (at == std::string::npos) continue;
      if (found == nullptr || at < first ||
          (at == first && stop.size() > found->size())) {
        first = at;
        found = &stop;
      }
    }
    if (found == nullptr) continue;
    text.resize(first + (include_stop ? found->size() : 0));
    return {text, *found};
  }
  return {text, std::nullopt};
}

Result Stream(const std::vector<std::string>& pieces,
              const std::vector<std::string>& stops, bool include_stop,
              size_t num_ordinary) {
  StopStringMatcher matcher(stops, include_stop);
  size_t longest = 0;
  for (const std::string& stop : stops)
    longest = std::max(longest, stop.size());
  Result result;
  for (size_t i = 0; i < pieces.size(); ++i) {
    result.text += matcher.Append(pieces[i], i >= num_ordinary);
    // Nothing more is held back than may become a stop string.
    QUIRE_CHECK(matcher.num_held_back() < std::max<size_t>(longest, 1));
  }
  result.text += matcher.Finish();
  result.stopped = matcher.stopped();
  return result;
}

void Run(absl::string_view input) {
  if (input.empty()) return;
  const uint8_t flags = static_cast<uint8_t>(input[0]);
  input.remove_prefix(1);
  const bool include_stop = flags & 1;
  const size_t num_ordinary = flags >> 4;
  std::vector<std::string> stops;
  for (;;) {
    const size_t end = std::min(input.find('\xFF'), input.size());
    const absl::string_view stop = input.substr(0, end);
    input.remove_prefix(std::min(end + 1, input.size()));
    if (stop.empty() || stops.size() == kMaxStops) break;
    stops.emplace_back(stop);
  }
  const PieceTokenizer tokenizer;
  std::vector<int32_t> ids;
  for (const char c : input) {
    // All ids, and two that are none.
    ids.push_back(static_cast<uint8_t>(c) < 230
                      ? static_cast<uint8_t>(c)
                      : static_cast<int32_t>(FakeTokenizer::kVocabSize) + 1 -
                            (static_cast<uint8_t>(c) - 230));
  }
  for (const bool skip : {false, true}) {
    IncrementalDetokenizer detokenizer(&tokenizer, skip);
    std::vector<std::string> pieces;
    std::string whole;
    for (const int32_t id : ids) pieces.push_back(detokenizer.Append(id));
    pieces.push_back(detokenizer.Finish());
    for (const std::string& piece : pieces) {
      QUIRE_CHECK(IsValidUtf8(piece));
      whole += piece;
    }
    QUIRE_CHECK(whole == tokenizer.Decode(ids, skip));
    const Result result = Stream(pieces, stops, include_stop, num_ordinary);
    QUIRE_CHECK(result ==
                FindInWhole(pieces, stops, include_stop, num_ordinary));
    if (stops.size() != 1) continue;
    const Result at_once = Stream({whole}, stops, include_stop, 0);
    std::vector<std::string> bytes;
    for (const char c : whole) bytes.emplace_back(1, c);
    QUIRE_CHECK(Stream(bytes, stops, include_stop, 0) == at_once);
    if (num_ordinary == 0) QUIRE_CHECK(result == at_once);
  }
}

}  // namespace
}  // namespace quire

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  quire::Run(absl::string_view(reinterpret_cast<const char*>(data), size));
  return 0;
}
