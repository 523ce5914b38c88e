#include "benchmarks/serving/dataset.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <istream>
#include <iterator>
#include <streambuf>
#include <string>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "engine/base/status.h"
#include "nlohmann/json.hpp"
#include "server/json_text.h"

namespace quire {
namespace {

using Json = nlohmann::ordered_json;

// Without a tokenizer, prompts of completions are ids of this range, which
// every vocabulary of use has and in which few are special.
constexpr int32_t kFirstId = 300;
constexpr int32_t kNumIds = 1500;

// A prompt that is longer than any model's context.
constexpr size_t kMaxLineBytes = size_t{64} << 20;

// Frequent English words: one token each in most vocabularies.
constexpr const char* kWords[] = {
    "time",      "year",        "people",    "way",    "day",        "man",
    "thing",     "woman",       "life",      "child",  "world",      "school",
    "state",     "family",      "student",   "group",  "country",    "problem",
    "hand",      "part",        "place",     "case",   "week",       "company",
    "system",    "program",     "question",  "work",   "government", "number",
    "night",     "point",       "home",      "water",  "room",       "mother",
    "area",      "money",       "story",     "fact",   "month",      "lot",
    "right",     "study",       "book",      "eye",    "job",        "word",
    "business",  "issue",       "side",      "kind",   "head",       "house",
    "service",   "friend",      "father",    "power",  "hour",       "game",
    "line",      "end",         "member",    "law",    "car",        "city",
    "community", "name",        "president", "team",   "minute",     "idea",
    "body",      "information", "back",      "parent", "face",       "others",
    "level",     "office",      "door",      "health", "person",     "art",
    "war",       "history",     "party",     "result", "change",     "morning",
    "reason",    "research",    "girl",      "guy",    "moment",     "air",
    "teacher",   "force",       "education"};

template <typename T>
void Shuffle(std::vector<T>* values, SimulationRandom* random) {
  for (size_t i = values->size(); i > 1; --i) {
    std::swap((*values)[i - 1], (*values)[random->Below(i)]);
  }
}

// Tells a listener, if there is one.
class Making {
 public:
  Making(const PromptProgress& on_progress, int64_t count)
      : on_progress_(on_progress), count_(count) {}

  // Before each prompt. CANCELLED if that is what the listener wants.
  absl::Status GoOn(int64_t num_made) const {
    num_made = std::min(num_made, count_);
    if (on_progress_ == nullptr || on_progress_(num_made, count_)) {
      return absl::OkStatus();
    }
    return absl::CancelledError(absl::StrCat(
        "cancelled when ", num_made, " of ", count_, " prompts were made"));
  }

 private:
  const PromptProgress& on_progress_;
  const int64_t count_;
};

// Makes text (or ids) of a wanted number of tokens.
class TextMaker {
 public:
  TextMaker(CompletionApi api, PromptCodec* codec, SimulationRandom* random)
      : codec_(codec),
        random_(random),
        uses_ids_(codec == nullptr && api != CompletionApi::kChat) {}

  // Units of prompts: ids where there are any, else indices of words.
  std::vector<int32_t> Draw(int64_t count) {
    std::vector<int32_t> units(std::max<int64_t>(count, 0));
    const absl::Span<const int32_t> plain =
        codec_ != nullptr ? codec_->PlainIds() : absl::Span<const int32_t>();
    for (int32_t& unit : units) {
      if (!plain.empty()) {
        unit = plain[random_->Below(plain.size())];
      } else if (uses_ids_) {
        unit = kFirstId + static_cast<int32_t>(random_->Below(kNumIds));
      } else {
        unit = static_cast<int32_t>(random_->Below(std::size(kWords)));
      }
    }
    return units;
  }

