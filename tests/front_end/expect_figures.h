// Holds the figures of a scenario that do not depend on the machine's speed.
#ifndef QUIRE_TESTS_FRONT_END_EXPECT_FIGURES_H_
#define QUIRE_TESTS_FRONT_END_EXPECT_FIGURES_H_

#include <vector>

#include "gtest/gtest.h"
#include "tests/front_end/figure.h"
#include "tests/front_end/server_process.h"

namespace quire {

inline void ExpectFigures(const std::vector<Figure>& figures) {
  EXPECT_FALSE(figures.empty());
  for (const Figure& figure : figures) {
    if (DependsOnTheMachine(figure)) continue;
    EXPECT_TRUE(IsKept(figure)) << Describe(figure);
  }
  EXPECT_EQ(ServerProcess::num_sanitizer_reports(), 0);
}

}  // namespace quire

#endif  // QUIRE_TESTS_FRONT_END_EXPECT_FIGURES_H_
