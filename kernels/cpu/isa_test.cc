#include "kernels/cpu/isa.h"

#include <cstdlib>
#include <string>

#include "gtest/gtest.h"

namespace quire {
namespace {

class IsaTest : public testing::Test {
 protected:
  IsaTest() {
    const char* const value = std::getenv("QUIRE_CPU_ISA");
    if (value != nullptr) saved_ = value;
  }
  ~IsaTest() override { setenv("QUIRE_CPU_ISA", saved_.c_str(), 1); }
  std::string saved_;
};

TEST_F(IsaTest, BestByDefault) {
  unsetenv("QUIRE_CPU_ISA");
  const auto isa = SelectIsa();
  ASSERT_TRUE(isa.ok());
  EXPECT_EQ(*isa, SupportedIsas().back());
  EXPECT_EQ(SupportedIsas().front(), Isa::kScalar);
}

TEST_F(IsaTest, EnvironmentForcesOne) {
  for (Isa isa : SupportedIsas()) {
    setenv("QUIRE_CPU_ISA", IsaName(isa), 1);
    const auto selected = SelectIsa();
    ASSERT_TRUE(selected.ok()) << selected.status();
    EXPECT_EQ(*selected, isa);
  }
}

TEST_F(IsaTest, UnknownNameIsAnError) {
  setenv("QUIRE_CPU_ISA", "avx1024", 1);
  EXPECT_EQ(SelectIsa().status().code(), absl::StatusCode::kInvalidArgument);
}

// What the CPU lacks is refused with what it has.
TEST_F(IsaTest, AnotherCpusIsAnError) {
#if defined(__aarch64__)
  setenv("QUIRE_CPU_ISA", "avx2", 1);
#else
  setenv("QUIRE_CPU_ISA", "neon", 1);
#endif
  const absl::Status status = SelectIsa().status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  std::string list;
  for (Isa isa : SupportedIsas()) {
    list += std::string(list.empty() ? "this CPU has " : ", ") + IsaName(isa);
  }
  EXPECT_NE(status.message().find(list), absl::string_view::npos) << status;
}

}  // namespace
}  // namespace quire
