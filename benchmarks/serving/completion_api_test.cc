#include "benchmarks/serving/completion_api.h"

#include <string>

#include "absl/strings/match.h"
#include "engine/base/random.h"
#include "gtest/gtest.h"
#include "server/json_text.h"

namespace quire {
namespace {

CompletionChunk Read(absl::string_view data) {
  CompletionChunk chunk;
  EXPECT_TRUE(ReadCompletionChunk(data, &chunk).ok()) << data;
  return chunk;
}

TEST(CompletionApiTest, Chunks) {
  const CompletionChunk text = Read(
      R"({"id": "x", "choices": [{"index": 0, "text": " a\n", "logprobs":
      {"text": "no"}, "finish_reason": null}], "usage": null})");
  EXPECT_TRUE(text.has_choice);
  EXPECT_EQ(text.text, " a\n");
  EXPECT_FALSE(text.completion_tokens.has_value());

  const CompletionChunk chat = Read(
      R"({"choices": [{"delta": {"role": "assistant", "content": "b"}}]})");
  EXPECT_TRUE(chat.has_choice);
  EXPECT_EQ(chat.text, "b");

  const CompletionChunk thinking =
      Read(R"({"choices": [{"delta": {"reasoning_content": "c"}}]})");
  EXPECT_EQ(thinking.text, "c");

  const CompletionChunk usage = Read(
      R"({"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 7,
      "prompt_tokens_details": {"prompt_tokens": 99}}})");
  EXPECT_FALSE(usage.has_choice);
  EXPECT_EQ(usage.prompt_tokens, 5);
  EXPECT_EQ(usage.completion_tokens, 7);
}

TEST(CompletionApiTest, Errors) {
  EXPECT_EQ(Read(R"({"error": {"message": "full", "code": 503}})").error,
            "full");
  EXPECT_EQ(Read(R"({"error": "broken"})").error, "broken");
  EXPECT_FALSE(Read(R"({"error": {}})").error.empty());
  EXPECT_EQ(Read(R"({"object": "error", "message": "m"})").error, "m");
  EXPECT_TRUE(Read(R"({"object": "x", "message": "m"})").error.empty());
  EXPECT_TRUE(Read(R"({"error": null, "choices": []})").error.empty());
}

TEST(CompletionApiTest, WhatIsNoObjectIsAnError) {
  for (const char* data : {"", "[1]", "3", "{", "{\"a\": 1} x", "nonsense"}) {
    CompletionChunk chunk;
    EXPECT_EQ(ReadCompletionChunk(data, &chunk).code(),
              absl::StatusCode::kDataLoss)
        << data;
  }
  CompletionChunk chunk;
  EXPECT_FALSE(
      ReadCompletionChunk("{\"a\":" + std::string(100000, '['), &chunk).ok());
}

TEST(CompletionApiTest, TimeInTheQueue) {
  CompletionChunk chunk;
  ASSERT_TRUE(
      ReadCompletionChunk(
          R"({"choices": [], "metrics": {"queue_time_ms": 12.5}})", &chunk)
          .ok());
  EXPECT_EQ(chunk.queue_seconds, 0.0125);
  ASSERT_TRUE(
      ReadCompletionChunk(R"({"metrics": {"queue_time_ms": 3}})", &chunk).ok());
  EXPECT_EQ(chunk.queue_seconds, 0.003);
}

TEST(CompletionApiTest, AnyBytesEndInAStatus) {
  SimulationRandom random(1);
  const std::string good =
      R"({"choices": [{"delta": {"content": "b"}}], "usage": {"a": [1, {}]}})";
  for (int run = 0; run < 3000; ++run) {
    std::string text = good;
    text[random.Below(text.size())] ^= 1 << random.Below(8);
    text.resize(random.Between(1, text.size()));
    CompletionChunk chunk;
    const absl::Status status = ReadCompletionChunk(text, &chunk);
    EXPECT_TRUE(status.ok() || absl::IsDataLoss(status));
  }
}

TEST(CompletionApiTest, Bodies) {
  CompletionParams params;
  params.model = "m";
  params.ignore_eos = true;
  params.extra = {{"top_k", 5}, {"temperature", 0.5}};
  LoadPrompt prompt;
  prompt.text = "hi";
  prompt.output_len = 9;
  const auto text = *ParseJson(CompletionBody(params, prompt));
  EXPECT_EQ(text["model"], "m");
  EXPECT_EQ(text["prompt"], "hi");
  EXPECT_EQ(text["max_tokens"], 9);
  EXPECT_EQ(text["ignore_eos"], true);
  EXPECT_EQ(text["temperature"], 0.5);
  EXPECT_EQ(text["top_k"], 5);
  EXPECT_EQ(text["stream_options"]["include_usage"], true);

  EXPECT_FALSE(text.contains("logprobs"));

  params.num_logprobs = 0;
  prompt.model = "adapter";
  const auto asked = *ParseJson(CompletionBody(params, prompt));
  EXPECT_EQ(asked["model"], "adapter");
  EXPECT_EQ(asked["logprobs"], 0);
  prompt.model.clear();

  prompt.token_ids = {1, 2};
  EXPECT_EQ((*ParseJson(CompletionBody(params, prompt)))["prompt"],
            nlohmann::ordered_json({1, 2}));

  params = CompletionParams();
  params.api = CompletionApi::kChat;
  const auto chat = *ParseJson(CompletionBody(params, prompt));
  EXPECT_FALSE(chat.contains("model"));
  EXPECT_FALSE(chat.contains("ignore_eos"));
  EXPECT_EQ(chat["messages"][0]["content"], "hi");
  EXPECT_EQ(chat["max_completion_tokens"], 9);
  EXPECT_EQ(chat["temperature"], 0.0);
  params.num_logprobs = 4;
  const auto asked_chat = *ParseJson(CompletionBody(params, prompt));
  EXPECT_EQ(asked_chat["logprobs"], true);
  EXPECT_EQ(asked_chat["top_logprobs"], 4);
}

