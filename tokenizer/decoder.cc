#include "tokenizer/decoder.h"

#include <algorithm>
#include <iterator>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "engine/base/status.h"
#include "tokenizer/byte_level.h"
#include "tokenizer/json_component.h"
#include "tokenizer/pattern_config.h"
#include "tokenizer/unicode.h"

namespace quire {
namespace {

constexpr int kMaxDepth = 16;

// The byte that "<0xHH>" stands for, or -1. As Rust's from_str_radix, which
// also takes a sign before one digit.
int ByteOfToken(absl::string_view token) {
  if (token.size() != 6 || token.substr(0, 3) != "<0x" || token[5] != '>') {
    return -1;
  }
  const auto digit = [](char c) {
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    if (c >= 'A' && c <= 'F') return c - 'A' + 10;
    return -1;
  };
  const int low = digit(token[4]);
  const int high = token[3] == '+' ? 0 : digit(token[3]);
  return low < 0 || high < 0 ? -1 : high * 16 + low;
}

// A longer text of one token stays as it was before it was replaced.
constexpr size_t kMaxReplacedBytes = 1 << 20;

std::string ReplaceMatches(const SplitPattern& pattern, absl::string_view text,
                           absl::string_view content) {
  std::vector<MatchSpan> spans;
  // A failed match (PCRE2's limit) leaves the token as it is: decoding must
  // not fail.
  if (text.empty() || !pattern.Match(text, &spans).ok()) {
    return std::string(text);
  }
  std::string out;
  for (const MatchSpan& span : spans) {
    // A stage may put much for each byte, and another for each of those.
    if (out.size() > kMaxReplacedBytes) return std::string(text);
    absl::StrAppend(&out, span.is_match
                              ? content
                              : text.substr(span.begin, span.end - span.begin));
  }
  return out;
}

// The replacements of `tokenizers`' WordPiece decoder, one after the other.
std::string CleanUp(std::string text) {
  static constexpr absl::string_view kPairs[][2] = {
      {" .", "."},   {" ?", "?"},     {" !", "!"},    {" ,", ","},
      {" ' ", "'"},  {" n't", "n't"}, {" 'm", "'m"},  {" do not", " don't"},
      {" 's", "'s"}, {" 've", "'ve"}, {" 're", "'re"}};
  for (const auto& pair : kPairs) {
    text = absl::StrReplaceAll(text, {{pair[0], pair[1]}});
  }
  return text;
}

std::string StripToken(absl::string_view token, absl::string_view content,
                       int64_t start, int64_t stop) {
  for (; start > 0 && absl::StartsWith(token, content); --start) {
    token.remove_prefix(content.size());
  }
  for (; stop > 0 && absl::EndsWith(token, content); --stop) {
    token.remove_suffix(content.size());
  }
  return std::string(token);
}

}  // namespace

absl::StatusOr<TextDecoder> TextDecoder::Create(const nlohmann::json& config,
                                                const std::string& path) {
  TextDecoder decoder;
  if (config.is_null()) {
    Stage stage;
    stage.kind = Kind::kJoinWithSpaces;
    decoder.stages_.push_back(std::move(stage));
    return decoder;
  }
  QUIRE_RETURN_IF_ERROR(decoder.AddStage(config, path, 0));
  return decoder;
}

absl::Status TextDecoder::AddStage(const nlohmann::json& config,
                                   const std::string& path, int depth) {
  if (depth > kMaxDepth) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": nested deeper than ", kMaxDepth));
  }
  QUIRE_ASSIGN_OR_RETURN(const JsonComponent component,
                         JsonComponent::Create(config, path));
  QUIRE_ASSIGN_OR_RETURN(const std::string type, component.String("type"));
  if (type != "Sequence") return AddLeafStage(config, path);
  QUIRE_RETURN_IF_ERROR(component.CheckFields({"decoders"}));
  QUIRE_ASSIGN_OR_RETURN(const nlohmann::json* list,
                         component.Array("decoders"));
  for (size_t i = 0; i < list->size(); ++i) {
    QUIRE_RETURN_IF_ERROR(AddStage(
        (*list)[i], absl::StrCat(path, ".decoders[", i, "]"), depth + 1));
  }
  return absl::OkStatus();
}

