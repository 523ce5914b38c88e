#include "tokenizer/normalizer.h"

#include <utf8proc.h>

#include <algorithm>
#include <cstdlib>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "engine/base/status.h"
#include "tokenizer/byte_level.h"
#include "tokenizer/json_component.h"
#include "tokenizer/pattern_config.h"
#include "tokenizer/unicode.h"
#include "tokenizer/unicode_corrections.h"

namespace quire {
namespace {

// Sequences within sequences.
constexpr int kMaxDepth = 16;
// What a short text may become.
constexpr size_t kMaxShortTextBytes = 64 << 10;

// A text under construction from chunks of another, with its origin.
class Rewrite {
 public:
  Rewrite(const std::string& source, const TextOrigin* origin, size_t max_bytes)
      : source_(source), source_origin_(origin), max_bytes_(max_bytes) {
    text_.reserve(source.size() + 16);
  }

  // Copies a chunk of the source.
  void Copy(size_t begin, size_t end) {
    NoteBegin(begin, begin < end);
    text_.append(source_, begin, end - begin);
    if (source_origin_ != nullptr) {
      origin_.insert(origin_.end(), source_origin_->begin() + begin,
                     source_origin_->begin() + end);
    }
  }
  // Puts `text` for a chunk of the source.
  void Put(absl::string_view text, size_t begin, size_t end) {
    if (text_.size() + text.size() > max_bytes_) is_too_long_ = true;
    if (is_too_long_) return;
    NoteBegin(begin, !text.empty());
    text_.append(text.data(), text.size());
    if (source_origin_ == nullptr) return;
    int32_t origin = begin < end ? (*source_origin_)[begin] : kMixedOrigin;
    for (size_t i = begin; i < end; ++i) {
      if ((*source_origin_)[i] != origin) origin = kMixedOrigin;
    }
    origin_.insert(origin_.end(), text.size(), origin);
  }
  // Puts one ASCII character for one byte of the source.
  void PutAscii(char c, size_t begin) {
    NoteBegin(begin, true);
    text_.push_back(c);
    if (source_origin_ != nullptr) origin_.push_back((*source_origin_)[begin]);
  }
  // True if the text's first part comes from a later place than the source's
  // first character.
  bool StartsLate() const { return starts_late_; }
  // RESOURCE_EXHAUSTED if what was put made too long a text: a tokenizer may
  // put megabytes for each character, and again for each of those.
  absl::Status MoveTo(std::string* text, TextOrigin* origin) {
    if (is_too_long_) {
      return absl::ResourceExhaustedError(absl::StrCat(
          "the normalizer makes a text of more than ", max_bytes_, " bytes"));
    }
    *text = std::move(text_);
    if (origin != nullptr) *origin = std::move(origin_);
    return absl::OkStatus();
  }

 private:
  void NoteBegin(size_t begin, bool is_text) {
    if (text_.empty() && is_text) starts_late_ = begin > 0;
  }

