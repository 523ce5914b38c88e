#include "tokenizer/split_pattern.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <utility>

#include "absl/strings/str_cat.h"
#include "tokenizer/published_patterns.h"
#include "tokenizer/unicode.h"
#include "tokenizer/unicode_scripts.h"

namespace quire {
namespace {

// Backtracking steps that one match may take before it is an error: far above
// what a split of sane text needs, well below a second.
constexpr uint32_t kMatchLimit = 10'000'000;

struct Pcre2Deleter {
  void operator()(pcre2_code* code) const { pcre2_code_free(code); }
  void operator()(pcre2_match_data* data) const { pcre2_match_data_free(data); }
  void operator()(pcre2_match_context* context) const {
    pcre2_match_context_free(context);
  }
  void operator()(pcre2_compile_context* context) const {
    pcre2_compile_context_free(context);
  }
};
template <typename T>
using Pcre2Ptr = std::unique_ptr<T, Pcre2Deleter>;

class RegexPattern final : public SplitPattern {
 public:
  explicit RegexPattern(Pcre2Ptr<pcre2_code> code) : code_(std::move(code)) {}

  absl::Status Match(absl::string_view text,
                     std::vector<MatchSpan>* spans) const override {
    Pcre2Ptr<pcre2_match_data> data(
        pcre2_match_data_create_from_pattern(code_.get(), nullptr));
    Pcre2Ptr<pcre2_match_context> context(pcre2_match_context_create(nullptr));
    if (data == nullptr || context == nullptr) {
      return absl::ResourceExhaustedError("no memory for a pattern match");
    }
    pcre2_set_match_limit(context.get(), kMatchLimit);
    size_t pos = 0;
    size_t previous_end = 0;
    bool has_previous = false;
    const auto push = [spans](size_t begin, size_t end, bool is_match) {
      spans->push_back(
          {static_cast<uint32_t>(begin), static_cast<uint32_t>(end), is_match});
    };
    while (pos <= text.size()) {
      const int rc = pcre2_match(
          code_.get(), reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(),
          pos, PCRE2_NO_UTF_CHECK, data.get(), context.get());
      if (rc == PCRE2_ERROR_NOMATCH) break;
      if (rc < 0) {
        return absl::ResourceExhaustedError(absl::StrCat(
            "pattern match failed at byte ", pos, " (PCRE2 error ", rc, ")"));
      }
      const size_t* range = pcre2_get_ovector_pointer(data.get());
      const size_t begin = range[0];
      const size_t end = range[1];
      // Lookbehind with \K can turn a range round; no pattern here needs it.
      if (end < begin || begin < previous_end) {
        return absl::InvalidArgumentError("pattern matches backwards");
      }
      const bool is_repeat =
          begin == end && has_previous && end == previous_end;
      if (!is_repeat) {
        if (previous_end < begin) push(previous_end, begin, false);
        push(begin, end, true);
        previous_end = end;
        has_previous = true;
      }
      pos = end;
      if (begin == end) {
        if (end >= text.size()) break;
        pos += DecodeCodePoint(text, end).num_bytes;
      }
    }
    if (previous_end < text.size()) push(previous_end, text.size(), false);
    return absl::OkStatus();
  }

 private:
  Pcre2Ptr<pcre2_code> code_;
};

class Literal final : public SplitPattern {
 public:
  explicit Literal(absl::string_view literal) : literal_(literal) {}

  absl::Status Match(absl::string_view text,
                     std::vector<MatchSpan>* spans) const override {
    size_t pos = 0;
    while (!literal_.empty()) {
      const size_t found = text.find(literal_, pos);
      if (found == absl::string_view::npos) break;
      const size_t end = found + literal_.size();
      if (pos < found) Push(pos, found, false, spans);
      Push(found, end, true, spans);
      pos = end;
    }
    if (pos < text.size()) Push(pos, text.size(), false, spans);
    return absl::OkStatus();
  }

 private:
  static void Push(size_t begin, size_t end, bool is_match,
                   std::vector<MatchSpan>* spans) {
    spans->push_back(
        {static_cast<uint32_t>(begin), static_cast<uint32_t>(end), is_match});
  }
  std::string literal_;
};

class CharacterClass final : public SplitPattern {
 public:
  explicit CharacterClass(uint16_t mask) : mask_(mask) {}

