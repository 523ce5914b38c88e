// The strings of testdata/proof, made from their numbers; for tests.
#ifndef QUIRE_TOKENIZER_PROOF_STRINGS_H_
#define QUIRE_TOKENIZER_PROOF_STRINGS_H_

#include <array>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/string_view.h"
#include "engine/base/random.h"
#include "tokenizer/golden_strings.h"
#include "tokenizer/unicode.h"

namespace quire {

// What strings are made of (proof/strings.json).
struct ProofSpec {
  using Strings = std::vector<std::string>;
  using Ranges = std::vector<std::pair<uint32_t, uint32_t>>;
  Strings words, emoji, modifiers, marks, bases, controls, spaces, code,
      right_to_left, forms, specials;
  std::vector<Ranges> scripts;
  Ranges cjk;

  static ProofSpec Load() {
    const nlohmann::json json =
        nlohmann::json::parse(ReadTestFile("proof/strings.json"));
    ProofSpec spec;
    json.at("words").get_to(spec.words);
    json.at("emoji").get_to(spec.emoji);
    json.at("modifiers").get_to(spec.modifiers);
    json.at("marks").get_to(spec.marks);
    json.at("bases").get_to(spec.bases);
    json.at("controls").get_to(spec.controls);
    json.at("spaces").get_to(spec.spaces);
    json.at("code").get_to(spec.code);
    json.at("right_to_left").get_to(spec.right_to_left);
    json.at("forms").get_to(spec.forms);
    json.at("specials").get_to(spec.specials);
    json.at("scripts").get_to(spec.scripts);
    json.at("cjk").get_to(spec.cjk);
    return spec;
  }
};

// make_string of tools/goldens/make_tokenizer_proof.py, step for step. Maybe
// not UTF-8.
inline std::string ProofString(const ProofSpec& spec, uint64_t number) {
  SimulationRandom random(number << 20);
  std::string out;
  const auto pick = [&](const auto& list) -> const auto& {
    return list[random.Below(list.size())];
  };
  const auto put_from = [&](const ProofSpec::Ranges& ranges) {
    const auto [low, high] = pick(ranges);
    AppendUtf8(low + static_cast<uint32_t>(random.Below(high - low + 1)), &out);
  };
  const auto put_byte = [&](uint64_t first, uint64_t count) {
    out.push_back(static_cast<char>(first + random.Below(count)));
  };
  const uint64_t num_parts = 1 + random.Below(9);
  for (uint64_t part = 0; part < num_parts; ++part) {
    const uint64_t kind = random.Below(20);
    if (kind < 4) {
      out += pick(spec.words);
      if (random.Below(4) > 0) out += ' ';
    } else if (kind < 7) {
      const ProofSpec::Ranges& script = pick(spec.scripts);
      const uint64_t count = 1 + random.Below(6);
      for (uint64_t i = 0; i < count; ++i) put_from(script);
    } else if (kind == 7) {
      const uint64_t count = 1 + random.Below(4);
      for (uint64_t i = 0; i < count; ++i) {
        out += pick(spec.emoji);
        out += pick(spec.modifiers);
        if (random.Below(2) == 0) out += "\u200D";
      }
    } else if (kind == 8) {
      out += pick(spec.bases);
      const uint64_t count = 1 + random.Below(5);
      for (uint64_t i = 0; i < count; ++i) out += pick(spec.marks);
    } else if (kind == 9) {
      out += pick(spec.controls);
    } else if (kind == 10) {
      out += pick(spec.code);
    } else if (kind == 11) {
      const uint64_t count = 1 + random.Below(9);
      for (uint64_t i = 0; i < count; ++i) {
        put_byte('0', 10);
        if (random.Below(6) == 0) put_byte(',', 3);
      }
    } else if (kind == 12) {
      const std::string& space = pick(spec.spaces);
      const uint64_t count = 1 + random.Below(4);
      for (uint64_t i = 0; i < count; ++i) out += space;
    } else if (kind == 13) {
      const ProofSpec::Ranges range = {pick(spec.cjk)};
      const uint64_t count = 1 + random.Below(6);
      for (uint64_t i = 0; i < count; ++i) put_from(range);
    } else if (kind == 14) {
      out += pick(spec.right_to_left);
    } else if (kind == 15) {
      out += pick(spec.specials);
    } else if (kind == 16) {
      const uint64_t count = 1 + random.Below(8);
      for (uint64_t i = 0; i < count; ++i) put_byte(' ', 95);
    } else if (kind == 17) {
      const uint32_t c = static_cast<uint32_t>(random.Below(0x110000 - 0x800));
      AppendUtf8(c < 0xD800 ? c : c + 0x800, &out);
    } else if (kind == 18) {
      if (random.Below(2) == 0) {
        out += pick(spec.forms);
      } else {
        const uint64_t count = 1 + random.Below(3);
        for (uint64_t i = 0; i < count; ++i) put_byte(128, 128);
      }
    } else {
      const std::string& atom = pick(spec.words);
      const bool is_long = random.Below(64) == 0;
      const uint64_t count = 2 + random.Below(is_long ? 300 : 8);
      for (uint64_t i = 0; i < count; ++i) out += atom;
    }
  }
  return out;
}

// CRC-32 of zlib, going on from `crc`.
inline uint32_t Crc32(absl::string_view bytes, uint32_t crc) {
  static const std::array<uint32_t, 256>* const table = [] {
    auto* made = new std::array<uint32_t, 256>();
    for (uint32_t i = 0; i < 256; ++i) {
      uint32_t value = i;
      for (int k = 0; k < 8; ++k) {
        value = value >> 1 ^ ((value & 1) != 0 ? 0xEDB88320 : 0);
      }
      (*made)[i] = value;
    }
    return made;
  }();
  crc = ~crc;
  for (const char c : bytes) {
    crc = (*table)[(crc ^ static_cast<unsigned char>(c)) & 0xFF] ^ crc >> 8;
  }
  return ~crc;
}

}  // namespace quire

#endif  // QUIRE_TOKENIZER_PROOF_STRINGS_H_
