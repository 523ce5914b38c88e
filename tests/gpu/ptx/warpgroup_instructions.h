// Products of a warpgroup, wgmma, which are asynchronous: what the machine
// keeps of them from when they are issued to when they are waited for, and of
// shared memory that they may not read yet. Of kernels that have such products
// alone.
#ifndef QUIRE_TESTS_GPU_PTX_WARPGROUP_INSTRUCTIONS_H_
#define QUIRE_TESTS_GPU_PTX_WARPGROUP_INSTRUCTIONS_H_

#include <array>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "tests/gpu/ptx/ptx_program.h"

namespace quire::ptx {

// Which 16 bytes of shared memory the asynchronous proxy may not read: a thread
// has written them and not executed fence.proxy.async since, or has a copy of
// cp.async under way to them. Accesses are aligned, hence each within 16 bytes.
class AsyncProxy {
 public:
  AsyncProxy(int num_threads, int64_t num_bytes)
      : num_chunks_((num_bytes + 15) / 16),
        num_hidden_(num_chunks_),
        is_written_(num_threads * num_chunks_),
        written_(num_threads),
        copies_(num_threads) {}

  void Write(int thread, int64_t offset);
  void BeginCopy(int thread, int64_t offset, int group);
  void EndCopies(int thread, int end);  // Of groups before `end`.
  void Fence(int thread);
  bool IsHidden(int64_t offset) const { return num_hidden_[offset / 16] > 0; }

 private:
  int64_t num_chunks_;
  std::vector<int> num_hidden_;   // By chunk: of writes and copies.
  std::vector<bool> is_written_;  // By thread and chunk.
  std::vector<std::vector<int64_t>> written_;                 // By thread.
  std::vector<std::vector<std::pair<int64_t, int>>> copies_;  // Chunk, group.
};

// A product reads its registers and shared memory at any time from when it is
// issued to when it is waited for: they must be the same then. Its accumulators
// hold a poison in between, and get their sums at the end.
struct Warpgroups {
  static constexpr int kLanes = 32, kDepth = 16;
  struct Product {
    const Instruction* instruction = nullptr;
    int group = 0;
    bool accumulates = false;
    std::array<uint64_t*, kLanes> slots = {};
    std::array<std::array<uint32_t, 4>, kLanes> a = {};
    uint64_t descriptor = 0;
    std::vector<uint16_t> b;  // [columns, kDepth]
    // [kLanes, accumulators] before the product; empty while an earlier one has
    // them.
    std::vector<float> sums;
  };
  struct Warp {
    bool is_fenced = false;  // By wgmma.fence since the last wait.
    int num_groups = 0;      // That were committed.
    std::vector<Product> products;
    // All that were issued; the other warps of the warpgroup issue the same.
    int64_t num_issued = 0;
  };

  Warpgroups(int num_threads, int64_t shared_bytes)
      : proxy(num_threads, shared_bytes),
        warps(num_threads / kLanes),
        issued(num_threads / (4 * kLanes)) {}

  AsyncProxy proxy;
  std::vector<Warp> warps;  // Whole ones.
  // By warpgroup, of the warp that is ahead.
  std::vector<std::vector<std::pair<const Instruction*, uint64_t>>> issued;
};

// As FindCollective, of wgmma with these operands.
Instruction::Collective FindWarpgroupCollective(const std::string& name,
                                                const Instruction& operands);

}  // namespace quire::ptx

#endif  // QUIRE_TESTS_GPU_PTX_WARPGROUP_INSTRUCTIONS_H_
