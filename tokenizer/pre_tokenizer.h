// Splitting of a text into words: the "pre_tokenizer" of tokenizer.json.
#ifndef QUIRE_TOKENIZER_PRE_TOKENIZER_H_
#define QUIRE_TOKENIZER_PRE_TOKENIZER_H_

#include <deque>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "tokenizer/split_pattern.h"

namespace quire {

struct Word {
  absl::string_view text;
  bool is_first;  // It begins where the whole input begins.
};

// Words, with the texts that are not part of the input.
struct WordList {
  std::vector<Word> words;
  std::deque<std::string> made_texts;
};

// Immutable and thread-safe.
class PreTokenizer {
 public:
  // BertPreTokenizer, ByteLevel, CharDelimiterSplit, Digits, FixedLength,
  // Metaspace, Punctuation, Sequence, Split, UnicodeScripts, Whitespace,
  // WhitespaceSplit, or null: no split. INVALID_ARGUMENT naming the field
  // below `path` for any other component or field.
  static absl::StatusOr<PreTokenizer> Create(const nlohmann::json& config,
                                             const std::string& path);
  PreTokenizer() = default;

  // True if the last step is ByteLevel's spelling of bytes.
  bool ends_in_byte_level() const {
    return !steps_.empty() && steps_.back().kind == Kind::kSpellBytes;
  }
  // Leaves out that last step: words stay plain bytes.
  // Requires: ends_in_byte_level().
  void DropFinalByteLevel() { steps_.pop_back(); }

  // Splits list->words further, each alone. Texts of words are borrowed from
  // the caller or from made_texts. Requires: valid UTF-8, none empty.
  absl::Status Apply(WordList* list) const;

 private:
  enum class Kind { kSplit, kAddPrefix, kReplaceSpaces, kSpellBytes };
  enum class Behavior {
    kRemoved,
    kIsolated,
    kMergedWithPrevious,
    kMergedWithNext,
    kContiguous,
  };
  enum class PrependScheme { kAlways, kFirst, kNever };
  struct Step {
    Kind kind;
    std::shared_ptr<const SplitPattern> pattern;  // kSplit
    Behavior behavior = Behavior::kIsolated;
    bool invert = false;
    std::string prefix;  // kAddPrefix, and what kReplaceSpaces puts.
    PrependScheme scheme = PrependScheme::kAlways;
  };

  absl::Status AddStep(const nlohmann::json& config, const std::string& path,
                       int depth);
  void AddSplit(std::unique_ptr<SplitPattern> pattern, Behavior behavior,
                bool invert);
  absl::Status AddMetaspace(const nlohmann::json& config,
                            const std::string& path);
  static absl::Status ApplySplit(const Step& step, WordList* list);
  static void ApplyRewrite(const Step& step, WordList* list);
  static absl::StatusOr<Behavior> ReadBehavior(const nlohmann::json& config,
                                               const std::string& path);

  std::vector<Step> steps_;
};

}  // namespace quire

#endif  // QUIRE_TOKENIZER_PRE_TOKENIZER_H_
