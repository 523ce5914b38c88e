// Rewriting of a text before it is split: the "normalizer" of tokenizer.json.
#ifndef QUIRE_TOKENIZER_NORMALIZER_H_
#define QUIRE_TOKENIZER_NORMALIZER_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "tokenizer/character_map.h"
#include "tokenizer/split_pattern.h"

namespace quire {

// Larger texts are refused: positions are 32 bits in several places.
inline constexpr size_t kMaxTextBytes = 256 << 20;

// For each byte of a text, the segment it comes from; kMixedOrigin for a byte
// made of several, or of none.
using TextOrigin = std::vector<int32_t>;
inline constexpr int32_t kMixedOrigin = -1;

// Immutable and thread-safe.
class Normalizer {
 public:
  // NFC, NFD, NFKC, NFKD, Lowercase, Strip, StripAccents, Prepend, Replace,
  // Nmt, Precompiled, BertNormalizer, ByteLevel, Sequence, or null: no change.
  // INVALID_ARGUMENT naming the field below `path` for any other component or
  // field.
  static absl::StatusOr<Normalizer> Create(const nlohmann::json& config,
                                           const std::string& path);

  Normalizer() = default;
  bool IsIdentity() const { return steps_.empty(); }

  // Rewrites `text`, and `origin` with it unless that is null. Sets
  // `starts_late`, unless null, if what the text began with is removed.
  // RESOURCE_EXHAUSTED if the text becomes more than 16 times as long.
  // Requires: valid UTF-8 below 4 GiB; origin has an element for each byte.
  absl::Status Apply(std::string* text, TextOrigin* origin,
                     bool* starts_late = nullptr) const;

 private:
  enum class Kind {
    kNfc,
    kNfd,
    kNfkc,
    kNfkd,
    kLowercase,
    kStrip,
    kStripAccents,
    kPrepend,
    kReplace,
    kNmt,
    kByteLevel,
    kPrecompiled,
    // Parts of BertNormalizer.
    kCleanText,
    kIsolateIdeographs,
    kStripNonspacingMarks,
  };
  struct Step {
    Kind kind;
    std::string content;                                // kPrepend, kReplace
    std::shared_ptr<const SplitPattern> pattern;        // kReplace
    std::shared_ptr<const CharacterMap> character_map;  // kPrecompiled
    bool strip_left = false;
    bool strip_right = false;
  };

  absl::Status AddStep(const nlohmann::json& config, const std::string& path,
                       int depth);
  absl::Status AddBertSteps(const nlohmann::json& config,
                            const std::string& path);
  static absl::Status ApplyStep(const Step& step, size_t max_bytes,
                                std::string* text, TextOrigin* origin,
                                bool* starts_late);
  static absl::Status ApplyUnicodeForm(Kind kind, size_t max_bytes,
                                       std::string* text, TextOrigin* origin);

  std::vector<Step> steps_;
};

}  // namespace quire

#endif  // QUIRE_TOKENIZER_NORMALIZER_H_
