#include "tests/front_end/attacks.h"

#include "gtest/gtest.h"
#include "tests/front_end/expect_figures.h"

namespace quire {
namespace {

TEST(AttacksTest, EachIsRepelled) {
  ExpectFigures(RunAttacks(/*is_full=*/false));
}

}  // namespace
}  // namespace quire
