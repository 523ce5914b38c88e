// QuantizeBlocks of kernels/quant_codec.h.
//
// The five simple formats do what their reference does. The others minimize the
// squared error of a block: candidates for a group's scale around the one that
// spans its values, each followed by the least-squares scale for the codes it
// gives; then the scales of the groups are rounded together, corrected one by
// one, and the block's own scales are fitted to the codes.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>

#include "engine/base/status.h"
#include "kernels/quant_blocks.h"
#include "kernels/quant_codec.h"

namespace quire {
namespace {

// Eight lanes; the compiler splits them into what the machine has.
typedef float Lanes __attribute__((vector_size(32)));

inline Lanes LoadLanes(const float* from) {
  Lanes value;
  std::memcpy(&value, from, sizeof(value));
  return value;
}

inline float Sum(Lanes v) {
  return ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7]));
}

// To the nearest integer, ties to even, for |v| < 2^22; a NaN gives low.
inline Lanes RoundClamp(Lanes v, float low, float high) {
  const Lanes lows = Lanes{} + low;
  const Lanes highs = Lanes{} + high;
  v = v > lows ? v : lows;
  v = v < highs ? v : highs;
  const Lanes magic = Lanes{} + 12582912.0f;  // 1.5 * 2^23.
  return (v + magic) - magic;
}

inline float RoundClamp(float v, float low, float high) {
  v = v > low ? v : low;
  v = v < high ? v : high;
  return (v + 12582912.0f) - 12582912.0f;
}

// Inverse for scaling to codes: 0 for a scale of 0.
inline float InverseOf(float scale) {
  return scale != 0.0f ? 1.0f / scale : 0.0f;
}

// A float as the code it is, for any bits of the float.
inline int CodeOf(float v, float low, float high) {
  return static_cast<int>(RoundClamp(v, low, high));
}

// ------------------------------------------------------- reference rounding

// Truncates; NaN gives 0.
inline int Truncate(float v, int max) {
  return v > 0.0f ? static_cast<int>(std::min(v, static_cast<float>(max))) : 0;
}

// The value of largest magnitude, with its sign; the first of equals.
float LargestMagnitude(const float* x, int n) {
  float largest = 0.0f;
  float magnitude = 0.0f;
  for (int i = 0; i < n; ++i) {
    if (std::abs(x[i]) > magnitude) {
      magnitude = std::abs(x[i]);
      largest = x[i];
    }
  }
  return largest;
}

void PackNibbles(const uint8_t* codes, uint8_t* out) {
  for (int i = 0; i < 16; ++i) {
    out[i] = static_cast<uint8_t>((codes[i] & 15) | (codes[i + 16] & 15) << 4);
  }
}

void PackFifthBits(const uint8_t* codes, uint8_t* out) {
  uint32_t high = 0;
  for (int i = 0; i < 32; ++i) high |= uint32_t{codes[i] >> 4 & 1u} << i;
  std::memcpy(out, &high, sizeof(high));
}

void EncodeQ8_0(const float* x, uint8_t* out) {
  float magnitude = 0.0f;
  for (int i = 0; i < 32; ++i) {
    magnitude = std::max(magnitude, std::abs(x[i]));
  }
  const float d = magnitude / 127.0f;
  const float inverse = InverseOf(d);
  StoreHalf(d, out);
  for (int i = 0; i < 32; ++i) {
    // roundf: halves away from zero. |v| < 2^22, so the sum is exact enough to
    // truncate: v + 0.5 rounds up to an integer only where v is one ulp below
    // a half, and then |v| would have to be below 0.5.
    const float v = std::abs(x[i]) * inverse;
    const float whole = static_cast<float>(Truncate(v, 127));
    const int code = static_cast<int>(whole) + (v - whole >= 0.5f ? 1 : 0);
    const int clamped = std::min(code, 127);
    out[2 + i] = static_cast<uint8_t>(x[i] < 0.0f ? -clamped : clamped);
  }
}

