#include "server/openai_api.h"

#include "gtest/gtest.h"
#include "server/api_error.h"
#include "server/json_text.h"

namespace quire {
namespace {

using Json = nlohmann::ordered_json;

// A request with one more field.
absl::StatusOr<ApiRequest> ParseWith(ApiKind kind, const std::string& field) {
  const std::string base =
      kind == ApiKind::kChat ? R"("messages":[{"role":"user","content":"hi"}])"
                             : R"("prompt":"hi")";
  const auto body =
      ParseJson("{" + base + (field.empty() ? "" : "," + field) + "}");
  EXPECT_TRUE(body.ok()) << field;
  return ParseApiRequest(kind, *body, {});
}

absl::StatusOr<ApiRequest> ParseChat(const std::string& text) {
  return ParseApiRequest(ApiKind::kChat, *ParseJson(text), {});
}

std::string ErrorParameter(const absl::Status& status) {
  const Json body = *ParseJson(ErrorBody(status));
  return body["error"]["param"].is_string()
             ? body["error"]["param"].get<std::string>()
             : "";
}

TEST(ParseApiRequestTest, WrongTypesAndRangesNameTheField) {
  struct Case {
    ApiKind kind;
    const char* name;
    std::vector<const char*> bad_values;
  };
  constexpr ApiKind kChat = ApiKind::kChat;
  constexpr ApiKind kText = ApiKind::kCompletion;
  const std::vector<Case> cases = {
      {kChat, "temperature", {"-0.1", "2.1", "\"1\"", "true", "[]"}},
      {kChat, "top_p", {"0", "1e-60", "-1", "1.1", "\"x\"", "{}"}},
      {kChat, "min_p", {"-0.1", "1.1", "\"x\""}},
      {kChat, "top_k", {"-2", "1.5", "2147483648", "\"x\""}},
      {kChat, "presence_penalty", {"-2.1", "2.1", "\"x\""}},
      {kChat, "frequency_penalty", {"-2.1", "2.1", "false"}},
      {kChat, "repetition_penalty", {"0", "9e-7", "-1", "11", "\"x\""}},
      {kChat, "seed", {"1.5", "\"1\"", "18446744073709551615"}},
      {kChat, "n", {"0", "129", "-1", "1.0", "\"1\""}},
      {kChat, "max_tokens", {"0", "-1", "1.5", "\"1\"", "4294967297"}},
      {kChat, "max_completion_tokens", {"0", "true"}},
      {kChat, "min_tokens", {"-1", "0.5"}},
      {kChat, "stop", {"1", "\"\"", "[1]", "[\"\"]", "{}"}},
      {kChat, "stop_token_ids", {"1", "[-1]", "[1.5]", "[\"1\"]"}},
      {kChat,
       "logit_bias",
       {"[]", "{\"a\":1}", "{\"1\":\"x\"}", "{\"1\":101}", "{\"-1\":1}"}},
      {kChat, "allowed_token_ids", {"{}", "[-5]", "[]"}},
      {kChat, "ignore_eos", {"1", "\"true\""}},
      {kChat, "stream", {"1", "\"true\"", "{}"}},
      {kChat, "stream_options", {"true", "[]"}},
      {kChat, "logprobs", {"1", "\"x\""}},
      {kChat, "top_logprobs", {"-1", "21", "true", "1.5"}},
      {kChat, "model", {"1", "[]"}},
      {kChat, "messages", {"[]", "\"hi\"", "{}"}},
      {kChat,
       "response_format",
       {"\"text\"", "{}", "{\"type\":\"json_object\"}",
        "{\"type\":\"json_schema\",\"json_schema\":{}}"}},
      {kChat, "tools", {"[{\"type\":\"function\"}]", "{}"}},
      {kChat, "tool_choice", {"\"auto\"", "\"required\"", "{}"}},
      {kChat, "cache_salt", {"1", "\"\""}},
      {kChat, "truncate_prompt_tokens", {"0", "-2", "1.5"}},
      {kChat, "truncation_side", {"\"middle\"", "\"\"", "1"}},
      {kChat, "priority", {"1.5", "\"1\"", "3000000000"}},
      {kChat, "request_id", {"1", "\"\"", "\"a b\"", "\"a\\nb\""}},
      {kChat, "return_token_ids", {"1"}},
      {kChat, "use_beam_search", {"true", "1"}},
      {kChat, "structured_outputs", {"{\"regex\":\"a\"}"}},
      {kChat, "guided_json", {"{\"type\":\"object\"}", "{}"}},
      {kChat, "echo", {"1"}},
      {kChat, "prompt_logprobs", {"-1", "21", "true"}},
      {kChat, "max_tokens", {"0"}},
      {kChat, "chat_template", {"\"{{ messages }}\""}},
      {kChat, "typical_p", {"-0.1", "1.1", "\"x\""}},
      {kChat, "bad_words", {"\"a\"", "[1]", "[\"\"]", "{}"}},
      {kChat, "dry_multiplier", {"-1", "1001", "\"x\""}},
      {kChat, "dry_base", {"0.9", "\"x\""}},
      {kChat, "dry_allowed_length", {"-1", "1.5"}},
      {kChat, "dry_penalty_last_n", {"-2", "true"}},
      {kChat,
       "dry_sequence_breakers",
       {"\"a\"", "[1]", "[\"\"]",
        "[\"12345678901234567890123456789012345678901\"]"}},
      {kChat, "dynatemp_range", {"-0.1", "[]"}},
      {kChat, "dynatemp_exponent", {"-0.1", "101"}},
      {kChat, "top_n_sigma", {"-1.1", "\"x\""}},
      {kChat, "xtc_probability", {"-0.1", "1.1"}},
      {kChat, "xtc_threshold", {"-0.1", "1.1"}},
      {kChat, "mirostat", {"2"}},
      {kText,
       "prompt",
       {"1", "[]", "{}", "[1,\"a\"]", "[[1],2]", "[-1]", "[[\"a\"]]", "true"}},
      {kText, "logprobs", {"true", "-1", "21"}},
      {kText, "best_of", {"0", "129"}},
      {kText, "max_tokens", {"0", "-1"}},
      {kText, "suffix", {"\"x\"", "1"}},
      {kText, "echo", {"\"yes\""}},
  };
  for (const Case& test : cases) {
    for (const char* value : test.bad_values) {
      const std::string field = std::string("\"") + test.name + "\":" + value;
      const auto parsed = ParseWith(test.kind, field);
      ASSERT_FALSE(parsed.ok()) << field;
      EXPECT_EQ(HttpStatus(parsed.status()), 400) << field;
      EXPECT_EQ(ErrorParameter(parsed.status()), test.name) << field;
    }
  }
}

TEST(ParseApiRequestTest, NullIsAbsentAndNeutralValuesAreAccepted) {
  for (const char* name :
       {"temperature", "top_p", "n", "stop", "tools", "response_format", "seed",
        "logit_bias", "stream", "stream_options", "max_tokens", "user"}) {
    EXPECT_TRUE(
        ParseWith(ApiKind::kChat, std::string("\"") + name + "\":null").ok())
        << name;
  }
  for (const char* field :
       {R"("tools":[])", R"("echo":false)", R"("use_beam_search":false)",
        R"("typical_p":1.0)", R"("top_n_sigma":-1.0)", R"("mirostat":0)",
        R"("mirostat_tau":5.0)", R"("function_call":"none")",
        R"("modalities":["text"])", R"("response_format":{"type":"text"})",
        R"("tool_choice":"none")",
        R"("tools":[{"type":"function"}],"tool_choice":"none")",
        R"("store":true)", R"("metadata":{"a":"b"})", R"("user":"x")"}) {
    EXPECT_TRUE(ParseWith(ApiKind::kChat, field).ok()) << field;
  }
}

TEST(ParseApiRequestTest, FieldsThatWouldChangeTheAnswerAreRefusedByName) {
  const std::pair<const char*, const char*> fields[] = {
      {"functions", R"([{"name":"f"}])"},
      {"function_call", R"({"name":"f"})"},
      {"modalities", R"(["text","audio"])"},
      {"audio", R"({"voice":"a"})"},
      {"web_search_options", R"({"search_context_size":"low"})"},
      {"length_penalty", "2.5"},
      {"tools", R"([{"type":"function"}])"},
      {"use_beam_search", "true"},
      {"suffix", R"("end")"},
  };
  for (const auto& [name, value] : fields) {
    const ApiKind kind =
        std::string(name) == "suffix" ? ApiKind::kCompletion : ApiKind::kChat;
    const auto parsed =
        ParseWith(kind, "\"" + std::string(name) + "\":" + value);
    ASSERT_FALSE(parsed.ok()) << name;
    EXPECT_EQ(ErrorParameter(parsed.status()), name);
  }
}

TEST(ParseApiRequestTest, UnknownFieldsAreListed) {
  const auto parsed = ParseWith(ApiKind::kChat, R"("temprature":1,"x":{})");
  ASSERT_TRUE(parsed.ok());
  EXPECT_EQ(parsed->ignored_fields,
            (std::vector<std::string>{"temprature", "x"}));
}

TEST(ParseApiRequestTest, FieldsReachTheRequest) {
  const auto parsed = ParseWith(
      ApiKind::kChat,
      R"("temperature":0.5,"top_p":0.9,"top_k":-1,"min_p":0.1,"seed":-3,"n":2,
         "max_tokens":7,"max_completion_tokens":9,"stop":["a","b"],
         "stop_token_ids":[5],"logit_bias":{"3":-100},"logprobs":true,
         "top_logprobs":4,"stream":true,"stream_options":{"include_usage":true},
         "presence_penalty":1,"frequency_penalty":-1,"repetition_penalty":1.5,
         "min_tokens":2,"ignore_eos":true,"cache_salt":"s",
         "bad_words":["x","yz"],"dry_multiplier":0.8,"dry_base":2,
         "dry_allowed_length":3,"dry_penalty_last_n":64,
         "dry_sequence_breakers":["\n"],"dynatemp_range":0.5,
         "dynatemp_exponent":2,"top_n_sigma":1.5,"typical_p":0.75,
         "xtc_probability":0.5,"xtc_threshold":0.25,
         "chat_template_kwargs":{"a":1},"reasoning_effort":"low")");
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  const SamplingParams& sampling = parsed->sampling;
  EXPECT_EQ(sampling.temperature, 0.5f);
  EXPECT_EQ(sampling.top_p, 0.9f);
  EXPECT_EQ(sampling.top_k, 0);
  EXPECT_EQ(sampling.min_p, 0.1f);
  EXPECT_EQ(sampling.seed, static_cast<uint64_t>(-3));
  EXPECT_EQ(parsed->n, 2);
  EXPECT_EQ(sampling.max_tokens, 9);  // max_completion_tokens wins.
  EXPECT_EQ(parsed->stop_strings, (std::vector<std::string>{"a", "b"}));
  EXPECT_EQ(sampling.stop_token_ids, (std::vector<int32_t>{5}));
  ASSERT_EQ(sampling.logit_bias.size(), 1u);
  EXPECT_EQ(sampling.logit_bias[0], (std::pair<int32_t, float>(3, -100.0f)));
  EXPECT_EQ(sampling.num_logprobs, 4);
  EXPECT_TRUE(parsed->stream && parsed->include_usage);
  EXPECT_EQ(sampling.presence_penalty, 1.0f);
  EXPECT_EQ(sampling.frequency_penalty, -1.0f);
  EXPECT_EQ(sampling.repetition_penalty, 1.5f);
  EXPECT_EQ(sampling.min_tokens, 2);
  EXPECT_TRUE(sampling.ignore_eos);
  EXPECT_EQ(parsed->bad_words, (std::vector<std::string>{"x", "yz"}));
  EXPECT_EQ(sampling.dry_multiplier, 0.8f);
  EXPECT_EQ(sampling.dry_base, 2.0f);
  EXPECT_EQ(sampling.dry_allowed_length, 3);
  EXPECT_EQ(sampling.dry_penalty_last_n, 64);
  EXPECT_EQ(parsed->dry_sequence_breakers, (std::vector<std::string>{"\n"}));
  EXPECT_EQ(sampling.dynatemp_range, 0.5f);
  EXPECT_EQ(sampling.dynatemp_exponent, 2.0f);
  EXPECT_EQ(sampling.top_n_sigma, 1.5f);
  EXPECT_EQ(sampling.typical_p, 0.75f);
  EXPECT_EQ(sampling.xtc_probability, 0.5f);
  EXPECT_EQ(sampling.xtc_threshold, 0.25f);
  EXPECT_EQ(parsed->cache_salt, "s");
  EXPECT_EQ(parsed->chat_template_kwargs["a"], 1);
  EXPECT_EQ(parsed->chat_template_kwargs["reasoning_effort"], "low");
}

TEST(ParseApiRequestTest, FieldsThatNeedEachOther) {
  EXPECT_FALSE(ParseWith(ApiKind::kChat, R"("top_logprobs":2)").ok());
  EXPECT_FALSE(
      ParseWith(ApiKind::kChat, R"("stream_options":{"include_usage":true})")
          .ok());
  EXPECT_FALSE(
      ParseWith(ApiKind::kChat, R"("max_tokens":2,"min_tokens":3)").ok());
  EXPECT_FALSE(
      ParseWith(ApiKind::kChat, R"("continue_final_message":true)").ok());
  EXPECT_FALSE(ParseChat("{}").ok());
  EXPECT_FALSE(ParseChat("[]").ok());
}

TEST(ParseApiRequestTest, Messages) {
  const auto bad = [](const std::string& messages, const char* parameter) {
    const auto parsed = ParseChat("{\"messages\":" + messages + "}");
    ASSERT_FALSE(parsed.ok()) << messages;
    EXPECT_EQ(ErrorParameter(parsed.status()), parameter) << messages;
  };
  bad("[1]", "messages[0]");
  bad(R"([{"content":"x"}])", "messages[0].role");
  bad(R"([{"role":"wizard","content":"x"}])", "messages[0].role");
  bad(R"([{"role":"user"}])", "messages[0].content");
  bad(R"([{"role":"user","content":null}])", "messages[0].content");
  bad(R"([{"role":"user","content":5}])", "messages[0].content");
  bad(R"([{"role":"user","content":[{"text":"x"}]}])", "messages[0].content");
  bad(R"([{"role":"user","content":[{"type":"image_url","image_url":{}}]}])",
      "messages[0].content");
  bad(R"([{"role":"user","content":"a"},
          {"role":"assistant","tool_calls":[{"id":"1"}]}])",
      "messages[1].tool_calls");

