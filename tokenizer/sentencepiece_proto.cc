#include "tokenizer/sentencepiece_proto.h"

#include <cmath>
#include <cstring>
#include <unordered_set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/base/status.h"
#include "tokenizer/unicode.h"

namespace quire {
namespace {

constexpr size_t kMaxPieces = 2'000'000;
constexpr size_t kMaxPieceBytes = 1024;

absl::Status Malformed(absl::string_view field, absl::string_view what) {
  return absl::InvalidArgumentError(absl::StrCat(field, ": ", what));
}

// Fields of a protocol buffer message in wire format.
class WireReader {
 public:
  // `offset`: of `data` in the file.
  WireReader(absl::string_view data, size_t offset)
      : data_(data), offset_(offset) {}

  // False at the end or at an error; ok() tells which.
  bool Next() {
    if (pos_ >= data_.size()) return false;
    uint64_t key = 0;
    if (!Varint(&key) || key >> 3 == 0 || key >> 32 != 0) return Fail();
    field_ = static_cast<uint32_t>(key >> 3);
    wire_type_ = static_cast<int>(key & 7);
    value_offset_ = offset_ + pos_;
    size_t size = 0;
    switch (wire_type_) {
      case 0:
        return Varint(&varint_) || Fail();
      case 1:
        size = 8;
        break;
      case 2: {
        uint64_t length = 0;
        if (!Varint(&length) || length > data_.size() - pos_) return Fail();
        size = static_cast<size_t>(length);
        value_offset_ = offset_ + pos_;
        break;
      }
      case 5:
        size = 4;
        break;
      default:
        return Fail();
    }
    if (size > data_.size() - pos_) return Fail();
    bytes_ = data_.substr(pos_, size);
    pos_ += size;
    return true;
  }
  bool ok() const { return ok_; }
  bool IsVarint(uint32_t field) const {
    return field_ == field && wire_type_ == 0;
  }
  bool IsBytes(uint32_t field) const {
    return field_ == field && wire_type_ == 2;
  }
  bool IsFixed32(uint32_t field) const {
    return field_ == field && wire_type_ == 5;
  }
  uint64_t varint() const { return varint_; }
  absl::string_view bytes() const { return bytes_; }
  size_t value_offset() const { return value_offset_; }

 private:
  bool Fail() {
    ok_ = false;
    return false;
  }
  bool Varint(uint64_t* value) {
    *value = 0;
    for (int shift = 0; shift < 64 && pos_ < data_.size(); shift += 7) {
      const uint8_t byte = static_cast<uint8_t>(data_[pos_++]);
      *value |= uint64_t{byte & 0x7Fu} << shift;
      if (byte < 0x80) return true;
    }
    return false;
  }

