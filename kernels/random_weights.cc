#include "kernels/random_weights.h"

#include <cstring>
#include <utility>

#include "engine/base/random.h"
#include "engine/base/status.h"

namespace quire {
namespace {

// Where a block has its f16 scales and its codes.
struct BlockFields {
  int halves[2];  // Offsets; -1: none.
  int codes_begin;
  int codes_end;
};

BlockFields FieldsOf(QuantFormat format) {
  switch (format) {
    case QuantFormat::kQ4_0:
    case QuantFormat::kIQ4_NL:
      return {{0, -1}, 2, 18};
    case QuantFormat::kQ4_1:
      return {{0, 2}, 4, 20};
    case QuantFormat::kQ5_0:
      return {{0, -1}, 2, 22};
    case QuantFormat::kQ5_1:
      return {{0, 2}, 4, 24};
    case QuantFormat::kQ8_0:
      return {{0, -1}, 2, 34};
    case QuantFormat::kMXFP4:
      return {{-1, -1}, 1, 17};
    case QuantFormat::kQ2_K:
      return {{80, 82}, 16, 80};
    case QuantFormat::kQ3_K:
      return {{108, -1}, 0, 96};
    case QuantFormat::kQ4_K:
      return {{0, 2}, 16, 144};
    case QuantFormat::kQ5_K:
      return {{0, 2}, 16, 176};
    case QuantFormat::kQ6_K:
      return {{208, -1}, 0, 192};
    case QuantFormat::kIQ4_XS:
      return {{0, -1}, 8, 136};
    case QuantFormat::kDense:
    case QuantFormat::kFp8:
    case QuantFormat::kInt4:
      break;
  }
  return {{-1, -1}, 0, 0};
}

// f16 in +-[2^-8, 2^-6).
uint16_t RandomScale(uint64_t bits) {
  return static_cast<uint16_t>((7u << 10) + bits % 2048 +
                               (bits >> 20 & 1) * 0x8000);
}

}  // namespace

RandomWeights MakeRandomWeights(QuantFormat format, int64_t rows, int64_t cols,
                                uint64_t seed, int group_size,
                                bool has_column_order) {
  const QuantBlock unit = QuantBlockOf(format);
  QUIRE_CHECK(format != QuantFormat::kDense && cols % unit.cols == 0);
  RandomWeights weights;
  const int64_t row_bytes = cols / unit.cols * unit.bytes;
  // A multiple of eight bytes to fill, and the rest cut off.
  weights.data.resize((rows * row_bytes + 7) / 8 * 8);
  for (size_t i = 0; i < weights.data.size(); i += 8) {
    const uint64_t bits = MixBits(seed, i);
    std::memcpy(weights.data.data() + i, &bits, sizeof(bits));
  }
  weights.data.resize(rows * row_bytes);
  WeightPart& part = weights.part;
  part.format = format;
  part.data =
      TensorView::Matrix(weights.data.data(), DType::kU8, rows, row_bytes);
  SimulationRandom random(seed);
  if (format == QuantFormat::kFp8) {
    // 0x7f and 0xff are NaN.
    for (uint8_t& v : weights.data) v = (v & 0x7f) == 0x7f ? 0 : v;
    const float scale = 0.01f;
    weights.scales.resize(2);
    std::memcpy(weights.scales.data(), &scale, sizeof(scale));
    part.scales = TensorView::Matrix(weights.scales.data(), DType::kF32, 1, 1);
    return weights;
  }
  if (format == QuantFormat::kInt4) {
    const int64_t groups = (cols + group_size - 1) / group_size;
    weights.scales.resize(rows * groups);
    weights.zeros.resize(rows * groups);
    for (uint16_t& v : weights.scales) v = RandomScale(random.Below(1 << 22));
    for (uint8_t& v : weights.zeros) v = random.Below(17);
    part.group_size = group_size;
    part.scales =
        TensorView::Matrix(weights.scales.data(), DType::kF16, rows, groups);
    part.zeros =
        TensorView::Matrix(weights.zeros.data(), DType::kU8, rows, groups);
    if (!has_column_order) return weights;
    weights.column_order.resize(cols);
    SimulationRandom order(seed);  // The same for any number of rows.
    for (int64_t i = 0; i < cols; ++i) {
      weights.column_order[i] = i;
      std::swap(weights.column_order[i],
                weights.column_order[order.Below(i + 1)]);
    }
    part.column_order =
        TensorView::Matrix(weights.column_order.data(), DType::kI32, 1, cols);
    return weights;
  }
  const BlockFields fields = FieldsOf(format);
  for (int64_t i = 0; i < rows * row_bytes; i += unit.bytes) {
    uint8_t* const block = weights.data.data() + i;
    for (const int offset : fields.halves) {
      if (offset < 0) continue;
      const uint16_t scale = RandomScale(MixBits(seed + 1, i + offset));
      std::memcpy(block + offset, &scale, sizeof(scale));
    }
    if (format == QuantFormat::kMXFP4) block[0] = 120 + block[0] % 8;
  }
  return weights;
}

void ClearCodes(QuantFormat format, uint8_t* block) {
  const BlockFields fields = FieldsOf(format);
  std::memset(block + fields.codes_begin, 0,
              fields.codes_end - fields.codes_begin);
}

}  // namespace quire
