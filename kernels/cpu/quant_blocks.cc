#include "kernels/cpu/quant_blocks.h"

#include <cstring>

#include "engine/base/status.h"
#include "kernels/dtype.h"
#include "kernels/quant_blocks.h"

namespace quire {
namespace {

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__,
              "dwords of codes are bytes in order");

// The kernels' tables are the codec's plus an offset, so that they are bytes
// without a sign.
constexpr bool TablesAgree() {
  for (int i = 0; i < 16; ++i) {
    if (kQuantTables[0][i] - 128 != kIq4Values[i]) return false;
    if (kQuantTables[1][i] - 16 != kE2M1Values[i]) return false;
  }
  return true;
}
static_assert(TablesAgree());

constexpr uint64_t kNibbles = 0x0f0f0f0f0f0f0f0f;

uint64_t LoadQuad(const uint8_t* p) {
  uint64_t v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}

// The lower four bits of 32 codes.
void WriteNibbles(const uint8_t* codes, uint32_t* dwords) {
  for (int i = 0; i < 2; ++i) {
    const uint64_t low = LoadQuad(codes + 8 * i) & kNibbles;
    const uint64_t high = LoadQuad(codes + 16 + 8 * i) & kNibbles;
    const uint64_t both = low | high << 4;
    std::memcpy(dwords + 2 * i, &both, sizeof(both));
  }
}

// Bits [shift, shift + 2) of 32 codes.
void WriteTwoBits(const uint8_t* codes, int shift, uint32_t* dwords) {
  for (int half = 0; half < 2; ++half) {
    dwords[half] = 0;
    for (int i = 0; i < 4; ++i) {
      uint32_t step;
      std::memcpy(&step, codes + 16 * half + 4 * i, sizeof(step));
      dwords[half] |= ((step >> shift) & 0x03030303u) << (2 * i);
    }
  }
}

// Bit `shift` of 32 codes.
void WriteOneBit(const uint8_t* codes, int shift, uint32_t* dword) {
  *dword = 0;
  for (int step = 0; step < kQuantBlockSteps; ++step) {
    uint32_t bytes;
    std::memcpy(&bytes, codes + 4 * step, sizeof(bytes));
    *dword |= ((bytes >> shift) & 0x01010101u) << step;
  }
}

// 32 codes, one to a byte, as the planes of a format with that many bits.
void WritePlanes(const uint8_t* codes, int code_bits, uint32_t* dwords) {
  switch (code_bits) {
    case 2:
      WriteTwoBits(codes, 0, dwords);
      break;
    case 3:
      WriteTwoBits(codes, 0, dwords);
      WriteOneBit(codes, 2, dwords + 2);
      break;
    case 5:
      WriteNibbles(codes, dwords);
      WriteOneBit(codes, 4, dwords + 4);
      break;
    case 6:
      WriteNibbles(codes, dwords);
      WriteTwoBits(codes, 4, dwords + 4);
      break;
    default:
      QUIRE_CHECK(false);
  }
}

// The reverse, for any format: 32 codes of a byte each.
void ReadPlanes(const uint32_t* dwords, int code_bits, uint8_t* codes) {
  for (int k = 0; k < kQuantBlockCols; ++k) {
    const int step = k / 4;
    const int shift = 8 * (k % 4);
    const int half = step / 4;
    const int i = step % 4;
    const auto byte = [&](int dword) { return dwords[dword] >> shift & 0xff; };
    const auto two_bits = [&](int plane) {
      return byte(plane + half) >> (2 * i) & 3;
    };
    const auto one_bit = [&](int plane) { return byte(plane) >> step & 1; };
    switch (code_bits) {
      case 8:
        codes[k] = byte(step);
        break;
      case 2:
        codes[k] = two_bits(0);
        break;
      case 3:
        codes[k] = two_bits(0) | one_bit(2) << 2;
        break;
      default:
        codes[k] = byte(i) >> (4 * half) & 15;
        if (code_bits == 5) codes[k] |= one_bit(4) << 4;
        if (code_bits == 6) codes[k] |= two_bits(4) << 4;
    }
  }
}

void ReadQ5(const uint8_t* high_bits, const uint8_t* nibbles,
            uint32_t* dwords) {
  std::memcpy(dwords, nibbles, 16);
  uint32_t bits;
  std::memcpy(&bits, high_bits, sizeof(bits));
  uint8_t codes[kQuantBlockCols];
  for (int k = 0; k < kQuantBlockCols; ++k) codes[k] = (bits >> k & 1) << 4;
  WriteOneBit(codes, 4, dwords + 4);
}

// d, dmin, scales[12]; nibbles of 64 columns in 32 bytes, low half first.
void ReadQ4K(const uint8_t* block, const uint8_t* nibbles,
             QuantChannel* channel) {
  channel->halves[0] = LoadU16(block + Q4KLayout::kD);
  channel->halves[1] = LoadU16(block + Q4KLayout::kDMin);
  for (int j = 0; j < 8; ++j) {
    const ScaleMin pair = UnpackScaleMin(block + Q4KLayout::kScales, j);
    channel->bytes[j] = pair.scale;
    channel->bytes[8 + j] = pair.min;
  }
  for (int pair = 0; pair < 4; ++pair) {
    for (int i = 0; i < 2; ++i) {
      const uint64_t first = LoadQuad(nibbles + 32 * pair + 8 * i);
      const uint64_t second = LoadQuad(nibbles + 32 * pair + 16 + 8 * i);
      const uint64_t low = (first & kNibbles) | (second & kNibbles) << 4;
      const uint64_t high = (first >> 4 & kNibbles) | (second & ~kNibbles);
      std::memcpy(&channel->codes[2 * pair][2 * i], &low, sizeof(low));
      std::memcpy(&channel->codes[2 * pair + 1][2 * i], &high, sizeof(high));
    }
  }
}

void ReadQ5K(const uint8_t* block, QuantChannel* channel) {
  const uint8_t* const high = block + Q5KLayout::kHigh;
  ReadQ4K(block, block + Q5KLayout::kCodes, channel);
  for (int b = 0; b < 8; ++b) {
    uint8_t codes[kQuantBlockCols];
    for (int l = 0; l < kQuantBlockCols; ++l) {
      codes[l] = (high[l] >> b & 1) << 4;
    }
    WriteOneBit(codes, 4, channel->codes[b] + 4);
  }
}

void ReadQ6K(const uint8_t* block, QuantChannel* channel) {
  std::memcpy(channel->bytes, block + Q6KLayout::kScales, 16);
  channel->halves[0] = LoadU16(block + Q6KLayout::kD);
  for (int b = 0; b < 8; ++b) {
    // Columns 32 b on: of their half of 128, the quarter b % 4.
    const uint8_t* const low =
        block + Q6KLayout::kLow + 64 * (b / 4) + 32 * (b % 2);
    const uint8_t* const high = block + Q6KLayout::kHigh + 32 * (b / 4);
    const int low_shift = b % 4 < 2 ? 0 : 4;
    const int high_shift = 2 * (b % 4);
    uint8_t codes[kQuantBlockCols];
    for (int l = 0; l < kQuantBlockCols; ++l) {
      codes[l] = (low[l] >> low_shift & 15) | (high[l] >> high_shift & 3) << 4;
    }
    WritePlanes(codes, 6, channel->codes[b]);
  }
}

void ReadQ3K(const uint8_t* block, QuantChannel* channel) {
  channel->halves[0] = LoadU16(block + Q3KLayout::kD);
  for (int i = 0; i < 16; ++i) {
    channel->bytes[i] =
        static_cast<uint8_t>(UnpackQ3KScale(block + Q3KLayout::kScales, i));
  }
  const uint8_t* const high = block + Q3KLayout::kHigh;
  for (int b = 0; b < 8; ++b) {
    const uint8_t* const low = block + Q3KLayout::kCodes + 32 * (b / 4);
    uint8_t codes[kQuantBlockCols];
    for (int l = 0; l < kQuantBlockCols; ++l) {
      codes[l] = (low[l] >> (2 * (b % 4)) & 3) | (high[l] >> b & 1) << 2;
    }
    WritePlanes(codes, 3, channel->codes[b]);
  }
}

void ReadQ2K(const uint8_t* block, QuantChannel* channel) {
  std::memcpy(channel->bytes, block + Q2KLayout::kScales, 16);
  channel->halves[0] = LoadU16(block + Q2KLayout::kD);
  channel->halves[1] = LoadU16(block + Q2KLayout::kDMin);
  for (int b = 0; b < 8; ++b) {
    const uint8_t* const low = block + Q2KLayout::kCodes + 32 * (b / 4);
    uint8_t codes[kQuantBlockCols];
    for (int l = 0; l < kQuantBlockCols; ++l) {
      codes[l] = low[l] >> (2 * (b % 4)) & 3;
    }
    WritePlanes(codes, 2, channel->codes[b]);
  }
}

void ReadIQ4XS(const uint8_t* block, QuantChannel* channel) {
  channel->halves[0] = LoadU16(block + Iq4XsLayout::kD);
  const uint16_t high = LoadU16(block + Iq4XsLayout::kScalesHigh);
  const uint8_t* const low = block + Iq4XsLayout::kScalesLow;
  for (int b = 0; b < 8; ++b) {
    const int scale = (low[b / 2] >> (4 * (b % 2)) & 15) | (high >> (2 * b) & 3)
                                                               << 4;
    channel->bytes[b] = static_cast<uint8_t>(scale - 32);
    std::memcpy(channel->codes[b], block + Iq4XsLayout::kCodes + 16 * b, 16);
  }
}

}  // namespace

