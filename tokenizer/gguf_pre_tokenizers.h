// The pre-tokenizers that GGUF files name by tokenizer.ggml.pre.
#ifndef QUIRE_TOKENIZER_GGUF_PRE_TOKENIZERS_H_
#define QUIRE_TOKENIZER_GGUF_PRE_TOKENIZERS_H_

#include <string>
#include <vector>

#include "absl/strings/string_view.h"

namespace quire {

struct GgufPreTokenizer {
  // Applied one after the other; each match is a word of its own.
  std::vector<std::string> patterns;
  // A word that is a token is that token, whatever the merges say.
  bool ignore_merges = false;
  bool adds_bos_token = false;  // Where the file does not say.
  bool is_nfc = false;          // Text is normalized to NFC first.
};

// False, and the pre-tokenizer of "default", if `name` is not known.
bool FindGgufPreTokenizer(absl::string_view name, GgufPreTokenizer* found);

}  // namespace quire

#endif  // QUIRE_TOKENIZER_GGUF_PRE_TOKENIZERS_H_
