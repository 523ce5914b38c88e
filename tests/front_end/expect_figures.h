// Holds the figures of a scenario that do not depend on the machine's speed.
#ifndef QUIRE_TESTS_FRONT_END_EXPECT_FIGURES_H_
#define QUIRE_TESTS_FRONT_END_EXPECT_FIGURES_H_

#include <vector>

#include "gtest/gtest.h"
#include "tests/front_end/figure.h"

namespace quire {

inline void ExpectFigures(const std::vector<Figure>& figures) {
  EXPECT_FALSE(figures.empty());
  for (const Figure& figure : figures) {
    if (figure.is_timing) continue;
    EXPECT_TRUE(IsKept(figure)) << Describe(figure);
  }
}

}  // namespace quire

#endif  // QUIRE_TESTS_FRONT_END_EXPECT_FIGURES_H_