// Codes 0 to 2 * half - 1 for x / d + half, where d maps the value of largest
// magnitude to code 0.
void CodesFromSigned(const float* x, int half, uint8_t* out, uint8_t* codes) {
  const float d = LargestMagnitude(x, 32) / static_cast<float>(-half);
  const float inverse = InverseOf(d);
  const float offset = static_cast<float>(half) + 0.5f;
  StoreHalf(d, out);
  for (int i = 0; i < 32; ++i) {
    codes[i] =
        static_cast<uint8_t>(Truncate(x[i] * inverse + offset, 2 * half - 1));
  }
}

void CodesFromMin(const float* x, int max_code, uint8_t* out, uint8_t* codes) {
  float low = x[0];
  float high = x[0];
  for (int i = 1; i < 32; ++i) {
    low = std::min(low, x[i]);
    high = std::max(high, x[i]);
  }
  const float d = (high - low) / static_cast<float>(max_code);
  const float inverse = InverseOf(d);
  StoreHalf(d, out);
  StoreHalf(low, out + 2);
  for (int i = 0; i < 32; ++i) {
    codes[i] =
        static_cast<uint8_t>(Truncate((x[i] - low) * inverse + 0.5f, max_code));
  }
}

void EncodeQ4_0(const float* x, uint8_t* out) {
  uint8_t codes[32];
  CodesFromSigned(x, 8, out, codes);
  PackNibbles(codes, out + 2);
}

void EncodeQ4_1(const float* x, uint8_t* out) {
  uint8_t codes[32];
  CodesFromMin(x, 15, out, codes);
  PackNibbles(codes, out + 4);
}

void EncodeQ5_0(const float* x, uint8_t* out) {
  uint8_t codes[32];
  CodesFromSigned(x, 16, out, codes);
  PackFifthBits(codes, out + 2);
  PackNibbles(codes, out + 6);
}

void EncodeQ5_1(const float* x, uint8_t* out) {
  uint8_t codes[32];
  CodesFromMin(x, 31, out, codes);
  PackFifthBits(codes, out + 4);
  PackNibbles(codes, out + 8);
}

// --------------------------------------------- groups with a scale and a min

// x ~ scale * code - min, with both >= 0.
struct Affine {
  float scale = 0.0f;
  float min = 0.0f;
};

struct AffineFit {
  Affine affine;
  float error = 0.0f;  // Sum of squares.
};

// The least-squares scale and min for the codes that `guess` gives.
template <int n>
AffineFit Refit(const float* x, float sum_x, float sum_xx, int max_code,
                float inverse, float low) {
  Lanes q_sum = {}, qq_sum = {}, qx_sum = {};
  for (int i = 0; i < n; i += 8) {
    const Lanes value = LoadLanes(x + i);
    const Lanes q =
        RoundClamp((value - low) * inverse, 0.0f, static_cast<float>(max_code));
    q_sum += q;
    qq_sum += q * q;
    qx_sum += q * value;
  }
  const float q = Sum(q_sum);
  const float qq = Sum(qq_sum);
  const float qx = Sum(qx_sum);
  const float determinant = n * qq - q * q;
  AffineFit fit;
  if (determinant > 0.0f) {
    fit.affine.scale = (n * qx - q * sum_x) / determinant;
    fit.affine.min = (q * qx - qq * sum_x) / determinant;
  }
  if (!(fit.affine.min > 0.0f)) {
    fit.affine.min = 0.0f;
    fit.affine.scale = qq > 0.0f ? qx / qq : 0.0f;
  }
  if (!(fit.affine.scale > 0.0f)) {
    fit.affine.scale = 0.0f;
    fit.affine.min = std::max(0.0f, -sum_x / n);
  }
  const float s = fit.affine.scale;
  const float m = fit.affine.min;
  fit.error = sum_xx + s * s * qq + n * m * m - 2 * s * qx + 2 * m * sum_x -
              2 * s * m * q;
  return fit;
}

