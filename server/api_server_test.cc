// What the routes answer. (server/api_server_fixture.h)
#include "server/api_server.h"

#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "server/api_server_fixture.h"
#include "server/fake_tokenizer.h"
#include "server/http/test_client.h"
#include "server/prompt.h"
#include "server/recording_responder.h"
#include "tests/hash_model_runner.h"

namespace quire {
namespace {

TEST_F(ApiServerTest, LoadingAnswersProbesOnly) {
  Listen();
  EXPECT_EQ(Status("/health"), 503);
  EXPECT_EQ(Status("/health/ready"), 503);
  api_->SetLoadProgress(3, 8);
  EXPECT_TRUE(
      absl::StrContains(Ask({"GET", "/health/ready"}).body, "loading: 37 %"));
  EXPECT_EQ(Status("/health/live"), 200);
  EXPECT_EQ(Status("/version"), 200);
  EXPECT_EQ(Status("/metrics"), 503);
  for (const Route& route : kApiRoutes) {
    ExpectError(Ask(route, "{}"), 503, "service_unavailable_error", nullptr,
                "service_unavailable");
  }
  // Nothing to drain yet, and it serves afterwards.
  api_->StartDraining();
  Serve();
  EXPECT_EQ(Status("/health"), 200);
  EXPECT_EQ(Chat(kHi).status, 200);
}

TEST_F(ApiServerTest, IsReadyWhileItWaitsForOtherHosts) {
  Listen();
  api_->SetWaiting("waiting for 1 of 2");
  const TestResponse health = Ask({"GET", "/health"});
  EXPECT_EQ(health.status, 200);
  EXPECT_EQ(health.body, R"({"status":"waiting for 1 of 2"})");
  EXPECT_EQ(Status("/health/live"), 200);
  EXPECT_EQ(Status("/metrics"), 503);
  for (const Route& route : kApiRoutes) {
    const TestResponse refused = Ask(route, "{}");
    ExpectError(refused, 503, "service_unavailable_error", nullptr,
                "service_unavailable");
    EXPECT_TRUE(absl::StrContains(refused.body, "waiting for 1 of 2"));
  }
  api_->SetWaiting("");
  EXPECT_EQ(Status("/health"), 503);
  Serve();
  EXPECT_EQ(Status("/health"), 200);
}

TEST_F(ApiServerTest, WorkerAnswersProbesOnly) {
  Listen();
  EXPECT_EQ(Status("/health"), 503);
  api_->ServeAsWorker("this is rank 1");
  EXPECT_EQ(Status("/health"), 200);
  EXPECT_EQ(Status("/health/live"), 200);
  EXPECT_EQ(Status("/metrics"), 200);
  for (const Route& route : kApiRoutes) {
    const TestResponse refused = Ask(route, "{}");
    ExpectError(refused, 503, "service_unavailable_error", nullptr,
                "service_unavailable");
    EXPECT_TRUE(absl::StrContains(refused.body, "this is rank 1"));
  }
}

TEST_F(ApiServerTest, ServesEveryRoute) {
  Start();
  for (const char* path : {"/health", "/health/ready", "/health/live"}) {
    const TestResponse response = Ask({"GET", path});
    EXPECT_EQ(response.status, 200);
    EXPECT_EQ(response.body, R"({"status":"ok"})");
  }
  EXPECT_EQ(Ask({"GET", "/version"}).body, R"({"version":"1.2.3"})");
  const TestResponse metrics = Ask({"GET", "/metrics"});
  EXPECT_EQ(metrics.Field("content-type"),
            "text/plain; version=0.0.4; charset=utf-8");
  EXPECT_TRUE(absl::StrContains(metrics.body, "vllm:num_requests_running"));
  const Json models = Parse(Ask({"GET", "/v1/models"}));
  ASSERT_EQ(models["data"].size(), 3u);
  EXPECT_EQ(models["data"][0]["id"], "m");
  EXPECT_EQ(models["data"][0]["max_model_len"], kMaxModelLen);
  EXPECT_EQ(models["data"][0]["created"], 1700000000);

  const Json chat = Parse(Chat(kHi));
  EXPECT_EQ(chat["object"], "chat.completion");
  EXPECT_TRUE(absl::StartsWith(chat["id"].get<std::string>(), "chatcmpl-"));
  EXPECT_EQ(chat["model"], "m");
  EXPECT_EQ(chat["choices"][0]["finish_reason"], "length");
  // <s>[user]hi\n[assistant]
  EXPECT_EQ(chat["usage"]["prompt_tokens"], 21);
  EXPECT_EQ(chat["usage"]["completion_tokens"], 5);
  for (const char* path : {"/v1/completions", "/completions"}) {
    const Json text = Parse(Ask(
        {"POST", path},
        R"({"prompt":["a",[98,99]],"n":2,"model":"alias","ignore_eos":true})"));
    EXPECT_EQ(text["object"], "text_completion");
    EXPECT_EQ(text["model"], "alias");
    ASSERT_EQ(text["choices"].size(), 4u);
    EXPECT_EQ(text["choices"][3]["index"], 3);
    EXPECT_EQ(text["usage"]["prompt_tokens"], 4);
    EXPECT_EQ(text["usage"]["completion_tokens"], 64);
  }
  ExpectIdle();
}

TEST_F(ApiServerTest, TellsOfOneModel) {
  Start();
  const Json list = Parse(Ask({"GET", "/v1/models"}))["data"];
  const std::pair<const char*, int> paths[] = {
      {"/v1/models/m", 0},         {"/v1/models/alias", 1},
      {"/v1/models/org/m", 2},     {"/v1/models/org%2Fm", 2},
      {"/v1/models/org%2fm?a", 2}, {"/v1/models/%6D", 0}};
  for (const auto& [path, index] : paths) {
    const TestResponse response = Ask({"GET", path});
    ASSERT_EQ(response.status, 200) << path;
    EXPECT_EQ(Parse(response), list[index]) << path;
  }
  for (const char* path :
       {"/v1/models/x", "/v1/models/org", "/v1/models/m/", "/v1/models//m",
        "/v1/models/m%00", "/v1/models/%256D", "/v1/models/../models",
        "/v1/models/%0a", "/v1/models/%ff", "/v1/models/{model}"}) {
    ExpectError(Ask({"GET", path}), 404, "not_found_error", nullptr,
                "model_not_found");
  }
  EXPECT_TRUE(absl::StrContains(Ask({"GET", "/v1/models/org%2Fx"}).body,
                                "The model `org/x` does not exist."));
  const TestResponse refused = Ask({"DELETE", "/v1/models/m"});
  EXPECT_EQ(refused.status, 405);
  EXPECT_EQ(refused.Field("allow"), "GET, HEAD");
}

// What the parameters leave must be something while they all hold.
TEST_F(ApiServerTest, RefusesParametersThatAllowNoToken) {
  Start();
  const auto ask = [this](const std::string& fields) {
    return Ask({"POST", "/v1/completions"},
               R"({"prompt":"a","max_tokens":6,)" + fields + "}");
  };
  const std::string eos = absl::StrCat(FakeTokenizer::kEos);
  for (const std::string& fields : std::vector<std::string>{
           R"("min_tokens":5,"allowed_token_ids":[)" + eos + "]",
           R"("min_tokens":5,"stop_token_ids":[98],"allowed_token_ids":[98,)" +
               eos + "]",
           R"("min_tokens":5,"ignore_eos":true,"stop_token_ids":[98],)"
           R"("allowed_token_ids":[98])",
           std::string(R"("bad_words":["b"],"allowed_token_ids":[98])")}) {
    const TestResponse response = ask(fields);
    EXPECT_EQ(response.status, 400) << fields;
    EXPECT_EQ(Parse(response)["error"]["param"], "allowed_token_ids") << fields;
  }
  for (const std::string& fields : std::vector<std::string>{
           R"("allowed_token_ids":[)" + eos + "]",
           R"("min_tokens":5,"ignore_eos":true,"allowed_token_ids":[)" + eos +
               "]",
           R"("min_tokens":5,"allowed_token_ids":[98,)" + eos + "]",
           std::string(R"("bad_words":["bb"],"allowed_token_ids":[98])")}) {
    EXPECT_EQ(ask(fields).status, 200) << fields;
  }
  ExpectIdle();
}

TEST_F(ApiServerTest, LimitsTheChoicesOfAllPromptsTogether) {
  Start();
  const auto ask = [this](const std::string& fields) {
    return Ask({"POST", "/v1/completions"},
               R"({"prompt":["a","b"],"max_tokens":1,)" + fields + "}");
  };
  EXPECT_EQ(ask(R"("n":64)").status, 200);
  const TestResponse response = ask(R"("n":65)");
  EXPECT_EQ(response.status, 400);
  EXPECT_EQ(Parse(response)["error"]["param"], "n");
}

// The limits of the reader of JSON do not undercut those of the fields.
TEST_F(ApiServerTest, TakesAsManyIdsAsItPromises) {
  Start();
  std::string bias = "{\"0\":0";
  for (int i = 1; i < 65536; ++i) absl::StrAppend(&bias, ",\"", i, "\":0");
  const auto ask = [this](const std::string& fields) {
    return Ask({"POST", "/v1/completions"}, "{" + fields + "}");
  };
  // An id outside of the vocabulary: found after all of it was read.
  TestResponse response = ask("\"prompt\":\"a\",\"logit_bias\":" + bias + "}");
  EXPECT_EQ(response.status, 400);
  EXPECT_TRUE(absl::StrContains(response.body, "not in the vocabulary"))
      << response.body;
  response = ask("\"prompt\":\"a\",\"logit_bias\":" + bias + ",\"x\":0}");
  EXPECT_EQ(Parse(response)["error"]["message"],
            "the body exceeds a limit: an object with more than 65536 keys");
  EXPECT_EQ(Parse(response)["error"]["param"], "logit_bias");
  std::string prompt = "[97";
  for (int i = 1; i < 2000; ++i) prompt += ",97";
  std::string prompts = prompt + "]";
  for (int i = 1; i < 64; ++i) prompts += "," + prompt + "]";
  response = ask("\"max_tokens\":1,\"prompt\":[" + prompts + "]");
  EXPECT_EQ(response.status, 200) << response.body;
  EXPECT_EQ(Parse(response)["usage"]["prompt_tokens"], 64 * 2000);
}

TEST_F(ApiServerTest, ServesEmbeddings) {
  engine_options_.enable_generate = false;
  engine_options_.enable_embed = true;
  embedding_ = ServedEmbedding{.hidden_size = 3, .normalize = false};
  Start();
  for (const char* path : {"/v1/embeddings", "/embeddings"}) {
    const TestResponse response =
        Ask({"POST", path}, R"({"input":["a",[98,99]],"nonsense":1})",
            "X-Request-Id: my-id\r\n");
    EXPECT_EQ(response.Field("x-request-id"), "my-id");
    EXPECT_EQ(response.Field("x-quire-ignored-fields"), "nonsense");
    const Json body = Parse(response);
    EXPECT_EQ(body["id"], "embd-my-id");
    ASSERT_EQ(body["data"].size(), 2u);
    Request request;
    request.kind = RequestKind::kEmbed;
    request.prompt_token_ids = {98, 99};
    EXPECT_EQ(body["data"][1]["embedding"].get<std::vector<float>>(),
              AnswerAlone(engine_options_, HashModelOptions(), request, 0, 0,
                          kMaxModelLen)
                  .embedding);
    // <s>a and two ids.
    EXPECT_EQ(body["usage"]["prompt_tokens"], 4);
  }
  const Json invalid = "invalid_request_error";
  const Route route = {"POST", "/v1/embeddings"};
  ExpectError(Ask(route, R"({"input":"a","dimensions":4})"), 400, invalid,
              "dimensions", nullptr);
  ExpectError(Ask(route, R"({"input":"a","priority":1})"), 400, invalid,
              "priority", nullptr);
  ExpectError(Ask(route, R"({"input":"a","model":"other"})"), 404,
              "not_found_error", nullptr, "model_not_found");
  ExpectError(Chat(kHi), 400, invalid, "model", "unsupported_model");
  ExpectError(Complete(R"({"prompt":"a"})"), 400, invalid, "model",
              "unsupported_model");
  ExpectIdle();
}

TEST_F(ApiServerTest, StreamSaysWhatTheResponseSays) {
  Start();
  const Json collected = Parse(Chat(kHi));
  std::string body = kHi;
  body.insert(1, R"("stream":true,"stream_options":{"include_usage":true},)");
  const TestResponse response = Chat(body);
  EXPECT_EQ(response.status, 200);
  EXPECT_TRUE(
      absl::StartsWith(response.Field("content-type"), "text/event-stream"));
  const std::vector<Json> events = ParseEvents(response.body);
  std::string text;
  for (const Json& event : events) {
    if (event["choices"].empty()) continue;
    const Json& delta = event["choices"][0]["delta"];
    if (delta.contains("content")) text += delta["content"];
  }
  EXPECT_EQ(collected["choices"][0]["message"]["content"], text);
  EXPECT_EQ(events.back()["usage"]["completion_tokens"], 5);
  EXPECT_EQ(events.back()["usage"]["prompt_tokens"], 21);
  ExpectIdle();
}

TEST_F(ApiServerTest, ErrorsNameTypeParameterAndCode) {
  Start();
  const Json invalid = "invalid_request_error";
  ExpectError(Chat("{"), 400, invalid, nullptr, nullptr);
  ExpectError(Chat("[]"), 400, invalid, nullptr, nullptr);
  ExpectError(Chat("{}"), 400, invalid, "messages", nullptr);
  ExpectError(Complete(R"({"prompt":"a","temperature":3})"), 400, invalid,
              "temperature", nullptr);
  ExpectError(Complete(R"({"prompt":"a","suffix":"b"})"), 400, invalid,
              "suffix", "unsupported_parameter");
  ExpectError(Complete(R"({"prompt":"a","priority":1})"), 400, invalid,
              "priority", nullptr);
  ExpectError(Complete(R"({"prompt":[300]})"), 400, invalid, "prompt", nullptr);
  ExpectError(Complete(R"({"prompt":"a","stop_token_ids":[300]})"), 400,
              invalid, "stop_token_ids", nullptr);
  ExpectError(Complete(absl::StrCat(R"({"prompt":")",
                                    std::string(kMaxModelLen, 'a'), "\"}")),
              400, invalid, "prompt", "context_length_exceeded");
  ExpectError(Complete(R"({"prompt":["a","b","c","d","e","f","g","h","i"],
                           "n":128})"),
              400, invalid, "n", nullptr);
  ExpectError(Complete(R"({"prompt":"a","model":"other"})"), 404,
              "not_found_error", nullptr, "model_not_found");
  ExpectError(Ask({"POST", "/v1/embeddings"}, R"({"input":"a"})"), 400, invalid,
              "model", "unsupported_model");
  ExpectError(Ask({"GET", "/nowhere"}), 404, "not_found_error", nullptr,
              "not_found");
  ExpectIdle();
}

