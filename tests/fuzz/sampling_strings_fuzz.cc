// Bad words and sequence breakers of DRY: the body of a completion request, as
// the server reads it, and the token sequences that its strings become.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "engine/base/status.h"
#include "engine/base/token_sequence_set.h"
#include "server/fake_tokenizer.h"
#include "server/json_text.h"
#include "server/openai_api.h"
#include "server/sampling_strings.h"

namespace quire {
namespace {

constexpr int32_t kVocabSize = FakeTokenizer::kVocabSize;
// A token, and what counts of the rest of a breaker.
constexpr size_t kMaxBreakerTokens = 21;

std::string TextOf(const std::vector<int32_t>& sequence) {
  std::string text;
  QUIRE_CHECK(!sequence.empty());
  for (const int32_t id : sequence) {
    QUIRE_CHECK(id >= 0 && id < kVocabSize);
    text += PieceTokenizer().TokenBytes(id);
  }
  return text;
}

void CheckBadWords(const ApiRequest& request) {
  std::vector<std::string> texts;
  for (const std::string& word : request.bad_words) {
    texts.emplace_back(absl::StripLeadingAsciiWhitespace(word));
  }
  // In order: one or two sequences of each word.
  size_t next = 0;
  // Null: there are none.
  const std::vector<std::vector<int32_t>> sequences =
      request.sampling.bad_words ? *request.sampling.bad_words
                                 : std::vector<std::vector<int32_t>>();
  for (const std::string& text : texts) {
    QUIRE_CHECK(next < sequences.size() && TextOf(sequences[next]) == text);
    ++next;
    if (next < sequences.size() &&
        TextOf(sequences[next]) == absl::StrCat(" ", text)) {
      ++next;
    }
  }
  QUIRE_CHECK(next == sequences.size());
}

void CheckBreakers(const std::vector<std::string>& breakers,
                   const TokenSequenceSet& set) {
  for (const std::vector<int32_t>& sequence : set.sequences()) {
    QUIRE_CHECK(sequence.size() <= kMaxBreakerTokens);
    const std::string text = TextOf(sequence);
    QUIRE_CHECK(sequence.size() == kMaxBreakerTokens ||
                std::any_of(breakers.begin(), breakers.end(),
                            [&text](const std::string& breaker) {
                              return absl::StrContains(text, breaker);
                            }));
  }
  for (int32_t id = 0; id < kVocabSize; ++id) {
    const std::string token = PieceTokenizer().TokenBytes(id);
    for (const std::string& breaker : breakers) {
      if (absl::StrContains(token, breaker)) QUIRE_CHECK(set.HasSingle(id));
      // Whatever token a breaker begins with, alone, is a start.
      if (absl::StartsWith(breaker, token)) QUIRE_CHECK(set.HasStart(id));
    }
  }
}

void Run(absl::string_view text) {
  const auto body = ParseJson(text);
  if (!body.ok()) return;
  auto request = ParseApiRequest(ApiKind::kCompletion, *body, {});
  if (!request.ok()) return;
  const PieceTokenizer tokenizer;
  SamplingStrings strings(&tokenizer, kVocabSize);
  const absl::Status status = strings.Resolve(&*request);
  if (!status.ok()) {
    QUIRE_CHECK(absl::IsInvalidArgument(status));
    QUIRE_CHECK(!request->bad_words.empty());
    return;
  }
  CheckBadWords(*request);
  const bool has_dry = request->sampling.dry_breakers != nullptr;
  QUIRE_CHECK(has_dry == (request->sampling.dry_multiplier != 0 &&
                          request->sampling.dry_penalty_last_n != 0));
  if (!has_dry) return;
  if (request->dry_sequence_breakers.has_value()) {
    CheckBreakers(*request->dry_sequence_breakers,
                  *request->sampling.dry_breakers);
  }
  // The second time they are those that were kept.
  const auto breakers = request->sampling.dry_breakers;
  QUIRE_CHECK(strings.Resolve(&*request).ok());
  QUIRE_CHECK(request->sampling.dry_breakers == breakers);
}

}  // namespace
}  // namespace quire

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  quire::Run(absl::string_view(reinterpret_cast<const char*>(data), size));
  return 0;
}
