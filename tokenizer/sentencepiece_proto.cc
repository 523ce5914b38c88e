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

// The trie of precompiled_charsmap is a double array of 32-bit units
// (darts-clone, array_builder.h): a lookup goes from the base b to unit b ^ c
// for the next byte c of the text, whatever it is, so the whole 256-unit block
// of every base that can be reached must exist. A unit's low byte and sign are
// its label, bit 8 says that a leaf is at its base, bits 9 and 10.. give the
// base; a leaf's value is where its text begins in the strings that follow.
absl::Status CheckCharsMap(absl::string_view map) {
  const std::string field = "normalizer_spec.precompiled_charsmap";
  if (map.empty()) return absl::OkStatus();
  if (map.size() < 4) return Malformed(field, "is cut off");
  const size_t trie_bytes = Load32(map, 0);
  if (trie_bytes > map.size() - 4 || trie_bytes % 4 != 0 || trie_bytes == 0) {
    return Malformed(field, "the size of the trie is wrong");
  }
  const absl::string_view trie = map.substr(4, trie_bytes);
  const absl::string_view strings = map.substr(4 + trie_bytes);
  if (strings.empty() || strings.back() != 0 || !IsValidUtf8(strings)) {
    return Malformed(field, "the strings are not UTF-8 or have no end");
  }
  const size_t num_units = trie_bytes / 4;
  const auto base_of = [](size_t pos, uint32_t unit) {
    return pos ^ (size_t{unit >> 10} << ((unit & (1u << 9)) >> 6));
  };
  std::vector<bool> is_seen(num_units);
  std::vector<size_t> bases;
  const auto visit = [&](size_t base) {
    if ((base | 0xFF) >= num_units) return false;
    if (!is_seen[base]) {
      is_seen[base] = true;
      bases.push_back(base);
    }
    return true;
  };
  bool is_in_bounds = visit(base_of(0, Load32(trie, 0)));
  while (is_in_bounds && !bases.empty()) {
    const size_t base = bases.back();
    bases.pop_back();
    for (size_t c = 0; c < 256 && is_in_bounds; ++c) {
      const size_t pos = base ^ c;
      const uint32_t unit = Load32(trie, pos * 4);
      if ((unit & 0x800000FF) != c) continue;
      const size_t next = base_of(pos, unit);
      is_in_bounds = visit(next);
      if (is_in_bounds && (unit >> 8 & 1) != 0) {
        const uint32_t value = Load32(trie, next * 4) & 0x7FFFFFFF;
        is_in_bounds = value < strings.size();
      }
    }
  }
  if (!is_in_bounds) return Malformed(field, "the trie leads out of bounds");
  return absl::OkStatus();
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
    if (reader.IsVarint(41)) {
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
      QUIRE_RETURN_IF_ERROR(CheckCharsMap(reader.bytes()));
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
  for (size_t i = 0; i < proto.pieces.size(); ++i) {
    num_unknown += proto.pieces[i].type == PieceType::kUnknown;
    if (!texts.insert(proto.pieces[i].text).second) {
      return Malformed(absl::StrCat("pieces[", i, "].piece"),
                       "is listed twice");
    }
  }
  if (num_unknown != 1) {
    return Malformed("pieces", "must hold one piece of type unknown");
  }
  return proto;
}

}  // namespace quire
