#include "server/embedding.h"

#include <cmath>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace quire {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

TEST(FinishEmbeddingTest, CutsThenNormalizes) {
  EXPECT_THAT(FinishEmbedding({3, 4, 12}, 0, false), ElementsAre(3, 4, 12));
  EXPECT_THAT(FinishEmbedding({3, 4, 12}, 2, false), ElementsAre(3, 4));
  EXPECT_THAT(FinishEmbedding({3, 4, 12}, 2, true), ElementsAre(0.6f, 0.8f));
  EXPECT_THAT(FinishEmbedding({-5}, 1, true), ElementsAre(-1));
  EXPECT_THAT(FinishEmbedding({}, 0, true), IsEmpty());
}

TEST(FinishEmbeddingTest, ExtremeLengths) {
  // Squares that f32 could not hold.
  EXPECT_THAT(FinishEmbedding({3e30f, 4e30f}, 0, true),
              ElementsAre(testing::FloatEq(0.6f), testing::FloatEq(0.8f)));
  EXPECT_THAT(FinishEmbedding({0, 0}, 0, true), ElementsAre(0, 0));
  EXPECT_THAT(FinishEmbedding({1e-13f}, 0, true),
              ElementsAre(testing::FloatNear(0.1f, 1e-7f)));
}

// Bytes by Python's base64.b64encode(struct.pack("<3f", 1, -2.5, 3e10)).
TEST(AppendBase64FloatsTest, LittleEndian) {
  std::string out = "x";
  AppendBase64Floats({1.0f, -2.5f, 3e10f}, &out);
  EXPECT_EQ(out, "xAACAPwAAIMB2hN9Q");
}

}  // namespace
}  // namespace quire
