#include "engine/speculative/link/link_drafter.h"

#include <vector>

#include "engine/base/random.h"
#include "gtest/gtest.h"

namespace quire {
namespace {

constexpr int kVocabSize = 100;

// What is proposed after the prompt {1, 2} and `generated`.
Draft Propose(LinkDrafter& drafter, const std::vector<int32_t>& generated,
              int max_num_drafts = 8, RequestId id = 5, int choice_idx = 0) {
  std::vector<int32_t> tokens = {1, 2};
  tokens.insert(tokens.end(), generated.begin(), generated.end());
  DraftSequence sequence;
  sequence.token_ids = tokens;
  sequence.num_prompt_tokens = 2;
  sequence.max_num_drafts = max_num_drafts;
  sequence.request_id = id;
  sequence.choice_idx = choice_idx;
  Draft draft;
  EXPECT_TRUE(drafter.Propose({&sequence, 1}, {&draft, 1}).ok());
  return draft;
}

using Ids = std::vector<int32_t>;

TEST(LinkDrafterTest, ProposesWhatFollows) {
  LinkDrafter drafter(kVocabSize, nullptr);
  drafter.Open(5, 1);
  EXPECT_EQ(Propose(drafter, {}).token_ids, Ids());
  drafter.Put(5, {0, 0, 1, 0, {10, 11, 12}, {0.9f, 0.8f, 0.7f}});
  const Draft draft = Propose(drafter, {}, 2);
  EXPECT_EQ(draft.token_ids, (Ids{10, 11}));
  EXPECT_EQ(draft.probabilities, (std::vector<float>{0.9f, 0.8f}));
  // The sequence has passed the first.
  EXPECT_EQ(Propose(drafter, {10}).token_ids, (Ids{11, 12}));
  EXPECT_EQ(Propose(drafter, {10}).token_ids, (Ids{11, 12}));
  // The chain goes on.
  drafter.Put(5, {0, 0, 1, 3, {13}, {0.6f}});
  EXPECT_EQ(Propose(drafter, {10, 11}).token_ids, (Ids{12, 13}));
  drafter.Close(5);
  EXPECT_EQ(Propose(drafter, {10, 11}).token_ids, Ids());
  drafter.Close(5);
}

TEST(LinkDrafterTest, ABrokenChainStaysBroken) {
  LinkDrafter drafter(kVocabSize, nullptr);
  drafter.Open(5, 1);
  drafter.Put(5, {0, 0, 1, 0, {10, 11, 12}, {}});
  EXPECT_EQ(Propose(drafter, {10, 50}).token_ids, Ids());
  // Sent before the edge could know; it would fit by its place.
  drafter.Put(5, {0, 0, 1, 2, {12, 13}, {}});
  EXPECT_EQ(Propose(drafter, {10, 50}).token_ids, Ids());
  drafter.Put(5, {0, 0, 2, 2, {60, 61}, {}});
  EXPECT_EQ(Propose(drafter, {10, 50}).token_ids, (Ids{60, 61}));
}

TEST(LinkDrafterTest, ASequenceMayOvertakeItsChain) {
  LinkDrafter drafter(kVocabSize, nullptr);
  drafter.Open(5, 1);
  drafter.Put(5, {0, 0, 1, 0, {10}, {}});
  EXPECT_EQ(Propose(drafter, {10, 11}).token_ids, Ids());
  // What comes late is compared: it agreed, so the rest is of use.
  drafter.Put(5, {0, 0, 1, 1, {11, 12}, {}});
  EXPECT_EQ(Propose(drafter, {10, 11}).token_ids, (Ids{12}));
  EXPECT_EQ(Propose(drafter, {10, 11, 12, 13}).token_ids, Ids());
  drafter.Put(5, {0, 0, 1, 3, {99, 14}, {}});
  EXPECT_EQ(Propose(drafter, {10, 11, 12, 13}).token_ids, Ids());
}

TEST(LinkDrafterTest, HostileDraftsAreDropped) {
  LinkDrafter drafter(kVocabSize, nullptr);
  drafter.Open(5, 2);
  // From the future, for nobody, outside the vocabulary, far too many.
  drafter.Put(5, {0, 0, 1, 1000000000, {10}, {}});
  EXPECT_EQ(Propose(drafter, {}).token_ids, Ids());
  drafter.Put(6, {0, 0, 1, 0, {10}, {}});
  drafter.Put(5, {0, 2, 1, 0, {10}, {}});
  drafter.Put(5, {0, -1, 1, 0, {10}, {}});
  EXPECT_EQ(Propose(drafter, {}).token_ids, Ids());
  drafter.Put(5, {0, 0, 2, 0, {10, kVocabSize, 11}, {}});
  EXPECT_EQ(Propose(drafter, {}).token_ids, (Ids{10}));
  drafter.Put(5, {0, 0, 3, 0, {10, -1}, {}});
  EXPECT_EQ(Propose(drafter, {}).token_ids, (Ids{10}));
  for (int i = 0; i < 100; ++i) {
    drafter.Put(5, {0, 0, 4, i * 100, Ids(100, 7), {}});
  }
  EXPECT_LE(Propose(drafter, {}, 1 << 20).token_ids.size(), kMaxLinkDrafts);
  // Other choices do not notice.
  drafter.Put(5, {0, 1, 1, 0, {20}, {}});
  EXPECT_EQ(Propose(drafter, {}, 8, 5, 1).token_ids, (Ids{20}));
}

TEST(LinkDrafterTest, ProbabilitiesAreNumbersOfTheRange) {
  LinkDrafter drafter(kVocabSize, nullptr);
  drafter.Open(5, 1);
  drafter.Put(5, {0, 0, 1, 0, {1, 2, 3}, {-1.0f, 2.0f, 0.0f / 0.0f}});
  EXPECT_EQ(Propose(drafter, {}).probabilities,
            (std::vector<float>{0.0f, 1.0f, 0.0f}));
}

// Any messages in any order, against a sequence that goes on: what is proposed
// is always the continuation of a chain whose beginning was drawn.
TEST(LinkDrafterTest, RandomMessages) {
  SimulationRandom random(3);
  for (int run = 0; run < 300; ++run) {
    LinkDrafter drafter(4, nullptr);
    drafter.Open(5, 1);
    Ids generated;
    for (int step = 0; step < 50; ++step) {
      LinkDrafts drafts;
      drafts.chain_no = static_cast<uint32_t>(random.Below(3));
      drafts.num_generated =
          static_cast<int32_t>(random.Below(generated.size() + 3));
      for (int64_t i = random.Between(1, 6); i > 0; --i) {
        drafts.token_ids.push_back(static_cast<int32_t>(random.Below(5)));
      }
      if (random.Below(2) == 0)
        drafts.probabilities.assign(drafts.token_ids.size(), 0.5f);
      drafter.Put(5, drafts);
      if (random.Below(2) == 0) {
        const Draft draft = Propose(drafter, generated, 4);
        EXPECT_LE(draft.token_ids.size(), 4u);
        for (const int32_t id : draft.token_ids) EXPECT_LT(id, 4);
        EXPECT_TRUE(draft.probabilities.empty() ||
                    draft.probabilities.size() == draft.token_ids.size());
      }
      generated.push_back(static_cast<int32_t>(random.Below(4)));
    }
  }
}

// Proposes 77 for each.
class InnerDrafter : public Drafter {
 public:
  absl::string_view method() const override { return "inner"; }
  bool is_costly() const override { return true; }
  absl::Status Propose(absl::Span<const DraftSequence> sequences,
                       absl::Span<Draft> drafts) override {
    num_asked += sequences.size();
    for (Draft& draft : drafts) {
      EXPECT_TRUE(draft.token_ids.empty());
      draft.token_ids = {77};
    }
    return absl::OkStatus();
  }
  size_t num_asked = 0;
};

TEST(LinkDrafterTest, AsksTheOtherDrafterForTheRest) {
  InnerDrafter inner;
  LinkDrafter drafter(kVocabSize, &inner);
  EXPECT_TRUE(drafter.is_costly());
  EXPECT_EQ(drafter.method(), "inner");
  drafter.Open(5, 1);
  drafter.Put(5, {0, 0, 1, 0, {10}, {}});
  const Ids tokens = {1, 2};
  std::vector<DraftSequence> sequences(3);
  for (size_t i = 0; i < sequences.size(); ++i) {
    sequences[i].token_ids = tokens;
    sequences[i].num_prompt_tokens = 2;
    sequences[i].max_num_drafts = 3;
    sequences[i].request_id = 4 + i;
  }
  std::vector<Draft> drafts(3);
  ASSERT_TRUE(drafter.Propose(sequences, absl::MakeSpan(drafts)).ok());
  EXPECT_EQ(drafts[0].token_ids, (Ids{77}));
  EXPECT_EQ(drafts[1].token_ids, (Ids{10}));
  EXPECT_EQ(drafts[2].token_ids, (Ids{77}));
  EXPECT_EQ(inner.num_asked, 2u);
}

}  // namespace
}  // namespace quire
