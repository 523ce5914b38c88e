#include "server/stop_strings.h"

#include "engine/base/random.h"
#include "gtest/gtest.h"

namespace quire {
namespace {

// The text up to the first stop string, one byte at a time: a stop string
// counts as soon as its last byte arrives.
std::string Expected(const std::string& text,
                     const std::vector<std::string>& stops, bool include) {
  for (size_t end = 1; end <= text.size(); ++end) {
    size_t longest = 0;
    for (const std::string& stop : stops) {
      if (end >= stop.size() &&
          text.compare(end - stop.size(), stop.size(), stop) == 0) {
        longest = std::max(longest, stop.size());
      }
    }
    if (longest > 0) return text.substr(0, include ? end : end - longest);
  }
  return text;
}

TEST(StopStringMatcherTest, AnySplitGivesTheSameText) {
  SimulationRandom random(7);
  for (int round = 0; round < 20000; ++round) {
    const bool include = random.Below(2) == 0;
    std::string text;
    const int length = random.Below(20);
    for (int i = 0; i < length; ++i) text += "ab"[random.Below(2)];
    // One stop string: with several, pieces longer than a byte may show two
    // ends at once, which OrderOfStops covers.
    std::string stop;
    const int stop_length = 1 + random.Below(5);
    for (int i = 0; i < stop_length; ++i) stop += "ab"[random.Below(2)];
    StopStringMatcher matcher({stop}, include);
    std::string out;
    for (size_t i = 0; i < text.size();) {
      const size_t n = std::min<size_t>(1 + random.Below(4), text.size() - i);
      out += matcher.Append(text.substr(i, n));
      i += n;
    }
    out += matcher.Finish();
    EXPECT_EQ(out, Expected(text, {stop}, include)) << text << " / " << stop;
    EXPECT_EQ(matcher.stopped().has_value(),
              text.find(stop) != std::string::npos);
  }
}

// Stop strings that end within the first pieces are text; one that begins
// there and ends later counts.
TEST(StopStringMatcherTest, MayNotStopInTheFirstPieces) {
  SimulationRandom random(8);
  int num_stopped = 0;
  for (int round = 0; round < 20000; ++round) {
    std::string text;
    for (int i = random.Below(20); i > 0; --i) text += "ab"[random.Below(2)];
    std::vector<std::string> stops(2);
    for (std::string& stop : stops) {
      for (int i = random.Between(1, 4); i > 0; --i) {
        stop += "ab"[random.Below(2)];
      }
    }
    const size_t num_free = random.Below(12);
    StopStringMatcher matcher(stops, false);
    std::string out;
    for (size_t i = 0; i < text.size(); ++i) {
      out += matcher.Append(text.substr(i, 1), /*may_stop=*/i >= num_free);
    }
    out += matcher.Finish();
    std::string expected = text;
    for (size_t end = text.size(); end > num_free; --end) {
      size_t longest = 0;
      for (const std::string& stop : stops) {
        if (end >= stop.size() &&
            text.compare(end - stop.size(), stop.size(), stop) == 0) {
          longest = std::max(longest, stop.size());
        }
      }
      // What was given before it may not be taken back.
      if (longest > 0) expected = text.substr(0, end - longest);
    }
    ASSERT_EQ(out, expected) << text << " / " << stops[0] << ", " << stops[1]
                             << " after " << num_free;
    num_stopped += matcher.stopped().has_value() ? 1 : 0;
  }
  EXPECT_GT(num_stopped, 5000);
}

TEST(StopStringMatcherTest, OrderOfStops) {
  StopStringMatcher matcher({"cd", "bcd", "x"}, false);
  EXPECT_EQ(matcher.Append("abcdx"), "a");
  EXPECT_EQ(matcher.stopped(), "bcd");
}

TEST(StopStringMatcherTest, HoldsBackNoMoreThanNeeded) {
  StopStringMatcher matcher({"\n\n"}, false);
  EXPECT_EQ(matcher.Append("one\n"), "one");
  EXPECT_EQ(matcher.Append("two"), "\ntwo");
  EXPECT_EQ(matcher.Append("\n"), "");
  EXPECT_EQ(matcher.Finish(), "\n");
}

}  // namespace
}  // namespace quire
