// What tokenizer.model holds, read without the library and checked before the
// library sees it.
#ifndef QUIRE_TOKENIZER_SENTENCEPIECE_PROTO_H_
#define QUIRE_TOKENIZER_SENTENCEPIECE_PROTO_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "tokenizer/character_map.h"

namespace quire {

inline constexpr int64_t kMaxSentencePieceBytes = 64 << 20;

// Numbers of the format (sentencepiece_model.proto).
enum class PieceType {
  kNormal = 1,
  kUnknown = 2,
  kControl = 3,
  kUserDefined = 4,
  kUnused = 5,
  kByte = 6,
};

enum class SentencePieceModelType {
  kUnigram = 1,
  kBpe = 2,
  kWord = 3,
  kChar = 4
};

struct SentencePiece {
  std::string text;
  float score = 0;
  PieceType type = PieceType::kNormal;
  int byte = -1;           // Of a kByte piece.
  size_t type_offset = 0;  // Of the type's one byte in the file; 0: not there.
};

struct SentencePieceProto {
  std::vector<SentencePiece> pieces;
  SentencePieceModelType model_type = SentencePieceModelType::kUnigram;
  bool byte_fallback = false;
  int32_t bos_id = 1;
  int32_t eos_id = 2;
  std::string unk_surface = " \xE2\x81\x87 ";
  bool add_dummy_prefix = true;
  bool remove_extra_whitespaces = true;
  bool escape_whitespaces = true;
  CharacterMap character_map;
};

// INVALID_ARGUMENT, naming the field, for a file that is malformed, or that
// sentencepiece 0.1.97 would crash on: pieces above 1 KiB, more than 2 million
// pieces, scores that are not finite, a character map whose trie or whose
// strings lead out of its bounds, byte pieces without byte fallback or the
// reverse.
absl::StatusOr<SentencePieceProto> ParseSentencePieceProto(
    absl::string_view file);

}  // namespace quire

#endif  // QUIRE_TOKENIZER_SENTENCEPIECE_PROTO_H_
