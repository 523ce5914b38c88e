#include "kernels/cuda/simt/emulator.h"

#include <cmath>
#include <cstdint>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "engine/base/random.h"
#include "gtest/gtest.h"
#include "kernels/cuda/simt/simt.h"

namespace quire::simt {
namespace {

using ::testing::Test;

class EmulatorTest : public Test {
 protected:
  void SetUp() override { emulator::CurrentOptions() = {}; }
  void TearDown() override { emulator::CurrentOptions() = {}; }
};

LaunchShape Threads(uint32_t num_threads, uint32_t num_ctas = 1) {
  return {.num_ctas_x = num_ctas, .num_threads = num_threads};
}

// ---------------------------------------------------------------- threads

SIMT_KERNEL(64) WriteIndices(uint32_t* out) {
  const uint32_t cta = (CtaZ() * NumCtasY() + CtaY()) * NumCtasX() + CtaX();
  out[cta * NumThreads() + ThreadX()] = cta * 1000 + ThreadX();
}

TEST_F(EmulatorTest, EveryThreadRunsOnceUnderEverySchedule) {
  for (const emulator::Schedule schedule : emulator::kAllSchedules) {
    emulator::CurrentOptions().schedule = schedule;
    std::vector<uint32_t> out(2 * 3 * 4 * 48, ~0u);
    ASSERT_TRUE(Launch(
        &WriteIndices,
        {.num_ctas_x = 2, .num_ctas_y = 3, .num_ctas_z = 4, .num_threads = 48},
        nullptr, out.data()));
    for (size_t i = 0; i < out.size(); ++i) {
      ASSERT_EQ(out[i], i / 48 * 1000 + i % 48);
    }
  }
}

SIMT_KERNEL(64) Reverse(const int* in, int* out) {
  SIMT_SHARED(int, values, 64);
  values[ThreadX()] = in[ThreadX()];
  SyncThreads();
  out[ThreadX()] = values[63 - ThreadX()];
}

TEST_F(EmulatorTest, ABarrierMakesSharedMemoryVisible) {
  std::vector<int> in(64), out(64);
  std::iota(in.begin(), in.end(), 0);
  for (const emulator::Schedule schedule : emulator::kAllSchedules) {
    emulator::CurrentOptions().schedule = schedule;
    ASSERT_TRUE(Launch(&Reverse, Threads(64), nullptr, in.data(), out.data()));
    for (int i = 0; i < 64; ++i) ASSERT_EQ(out[i], 63 - i);
  }
}

// Threads that have returned do not count at a barrier of the CTA, as on the
// hardware since Volta.
SIMT_KERNEL(64) ReturnEarly(int* out) {
  if (ThreadX() >= 32) return;
  SyncThreads();
  out[ThreadX()] = 1;
}

TEST_F(EmulatorTest, ReturnedThreadsLeaveABarrier) {
  std::vector<int> out(32);
  EXPECT_TRUE(Launch(&ReturnEarly, Threads(64), nullptr, out.data()));
  EXPECT_EQ(std::accumulate(out.begin(), out.end(), 0), 32);
}

SIMT_KERNEL(128) NamedBarriers(int* out) {
  SIMT_SHARED(int, values, 128);
  const int half = static_cast<int>(ThreadX()) / 64;
  values[ThreadX()] = static_cast<int>(ThreadX());
  SyncNamed(1 + half, 64);
  out[ThreadX()] = values[half * 64 + (63 - ThreadX() % 64)];
}

TEST_F(EmulatorTest, NamedBarriersHoldTheirThreadsOnly) {
  std::vector<int> out(128);
  for (const emulator::Schedule schedule : emulator::kAllSchedules) {
    emulator::CurrentOptions().schedule = schedule;
    ASSERT_TRUE(Launch(&NamedBarriers, Threads(128), nullptr, out.data()));
    for (int t = 0; t < 128; ++t) {
      ASSERT_EQ(out[t], t / 64 * 64 + 63 - t % 64);
    }
  }
}

// The second warp reads what the first one wrote, which goes on meanwhile.
SIMT_KERNEL(64) Arrivals(int* out) {
  SIMT_SHARED(int, values, 32);
  const int lane = static_cast<int>(ThreadX()) % 32;
  for (int round = 0; round < 3; ++round) {
    if (ThreadX() < 32) {
      values[lane] = round * 32 + lane;
      ArriveNamed(1, 64);
      SyncNamed(2, 64);
    } else {
      SyncNamed(1, 64);
      out[round * 32 + lane] = values[31 - lane];
      ArriveNamed(2, 64);
    }
  }
}

TEST_F(EmulatorTest, ArrivingCountsAndDoesNotWait) {
  std::vector<int> out(96);
  for (const emulator::Schedule schedule : emulator::kAllSchedules) {
    emulator::CurrentOptions().schedule = schedule;
    ASSERT_TRUE(Launch(&Arrivals, Threads(64), nullptr, out.data()));
    for (int i = 0; i < 96; ++i) ASSERT_EQ(out[i], i / 32 * 32 + 31 - i % 32);
  }
}

// A warp is there as a whole: its next arrival counts for the next barrier.
SIMT_KERNEL(64) ArriveAgain(int* out) {
  if (Shuffle(static_cast<int>(ThreadX()), 0) == 0) {
    ArriveNamed(1, 64);
    ArriveNamed(2, 32);
    ArriveNamed(2, 32);
    ArriveNamed(3, 64);
  } else {
    SyncNamed(1, 64);
    SyncNamed(3, 64);
  }
  out[ThreadX()] = 1;
}

TEST_F(EmulatorTest, ABarrierIsThereAgainAtOnce) {
  for (const emulator::Schedule schedule : emulator::kAllSchedules) {
    emulator::CurrentOptions() = {.schedule = schedule, .seed = 3};
    std::vector<int> out(64);
    EXPECT_TRUE(Launch(&ArriveAgain, Threads(64), nullptr, out.data()))
        << emulator::LastError();
    EXPECT_EQ(std::accumulate(out.begin(), out.end(), 0), 64);
  }
}

enum class BarrierMisuse : uint8_t {
  kNegativeSize,
  kArrivesForAll,  // As SyncNamed may, with size 0.
  kTwoSizes,
  kArrivesTwice,
  kSyncsBehindItsArrival,
  kArrivesInVain,
  kArrivesInABranch,
  kLanesDisagree,
};

SIMT_KERNEL(64) MisuseBarrier(BarrierMisuse misuse) {
  const bool is_first = ThreadX() < 32;
  switch (misuse) {
    case BarrierMisuse::kNegativeSize:
      return SyncNamed(1, -64);
    case BarrierMisuse::kArrivesForAll:
      return ArriveNamed(1, 0);
    case BarrierMisuse::kTwoSizes:
      return is_first ? ArriveNamed(1, 96) : SyncNamed(1, 64);
    case BarrierMisuse::kArrivesTwice:
      if (is_first) ArriveNamed(1, 96);
      return is_first ? ArriveNamed(1, 96) : SyncNamed(1, 96);
    case BarrierMisuse::kSyncsBehindItsArrival:
      ArriveNamed(1, 128);
      return SyncNamed(1, 128);
    case BarrierMisuse::kArrivesInVain:
      return ArriveNamed(1, 96);
    case BarrierMisuse::kArrivesInABranch:
      if (ThreadX() % 2 == 0) ArriveNamed(1, 64);
      return SyncWarp();
    case BarrierMisuse::kLanesDisagree:
      return ArriveNamed(1 + ThreadX() % 2, 32);
  }
}

TEST_F(EmulatorTest, MisuseOfBarriersIsAnError) {
  for (const emulator::Schedule schedule : emulator::kAllSchedules) {
    emulator::CurrentOptions().schedule = schedule;
    for (const auto& [misuse, words] :
         {std::pair(BarrierMisuse::kNegativeSize, "size is out of range"),
          std::pair(BarrierMisuse::kArrivesForAll, "size is out of range"),
          std::pair(BarrierMisuse::kTwoSizes, "different sizes"),
          std::pair(BarrierMisuse::kArrivesTwice, "arrives twice"),
          std::pair(BarrierMisuse::kSyncsBehindItsArrival, "arrives twice"),
          std::pair(BarrierMisuse::kArrivesInVain, "nobody completes"),
          std::pair(BarrierMisuse::kArrivesInABranch, "diverge"),
          std::pair(BarrierMisuse::kLanesDisagree, "disagree")}) {
      EXPECT_FALSE(Launch(&MisuseBarrier, Threads(64), nullptr, misuse))
          << words;
      EXPECT_NE(emulator::LastError().find(words), std::string::npos)
          << words << ": " << emulator::LastError();
    }
  }
}

// Who arrives may be late with all that follows, however much others do.
SIMT_KERNEL(64) WritesBehindItsArrival(int* out) {
  SIMT_SHARED(int, values, 32);
  const int lane = static_cast<int>(ThreadX()) % 32;
  if (ThreadX() < 32) {
    SyncNamed(1, 64);
    for (int i = 0; i < 100; ++i) SyncWarp();
    out[lane] = values[lane];
  } else {
    ArriveNamed(1, 64);
    values[lane] = lane;
  }
}

TEST_F(EmulatorTest, WhoArrivesMayBeLateAfterwards) {
  int num_wrong = 0;
  for (const emulator::Schedule schedule : emulator::kAllSchedules) {
    emulator::CurrentOptions().schedule = schedule;
    std::vector<int> out(32);
    ASSERT_TRUE(
        Launch(&WritesBehindItsArrival, Threads(64), nullptr, out.data()));
    num_wrong += out[31] != 31;
  }
  EXPECT_GT(num_wrong, 0);
}

SIMT_KERNEL(32) SumOfNeighbours(int* values, int* out) {
  values[CtaX()] = static_cast<int>(CtaX()) + 1;
  SyncGrid(nullptr);
  if (ThreadX() == 0) out[CtaX()] = values[(CtaX() + 1) % NumCtasX()];
}

TEST_F(EmulatorTest, AGridBarrierMakesAllCtasMeet) {
  std::vector<int> values(5), out(5);
  LaunchShape shape = Threads(32, 5);
  shape.is_cooperative = true;
  for (const emulator::Schedule schedule : emulator::kAllSchedules) {
    emulator::CurrentOptions().schedule = schedule;
    ASSERT_TRUE(
        Launch(&SumOfNeighbours, shape, nullptr, values.data(), out.data()))
        << emulator::LastError();
    EXPECT_EQ(out, (std::vector<int>{2, 3, 4, 5, 1}));
  }
}

TEST_F(EmulatorTest, AGridBarrierNeedsACooperativeLaunch) {
  std::vector<int> values(5), out(5);
  EXPECT_FALSE(Launch(&SumOfNeighbours, Threads(32, 5), nullptr, values.data(),
                      out.data()));
  EXPECT_NE(emulator::LastError().find("not cooperative"), std::string::npos);
}

SIMT_KERNEL(128) CountThreads(int* count, uint32_t* largest) {
  AtomicAdd(count, 1);
  AtomicMax(largest, ThreadX());
}

TEST_F(EmulatorTest, AtomicsSeeAllThreads) {
  int count = 0;
  uint32_t largest = 0;
  ASSERT_TRUE(
      Launch(&CountThreads, Threads(128, 3), nullptr, &count, &largest));
  EXPECT_EQ(count, 384);
  EXPECT_EQ(largest, 127u);
}

// ---------------------------------------------------------------- warps

SIMT_KERNEL(64) WarpOperations(uint32_t* out) {
  const uint32_t t = ThreadX();
  uint32_t* mine = out + t * 6;
  mine[0] = Shuffle(t, 5);
  mine[1] = ShuffleXor(t, 3);
  mine[2] = ShuffleDown(t, 4);
  mine[3] = Ballot(t % 3 == 0);
  mine[4] = ReduceAdd(t);
  mine[5] = ReduceMax(t);
}

TEST_F(EmulatorTest, WarpOperationsStayInTheirWarp) {
  std::vector<uint32_t> out(64 * 6);
  ASSERT_TRUE(Launch(&WarpOperations, Threads(64), nullptr, out.data()));
  for (uint32_t t = 0; t < 64; ++t) {
    const uint32_t first = t / 32 * 32, lane = t % 32;
    uint32_t ballot = 0;
    for (uint32_t l = 0; l < 32; ++l) ballot |= ((first + l) % 3 == 0) << l;
    const uint32_t* mine = out.data() + t * 6;
    EXPECT_EQ(mine[0], first + 5);
    EXPECT_EQ(mine[1], first + (lane ^ 3));
    EXPECT_EQ(mine[2], lane + 4 < 32 ? t + 4 : t);
    EXPECT_EQ(mine[3], ballot);
    EXPECT_EQ(mine[4], first * 32 + 31 * 16);
    EXPECT_EQ(mine[5], first + 31);
  }
}

SIMT_KERNEL(32) ShuffleInABranch(uint32_t* out) {
  uint32_t value = 0;
  if (ThreadX() < 16) {
    value = Shuffle(ThreadX(), 0);
  }
  out[ThreadX()] = value;
}

TEST_F(EmulatorTest, AFullMaskInABranchIsAnError) {
  std::vector<uint32_t> out(32);
  EXPECT_FALSE(Launch(&ShuffleInABranch, Threads(32), nullptr, out.data()));
}

SIMT_KERNEL(32) DifferentOperations(uint32_t* out) {
  out[ThreadX()] =
      ThreadX() < 16 ? Shuffle(ThreadX(), 0) : ShuffleXor(ThreadX(), 1);
}

TEST_F(EmulatorTest, DivergingLanesAreAnError) {
  std::vector<uint32_t> out(32);
  EXPECT_FALSE(Launch(&DifferentOperations, Threads(32), nullptr, out.data()));
  EXPECT_NE(emulator::LastError().find("diverge"), std::string::npos)
      << emulator::LastError();
}

SIMT_KERNEL(64) HalfABarrier() {
  if (ThreadX() < 32) SyncNamed(3, 64);
}

TEST_F(EmulatorTest, ABarrierThatNobodyCompletesIsADeadlock) {
  EXPECT_FALSE(Launch(&HalfABarrier, Threads(64), nullptr));
  EXPECT_NE(emulator::LastError().find("deadlock"), std::string::npos);
  EXPECT_NE(emulator::LastError().find("thread 0 at a barrier"),
            std::string::npos)
      << emulator::LastError();
}

SIMT_KERNEL(32) UnalignedLoad(const char* from, uint32_t* out) {
  out[ThreadX()] = Load16(from + 8).words[0];
}

SIMT_KERNEL(32) ForgottenWait(const uint32_t* from) {
  SIMT_SHARED(Bytes16, to, 32);
  CpAsync16(&to[ThreadX()], from + 4 * ThreadX());
  CpAsyncCommit();
}

SIMT_KERNEL(32) TooMuchStaticShared(int* out) {
  SIMT_SHARED(int, values, 13 << 10);
  out[ThreadX()] = values[ThreadX()];
}

SIMT_KERNEL(32) Nothing() {}

TEST_F(EmulatorTest, SharedMemoryIsThatOfTheSmallestGpu) {
  LaunchShape shape = Threads(32);
  shape.dynamic_shared_bytes = kMaxSharedBytes;
  EXPECT_TRUE(Launch(&Nothing, shape, nullptr));
  ++shape.dynamic_shared_bytes;
  EXPECT_FALSE(Launch(&Nothing, shape, nullptr));
  EXPECT_EQ(emulator::LastError(),
            "a CTA asks for 101377 bytes of shared memory");
}

TEST_F(EmulatorTest, WhatTheHardwareRefusesIsAnError) {
  alignas(16) uint32_t memory[128] = {};
  EXPECT_FALSE(Launch(&UnalignedLoad, Threads(32), nullptr,
                      reinterpret_cast<const char*>(memory), memory));
  EXPECT_NE(emulator::LastError().find("aligned"), std::string::npos);
  EXPECT_FALSE(Launch(&ForgottenWait, Threads(32), nullptr,
                      const_cast<const uint32_t*>(memory)));
  EXPECT_NE(emulator::LastError().find("wait"), std::string::npos);
  int out[32];
  EXPECT_FALSE(Launch(&TooMuchStaticShared, Threads(32), nullptr, &out[0]));
  EXPECT_NE(emulator::LastError().find("48 KiB"), std::string::npos);
  EXPECT_FALSE(Launch(&HalfABarrier, Threads(2048), nullptr));
}

// ---------------------------------------------------------------- numbers

TEST_F(EmulatorTest, E4M3HasTheValuesOfItsSpecification) {
  EXPECT_EQ(E4M3ToFloat(0x00), 0.0f);
  EXPECT_EQ(E4M3ToFloat(0x01), 0x1p-9f);
  EXPECT_EQ(E4M3ToFloat(0x08), 0x1p-6f);
  EXPECT_EQ(E4M3ToFloat(0x38), 1.0f);
  EXPECT_EQ(E4M3ToFloat(0x7e), 448.0f);
  EXPECT_EQ(E4M3ToFloat(0xfe), -448.0f);
  EXPECT_TRUE(std::isnan(E4M3ToFloat(0x7f)));
  for (int bits = 0; bits < 256; ++bits) {
    const float value = E4M3ToFloat(static_cast<uint8_t>(bits));
    if (std::isnan(value)) continue;
    EXPECT_EQ(FloatToE4M3(value), bits);
  }
}

TEST_F(EmulatorTest, E4M3RoundsToTheNearestEvenAndSaturates) {
  for (int bits = 0; bits < 0x7e; ++bits) {
    const float low = E4M3ToFloat(static_cast<uint8_t>(bits));
    const float high = E4M3ToFloat(static_cast<uint8_t>(bits + 1));
    const float middle = (low + high) / 2;
    EXPECT_EQ(FloatToE4M3(middle), bits % 2 == 0 ? bits : bits + 1);
    EXPECT_EQ(FloatToE4M3(std::nextafter(middle, low)), bits);
    EXPECT_EQ(FloatToE4M3(std::nextafter(middle, high)), bits + 1);
  }
  EXPECT_EQ(FloatToE4M3(1e9f), 0x7e);
  EXPECT_EQ(FloatToE4M3(-INFINITY), 0xfe);
}

template <int kKind>
SIMT_KERNEL(32)
Instruction(float* out) {
  float sums[4] = {};
  int32_t whole_sums[4] = {};
  const uint32_t a[4] = {};
  if (kKind == 0) MmaBf16(sums, a, 0, 0);
  if (kKind == 1) MmaF16(sums, a, 0, 0);
  if (kKind == 2) MmaE4M3(sums, a, 0, 0);
  if (kKind == 3) MmaS8(whole_sums, a, 0, 0);
  if (kKind == 4) SubtractBf16x2(0, 0);
  out[ThreadX()] = sums[0];
}

// Those that trap on a GPU without them.
TEST_F(EmulatorTest, CapabilitiesLackInstructions) {
  float out[32];
  const auto runs = [&](auto kernel, int capability) {
    emulator::CurrentOptions().capability = capability;
    return Launch(kernel, Threads(32), nullptr, out);
  };
  EXPECT_FALSE(runs(&Instruction<0>, 75));
  EXPECT_NE(emulator::LastError().find("no such instruction"),
            std::string::npos)
      << emulator::LastError();
  EXPECT_TRUE(runs(&Instruction<0>, 80));
  EXPECT_TRUE(runs(&Instruction<1>, 75));
  EXPECT_FALSE(runs(&Instruction<2>, 86));
  EXPECT_TRUE(runs(&Instruction<2>, 89));
  EXPECT_FALSE(runs(&Instruction<3>, 75));
  EXPECT_TRUE(runs(&Instruction<3>, 80));
  EXPECT_FALSE(runs(&Instruction<4>, 75));
  EXPECT_TRUE(runs(&Instruction<4>, 80));
}

SIMT_KERNEL(32) TakesShared(size_t limit, int num_static, float* out) {
  emulator::LimitShared(limit);
  SIMT_SHARED(float, values, num_static);
  SIMT_DYNAMIC_SHARED(memory);
  values[ThreadX()] = memory[ThreadX()];
  out[ThreadX()] = values[ThreadX()];
}

// A CTA has its static and its dynamic memory at once, the latter aligned to
// 1024 bytes.
TEST_F(EmulatorTest, SharedMemoryHasALimit) {
  float out[32];
  const auto runs = [&](size_t limit, size_t num_dynamic, int num_static) {
    LaunchShape shape = Threads(32);
    shape.dynamic_shared_bytes = num_dynamic;
    return Launch(&TakesShared, shape, nullptr, limit, num_static, out);
  };
  EXPECT_TRUE(runs(kMaxSharedBytes, kMaxSharedBytes - 1024, 32));
  EXPECT_FALSE(runs(kMaxSharedBytes, kMaxSharedBytes - 1020, 32));
  EXPECT_FALSE(runs(2 * kMaxSharedBytes, kMaxSharedBytes + 16, 32));
  EXPECT_TRUE(runs(kSmallSharedBytes, kSmallSharedBytes - 1024, 32));
  EXPECT_FALSE(runs(kSmallSharedBytes, kSmallSharedBytes, 32));
  EXPECT_FALSE(runs(kSmallSharedBytes, kSmallSharedBytes + 16, 32));
}

// One warp, one product; `kind` 0: bf16, 1: f16, 2: e4m3. Rows of 16 bytes of
// a [16, depth] and b [8, depth].
SIMT_KERNEL(32)
OneMma(int kind, const uint32_t* a, const uint32_t* b, float* c) {
  const uint32_t g = ThreadX() / 4, t = ThreadX() % 4;
  float sums[4] = {};
  uint32_t fragment[4];
  for (uint32_t r = 0; r < 4; ++r) {
    fragment[r] = a[(g + r % 2 * 8) * 8 + t + r / 2 * 4];
  }
  const uint32_t b0 = b[g * 8 + t], b1 = b[g * 8 + t + 4];
  if (kind == 0) MmaBf16(sums, fragment, b0, b1);
  if (kind == 1) MmaF16(sums, fragment, b0, b1);
  if (kind == 2) MmaE4M3(sums, fragment, b0, b1);
  for (uint32_t r = 0; r < 4; ++r) {
    c[(g + r / 2 * 8) * 8 + t * 2 + r % 2] = sums[r];
  }
}

TEST_F(EmulatorTest, MmaMultipliesMatrices) {
  SimulationRandom random(1);
  for (int kind = 0; kind < 3; ++kind) {
    const int per_word = kind == 2 ? 4 : 2, depth = 8 * per_word;
    const auto fill = [&](int rows, std::vector<uint32_t>& words,
                          std::vector<float>& values) {
      for (int i = 0; i < rows * 8; ++i) {
        uint32_t word = 0;
        for (int e = 0; e < per_word; ++e) {
          // Small integers: exact in every format, so are their sums.
          const float value = static_cast<float>(random.Between(-8, 8));
          values.push_back(value);
          word |= (kind == 0   ? uint32_t{FloatToBf16(value)}
                   : kind == 1 ? uint32_t{FloatToHalf(value)}
                               : uint32_t{FloatToE4M3(value)})
                  << (e * 32 / per_word);
        }
        words.push_back(word);
      }
    };
    std::vector<uint32_t> a_words, b_words;
    std::vector<float> a, b, c(16 * 8);
    fill(16, a_words, a);
    fill(8, b_words, b);
    ASSERT_TRUE(Launch(&OneMma, Threads(32), nullptr, kind,
                       const_cast<const uint32_t*>(a_words.data()),
                       const_cast<const uint32_t*>(b_words.data()), c.data()));
    for (int row = 0; row < 16; ++row) {
      for (int column = 0; column < 8; ++column) {
        float sum = 0;
        for (int k = 0; k < depth; ++k) {
          sum += a[row * depth + k] * b[column * depth + k];
        }
        ASSERT_EQ(c[row * 8 + column], sum) << "kind " << kind;
      }
    }
  }
}

SIMT_KERNEL(32) OneMmaS8(const uint32_t* a, const uint32_t* b, int32_t* c) {
  const uint32_t g = ThreadX() / 4, t = ThreadX() % 4;
  int32_t sums[4] = {};
  uint32_t fragment[4];
  for (uint32_t r = 0; r < 4; ++r) {
    fragment[r] = a[(g + r % 2 * 8) * 8 + t + r / 2 * 4];
  }
  MmaS8(sums, fragment, b[g * 8 + t], b[g * 8 + t + 4]);
  for (uint32_t r = 0; r < 4; ++r) {
    c[(g + r / 2 * 8) * 8 + t * 2 + r % 2] = sums[r];
  }
}

TEST_F(EmulatorTest, MmaMultipliesIntegers) {
  SimulationRandom random(2);
  std::vector<int8_t> a(16 * 32), b(8 * 32);
  for (int8_t& x : a) x = static_cast<int8_t>(random.Between(-128, 127));
  for (int8_t& x : b) x = static_cast<int8_t>(random.Between(-128, 127));
  std::vector<int32_t> c(16 * 8);
  ASSERT_TRUE(Launch(&OneMmaS8, Threads(32), nullptr,
                     reinterpret_cast<const uint32_t*>(a.data()),
                     reinterpret_cast<const uint32_t*>(b.data()), c.data()));
  for (int row = 0; row < 16; ++row) {
    for (int column = 0; column < 8; ++column) {
      int32_t sum = 0;
      for (int k = 0; k < 32; ++k) sum += a[row * 32 + k] * b[column * 32 + k];
      ASSERT_EQ(c[row * 8 + column], sum);
    }
  }
}

}  // namespace
}  // namespace quire::simt
