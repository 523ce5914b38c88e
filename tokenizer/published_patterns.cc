// Each matcher reproduces what a backtracking engine does with the pattern
// quoted above it: alternatives in order, greedy repetition. All are linear:
// a run of one class is scanned a bounded number of times.
#include "tokenizer/published_patterns.h"

#include <string>
#include <utility>

#include "tokenizer/unicode.h"

namespace quire {
namespace {

constexpr size_t kNoMatch = static_cast<size_t>(-1);

// A text with the class of the character at each position.
class Scanner {
 public:
  explicit Scanner(absl::string_view text)
      : text_(text), classes_(BasicPlaneClasses()) {}

  size_t size() const { return text_.size(); }
  bool AtEnd(size_t pos) const { return pos >= text_.size(); }
  char ByteAt(size_t pos) const { return text_[pos]; }
  CodePoint At(size_t pos) const { return DecodeCodePoint(text_, pos); }

  // Class of the character at `pos`, and its length.
  uint16_t Class(size_t pos, uint32_t* num_bytes) const {
    const unsigned char byte = static_cast<unsigned char>(text_[pos]);
    if (byte < 0x80) {
      *num_bytes = 1;
      return classes_[byte];
    }
    const CodePoint c = DecodeCodePoint(text_, pos);
    *num_bytes = c.num_bytes;
    return ClassOf(classes_, c.value);
  }

  // End of the run of characters with a class in `mask`, from `pos`.
  size_t SkipAny(size_t pos, uint16_t mask) const {
    uint32_t length = 0;
    while (!AtEnd(pos) && (Class(pos, &length) & mask) != 0) pos += length;
    return pos;
  }
  // End of the run of characters with no class in `mask`.
  size_t SkipNone(size_t pos, uint16_t mask) const {
    uint32_t length = 0;
    while (!AtEnd(pos) && (Class(pos, &length) & mask) == 0) pos += length;
    return pos;
  }
  // The same for at most `limit` characters.
  size_t SkipAnyUpTo(size_t pos, uint16_t mask, int limit) const {
    uint32_t length = 0;
    for (int i = 0; i < limit && !AtEnd(pos); ++i) {
      if ((Class(pos, &length) & mask) == 0) break;
      pos += length;
    }
    return pos;
  }

  // The length of 's|'t|'re|'ve|'m|'ll|'d at `pos`, or 0.
  size_t Contraction(size_t pos, bool ignore_case) const {
    if (AtEnd(pos) || text_[pos] != '\'' || pos + 1 >= size()) return 0;
    const auto at = [&](size_t i) -> char {
      if (pos + i >= size()) return 0;
      const char c = text_[pos + i];
      return ignore_case && c >= 'A' && c <= 'Z' ? c - 'A' + 'a' : c;
    };
    switch (at(1)) {
      case 's':
      case 't':
      case 'm':
      case 'd':
        return 2;
      case 'r':
      case 'v':
        return at(2) == 'e' ? 3 : 0;
      case 'l':
        return at(2) == 'l' ? 3 : 0;
      default:
        break;
    }
    // U+017F, the long s, is a case of s.
    if (ignore_case && at(1) == '\xC5' && at(2) == '\xBF') return 3;
    return 0;
  }

  // \s+(?!\S)|\s+ at a run of spaces.
  // With `has_newline_rule`, \s*[\r\n]+ goes before. kNoMatch if no space is
  // here.
  size_t Spaces(size_t pos, bool has_newline_rule) const {
    size_t end = pos;
    size_t last_start = pos;
    size_t newline_end = kNoMatch;
    uint32_t length = 0;
    while (!AtEnd(end)) {
      const uint16_t bits = Class(end, &length);
      if ((bits & kClassSpace) == 0) break;
      last_start = end;
      end += length;
      if (bits & kClassNewline) newline_end = end;
    }
    if (end == pos) return kNoMatch;
    if (has_newline_rule && newline_end != kNoMatch) return newline_end;
    if (AtEnd(end) || last_start == pos) return end;
    return last_start;
  }

