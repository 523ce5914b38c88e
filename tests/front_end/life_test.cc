// Short forms: counts, leaks and order. tools/soak.sh measures the times.
#include "tests/front_end/life.h"

#include "gtest/gtest.h"
#include "tests/front_end/expect_figures.h"

namespace quire {
namespace {

TEST(LifeTest, Disconnects) { ExpectFigures(RunDisconnects(64)); }

TEST(LifeTest, Overload) { ExpectFigures(RunOverload(0.7)); }

TEST(LifeTest, Shutdowns) { ExpectFigures(RunShutdowns(2, 64)); }

TEST(LifeTest, HungEngine) { ExpectFigures(RunHungEngine(16)); }

TEST(LifeTest, ManyRequests) { ExpectFigures(RunManyRequests(4000)); }

TEST(LifeTest, SystemFaults) { ExpectFigures(RunSystemFaults()); }

TEST(LifeTest, IdleProgram) { ExpectFigures(RunIdleProgram(0.1)); }

}  // namespace
}  // namespace quire
