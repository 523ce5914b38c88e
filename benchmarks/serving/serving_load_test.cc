#include "benchmarks/serving/serving_load.h"

#include <atomic>
#include <string>
#include <thread>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "benchmarks/serving/fake_server.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace quire {
namespace {

using testing::HasSubstr;

std::string Token(const std::string& text) {
  return absl::StrCat(R"({"choices": [{"index": 0, "text": ")", text,
                      R"("}]})");
}

std::string Usage(int prompt_tokens, int completion_tokens) {
  return absl::StrCat(R"({"choices": [], "usage": {"prompt_tokens": )",
                      prompt_tokens, R"(, "completion_tokens": )",
                      completion_tokens, "}}");
}

FakeAnswer GoodAnswer() {
  return {StreamAnswer({Token("a"), Token("b"), Usage(11, 5), "[DONE]"})};
}

class ServingLoadTest : public testing::Test {
 protected:
  // A load of `count` requests on a server that answers as `answer` says.
  ServingLoadResult Run(
      int count, std::function<FakeAnswer(int, const std::string&)> answer) {
    FakeServer server(std::move(answer));
    ServerUrl url;
    url.host = "127.0.0.1";
    url.port = server.port();
    LoadClientOptions client_options;
    client_options.idle_timeout_seconds = idle_timeout_seconds_;
    auto client = LoadClient::Create(url, client_options);
    EXPECT_TRUE(client.ok()) << client.status();
    std::vector<LoadPrompt> prompts(count);
    for (int i = 0; i < count; ++i) {
      prompts[i].text = absl::StrCat("prompt ", i);
      prompts[i].num_tokens = 2;
    }
    for (int i : bad_prompts_) prompts[i].error = "line 7: malformed";
    if (options_.arrival_times.empty()) {
      options_.arrival_times.assign(count, 0);
    }
    const ServingLoadResult result =
        RunServingLoad(client->get(), prompts, options_);
    EXPECT_EQ(result.records.size(), prompts.size());
    return result;
  }

  // The error of one request that is answered so.
  std::string ErrorOf(const FakeAnswer& answer) {
    const ServingLoadResult result =
        Run(1, [&](int, const std::string&) { return answer; });
    EXPECT_FALSE(result.records[0].success);
    return result.records[0].error;
  }

  ServingLoadOptions options_;
  std::vector<int> bad_prompts_;
  double idle_timeout_seconds_ = 60;
};

TEST_F(ServingLoadTest, RecordsWhatReadersSee) {
  options_.keeps_text = true;
  const ServingLoadResult result =
      Run(20, [](int, const std::string&) { return GoodAnswer(); });
  for (const RequestResult& record : result.records) {
    EXPECT_TRUE(record.success) << record.error;
    EXPECT_EQ(record.prompt_len, 11);
    EXPECT_EQ(record.output_tokens, 5);  // As the server says.
    EXPECT_EQ(record.generated_text, "ab");
    EXPECT_EQ(record.itls.size(), 1u);
    EXPECT_GT(record.ttft, 0);
    EXPECT_NEAR(record.latency, record.ttft + record.itls[0], 1e-9);
    EXPECT_LE(record.start_time + record.latency, result.duration);
  }
  EXPECT_FALSE(result.was_cancelled);
}

TEST_F(ServingLoadTest, CountsWhereTheServerDoesNot) {
  const ServingLoadResult result = Run(1, [](int, const std::string&) {
    return FakeAnswer{StreamAnswer({Token("a"), Token(""), "[DONE]"})};
  });
  EXPECT_TRUE(result.records[0].success);
  EXPECT_EQ(result.records[0].prompt_len, 2);
  EXPECT_EQ(result.records[0].output_tokens, 2);
}

