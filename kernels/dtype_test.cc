#include "kernels/dtype.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

namespace quire {
namespace {

// The value of an e4m3 number from its definition.
double ValueOfE4M3(uint8_t bits) {
  const int exponent = (bits >> 3) & 0xf;
  const int mantissa = bits & 7;
  const double magnitude = exponent == 0
                               ? std::ldexp(mantissa, -9)
                               : std::ldexp(8 + mantissa, exponent - 7 - 3);
  return bits & 0x80 ? -magnitude : magnitude;
}

TEST(E4M3, EveryNumberHasItsValueAndComesBack) {
  for (int bits = 0; bits < 256; ++bits) {
    const float value = E4M3ToFloat(static_cast<uint8_t>(bits));
    if ((bits & 0x7f) == 0x7f) {
      EXPECT_TRUE(std::isnan(value)) << bits;
    } else {
      EXPECT_EQ(value, ValueOfE4M3(static_cast<uint8_t>(bits))) << bits;
      EXPECT_EQ(std::signbit(value), bits >= 0x80) << bits;
    }
    EXPECT_EQ(FloatToE4M3(value), bits);
  }
}

TEST(E4M3, RoundsToTheNearestAndTiesToEven) {
  for (uint8_t bits = 0; bits < 0x7e; ++bits) {
    const double low = ValueOfE4M3(bits);
    const double high = ValueOfE4M3(bits + 1);
    const float middle = static_cast<float>((low + high) / 2);  // Exact.
    for (const float sign : {1.0f, -1.0f}) {
      const uint8_t sign_bit = sign < 0 ? 0x80 : 0;
      EXPECT_EQ(FloatToE4M3(sign * middle),
                sign_bit | (bits % 2 == 0 ? bits : bits + 1));
      EXPECT_EQ(FloatToE4M3(sign * std::nextafter(middle, 0.0f)),
                sign_bit | bits);
      EXPECT_EQ(FloatToE4M3(sign * std::nextafter(middle, 1e9f)),
                sign_bit | (bits + 1));
    }
  }
}

TEST(E4M3, SaturatesAndKeepsNaN) {
  const float infinity = std::numeric_limits<float>::infinity();
  for (const float value : {448.0f, 465.0f, 1e30f, infinity}) {
    EXPECT_EQ(FloatToE4M3(value), 0x7e) << value;
    EXPECT_EQ(FloatToE4M3(-value), 0xfe) << value;
  }
  EXPECT_TRUE(std::isnan(
      E4M3ToFloat(FloatToE4M3(std::numeric_limits<float>::quiet_NaN()))));
}

}  // namespace
}  // namespace quire
