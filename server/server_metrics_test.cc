#include "server/server_metrics.h"

#include <cmath>
#include <cstdlib>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "gtest/gtest.h"

namespace quire {
namespace {

using Labels = std::map<std::string, std::string>;

struct Sample {
  std::string name;
  Labels labels;
  double value = 0;
};

struct Exposition {
  std::map<std::string, std::string> types;  // Family to its type.
  std::vector<Sample> samples;

  // The samples of `name` that have all of `labels`.
  std::vector<Sample> Find(const std::string& name,
                           const Labels& labels = {}) const {
    std::vector<Sample> found;
    for (const Sample& sample : samples) {
      bool has_all = sample.name == name;
      for (const auto& [key, value] : labels) {
        const auto at = sample.labels.find(key);
        has_all = has_all && at != sample.labels.end() && at->second == value;
      }
      if (has_all) found.push_back(sample);
    }
    return found;
  }
  // Of the only such sample.
  double Value(const std::string& name, const Labels& labels = {}) const {
    const std::vector<Sample> found = Find(name, labels);
    EXPECT_EQ(found.size(), 1u) << name;
    return found.empty() ? NAN : found[0].value;
  }
};

bool IsNameCharacter(char c) {
  return absl::ascii_isalnum(c) || c == '_' || c == ':';
}

// Reads {a="b",c="d"} at the start of *line.
bool ReadLabels(absl::string_view* line, Labels* labels) {
  line->remove_prefix(1);
  while (!line->empty() && line->front() != '}') {
    size_t size = 0;
    while (size < line->size() && IsNameCharacter((*line)[size])) ++size;
    const std::string key(line->substr(0, size));
    line->remove_prefix(size);
    if (key.empty() || !absl::StartsWith(*line, "=\"")) return false;
    line->remove_prefix(2);
    std::string value;
    while (!line->empty() && line->front() != '"') {
      char c = line->front();
      line->remove_prefix(1);
      if (c == '\\') {
        if (line->empty()) return false;
        const char escaped = line->front();
        line->remove_prefix(1);
        if (escaped != 'n' && escaped != '\\' && escaped != '"') return false;
        c = escaped == 'n' ? '\n' : escaped;
      }
      value.push_back(c);
    }
    if (line->empty()) return false;
    line->remove_prefix(1);
    if (!labels->emplace(key, value).second) return false;
    if (!line->empty() && line->front() == ',') line->remove_prefix(1);
  }
  if (line->empty()) return false;
  line->remove_prefix(1);
  return true;
}

// Prometheus' text format 0.0.4: every family has one TYPE before its samples,
// which stand together; no sample comes twice.
Exposition ParseExposition(const std::string& text) {
  Exposition exposition;
  EXPECT_TRUE(absl::EndsWith(text, "\n"));
  std::set<std::pair<std::string, Labels>> seen;
  std::string family;
  for (absl::string_view line : absl::StrSplit(text, '\n')) {
    if (line.empty()) continue;
    const std::string whole(line);
    if (line[0] == '#') {
      const std::vector<std::string> words = absl::StrSplit(line, ' ');
      EXPECT_GE(words.size(), 4u) << whole;
      if (words[1] != "TYPE") continue;
      family = words[2];
      EXPECT_TRUE(exposition.types.emplace(family, words[3]).second) << whole;
      continue;
    }
    Sample sample;
    size_t size = 0;
    while (size < line.size() && IsNameCharacter(line[size])) ++size;
    sample.name = std::string(line.substr(0, size));
    line.remove_prefix(size);
    if (!line.empty() && line[0] == '{') {
      EXPECT_TRUE(ReadLabels(&line, &sample.labels)) << whole;
    }
    EXPECT_TRUE(absl::StartsWith(line, " ")) << whole;
    const std::string number(absl::StripAsciiWhitespace(line));
    EXPECT_TRUE(number == "+Inf" || absl::SimpleAtod(number, &sample.value))
        << whole;
    std::string base = sample.name;
    if (exposition.types[family] == "histogram") {
      for (const char* suffix : {"_bucket", "_sum", "_count"}) {
        if (absl::StrCat(family, suffix) == sample.name) base = family;
      }
    }
    EXPECT_EQ(base, family) << whole;
    EXPECT_TRUE(seen.emplace(sample.name, sample.labels).second) << whole;
    exposition.samples.push_back(std::move(sample));
  }
  return exposition;
}

ServerMetricsOptions MakeOptions(const std::string& model_name) {
  ServerMetricsOptions options;
  options.model_name = model_name;
  options.version = "1.2.3";
  options.block_size = 32;
  options.num_blocks = 100;
  options.max_model_len = 4096;
  options.cache_dtype = "bf16";
  return options;
}

EngineStats MakeStats() {
  EngineStats stats;
  stats.num_running = 3;
  stats.num_waiting = 2;
  stats.num_blocks = 100;
  stats.num_free_blocks = 75;
  stats.num_steps = 9;
  stats.num_prompt_tokens = 40;
  stats.num_generation_tokens = 30;
  stats.num_preemptions = 1;
  stats.prefix_cache_queries = 40;
  stats.prefix_cache_hits = 16;
  stats.step_token_histogram.assign(std::size(kStepTokenBuckets) + 1, 0);
  stats.step_token_histogram[0] = 5;
  stats.step_token_histogram[3] = 3;
  stats.step_token_histogram.back() = 1;
  return stats;
}

FinishedRequest MakeFinished(FinishReason reason) {
  FinishedRequest request;
  request.reason = reason;
  request.arrival_time = absl::FromUnixSeconds(1000);
  request.scheduled_time = request.arrival_time + absl::Seconds(1);
  request.first_token_time = request.arrival_time + absl::Seconds(3);
  request.end_time = request.arrival_time + absl::Seconds(7);
  request.num_prompt_tokens = 12;
  request.num_generation_tokens = 5;
  request.max_tokens = 8;
  return request;
}

std::vector<double> Bounds(const Exposition& exposition,
                           const std::string& name) {
  std::vector<double> bounds;
  double last = -1;
  for (const Sample& sample : exposition.Find(name + "_bucket")) {
    const std::string& bound = sample.labels.at("le");
    EXPECT_GE(sample.value, last) << name;  // Cumulative.
    last = sample.value;
    double value = 0;
    if (bound == "+Inf") {
      EXPECT_EQ(sample.value, exposition.Value(name + "_count")) << name;
      value = INFINITY;
    } else {
      EXPECT_TRUE(absl::SimpleAtod(bound, &value)) << bound;
    }
    bounds.push_back(value);
  }
  return bounds;
}

TEST(ServerMetricsTest, NamesTypesAndLabelsAreThoseOfVllm) {
  ServerMetrics metrics(MakeOptions("m"));
  const Exposition exposition = ParseExposition(metrics.Render(MakeStats()));
  const std::vector<std::pair<std::string, std::string>> expected = {
      {"vllm:num_requests_running", "gauge"},
      {"vllm:num_requests_waiting", "gauge"},
      {"vllm:kv_cache_usage_perc", "gauge"},
      {"vllm:gpu_cache_usage_perc", "gauge"},
      {"vllm:prompt_tokens_total", "counter"},
      {"vllm:generation_tokens_total", "counter"},
      {"vllm:request_success_total", "counter"},
      {"vllm:num_preemptions_total", "counter"},
      {"vllm:prefix_cache_queries_total", "counter"},
      {"vllm:prefix_cache_hits_total", "counter"},
      {"vllm:time_to_first_token_seconds", "histogram"},
      {"vllm:inter_token_latency_seconds", "histogram"},
      {"vllm:time_per_output_token_seconds", "histogram"},
      {"vllm:request_time_per_output_token_seconds", "histogram"},
      {"vllm:e2e_request_latency_seconds", "histogram"},
      {"vllm:request_queue_time_seconds", "histogram"},
      {"vllm:request_prefill_time_seconds", "histogram"},
      {"vllm:request_decode_time_seconds", "histogram"},
      {"vllm:request_inference_time_seconds", "histogram"},
      {"vllm:iteration_tokens_total", "histogram"},
  };
  for (const auto& [name, type] : expected) {
    ASSERT_EQ(exposition.types.count(name), 1u) << name;
    EXPECT_EQ(exposition.types.at(name), type) << name;
    const std::string sample = type == "histogram" ? name + "_count" : name;
    const std::vector<Sample> found =
        exposition.Find(sample, {{"model_name", "m"}, {"engine", "0"}});
    EXPECT_EQ(found.size(), name == "vllm:request_success_total" ? 4u : 1u)
        << name;
  }
  const std::vector<Sample> info = exposition.Find("vllm:cache_config_info");
  ASSERT_EQ(info.size(), 1u);
  EXPECT_EQ(info[0].value, 1);
  EXPECT_EQ(info[0].labels, (Labels{{"block_size", "32"},
                                    {"num_gpu_blocks", "100"},
                                    {"cache_dtype", "bf16"},
                                    {"enable_prefix_caching", "True"},
                                    {"engine", "0"}}));
  for (const char* reason : {"stop", "length", "abort", "error"}) {
    EXPECT_EQ(exposition.Value("vllm:request_success_total",
                               {{"finished_reason", reason}}),
              0);
  }
}

TEST(ServerMetricsTest, BucketsAreThoseOfVllm) {
  ServerMetrics metrics(MakeOptions("m"));
  const Exposition exposition = ParseExposition(metrics.Render(MakeStats()));
  const double inf = INFINITY;
  const std::vector<double> request_seconds = {
      .3, .5, .8, 1,  1.5, 2,   2.5, 5,   10,   15,   20,
      30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680, inf};
  const std::vector<double> token_seconds = {.01, .025, .05, .075, .1, .15, .2,
                                             .3,  .4,   .5,  .75,  1,  2.5, 5,
                                             7.5, 10,   20,  40,   80, inf};
  EXPECT_EQ(Bounds(exposition, "vllm:time_to_first_token_seconds"),
            (std::vector<double>{.001, .005, .01, .02, .04, .06,  .08, .1,
                                 .25,  .5,   .75, 1,   2.5, 5,    7.5, 10,
                                 20,   40,   80,  160, 640, 2560, inf}));
  for (const char* name : {"vllm:inter_token_latency_seconds",
                           "vllm:time_per_output_token_seconds"}) {
    EXPECT_EQ(Bounds(exposition, name), token_seconds) << name;
  }
  for (const char* name :
       {"vllm:e2e_request_latency_seconds", "vllm:request_queue_time_seconds",
        "vllm:request_prefill_time_seconds", "vllm:request_decode_time_seconds",
        "vllm:request_inference_time_seconds"}) {
    EXPECT_EQ(Bounds(exposition, name), request_seconds) << name;
  }
  EXPECT_EQ(Bounds(exposition, "vllm:request_prompt_tokens"),
            (std::vector<double>{1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000,
                                 inf}));
  EXPECT_EQ(Bounds(exposition, "vllm:request_params_n"),
            (std::vector<double>{1, 2, 5, 10, 20, inf}));
  EXPECT_EQ(Bounds(exposition, "vllm:iteration_tokens_total").back(), inf);
}

TEST(ServerMetricsTest, ShowsTheEnginesFigures) {
  ServerMetrics metrics(MakeOptions("m"));
  EngineStats stats = MakeStats();
  Exposition exposition = ParseExposition(metrics.Render(stats));
  EXPECT_EQ(exposition.Value("vllm:num_requests_running"), 3);
  EXPECT_EQ(exposition.Value("vllm:num_requests_waiting"), 2);
  EXPECT_EQ(exposition.Value("vllm:kv_cache_usage_perc"), 0.25);
  EXPECT_EQ(exposition.Value("vllm:gpu_cache_usage_perc"), 0.25);
  EXPECT_EQ(exposition.Value("vllm:prompt_tokens_total"), 40);
  EXPECT_EQ(exposition.Value("vllm:iteration_tokens_total_count"), 9);
  // Twice the same: nothing is added twice. A figure that went back (it cannot)
  // does not take the counter along.
  stats.num_generation_tokens = 31;
  stats.num_prompt_tokens = 39;
  for (int i = 0; i < 2; ++i) {
    exposition = ParseExposition(metrics.Render(stats));
    EXPECT_EQ(exposition.Value("vllm:generation_tokens_total"), 31);
    EXPECT_EQ(exposition.Value("vllm:prompt_tokens_total"), 40);
    EXPECT_EQ(exposition.Value("vllm:prefix_cache_hits_total"), 16);
    EXPECT_EQ(exposition.Value("vllm:num_preemptions_total"), 1);
  }
}

TEST(ServerMetricsTest, DraftsAreShownWhereThereIsADrafter) {
  EngineStats stats = MakeStats();
  stats.num_drafts = 4;
  stats.num_draft_tokens = 12;
  stats.num_accepted_tokens = 7;
  stats.num_accepted_at = {4, 2, 1};
  ServerMetrics without(MakeOptions("m"));
  EXPECT_EQ(without.Render(stats).find("spec_decode"), std::string::npos);
  ServerMetricsOptions options = MakeOptions("m");
  options.num_speculative_tokens = 3;
  ServerMetrics metrics(options);
  for (int i = 0; i < 2; ++i) {
    const Exposition exposition = ParseExposition(metrics.Render(stats));
    EXPECT_EQ(exposition.Value("vllm:spec_decode_num_drafts_total"), 4);
    EXPECT_EQ(exposition.Value("vllm:spec_decode_num_draft_tokens_total"), 12);
    EXPECT_EQ(exposition.Value("vllm:spec_decode_num_accepted_tokens_total"),
              7);
    EXPECT_EQ(exposition.Value("quire:drafter_failures_total"), 0);
    std::map<std::string, double> by_position;
    for (const Sample& sample : exposition.samples) {
      if (sample.name == "vllm:spec_decode_num_accepted_tokens_per_pos_total") {
        by_position[sample.labels.at("position")] = sample.value;
      }
    }
    EXPECT_EQ(by_position,
              (std::map<std::string, double>{{"0", 4}, {"1", 2}, {"2", 1}}));
  }
  // An edge's cloud has come back with more.
  stats.num_accepted_at = {5, 2, 1, 0, 1};
  EXPECT_NE(metrics.Render(stats).find("position=\"4\"} 1\n"),
            std::string::npos);
  stats.num_drafter_failures = 1;
  EXPECT_EQ(ParseExposition(metrics.Render(stats))
                .Value("quire:drafter_failures_total"),
            1);
}

TEST(ServerMetricsTest, CountersNeverFall) {
  ServerMetrics metrics(MakeOptions("m"));
  EngineStats stats = MakeStats();
  std::map<std::pair<std::string, Labels>, double> last;
  for (int i = 0; i < 5; ++i) {
    const Exposition exposition = ParseExposition(metrics.Render(stats));
    for (const Sample& sample : exposition.samples) {
      const auto type = exposition.types.find(sample.name);
      if (type != exposition.types.end() && type->second == "gauge") continue;
      double& before = last[{sample.name, sample.labels}];
      EXPECT_GE(sample.value, before) << sample.name;
      before = sample.value;
    }
    stats.num_steps += 2;
    stats.step_token_histogram[1] += 2;
    stats.num_prompt_tokens += i;
    stats.num_generation_tokens += 3;
    metrics.ObserveFinished(MakeFinished(FinishReason::kStop));
    metrics.ObserveTimeToFirstToken(absl::Seconds(1));
    metrics.ObserveInterTokenLatency(absl::Milliseconds(20));
  }
}

TEST(ServerMetricsTest, ObservesFinishedRequests) {
  ServerMetrics metrics(MakeOptions("m"));
  metrics.ObserveFinished(MakeFinished(FinishReason::kLength));
  // Ended in the queue, and between its first step and its first token.
  FinishedRequest waiting = MakeFinished(FinishReason::kAbort);
  waiting.scheduled_time = waiting.first_token_time = absl::InfinitePast();
  waiting.num_generation_tokens = 0;
  metrics.ObserveFinished(waiting);
  FinishedRequest prefilling = MakeFinished(FinishReason::kAbort);
  prefilling.first_token_time = absl::InfinitePast();
  prefilling.num_generation_tokens = 0;
  metrics.ObserveFinished(prefilling);
  const Exposition exposition = ParseExposition(metrics.Render(MakeStats()));
  const auto count = [&](const std::string& name) {
    return exposition.Value("vllm:" + name + "_count");
  };
  const auto sum = [&](const std::string& name) {
    return exposition.Value("vllm:" + name + "_sum");
  };
  EXPECT_EQ(exposition.Value("vllm:request_success_total",
                             {{"finished_reason", "length"}}),
            1);
  EXPECT_EQ(exposition.Value("vllm:request_success_total",
                             {{"finished_reason", "abort"}}),
            2);
  EXPECT_EQ(count("e2e_request_latency_seconds"), 3);
  EXPECT_EQ(count("request_queue_time_seconds"), 2);
  EXPECT_EQ(count("request_inference_time_seconds"), 2);
  EXPECT_EQ(count("request_prefill_time_seconds"), 1);
  EXPECT_EQ(sum("request_prefill_time_seconds"), 2);
  EXPECT_EQ(count("request_decode_time_seconds"), 1);
  EXPECT_EQ(sum("request_decode_time_seconds"), 4);
  // Four seconds for the four gaps between five tokens.
  EXPECT_EQ(count("request_time_per_output_token_seconds"), 1);
  EXPECT_EQ(sum("request_time_per_output_token_seconds"), 1);
  EXPECT_EQ(sum("request_params_max_tokens"), 24);
}

TEST(ServerMetricsTest, AwkwardModelNamesAreEscaped) {
  const std::string name = "a \"b\" \\c\\ \n d{}=,\xc3\xa9";
  ServerMetrics metrics(MakeOptions(name));
  const Exposition exposition = ParseExposition(metrics.Render(MakeStats()));
  int num_named = 0;
  for (const Sample& sample : exposition.samples) {
    const auto label = sample.labels.find("model_name");
    if (label == sample.labels.end()) continue;
    ++num_named;
    EXPECT_EQ(label->second, name) << sample.name;
  }
  EXPECT_GT(num_named, 100);
  EXPECT_FALSE(exposition
                   .Find("vllm:iteration_tokens_total_bucket",
                         {{"model_name", name}, {"le", "+Inf"}})
                   .empty());
}

}  // namespace
}  // namespace quire
