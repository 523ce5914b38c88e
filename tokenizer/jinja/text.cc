#include "tokenizer/jinja/text.h"

#include <string.h>
#include <utf8proc.h>

#include <algorithm>

namespace quire::jinja {

void Text::Append(absl::string_view bytes, bool is_control) {
  if (bytes.empty()) return;
  const size_t old_size = bytes_.size();
  bytes_.append(bytes.data(), bytes.size());
  if (old_size == 0) {
    uniform_ = is_control;
    runs_.clear();
    return;
  }
  if (runs_.empty()) {
    if (is_control == uniform_) return;
    runs_.push_back({old_size, uniform_});
  } else if (runs_.back().is_control == is_control) {
    runs_.back().end = bytes_.size();
    return;
  }
  runs_.push_back({bytes_.size(), is_control});
}

void Text::AppendRange(const Text& other, size_t begin, size_t end) {
  const absl::string_view bytes = other.bytes_;
  if (other.runs_.empty()) {
    Append(bytes.substr(begin, end - begin), other.uniform_);
    return;
  }
  auto run = std::upper_bound(
      other.runs_.begin(), other.runs_.end(), begin,
      [](size_t pos, const Run& run) { return pos < run.end; });
  while (begin < end) {
    const size_t stop = std::min(end, run->end);
    Append(bytes.substr(begin, stop - begin), run->is_control);
    begin = stop;
    ++run;
  }
}

Text Text::Slice(size_t begin, size_t end) const {
  Text result;
  result.AppendRange(*this, begin, end);
  return result;
}

bool Text::IsControlAt(size_t pos) const {
  for (const Run& run : runs_) {
    if (pos < run.end) return run.is_control;
  }
  return uniform_;
}

int DecodeUtf8(absl::string_view bytes, size_t pos, int32_t* code_point) {
  const unsigned char first = bytes[pos];
  if (first < 0x80) {
    *code_point = first;
    return 1;
  }
  utf8proc_int32_t decoded;
  const utf8proc_ssize_t length = utf8proc_iterate(
      reinterpret_cast<const utf8proc_uint8_t*>(bytes.data()) + pos,
      static_cast<utf8proc_ssize_t>(bytes.size() - pos), &decoded);
  if (length <= 0) {
    *code_point = 0xFFFD;
    return 1;
  }
  *code_point = decoded;
  return static_cast<int>(length);
}

void AppendUtf8(int32_t code_point, std::string* out) {
  if (code_point < 0x80) {
    out->push_back(static_cast<char>(code_point));
    return;
  }
  utf8proc_uint8_t buffer[4];
  const utf8proc_ssize_t length = utf8proc_encode_char(code_point, buffer);
  out->append(reinterpret_cast<char*>(buffer), length);
}

int64_t CountCodePoints(absl::string_view bytes) {
  int64_t count = 0;
  int32_t code_point;
  for (size_t pos = 0; pos < bytes.size(); ++count) {
    pos += DecodeUtf8(bytes, pos, &code_point);
  }
  return count;
}

std::vector<size_t> CodePointOffsets(absl::string_view bytes) {
  std::vector<size_t> offsets;
  offsets.reserve(bytes.size() + 1);
  int32_t code_point;
  for (size_t pos = 0; pos < bytes.size();) {
    offsets.push_back(pos);
    pos += DecodeUtf8(bytes, pos, &code_point);
  }
  offsets.push_back(bytes.size());
  return offsets;
}

size_t FindText(absl::string_view text, absl::string_view part, size_t from) {
  if (from > text.size() || part.size() > text.size() - from) {
    return absl::string_view::npos;
  }
  if (part.empty()) return from;
  const void* const found =
      memmem(text.data() + from, text.size() - from, part.data(), part.size());
  return found == nullptr ? absl::string_view::npos
                          : static_cast<const char*>(found) - text.data();
}

bool IsSpace(int32_t c) {
  if (c < 0x80)
    return c == ' ' || (c >= 0x09 && c <= 0x0D) || (c >= 0x1C && c <= 0x1F);
  return c == 0x85 || c == 0xA0 || c == 0x1680 ||
         (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 ||
         c == 0x202F || c == 0x205F || c == 0x3000;
}

bool IsAlpha(int32_t c) {
  switch (utf8proc_category(c)) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
      return true;
    default:
      return false;
  }
}

bool IsDigit(int32_t c) {
  return utf8proc_category(c) == UTF8PROC_CATEGORY_ND || c == 0xB2 ||
         c == 0xB3 || c == 0xB9 || c == 0x2070 ||
         (c >= 0x2074 && c <= 0x2079) || (c >= 0x2080 && c <= 0x2089);
}

bool IsUpper(int32_t c) { return utf8proc_category(c) == UTF8PROC_CATEGORY_LU; }

bool IsLower(int32_t c) {
  return utf8proc_category(c) == UTF8PROC_CATEGORY_LL || c == 0xAA || c == 0xBA;
}

bool IsPrintable(int32_t c) {
  if (c < 0x80) return c >= 0x20 && c < 0x7F;
  switch (utf8proc_category(c)) {
    case UTF8PROC_CATEGORY_CC:
    case UTF8PROC_CATEGORY_CF:
    case UTF8PROC_CATEGORY_CS:
    case UTF8PROC_CATEGORY_CO:
    case UTF8PROC_CATEGORY_CN:
    case UTF8PROC_CATEGORY_ZL:
    case UTF8PROC_CATEGORY_ZP:
    case UTF8PROC_CATEGORY_ZS:
      return false;
    default:
      return true;
  }
}

void AppendUpper(int32_t code_point, std::string* out) {
  if (code_point == 0xDF) {  // The one expansion that ordinary text meets.
    out->append("SS");
    return;
  }
  AppendUtf8(utf8proc_toupper(code_point), out);
}

Text ToUpper(const Text& text) {
  Text result;
  std::string mapped;
  text.ForEachRun([&](absl::string_view run, bool is_control) {
    mapped.clear();
    int32_t c;
    for (size_t pos = 0; pos < run.size();) {
      pos += DecodeUtf8(run, pos, &c);
      AppendUpper(c, &mapped);
    }
    result.Append(mapped, is_control);
  });
  return result;
}

namespace {

// Unicode's Final_Sigma, without the case-ignorable characters.
bool IsFinalSigma(absl::string_view run, size_t pos, size_t next) {
  if (pos == 0) return false;
  size_t before = pos - 1;
  while (before > 0 && (static_cast<unsigned char>(run[before]) & 0xC0) == 0x80)
    --before;
  int32_t c;
  DecodeUtf8(run, before, &c);
  if (!IsAlpha(c)) return false;
  if (next >= run.size()) return true;
  DecodeUtf8(run, next, &c);
  return !IsAlpha(c);
}

}  // namespace

Text ToLower(const Text& text) {
  Text result;
  std::string mapped;
  text.ForEachRun([&](absl::string_view run, bool is_control) {
    mapped.clear();
    int32_t c;
    for (size_t pos = 0; pos < run.size();) {
      const size_t start = pos;
      pos += DecodeUtf8(run, pos, &c);
      if (c == 0x3A3) {
        AppendUtf8(IsFinalSigma(run, start, pos) ? 0x3C2 : 0x3C3, &mapped);
      } else if (c == 0x130) {  // İ becomes i and a combining dot.
        mapped.append("i\xCC\x87");
      } else {
        AppendUtf8(utf8proc_tolower(c), &mapped);
      }
    }
    result.Append(mapped, is_control);
  });
  return result;
}

std::pair<size_t, size_t> StripBounds(absl::string_view text,
                                      const absl::string_view* chars, bool left,
                                      bool right) {
  const auto strips = [chars](absl::string_view encoded, int32_t c) {
    if (chars == nullptr) return IsSpace(c);
    return chars->find(encoded) != absl::string_view::npos;
  };
  size_t begin = 0;
  size_t end = text.size();
  int32_t c;
  while (left && begin < end) {
    const int length = DecodeUtf8(text, begin, &c);
    if (!strips(text.substr(begin, length), c)) break;
    begin += length;
  }
  while (right && begin < end) {
    size_t last = end - 1;
    while (last > begin && end - last < 4 &&
           (static_cast<unsigned char>(text[last]) & 0xC0) == 0x80)
      --last;
    if (last + DecodeUtf8(text, last, &c) != end) {
      last = end - 1;  // Not valid UTF-8: one byte is one code point.
      c = 0xFFFD;
    }
    if (!strips(text.substr(last, end - last), c)) break;
    end = last;
  }
  return {begin, end};
}

}  // namespace quire::jinja
