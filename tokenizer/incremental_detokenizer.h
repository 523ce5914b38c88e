// Token ids to text as they arrive.
#ifndef QUIRE_TOKENIZER_INCREMENTAL_DETOKENIZER_H_
#define QUIRE_TOKENIZER_INCREMENTAL_DETOKENIZER_H_

#include <cstdint>
#include <memory>
#include <string>

#include "tokenizer/tokenizer.h"

namespace quire {

// Pieces concatenate to Tokenizer::Decode of all ids, for every split, and each
// piece is valid UTF-8: bytes of an incomplete character are held back until it
// is complete or known to be broken. Thread-compatible; one per stream.
class IncrementalDetokenizer {
 public:
  // `tokenizer` must outlive this.
  IncrementalDetokenizer(const Tokenizer* tokenizer, bool skip_special_tokens);

  // The text that `id` completes; may be empty.
  std::string Append(int32_t id);
  // What was held back at the end, broken characters as U+FFFD. Nothing may be
  // appended after it.
  std::string Finish();

 private:
  std::unique_ptr<TokenStream> stream_;
};

}  // namespace quire

#endif  // QUIRE_TOKENIZER_INCREMENTAL_DETOKENIZER_H_
