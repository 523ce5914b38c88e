#include "engine/base/warning.h"

#include <vector>

#include "gtest/gtest.h"

namespace quire {
namespace {

TEST(WarningTest, GoesToTheHandlerElseToStandardError) {
  std::vector<std::string> warnings;
  SetWarningHandler([&](const std::string& text) { warnings.push_back(text); });
  testing::internal::CaptureStderr();
  Warn("one");
  SetWarningHandler(nullptr);
  Warn("two");
  EXPECT_EQ(testing::internal::GetCapturedStderr(), "quire: warning: two\n");
  EXPECT_EQ(warnings, std::vector<std::string>{"one"});
}

}  // namespace
}  // namespace quire