  const std::string& source_;
  const TextOrigin* source_origin_;
  const size_t max_bytes_;
  bool starts_late_ = false;
  bool is_too_long_ = false;
  std::string text_;
  TextOrigin origin_;
};

// Calls f(code_point, begin, end) for each character.
template <typename F>
void ForEachCharacter(const std::string& text, F f) {
  for (size_t pos = 0; pos < text.size();) {
    const CodePoint c = DecodeCodePoint(text, pos);
    f(c.value, pos, pos + c.num_bytes);
    pos += c.num_bytes;
  }
}

// True if every Unicode form leaves `text` as it is: below U+0300 composed
// forms are stable, and ASCII under all four.
bool IsStable(absl::string_view text, bool is_nfc) {
  // U+0300 is 0xCC 0x80 in UTF-8.
  const unsigned char limit = is_nfc ? 0xCC : 0x80;
  for (const char c : text) {
    if (static_cast<unsigned char>(c) >= limit) return false;
  }
  return true;
}

// Puts a normal form of text[begin, end); characters that the library does not
// know stay, and nothing is reordered or composed across them.
absl::Status MapChunk(const std::string& text, size_t begin, size_t end,
                      int options, Rewrite* rewrite) {
  const auto map = [&](size_t from, size_t to) -> absl::Status {
    if (from == to) return absl::OkStatus();
    utf8proc_uint8_t* mapped = nullptr;
    const utf8proc_ssize_t size = utf8proc_map(
        reinterpret_cast<const utf8proc_uint8_t*>(text.data() + from),
        static_cast<utf8proc_ssize_t>(to - from), &mapped,
        static_cast<utf8proc_option_t>(options));
    if (size < 0) {
      return absl::ResourceExhaustedError(absl::StrCat(
          "Unicode normalization failed: ", utf8proc_errmsg(size)));
    }
    rewrite->Put(absl::string_view(reinterpret_cast<const char*>(mapped),
                                   static_cast<size_t>(size)),
                 from, to);
    std::free(mapped);
    return absl::OkStatus();
  };
  for (size_t pos = begin; pos < end;) {
    const CodePoint c = DecodeCodePoint(text, pos);
    // The first of them is U+07FD.
    if (c.value >= 0x7FD &&
        (FindRange(OpaqueToCanonicalForms(), c.value) != nullptr ||
         ((options & UTF8PROC_COMPAT) != 0 &&
          FindRange(OpaqueToCompatibilityForms(), c.value) != nullptr))) {
      QUIRE_RETURN_IF_ERROR(map(begin, pos));
      rewrite->Copy(pos, pos + c.num_bytes);
      begin = pos + c.num_bytes;
    }
    pos += c.num_bytes;
  }
  return map(begin, end);
}

// CJK unified and compatibility ideographs as BertNormalizer lists them.
bool IsIdeograph(uint32_t c) {
  return (c >= 0x4E00 && c <= 0x9FFF) || (c >= 0x3400 && c <= 0x4DBF) ||
         (c >= 0x20000 && c <= 0x2A6DF) || (c >= 0x2A700 && c <= 0x2B73F) ||
         (c >= 0x2B740 && c <= 0x2B81F) || (c >= 0x2B920 && c <= 0x2CEAF) ||
         (c >= 0xF900 && c <= 0xFAFF) || (c >= 0x2F800 && c <= 0x2FA1F);
}

enum class NmtAction { kKeep, kRemove, kSpace };

// The rules of sentencepiece's nmt_nfkc normalization that are no NFKC.
NmtAction NmtActionOf(uint32_t c) {
  if ((c >= 0x1 && c <= 0x8) || c == 0xB || (c >= 0xE && c <= 0x1F) ||
      c == 0x7F || c == 0x8F || c == 0x9F) {
    return NmtAction::kRemove;
  }
  const bool is_space = c == 0x9 || c == 0xA || c == 0xC || c == 0xD ||
                        c == 0x1680 || (c >= 0x200B && c <= 0x200F) ||
                        c == 0x2028 || c == 0x2029 || c == 0x2581 ||
                        c == 0xFEFF || c == 0xFFFD;
  return is_space ? NmtAction::kSpace : NmtAction::kKeep;
}

void RewriteLowercase(const std::string& text, Rewrite* rewrite) {
  std::string lower;
  ForEachCharacter(text, [&](uint32_t c, size_t begin, size_t end) {
    if (c < 0x80) {
      rewrite->PutAscii(c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32)
                                             : static_cast<char>(c),
                        begin);
      return;
    }
    if (c == 0x130) {
      lower = "i\xCC\x87";  // The only lower case of two characters.
    } else {
      lower.clear();
      AppendUtf8(LowercaseOf(c), &lower);
    }
    rewrite->Put(lower, begin, end);
  });
}

void RewriteCleanText(const std::string& text, Rewrite* rewrite) {
  const uint16_t* classes = BasicPlaneClasses();
  ForEachCharacter(text, [&](uint32_t c, size_t begin, size_t end) {
    if (c == 0 || c == 0xFFFD) return;
    const uint16_t bits = ClassOf(classes, c);
    if (bits & kClassOther) return;
    if (bits & kClassSpace) {
      rewrite->Put(" ", begin, end);
    } else if (c < 0x80) {
      rewrite->PutAscii(static_cast<char>(c), begin);
    } else {
      rewrite->Copy(begin, end);
    }
  });
}

// End of the grapheme cluster at `begin` (Unicode 15, annex 29).
size_t ClusterEnd(const std::string& text, size_t begin) {
  utf8proc_int32_t state = 0;
  CodePoint c = DecodeCodePoint(text, begin);
  size_t end = begin + c.num_bytes;
  while (end < text.size()) {
    const CodePoint next = DecodeCodePoint(text, end);
    const auto first = static_cast<utf8proc_int32_t>(c.value);
    const bool is_break = utf8proc_grapheme_break_stateful(
        first, static_cast<utf8proc_int32_t>(next.value), &state);
    if (is_break) {
      const int bound = utf8proc_get_property(first)->boundclass;
      const bool is_control = bound == UTF8PROC_BOUNDCLASS_CR ||
                              bound == UTF8PROC_BOUNDCLASS_LF ||
                              bound == UTF8PROC_BOUNDCLASS_CONTROL;
      if (is_control || next.value < 0x800 ||
          FindRange(GraphemeExtenders(), next.value) == nullptr) {
        break;
      }
    }
    c = next;
    end += next.num_bytes;
  }
  return end;
}

// The Precompiled normalizer of `tokenizers`: a grapheme cluster below six
// bytes is replaced whole by what its shortest known prefix stands for; of any
// other, each character by itself.
void RewritePrecompiled(const std::string& text, const CharacterMap& map,
                        Rewrite* rewrite) {
  constexpr size_t kMaxClusterBytes = 5;
  const auto replace = [&](size_t begin, size_t end) {
    absl::string_view replacement;
    if (map.FindShortest(absl::string_view(text).substr(begin, end - begin),
                         &replacement) == 0) {
      return false;
    }
    rewrite->Put(replacement, begin, end);
    return true;
  };
  const auto is_ascii = [&](size_t i) {
    return static_cast<unsigned char>(text[i]) < 0x80;
  };
  for (size_t begin = 0; begin < text.size();) {
    const bool is_single = is_ascii(begin) && text[begin] != '\r' &&
                           (begin + 1 == text.size() || is_ascii(begin + 1));
    if (is_single && map.IsUnmapped(static_cast<uint8_t>(text[begin]))) {
      rewrite->PutAscii(text[begin], begin);
      ++begin;
      continue;
    }
    const size_t end = is_single ? begin + 1 : ClusterEnd(text, begin);
    if (end - begin > kMaxClusterBytes || !replace(begin, end)) {
      for (size_t pos = begin; pos < end;) {
        const size_t next = pos + DecodeCodePoint(text, pos).num_bytes;
        if (!replace(pos, next)) rewrite->Copy(pos, next);
        pos = next;
      }
    }
    begin = end;
  }
}

}  // namespace