  absl::string_view data_;
  size_t offset_;
  size_t pos_ = 0;
  bool ok_ = true;
  uint32_t field_ = 0;
  int wire_type_ = 0;
  uint64_t varint_ = 0;
  absl::string_view bytes_;
  size_t value_offset_ = 0;
};

uint32_t Load32(absl::string_view bytes, size_t pos) {
  uint32_t value;
  std::memcpy(&value, bytes.data() + pos, 4);
  return value;
}

// The byte of "<0xHH>", or -1.
int ParseByte(absl::string_view text) {
  if (text.size() != 6 || text.substr(0, 3) != "<0x" || text[5] != '>') {
    return -1;
  }
  constexpr absl::string_view kDigits = "0123456789ABCDEF";
  const size_t high = kDigits.find(text[3]);
  const size_t low = kDigits.find(text[4]);
  if (high == absl::string_view::npos || low == absl::string_view::npos) {
    return -1;
  }
  return static_cast<int>(high * 16 + low);
}

absl::Status ParsePiece(absl::string_view data, size_t offset,
                        SentencePieceProto* proto) {
  const std::string field = absl::StrCat("pieces[", proto->pieces.size(), "]");
  if (proto->pieces.size() >= kMaxPieces) {
    return Malformed(field, absl::StrCat("more than ", kMaxPieces, " pieces"));
  }
  SentencePiece piece;
  WireReader reader(data, offset);
  while (reader.Next()) {
    if (reader.IsBytes(1)) {
      piece.text = std::string(reader.bytes());
    } else if (reader.IsFixed32(2)) {
      const uint32_t bits = Load32(reader.bytes(), 0);
      float score;
      std::memcpy(&score, &bits, 4);
      if (!std::isfinite(score)) {
        return Malformed(field + ".score", "is not finite");
      }
      piece.score = score;
    } else if (reader.IsVarint(3)) {
      if (reader.varint() < 1 || reader.varint() > 6) {
        return Malformed(field + ".type", "is unknown");
      }
      piece.type = static_cast<PieceType>(reader.varint());
      piece.type_offset = reader.value_offset();
    }
  }
  if (!reader.ok()) return Malformed(field, "is malformed");
  if (piece.text.empty() || piece.text.size() > kMaxPieceBytes) {
    return Malformed(field + ".piece",
                     absl::StrCat("must have 1 to ", kMaxPieceBytes,
                                  " bytes, has ", piece.text.size()));
  }
  if (!IsValidUtf8(piece.text) || piece.text.find('\0') != std::string::npos) {
    return Malformed(field + ".piece", "must be UTF-8 without NUL");
  }
  if (piece.type == PieceType::kByte) {
    piece.byte = ParseByte(piece.text);
    if (piece.byte < 0) {
      return Malformed(field + ".piece", "is no byte, <0x00> to <0xFF>");
    }
  }
  proto->pieces.push_back(std::move(piece));
  return absl::OkStatus();
}

absl::Status ParseTrainerSpec(absl::string_view data,
                              SentencePieceProto* proto) {
  WireReader reader(data, 0);
  while (reader.Next()) {
    if (reader.IsVarint(24) && reader.varint() != 0) {
      return Malformed("trainer_spec.treat_whitespace_as_suffix",
                       "is not supported");
    }
    if (reader.IsVarint(3)) {
      if (reader.varint() < 1 || reader.varint() > 4) {
        return Malformed("trainer_spec.model_type", "is unknown");
      }
      proto->model_type = static_cast<SentencePieceModelType>(reader.varint());
    } else if (reader.IsVarint(35)) {
      proto->byte_fallback = reader.varint() != 0;
    } else if (reader.IsVarint(41)) {
      proto->bos_id = static_cast<int32_t>(reader.varint());
    } else if (reader.IsVarint(42)) {
      proto->eos_id = static_cast<int32_t>(reader.varint());
    } else if (reader.IsBytes(44)) {
      proto->unk_surface = std::string(reader.bytes());
    }
  }
  if (!reader.ok()) return Malformed("trainer_spec", "is malformed");
  if (!IsValidUtf8(proto->unk_surface)) {
    return Malformed("trainer_spec.unk_surface", "must be UTF-8");
  }
  return absl::OkStatus();
}

absl::Status ParseNormalizerSpec(absl::string_view data,
                                 SentencePieceProto* proto) {
  WireReader reader(data, 0);
  while (reader.Next()) {
    if (reader.IsBytes(2)) {
      absl::StatusOr<CharacterMap> map = CharacterMap::Create(reader.bytes());
      if (!map.ok()) {
        return Malformed("normalizer_spec.precompiled_charsmap",
                         map.status().message());
      }
      proto->character_map = *std::move(map);
    } else if (reader.IsVarint(3)) {
      proto->add_dummy_prefix = reader.varint() != 0;
    } else if (reader.IsVarint(4)) {
      proto->remove_extra_whitespaces = reader.varint() != 0;
    } else if (reader.IsVarint(5)) {
      proto->escape_whitespaces = reader.varint() != 0;
    }
  }
  if (!reader.ok()) return Malformed("normalizer_spec", "is malformed");
  return absl::OkStatus();
}

absl::Status CheckDenormalizerSpec(absl::string_view data) {
  WireReader reader(data, 0);
  while (reader.Next()) {
    if (reader.IsBytes(2) && !reader.bytes().empty()) {
      return Malformed("denormalizer_spec", "is not supported");
    }
  }
  if (!reader.ok()) return Malformed("denormalizer_spec", "is malformed");
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<SentencePieceProto> ParseSentencePieceProto(
    absl::string_view file) {
  if (static_cast<int64_t>(file.size()) > kMaxSentencePieceBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("has ", file.size(), " bytes, at most ",
                     kMaxSentencePieceBytes, " are read"));
  }
  SentencePieceProto proto;
  WireReader reader(file, 0);
  while (reader.Next()) {
    if (reader.IsBytes(1)) {
      QUIRE_RETURN_IF_ERROR(
          ParsePiece(reader.bytes(), reader.value_offset(), &proto));
    } else if (reader.IsBytes(2)) {
      QUIRE_RETURN_IF_ERROR(ParseTrainerSpec(reader.bytes(), &proto));
    } else if (reader.IsBytes(3)) {
      QUIRE_RETURN_IF_ERROR(ParseNormalizerSpec(reader.bytes(), &proto));
    } else if (reader.IsBytes(5)) {
      QUIRE_RETURN_IF_ERROR(CheckDenormalizerSpec(reader.bytes()));
    }
  }
  if (!reader.ok()) {
    return absl::InvalidArgumentError("is no sentencepiece model");
  }
  std::unordered_set<std::string> texts;
  int num_unknown = 0;
  int num_bytes = 0;
  for (size_t i = 0; i < proto.pieces.size(); ++i) {
    num_unknown += proto.pieces[i].type == PieceType::kUnknown;
    num_bytes += proto.pieces[i].type == PieceType::kByte;
    if (!texts.insert(proto.pieces[i].text).second) {
      return Malformed(absl::StrCat("pieces[", i, "].piece"),
                       "is listed twice");
    }
  }
  if (num_unknown != 1) {
    return Malformed("pieces", "must hold one piece of type unknown");
  }
  // Texts are unique, so that 256 of them are all bytes.
  if (num_bytes != (proto.byte_fallback ? 256 : 0)) {
    return Malformed(
        "trainer_spec.byte_fallback",
        absl::StrCat("does not agree with the ", num_bytes, " byte pieces"));
  }
  return proto;
}

}  // namespace quire
