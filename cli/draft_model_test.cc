#include "cli/draft_model.h"

#include <sys/stat.h>

#include <cstdlib>
#include <fstream>
#include <sstream>
#include <string>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "gtest/gtest.h"

namespace quire {
namespace {

constexpr char kTarget[] = "models/demo";
constexpr char kDraft[] = "models/demo-draft";

std::string ReadFile(const std::string& path) {
  std::stringstream text;
  text << std::ifstream(path).rdbuf();
  return text.str();
}

class DraftModelTest : public testing::Test {
 protected:
  // A directory with the draft model's configuration and tokenizer, changed.
  std::string Changed(const std::string& file, const std::string& from,
                      const std::string& to) {
    std::string directory = absl::StrCat(getenv("TEST_TMPDIR"), "/XXXXXX");
    if (mkdtemp(directory.data()) == nullptr) abort();
    for (const char* name :
         {"config.json", "tokenizer.json", "tokenizer_config.json"}) {
      std::string text = ReadFile(absl::StrCat(kDraft, "/", name));
      if (name == file) {
        const std::string changed = absl::StrReplaceAll(text, {{from, to}});
        EXPECT_NE(changed, text);
        text = changed;
      }
      std::ofstream(absl::StrCat(directory, "/", name)) << text;
    }
    return directory;
  }

  std::unique_ptr<Tokenizer> target_ = *Tokenizer::Create(kTarget);
};

TEST_F(DraftModelTest, TheDemoModelsFit) {
  EXPECT_TRUE(CheckDraftModel(kDraft, *target_).ok());
  // A model may draft for itself.
  EXPECT_TRUE(CheckDraftModel(kTarget, *target_).ok());
}

TEST_F(DraftModelTest, AnotherTokenIsNamed) {
  const std::string path =
      Changed("tokenizer.json", "<|im_end|>", "<|the_end|>");
  const absl::Status status = CheckDraftModel(path, *target_);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_TRUE(absl::StartsWith(status.message(), path)) << status;
  EXPECT_TRUE(absl::StrContains(status.message(),
                                "is \"<|the_end|>\", not \"<|im_end|>\""))
      << status;
}

TEST_F(DraftModelTest, WhatTheConfigurationSaysCounts) {
  const std::string path = Changed("config.json", "\"llama\"", "\"t5\"");
  const absl::Status status = CheckDraftModel(path, *target_);
  EXPECT_TRUE(absl::StrContains(status.message(), "\"t5\" is not supported"))
      << status;
  EXPECT_FALSE(CheckDraftModel("models/none", *target_).ok());
}

}  // namespace
}  // namespace quire