TEST_F(ServingLoadTest, AStreamThatBreaksOffHasFailed) {
  const std::string last =
      R"({"choices": [{"text": "b", "finish_reason": "length"}]})";
  for (const auto& [end, succeeds] : {std::pair{std::string("[DONE]"), true},
                                      {last, true},
                                      {Token("b"), false}}) {
    const ServingLoadResult result = Run(1, [&](int, const std::string&) {
      return FakeAnswer{StreamAnswer({Token("a"), end})};
    });
    EXPECT_EQ(result.records[0].success, succeeds) << end;
    EXPECT_EQ(result.records[0].error.empty(), succeeds);
  }
}

// What the server sent as a whole is shared out over the chunks.
TEST_F(ServingLoadTest, CountsTheTokensOfChunks) {
  using Chunks = std::vector<double>;
  const auto chunks_of = [this](std::vector<std::string> events) {
    events.push_back("[DONE]");
    const ServingLoadResult result = Run(1, [&](int, const std::string&) {
      return FakeAnswer{StreamAnswer(events)};
    });
    EXPECT_TRUE(result.records[0].success) << result.records[0].error;
    return result.records[0].chunk_tokens;
  };
  // As many as tokens, or not counted: one each.
  EXPECT_EQ(chunks_of({Token("a"), Token("bcd"), Usage(11, 2)}), Chunks());
  EXPECT_EQ(chunks_of({Token("a"), Token("bcd")}), Chunks());
  // By the length of the texts.
  EXPECT_EQ(chunks_of({Token("a"), Token("bcd"), Usage(11, 8)}),
            Chunks({2, 6}));
  EXPECT_EQ(chunks_of({Token(""), Token(""), Usage(11, 8)}), Chunks({4, 4}));
  // One chunk without a token.
  EXPECT_EQ(chunks_of({Token(""), Token("a"), Token("bcd"), Usage(11, 2)}),
            Chunks({0, 1, 1}));
  // As the server says with each (continuous_usage_stats).
  const auto counted = [](const std::string& text, int num_tokens) {
    return absl::StrCat(R"({"choices": [{"index": 0, "text": ")", text,
                        R"("}], "usage": {"prompt_tokens": 3, )",
                        R"("completion_tokens": )", num_tokens, "}}");
  };
  EXPECT_EQ(chunks_of({counted("a", 3), counted("bcd", 4), Usage(3, 4)}),
            Chunks({3, 1}));
  EXPECT_EQ(chunks_of({counted("a", 3), counted("bcd", 4), Usage(3, 5)}),
            Chunks({3, 2}));
}

TEST_F(ServingLoadTest, WhatCannotBeSentHasFailed) {
  int num_requests = 0;
  bad_prompts_ = {1, 3};
  options_.max_concurrency = 1;
  LoadProgress last;
  options_.on_progress = [&](const LoadProgress& now) { last = now; };
  const ServingLoadResult result = Run(4, [&](int, const std::string&) {
    ++num_requests;
    return GoodAnswer();
  });
  EXPECT_EQ(num_requests, 2);
  for (size_t i = 0; i < 4; ++i) {
    EXPECT_EQ(result.records[i].success, i % 2 == 0);
    EXPECT_EQ(result.records[i].error, i % 2 == 0 ? "" : "line 7: malformed");
  }
  EXPECT_EQ(last.num_done, 4);
  EXPECT_EQ(last.num_failed, 2);
  EXPECT_EQ(last.num_tokens, 10);
}

TEST_F(ServingLoadTest, FailuresAreRecordedEach) {
  EXPECT_EQ(ErrorOf({SizedAnswer(404, R"({"error": {"message": "no path"}})")}),
            "HTTP 404: no path");
  EXPECT_EQ(ErrorOf({SizedAnswer(500, "oops")}), "HTTP 500: oops");
  EXPECT_THAT(ErrorOf({SizedAnswer(200, "{}")}),
              HasSubstr("not an event stream"));
  EXPECT_THAT(ErrorOf({SizedAnswer(200, "<html><p>hello</html>")}),
              HasSubstr("not an event stream: HTTP 200: hello"));
  EXPECT_THAT(ErrorOf({StreamAnswer({Token("a")}, false), true}),
              HasSubstr("in the middle"));
  EXPECT_THAT(ErrorOf({StreamAnswer({Token("a"), "nonsense"})}),
              HasSubstr("not a JSON object"));
  EXPECT_THAT(ErrorOf({StreamAnswer({})}), HasSubstr("no token"));
  EXPECT_EQ(ErrorOf({StreamAnswer(
                {Token("a"), R"({"error": {"message": "died"}})"})}),
            "died");
  EXPECT_THAT(ErrorOf({"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n"
                       "Content-Type: text/event-stream\r\n\r\nzz\r\n"}),
              HasSubstr("chunk"));
}

