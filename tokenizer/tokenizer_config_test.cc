#include "tokenizer/tokenizer_config.h"

#include <gtest/gtest.h>

#include <cstdio>
#include <fstream>

#include "tokenizer/tokenizer.h"

namespace quire {
namespace {

class TokenizerConfigTest : public testing::Test {
 protected:
  void SetUp() override {
    directory_ = testing::TempDir() + "/tokenizer_config";
    ASSERT_EQ(
        system(("rm -rf " + directory_ + " && mkdir " + directory_).c_str()),
        0);
  }
  void Write(const std::string& name, const std::string& text) {
    std::ofstream(directory_ + "/" + name, std::ios::binary) << text;
  }
  void ExpectError(const std::string& named) {
    const auto config = LoadTokenizerConfig(directory_);
    ASSERT_EQ(config.status().code(), absl::StatusCode::kInvalidArgument);
    for (const std::string& part : {named, directory_}) {
      EXPECT_NE(config.status().message().find(part), absl::string_view::npos)
          << config.status();
    }
  }
  std::string directory_;
};

TEST_F(TokenizerConfigTest, ReadsAllFiles) {
  Write("tokenizer_config.json", R"({
      "bos_token": {"content": "<s>", "lstrip": false}, "eos_token": "</s>",
      "add_bos_token": true, "add_prefix_space": null, "pad_token": null,
      "added_tokens_decoder": {"10": {"content": "</s>", "special": true},
                               "2": {"content": "<s>", "lstrip": true}},
      "chat_template": [{"name": "tools", "template": "T"},
                        {"name": "default", "template": "D"}]})");
  Write("special_tokens_map.json",
        R"({"eos_token": "<e>", "unk_token": "<u>"})");
  auto config = LoadTokenizerConfig(directory_);
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(
      config->special_tokens,
      (std::map<std::string, std::string>{
          {"bos_token", "<s>"}, {"eos_token", "</s>"}, {"unk_token", "<u>"}}));
  EXPECT_EQ(config->add_bos_token, true);
  EXPECT_FALSE(config->add_eos_token.has_value());
  ASSERT_EQ(config->added_tokens.size(), 2u);
  EXPECT_EQ(config->added_tokens[0].id, 2);
  EXPECT_TRUE(config->added_tokens[0].lstrip);
  EXPECT_TRUE(config->added_tokens[0].normalized);
  EXPECT_TRUE(config->added_tokens[1].special);
  EXPECT_EQ(config->chat_template, "D");

  Write("chat_template.jinja", "J");
  config = LoadTokenizerConfig(directory_);
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->chat_template, "J");
}

TEST_F(TokenizerConfigTest, AddedTokensFileCountsWithoutTheDecoder) {
  Write("added_tokens.json", R"({"<b>": 8, "<a>": 7})");
  const auto config = LoadTokenizerConfig(directory_);
  ASSERT_TRUE(config.ok()) << config.status();
  ASSERT_EQ(config->added_tokens.size(), 2u);
  EXPECT_EQ(config->added_tokens[0].content, "<a>");
}

TEST_F(TokenizerConfigTest, ErrorsNameFileAndField) {
  Write("tokenizer_config.json", "{");
  ExpectError("tokenizer_config.json");
  Write("tokenizer_config.json", "\"\xFF\"");
  ExpectError("UTF-8");
  Write("tokenizer_config.json", std::string(100000, '['));
  ExpectError("nested");
  Write("tokenizer_config.json", R"({"bos_token": 7})");
  ExpectError("bos_token");
  Write("tokenizer_config.json", R"({"add_bos_token": "yes"})");
  ExpectError("add_bos_token");
  Write("tokenizer_config.json", R"({"chat_template": 1})");
  ExpectError("chat_template");
  Write("tokenizer_config.json", R"({"added_tokens_decoder": {"x": {}}})");
  ExpectError("added_tokens_decoder.x");
  Write("tokenizer_config.json", R"({"added_tokens_decoder": {"1": {}}})");
  ExpectError("added_tokens_decoder.1.content");
  Write("tokenizer_config.json", "{}");
  Write("added_tokens.json", R"({"a": 1, "b": 1})");
  ExpectError("added_tokens.json");
}

TEST_F(TokenizerConfigTest, ADirectoryWithoutATokenizerIsNotFound) {
  const auto tokenizer = Tokenizer::Create(directory_);
  EXPECT_EQ(tokenizer.status().code(), absl::StatusCode::kNotFound);
  Write("tokenizer.json", "{}");
  EXPECT_NE(Tokenizer::Create(directory_)
                .status()
                .message()
                .find("tokenizer.json: model: is missing"),
            absl::string_view::npos);
}

}  // namespace
}  // namespace quire