  absl::Status Match(absl::string_view text,
                     std::vector<MatchSpan>* spans) const override {
    const uint16_t* classes = BasicPlaneClasses();
    uint32_t unmatched = 0;
    uint32_t pos = 0;
    while (pos < text.size()) {
      const CodePoint c = DecodeCodePoint(text, pos);
      const uint32_t end = pos + c.num_bytes;
      if (ClassOf(classes, c.value) & mask_) {
        if (unmatched < pos) spans->push_back({unmatched, pos, false});
        spans->push_back({pos, end, true});
        unmatched = end;
      }
      pos = end;
    }
    if (unmatched < pos) spans->push_back({unmatched, pos, false});
    return absl::OkStatus();
  }

 private:
  uint16_t mask_;
};

class FixedLength final : public SplitPattern {
 public:
  explicit FixedLength(int length) : length_(length) {}

  absl::Status Match(absl::string_view text,
                     std::vector<MatchSpan>* spans) const override {
    uint32_t pos = 0;
    while (pos < text.size()) {
      const uint32_t begin = pos;
      for (int i = 0; i < length_ && pos < text.size(); ++i) {
        pos += DecodeCodePoint(text, pos).num_bytes;
      }
      spans->push_back({begin, pos, true});
    }
    return absl::OkStatus();
  }