TEST_F(ServingLoadTest, SilenceIsAFailure) {
  idle_timeout_seconds_ = 0.05;
  EXPECT_THAT(ErrorOf({"", false, true}), HasSubstr("nothing came"));
}

// A server that breaks every third answer: the others count.
TEST_F(ServingLoadTest, SomeFail) {
  const ServingLoadResult result = Run(30, [](int number, const std::string&) {
    if (number % 3 == 0) return FakeAnswer{"", true};
    return GoodAnswer();
  });
  int num_failed = 0;
  for (const RequestResult& record : result.records) {
    num_failed += !record.success;
    EXPECT_EQ(record.success, record.error.empty());
  }
  EXPECT_GT(num_failed, 0);
  EXPECT_LT(num_failed, 30);
}

TEST_F(ServingLoadTest, KeepsToTheConcurrency) {
  options_.max_concurrency = 3;
  std::atomic<int> num_open{0}, most{0};
  int last_done = 0;
  options_.on_progress = [&](const LoadProgress& progress) {
    EXPECT_LE(progress.num_open, 3);
    EXPECT_GE(progress.num_done, last_done);
    last_done = progress.num_done;
  };
  Run(50, [&](int, const std::string&) {
    const int now = ++num_open;
    int seen = most;
    while (now > seen && !most.compare_exchange_weak(seen, now)) {
    }
    --num_open;
    return GoodAnswer();
  });
  EXPECT_LE(most, 3);
  EXPECT_EQ(last_done, 50);
}

TEST_F(ServingLoadTest, RequestsStartWhenTheyAreDue) {
  options_.arrival_times = {0, 0.02, 0.05};
  const ServingLoadResult result =
      Run(3, [](int, const std::string&) { return GoodAnswer(); });
  for (size_t i = 0; i < 3; ++i) {
    EXPECT_GE(result.records[i].start_time, options_.arrival_times[i]);
  }
}

// Cancelled by the first answer: what ended counts, the rest says why it did
// not.
TEST_F(ServingLoadTest, CancellationKeepsWhatEnded) {
  std::atomic<bool> is_cancelled{false};
  options_.is_cancelled = &is_cancelled;
  options_.max_concurrency = 1;
  const ServingLoadResult result = Run(5, [&](int number, const std::string&) {
    if (number == 0) return GoodAnswer();
    is_cancelled = true;
    return FakeAnswer{"", false, /*is_silent=*/true};
  });
  EXPECT_TRUE(result.was_cancelled);
  EXPECT_TRUE(result.records[0].success);
  EXPECT_EQ(result.records[1].error, "cancelled");
  EXPECT_EQ(result.records[4].error, "cancelled before it started");
  EXPECT_TRUE(result.records[1].was_started);
  EXPECT_FALSE(result.records[4].was_started);
}

