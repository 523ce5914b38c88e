#include "engine/speculative/ngram_drafter.h"

#include "engine/base/random.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace quire {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

std::vector<int32_t> Propose(NgramIndex* index,
                             const std::vector<int32_t>& token_ids,
                             int max_drafts) {
  std::vector<int32_t> draft;
  index->Propose(token_ids, max_drafts, &draft);
  return draft;
}

TEST(NgramIndexTest, ProposesWhatFollowed) {
  NgramIndex index(2, 3);
  EXPECT_THAT(Propose(&index, {1, 2, 3, 4, 5, 1, 2}, 2), ElementsAre(3, 4));
  EXPECT_THAT(Propose(&index, {1, 2, 3, 4, 5, 1, 2, 9}, 2), IsEmpty());
}

TEST(NgramIndexTest, TheLongestMatchCountsThenTheLatest) {
  NgramIndex index(1, 3);
  // 7 alone occurs later, after 5 6 it was followed by 1.
  EXPECT_THAT(Propose(&index, {5, 6, 7, 1, 7, 2, 5, 6, 7}, 1), ElementsAre(1));
  NgramIndex latest(1, 2);
  EXPECT_THAT(Propose(&latest, {6, 7, 1, 6, 7, 2, 6, 7}, 1), ElementsAre(2));
}

TEST(NgramIndexTest, AShortEndIsNotEnough) {
  NgramIndex index(3, 3);
  EXPECT_THAT(Propose(&index, {}, 4), IsEmpty());
  EXPECT_THAT(Propose(&index, {1}, 4), IsEmpty());
  EXPECT_THAT(Propose(&index, {1, 1, 1}, 4), IsEmpty());
  EXPECT_THAT(Propose(&index, {1, 1, 1, 1}, 4), ElementsAre(1, 1, 1, 1));
}

TEST(NgramIndexTest, GoesOnAPeriodBeyondTheEnd) {
  NgramIndex index(2, 2);
  EXPECT_THAT(Propose(&index, {1, 2, 3, 1, 2}, 7),
              ElementsAre(3, 1, 2, 3, 1, 2, 3));
}

// Against a search through everything, on texts that repeat a lot; grown piece
// by piece, as sequences are.
TEST(NgramIndexTest, AgreesWithASearch) {
  SimulationRandom random(1);
  for (int trial = 0; trial < 300; ++trial) {
    const int min_n = static_cast<int>(random.Between(1, 4));
    const int max_n = static_cast<int>(random.Between(min_n, 6));
    NgramIndex index(min_n, max_n);
    std::vector<int32_t> text;
    while (text.size() < 60) {
      for (int64_t i = random.Between(1, 4); i > 0; --i) {
        text.push_back(static_cast<int32_t>(random.Below(3)));
      }
      const int size = static_cast<int>(text.size());
      int best_length = 0, best_end = -1;
      for (int end = 1, num_seen = 0; end < size; ++end) {
        int length = 0;
        while (length < std::min(max_n, end) &&
               text[end - 1 - length] == text[size - 1 - length]) {
          ++length;
        }
        num_seen += length >= min_n;
        if (length >= min_n && length >= best_length) {
          best_length = length;
          best_end = end;
        }
        // More occurrences than the index looks at.
        if (num_seen > 30) {
          best_end = -2;
          break;
        }
      }
      const std::vector<int32_t> draft = Propose(&index, text, 3);
      if (best_end == -2) continue;
      ASSERT_EQ(draft.empty(), best_end < 0);
      if (best_end >= 0) {
        EXPECT_EQ(draft[0], text[best_end]);
      }
    }
  }
}

TEST(NgramDrafterTest, KeepsSequencesApartAndForgetsThem) {
  NgramDrafter drafter(2, 5);
  const std::vector<int32_t> a = {1, 2, 3, 1, 2}, b = {4, 5, 6, 1, 2};
  std::vector<DraftSequence> sequences(2);
  sequences[0].sequence_id = 7;
  sequences[0].token_ids = a;
  sequences[0].max_num_drafts = 1;
  sequences[1].sequence_id = 8;
  sequences[1].token_ids = b;
  sequences[1].max_num_drafts = 3;
  for (int round = 0; round < 2; ++round) {
    std::vector<Draft> drafts(2);
    ASSERT_TRUE(drafter.Propose(sequences, absl::MakeSpan(drafts)).ok());
    EXPECT_THAT(drafts[0].token_ids, ElementsAre(3));
    EXPECT_THAT(drafts[1].token_ids, IsEmpty());
    drafter.End(7, a, 3, "");  // The id would not be used again; begins anew.
  }
}

}  // namespace
}  // namespace quire
