#include "server/api_call.h"

#include <algorithm>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/types/span.h"
#include "engine/base/random.h"
#include "gtest/gtest.h"
#include "server/fake_tokenizer.h"
#include "server/recording_responder.h"

namespace quire {
namespace {

using Json = nlohmann::ordered_json;

const FakeTokenizer& Fake() {
  static const FakeTokenizer& tokenizer = *new FakeTokenizer;
  return tokenizer;
}

ApiCallOptions MakeOptions(ApiKind kind, bool stream) {
  ApiCallOptions options;
  options.kind = kind;
  options.id = kind == ApiKind::kChat ? "chatcmpl-1" : "cmpl-1";
  options.model = "a \"model\"";
  options.created = 1700000000;
  options.stream = stream;
  options.num_prompt_tokens = 7;
  return options;
}

OutputEvent Tokens(const std::vector<int32_t>& ids,
                   std::optional<FinishReason> reason = std::nullopt) {
  OutputEvent event;
  for (const int32_t id : ids) {
    TokenOutput token;
    token.token_id = id;
    token.logprob = -0.25f * static_cast<float>(id % 7);
    token.top_logprobs = {{id, token.logprob}, {(id + 1) % 256, -9.5f}};
    event.tokens.push_back(token);
  }
  event.finish_reason = reason;
  return event;
}

std::vector<int32_t> Bytes(absl::string_view text) {
  std::vector<int32_t> ids;
  for (const char c : text) ids.push_back(static_cast<uint8_t>(c));
  return ids;
}

// A call, and what its client got.
struct TestCall {
  explicit TestCall(ApiCallOptions options)
      : responder(std::make_shared<RecordingResponder>()),
        call(std::move(options), &Fake(), responder) {}

  bool Append(int choice_idx, const OutputEvent& event) {
    const bool is_to_abort = call.Append(choice_idx, event);
    call.Flush();
    return is_to_abort;
  }
  RecordedAnswer answer() const { return responder->answer(); }
  std::vector<Json> Events() const { return ParseEvents(answer().body); }

