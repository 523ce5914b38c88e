#include "benchmarks/serving/dataset.h"

#include <cstdlib>
#include <fstream>
#include <set>
#include <string>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "benchmarks/serving/fake_server.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace quire {
namespace {

using testing::HasSubstr;

std::string WriteFile(const std::string& name, const std::string& text) {
  const std::string path = absl::StrCat(getenv("TEST_TMPDIR"), "/", name);
  std::ofstream(path) << text;
  return path;
}

class DatasetTest : public testing::Test {
 protected:
  absl::StatusOr<std::vector<LoadPrompt>> Make(PromptCodec* codec = nullptr) {
    SimulationRandom random(seed_);
    return MakePrompts(options_, api_, codec, &random);
  }
  std::string ErrorOf(DatasetOptions::Kind kind, const std::string& text) {
    options_.kind = kind;
    options_.path = WriteFile("malformed", text);
    const auto prompts = Make();
    EXPECT_EQ(prompts.status().code(), absl::StatusCode::kInvalidArgument);
    return std::string(prompts.status().message());
  }

  DatasetOptions options_;
  CompletionApi api_ = CompletionApi::kCompletions;
  uint64_t seed_ = 1;
  std::unique_ptr<Tokenizer> tokenizer_ = *Tokenizer::Create("models/demo");
  std::unique_ptr<PromptCodec> codec_ = NewLocalCodec(tokenizer_.get());
};

TEST_F(DatasetTest, RandomLengthsWithATokenizer) {
  options_.num_prompts = 50;
  options_.random_input_len = 40;
  options_.random_output_len = 20;
  options_.random_range_ratio = 0.5;
  options_.random_prefix_len = 8;
  const auto prompts = Make(codec_.get());
  ASSERT_TRUE(prompts.ok()) << prompts.status();
  std::set<int64_t> input_lens, output_lens;
  for (const LoadPrompt& prompt : *prompts) {
    EXPECT_EQ(prompt.num_tokens,
              static_cast<int64_t>(tokenizer_->Encode(prompt.text)->size()));
    // Encoding may not hit a length; almost always it does.
    EXPECT_GE(prompt.num_tokens, 8 + 20 - 1);
    EXPECT_LE(prompt.num_tokens, 8 + 60 + 1);
    EXPECT_GE(prompt.output_len, 10);
    EXPECT_LE(prompt.output_len, 30);
    input_lens.insert(prompt.num_tokens);
    output_lens.insert(prompt.output_len);
    EXPECT_EQ(prompt.text.substr(0, 8), (*prompts)[0].text.substr(0, 8));
  }
  EXPECT_GT(input_lens.size(), 15u);
  EXPECT_GT(output_lens.size(), 8u);
}

TEST_F(DatasetTest, RandomIsRepeatable) {
  options_.num_prompts = 3;
  options_.random_input_len = 20;
  const auto first = Make(codec_.get());
  EXPECT_EQ((*first)[2].text, (*Make(codec_.get()))[2].text);
  seed_ = 2;
  EXPECT_NE((*first)[2].text, (*Make(codec_.get()))[2].text);
}

TEST_F(DatasetTest, WithoutATokenizer) {
  options_.num_prompts = 2;
  options_.random_input_len = 30;
  const auto ids = Make();
  EXPECT_EQ((*ids)[0].token_ids.size(), 30u);
  EXPECT_TRUE((*ids)[0].text.empty());
  api_ = CompletionApi::kChat;
  const auto words = Make();
  EXPECT_TRUE((*words)[0].token_ids.empty());
  EXPECT_EQ(absl::StrSplit((*words)[0].text, ' ')
                .
                operator std::vector<std::string>()
                .size(),
            30u);
}

// A server that counts two tokens a word, and one more for each prompt.
TEST_F(DatasetTest, WithTheServersTokenizer) {
  FakeServer server([](int, const std::string& request) {
    EXPECT_TRUE(absl::StartsWith(request, "POST /tokenize "));
    const size_t start = request.find("\"prompt\":\"") + 10;
    const std::string text =
        request.substr(start, request.find('"', start) - start);
    std::string tokens = "1";
    for (int i = 1 + std::count(text.begin(), text.end(), ' '); i > 0; --i) {
      tokens += ",2,3";
    }
    return FakeAnswer{SizedAnswer(
        200, absl::StrCat(R"({"count": 9, "tokens": [)", tokens, "]}"))};
  });
  ServerUrl url;
  url.host = "127.0.0.1";
  url.port = server.port();
  const auto client = *LoadClient::Create(url, {});
  const auto codec = NewServerCodec(client.get(), "m", {});
  ASSERT_TRUE(codec.ok()) << codec.status();
  options_.num_prompts = 3;
  options_.random_input_len = 21;
  const auto prompts = Make(codec->get());
  ASSERT_TRUE(prompts.ok()) << prompts.status();
  for (const LoadPrompt& prompt : *prompts) {
    EXPECT_EQ(prompt.num_tokens, 21);
    EXPECT_EQ(std::count(prompt.text.begin(), prompt.text.end(), ' '), 9);
  }
}

TEST_F(DatasetTest, AServerWithoutTokenizer) {
  for (const std::string& answer :
       {SizedAnswer(404, R"({"error": {"message": "no such path"}})"),
        SizedAnswer(200, "{}"), SizedAnswer(200, "[]"),
        SizedAnswer(200, R"({"tokens": ["a"]})")}) {
    FakeServer server(
        [&](int, const std::string&) { return FakeAnswer{answer}; });
    ServerUrl url;
    url.host = "127.0.0.1";
    url.port = server.port();
    const auto client = *LoadClient::Create(url, {});
    EXPECT_FALSE(NewServerCodec(client.get(), "m", {}).ok()) << answer;
  }
}

TEST_F(DatasetTest, PrefixRepetition) {
  options_.kind = DatasetOptions::Kind::kPrefixRepetition;
  options_.num_prompts = 11;
  options_.num_prefixes = 3;
  options_.prefix_len = 16;
  options_.suffix_len = 4;
  options_.prefix_output_len = 9;
  const auto prompts = Make();
  ASSERT_TRUE(prompts.ok());
  std::multiset<std::vector<int32_t>> prefixes;
  for (const LoadPrompt& prompt : *prompts) {
    EXPECT_EQ(prompt.token_ids.size(), 20u);
    EXPECT_EQ(prompt.output_len, 9);
    prefixes.insert({prompt.token_ids.begin(), prompt.token_ids.begin() + 16});
  }
  std::multiset<size_t> counts;
  for (const auto& prefix :
       std::set<std::vector<int32_t>>(prefixes.begin(), prefixes.end())) {
    counts.insert(prefixes.count(prefix));
  }
  EXPECT_EQ(counts, std::multiset<size_t>({3, 4, 4}));
  options_.num_prefixes = 12;
  EXPECT_FALSE(Make().ok());
}

TEST_F(DatasetTest, CustomLines) {
  options_.kind = DatasetOptions::Kind::kCustom;
  options_.path = WriteFile("custom.jsonl",
                            "{\"prompt\": \"one\", \"output_tokens\": 5}\n\n"
                            "{\"prompt\": \"two\", \"output_tokens\": 6}\n");
  options_.num_prompts = 5;
  options_.custom_output_len = -1;
  const auto prompts = Make(codec_.get());
  ASSERT_TRUE(prompts.ok()) << prompts.status();
  EXPECT_EQ(prompts->size(), 5u);
  for (const LoadPrompt& prompt : *prompts) {
    EXPECT_EQ(prompt.output_len, prompt.text == "one" ? 5 : 6);
    EXPECT_GT(prompt.num_tokens, 0);
  }
  options_.custom_output_len = 7;
  EXPECT_EQ((*Make())[0].output_len, 7);
}

// The errors of the prompts that cannot be sent, without the path before them.
std::vector<std::string> ErrorsOf(const std::vector<LoadPrompt>& prompts) {
  std::vector<std::string> errors;
  for (const LoadPrompt& prompt : prompts) {
    if (prompt.error.empty()) continue;
    EXPECT_TRUE(prompt.text.empty());
    errors.push_back(prompt.error.substr(prompt.error.rfind('/') + 1));
  }
  return errors;
}

TEST_F(DatasetTest, MalformedLinesArePromptsThatSaySo) {
  options_.kind = DatasetOptions::Kind::kCustom;
  options_.custom_output_len = -1;
  const std::string good = "{\"prompt\": \"a\", \"output_tokens\": 5}\n";
  options_.path =
      WriteFile("lines", good + "\n{\"prompt\": \n" + "{\"promt\": \"a\"}\n" +
                             good + "{\"prompt\": \"a\"}\n");
  const std::vector<std::string> expected = {
      "lines:3: not a JSON object", "lines:4: \"prompt\" is not a text",
      "lines:6: \"output_tokens\" is not a number of at least 1"};
  // Once each: what repeats is what can be sent.
  for (int count : {5, 12}) {
    options_.num_prompts = count;
    const auto prompts = Make(codec_.get());
    ASSERT_TRUE(prompts.ok()) << prompts.status();
    EXPECT_EQ(prompts->size(), static_cast<size_t>(count));
    EXPECT_THAT(ErrorsOf(*prompts),
                testing::UnorderedElementsAreArray(expected));
    for (const LoadPrompt& prompt : *prompts) {
      EXPECT_EQ(prompt.num_tokens > 0, prompt.error.empty());
    }
  }
  // However few are drawn, one can be sent.
  options_.num_prompts = 1;
  for (seed_ = 0; seed_ < 20; ++seed_) {
    const auto prompts = Make();
    ASSERT_TRUE(prompts.ok()) << prompts.status();
    ASSERT_EQ(prompts->size(), 1u);
    EXPECT_EQ((*prompts)[0].error, "");
  }
}

// Also where an option says how long all answers are.
TEST_F(DatasetTest, AWrongLengthOfALineIsNeverIgnored) {
  options_.kind = DatasetOptions::Kind::kCustom;
  options_.custom_output_len = 7;
  options_.path = WriteFile("lengths",
                            "{\"prompt\": \"a\"}\n"
                            "{\"prompt\": \"a\", \"output_tokens\": 9}\n"
                            "{\"prompt\": \"a\", \"output_tokens\": null}\n"
                            "{\"prompt\": \"a\", \"output_tokens\": \"x\"}\n"
                            "{\"prompt\": \"a\", \"output_tokens\": 0}\n"
                            "{\"prompt\": \"a\", \"output_tokens\": 1.5}\n");
  options_.num_prompts = 6;
  const auto prompts = Make();
  ASSERT_TRUE(prompts.ok()) << prompts.status();
  const std::string what = "\"output_tokens\" is not a number of at least 1";
  EXPECT_THAT(
      ErrorsOf(*prompts),
      testing::UnorderedElementsAre("lengths:4: " + what, "lengths:5: " + what,
                                    "lengths:6: " + what));
  for (const LoadPrompt& prompt : *prompts) {
    EXPECT_EQ(prompt.output_len, prompt.error.empty() ? 7 : 0);
  }
}

TEST_F(DatasetTest, InputsForEmbeddings) {
  api_ = CompletionApi::kEmbeddings;
  options_.num_prompts = 7;
  options_.random_input_len = 12;
  options_.random_batch_size = 3;
  const auto prompts = Make();
  ASSERT_TRUE(prompts.ok()) << prompts.status();
  ASSERT_EQ(prompts->size(), 3u);
  const size_t num_further[] = {2, 2, 0};
  for (size_t i = 0; i < 3; ++i) {
    const LoadPrompt& prompt = (*prompts)[i];
    ASSERT_EQ(prompt.further_inputs.size(), num_further[i]);
    EXPECT_EQ(prompt.num_tokens, 12 * (1 + int64_t(num_further[i])));
    EXPECT_EQ(prompt.token_ids.size(), 12u);
    for (const LoadPrompt& input : prompt.further_inputs) {
      EXPECT_EQ(input.token_ids.size(), 12u);
      EXPECT_NE(input.token_ids, prompt.token_ids);
    }
  }
  const auto texts = Make(codec_.get());
  ASSERT_TRUE(texts.ok());
  EXPECT_TRUE((*texts)[0].token_ids.empty());
  EXPECT_FALSE((*texts)[0].further_inputs[1].text.empty());
}

TEST_F(DatasetTest, TellsItsProgressAndEndsWhenItIsTold) {
  using Kind = DatasetOptions::Kind;
  const std::string talk =
      R"({"conversations": [{"value": "Name some animals, please."},)"
      R"({"value": "A cat, a dog, and a whale."}]})";
  options_.num_prompts = 4;
  options_.num_prefixes = 2;
  for (const Kind kind : {Kind::kRandom, Kind::kPrefixRepetition,
                          Kind::kShareGpt, Kind::kCustom}) {
    options_.kind = kind;
    options_.path = WriteFile(
        "progress",
        kind == Kind::kShareGpt
            ? absl::StrCat("[3,[],{},", talk, ",", talk, ",", talk, "]")
            : "{\"prompt\": \"a\"}\n\n[]\n{\"prompt\": \"b\"}\n");
    int64_t most = 0;
    int num_calls = 0;
    SimulationRandom random(1);
    const auto prompts = MakePrompts(options_, api_, nullptr, &random,
                                     [&](int64_t num_made, int64_t count) {
                                       ++num_calls;
                                       EXPECT_EQ(count, 4);
                                       EXPECT_GE(num_made, most);
                                       EXPECT_LE(num_made, count);
                                       most = num_made;
                                       return true;
                                     });
    ASSERT_TRUE(prompts.ok()) << prompts.status();
    EXPECT_GT(num_calls, 2);
    EXPECT_GT(most, 0);
    SimulationRandom again(1);
    num_calls = 0;
    const auto cancelled =
        MakePrompts(options_, api_, nullptr, &again,
                    [&](int64_t, int64_t) { return ++num_calls < 3; });
    EXPECT_EQ(cancelled.status().code(), absl::StatusCode::kCancelled);
    EXPECT_EQ(num_calls, 3);
    // Not even read.
    options_.path = "no/such/file";
    EXPECT_EQ(MakePrompts(options_, api_, nullptr, &again,
                          [](int64_t, int64_t) { return false; })
                  .status()
                  .code(),
              absl::StatusCode::kCancelled);
  }
}

// Of a file of gigabytes, parsing is what takes long.
TEST_F(DatasetTest, TheParsingOfALargeFileCanBeCancelled) {
  options_.kind = DatasetOptions::Kind::kShareGpt;
  options_.path = WriteFile(
      "large", absl::StrCat("[\n", std::string(1 << 20, ' '), "oops]"));
  SimulationRandom random(1);
  int num_calls = 0;
  const auto cancelled =
      MakePrompts(options_, api_, nullptr, &random,
                  [&](int64_t, int64_t) { return ++num_calls < 3; });
  EXPECT_EQ(cancelled.status().code(), absl::StatusCode::kCancelled);
  EXPECT_EQ(num_calls, 3);
  EXPECT_THAT(Make().status().message(), HasSubstr("large:2: not JSON"));
}

TEST_F(DatasetTest, MalformedConversationsArePromptsThatSaySo) {
  options_.kind = DatasetOptions::Kind::kShareGpt;
  const std::string good =
      R"({"conversations": [{"value": "Name some animals, please."},)"
      R"({"value": "A cat, a dog, and a whale."}]})";
  options_.path = WriteFile(
      "talks", absl::StrCat("[3,", good, R"(, {"conversations": [{}, {}]},)",
                            good, R"(, {"conversations": 1}])"));
  const std::vector<std::string> expected = {
      "talks: conversation 1: not an object",
      "talks: conversation 3: a turn has no text as its \"value\"",
      "talks: conversation 5: \"conversations\" is not a list"};
  options_.num_prompts = 9;
  const auto prompts = Make(codec_.get());
  ASSERT_TRUE(prompts.ok()) << prompts.status();
  EXPECT_EQ(prompts->size(), 9u);
  EXPECT_THAT(ErrorsOf(*prompts), testing::UnorderedElementsAreArray(expected));
  options_.num_prompts = 1;
  for (seed_ = 0; seed_ < 20; ++seed_) {
    const auto one = Make(codec_.get());
    ASSERT_TRUE(one.ok()) << one.status();
    ASSERT_EQ(one->size(), 1u);
    EXPECT_EQ((*one)[0].error, "");
  }
}

// It took all memory.
TEST_F(DatasetTest, AnEndlessLineIsAnError) {
  options_.kind = DatasetOptions::Kind::kCustom;
  options_.path = "/dev/zero";
  const auto prompts = Make(nullptr);
  EXPECT_EQ(prompts.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(prompts.status().message(),
              HasSubstr("/dev/zero:1: longer than 67108864 bytes"));
}

TEST_F(DatasetTest, FilesWithoutAPromptAreErrors) {
  using Kind = DatasetOptions::Kind;
  options_.custom_output_len = -1;
  EXPECT_THAT(ErrorOf(Kind::kCustom, "\n{\"prompt\": \n3\n"),
              HasSubstr("malformed:2: not a JSON object"));
  EXPECT_THAT(ErrorOf(Kind::kCustom, "{\"prompt\": \"a\"}\n"),
              HasSubstr("malformed:1: \"output_tokens\""));
  EXPECT_THAT(ErrorOf(Kind::kCustom, "\n"), HasSubstr("no prompt"));
  // The last line need not end.
  EXPECT_THAT(ErrorOf(Kind::kCustom, "\n\n{\"prompt\": 3}"),
              HasSubstr("malformed:3: \"prompt\""));
  EXPECT_THAT(ErrorOf(Kind::kShareGpt, "[\n{},\n{\"conversations\": oops}]"),
              HasSubstr("malformed:3: not JSON"));
  EXPECT_THAT(ErrorOf(Kind::kShareGpt, "{}"), HasSubstr("not a list"));
  EXPECT_THAT(ErrorOf(Kind::kShareGpt, "[{}, 3]"),
              HasSubstr("conversation 2: not an object"));
  EXPECT_THAT(ErrorOf(Kind::kShareGpt, R"([{"conversations": [{}, {}]}])"),
              HasSubstr("conversation 1: a turn"));
  EXPECT_THAT(ErrorOf(Kind::kShareGpt, "[]"), HasSubstr("no conversation"));
  options_.path = "no/such/file";
  EXPECT_EQ(Make().status().code(), absl::StatusCode::kNotFound);
  options_.path = testing::TempDir();
  EXPECT_EQ(Make().status(), absl::NotFoundError(absl::StrCat(
                                 options_.path, ": is a directory")));
  options_.path = "";
  EXPECT_FALSE(Make().ok());
}

TEST_F(DatasetTest, ShareGptConversations) {
  options_.kind = DatasetOptions::Kind::kShareGpt;
  const auto conversation = [](int words, const std::string& answer) {
    std::string text = "w";
    for (int i = 1; i < words; ++i) text += " word";
    return absl::StrCat(R"({"conversations": [{"from": "human", "value": ")",
                        text, R"("}, {"from": "gpt", "value": ")", answer,
                        R"("}]})");
  };
  options_.path = WriteFile(
      "sharegpt.json",
      absl::StrCat("[", conversation(20, "a fairly long answer indeed"), ",",
                   conversation(1, "too short a question here"), ",",
                   conversation(5000, "too long a question here"),
                   R"(, {"conversations": []}, {"id": 1}])"));
  options_.num_prompts = 3;
  const auto prompts = Make(codec_.get());
  ASSERT_TRUE(prompts.ok()) << prompts.status();
  ASSERT_EQ(prompts->size(), 3u);
  for (const LoadPrompt& prompt : *prompts) {
    EXPECT_TRUE(absl::StartsWith(prompt.text, "w word"));
    EXPECT_EQ(prompt.output_len,
              static_cast<int64_t>(
                  tokenizer_->Encode("a fairly long answer indeed")->size()));
  }
  options_.sharegpt_output_len = 50;
  EXPECT_EQ((*Make(codec_.get()))[0].output_len, 50);
}

}  // namespace
}  // namespace quire
