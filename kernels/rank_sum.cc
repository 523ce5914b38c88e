#include "kernels/rank_sum.h"

#include <algorithm>
#include <bit>
#include <cstring>

namespace quire {
namespace {

// f32 sums of so many elements stay in the first-level cache (4 KiB).
constexpr int64_t kPiece = 1024;

void Load(const void* from, DType dtype, int64_t begin, int64_t size,
          float* to) {
  switch (dtype) {
    case DType::kBF16: {
      const auto* values = static_cast<const uint16_t*>(from) + begin;
      for (int64_t i = 0; i < size; ++i) to[i] = Bf16ToFloat(values[i]);
      return;
    }
    case DType::kF16: {
      const auto* values = static_cast<const uint16_t*>(from) + begin;
      for (int64_t i = 0; i < size; ++i) to[i] = HalfToFloat(values[i]);
      return;
    }
    default:
      std::memcpy(to, static_cast<const float*>(from) + begin,
                  size * sizeof(float));
  }
}

void Store(const float* from, DType dtype, int64_t begin, int64_t size,
           void* to) {
  switch (dtype) {
    case DType::kBF16: {
      auto* values = static_cast<uint16_t*>(to) + begin;
      for (int64_t i = 0; i < size; ++i) values[i] = FloatToBf16(from[i]);
      return;
    }
    case DType::kF16: {
      auto* values = static_cast<uint16_t*>(to) + begin;
      for (int64_t i = 0; i < size; ++i) values[i] = FloatToHalf(from[i]);
      return;
    }
    default:
      std::memcpy(static_cast<float*>(to) + begin, from, size * sizeof(float));
  }
}

// The sum of `size` elements, at most kPiece, of all parts.
void SumPiece(absl::Span<const void* const> parts, DType dtype, int64_t begin,
              int64_t size, float* sum) {
  if (parts.size() == 1) {
    Load(parts[0], dtype, begin, size, sum);
    return;
  }
  if (parts.size() == 2 && dtype == DType::kF32) {
    const float* const a = static_cast<const float*>(parts[0]) + begin;
    const float* const b = static_cast<const float*>(parts[1]) + begin;
    for (int64_t i = 0; i < size; ++i) sum[i] = a[i] + b[i];
    return;
  }
  // Of five: four and one.
  const size_t num_left = std::bit_floor(parts.size() - 1);
  SumPiece(parts.first(num_left), dtype, begin, size, sum);
  if (parts.size() == num_left + 1 && dtype == DType::kF32) {
    const float* const last =
        static_cast<const float*>(parts[num_left]) + begin;
    for (int64_t i = 0; i < size; ++i) sum[i] += last[i];
    return;
  }
  float right[kPiece];
  SumPiece(parts.subspan(num_left), dtype, begin, size, right);
  for (int64_t i = 0; i < size; ++i) sum[i] += right[i];
}

}  // namespace

void SumInRankOrder(absl::Span<const void* const> parts, DType dtype,
                    int64_t num_elements, void* out) {
  float sum[kPiece];
  for (int64_t begin = 0; begin < num_elements; begin += kPiece) {
    const int64_t size = std::min(kPiece, num_elements - begin);
    SumPiece(parts, dtype, begin, size, sum);
    Store(sum, dtype, begin, size, out);
  }
}

}  // namespace quire
