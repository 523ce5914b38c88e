// How the elements of a weight are encoded.
//
// The block formats are those of GGUF files (ggml's ggml-common.h and
// ggml-quants.c): a row is a sequence of blocks, each with its own scales.
// kernels/quant_codec.h has the formulas.
#ifndef QUIRE_KERNELS_QUANT_FORMAT_H_
#define QUIRE_KERNELS_QUANT_FORMAT_H_

#include <cstdint>

namespace quire {

enum class QuantFormat : uint8_t {
  kDense,  // Elements of the tensor's dtype: f32, f16 or bf16.
  // Blocks of 32 columns.
  kQ4_0,
  kQ4_1,
  kQ5_0,
  kQ5_1,
  kQ8_0,
  kIQ4_NL,
  kMXFP4,
  // Blocks of 256 columns.
  kQ2_K,
  kQ3_K,
  kQ4_K,
  kQ5_K,
  kQ6_K,
  kIQ4_XS,
  // Elements of e4m3 with scales beside them (WeightPart::scales).
  kFp8,
  // Four bits an element, two to a byte, the even column in the low half, with
  // a scale and a zero point for every group of columns beside them.
  kInt4,
};

// Columns and bytes of the unit in which a row is stored.
struct QuantBlock {
  int cols = 1;
  int bytes = 1;
};

// Requires: not kDense.
constexpr QuantBlock QuantBlockOf(QuantFormat format) {
  switch (format) {
    case QuantFormat::kDense:
      return {0, 0};
    case QuantFormat::kQ4_0:
      return {32, 18};
    case QuantFormat::kQ4_1:
      return {32, 20};
    case QuantFormat::kQ5_0:
      return {32, 22};
    case QuantFormat::kQ5_1:
      return {32, 24};
    case QuantFormat::kQ8_0:
      return {32, 34};
    case QuantFormat::kIQ4_NL:
      return {32, 18};
    case QuantFormat::kMXFP4:
      return {32, 17};
    case QuantFormat::kQ2_K:
      return {256, 84};
    case QuantFormat::kQ3_K:
      return {256, 110};
    case QuantFormat::kQ4_K:
      return {256, 144};
    case QuantFormat::kQ5_K:
      return {256, 176};
    case QuantFormat::kQ6_K:
      return {256, 210};
    case QuantFormat::kIQ4_XS:
      return {256, 136};
    case QuantFormat::kFp8:
      return {1, 1};
    case QuantFormat::kInt4:
      return {2, 1};
  }
  return {0, 0};
}

// True for the formats of GGUF, whose scales lie in the blocks.
constexpr bool IsBlockFormat(QuantFormat format) {
  return format != QuantFormat::kDense && format != QuantFormat::kFp8 &&
         format != QuantFormat::kInt4;
}

// "q4_k", "fp8", "int4"; "dense".
constexpr const char* QuantFormatName(QuantFormat format) {
  switch (format) {
    case QuantFormat::kDense:
      return "dense";
    case QuantFormat::kQ4_0:
      return "q4_0";
    case QuantFormat::kQ4_1:
      return "q4_1";
    case QuantFormat::kQ5_0:
      return "q5_0";
    case QuantFormat::kQ5_1:
      return "q5_1";
    case QuantFormat::kQ8_0:
      return "q8_0";
    case QuantFormat::kIQ4_NL:
      return "iq4_nl";
    case QuantFormat::kMXFP4:
      return "mxfp4";
    case QuantFormat::kQ2_K:
      return "q2_k";
    case QuantFormat::kQ3_K:
      return "q3_k";
    case QuantFormat::kQ4_K:
      return "q4_k";
    case QuantFormat::kQ5_K:
      return "q5_k";
    case QuantFormat::kQ6_K:
      return "q6_k";
    case QuantFormat::kIQ4_XS:
      return "iq4_xs";
    case QuantFormat::kFp8:
      return "fp8";
    case QuantFormat::kInt4:
      return "int4";
  }
  return "?";
}

}  // namespace quire

#endif  // QUIRE_KERNELS_QUANT_FORMAT_H_