 private:
  absl::string_view text_;
  const uint16_t* classes_;
};

// Requires of Matcher: size_t operator()(const Scanner&, size_t pos) returns
// the end of the match that starts at `pos`, or kNoMatch.
template <typename Matcher>
class PublishedPattern final : public SplitPattern {
 public:
  explicit PublishedPattern(Matcher matcher) : matcher_(matcher) {}

  absl::Status Match(absl::string_view text,
                     std::vector<MatchSpan>* spans) const override {
    const Scanner scanner(text);
    size_t pos = 0;
    size_t unmatched = 0;
    const auto push = [spans](size_t begin, size_t end, bool is_match) {
      spans->push_back(
          {static_cast<uint32_t>(begin), static_cast<uint32_t>(end), is_match});
    };
    while (pos < text.size()) {
      const size_t end = matcher_(scanner, pos);
      if (end == kNoMatch) {
        pos += scanner.At(pos).num_bytes;
        continue;
      }
      if (unmatched < pos) push(unmatched, pos, false);
      push(pos, end, true);
      pos = end;
      unmatched = end;
    }
    if (unmatched < pos) push(unmatched, pos, false);
    return absl::OkStatus();
  }

 private:
  Matcher matcher_;
};

// 's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
struct Gpt2Matcher {
  size_t operator()(const Scanner& text, size_t pos) const {
    if (const size_t n = text.Contraction(pos, /*ignore_case=*/false)) {
      return pos + n;
    }
    const size_t start =
        text.ByteAt(pos) == ' ' && !text.AtEnd(pos + 1) ? pos + 1 : pos;
    uint32_t length = 0;
    const uint16_t bits = text.Class(start, &length);
    const size_t next = start + length;
    if (bits & kClassLetter) return text.SkipAny(next, kClassLetter);
    if (bits & kClassNumber) return text.SkipAny(next, kClassNumber);
    if ((bits & kClassSpace) == 0) {
      return text.SkipNone(next, kClassSpace | kClassLetter | kClassNumber);
    }
    return text.Spaces(pos, /*has_newline_rule=*/false);
  }
};

// (?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,max_digits}|
// ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+
// (the last of the first line's alternatives begins with " ?"), where a letter
// is a class in `letters`: \p{L}, or [\p{L}\p{M}] in the newest Qwen models.
struct Cl100kMatcher {
  int max_digits;
  uint16_t letters;

  size_t operator()(const Scanner& text, size_t pos) const {
    if (const size_t n = text.Contraction(pos, /*ignore_case=*/true)) {
      return pos + n;
    }
    uint32_t length = 0;
    const uint16_t bits = text.Class(pos, &length);
    const size_t next = pos + length;
    // The optional first character also takes a mark, which a pattern with
    // marks among its letters would take as a letter: the same match, unless
    // nothing follows it.
    if (bits & letters) return text.SkipAny(next, letters);
    if ((bits & (kClassNewline | kClassLetter | kClassNumber)) == 0) {
      const size_t end = text.SkipAny(next, letters);
      if (end != next) return end;
    }
    if (bits & kClassNumber) {
      return text.SkipAnyUpTo(next, kClassNumber, max_digits - 1);
    }
    const uint16_t not_other = kClassSpace | letters | kClassNumber;
    const size_t start = text.ByteAt(pos) == ' ' ? pos + 1 : pos;
    const size_t end = text.SkipNone(start, not_other);
    if (end != start) return text.SkipAny(end, kClassNewline);
    return text.Spaces(pos, /*has_newline_rule=*/true);
  }
};

// [^\r\n\p{L}\p{N}]?U*W+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|
// [^\r\n\p{L}\p{N}]?U+W*(?i:...)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|
// \s*[\r\n]+|\s+(?!\S)|\s+ with U = [\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}] and
// W = [\p{Ll}\p{Lm}\p{Lo}\p{M}].
struct O200kMatcher {
  // U*W+ from `pos`: if the run of U is not followed by a W, the last of its
  // characters that is also a W is given back, and with it all after.
  static size_t MixedCaseWord(const Scanner& text, size_t pos) {
    size_t end = pos;
    size_t last_shared_end = kNoMatch;
    uint32_t length = 0;
    uint16_t bits = 0;
    while (!text.AtEnd(end)) {
      bits = text.Class(end, &length);
      if ((bits & kClassUpperish) == 0) break;
      end += length;
      if (bits & kClassLowerish) last_shared_end = end;
    }
    const size_t word_end = text.SkipAny(end, kClassLowerish);
    return word_end != end ? word_end : last_shared_end;
  }
  // U+W* from `pos`.
  static size_t UpperCaseWord(const Scanner& text, size_t pos) {
    const size_t end = text.SkipAny(pos, kClassUpperish);
    if (end == pos) return kNoMatch;
    return text.SkipAny(end, kClassLowerish);
  }

