#include "kernels/cuda/packed_rows.h"

#include <cstdint>
#include <vector>

#include "engine/base/random.h"
#include "gtest/gtest.h"
#include "kernels/cuda/quantized_linear.h"
#include "kernels/quant_format.h"

namespace quire::cuda {
namespace {

std::vector<uint8_t> RandomBytes(int64_t count, uint64_t seed) {
  SimulationRandom random(seed);
  std::vector<uint8_t> bytes(count);
  for (uint8_t& byte : bytes) {
    byte = static_cast<uint8_t>(random.Uniform() * 256);
  }
  return bytes;
}

// element(column) by PlaceOfInt4.
template <typename Element>
std::vector<uint8_t> Int4RowOf(int64_t cols, const Element& element) {
  std::vector<uint8_t> row(Int4RowBytes(cols));
  for (int64_t col = 0; col < cols; ++col) {
    const Int4Place place = PlaceOfInt4(col);
    row[place.word * 4 + place.nibble / 2] |=
        static_cast<uint8_t>(element(col) << (place.nibble % 2 * 4));
  }
  return row;
}

TEST(PackedRowsTest, PutsInt4WhereTheKernelsReadIt) {
  for (const int64_t cols : {8, 32, 96, 120, 128, 136, 256, 384, 4096}) {
    const std::vector<uint8_t> from = RandomBytes(cols / 2, cols);
    std::vector<uint8_t> out(Int4RowBytes(cols), 0xee);
    PackInt4Row(from.data(), cols, out.data());
    EXPECT_EQ(out, Int4RowOf(cols,
                             [&](int64_t col) {
                               return from[col / 2] >> (col % 2 * 4) & 0xf;
                             }))
        << cols;
  }
}

TEST(PackedRowsTest, PutsBlocksOfQ4WhereTheKernelsReadThem) {
  const QuantBlock block = QuantBlockOf(QuantFormat::kQ4_0);
  for (const int64_t cols : {32, 64, 96, 128, 160, 4096}) {
    const std::vector<uint8_t> from =
        RandomBytes(cols / block.cols * block.bytes, cols);
    std::vector<uint8_t> out(Int4RowBytes(cols), 0xee);
    PackQ4Row(from.data(), cols, out.data());
    EXPECT_EQ(out, Int4RowOf(cols,
                             [&](int64_t col) {
                               const uint8_t* of_block =
                                   &from[col / block.cols * block.bytes + 2];
                               const int64_t i = col % block.cols;
                               return i < 16 ? of_block[i] & 0xf
                                             : of_block[i - 16] >> 4;
                             }))
        << cols;
  }
}

TEST(PackedRowsTest, PutsBlocksOfQ8WhereTheKernelsReadThem) {
  const QuantBlock block = QuantBlockOf(QuantFormat::kQ8_0);
  for (const int64_t cols : {32, 64, 96, 128, 160, 4096}) {
    const std::vector<uint8_t> from =
        RandomBytes(cols / block.cols * block.bytes, cols);
    std::vector<uint8_t> expected(Int8RowBytes(cols));
    for (int64_t col = 0; col < cols; ++col) {
      expected[PlaceOfInt8(col)] =
          from[col / block.cols * block.bytes + 2 + col % block.cols];
    }
    std::vector<uint8_t> out(Int8RowBytes(cols), 0xee);
    PackQ8Row(from.data(), cols, out.data());
    EXPECT_EQ(out, expected) << cols;
  }
}

}  // namespace
}  // namespace quire::cuda
