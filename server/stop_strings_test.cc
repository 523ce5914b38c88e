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