TEST_F(ApiServerTest, WrongMethodsAreRefused) {
  Start();
  std::vector<Route> routes(std::begin(kPublicRoutes), std::end(kPublicRoutes));
  routes.insert(routes.end(), std::begin(kApiRoutes), std::end(kApiRoutes));
  for (const Route& route : routes) {
    for (const char* method : {"GET", "POST", "PUT", "PATCH", "DELETE"}) {
      if (absl::string_view(method) == route.method) continue;
      const TestResponse response = Ask({method, route.path}, "{}");
      ExpectError(response, 405, "invalid_request_error", nullptr,
                  "method_not_allowed");
      EXPECT_TRUE(absl::StrContains(response.Field("allow"), route.method));
    }
  }
}

TEST_F(ApiServerTest, EveryApiRouteAsksForAKey) {
  http_options_.api_keys = {"key1", "key2"};
  Start();
  for (const Route& route : kApiRoutes) {
    for (const char* fields :
         {"", "Authorization: Bearer wrong\r\n", "Authorization: key1\r\n",
          "Authorization: Bearer \r\n", "Authorization: Basic key1\r\n"}) {
      ExpectError(Ask(route, "{}", fields), 401, "authentication_error",
                  nullptr, "invalid_api_key");
    }
    EXPECT_NE(Ask(route, "{}", "Authorization: Bearer key2\r\n").status, 401);
  }
  for (const Route& route : kPublicRoutes) {
    EXPECT_EQ(Ask(route).status, 200) << route.path;
  }
}

