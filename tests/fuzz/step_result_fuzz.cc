// Results of steps as a stage on another host sends them: what is accepted
// names tokens of the vocabulary, and has the same bytes when encoded again.
#include <cstddef>
#include <cstdint>
#include <string>

#include "absl/strings/string_view.h"
#include "engine/base/status.h"
#include "engine/parallel/step_result_codec.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  constexpr int kVocabSize = 1000;
  const absl::string_view bytes(reinterpret_cast<const char*>(data), size);
  const auto result = quire::DecodeStepResult(bytes, kVocabSize);
  if (!result.ok()) return 0;
  for (const quire::SampledRow& row : result->rows) {
    for (const quire::TokenOutput& token : row.tokens) {
      QUIRE_CHECK(token.token_id >= 0 && token.token_id < kVocabSize);
    }
  }
  std::string again;
  quire::EncodeStepResult(*result, &again);
  QUIRE_CHECK(again == bytes);
  return 0;
}
