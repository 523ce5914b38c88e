#include "tokenizer/bpe_model.h"

#include <algorithm>
#include <queue>

#include "absl/strings/str_cat.h"
#include "engine/base/status.h"
#include "tokenizer/byte_level.h"
#include "tokenizer/unicode.h"

namespace quire {
namespace {

constexpr absl::string_view kWordMark = "\xE2\x96\x81";  // U+2581

// Up to here a scan for the best pair is cheaper than a heap (measured between
// 16 and 64 on English and Chinese words: within 3 % of each other).
constexpr int kShortWord = 32;

uint64_t PairKey(int32_t left, int32_t right) {
  return uint64_t{static_cast<uint32_t>(left)} << 32 |
         static_cast<uint32_t>(right);
}

size_t HashPair(uint64_t pair) {
  pair *= 0x9E3779B97F4A7C15;
  return pair ^ pair >> 32;
}

bool IsAllWordMarks(absl::string_view text) {
  for (size_t i = 0; i < text.size(); i += kWordMark.size()) {
    if (text.substr(i, kWordMark.size()) != kWordMark) return false;
  }
  return true;
}

bool StartsWith(absl::string_view text, absl::string_view prefix) {
  return text.substr(0, prefix.size()) == prefix;
}

}  // namespace

BpeModel::BpeModel(Vocabulary vocabulary, BpeOptions options)
    : vocabulary_(std::move(vocabulary)), options_(std::move(options)) {}

absl::StatusOr<std::unique_ptr<BpeModel>> BpeModel::Create(
    Vocabulary vocabulary, const std::vector<BpeMerge>& merges,
    BpeOptions options) {
  QUIRE_CHECK(!options.is_byte_level ||
              (options.continuing_subword_prefix.empty() &&
               options.end_of_word_suffix.empty()));
  std::unique_ptr<BpeModel> model(
      new BpeModel(std::move(vocabulary), std::move(options)));
  if (model->options_.unk_token.has_value()) {
    model->unk_id_ = model->vocabulary_.Find(*model->options_.unk_token);
  }
  QUIRE_RETURN_IF_ERROR(model->AddMerges(merges));
  if (model->options_.is_byte_level) {
    model->FillByteSymbols();
  } else {
    model->FindWordBoundary(merges);
  }
  return model;
}

absl::Status BpeModel::AddMerges(const std::vector<BpeMerge>& merges) {
  size_t num_slots = 64;
  while (num_slots < 2 * merges.size()) num_slots *= 2;
  merges_.resize(num_slots);
  const size_t prefix_size = options_.continuing_subword_prefix.size();
  std::string joined;
  for (size_t rank = 0; rank < merges.size(); ++rank) {
    const BpeMerge& merge = merges[rank];
    const auto missing = [&](absl::string_view token) {
      return absl::InvalidArgumentError(
          absl::StrCat("model.merges[", rank, "]: token \"", token,
                       "\" is not in model.vocab"));
    };
    const int32_t left = vocabulary_.Find(merge.left);
    if (left < 0) return missing(merge.left);
    const int32_t right = vocabulary_.Find(merge.right);
    if (right < 0) return missing(merge.right);
    if (merge.right.size() < prefix_size) {
      return absl::InvalidArgumentError(
          absl::StrCat("model.merges[", rank, "]: token \"", merge.right,
                       "\" is shorter than model.continuing_subword_prefix"));
    }
    joined.assign(merge.left.data(), merge.left.size());
    joined.append(merge.right.data() + prefix_size,
                  merge.right.size() - prefix_size);
    const int32_t id = vocabulary_.Find(joined);
    if (id < 0) return missing(joined);
    InsertMerge(PairKey(left, right),
                merge.rank == BpeMerge::kByPosition
                    ? static_cast<uint32_t>(rank)
                    : merge.rank,
                id);
  }
  return absl::OkStatus();
}

// A pair that is listed twice has the later rank, as in `tokenizers`.
void BpeModel::InsertMerge(uint64_t pair, uint32_t rank, int32_t id) {
  size_t i = HashPair(pair) & (merges_.size() - 1);
  while (merges_[i].pair != kNoPair && merges_[i].pair != pair) {
    i = (i + 1) & (merges_.size() - 1);
  }
  merges_[i] = {pair, rank, id};
}

const BpeModel::MergeSlot* BpeModel::FindMerge(int32_t left,
                                               int32_t right) const {
  const uint64_t pair = PairKey(left, right);
  size_t i = HashPair(pair) & (merges_.size() - 1);
  while (merges_[i].pair != kNoPair) {
    if (merges_[i].pair == pair) return &merges_[i];
    i = (i + 1) & (merges_.size() - 1);
  }
  return nullptr;
}

void BpeModel::FindWordBoundary(const std::vector<BpeMerge>& merges) {
  can_cut_at_word_marks_ = false;
  if (options_.ignore_merges || !options_.continuing_subword_prefix.empty() ||
      !options_.end_of_word_suffix.empty() || vocabulary_.Find(kWordMark) < 0) {
    return;
  }
  for (const BpeMerge& merge : merges) {
    if (StartsWith(merge.right, kWordMark) && !IsAllWordMarks(merge.left)) {
      return;
    }
    // An unknown token as part of a merge could stand for anything.
    if (options_.unk_token.has_value() &&
        (merge.left == *options_.unk_token ||
         merge.right == *options_.unk_token)) {
      return;
    }
  }
  can_cut_at_word_marks_ = true;
}

void BpeModel::FillByteSymbols() {
  has_all_bytes_ = true;
  for (int byte = 0; byte < 256; ++byte) {
    std::vector<int32_t>& symbols = byte_symbols_[byte];
    SymbolsOf(ByteLevelCharacter(static_cast<uint8_t>(byte)), &symbols);
    if (symbols.size() == 1) {
      byte_symbol_[byte] = symbols[0];
    } else {
      has_all_bytes_ = false;
    }
  }
}

bool BpeModel::SymbolsOf(absl::string_view character,
                         std::vector<int32_t>* symbols) const {
  const int32_t id = vocabulary_.Find(character);
  if (id >= 0) {
    symbols->push_back(id);
    return true;
  }
  if (!options_.byte_fallback) return false;
  const size_t size_before = symbols->size();
  for (const char c : character) {
    const int32_t byte_id =
        vocabulary_.Find(ByteFallbackToken(static_cast<uint8_t>(c)));
    if (byte_id < 0) {
      symbols->resize(size_before);
      return false;
    }
    symbols->push_back(byte_id);
  }
  return true;
}

absl::Status BpeModel::Symbols(absl::string_view word,
                               std::vector<int32_t>* symbols) const {
  bool has_pending_unk = false;
  // One unknown character. `tokenizers` holds the unknown token back until a
  // character of the vocabulary follows, also past byte fallback.
  const auto add_unknown = [&]() -> absl::Status {
    if (!options_.unk_token.has_value()) return absl::OkStatus();
    if (unk_id_ < 0) {
      return absl::InvalidArgumentError(
          absl::StrCat("model.unk_token: \"", *options_.unk_token,
                       "\" is not in model.vocab"));
    }
    if (has_pending_unk && !options_.fuse_unk) symbols->push_back(unk_id_);
    has_pending_unk = true;
    return absl::OkStatus();
  };
  const auto flush = [&] {
    if (has_pending_unk) symbols->push_back(unk_id_);
    has_pending_unk = false;
  };
  if (options_.is_byte_level) {
    for (const char c : word) {
      const uint8_t byte = static_cast<uint8_t>(c);
      const std::vector<int32_t>& known = byte_symbols_[byte];
      if (known.empty()) {
        QUIRE_RETURN_IF_ERROR(add_unknown());
        continue;
      }
      if (vocabulary_.Find(ByteLevelCharacter(byte)) >= 0) flush();
      symbols->insert(symbols->end(), known.begin(), known.end());
    }
    flush();
    return absl::OkStatus();
  }
  std::string affixed;
  for (size_t pos = 0; pos < word.size();) {
    const size_t size = DecodeCodePoint(word, pos).num_bytes;
    absl::string_view character = word.substr(pos, size);
    const bool has_prefix =
        pos > 0 && !options_.continuing_subword_prefix.empty();
    const bool has_suffix =
        pos + size == word.size() && !options_.end_of_word_suffix.empty();
    if (has_prefix || has_suffix) {
      affixed = absl::StrCat(
          has_prefix ? options_.continuing_subword_prefix : "", character,
          has_suffix ? options_.end_of_word_suffix : "");
      character = affixed;
    }
    pos += size;
    const int32_t id = vocabulary_.Find(character);
    if (id >= 0) {
      flush();
      symbols->push_back(id);
    } else if (!SymbolsOf(character, symbols)) {
      QUIRE_RETURN_IF_ERROR(add_unknown());
    }
  }
  flush();
  return absl::OkStatus();
}

void BpeModel::MergeShort(int32_t* symbols, int* num_symbols) const {
  constexpr uint32_t kNoRank = 0xFFFFFFFF;
  int n = *num_symbols;
  uint32_t ranks[kShortWord];
  int32_t merged[kShortWord];
  const auto look_up = [&](int i) {
    const MergeSlot* merge = FindMerge(symbols[i], symbols[i + 1]);
    ranks[i] = merge == nullptr ? kNoRank : merge->rank;
    merged[i] = merge == nullptr ? 0 : merge->id;
  };
  for (int i = 0; i + 1 < n; ++i) look_up(i);
  while (n > 1) {
    int best = 0;
    for (int i = 1; i + 1 < n; ++i) {
      if (ranks[i] < ranks[best]) best = i;
    }
    if (ranks[best] == kNoRank) break;
    symbols[best] = merged[best];
    for (int i = best + 1; i + 1 < n; ++i) symbols[i] = symbols[i + 1];
    for (int i = best + 1; i + 2 < n; ++i) {
      ranks[i] = ranks[i + 1];
      merged[i] = merged[i + 1];
    }
    --n;
    if (best > 0) look_up(best - 1);
    if (best + 1 < n) look_up(best);
  }
  *num_symbols = n;
}

// The same with a heap of candidate pairs over a linked list; a candidate whose
// pair has changed meanwhile is dropped when it comes up.
void BpeModel::MergeLong(std::vector<int32_t>* symbols) const {
  struct Node {
    int32_t id;  // -1: merged into the one before.
    int32_t previous;
    int32_t next;
  };
  struct Candidate {
    uint32_t rank;
    int32_t position;
    uint64_t pair;
    int32_t id;
    bool operator<(const Candidate& other) const {
      return rank != other.rank ? rank > other.rank : position > other.position;
    }
  };
  const int32_t n = static_cast<int32_t>(symbols->size());
  std::vector<Node> nodes(n);
  std::vector<Candidate> initial;
  for (int32_t i = 0; i < n; ++i) {
    nodes[i] = {(*symbols)[i], i - 1, i + 1 < n ? i + 1 : -1};
    if (i + 1 == n) break;
    const MergeSlot* merge = FindMerge((*symbols)[i], (*symbols)[i + 1]);
    if (merge != nullptr) {
      initial.push_back({merge->rank, i, merge->pair, merge->id});
    }
  }
  std::priority_queue<Candidate> queue(std::less<Candidate>(),
                                       std::move(initial));
  const auto push = [&](int32_t left) {
    const int32_t right = nodes[left].next;
    const MergeSlot* merge = FindMerge(nodes[left].id, nodes[right].id);
    if (merge != nullptr) {
      queue.push({merge->rank, left, merge->pair, merge->id});
    }
  };
  while (!queue.empty()) {
    const Candidate top = queue.top();
    queue.pop();
    Node& left = nodes[top.position];
    if (left.id < 0 || left.next < 0) continue;
    Node& right = nodes[left.next];
    if (PairKey(left.id, right.id) != top.pair) continue;
    left.id = top.id;
    left.next = right.next;
    right.id = -1;
    if (left.next >= 0) nodes[left.next].previous = top.position;
    if (left.previous >= 0) push(left.previous);
    if (left.next >= 0) push(top.position);
  }
  symbols->clear();
  for (int32_t i = n == 0 ? -1 : 0; i >= 0; i = nodes[i].next) {
    symbols->push_back(nodes[i].id);
  }
}

absl::Status BpeModel::EncodeUncached(absl::string_view word,
                                      std::vector<int32_t>* ids) const {
  if (options_.ignore_merges) {
    int32_t id;
    if (options_.is_byte_level) {
      std::string spelled;
      AppendByteLevel(word, &spelled);
      id = vocabulary_.Find(spelled);
    } else {
      id = vocabulary_.Find(word);
    }
    if (id >= 0) {
      ids->push_back(id);
      return absl::OkStatus();
    }
  }
  if (has_all_bytes_ && word.size() <= kShortWord) {
    int32_t symbols[kShortWord];
    int n = static_cast<int>(word.size());
    for (int i = 0; i < n; ++i) {
      symbols[i] = byte_symbol_[static_cast<unsigned char>(word[i])];
    }
    MergeShort(symbols, &n);
    ids->insert(ids->end(), symbols, symbols + n);
    return absl::OkStatus();
  }
  std::vector<int32_t> symbols;
  symbols.reserve(word.size());
  QUIRE_RETURN_IF_ERROR(Symbols(word, &symbols));
  if (symbols.size() <= kShortWord) {
    int n = static_cast<int>(symbols.size());
    MergeShort(symbols.data(), &n);
    symbols.resize(n);
  } else {
    MergeLong(&symbols);
  }
  ids->insert(ids->end(), symbols.begin(), symbols.end());
  return absl::OkStatus();
}

absl::Status BpeModel::EncodeCached(absl::string_view word,
                                    std::vector<int32_t>* ids) const {
  return cache_.Encode(
      word, ids, [this](absl::string_view text, std::vector<int32_t>* out) {
        return EncodeUncached(text, out);
      });
}

absl::Status BpeModel::EncodeWord(absl::string_view word,
                                  std::vector<int32_t>* ids) const {
  if (word.empty()) return absl::OkStatus();
  if (!can_cut_at_word_marks_) return EncodeCached(word, ids);
  size_t begin = 0;
  for (;;) {
    // The next mark that follows another character.
    size_t cut = begin;
    while (StartsWith(word.substr(cut), kWordMark)) cut += kWordMark.size();
    cut = word.find(kWordMark, cut);
    QUIRE_RETURN_IF_ERROR(EncodeCached(
        word.substr(begin, cut == absl::string_view::npos ? cut : cut - begin),
        ids));
    if (cut == absl::string_view::npos) return absl::OkStatus();
    begin = cut;
  }
}

}  // namespace quire
