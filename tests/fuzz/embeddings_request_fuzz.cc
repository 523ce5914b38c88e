// Bodies of POST /v1/embeddings: JSON with limits, the fields, and the tokens
// of what was accepted.
#include <cstddef>
#include <cstdint>

#include "absl/strings/string_view.h"
#include "engine/base/status.h"
#include "server/embeddings_api.h"
#include "server/fake_tokenizer.h"
#include "server/json_text.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const quire::FakeTokenizer tokenizer;
  static const quire::PromptLimits limits = quire::MakePromptLimits(
      tokenizer, /*max_model_len=*/16, quire::FakeTokenizer::kVocabSize);
  const absl::string_view text(reinterpret_cast<const char*>(data), size);
  const auto body = quire::ParseJson(text);
  if (!body.ok()) return 0;
  const auto request = quire::ParseEmbeddingsRequest(*body, /*hidden_size=*/64);
  if (!request.ok()) return 0;
  // What is accepted lies within the limits that memory and time depend on.
  QUIRE_CHECK(!request->prompts.empty());
  QUIRE_CHECK(request->prompts.size() <= quire::kMaxEmbeddingInputs);
  QUIRE_CHECK(request->dimensions >= 0 && request->dimensions <= 64);
  const auto inputs = quire::EncodeInputs(*request, tokenizer, limits);
  if (!inputs.ok()) return 0;
  QUIRE_CHECK(inputs->size() == request->prompts.size());
  for (const auto& ids : *inputs) {
    QUIRE_CHECK(!ids.empty() && ids.size() <= 16);
    for (const int32_t id : ids) {
      QUIRE_CHECK(id >= 0 && id < quire::FakeTokenizer::kVocabSize);
    }
  }
  return 0;
}
