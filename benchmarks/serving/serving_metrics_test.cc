#include "benchmarks/serving/serving_metrics.h"

#include <string>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "benchmarks/serving/latency_plot.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace quire {
namespace {

using testing::DoubleNear;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::Not;

RequestResult Record(double start, double ttft, std::vector<double> itls,
                     int64_t prompt_len) {
  RequestResult record;
  record.success = true;
  record.prompt_len = prompt_len;
  record.output_tokens = 1 + itls.size();
  record.start_time = start;
  record.ttft = ttft;
  record.latency = ttft;
  for (double gap : itls) record.latency += gap;
  record.itls = std::move(itls);
  record.generated_text = "text";
  return record;
}

RequestResult Failed(const std::string& error) {
  RequestResult record;
  record.error = error;
  record.output_tokens = 3;
  record.prompt_len = 1000;
  return record;
}

// Two requests of 3 and 1 tokens, and one that failed.
std::vector<RequestResult> Records() {
  return {Record(10, 0.1, {0.2, 0.4}, 5), Failed("HTTP 500: broken"),
          Record(11.5, 0.3, {}, 7)};
}

constexpr double kError = 1e-9;

TEST(ServingMetricsTest, Definitions) {
  ReportOptions options;
  options.percentiles = {50, 100};
  const ServingMetrics metrics = ComputeServingMetrics(Records(), 2, options);
  EXPECT_EQ(metrics.completed, 2);
  EXPECT_EQ(metrics.failed, 1);
  EXPECT_EQ(metrics.total_input_tokens, 12);
  EXPECT_EQ(metrics.total_output_tokens, 4);
  EXPECT_EQ(metrics.request_throughput, 1);
  EXPECT_EQ(metrics.output_throughput, 2);
  EXPECT_EQ(metrics.total_token_throughput, 8);
  EXPECT_NEAR(metrics.ttft.mean, 200, kError);
  EXPECT_NEAR(metrics.ttft.deviation, 100, kError);
  // Of the request with more than one token: (0.7 - 0.1) / 2.
  EXPECT_NEAR(metrics.tpot.mean, 300, kError);
  EXPECT_NEAR(metrics.itl.median, 300, kError);
  EXPECT_THAT(metrics.itl.percentiles,
              ElementsAre(DoubleNear(300, kError), DoubleNear(400, kError)));
  EXPECT_NEAR(metrics.e2el.mean, 500, kError);
  EXPECT_FALSE(metrics.request_goodput.has_value());
}

TEST(ServingMetricsTest, Peaks) {
  // Seconds 0: tokens at 0.1, 0.3, 0.7; second 1: the other one, at 1.8.
  const ServingMetrics metrics =
      ComputeServingMetrics(Records(), 2, ReportOptions());
  EXPECT_EQ(metrics.max_output_tokens_per_s, 3);
  EXPECT_EQ(metrics.max_concurrent_requests, 1);
  const ServingMetrics together = ComputeServingMetrics(
      {Record(0, 0.1, {1.5}, 1), Record(1.2, 0.1, {}, 1)}, 2, ReportOptions());
  EXPECT_EQ(together.max_output_tokens_per_s, 2);
  EXPECT_EQ(together.max_concurrent_requests, 2);
  // One after the other within a second.
  const ServingMetrics in_turn =
      ComputeServingMetrics({Record(0, 0.1, {}, 1), Record(0.1, 0.1, {}, 1),
                             Record(0.3, 0.1, {0.1}, 1)},
                            2, ReportOptions());
  EXPECT_EQ(in_turn.max_output_tokens_per_s, 4);
  EXPECT_EQ(in_turn.max_concurrent_requests, 1);
}

TEST(ServingMetricsTest, PeaksCountTokens) {
  std::vector<RequestResult> records = Records();
  records[0].output_tokens = 9;
  records[0].chunk_tokens = {1, 5.5, 2.5};
  const ServingMetrics metrics =
      ComputeServingMetrics(records, 2, ReportOptions());
  EXPECT_EQ(metrics.max_output_tokens_per_s, 9);
  // Gaps are of chunks, as vLLM's.
  EXPECT_NEAR(metrics.itl.mean, 300, kError);
  EXPECT_NEAR(metrics.tpot.mean, 75, kError);
}

TEST(ServingMetricsTest, Goodput) {
  const auto goodput = [](const std::vector<std::string>& texts) {
    ReportOptions options;
    options.goodput = *ParseGoodput(texts);
    return *ComputeServingMetrics(Records(), 2, options).request_goodput;
  };
  EXPECT_EQ(goodput({"ttft:300"}), 1);
  EXPECT_EQ(goodput({"ttft:299"}), 0.5);
  // One token: its time per further token meets every limit.
  EXPECT_EQ(goodput({"tpot:299"}), 0.5);
  EXPECT_EQ(goodput({"ttft:150", "e2el:600"}), 0);
  EXPECT_EQ(goodput({"ttft:150", "e2el:701"}), 0.5);
}

TEST(ServingMetricsTest, NothingSucceeded) {
  for (const auto& records :
       {std::vector<RequestResult>(), {Failed("a"), Failed("b")}}) {
    const ServingMetrics metrics =
        ComputeServingMetrics(records, 0, ReportOptions());
    EXPECT_EQ(metrics.completed, 0);
    EXPECT_EQ(metrics.request_throughput, 0);
    EXPECT_THAT(ServingReport(metrics, ReportOptions()),
                HasSubstr("Successful requests:                     0"));
  }
}

TEST(ServingMetricsTest, Report) {
  ReportOptions options;
  options.percentiles = {99};
  options.metrics = {LatencyMetric::kTtft, LatencyMetric::kTpot};
  options.goodput = *ParseGoodput({"ttft:300"});
  options.max_concurrency = 4;
  options.request_rate = 2.5;
  EXPECT_EQ(
      ServingReport(ComputeServingMetrics(Records(), 2, options), options),
      R"(============ Serving Benchmark Result ============
Successful requests:                     2         
Failed requests:                         1         
Maximum request concurrency:             4         
Request rate configured (RPS):           2.50      
Benchmark duration (s):                  2.00      
Total input tokens:                      12        
Total generated tokens:                  4         
Request throughput (req/s):              1.00      
Request goodput (req/s):                 1.00      
Output token throughput (tok/s):         2.00      
Peak output token throughput (tok/s):    3.00      
Peak concurrent requests:                1.00      
Total token throughput (tok/s):          8.00      
---------------Time to First Token----------------
Mean TTFT (ms):                          200.00    
Median TTFT (ms):                        200.00    
P99 TTFT (ms):                           298.00    
-----Time per Output Token (excl. 1st token)------
Mean TPOT (ms):                          300.00    
Median TPOT (ms):                        300.00    
P99 TPOT (ms):                           300.00    
==================================================
)");
}

// Four drafts of three tokens, of which the first was accepted three times, the
// second once.
ServerCounters Speculation() {
  ServerCounters counters;
  counters.has_speculation = true;
  counters.num_drafts = 4;
  counters.num_draft_tokens = 12;
  counters.num_accepted_tokens = 4;
  counters.num_accepted_by_position = {{0, 3}, {1, 1}};
  return counters;
}

TEST(ServingMetricsTest, SpeculationBlock) {
  ServingMetrics metrics = ComputeServingMetrics(Records(), 2, ReportOptions());
  EXPECT_THAT(ServingReport(metrics, ReportOptions()),
              Not(HasSubstr("Speculative")));
  metrics.counters = Speculation();
  EXPECT_THAT(ServingReport(metrics, ReportOptions()),
              HasSubstr(R"(---------------Speculative Decoding---------------
Acceptance rate (%):                     33.33     
Acceptance length:                       2.00      
Drafts:                                  4         
Draft tokens:                            12        
Accepted tokens:                         4         
Per-position acceptance (%):
  Position 0:                            75.00     
  Position 1:                            25.00     
==================================================
)"));
  const auto json = ServingJson(metrics, Records(), ReportOptions(), false);
  EXPECT_NEAR(json["spec_decode_acceptance_rate"].get<double>(), 100.0 / 3,
              1e-9);
  EXPECT_EQ(json["spec_decode_acceptance_length"], 2);
  EXPECT_EQ(json["spec_decode_num_drafts"], 4);
  EXPECT_EQ(json["spec_decode_draft_tokens"], 12);
  EXPECT_EQ(json["spec_decode_accepted_tokens"], 4);
  EXPECT_EQ(json["spec_decode_per_position_acceptance_rates"],
            nlohmann::ordered_json({0.75, 0.25}));
  // A server that speculates, but had no draft in this load.
  metrics.counters = ServerCounters();
  metrics.counters.has_speculation = true;
  EXPECT_FALSE(ServingJson(metrics, Records(), ReportOptions(), false)
                   .contains("spec_decode_acceptance_rate"));
}

TEST(ServingMetricsTest, QueueTimes) {
  std::vector<RequestResult> records = Records();
  ServingMetrics metrics = ComputeServingMetrics(records, 2, ReportOptions());
  EXPECT_FALSE(ServingJson(metrics, records, ReportOptions(), true)
                   .contains("queue_times"));
  records[0].queue_seconds = 0.25;
  metrics.counters.has_queue_time = true;
  metrics.counters.queue_seconds = 0.5;
  metrics.counters.num_queued = 4;
  const auto json = ServingJson(metrics, records, ReportOptions(), true);
  EXPECT_EQ(json["queue_times"], nlohmann::ordered_json({0.25, 0.0, 0.0}));
  EXPECT_EQ(json["mean_queue_time_ms"], 125);
}

std::vector<std::string> Keys(const nlohmann::ordered_json& json) {
  std::vector<std::string> keys;
  for (const auto& [key, value] : json.items()) keys.push_back(key);
  return keys;
}

// The keys that scripts for vLLM's results read.
TEST(ServingMetricsTest, JsonKeys) {
  ReportOptions options;
  options.metrics = {LatencyMetric::kTtft, LatencyMetric::kTpot,
                     LatencyMetric::kItl, LatencyMetric::kE2el};
  options.percentiles = {50, 99.9};
  std::vector<RequestResult> good = {Records()[0], Records()[2]};
  const auto json = [&](const std::vector<RequestResult>& records,
                        bool detailed) {
    return ServingJson(ComputeServingMetrics(records, 2, options), records,
                       options, detailed);
  };
  EXPECT_THAT(
      Keys(json(good, false)),
      ElementsAre(
          "duration", "completed", "failed", "total_input_tokens",
          "total_output_tokens", "request_throughput", "request_goodput",
          "output_throughput", "total_token_throughput",
          "max_output_tokens_per_s", "max_concurrent_requests", "mean_ttft_ms",
          "median_ttft_ms", "std_ttft_ms", "p50_ttft_ms", "p99.9_ttft_ms",
          "mean_tpot_ms", "median_tpot_ms", "std_tpot_ms", "p50_tpot_ms",
          "p99.9_tpot_ms", "mean_itl_ms", "median_itl_ms", "std_itl_ms",
          "p50_itl_ms", "p99.9_itl_ms", "mean_e2el_ms", "median_e2el_ms",
          "std_e2el_ms", "p50_e2el_ms", "p99.9_e2el_ms"));
  const auto detailed = json(Records(), true);
  for (const char* key :
       {"input_lens", "output_lens", "ttfts", "itls", "latencies",
        "start_times", "generated_texts", "errors"}) {
    EXPECT_EQ(detailed[key].size(), 3u) << key;
  }
  EXPECT_EQ(detailed["output_lens"], nlohmann::ordered_json({3, 0, 1}));
  // Errors are kept without the details, too.
  EXPECT_EQ(json(Records(), false)["errors"],
            nlohmann::ordered_json({"", "HTTP 500: broken", ""}));
}

// As vLLM's benchmark has them for its pooling backends, and "failed".
TEST(ServingMetricsTest, Embeddings) {
  std::vector<RequestResult> records = {Record(0, 0.1, {}, 5), Failed("no"),
                                        Record(0, 0.3, {}, 7)};
  records[2].num_inputs = 3;
  for (RequestResult& record : records) record.output_tokens = 0;
  ReportOptions options;
  options.task = LoadTask::kPooling;
  options.metrics = {LatencyMetric::kTtft, LatencyMetric::kE2el};
  ServingMetrics metrics = ComputeServingMetrics(records, 2, options);
  EXPECT_EQ(ServingReport(metrics, options),
            R"(============ Serving Benchmark Result ============
Successful requests:                     2         
Failed requests:                         1         
Benchmark duration (s):                  2.00      
Total input tokens:                      12        
Request throughput (req/s):              1.00      
Input throughput (inputs/s):             2.00      
Total token throughput (tok/s):          6.00      
----------------End-to-end Latency----------------
Mean E2EL (ms):                          200.00    
Median E2EL (ms):                        200.00    
P99 E2EL (ms):                           298.00    
==================================================
)");
  const auto json = ServingJson(metrics, records, options, true);
  EXPECT_THAT(Keys(json),
              ElementsAre("duration", "completed", "failed",
                          "total_input_tokens", "total_input_sequences",
                          "request_throughput", "input_sequence_throughput",
                          "total_token_throughput", "input_lens", "latencies",
                          "start_times", "errors", "mean_e2el_ms",
                          "median_e2el_ms", "std_e2el_ms", "p99_e2el_ms"));
  EXPECT_EQ(json["total_input_sequences"], 4);
  options.goodput = *ParseGoodput({"e2el:150"});
  metrics = ComputeServingMetrics(records, 2, options);
  EXPECT_EQ(ServingJson(metrics, records, options, false)["request_goodput"],
            0.5);
  EXPECT_THAT(ServingReport(metrics, options),
              HasSubstr("Request goodput (req/s):                 0.50"));
}

TEST(ServingMetricsTest, Options) {
  EXPECT_THAT(*ParsePercentiles("25, 99.9"), ElementsAre(25, 99.9));
  EXPECT_TRUE(ParsePercentiles("")->empty());
  EXPECT_EQ(ParseMetricNames("ttft,e2el")->size(), 2u);
  for (const char* text : {"101", "-1", "x", "nan"}) {
    EXPECT_FALSE(ParsePercentiles(text).ok()) << text;
  }
  EXPECT_FALSE(ParseMetricNames("ttft,foo").ok());
  for (const char* text : {"ttft", "itl:5", "ttft:x", "ttft:-1", "ttft:nan"}) {
    EXPECT_FALSE(ParseGoodput({text}).ok()) << text;
  }
}

TEST(LatencyPlotTest, IsOneElementWithItsTitle) {
  const std::string svg = LatencyPlot(Records(), 12, "a <model> & more");
  EXPECT_TRUE(absl::StartsWith(svg, "<svg "));
  EXPECT_TRUE(absl::EndsWith(svg, "</svg>\n"));
  EXPECT_THAT(svg, HasSubstr("<title>a &lt;model&gt; &amp; more</title>"));
  EXPECT_THAT(svg, HasSubstr("Time to first token (ms)"));
  EXPECT_FALSE(absl::StrContains(svg, "nan"));
  EXPECT_FALSE(absl::StrContains(svg, "inf"));
}

TEST(LatencyPlotTest, EmbeddingsHaveNoTokens) {
  std::vector<RequestResult> records = {Record(1, 2, {}, 5)};
  const std::string svg = LatencyPlot(records, 12, "m", LoadTask::kPooling);
  EXPECT_THAT(svg, HasSubstr("End-to-end latency (ms)"));
  EXPECT_THAT(svg, HasSubstr("Input tokens per second"));
  EXPECT_THAT(svg, Not(HasSubstr("irst token")));
  EXPECT_THAT(svg, Not(HasSubstr("Gap")));
}

TEST(LatencyPlotTest, LargeNumbersHaveNoExponent) {
  EXPECT_EQ(AxisLabel(0), "0");
  EXPECT_EQ(AxisLabel(0.25), "0.25");
  EXPECT_EQ(AxisLabel(1234.5), "1234");
  EXPECT_EQ(AxisLabel(9999.7), "10000");
  EXPECT_EQ(AxisLabel(10000), "10000");
  EXPECT_EQ(AxisLabel(12500), "12500");
  EXPECT_EQ(AxisLabel(5e6), "5000000");
  // 40 s to the first token: an axis of 50,000 ms.
  EXPECT_THAT(LatencyPlot({Record(0, 40, {}, 5)}, 12, ""),
              HasSubstr(">12500</text>"));
}

TEST(LatencyPlotTest, WithoutRequests) {
  for (double duration : {0.0, 5.0}) {
    const std::string svg = LatencyPlot({}, duration, "");
    EXPECT_TRUE(absl::EndsWith(svg, "</svg>\n"));
    EXPECT_FALSE(absl::StrContains(svg, "nan"));
  }
}

TEST(ServingMetricsTest, Probes) {
  std::vector<RequestResult> probes(4);
  for (int i = 0; i < 3; ++i) {
    probes[i].success = true;
    probes[i].latency = 0.001 * (i + 1);
  }
  const auto json = ProbeJson(probes);
  EXPECT_EQ(json["probe_completed"], 3);
  EXPECT_EQ(json["probe_failed"], 1);
  EXPECT_DOUBLE_EQ(json["probe_median_e2el_ms"].get<double>(), 2);
  EXPECT_DOUBLE_EQ(json["probe_p99_e2el_ms"].get<double>(), 2.98);
  EXPECT_DOUBLE_EQ(json["probe_max_e2el_ms"].get<double>(), 3);
  EXPECT_THAT(ProbeReport(probes),
              HasSubstr("Max probe E2EL (ms):                     3.00"));
  EXPECT_FALSE(ProbeJson({}).contains("probe_median_e2el_ms"));
  EXPECT_THAT(ProbeReport({}), HasSubstr("Probe requests completed:"));
}

}  // namespace
}  // namespace quire