TEST_F(ApiServerTest, HeadHasNoBody) {
  Start();
  for (const char* path : {"/health", "/version", "/v1/models"}) {
    TestClient client = Connect();
    client.Send(absl::StrCat("HEAD ", path, " HTTP/1.1\r\nHost: x\r\n\r\n"));
    const TestResponse response = client.Receive(/*has_no_body=*/true);
    EXPECT_EQ(response.status, 200);
    EXPECT_NE(response.Field("content-length"), "0");
    // The connection goes on where the head ended.
    EXPECT_EQ(client.Ask("GET /health HTTP/1.1\r\nHost: x\r\n\r\n").status,
              200);
  }
}

TEST_F(ApiServerTest, LargeBodiesAreRefused) {
  http_options_.max_body_bytes = 10000;
  Start();
  ExpectError(Chat(std::string(10001, ' ')), 413, "invalid_request_error",
              nullptr, nullptr);
  std::string body = kHi;
  body.resize(10000, ' ');
  EXPECT_EQ(Chat(body).status, 200);
}

TEST_F(ApiServerTest, RequestIds) {
  Start();
  const auto id_of = [&](const std::string& given) {
    const TestResponse response =
        Chat(kHi, absl::StrCat("X-Request-Id: ", given, "\r\n"));
    const std::string id = response.Field("x-request-id");
    EXPECT_TRUE(id == given || id == Parse(response)["id"].get<std::string>())
        << id;
    return id;
  };
  EXPECT_EQ(id_of("req-1.a_B"), "req-1.a_B");
  EXPECT_EQ(id_of(std::string(64, 'x')), std::string(64, 'x'));
  for (const std::string& bad :
       {std::string(65, 'x'), std::string("a b"), std::string("a\"b"),
        std::string("a;b"), std::string("\xc3\xa9")}) {
    EXPECT_NE(id_of(bad), bad);
  }
  const TestResponse without = Chat(kHi);
  EXPECT_EQ(Parse(without)["id"], without.Field("x-request-id"));
}

