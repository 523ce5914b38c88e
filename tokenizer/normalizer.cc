#include "tokenizer/normalizer.h"

#include <utf8proc.h>

#include <cstdlib>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/base/status.h"
#include "tokenizer/json_component.h"
#include "tokenizer/pattern_config.h"
#include "tokenizer/unicode.h"

namespace quire {
namespace {

// Sequences within sequences.
constexpr int kMaxDepth = 16;

// A text under construction from chunks of another, with its origin.
class Rewrite {
 public:
  Rewrite(const std::string& source, const TextOrigin* origin)
      : source_(source), source_origin_(origin) {
    text_.reserve(source.size() + 16);
  }

  // Copies a chunk of the source.
  void Copy(size_t begin, size_t end) {
    text_.append(source_, begin, end - begin);
    if (source_origin_ != nullptr) {
      origin_.insert(origin_.end(), source_origin_->begin() + begin,
                     source_origin_->begin() + end);
    }
  }
  // Puts `text` for a chunk of the source.
  void Put(absl::string_view text, size_t begin, size_t end) {
    text_.append(text.data(), text.size());
    if (source_origin_ == nullptr) return;
    int32_t origin = begin < end ? (*source_origin_)[begin] : kMixedOrigin;
    for (size_t i = begin; i < end; ++i) {
      if ((*source_origin_)[i] != origin) origin = kMixedOrigin;
    }
    origin_.insert(origin_.end(), text.size(), origin);
  }
  void MoveTo(std::string* text, TextOrigin* origin) {
    *text = std::move(text_);
    if (origin != nullptr) *origin = std::move(origin_);
  }

 private:
  const std::string& source_;
  const TextOrigin* source_origin_;
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
    } else {
      return component.Error("type",
                             absl::StrCat("\"", type, "\" is not supported"));
    }
  }
  steps_.push_back(std::move(step));
  return absl::OkStatus();
}

absl::Status Normalizer::Apply(std::string* text, TextOrigin* origin) const {
  for (const Step& step : steps_) {
    if (text->empty()) break;
    QUIRE_RETURN_IF_ERROR(ApplyStep(step, text, origin));
  }
  return absl::OkStatus();
}

absl::Status Normalizer::ApplyUnicodeForm(Kind kind, std::string* text,
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
  Rewrite rewrite(*text, origin);
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
    const absl::string_view chunk =
        absl::string_view(*text).substr(begin, end - begin);
    if (IsStable(chunk, is_nfc)) {
      rewrite.Copy(begin, end);
    } else {
      utf8proc_uint8_t* mapped = nullptr;
      const utf8proc_ssize_t size =
          utf8proc_map(reinterpret_cast<const utf8proc_uint8_t*>(chunk.data()),
                       static_cast<utf8proc_ssize_t>(chunk.size()), &mapped,
                       static_cast<utf8proc_option_t>(options));
      if (size < 0) {
        return absl::ResourceExhaustedError(absl::StrCat(
            "Unicode normalization failed: ", utf8proc_errmsg(size)));
      }
      rewrite.Put(absl::string_view(reinterpret_cast<const char*>(mapped),
                                    static_cast<size_t>(size)),
                  begin, end);
      std::free(mapped);
    }
    begin = end;
  }
  rewrite.MoveTo(text, origin);
  return absl::OkStatus();
}

absl::Status Normalizer::ApplyStep(const Step& step, std::string* text,
                                   TextOrigin* origin) {
  if (step.kind <= Kind::kNfkd) {
    return ApplyUnicodeForm(step.kind, text, origin);
  }
  Rewrite rewrite(*text, origin);
  switch (step.kind) {
    case Kind::kLowercase:
      ForEachCharacter(*text, [&](uint32_t c, size_t begin, size_t end) {
        std::string lower;
        if (c == 0x130) {
          lower = "i\xCC\x87";  // The only lower case of two characters.
        } else {
          AppendUtf8(utf8proc_tolower(static_cast<utf8proc_int32_t>(c)),
                     &lower);
        }
        rewrite.Put(lower, begin, end);
      });
      break;
    case Kind::kStripAccents:
      ForEachCharacter(*text, [&](uint32_t c, size_t begin, size_t end) {
        if (!(ClassOf(c) & kClassMark)) rewrite.Copy(begin, end);
      });
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
  rewrite.MoveTo(text, origin);
  return absl::OkStatus();
}

}  // namespace quire
