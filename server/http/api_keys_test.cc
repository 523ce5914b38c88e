#include "server/http/api_keys.h"

#include <string>

#include "gtest/gtest.h"

namespace quire {
namespace {

TEST(ApiKeysTest, NoKeysAcceptsAll) {
  EXPECT_TRUE(ApiKeys({}).Accepts(""));
  EXPECT_TRUE(ApiKeys({}).Accepts("Bearer x"));
}

TEST(ApiKeysTest, OnlyWholeKeysOfTheBearerScheme) {
  const ApiKeys keys({"alpha", "beta"});
  EXPECT_TRUE(keys.Accepts("Bearer alpha"));
  EXPECT_TRUE(keys.Accepts("bearer  beta"));
  for (const char* value : {"", "Bearer", "Bearer ", "alpha", "Basic alpha",
                            "Bearer alph", "Bearer alphaa", "Bearer ALPHA",
                            "Bearer alpha beta", "Bearer: alpha"}) {
    EXPECT_FALSE(keys.Accepts(value)) << value;
  }
  EXPECT_FALSE(keys.Accepts(std::string("Bearer alpha\0", 13)));
  EXPECT_FALSE(keys.Accepts("Bearer " + std::string(1 << 20, 'k')));
}

TEST(ApiKeysTest, AnEmptyKeyOpensNothing) {
  const ApiKeys keys({""});
  EXPECT_FALSE(keys.Accepts(""));
  EXPECT_FALSE(keys.Accepts("Bearer "));
  EXPECT_FALSE(keys.Accepts("Bearer x"));
}

}  // namespace
}  // namespace quire