template <int n>
Affine FitAffine(const float* x, int max_code) {
  Lanes lows = LoadLanes(x), highs = lows, sums = {}, squares = {};
  for (int i = 0; i < n; i += 8) {
    const Lanes value = LoadLanes(x + i);
    lows = value < lows ? value : lows;
    highs = value > highs ? value : highs;
    sums += value;
    squares += value * value;
  }
  float low = 0.0f;
  float high = highs[0];
  for (int i = 0; i < 8; ++i) {
    low = std::min(low, lows[i]);
    high = std::max(high, highs[i]);
  }
  if (!(high > low)) return {0.0f, -low};
  const float sum = Sum(sums);
  const float square = Sum(squares);
  // Spans from a little wider than the values to much narrower: with few codes
  // it pays to give up the outermost values.
  constexpr int kNumCandidates = 16;
  const float widest = max_code <= 3 ? -0.4f : -0.8f;
  const float step = max_code <= 3 ? 0.12f : max_code <= 15 ? 0.2f : 0.25f;
  AffineFit best;
  best.affine = {(high - low) / max_code, -low};
  best.error = INFINITY;
  for (int i = 0; i < kNumCandidates; ++i) {
    const float inverse = (max_code + widest + step * i) / (high - low);
    const AffineFit fit = Refit<n>(x, sum, square, max_code, inverse, low);
    if (fit.error < best.error) best = fit;
  }
  for (int round = 0; round < 3; ++round) {
    const AffineFit fit =
        Refit<n>(x, sum, square, max_code, InverseOf(best.affine.scale),
                 -best.affine.min);
    if (!(fit.error < best.error)) break;
    best = fit;
  }
  return best.affine;
}

// Sum of (x - (scale * code - min))^2 with the best codes.
template <int n>
float AffineError(const float* x, Affine affine, int max_code) {
  const float inverse = InverseOf(affine.scale);
  Lanes sum = {};
  for (int i = 0; i < n; i += 8) {
    const Lanes shifted = LoadLanes(x + i) + affine.min;
    const Lanes q =
        RoundClamp(shifted * inverse, 0.0f, static_cast<float>(max_code));
    const Lanes error = shifted - q * affine.scale;
    sum += error * error;
  }
  return Sum(sum);
}

// A block of groups with a scale and a min each, in integers.
template <int num_groups>
struct AffineBlock {
  float d = 0.0f;  // As f16 holds it.
  float dmin = 0.0f;
  uint8_t scales[num_groups];
  uint8_t mins[num_groups];
  uint8_t codes[256];

  Affine group(int g) const { return {d * scales[g], dmin * mins[g]}; }
};

float RoundToHalf(float value) { return HalfToFloat(FloatToHalf(value)); }

// The integers of a group near what they would be, with the least error.
template <int num_groups>
void RoundGroup(const float* x, Affine wanted, int g, int max_code,
                int max_scale, AffineBlock<num_groups>* block) {
  constexpr int n = 256 / num_groups;
  const float max = static_cast<float>(max_scale);
  const int scale = CodeOf(wanted.scale * InverseOf(block->d), 0.0f, max);
  const int min = CodeOf(wanted.min * InverseOf(block->dmin), 0.0f, max);
  float best = INFINITY;
  block->scales[g] = static_cast<uint8_t>(scale);
  block->mins[g] = static_cast<uint8_t>(min);
  for (int s = std::max(scale - 1, 0); s <= std::min(scale + 1, max_scale);
       ++s) {
    for (int m = std::max(min - 1, 0); m <= std::min(min + 1, max_scale); ++m) {
      const float error = AffineError<n>(x,
                                         {block->d * static_cast<float>(s),
                                          block->dmin * static_cast<float>(m)},
                                         max_code);
      if (error < best) {
        best = error;
        block->scales[g] = static_cast<uint8_t>(s);
        block->mins[g] = static_cast<uint8_t>(m);
      }
    }
  }
}

template <int num_groups>
void ChooseCodes(const float* x, int max_code, AffineBlock<num_groups>* block) {
  constexpr int n = 256 / num_groups;
  for (int g = 0; g < num_groups; ++g) {
    const Affine affine = block->group(g);
    const float inverse = InverseOf(affine.scale);
    for (int i = g * n; i < (g + 1) * n; i += 8) {
      const Lanes q = RoundClamp((LoadLanes(x + i) + affine.min) * inverse,
                                 0.0f, static_cast<float>(max_code));
      for (int j = 0; j < 8; ++j) {
        block->codes[i + j] = static_cast<uint8_t>(q[j]);
      }
    }
  }
}