absl::Status TextDecoder::AddLeafStage(const nlohmann::json& config,
                                       const std::string& path) {
  QUIRE_ASSIGN_OR_RETURN(const JsonComponent component,
                         JsonComponent::Create(config, path));
  QUIRE_ASSIGN_OR_RETURN(const std::string type, component.String("type"));
  const auto is_one_character = [](const std::string& text) {
    return !text.empty() && DecodeCodePoint(text, 0).num_bytes == text.size();
  };
  Stage stage;
  if (type == "ByteLevel") {
    QUIRE_RETURN_IF_ERROR(component.CheckFields(
        {"add_prefix_space", "trim_offsets", "use_regex"}));
    stage.kind = Kind::kByteLevel;
  } else if (type == "Metaspace") {
    QUIRE_RETURN_IF_ERROR(
        component.CheckFields({"replacement", "add_prefix_space",
                               "prepend_scheme", "split", "str_rep"}));
    stage.kind = Kind::kMetaspace;
    QUIRE_ASSIGN_OR_RETURN(stage.content, component.String("replacement"));
    if (!is_one_character(stage.content)) {
      return component.Error("replacement", "must be one character");
    }
    std::string scheme = "always";
    if (component.Find("prepend_scheme") != nullptr) {
      QUIRE_ASSIGN_OR_RETURN(scheme, component.String("prepend_scheme"));
    }
    if (scheme != "always" && scheme != "first" && scheme != "never") {
      return component.Error("prepend_scheme",
                             absl::StrCat("\"", scheme, "\" is not known"));
    }
    QUIRE_ASSIGN_OR_RETURN(const bool add_prefix_space,
                           component.Bool("add_prefix_space", true));
    if (!add_prefix_space && scheme != "never") {
      return component.Error("add_prefix_space",
                             "does not agree with prepend_scheme");
    }
    stage.flag = scheme != "never";
  } else if (type == "Replace") {
    QUIRE_RETURN_IF_ERROR(component.CheckFields({"pattern", "content"}));
    stage.kind = Kind::kReplace;
    QUIRE_ASSIGN_OR_RETURN(stage.content, component.String("content"));
    QUIRE_ASSIGN_OR_RETURN(stage.pattern, ReadPattern(component));
  } else if (type == "Strip") {
    QUIRE_RETURN_IF_ERROR(component.CheckFields({"content", "start", "stop"}));
    stage.kind = Kind::kStrip;
    QUIRE_ASSIGN_OR_RETURN(stage.content, component.String("content"));
    if (!is_one_character(stage.content)) {
      return component.Error("content", "must be one character");
    }
    QUIRE_ASSIGN_OR_RETURN(stage.start, component.Integer("start", 1 << 20));
    QUIRE_ASSIGN_OR_RETURN(stage.stop, component.Integer("stop", 1 << 20));
  } else if (type == "WordPiece") {
    QUIRE_RETURN_IF_ERROR(component.CheckFields({"prefix", "cleanup"}));
    stage.kind = Kind::kWordPiece;
    QUIRE_ASSIGN_OR_RETURN(stage.content, component.String("prefix"));
    QUIRE_ASSIGN_OR_RETURN(stage.flag, component.Bool("cleanup"));
  } else if (type == "BPEDecoder") {
    QUIRE_RETURN_IF_ERROR(component.CheckFields({"suffix"}));
    stage.kind = Kind::kBpe;
    QUIRE_ASSIGN_OR_RETURN(stage.content, component.String("suffix"));
    if (stage.content.empty()) {
      return component.Error("suffix", "must not be empty");
    }
  } else if (type == "CTC") {
    QUIRE_RETURN_IF_ERROR(component.CheckFields(
        {"pad_token", "word_delimiter_token", "cleanup"}));
    stage.kind = Kind::kCtc;
    QUIRE_ASSIGN_OR_RETURN(stage.content, component.String("pad_token"));
    QUIRE_ASSIGN_OR_RETURN(stage.delimiter,
                           component.String("word_delimiter_token"));
    QUIRE_ASSIGN_OR_RETURN(stage.flag, component.Bool("cleanup"));
    if (stage.content.empty() || stage.delimiter.empty()) {
      return component.Error("pad_token",
                             "and word_delimiter_token must not be empty");
    }
  } else {
    QUIRE_RETURN_IF_ERROR(component.CheckFields({}));
    if (type == "Fuse") {
      stage.kind = Kind::kFuse;
    } else if (type == "ByteFallback") {
      stage.kind = Kind::kByteFallback;
    } else {
      return component.Error("type",
                             absl::StrCat("\"", type, "\" is not supported"));
    }
  }
  stages_.push_back(std::move(stage));
  return absl::OkStatus();
}

bool TextDecoder::strips_leading_space() const {
  bool is_fused = false;
  for (const Stage& stage : stages_) {
    if (stage.kind == Kind::kFuse || stage.kind == Kind::kByteLevel) {
      is_fused = true;
    } else if (stage.kind == Kind::kMetaspace && stage.flag) {
      return true;
    } else if (stage.kind == Kind::kStrip && is_fused && stage.content == " " &&
               stage.start > 0) {
      return true;
    }
  }
  return false;
}

