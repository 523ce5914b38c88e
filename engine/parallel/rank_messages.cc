#include "engine/parallel/rank_messages.h"

#include <algorithm>

#include "absl/strings/match.h"
#include "engine/base/status.h"

namespace quire {
namespace {

absl::Status Differ(absl::string_view what, absl::string_view ours,
                    absl::string_view our_name, absl::string_view theirs,
                    absl::string_view their_name) {
  const absl::string_view nothing =
      absl::StartsWith(what, "--") ? "not given" : "missing";
  return absl::InvalidArgumentError(absl::StrCat(
      what, " is ", ours.empty() ? nothing : ours, " on ", our_name, " and ",
      theirs.empty() ? nothing : theirs, " on ", their_name));
}

}  // namespace

absl::Status CompareFacts(const RankFacts& ours, absl::string_view our_name,
                          const RankFacts& theirs,
                          absl::string_view their_name) {
  const auto find = [](const RankFacts& facts, const std::string& name) {
    const auto found =
        std::find_if(facts.begin(), facts.end(),
                     [&](const auto& fact) { return fact.first == name; });
    return found == facts.end() ? std::string() : found->second;
  };
  for (const auto& [name, value] : ours) {
    const std::string other = find(theirs, name);
    if (other != value) {
      return Differ(name, value, our_name, other, their_name);
    }
  }
  for (const auto& [name, value] : theirs) {
    const std::string own = find(ours, name);
    if (own != value) return Differ(name, own, our_name, value, their_name);
  }
  return absl::OkStatus();
}

absl::Status CompareLoaded(const LoadedFacts& ours, absl::string_view our_name,
                           const LoadedFacts& theirs,
                           absl::string_view their_name) {
  const auto facts = [](const LoadedFacts& loaded) {
    const StepPlanLimits& limits = loaded.limits;
    return RankFacts{
        {"the number of sequences", absl::StrCat(limits.max_num_seqs)},
        {"the number of tokens in a step",
         absl::StrCat(limits.max_num_batched_tokens)},
        {"the vocabulary", absl::StrCat(limits.vocab_size)},
        {"the number of steps in flight",
         absl::StrCat(loaded.steps_in_flight)}};
  };
  return CompareFacts(facts(ours), our_name, facts(theirs), their_name);
}

LoadedFacts LeastOf(const LoadedFacts& a, const LoadedFacts& b) {
  LoadedFacts least = a;
  least.limits.max_model_len =
      std::min(a.limits.max_model_len, b.limits.max_model_len);
  least.limits.num_blocks = std::min(a.limits.num_blocks, b.limits.num_blocks);
  return least;
}

}  // namespace quire