std::optional<PanelCode> PanelCodeFor(const WeightPart& part) {
  switch (part.format) {
    case QuantFormat::kDense:
    case QuantFormat::kFp8:
      break;
    case QuantFormat::kQ4_0:
      return PanelCode::kQ4_0;
    case QuantFormat::kQ4_1:
      return PanelCode::kQ4_1;
    case QuantFormat::kQ5_0:
      return PanelCode::kQ5_0;
    case QuantFormat::kQ5_1:
      return PanelCode::kQ5_1;
    case QuantFormat::kQ8_0:
      return PanelCode::kQ8_0;
    case QuantFormat::kIQ4_NL:
      return PanelCode::kIQ4_NL;
    case QuantFormat::kMXFP4:
      return PanelCode::kMXFP4;
    case QuantFormat::kQ2_K:
      return PanelCode::kQ2_K;
    case QuantFormat::kQ3_K:
      return PanelCode::kQ3_K;
    case QuantFormat::kQ4_K:
      return PanelCode::kQ4_K;
    case QuantFormat::kQ5_K:
      return PanelCode::kQ5_K;
    case QuantFormat::kQ6_K:
      return PanelCode::kQ6_K;
    case QuantFormat::kIQ4_XS:
      return PanelCode::kIQ4_XS;
    case QuantFormat::kInt4:
      if (part.group_size < kQuantBlockCols ||
          part.group_size % kQuantBlockCols != 0 ||
          part.cols() % part.group_size != 0) {
        break;
      }
      if (part.scales.dtype == DType::kF16) return PanelCode::kInt4F16;
      if (part.scales.dtype == DType::kBF16) return PanelCode::kInt4Bf16;
      if (part.scales.dtype == DType::kF32) return PanelCode::kInt4F32;
      break;
  }
  return std::nullopt;
}

