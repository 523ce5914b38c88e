#include "tokenizer/word_cache.h"

#include <atomic>

namespace quire {
namespace {

// 8192 entries of 64 bytes: 512 KiB for each thread that encodes.
constexpr size_t kCacheEntries = 8192;

}  // namespace

WordCache::WordCache() {
  static std::atomic<uint64_t> next_instance{1};
  instance_ = next_instance.fetch_add(1);
}

WordCache::Entry& WordCache::Slot(uint64_t hash) {
  thread_local std::vector<Entry> cache(kCacheEntries);
  return cache[hash % kCacheEntries];
}

}  // namespace quire