  const auto good = ParseChat(R"({"messages":[
      {"role":"developer","content":"be kind"},
      {"role":"user","content":[{"type":"text","text":"a"},
                                {"type":"text","text":"b"}]},
      {"role":"assistant","content":null,"tool_calls":[{"id":"1","type":
          "function","function":{"name":"f","arguments":"{\"x\":1}"}}]},
      {"role":"tool","tool_call_id":"1","content":"r"}]})");
  ASSERT_TRUE(good.ok()) << good.status();
  EXPECT_EQ(good->messages[0]["role"], "system");
  EXPECT_EQ(good->messages[1]["content"], "a\nb");
  EXPECT_EQ(good->messages[2]["content"], "");
  EXPECT_EQ(good->messages[2]["tool_calls"][0]["function"]["arguments"]["x"],
            1);
}

// Copies of a JSON tree recurse: deep arguments, which are JSON within a
// string, ended the process by stack overflow when the template's context was
// made.
TEST(ParseApiRequestTest, ArgumentsOfToolCallsHaveLimits) {
  const auto parse = [](const std::string& arguments) {
    const Json body = {
        {"messages",
         {{{"role", "assistant"},
           {"tool_calls",
            {{{"function", {{"name", "f"}, {"arguments", arguments}}}}}}}}}};
    return ParseApiRequest(ApiKind::kChat, body, {});
  };
  const auto nested = [](int depth) {
    std::string text;
    for (int i = 0; i < depth; ++i) text += "{\"a\":";
    return text + "1" + std::string(depth, '}');
  };
  const auto arguments = [](const ApiRequest& request) {
    return request.messages[0]["tool_calls"][0]["function"]["arguments"];
  };
  const auto shallow = parse(nested(32));
  ASSERT_TRUE(shallow.ok()) << shallow.status();
  EXPECT_TRUE(arguments(*shallow).is_object());
  // What is too deep stays the string it was.
  const auto deep = parse(nested(500000));
  ASSERT_TRUE(deep.ok()) << deep.status();
  EXPECT_TRUE(arguments(*deep).is_string());
}

