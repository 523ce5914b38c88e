// QuantizeMatrix of kernels/quant_codec.h.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/base/status.h"
#include "kernels/quant_codec.h"

namespace quire {
namespace {

constexpr float kMaxE4M3 = 448.0f;

// For |v| < 2^22; unlike std::nearbyint it is no call and compiles to vectors.
inline float RoundToEven(float v) {
  return (v + 12582912.0f) - 12582912.0f;  // 1.5 * 2^23.
}

// One row as f32; false if a value is not finite.
bool ReadRow(const TensorView& dense, int64_t row, std::vector<float>* out) {
  WeightPart part;
  part.data = dense;
  DequantizeRow(part, row, out->data());
  // Infinities and NaNs have all bits of the exponent set.
  uint32_t bad = 0;
  for (const float value : *out) {
    const uint32_t bits = std::bit_cast<uint32_t>(value) & 0x7f800000;
    bad |= bits == 0x7f800000 ? 1 : 0;
  }
  return bad == 0;
}

float MaxMagnitude(const float* values, int64_t count) {
  float max = 0.0f;
  for (int64_t i = 0; i < count; ++i) max = std::max(max, std::abs(values[i]));
  return max;
}

absl::Status NotFinite(int64_t row) {
  return absl::InvalidArgumentError(
      absl::StrCat("row ", row, " has a value that is not finite"));
}

// The smallest of the rows that a thread found bad; -1: none.
class BadRow {
 public:
  void Set(int64_t row) {
    int64_t seen = row_.load();
    while ((seen < 0 || row < seen) && !row_.compare_exchange_weak(seen, row)) {
    }
  }
  int64_t get() const { return row_.load(); }

 private:
  std::atomic<int64_t> row_{-1};
};

// Whether blocks stand for about the values: false if a scale overflowed.
bool Represents(QuantFormat format, const uint8_t* blocks, float largest,
                const std::vector<float>& values) {
  std::vector<float> decoded(values.size());
  DequantizeBlocks(format, blocks, values.size(), decoded.data());
  for (size_t i = 0; i < values.size(); ++i) {
    if (!(std::abs(decoded[i] - values[i]) <= largest / 2)) return false;
  }
  return true;
}

absl::StatusOr<QuantizedMatrix> QuantizeToBlocks(const TensorView& dense,
                                                 QuantFormat format,
                                                 RangeRunner run) {
  const QuantBlock block = QuantBlockOf(format);
  if (dense.cols % block.cols != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat(dense.cols, " columns are not a multiple of ", block.cols,
                     ", as ", QuantFormatName(format), " needs"));
  }
  const int64_t row_bytes = QuantRowBytes(format, dense.cols);
  QuantizedMatrix out;
  out.num_bytes = dense.rows * row_bytes;
  out.data.reset(new uint8_t[out.num_bytes]);
  BadRow not_finite;
  BadRow too_large;
  run(dense.rows, [&](int64_t begin, int64_t end) {
    std::vector<float> values(dense.cols);
    for (int64_t row = begin; row < end; ++row) {
      if (!ReadRow(dense, row, &values)) {
        not_finite.Set(row);
        return;
      }
      uint8_t* blocks = out.data.get() + row * row_bytes;
      QuantizeBlocks(format, values.data(), dense.cols, blocks);
      // f16 scales end at 65504; far below it nothing needs to be checked.
      const float largest = MaxMagnitude(values.data(), dense.cols);
      if (largest > 60000.0f && !Represents(format, blocks, largest, values)) {
        too_large.Set(row);
        return;
      }
    }
  });
  if (not_finite.get() >= 0) return NotFinite(not_finite.get());
  if (too_large.get() >= 0) {
    return absl::InvalidArgumentError(absl::StrCat("row ", too_large.get(),
                                                   " has values too large for ",
                                                   QuantFormatName(format)));
  }
  out.part.data =
      TensorView::Matrix(out.data.get(), DType::kU8, dense.rows, row_bytes);
  out.part.format = format;
  return out;
}

// scales: [rows, cols] of squares of `height` rows and `width` columns.
absl::StatusOr<QuantizedMatrix> QuantizeToFp8(const TensorView& dense,
                                              const QuantizationScheme& scheme,
                                              RangeRunner run) {
  using Scales = QuantizationScheme::Fp8Scales;
  const bool in_squares = scheme.fp8_scales == Scales::kBlock;
  if (in_squares && scheme.group_size < 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("group_size ", scheme.group_size, " is below 1"));
  }
  const int64_t width = in_squares ? scheme.group_size : dense.cols;
  const int64_t height = in_squares ? scheme.group_size : 1;
  const int64_t bands = (dense.rows + height - 1) / height;
  const int64_t squares =
      width == 0 ? 0 : (dense.cols + width - 1) / width;  // In a band.
  std::vector<float> largest(bands * squares);
  BadRow not_finite;
  run(bands, [&](int64_t begin, int64_t end) {
    std::vector<float> values(dense.cols);
    for (int64_t row = begin * height; row < std::min(end * height, dense.rows);
         ++row) {
      if (!ReadRow(dense, row, &values)) {
        not_finite.Set(row);
        return;
      }
      for (int64_t s = 0; s < squares; ++s) {
        float& max = largest[row / height * squares + s];
        max = std::max(max,
                       MaxMagnitude(values.data() + s * width,
                                    std::min(width, dense.cols - s * width)));
      }
    }
  });
  if (not_finite.get() >= 0) return NotFinite(not_finite.get());
  if (scheme.fp8_scales == Scales::kTensor) {
    largest = {MaxMagnitude(largest.data(), largest.size())};
  }
  QuantizedMatrix out;
  const int64_t data_bytes = dense.rows * dense.cols;
  out.data.reset(new uint8_t[data_bytes]);
  out.scales.reset(new uint8_t[largest.size() * sizeof(float)]);
  out.num_bytes = data_bytes + largest.size() * sizeof(float);
  // A scale of 0 would make x / scale NaN; any other does for zeros.
  for (float& value : largest) value = value > 0.0f ? value / kMaxE4M3 : 1.0f;
  std::memcpy(out.scales.get(), largest.data(), largest.size() * sizeof(float));
  run(dense.rows, [&](int64_t begin, int64_t end) {
    std::vector<float> values(dense.cols);
    for (int64_t row = begin; row < end; ++row) {
      ReadRow(dense, row, &values);
      uint8_t* codes = out.data.get() + row * dense.cols;
      for (int64_t s = 0; s < squares; ++s) {
        const float scale = largest[scheme.fp8_scales == Scales::kTensor
                                        ? 0
                                        : row / height * squares + s];
        const int64_t last = std::min((s + 1) * width, dense.cols);
        for (int64_t c = s * width; c < last; ++c) {
          codes[c] = FloatToE4M3(values[c] / scale);
        }
      }
    }
  });
  out.part.data =
      TensorView::Matrix(out.data.get(), DType::kU8, dense.rows, dense.cols);
  out.part.format = QuantFormat::kFp8;
  out.part.group_size = in_squares ? scheme.group_size : 0;
  const bool is_one = scheme.fp8_scales == Scales::kTensor;
  out.part.scales = TensorView::Matrix(
      out.scales.get(), DType::kF32, is_one ? 1 : bands, is_one ? 1 : squares);
  return out;
}

