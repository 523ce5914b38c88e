// The strings of testdata, made from seeds; for tests.
#ifndef QUIRE_TOKENIZER_GOLDEN_STRINGS_H_
#define QUIRE_TOKENIZER_GOLDEN_STRINGS_H_

#include <cstdint>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/string_view.h"
#include "engine/base/random.h"
#include "tokenizer/unicode.h"

namespace quire {

inline std::string ReadTestFile(const std::string& path) {
  std::ifstream file("tokenizer/testdata/" + path, std::ios::binary);
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

// What strings are made of (strings.json).
struct GoldenSpec {
  using Ranges = std::vector<std::pair<uint32_t, uint32_t>>;
  std::vector<std::string> atoms;
  Ranges ranges;
  Ranges old_ranges;

  static GoldenSpec Load() {
    const nlohmann::json json =
        nlohmann::json::parse(ReadTestFile("strings.json"));
    GoldenSpec spec;
    json.at("atoms").get_to(spec.atoms);
    json.at("ranges").get_to(spec.ranges);
    json.at("old_ranges").get_to(spec.old_ranges);
    return spec;
  }
};

// make_string of tools/goldens/make_tokenizer_goldens.py, step for step.
inline std::string GoldenString(const GoldenSpec& spec,
                                const GoldenSpec::Ranges& ranges,
                                uint64_t seed) {
  SimulationRandom random(seed << 20);
  std::string out;
  const uint64_t num_parts = random.Below(24);
  for (uint64_t i = 0; i < num_parts; ++i) {
    const uint64_t kind = random.Below(100);
    if (kind < 45) {
      out += spec.atoms[random.Below(spec.atoms.size())];
      if (random.Below(2) == 0) out += ' ';
    } else if (kind < 60) {
      const auto [low, high] = ranges[random.Below(ranges.size())];
      AppendUtf8(low + static_cast<uint32_t>(random.Below(high - low + 1)),
                 &out);
    } else if (kind < 90) {
      out += static_cast<char>(32 + random.Below(95));
    } else {
      const uint64_t count = 1 + random.Below(seed % 300 == 299 ? 2000 : 40);
      const std::string& atom = spec.atoms[random.Below(spec.atoms.size())];
      for (uint64_t k = 0; k < count; ++k) out += atom;
    }
  }
  return out;
}

inline uint64_t Fnv1a(absl::string_view bytes) {
  uint64_t hash = 0xCBF29CE484222325;
  for (const char c : bytes) {
    hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001B3;
  }
  return hash;
}

}  // namespace quire

#endif  // QUIRE_TOKENIZER_GOLDEN_STRINGS_H_
