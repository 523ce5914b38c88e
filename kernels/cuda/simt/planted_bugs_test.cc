// Proves that the emulator sees: a kernel with everything that real ones do
// (double-buffered asynchronous copies, swizzled shared memory, ldmatrix, mma,
// a reduction between warps) is right under every schedule, and each bug
// planted in it is noticed under at least one.
#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "engine/base/random.h"
#include "gtest/gtest.h"
#include "kernels/cuda/simt/emulator.h"
#include "kernels/cuda/simt/simt.h"

namespace quire::simt {
namespace {

enum class Bug : uint8_t {
  kNone,
  kNoBarrierBeforeOverwrite,  // A warp still reads the buffer being filled.
  kNoBarrierAfterWait,        // Other threads' copies are not seen.
  kWaitsForTooFewCopies,
  kForgetsCommit,
  kSwapsFragments,
  kReadsPastTheEnd,        // Depth rounded up, rows not masked.
  kNoTranspose,            // ldmatrix without .trans for a row-major operand.
  kWrongRowOfSwizzle,      // Written and read with different swizzles.
  kNoSwizzle,              // Right, but with bank conflicts.
  kNoBarrierBeforeReduce,  // Row maxima of other warps are not there yet.
  kNoBarrierAfterReduce,   // The scratch is overwritten while it is read.
  kReducesOneWarpTooFew,
  kStartsFromGarbage,  // Accumulators in unset shared memory.
  kShufflesInABranch,
  kWrongLane,
  kStoresOneRowTooFar,
  kNamedBarrierTooWide,
};
constexpr int kNumBugs = static_cast<int>(Bug::kNamedBarrierTooWide) + 1;

const char* const kBugNames[kNumBugs] = {
    "none",
    "no barrier before overwrite",
    "no barrier after wait",
    "waits for too few copies",
    "forgets commit",
    "swaps fragments",
    "reads past the end",
    "no transpose",
    "wrong row of swizzle",
    "no swizzle",
    "no barrier before reduce",
    "no barrier after reduce",
    "reduces one warp too few",
    "starts from garbage",
    "shuffles in a branch",
    "wrong lane",
    "stores one row too far",
    "named barrier too wide",
};

constexpr int kRows = 16;
constexpr int kColumns = 64;  // Four warps of 16.
constexpr int kTileDepth = 32;
constexpr int kNumWarps = 4;

// Row-major tiles of 16-byte chunks, exclusive-ored with the row so that eight
// rows of ldmatrix fall on eight different bank groups.
template <int kChunks, Bug kBug>
SIMT_DEVICE uint16_t* Chunk(uint16_t* tile, int row, int chunk,
                            bool is_reader) {
  constexpr int kMask = kChunks < 8 ? kChunks - 1 : 7;
  int phase = kChunks < 8 ? row / (8 / kChunks) : row;
  if (kBug == Bug::kNoSwizzle) phase = 0;
  if (kBug == Bug::kWrongRowOfSwizzle && is_reader) ++phase;
  return tile + row * kChunks * 8 + ((chunk ^ (phase & kMask)) * 8);
}

// out[r][c] = p[r][c] / max over c of |p[r][c]|, p = a b.
//   a: [16, depth], b: [depth, 64], bf16; out: [16, 64], f32.
template <Bug kBug>
SIMT_KERNEL(kNumWarps * 32)
ScaledProduct(const uint16_t* a, const uint16_t* b, float* out, int depth) {
  SIMT_DYNAMIC_SHARED(memory);
  constexpr int kTileA = kRows * kTileDepth;
  constexpr int kTileB = kTileDepth * kColumns;
  auto* tiles_a = reinterpret_cast<uint16_t*>(memory);
  uint16_t* tiles_b = tiles_a + 2 * kTileA;
  auto* scratch = reinterpret_cast<float*>(tiles_b + 2 * kTileB);
  const int thread = static_cast<int>(ThreadX());
  const int lane = thread % 32, warp = thread / 32;

  const auto load = [&](int tile, int buffer) {
    for (int i = thread; i < kTileA / 8; i += kNumWarps * 32) {
      const int row = i / 4, chunk = i % 4, k = tile * kTileDepth + chunk * 8;
      const bool is_valid = k < depth || kBug == Bug::kReadsPastTheEnd;
      CpAsync16(Chunk<4, kBug>(tiles_a + buffer * kTileA, row, chunk, false),
                a + row * depth + (is_valid ? k : 0), is_valid);
    }
    for (int i = thread; i < kTileB / 8; i += kNumWarps * 32) {
      const int row = i / 8, chunk = i % 8, k = tile * kTileDepth + row;
      const bool is_valid = k < depth || kBug == Bug::kReadsPastTheEnd;
      CpAsync16(Chunk<8, kBug>(tiles_b + buffer * kTileB, row, chunk, false),
                b + (is_valid ? k : 0) * kColumns + chunk * 8, is_valid);
    }
    if (kBug != Bug::kForgetsCommit || tile == 0) CpAsyncCommit();
  };

  float sums[2][4] = {};
  if (kBug == Bug::kStartsFromGarbage) sums[0][0] = scratch[thread];
  const int num_tiles = (depth + kTileDepth - 1) / kTileDepth;
  load(0, 0);
  for (int tile = 0; tile < num_tiles; ++tile) {
    const int buffer = tile % 2;
    if (tile + 1 < num_tiles) {
      load(tile + 1, 1 - buffer);
      if (kBug == Bug::kWaitsForTooFewCopies) {
        CpAsyncWait<2>();
      } else {
        CpAsyncWait<1>();
      }
    } else {
      CpAsyncWait<0>();
    }
    if (kBug != Bug::kNoBarrierAfterWait) SyncThreads();
    uint16_t* tile_a = tiles_a + buffer * kTileA;
    uint16_t* tile_b = tiles_b + buffer * kTileB;
    for (int k = 0; k < kTileDepth / 16; ++k) {
      uint32_t fragment_a[4], fragment_b[4];
      LdMatrixX4(fragment_a,
                 Chunk<4, kBug>(tile_a, lane % 16, k * 2 + lane / 16, true));
      const uint16_t* row_b = Chunk<8, kBug>(tile_b, k * 16 + lane % 16,
                                             warp * 2 + lane / 16, true);
      if (kBug == Bug::kNoTranspose) {
        LdMatrixX4(fragment_b, row_b);
      } else {
        LdMatrixX4Transposed(fragment_b, row_b);
      }
      constexpr int kSecond = kBug == Bug::kSwapsFragments ? 0 : 1;
      MmaBf16(sums[0], fragment_a, fragment_b[1 - kSecond],
              fragment_b[kSecond]);
      MmaBf16(sums[1], fragment_a, fragment_b[2], fragment_b[3]);
    }
    if (kBug != Bug::kNoBarrierBeforeOverwrite) SyncThreads();
  }

  // Largest magnitude of each row: of the quad, then of the warps.
  for (int half = 0; half < 2; ++half) {
    float largest = 0;
    for (int n = 0; n < 2; ++n) {
      for (int e = 0; e < 2; ++e) {
        largest = fmaxf(largest, fabsf(sums[n][half * 2 + e]));
      }
    }
    if (kBug == Bug::kShufflesInABranch) {
      if (lane % 4 < 2) largest = fmaxf(largest, ShuffleXor(largest, 1));
    } else {
      largest = fmaxf(largest, ShuffleXor(largest, 1));
    }
    largest =
        fmaxf(largest, ShuffleXor(largest, kBug == Bug::kWrongLane ? 4 : 2));
    const int row = lane / 4;
    if (lane % 4 == 0) scratch[warp * 8 + row] = largest;
    if (kBug == Bug::kNamedBarrierTooWide) {
      SyncNamed(1, kNumWarps * 32 + 32);
    } else if (kBug != Bug::kNoBarrierBeforeReduce) {
      SyncNamed(1, kNumWarps * 32);
    }
    constexpr int kNumReduced =
        kNumWarps - (kBug == Bug::kReducesOneWarpTooFew ? 1 : 0);
    for (int w = 0; w < kNumReduced; ++w) {
      largest = fmaxf(largest, scratch[w * 8 + row]);
    }
    if (kBug != Bug::kNoBarrierAfterReduce) SyncNamed(1, kNumWarps * 32);
    for (int n = 0; n < 2; ++n) {
      for (int e = 0; e < 2; ++e) {
        const int to =
            (row + half * 8) * (kBug == Bug::kStoresOneRowTooFar && row == 7
                                    ? kColumns + kColumns / 8
                                    : kColumns) +
            warp * 16 + n * 8 + lane % 4 * 2 + e;
        out[to] = sums[n][half * 2 + e] / largest;
      }
    }
  }
}

using Kernel = void (*)(const uint16_t*, const uint16_t*, float*, int);

template <size_t... kIndices>
Kernel KernelWith(Bug bug, std::index_sequence<kIndices...>) {
  static constexpr Kernel kKernels[] = {
      &ScaledProduct<static_cast<Bug>(kIndices)>...};
  return kKernels[static_cast<int>(bug)];
}

// "" if the kernel is right under the current options.
std::string WhatIsWrong(Bug bug, int depth) {
  SimulationRandom random(depth);
  const auto values = [&](int count) {
    std::vector<uint16_t> bits(count);
    for (uint16_t& x : bits) {
      x = FloatToBf16(static_cast<float>(random.Between(-16, 16)));
    }
    return bits;
  };
  // Readable beyond the end, where reading is a bug but no crash.
  std::vector<uint16_t> a = values(kRows * depth + kTileDepth);
  std::vector<uint16_t> b = values((depth + kTileDepth) * kColumns);
  std::vector<float> out(2 * kRows * kColumns, -1e9f);
  emulator::CurrentCounts() = {};
  const size_t num_bytes =
      2 * (kRows + kColumns) * kTileDepth * sizeof(uint16_t) +
      kNumWarps * 32 * sizeof(float);
  if (!Launch(
          KernelWith(bug, std::make_index_sequence<kNumBugs>()),
          {.num_threads = kNumWarps * 32, .dynamic_shared_bytes = num_bytes},
          nullptr, a.data(), b.data(), out.data(), depth)) {
    return emulator::LastError();
  }
  for (int row = 0; row < kRows; ++row) {
    std::vector<double> products(kColumns);
    double largest = 0;
    for (int column = 0; column < kColumns; ++column) {
      for (int k = 0; k < depth; ++k) {
        products[column] += double{Bf16ToFloat(a[row * depth + k])} *
                            Bf16ToFloat(b[k * kColumns + column]);
      }
      largest = std::max(largest, std::fabs(products[column]));
    }
    for (int column = 0; column < kColumns; ++column) {
      // The sums are exact integers; the division rounds once.
      const double error =
          std::fabs(out[row * kColumns + column] - products[column] / largest);
      if (!(error <= 0x1p-24)) return "wrong number";
    }
  }
  const emulator::Counts& counts = emulator::CurrentCounts();
  if (counts.num_matrix_passes != counts.num_matrices) {
    return "bank conflicts";
  }
  return "";
}

class PlantedBugsTest : public ::testing::TestWithParam<int> {
 protected:
  void TearDown() override { emulator::CurrentOptions() = {}; }
};

TEST_P(PlantedBugsTest, IsNoticed) {
  const Bug bug = static_cast<Bug>(GetParam());
  int num_noticed = 0, num_runs = 0;
  std::string first;
  for (const emulator::Schedule schedule : emulator::kAllSchedules) {
    for (const bool is_lazy : {false, true}) {
      for (const int depth : {32, 96, 168}) {
        emulator::CurrentOptions() = {
            .schedule = schedule, .seed = 7, .is_copy_lazy = is_lazy};
        const std::string wrong = WhatIsWrong(bug, depth);
        ++num_runs;
        if (wrong.empty()) continue;
        if (num_noticed++ == 0) first = wrong;
      }
    }
  }
  RecordProperty("noticed_runs", num_noticed);
  if (bug == Bug::kNone) {
    EXPECT_EQ(num_noticed, 0) << first;
  } else {
    EXPECT_GT(num_noticed, 0) << kBugNames[GetParam()];
    std::printf("%s: noticed in %d of %d runs: %s\n", kBugNames[GetParam()],
                num_noticed, num_runs, first.c_str());
  }
}

INSTANTIATE_TEST_SUITE_P(All, PlantedBugsTest, ::testing::Range(0, kNumBugs),
                         [](const auto& info) {
                           std::string name = kBugNames[info.param];
                           for (char& c : name) {
                             if (c == ' ') c = '_';
                           }
                           return name;
                         });

}  // namespace
}  // namespace quire::simt
