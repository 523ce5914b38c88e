// Speed of encoding English with one thread, per type of tokenizer.
//
//   tokenizer_bench --testdata tokenizer/testdata/proof
//
// The text is 1 MB of sentences drawn from a fixed seed: words of 1 to 14
// letters with English frequencies of letters, some of them common words, with
// punctuation, numbers and capitals. Each directory below --testdata is loaded
// and encodes it --repetitions times; the median and the spread are printed.
// Time is that of the thread (CLOCK_THREAD_CPUTIME_ID): the figure is per core,
// and waiting for a core does not count.
#include <time.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/strings/str_cat.h"
#include "engine/base/random.h"
#include "tokenizer/tokenizer.h"

namespace quire {
namespace {

constexpr size_t kTextBytes = 1'000'000;

// 4000 words by rank; rank r is drawn with probability in proportion to 1 / r
// (Zipf 1949), as in English. The first hundred are its commonest words.
std::vector<std::string> MakeWords(SimulationRandom* random) {
  std::vector<std::string> words = {
      "the",   "of",     "and",   "to",   "a",     "in",     "is",    "it",
      "you",   "that",   "he",    "was",  "for",   "on",     "are",   "with",
      "as",    "I",      "his",   "they", "be",    "at",     "one",   "have",
      "this",  "from",   "or",    "had",  "by",    "hot",    "word",  "but",
      "what",  "some",   "we",    "can",  "out",   "other",  "were",  "all",
      "there", "when",   "up",    "use",  "your",  "how",    "said",  "an",
      "each",  "she",    "which", "do",   "their", "time",   "if",    "will",
      "way",   "about",  "many",  "then", "them",  "write",  "would", "like",
      "so",    "these",  "her",   "long", "make",  "thing",  "see",   "him",
      "two",   "has",    "look",  "more", "day",   "could",  "go",    "come",
      "did",   "number", "sound", "no",   "most",  "people", "my",    "over",
      "know",  "water",  "than",  "call", "first", "who",    "may",   "down",
      "side",  "been",   "now",   "find"};
  // Letters by their frequency in English text, per cent rounded.
  const std::string letters =
      "eeeeeeeeeeeetttttttttaaaaaaaaooooooooiiiiiiinnnnnnnsssssshhhhhhrrrrrrddd"
      "dl"
      "lllccuuummwwffggyyppbvk";
  while (words.size() < 4000) {
    std::string word;
    const uint64_t size = 2 + random->Below(7) + random->Below(6);
    for (uint64_t i = 0; i < size; ++i) {
      word += letters[random->Below(letters.size())];
    }
    words.push_back(word);
  }
  return words;
}

std::string EnglishText() {
  SimulationRandom random(11);
  const std::vector<std::string> words = MakeWords(&random);
  std::vector<double> cumulative;
  double sum = 0;
  for (size_t rank = 1; rank <= words.size(); ++rank) {
    sum += 1.0 / static_cast<double>(rank);
    cumulative.push_back(sum);
  }
  std::string text;
  while (text.size() < kTextBytes) {
    const uint64_t num_words = 5 + random.Below(20);
    for (uint64_t i = 0; i < num_words; ++i) {
      if (i > 0) text += random.Below(12) == 0 ? ", " : " ";
      if (random.Below(60) == 0) {
        absl::StrAppend(&text, random.Below(3000));
        continue;
      }
      const auto at = std::lower_bound(cumulative.begin(), cumulative.end(),
                                       random.Uniform() * sum);
      std::string word =
          words[std::min<size_t>(at - cumulative.begin(), words.size() - 1)];
      if (i == 0 && word[0] >= 'a') word[0] = static_cast<char>(word[0] - 32);
      text += word;
    }
    text += random.Below(6) == 0 ? ".\n\n" : ". ";
  }
  return text;
}

double ThreadSeconds() {
  timespec now;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) +
         static_cast<double>(now.tv_nsec) / 1e9;
}

int Run(const std::string& directory, const std::string& text,
        int repetitions) {
  const auto tokenizer = Tokenizer::Create(directory);
  if (!tokenizer.ok()) {
    std::fprintf(stderr, "%s\n",
                 std::string(tokenizer.status().message()).c_str());
    return EXIT_FAILURE;
  }
  std::vector<double> rates;
  size_t num_ids = 0;
  for (int i = 0; i < repetitions; ++i) {
    const double begin = ThreadSeconds();
    const auto ids = (*tokenizer)->Encode(text);
    const double seconds = ThreadSeconds() - begin;
    if (!ids.ok()) {
      std::fprintf(stderr, "%s\n", std::string(ids.status().message()).c_str());
      return EXIT_FAILURE;
    }
    num_ids = ids->size();
    rates.push_back(static_cast<double>(text.size()) / 1e6 / seconds);
  }
  std::sort(rates.begin(), rates.end());
  std::printf("| %s | %.1f MB/s [%.1f, %.1f] | %.2f bytes per token |\n",
              std::filesystem::path(directory).filename().c_str(),
              rates[rates.size() / 2], rates.front(), rates.back(),
              static_cast<double>(text.size()) / static_cast<double>(num_ids));
  return EXIT_SUCCESS;
}

}  // namespace
}  // namespace quire

int main(int argc, char** argv) {
  CLI::App app("Speed of encoding English");
  std::string testdata = "tokenizer/testdata/proof";
  int repetitions = 21;
  app.add_option("--testdata", testdata, "directories of tokenizers");
  app.add_option("--repetitions", repetitions)->check(CLI::Range(1, 1000));
  CLI11_PARSE(app, argc, argv);
  std::vector<std::string> directories;
  std::error_code error;
  for (const auto& entry :
       std::filesystem::directory_iterator(testdata, error)) {
    if (entry.is_directory()) directories.push_back(entry.path().string());
  }
  if (directories.empty()) {
    std::fprintf(stderr, "%s: holds no tokenizers\n", testdata.c_str());
    return EXIT_FAILURE;
  }
  std::sort(directories.begin(), directories.end());
  const std::string text = quire::EnglishText();
  for (const std::string& directory : directories) {
    if (const int rc = quire::Run(directory, text, repetitions); rc != 0) {
      return rc;
    }
  }
  return EXIT_SUCCESS;
}
