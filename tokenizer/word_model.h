// What turns one word into token ids: the "model" of tokenizer.json.
#ifndef QUIRE_TOKENIZER_WORD_MODEL_H_
#define QUIRE_TOKENIZER_WORD_MODEL_H_

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "tokenizer/vocabulary.h"

namespace quire {

// Immutable after creation and thread-safe.
class WordModel {
 public:
  virtual ~WordModel() = default;

  // Appends the ids of `word`, a piece that the pre-tokenizer made.
  // Requires: valid UTF-8, unless the model says that its words are bytes.
  // INVALID_ARGUMENT if an unknown token is needed and the file names none.
  virtual absl::Status EncodeWord(absl::string_view word,
                                  std::vector<int32_t>* ids) const = 0;

  virtual const Vocabulary& vocabulary() const = 0;
};

}  // namespace quire

#endif  // QUIRE_TOKENIZER_WORD_MODEL_H_
