// The arithmetic of a norm, by a CTA: shared by the kernel for norms and by the
// linear layers that begin with one, so that both give the same bits. For that,
// no product here is left to be contracted with a sum (simt::Product): what the
// compiler makes of it may differ from kernel to kernel.
#ifndef QUIRE_KERNELS_CUDA_NORM_ROW_H_
#define QUIRE_KERNELS_CUDA_NORM_ROW_H_

#include <bit>
#include <cstdint>

#include "kernels/cuda/element.h"
#include "kernels/cuda/norm.h"
#include "kernels/cuda/planted_bug.h"
#include "kernels/cuda/simt/simt.h"

namespace quire::cuda {

inline constexpr int kNormThreads = 256;
// A thread visits eight columns at a place, the next ones so many further on.
inline constexpr int kNormStep = kNormThreads * 8;

// Eight values of sixteen bytes.
template <DType kType>
SIMT_DEVICE void Unpack(const simt::Bytes16& bytes, float (&values)[8]) {
  SIMT_UNROLL
  for (int i = 0; i < 4; ++i) {
    values[2 * i] = Element<kType>::ToFloat(bytes.words[i] & 0xffff);
    values[2 * i + 1] = Element<kType>::ToFloat(bytes.words[i] >> 16);
  }
}
template <DType kType>
SIMT_DEVICE simt::Bytes16 Pack(const float (&values)[8]) {
  simt::Bytes16 bytes;
  SIMT_UNROLL
  for (int i = 0; i < 4; ++i) {
    bytes.words[i] = Element<kType>::Pack(values[2 * i], values[2 * i + 1]);
  }
  return bytes;
}

SIMT_DEVICE float WarpSum(float value) {
  SIMT_UNROLL
  for (int i = 16; i > 0; i /= 2) value += simt::ShuffleXor(value, i);
  return value;
}

// Four floats, aligned to 16 bytes.
SIMT_DEVICE void LoadFloats(const float* from, float* values) {
  const simt::Bytes16 bytes = simt::Load16(from);
  SIMT_UNROLL
  for (int i = 0; i < 4; ++i) values[i] = std::bit_cast<float>(bytes.words[i]);
}

// The weights of a thread's next kPlaces places. They are constants: a kernel
// may load its first ones before it waits for the previous one, as they are far
// away (a step reads more than L2 holds).
template <int kPlaces>
class NormWeights {
 public:
  // Of columns [first, first + kPlaces * kNormStep).
  SIMT_DEVICE void Load(const NormArguments& arguments, int first) {
    first_ = first;
    if (arguments.kind == NormArguments::Kind::kNone) return;
    SIMT_UNROLL
    for (int p = 0; p < kPlaces; ++p) {
      const int c = first + p * kNormStep + simt::ThreadX() * 8;
      if (c >= arguments.cols) continue;
      LoadFloats(arguments.weight + c, weights_[p]);
      LoadFloats(arguments.weight + c + 4, weights_[p] + 4);
    }
  }
  SIMT_DEVICE int first() const { return first_; }
  SIMT_DEVICE const float* of_place(int p) const { return weights_[p]; }

 private:
  int first_;
  float weights_[kPlaces][8];
};

// kPlaces places of kRows rows at once, that their loads be in flight together:
// with two, a row of 4096 columns costs one round trip to L2. A row's bits do
// not depend on its neighbours.
template <DType kType, int kRows, int kPlaces = 2>
class NormRows {
 public:
  // Floats of shared memory that the constructor wants.
  static constexpr int kScratch = kRows * (kNormThreads / 32);

  // Rows [first, first + kRows) of out, less those from num_tokens on: their
  // statistics. All kNormThreads threads of the CTA call it; they may use
  // `scratch` again afterwards.
  SIMT_DEVICE NormRows(const NormArguments& arguments, int first,
                       float* scratch)
      : arguments_(arguments) {
    using Kind = NormArguments::Kind;
    SIMT_UNROLL
    for (int r = 0; r < kRows; ++r) {
      is_valid_[r] = first + r < arguments.num_tokens;
      const int64_t token = is_valid_[r] ? first + r : first;
      row_[r] =
          (arguments.rows && !HasPlantedBug(PlantedBug::kNormRowOfTheToken)
               ? int64_t{arguments.rows[token]}
               : token) *
          arguments.cols;
      mean_[r] = 0;
      inverse_[r] = 1;
    }
    const float cols = static_cast<float>(arguments.cols);
    if (arguments.kind == Kind::kLayer) {
      Sum(scratch, [](float value, float) { return value; });
      SIMT_UNROLL
      for (int r = 0; r < kRows; ++r) mean_[r] = sum_[r] / cols;
    }
    if (arguments.kind != Kind::kNone) {
      Sum(scratch, [](float value, float mean) {
        return simt::Product(value - mean, value - mean);
      });
      SIMT_UNROLL
      for (int r = 0; r < kRows; ++r) {
        inverse_[r] = simt::Rsqrt(sum_[r] / cols + arguments.eps);
      }
    }
  }

