#include "cli/dtype_options.h"

#include "absl/strings/match.h"
#include "gtest/gtest.h"

namespace quire {
namespace {

TEST(DTypeOptionsTest, TypesHaveSeveralNames) {
  EXPECT_FALSE((*ParseDTypeOption("auto")).has_value());
  for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
    EXPECT_EQ(**ParseDTypeOption(DTypeName(dtype)), dtype);
    EXPECT_EQ(**ParseKvDTypeOption(DTypeName(dtype)), dtype);
  }
  EXPECT_EQ(**ParseDTypeOption("half"), DType::kF16);
  EXPECT_EQ(**ParseKvDTypeOption("int8"), DType::kI8);
  EXPECT_EQ(**ParseKvDTypeOption(DTypeName(DType::kI8)), DType::kI8);
  EXPECT_EQ(**ParseKvDTypeOption("fp8"), DType::kF8E4M3);
  EXPECT_EQ(**ParseKvDTypeOption(DTypeName(DType::kF8E4M3)), DType::kF8E4M3);
}

TEST(DTypeOptionsTest, OthersAreRefusedByTheNameOfTheOption) {
  const absl::Status weights = ParseDTypeOption("int8").status();
  EXPECT_TRUE(absl::StartsWith(weights.message(), "--dtype: 'int8' is not"));
  const absl::Status cache = ParseKvDTypeOption("fp4").status();
  EXPECT_TRUE(
      absl::StartsWith(cache.message(), "--kv-cache-dtype: 'fp4' is not"));
}

}  // namespace
}  // namespace quire
