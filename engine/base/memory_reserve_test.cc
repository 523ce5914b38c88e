#include "engine/base/memory_reserve.h"

#include <sys/resource.h>
#include <unistd.h>

#include <cstddef>
#include <fstream>
#include <new>

#include "gtest/gtest.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define QUIRE_OTHER_NEW 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define QUIRE_OTHER_NEW 1
#endif
#endif

namespace quire {
namespace {

// Large enough for pages of their own.
constexpr size_t kBytes = 512 << 10;

void SetAddressSpace(rlim_t num_bytes) {
  rlimit limit;
  ASSERT_EQ(getrlimit(RLIMIT_AS, &limit), 0);
  limit.rlim_cur = num_bytes;
  ASSERT_EQ(setrlimit(RLIMIT_AS, &limit), 0);
}

void AllowNoMore() {
  int64_t num_pages = 0;
  std::ifstream("/proc/self/statm") >> num_pages;
  SetAddressSpace(num_pages * sysconf(_SC_PAGESIZE));
}

class MemoryReserveTest : public testing::Test {
 protected:
  void SetUp() override {
#ifdef QUIRE_OTHER_NEW
    GTEST_SKIP() << "a sanitizer's operator new calls no handler";
#endif
  }
};

TEST_F(MemoryReserveTest, ServesWhatWasBegun) {
  EXPECT_TRUE(RefillMemoryReserve());  // There is none yet.
  InstallMemoryReserve();
  EXPECT_TRUE(RefillMemoryReserve());
  EXPECT_TRUE(HasMemoryFor(kBytes));
  AllowNoMore();
  EXPECT_FALSE(HasMemoryFor(kBytes));
  void* const held = ::operator new(kBytes);
  ASSERT_NE(held, nullptr);
  EXPECT_FALSE(RefillMemoryReserve());
  SetAddressSpace(RLIM_INFINITY);
  EXPECT_TRUE(RefillMemoryReserve());
  ::operator delete(held);
}

TEST_F(MemoryReserveTest, EndsTheProcessWhenThereIsNoMore) {
  EXPECT_EXIT(
      {
        InstallMemoryReserve();
        AllowNoMore();
        while (::operator new(kBytes) != nullptr) {
        }
      },
      testing::ExitedWithCode(70), "out of memory, and of its reserve");
}

}  // namespace
}  // namespace quire