template <int num_groups>
double BlockError(const float* x, int max_code,
                  const AffineBlock<num_groups>& block) {
  constexpr int n = 256 / num_groups;
  double sum = 0.0;
  for (int g = 0; g < num_groups; ++g) {
    sum += AffineError<n>(x + g * n, block.group(g), max_code);
  }
  return sum;
}

// The least-squares d and dmin for the integers of the block: x ~ d * a - dmin
// * b, where a = scale * code and b = min.
template <int num_groups>
void FitBlockScales(const float* x, AffineBlock<num_groups>* block) {
  constexpr int n = 256 / num_groups;
  double aa = 0, ab = 0, bb = 0, ax = 0, bx = 0;
  for (int g = 0; g < num_groups; ++g) {
    float q = 0, qq = 0, qx = 0, sum = 0;
    for (int i = g * n; i < (g + 1) * n; ++i) {
      const float code = block->codes[i];
      q += code;
      qq += code * code;
      qx += code * x[i];
      sum += x[i];
    }
    const double s = block->scales[g];
    const double m = block->mins[g];
    aa += s * s * qq;
    ab += s * m * q;
    bb += m * m * n;
    ax += s * qx;
    bx += m * sum;
  }
  const double determinant = aa * bb - ab * ab;
  double d = aa > 0 ? ax / aa : 0.0;
  double dmin = 0.0;
  if (determinant > 1e-9 * aa * bb) {
    d = (ax * bb - bx * ab) / determinant;
    dmin = (ax * ab - bx * aa) / determinant;
  } else if (aa == 0.0 && bb > 0.0) {
    dmin = -bx / bb;
  }
  if (d >= 0.0 && dmin >= 0.0) {
    block->d = RoundToHalf(static_cast<float>(d));
    block->dmin = RoundToHalf(static_cast<float>(dmin));
  }
}

template <int num_groups>
AffineBlock<num_groups> FitAffineBlock(const float* x, int max_code,
                                       int max_scale) {
  constexpr int n = 256 / num_groups;
  Affine groups[num_groups];
  Affine largest;
  for (int g = 0; g < num_groups; ++g) {
    groups[g] = FitAffine<n>(x + g * n, max_code);
    largest.scale = std::max(largest.scale, groups[g].scale);
    largest.min = std::max(largest.min, groups[g].min);
  }
  AffineBlock<num_groups> block;
  block.d = RoundToHalf(largest.scale / max_scale);
  block.dmin = RoundToHalf(largest.min / max_scale);
  for (int g = 0; g < num_groups; ++g) {
    RoundGroup(x + g * n, groups[g], g, max_code, max_scale, &block);
  }
  ChooseCodes(x, max_code, &block);
  AffineBlock<num_groups> refined = block;
  FitBlockScales(x, &refined);
  for (int g = 0; g < num_groups; ++g) {
    RoundGroup(x + g * n, refined.group(g), g, max_code, max_scale, &refined);
  }
  if (BlockError(x, max_code, refined) < BlockError(x, max_code, block)) {
    block = refined;
    ChooseCodes(x, max_code, &block);
  }
  return block;
}

void EncodeQ2_K(const float* x, uint8_t* out) {
  const AffineBlock<16> block = FitAffineBlock<16>(x, 3, 15);
  std::memset(out, 0, QuantBlockOf(QuantFormat::kQ2_K).bytes);
  StoreHalf(block.d, out + Q2KLayout::kD);
  StoreHalf(block.dmin, out + Q2KLayout::kDMin);
  for (int g = 0; g < 16; ++g) {
    out[Q2KLayout::kScales + g] =
        static_cast<uint8_t>(block.scales[g] | block.mins[g] << 4);
  }
  for (int i = 0; i < 256; ++i) {
    out[Q2KLayout::kCodes + i / 128 * 32 + i % 32] |=
        static_cast<uint8_t>(block.codes[i] << (i % 128 / 32 * 2));
  }
}