  // A prompt of `num_tokens` tokens that starts with `units` and goes on with
  // drawn ones. Units merge or split when they become text and are encoded
  // again, so their number is corrected until it fits, and what the codec
  // counts in the end is the length.
  absl::StatusOr<LoadPrompt> Make(std::vector<int32_t> units,
                                  int64_t num_tokens) {
    LoadPrompt prompt;
    const auto extend = [&](int64_t count) {
      const std::vector<int32_t> more = Draw(count);
      units.insert(units.end(), more.begin(), more.end());
    };
    extend(num_tokens - static_cast<int64_t>(units.size()));
    if (codec_ == nullptr) {
      prompt.num_tokens = units.size();
      if (uses_ids_) {
        prompt.token_ids = std::move(units);
      } else {
        prompt.text = Text(units);
      }
      return prompt;
    }
    constexpr int kMaxCorrections = 12;
    for (int round = 0;; ++round) {
      prompt.text = Text(units);
      QUIRE_ASSIGN_OR_RETURN(const std::vector<int32_t> ids,
                             codec_->Encode(prompt.text));
      prompt.num_tokens = ids.size();
      const int64_t excess = prompt.num_tokens - num_tokens;
      if (excess == 0 || round == kMaxCorrections) return prompt;
      if (excess < 0) {
        extend(-excess);
      } else {
        // Each unit makes this many tokens.
        const double ratio = std::max(
            1.0, static_cast<double>(prompt.num_tokens) / units.size());
        const int64_t surplus = std::max<int64_t>(1, excess / ratio);
        if (surplus >= static_cast<int64_t>(units.size())) return prompt;
        units.resize(units.size() - surplus);
      }
    }
  }

 private:
  std::string Text(const std::vector<int32_t>& units) {
    if (codec_ != nullptr && !codec_->PlainIds().empty()) {
      return codec_->Decode(units);
    }
    std::string text;
    for (int32_t unit : units) {
      absl::StrAppend(&text, text.empty() ? "" : " ", kWords[unit]);
    }
    return text;
  }

  PromptCodec* const codec_;
  SimulationRandom* const random_;
  const bool uses_ids_;
};

// Requests of `size` inputs each, the last one perhaps of fewer.
std::vector<LoadPrompt> Batched(std::vector<LoadPrompt> inputs, int size) {
  std::vector<LoadPrompt> prompts;
  for (size_t i = 0; i < inputs.size(); ++i) {
    if (i % size == 0) {
      prompts.push_back(std::move(inputs[i]));
      continue;
    }
    prompts.back().num_tokens += inputs[i].num_tokens;
    prompts.back().further_inputs.push_back(std::move(inputs[i]));
  }
  return prompts;
}

absl::StatusOr<std::vector<LoadPrompt>> RandomPrompts(
    const DatasetOptions& options, TextMaker* maker, SimulationRandom* random,
    const Making& making) {
  const auto draw = [&](int64_t len, int64_t least) {
    const double ratio = options.random_range_ratio;
    const auto low = static_cast<int64_t>(std::floor(len * (1 - ratio)));
    const auto high = static_cast<int64_t>(std::ceil(len * (1 + ratio)));
    return std::max(least, random->Between(low, high));
  };
  const std::vector<int32_t> prefix = maker->Draw(options.random_prefix_len);
  std::vector<LoadPrompt> prompts;
  for (int i = 0; i < options.num_prompts; ++i) {
    QUIRE_RETURN_IF_ERROR(making.GoOn(i));
    const int64_t input_len = draw(options.random_input_len, 0);
    const int64_t num_tokens = options.random_prefix_len + input_len;
    if (num_tokens < 1) {
      return absl::InvalidArgumentError(
          "--random-input-len and --random-prefix-len leave no token");
    }
    QUIRE_ASSIGN_OR_RETURN(LoadPrompt prompt, maker->Make(prefix, num_tokens));
    prompt.output_len = draw(options.random_output_len, 1);
    prompts.push_back(std::move(prompt));
  }
  if (options.random_batch_size == 1) return prompts;
  return Batched(std::move(prompts), options.random_batch_size);
}

absl::StatusOr<std::vector<LoadPrompt>> PrefixRepetitionPrompts(
    const DatasetOptions& options, TextMaker* maker, SimulationRandom* random,
    const Making& making) {
  if (options.num_prefixes < 1 || options.num_prefixes > options.num_prompts) {
    return absl::InvalidArgumentError(absl::StrCat(
        "--prefix-repetition-num-prefixes ", options.num_prefixes,
        " must be 1 to --num-prompts (", options.num_prompts, ")"));
  }
  std::vector<LoadPrompt> prompts;
  for (int p = 0; p < options.num_prefixes; ++p) {
    const std::vector<int32_t> prefix = maker->Draw(options.prefix_len);
    // The remainder goes to the first prefixes.
    const int count = options.num_prompts / options.num_prefixes +
                      (p < options.num_prompts % options.num_prefixes ? 1 : 0);
    for (int i = 0; i < count; ++i) {
      QUIRE_RETURN_IF_ERROR(making.GoOn(prompts.size()));
      QUIRE_ASSIGN_OR_RETURN(
          LoadPrompt prompt,
          maker->Make(prefix, options.prefix_len + options.suffix_len));
      prompt.output_len = options.prefix_output_len;
      prompts.push_back(std::move(prompt));
    }
  }
  Shuffle(&prompts, random);
  return prompts;
}

absl::Status CheckGiven(const std::string& path) {
  if (!path.empty()) return absl::OkStatus();
  return absl::InvalidArgumentError("this dataset needs --dataset-path");
}

// A file in pieces, which ends early when the listener wants no more of it:
// some hundred megabytes take seconds, and who parses them asks nobody.
class FilePieces : public std::streambuf {
 public:
  FilePieces(const std::string& path, const Making& making)
      : making_(making), file_(path, std::ios::binary) {}

