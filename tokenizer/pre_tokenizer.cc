#include "tokenizer/pre_tokenizer.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/base/status.h"
#include "tokenizer/byte_level.h"
#include "tokenizer/json_component.h"
#include "tokenizer/pattern_config.h"
#include "tokenizer/unicode.h"

namespace quire {
namespace {

// Sequences within sequences.
constexpr int kMaxDepth = 16;

bool StartsWith(absl::string_view text, absl::string_view prefix) {
  return text.substr(0, prefix.size()) == prefix;
}

// Merges each match (or what `invert` makes one) with its neighbours; after it
// a span with is_match is to be removed. The folds are those of `tokenizers`,
// whose first span starts a new piece whatever it is.
void MergeWithPrevious(std::vector<MatchSpan>* spans) {
  size_t size = 0;
  bool previous_match = false;
  for (const MatchSpan span : *spans) {
    if (span.is_match && !previous_match && size > 0) {
      (*spans)[size - 1].end = span.end;
    } else {
      (*spans)[size++] = {span.begin, span.end, false};
    }
    previous_match = span.is_match;
  }
  spans->resize(size);
}

void MergeWithNext(std::vector<MatchSpan>* spans) {
  std::vector<MatchSpan> merged;
  bool previous_match = false;
  for (auto it = spans->rbegin(); it != spans->rend(); ++it) {
    if (it->is_match && !previous_match && !merged.empty()) {
      merged.back().begin = it->begin;
    } else {
      merged.push_back({it->begin, it->end, false});
    }
    previous_match = it->is_match;
  }
  std::reverse(merged.begin(), merged.end());
  *spans = std::move(merged);
}

void MergeContiguous(std::vector<MatchSpan>* spans) {
  size_t size = 0;
  bool previous_match = false;
  for (const MatchSpan span : *spans) {
    if (span.is_match == previous_match && size > 0) {
      (*spans)[size - 1].end = span.end;
    } else {
      (*spans)[size++] = {span.begin, span.end, false};
    }
    previous_match = span.is_match;
  }
  spans->resize(size);
}

}  // namespace

absl::StatusOr<PreTokenizer> PreTokenizer::Create(const nlohmann::json& config,
                                                  const std::string& path) {
  PreTokenizer pre_tokenizer;
  QUIRE_RETURN_IF_ERROR(pre_tokenizer.AddStep(config, path, 0));
  return pre_tokenizer;
}

void PreTokenizer::AddSplit(std::unique_ptr<SplitPattern> pattern,
                            Behavior behavior, bool invert) {
  Step step;
  step.kind = Kind::kSplit;
  step.pattern = std::move(pattern);
  step.behavior = behavior;
  step.invert = invert;
  steps_.push_back(std::move(step));
}

absl::StatusOr<PreTokenizer::Behavior> PreTokenizer::ReadBehavior(
    const nlohmann::json& config, const std::string& path) {
  QUIRE_ASSIGN_OR_RETURN(const JsonComponent component,
                         JsonComponent::Create(config, path));
  QUIRE_ASSIGN_OR_RETURN(const std::string name, component.String("behavior"));
  if (name == "Removed") return Behavior::kRemoved;
  if (name == "Isolated") return Behavior::kIsolated;
  if (name == "MergedWithPrevious") return Behavior::kMergedWithPrevious;
  if (name == "MergedWithNext") return Behavior::kMergedWithNext;
  if (name == "Contiguous") return Behavior::kContiguous;
  return component.Error("behavior",
                         absl::StrCat("\"", name, "\" is not known"));
}

absl::Status PreTokenizer::AddMetaspace(const nlohmann::json& config,
                                        const std::string& path) {
  QUIRE_ASSIGN_OR_RETURN(const JsonComponent component,
                         JsonComponent::Create(config, path));
  QUIRE_RETURN_IF_ERROR(
      component.CheckFields({"replacement", "add_prefix_space",
                             "prepend_scheme", "split", "str_rep"}));
  Step step;
  step.kind = Kind::kReplaceSpaces;
  QUIRE_ASSIGN_OR_RETURN(step.prefix, component.String("replacement"));
  if (step.prefix.empty() ||
      DecodeCodePoint(step.prefix, 0).num_bytes != step.prefix.size()) {
    return component.Error("replacement", "must be one character");
  }
  if (component.Find("prepend_scheme") != nullptr) {
    QUIRE_ASSIGN_OR_RETURN(const std::string scheme,
                           component.String("prepend_scheme"));
    if (scheme == "first") {
      step.scheme = PrependScheme::kFirst;
    } else if (scheme == "never") {
      step.scheme = PrependScheme::kNever;
    } else if (scheme != "always") {
      return component.Error("prepend_scheme",
                             absl::StrCat("\"", scheme, "\" is not known"));
    }
  }
  QUIRE_ASSIGN_OR_RETURN(const bool add_prefix_space,
                         component.Bool("add_prefix_space", true));
  if (!add_prefix_space && step.scheme != PrependScheme::kNever) {
    return component.Error("add_prefix_space",
                           "does not agree with prepend_scheme");
  }
  QUIRE_ASSIGN_OR_RETURN(const bool split, component.Bool("split", true));
  std::unique_ptr<SplitPattern> pattern = LiteralPattern(step.prefix);
  steps_.push_back(std::move(step));
  if (split) AddSplit(std::move(pattern), Behavior::kMergedWithNext, false);
  return absl::OkStatus();
}

absl::Status PreTokenizer::AddStep(const nlohmann::json& config,
                                   const std::string& path, int depth) {
  if (config.is_null()) return absl::OkStatus();
  if (depth > kMaxDepth) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": nested deeper than ", kMaxDepth));
  }
  QUIRE_ASSIGN_OR_RETURN(const JsonComponent component,
                         JsonComponent::Create(config, path));
  QUIRE_ASSIGN_OR_RETURN(const std::string type, component.String("type"));
  if (type == "Sequence") {
    QUIRE_RETURN_IF_ERROR(component.CheckFields({"pretokenizers"}));
    QUIRE_ASSIGN_OR_RETURN(const nlohmann::json* list,
                           component.Array("pretokenizers"));
    for (size_t i = 0; i < list->size(); ++i) {
      QUIRE_RETURN_IF_ERROR(
          AddStep((*list)[i], absl::StrCat(path, ".pretokenizers[", i, "]"),
                  depth + 1));
    }
  } else if (type == "ByteLevel") {
    QUIRE_RETURN_IF_ERROR(component.CheckFields(
        {"add_prefix_space", "trim_offsets", "use_regex"}));
    QUIRE_ASSIGN_OR_RETURN(const bool add_prefix_space,
                           component.Bool("add_prefix_space"));
    QUIRE_ASSIGN_OR_RETURN(const bool use_regex,
                           component.Bool("use_regex", true));
    Step step;
    if (add_prefix_space) {
      step.kind = Kind::kAddPrefix;
      step.prefix = " ";
      steps_.push_back(step);
    }
    if (use_regex) AddSplit(Gpt2Pattern(), Behavior::kIsolated, false);
    step.kind = Kind::kSpellBytes;
    steps_.push_back(step);
  } else if (type == "Split") {
    QUIRE_RETURN_IF_ERROR(
        component.CheckFields({"pattern", "behavior", "invert"}));
    QUIRE_ASSIGN_OR_RETURN(std::unique_ptr<SplitPattern> pattern,
                           ReadPattern(component));
    QUIRE_ASSIGN_OR_RETURN(const Behavior behavior, ReadBehavior(config, path));
    QUIRE_ASSIGN_OR_RETURN(const bool invert, component.Bool("invert"));
    AddSplit(std::move(pattern), behavior, invert);
  } else if (type == "Digits") {
    QUIRE_RETURN_IF_ERROR(component.CheckFields({"individual_digits"}));
    QUIRE_ASSIGN_OR_RETURN(const bool individual,
                           component.Bool("individual_digits"));
    AddSplit(ClassPattern(kClassNumeric),
             individual ? Behavior::kIsolated : Behavior::kContiguous, false);
  } else if (type == "Punctuation") {
    QUIRE_RETURN_IF_ERROR(component.CheckFields({"behavior"}));
    Behavior behavior = Behavior::kIsolated;
    if (component.Find("behavior") != nullptr) {
      QUIRE_ASSIGN_OR_RETURN(behavior, ReadBehavior(config, path));
    }
    AddSplit(ClassPattern(kClassSign), behavior, false);
  } else if (type == "Whitespace") {
    QUIRE_RETURN_IF_ERROR(component.CheckFields({}));
    AddSplit(WordPattern(), Behavior::kRemoved, true);
  } else if (type == "WhitespaceSplit") {
    QUIRE_RETURN_IF_ERROR(component.CheckFields({}));
    AddSplit(ClassPattern(kClassSpace), Behavior::kRemoved, false);
  } else if (type == "UnicodeScripts") {
    QUIRE_RETURN_IF_ERROR(component.CheckFields({}));
    AddSplit(ScriptPattern(), Behavior::kRemoved, false);
  } else if (type == "BertPreTokenizer") {
    QUIRE_RETURN_IF_ERROR(component.CheckFields({}));
    AddSplit(ClassPattern(kClassSpace), Behavior::kRemoved, false);
    AddSplit(ClassPattern(kClassSign), Behavior::kIsolated, false);
  } else if (type == "CharDelimiterSplit" || type == "Delimiter") {
    QUIRE_RETURN_IF_ERROR(component.CheckFields({"delimiter"}));
    QUIRE_ASSIGN_OR_RETURN(const std::string delimiter,
                           component.String("delimiter"));
    if (delimiter.empty() ||
        DecodeCodePoint(delimiter, 0).num_bytes != delimiter.size()) {
      return component.Error("delimiter", "must be one character");
    }
    AddSplit(LiteralPattern(delimiter), Behavior::kRemoved, false);
  } else if (type == "FixedLength") {
    QUIRE_RETURN_IF_ERROR(component.CheckFields({"length"}));
    int64_t length = 5;  // The library's, if the file says nothing.
    if (component.Find("length") != nullptr) {
      QUIRE_ASSIGN_OR_RETURN(length, component.Integer("length", 1 << 30));
    }
    if (length == 0) return component.Error("length", "must not be 0");
    AddSplit(FixedLengthPattern(static_cast<int>(length)), Behavior::kIsolated,
             false);
  } else if (type == "Metaspace") {
    return AddMetaspace(config, path);
  } else {
    return component.Error("type",
                           absl::StrCat("\"", type, "\" is not supported"));
  }
  return absl::OkStatus();
}