void StoreScaleMins(const AffineBlock<8>& block, uint8_t* out) {
  for (int g = 0; g < 8; ++g) {
    PackScaleMin({block.scales[g], block.mins[g]}, g, out);
  }
}

void StoreNibblesOf64(const uint8_t* codes, uint8_t* out) {
  for (int i = 0; i < 128; ++i) {
    const int first = i / 32 * 64 + i % 32;
    out[i] = static_cast<uint8_t>((codes[first] & 15) | (codes[first + 32] & 15)
                                                            << 4);
  }
}

void EncodeQ4_K(const float* x, uint8_t* out) {
  const AffineBlock<8> block = FitAffineBlock<8>(x, 15, 63);
  std::memset(out, 0, QuantBlockOf(QuantFormat::kQ4_K).bytes);
  StoreHalf(block.d, out + Q4KLayout::kD);
  StoreHalf(block.dmin, out + Q4KLayout::kDMin);
  StoreScaleMins(block, out + Q4KLayout::kScales);
  StoreNibblesOf64(block.codes, out + Q4KLayout::kCodes);
}

void EncodeQ5_K(const float* x, uint8_t* out) {
  const AffineBlock<8> block = FitAffineBlock<8>(x, 31, 63);
  std::memset(out, 0, QuantBlockOf(QuantFormat::kQ5_K).bytes);
  StoreHalf(block.d, out + Q5KLayout::kD);
  StoreHalf(block.dmin, out + Q5KLayout::kDMin);
  StoreScaleMins(block, out + Q5KLayout::kScales);
  for (int i = 0; i < 256; ++i) {
    out[Q5KLayout::kHigh + i % 32] |=
        static_cast<uint8_t>(block.codes[i] >> 4 << (i / 32));
  }
  StoreNibblesOf64(block.codes, out + Q5KLayout::kCodes);
}

// ------------------------------------------------------ groups with a scale

// Codes -half to half - 1 times a scale of either sign.
struct IntegerGrid {
  float half;

  // The code times one, as a float.
  Lanes Nearest(Lanes v) const { return RoundClamp(v, -half, half - 1.0f); }
  float extreme() const { return -half; }
};

// The 16 values of IQ4_NL.
struct Iq4Grid {
  // Nearest value for v in [i / 2 - 128, i / 2 - 127.5): the bounds between
  // values are multiples of a half.
  static constexpr std::array<uint8_t, 512> kNearestCode = [] {
    std::array<uint8_t, 512> table = {};
    for (int i = 0; i < 512; ++i) {
      const double v = i * 0.5 - 128.0 + 0.25;
      double best = 1e9;
      for (int code = 0; code < 16; ++code) {
        const double distance =
            v > kIq4Values[code] ? v - kIq4Values[code] : kIq4Values[code] - v;
        if (distance < best) {
          best = distance;
          table[i] = static_cast<uint8_t>(code);
        }
      }
    }
    return table;
  }();
  static constexpr std::array<float, 512> kNearest = [] {
    std::array<float, 512> table = {};
    for (int i = 0; i < 512; ++i) table[i] = kIq4Values[kNearestCode[i]];
    return table;
  }();

  static int IndexOf(float v) {
    v = (v + 128.0f) * 2.0f;
    v = v > 0.0f ? v : 0.0f;
    return static_cast<int>(v < 511.0f ? v : 511.0f);
  }
  Lanes Nearest(Lanes v) const {
    Lanes out;
    for (int j = 0; j < 8; ++j) out[j] = kNearest[IndexOf(v[j])];
    return out;
  }
  float extreme() const { return -127.0f; }
};