  // NOT_FOUND: it cannot be read; CANCELLED.
  absl::Status status(const std::string& path) const {
    QUIRE_RETURN_IF_ERROR(was_cancelled_);
    if (file_.is_open() && !file_.bad()) return absl::OkStatus();
    std::error_code ignored;
    const bool is_directory = std::filesystem::is_directory(path, ignored);
    return absl::NotFoundError(absl::StrCat(
        path, is_directory ? ": is a directory" : ": cannot be read"));
  }

 protected:
  int_type underflow() override {
    if (was_cancelled_.ok()) was_cancelled_ = making_.GoOn(0);
    if (!was_cancelled_.ok()) return traits_type::eof();
    file_.read(piece_.data(), piece_.size());
    setg(piece_.data(), piece_.data(), piece_.data() + file_.gcount());
    return file_.gcount() == 0 ? traits_type::eof()
                               : traits_type::to_int_type(piece_.front());
  }

 private:
  const Making& making_;
  std::ifstream file_;
  std::array<char, 1 << 16> piece_;
  absl::Status was_cancelled_;
};

// The next line without its end; false at the end of the file.
// INVALID_ARGUMENT, saying at which line of `path`, for a line that is longer
// than a file of prompts has.
absl::StatusOr<bool> ReadLine(FilePieces* pieces, const std::string& path,
                              int64_t line_number, std::string* line) {
  line->clear();
  constexpr int kEnd = std::char_traits<char>::eof();
  for (int c = pieces->sbumpc(); c != '\n'; c = pieces->sbumpc()) {
    if (c == kEnd) {
      QUIRE_RETURN_IF_ERROR(pieces->status(path));
      return !line->empty();
    }
    if (line->size() == kMaxLineBytes) {
      return absl::InvalidArgumentError(
          absl::StrCat(path, ":", line_number, ": longer than ", kMaxLineBytes,
                       " bytes, the most that a line may have"));
    }
    line->push_back(static_cast<char>(c));
  }
  return true;
}

absl::StatusOr<int64_t> CountTokens(PromptCodec* codec,
                                    const std::string& text) {
  // About four characters of English a token.
  if (codec == nullptr) return static_cast<int64_t>(text.size() + 3) / 4;
  QUIRE_ASSIGN_OR_RETURN(const std::vector<int32_t> ids, codec->Encode(text));
  return static_cast<int64_t>(ids.size());
}

LoadPrompt Malformed(std::string error) {
  LoadPrompt prompt;
  prompt.output_len = 0;
  prompt.error = std::move(error);
  return prompt;
}

bool IsMalformed(const LoadPrompt& prompt) { return !prompt.error.empty(); }

// INVALID_ARGUMENT if all of `prompts` are malformed: the first one's error, or
// `what` if there is none.
absl::Status CheckUsable(const std::vector<LoadPrompt>& prompts,
                         const std::string& path, absl::string_view what) {
  if (prompts.empty()) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": ", what));
  }
  if (!std::all_of(prompts.begin(), prompts.end(), IsMalformed)) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(
      absl::StrCat(prompts.front().error, "; nothing in the file is usable"));
}

