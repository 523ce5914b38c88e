#include "engine/base/random.h"

#include "gtest/gtest.h"

namespace quire {
namespace {

// Known answers of Philox4x32-10 (the Random123 distribution's kat_vectors).
TEST(Philox4x32Test, KnownAnswers) {
  EXPECT_EQ(Philox4x32(0, {0, 0, 0, 0}),
            (Philox4{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  EXPECT_EQ(Philox4x32(0xffffffffffffffff,
                       {0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff}),
            (Philox4{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(Philox4x32(0x299f31d0a4093822,
                       {0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}),
            (Philox4{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(MixBitsTest, DistinctInputsGiveDistinctKeys) {
  EXPECT_NE(MixBits(1, 0), MixBits(0, 1));
  EXPECT_NE(MixBits(7, 0), MixBits(7, 1));
}

}  // namespace
}  // namespace quire