// The scale with the least squared error among candidates that map the value of
// largest magnitude near the grid's extreme, on either side.
template <int n, typename Grid>
float FitScale(const float* x, const Grid& grid, int num_candidates,
               float step) {
  const float largest = LargestMagnitude(x, n);
  if (!(std::abs(largest) > 0.0f)) return 0.0f;
  float best_gain = 0.0f;
  float best = 0.0f;
  const auto consider = [&](float inverse) {
    Lanes qx_sum = {}, qq_sum = {};
    for (int i = 0; i < n; i += 8) {
      const Lanes value = LoadLanes(x + i);
      const Lanes q = grid.Nearest(value * inverse);
      qx_sum += q * value;
      qq_sum += q * q;
    }
    const float qx = Sum(qx_sum);
    const float qq = Sum(qq_sum);
    // The error of the best scale is sum(x^2) - qx^2 / qq.
    if (qq > 0.0f && qx * qx > best_gain * qq) {
      best_gain = qx * qx / qq;
      best = qx / qq;
      return true;
    }
    return false;
  };
  for (int side = 0; side < 2; ++side) {
    const float extreme = side == 0 ? grid.extreme() : -grid.extreme();
    for (int i = 0; i < num_candidates; ++i) {
      const float at = (i - num_candidates / 2) * step;
      consider((extreme + at) / largest);
    }
  }
  for (int round = 0; round < 3 && best != 0.0f; ++round) {
    if (!consider(1.0f / best)) break;
  }
  return best;
}

template <int n, typename Grid>
float ScaleError(const float* x, const Grid& grid, float scale) {
  const float inverse = InverseOf(scale);
  Lanes sum = {};
  for (int i = 0; i < n; i += 8) {
    const Lanes value = LoadLanes(x + i);
    const Lanes error = value - grid.Nearest(value * inverse) * scale;
    sum += error * error;
  }
  return Sum(sum);
}

template <int num_groups>
struct ScaledBlock {
  float d = 0.0f;  // As f16 holds it.
  int scales[num_groups];
};

template <int num_groups, typename Grid>
double RoundScales(const float* x, const Grid& grid, const float* wanted,
                   int half_range, ScaledBlock<num_groups>* block) {
  constexpr int n = 256 / num_groups;
  double total = 0.0;
  for (int g = 0; g < num_groups; ++g) {
    const int scale =
        CodeOf(wanted[g] * InverseOf(block->d), -half_range, half_range - 1);
    float best = INFINITY;
    block->scales[g] = scale;
    for (int s = std::max(scale - 1, -half_range);
         s <= std::min(scale + 1, half_range - 1); ++s) {
      const float error = ScaleError<n>(x + g * n, grid, block->d * s);
      if (error < best) {
        best = error;
        block->scales[g] = s;
      }
    }
    total += best;
  }
  return total;
}

// Scales of groups as integers in [-half_range, half_range).
template <int num_groups, typename Grid>
ScaledBlock<num_groups> FitScaledBlock(const float* x, const Grid& grid,
                                       int num_candidates, float step,
                                       int half_range) {
  constexpr int n = 256 / num_groups;
  float wanted[num_groups];
  for (int g = 0; g < num_groups; ++g) {
    wanted[g] = FitScale<n>(x + g * n, grid, num_candidates, step);
  }
  ScaledBlock<num_groups> block;
  block.d = RoundToHalf(LargestMagnitude(wanted, num_groups) / -half_range);
  double error = RoundScales(x, grid, wanted, half_range, &block);
  for (int round = 0; round < 2; ++round) {
    // The least-squares d for the integers.
    double ax = 0.0, aa = 0.0;
    for (int g = 0; g < num_groups; ++g) {
      const float scale = block.d * block.scales[g];
      const float inverse = InverseOf(scale);
      Lanes qx = {}, qq = {};
      for (int i = g * n; i < (g + 1) * n; i += 8) {
        const Lanes value = LoadLanes(x + i);
        const Lanes q = grid.Nearest(value * inverse);
        qx += q * value;
        qq += q * q;
      }
      ax += double{Sum(qx)} * block.scales[g];
      aa += double{Sum(qq)} * block.scales[g] * block.scales[g];
    }
    ScaledBlock<num_groups> refined = block;
    if (!(aa > 0.0)) break;
    refined.d = RoundToHalf(static_cast<float>(ax / aa));
    const double refined_error =
        RoundScales(x, grid, wanted, half_range, &refined);
    if (!(refined_error < error)) break;
    error = refined_error;
    block = refined;
  }
  return block;
}