// Keeps the first `count` prompts, of which one can be sent if any can.
void Cut(size_t count, std::vector<LoadPrompt>* prompts) {
  if (prompts->size() <= count) return;
  const auto usable =
      std::find_if_not(prompts->begin(), prompts->end(), IsMalformed);
  const auto last = prompts->begin() + (count - 1);
  if (usable != prompts->end() && usable > last) std::iter_swap(usable, last);
  prompts->resize(count);
}

// Repeats in order those that can be sent until there are `count` in all.
// Requires: one can be sent.
void Oversample(size_t count, std::vector<LoadPrompt>* prompts) {
  std::vector<LoadPrompt> usable;
  std::copy_if(prompts->begin(), prompts->end(), std::back_inserter(usable),
               [](const LoadPrompt& prompt) { return !IsMalformed(prompt); });
  for (size_t i = 0; prompts->size() < count; ++i) {
    prompts->push_back(usable[i % usable.size()]);
  }
}

bool IsLength(const Json& value) {
  return value.is_number_unsigned() && value.get<uint64_t>() >= 1 &&
         value.get<uint64_t>() <= 1 << 24;
}

// One line of kCustom, at `place`.
LoadPrompt CustomPrompt(const DatasetOptions& options, const std::string& line,
                        const std::string& place) {
  const auto malformed = [&](absl::string_view what) {
    return Malformed(absl::StrCat(place, ": ", what));
  };
  JsonLimits limits;
  limits.max_nodes = 1 << 20;
  const auto json = ParseJson(line, limits);
  if (!json.ok() || !json->is_object()) return malformed("not a JSON object");
  const auto text = json->find("prompt");
  if (text == json->end() || !text->is_string() ||
      text->get_ref<const std::string&>().empty()) {
    return malformed("\"prompt\" is not a text");
  }
  LoadPrompt prompt;
  prompt.text = text->get<std::string>();
  prompt.output_len = options.custom_output_len;
  const auto output = json->find("output_tokens");
  const bool is_given = output != json->end() && !output->is_null();
  // Wrong is wrong, whether it counts or an option does.
  if (is_given ? !IsLength(*output) : options.custom_output_len < 0) {
    return malformed("\"output_tokens\" is not a number of at least 1");
  }
  if (options.custom_output_len < 0) {
    prompt.output_len = output->get<int64_t>();
  }
  return prompt;
}