TEST(ParseApiRequestTest, BestOfIsAtLeastN) {
  for (const char* field : {R"("n":3,"best_of":3)", R"("best_of":3,"n":3)",
                            R"("best_of":null,"n":3)", R"("best_of":3)",
                            R"("n":3,"best_of":3,"stream":true)"}) {
    const auto parsed = ParseWith(ApiKind::kCompletion, field);
    ASSERT_TRUE(parsed.ok()) << field;
    EXPECT_EQ(parsed->best_of, 3) << field;
    // To choose by.
    EXPECT_EQ(parsed->sampling.num_logprobs, parsed->n < 3 ? 0 : -1);
  }
  for (const char* field :
       {R"("n":2,"best_of":1)", R"("n":1,"best_of":2,"stream":true)"}) {
    const auto parsed = ParseWith(ApiKind::kCompletion, field);
    ASSERT_FALSE(parsed.ok()) << field;
    EXPECT_EQ(ErrorParameter(parsed.status()), "best_of");
  }
}

TEST(ParseApiRequestTest, ScoringFieldsReachTheRequest) {
  auto parsed = ParseWith(
      ApiKind::kCompletion,
      R"("echo":true,"max_tokens":0,"logprobs":3,"return_token_ids":true,
         "priority":-4,"request_id":"a-1","truncate_prompt_tokens":-1,
         "truncation_side":"right")");
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  EXPECT_TRUE(parsed->echo);
  EXPECT_TRUE(parsed->generates_nothing);
  EXPECT_EQ(parsed->sampling.max_tokens, 1);
  EXPECT_EQ(parsed->sampling.num_logprobs, 3);
  EXPECT_EQ(parsed->sampling.num_prompt_logprobs, 3);
  EXPECT_FALSE(parsed->prompt_logprobs.has_value());
  EXPECT_TRUE(parsed->return_token_ids);
  EXPECT_EQ(parsed->priority, -4);
  EXPECT_EQ(parsed->request_id, "a-1");
  EXPECT_EQ(parsed->truncate_prompt_tokens, -1);
  EXPECT_TRUE(parsed->truncates_right);

  parsed = ParseWith(ApiKind::kCompletion,
                     R"("echo":true,"logprobs":2,"prompt_logprobs":0)");
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  EXPECT_EQ(parsed->sampling.num_prompt_logprobs, 2);
  EXPECT_EQ(parsed->prompt_logprobs, 0);

  // Without logprobs an echo is text alone; that of a chat is never scored.
  parsed = ParseWith(ApiKind::kCompletion, R"("echo":true)");
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  EXPECT_EQ(parsed->sampling.num_prompt_logprobs, -1);
  parsed = ParseWith(ApiKind::kChat, R"("echo":true,"logprobs":true)");
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  EXPECT_EQ(parsed->sampling.num_prompt_logprobs, -1);
}

