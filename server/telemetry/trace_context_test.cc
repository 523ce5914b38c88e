#include "server/telemetry/trace_context.h"

#include <set>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "server/telemetry/request_record.h"

namespace quire {
namespace {

constexpr char kTrace[] = "0af7651916cd43dd8448eb211c80319c";
constexpr char kParent[] = "b7ad6b7169203331";

std::string Header(const std::string& version, const std::string& trace,
                   const std::string& parent, const std::string& flags) {
  return absl::StrCat(version, "-", trace, "-", parent, "-", flags);
}

TEST(TraceParentTest, TakesWhatTheStandardDoes) {
  const auto sampled = ParseTraceParent(Header("00", kTrace, kParent, "01"));
  ASSERT_TRUE(sampled.has_value());
  EXPECT_EQ(sampled->trace_id, kTrace);
  EXPECT_EQ(sampled->parent_id, kParent);
  EXPECT_TRUE(sampled->is_sampled);
  // Bits that are not defined do not matter.
  EXPECT_TRUE(
      ParseTraceParent(Header("00", kTrace, kParent, "ff"))->is_sampled);
  EXPECT_FALSE(
      ParseTraceParent(Header("00", kTrace, kParent, "fe"))->is_sampled);
  // A later version, as far as 00 goes.
  EXPECT_TRUE(ParseTraceParent(Header("01", kTrace, kParent, "01")));
  EXPECT_TRUE(ParseTraceParent(
      absl::StrCat(Header("cc", kTrace, kParent, "01"), "-what-comes")));
}

TEST(TraceParentTest, RefusesEverythingElse) {
  const std::string good = Header("00", kTrace, kParent, "01");
  const std::string bad[] = {
      "",
      good.substr(0, 54),
      good + "0",
      good + "-x",
      " " + good,
      good + " ",
      Header("ff", kTrace, kParent, "01"),
      Header("0g", kTrace, kParent, "01"),
      Header("00", std::string(32, '0'), kParent, "01"),
      Header("00", kTrace, std::string(16, '0'), "01"),
      Header("00", "0AF7651916CD43DD8448EB211C80319C", kParent, "01"),
      Header("00", kTrace, "B7AD6B7169203331", "01"),
      Header("00", kTrace, kParent, "0x"),
      Header("00", "0af7651916cd43dd8448eb211c80319", kParent, "001"),
      absl::StrCat(Header("01", kTrace, kParent, "01"), "x"),
  };
  for (const std::string& value : bad) {
    EXPECT_FALSE(ParseTraceParent(value).has_value()) << value;
  }
  // Every single byte that is wrong.
  for (size_t i = 0; i < good.size(); ++i) {
    for (const char c : {'g', 'A', ' ', '\0', '-'}) {
      std::string changed = good;
      if (changed[i] == c) continue;
      changed[i] = c;
      EXPECT_FALSE(ParseTraceParent(changed).has_value()) << changed;
    }
  }
}

TEST(TraceStateTest, CombinesAndCuts) {
  EXPECT_EQ(CombineTraceState({"a=1", " b@c=2 ,, d/e*f_g-h=x y"}),
            "a=1,b@c=2,d/e*f_g-h=x y");
  EXPECT_EQ(CombineTraceState({}), "");
  for (const char* bad : {"a", "=1", "a=", "A=1", "a=1=2", "a=\t", "a=1,a=2",
                          "a=\x7f", "a=\xc3\xa9", "_a=1", "a =1"}) {
    EXPECT_EQ(CombineTraceState({"ok=1", bad}), "") << bad;
  }
  std::string many = "k0=v";
  for (int i = 1; i < 32; ++i) absl::StrAppend(&many, ",k", i, "=v");
  EXPECT_EQ(CombineTraceState({many}), many);
  EXPECT_EQ(CombineTraceState({many, "k32=v"}), "");
  // Long members go first, then the last ones.
  const std::string is_long = absl::StrCat("l=", std::string(200, 'x'));
  const std::string medium(100, 'y');
  std::string rest;
  for (int i = 0; i < 4; ++i) {
    absl::StrAppend(&rest, i == 0 ? "" : ",", "m", i, "=", medium);
  }
  EXPECT_EQ(CombineTraceState({is_long, rest}), rest);
  EXPECT_EQ(CombineTraceState({rest, absl::StrCat("m4=", medium)}), rest);
}

TEST(TraceContextTest, OfARequest) {
  const std::string parent = Header("00", kTrace, kParent, "01");
  const TraceContext context = ReadTraceContext(
      {{"traceparent", parent}, {"tracestate", "a=1"}, {"tracestate", "b=2"}});
  EXPECT_EQ(context.trace_id, kTrace);
  EXPECT_EQ(context.parent_id, kParent);
  EXPECT_EQ(context.state, "a=1,b=2");
  EXPECT_EQ(context.span_id.size(), 16u);
  EXPECT_NE(context.span_id, kParent);
  EXPECT_EQ(TraceResponse(context),
            Header("00", kTrace, context.span_id, "01"));
  // Without a trace there is no state either.
  EXPECT_FALSE(ReadTraceContext({{"tracestate", "a=1"}}).has_trace());
  EXPECT_FALSE(
      ReadTraceContext({{"traceparent", parent}, {"traceparent", parent}})
          .has_trace());
  std::set<std::string> ids;
  for (int i = 0; i < 1000; ++i) {
    ids.insert(NewTraceId());
    ids.insert(NewSpanId());
  }
  EXPECT_EQ(ids.size(), 2000u);
}

TEST(RequestRecordTest, TellsItsObserverOnce) {
  struct Counter : RequestObserver {
    void OnEnd(const RequestRecord& record) override {
      ++num_ends;
      last_id = record.request_id;
    }
    int num_ends = 0;
    std::string last_id;
  };
  const auto counter = std::make_shared<Counter>();
  auto record = NewRequestRecord(CombineObservers({counter, counter}));
  record->request_id = "r";
  const auto other = record;
  record.reset();
  EXPECT_EQ(counter->num_ends, 0);
  const_cast<std::shared_ptr<RequestRecord>&>(other).reset();
  EXPECT_EQ(counter->num_ends, 2);
  EXPECT_EQ(counter->last_id, "r");
  NewRequestRecord(nullptr).reset();
}

TEST(RequestRecordTest, HarmlessIds) {
  EXPECT_TRUE(IsHarmlessRequestId("aZ09._-"));
  EXPECT_TRUE(IsHarmlessRequestId(std::string(64, 'x')));
  for (const std::string& bad :
       {std::string(), std::string(65, 'x'), std::string("a b"),
        std::string("a\n"), std::string("a\0", 2), std::string("\xc3\xa9")}) {
    EXPECT_FALSE(IsHarmlessRequestId(bad)) << bad;
  }
}

}  // namespace
}  // namespace quire