struct Int4Group {
  uint16_t scale = 0;  // f16.
  uint8_t zero = 8;
};

// How far the span of a group's values is narrowed, step by step.
constexpr int kNumSpans = 12;

struct Int4Candidates {
  float scales[kNumSpans];  // 0: none.
  float zeros[kNumSpans];
  float errors[kNumSpans];
};

namespace baseline {
#define QUIRE_TARGET
#include "kernels/quant_int4.inc"
#undef QUIRE_TARGET
}  // namespace baseline

#if defined(__x86_64__)
namespace avx2 {
#define QUIRE_TARGET __attribute__((target("avx2")))
#include "kernels/quant_int4.inc"
#undef QUIRE_TARGET
}  // namespace avx2
#endif

struct Int4Search {
  void (*find_range)(const float* x, int64_t n, float* low, float* high);
  void (*find_errors)(const float* x, int64_t n, Int4Candidates& candidates);
};

Int4Search SelectInt4Search() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx2")) {
    return {avx2::FindRange, avx2::FindErrors};
  }
#endif
  return {baseline::FindRange, baseline::FindErrors};
}

// Scale (rounded to f16; infinite if f16 cannot hold it) and zero point of
// small error: the span of the values, narrowed step by step.
Int4Group FitInt4Group(const Int4Search& search, const float* x, int64_t n,
                       bool is_symmetric) {
  float low, high;
  search.find_range(x, n, &low, &high);
  Int4Group best;
  if (high == low) return best;
  // Symmetric: codes 0 to 15 stand for -8 to 7.
  const float span =
      is_symmetric ? std::max(-low / 8.0f, high / 7.0f) : (high - low) / 15.0f;
  best.scale = FloatToHalf(span);
  // Too large: the caller sees it.
  if (!std::isfinite(HalfToFloat(best.scale))) return best;
  Int4Candidates candidates;
  uint16_t scale_bits[kNumSpans];
  for (int i = 0; i < kNumSpans; ++i) {
    const float shrink = 1.0f - 0.03f * static_cast<float>(i);
    scale_bits[i] = FloatToHalf(span * shrink);
    const float scale = candidates.scales[i] = HalfToFloat(scale_bits[i]);
    candidates.zeros[i] =
        is_symmetric || scale == 0.0f
            ? 8.0f
            : std::clamp(RoundToEven(-low * shrink / scale), 0.0f, 15.0f);
  }
  search.find_errors(x, n, candidates);
  float best_error = INFINITY;
  for (int i = 0; i < kNumSpans; ++i) {
    if (candidates.scales[i] == 0.0f) continue;
    if (candidates.errors[i] < best_error) {
      best_error = candidates.errors[i];
      best = {scale_bits[i], static_cast<uint8_t>(candidates.zeros[i])};
    }
  }
  return best;
}