TEST(ParseApiRequestTest, SeedsHave64Bits) {
  for (const auto& [text, seed] :
       {std::pair{"-1", ~uint64_t{0}},
        std::pair{"-9223372036854775808", uint64_t{1} << 63},
        std::pair{"9223372036854775807", ~uint64_t{0} >> 1}}) {
    const auto parsed =
        ParseWith(ApiKind::kChat, std::string("\"seed\":") + text);
    ASSERT_TRUE(parsed.ok()) << parsed.status();
    EXPECT_EQ(parsed->sampling.seed, seed) << text;
  }
}

TEST(ErrorBodyTest, MessagesAreBounded) {
  const std::string body =
      ErrorBody(absl::NotFoundError(std::string(1000000, 'x')));
  EXPECT_LT(body.size(), 2000u);
  EXPECT_TRUE(ParseJson(body).ok());
}

TEST(ParseApiRequestTest, Prompts) {
  const auto count = [](const std::string& prompt) {
    const auto parsed = ParseApiRequest(
        ApiKind::kCompletion, *ParseJson("{\"prompt\":" + prompt + "}"), {});
    EXPECT_TRUE(parsed.ok()) << parsed.status();
    return parsed.ok() ? parsed->prompts.size() : 0;
  };
  EXPECT_EQ(count("\"a\""), 1u);
  EXPECT_EQ(count("[\"a\",\"b\"]"), 2u);
  EXPECT_EQ(count("[1,2,3]"), 1u);
  EXPECT_EQ(count("[[1,2],[3]]"), 2u);
}

}  // namespace
}  // namespace quire
