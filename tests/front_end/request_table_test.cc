#include "tests/front_end/request_table.h"

#include "gtest/gtest.h"
#include "tests/front_end/expect_figures.h"

namespace quire {
namespace {

constexpr char kHashServer[] = "tests/front_end/hash_server";

TEST(RequestTableTest, BadRequestsGetTheirErrors) {
  ExpectFigures(RunRequestTable(RequestTable::kBad, 1, kHashServer));
}

TEST(RequestTableTest, OddRequestsSucceed) {
  ExpectFigures(RunRequestTable(RequestTable::kOdd, 1, kHashServer));
}

}  // namespace
}  // namespace quire