absl::StatusOr<std::vector<LoadPrompt>> CustomPrompts(
    const DatasetOptions& options, PromptCodec* codec, SimulationRandom* random,
    const Making& making) {
  QUIRE_RETURN_IF_ERROR(CheckGiven(options.path));
  FilePieces pieces(options.path, making);
  std::vector<LoadPrompt> prompts;
  std::string line;
  for (int64_t line_number = 1;; ++line_number) {
    QUIRE_ASSIGN_OR_RETURN(const bool is_there,
                           ReadLine(&pieces, options.path, line_number, &line));
    if (!is_there) break;
    if (absl::StripAsciiWhitespace(line).empty()) continue;
    prompts.push_back(CustomPrompt(
        options, line, absl::StrCat(options.path, ":", line_number)));
  }
  QUIRE_RETURN_IF_ERROR(CheckUsable(prompts, options.path, "holds no prompt"));
  Shuffle(&prompts, random);
  Cut(options.num_prompts, &prompts);
  int64_t num_counted = 0;
  for (LoadPrompt& prompt : prompts) {
    QUIRE_RETURN_IF_ERROR(making.GoOn(num_counted++));
    if (IsMalformed(prompt)) continue;
    QUIRE_ASSIGN_OR_RETURN(prompt.num_tokens, CountTokens(codec, prompt.text));
  }
  Oversample(options.num_prompts, &prompts);
  return prompts;
}

// Where parsing fails.
class ErrorFinder : public nlohmann::json_sax<Json> {
 public:
  bool null() override { return true; }
  bool boolean(bool) override { return true; }
  bool number_integer(number_integer_t) override { return true; }
  bool number_unsigned(number_unsigned_t) override { return true; }
  bool number_float(number_float_t, const string_t&) override { return true; }
  bool string(string_t&) override { return true; }
  bool binary(binary_t&) override { return true; }
  bool start_object(std::size_t) override { return true; }
  bool key(string_t&) override { return true; }
  bool end_object() override { return true; }
  bool start_array(std::size_t) override { return true; }
  bool end_array() override { return true; }
  bool parse_error(std::size_t position, const std::string&,
                   const nlohmann::detail::exception&) override {
    position_ = position;
    return false;
  }
  size_t position_ = 0;
};

// vLLM's bounds of what a conversation may be (is_valid_sequence).
bool HasUsualLength(int64_t prompt_len, int64_t output_len, bool is_fixed) {
  return prompt_len >= 4 && (is_fixed || output_len >= 4) &&
         prompt_len <= 1024 && prompt_len + output_len <= 2048;
}

// The first two turns of a conversation, or why it has none.
struct Turns {
  const std::string* question = nullptr;
  const std::string* answer = nullptr;
  std::string error;
};

// Those of the file's conversations, in order; shorter ones are left out.
// Errors count conversations from 1, as those of lines do.
std::vector<Turns> ReadTurns(const Json& root, const std::string& path) {
  std::vector<Turns> all;
  for (size_t i = 0; i < root.size(); ++i) {
    const auto malformed = [&](absl::string_view what) {
      all.push_back({nullptr, nullptr,
                     absl::StrCat(path, ": conversation ", i + 1, ": ", what)});
    };
    if (!root[i].is_object()) {
      malformed("not an object");
      continue;
    }
    const auto list = root[i].find("conversations");
    if (list == root[i].end()) continue;
    if (!list->is_array()) {
      malformed("\"conversations\" is not a list");
      continue;
    }
    if (list->size() < 2) continue;
    const auto text_of = [](const Json& turn) -> const std::string* {
      if (!turn.is_object()) return nullptr;
      const auto value = turn.find("value");
      if (value == turn.end() || !value->is_string()) return nullptr;
      return &value->get_ref<const std::string&>();
    };
    const Turns turns = {text_of((*list)[0]), text_of((*list)[1]), ""};
    if (turns.question == nullptr || turns.answer == nullptr) {
      malformed("a turn has no text as its \"value\"");
      continue;
    }
    all.push_back(turns);
  }
  return all;
}