void EncodeQ3_K(const float* x, uint8_t* out) {
  const IntegerGrid grid = {4.0f};
  const ScaledBlock<16> block = FitScaledBlock<16>(x, grid, 13, 0.15f, 32);
  std::memset(out, 0, QuantBlockOf(QuantFormat::kQ3_K).bytes);
  StoreHalf(block.d, out + Q3KLayout::kD);
  for (int g = 0; g < 16; ++g) {
    PackQ3KScale(block.scales[g], g, out + Q3KLayout::kScales);
    const float inverse = InverseOf(block.d * block.scales[g]);
    for (int i = g * 16; i < (g + 1) * 16; ++i) {
      const int code = CodeOf(x[i] * inverse, -4.0f, 3.0f) + 4;
      out[Q3KLayout::kCodes + i / 128 * 32 + i % 32] |=
          static_cast<uint8_t>((code & 3) << (i % 128 / 32 * 2));
      out[Q3KLayout::kHigh + i % 32] |=
          static_cast<uint8_t>((code >> 2) << (i / 32));
    }
  }
}

void EncodeQ6_K(const float* x, uint8_t* out) {
  const IntegerGrid grid = {32.0f};
  const ScaledBlock<16> block = FitScaledBlock<16>(x, grid, 11, 0.2f, 128);
  std::memset(out, 0, QuantBlockOf(QuantFormat::kQ6_K).bytes);
  StoreHalf(block.d, out + Q6KLayout::kD);
  for (int g = 0; g < 16; ++g) {
    out[Q6KLayout::kScales + g] = static_cast<uint8_t>(block.scales[g]);
    const float inverse = InverseOf(block.d * block.scales[g]);
    for (int i = g * 16; i < (g + 1) * 16; ++i) {
      const int code = CodeOf(x[i] * inverse, -32.0f, 31.0f) + 32;
      const int half = i / 128;
      const int quarter = i % 128 / 32;
      out[Q6KLayout::kLow + half * 64 + quarter % 2 * 32 + i % 32] |=
          static_cast<uint8_t>((code & 15) << (quarter / 2 * 4));
      out[Q6KLayout::kHigh + half * 32 + i % 32] |=
          static_cast<uint8_t>((code >> 4) << (quarter * 2));
    }
  }
}

void StoreIq4Codes(const float* x, float scale, uint8_t* out) {
  const float inverse = InverseOf(scale);
  uint8_t codes[32];
  for (int i = 0; i < 32; ++i) {
    codes[i] = Iq4Grid::kNearestCode[Iq4Grid::IndexOf(x[i] * inverse)];
  }
  PackNibbles(codes, out);
}

void EncodeIQ4_NL(const float* x, uint8_t* out) {
  const float d = RoundToHalf(FitScale<32>(x, Iq4Grid(), 15, 2.0f));
  StoreHalf(d, out);
  StoreIq4Codes(x, d, out + 2);
}

void EncodeIQ4_XS(const float* x, uint8_t* out) {
  const ScaledBlock<8> block = FitScaledBlock<8>(x, Iq4Grid(), 15, 2.0f, 32);
  std::memset(out, 0, QuantBlockOf(QuantFormat::kIQ4_XS).bytes);
  StoreHalf(block.d, out + Iq4XsLayout::kD);
  uint16_t high = 0;
  for (int g = 0; g < 8; ++g) {
    const int stored = block.scales[g] + 32;
    high |= static_cast<uint16_t>(stored >> 4 << (2 * g));
    out[Iq4XsLayout::kScalesLow + g / 2] |=
        static_cast<uint8_t>((stored & 15) << (g % 2 * 4));
    StoreIq4Codes(x + g * 32, block.d * block.scales[g],
                  out + Iq4XsLayout::kCodes + g * 16);
  }
  std::memcpy(out + Iq4XsLayout::kScalesHigh, &high, sizeof(high));
}

