// The sentencepiece library behind standard types only: its headers carry
// another absl, so no file may include both.
#ifndef QUIRE_TOKENIZER_SENTENCEPIECE_ENCODER_H_
#define QUIRE_TOKENIZER_SENTENCEPIECE_ENCODER_H_

#include <cstddef>
#include <memory>
#include <string>
#include <vector>

namespace quire {

// Immutable and thread-safe.
class SentencePieceEncoder {
 public:
  virtual ~SentencePieceEncoder() = default;

  // Null, with the reason in `error`, if the library refuses the model.
  // Requires: `model_proto` has passed ParseSentencePieceProto, since the
  // library crashes on some files.
  static std::unique_ptr<SentencePieceEncoder> Create(
      const std::string& model_proto, std::string* error);

  // Appends the ids of valid UTF-8. False, with the reason in `error`, if the
  // library fails.
  virtual bool Encode(const char* text, size_t size, std::vector<int>* ids,
                      std::string* error) const = 0;
};

}  // namespace quire

#endif  // QUIRE_TOKENIZER_SENTENCEPIECE_ENCODER_H_
