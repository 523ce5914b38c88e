// What ApiCall says of prompts, and which choices it returns.
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "server/api_call.h"
#include "server/fake_tokenizer.h"
#include "server/recording_responder.h"

namespace quire {
namespace {

using Json = nlohmann::ordered_json;

const FakeTokenizer& Fake() {
  static const FakeTokenizer& tokenizer = *new FakeTokenizer;
  return tokenizer;
}

TokenOutput Token(int32_t id, float logprob, std::vector<TopLogprob> top = {},
                  int rank = 0) {
  TokenOutput token;
  token.token_id = id;
  token.logprob = logprob;
  token.top_logprobs = std::move(top);
  token.rank = rank;
  return token;
}

OutputEvent Event(std::vector<TokenOutput> prompt_tokens,
                  std::vector<TokenOutput> tokens,
                  std::optional<FinishReason> reason = std::nullopt) {
  OutputEvent event;
  event.prompt_tokens = std::move(prompt_tokens);
  event.tokens = std::move(tokens);
  event.finish_reason = reason;
  return event;
}

// One prompt, "<s>ab", of which "b" is the third most likely token.
ApiCallOptions MakeOptions(ApiKind kind, bool stream) {
  ApiCallOptions options;
  options.kind = kind;
  options.id = "id-1";
  options.model = "m";
  options.stream = stream;
  options.num_prompt_tokens = 3;
  ApiCallPrompt prompt;
  prompt.token_ids = {FakeTokenizer::kBos, 'a', 'b'};
  prompt.echo = MakePromptText(Fake(), prompt.token_ids, "ab", true);
  options.prompts.push_back(prompt);
  return options;
}

TokenOutput ScoredA() {
  return Token('a', -0.5f, {{'a', -0.5f}, {'z', -1.5f}}, 1);
}
TokenOutput ScoredB() {
  return Token('b', -3.0f, {{'x', -0.25f}, {'y', -2.0f}}, 3);
}

struct TestCall {
  explicit TestCall(ApiCallOptions options)
      : responder(std::make_shared<RecordingResponder>()),
        call(std::move(options), &Fake(), responder) {
    call.Start();
  }
  void Append(int choice_idx, const OutputEvent& event) {
    call.Append(choice_idx, event);
    call.Flush();
  }
  Json Answer() const { return responder->answer().Json(); }
  std::vector<Json> Events() const {
    return ParseEvents(responder->answer().body);
  }

  std::shared_ptr<RecordingResponder> responder;
  ApiCall call;
};

constexpr char kPromptLogprobs[] = R"([null,
    {"97":{"logprob":-0.5,"rank":1,"decoded_token":"a"},
     "122":{"logprob":-1.5,"rank":2,"decoded_token":"z"}},
    {"98":{"logprob":-3.0,"rank":3,"decoded_token":"b"},
     "120":{"logprob":-0.25,"rank":1,"decoded_token":"x"},
     "121":{"logprob":-2.0,"rank":2,"decoded_token":"y"}}])";

TEST(ApiCallScoringTest, PromptLogprobsStandWhereVllmHasThem) {
  for (const ApiKind kind : {ApiKind::kChat, ApiKind::kCompletion}) {
    ApiCallOptions options = MakeOptions(kind, /*stream=*/false);
    options.num_prompt_logprobs = 2;
    options.return_token_ids = true;
    TestCall test(options);
    // Chunk by chunk, as the engine scores them.
    test.Append(0, Event({ScoredA()}, {}));
    test.Append(0, Event({ScoredB()}, {Token('c', -1)}));
    test.Append(
        0, Event({}, {Token(FakeTokenizer::kEos, -1)}, FinishReason::kStop));
    const Json answer = test.Answer();
    const Json& choice = answer["choices"][0];
    const Json& place = kind == ApiKind::kChat ? answer : choice;
    EXPECT_EQ(place["prompt_logprobs"], Json::parse(kPromptLogprobs));
    EXPECT_EQ(place["prompt_token_ids"], Json({FakeTokenizer::kBos, 'a', 'b'}));
    // The end token is among the ids, not in the text.
    EXPECT_EQ(choice["token_ids"], Json({'c', FakeTokenizer::kEos}));
    EXPECT_EQ(
        kind == ApiKind::kChat ? choice["message"]["content"] : choice["text"],
        "c");
  }
}

TEST(ApiCallScoringTest, NothingIsReportedUnasked) {
  ApiCallOptions options = MakeOptions(ApiKind::kCompletion, false);
  options.echo = true;
  TestCall test(options);
  test.Append(0, Event({}, {Token('c', -1)}, FinishReason::kLength));
  const Json choice = test.Answer()["choices"][0];
  EXPECT_EQ(choice["text"], "abc");
  EXPECT_TRUE(choice["logprobs"].is_null());
  for (const char* name :
       {"prompt_logprobs", "prompt_token_ids", "token_ids"}) {
    EXPECT_FALSE(choice.contains(name)) << name;
  }
}