absl::StatusOr<Normalizer> Normalizer::Create(const nlohmann::json& config,
                                              const std::string& path) {
  Normalizer normalizer;
  QUIRE_RETURN_IF_ERROR(normalizer.AddStep(config, path, 0));
  return normalizer;
}

absl::Status Normalizer::AddStep(const nlohmann::json& config,
                                 const std::string& path, int depth) {
  if (config.is_null()) return absl::OkStatus();
  if (depth > kMaxDepth) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": nested deeper than ", kMaxDepth));
  }
  QUIRE_ASSIGN_OR_RETURN(const JsonComponent component,
                         JsonComponent::Create(config, path));
  QUIRE_ASSIGN_OR_RETURN(const std::string type_name, component.String("type"));
  const absl::string_view type = type_name;
  if (type == "Sequence") {
    QUIRE_RETURN_IF_ERROR(component.CheckFields({"normalizers"}));
    QUIRE_ASSIGN_OR_RETURN(const nlohmann::json* list,
                           component.Array("normalizers"));
    for (size_t i = 0; i < list->size(); ++i) {
      QUIRE_RETURN_IF_ERROR(AddStep(
          (*list)[i], absl::StrCat(path, ".normalizers[", i, "]"), depth + 1));
    }
    return absl::OkStatus();
  }
  if (type == "BertNormalizer") return AddBertSteps(config, path);
  Step step;
  if (type == "Prepend") {
    QUIRE_RETURN_IF_ERROR(component.CheckFields({"prepend"}));
    step.kind = Kind::kPrepend;
    QUIRE_ASSIGN_OR_RETURN(step.content, component.String("prepend"));
  } else if (type == "Replace") {
    QUIRE_RETURN_IF_ERROR(component.CheckFields({"pattern", "content"}));
    step.kind = Kind::kReplace;
    QUIRE_ASSIGN_OR_RETURN(step.content, component.String("content"));
    QUIRE_ASSIGN_OR_RETURN(step.pattern, ReadPattern(component));
  } else if (type == "Strip") {
    QUIRE_RETURN_IF_ERROR(component.CheckFields({"strip_left", "strip_right"}));
    step.kind = Kind::kStrip;
    QUIRE_ASSIGN_OR_RETURN(step.strip_left, component.Bool("strip_left"));
    QUIRE_ASSIGN_OR_RETURN(step.strip_right, component.Bool("strip_right"));
  } else if (type == "Precompiled") {
    QUIRE_RETURN_IF_ERROR(component.CheckFields({"precompiled_charsmap"}));
    step.kind = Kind::kPrecompiled;
    QUIRE_ASSIGN_OR_RETURN(const std::string encoded,
                           component.String("precompiled_charsmap"));
    std::string bytes;
    if (!absl::Base64Unescape(encoded, &bytes)) {
      return component.Error("precompiled_charsmap", "is not base64");
    }
    absl::StatusOr<CharacterMap> map = CharacterMap::Create(bytes);
    if (!map.ok()) {
      return component.Error("precompiled_charsmap", map.status().message());
    }
    if (map->empty()) return absl::OkStatus();
    step.character_map = std::make_shared<CharacterMap>(*std::move(map));
  } else {
    QUIRE_RETURN_IF_ERROR(component.CheckFields({}));
    if (type == "NFC") {
      step.kind = Kind::kNfc;
    } else if (type == "NFD") {
      step.kind = Kind::kNfd;
    } else if (type == "NFKC") {
      step.kind = Kind::kNfkc;
    } else if (type == "NFKD") {
      step.kind = Kind::kNfkd;
    } else if (type == "Lowercase") {
      step.kind = Kind::kLowercase;
    } else if (type == "StripAccents") {
      step.kind = Kind::kStripAccents;
    } else if (type == "Nmt") {
      step.kind = Kind::kNmt;
    } else if (type == "ByteLevel") {
      step.kind = Kind::kByteLevel;
    } else {
      return component.Error("type",
                             absl::StrCat("\"", type, "\" is not supported"));
    }
  }
  steps_.push_back(std::move(step));
  return absl::OkStatus();
}

