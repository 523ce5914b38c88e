#include "tokenizer/gguf_pre_tokenizers.h"

#include <algorithm>
#include <initializer_list>

#include "absl/strings/str_cat.h"

namespace quire {
namespace {

// Patterns of the models' own tokenizer.json; published_patterns.cc matches
// most of them by hand.
constexpr absl::string_view kContractions = "'s|'t|'re|'ve|'m|'ll|'d";
constexpr absl::string_view kSpaces = "\\s+(?!\\S)|\\s+";

std::string Gpt2() {
  return absl::StrCat(kContractions,
                      "| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|", kSpaces);
}

// Of GPT-4 (cl100k), with the digits taken `digits` at a time.
std::string Cl100k(absl::string_view digits) {
  return absl::StrCat("(?i:", kContractions, ")|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|",
                      digits, "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|",
                      kSpaces);
}

std::string Qwen35() {
  return absl::StrCat("(?i:", kContractions,
                      ")|[^\\r\\n\\p{L}\\p{N}]?[\\p{L}\\p{M}]+|\\p{N}|"
                      " ?[^\\s\\p{L}\\p{M}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|",
                      kSpaces);
}

// Of GPT-4o (o200k); Mistral's Tekken is without contractions.
std::string O200k(absl::string_view contractions, absl::string_view digits) {
  return absl::StrCat(
      "[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]*"
      "[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]+",
      contractions,
      "|[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]+"
      "[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]*",
      contractions, "|", digits,
      "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|\\s*[\\r\\n]+|", kSpaces);
}

std::vector<std::string> DeepSeekV3() {
  return {"\\p{N}{1,3}",
          "[\xE4\xB8\x80-\xE9\xBE\xA5\xE3\x81\x80-\xE3\x82\x9F\xE3\x82\xA0-"
          "\xE3\x83\xBF]+",
          absl::StrCat("[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|"
                       "[^\\r\\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+|"
                       " ?[\\p{P}\\p{S}]+[\\r\\n]*|\\s*[\\r\\n]+|",
                       kSpaces)};
}

std::vector<std::string> DeepSeekCoder() {
  return {"[\\r\\n]", "\\s?\\p{L}+", "\\s?\\p{P}+",
          "[\xE4\xB8\x80-\xE9\xBE\xA5\xE0\xA0\x80-\xE4\xB8\x80"
          "\xEA\xB0\x80-\xED\x9F\xBF]+",
          "\\p{N}"};
}

// What files without a name were converted for (Falcon's, more or less).
std::vector<std::string> Default() {
  return {"[\\p{P}\\$\\+<=>\\^~\\|]+", Gpt2(), "\\p{N}+", "[0-9][0-9][0-9]"};
}

std::vector<std::string> Falcon() {
  return {"[\\p{P}\\$\\+<=>\\^~\\|`]+", Gpt2(), "[0-9][0-9][0-9]"};
}

bool IsOneOf(absl::string_view name,
             std::initializer_list<absl::string_view> names) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

}  // namespace

bool FindGgufPreTokenizer(absl::string_view name, GgufPreTokenizer* found) {
  *found = GgufPreTokenizer();
  constexpr absl::string_view kAnyCase = "(?i:'s|'t|'re|'ve|'m|'ll|'d)?";
  if (IsOneOf(name,
              {"gpt-2", "a.x-4.0", "exaone4", "gigachat", "granite-docling",
               "jais", "jina-de", "jina-es", "jina-v2-de", "jina-v2-es",
               "mellum", "modern-bert", "mpt", "olmo", "phi-2", "trillion"})) {
    found->patterns = {Gpt2()};
  } else if (IsOneOf(name, {"llama-bpe", "falcon-h1", "falcon3", "lfm2",
                            "llama-v3", "llama3", "midm-2.0", "pixtral"})) {
    found->patterns = {Cl100k("\\p{N}{1,3}")};
    found->ignore_merges = true;
    found->adds_bos_token = true;
  } else if (IsOneOf(name, {"chatglm-bpe", "dbrx", "glm4", "smaug-bpe"})) {
    found->patterns = {Cl100k("\\p{N}{1,3}")};
    found->ignore_merges = name == "glm4";
  } else if (IsOneOf(name, {"qwen2", "deepseek-r1-qwen", "grok-2", "hunyuan",
                            "kormo", "megrez", "solar-open", "stablelm2"})) {
    found->patterns = {Cl100k("\\p{N}")};
    found->is_nfc = name == "qwen2";  // Its tokenizer.json does so.
  } else if (name == "qwen35") {
    found->patterns = {Qwen35()};
    found->is_nfc = true;
  } else if (IsOneOf(name, {"smollm", "codeshell", "command-r", "exaone",
                            "mellum2", "minerva-7b", "refact", "starcoder"})) {
    found->patterns = {"\\p{N}", Gpt2()};
  } else if (name == "tekken") {
    found->patterns = {O200k("", "\\p{N}")};
    found->ignore_merges = true;
    found->adds_bos_token = true;
  } else if (IsOneOf(name, {"gpt-4o", "kanana2", "llama4", "minimax-m2"})) {
    found->patterns = {O200k(kAnyCase, "\\p{N}{1,3}")};
  } else if (IsOneOf(name, {"deepseek-v3", "hunyuan-dense", "joyai-llm"})) {
    found->patterns = DeepSeekV3();
  } else if (name == "deepseek-coder") {
    found->patterns = DeepSeekCoder();
  } else if (name == "falcon") {
    found->patterns = Falcon();
  } else {
    found->patterns = Default();
    return name == "default";
  }
  return true;
}

}  // namespace quire
