// Products of warpgroups (wgmma) that have been issued. What is computed for a
// warp's sixteen rows depends on no other warp of the four.
#ifndef QUIRE_KERNELS_CUDA_SIMT_EMULATOR_WARPGROUPS_H_
#define QUIRE_KERNELS_CUDA_SIMT_EMULATOR_WARPGROUPS_H_

#include <array>
#include <deque>
#include <map>
#include <vector>

#include "kernels/cuda/simt/emulator.h"

namespace quire::simt::emulator {

struct WarpProduct {
  std::array<WgmmaArgument, kWarpSize> lanes;
  // What a and b were when it was issued, and must be until it is waited for.
  std::array<std::array<uint32_t, 4>, kWarpSize> a;  // By lane.
  std::vector<uint16_t> b;                           // [columns, depth]
};

// Sums while products have them. Where the kernel keeps them there are NaNs.
struct SumsInFlight {
  std::vector<std::array<float, 4>> values;
  int num_products = 0;  // Not waited for.
};

struct WarpProducts {
  std::vector<WarpProduct> open;
  std::deque<std::vector<WarpProduct>> groups;
  std::map<float (*)[4], SumsInFlight> in_flight;  // By a lane's c.
  bool is_fenced = false;
  // To compare a product with. Here, as a frame that fails is never left.
  WarpProduct now;
};

// Of the running thread's warp.
WarpProducts& ProductsOfWarp();
// Whether these sixteen bytes of shared memory may be read by a product:
// whoever wrote them has since called FenceProxyAsync.
bool IsFenced(const void* p);

}  // namespace quire::simt::emulator

#endif  // QUIRE_KERNELS_CUDA_SIMT_EMULATOR_WARPGROUPS_H_