absl::Status Normalizer::AddBertSteps(const nlohmann::json& config,
                                      const std::string& path) {
  QUIRE_ASSIGN_OR_RETURN(const JsonComponent component,
                         JsonComponent::Create(config, path));
  QUIRE_RETURN_IF_ERROR(component.CheckFields(
      {"clean_text", "handle_chinese_chars", "strip_accents", "lowercase"}));
  QUIRE_ASSIGN_OR_RETURN(const bool cleans, component.Bool("clean_text"));
  QUIRE_ASSIGN_OR_RETURN(const bool isolates_ideographs,
                         component.Bool("handle_chinese_chars"));
  QUIRE_ASSIGN_OR_RETURN(const bool lowers, component.Bool("lowercase"));
  QUIRE_ASSIGN_OR_RETURN(const bool strips,
                         component.Bool("strip_accents", lowers));
  const auto add = [this](Kind kind) {
    Step step;
    step.kind = kind;
    steps_.push_back(std::move(step));
  };
  if (cleans) add(Kind::kCleanText);
  if (isolates_ideographs) add(Kind::kIsolateIdeographs);
  if (strips) {
    add(Kind::kNfd);
    add(Kind::kStripNonspacingMarks);
  }
  if (lowers) add(Kind::kLowercase);
  return absl::OkStatus();
}

absl::Status Normalizer::Apply(std::string* text, TextOrigin* origin,
                               bool* starts_late) const {
  // A character has at most 11 times its bytes in a normal form.
  const size_t max_bytes =
      std::min(kMaxTextBytes, 16 * text->size() + kMaxShortTextBytes);
  for (const Step& step : steps_) {
    if (text->empty()) break;
    QUIRE_RETURN_IF_ERROR(
        ApplyStep(step, max_bytes, text, origin, starts_late));
  }
  return absl::OkStatus();
}

absl::Status Normalizer::ApplyUnicodeForm(Kind kind, size_t max_bytes,
                                          std::string* text,
                                          TextOrigin* origin) {
  const bool is_nfc = kind == Kind::kNfc;
  if (IsStable(*text, is_nfc)) return absl::OkStatus();
  int options = UTF8PROC_STABLE;
  if (kind == Kind::kNfc || kind == Kind::kNfkc) {
    options |= UTF8PROC_COMPOSE;
  } else {
    options |= UTF8PROC_DECOMPOSE;
  }
  if (kind == Kind::kNfkc || kind == Kind::kNfkd) options |= UTF8PROC_COMPAT;
  Rewrite rewrite(*text, origin, max_bytes);
  // An ASCII character is never changed and never composed with what is before
  // it, so the text falls into chunks before each; without an origin to keep,
  // only before those that follow another.
  for (size_t begin = 0; begin < text->size();) {
    size_t end = begin + 1;
    const auto is_ascii = [&](size_t i) {
      return static_cast<unsigned char>((*text)[i]) < 0x80;
    };
    while (end < text->size() &&
           !(is_ascii(end) && (origin != nullptr || is_ascii(end - 1)))) {
      ++end;
    }
    if (IsStable(absl::string_view(*text).substr(begin, end - begin), is_nfc)) {
      rewrite.Copy(begin, end);
    } else {
      QUIRE_RETURN_IF_ERROR(MapChunk(*text, begin, end, options, &rewrite));
    }
    begin = end;
  }
  return rewrite.MoveTo(text, origin);
}

