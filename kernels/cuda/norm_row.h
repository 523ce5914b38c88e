// The arithmetic of a norm, by a CTA: shared by the kernel for norms and by the
// linear layers that begin with one, so that both give the same bits. For that,
// no product here is left to be contracted with a sum (simt::Product): what the
// compiler makes of it may differ from kernel to kernel.
#ifndef QUIRE_KERNELS_CUDA_NORM_ROW_H_
#define QUIRE_KERNELS_CUDA_NORM_ROW_H_

#include <cstdint>

#include "kernels/cuda/element.h"
#include "kernels/cuda/norm.h"
#include "kernels/cuda/planted_bug.h"
#include "kernels/cuda/simt/simt.h"

namespace quire::cuda {

inline constexpr int kNormThreads = 256;

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

// kRows rows at once, that their loads be in flight together. A row's bits do
// not depend on its neighbours.
template <DType kType, int kRows>
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
      row_[r] = (arguments.rows ? int64_t{arguments.rows[token]} : token) *
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

  SIMT_DEVICE bool is_valid(int r) const { return is_valid_[r]; }

  // x + residual of columns [c, c + 8), which this thread alone visits: it may
  // write the sum over what it has read.
  SIMT_DEVICE void Load(int r, int c, float (&values)[8]) const {
    Unpack<kType>(simt::Load16(arguments_.x + row_[r] + c), values);
    if (!arguments_.residual) return;
    float residual[8];
    Unpack<kType>(simt::Load16(arguments_.residual + row_[r] + c), residual);
    SIMT_UNROLL
    for (int i = 0; i < 8; ++i) values[i] += residual[i];
  }
  SIMT_DEVICE void StoreSum(int r, int c, const float (&values)[8]) const {
    if (arguments_.residual_out) {
      simt::Store16(arguments_.residual_out + row_[r] + c, Pack<kType>(values));
    }
  }
  SIMT_DEVICE void Norm(int r, int c, float (&values)[8]) const {
    if (arguments_.kind == NormArguments::Kind::kNone) return;
    SIMT_UNROLL
    for (int i = 0; i < 8; ++i) {
      values[i] =
          simt::Product(simt::Product(values[i] - mean_[r], inverse_[r]),
                        arguments_.weight_offset + arguments_.weight[c + i]);
      if (arguments_.bias) values[i] += arguments_.bias[c + i];
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
    for (int c = simt::ThreadX() * 8; c < arguments_.cols;
         c += kNormThreads * 8) {
      SIMT_UNROLL
      for (int r = 0; r < kRows; ++r) {
        if (!is_valid_[r]) continue;
        float values[8];
        Load(r, c, values);
        SIMT_UNROLL
        for (int i = 0; i < 8; ++i) sum_[r] += term(values[i], mean_[r]);
      }
    }
    SIMT_UNROLL
    for (int r = 0; r < kRows; ++r) {
      const float sum = WarpSum(sum_[r]);
      if (simt::ThreadX() % 32 == 0) scratch[r * kWarps + warp] = sum;
    }
    simt::SyncThreads();
    SIMT_UNROLL
    for (int r = 0; r < kRows; ++r) {
      sum_[r] = 0;
      for (int w = 0; w < kWarps; ++w) sum_[r] += scratch[r * kWarps + w];
    }
    simt::SyncThreads();
  }

  const NormArguments& arguments_;
  bool is_valid_[kRows];
  int64_t row_[kRows];  // Of x; in elements.
  float mean_[kRows], inverse_[kRows], sum_[kRows];
};

}  // namespace quire::cuda

#endif  // QUIRE_KERNELS_CUDA_NORM_ROW_H_
