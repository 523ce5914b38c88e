#include "benchmarks/serving/timeline_plot.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace quire {
namespace {

using testing::HasSubstr;
using testing::Not;

size_t Count(const std::string& text, const std::string& part) {
  size_t count = 0;
  for (size_t at = text.find(part); at != std::string::npos;
       at = text.find(part, at + 1)) {
    ++count;
  }
  return count;
}

TEST(TimelinePlotTest, Thresholds) {
  const auto two = ParseTimelineThresholds("2,5.5");
  ASSERT_TRUE(two.ok()) << two.status();
  EXPECT_EQ(two->low, 2);
  EXPECT_EQ(two->high, 5.5);
  for (const char* wrong :
       {"", "5", "5,2", "0,5", "-1,5", "a,b", "1,2,3", "1,inf", "nan,2"}) {
    EXPECT_FALSE(ParseTimelineThresholds(wrong).ok()) << wrong;
  }
}

// Over 10 s a second is a tenth of the width of 1000.
TEST(TimelinePlotTest, BarsAreWhereTheTokensWere) {
  RequestResult good;
  good.success = true;
  good.start_time = 1;
  good.ttft = 2;
  good.itls = {0.01, 0.02, 0.03, 1};
  good.latency = 3.06;
  RequestResult failed;
  failed.error = "<b>no</b>";
  failed.latency = 0.5;
  const std::string page = TimelinePage({good, failed}, 10, {}, "a < b");
  EXPECT_THAT(page, HasSubstr("<title>a &lt; b</title>"));
  EXPECT_THAT(page, HasSubstr("&lt;b&gt;no"));
  EXPECT_THAT(page, Not(HasSubstr("<b>no")));
  // Failed first: it started first. Green is two gaps in one bar.
  EXPECT_THAT(page, HasSubstr(R"(x="0.00" y="40" width="50.00")"));
  EXPECT_THAT(page, HasSubstr(R"(x="100.00" y="48" width="200.00")"));
  EXPECT_THAT(
      page,
      HasSubstr(R"(x="300.00" y="48" width="3.00" height="7" fill="#009e73")"));
  EXPECT_THAT(
      page,
      HasSubstr(R"(x="303.00" y="48" width="3.00" height="7" fill="#e69f00")"));
  EXPECT_THAT(
      page,
      HasSubstr(
          R"(x="306.00" y="48" width="100.00" height="7" fill="#d55e00")"));
  EXPECT_EQ(Count(page, "<rect"), 5u);
}

TEST(TimelinePlotTest, NothingToShow) {
  const std::string page = TimelinePage({}, 0, {}, "");
  EXPECT_EQ(Count(page, "<rect"), 0u);
  EXPECT_THAT(page, HasSubstr("</html>"));
}

}  // namespace
}  // namespace quire
