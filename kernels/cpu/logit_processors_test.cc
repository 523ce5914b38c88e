// Bad words and DRY against their definitions, tried out by brute force on
// random histories.
#include "kernels/cpu/logit_processors.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <memory>
#include <vector>

#include "engine/base/random.h"
#include "gtest/gtest.h"

namespace quire {
namespace {

using Tokens = std::vector<int32_t>;

constexpr int kVocabSize = 12;
constexpr int kMaxHistory = 40'000;

// What ProcessLogits adds to logits of 0.
std::vector<float> Process(const SlotParams& params, const Tokens& history,
                           int num_prompt_tokens) {
  static auto* scratch = new SamplingScratch(kVocabSize, kMaxHistory);
  std::vector<float> logits(kVocabSize, 0.0f);
  SampleInput input;
  input.logits = logits.data();
  input.vocab_size = kVocabSize;
  input.params = &params;
  input.history = history;
  input.num_prompt_tokens = num_prompt_tokens;
  input.num_generated = static_cast<int>(history.size()) - num_prompt_tokens;
  EXPECT_EQ(NeedsProcessors(input),
            params.has_dry() || !params.bad_word_ids.empty());
  ProcessLogits(input, *scratch, logits.data());
  return logits;
}

// Few different tokens, so that sequences repeat.
Tokens RandomTokens(SimulationRandom& random, int64_t size, int num_ids) {
  Tokens tokens(size);
  for (int32_t& id : tokens) id = static_cast<int32_t>(random.Below(num_ids));
  return tokens;
}

bool EndsWith(const Tokens& tokens, const Tokens& end) {
  return tokens.size() >= end.size() &&
         std::equal(end.begin(), end.end(), tokens.end() - end.size());
}

TEST(BadWordsTest, EqualTheDefinition) {
  SimulationRandom random(1);
  int num_long_matches = 0;
  int num_in_prompt_only = 0;
  for (int trial = 0; trial < 20'000; ++trial) {
    const int num_ids = random.Between(2, 5);
    const Tokens history = RandomTokens(random, random.Below(12), num_ids);
    const int num_prompt_tokens = random.Below(history.size() + 1);
    const Tokens output(history.begin() + num_prompt_tokens, history.end());
    SlotParams params;
    std::vector<bool> is_banned(kVocabSize);
    for (int64_t i = random.Between(1, 5); i > 0; --i) {
      const Tokens word = RandomTokens(random, random.Between(1, 4), num_ids);
      params.bad_word_ids.insert(params.bad_word_ids.end(), word.begin(),
                                 word.end());
      params.bad_word_lengths.push_back(word.size());
      const Tokens before(word.begin(), word.end() - 1);
      if (EndsWith(output, before)) {
        is_banned[word.back()] = true;
        num_long_matches += before.size() >= 2 ? 1 : 0;
      } else if (EndsWith(history, before)) {
        ++num_in_prompt_only;  // Tokens of the prompt do not count.
      }
    }
    const std::vector<float> got = Process(params, history, num_prompt_tokens);
    for (int id = 0; id < kVocabSize; ++id) {
      ASSERT_EQ(got[id], is_banned[id] ? -INFINITY : 0.0f)
          << "trial " << trial << ", id " << id;
    }
  }
  EXPECT_GT(num_long_matches, 1000);
  EXPECT_GT(num_in_prompt_only, 1000);
}

// Tokens after the breaker that begins last (of those, the longest).
int TokensSinceBreaker(const Tokens& window,
                       const std::vector<Tokens>& breakers) {
  const int size = static_cast<int>(window.size());
  int begin_of_last = -1;
  int end_of_last = 0;
  for (const Tokens& breaker : breakers) {
    const int length = static_cast<int>(breaker.size());
    for (int begin = 0; begin + length <= size; ++begin) {
      const Tokens part(window.begin() + begin,
                        window.begin() + begin + length);
      if (part == breaker && std::pair(begin, begin + length) >
                                 std::pair(begin_of_last, end_of_last)) {
        begin_of_last = begin;
        end_of_last = begin + length;
      }
    }
  }
  return size - end_of_last;
}

// The length of the repeat that `next` would continue, or -1: the most tokens
// at the end of the window, none of them before a breaker, that stand before
// another `next` in it.
int RepeatLength(const Tokens& window, int32_t next, int limit) {
  const int size = static_cast<int>(window.size());
  for (int length = std::min(limit, size - 1); length >= 0; --length) {
    const Tokens end(window.end() - length, window.end());
    for (int at = std::max(length, 1); at < size; ++at) {
      const Tokens before(window.begin() + at - length, window.begin() + at);
      if (window[at] == next && before == end) return length;
    }
  }
  return -1;
}

struct DryCase {
  SlotParams params;
  Tokens history;
  std::vector<Tokens> breakers;
};

DryCase RandomDryCase(SimulationRandom& random) {
  DryCase result;
  const int num_ids = random.Between(1, 4);
  result.history = RandomTokens(random, random.Below(40), num_ids);
  SlotParams& params = result.params;
  params.dry_multiplier = 0.8f;
  params.dry_base = random.Below(8) == 0 ? 1.0f : 1.75f;
  params.dry_allowed_length = random.Below(5);
  params.dry_penalty_last_n = random.Below(2) == 0 ? -1 : random.Between(1, 30);
  for (int64_t i = random.Below(4); i > 0; --i) {
    result.breakers.push_back(
        RandomTokens(random, random.Between(1, 4), num_ids + 1));
  }
  if (!result.breakers.empty() || random.Below(2) == 0) {
    params.dry_breakers = std::make_shared<TokenSequenceSet>(result.breakers);
  }
  return result;
}

TEST(DryTest, EqualsTheDefinition) {
  SimulationRandom random(2);
  int num_penalties = 0;
  int num_limited = 0;
  for (int trial = 0; trial < 20'000; ++trial) {
    const DryCase c = RandomDryCase(random);
    const SlotParams& params = c.params;
    Tokens window = c.history;
    if (params.dry_penalty_last_n >= 0 &&
        static_cast<int>(window.size()) > params.dry_penalty_last_n) {
      window.erase(window.begin(), window.end() - params.dry_penalty_last_n);
    }
    const int limit = TokensSinceBreaker(window, c.breakers);
    // Prompt and output count alike.
    const std::vector<float> got =
        Process(params, c.history, random.Below(c.history.size() + 1));
    for (int id = 0; id < kVocabSize; ++id) {
      const bool is_breaker =
          std::count(c.breakers.begin(), c.breakers.end(), Tokens{id}) > 0;
      const int length = RepeatLength(window, id, limit);
      double expected = 0.0;
      if (!is_breaker && length >= params.dry_allowed_length &&
          static_cast<int>(window.size()) > params.dry_allowed_length) {
        expected = -0.8f * std::pow(static_cast<double>(params.dry_base),
                                    length - params.dry_allowed_length);
        ++num_penalties;
        num_limited += length < RepeatLength(window, id, window.size()) ? 1 : 0;
      }
      // One rounding to f32.
      ASSERT_TRUE(std::abs(got[id] - expected) <= 0x1p-24 * -expected)
          << "trial " << trial << ", id " << id << ": " << got[id] << " vs "
          << expected;
    }
  }
  EXPECT_GT(num_penalties, 10'000);
  EXPECT_GT(num_limited, 1000);
}

// The example by which DRY is explained: "A B C ... A B" makes C less likely
// as soon as "A B" has the allowed length.
TEST(DryTest, KnownPenalties) {
  SlotParams params;
  params.dry_multiplier = 0.5f;
  params.dry_base = 2.0f;
  params.dry_allowed_length = 2;
  EXPECT_EQ(Process(params, {1, 2, 3, 4, 1, 2}, 0)[3], -0.5f);
  EXPECT_EQ(Process(params, {9, 1, 2, 3, 4, 9, 1, 2}, 0)[3], -1.0f);
  EXPECT_EQ(Process(params, {1, 2, 3, 4, 2}, 0)[3], 0.0f);
  // The longest of several repeats counts, once.
  EXPECT_EQ(Process(params, {1, 2, 3, 9, 1, 2, 3, 5, 9, 1, 2}, 0)[3], -1.0f);
  params.dry_penalty_last_n = 5;
  EXPECT_EQ(Process(params, {1, 2, 3, 4, 1, 2}, 0)[3], 0.0f);
  params.dry_penalty_last_n = 6;
  EXPECT_EQ(Process(params, {1, 2, 3, 4, 1, 2}, 0)[3], -0.5f);
  params.dry_breakers =
      std::make_shared<TokenSequenceSet>(std::vector<Tokens>{{2}});
  EXPECT_EQ(Process(params, {1, 2, 3, 4, 1, 2}, 0)[3], 0.0f);
}

// Linear time in what DRY is for, and no overflow into the other tokens.
TEST(DryTest, LongLoops) {
  SlotParams params;
  params.dry_multiplier = 0.8f;
  const Tokens history(kMaxHistory, 7);
  for (int i = 0; i < 100; ++i) {
    const std::vector<float> got = Process(params, history, 5);
    // 1.75^158 is the last power within f32.
    ASSERT_TRUE(std::abs(got[7] / (-0.8 * std::pow(1.75, 158)) - 1) < 1e-6)
        << got[7];
    ASSERT_EQ(got[6], 0.0f);
  }
  params.dry_base = 1.0f;  // No limit on the exponent.
  EXPECT_EQ(Process(params, history, 5)[7], -0.8f);
  params.dry_base = 1e6f;
  params.dry_multiplier = 1e6f;
  EXPECT_EQ(Process(params, history, 5)[7], -INFINITY);
}

TEST(DryTest, OffIsOff) {
  const Tokens history = {1, 2, 3, 1, 2, 3, 1, 2};
  SlotParams params;
  params.dry_multiplier = 1.0f;
  EXPECT_LT(Process(params, history, 0)[3], 0.0f);
  SlotParams off = params;
  off.dry_multiplier = 0.0f;
  EXPECT_EQ(Process(off, history, 0)[3], 0.0f);
  off = params;
  off.dry_penalty_last_n = 0;
  EXPECT_EQ(Process(off, history, 0)[3], 0.0f);
  off = params;
  off.dry_base = 0.5f;
  EXPECT_EQ(Process(off, history, 0)[3], 0.0f);
}

}  // namespace
}  // namespace quire