absl::Status Normalizer::ApplyStep(const Step& step, size_t max_bytes,
                                   std::string* text, TextOrigin* origin,
                                   bool* starts_late) {
  if (step.kind <= Kind::kNfkd) {
    return ApplyUnicodeForm(step.kind, max_bytes, text, origin);
  }
  Rewrite rewrite(*text, origin, max_bytes);
  switch (step.kind) {
    case Kind::kLowercase:
      RewriteLowercase(*text, &rewrite);
      break;
    case Kind::kStripAccents:
    case Kind::kStripNonspacingMarks: {
      const uint16_t mask = step.kind == Kind::kStripAccents
                                ? kClassAccent
                                : kClassNonspacingMark;
      ForEachCharacter(*text, [&](uint32_t c, size_t begin, size_t end) {
        if (c < 0x80) {
          rewrite.PutAscii(static_cast<char>(c), begin);
        } else if (!(ClassOf(c) & mask)) {
          rewrite.Copy(begin, end);
        }
      });
      break;
    }
    case Kind::kCleanText:
      RewriteCleanText(*text, &rewrite);
      break;
    case Kind::kIsolateIdeographs:
      ForEachCharacter(*text, [&](uint32_t c, size_t begin, size_t end) {
        const bool is_ideograph = c >= 0x3400 && IsIdeograph(c);
        if (is_ideograph) rewrite.Put(" ", begin, end);
        if (c < 0x80) {
          rewrite.PutAscii(static_cast<char>(c), begin);
        } else {
          rewrite.Copy(begin, end);
        }
        if (is_ideograph) rewrite.Put(" ", begin, end);
      });
      break;
    case Kind::kNmt:
      ForEachCharacter(*text, [&](uint32_t c, size_t begin, size_t end) {
        const NmtAction action = NmtActionOf(c);
        if (action == NmtAction::kKeep) rewrite.Copy(begin, end);
        if (action == NmtAction::kSpace) rewrite.Put(" ", begin, end);
      });
      break;
    case Kind::kByteLevel:
      for (size_t i = 0; i < text->size(); ++i) {
        rewrite.Put(ByteLevelCharacter(static_cast<uint8_t>((*text)[i])), i,
                    i + 1);
      }
      break;
    case Kind::kPrecompiled:
      RewritePrecompiled(*text, *step.character_map, &rewrite);
      break;
    case Kind::kStrip: {
      size_t begin = 0;
      size_t end = text->size();
      while (step.strip_left && begin < end) {
        const CodePoint c = DecodeCodePoint(*text, begin);
        if (!(ClassOf(c.value) & kClassSpace)) break;
        begin += c.num_bytes;
      }
      while (step.strip_right && end > begin) {
        const size_t start = PreviousCodePoint(*text, end);
        if (!(ClassOf(DecodeCodePoint(*text, start).value) & kClassSpace)) {
          break;
        }
        end = start;
      }
      rewrite.Copy(begin, end);
      break;
    }
    case Kind::kPrepend:
      rewrite.Put(step.content, 0, DecodeCodePoint(*text, 0).num_bytes);
      rewrite.Copy(0, text->size());
      break;
    case Kind::kReplace: {
      std::vector<MatchSpan> spans;
      QUIRE_RETURN_IF_ERROR(step.pattern->Match(*text, &spans));
      for (const MatchSpan& span : spans) {
        if (span.is_match) {
          rewrite.Put(step.content, span.begin, span.end);
        } else {
          rewrite.Copy(span.begin, span.end);
        }
      }
      break;
    }
    default:
      QUIRE_CHECK(false);
  }
  // A text that a character map replaces still counts as coming from its place,
  // even if nothing is left of it.
  if (starts_late != nullptr && rewrite.StartsLate() &&
      step.kind != Kind::kPrecompiled) {
    *starts_late = true;
  }
  return rewrite.MoveTo(text, origin);
}

}  // namespace quire
