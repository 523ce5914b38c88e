#include "kernels/quant_codec.h"

#include <algorithm>
#include <cstring>

#include "engine/base/status.h"
#include "kernels/quant_blocks.h"

namespace quire {
namespace {

// Each decodes one block. The parentheses matter: f32 is not associative.

void DecodeQ4_0(const uint8_t* block, float* out) {
  const float d = LoadHalf(block);
  for (int i = 0; i < 16; ++i) {
    out[i] = d * static_cast<float>((block[2 + i] & 15) - 8);
    out[i + 16] = d * static_cast<float>((block[2 + i] >> 4) - 8);
  }
}

void DecodeQ4_1(const uint8_t* block, float* out) {
  const float d = LoadHalf(block);
  const float m = LoadHalf(block + 2);
  for (int i = 0; i < 16; ++i) {
    out[i] = d * static_cast<float>(block[4 + i] & 15) + m;
    out[i + 16] = d * static_cast<float>(block[4 + i] >> 4) + m;
  }
}

// The 32 codes of five bits: low four in `codes`, the top one in `high`.
void UnpackFiveBits(const uint8_t* codes, uint32_t high, int* out) {
  for (int i = 0; i < 16; ++i) {
    out[i] = (codes[i] & 15) | static_cast<int>((high >> i & 1) << 4);
    out[i + 16] =
        (codes[i] >> 4) | static_cast<int>((high >> (i + 16) & 1) << 4);
  }
}

void DecodeQ5_0(const uint8_t* block, float* out) {
  const float d = LoadHalf(block);
  int codes[32];
  UnpackFiveBits(block + 6, LoadU32(block + 2), codes);
  for (int i = 0; i < 32; ++i) out[i] = d * static_cast<float>(codes[i] - 16);
}

void DecodeQ5_1(const uint8_t* block, float* out) {
  const float d = LoadHalf(block);
  const float m = LoadHalf(block + 2);
  int codes[32];
  UnpackFiveBits(block + 8, LoadU32(block + 4), codes);
  for (int i = 0; i < 32; ++i) out[i] = d * static_cast<float>(codes[i]) + m;
}

void DecodeQ8_0(const uint8_t* block, float* out) {
  const float d = LoadHalf(block);
  for (int i = 0; i < 32; ++i) {
    out[i] = d * static_cast<float>(static_cast<int8_t>(block[2 + i]));
  }
}

void DecodeTable(const uint8_t* codes, const int8_t* table, float scale,
                 float* out) {
  for (int i = 0; i < 16; ++i) {
    out[i] = scale * static_cast<float>(table[codes[i] & 15]);
    out[i + 16] = scale * static_cast<float>(table[codes[i] >> 4]);
  }
}

void DecodeIQ4_NL(const uint8_t* block, float* out) {
  DecodeTable(block + 2, kIq4Values, LoadHalf(block), out);
}

void DecodeMXFP4(const uint8_t* block, float* out) {
  DecodeTable(block + 1, kE2M1Values, HalfOfE8M0(block[0]), out);
}

void DecodeQ2_K(const uint8_t* block, float* out) {
  const float d = LoadHalf(block + Q2KLayout::kD);
  const float dmin = LoadHalf(block + Q2KLayout::kDMin);
  for (int group = 0; group < 16; ++group) {
    const uint8_t packed = block[Q2KLayout::kScales + group];
    const float scale = d * static_cast<float>(packed & 15);
    const float min = dmin * static_cast<float>(packed >> 4);
    const uint8_t* codes =
        block + Q2KLayout::kCodes + group / 8 * 32 + group % 2 * 16;
    const int shift = group % 8 / 2 * 2;
    for (int i = 0; i < 16; ++i) {
      *out++ = scale * static_cast<float>(codes[i] >> shift & 3) - min;
    }
  }
}

void DecodeQ3_K(const uint8_t* block, float* out) {
  const float d = LoadHalf(block + Q3KLayout::kD);
  for (int group = 0; group < 16; ++group) {
    const float scale = d * static_cast<float>(UnpackQ3KScale(
                                block + Q3KLayout::kScales, group));
    const uint8_t* codes =
        block + Q3KLayout::kCodes + group / 8 * 32 + group % 2 * 16;
    const uint8_t* high = block + Q3KLayout::kHigh + group % 2 * 16;
    const int shift = group % 8 / 2 * 2;
    for (int i = 0; i < 16; ++i) {
      const int code = (codes[i] >> shift & 3) | (high[i] >> (group / 2) & 1)
                                                     << 2;
      *out++ = scale * static_cast<float>(code - 4);
    }
  }
}

void DecodeQ4_K(const uint8_t* block, float* out) {
  const float d = LoadHalf(block + Q4KLayout::kD);
  const float dmin = LoadHalf(block + Q4KLayout::kDMin);
  for (int group = 0; group < 8; ++group) {
    const ScaleMin packed = UnpackScaleMin(block + Q4KLayout::kScales, group);
    const float scale = d * static_cast<float>(packed.scale);
    const float min = dmin * static_cast<float>(packed.min);
    const uint8_t* codes = block + Q4KLayout::kCodes + group / 2 * 32;
    const int shift = group % 2 * 4;
    for (int i = 0; i < 32; ++i) {
      *out++ = scale * static_cast<float>(codes[i] >> shift & 15) - min;
    }
  }
}

void DecodeQ5_K(const uint8_t* block, float* out) {
  const float d = LoadHalf(block + Q5KLayout::kD);
  const float dmin = LoadHalf(block + Q5KLayout::kDMin);
  const uint8_t* high = block + Q5KLayout::kHigh;
  for (int group = 0; group < 8; ++group) {
    const ScaleMin packed = UnpackScaleMin(block + Q5KLayout::kScales, group);
    const float scale = d * static_cast<float>(packed.scale);
    const float min = dmin * static_cast<float>(packed.min);
    const uint8_t* codes = block + Q5KLayout::kCodes + group / 2 * 32;
    const int shift = group % 2 * 4;
    for (int i = 0; i < 32; ++i) {
      const int code = (codes[i] >> shift & 15) | (high[i] >> group & 1) << 4;
      *out++ = scale * static_cast<float>(code) - min;
    }
  }
}

void DecodeQ6_K(const uint8_t* block, float* out) {
  const float d = LoadHalf(block + Q6KLayout::kD);
  for (int group = 0; group < 16; ++group) {
    // In each half: low bits of columns 0-63 in the low nibbles of 64 bytes, of
    // 64-127 in the high ones; top bits of 32 columns in two bits of 32 bytes.
    const int half = group / 8;
    const int quarter = group % 8 / 2;  // 32 columns.
    const float scale = d * static_cast<float>(static_cast<int8_t>(
                                block[Q6KLayout::kScales + group]));
    const uint8_t* low =
        block + Q6KLayout::kLow + half * 64 + quarter % 2 * 32 + group % 2 * 16;
    const uint8_t* high = block + Q6KLayout::kHigh + half * 32 + group % 2 * 16;
    const int low_shift = quarter / 2 * 4;
    const int high_shift = quarter * 2;
    for (int i = 0; i < 16; ++i) {
      const int code = (low[i] >> low_shift & 15) | (high[i] >> high_shift & 3)
                                                        << 4;
      *out++ = scale * static_cast<float>(code - 32);
    }
  }
}

void DecodeIQ4_XS(const uint8_t* block, float* out) {
  const float d = LoadHalf(block + Iq4XsLayout::kD);
  const uint16_t high = LoadU16(block + Iq4XsLayout::kScalesHigh);
  for (int group = 0; group < 8; ++group) {
    const int low =
        block[Iq4XsLayout::kScalesLow + group / 2] >> (group % 2 * 4) & 15;
    const int scale = (low | (high >> (2 * group) & 3) << 4) - 32;
    DecodeTable(block + Iq4XsLayout::kCodes + group * 16, kIq4Values,
                d * static_cast<float>(scale), out + group * 32);
  }
}

using Decode = void (*)(const uint8_t* block, float* out);

Decode DecoderOf(QuantFormat format) {
  switch (format) {
    case QuantFormat::kQ4_0:
      return DecodeQ4_0;
    case QuantFormat::kQ4_1:
      return DecodeQ4_1;
    case QuantFormat::kQ5_0:
      return DecodeQ5_0;
    case QuantFormat::kQ5_1:
      return DecodeQ5_1;
    case QuantFormat::kQ8_0:
      return DecodeQ8_0;
    case QuantFormat::kIQ4_NL:
      return DecodeIQ4_NL;
    case QuantFormat::kMXFP4:
      return DecodeMXFP4;
    case QuantFormat::kQ2_K:
      return DecodeQ2_K;
    case QuantFormat::kQ3_K:
      return DecodeQ3_K;
    case QuantFormat::kQ4_K:
      return DecodeQ4_K;
    case QuantFormat::kQ5_K:
      return DecodeQ5_K;
    case QuantFormat::kQ6_K:
      return DecodeQ6_K;
    case QuantFormat::kIQ4_XS:
      return DecodeIQ4_XS;
    case QuantFormat::kDense:
    case QuantFormat::kFp8:
    case QuantFormat::kInt4:
      break;
  }
  return nullptr;
}

float LoadFloat(const TensorView& view, int64_t row, int64_t col) {
  switch (view.dtype) {
    case DType::kF32:
      return view.row<const float>(row)[col];
    case DType::kF16:
      return HalfToFloat(view.row<const uint16_t>(row)[col]);
    case DType::kBF16:
      return Bf16ToFloat(view.row<const uint16_t>(row)[col]);
    default:
      break;
  }
  QUIRE_CHECK(false);
  return 0.0f;
}

// The dtype is looked at once: loops over one dtype become vectors.
void DequantizeDenseRow(const TensorView& data, int64_t row, float* out) {
  if (data.dtype == DType::kF32) {
    std::copy_n(data.row<const float>(row), data.cols, out);
  } else if (data.dtype == DType::kBF16) {
    const uint16_t* from = data.row<const uint16_t>(row);
    for (int64_t c = 0; c < data.cols; ++c) out[c] = Bf16ToFloat(from[c]);
  } else {
    for (int64_t c = 0; c < data.cols; ++c) out[c] = LoadFloat(data, row, c);
  }
}

void DequantizeFp8Row(const WeightPart& part, int64_t row, float* out) {
  const uint8_t* codes = part.data.row<const uint8_t>(row);
  const int64_t cols = part.data.cols;
  const bool in_squares = part.group_size > 0;
  const int64_t scale_row = in_squares              ? row / part.group_size
                            : part.scales.rows == 1 ? 0
                                                    : row;
  const int64_t width = in_squares ? part.group_size : cols;
  for (int64_t first = 0; first < cols; first += width) {
    const float scale = LoadFloat(part.scales, scale_row, first / width);
    const int64_t end = std::min(first + width, cols);
    for (int64_t c = first; c < end; ++c) {
      out[c] = E4M3ToFloat(codes[c]) * scale;
    }
  }
}

void DequantizeInt4Row(const WeightPart& part, int64_t row, float* out) {
  const uint8_t* codes = part.data.row<const uint8_t>(row);
  const int64_t cols = part.cols();
  const int32_t* order = part.column_order.empty()
                             ? nullptr
                             : part.column_order.row<const int32_t>(0);
  for (int64_t first = 0, group = 0; first < cols;
       first += part.group_size, ++group) {
    const float scale = LoadFloat(part.scales, row, group);
    const int zero =
        part.zeros.empty() ? 8 : part.zeros.row<const uint8_t>(row)[group];
    const int64_t end = std::min(first + part.group_size, cols);
    for (int64_t c = first; c < end; ++c) {
      const int code = codes[c / 2] >> (c % 2 * 4) & 15;
      out[order == nullptr ? c : order[c]] =
          scale * static_cast<float>(code - zero);
    }
  }
}

}  // namespace

void DequantizeBlocks(QuantFormat format, const uint8_t* blocks, int64_t cols,
                      float* out) {
  const Decode decode = DecoderOf(format);
  const QuantBlock block = QuantBlockOf(format);
  QUIRE_CHECK(decode != nullptr && cols % block.cols == 0);
  for (int64_t c = 0; c < cols; c += block.cols, blocks += block.bytes) {
    decode(blocks, out + c);
  }
}

void DequantizeRow(const WeightPart& part, int64_t row, float* out) {
  switch (part.format) {
    case QuantFormat::kDense:
      DequantizeDenseRow(part.data, row, out);
      return;
    case QuantFormat::kFp8:
      DequantizeFp8Row(part, row, out);
      return;
    case QuantFormat::kInt4:
      DequantizeInt4Row(part, row, out);
      return;
    default:
      DequantizeBlocks(part.format, part.data.row<const uint8_t>(row),
                       part.cols(), out);
  }
}

}  // namespace quire
