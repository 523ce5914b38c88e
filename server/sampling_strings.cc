#include "server/sampling_strings.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "engine/base/status.h"
#include "server/api_error.h"

namespace quire {
namespace {

constexpr size_t kMaxTailTokens = 20;    // llama.cpp's limit.
constexpr size_t kMaxKeptBreakers = 32;  // Lists; most clients send none.

// llama.cpp's default.
const std::vector<std::string>& DefaultBreakers() {
  static const auto* breakers =
      new std::vector<std::string>{"\n", ":", "\"", "*"};
  return *breakers;
}

// The caller's own text: special tokens in it count.
absl::StatusOr<std::vector<int32_t>> EncodeAlone(absl::string_view text,
                                                 const Tokenizer& tokenizer) {
  EncodeOptions options;
  options.add_special_tokens = false;
  options.parse_special_tokens = true;
  return tokenizer.Encode(text, options);
}

bool AreInVocabulary(const std::vector<int32_t>& ids, int32_t vocab_size) {
  return std::all_of(ids.begin(), ids.end(), [vocab_size](int32_t id) {
    return id >= 0 && id < vocab_size;
  });
}

// One breaker and the tokens of its tails, encoded when first asked for.
class Breaker {
 public:
  Breaker(absl::string_view text, const Tokenizer& tokenizer)
      : text_(text), tokenizer_(tokenizer), tails_(text.size()) {}

  // Appends the sequences that begin with `id`, whose text is `token`.
  absl::Status AppendSequences(int32_t id, absl::string_view token,
                               std::vector<std::vector<int32_t>>* sequences) {
    if (token.find(text_) != absl::string_view::npos) {
      sequences->push_back({id});
      return absl::OkStatus();
    }
    // Nearer to the end than the breaker is long, or it would be contained.
    const size_t first =
        token.size() - std::min(token.size(), text_.size() - 1);
    for (size_t begin = first; begin < token.size(); ++begin) {
      const absl::string_view end_of_token = token.substr(begin);
      if (text_.substr(0, end_of_token.size()) != end_of_token) continue;
      QUIRE_ASSIGN_OR_RETURN(const std::vector<int32_t>* tail,
                             TailTokens(end_of_token.size()));
      std::vector<int32_t>& sequence = sequences->emplace_back();
      sequence.push_back(id);
      sequence.insert(sequence.end(), tail->begin(), tail->end());
    }
    return absl::OkStatus();
  }

 private:
  absl::StatusOr<const std::vector<int32_t>*> TailTokens(size_t begin) {
    std::optional<std::vector<int32_t>>& tail = tails_[begin];
    if (!tail.has_value()) {
      QUIRE_ASSIGN_OR_RETURN(tail,
                             EncodeAlone(text_.substr(begin), tokenizer_));
      if (tail->size() > kMaxTailTokens) tail->resize(kMaxTailTokens);
    }
    return &*tail;
  }

  const absl::string_view text_;
  const Tokenizer& tokenizer_;
  std::vector<std::optional<std::vector<int32_t>>> tails_;
};

}  // namespace

absl::StatusOr<std::vector<std::vector<int32_t>>> EncodeBadWords(
    const std::vector<std::string>& words, const Tokenizer& tokenizer,
    int32_t vocab_size) {
  std::vector<std::vector<int32_t>> sequences;
  for (const std::string& word : words) {
    const std::string text(absl::StripLeadingAsciiWhitespace(word));
    QUIRE_ASSIGN_OR_RETURN(std::vector<int32_t> plain,
                           EncodeAlone(text, tokenizer));
    QUIRE_ASSIGN_OR_RETURN(std::vector<int32_t> spaced,
                           EncodeAlone(absl::StrCat(" ", text), tokenizer));
    if (text.empty() || plain.empty()) {
      return ParameterError("bad_words",
                            "a bad word must be more than white space");
    }
    if (!AreInVocabulary(plain, vocab_size) ||
        !AreInVocabulary(spaced, vocab_size)) {
      return ParameterError(
          "bad_words", "a bad word has tokens that the model does not have");
    }
    // A token of its own for the space: the first form covers it.
    const bool is_other =
        spaced.size() < plain.size() ||
        !std::equal(plain.begin(), plain.end(), spaced.end() - plain.size());
    sequences.push_back(std::move(plain));
    if (is_other) sequences.push_back(std::move(spaced));
  }
  return sequences;
}

absl::StatusOr<TokenSequenceSet> EncodeDryBreakers(
    const std::vector<std::string>& breakers, const Tokenizer& tokenizer,
    int32_t vocab_size) {
  std::vector<Breaker> states;
  for (const std::string& breaker : breakers) {
    states.emplace_back(breaker, tokenizer);
  }
  std::vector<std::vector<int32_t>> sequences;
  const int32_t num_ids = std::min(vocab_size, tokenizer.vocab_size());
  for (int32_t id = 0; id < num_ids; ++id) {
    const std::string token = tokenizer.TokenBytes(id);
    for (Breaker& state : states) {
      QUIRE_RETURN_IF_ERROR(state.AppendSequences(id, token, &sequences));
    }
  }
  return TokenSequenceSet(std::move(sequences));
}

absl::StatusOr<SamplingStrings::Breakers> SamplingStrings::FindBreakers(
    const std::vector<std::string>& breakers) {
  {
    std::lock_guard<std::mutex> lock(mu_);
    const auto it = breakers_.find(breakers);
    if (it != breakers_.end()) return it->second;
  }
  QUIRE_ASSIGN_OR_RETURN(TokenSequenceSet set,
                         EncodeDryBreakers(breakers, *tokenizer_, vocab_size_));
  Breakers result = std::make_shared<TokenSequenceSet>(std::move(set));
  std::lock_guard<std::mutex> lock(mu_);
  if (breakers_.size() >= kMaxKeptBreakers) breakers_.clear();
  breakers_[breakers] = result;
  return result;
}

absl::Status SamplingStrings::Resolve(ApiRequest* request) {
  SamplingParams& sampling = request->sampling;
  if (!request->bad_words.empty()) {
    QUIRE_ASSIGN_OR_RETURN(
        std::vector<std::vector<int32_t>> words,
        EncodeBadWords(request->bad_words, *tokenizer_, vocab_size_));
    sampling.bad_words =
        std::make_shared<const std::vector<std::vector<int32_t>>>(
            std::move(words));
  }
  if (sampling.dry_multiplier != 0.0f && sampling.dry_penalty_last_n != 0) {
    QUIRE_ASSIGN_OR_RETURN(sampling.dry_breakers,
                           FindBreakers(request->dry_sequence_breakers.value_or(
                               DefaultBreakers())));
  }
  return absl::OkStatus();
}

}  // namespace quire