  // visit(row) for those that are there, if column `c` is.
  template <typename Callback>
  SIMT_DEVICE void Visit(int c, const Callback& visit) const {
    if (HasPlantedBug(PlantedBug::kNormLosesTheLastColumns)) c += 8;
    SIMT_UNROLL
    for (int r = 0; r < kRows; ++r) {
      if (is_valid_[r] && c < arguments_.cols) visit(r);
    }
  }

  // Columns [c, c + 8) of x as they lie in memory.
  SIMT_DEVICE simt::Bytes16 LoadX(int r, int c) const {
    return simt::Load16(arguments_.x + row_[r] + c);
  }
  // x + residual. Residuals are loaded here, after one another: few norms have
  // one, and the registers to have several in flight are not there.
  SIMT_DEVICE void AddResidual(int r, int c, const simt::Bytes16& x,
                               float (&values)[8]) const {
    Unpack<kType>(x, values);
    if (!arguments_.residual) return;
    float residual[8];
    Unpack<kType>(simt::Load16(arguments_.residual + row_[r] + c), residual);
    SIMT_UNROLL
    for (int i = 0; i < 8; ++i) values[i] += residual[i];
  }
  // Both, of columns which this thread alone visits: it may write the sum over
  // what it has read.
  SIMT_DEVICE void Load(int r, int c, float (&values)[8]) const {
    AddResidual(r, c, LoadX(r, c), values);
  }
  SIMT_DEVICE void StoreSum(int r, int c, const float (&values)[8]) const {
    if (arguments_.residual_out) {
      simt::Store16(arguments_.residual_out + row_[r] + c, Pack<kType>(values));
    }
  }
  // weights: of these columns, if they are loaded; else null.
  SIMT_DEVICE void Norm(int r, int c, float (&values)[8],
                        const float* weights = nullptr) const {
    if (arguments_.kind == NormArguments::Kind::kNone) return;
    SIMT_UNROLL
    for (int h = 0; h < 8; h += 4) {
      float weight[4], bias[4];
      if (!weights) LoadFloats(arguments_.weight + c + h, weight);
      if (arguments_.bias) LoadFloats(arguments_.bias + c + h, bias);
      SIMT_UNROLL
      for (int i = 0; i < 4; ++i) {
        float& value = values[h + i];
        value = simt::Product(
            simt::Product(value - mean_[r], inverse_[r]),
            arguments_.weight_offset + (weights ? weights[h + i] : weight[i]));
        if (arguments_.bias) value += bias[i];
      }
    }
  }

 private:
  // The sums of term(value, mean) over the rows, for every thread; their order
  // is fixed.
  template <typename Term>
  SIMT_DEVICE void Sum(float* scratch, const Term& term) {
    constexpr int kWarps = kNormThreads / 32;
    const int warp = simt::ThreadX() / 32;
    SIMT_UNROLL
    for (int r = 0; r < kRows; ++r) sum_[r] = 0;
    SIMT_NO_UNROLL  // The places are.
        for (int first = simt::ThreadX() * 8; first < arguments_.cols;
             first += kPlaces * kNormStep) {
      simt::Bytes16 x[kPlaces][kRows];
      SIMT_UNROLL
      for (int p = 0; p < kPlaces; ++p) {
        const int c = first + p * kNormStep;
        Visit(c, [&](int r) { x[p][r] = LoadX(r, c); });
      }
      SIMT_UNROLL
      for (int p = 0; p < kPlaces; ++p) {
        const int c = first + p * kNormStep;
        Visit(c, [&](int r) {
          float values[8];
          AddResidual(r, c, x[p][r], values);
          SIMT_UNROLL
          for (int i = 0; i < 8; ++i) sum_[r] += term(values[i], mean_[r]);
        });
      }
    }
    SIMT_UNROLL
    for (int r = 0; r < kRows; ++r) {
      const float sum = WarpSum(sum_[r]);
      if (simt::ThreadX() % 32 == 0) scratch[r * kWarps + warp] = sum;
    }
    if (!HasPlantedBug(PlantedBug::kNormNoBarrierBeforeSum)) {
      simt::SyncThreads();
    }
    SIMT_UNROLL
    for (int r = 0; r < kRows; ++r) {
      sum_[r] = 0;
      for (int w = 0; w < kWarps; ++w) sum_[r] += scratch[r * kWarps + w];
    }
    if (!HasPlantedBug(PlantedBug::kNormScratchReused)) simt::SyncThreads();
  }

  const NormArguments& arguments_;
  bool is_valid_[kRows];
  int64_t row_[kRows];  // Of x; in elements.
  float mean_[kRows], inverse_[kRows], sum_[kRows];
};

}  // namespace quire::cuda

#endif  // QUIRE_KERNELS_CUDA_NORM_ROW_H_
