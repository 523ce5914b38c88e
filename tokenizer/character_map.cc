#include "tokenizer/character_map.h"

#include <algorithm>
#include <cstring>

#include "engine/base/status.h"
#include "tokenizer/unicode.h"

namespace quire {
namespace {

// Longer keys are not looked for: a crafted trie may lead in circles, and each
// place of the text is looked up.
constexpr size_t kMaxKeyBytes = 256;

// The trie is a double array of 32-bit units (darts-clone, array_builder.h): a
// lookup goes from the base b to unit b ^ c for the next byte c of the text,
// whatever it is, so the whole 256-unit block of every base that can be
// reached must exist. A unit's low byte and sign are its label, bit 8 says that
// a leaf is at its base, bits 9 and 10.. give the base; a leaf's value is where
// its text begins in the strings that follow.
size_t BaseOf(size_t pos, uint32_t unit) {
  return pos ^ (size_t{unit >> 10} << ((unit & (1u << 9)) >> 6));
}
bool HasLabel(uint32_t unit, uint8_t byte) {
  return (unit & 0x800000FF) == byte;
}
bool HasLeaf(uint32_t unit) { return (unit >> 8 & 1) != 0; }
size_t LeafValue(uint32_t unit) { return unit & 0x7FFFFFFF; }

}  // namespace

absl::StatusOr<CharacterMap> CharacterMap::Create(absl::string_view bytes) {
  CharacterMap map;
  if (bytes.empty()) return map;
  uint32_t trie_bytes = 0;
  if (bytes.size() < sizeof(trie_bytes)) {
    return absl::InvalidArgumentError("is cut off");
  }
  std::memcpy(&trie_bytes, bytes.data(), sizeof(trie_bytes));
  bytes.remove_prefix(sizeof(trie_bytes));
  if (trie_bytes > bytes.size() || trie_bytes % 4 != 0 || trie_bytes == 0) {
    return absl::InvalidArgumentError("the size of the trie is wrong");
  }
  map.units_.resize(trie_bytes / 4);
  std::memcpy(map.units_.data(), bytes.data(), trie_bytes);
  map.strings_ = std::string(bytes.substr(trie_bytes));
  if (map.strings_.empty() || map.strings_.back() != 0 ||
      !IsValidUtf8(map.strings_)) {
    return absl::InvalidArgumentError(
        "the strings are not UTF-8 or have no end");
  }
  QUIRE_RETURN_IF_ERROR(map.Check());
  const size_t root = BaseOf(0, map.units_[0]);
  for (int byte = 0; byte < 256; ++byte) {
    map.is_unmapped_[byte] =
        !HasLabel(map.units_[root ^ byte], static_cast<uint8_t>(byte));
  }
  return map;
}

absl::Status CharacterMap::Check() const {
  std::vector<bool> is_seen(units_.size());
  std::vector<size_t> bases;
  const auto visit = [&](size_t base) {
    if ((base | 0xFF) >= units_.size()) return false;
    if (!is_seen[base]) {
      is_seen[base] = true;
      bases.push_back(base);
    }
    return true;
  };
  bool is_in_bounds = visit(BaseOf(0, units_[0]));
  while (is_in_bounds && !bases.empty()) {
    const size_t base = bases.back();
    bases.pop_back();
    for (size_t c = 0; c < 256 && is_in_bounds; ++c) {
      const size_t pos = base ^ c;
      if (!HasLabel(units_[pos], static_cast<uint8_t>(c))) continue;
      const size_t next = BaseOf(pos, units_[pos]);
      is_in_bounds = visit(next);
      if (is_in_bounds && HasLeaf(units_[pos])) {
        // The replacement must begin a character, too.
        const size_t value = LeafValue(units_[next]);
        is_in_bounds =
            value < strings_.size() &&
            (static_cast<unsigned char>(strings_[value]) & 0xC0) != 0x80;
      }
    }
  }
  if (!is_in_bounds) {
    return absl::InvalidArgumentError("the trie leads out of bounds");
  }
  return absl::OkStatus();
}

size_t CharacterMap::Find(absl::string_view text, bool is_longest,
                          absl::string_view* replacement) const {
  if (units_.empty()) return 0;
  size_t found = 0;
  size_t value = 0;
  size_t base = BaseOf(0, units_[0]);
  const size_t size = std::min(text.size(), kMaxKeyBytes);
  for (size_t i = 0; i < size; ++i) {
    const uint8_t byte = static_cast<uint8_t>(text[i]);
    const size_t pos = base ^ byte;
    if (byte == 0 || !HasLabel(units_[pos], byte)) break;
    base = BaseOf(pos, units_[pos]);
    if (!HasLeaf(units_[pos])) continue;
    found = i + 1;
    value = LeafValue(units_[base]);
    if (!is_longest) break;
  }
  if (found > 0) *replacement = strings_.data() + value;
  return found;
}

size_t CharacterMap::FindLongest(absl::string_view text,
                                 absl::string_view* replacement) const {
  return Find(text, /*is_longest=*/true, replacement);
}

size_t CharacterMap::FindShortest(absl::string_view text,
                                  absl::string_view* replacement) const {
  return Find(text, /*is_longest=*/false, replacement);
}

}  // namespace quire
