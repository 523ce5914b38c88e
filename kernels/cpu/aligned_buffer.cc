#include "kernels/cpu/aligned_buffer.h"

#include <sys/mman.h>

#include <utility>

#include "engine/base/status.h"

namespace quire {
namespace {

constexpr int64_t kHugePageBytes = int64_t{2} << 20;

}  // namespace

AlignedBuffer::AlignedBuffer(int64_t num_bytes) : num_bytes_(num_bytes) {
  QUIRE_CHECK(num_bytes >= 0);
  if (num_bytes == 0) return;
  const bool is_large = num_bytes >= kHugePageBytes;
  // mmap aligns to 4 KiB: room to move the start to a huge page boundary.
  mapping_bytes_ = num_bytes + (is_large ? kHugePageBytes : 0);
  mapping_ = mmap(nullptr, mapping_bytes_, PROT_READ | PROT_WRITE,
                  MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  QUIRE_CHECK(mapping_ != MAP_FAILED);
  data_ = static_cast<char*>(mapping_);
  if (is_large) {
    const uintptr_t address = reinterpret_cast<uintptr_t>(mapping_);
    data_ += (kHugePageBytes - address % kHugePageBytes) % kHugePageBytes;
    // Advice only: without it everything works, slower.
    madvise(data_, num_bytes, MADV_HUGEPAGE);
  }
}

AlignedBuffer::AlignedBuffer(AlignedBuffer&& other) noexcept {
  *this = std::move(other);
}

AlignedBuffer& AlignedBuffer::operator=(AlignedBuffer&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(num_bytes_, other.num_bytes_);
  std::swap(mapping_, other.mapping_);
  std::swap(mapping_bytes_, other.mapping_bytes_);
  return *this;
}

AlignedBuffer::~AlignedBuffer() {
  if (mapping_ != nullptr) munmap(mapping_, mapping_bytes_);
}

}  // namespace quire
