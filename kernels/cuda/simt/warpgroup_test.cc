// Products of warpgroups in the emulator, and what it says of their misuse.
#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "engine/base/random.h"
#include "gtest/gtest.h"
#include "kernels/cuda/simt/simt.h"
#include "kernels/dtype.h"

namespace quire::simt {
namespace {

constexpr int kDepth = 32;  // Two products.
constexpr int kRows = 64;

enum class Misuse : uint8_t {
  kNone,
  kNoProxyFence,
  kNoWaitForCopies,
  kNoFence,
  kNoWait,
  kReadsTooEarly,
  kScalesTooEarly,
  kOverwritesB,
  kCopiesOverB,
  kOverwritesA,
};

// b, in shared memory: [columns][kDepth padded to 64] or, transposed,
// [kDepth][64 columns] in panels.
template <int kColumns, bool kTransposed>
constexpr int kBytes =
    kTransposed ? kColumns / 64 * kDepth * 128 : kColumns * 128;

template <bool kIsBf16, int kColumns, bool kTransposed>
SIMT_KERNEL(128)
Multiply(const uint32_t* a, const Bytes16* b, const float* c, float* out,
         Misuse misuse) {
  SIMT_DYNAMIC_SHARED(memory);
  constexpr int kChunks = kBytes<kColumns, kTransposed> / 16;
  for (int i = static_cast<int>(ThreadX()); i < kChunks; i += 128) {
    const int row = i / 8;
    unsigned char* const to = memory + row * 128 + (i % 8 ^ row % 8) * 16;
    if (misuse == Misuse::kNoWaitForCopies) {
      CpAsync16(to, &b[i]);
    } else {
      StoreShared16(to, b[i]);
    }
  }
  CpAsyncCommit();
  if (misuse != Misuse::kNoProxyFence) FenceProxyAsync();
  SyncThreads();
  constexpr int kTiles = kColumns / 8;
  float sums[kTiles][4];
  for (int i = 0; i < kTiles * 4; ++i) {
    sums[i / 4][i % 4] = c[i * 128 + ThreadX()];
  }
  uint32_t fragments[2][4];
  for (int i = 0; i < 8; ++i) {
    fragments[i / 4][i % 4] = a[i * 128 + ThreadX()];
  }
  // Not transposed there is one panel only.
  const SharedMatrix matrix =
      SwizzledMatrix(memory, kTransposed ? kDepth * 128 : 0, 1024);
  if (misuse != Misuse::kNoFence) WgmmaFence(fragments, sums);
  const auto product = [&](auto accumulates, int k) {
    const SharedMatrix from = matrix.At(k * (kTransposed ? 2048 : 32));
    if constexpr (kIsBf16) {
      WgmmaBf16<kTransposed, accumulates()>(sums, fragments[k], from);
    } else {
      WgmmaF16<kTransposed, accumulates()>(sums, fragments[k], from);
    }
  };
  product(std::true_type(), 0);
  product(std::true_type(), 1);
  WgmmaCommit();
  const float early = sums[kTiles - 1][3];
  if (misuse == Misuse::kOverwritesB) {
    SyncThreads();
    StoreShared16(memory + ThreadX() * 16, {});
    SyncThreads();
  }
  if (misuse == Misuse::kCopiesOverB) {
    CpAsync16(memory + ThreadX() * 16, &b[0]);
    CpAsyncCommit();
  }
  if (misuse == Misuse::kScalesTooEarly) sums[0][0] *= 2;
  if (misuse == Misuse::kOverwritesA) fragments[0][0] = 0;
  if (misuse != Misuse::kNoWait) WgmmaWait<0>(sums);
  CpAsyncWait<0>();
  if (misuse == Misuse::kReadsTooEarly) sums[kTiles - 1][3] = early;
  for (int i = 0; i < kTiles * 4; ++i) {
    out[i * 128 + ThreadX()] = sums[i / 4][i % 4];
  }
}

class WarpgroupTest : public ::testing::Test {
 protected:
  void SetUp() override { emulator::CurrentOptions() = {.capability = 90}; }
  void TearDown() override { emulator::CurrentOptions() = {}; }

