// What owners (API keys) can see of each other in the prefix cache: nothing;
// and take from each other: what is beyond a share by weight.
#include <cstdint>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/base/random.h"
#include "engine/kv_cache/kv_cache_manager.h"
#include "gtest/gtest.h"

namespace quire {
namespace {

constexpr int kBlockSize = 4;

// Requests one after the other, each computed and given back at once. Who
// computed which block is recorded here, beside the cache.
class Tenants {
 public:
  explicit Tenants(int num_blocks)
      : cache_(num_blocks, kBlockSize, true, 17), writer_of_(num_blocks) {}

  // Tokens that were in the cache.
  int Serve(const std::string& owner, const std::string& cache_namespace,
            absl::Span<const int32_t> prompt, int32_t weight = 1) {
    SequenceBlocks blocks;
    blocks.owner_idx = cache_.OwnerIdx(owner, weight);
    const PrefixHit hit = cache_.Lookup(prompt, cache_namespace, &blocks);
    for (const CacheEntryRef& entry : hit.entries) {
      num_foreign_hits_ += writer_of_[entry.block_id] != cache_namespace;
    }
    EXPECT_TRUE(cache_.Allocate(hit, prompt.size(), 0, &blocks));
    for (size_t i = hit.entries.size(); i < blocks.block_table.size(); ++i) {
      writer_of_[blocks.block_table[i]] = cache_namespace;
    }
    cache_.CacheFull(prompt, cache_namespace, prompt.size(), &blocks);
    cache_.Free(&blocks);
    num_hit_tokens_ += hit.num_tokens;
    return hit.num_tokens;
  }

  KvCacheManager cache_;
  std::vector<std::string> writer_of_;
  int64_t num_foreign_hits_ = 0;
  int64_t num_hit_tokens_ = 0;
};

TEST(CacheShareTest, NoHitAcrossKeysInAMillionRequests) {
  Tenants tenants(96);
  SimulationRandom random(5);
  std::vector<std::vector<int32_t>> documents(4);
  for (auto& document : documents) {
    for (int i = 0; i < 40; ++i) {
      // Few tokens: prompts are equal wherever they can be.
      document.push_back(static_cast<int32_t>(random.Below(2)));
    }
  }
  std::vector<std::string> owners, namespaces;
  for (int i = 0; i < 12; ++i) {
    owners.push_back(absl::StrCat("key-", i % 6));
    namespaces.push_back(
        absl::StrCat(owners.back(), "\n", i < 6 ? "" : "salt"));
  }
  for (int i = 0; i < 1'000'000; ++i) {
    const size_t who = random.Below(namespaces.size());
    const auto& document = documents[random.Below(documents.size())];
    const size_t length = random.Between(1, document.size());
    tenants.Serve(owners[who], namespaces[who],
                  absl::MakeConstSpan(document).first(length));
  }
  EXPECT_EQ(tenants.num_foreign_hits_, 0);
  // The cache was used, or there was nothing to see.
  EXPECT_GT(tenants.num_hit_tokens_, 1'000'000);
  EXPECT_TRUE(tenants.cache_.CheckIntegrity({}).ok());
}

// A conversation whose turns come seldom, while somebody else sends prompts
// that fill the pool again and again. Returns the tokens found by the turns.
int64_t HitsOfConversation(int num_others_between, const std::string& other) {
  Tenants tenants(64);
  std::vector<int32_t> conversation;
  int32_t next = 0;
  int64_t num_found = 0;
  for (int turn = 0; turn < 20; ++turn) {
    for (int i = 0; i < 5; ++i) conversation.push_back(1000 + turn * 5 + i);
    num_found += tenants.Serve("calm", "calm\n", conversation);
    for (int i = 0; i < num_others_between; ++i) {
      std::vector<int32_t> prompt(40);
      for (int32_t& token : prompt) token = 10000 + next++;
      tenants.Serve(other, other + "\n", prompt);
    }
  }
  EXPECT_TRUE(tenants.cache_.CheckIntegrity({}).ok());
  return num_found;
}

TEST(CacheShareTest, AFloodLeavesTheOthersTheirHits) {
  const int64_t undisturbed = HitsOfConversation(0, "flood");
  EXPECT_GT(undisturbed, 20 * 40);
  EXPECT_EQ(HitsOfConversation(50, "flood"), undisturbed);
  // Without shares, what is used least recently goes.
  EXPECT_LT(HitsOfConversation(50, "calm"), undisturbed / 10);
}

TEST(CacheShareTest, WhoUsesLessThanAShareLeavesTheRestToTheOthers) {
  Tenants tenants(64);
  tenants.Serve("small", "small\n", std::vector<int32_t>(9, 3));
  std::vector<int32_t> large(60 * kBlockSize, 4);
  tenants.Serve("large", "large\n", large);
  EXPECT_EQ(tenants.Serve("large", "large\n", large), 59 * kBlockSize);
  EXPECT_EQ(tenants.Serve("small", "small\n", std::vector<int32_t>(9, 3)), 8);
}

// Both ask for twelve documents of eight blocks in turn, 192 blocks in all.
TEST(CacheShareTest, SharesAreByWeight) {
  const auto hit_blocks_of = [](int32_t weight, bool has_changed) {
    Tenants tenants(96);
    const auto ask = [&](const std::string& owner, int document, int32_t w) {
      std::vector<int32_t> prompt(8 * kBlockSize + 1, document);
      return tenants.Serve(owner, owner + "\n", prompt, w) / kBlockSize;
    };
    int num_blocks = 0;
    for (int round = 0; round < 8; ++round) {
      const int32_t now = has_changed && round < 4 ? 1 : weight;
      if (round == 7) num_blocks = 0;
      // Newest first in every other round, so that the newest are found.
      for (int i = 0; i < 12; ++i) {
        const int document = round % 2 == 0 ? i : 11 - i;
        num_blocks += ask("heavy", document, now);
        ask("light", document, 1);
      }
    }
    EXPECT_TRUE(tenants.cache_.CheckIntegrity({}).ok());
    return num_blocks;
  };
  // A pool of 96: an equal share is 48 blocks, three quarters are 72.
  const int equal = hit_blocks_of(1, false);
  const int triple = hit_blocks_of(3, false);
  EXPECT_GE(equal, 40);
  EXPECT_LE(equal, 48);
  EXPECT_GE(triple, 64);
  EXPECT_LE(triple, 72);
  // The file of keys was changed meanwhile.
  EXPECT_EQ(hit_blocks_of(3, true), triple);
}

TEST(CacheShareTest, AShareThatNobodyUsesIsGivenUp) {
  Tenants tenants(64);
  tenants.Serve("gone", "gone\n", std::vector<int32_t>(9, 3));
  int32_t next = 0;
  for (int i = 0; i < 64 * BlockPool::kNumProtectedTurns; ++i) {
    std::vector<int32_t> prompt(40);
    for (int32_t& token : prompt) token = 10000 + next++;
    tenants.Serve("busy", "busy\n", prompt);
  }
  EXPECT_EQ(tenants.Serve("gone", "gone\n", std::vector<int32_t>(9, 3)), 0);
}

}  // namespace
}  // namespace quire
