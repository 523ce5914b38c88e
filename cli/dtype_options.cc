#include "cli/dtype_options.h"

#include "absl/strings/str_cat.h"

namespace quire {
namespace {

absl::StatusOr<std::optional<DType>> ParseDType(const char* option,
                                                const std::string& name) {
  if (name == "auto") return std::optional<DType>();
  if (name == "float32" || name == "f32" || name == "float") {
    return std::optional(DType::kF32);
  }
  if (name == "float16" || name == "f16" || name == "half") {
    return std::optional(DType::kF16);
  }
  if (name == "bfloat16" || name == "bf16") return std::optional(DType::kBF16);
  return absl::InvalidArgumentError(absl::StrCat(
      option, ": '", name, "' is not auto, float32, float16 or bfloat16"));
}

}  // namespace

absl::StatusOr<std::optional<DType>> ParseDTypeOption(const std::string& name) {
  return ParseDType("--dtype", name);
}

// vLLM's names of fp8 and int8 beside those of --dtype.
absl::StatusOr<std::optional<DType>> ParseKvDTypeOption(
    const std::string& name) {
  if (name == "int8" || name == "i8") return std::optional(DType::kI8);
  if (name == "fp8" || name == "fp8_e4m3") {
    return std::optional(DType::kF8E4M3);
  }
  const absl::StatusOr<std::optional<DType>> dtype =
      ParseDType("--kv-cache-dtype", name);
  if (dtype.ok()) return dtype;
  return absl::InvalidArgumentError(
      absl::StrCat("--kv-cache-dtype: '", name,
                   "' is not auto, bf16, f16, f32, int8 or fp8"));
}

}  // namespace quire
