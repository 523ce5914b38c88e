#include "tokenizer/sentencepiece_model.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "engine/base/status.h"
#include "tokenizer/unicode.h"
#include "tokenizer/unigram_lattice.h"

namespace quire {
namespace {

constexpr absl::string_view kWordMark = "\xE2\x96\x81";  // U+2581

// How much worse than the worst piece an unknown character is.
constexpr float kUnknownPenalty = 10.0f;

bool IsOneCharacter(absl::string_view text) {
  return DecodeCodePoint(text, 0).num_bytes == text.size();
}

// All pairs of pieces whose concatenation is a piece, with equal ranks for
// equal scores: sentencepiece has no list of merges.
absl::StatusOr<std::vector<BpeMerge>> MergesOf(const SentencePieceProto& proto,
                                               const Vocabulary& vocabulary) {
  std::vector<const SentencePiece*> pieces;
  for (const SentencePiece& piece : proto.pieces) {
    if (piece.type == PieceType::kNormal && !IsOneCharacter(piece.text)) {
      pieces.push_back(&piece);
    }
  }
  std::stable_sort(pieces.begin(), pieces.end(),
                   [](const SentencePiece* a, const SentencePiece* b) {
                     return a->score > b->score;
                   });
  std::vector<BpeMerge> merges;
  uint32_t rank = 0;
  for (size_t i = 0; i < pieces.size(); ++i) {
    if (i > 0 && pieces[i]->score != pieces[i - 1]->score) ++rank;
    const absl::string_view text = pieces[i]->text;
    for (size_t cut = 0; cut < text.size();) {
      const size_t size = DecodeCodePoint(text, cut).num_bytes;
      if (vocabulary.Find(text.substr(cut, size)) < 0) {
        return absl::UnimplementedError(
            absl::StrCat("pieces: a character of \"", text, "\" is no piece"));
      }
      if (cut > 0) {
        const BpeMerge merge{text.substr(0, cut), text.substr(cut), rank};
        if (vocabulary.Find(merge.left) >= 0 &&
            vocabulary.Find(merge.right) >= 0) {
          merges.push_back(merge);
        }
      }
      cut += size;
    }
  }
  return merges;
}

}  // namespace

absl::StatusOr<std::unique_ptr<SentencePieceModel>> SentencePieceModel::Create(
    const SentencePieceProto& proto) {
  std::unique_ptr<SentencePieceModel> model(new SentencePieceModel());
  model->add_dummy_prefix_ = proto.add_dummy_prefix;
  model->remove_extra_whitespaces_ = proto.remove_extra_whitespaces;
  model->space_ = proto.escape_whitespaces ? kWordMark : " ";
  model->character_map_ = proto.character_map;
  std::vector<std::pair<absl::string_view, int32_t>> user_defined;
  for (size_t i = 0; i < proto.pieces.size(); ++i) {
    if (proto.pieces[i].type == PieceType::kUserDefined) {
      user_defined.emplace_back(proto.pieces[i].text, static_cast<int32_t>(i));
    }
  }
  model->has_user_defined_ = !user_defined.empty();
  absl::Status status = model->user_defined_.Build(std::move(user_defined));
  if (status.ok() && proto.model_type == SentencePieceModelType::kUnigram) {
    status = model->AddUnigram(proto);
  } else if (status.ok() && proto.model_type == SentencePieceModelType::kBpe) {
    status = model->AddBpe(proto);
  } else if (status.ok()) {
    status = absl::UnimplementedError("trainer_spec.model_type");
  }
  if (!status.ok()) return status;
  return model;
}

absl::Status SentencePieceModel::AddBpe(const SentencePieceProto& proto) {
  // User-defined pieces are cut out before, and the others are no text.
  Vocabulary vocabulary;
  BpeOptions options;
  options.byte_fallback = proto.byte_fallback;
  options.fuse_unk = true;
  for (size_t i = 0; i < proto.pieces.size(); ++i) {
    const SentencePiece& piece = proto.pieces[i];
    if (piece.type == PieceType::kUnused ||
        (piece.type == PieceType::kUnknown && IsOneCharacter(piece.text))) {
      return absl::UnimplementedError(absl::StrCat("pieces[", i, "].type"));
    }
    if (piece.type == PieceType::kUnknown) options.unk_token = piece.text;
    if (piece.type == PieceType::kNormal || piece.type == PieceType::kByte ||
        piece.type == PieceType::kUnknown) {
      QUIRE_CHECK(vocabulary.Add(piece.text, static_cast<int32_t>(i)));
    }
  }
  // The text of the unknown piece, spelled out, must not be joined to it.
  QUIRE_ASSIGN_OR_RETURN(const std::vector<BpeMerge> merges,
                         MergesOf(proto, vocabulary));
  QUIRE_ASSIGN_OR_RETURN(bpe_, BpeModel::Create(std::move(vocabulary), merges,
                                                std::move(options)));
  return absl::OkStatus();
}

absl::Status SentencePieceModel::AddUnigram(const SentencePieceProto& proto) {
  float min_score = std::numeric_limits<float>::max();
  max_score_ = std::numeric_limits<float>::min();
  scores_.resize(proto.pieces.size());
  is_user_defined_.resize(proto.pieces.size());
  if (proto.byte_fallback) byte_ids_.resize(256);
  std::vector<std::pair<absl::string_view, int32_t>> pieces;
  for (size_t i = 0; i < proto.pieces.size(); ++i) {
    const SentencePiece& piece = proto.pieces[i];
    const int32_t id = static_cast<int32_t>(i);
    scores_[i] = piece.score;
    switch (piece.type) {
      case PieceType::kNormal:
        min_score = std::min(min_score, piece.score);
        max_score_ = std::max(max_score_, piece.score);
        pieces.emplace_back(piece.text, id);
        break;
      case PieceType::kUserDefined:
        is_user_defined_[i] = true;
        pieces.emplace_back(piece.text, id);
        break;
      case PieceType::kUnknown:
        unk_id_ = id;
        break;
      case PieceType::kByte:
        if (proto.byte_fallback) byte_ids_[piece.byte] = id;
        break;
      default:
        break;
    }
  }
  unknown_score_ = min_score - kUnknownPenalty;
  return trie_.Build(std::move(pieces));
}

// Normalizer::Normalize of sentencepiece, normalizer.cc.
std::string SentencePieceModel::Normalize(absl::string_view text) const {
  // What stands for the front of `rest`, which is taken off.
  const auto next = [this](absl::string_view* rest) {
    absl::string_view replacement;
    size_t size = 0;
    int32_t unused_id;
    if (has_user_defined_) {
      size = user_defined_.LongestPrefix(*rest, PieceTrie::kRoot, &unused_id);
      replacement = rest->substr(0, size);
    }
    if (size == 0) size = character_map_.FindLongest(*rest, &replacement);
    if (size == 0) {
      size = DecodeCodePoint(*rest, 0).num_bytes;
      replacement = rest->substr(0, size);
    }
    rest->remove_prefix(size);
    return replacement;
  };
  if (remove_extra_whitespaces_) {
    for (absl::string_view rest = text; !rest.empty(); text = rest) {
      if (next(&rest) != " ") break;
    }
  }
  std::string out;
  if (text.empty()) return out;
  out.reserve(text.size() + text.size() / 2 + 16);
  const auto put = [&](absl::string_view piece) {
    for (const char c : piece) {
      if (c == ' ') {
        out.append(space_.data(), space_.size());
      } else {
        out.push_back(c);
      }
    }
  };
  if (add_dummy_prefix_) put(" ");
  bool is_after_space = remove_extra_whitespaces_;
  while (!text.empty()) {
    absl::string_view piece = next(&text);
    while (is_after_space && absl::ConsumePrefix(&piece, " ")) {
    }
    if (!piece.empty()) {
      put(piece);
      is_after_space = absl::EndsWith(piece, " ");
    }
    if (!remove_extra_whitespaces_) is_after_space = false;
  }
  while (remove_extra_whitespaces_ && absl::EndsWith(out, space_)) {
    out.resize(out.size() - space_.size());
  }
  return out;
}

absl::Status SentencePieceModel::EncodeBpe(absl::string_view text,
                                           std::vector<int32_t>* ids) const {
  if (!has_user_defined_) return bpe_->EncodeWord(text, ids);
  size_t begin = 0;
  for (size_t pos = 0; pos < text.size();) {
    int32_t id = -1;
    const size_t size =
        user_defined_.LongestPrefix(text.substr(pos), PieceTrie::kRoot, &id);
    if (size == 0) {
      pos += DecodeCodePoint(text, pos).num_bytes;
      continue;
    }
    QUIRE_RETURN_IF_ERROR(
        bpe_->EncodeWord(text.substr(begin, pos - begin), ids));
    ids->push_back(id);
    pos += size;
    begin = pos;
  }
  return bpe_->EncodeWord(text.substr(begin), ids);
}

void SentencePieceModel::EncodeUnigram(absl::string_view text,
                                       std::vector<int32_t>* ids) const {
  std::vector<UnigramSegment> segments;
  FindBestSegments<float>(
      trie_, text, unknown_score_,
      [this](int32_t id, size_t num_bytes, float score) -> double {
        if (!is_user_defined_[id]) return scores_[id] + score;
        // A bonus, so that it is always taken; the types are the library's.
        return (static_cast<float>(num_bytes) * max_score_ - 0.1) + score;
      },
      &segments);
  bool is_after_unknown = false;
  for (const UnigramSegment& segment : segments) {
    const bool is_unknown = segment.id < 0;
    if (!is_unknown) {
      ids->push_back(segment.id);
    } else if (!byte_ids_.empty()) {
      for (uint32_t i = segment.begin; i < segment.end; ++i) {
        ids->push_back(byte_ids_[static_cast<uint8_t>(text[i])]);
      }
    } else if (!is_after_unknown) {
      ids->push_back(unk_id_);
    }
    is_after_unknown = is_unknown;
  }
}

absl::Status SentencePieceModel::Encode(absl::string_view text,
                                        std::vector<int32_t>* ids) const {
  const std::string normalized = Normalize(text);
  if (normalized.empty()) return absl::OkStatus();
  if (bpe_ != nullptr) return EncodeBpe(normalized, ids);
  EncodeUnigram(normalized, ids);
  return absl::OkStatus();
}

}  // namespace quire
