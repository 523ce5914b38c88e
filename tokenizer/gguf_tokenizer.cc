#include "tokenizer/gguf_tokenizer.h"

#include <algorithm>
#include <cstring>
#include <initializer_list>
#include <utility>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "engine/base/status.h"
#include "nlohmann/json.hpp"
#include "tokenizer/gguf_pre_tokenizers.h"
#include "tokenizer/sentencepiece_proto.h"
#include "tokenizer/sentencepiece_tokenizer.h"
#include "tokenizer/tokenizer_config.h"
#include "tokenizer/tokenizer_json.h"
#include "tokenizer/unicode.h"
#include "tokenizer/vocabulary.h"

namespace quire {
namespace {

using nlohmann::json;

absl::Status KeyError(absl::string_view key, absl::string_view message) {
  return absl::InvalidArgumentError(
      absl::StrCat("key \"tokenizer.ggml.", key, "\": ", message));
}

// The format numbers token types as sentencepiece does.
PieceType TypeOf(const GgufTokenizerKeys& keys, size_t id) {
  if (id >= keys.token_types.size()) return PieceType::kNormal;
  const int64_t type = keys.token_types[id];
  return type >= 1 && type <= 6 ? static_cast<PieceType>(type)
                                : PieceType::kNormal;
}

absl::Status CheckLists(const GgufTokenizerKeys& keys) {
  const size_t count = keys.tokens.size();
  if (count == 0) return KeyError("tokens", "missing or empty");
  if (count > Vocabulary::kMaxId) {
    return KeyError("tokens", absl::StrCat(count, " tokens, more than ",
                                           Vocabulary::kMaxId));
  }
  if (!keys.token_types.empty() && keys.token_types.size() != count) {
    return KeyError("token_type",
                    absl::StrCat("has ", keys.token_types.size(),
                                 " entries for ", count, " tokens"));
  }
  if (!keys.scores.empty() && keys.scores.size() != count) {
    return KeyError("scores", absl::StrCat("has ", keys.scores.size(),
                                           " entries for ", count, " tokens"));
  }
  for (size_t id = 0; id < count; ++id) {
    if (!IsValidUtf8(keys.tokens[id])) {
      return KeyError("tokens", absl::StrCat("token ", id, " is not UTF-8"));
    }
  }
  for (const auto& [name, id] : keys.special_ids) {
    if (id < 0 || id >= static_cast<int64_t>(count)) {
      return KeyError(
          absl::StrCat(name, "_id"),
          absl::StrCat(id, " is not the id of one of the ", count, " tokens"));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<TokenizerConfig> MakeConfig(const GgufTokenizerKeys& keys) {
  TokenizerConfig config;
  for (const auto& [name, id] : keys.special_ids) {
    config.special_tokens[name] = std::string(keys.tokens[id]);
  }
  config.add_bos_token = keys.add_bos_token;
  config.add_eos_token = keys.add_eos_token;
  if (!IsValidUtf8(keys.chat_template)) {
    return absl::InvalidArgumentError(
        "key \"tokenizer.chat_template\": is not UTF-8");
  }
  config.chat_template = std::string(keys.chat_template);
  return config;
}

// ----------------------------------------------------------- byte-level BPE

json Split(const std::string& pattern) {
  return {{"type", "Split"},
          {"pattern", {{"Regex", pattern}}},
          {"behavior", "Isolated"},
          {"invert", false}};
}

absl::Status AddMerges(const GgufTokenizerKeys& keys, ModelDocument* model) {
  model->has_merges = true;
  model->merges.reserve(keys.merges.size());
  for (size_t i = 0; i < keys.merges.size(); ++i) {
    const absl::string_view text = keys.merges[i];
    // The left token may begin with a space.
    const size_t space = text.find(' ', 1);
    if (space == absl::string_view::npos || !IsValidUtf8(text)) {
      return KeyError("merges", absl::StrCat("merge ", i, " is not two tokens ",
                                             "and a space between"));
    }
    model->merges.push_back({text.substr(0, space), text.substr(space + 1)});
  }
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<Tokenizer>> CreateByteLevel(
    const GgufTokenizerKeys& keys, std::vector<std::string>* warnings) {
  const absl::string_view name = keys.pre.value_or("default");
  GgufPreTokenizer pre;
  if (!FindGgufPreTokenizer(name, &pre)) {
    warnings->push_back(absl::StrCat(
        "key \"tokenizer.ggml.pre\": pre-tokenizer \"", name.substr(0, 100),
        "\" is not known to quire; the default one takes its place, and words ",
        "may be split differently than in training"));
  } else if (!keys.pre) {
    warnings->push_back(
        "key \"tokenizer.ggml.pre\": missing (a file of an old converter); the "
        "default pre-tokenizer is used, and words may be split differently "
        "than in training");
  }
  ModelDocument model;
  model.fields = {{"type", "BPE"}, {"ignore_merges", pre.ignore_merges}};
  model.has_vocab = true;
  json added = json::array();
  absl::flat_hash_set<absl::string_view> texts;
  texts.reserve(keys.tokens.size());
  model.vocab.reserve(keys.tokens.size());
  int num_left_out = 0;
  for (size_t id = 0; id < keys.tokens.size(); ++id) {
    const absl::string_view text = keys.tokens[id];
    if (text.empty() || !texts.insert(text).second) {
      ++num_left_out;
      continue;
    }
    model.vocab.push_back({text, static_cast<int32_t>(id)});
    model.num_vocab_bytes += text.size();
    const PieceType type = TypeOf(keys, id);
    if (type != PieceType::kControl && type != PieceType::kUserDefined) {
      continue;
    }
    added.push_back({{"id", id},
                     {"content", std::string(text)},
                     {"single_word", false},
                     {"lstrip", false},
                     {"rstrip", false},
                     {"normalized", false},
                     {"special", type == PieceType::kControl}});
  }
  if (num_left_out > 0) {
    warnings->push_back(absl::StrCat(
        "key \"tokenizer.ggml.tokens\": ", num_left_out, " tokens are empty or",
        " listed before under another id: they have no text"));
  }
  QUIRE_RETURN_IF_ERROR(AddMerges(keys, &model));
  json splits = json::array();
  for (const std::string& pattern : pre.patterns) {
    splits.push_back(Split(pattern));
  }
  splits.push_back({{"type", "ByteLevel"},
                    {"add_prefix_space", keys.add_space_prefix.value_or(false)},
                    {"trim_offsets", true},
                    {"use_regex", false}});
  json fields = {{"added_tokens", std::move(added)},
                 {"pre_tokenizer",
                  {{"type", "Sequence"}, {"pretokenizers", std::move(splits)}}},
                 {"decoder",
                  {{"type", "ByteLevel"},
                   {"add_prefix_space", true},
                   {"trim_offsets", true},
                   {"use_regex", true}}}};
  if (pre.is_nfc) fields["normalizer"] = {{"type", "NFC"}};
  QUIRE_ASSIGN_OR_RETURN(TokenizerConfig config, MakeConfig(keys));
  config.add_bos_token = keys.add_bos_token.value_or(pre.adds_bos_token);
  config.add_eos_token = keys.add_eos_token.value_or(false);
  QUIRE_ASSIGN_OR_RETURN(
      std::unique_ptr<PipelineTokenizer> tokenizer,
      BuildPipelineTokenizer(fields, model, std::move(config)));
  return std::unique_ptr<Tokenizer>(std::move(tokenizer));
}

// ---------------------------------------------------------------- WordPiece

// The format marks pieces that begin a word, where BERT's vocabularies mark the
// others; names in brackets stay (llama.cpp, conversion of BertModel).
std::string WordPieceText(absl::string_view text, PieceType type) {
  constexpr absl::string_view kWordMark = "\xE2\x96\x81";
  // The mark alone: a word cannot begin with nothing, so it is a piece itself.
  if (absl::StartsWith(text, kWordMark) && text.size() > kWordMark.size()) {
    return std::string(text.substr(kWordMark.size()));
  }
  const bool is_name = text.size() >= 2 && absl::StartsWith(text, "[") &&
                       absl::EndsWith(text, "]");
  if (is_name || type == PieceType::kControl) return std::string(text);
  return absl::StrCat("##", text);
}

// The id of a special token, by its key or by the name that BERT gives it; -1
// if there is none.
int64_t WordPieceSpecial(const GgufTokenizerKeys& keys,
                         std::initializer_list<const char*> names,
                         absl::string_view text) {
  for (const char* name : names) {
    const auto it = keys.special_ids.find(name);
    if (it != keys.special_ids.end()) return it->second;
  }
  const auto it = std::find(keys.tokens.begin(), keys.tokens.end(), text);
  return it == keys.tokens.end() ? -1 : it - keys.tokens.begin();
}

absl::StatusOr<std::unique_ptr<Tokenizer>> CreateWordPieces(
    const GgufTokenizerKeys& keys) {
  const int64_t unk = WordPieceSpecial(keys, {"unk_token"}, "[UNK]");
  if (unk < 0) return KeyError("unknown_token_id", "missing, and no \"[UNK]\"");
  std::vector<std::string> texts(keys.tokens.size());
  ModelDocument model;
  model.has_vocab = true;
  model.vocab.reserve(texts.size());
  json added = json::array();
  absl::flat_hash_set<absl::string_view> known;
  bool has_upper_case = false;
  for (size_t id = 0; id < texts.size(); ++id) {
    const PieceType type = TypeOf(keys, id);
    texts[id] = WordPieceText(keys.tokens[id], type);
    const std::string& text = texts[id];
    if (text.empty() || !known.insert(text).second) continue;
    model.vocab.push_back({text, static_cast<int32_t>(id)});
    model.num_vocab_bytes += text.size();
    const bool is_special = type == PieceType::kControl;
    if (is_special || type == PieceType::kUserDefined) {
      added.push_back({{"id", id},
                       {"content", text},
                       {"single_word", false},
                       {"lstrip", false},
                       {"rstrip", false},
                       {"normalized", false},
                       {"special", is_special}});
    } else if (text[0] != '[') {
      has_upper_case |= std::any_of(text.begin(), text.end(), [](char c) {
        return absl::ascii_isupper(static_cast<unsigned char>(c));
      });
    }
  }
  model.fields = {{"type", "WordPiece"},
                  {"unk_token", texts[unk]},
                  {"continuing_subword_prefix", "##"},
                  {"max_input_chars_per_word", 100}};
  json fields = {
      {"added_tokens", std::move(added)},
      {"normalizer",
       {{"type", "BertNormalizer"},
        {"clean_text", true},
        {"handle_chinese_chars", true},
        {"strip_accents", nullptr},
        // The format does not say; no vocabulary of lower case has
        // a piece that a text in it cannot yield.
        {"lowercase", !has_upper_case}}},
      {"pre_tokenizer", {{"type", "BertPreTokenizer"}}},
      {"decoder",
       {{"type", "WordPiece"}, {"prefix", "##"}, {"cleanup", true}}}};
  const int64_t cls =
      WordPieceSpecial(keys, {"cls_token", "bos_token"}, "[CLS]");
  const int64_t sep =
      WordPieceSpecial(keys, {"sep_token", "eos_token"}, "[SEP]");
  if (cls >= 0 && sep >= 0 && keys.add_bos_token.value_or(true)) {
    fields["post_processor"] = {{"type", "BertProcessing"},
                                {"sep", {texts[sep], sep}},
                                {"cls", {texts[cls], cls}}};
  }
  QUIRE_ASSIGN_OR_RETURN(TokenizerConfig config, MakeConfig(keys));
  config.add_bos_token.reset();
  config.add_eos_token.reset();
  QUIRE_ASSIGN_OR_RETURN(
      std::unique_ptr<PipelineTokenizer> tokenizer,
      BuildPipelineTokenizer(fields, model, std::move(config)));
  return std::unique_ptr<Tokenizer>(std::move(tokenizer));
}

// ------------------------------------------------------------ sentencepiece

// Writes the wire format of protocol buffers.
void PutVarint(uint64_t value, std::string* out) {
  for (; value >= 0x80; value >>= 7) {
    out->push_back(static_cast<char>(value | 0x80));
  }
  out->push_back(static_cast<char>(value));
}

void PutNumber(int field, int64_t value, std::string* out) {
  PutVarint(static_cast<uint64_t>(field) << 3, out);
  PutVarint(static_cast<uint64_t>(value), out);
}

void PutBytes(int field, absl::string_view bytes, std::string* out) {
  PutVarint(static_cast<uint64_t>(field) << 3 | 2, out);
  PutVarint(bytes.size(), out);
  out->append(bytes.data(), bytes.size());
}

struct Piece {
  std::string text;
  float score = 0;
  PieceType type = PieceType::kNormal;
};

// Pieces as sentencepiece needs them: one unknown piece, no text twice or
// empty. Unused pieces (the padding of a vocabulary) become control pieces,
// which no text yields either.
std::vector<Piece> MakePieces(const GgufTokenizerKeys& keys) {
  const auto unk = keys.special_ids.find("unk_token");
  int64_t unk_id = unk == keys.special_ids.end() ? -1 : unk->second;
  for (size_t id = 0; unk_id < 0 && id < keys.tokens.size(); ++id) {
    if (TypeOf(keys, id) == PieceType::kUnknown) unk_id = id;
  }
  unk_id = std::max<int64_t>(unk_id, 0);
  std::vector<Piece> pieces(keys.tokens.size());
  absl::flat_hash_set<std::string> texts;
  texts.reserve(pieces.size());
  for (size_t id = 0; id < pieces.size(); ++id) {
    Piece& piece = pieces[id];
    piece.text = std::string(keys.tokens[id]);
    piece.score = keys.scores.empty() ? 0.0f : keys.scores[id];
    piece.type = TypeOf(keys, id);
    if (static_cast<int64_t>(id) == unk_id) {
      piece.type = PieceType::kUnknown;
    } else if (piece.type == PieceType::kUnknown ||
               piece.type == PieceType::kUnused) {
      piece.type = PieceType::kControl;
    } else if (piece.type == PieceType::kUserDefined) {
      // The writer of the format puts spaces for sentencepiece's marks.
      piece.text = absl::StrReplaceAll(piece.text, {{" ", "\xE2\x96\x81"}});
    }
    const bool has_nul = piece.text.find('\0') != std::string::npos;
    if (piece.text.empty() || has_nul || !texts.insert(piece.text).second) {
      piece.text = absl::StrCat("<|id ", id, "|>");
      piece.type = PieceType::kControl;
      texts.insert(piece.text);
    }
  }
  return pieces;
}

std::string SerializeProto(const GgufTokenizerKeys& keys, bool is_unigram) {
  std::string proto;
  bool has_bytes = false;
  for (const Piece& piece : MakePieces(keys)) {
    std::string message;
    PutBytes(1, piece.text, &message);
    PutVarint(2 << 3 | 5, &message);  // Four bytes: the score.
    char score[4];
    std::memcpy(score, &piece.score, 4);
    message.append(score, 4);
    PutNumber(3, static_cast<int>(piece.type), &message);
    PutBytes(1, message, &proto);
    has_bytes |= piece.type == PieceType::kByte;
  }
  const auto special = [&keys](const char* name) {
    const auto it = keys.special_ids.find(name);
    return it == keys.special_ids.end() ? int64_t{-1} : it->second;
  };
  std::string trainer;
  PutNumber(3,
            static_cast<int>(is_unigram ? SentencePieceModelType::kUnigram
                                        : SentencePieceModelType::kBpe),
            &trainer);
  PutNumber(35, has_bytes, &trainer);
  PutNumber(41, special("bos_token"), &trainer);
  PutNumber(42, special("eos_token"), &trainer);
  PutBytes(2, trainer, &proto);
  std::string normalizer;
  if (!keys.precompiled_charsmap.empty()) {
    PutBytes(2, keys.precompiled_charsmap, &normalizer);
  }
  PutNumber(3, keys.add_space_prefix.value_or(true), &normalizer);
  PutNumber(4, keys.remove_extra_whitespaces.value_or(false), &normalizer);
  PutNumber(5, 1, &normalizer);
  PutBytes(3, normalizer, &proto);
  return proto;
}

absl::StatusOr<std::unique_ptr<Tokenizer>> CreateSentencePiece(
    const GgufTokenizerKeys& keys, bool is_unigram) {
  if (keys.scores.empty()) return KeyError("scores", "missing");
  QUIRE_ASSIGN_OR_RETURN(TokenizerConfig config, MakeConfig(keys));
  config.add_bos_token = keys.add_bos_token.value_or(!is_unigram);
  config.add_eos_token = keys.add_eos_token.value_or(is_unigram);
  absl::StatusOr<std::unique_ptr<SentencePieceTokenizer>> tokenizer =
      SentencePieceTokenizer::Create(SerializeProto(keys, is_unigram),
                                     std::move(config));
  if (!tokenizer.ok()) {
    return absl::Status(
        tokenizer.status().code(),
        absl::StrCat("keys \"tokenizer.ggml.*\": as a sentencepiece model: ",
                     tokenizer.status().message()));
  }
  return std::unique_ptr<Tokenizer>(*std::move(tokenizer));
}

}  // namespace

absl::StatusOr<std::unique_ptr<Tokenizer>> CreateGgufTokenizer(
    const GgufTokenizerKeys& keys, std::vector<std::string>* warnings) {
  if (keys.model.empty()) return KeyError("model", "missing");
  if (keys.model == "no_vocab" || keys.model == "none") {
    return KeyError("model",
                    absl::StrCat("\"", keys.model,
                                 "\": the file has no tokenizer; name one "
                                 "with --tokenizer"));
  }
  const bool is_bert = keys.model == "bert";
  if (keys.model != "gpt2" && keys.model != "llama" && keys.model != "t5" &&
      !is_bert) {
    return KeyError("model", absl::StrCat("\"", keys.model.substr(0, 100),
                                          "\" is not supported (supported: ",
                                          "gpt2, llama, t5, bert)"));
  }
  QUIRE_RETURN_IF_ERROR(CheckLists(keys));
  if (keys.model != "gpt2" && !is_bert) {
    return CreateSentencePiece(keys, keys.model == "t5");
  }
  absl::StatusOr<std::unique_ptr<Tokenizer>> tokenizer =
      is_bert ? CreateWordPieces(keys) : CreateByteLevel(keys, warnings);
  if (tokenizer.ok() || tokenizer.status().message().substr(0, 3) == "key") {
    return tokenizer;
  }
  return absl::Status(
      tokenizer.status().code(),
      absl::StrCat("keys \"tokenizer.ggml.*\": as a tokenizer.json: ",
                   tokenizer.status().message()));
}

}  // namespace quire
