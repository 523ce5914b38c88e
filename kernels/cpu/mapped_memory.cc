#include "kernels/cpu/mapped_memory.h"

#include <errno.h>
#include <linux/mempolicy.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace quire {

absl::StatusOr<MappedMemory> MappedMemory::Create(int64_t num_bytes,
                                                  Pages pages) {
  MappedMemory memory;
  if (num_bytes <= 0) return memory;
  // NORESERVE: the budget may exceed what a strict overcommit policy would
  // promise in advance; the operator set it.
  void* data = mmap(nullptr, num_bytes, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (data == MAP_FAILED) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "cannot map ", num_bytes, " bytes of memory: ", strerror(errno)));
  }
  // Advice only: everything works with any size of page.
  (void)madvise(data, num_bytes,
                pages == Pages::kHuge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
  memory.data_ = static_cast<char*>(data);
  memory.num_bytes_ = num_bytes;
  return memory;
}

void MappedMemory::InterleaveOver(absl::Span<const int> nodes) {
  if (data_ == nullptr) return;
  constexpr int kMaxNodes = 1024;  // What the kernel can be built for.
  constexpr int kBits = 8 * sizeof(unsigned long);
  unsigned long mask[kMaxNodes / kBits] = {};
  for (int node : nodes) {
    if (node < kMaxNodes) mask[node / kBits] |= 1ul << node % kBits;
  }
  // No wrapper in the C library; libnuma would be a dependency for one call.
  (void)syscall(SYS_mbind, data_, num_bytes_, MPOL_INTERLEAVE, mask,
                kMaxNodes + 1, 0);
}

MappedMemory::MappedMemory(MappedMemory&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)),
      num_bytes_(std::exchange(other.num_bytes_, 0)) {}

MappedMemory& MappedMemory::operator=(MappedMemory&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(num_bytes_, other.num_bytes_);
  return *this;
}

MappedMemory::~MappedMemory() {
  if (data_ != nullptr) munmap(data_, num_bytes_);
}

}  // namespace quire