std::string TextDecoder::TokenBytes(absl::string_view token) const {
  std::string text(token);
  for (const Stage& stage : stages_) {
    switch (stage.kind) {
      case Kind::kByteLevel: {
        std::string bytes;
        AppendByteLevelDecoded(text, &bytes);
        return bytes;
      }
      case Kind::kMetaspace:
        text = absl::StrReplaceAll(text, {{stage.content, " "}});
        break;
      case Kind::kReplace:
        text = ReplaceMatches(*stage.pattern, text, stage.content);
        break;
      case Kind::kByteFallback:
        if (const int byte = ByteOfToken(text); byte >= 0) {
          return std::string(1, static_cast<char>(byte));
        }
        break;
      case Kind::kBpe:
        text = absl::StrReplaceAll(text, {{stage.content, " "}});
        break;
      case Kind::kWordPiece:
        if (absl::StartsWith(text, stage.content)) {
          text.erase(0, stage.content.size());
        } else {
          text.insert(0, " ");
        }
        break;
      case Kind::kCtc:
        text = CtcText(stage, text);
        break;
      case Kind::kJoinWithSpaces:
        text.insert(0, " ");
        break;
      case Kind::kFuse:
      case Kind::kStrip:
        return text;  // From here on it depends on the other tokens.
    }
  }
  return text;
}

std::string TextDecoder::CtcText(const Stage& stage, absl::string_view token) {
  std::string text = absl::StrReplaceAll(token, {{stage.content, ""}});
  if (!stage.flag) return text;
  return absl::StrReplaceAll(CleanUp(std::move(text)),
                             {{stage.delimiter, " "}});
}

DecoderRun::DecoderRun(const TextDecoder* decoder)
    : decoder_(decoder), states_(decoder->stages_.size()) {}

void DecoderRun::Append(absl::string_view token, std::string* out) {
  Push(0, token, /*is_fragment=*/false, out);
}

void DecoderRun::Finish(std::string* out) {
  End(0, /*is_fragment=*/false, out);
}

std::string DecoderRun::MapToken(const TextDecoder::Stage& stage,
                                 absl::string_view token, bool is_first) const {
  using Kind = TextDecoder::Kind;
  switch (stage.kind) {
    case Kind::kJoinWithSpaces:
      return absl::StrCat(is_first ? "" : " ", token);
    case Kind::kMetaspace:
      return absl::StrReplaceAll(
          token, {{stage.content, is_first && stage.flag ? "" : " "}});
    case Kind::kReplace:
      return ReplaceMatches(*stage.pattern, token, stage.content);
    case Kind::kStrip:
      return StripToken(token, stage.content, stage.start, stage.stop);
    case Kind::kWordPiece: {
      std::string text(token);
      if (!is_first) {
        if (absl::StartsWith(token, stage.content)) {
          text.erase(0, stage.content.size());
        } else {
          text.insert(0, " ");
        }
      }
      return stage.flag ? CleanUp(std::move(text)) : text;
    }
    default:
      QUIRE_CHECK(false);
  }
  return {};
}

void DecoderRun::Push(size_t stage_idx, absl::string_view token,
                      bool is_fragment, std::string* out) {
  using Kind = TextDecoder::Kind;
  if (stage_idx == states_.size()) {
    out->append(token.data(), token.size());
    return;
  }
  const TextDecoder::Stage& stage = decoder_->stages_[stage_idx];
  State& state = states_[stage_idx];
  switch (stage.kind) {
    case Kind::kFuse:
      Push(stage_idx + 1, token, /*is_fragment=*/true, out);
      return;
    case Kind::kByteLevel:
      // Fragments of one token are held, since a character that stands for no
      // byte changes all of it.
      if (is_fragment) {
        absl::StrAppend(&state.held, token);
        return;
      }
      AppendByteLevelDecoded(token, &state.held);
      PushByteLevel(stage_idx, out, /*is_end=*/false);
      return;
    case Kind::kStrip:
      if (is_fragment) {
        PushStripFragment(stage_idx, token, out);
        return;
      }
      break;
    case Kind::kByteFallback:
      if (is_fragment) {
        absl::StrAppend(&state.held, token);
        return;
      }
      if (const int byte = ByteOfToken(token); byte >= 0) {
        state.held.push_back(static_cast<char>(byte));
        return;
      }
      FlushBytes(stage_idx, false, out);
      Push(stage_idx + 1, token, false, out);
      return;
    case Kind::kBpe:
      // Only the last token's suffix is no space.
      if (is_fragment) {
        absl::StrAppend(&state.held, token);
        return;
      }
      if (state.has_held) {
        const std::string previous =
            absl::StrReplaceAll(state.held, {{stage.content, " "}});
        Push(stage_idx + 1, previous, false, out);
      }
      state.held = std::string(token);
      state.has_held = true;
      return;
    case Kind::kCtc: {
      if (is_fragment) {
        absl::StrAppend(&state.held, token);
        return;
      }
      // A token like the one before it does not count, nor does one of which
      // nothing is left.
      if (state.has_held && state.held == token) return;
      state.held = std::string(token);
      state.has_held = true;
      const std::string text = TextDecoder::CtcText(stage, token);
      if (!text.empty()) Push(stage_idx + 1, text, false, out);
      return;
    }
    default:
      if (is_fragment) {
        absl::StrAppend(&state.held, token);
        return;
      }
      break;
  }
  const std::string mapped = MapToken(stage, token, state.is_first);
  state.is_first = false;
  Push(stage_idx + 1, mapped, false, out);
}

