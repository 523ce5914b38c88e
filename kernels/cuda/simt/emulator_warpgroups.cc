#include "kernels/cuda/simt/emulator_warpgroups.h"

#include <bit>
#include <utility>

#include "kernels/cuda/simt/simt.h"

namespace quire::simt::emulator {
namespace {

constexpr int kDepth = 16;
constexpr int kColumnsOfTile = 8;
constexpr uintptr_t kAtomBytes = 1024;  // Eight rows of 128 bytes.

// PTX ISA, "Strides" and "Swizzling modes" of wgmma: where column n of b lies
// at depth k. The swizzle is of addresses, not of offsets in a tile.
const unsigned char* AddressOf(const WgmmaArgument& argument, int n, int k) {
  const SharedMatrix& b = argument.b;
  const int row = argument.is_transposed ? k : n;
  const int in_row = argument.is_transposed ? n : k;  // Elements.
  const int64_t offset = row / 8 * int64_t{b.stride_bytes} + row % 8 * 128 +
                         in_row / 64 * int64_t{b.leading_bytes} +
                         in_row % 64 * 2;
  const auto address = reinterpret_cast<uintptr_t>(b.p) + offset;
  return reinterpret_cast<const unsigned char*>(address ^ (address >> 7 & 7)
                                                              << 4);
}

void Check(const WarpProduct& product) {
  const WgmmaArgument& first = product.lanes[0];
  for (const WgmmaArgument& argument : product.lanes) {
    if (argument.b.p != first.b.p ||
        argument.b.leading_bytes != first.b.leading_bytes ||
        argument.b.stride_bytes != first.b.stride_bytes) {
      Fail("the lanes of a warp name different matrices", "Wgmma");
    }
  }
  const auto address = reinterpret_cast<uintptr_t>(first.b.p);
  if (address % 16 != 0 || address % kAtomBytes / 128 != 0 ||
      first.b.stride_bytes % 16 != 0 || first.b.leading_bytes % 16 != 0) {
    Fail("a matrix is not aligned to its swizzle", "Wgmma");
  }
  for (int n = 0; n < first.num_tiles * kColumnsOfTile; ++n) {
    for (int k = 0; k < kDepth; ++k) {
      if (!IsFenced(AddressOf(first, n, k))) {
        Fail("shared memory is read that was written without FenceProxyAsync",
             "Wgmma");
      }
    }
  }
}

// What it reads of registers and shared memory, as it is now.
void Read(WarpProduct& product) {
  const WgmmaArgument& first = product.lanes[0];
  for (int lane = 0; lane < kWarpSize; ++lane) {
    std::memcpy(product.a[lane].data(), product.lanes[lane].a, 16);
  }
  product.b.resize(first.num_tiles * kColumnsOfTile * kDepth);
  for (size_t i = 0; i < product.b.size(); ++i) {
    std::memcpy(&product.b[i],
                AddressOf(first, static_cast<int>(i) / kDepth, i % kDepth), 2);
  }
}

// A signaling NaN: arithmetic makes another one of it.
constexpr uint32_t kPoison = 0x7fa0dead;

void TakeSums(const WarpProduct& product, WarpProducts& products) {
  for (const WgmmaArgument& argument : product.lanes) {
    SumsInFlight& sums = products.in_flight[argument.c];
    if (sums.num_products++ > 0) continue;
    for (int i = 0; i < argument.num_tiles; ++i) {
      float(&c)[4] = argument.c[i];
      sums.values.push_back({c[0], c[1], c[2], c[3]});
      for (float& x : c) x = std::bit_cast<float>(kPoison);
    }
  }
}

void ReturnSums(const WarpProduct& product, WarpProducts& products) {
  for (const WgmmaArgument& argument : product.lanes) {
    const auto sums = products.in_flight.find(argument.c);
    if (--sums->second.num_products > 0) continue;
    for (int i = 0; i < argument.num_tiles; ++i) {
      for (int e = 0; e < 4; ++e) {
        float& c = argument.c[i][e];
        if (std::bit_cast<uint32_t>(c) != kPoison) {
          Fail("sums were written that a product had", "WgmmaWait");
        }
        c = sums->second.values[i][e];
      }
    }
    products.in_flight.erase(sums);
  }
}

// Fragments as of mma.m16n8k16 (emulator_warps.cc), with more columns.
void Compute(const WarpProduct& product, WarpProducts& products) {
  WarpProduct& now = products.now;
  now.lanes = product.lanes;
  Read(now);
  if (now.a != product.a || now.b != product.b) {
    Fail("what a product reads changed before its product was waited for",
         "WgmmaWait");
  }
  const WgmmaArgument& first = product.lanes[0];
  const auto decode = [&first](uint32_t bits) {
    const auto half = static_cast<uint16_t>(bits);
    return first.is_bf16 ? Bf16ToFloat(half) : HalfToFloat(half);
  };
  float a[16][kDepth];
  for (int lane = 0; lane < kWarpSize; ++lane) {
    for (int r = 0; r < 4; ++r) {
      const uint32_t word = product.a[lane][r];
      float* const to =
          &a[lane / 4 + r % 2 * 8][lane % 4 * 2 + r / 2 * (kDepth / 2)];
      to[0] = decode(word & 0xffff);
      to[1] = decode(word >> 16);
    }
  }
  for (int n = 0; n < first.num_tiles * kColumnsOfTile; ++n) {
    float b[kDepth];
    for (int k = 0; k < kDepth; ++k) b[k] = decode(product.b[n * kDepth + k]);
    for (int row = 0; row < 16; ++row) {
      float sum = 0;
      // The order is the hardware's; another one than mma's, so that nothing
      // comes to rely on both having the same bits.
      for (int k = kDepth - 1; k >= 0; --k) sum += a[row][k] * b[k];
      SumsInFlight& sums =
          products.in_flight.at(product.lanes[row % 8 * 4 + n % 8 / 2].c);
      float& c = sums.values[n / kColumnsOfTile][row / 8 * 2 + n % 2];
      c = first.accumulates ? c + sum : sum;
    }
  }
}

void CombineWgmma(void* const* arguments, uint32_t /*mask*/) {
  WarpProducts& products = ProductsOfWarp();
  if (!products.is_fenced) Fail("no WgmmaFence since the last wait", "Wgmma");
  WarpProduct& product = products.open.emplace_back();
  for (int lane = 0; lane < kWarpSize; ++lane) {
    product.lanes[lane] = *static_cast<const WgmmaArgument*>(arguments[lane]);
  }
  Check(product);
  Read(product);
  ++CurrentCounts().num_wgmma;
  TakeSums(product, products);
}

}  // namespace

void Wgmma(WgmmaArgument argument) {
  if (CurrentOptions().capability != 90) {
    Fail("this GPU has no such instruction", "Wgmma");
  }
  Collective(kAllLanes, "Wgmma", &argument, &CombineWgmma);
}

void WgmmaFence() {
  int none = 0;
  Collective(kAllLanes, "WgmmaFence", &none,
             [](void* const*, uint32_t) { ProductsOfWarp().is_fenced = true; });
}

void WgmmaCommit() {
  int none = 0;
  Collective(kAllLanes, "WgmmaCommit", &none, [](void* const*, uint32_t) {
    WarpProducts& products = ProductsOfWarp();
    products.groups.push_back(std::exchange(products.open, {}));
  });
}

void WgmmaWait(int num_pending_groups) {
  Collective(kAllLanes, "WgmmaWait", &num_pending_groups,
             [](void* const* arguments, uint32_t) {
               WarpProducts& products = ProductsOfWarp();
               const int num_pending = *static_cast<const int*>(arguments[0]);
               while (static_cast<int>(products.groups.size()) > num_pending) {
                 for (const WarpProduct& product : products.groups.front()) {
                   Compute(product, products);
                   ReturnSums(product, products);
                 }
                 products.groups.pop_front();
               }
               products.is_fenced = false;
             });
}

}  // namespace quire::simt::emulator