  size_t operator()(const Scanner& text, size_t pos) const {
    uint32_t length = 0;
    const uint16_t bits = text.Class(pos, &length);
    const size_t next = pos + length;
    const bool can_lead =
        (bits & (kClassNewline | kClassLetter | kClassNumber)) == 0;
    size_t end = can_lead ? MixedCaseWord(text, next) : kNoMatch;
    if (end == kNoMatch) end = MixedCaseWord(text, pos);
    if (end == kNoMatch && can_lead) end = UpperCaseWord(text, next);
    if (end == kNoMatch) end = UpperCaseWord(text, pos);
    if (end != kNoMatch) {
      return end + text.Contraction(end, /*ignore_case=*/true);
    }
    if (bits & kClassNumber) return text.SkipAnyUpTo(next, kClassNumber, 2);
    const uint16_t not_other = kClassSpace | kClassLetter | kClassNumber;
    const size_t start = text.ByteAt(pos) == ' ' ? pos + 1 : pos;
    end = text.SkipNone(start, not_other);
    if (end != start) {
      while (!text.AtEnd(end) &&
             (text.ByteAt(end) == '\r' || text.ByteAt(end) == '\n' ||
              text.ByteAt(end) == '/')) {
        ++end;
      }
      return end;
    }
    return text.Spaces(pos, /*has_newline_rule=*/true);
  }
};

// \p{N}{1,max_digits}
struct DigitsMatcher {
  int max_digits;
  size_t operator()(const Scanner& text, size_t pos) const {
    const size_t end = text.SkipAnyUpTo(pos, kClassNumber, max_digits);
    return end == pos ? kNoMatch : end;
  }
};

// [U+4E00-U+9FA5 U+3040-U+309F U+30A0-U+30FF]+, DeepSeek-V3's second split.
struct CjkMatcher {
  size_t operator()(const Scanner& text, size_t pos) const {
    size_t end = pos;
    while (!text.AtEnd(end)) {
      const CodePoint c = text.At(end);
      if (!((c.value >= 0x4E00 && c.value <= 0x9FA5) ||
            (c.value >= 0x3040 && c.value <= 0x30FF))) {
        break;
      }
      end += c.num_bytes;
    }
    return end == pos ? kNoMatch : end;
  }
};

// [ASCII punctuation][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+|
// ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+ (the third begins with " ?"):
// DeepSeek-V3's third split. Digits and controls alone match nowhere.
struct DeepSeekMatcher {
  static bool IsAsciiLetter(char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
  }
  size_t operator()(const Scanner& text, size_t pos) const {
    uint32_t length = 0;
    const uint16_t bits = text.Class(pos, &length);
    const size_t next = pos + length;
    const uint16_t marks_or_signs = kClassPunctuation | kClassSymbol;
    if (length == 1 && (bits & marks_or_signs)) {
      size_t end = next;
      while (!text.AtEnd(end) && IsAsciiLetter(text.ByteAt(end))) ++end;
      if (end != next) return end;
    }
    const uint16_t letters = kClassLetter | kClassMark;
    if (bits & letters) return text.SkipAny(next, letters);
    if ((bits & (kClassNewline | kClassLetter | marks_or_signs)) == 0) {
      const size_t end = text.SkipAny(next, letters);
      if (end != next) return end;
    }
    const size_t start = text.ByteAt(pos) == ' ' ? pos + 1 : pos;
    const size_t end = text.SkipAny(start, marks_or_signs);
    if (end != start) return text.SkipAny(end, kClassNewline);
    return text.Spaces(pos, /*has_newline_rule=*/true);
  }
};

template <typename Matcher>
std::unique_ptr<SplitPattern> Make(Matcher matcher) {
  return std::make_unique<PublishedPattern<Matcher>>(matcher);
}

constexpr absl::string_view kSpaceTail = "|\\s+(?!\\S)|\\s+";
constexpr absl::string_view kContractions = "'s|'t|'re|'ve|'m|'ll|'d";

std::string Join(std::initializer_list<absl::string_view> parts) {
  std::string text;
  for (const absl::string_view part : parts) {
    text.append(part.data(), part.size());
  }
  return text;
}

bool IsGpt2(absl::string_view pattern) {
  const std::string rest =
      Join({"| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+", kSpaceTail});
  return pattern == Join({kContractions, rest}) ||
         pattern == Join({"'(?:[sdmt]|ll|ve|re)", rest});
}

// `digits` as the pattern spells it.
std::string Cl100kText(absl::string_view digits) {
  return Join({"(?i:", kContractions, ")|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|",
               digits, "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+",
               kSpaceTail});
}

std::string QwenWithMarksText() {
  return Join({"(?i:", kContractions,
               ")|[^\\r\\n\\p{L}\\p{N}]?[\\p{L}\\p{M}]+|\\p{N}|"
               " ?[^\\s\\p{L}\\p{M}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+",
               kSpaceTail});
}

std::string O200kText() {
  const std::string suffix = Join({"(?i:", kContractions, ")?|"});
  return Join(
      {"[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]*"
       "[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]+",
       suffix,
       "[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]+"
       "[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]*",
       suffix, "\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|\\s*[\\r\\n]+",
       kSpaceTail});
}

// The backquote and braces as JSON spells them after unescaping.
std::string DeepSeekText() {
  return Join(
      {"[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|"
       "[^\\r\\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+|"
       " ?[\\p{P}\\p{S}]+[\\r\\n]*|\\s*[\\r\\n]+",
       kSpaceTail});
}

}  // namespace

std::unique_ptr<SplitPattern> FindPublishedPattern(absl::string_view pattern) {
  if (IsGpt2(pattern)) return Make(Gpt2Matcher{});
  if (pattern == Cl100kText("\\p{N}{1,3}")) {
    return Make(Cl100kMatcher{3, kClassLetter});
  }
  if (pattern == Cl100kText("\\p{N}")) {
    return Make(Cl100kMatcher{1, kClassLetter});
  }
  if (pattern == QwenWithMarksText()) {
    return Make(Cl100kMatcher{1, kClassLetter | kClassMark});
  }
  if (pattern == O200kText()) return Make(O200kMatcher{});
  if (pattern == DeepSeekText()) return Make(DeepSeekMatcher{});
  if (pattern == "\\p{N}{1,3}") return Make(DigitsMatcher{3});
  if (pattern == "\\p{N}") return Make(DigitsMatcher{1});
  if (pattern ==
      "[\xE4\xB8\x80-\xE9\xBE\xA5\xE3\x81\x80-\xE3\x82\x9F\xE3\x82\xA0-"
      "\xE3\x83\xBF]+") {
    return Make(CjkMatcher{});
  }
  return nullptr;
}

std::unique_ptr<SplitPattern> Gpt2Pattern() { return Make(Gpt2Matcher{}); }

}  // namespace quire
