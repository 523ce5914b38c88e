// What a checkpoint's configuration says about its quantized matrices. Which
// matrices are quantized, their sizes and groups are read from the tensors; a
// quantized one that the configuration says is dense is an error, a dense one
// that it does not name is what it is (writers leave out heads and routers).
#ifndef QUIRE_ENGINE_WEIGHTS_QUANTIZATION_CONFIG_H_
#define QUIRE_ENGINE_WEIGHTS_QUANTIZATION_CONFIG_H_

#include <cstdint>

#include "engine/weights/module_list.h"

namespace quire {

enum class QuantizationMethod : uint8_t {
  kNone,
  kGptq,
  kAwq,
  kFp8,
  kCompressedTensors,
};

// As checkpoints spell it: "gptq"; "none".
constexpr const char* QuantizationMethodName(QuantizationMethod method) {
  switch (method) {
    case QuantizationMethod::kNone:
      return "none";
    case QuantizationMethod::kGptq:
      return "gptq";
    case QuantizationMethod::kAwq:
      return "awq";
    case QuantizationMethod::kFp8:
      return "fp8";
    case QuantizationMethod::kCompressedTensors:
      return "compressed-tensors";
  }
  return "?";
}

struct QuantizationConfig {
  QuantizationMethod method = QuantizationMethod::kNone;
  // Columns that share a scale; 0: not said, or all of a row.
  int group_size = 0;
  // GPTQ's first format stores zero points less one; gptq_v2 does not.
  bool zeros_are_less_one = true;
  // Rows and columns of the squares that share a scale (fp8); 0: not said.
  int block_size = 0;
  // Modules whose matrices are dense in the file.
  ModuleList dense_modules;
};

}  // namespace quire

#endif  // QUIRE_ENGINE_WEIGHTS_QUANTIZATION_CONFIG_H_
