#include "kernels/cuda/simt/emulator_shared.h"

#include <algorithm>
#include <set>

namespace quire::simt::emulator {
namespace {

constexpr int kNumBanks = 32;  // Of four bytes each.

}  // namespace

void SharedAccesses::Add(int thread_idx, const void* p, int num_bytes,
                         const char* file, int line) {
  const Site site(file, line);
  const size_t visit = num_visits_[{site, thread_idx}]++;
  std::vector<Request>& requests = requests_[{site, thread_idx / kWarpSize}];
  if (requests.size() <= visit) requests.resize(visit + 1);
  const int lane = thread_idx % kWarpSize;
  requests[visit].first_word[lane] = reinterpret_cast<uintptr_t>(p) / 4;
  requests[visit].num_bytes[lane] = num_bytes;
}

// NVIDIA's tuning guides: the banks serve a warp's accesses of 4 bytes at once,
// of 8 bytes by half warps and of 16 bytes by quarters. Words of one bank take
// a pass each; lanes with the same word share it.
void SharedAccesses::AddTo(Counts& counts) const {
  for (const auto& [where, requests] : requests_) {
    for (const Request& request : requests) {
      const int num_bytes =
          *std::max_element(request.num_bytes, request.num_bytes + kWarpSize);
      const int num_phases = std::max(num_bytes / 4, 1);
      const int lanes_of_phase = kWarpSize / num_phases;
      for (int first = 0; first < kWarpSize; first += lanes_of_phase) {
        std::set<uintptr_t> words[kNumBanks];
        size_t num_passes = 0;
        for (int lane = first; lane < first + lanes_of_phase; ++lane) {
          for (int i = 0; i < (request.num_bytes[lane] + 3) / 4; ++i) {
            const uintptr_t word = request.first_word[lane] + i;
            std::set<uintptr_t>& bank = words[word % kNumBanks];
            bank.insert(word);
            num_passes = std::max(num_passes, bank.size());
          }
        }
        counts.num_shared += num_passes > 0;
        counts.num_shared_passes += num_passes;
      }
    }
  }
}

}  // namespace quire::simt::emulator