TEST_F(ApiServerTest, IgnoredFieldsAreNamed) {
  Start();
  const auto header = [&](const std::string& fields) {
    const TestResponse response =
        Complete(absl::StrCat(R"({"prompt":"a","max_tokens":1)", fields, "}"));
    EXPECT_EQ(response.status, 200) << response.body;
    return response.Field("x-quire-ignored-fields");
  };
  EXPECT_EQ(header(""), "");
  EXPECT_EQ(header(R"(,"user":"u","store":true)"), "");
  EXPECT_EQ(header(R"(,"temprature":1,"x.y":2)"), "temprature,x.y");
  EXPECT_EQ(header(R"(,"a\r\nSet-Cookie: b":1)"), "unnamed");
  EXPECT_EQ(header(absl::StrCat(",\"", std::string(300, 'x'), "\":1,\"b\":1")),
            "b");
}

TEST_F(ApiServerTest, TokenizesAndBack) {
  Start();
  const Route tokenize = {"POST", "/tokenize"};
  const Route detokenize = {"POST", "/detokenize"};
  Json answer = Parse(Ask(tokenize, R"({"prompt":"a</s>"})"));
  EXPECT_EQ(answer["tokens"], Json::parse("[256,97,257]"));
  EXPECT_EQ(answer["count"], 3);
  EXPECT_EQ(answer["max_model_len"], kMaxModelLen);
  EXPECT_TRUE(answer["token_strs"].is_null());
  answer = Parse(Ask(tokenize, R"({"prompt":"a","add_special_tokens":false,
                                   "return_token_strs":true})"));
  EXPECT_EQ(answer["token_strs"], Json::parse(R"(["a"])"));
  answer = Parse(Ask(tokenize, R"({"prompt":"","add_special_tokens":false,
                                   "return_token_strs":true})"));
  EXPECT_EQ(answer["tokens"], Json::array());
  EXPECT_EQ(answer["token_strs"], Json::array());
  answer = Parse(
      Ask(tokenize, R"({"messages":[{"role":"user","content":"</s>"}]})"));
  // The begin token is the template's; the message's end token is text.
  EXPECT_EQ(answer["tokens"][0], 256);
  EXPECT_EQ(answer["count"], 23);
  answer = Parse(Ask(detokenize, R"({"tokens":[256,97,261]})"));
  EXPECT_EQ(answer["prompt"], "<s>a\xc3\xa9");
  EXPECT_EQ(Parse(Ask(detokenize, R"({"tokens":[]})"))["prompt"], "");

  const Json invalid = "invalid_request_error";
  for (const char* body :
       {"{}", R"({"tokens":null})", R"({"tokens":1})", R"({"tokens":{}})",
        R"({"tokens":["a"]})", R"({"tokens":[1.5]})", R"({"tokens":[-1]})",
        R"({"tokens":[100000]})", R"({"tokens":[18446744073709551615]})",
        R"({"tokens":[[1]]})", R"({"tokens":[null]})"}) {
    ExpectError(Ask(detokenize, body), 400, invalid, "tokens", nullptr);
  }
  for (const auto& route : {tokenize, detokenize}) {
    for (const char* body : {"[]", "1"}) {
      ExpectError(Ask(route, body), 400, invalid, nullptr, nullptr);
    }
  }
  ExpectError(Ask(detokenize, R"({"tokens":[97],"model":"x"})"), 404,
              "not_found_error", nullptr, "model_not_found");
  EXPECT_EQ(
      Ask(tokenize, R"({"prompt":"a","x":1})").Field("x-quire-ignored-fields"),
      "x");
  EXPECT_EQ(Ask(detokenize, R"({"tokens":[97],"prompt":1})")
                .Field("x-quire-ignored-fields"),
            "prompt");
  ExpectError(Ask(tokenize, "{}"), 400, invalid, "prompt", nullptr);
  ExpectError(Ask(tokenize, "[]"), 400, invalid, nullptr, nullptr);
  for (const char* prompt : {"1", "{}", "[]", "[1]", R"(["a","b"])", "null"}) {
    ExpectError(Ask(tokenize, absl::StrCat("{\"prompt\":", prompt, "}")), 400,
                invalid, "prompt", nullptr);
  }
  const std::string long_text((1 << 20) + 1, 'a');
  ExpectError(Ask(tokenize, absl::StrCat(R"({"return_token_strs":true,)",
                                         R"("prompt":")", long_text, "\"}")),
              400, invalid, "return_token_strs", nullptr);
  EXPECT_EQ(
      Ask(tokenize, absl::StrCat(R"({"prompt":")", long_text, "\"}")).status,
      200);
  ExpectError(Ask(tokenize, R"({"prompt":"a","return_token_strs":1})"), 400,
              invalid, "return_token_strs", nullptr);
  ExpectError(Ask(tokenize, R"({"prompt":"a","model":"other"})"), 404,
              "not_found_error", nullptr, "model_not_found");
}