TEST(CompletionApiTest, EmbeddingBodies) {
  CompletionParams params;
  params.api = CompletionApi::kEmbeddings;
  params.model = "m";
  params.ignore_eos = true;
  params.extra = {{"dimensions", 16}};
  LoadPrompt prompt;
  prompt.text = "one";
  EXPECT_EQ(CompletionBody(params, prompt),
            R"({"model":"m","input":"one","truncate_prompt_tokens":-1,)"
            R"("dimensions":16})");
  prompt.further_inputs.resize(1);
  prompt.further_inputs[0].text = "two";
  const auto input = [&] {
    return (*ParseJson(CompletionBody(params, prompt)))["input"].dump();
  };
  EXPECT_EQ(input(), R"(["one","two"])");
  prompt.token_ids = {1, 2};
  prompt.further_inputs[0].token_ids = {3};
  EXPECT_EQ(input(), "[[1,2],[3]]");
  prompt.further_inputs.clear();
  EXPECT_EQ(input(), "[1,2]");
}

TEST(CompletionApiTest, Embeddings) {
  const CompletionChunk numbers = Read(
      R"({"object": "list", "data": [{"index": 0, "embedding": [0.5, -1]},
      {"index": 1, "embedding": []}], "usage": {"prompt_tokens": 3}})");
  EXPECT_EQ(numbers.num_embeddings, 2);
  EXPECT_EQ(numbers.prompt_tokens, 3);
  EXPECT_FALSE(numbers.has_choice);
  EXPECT_EQ(Read(R"({"data": [{"embedding": "AACAPw=="}]})").num_embeddings, 1);
  for (const char* other :
       {R"({"data": []})", R"({"data": [{"embedding": null}]})",
        R"({"embedding": [1]})", R"({"data": [[{"embedding": [1]}]]})"}) {
    EXPECT_EQ(Read(other).num_embeddings, 0) << other;
  }
}

TEST(CompletionApiTest, PagesOfHtmlAreTheirText) {
  EXPECT_EQ(ErrorText(404,
                      "<!DOCTYPE HTML>\n<html lang=en><head><style>p {\n"
                      "color: red > blue }</style><title>Not found</title>"
                      "</head>\n<body><p>No  such\n<b>path</b>.</p>"
                      "<script>if (a<b) run();</script></body></html>"),
            "HTTP 404: Not found No such path .");
  // Cut in the middle, of a tag or of a style.
  EXPECT_EQ(ErrorText(502, "<html><p>a</p"), "HTTP 502: a");
  EXPECT_EQ(ErrorText(502, "<html><style>a {"), "HTTP 502");
  EXPECT_LT(ErrorText(500, "<html>" + std::string(1 << 20, 'x')).size(), 300u);
}

TEST(CompletionApiTest, AnyPageIsShort) {
  SimulationRandom random(2);
  const std::string page =
      "<!doctype html><html><head><style>p {}</style></head><body><p>a <b>b</b>"
      "<script>c()</script></html>";
  for (int run = 0; run < 3000; ++run) {
    std::string text;
    for (int i = random.Between(1, 4); i > 0; --i) text += page;
    for (int i = random.Between(0, 8); i > 0; --i) {
      text[random.Below(text.size())] = "<>/! \xff"[random.Below(6)];
    }
    text.resize(random.Between(1, text.size()));
    EXPECT_LT(ErrorText(500, text).size(), 1000u);
  }
}

TEST(CompletionApiTest, ErrorTexts) {
  EXPECT_EQ(ErrorText(404, R"({"error": {"message": "no such model"}})"),
            "HTTP 404: no such model");
  EXPECT_EQ(ErrorText(502, "<html>\n"), "HTTP 502");
  EXPECT_EQ(ErrorText(502, "<b>no page</b>"), "HTTP 502: <b>no page</b>");
  EXPECT_EQ(ErrorText(500, ""), "HTTP 500");
  EXPECT_LT(ErrorText(500, std::string(1 << 20, 'x')).size(), 1000u);
}

}  // namespace
}  // namespace quire