// Beside a load that fills its one place, and apart from its records.
TEST_F(ServingLoadTest, ProbesRunBesideTheLoad) {
  options_.max_concurrency = 1;
  options_.probe_interval = 0.001;
  std::atomic<int> num_probes{0};
  options_.on_progress = [](const LoadProgress& progress) {
    EXPECT_LE(progress.num_open, 1);
    EXPECT_LE(progress.num_done, 3);
  };
  const ServingLoadResult result = Run(3, [&](int, const std::string& request) {
    if (absl::StrContains(request, R"("prompt":"Hi")")) {
      EXPECT_TRUE(absl::StrContains(request, R"("max_tokens":1)"));
      ++num_probes;
      return FakeAnswer{StreamAnswer({Token("x"), "[DONE]"})};
    }
    // Each request of the load is held up until a probe has come.
    const int seen = num_probes;
    while (num_probes == seen) std::this_thread::yield();
    return GoodAnswer();
  });
  EXPECT_GE(result.probes.size(), 3u);
  for (const RequestResult& probe : result.probes) {
    EXPECT_TRUE(probe.success) << probe.error;
    EXPECT_EQ(probe.output_tokens, 1);
  }
  for (const RequestResult& record : result.records) {
    EXPECT_TRUE(record.success) << record.error;
    EXPECT_EQ(record.output_tokens, 5);
  }
}

TEST_F(ServingLoadTest, Embeddings) {
  options_.params.api = CompletionApi::kEmbeddings;
  options_.endpoint = "/v1/embeddings";
  LoadProgress last;
  options_.on_progress = [&](const LoadProgress& now) { last = now; };
  const auto answer = [](int num_embeddings) {
    std::string data;
    for (int i = 0; i < num_embeddings; ++i) {
      absl::StrAppend(&data, i == 0 ? "" : ",", R"({"embedding": [0.5, 1]})");
    }
    return FakeAnswer{
        SizedAnswer(200, absl::StrCat(R"({"data": [)", data,
                                      R"(], "usage": {"prompt_tokens": 6}})"))};
  };
  const ServingLoadResult result = Run(3, [&](int, const std::string& request) {
    EXPECT_TRUE(absl::StartsWith(request, "POST /v1/embeddings "));
    EXPECT_TRUE(absl::StrContains(request, R"("input":"prompt )"));
    EXPECT_FALSE(absl::StrContains(request, "stream"));
    return answer(1);
  });
  for (const RequestResult& record : result.records) {
    EXPECT_TRUE(record.success) << record.error;
    EXPECT_EQ(record.num_inputs, 1);
    EXPECT_EQ(record.prompt_len, 6);
    EXPECT_EQ(record.output_tokens, 0);
    EXPECT_GT(record.latency, 0);
  }
  EXPECT_EQ(last.num_tokens, 18);

  EXPECT_EQ(ErrorOf(answer(2)), "the answer has 2 embeddings of 1 inputs");
  EXPECT_EQ(ErrorOf({SizedAnswer(200, R"({"data": []})")}),
            "the answer has 0 embeddings of 1 inputs");
  EXPECT_THAT(ErrorOf({SizedAnswer(200, "[1]")}), HasSubstr("not a JSON"));
  EXPECT_THAT(ErrorOf({SizedAnswer(200, "<html>hello</html>")}),
              HasSubstr("not a JSON object: HTTP 200: hello"));
  EXPECT_THAT(ErrorOf(GoodAnswer()), HasSubstr("not a JSON object"));
  EXPECT_EQ(ErrorOf({SizedAnswer(200, R"({"error": {"message": "no"}})")}),
            "no");
  EXPECT_EQ(ErrorOf({SizedAnswer(
                400, R"({"error": {"message": "it makes no embeddings"}})")}),
            "HTTP 400: it makes no embeddings");
  EXPECT_THAT(ErrorOf({"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\n{",
                       /*closes=*/true}),
              HasSubstr("in the middle"));
}

TEST_F(ServingLoadTest, ChatAnswers) {
  options_.params.api = CompletionApi::kChat;
  options_.endpoint = "/v1/chat/completions";
  const ServingLoadResult result = Run(1, [](int, const std::string& request) {
    EXPECT_TRUE(absl::StartsWith(request, "POST /v1/chat/completions "));
    return FakeAnswer{StreamAnswer(
        {R"({"choices": [{"delta": {"role": "assistant"}}]})",
         R"({"choices": [{"delta": {"content": "x"}}]})", "[DONE]"})};
  });
  EXPECT_TRUE(result.records[0].success);
  EXPECT_EQ(result.records[0].itls.size(), 1u);
}

}  // namespace
}  // namespace quire