absl::StatusOr<QuantizedMatrix> QuantizeToInt4(const TensorView& dense,
                                               const QuantizationScheme& scheme,
                                               RangeRunner run) {
  const int64_t group_size = scheme.group_size;
  if (group_size < 2 || group_size % 2 != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("group_size ", group_size, " is not an even number"));
  }
  if (dense.cols % 2 != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat(dense.cols,
                     " columns are not a multiple of 2, as int4 "
                     "needs"));
  }
  const int64_t groups = (dense.cols + group_size - 1) / group_size;
  const int64_t row_bytes = dense.cols / 2;
  QuantizedMatrix out;
  out.num_bytes = dense.rows * (row_bytes + groups * 2);
  out.data.reset(new uint8_t[dense.rows * row_bytes]);
  out.scales.reset(new uint8_t[dense.rows * groups * 2]);
  if (!scheme.is_symmetric) {
    out.zeros.reset(new uint8_t[dense.rows * groups]);
    out.num_bytes += dense.rows * groups;
  }
  BadRow not_finite;
  BadRow too_large;
  const Int4Search search = SelectInt4Search();
  run(dense.rows, [&](int64_t begin, int64_t end) {
    std::vector<float> values(dense.cols);
    std::vector<uint8_t> codes(dense.cols);
    for (int64_t row = begin; row < end; ++row) {
      if (!ReadRow(dense, row, &values)) {
        not_finite.Set(row);
        return;
      }
      for (int64_t g = 0; g < groups; ++g) {
        const int64_t first = g * group_size;
        const int64_t last = std::min(first + group_size, dense.cols);
        const Int4Group group = FitInt4Group(search, values.data() + first,
                                             last - first, scheme.is_symmetric);
        const float scale = HalfToFloat(group.scale);
        if (!std::isfinite(scale)) {
          too_large.Set(row);
          return;
        }
        std::memcpy(out.scales.get() + (row * groups + g) * 2, &group.scale, 2);
        if (out.zeros != nullptr) out.zeros[row * groups + g] = group.zero;
        const float inverse = scale != 0.0f ? 1.0f / scale : 0.0f;
        for (int64_t c = first; c < last; ++c) {
          const float code = std::clamp(
              RoundToEven(values[c] * inverse) + group.zero, 0.0f, 15.0f);
          codes[c] = static_cast<uint8_t>(static_cast<int>(code));
        }
      }
      uint8_t* packed = out.data.get() + row * row_bytes;
      for (int64_t i = 0; i < row_bytes; ++i) {
        packed[i] = static_cast<uint8_t>(codes[2 * i] | codes[2 * i + 1] << 4);
      }
    }
  });
  if (not_finite.get() >= 0) return NotFinite(not_finite.get());
  if (too_large.get() >= 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        "row ", too_large.get(), " has values too large for int4"));
  }
  WeightPart& part = out.part;
  part.data =
      TensorView::Matrix(out.data.get(), DType::kU8, dense.rows, row_bytes);
  part.format = QuantFormat::kInt4;
  part.group_size = static_cast<int>(group_size);
  part.scales =
      TensorView::Matrix(out.scales.get(), DType::kF16, dense.rows, groups);
  if (out.zeros != nullptr) {
    part.zeros =
        TensorView::Matrix(out.zeros.get(), DType::kU8, dense.rows, groups);
  }
  return out;
}

}  // namespace

absl::StatusOr<QuantizedMatrix> QuantizeMatrix(const TensorView& dense,
                                               const QuantizationScheme& scheme,
                                               RangeRunner run) {
  QUIRE_CHECK(IsFloatDType(dense.dtype));
  switch (scheme.format) {
    case QuantFormat::kDense:
      return absl::InvalidArgumentError("dense is not a quantized format");
    case QuantFormat::kFp8:
      return QuantizeToFp8(dense, scheme, run);
    case QuantFormat::kInt4:
      return QuantizeToInt4(dense, scheme, run);
    default:
      return QuantizeToBlocks(dense, scheme.format, run);
  }
}

absl::StatusOr<QuantizedMatrix> QuantizeMatrix(
    const TensorView& dense, const QuantizationScheme& scheme) {
  return QuantizeMatrix(
      dense, scheme,
      [](int64_t num_items,
         absl::FunctionRef<void(int64_t begin, int64_t end)> body) {
        if (num_items > 0) body(0, num_items);
      });
}

}  // namespace quire
