#include "benchmarks/serving/server_counters.h"

#include "gtest/gtest.h"

namespace quire {
namespace {

constexpr char kPage[] = R"(# HELP vllm:spec_decode_num_drafts_total Drafts.
# TYPE vllm:spec_decode_num_drafts_total counter
vllm:spec_decode_num_drafts_total{engine="0",model_name="a{b}, c"} 10.0
vllm:spec_decode_num_drafts_total{engine="1",model_name="m"} 5
vllm:spec_decode_num_draft_tokens_total{engine="0"} 6e1
vllm:spec_decode_num_accepted_tokens_total{engine="0"} 30 1700000000
vllm:spec_decode_num_accepted_tokens_per_pos_total{engine="0",position="0"} 12
vllm:spec_decode_num_accepted_tokens_per_pos_total{engine="0",position="2"} 3
vllm:spec_decode_num_accepted_tokens_per_pos_total{engine="0",position="-1"} 9
vllm:request_queue_time_seconds_sum{engine="0"} 0.5
vllm:request_queue_time_seconds_count{engine="0"} 4
vllm:request_queue_time_seconds_bucket{engine="0",le="+Inf"} 4
other:spec_decode_num_drafts_total 99
)";

TEST(ServerCountersTest, ReadsVllmsNames) {
  const ServerCounters counters = ReadServerCounters(kPage);
  EXPECT_TRUE(counters.has_speculation);
  EXPECT_EQ(counters.num_drafts, 15);
  EXPECT_EQ(counters.num_draft_tokens, 60);
  EXPECT_EQ(counters.num_accepted_tokens, 30);
  EXPECT_EQ(counters.num_accepted_by_position,
            (std::map<int, double>{{0, 12}, {2, 3}}));
  EXPECT_TRUE(counters.has_queue_time);
  EXPECT_EQ(counters.queue_seconds, 0.5);
  EXPECT_EQ(counters.num_queued, 4);
}

TEST(ServerCountersTest, WithoutSuffixOrLabels) {
  const ServerCounters counters = ReadServerCounters(
      "vllm:spec_decode_num_drafts 3\nvllm:spec_decode_num_draft_tokens{} 7");
  EXPECT_TRUE(counters.has_speculation);
  EXPECT_EQ(counters.num_drafts, 3);
  EXPECT_EQ(counters.num_draft_tokens, 7);
  EXPECT_FALSE(counters.has_queue_time);
}

TEST(ServerCountersTest, SkipsWhatIsMalformed) {
  for (const char* page :
       {"", "<html>vllm:spec_decode_num_drafts</html>",
        "vllm:spec_decode_num_drafts", "vllm:spec_decode_num_drafts{ 3",
        "vllm:spec_decode_num_drafts{} x", "vllm:spec_decode_num_drafts{} nan",
        "vllm:spec_decode_num_drafts{} inf", "vllm:"}) {
    const ServerCounters counters = ReadServerCounters(page);
    EXPECT_FALSE(counters.has_speculation) << page;
    EXPECT_EQ(counters.num_drafts, 0) << page;
  }
}

TEST(ServerCountersTest, Since) {
  const ServerCounters before = ReadServerCounters(kPage);
  ServerCounters after = before;
  after.num_drafts += 2;
  after.num_accepted_by_position[0] += 4;
  after.num_accepted_by_position[5] = 1;
  after.queue_seconds += 0.25;
  after.num_queued += 1;
  const ServerCounters since = after.Since(before);
  EXPECT_TRUE(since.has_speculation);
  EXPECT_EQ(since.num_drafts, 2);
  EXPECT_EQ(since.num_draft_tokens, 0);
  EXPECT_EQ(since.num_accepted_by_position,
            (std::map<int, double>{{0, 4}, {2, 0}, {5, 1}}));
  EXPECT_EQ(since.queue_seconds, 0.25);
  EXPECT_EQ(since.num_queued, 1);
}

}  // namespace
}  // namespace quire