TEST(ApiCallScoringTest, StreamsReportThePromptInTheFirstChunk) {
  for (const ApiKind kind : {ApiKind::kChat, ApiKind::kCompletion}) {
    ApiCallOptions options = MakeOptions(kind, /*stream=*/true);
    options.num_prompt_logprobs = 2;
    options.return_token_ids = true;
    options.stop_strings = {"de"};
    TestCall test(options);
    test.Append(0, Event({ScoredA()}, {}));
    EXPECT_EQ(test.responder->answer().body, "");
    test.Append(0, Event({ScoredB()}, {Token('c', -1)}));
    // Held back as text, not as an id.
    test.Append(0, Event({}, {Token('d', -1)}));
    test.Append(0, Event({}, {Token('e', -1)}));
    const std::vector<Json> events = test.Events();
    ASSERT_GE(events.size(), 3u);
    std::vector<int32_t> ids;
    for (size_t i = 0; i < events.size(); ++i) {
      const Json& choice = events[i]["choices"][0];
      const Json& place = kind == ApiKind::kChat ? events[i] : choice;
      EXPECT_EQ(place.contains("prompt_logprobs"), i == 0);
      EXPECT_EQ(place.contains("prompt_token_ids"), i == 0);
      for (const Json& id : choice["token_ids"]) ids.push_back(id);
    }
    EXPECT_EQ(
        (kind == ApiKind::kChat ? events[0]
                                : events[0]["choices"][0])["prompt_logprobs"],
        Json::parse(kPromptLogprobs));
    EXPECT_EQ(ids, (std::vector<int32_t>{'c', 'd', 'e'}));
  }
}

TEST(ApiCallScoringTest, EchoComesFirstWithItsLogprobs) {
  for (const bool stream : {false, true}) {
    ApiCallOptions options = MakeOptions(ApiKind::kCompletion, stream);
    options.echo = true;
    options.wants_logprobs = true;
    options.num_echo_logprobs = 1;
    options.stop_strings = {"abc"};  // Not looked for in the prompt.
    options.num_choices = 2;
    options.best_of = 2;
    options.n = 2;
    TestCall test(options);
    test.Append(0, Event({ScoredA(), ScoredB()}, {Token('c', -1)}));
    test.Append(1, Event({}, {Token('d', -2)}));
    for (const int choice_idx : {0, 1}) {
      test.Append(choice_idx, Event({}, {Token('e', -1, {{'e', -1}})},
                                    FinishReason::kLength));
    }
    std::map<int, std::string> texts;
    std::map<int, std::map<std::string, Json>> lists;
    const std::vector<Json> answers =
        stream ? test.Events() : std::vector<Json>{test.Answer()};
    for (const Json& answer : answers) {
      for (const Json& choice : answer["choices"]) {
        const int index = choice["index"];
        texts[index] += choice["text"];
        for (const auto& [name, list] : choice["logprobs"].items()) {
          for (const Json& item : list) lists[index][name].push_back(item);
        }
      }
    }
    for (const int i : {0, 1}) {
      const char c = i == 0 ? 'c' : 'd';
      EXPECT_EQ(texts[i], absl::StrCat("ab", std::string(1, c), "e"));
      EXPECT_EQ(lists[i]["tokens"],
                Json({"<s>", "a", "b", std::string(1, c), "e"}));
      EXPECT_EQ(lists[i]["text_offset"], Json({0, 0, 1, 2, 3}));
      EXPECT_EQ(lists[i]["token_logprobs"],
                Json({nullptr, -0.5, -3.0, i == 0 ? -1.0 : -2.0, -1.0}));
      // The token itself is always there.
      EXPECT_EQ(lists[i]["top_logprobs"][0], nullptr);
      EXPECT_EQ(lists[i]["top_logprobs"][1], Json({{"a", -0.5}}));
      EXPECT_EQ(lists[i]["top_logprobs"][2], Json({{"x", -0.25}, {"b", -3.0}}));
    }
  }
}

TEST(ApiCallScoringTest, EchoHasAnEntryForTheEndToken) {
  for (const bool stream : {false, true}) {
    ApiCallOptions options = MakeOptions(ApiKind::kCompletion, stream);
    options.echo = true;
    options.wants_logprobs = true;
    TestCall test(options);
    test.Append(0,
                Event({ScoredA(), ScoredB()}, {Token(FakeTokenizer::kEos, -7)},
                      FinishReason::kStop));
    const Json answer = stream ? test.Events()[0] : test.Answer();
    const Json& choice = answer["choices"][0];
    EXPECT_EQ(choice["text"], "ab");
    EXPECT_EQ(choice["logprobs"]["tokens"], Json({"<s>", "a", "b", "</s>"}));
    EXPECT_EQ(choice["logprobs"]["text_offset"], Json({0, 0, 1, 2}));
    EXPECT_EQ(choice["logprobs"]["token_logprobs"][3], -7.0);
  }
}

