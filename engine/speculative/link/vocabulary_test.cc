#include "engine/speculative/link/vocabulary.h"

#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"

namespace quire {
namespace {

TokenText TextOf(const std::vector<std::string>& tokens) {
  return [tokens](int32_t id) {
    return id < static_cast<int32_t>(tokens.size()) ? tokens[id]
                                                    : std::string();
  };
}

std::vector<std::string> Tokens(int count) {
  std::vector<std::string> tokens;
  for (int i = 0; i < count; ++i) tokens.push_back(absl::StrCat("t", i));
  return tokens;
}

// What the edge is told, by way of the cloud's refusal.
std::string Difference(const std::vector<std::string>& edge,
                       const std::vector<std::string>& cloud) {
  const TokenText edge_text = TextOf(edge), cloud_text = TextOf(cloud);
  const VocabularyDigest a =
      DigestVocabulary(static_cast<int32_t>(edge.size()), edge_text);
  const VocabularyDigest b =
      DigestVocabulary(static_cast<int32_t>(cloud.size()), cloud_text);
  EXPECT_EQ(a == b, edge == cloud);
  const int32_t first_id = FirstDifferentRange(a, b);
  EXPECT_EQ(first_id, FirstDifferentRange(b, a));
  if (first_id < 0) return "";
  LinkRefusal refusal;
  refusal.reason = absl::FailedPreconditionError("other");
  refusal.vocabulary = TakeVocabularyPart(first_id, cloud_text);
  std::string frame;
  AppendRefusal(refusal, &frame);
  const auto read =
      ParseRefusal(absl::string_view(frame).substr(kLinkHeaderBytes));
  EXPECT_TRUE(read.ok()) << read.status();
  return NameDifference(read->vocabulary, edge_text);
}

TEST(VocabularyTest, TheFirstDifferenceIsNamed) {
  const std::vector<std::string> cloud = Tokens(5000);
  EXPECT_EQ(Difference(cloud, cloud), "");
  for (const int id : {0, 1, 1023, 1024, 3000, 4095, 4096, 4999}) {
    std::vector<std::string> edge = cloud;
    edge[id] = "x\n";
    // What differs behind it does not matter.
    if (id < 4000) edge[id + 500] = "later";
    EXPECT_EQ(Difference(edge, cloud),
              absl::StrCat("id ", id, " is \"x\\n\" at the edge and \"t", id,
                           "\" in the cloud"));
  }
}

TEST(VocabularyTest, OneIsLonger) {
  for (const int size : {1, 1000, 1024, 1025, 2048}) {
    EXPECT_EQ(Difference(Tokens(size), Tokens(size + 3)),
              absl::StrCat("id ", size, " is \"\" at the edge and \"t", size,
                           "\" in the cloud"));
    EXPECT_EQ(Difference(Tokens(size + 3), Tokens(size)),
              absl::StrCat("id ", size, " is \"t", size,
                           "\" at the edge and \"\" in the cloud"));
  }
}

TEST(VocabularyTest, LongTextsDoNotFitAndAreNotNamed) {
  // A part of 1,024 texts of 256 bytes is more than a refusal has room for.
  std::vector<std::string> cloud(2000, std::string(1000, 'a'));
  std::vector<std::string> edge = cloud;
  edge[20] += 'b';  // Beyond what is sent of a text.
  EXPECT_EQ(Difference(edge, cloud), "");
  edge[20][0] = 'c';
  EXPECT_NE(Difference(edge, cloud), "");
  edge = cloud;
  edge[1000][0] = 'c';
  EXPECT_EQ(Difference(edge, cloud), "");
}

TEST(VocabularyTest, APeerIsToBeTheSmallerOne) {
  LinkPeer edge, cloud;
  edge.model_name = "small";
  cloud.model_name = "large";
  edge.vocabulary = cloud.vocabulary = {5, 1, 2, {}};
  edge.num_parameters = 10;
  EXPECT_TRUE(CheckPeers(edge, cloud).ok());  // Not said.
  cloud.num_parameters = 10;
  EXPECT_TRUE(CheckPeers(edge, cloud).ok());
  cloud.num_parameters = 9;
  EXPECT_EQ(CheckPeers(edge, cloud),
            absl::FailedPreconditionError(
                "the edge's model small has 10 parameters, more than the 9 of "
                "the cloud's model large: what drafts has to be the smaller "
                "model"));
  cloud.vocabulary.high = 3;
  EXPECT_TRUE(absl::IsFailedPrecondition(CheckPeers(edge, cloud)));
}

TEST(VocabularyTest, DigestsWithoutPrefixesDoNotTell) {
  VocabularyDigest a = {5, 1, 2, {}}, b = {5, 1, 3, {}};
  EXPECT_FALSE(a == b);
  EXPECT_EQ(FirstDifferentRange(a, b), -1);
}

}  // namespace
}  // namespace quire
