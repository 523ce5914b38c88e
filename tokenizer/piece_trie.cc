#include "tokenizer/piece_trie.h"

#include <algorithm>

#include "absl/strings/str_cat.h"

namespace quire {
namespace {

// Places looked at before the array grows instead, so that building takes time
// in proportion to the nodes however full the array is.
constexpr int kMaxPlaces = 256;

}  // namespace

int32_t PieceTrie::FindBase(const std::vector<uint8_t>& bytes,
                            size_t* first_free) const {
  while (*first_free < units_.size() && units_[*first_free].check != kNone) {
    ++*first_free;
  }
  size_t place = std::max<size_t>(*first_free, bytes[0] + 1);
  for (int i = 0; i < kMaxPlaces; ++i, ++place) {
    if (place >= units_.size()) return static_cast<int32_t>(place - bytes[0]);
    if (units_[place].check != kNone) continue;
    const size_t base = place - bytes[0];
    const bool fits =
        std::all_of(bytes.begin(), bytes.end(), [&](uint8_t byte) {
          return base + byte >= units_.size() ||
                 units_[base + byte].check == kNone;
        });
    if (fits) return static_cast<int32_t>(base);
  }
  // What lies before is too full, and is not looked at again.
  *first_free = place;
  return static_cast<int32_t>(units_.size());
}

absl::Status PieceTrie::Build(
    std::vector<std::pair<absl::string_view, int32_t>> pieces) {
  std::stable_sort(
      pieces.begin(), pieces.end(),
      [](const auto& a, const auto& b) { return a.first < b.first; });
  units_.assign(257, Unit());
  // No node's child: nothing has kRoot's place as its own.
  units_[kRoot].check = -2;
  size_t first_free = 1;
  size_t num_nodes = 1;
  std::vector<Pending> pending = {{0, pieces.size(), 0, kRoot}};
  std::vector<uint8_t> bytes;
  std::vector<size_t> begins;
  while (!pending.empty()) {
    const Pending at = pending.back();
    pending.pop_back();
    size_t i = at.begin;
    for (; i < at.end && pieces[i].first.size() == at.depth; ++i) {
      if (at.depth > 0) units_[at.node].value = pieces[i].second;
    }
    bytes.clear();
    begins.clear();
    for (; i < at.end; ++i) {
      if (pieces[i].first.size() > kMaxPieceBytes) {
        return absl::InvalidArgumentError(
            absl::StrCat("a token has ", pieces[i].first.size(),
                         " bytes, at most ", kMaxPieceBytes));
      }
      const uint8_t byte = static_cast<uint8_t>(pieces[i].first[at.depth]);
      if (bytes.empty() || bytes.back() != byte) {
        bytes.push_back(byte);
        begins.push_back(i);
      }
    }
    if (bytes.empty()) continue;
    num_nodes += bytes.size();
    if (num_nodes > kMaxNodes) {
      return absl::InvalidArgumentError(absl::StrCat(
          "the tokens make a trie of more than ", kMaxNodes, " nodes"));
    }
    const int32_t base = FindBase(bytes, &first_free);
    if (units_.size() < static_cast<size_t>(base) + 257) {
      units_.resize(static_cast<size_t>(base) + 257);
    }
    units_[at.node].base = base;
    begins.push_back(at.end);
    for (size_t k = bytes.size(); k-- > 0;) {
      units_[base + bytes[k]].check = at.node;
      pending.push_back({begins[k], begins[k + 1], at.depth + 1,
                         static_cast<int32_t>(base + bytes[k])});
    }
  }
  return absl::OkStatus();
}

}  // namespace quire