  std::shared_ptr<RecordingResponder> responder;
  ApiCall call;
};

TEST(ApiCallTest, ChatStreamFollowsTheRules) {
  ApiCallOptions options = MakeOptions(ApiKind::kChat, /*stream=*/true);
  options.include_usage = true;
  options.headers = {{"X-Request-Id", "r1"}};
  TestCall test(options);
  test.call.Start();
  EXPECT_TRUE(test.answer().is_stream);
  EXPECT_EQ(test.answer().Header("X-Request-Id"), "r1");
  EXPECT_EQ(test.answer().body, "");
  test.call.AddCachedTokens(4);
  EXPECT_FALSE(test.Append(0, Tokens(Bytes("He"))));
  EXPECT_FALSE(test.Append(0, Tokens(Bytes("llo"))));
  EXPECT_FALSE(
      test.Append(0, Tokens({FakeTokenizer::kEos}, FinishReason::kStop)));
  EXPECT_TRUE(test.call.is_complete());
  EXPECT_TRUE(test.answer().is_finished);

  const std::vector<Json> events = test.Events();
  ASSERT_EQ(events.size(), 5);
  for (const Json& event : events) {
    EXPECT_EQ(event["id"], "chatcmpl-1");
    EXPECT_EQ(event["object"], "chat.completion.chunk");
    EXPECT_EQ(event["created"], 1700000000);
    EXPECT_EQ(event["model"], "a \"model\"");
    EXPECT_TRUE(event.contains("usage"));
  }
  for (size_t i = 0; i < 4; ++i) {
    EXPECT_TRUE(events[i]["usage"].is_null());
    ASSERT_EQ(events[i]["choices"].size(), 1);
    const Json& choice = events[i]["choices"][0];
    EXPECT_EQ(choice["index"], 0);
    EXPECT_TRUE(choice["logprobs"].is_null());
    if (i < 3) {
      EXPECT_TRUE(choice.contains("finish_reason"));
      EXPECT_TRUE(choice["finish_reason"].is_null());
    }
  }
  const auto delta = [&](size_t i) { return events[i]["choices"][0]["delta"]; };
  EXPECT_EQ(delta(0), Json::parse(R"({"role":"assistant","content":""})"));
  EXPECT_EQ(delta(1), Json::parse(R"({"content":"He"})"));
  EXPECT_EQ(delta(2), Json::parse(R"({"content":"llo"})"));
  EXPECT_EQ(delta(3), Json::object());
  EXPECT_EQ(events[3]["choices"][0]["finish_reason"], "stop");
  EXPECT_TRUE(events[3]["choices"][0]["stop_reason"].is_null());
  EXPECT_EQ(events[4]["choices"], Json::array());
  // The end token is counted though it is not shown.
  EXPECT_EQ(events[4]["usage"],
            Json::parse(R"({"prompt_tokens":7,"completion_tokens":6,
                            "total_tokens":13,
                            "prompt_tokens_details":{"cached_tokens":4}})"));
}

TEST(ApiCallTest, UsageTellsOfDrafts) {
  ApiCallOptions options = MakeOptions(ApiKind::kChat, /*stream=*/false);
  options.stop_strings = {"ll"};
  TestCall test(options);
  OutputEvent event = Tokens(Bytes("ab"));
  event.num_draft_tokens = 4;
  event.num_accepted_tokens = 1;
  EXPECT_FALSE(test.Append(0, event));
  // The stop string ends with the second of three accepted drafts.
  event = Tokens(Bytes("llxy"));
  event.num_draft_tokens = 3;
  event.num_accepted_tokens = 3;
  EXPECT_TRUE(test.Append(0, event));
  const Json usage = Json::parse(test.answer().body)["usage"];
  EXPECT_EQ(usage["completion_tokens"], 4);
  EXPECT_EQ(usage["completion_tokens_details"],
            Json::parse(R"({"accepted_prediction_tokens":3,
                            "rejected_prediction_tokens":4})"));
}

TEST(ApiCallTest, UsageTellsThatNothingWasDrafted) {
  for (const bool has_drafts : {false, true}) {
    ApiCallOptions options = MakeOptions(ApiKind::kChat, /*stream=*/false);
    options.has_drafts = has_drafts;
    TestCall test(options);
    OutputEvent event = Tokens(Bytes("ab"));
    event.finish_reason = FinishReason::kLength;
    EXPECT_FALSE(test.Append(0, event));
    const Json usage = Json::parse(test.answer().body)["usage"];
    ASSERT_EQ(usage.contains("completion_tokens_details"), has_drafts);
    if (!has_drafts) continue;
    EXPECT_EQ(usage["completion_tokens_details"],
              Json::parse(R"({"accepted_prediction_tokens":0,
                              "rejected_prediction_tokens":0})"));
  }
}

TEST(ApiCallTest, RoleIsTheFirstChunkOfEveryChoice) {
  ApiCallOptions options = MakeOptions(ApiKind::kChat, /*stream=*/true);
  options.num_choices = 3;
  TestCall test(options);
  test.call.Start();
  test.Append(2, Tokens(Bytes("c")));
  test.Append(0, Tokens(Bytes("a"), FinishReason::kLength));
  test.Append(2, Tokens(Bytes("d"), FinishReason::kLength));
  // A choice without a token, too, begins with the role.
  test.Append(1, Tokens({}, FinishReason::kAbort));
  std::map<int, std::vector<Json>> by_choice;
  for (const Json& event : test.Events()) {
    EXPECT_FALSE(event.contains("usage"));
    by_choice[event["choices"][0]["index"]].push_back(event["choices"][0]);
  }
  ASSERT_EQ(by_choice.size(), 3);
  for (const auto& [index, chunks] : by_choice) {
    EXPECT_EQ(chunks.front()["delta"]["role"], "assistant") << index;
    for (size_t i = 0; i < chunks.size(); ++i) {
      EXPECT_EQ(chunks[i]["finish_reason"].is_null(), i + 1 < chunks.size());
      EXPECT_EQ(chunks[i]["delta"].contains("role"), i == 0);
    }
  }
  EXPECT_EQ(by_choice[1].back()["finish_reason"], "abort");
}

TEST(ApiCallTest, CompletionStreamHasTextAndNoRole) {
  TestCall test(MakeOptions(ApiKind::kCompletion, /*stream=*/true));
  test.call.Start();
  test.Append(0, Tokens(Bytes("a")));
  test.Append(0, Tokens(Bytes("b"), FinishReason::kLength));
  const std::vector<Json> events = test.Events();
  ASSERT_EQ(events.size(), 3);
  const std::vector<std::string> texts = {"a", "b", ""};
  for (size_t i = 0; i < events.size(); ++i) {
    EXPECT_EQ(events[i]["object"], "text_completion");
    EXPECT_EQ(events[i]["choices"][0]["text"], texts[i]);
    EXPECT_FALSE(events[i]["choices"][0].contains("delta"));
  }
  EXPECT_EQ(events[2]["choices"][0]["finish_reason"], "length");
}

TEST(ApiCallTest, ContinuousUsageGrows) {
  ApiCallOptions options = MakeOptions(ApiKind::kCompletion, /*stream=*/true);
  options.continuous_usage_stats = true;
  TestCall test(options);
  test.call.Start();
  test.Append(0, Tokens(Bytes("a")));
  test.Append(0, Tokens(Bytes("bc"), FinishReason::kLength));
  const std::vector<Json> events = test.Events();
  ASSERT_EQ(events.size(), 3);
  EXPECT_EQ(events[0]["usage"]["completion_tokens"], 1);
  EXPECT_EQ(events[1]["usage"]["completion_tokens"], 3);
  EXPECT_EQ(events[2]["usage"]["total_tokens"], 10);
}

TEST(ApiCallTest, CharactersAreNeverSplit) {
  TestCall test(MakeOptions(ApiKind::kChat, /*stream=*/true));
  test.call.Start();
  test.Append(0, Tokens({FakeTokenizer::kEmojiHead}));
  test.Append(0, Tokens({FakeTokenizer::kEmojiTail}));
  test.Append(0, Tokens({0xc3}));
  test.Append(0, Tokens({0xa9, 0xe2}));
  test.Append(0, Tokens({}, FinishReason::kLength));
  std::vector<std::string> contents;
  for (const Json& event : test.Events()) {
    const Json& delta = event["choices"][0]["delta"];
    if (delta.contains("content")) contents.push_back(delta["content"]);
  }
  EXPECT_EQ(contents, (std::vector<std::string>{"", "\xf0\x9f\x98\x80",
                                                "\xc3\xa9", "\xef\xbf\xbd"}));
}

TEST(ApiCallTest, StopStringSpansTokensAndEndsTheChoice) {
  for (const bool includes : {false, true}) {
    ApiCallOptions options = MakeOptions(ApiKind::kCompletion, true);
    options.stop_strings = {"END", "\xf0\x9f\x98\x80!"};
    options.include_stop_str_in_output = includes;
    options.include_usage = true;
    options.wants_logprobs = true;
    TestCall test(options);
    test.call.Start();
    EXPECT_FALSE(test.Append(0, Tokens(Bytes("a E"))));
    EXPECT_FALSE(test.Append(0, Tokens(Bytes("N"))));
    // Three more tokens at once (as speculation yields): one completes it, and
    // the others are neither shown nor counted.
    EXPECT_TRUE(test.Append(0, Tokens(Bytes("DE!"))));
    EXPECT_TRUE(test.call.is_complete());
    // The abort's own event changes nothing.
    EXPECT_FALSE(test.Append(0, Tokens({}, FinishReason::kStop)));
    const std::vector<Json> events = test.Events();
    std::string text, tokens;
    for (const Json& event : events) {
      if (event["choices"].empty()) continue;
      text += event["choices"][0]["text"];
      const Json& logprobs = event["choices"][0]["logprobs"];
      if (logprobs.is_null()) continue;
      for (const Json& token : logprobs["tokens"]) tokens += token;
    }
    EXPECT_EQ(text, includes ? "a END" : "a ");
    EXPECT_EQ(tokens, text);
    const Json& last = events[events.size() - 2]["choices"][0];
    EXPECT_EQ(last["finish_reason"], "stop");
    EXPECT_EQ(last["stop_reason"], "END");
    EXPECT_EQ(events.back()["usage"]["completion_tokens"], 5);
  }
}

TEST(ApiCallTest, StopStringsCountOnlyAfterMinTokens) {
  ApiCallOptions options = MakeOptions(ApiKind::kChat, /*stream=*/false);
  options.stop_strings = {"END"};
  options.min_tokens = 3;
  TestCall early(options);
  // Complete with the third token: text.
  EXPECT_FALSE(early.Append(0, Tokens(Bytes("END, "))));
  EXPECT_TRUE(early.Append(0, Tokens(Bytes("END"))));
  EXPECT_EQ(early.answer().Json()["choices"][0]["message"]["content"], "END, ");
  // Complete with the fourth.
  TestCall late(options);
  EXPECT_TRUE(late.Append(0, Tokens(Bytes("aEND"))));
  EXPECT_EQ(late.answer().Json()["choices"][0]["message"]["content"], "a");
}

TEST(ApiCallTest, StopStringAcrossSplitCharacters) {
  ApiCallOptions options = MakeOptions(ApiKind::kChat, /*stream=*/false);
  options.stop_strings = {"\xf0\x9f\x98\x80!"};
  TestCall test(options);
  EXPECT_FALSE(test.Append(0, Tokens({'x', FakeTokenizer::kEmojiHead})));
  EXPECT_FALSE(test.Append(0, Tokens({FakeTokenizer::kEmojiTail})));
  EXPECT_TRUE(test.Append(0, Tokens({'!'})));
  const Json choice = test.answer().Json()["choices"][0];
  EXPECT_EQ(choice["message"]["content"], "x");
  EXPECT_EQ(choice["stop_reason"], "\xf0\x9f\x98\x80!");
}

TEST(ApiCallTest, StopTokenIsTheReasonAndNotTheText) {
  for (const bool includes : {false, true}) {
    ApiCallOptions options = MakeOptions(ApiKind::kChat, /*stream=*/false);
    options.include_stop_str_in_output = includes;
    TestCall test(options);
    OutputEvent event = Tokens(Bytes("ab"), FinishReason::kStop);
    event.stop_token_id = 'b';
    EXPECT_FALSE(test.Append(0, event));
    const Json answer = test.answer().Json();
    EXPECT_EQ(answer["choices"][0]["message"]["content"],
              includes ? "ab" : "a");
    EXPECT_EQ(answer["choices"][0]["stop_reason"], 'b');
    EXPECT_EQ(answer["usage"]["completion_tokens"], 2);
  }
}

TEST(ApiCallTest, SpecialTokensAreShownOnRequest) {
  for (const bool skips : {false, true}) {
    ApiCallOptions options = MakeOptions(ApiKind::kChat, /*stream=*/false);
    options.skip_special_tokens = skips;
    TestCall test(options);
    test.Append(0,
                Tokens({'a', FakeTokenizer::kEnd, 'b'}, FinishReason::kLength));
    EXPECT_EQ(test.answer().Json()["choices"][0]["message"]["content"],
              skips ? "ab" : "a<|end|>b");
  }
}

TEST(ApiCallTest, CompletionLogprobsCountCharacters) {
  ApiCallOptions options = MakeOptions(ApiKind::kCompletion, false);
  options.wants_logprobs = true;
  TestCall test(options);
  test.Append(0, Tokens({FakeTokenizer::kAcute, FakeTokenizer::kEmojiHead}));
  test.Append(0,
              Tokens({FakeTokenizer::kEmojiTail, 'z'}, FinishReason::kLength));
  const Json logprobs = test.answer().Json()["choices"][0]["logprobs"];
  EXPECT_EQ(logprobs["text_offset"], Json::parse("[0,1,1,2]"));
  EXPECT_EQ(logprobs["tokens"].size(), 4);
  EXPECT_EQ(logprobs["token_logprobs"].size(), 4);
  EXPECT_EQ(logprobs["top_logprobs"].size(), 4);
  EXPECT_EQ(logprobs["top_logprobs"][3]["z"], -0.25 * ('z' % 7));
}

TEST(ApiCallTest, ChatLogprobsHaveBytes) {
  ApiCallOptions options = MakeOptions(ApiKind::kChat, /*stream=*/false);
  options.wants_logprobs = true;
  TestCall test(options);
  test.Append(0, Tokens({FakeTokenizer::kEmojiHead, FakeTokenizer::kEmojiTail},
                        FinishReason::kLength));
  const Json content =
      test.answer().Json()["choices"][0]["logprobs"]["content"];
  ASSERT_EQ(content.size(), 2);
  EXPECT_EQ(content[0]["bytes"], Json::parse("[240,159]"));
  EXPECT_EQ(content[1]["bytes"], Json::parse("[152,128]"));
  EXPECT_EQ(content[0]["top_logprobs"].size(), 2);
  EXPECT_TRUE(content[0]["top_logprobs"][0].contains("bytes"));
  EXPECT_EQ(content[0]["top_logprobs"][0]["logprob"], content[0]["logprob"]);
}

TEST(ApiCallTest, TokensAsIds) {
  ApiCallOptions options = MakeOptions(ApiKind::kCompletion, false);
  options.wants_logprobs = true;
  options.return_tokens_as_token_ids = true;
  TestCall test(options);
  test.Append(0, Tokens({65}, FinishReason::kLength));
  EXPECT_EQ(test.answer().Json()["choices"][0]["logprobs"]["tokens"],
            Json::parse(R"(["token_id:65"])"));
}

TEST(ApiCallTest, ErrorsBeforeTheStreamAreResponses) {
  for (const bool stream : {false, true}) {
    ApiCallOptions options = MakeOptions(ApiKind::kChat, stream);
    options.headers = {{"X-Request-Id", "r1"}};
    TestCall test(options);
    test.call.Fail(absl::UnavailableError("the server is overloaded"));
    const RecordedAnswer answer = test.answer();
    EXPECT_EQ(answer.status, 503);
    EXPECT_EQ(answer.content_type, "application/json");
    EXPECT_EQ(answer.Header("Retry-After"), "1");
    EXPECT_EQ(answer.Header("X-Request-Id"), "r1");
    EXPECT_EQ(answer.Json(), Json::parse(R"({"error":{
        "message":"the server is overloaded",
        "type":"service_unavailable_error","param":null,
        "code":"service_unavailable"}})"));
    // Nothing follows.
    EXPECT_FALSE(test.Append(0, Tokens({'a'}, FinishReason::kLength)));
    test.call.Fail(absl::InternalError("again"));
    EXPECT_EQ(test.answer().body, answer.body);
  }
}

TEST(ApiCallTest, ErrorsOfTheEngineKeepTheirSecrets) {
  TestCall test(MakeOptions(ApiKind::kChat, /*stream=*/false));
  test.call.Fail(absl::InternalError("/srv/models/x: fault at 0x1234"));
  EXPECT_EQ(test.answer().status, 500);
  EXPECT_EQ(test.answer().Json()["error"]["message"], "internal error");
}

TEST(ApiCallTest, ErrorsWithinTheStreamAreEvents) {
  TestCall test(MakeOptions(ApiKind::kChat, /*stream=*/true));
  test.call.Start();
  test.Append(0, Tokens({'a'}));
  test.call.Fail(absl::InternalError("fault"));
  EXPECT_TRUE(test.answer().is_finished);
  const std::vector<Json> events = test.Events();
  ASSERT_EQ(events.size(), 3);
  EXPECT_EQ(events.back()["error"]["type"], "server_error");
  EXPECT_EQ(events.back()["error"]["code"], "internal_error");
}

TEST(ApiCallTest, StreamBeginsOnlyWhenAccepted) {
  // The k-th prompt of a call may be refused when the first already has tokens;
  // the client must then see the status.
  ApiCallOptions options = MakeOptions(ApiKind::kCompletion, /*stream=*/true);
  options.num_choices = 2;
  TestCall test(options);
  test.Append(0, Tokens({'a'}));
  EXPECT_FALSE(test.answer().is_stream);
  test.call.Fail(absl::UnavailableError("the server is overloaded"));
  EXPECT_EQ(test.answer().status, 503);
}

TEST(ApiCallTest, NothingIsLostBeforeTheStreamBegins) {
  TestCall test(MakeOptions(ApiKind::kCompletion, /*stream=*/true));
  test.Append(0, Tokens({'a'}));
  test.Append(0, Tokens({'b'}, FinishReason::kLength));
  EXPECT_FALSE(test.call.is_complete());
  test.call.Start();
  test.call.Flush();
  EXPECT_TRUE(test.call.is_complete());
  const std::vector<Json> events = test.Events();
  ASSERT_EQ(events.size(), 2);
  EXPECT_EQ(events[0]["choices"][0]["text"], "ab");
}

// ---- Random calls, streamed and collected.

struct Script {
  ApiCallOptions options;
  // Of each choice.
  std::vector<std::vector<int32_t>> tokens;
  std::vector<FinishReason> reasons;
};

Script RandomScript(SimulationRandom& random) {
  const std::vector<std::vector<std::string>> stop_lists = {
      {},
      {"abc"},
      {"END"},
      {"\xf0\x9f\x98\x80"},
      {"b", "abcab"},
      {"\xef\xbf\xbd"},
      {" the", "\n\n", "\xc3\xa9"}};
  Script script;
  script.options = MakeOptions(
      random.Below(2) == 0 ? ApiKind::kChat : ApiKind::kCompletion, true);
  ApiCallOptions& options = script.options;
  options.num_choices = 1 + static_cast<int>(random.Below(3));
  options.stop_strings = stop_lists[random.Below(stop_lists.size())];
  options.include_stop_str_in_output = random.Below(2) == 0;
  options.wants_logprobs = random.Below(2) == 0;
  options.skip_special_tokens = random.Below(2) == 0;
  options.include_usage = true;
  for (int i = 0; i < options.num_choices; ++i) {
    std::vector<int32_t> ids;
    const int num_tokens = static_cast<int>(random.Below(24));
    for (int j = 0; j < num_tokens; ++j) {
      const auto kind = random.Below(10);
      // Letters of the stop strings, whole and broken characters, all.
      if (kind < 4) {
        ids.push_back('a' + static_cast<int>(random.Below(3)));
      } else if (kind < 9) {
        ids.push_back(FakeTokenizer::kEnd +
                      static_cast<int>(random.Below(FakeTokenizer::kVocabSize -
                                                    FakeTokenizer::kEnd)));
      } else {
        ids.push_back(static_cast<int>(random.Below(256)));
      }
    }
    const bool is_stop = random.Below(2) == 0;
    if (is_stop) ids.push_back(FakeTokenizer::kEos);
    script.tokens.push_back(std::move(ids));
    script.reasons.push_back(is_stop ? FinishReason::kStop
                                     : FinishReason::kLength);
  }
  return script;
}

// What choice `c` must say, by searching all of its text after every token.
struct Expected {
  std::string text;
  std::string reason;
  int64_t num_tokens = 0;
};
Expected Expect(const Script& script, int c) {
  const ApiCallOptions& options = script.options;
  Expected expected;
  expected.reason = FinishReasonName(script.reasons[c]);
  const std::vector<int32_t>& ids = script.tokens[c];
  const auto stream = Fake().NewTokenStream(options.skip_special_tokens);
  for (size_t i = 0; i <= ids.size(); ++i) {
    if (i == ids.size()) {
      expected.text += stream->Finish();
    } else {
      ++expected.num_tokens;
      const bool is_end =
          i + 1 == ids.size() && script.reasons[c] == FinishReason::kStop;
      if (is_end && !options.include_stop_str_in_output) continue;
      expected.text += stream->Append(ids[i]);
    }
    size_t first = std::string::npos, size = 0;
    for (const std::string& stop : options.stop_strings) {
      const size_t at = expected.text.find(stop);
      if (at < first ||
          (at == first && at != std::string::npos && stop.size() > size)) {
        first = at;
        size = stop.size();
      }
    }
    if (first == std::string::npos) continue;
    expected.text.resize(first +
                         (options.include_stop_str_in_output ? size : 0));
    expected.reason = "stop";
    return expected;
  }
  return expected;
}

// Runs the script, splitting each choice's tokens into events at random.
RecordedAnswer Play(const Script& script, bool stream,
                    SimulationRandom& random) {
  ApiCallOptions options = script.options;
  options.stream = stream;
  options.include_usage = stream;
  TestCall test(options);
  test.call.Start();
  std::vector<size_t> next(script.tokens.size(), 0);
  std::vector<int> open;
  for (int i = 0; i < options.num_choices; ++i) open.push_back(i);
  while (!open.empty()) {
    const size_t pick = random.Below(open.size());
    const int c = open[pick];
    const std::vector<int32_t>& ids = script.tokens[c];
    const size_t count =
        std::min<size_t>(ids.size() - next[c], 1 + random.Below(3));
    const auto span = absl::MakeConstSpan(ids).subspan(next[c], count);
    next[c] += count;
    const bool is_end = next[c] == ids.size();
    OutputEvent event = Tokens({span.begin(), span.end()});
    if (is_end) event.finish_reason = script.reasons[c];
    test.call.Append(c, event);
    if (random.Below(2) == 0) test.call.Flush();
    if (is_end) open.erase(open.begin() + pick);
  }
  test.call.Flush();
  EXPECT_TRUE(test.call.is_complete());
  EXPECT_TRUE(test.answer().is_finished);
  return test.answer();
}

struct Said {
  std::string text;
  std::string reason;
  std::vector<Json> logprobs;
  std::vector<int64_t> offsets;
};

void AddLogprobs(const Json& logprobs, Said* said) {
  if (logprobs.is_null()) return;
  if (logprobs.contains("content")) {
    for (const Json& entry : logprobs["content"]) {
      said->logprobs.push_back(entry);
    }
    return;
  }
  for (size_t i = 0; i < logprobs["tokens"].size(); ++i) {
    said->logprobs.push_back({logprobs["tokens"][i],
                              logprobs["token_logprobs"][i],
                              logprobs["top_logprobs"][i]});
    said->offsets.push_back(logprobs["text_offset"][i]);
  }
}

std::vector<Said> ReadStream(const RecordedAnswer& answer, int num_choices,
                             int64_t* num_tokens) {
  std::vector<Said> choices(num_choices);
  const std::vector<Json> events = ParseEvents(answer.body);
  for (const Json& event : events) {
    if (event["choices"].empty()) continue;
    const Json& choice = event["choices"][0];
    Said& said = choices[choice["index"].get<int>()];
    EXPECT_EQ(said.reason, "") << "something follows the end";
    if (choice.contains("text")) {
      said.text += choice["text"];
    } else if (choice["delta"].contains("content")) {
      said.text += choice["delta"]["content"];
    }
    AddLogprobs(choice["logprobs"], &said);
    if (!choice["finish_reason"].is_null()) {
      said.reason = choice["finish_reason"];
    }
  }
  *num_tokens = events.back()["usage"]["completion_tokens"];
  return choices;
}

std::vector<Said> ReadCollected(const RecordedAnswer& answer,
                                int64_t* num_tokens) {
  const Json body = answer.Json();
  std::vector<Said> choices;
  for (const Json& choice : body["choices"]) {
    Said said;
    said.text =
        choice.contains("text") ? choice["text"] : choice["message"]["content"];
    said.reason = choice["finish_reason"];
    AddLogprobs(choice["logprobs"], &said);
    choices.push_back(std::move(said));
  }
  *num_tokens = body["usage"]["completion_tokens"];
  return choices;
}

TEST(ApiCallTest, StreamedEqualsCollectedEqualsExpected) {
  SimulationRandom random(20240229);
  for (int round = 0; round < 1000; ++round) {
    const Script script = RandomScript(random);
    const int num_choices = script.options.num_choices;
    int64_t num_streamed = 0, num_collected = 0, num_expected = 0;
    const std::vector<Said> streamed = ReadStream(
        Play(script, /*stream=*/true, random), num_choices, &num_streamed);
    const std::vector<Said> collected =
        ReadCollected(Play(script, /*stream=*/false, random), &num_collected);
    ASSERT_EQ(collected.size(), static_cast<size_t>(num_choices));
    for (int c = 0; c < num_choices; ++c) {
      SCOPED_TRACE(absl::StrCat("round ", round, ", choice ", c));
      const Expected expected = Expect(script, c);
      num_expected += expected.num_tokens;
      ASSERT_EQ(streamed[c].text, expected.text);
      ASSERT_EQ(collected[c].text, expected.text);
      ASSERT_EQ(streamed[c].reason, expected.reason);
      ASSERT_EQ(collected[c].reason, expected.reason);
      ASSERT_EQ(streamed[c].logprobs, collected[c].logprobs);
      ASSERT_EQ(streamed[c].offsets, collected[c].offsets);
      ASSERT_TRUE(std::is_sorted(streamed[c].offsets.begin(),
                                 streamed[c].offsets.end()));
      if (!script.options.wants_logprobs) {
        ASSERT_TRUE(streamed[c].logprobs.empty());
      }
    }
    ASSERT_EQ(num_streamed, num_expected);
    ASSERT_EQ(num_collected, num_expected);
  }
}

TEST(ApiCallTest, LogprobBytesConcatenateToTheText) {
  SimulationRandom random(7);
  int num_checked = 0;
  for (int round = 0; round < 500; ++round) {
    Script script = RandomScript(random);
    script.options.kind = ApiKind::kChat;
    script.options.wants_logprobs = true;
    script.options.skip_special_tokens = false;
    script.options.stop_strings.clear();
    int64_t num_tokens = 0;
    const std::vector<Said> choices = ReadStream(
        Play(script, true, random), script.options.num_choices, &num_tokens);
    for (const Said& said : choices) {
      std::string bytes;
      for (const Json& entry : said.logprobs) {
        for (const Json& byte : entry["bytes"]) {
          bytes.push_back(static_cast<char>(byte.get<int>()));
        }
      }
      // Broken characters show as U+FFFD.
      if (!IsValidUtf8(bytes)) continue;
      ++num_checked;
      EXPECT_EQ(bytes, said.text);
    }
  }
  EXPECT_GT(num_checked, 100);
}

}  // namespace
}  // namespace quire
