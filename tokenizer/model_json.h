// The "model" of tokenizer.json.
#ifndef QUIRE_TOKENIZER_MODEL_JSON_H_
#define QUIRE_TOKENIZER_MODEL_JSON_H_

#include <cstdint>
#include <deque>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "tokenizer/bpe_model.h"
#include "tokenizer/json_scanner.h"
#include "tokenizer/word_model.h"

namespace quire {

// The object, cut into its parts. Texts are views of the file or of an arena.
struct ModelDocument {
  struct Token {
    absl::string_view text;
    int32_t id;
  };
  nlohmann::json fields = nlohmann::json::object();  // But vocab and merges.
  bool has_vocab = false;
  bool has_merges = false;
  std::vector<Token> vocab;
  std::vector<double> scores;  // Of a vocab that is a list of pairs; by id.
  bool has_scores = false;
  size_t num_vocab_bytes = 0;
  std::vector<BpeMerge> merges;
};

// Reads the object that is next. INVALID_ARGUMENT, naming the field.
absl::Status ReadModelDocument(JsonScanner* scanner,
                               std::deque<std::string>* arena,
                               ModelDocument* document);

// Reads any small value that is next.
absl::Status ReadJsonValue(JsonScanner* scanner, nlohmann::json* out);

// True for BPE without prefix and suffix: it can take the bytes of words
// instead of the characters that spell them.
bool CanTakeBytes(const ModelDocument& document);

// BPE, Unigram, WordPiece or WordLevel; files of old versions do not name the
// type, and their other fields tell. INVALID_ARGUMENT, naming the field, for
// anything malformed, missing, or unknown.
absl::StatusOr<std::unique_ptr<WordModel>> CreateWordModel(
    const ModelDocument& document, bool are_words_bytes);

}  // namespace quire

#endif  // QUIRE_TOKENIZER_MODEL_JSON_H_