TEST_F(ApiServerTest, HostileBodiesAreTheClientsFault) {
  Start();
  std::string messages = R"({"role":"user","content":"x"})";
  for (int i = 1; i < 100000; ++i) messages += R"(,{"role":"user"})";
  std::string kwargs = "1";
  for (int i = 0; i < 50; ++i) kwargs = "{\"a\":" + kwargs + "}";
  std::string deep;
  for (int i = 0; i < 200000; ++i) deep += "{\\\"a\\\":";
  deep += "1" + std::string(200000, '}');
  const std::string hi = R"("messages":[{"role":"user","content":"hi"}])";
  for (const std::string& body : {
           absl::StrCat("{\"messages\":[", messages, "]}"),
           "{" + hi + R"(,"temperature":NaN})",
           "{" + hi + R"(,"temperature":Infinity})",
           "{" + hi + R"(,"temperature":1e999})",
           "{" + hi + R"(,"max_tokens":1e3})",
           "{" + hi + R"(,"max_tokens":99999999999999999999})",
           "{" + hi + R"(,"n":9223372036854775807})",
           "{" + hi + R"(,"chat_template_kwargs":{"messages":[]}})",
           "{" + hi + R"(,"chat_template_kwargs":{"bos_token":"x"}})",
           "{" + hi + R"(,"continue_final_message":true})",
           std::string(R"({"messages":[[]]})"),
           std::string(R"({"messages":[{"role":["user"],"content":"a"}]})"),
           std::string(R"({"messages":[{"role":"user","content":[[]]}]})"),
           std::string(R"({"messages":[{"role":"assistant",
                           "tool_calls":[{"function":[]}]}]})"),
           std::string("{\"messages\":\"\xff\"}"),
       }) {
    const TestResponse response = Chat(body);
    EXPECT_EQ(response.status, 400) << body.substr(0, 200);
    EXPECT_EQ(Parse(response)["error"]["type"], "invalid_request_error");
  }
  for (const char* prompt :
       {"[]", "[[]]", "[[],[]]", "[[1],\"a\",{}]", "[1,\"a\"]", "[\"a\",1]",
        "[1.5]", "true", "[[1],[]]", "[null]"}) {
    const TestResponse response =
        Complete(absl::StrCat("{\"prompt\":", prompt, "}"));
    EXPECT_EQ(response.status, 400) << prompt;
    EXPECT_EQ(Parse(response)["error"]["param"], "prompt") << prompt;
  }
  // Unusual, and meant.
  for (const std::string& body : {
           "{" + hi + R"(,"max_tokens":1,"stream_options":null})",
           "{" + hi + R"(,"max_tokens":7,"max_tokens":1})",
           "{" + hi + R"(,"max_tokens":1,"seed":-1})",
           "{" + hi + R"(,"max_tokens":1,"chat_template_kwargs":)" + kwargs +
               "}",
           R"({"max_tokens":1,"messages":[{"role":"user","content":"a"},
               {"role":"assistant","tool_calls":[{"function":{"name":"f",
               "arguments":")" +
               deep + "\"}}]}]}",
       }) {
    const TestResponse response = Chat(body);
    EXPECT_EQ(response.status, 200) << response.body;
    EXPECT_EQ(Parse(response)["usage"]["completion_tokens"], 1);
  }
  ExpectIdle();
}

TEST_F(ApiServerTest, SearchForTheFinalMessageIsLinear) {
  // A template that does not show the final message as it was sent, and texts
  // in which a naive search compares a megabyte at each of a million places.
  Start();
  auto other = ChatTemplate::Parse(
      "{% for m in messages[:-1] %}{{ m.content }}{% endfor %}x");
  ASSERT_TRUE(other.ok());
  ApiRequest request;
  request.messages = {
      {{"role", "user"}, {"content", std::string(1000000, 'a')}},
      {{"role", "assistant"}, {"content", "b" + std::string(500000, 'a')}}};
  request.continue_final_message = true;
  request.add_generation_prompt = false;
  PromptLimits limits =
      MakePromptLimits(tokenizer_, kMaxModelLen, FakeTokenizer::kVocabSize);
  limits.max_text_bytes = 64 << 20;  // The search is what counts here.
  const auto ids = EncodeChat(request, tokenizer_, other->get(), limits);
  ASSERT_TRUE(ids.ok()) << ids.status();
  EXPECT_EQ(ids->size(), 1000001u);
  // And where it is shown, what follows it is cut.
  request.messages = {{{"role", "user"}, {"content", "aab"}},
                      {{"role", "assistant"}, {"content", " aa b aab\n"}}};
  const auto cut =
      EncodeChat(request, tokenizer_, chat_template_.get(), limits);
  ASSERT_TRUE(cut.ok()) << cut.status();
  EXPECT_EQ(tokenizer_.Decode(*cut, false),
            "<s>[user]aab\n[assistant] aa b aab");
}

// Those of an edge are its cloud's, which may change while it serves.
TEST_F(ApiServerTest, LimitsMayChange) {
  const PromptLimits own =
      MakePromptLimits(tokenizer_, kMaxModelLen, FakeTokenizer::kVocabSize);
  std::atomic<int32_t> max_model_len{8};
  current_limits_ = [&] { return WithMaxModelLen(own, max_model_len); };
  Start();
  const Route route = {"POST", "/v1/completions"};
  const char* const body = R"({"prompt": "abcdefghijkl", "max_tokens": 2})";
  for (const int32_t length : {8, 64, kMaxModelLen, 8}) {
    max_model_len = length;
    EXPECT_EQ(Parse(Ask({"GET", "/v1/models"}))["data"][0]["max_model_len"],
              length);
    EXPECT_EQ(Ask(route, body).status, length > 8 ? 200 : 400);
  }
  const PromptLimits other =
      MakePromptLimits(tokenizer_, 100, FakeTokenizer::kVocabSize);
  EXPECT_EQ(WithMaxModelLen(own, 100).max_text_bytes, other.max_text_bytes);
  EXPECT_EQ(WithMaxModelLen(own, 100).vocab_size, other.vocab_size);
}

// A text that cannot fit is refused before it is encoded; one that is to be cut
// is not.
TEST_F(ApiServerTest, HugeTextIsRefusedByItsLength) {
  ApiRequest request;
  request.kind = ApiKind::kCompletion;
  const PromptLimits limits =
      MakePromptLimits(tokenizer_, kMaxModelLen, FakeTokenizer::kVocabSize);
  request.prompts.emplace_back(std::string(limits.max_text_bytes + 1, 'a'));
  const auto refused = EncodePrompts(request, tokenizer_, nullptr, limits);
  ASSERT_FALSE(refused.ok());
  EXPECT_NE(refused.status().message().find("bytes"), absl::string_view::npos);
  request.truncate_prompt_tokens = 3;
  const auto cut = EncodePrompts(request, tokenizer_, nullptr, limits);
  ASSERT_TRUE(cut.ok()) << cut.status();
  EXPECT_EQ(cut->front().size(), 3u);
}

TEST_F(ApiServerTest, TruncationKeepsOneEndAndTheBeginToken) {
  const auto encode = [&](const ApiRequest& request) {
    const PromptLimits limits = MakePromptLimits(
        tokenizer_, /*max_model_len=*/8, FakeTokenizer::kVocabSize);
    const auto prompts = EncodePrompts(request, tokenizer_, nullptr, limits);
    EXPECT_TRUE(prompts.ok()) << prompts.status();
    return prompts.ok() ? tokenizer_.Decode(prompts->front(), false) : "";
  };
  ApiRequest request;
  request.kind = ApiKind::kCompletion;
  request.prompts.emplace_back("abcdefghij");
  request.add_special_tokens = true;
  request.truncate_prompt_tokens = 4;
  EXPECT_EQ(encode(request), "<s>hij");
  request.truncates_right = true;
  EXPECT_EQ(encode(request), "<s>abc");
  // As many as leave room for the answer.
  request.truncate_prompt_tokens = -1;
  request.sampling.max_tokens = 2;
  EXPECT_EQ(encode(request), "<s>abcde");
  request.sampling.max_tokens = 0;
  EXPECT_EQ(encode(request), "<s>abcdef");
  request.truncate_prompt_tokens = 1;
  request.truncates_right = false;
  EXPECT_EQ(encode(request), "j");
  // Ids are the caller's own.
  request.prompts = {std::vector<int32_t>{FakeTokenizer::kBos, 'a', 'b', 'c'}};
  request.truncate_prompt_tokens = 2;
  EXPECT_EQ(encode(request), "bc");
}

TEST_F(ApiServerTest, RequestIdIsEchoed) {
  Start();
  const TestResponse in_body =
      Complete(R"({"prompt":"a","max_tokens":1,"request_id":"r-1"})");
  EXPECT_EQ(Parse(in_body)["id"], "cmpl-r-1");
  EXPECT_EQ(in_body.Field("x-request-id"), "r-1");
  const TestResponse in_both =
      Complete(R"({"prompt":"a","max_tokens":1,"request_id":"r-1"})",
               "X-Request-Id: r-2\r\n");
  EXPECT_EQ(Parse(in_both)["id"], "cmpl-r-2");
  EXPECT_EQ(in_both.Field("x-request-id"), "r-2");
}

TEST_F(ApiServerTest, EchoScoresThePrompt) {
  Start();
  const Json ask = {{"prompt", Json::array({"abc", Json::array({'x', 'y'})})},
                    {"echo", true},
                    {"max_tokens", 0},
                    {"logprobs", 2},
                    {"n", 2},
                    {"return_token_ids", true}};
  const Json answer = Parse(Complete(ask.dump()));
  ASSERT_EQ(answer["choices"].size(), 4u);
  for (int i = 0; i < 4; ++i) {
    const Json& choice = answer["choices"][i];
    EXPECT_EQ(choice["text"], i < 2 ? "abc" : "xy");
    EXPECT_EQ(choice["finish_reason"], "length");
    EXPECT_EQ(choice["token_ids"], Json::array());
    EXPECT_EQ(
        choice["prompt_token_ids"],
        i < 2 ? Json({FakeTokenizer::kBos, 'a', 'b', 'c'}) : Json({'x', 'y'}));
    const Json& logprobs = choice["logprobs"];
    EXPECT_EQ(logprobs["text_offset"],
              i < 2 ? Json({0, 0, 1, 2}) : Json({0, 1}));
    ASSERT_EQ(logprobs["token_logprobs"].size(), i < 2 ? 4u : 2u);
    EXPECT_TRUE(logprobs["token_logprobs"][0].is_null());
    EXPECT_TRUE(logprobs["top_logprobs"][0].is_null());
    EXPECT_LE(logprobs["token_logprobs"][1], 0.0);
  }
  EXPECT_EQ(answer["choices"][0]["logprobs"], answer["choices"][1]["logprobs"]);
  EXPECT_EQ(answer["usage"]["completion_tokens"], 0);
  EXPECT_EQ(answer["usage"]["prompt_tokens"], 6);
  ExpectIdle();
}

}  // namespace
}  // namespace quire
