#include "cli/speculative_options.h"

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"

namespace quire {
namespace {

absl::StatusOr<SpeculativeConfig> Make(const std::string& model,
                                       const std::string& config,
                                       int num_tokens = 0) {
  SessionOptions options;
  options.speculative_model = model;
  options.speculative_config = config;
  options.num_speculative_tokens = num_tokens;
  return MakeSpeculativeConfig(options);
}

TEST(SpeculativeOptionsTest, NothingIsDraftedUnlessAskedFor) {
  EXPECT_EQ(Make("", "")->method, DraftMethod::kNone);
  EXPECT_FALSE(Make("", "", 3).ok());
}

TEST(SpeculativeOptionsTest, ModelNames) {
  for (const char* name : {"[ngram]", "ngram"}) {
    const auto config = Make(name, "", 3);
    ASSERT_TRUE(config.ok()) << config.status();
    EXPECT_EQ(config->method, DraftMethod::kNgram);
    EXPECT_EQ(config->model, "");
    EXPECT_EQ(config->num_speculative_tokens, 3);
  }
  EXPECT_EQ(Make("[suffix]", "")->method, DraftMethod::kSuffix);
  EXPECT_EQ(Make("[suffix]", "")->num_speculative_tokens, 24);
  EXPECT_EQ(Make("/some/dir", "")->method, DraftMethod::kDraftModel);
  EXPECT_EQ(Make("/some/dir", "")->model, "/some/dir");
  EXPECT_EQ(Make("/some/dir", "")->num_speculative_tokens, 5);
}

TEST(SpeculativeOptionsTest, FieldsAreThoseOfVllm) {
  const auto ngram = Make("", R"({"method": "ngram", "prompt_lookup_max": 4,
      "num_speculative_tokens": 6})");
  ASSERT_TRUE(ngram.ok()) << ngram.status();
  EXPECT_EQ(ngram->prompt_lookup_max, 4);
  EXPECT_EQ(ngram->prompt_lookup_min, 4);
  EXPECT_EQ(ngram->num_speculative_tokens, 6);
  EXPECT_EQ(Make("", R"({"model": "ngram", "prompt_lookup_min": 3})")
                ->prompt_lookup_max,
            3);
  const auto suffix = Make("", R"({"method": "suffix",
      "suffix_decoding_max_tree_depth": 12,
      "suffix_decoding_max_cached_requests": 0,
      "suffix_decoding_max_spec_factor": 2.5,
      "suffix_decoding_min_token_prob": 0.25})");
  ASSERT_TRUE(suffix.ok()) << suffix.status();
  EXPECT_EQ(suffix->suffix.max_tree_depth, 12);
  EXPECT_EQ(suffix->suffix.max_cached_requests, 0);
  EXPECT_EQ(suffix->suffix.max_spec_factor, 2.5f);
  EXPECT_EQ(suffix->suffix.min_token_prob, 0.25f);
  EXPECT_EQ(suffix->num_speculative_tokens, 12);
  EXPECT_EQ(Make("", R"({"method": "eagle3", "model": "/e"})")->method,
            DraftMethod::kEagle3);
  EXPECT_EQ(Make("", R"({"method": "mtp"})")->method, DraftMethod::kMtp);
}

TEST(SpeculativeOptionsTest, WhatDraftsRunsInOneProcess) {
  const auto made =
      Make("", R"({"model": "/d", "draft_tensor_parallel_size": 1})");
  ASSERT_TRUE(made.ok()) << made.status();
  EXPECT_EQ(made->method, DraftMethod::kDraftModel);
}

TEST(SpeculativeOptionsTest, ErrorsNameTheField) {
  const std::pair<const char*, const char*> kCases[] = {
      {"nonsense", "not a JSON object"},
      {"[1]", "not a JSON object"},
      {"{}", "neither method nor model"},
      {R"({"method": "medusa"})", "'medusa'"},
      {R"({"method": 3})", "method must be a string"},
      {R"({"method": "ngram", "speed": 9})", "no field 'speed'"},
      {R"({"method": "ngram", "num_speculative_tokens": 0})",
       "num_speculative_tokens is 0"},
      {R"({"method": "ngram", "num_speculative_tokens": 5000000000})",
       "num_speculative_tokens is 5000000000"},
      {R"({"method": "ngram", "num_speculative_tokens": 1.5})",
       "must be an integer"},
      {R"({"method": "ngram", "draft_tensor_parallel_size": 2})",
       "draft_tensor_parallel_size is 2, must be 1"},
      {R"({"method": "ngram", "draft_tensor_parallel_size": "1"})",
       "draft_tensor_parallel_size is \"1\", must be 1"},
      {R"({"method": "ngram", "prompt_lookup_min": 5, "prompt_lookup_max": 4})",
       "prompt_lookup_min is 5"},
      {R"({"method": "suffix", "suffix_decoding_min_token_prob": 2})",
       "suffix_decoding_min_token_prob is 2"},
      {R"({"method": "suffix", "model": "[ngram]"})", "contradicts"},
      {R"({"method": "suffix", "model": "/some/dir"})", "takes no model"},
      {R"({"method": "ngram", "model": "/some/dir"})", "takes no model"},
      {R"({"method": "mtp", "model": "/some/dir"})", "takes no model"},
      {R"({"model": "[mtp]"})", "model [mtp]: there are [ngram], [suffix]"},
      {R"({"method": "draft_model"})", "needs a model"},
      {R"({"method": "eagle3"})", "needs a model"},
  };
  for (const auto& [config, part] : kCases) {
    const auto made = Make("", config);
    ASSERT_FALSE(made.ok()) << config;
    EXPECT_TRUE(absl::StrContains(made.status().message(), part))
        << made.status();
  }
  for (const char* model : {"[mtp]", "[foo]", "[]"}) {
    const auto made = Make(model, "");
    ASSERT_FALSE(made.ok()) << model;
    EXPECT_TRUE(absl::StartsWith(
        made.status().message(),
        absl::StrCat("--speculative-model ", model, ": there are [ngram], ")))
        << made.status();
  }
  EXPECT_TRUE(Make("[", "").ok());  // A name like others.
  EXPECT_FALSE(Make("[ngram]", R"({"method": "ngram"})").ok());
  EXPECT_FALSE(
      Make("", R"({"method": "ngram", "num_speculative_tokens": 2})", 3).ok());
}

}  // namespace
}  // namespace quire
