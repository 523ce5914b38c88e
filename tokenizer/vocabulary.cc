#include "tokenizer/vocabulary.h"

// The header-only form: a call of a few nanoseconds must not go through a
// shared object.
#define XXH_INLINE_ALL
#include <xxhash.h>

namespace quire {

uint64_t HashBytes(absl::string_view bytes) {
  return XXH3_64bits(bytes.data(), bytes.size());
}

void Vocabulary::Reserve(size_t num_tokens, size_t num_bytes) {
  blob_.reserve(num_bytes);
  spans_.reserve(num_tokens);
  size_t num_slots = 64;
  while (num_slots < 2 * num_tokens) num_slots *= 2;
  if (num_slots > slots_.size()) Grow(num_slots);
}

void Vocabulary::Grow(size_t num_slots) {
  std::vector<Slot> slots(num_slots);
  for (const Slot& slot : slots_) {
    if (slot.id < 0) continue;
    size_t i = slot.hash & (num_slots - 1);
    while (slots[i].id >= 0) i = (i + 1) & (num_slots - 1);
    slots[i] = slot;
  }
  slots_ = std::move(slots);
}

bool Vocabulary::Add(absl::string_view token, int32_t id) {
  if (2 * (num_tokens_ + 1) > slots_.size()) {
    Grow(slots_.empty() ? 64 : 2 * slots_.size());
  }
  if (Contains(id)) return false;
  const uint32_t hash = static_cast<uint32_t>(HashBytes(token));
  size_t i = hash & (slots_.size() - 1);
  for (; slots_[i].id >= 0; i = (i + 1) & (slots_.size() - 1)) {
    if (slots_[i].hash == hash && Text(slots_[i].id) == token) return false;
  }
  slots_[i] = {id, hash};
  if (id >= num_ids()) spans_.resize(id + 1);
  spans_[id] = {static_cast<uint32_t>(blob_.size()),
                static_cast<uint32_t>(token.size())};
  blob_.append(token.data(), token.size());
  ++num_tokens_;
  return true;
}

int32_t Vocabulary::Find(absl::string_view token) const {
  if (slots_.empty()) return -1;
  const uint32_t hash = static_cast<uint32_t>(HashBytes(token));
  for (size_t i = hash & (slots_.size() - 1); slots_[i].id >= 0;
       i = (i + 1) & (slots_.size() - 1)) {
    if (slots_[i].hash == hash && Text(slots_[i].id) == token) {
      return slots_[i].id;
    }
  }
  return -1;
}

}  // namespace quire