TEST(ApiCallScoringTest, EchoAloneDropsWhatIsDrawn) {
  for (const bool stream : {false, true}) {
    for (const auto reason : {FinishReason::kStop, FinishReason::kLength}) {
      ApiCallOptions options = MakeOptions(ApiKind::kCompletion, stream);
      options.echo = true;
      options.generates_nothing = true;
      options.wants_logprobs = true;
      options.include_usage = stream;
      TestCall test(options);
      OutputEvent event =
          Event({ScoredA(), ScoredB()}, {Token('q', -1)}, reason);
      if (reason == FinishReason::kStop) event.stop_token_id = 'q';
      test.Append(0, event);
      EXPECT_TRUE(test.call.is_complete());
      const std::vector<Json> answers =
          stream ? test.Events() : std::vector<Json>{test.Answer()};
      EXPECT_EQ(answers[0]["choices"][0]["text"], "ab");
      EXPECT_EQ(answers[0]["choices"][0]["logprobs"]["tokens"],
                Json({"<s>", "a", "b"}));
      const Json& last =
          answers[answers.size() - (stream ? 2 : 1)]["choices"][0];
      EXPECT_EQ(last["finish_reason"], "length");
      EXPECT_TRUE(last["stop_reason"].is_null());
      EXPECT_EQ(answers.back()["usage"]["completion_tokens"], 0);
    }
  }
}

TEST(ApiCallScoringTest, BestOfReturnsTheLikeliestPerToken) {
  ApiCallOptions options = MakeOptions(ApiKind::kCompletion, false);
  options.prompts.clear();
  options.num_choices = 6;  // Two prompts.
  options.best_of = 3;
  options.n = 2;
  TestCall test(options);
  const auto end = [&](int choice_idx, std::vector<TokenOutput> tokens) {
    test.Append(choice_idx,
                Event({}, std::move(tokens), FinishReason::kLength));
  };
  end(0, {Token('a', -2)});
  end(1, {Token('b', -1), Token('b', -1), Token('b', -1)});  // Mean -1.
  end(2, {Token('c', -3)});
  end(5, {Token('f', -0.5f)});
  end(4, {Token('e', -4)});
  EXPECT_FALSE(test.call.is_complete());
  end(3, {Token('d', -0.5f)});
  const Json answer = test.Answer();
  std::vector<std::string> texts;
  for (const Json& choice : answer["choices"]) {
    EXPECT_EQ(choice["index"], texts.size());
    EXPECT_TRUE(choice["logprobs"].is_null());
    texts.push_back(choice["text"]);
  }
  EXPECT_EQ(texts, (std::vector<std::string>{"bbb", "a", "d", "f"}));
  // All that was drawn is counted.
  EXPECT_EQ(answer["usage"]["completion_tokens"], 8);
}

TEST(ApiCallScoringTest, TokensThatReadAlikeShareTheirLikeliestValue) {
  ApiCallOptions options = MakeOptions(ApiKind::kCompletion, false);
  options.prompts.clear();
  options.wants_logprobs = true;
  TestCall test(options);
  // Two halves of characters: both are U+FFFD as text.
  const int32_t head = FakeTokenizer::kEmojiHead;
  const int32_t tail = FakeTokenizer::kEmojiTail;
  test.Append(0, Event({}, {Token(tail, -2, {{head, -1}, {tail, -2}})},
                       FinishReason::kLength));
  const Json logprobs = test.Answer()["choices"][0]["logprobs"];
  ASSERT_EQ(logprobs["top_logprobs"][0].size(), 1u);
  EXPECT_EQ(*logprobs["top_logprobs"][0].begin(), -1.0);
  EXPECT_EQ(logprobs["token_logprobs"][0], -2.0);
}

TEST(ApiCallScoringTest, ChatEchoPutsTheMessageInFront) {
  for (const bool stream : {false, true}) {
    ApiCallOptions options = MakeOptions(ApiKind::kChat, stream);
    options.echo = true;
    options.prompts[0].echo = {"It is ", {}};
    TestCall test(options);
    test.Append(0, Event({}, {Token('x', -1)}, FinishReason::kLength));
    std::string content;
    if (stream) {
      for (const Json& event : test.Events()) {
        const Json& delta = event["choices"][0]["delta"];
        if (delta.contains("content")) content += delta["content"];
      }
    } else {
      content = test.Answer()["choices"][0]["message"]["content"];
    }
    EXPECT_EQ(content, "It is x");
  }
}

}  // namespace
}  // namespace quire
