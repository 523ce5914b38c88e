// Large anonymous memory that costs nothing until it is touched.
#ifndef QUIRE_KERNELS_CPU_MAPPED_MEMORY_H_
#define QUIRE_KERNELS_CPU_MAPPED_MEMORY_H_

#include <cstdint>
#include <memory>

#include "absl/status/statusor.h"
#include "absl/types/span.h"

namespace quire {

// Owns one mapping: zero-filled, page-aligned. Pages become resident at first
// touch, so that a budget of many GiB starts at once. Not thread-safe to move.
class MappedMemory {
 public:
  // kHuge where most of it is read in every step (with 4 KiB pages the TLB
  // misses show); kSmall where little of it is ever touched.
  enum class Pages : uint8_t { kSmall, kHuge };

  // RESOURCE_EXHAUSTED if the kernel refuses. num_bytes 0 gives an empty one.
  static absl::StatusOr<MappedMemory> Create(int64_t num_bytes, Pages pages);

  MappedMemory() = default;
  MappedMemory(MappedMemory&& other) noexcept;
  MappedMemory& operator=(MappedMemory&& other) noexcept;
  ~MappedMemory();

  // Spreads pages that are not yet touched over NUMA nodes. Advice: without
  // effect where the kernel or a container forbids it.
  void InterleaveOver(absl::Span<const int> nodes);

  char* data() const { return data_; }
  int64_t num_bytes() const { return num_bytes_; }

 private:
  char* data_ = nullptr;
  int64_t num_bytes_ = 0;
};

// Hands out 64-byte aligned pieces of a size known before the memory exists:
// run the same sequence of Take calls once with a null base to measure, then
// with the real one.
class ArenaCursor {
 public:
  explicit ArenaCursor(char* base) : base_(base) {}

  template <typename T>
  T* Take(int64_t count) {
    const int64_t offset = offset_;
    offset_ += (count * static_cast<int64_t>(sizeof(T)) + 63) / 64 * 64;
    return base_ == nullptr ? nullptr : reinterpret_cast<T*>(base_ + offset);
  }

  int64_t num_bytes() const { return offset_; }

 private:
  char* base_;
  int64_t offset_ = 0;
};

}  // namespace quire

#endif  // QUIRE_KERNELS_CPU_MAPPED_MEMORY_H_