  // The largest error; infinite if the launch failed.
  template <bool kIsBf16, int kColumns, bool kTransposed>
  static double WorstError(Misuse misuse = Misuse::kNone) {
    SimulationRandom random(7);
    const auto value = [&random] {
      return static_cast<float>(random.Between(-8, 8)) / 4;
    };
    const auto bits = [](float x) {
      return kIsBf16 ? FloatToBf16(x) : FloatToHalf(x);
    };
    std::vector<float> a(kRows * kDepth), b(kDepth * kColumns),
        c(kRows * kColumns);
    for (auto* all : {&a, &b, &c}) {
      for (float& x : *all) x = value();
    }
    // PTX ISA, "Register fragments for wgmma.mma_async.m64nNk16".
    std::vector<uint32_t> fragments(2 * 4 * 128);
    std::vector<float> sums(kColumns / 8 * 4 * 128), out(sums.size());
    const auto place_of = [](int thread, int i, int* row, int* column) {
      *row = thread / 32 * 16 + thread % 32 / 4 + i / 2 % 2 * 8;
      *column = i / 4 * 8 + thread % 4 * 2 + i % 2;
    };
    for (int thread = 0; thread < 128; ++thread) {
      for (int i = 0; i < 8; ++i) {
        const int row = thread / 32 * 16 + thread % 32 / 4 + i % 2 * 8;
        const int k = i / 4 * 16 + i % 4 / 2 * 8 + thread % 4 * 2;
        fragments[i * 128 + thread] =
            bits(a[row * kDepth + k]) | uint32_t{bits(a[row * kDepth + k + 1])}
                                            << 16;
      }
      for (int i = 0; i < kColumns / 2; ++i) {
        int row, column;
        place_of(thread, i, &row, &column);
        sums[i * 128 + thread] = c[row * kColumns + column];
      }
    }
    std::vector<Bytes16> memory(kBytes<kColumns, kTransposed> / 16);
    auto* elements = reinterpret_cast<uint16_t*>(memory.data());
    for (int k = 0; k < kDepth; ++k) {
      for (int n = 0; n < kColumns; ++n) {
        const int at =
            kTransposed ? (n / 64 * kDepth + k) * 64 + n % 64 : n * 64 + k;
        elements[at] = bits(b[k * kColumns + n]);
      }
    }
    if (!Launch(
            &Multiply<kIsBf16, kColumns, kTransposed>,
            {.num_threads = 128, .dynamic_shared_bytes = memory.size() * 16},
            nullptr, fragments.data(), memory.data(), sums.data(), out.data(),
            misuse)) {
      return INFINITY;
    }
    double worst = 0;
    for (int thread = 0; thread < 128; ++thread) {
      for (int i = 0; i < kColumns / 2; ++i) {
        int row, column;
        place_of(thread, i, &row, &column);
        double expected = c[row * kColumns + column];
        for (int k = 0; k < kDepth; ++k) {
          expected += double{a[row * kDepth + k]} * b[k * kColumns + column];
        }
        const double error = std::fabs(expected - out[i * 128 + thread]);
        if (!(error <= worst)) worst = error;  // A NaN stays.
        if (std::isnan(worst)) return worst;
      }
    }
    return worst;
  }
};

// Multiples of 1/16: every sum is exact.
TEST_F(WarpgroupTest, MultipliesUnderEverySchedule) {
  for (const emulator::Schedule schedule : emulator::kAllSchedules) {
    for (const bool is_lazy : {false, true}) {
      emulator::CurrentOptions().schedule = schedule;
      emulator::CurrentOptions().is_copy_lazy = is_lazy;
      EXPECT_EQ((WorstError<true, 64, false>()), 0) << emulator::LastError();
      EXPECT_EQ((WorstError<true, 64, true>()), 0) << emulator::LastError();
      EXPECT_EQ((WorstError<false, 128, false>()), 0) << emulator::LastError();
      EXPECT_EQ((WorstError<false, 128, true>()), 0) << emulator::LastError();
    }
  }
}

TEST_F(WarpgroupTest, MisuseIsAnErrorOrAWrongNumber) {
  const auto error = [](Misuse misuse) {
    return WorstError<true, 64, false>(misuse);
  };
  const auto says = [](const char* what) {
    return emulator::LastError().find(what) != std::string::npos;
  };
  EXPECT_EQ(error(Misuse::kNoProxyFence), INFINITY);
  EXPECT_TRUE(says("without FenceProxyAsync")) << emulator::LastError();
  for (const bool is_lazy : {false, true}) {
    emulator::CurrentOptions().is_copy_lazy = is_lazy;
    EXPECT_EQ(error(Misuse::kNoWaitForCopies), INFINITY);
    EXPECT_TRUE(says("without FenceProxyAsync")) << emulator::LastError();
  }
  EXPECT_EQ(error(Misuse::kNoFence), INFINITY);
  EXPECT_TRUE(says("no WgmmaFence")) << emulator::LastError();
  EXPECT_EQ(error(Misuse::kNoWait), INFINITY);
  EXPECT_TRUE(says("products that it did not wait for"));
  EXPECT_EQ(error(Misuse::kScalesTooEarly), INFINITY);
  EXPECT_TRUE(says("sums were written that a product had"));
  // Until then they are NaNs.
  EXPECT_TRUE(std::isnan(error(Misuse::kReadsTooEarly)));
  // A copy may land at once.
  emulator::CurrentOptions().is_copy_lazy = false;
  for (const Misuse misuse :
       {Misuse::kOverwritesB, Misuse::kCopiesOverB, Misuse::kOverwritesA}) {
    EXPECT_EQ(error(misuse), INFINITY) << static_cast<int>(misuse);
    EXPECT_TRUE(says("changed before its product was waited for"))
        << emulator::LastError();
  }
}

TEST_F(WarpgroupTest, OnlyOneGpuHasThem) {
  for (const int capability : {80, 89, 100, 120}) {
    emulator::CurrentOptions().capability = capability;
    EXPECT_EQ((WorstError<true, 64, false>()), INFINITY);
    EXPECT_NE(emulator::LastError().find("no such instruction"),
              std::string::npos);
  }
}

}  // namespace
}  // namespace quire::simt
