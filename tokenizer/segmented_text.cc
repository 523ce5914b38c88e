#include "tokenizer/segmented_text.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "tokenizer/unicode.h"

namespace quire {

absl::StatusOr<SegmentedText> JoinSegments(
    absl::Span<const EncodeSegment> segments) {
  SegmentedText joined;
  size_t num_bytes = 0;
  for (const EncodeSegment& segment : segments) {
    num_bytes += segment.text.size();
    if (num_bytes > kMaxTextBytes) {
      return absl::InvalidArgumentError(
          absl::StrCat("text is larger than ", kMaxTextBytes, " bytes"));
    }
  }
  joined.text.reserve(num_bytes);
  for (const EncodeSegment& segment : segments) {
    const size_t begin = joined.text.size();
    joined.text.append(segment.text.data(), segment.text.size());
    joined.segments.push_back(
        {{begin, joined.text.size()}, segment.parse_special_tokens});
  }
  if (IsValidUtf8(joined.text)) return joined;

  // Rewrites the text, moving the ends of segments along.
  const std::string raw = std::move(joined.text);
  std::string clean;
  size_t next = 0;  // The first segment whose end is not moved yet.
  const auto move_ends = [&](size_t raw_end, size_t raw_offset,
                             size_t clean_offset) {
    for (; next < joined.segments.size() &&
           joined.segments[next].range.end <= raw_end;
         ++next) {
      size_t& end = joined.segments[next].range.end;
      end = clean_offset + (end > raw_offset ? end - raw_offset : 0);
    }
  };
  for (size_t pos = 0; pos < raw.size();) {
    const absl::string_view rest = absl::string_view(raw).substr(pos);
    const size_t valid = ValidUtf8Prefix(rest);
    const size_t clean_begin = clean.size();
    clean.append(rest.data(), valid);
    move_ends(pos + valid, pos, clean_begin);
    pos += valid;
    if (pos == raw.size()) break;
    const size_t broken = ClassifyBrokenUtf8(rest.substr(valid)).num_bytes;
    clean.append(kReplacementCharacter.data(), kReplacementCharacter.size());
    pos += broken;
    move_ends(pos, pos, clean.size());
  }
  size_t begin = 0;
  for (SegmentRange& segment : joined.segments) {
    segment.range.begin = begin;
    begin = segment.range.end;
  }
  joined.text = std::move(clean);
  return joined;
}

std::vector<TextRange> SegmentedText::ParsedRanges() const {
  std::vector<TextRange> ranges;
  for (const SegmentRange& segment : segments) {
    if (segment.parse_special_tokens &&
        segment.range.begin < segment.range.end) {
      ranges.push_back(segment.range);
    }
  }
  return ranges;
}

TextOrigin SegmentedText::Origin(TextRange range) const {
  TextOrigin origin(range.end - range.begin, kMixedOrigin);
  for (size_t i = 0; i < segments.size(); ++i) {
    const size_t begin = std::max(range.begin, segments[i].range.begin);
    const size_t end = std::min(range.end, segments[i].range.end);
    for (size_t pos = begin; pos < end; ++pos) {
      origin[pos - range.begin] = static_cast<int32_t>(i);
    }
  }
  return origin;
}

std::vector<TextRange> ParsedRangesOf(
    const TextOrigin& origin, const std::vector<SegmentRange>& segments) {
  std::vector<TextRange> ranges;
  for (size_t begin = 0; begin < origin.size();) {
    size_t end = begin + 1;
    while (end < origin.size() && origin[end] == origin[begin]) ++end;
    if (origin[begin] != kMixedOrigin &&
        segments[origin[begin]].parse_special_tokens) {
      ranges.push_back({begin, end});
    }
    begin = end;
  }
  return ranges;
}

}  // namespace quire
