// Asynchronous copies, and who wrote shared memory last.
#include <cstring>
#include <utility>

#include "kernels/cuda/simt/emulator_machine.h"

namespace quire::simt::emulator {
namespace {
void DoCopy(const Copy& copy) {
  if (copy.is_valid) {
    std::memcpy(copy.to, copy.from, 16);
  } else {
    std::memset(copy.to, 0, 16);
  }
}

// Null outside dynamic shared memory.
SharedWrite* WriteOf(const void* p) {
  Cta& cta = *Running().cta;
  const size_t offset = static_cast<size_t>(
      static_cast<const unsigned char*>(p) - cta.dynamic_shared.get());
  return offset / 16 < cta.writes.size() ? &cta.writes[offset / 16] : nullptr;
}
}  // namespace

void CopyAsync16(void* to, const void* from, bool is_valid) {
  if ((reinterpret_cast<uintptr_t>(to) | reinterpret_cast<uintptr_t>(from)) %
          16 !=
      0) {
    Fail("an asynchronous copy is not aligned to 16 bytes");
  }
  Running().open_copies.push_back({to, from, is_valid});
  if (SharedWrite* const write = WriteOf(to)) {
    *write = {kUnderWay, Running().thread_idx};
  }
  if (!GetMachine().options.is_copy_lazy) {
    DoCopy(Running().open_copies.back());
  }
}

void CountShared(const void* p, int num_bytes, const char* file, int line) {
  const Fiber& fiber = Running();
  if (fiber.cta->accesses) {
    fiber.cta->accesses->Add(fiber.thread_idx, p, num_bytes, file, line);
  }
}

void WroteShared(const void* p, int num_bytes) {
  const Fiber& fiber = Running();
  for (int i = 0; i < num_bytes; i += 16) {
    SharedWrite* write = WriteOf(static_cast<const unsigned char*>(p) + i);
    if (write != nullptr) *write = {fiber.num_proxy_fences, fiber.thread_idx};
  }
}

bool IsFenced(const void* p) {
  const SharedWrite* write = WriteOf(p);
  if (write == nullptr || write->thread_idx < 0) return true;
  return Running().cta->fibers[write->thread_idx].num_proxy_fences >
         write->num_fences;
}

void FenceProxyAsync() { ++Running().num_proxy_fences; }

WarpProducts& ProductsOfWarp() {
  const Fiber& fiber = Running();
  return fiber.cta->warps[fiber.thread_idx / kWarpSize].products;
}

void CommitCopies() {
  Fiber& fiber = Running();
  fiber.copy_groups.push_back(std::move(fiber.open_copies));
  fiber.open_copies.clear();
}

void WaitForCopies(int num_pending_groups) {
  Fiber& fiber = Running();
  while (static_cast<int>(fiber.copy_groups.size()) > num_pending_groups) {
    for (const Copy& copy : fiber.copy_groups.front()) {
      if (GetMachine().options.is_copy_lazy) DoCopy(copy);
      WroteShared(copy.to, 16);
    }
    fiber.copy_groups.pop_front();
  }
}

}  // namespace quire::simt::emulator
