#include "cli/edge.h"

#include <string>

#include "absl/strings/match.h"
#include "engine/speculative/link/vocabulary.h"
#include "gtest/gtest.h"
#include "server/fake_tokenizer.h"

namespace quire {
namespace {

// FakeTokenizer with another spelling of one token, and padded.
class ChangedTokenizer : public FakeTokenizer {
 public:
  ChangedTokenizer(int32_t changed_id, int32_t padding)
      : changed_id_(changed_id), padding_(padding) {}
  std::string IdToToken(int32_t id) const override {
    return id == changed_id_ ? "changed" : FakeTokenizer::IdToToken(id);
  }
  int32_t vocab_size() const override {
    return FakeTokenizer::kVocabSize + padding_;
  }

 private:
  const int32_t changed_id_;
  const int32_t padding_;
};

VocabularyDigest Digest(const Tokenizer& tokenizer) {
  return DigestVocabulary(tokenizer.vocab_size(), [&tokenizer](int32_t id) {
    return tokenizer.IdToToken(id);
  });
}

TEST(EdgeTest, DigestsTellVocabulariesApart) {
  const VocabularyDigest digest = Digest(FakeTokenizer());
  EXPECT_EQ(digest.num_tokens, FakeTokenizer::kVocabSize);
  EXPECT_EQ(Digest(FakeTokenizer()), digest);
  // Ids without a text at the end pad a vocabulary.
  EXPECT_EQ(Digest(ChangedTokenizer(-1, 100)), digest);
  for (const int32_t id :
       {0, 255, FakeTokenizer::kEos, FakeTokenizer::kVocabSize - 1,
        FakeTokenizer::kVocabSize}) {
    EXPECT_FALSE(Digest(ChangedTokenizer(id, 1)) == digest) << id;
  }
}

TEST(EdgeTest, ChecksOptions) {
  ServeOptions options;
  EXPECT_TRUE(CheckLinkOptions(options).ok());
  options.verify_ca_file = "x";
  EXPECT_FALSE(CheckLinkOptions(options).ok());
  options.verify_url = "https://cloud";
  const auto check = [&options] {
    return std::string(CheckLinkOptions(options).message());
  };
  EXPECT_EQ(check(), "--verify-ca x: No such file or directory");
  options.verify_ca_file = testing::TempDir();
  EXPECT_TRUE(absl::StrContains(check(), "Is a directory")) << check();
  options.verify_ca_file.clear();
  options.verify_api_key_file = "/nonexistent";
  EXPECT_EQ(check(),
            "--verify-api-key-file /nonexistent: No such file or directory");
  options.verify_api_key_file.clear();
  EXPECT_EQ(check(), "");
  options.offline = "draft";
  EXPECT_EQ(check(), "");
  options.verify_url.clear();
  EXPECT_EQ(check(), "--offline draft needs --verify-url");
  options.offline = "error";
  options.verify_url = "cloud";
  EXPECT_FALSE(CheckLinkOptions(options).ok());
  options.verify_url = "https://cloud";
  options.model.speculative_model = "[ngram]";
  EXPECT_FALSE(CheckLinkOptions(options).ok());
  options.model.speculative_model.clear();
  options.model.enable_verify_link = true;
  EXPECT_FALSE(CheckLinkOptions(options).ok());
}

TEST(EdgeTest, AKeyInTheClearIsWarnedOf) {
  ServeOptions options;
  EXPECT_EQ(LinkWarning(options), "");
  options.verify_url = "http://cloud:8080";
  EXPECT_EQ(LinkWarning(options), "");
  options.verify_api_key_file = "/key";
  EXPECT_NE(LinkWarning(options).find("http://cloud:8080: the key of "),
            std::string::npos);
  options.verify_url = "https://cloud:8080";
  EXPECT_EQ(LinkWarning(options), "");
}

TEST(EdgeTest, MetricsEscapeTheName) {
  EdgeLinkStats stats;
  stats.is_up = true;
  stats.num_breaks = 3;
  const std::string text = EdgeMetrics(stats, "a\"b\\c\nd");
  EXPECT_NE(
      text.find("quire:verify_link_up{model_name=\"a\\\"b\\\\c\\nd\"} 1\n"),
      std::string::npos)
      << text;
  EXPECT_NE(text.find("quire:verify_link_breaks_total{model_name=\"a"),
            std::string::npos);
  VerifyLinkStats cloud;
  cloud.num_links = 2;
  cloud.num_requests = 7;
  const std::string of_cloud = VerifyLinkMetrics(cloud, "c\"");
  EXPECT_NE(of_cloud.find("quire:verify_links{model_name=\"c\\\"\"} 2\n"),
            std::string::npos)
      << of_cloud;
  EXPECT_NE(of_cloud.find(
                "quire:verify_links_requests_total{model_name=\"c\\\"\"} 7\n"),
            std::string::npos);
}

}  // namespace
}  // namespace quire
