#include "engine/speculative/suffix_automaton.h"

#include <algorithm>
#include <map>

#include "absl/types/span.h"
#include "engine/base/random.h"
#include "gtest/gtest.h"

namespace quire {
namespace {

using Text = std::vector<int32_t>;

// How often `part` occurs in the texts.
int Count(const std::vector<Text>& texts, absl::Span<const int32_t> part) {
  int count = 0;
  for (const Text& text : texts) {
    for (size_t i = 0; i + part.size() <= text.size(); ++i) {
      count += std::equal(part.begin(), part.end(), text.begin() + i);
    }
  }
  return count;
}

Text RandomText(SimulationRandom* random, int size, int vocab_size) {
  Text text;
  for (int i = 0; i < size; ++i) {
    text.push_back(static_cast<int32_t>(random->Below(vocab_size)));
  }
  return text;
}

// Several texts in one automaton, a cursor that walks another text meanwhile:
// contexts are the longest that occur, and counted right.
TEST(SuffixAutomatonTest, ContextsAndCountsAreThoseOfASearch) {
  SimulationRandom random(2);
  for (int trial = 0; trial < 60; ++trial) {
    SuffixAutomaton automaton;
    std::vector<Text> texts;
    const int vocab_size = static_cast<int>(random.Between(2, 6));
    const int max_length = static_cast<int>(random.Between(1, 12));
    const Text walk = RandomText(&random, 80, vocab_size);
    SuffixMatch match;
    for (size_t i = 0; i < walk.size(); ++i) {
      if (i % 8 == 0) {
        texts.push_back(RandomText(&random, 15, vocab_size));
        automaton.BeginSequence();
        for (int32_t token : texts.back()) automaton.Append(token);
        // Of the old contents the longest is not known to be the longest now.
        match = {};
        for (size_t k = i > 20 ? i - 20 : 0; k < i; ++k) {
          match = automaton.Extend(match, walk[k], max_length);
        }
      }
      match = automaton.Extend(match, walk[i], max_length);
      int longest = std::min<int>(max_length, i + 1);
      while (longest > 0 && Count(texts, absl::MakeSpan(&walk[i + 1 - longest],
                                                        longest)) == 0) {
        --longest;
      }
      ASSERT_EQ(match.length, longest) << trial << " " << i;
      // Shorter and shorter, with counts that grow.
      for (SuffixMatch shorter = match; shorter.length > 0;) {
        const absl::Span<const int32_t> context(&walk[i + 1 - shorter.length],
                                                shorter.length);
        const int count = Count(texts, context);
        ASSERT_EQ(automaton.CountOf(shorter), count);
        const SuffixMatch next = automaton.Shorten(shorter);
        ASSERT_LT(next.length, shorter.length);
        if (next.length > 0) {
          ASSERT_GT(Count(texts, context.last(next.length)), count);
        }
        shorter = next;
      }
    }
    EXPECT_EQ(automaton.num_tokens(), 150);
  }
}

TEST(SuffixAutomatonTest, FollowsTheMostFrequentToken) {
  SimulationRandom random(3);
  for (int trial = 0; trial < 40; ++trial) {
    const Text text = RandomText(&random, 100, 3);
    SuffixAutomaton automaton;
    SuffixMatch match;
    for (size_t i = 0; i < text.size(); ++i) automaton.Append(text[i]);
    for (size_t i = 0; i < text.size(); ++i) {
      match = automaton.Extend(match, text[i], 3);
      if (i < 2) continue;
      const absl::Span<const int32_t> context(&text[i - match.length + 1],
                                              match.length);
      std::map<int32_t, int> next;
      int total = 0;
      int best = 0;
      for (int32_t token = 0; token < 3; ++token) {
        Text longer(context.begin(), context.end());
        longer.push_back(token);
        next[token] = Count({text}, longer);
        total += next[token];
        best = std::max(best, next[token]);
      }
      int32_t state = match.state;
      int32_t token = -1;
      float share = 0;
      ASSERT_EQ(automaton.Follow(&state, &token, &share), total > 0);
      if (total == 0) continue;
      EXPECT_EQ(next[token], best);
      EXPECT_FLOAT_EQ(share, static_cast<float>(best) / total);
    }
  }
}

TEST(SuffixAutomatonTest, EndMatchOccurredBefore) {
  SuffixAutomaton automaton;
  EXPECT_EQ(automaton.EndMatch().length, 0);
  for (int32_t token : {1, 2, 3, 4, 1, 2, 3}) automaton.Append(token);
  const SuffixMatch match = automaton.EndMatch();
  EXPECT_EQ(match.length, 3);
  int32_t state = match.state;
  int32_t token = 0;
  float share = 0;
  ASSERT_TRUE(automaton.Follow(&state, &token, &share));
  EXPECT_EQ(token, 4);
  EXPECT_EQ(share, 1.0f);
}

// A text of one token has as many links as tokens.
TEST(SuffixAutomatonTest, OneTokenRepeatedStaysFast) {
  SuffixAutomaton automaton;
  for (int i = 0; i < 200'000; ++i) automaton.Append(5);
  EXPECT_EQ(automaton.EndMatch().length, 199'999);
}

}  // namespace
}  // namespace quire
