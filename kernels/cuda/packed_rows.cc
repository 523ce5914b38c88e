#include "kernels/cuda/packed_rows.h"

#include <algorithm>
#include <cstring>

#include "kernels/cuda/quantized_linear.h"

namespace quire::cuda {
namespace {

// Of PlaceOfInt4: a block's words by w and t.
constexpr int kInt4Words = kInt4Block / 8;

// Eight columns in order become those of even number, then the others: nibbles
// 1 and 2 of each half change places, then the middle bytes.
uint32_t EvenThenOdd(uint32_t nibbles) {
  const uint32_t pairs = (nibbles ^ nibbles >> 4) & 0x00f000f0;
  nibbles ^= pairs ^ pairs << 4;
  const uint32_t bytes = (nibbles ^ nibbles >> 8) & 0x0000ff00;
  return nibbles ^ bytes ^ bytes << 8;
}

// in: the block's columns, eight to a word.
void PackInt4Block(const uint32_t* in, uint32_t* out) {
  for (int w = 0; w < 4; ++w) {
    for (int t = 0; t < 4; ++t) out[t * 4 + w] = EvenThenOdd(in[w * 4 + t]);
  }
}

// The lower halves of eight bytes, the first one lowest.
uint32_t LowerHalves(uint64_t bytes) {
  bytes &= 0x0f0f0f0f0f0f0f0f;
  bytes = (bytes | bytes >> 4) & 0x00ff00ff00ff00ff;
  bytes = (bytes | bytes >> 8) & 0x0000ffff0000ffff;
  return static_cast<uint32_t>(bytes | bytes >> 16);
}

}  // namespace

void PackInt4Row(const uint8_t* from, int64_t cols, uint8_t* out) {
  for (int64_t col = 0; col < cols; col += kInt4Block) {
    uint32_t in[kInt4Words] = {}, packed[kInt4Words];
    std::memcpy(in, from + col / 2,
                std::min<int64_t>(kInt4Block, cols - col) / 2);
    PackInt4Block(in, packed);
    std::memcpy(out + col / 2, packed, sizeof(packed));
  }
}

void PackQ4Row(const uint8_t* from, int64_t cols, uint8_t* out) {
  const QuantBlock block = QuantBlockOf(QuantFormat::kQ4_0);
  for (int64_t col = 0; col < cols; col += kInt4Block) {
    uint32_t in[kInt4Words] = {}, packed[kInt4Words];
    const int64_t end = std::min<int64_t>(kInt4Block, cols - col);
    for (int64_t c = 0; c < end; c += block.cols, from += block.bytes) {
      // Behind the scale: the lower halves are the first sixteen columns.
      uint64_t bytes[2];
      std::memcpy(bytes, from + 2, sizeof(bytes));
      uint32_t* const words = in + c / 8;
      words[0] = LowerHalves(bytes[0]);
      words[1] = LowerHalves(bytes[1]);
      words[2] = LowerHalves(bytes[0] >> 4);
      words[3] = LowerHalves(bytes[1] >> 4);
    }
    PackInt4Block(in, packed);
    std::memcpy(out + col / 2, packed, sizeof(packed));
  }
}

void PackQ8Row(const uint8_t* from, int64_t cols, uint8_t* out) {
  const QuantBlock block = QuantBlockOf(QuantFormat::kQ8_0);
  // Eight columns stay together.
  for (int64_t col = 0; col < cols; col += 8) {
    std::memcpy(out + PlaceOfInt8(col),
                from + col / block.cols * block.bytes + 2 + col % block.cols,
                8);
  }
  for (int64_t col = cols; col < Int8RowBytes(cols); col += 8) {
    std::memset(out + PlaceOfInt8(col), 0, 8);
  }
}

}  // namespace quire::cuda
