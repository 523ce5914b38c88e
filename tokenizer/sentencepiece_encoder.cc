#include "tokenizer/sentencepiece_encoder.h"

#include <sentencepiece_processor.h>

#include <exception>

namespace quire {
namespace {

class LibraryEncoder final : public SentencePieceEncoder {
 public:
  bool Load(const std::string& model_proto, std::string* error) {
    const auto status = processor_.LoadFromSerializedProto(model_proto);
    if (!status.ok()) *error = status.ToString();
    return status.ok();
  }

  bool Encode(const char* text, size_t size, std::vector<int>* ids,
              std::string* error) const override {
    try {
      std::vector<int> found;
      const auto status =
          processor_.Encode(absl::string_view(text, size), &found);
      if (!status.ok()) {
        *error = status.ToString();
        return false;
      }
      ids->insert(ids->end(), found.begin(), found.end());
      return true;
    } catch (const std::exception& exception) {
      *error = exception.what();
      return false;
    }
  }

 private:
  sentencepiece::SentencePieceProcessor processor_;
};

}  // namespace

std::unique_ptr<SentencePieceEncoder> SentencePieceEncoder::Create(
    const std::string& model_proto, std::string* error) {
  try {
    auto encoder = std::make_unique<LibraryEncoder>();
    if (!encoder->Load(model_proto, error)) return nullptr;
    return encoder;
  } catch (const std::exception& exception) {
    *error = exception.what();
    return nullptr;
  }
}

}  // namespace quire