void ReadSuperBlock(QuantFormat format, const uint8_t* row, int64_t super,
                    QuantChannel* channel) {
  const uint8_t* const block = row + super * QuantBlockOf(format).bytes;
  uint32_t* const dwords = channel->codes[0];
  switch (format) {
    case QuantFormat::kQ8_0:
      channel->halves[0] = LoadU16(block);
      std::memcpy(dwords, block + 2, 32);
      for (int i = 0; i < 8; ++i) dwords[i] ^= 0x80808080u;
      return;
    case QuantFormat::kQ4_0:
    case QuantFormat::kIQ4_NL:
      channel->halves[0] = LoadU16(block);
      std::memcpy(dwords, block + 2, 16);
      return;
    case QuantFormat::kQ4_1:
      channel->halves[0] = LoadU16(block);
      channel->halves[1] = LoadU16(block + 2);
      std::memcpy(dwords, block + 4, 16);
      return;
    case QuantFormat::kQ5_0:
      channel->halves[0] = LoadU16(block);
      ReadQ5(block + 2, block + 6, dwords);
      return;
    case QuantFormat::kQ5_1:
      channel->halves[0] = LoadU16(block);
      channel->halves[1] = LoadU16(block + 2);
      ReadQ5(block + 4, block + 8, dwords);
      return;
    case QuantFormat::kMXFP4: {
      // The tabulated values are doubled: 2^(e - 128), as bf16.
      const int e = block[0];
      channel->halves[0] =
          static_cast<uint16_t>(e < 2 ? 0x0020 << e : (e - 1) << 7);
      std::memcpy(dwords, block + 1, 16);
      return;
    }
    case QuantFormat::kQ2_K:
      return ReadQ2K(block, channel);
    case QuantFormat::kQ3_K:
      return ReadQ3K(block, channel);
    case QuantFormat::kQ4_K:
      return ReadQ4K(block, block + 16, channel);
    case QuantFormat::kQ5_K:
      return ReadQ5K(block, channel);
    case QuantFormat::kQ6_K:
      return ReadQ6K(block, channel);
    case QuantFormat::kIQ4_XS:
      return ReadIQ4XS(block, channel);
    case QuantFormat::kDense:
    case QuantFormat::kFp8:
    case QuantFormat::kInt4:
      break;
  }
  QUIRE_CHECK(false);
}

