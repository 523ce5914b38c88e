#include "tokenizer/byte_level.h"

#include <array>

#include "tokenizer/unicode.h"

namespace quire {
namespace {

struct ByteLevelTable {
  std::array<std::string, 256> characters;
  std::array<int16_t, 512> bytes;  // By code point; -1: stands for no byte.

  ByteLevelTable() {
    bytes.fill(-1);
    uint32_t next = 256;
    for (uint32_t byte = 0; byte < 256; ++byte) {
      const bool is_printable = (byte >= '!' && byte <= '~') ||
                                (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
      const uint32_t code_point = is_printable ? byte : next++;
      AppendUtf8(code_point, &characters[byte]);
      bytes[code_point] = static_cast<int16_t>(byte);
    }
  }
};

const ByteLevelTable& Table() {
  static const ByteLevelTable* const table = new ByteLevelTable();
  return *table;
}

}  // namespace

absl::string_view ByteLevelCharacter(uint8_t byte) {
  return Table().characters[byte];
}

void AppendByteLevel(absl::string_view bytes, std::string* out) {
  const ByteLevelTable& table = Table();
  for (const char c : bytes) {
    out->append(table.characters[static_cast<unsigned char>(c)]);
  }
}

void AppendByteLevelDecoded(absl::string_view token, std::string* out) {
  const ByteLevelTable& table = Table();
  const size_t size_before = out->size();
  for (size_t pos = 0; pos < token.size();) {
    const CodePoint c = DecodeCodePoint(token, pos);
    if (c.value >= table.bytes.size() || table.bytes[c.value] < 0) {
      out->resize(size_before);
      out->append(token.data(), token.size());
      return;
    }
    out->push_back(static_cast<char>(table.bytes[c.value]));
    pos += c.num_bytes;
  }
}

std::string ByteFallbackToken(uint8_t byte) {
  constexpr char kDigits[] = "0123456789ABCDEF";
  return {'<', '0', 'x', kDigits[byte >> 4], kDigits[byte & 15], '>'};
}

}  // namespace quire
