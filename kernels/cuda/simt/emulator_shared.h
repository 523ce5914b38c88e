// How often the threads of a CTA meet in the banks of shared memory.
#ifndef QUIRE_KERNELS_CUDA_SIMT_EMULATOR_SHARED_H_
#define QUIRE_KERNELS_CUDA_SIMT_EMULATOR_SHARED_H_

#include <cstdint>
#include <map>
#include <tuple>
#include <vector>

#include "kernels/cuda/simt/emulator.h"

namespace quire::simt::emulator {

// The accesses of one CTA. Fibers run one after the other, so what is one
// instruction of a warp is found afterwards: the n-th time that each of its
// lanes comes to a line of the source. (Lanes that leave out a turn of a loop
// are taken for later ones in the turns that follow.)
class SharedAccesses {
 public:
  void Add(int thread_idx, const void* p, int num_bytes, const char* file,
           int line);
  // Of all accesses so far.
  void AddTo(Counts& counts) const;

 private:
  // Words of four bytes; by lane; num_bytes 0: not taking part.
  struct Request {
    uintptr_t first_word[kWarpSize];
    int num_bytes[kWarpSize] = {};
  };
  using Site = std::tuple<const char*, int>;

  std::map<std::pair<Site, int>, int> num_visits_;  // By thread.
  // By site, warp and visit.
  std::map<std::pair<Site, int>, std::vector<Request>> requests_;
};

}  // namespace quire::simt::emulator

#endif  // QUIRE_KERNELS_CUDA_SIMT_EMULATOR_SHARED_H_