void ReadGroupFields(const WeightPart& part, int64_t row, int64_t group,
                     QuantChannel* channel) {
  int field = 1;
  if (part.scales.dtype == DType::kF32) {
    std::memcpy(channel->halves, part.scales.row<const float>(row) + group, 4);
    field = 2;
  } else {
    channel->halves[0] = part.scales.row<const uint16_t>(row)[group];
  }
  const int zero =
      part.zeros.empty() ? 8 : part.zeros.row<const uint8_t>(row)[group];
  channel->halves[field] = FloatToHalf(static_cast<float>(zero));
}

void ReadInt4Block(const uint8_t* row, int64_t block, uint32_t* dwords) {
  // Columns 2 j and 2 j + 1 of byte j go to bytes of columns 0 to 15 and of 16
  // to 31.
  const uint8_t* const bytes = row + block * 16;
  uint8_t codes[kQuantBlockCols];
  for (int j = 0; j < 16; ++j) {
    codes[2 * j] = bytes[j] & 15;
    codes[2 * j + 1] = bytes[j] >> 4;
  }
  WriteNibbles(codes, dwords);
}

void DequantizeChannel(PanelCode code, const uint16_t* halves,
                       const uint8_t* bytes, int block_in_super,
                       const uint32_t* dwords, float* out) {
  const QuantLayout& layout = LayoutOf(code);
  uint8_t codes[kQuantBlockCols];
  ReadPlanes(dwords, layout.code_bits, codes);
  for (int k = 0; k < kQuantBlockCols; ++k) {
    const int sub = block_in_super * layout.num_subs + k * layout.num_subs / 32;
    float scale = 0.0f;
    switch (layout.scale) {
      case QuantScale::kF16:
        scale = HalfToFloat(halves[0]);
        break;
      case QuantScale::kBf16:
        scale = Bf16ToFloat(halves[0]);
        break;
      case QuantScale::kF32:
        std::memcpy(&scale, halves, sizeof(scale));
        break;
      case QuantScale::kUnsignedSub:
        scale = HalfToFloat(halves[0]) * bytes[sub];
        break;
      case QuantScale::kSignedSub:
        scale = HalfToFloat(halves[0]) * static_cast<int8_t>(bytes[sub]);
        break;
      case QuantScale::kNibbleSub:
        scale = HalfToFloat(halves[0]) * (bytes[sub] & 15);
        break;
    }
    const int value =
        layout.table == 0 ? codes[k] : kQuantTables[layout.table - 1][codes[k]];
    switch (layout.min) {
      case QuantMin::kNone:
        out[k] = scale * (value - layout.offset);
        break;
      case QuantMin::kF16:
        out[k] = scale * value + HalfToFloat(halves[1]);
        break;
      case QuantMin::kSub:
        out[k] = scale * value - HalfToFloat(halves[1]) * bytes[8 + sub];
        break;
      case QuantMin::kNibbleSub:
        out[k] = scale * value - HalfToFloat(halves[1]) * (bytes[sub] >> 4);
        break;
      case QuantMin::kZeroPoint:
        out[k] = scale * (value - HalfToFloat(halves[layout.num_halves - 1]));
        break;
    }
  }
}

}  // namespace quire