void DecoderRun::End(size_t stage_idx, bool is_fragment, std::string* out) {
  using Kind = TextDecoder::Kind;
  if (stage_idx == states_.size()) return;
  const TextDecoder::Stage& stage = decoder_->stages_[stage_idx];
  State& state = states_[stage_idx];
  switch (stage.kind) {
    case Kind::kFuse:
      End(stage_idx + 1, /*is_fragment=*/true, out);
      return;
    case Kind::kByteLevel:
      if (is_fragment) {
        std::string bytes;
        AppendByteLevelDecoded(state.held, &bytes);
        state.held = std::move(bytes);
      }
      PushByteLevel(stage_idx, out, /*is_end=*/true);
      End(stage_idx + 1, /*is_fragment=*/true, out);
      return;
    case Kind::kByteFallback:
      if (is_fragment) {
        const int byte = ByteOfToken(state.held);
        if (byte < 0) {
          Push(stage_idx + 1, state.held, true, out);
          state.held.clear();
        } else {
          state.held.assign(1, static_cast<char>(byte));
        }
      }
      FlushBytes(stage_idx, is_fragment, out);
      End(stage_idx + 1, is_fragment, out);
      return;
    case Kind::kBpe:
      if (is_fragment || state.has_held) {
        const std::string last =
            absl::StrReplaceAll(state.held, {{stage.content, ""}});
        Push(stage_idx + 1, last, is_fragment, out);
      }
      End(stage_idx + 1, is_fragment, out);
      return;
    case Kind::kCtc:
      if (is_fragment) {
        const std::string text = TextDecoder::CtcText(stage, state.held);
        if (!text.empty()) Push(stage_idx + 1, text, true, out);
      }
      End(stage_idx + 1, is_fragment, out);
      return;
    default:
      // What a strip at the end still holds is the content that it cuts.
      if (is_fragment && stage.kind != Kind::kStrip) {
        const std::string mapped = MapToken(stage, state.held, true);
        Push(stage_idx + 1, mapped, true, out);
      }
      End(stage_idx + 1, is_fragment, out);
      return;
  }
}

void DecoderRun::PushByteLevel(size_t stage_idx, std::string* out,
                               bool is_end) {
  State& state = states_[stage_idx];
  std::string text;
  const size_t taken = AppendLossyUtf8(state.held, is_end, &text);
  state.held.erase(0, taken);
  if (!text.empty()) Push(stage_idx + 1, text, /*is_fragment=*/true, out);
}

// A run of byte tokens is text if all of it is, and otherwise one U+FFFD for
// each byte: the run must end before any of it is certain.
void DecoderRun::FlushBytes(size_t stage_idx, bool is_fragment,
                            std::string* out) {
  State& state = states_[stage_idx];
  if (state.held.empty()) return;
  const std::string bytes = std::move(state.held);
  state.held.clear();
  if (IsValidUtf8(bytes)) {
    Push(stage_idx + 1, bytes, is_fragment, out);
    return;
  }
  for (size_t i = 0; i < bytes.size(); ++i) {
    Push(stage_idx + 1, kReplacementCharacter, is_fragment, out);
  }
}

// Cuts at the start as it goes, and holds back as many of the content's
// characters at the end as may have to be cut.
void DecoderRun::PushStripFragment(size_t stage_idx, absl::string_view text,
                                   std::string* out) {
  const TextDecoder::Stage& stage = decoder_->stages_[stage_idx];
  State& state = states_[stage_idx];
  while (!state.is_cut_done && !text.empty()) {
    if (state.num_cut < stage.start && absl::StartsWith(text, stage.content)) {
      text.remove_prefix(stage.content.size());
      ++state.num_cut;
    } else {
      state.is_cut_done = true;
    }
  }
  if (text.empty()) return;
  state.held.append(text.data(), text.size());
  size_t kept = 0;
  const size_t size = stage.content.size();
  for (int64_t i = 0;
       i < stage.stop && state.held.size() >= kept + size &&
       absl::string_view(state.held)
               .substr(state.held.size() - kept - size, size) == stage.content;
       ++i) {
    kept += size;
  }
  const std::string passed = state.held.substr(0, state.held.size() - kept);
  state.held.erase(0, passed.size());
  if (!passed.empty()) Push(stage_idx + 1, passed, true, out);
}

}  // namespace quire
