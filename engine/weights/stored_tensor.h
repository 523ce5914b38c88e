// A tensor as a model file stores it.
#ifndef QUIRE_ENGINE_WEIGHTS_STORED_TENSOR_H_
#define QUIRE_ENGINE_WEIGHTS_STORED_TENSOR_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "kernels/quant_format.h"

namespace quire {

// Element types of safetensors that occupy whole bytes. Which of them a model
// may use is the weight loader's matter.
enum class StoredDType : uint8_t {
  kBool,
  kU8,
  kI8,
  kF8E5M2,
  kF8E4M3,
  kF8E8M0,
  kI16,
  kU16,
  kF16,
  kBF16,
  kI32,
  kU32,
  kF32,
  kF64,
  kI64,
  kU64,
  kC64,
};

// As safetensors spells it: "BF16".
const char* StoredDTypeName(StoredDType dtype);
std::optional<StoredDType> StoredDTypeFromName(absl::string_view name);
int64_t StoredDTypeSize(StoredDType dtype);

struct StoredTensor {
  std::string name;
  StoredDType dtype = StoredDType::kF32;
  std::vector<int64_t> shape;  // Of the file; empty for a scalar.
  int64_t num_elements = 0;
  // kDense: num_elements of dtype, not necessarily aligned to the element.
  absl::Span<const uint8_t> data;
  // The file, for messages; lives as long as the checkpoint.
  const std::string* path = nullptr;
  // Not kDense: `data` holds the rows' blocks, and dtype is kU8.
  QuantFormat format = QuantFormat::kDense;
};

// "[256, 64]".
std::string ShapeString(absl::Span<const int64_t> shape);

// Text of a file in a message: printable, and not longer than a line.
std::string Quoted(absl::string_view text);

}  // namespace quire

#endif  // QUIRE_ENGINE_WEIGHTS_STORED_TENSOR_H_