// The number of the line, from 1, in which the file stops being JSON.
absl::StatusOr<int64_t> LineOfError(const std::string& path,
                                    const Making& making) {
  FilePieces pieces(path, making);
  std::istream stream(&pieces);
  ErrorFinder finder;
  Json::sax_parse(stream, &finder);
  QUIRE_RETURN_IF_ERROR(pieces.status(path));
  FilePieces again(path, making);
  std::istreambuf_iterator<char> character(&again);
  int64_t line = 1;
  for (size_t i = 0; i < finder.position_ && character != decltype(character)();
       ++i, ++character) {
    line += *character == '\n';
  }
  QUIRE_RETURN_IF_ERROR(again.status(path));
  return line;
}

absl::StatusOr<Json> ReadShareGpt(const std::string& path,
                                  const Making& making) {
  QUIRE_RETURN_IF_ERROR(CheckGiven(path));
  FilePieces pieces(path, making);
  std::istream stream(&pieces);
  Json root = Json::parse(stream, nullptr, /*allow_exceptions=*/false);
  QUIRE_RETURN_IF_ERROR(pieces.status(path));
  if (root.is_discarded()) {
    QUIRE_ASSIGN_OR_RETURN(const int64_t line, LineOfError(path, making));
    return absl::InvalidArgumentError(
        absl::StrCat(path, ":", line, ": not JSON"));
  }
  if (!root.is_array()) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": not a list of conversations"));
  }
  return root;
}

absl::StatusOr<std::vector<LoadPrompt>> ShareGptPrompts(
    const DatasetOptions& options, PromptCodec* codec, SimulationRandom* random,
    const Making& making) {
  QUIRE_ASSIGN_OR_RETURN(const Json root, ReadShareGpt(options.path, making));
  std::vector<Turns> all = ReadTurns(root, options.path);
  Shuffle(&all, random);
  const size_t count = options.num_prompts;
  std::vector<LoadPrompt> prompts;
  bool has_usable = false;
  for (const Turns& turns : all) {
    if (prompts.size() >= count && has_usable) break;
    QUIRE_RETURN_IF_ERROR(making.GoOn(prompts.size()));
    if (!turns.error.empty()) {
      prompts.push_back(Malformed(turns.error));
      continue;
    }
    LoadPrompt prompt;
    prompt.text = *turns.question;
    QUIRE_ASSIGN_OR_RETURN(prompt.num_tokens, CountTokens(codec, prompt.text));
    prompt.output_len = options.sharegpt_output_len;
    if (options.sharegpt_output_len == 0) {
      QUIRE_ASSIGN_OR_RETURN(prompt.output_len,
                             CountTokens(codec, *turns.answer));
    }
    if (HasUsualLength(prompt.num_tokens, prompt.output_len,
                       options.sharegpt_output_len > 0)) {
      prompts.push_back(std::move(prompt));
      has_usable = true;
    }
  }
  QUIRE_RETURN_IF_ERROR(
      CheckUsable(prompts, options.path,
                  "holds no conversation of two turns with 4 to 1024 prompt "
                  "tokens and 2048 in all"));
  Cut(count, &prompts);
  Oversample(count, &prompts);
  return prompts;
}

}  // namespace

absl::StatusOr<std::vector<LoadPrompt>> MakePrompts(
    const DatasetOptions& options, CompletionApi api, PromptCodec* codec,
    SimulationRandom* random, const PromptProgress& on_progress) {
  TextMaker maker(api, codec, random);
  const Making making(on_progress, options.num_prompts);
  QUIRE_RETURN_IF_ERROR(making.GoOn(0));  // Reading a file takes a while.
  switch (options.kind) {
    case DatasetOptions::Kind::kRandom:
      return RandomPrompts(options, &maker, random, making);
    case DatasetOptions::Kind::kPrefixRepetition:
      return PrefixRepetitionPrompts(options, &maker, random, making);
    case DatasetOptions::Kind::kShareGpt:
      return ShareGptPrompts(options, codec, random, making);
    case DatasetOptions::Kind::kCustom:
      return CustomPrompts(options, codec, random, making);
  }
  return absl::InternalError("unknown dataset");
}

}  // namespace quire
