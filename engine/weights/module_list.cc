#define PCRE2_CODE_UNIT_WIDTH 8
#include "engine/weights/module_list.h"

#include <pcre2.h>

#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "engine/base/status.h"
#include "engine/weights/stored_tensor.h"

namespace quire {
namespace {

// Names have some dozens of bytes: expressions that people write need far less.
constexpr uint32_t kMaxMatchSteps = 100000;
constexpr uint32_t kMaxNesting = 64;

bool HasComponents(absl::string_view module, absl::string_view wanted) {
  return !wanted.empty() && absl::StrContains(absl::StrCat(".", module, "."),
                                              absl::StrCat(".", wanted, "."));
}

}  // namespace

struct ModuleList::Entry {
  std::string text;
  std::shared_ptr<pcre2_code> expression;  // Null: a name.
};

absl::StatusOr<ModuleList> ModuleList::Create(
    std::string field, ModuleMatch match, std::vector<std::string> entries) {
  ModuleList list;
  list.field_ = std::move(field);
  list.match_ = match;
  std::vector<Entry> compiled;
  for (std::string& text : entries) {
    Entry entry;
    absl::string_view source = text;
    if (match == ModuleMatch::kExact && absl::ConsumePrefix(&source, "re:")) {
      const std::unique_ptr<pcre2_compile_context,
                            decltype(&pcre2_compile_context_free)>
          context(pcre2_compile_context_create(nullptr),
                  pcre2_compile_context_free);
      pcre2_set_parens_nest_limit(context.get(), kMaxNesting);
      int error = 0;
      size_t offset = 0;
      entry.expression.reset(
          pcre2_compile(reinterpret_cast<PCRE2_SPTR>(source.data()),
                        source.size(), PCRE2_ANCHORED, &error, &offset,
                        context.get()),
          pcre2_code_free);
      if (entry.expression == nullptr) {
        return absl::InvalidArgumentError(absl::StrCat(
            "holds ", Quoted(text), ", which is no regular expression"));
      }
    }
    entry.text = std::move(text);
    compiled.push_back(std::move(entry));
  }
  list.entries_ =
      std::make_shared<const std::vector<Entry>>(std::move(compiled));
  return list;
}

absl::StatusOr<const std::string*> ModuleList::Find(
    absl::string_view module) const {
  const std::string* const none = nullptr;
  if (entries_ == nullptr) return none;
  // As the weight loader finds tensors: a model saved without its head.
  const absl::string_view headless = absl::StripPrefix(module, "model.");
  for (const Entry& entry : *entries_) {
    if (entry.expression == nullptr) {
      if (match_ == ModuleMatch::kExact
              ? entry.text == module || entry.text == headless
              : HasComponents(module, entry.text)) {
        return &entry.text;
      }
      continue;
    }
    const std::unique_ptr<pcre2_match_data, decltype(&pcre2_match_data_free)>
        data(pcre2_match_data_create(1, nullptr), pcre2_match_data_free);
    const std::unique_ptr<pcre2_match_context,
                          decltype(&pcre2_match_context_free)>
        context(pcre2_match_context_create(nullptr), pcre2_match_context_free);
    pcre2_set_match_limit(context.get(), kMaxMatchSteps);
    const int result = pcre2_match(
        entry.expression.get(), reinterpret_cast<PCRE2_SPTR>(module.data()),
        module.size(), 0, 0, data.get(), context.get());
    // 0: it matches, and has groups that `data` has no room for.
    if (result >= 0) return &entry.text;
    if (result != PCRE2_ERROR_NOMATCH) {
      return absl::InvalidArgumentError(
          absl::StrCat(field_, " holds ", Quoted(entry.text),
                       ", which takes too long on ", Quoted(module)));
    }
  }
  return none;
}

}  // namespace quire