absl::Status PreTokenizer::Apply(WordList* list) const {
  for (const Step& step : steps_) {
    if (step.kind == Kind::kSplit) {
      QUIRE_RETURN_IF_ERROR(ApplySplit(step, list));
    } else {
      ApplyRewrite(step, list);
    }
  }
  return absl::OkStatus();
}

absl::Status PreTokenizer::ApplySplit(const Step& step, WordList* list) {
  std::vector<Word> words;
  std::vector<MatchSpan> spans;
  for (const Word& word : list->words) {
    spans.clear();
    QUIRE_RETURN_IF_ERROR(step.pattern->Match(word.text, &spans));
    if (step.invert) {
      for (MatchSpan& span : spans) span.is_match = !span.is_match;
    }
    switch (step.behavior) {
      case Behavior::kRemoved:
      case Behavior::kIsolated:
        break;
      case Behavior::kMergedWithPrevious:
        MergeWithPrevious(&spans);
        break;
      case Behavior::kMergedWithNext:
        MergeWithNext(&spans);
        break;
      case Behavior::kContiguous:
        MergeContiguous(&spans);
        break;
    }
    for (const MatchSpan& span : spans) {
      const bool is_removed =
          span.is_match && step.behavior == Behavior::kRemoved;
      if (is_removed || span.begin == span.end) continue;
      words.push_back({word.text.substr(span.begin, span.end - span.begin),
                       word.is_first && span.begin == 0});
    }
  }
  list->words = std::move(words);
  return absl::OkStatus();
}

void PreTokenizer::ApplyRewrite(const Step& step, WordList* list) {
  for (Word& word : list->words) {
    std::string made;
    switch (step.kind) {
      case Kind::kAddPrefix:
        if (StartsWith(word.text, step.prefix)) continue;
        made = absl::StrCat(step.prefix, word.text);
        break;
      case Kind::kReplaceSpaces: {
        const absl::string_view first =
            word.text[0] == ' ' ? absl::string_view(step.prefix) : word.text;
        const bool may_prepend =
            step.scheme == PrependScheme::kAlways ||
            (step.scheme == PrependScheme::kFirst && word.is_first);
        if (may_prepend && !StartsWith(first, step.prefix)) made = step.prefix;
        for (const char c : word.text) {
          if (c == ' ') {
            made += step.prefix;
          } else {
            made.push_back(c);
          }
        }
        break;
      }
      case Kind::kSpellBytes:
        AppendByteLevel(word.text, &made);
        break;
      case Kind::kSplit:
        QUIRE_CHECK(false);
    }
    list->made_texts.push_back(std::move(made));
    word.text = list->made_texts.back();
  }
}

}  // namespace quire