 private:
  int length_;
};

class Scripts final : public SplitPattern {
 public:
  absl::Status Match(absl::string_view text,
                     std::vector<MatchSpan>* spans) const override {
    uint32_t begin = 0;
    uint32_t script = 0;  // Of the run; 0: none has come.
    for (uint32_t pos = 0; pos < text.size();) {
      const CodePoint c = DecodeCodePoint(text, pos);
      const uint32_t next = ScriptClassOf(c.value);
      if (next != 0 && next != script) {
        // What comes before the first run belongs to none.
        if (begin < pos) spans->push_back({begin, pos, script == 0});
        begin = pos;
        script = next;
      }
      pos += c.num_bytes;
    }
    spans->push_back({begin, static_cast<uint32_t>(text.size()), script == 0});
    return absl::OkStatus();
  }
};

class Words final : public SplitPattern {
 public:
  absl::Status Match(absl::string_view text,
                     std::vector<MatchSpan>* spans) const override {
    const uint16_t* classes = BasicPlaneClasses();
    uint32_t begin = 0;
    int kind_of_run = -1;
    uint32_t pos = 0;
    while (pos < text.size()) {
      const CodePoint c = DecodeCodePoint(text, pos);
      const uint16_t bits = ClassOf(classes, c.value);
      const int kind = bits & kClassWord ? 2 : bits & kClassSpace ? 0 : 1;
      if (kind != kind_of_run && pos > begin) {
        spans->push_back({begin, pos, kind_of_run != 0});
        begin = pos;
      }
      kind_of_run = kind;
      pos += c.num_bytes;
    }
    if (begin < pos) spans->push_back({begin, pos, kind_of_run != 0});
    return absl::OkStatus();
  }
};

// Oniguruma's \w in its Unicode mode, as the inside of a character class.
constexpr absl::string_view kWordClass =
    "\\p{L}\\p{M}\\p{Nd}\\p{Nl}\\p{Pc}\\x{24B6}-\\x{24E9}\\x{200C}\\x{200D}";

absl::Status Unsupported(absl::string_view what) {
  return absl::InvalidArgumentError(
      absl::StrCat("expression uses ", what, ", which is not supported"));
}

// Rewrites what PCRE2 reads otherwise than Oniguruma, and refuses what cannot
// be rewritten.
absl::StatusOr<std::string> TranslateFromOniguruma(absl::string_view pattern) {
  std::string out;
  bool in_class = false;
  const auto append = [&out](absl::string_view text) {
    out.append(text.data(), text.size());
  };
  for (size_t i = 0; i < pattern.size(); ++i) {
    const char c = pattern[i];
    if (c == '\\' && i + 1 < pattern.size()) {
      const char next = pattern[++i];
      switch (next) {
        case 'w':
          append(in_class ? kWordClass : absl::StrCat("[", kWordClass, "]"));
          break;
        case 'W':
          if (in_class) return Unsupported("\\W in a character class");
          append(absl::StrCat("[^", kWordClass, "]"));
          break;
        case 'h':
          append(in_class ? "0-9A-Fa-f" : "[0-9A-Fa-f]");
          break;
        case 'H':
        case 'b':
        case 'B':
        case 'K':
        case 'C':
        case 'X':
        case 'R':
        case 'Q':
        case 'E':
        case 'N':
        case 'g':
        case 'k':
          return Unsupported(absl::StrCat("\\", absl::string_view(&next, 1)));
        default:
          out.push_back('\\');
          out.push_back(next);
      }
      continue;
    }
    if (in_class) {
      if (c == '[') return Unsupported("a nested or named character class");
      if (c == '&' && i + 1 < pattern.size() && pattern[i + 1] == '&') {
        return Unsupported("an intersection of character classes");
      }
      if (c == ']') in_class = false;
    } else if (c == '[') {
      in_class = true;
      out.push_back(c);
      if (i + 1 < pattern.size() && pattern[i + 1] == '^') {
        out.push_back(pattern[++i]);
      }
      continue;
    } else if (c == '(' && i + 1 < pattern.size() && pattern[i + 1] == '*') {
      return Unsupported("(*");
    } else if (c == '(' && i + 2 < pattern.size() && pattern[i + 1] == '?') {
      const char kind = pattern[i + 2];
      if (absl::string_view("=!:>i<").find(kind) == absl::string_view::npos) {
        return Unsupported(absl::StrCat("(?", absl::string_view(&kind, 1)));
      }
    }
    out.push_back(c);
  }
  return out;
}

}  // namespace

absl::StatusOr<std::unique_ptr<SplitPattern>> CompileWithPcre2(
    absl::string_view pattern) {
  absl::StatusOr<std::string> translated = TranslateFromOniguruma(pattern);
  if (!translated.ok()) return translated.status();
  Pcre2Ptr<pcre2_compile_context> context(
      pcre2_compile_context_create(nullptr));
  if (context == nullptr) {
    return absl::ResourceExhaustedError("no memory for a pattern");
  }
  pcre2_set_newline(context.get(), PCRE2_NEWLINE_LF);
  pcre2_set_parens_nest_limit(context.get(), 64);
  int error = 0;
  size_t offset = 0;
  // In Ruby's syntax ^ and $ always match at lines.
  Pcre2Ptr<pcre2_code> code(pcre2_compile(
      reinterpret_cast<PCRE2_SPTR>(translated->data()), translated->size(),
      PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C, &error,
      &offset, context.get()));
  if (code == nullptr) {
    char message[256] = {};
    pcre2_get_error_message(error, reinterpret_cast<PCRE2_UCHAR*>(message),
                            sizeof(message));
    return absl::InvalidArgumentError(absl::StrCat(
        "expression does not compile: ", message, " at offset ", offset));
  }
  // Without JIT the same matches are found, only slower: the result is not
  // needed.
  (void)pcre2_jit_compile(code.get(), PCRE2_JIT_COMPLETE);
  return std::unique_ptr<SplitPattern>(
      std::make_unique<RegexPattern>(std::move(code)));
}

absl::StatusOr<std::unique_ptr<SplitPattern>> CompileRegexPattern(
    absl::string_view pattern) {
  if (std::unique_ptr<SplitPattern> known = FindPublishedPattern(pattern)) {
    return known;
  }
  return CompileWithPcre2(pattern);
}

bool IsPublishedPattern(absl::string_view pattern) {
  return FindPublishedPattern(pattern) != nullptr;
}

std::unique_ptr<SplitPattern> LiteralPattern(absl::string_view literal) {
  return std::make_unique<Literal>(literal);
}

std::unique_ptr<SplitPattern> ClassPattern(uint16_t mask) {
  return std::make_unique<CharacterClass>(mask);
}

std::unique_ptr<SplitPattern> FixedLengthPattern(int length) {
  return std::make_unique<FixedLength>(length);
}

std::unique_ptr<SplitPattern> ScriptPattern() {
  return std::make_unique<Scripts>();
}

std::unique_ptr<SplitPattern> WordPattern() {
  return std::make_unique<Words>();
}

}  // namespace quire
