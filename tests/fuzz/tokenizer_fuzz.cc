// tokenizer.json and tokenizer.model as untrusted bytes; then encoding and
// decoding with whatever loads.
//
// Input: a byte that chooses the format, then, up to the last 0xFF byte, the
// file; what follows is the text. Without a 0xFF byte the text is the file. Of
// the text the first kMaxTextBytes count: it goes through encoder and decoder
// many times, and what is longer than the longest special case (a word of 33
// symbols, a lattice of 64 nodes) only takes time.
// The loader may refuse a file with INVALID_ARGUMENT only; a tokenizer that
// loads must stream exactly what it decodes and must never yield a special
// token from ordinary text.
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "tokenizer/incremental_detokenizer.h"
#include "tokenizer/sentencepiece_tokenizer.h"
#include "tokenizer/tokenizer_json.h"
#include "tokenizer/unicode.h"

namespace {

constexpr size_t kMaxTextBytes = 192;

void Require(bool condition, const char* what) {
  if (condition) return;
  std::fprintf(stderr, "broken: %s\n", what);
  std::abort();
}

std::unique_ptr<quire::Tokenizer> Load(bool is_json, const std::string& file) {
  quire::TokenizerConfig config;
  absl::Status status;
  std::unique_ptr<quire::Tokenizer> tokenizer;
  if (is_json) {
    auto loaded = quire::ParseTokenizerJson(file, std::move(config));
    status = loaded.status();
    if (loaded.ok()) tokenizer = *std::move(loaded);
  } else {
    auto loaded = quire::SentencePieceTokenizer::Create(file, config);
    status = loaded.status();
    if (loaded.ok()) tokenizer = *std::move(loaded);
  }
  Require(status.ok() || absl::IsInvalidArgument(status) ||
              absl::IsResourceExhausted(status),
          "a malformed file is INVALID_ARGUMENT");
  return tokenizer;
}

// Cut between characters, if it has any.
std::string FirstBytes(std::string text) {
  if (text.size() <= kMaxTextBytes) return text;
  size_t size = kMaxTextBytes;
  while (size > kMaxTextBytes - 4 && (text[size] & 0xC0) == 0x80) --size;
  text.resize(size);
  return text;
}

void CheckStream(const quire::Tokenizer& tokenizer,
                 const std::vector<int32_t>& ids, bool skip) {
  quire::IncrementalDetokenizer stream(&tokenizer, skip);
  std::string text;
  for (const int32_t id : ids) {
    const std::string piece = stream.Append(id);
    Require(quire::IsValidUtf8(piece), "pieces are whole characters");
    text += piece;
  }
  text += stream.Finish();
  Require(text == tokenizer.Decode(ids, skip), "pieces are the whole text");
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size < 2) return 0;
  const bool is_json = data[0] % 2 == 0;
  const std::string input(reinterpret_cast<const char*>(data) + 1, size - 1);
  const size_t border = input.rfind('\xFF');
  const std::string file = input.substr(0, border);
  const std::string text = FirstBytes(
      border == std::string::npos ? input : input.substr(border + 1));
  const std::unique_ptr<quire::Tokenizer> tokenizer = Load(is_json, file);
  if (tokenizer == nullptr) return 0;

  for (const bool parse : {false, true}) {
    quire::EncodeOptions options;
    options.parse_special_tokens = parse;
    const auto ids = tokenizer->Encode(text, options);
    if (!ids.ok()) continue;
    CheckStream(*tokenizer, *ids, parse);
  }
  // Ids straight from the input.
  std::vector<int32_t> ids;
  for (const char c : text) {
    const int64_t value = static_cast<unsigned char>(c);
    ids.push_back(
        static_cast<int32_t>(value * (tokenizer->vocab_size() + 1) / 255));
  }
  CheckStream(*tokenizer, ids, true);
  CheckStream(*tokenizer, ids, false);

  const size_t cut = text.size() / 2;
  const quire::EncodeSegment segments[] = {
      {absl::string_view(text).substr(0, cut), false},
      {absl::string_view(text).substr(cut), false}};
  const auto pieces = tokenizer->EncodeSegments(segments);
  const auto whole = tokenizer->Encode(text, {false, false});
  Require(pieces.ok() == whole.ok() && (!pieces.ok() || *pieces == *whole),
          "segments encode as the whole text");
  return 0;
}
