// Token texts to text: the "decoder" of tokenizer.json, as a chain of stages
// that tokens stream through. Decoding a whole list is streaming it, so the
// two cannot differ.
#ifndef QUIRE_TOKENIZER_DECODER_H_
#define QUIRE_TOKENIZER_DECODER_H_

#include <cstdint>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "tokenizer/split_pattern.h"

namespace quire {

class DecoderRun;

// Immutable and thread-safe.
class TextDecoder {
 public:
  // ByteLevel, Metaspace, Replace, Fuse, ByteFallback, Strip, WordPiece,
  // BPEDecoder, CTC, Sequence; null joins the tokens with spaces.
  // INVALID_ARGUMENT naming the field below `path` for any other component or
  // field.
  static absl::StatusOr<TextDecoder> Create(const nlohmann::json& config,
                                            const std::string& path);

  // The bytes that `token` adds in the middle of a text, as far as they depend
  // on it alone: what a byte-level or byte-fallback token stands for, word
  // marks as spaces.
  std::string TokenBytes(absl::string_view token) const;

  // True if a space at the start of a whole text is taken off.
  bool strips_leading_space() const;

 private:
  friend class DecoderRun;
  enum class Kind {
    kJoinWithSpaces,
    kByteLevel,
    kMetaspace,
    kReplace,
    kFuse,
    kByteFallback,
    kStrip,
    kWordPiece,
    kBpe,
    kCtc,
  };
  struct Stage {
    Kind kind;
    std::string content;    // Metaspace's mark, Replace's and Strip's content,
                            // WordPiece's prefix, BPEDecoder's suffix, CTC's
                            // pad token.
    std::string delimiter;  // CTC: the token that stands for a space.
    std::shared_ptr<const SplitPattern> pattern;  // kReplace
    bool flag = false;  // Metaspace: strips at the start; WordPiece and CTC:
                        // cleanup.
    int64_t start = 0;  // kStrip
    int64_t stop = 0;
  };

  absl::Status AddStage(const nlohmann::json& config, const std::string& path,
                        int depth);
  static std::string CtcText(const Stage& stage, absl::string_view token);
  absl::Status AddLeafStage(const nlohmann::json& config,
                            const std::string& path);

  std::vector<Stage> stages_;
};

// One text being decoded. Thread-compatible.
class DecoderRun {
 public:
  // `decoder` must outlive this.
  explicit DecoderRun(const TextDecoder* decoder);

  // Takes the next token and appends to `out` the text that is now certain;
  // whole characters. Amortized time is in proportion to the token's length.
  void Append(absl::string_view token, std::string* out);
  // Appends the rest. Nothing may be appended after it.
  void Finish(std::string* out);

 private:
  // What a stage holds back.
  struct State {
    bool is_first = true;   // No token has come yet.
    bool has_held = false;  // kBpe, kCtc
    std::string held;       // Text or bytes not passed on yet.
    int64_t num_cut = 0;    // kStrip within one long token.
    bool is_cut_done = false;
  };
  // `is_fragment`: the pieces are parts of one long token, which everything
  // after Fuse or ByteLevel sees.
  void Push(size_t stage_idx, absl::string_view token, bool is_fragment,
            std::string* out);
  void End(size_t stage_idx, bool is_fragment, std::string* out);
  void PushByteLevel(size_t stage_idx, std::string* out, bool is_end);
  void FlushBytes(size_t stage_idx, bool is_fragment, std::string* out);
  void PushStripFragment(size_t stage_idx, absl::string_view text,
                         std::string* out);
  std::string MapToken(const TextDecoder::Stage& stage, absl::string_view token,
                       bool is_first) const;

  const TextDecoder* decoder_;
  std::vector<State> states_;
};

}  // namespace quire

#endif  // QUIRE_TOKENIZER_DECODER_H_