// Code of the nearest e2m1 value; v in units of the table, which holds doubled
// values.
uint8_t NearestE2M1(float v) {
  // Bounds between 0, 1, 2, 3, 4, 6, 8, 12 are multiples of a half.
  static constexpr std::array<uint8_t, 25> kNearest = [] {
    std::array<uint8_t, 25> table = {};
    for (int i = 0; i < 25; ++i) {
      const double at = i * 0.5 + 0.25;
      for (uint8_t code = 1; code < 8; ++code) {
        if (at > (kE2M1Values[code - 1] + kE2M1Values[code]) / 2.0) {
          table[i] = code;
        }
      }
    }
    return table;
  }();
  const float magnitude = std::abs(v) * 2.0f;
  const uint8_t code =
      kNearest[static_cast<int>(magnitude < 24.0f ? magnitude : 24.0f)];
  return v < 0.0f && code != 0 ? code | 8 : code;
}

void EncodeMXFP4(const float* x, uint8_t* out) {
  const float magnitude = std::abs(LargestMagnitude(x, 32));
  // The exponent that puts the largest value into [4, 8) of e2m1's 6 (Rouhani
  // et al. 2023, arXiv:2310.10537, algorithm 1), and its neighbours.
  int first = 1;
  if (magnitude > 0.0f && std::isfinite(magnitude)) {
    first = std::ilogb(magnitude) - 2 + 127;
  }
  float best = INFINITY;
  uint8_t codes[32] = {};
  // From 1: the inverse of the smallest scale is no f32.
  int exponent = std::clamp(first, 1, 254);
  const int last = std::clamp(first + 1, 1, 254);
  for (int e = std::clamp(first - 1, 1, 254); e <= last; ++e) {
    const float scale = HalfOfE8M0(static_cast<uint8_t>(e));
    const float inverse = 1.0f / scale;
    float error = 0.0f;
    uint8_t candidate[32];
    for (int i = 0; i < 32; ++i) {
      candidate[i] = NearestE2M1(x[i] * inverse);
      const float difference = x[i] - scale * kE2M1Values[candidate[i]];
      error += difference * difference;
    }
    if (error < best) {
      best = error;
      exponent = e;
      std::memcpy(codes, candidate, sizeof(codes));
    }
  }
  out[0] = static_cast<uint8_t>(exponent);
  PackNibbles(codes, out + 1);
}

using Encode = void (*)(const float* x, uint8_t* out);

Encode EncoderOf(QuantFormat format) {
  switch (format) {
    case QuantFormat::kQ4_0:
      return EncodeQ4_0;
    case QuantFormat::kQ4_1:
      return EncodeQ4_1;
    case QuantFormat::kQ5_0:
      return EncodeQ5_0;
    case QuantFormat::kQ5_1:
      return EncodeQ5_1;
    case QuantFormat::kQ8_0:
      return EncodeQ8_0;
    case QuantFormat::kIQ4_NL:
      return EncodeIQ4_NL;
    case QuantFormat::kMXFP4:
      return EncodeMXFP4;
    case QuantFormat::kQ2_K:
      return EncodeQ2_K;
    case QuantFormat::kQ3_K:
      return EncodeQ3_K;
    case QuantFormat::kQ4_K:
      return EncodeQ4_K;
    case QuantFormat::kQ5_K:
      return EncodeQ5_K;
    case QuantFormat::kQ6_K:
      return EncodeQ6_K;
    case QuantFormat::kIQ4_XS:
      return EncodeIQ4_XS;
    case QuantFormat::kDense:
    case QuantFormat::kFp8:
    case QuantFormat::kInt4:
      break;
  }
  return nullptr;
}

}  // namespace

void QuantizeBlocks(QuantFormat format, const float* values, int64_t cols,
                    uint8_t* out) {
  const Encode encode = EncoderOf(format);
  const QuantBlock block = QuantBlockOf(format);
  QUIRE_CHECK(encode != nullptr && cols % block.cols == 0);
  for (int64_t c = 0; c < cols; c += block.cols, out += block.bytes) {
    encode(values + c, out);
  }
}

}  // namespace quire
