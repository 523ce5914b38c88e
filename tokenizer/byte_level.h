// How vocabularies spell bytes.
// The 256 printable characters of byte-level ones:
// Radford et al. 2019 (GPT-2): printable Latin-1 bytes stand for themselves,
// the others are U+0100 and up in order.
#ifndef QUIRE_TOKENIZER_BYTE_LEVEL_H_
#define QUIRE_TOKENIZER_BYTE_LEVEL_H_

#include <cstdint>
#include <string>

#include "absl/strings/string_view.h"

namespace quire {

// The character of `byte`, as UTF-8 of one or two bytes.
absl::string_view ByteLevelCharacter(uint8_t byte);

// Appends the spelling of `bytes`.
void AppendByteLevel(absl::string_view bytes, std::string* out);

// Appends the bytes that `token` spells, or `token` itself if one of its
// characters stands for no byte. Requires: valid UTF-8.
void AppendByteLevelDecoded(absl::string_view token, std::string* out);

// "<0xHH>", the token of a byte where byte fallback spells unknown characters.
std::string ByteFallbackToken(uint8_t byte);

}  // namespace quire

#endif  // QUIRE_TOKENIZER_BYTE_LEVEL_H_
