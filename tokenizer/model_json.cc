#include "tokenizer/model_json.h"

#include <cmath>
#include <cstdlib>
#include <limits>
#include <optional>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "engine/base/status.h"
#include "tokenizer/json_component.h"
#include "tokenizer/unigram_model.h"
#include "tokenizer/wordpiece_model.h"

namespace quire {
namespace {

// {"token": id, ...}
absl::Status ReadTokenIds(JsonScanner* scanner, std::deque<std::string>* arena,
                          ModelDocument* document) {
  return scanner->ReadObject(
      arena, [&](absl::string_view token) -> absl::Status {
        int64_t id = 0;
        QUIRE_RETURN_IF_ERROR(scanner->ReadInteger(Vocabulary::kMaxId, &id));
        document->vocab.push_back({token, static_cast<int32_t>(id)});
        document->num_vocab_bytes += token.size();
        return absl::OkStatus();
      });
}

// Correctly rounded; infinite above 308.
double PowerOfTen(int64_t exponent) {
  double power = 0;
  if (exponent > 308 ||
      !absl::SimpleAtod(absl::StrCat("1e", exponent), &power)) {
    return std::numeric_limits<double>::infinity();
  }
  return power;
}

// The number as serde_json reads it without its float_roundtrip feature, which
// is how the library gets its scores: digits as an integer, then one product or
// quotient, which may miss the nearest double by a few units of the last place.
// Equally likely segmentations are told apart by just that.
bool ParseScore(absl::string_view text, double* score) {
  const bool is_negative = absl::ConsumePrefix(&text, "-");
  uint64_t significand = 0;
  int64_t exponent = 0;
  bool is_full = false;
  const auto take_digits = [&](int64_t step_if_taken, int64_t step_if_dropped) {
    size_t count = 0;
    for (; !text.empty() && absl::ascii_isdigit(text[0]);
         text.remove_prefix(1), ++count) {
      const uint64_t digit = static_cast<uint64_t>(text[0] - '0');
      is_full |= significand > (UINT64_MAX - digit) / 10;
      if (!is_full) significand = significand * 10 + digit;
      exponent += is_full ? step_if_dropped : step_if_taken;
    }
    return count > 0;
  };
  if (!take_digits(0, 1)) return false;
  if (absl::ConsumePrefix(&text, ".") && !take_digits(-1, 0)) return false;
  if (absl::ConsumePrefix(&text, "e") || absl::ConsumePrefix(&text, "E")) {
    absl::ConsumePrefix(&text, "+");
    int32_t written = 0;
    if (!absl::SimpleAtoi(text, &written)) return false;
    exponent += written;
    text = {};
  }
  double value = static_cast<double>(significand);
  for (; exponent < -308 && value != 0.0; exponent += 308) value /= 1e308;
  if (value != 0.0) {
    const double power = PowerOfTen(std::abs(exponent));
    value = exponent < 0 ? value / power : value * power;
  }
  *score = is_negative ? -value : value;
  return text.empty() && std::isfinite(value);
}

absl::Status ReadScore(JsonScanner* scanner, double* score) {
  absl::string_view text;
  QUIRE_RETURN_IF_ERROR(scanner->SkipValue(&text));
  if (!ParseScore(text, score)) {
    return scanner->Error("a score must be a finite number");
  }
  return absl::OkStatus();
}

// [["token", score], ...]; ids are the places in the list.
absl::Status ReadTokenScores(JsonScanner* scanner,
                             std::deque<std::string>* arena,
                             ModelDocument* document) {
  document->has_scores = true;
  return scanner->ReadArray([&]() -> absl::Status {
    int count = 0;
    absl::string_view token;
    double score = 0;
    QUIRE_RETURN_IF_ERROR(scanner->ReadArray([&]() -> absl::Status {
      ++count;
      if (count == 1) return scanner->ReadString(arena, &token);
      return ReadScore(scanner, &score);
    }));
    if (count != 2) {
      return scanner->Error("an entry must be a pair of token and score");
    }
    if (document->vocab.size() > Vocabulary::kMaxId) {
      return scanner->Error("too many tokens");
    }
    document->vocab.push_back(
        {token, static_cast<int32_t>(document->vocab.size())});
    document->scores.push_back(score);
    document->num_vocab_bytes += token.size();
    return absl::OkStatus();
  });
}

// "a b", or ["a", "b"].
absl::Status ReadMerge(JsonScanner* scanner, std::deque<std::string>* arena,
                       ModelDocument* document) {
  BpeMerge merge;
  if (scanner->Peek() == '[') {
    int count = 0;
    QUIRE_RETURN_IF_ERROR(scanner->ReadArray([&]() -> absl::Status {
      absl::string_view token;
      QUIRE_RETURN_IF_ERROR(scanner->ReadString(arena, &token));
      if (count == 0) merge.left = token;
      if (count == 1) merge.right = token;
      ++count;
      return absl::OkStatus();
    }));
    if (count != 2) return scanner->Error("a merge must be a pair");
  } else {
    absl::string_view text;
    QUIRE_RETURN_IF_ERROR(scanner->ReadString(arena, &text));
    // A line of the header of merges.txt, which the format allows here.
    if (text.substr(0, 8) == "#version") return absl::OkStatus();
    const size_t space = text.find(' ');
    if (space == absl::string_view::npos ||
        text.find(' ', space + 1) != absl::string_view::npos) {
      return scanner->Error("a merge must be two tokens and a space between");
    }
    merge.left = text.substr(0, space);
    merge.right = text.substr(space + 1);
  }
  document->merges.push_back(merge);
  return absl::OkStatus();
}

absl::Status ReadField(JsonScanner* scanner, std::deque<std::string>* arena,
                       absl::string_view field, ModelDocument* document) {
  if (field == "vocab") {
    document->has_vocab = true;
    return scanner->Peek() == '[' ? ReadTokenScores(scanner, arena, document)
                                  : ReadTokenIds(scanner, arena, document);
  }
  if (field == "merges") {
    document->has_merges = true;
    return scanner->ReadArray(
        [&] { return ReadMerge(scanner, arena, document); });
  }
  return ReadJsonValue(scanner, &document->fields[std::string(field)]);
}

absl::StatusOr<BpeOptions> ReadBpeOptions(const JsonComponent& model) {
  QUIRE_RETURN_IF_ERROR(model.CheckFields(
      {"dropout", "unk_token", "continuing_subword_prefix",
       "end_of_word_suffix", "fuse_unk", "byte_fallback", "ignore_merges"}));
  if (const nlohmann::json* dropout = model.Find("dropout")) {
    if (!dropout->is_number() || dropout->get<double>() != 0.0) {
      return model.Error("dropout", "only null and 0 are supported");
    }
  }
  BpeOptions options;
  if (model.Find("unk_token") != nullptr) {
    QUIRE_ASSIGN_OR_RETURN(options.unk_token, model.String("unk_token"));
  }
  if (model.Find("continuing_subword_prefix") != nullptr) {
    QUIRE_ASSIGN_OR_RETURN(options.continuing_subword_prefix,
                           model.String("continuing_subword_prefix"));
  }
  if (model.Find("end_of_word_suffix") != nullptr) {
    QUIRE_ASSIGN_OR_RETURN(options.end_of_word_suffix,
                           model.String("end_of_word_suffix"));
  }
  QUIRE_ASSIGN_OR_RETURN(options.fuse_unk, model.Bool("fuse_unk", false));
  QUIRE_ASSIGN_OR_RETURN(options.byte_fallback,
                         model.Bool("byte_fallback", false));
  QUIRE_ASSIGN_OR_RETURN(options.ignore_merges,
                         model.Bool("ignore_merges", false));
  return options;
}

absl::StatusOr<Vocabulary> MakeVocabulary(const ModelDocument& document) {
  Vocabulary vocabulary;
  vocabulary.Reserve(document.vocab.size(), document.num_vocab_bytes);
  for (const ModelDocument::Token& token : document.vocab) {
    if (!vocabulary.Add(token.text, token.id)) {
      return absl::InvalidArgumentError(
          absl::StrCat("model.vocab: token \"", token.text, "\" or its id ",
                       token.id, " is listed twice"));
    }
  }
  return vocabulary;
}

absl::StatusOr<std::string> ReadType(const ModelDocument& document,
                                     const JsonComponent& model) {
  if (model.Find("type") != nullptr) return model.String("type");
  if (document.has_scores) return "Unigram";
  if (document.has_merges) return "BPE";
  return model.Find("max_input_chars_per_word") != nullptr ? "WordPiece"
                                                           : "WordLevel";
}

absl::StatusOr<std::unique_ptr<WordModel>> CreateUnigram(
    const ModelDocument& document, const JsonComponent& model,
    Vocabulary vocabulary) {
  QUIRE_RETURN_IF_ERROR(model.CheckFields({"unk_id", "byte_fallback"}));
  std::optional<int32_t> unk_id;
  if (model.Find("unk_id") != nullptr) {
    QUIRE_ASSIGN_OR_RETURN(const int64_t id,
                           model.Integer("unk_id", Vocabulary::kMaxId));
    unk_id = static_cast<int32_t>(id);
  }
  QUIRE_ASSIGN_OR_RETURN(const bool byte_fallback,
                         model.Bool("byte_fallback", false));
  return UnigramModel::Create(std::move(vocabulary), document.scores, unk_id,
                              byte_fallback);
}

absl::StatusOr<std::unique_ptr<WordModel>> CreateWordPiece(
    const JsonComponent& model, Vocabulary vocabulary) {
  QUIRE_RETURN_IF_ERROR(model.CheckFields(
      {"unk_token", "continuing_subword_prefix", "max_input_chars_per_word"}));
  WordPieceOptions options;
  QUIRE_ASSIGN_OR_RETURN(options.unk_token, model.String("unk_token"));
  QUIRE_ASSIGN_OR_RETURN(options.continuing_subword_prefix,
                         model.String("continuing_subword_prefix"));
  QUIRE_ASSIGN_OR_RETURN(
      options.max_input_chars_per_word,
      model.Integer("max_input_chars_per_word", int64_t{1} << 40));
  return WordPieceModel::Create(std::move(vocabulary), std::move(options));
}

}  // namespace

absl::Status ReadJsonValue(JsonScanner* scanner, nlohmann::json* out) {
  absl::string_view extent;
  QUIRE_RETURN_IF_ERROR(scanner->SkipValue(&extent));
  *out = nlohmann::json::parse(extent.begin(), extent.end(), nullptr,
                               /*allow_exceptions=*/false);
  if (out->is_discarded()) return scanner->Error("malformed value");
  return absl::OkStatus();
}

absl::Status ReadModelDocument(JsonScanner* scanner,
                               std::deque<std::string>* arena,
                               ModelDocument* document) {
  return scanner->ReadObject(
      arena, [&](absl::string_view field) -> absl::Status {
        const bool is_repeated = (field == "vocab" && document->has_vocab) ||
                                 (field == "merges" && document->has_merges) ||
                                 document->fields.contains(std::string(field));
        const absl::Status status =
            is_repeated ? scanner->Error("the field is there twice")
                        : ReadField(scanner, arena, field, document);
        if (status.ok()) return status;
        return absl::Status(status.code(), absl::StrCat("model.", field, ": ",
                                                        status.message()));
      });
}

bool CanTakeBytes(const ModelDocument& document) {
  const auto is_empty = [&](const char* field) {
    const auto it = document.fields.find(field);
    return it == document.fields.end() || it->is_null() || *it == "";
  };
  const auto type = document.fields.find("type");
  const bool is_bpe = type == document.fields.end() || type->is_null()
                          ? document.has_merges
                          : *type == "BPE";
  return is_bpe && is_empty("continuing_subword_prefix") &&
         is_empty("end_of_word_suffix");
}

absl::StatusOr<std::unique_ptr<WordModel>> CreateWordModel(
    const ModelDocument& document, bool are_words_bytes) {
  QUIRE_ASSIGN_OR_RETURN(const JsonComponent model,
                         JsonComponent::Create(document.fields, "model"));
  QUIRE_ASSIGN_OR_RETURN(const std::string type, ReadType(document, model));
  if (type != "BPE" && type != "Unigram" && type != "WordPiece" &&
      type != "WordLevel") {
    return model.Error("type", absl::StrCat("models of type \"", type,
                                            "\" are not supported"));
  }
  if (!document.has_vocab) return model.Error("vocab", "is missing");
  if (document.has_scores != (type == "Unigram")) {
    return model.Error("vocab", document.has_scores
                                    ? "must be an object"
                                    : "must be a list of pairs");
  }
  if (document.has_merges != (type == "BPE")) {
    return model.Error("merges",
                       document.has_merges ? "unknown field" : "is missing");
  }
  QUIRE_ASSIGN_OR_RETURN(Vocabulary vocabulary, MakeVocabulary(document));
  if (type == "Unigram") {
    return CreateUnigram(document, model, std::move(vocabulary));
  }
  if (type == "WordPiece") return CreateWordPiece(model, std::move(vocabulary));
  if (type == "WordLevel") {
    QUIRE_RETURN_IF_ERROR(model.CheckFields({"unk_token"}));
    QUIRE_ASSIGN_OR_RETURN(std::string unk_token, model.String("unk_token"));
    return std::unique_ptr<WordModel>(std::make_unique<WordLevelModel>(
        std::move(vocabulary), std::move(unk_token)));
  }
  QUIRE_ASSIGN_OR_RETURN(BpeOptions options, ReadBpeOptions(model));
  options.is_byte_level = are_words_bytes;
  return BpeModel::Create(std::move(vocabulary), document.merges,
                          std::move(options));
}

}  // namespace quire
