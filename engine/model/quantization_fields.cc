#include "engine/model/quantization_fields.h"

#include <algorithm>
#include <optional>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "engine/base/status.h"

namespace quire {
namespace {

using nlohmann::json;

constexpr int64_t kMaxGroupSize = 1 << 20;
constexpr size_t kMaxGroups = 1000;  // Of config_groups.
// A mixture of 256 experts in 61 layers has 50,000 modules.
constexpr size_t kMaxModules = 100000;

absl::Status OneOf(JsonFields& fields, const char* name,
                   const std::vector<std::string>& supported) {
  QUIRE_ASSIGN_OR_RETURN(const auto value, fields.String(name));
  if (!value || std::count(supported.begin(), supported.end(), *value) > 0) {
    return absl::OkStatus();
  }
  return fields.Error(
      name, absl::StrCat("\"", *value, "\" is not supported (supported: ",
                         absl::StrJoin(supported, ", "), ")"));
}

absl::Status CheckBits(JsonFields& fields, const char* name,
                       const std::vector<int64_t>& supported) {
  QUIRE_ASSIGN_OR_RETURN(const auto bits, fields.Int(name, 1, 64));
  if (!bits || std::count(supported.begin(), supported.end(), *bits) > 0) {
    return absl::OkStatus();
  }
  return fields.Error(name,
                      absl::StrCat(*bits, " is not supported (supported: ",
                                   absl::StrJoin(supported, ", "), ")"));
}

// group_size: -1 (or absent) stands for whole rows.
absl::Status ReadGroupSize(JsonFields& fields, QuantizationConfig& config) {
  QUIRE_ASSIGN_OR_RETURN(const auto size,
                         fields.Int("group_size", -1, kMaxGroupSize));
  if (size && *size > 0) config.group_size = static_cast<int>(*size);
  return absl::OkStatus();
}

// [n, n].
absl::Status ReadSquare(JsonFields& fields, const char* name,
                        QuantizationConfig& config) {
  QUIRE_ASSIGN_OR_RETURN(const std::vector<int64_t> sizes,
                         fields.Ints(name, 1, kMaxGroupSize));
  if (sizes.empty()) return absl::OkStatus();
  if (sizes.size() != 2 || sizes[0] != sizes[1]) {
    return fields.Error(name, absl::StrCat("[", absl::StrJoin(sizes, ", "),
                                           "] is not supported (supported: "
                                           "squares, as [128, 128])"));
  }
  config.block_size = static_cast<int>(sizes[0]);
  return absl::OkStatus();
}

// The modules of a field that are dense in the file.
absl::Status ReadDenseModules(JsonFields& fields, const char* name,
                              ModuleMatch match, QuantizationConfig& config) {
  QUIRE_ASSIGN_OR_RETURN(std::vector<std::string> entries,
                         fields.Strings(name));
  if (entries.empty()) return absl::OkStatus();
  if (entries.size() > kMaxModules) {
    return fields.Error(name,
                        absl::StrCat("more than ", kMaxModules, " entries"));
  }
  auto list = ModuleList::Create(absl::StrCat("quantization_config.", name),
                                 match, std::move(entries));
  if (!list.ok()) return fields.Error(name, list.status().message());
  config.dense_modules = *std::move(list);
  return absl::OkStatus();
}

absl::Status ParseGptq(JsonFields& fields, QuantizationConfig& config) {
  config.method = QuantizationMethod::kGptq;
  QUIRE_RETURN_IF_ERROR(CheckBits(fields, "bits", {4, 8}));
  QUIRE_RETURN_IF_ERROR(ReadGroupSize(fields, config));
  // What they say is in qzeros and g_idx.
  QUIRE_RETURN_IF_ERROR(fields.Bool("sym").status());
  QUIRE_RETURN_IF_ERROR(fields.Bool("desc_act").status());
  QUIRE_RETURN_IF_ERROR(
      OneOf(fields, "checkpoint_format", {"gptq", "gptq_v2"}));
  QUIRE_ASSIGN_OR_RETURN(const auto format, fields.String("checkpoint_format"));
  config.zeros_are_less_one = !format || *format == "gptq";
  return absl::OkStatus();
}

absl::Status ParseAwq(JsonFields& fields, QuantizationConfig& config) {
  config.method = QuantizationMethod::kAwq;
  // AutoAWQ's own file calls them otherwise.
  QUIRE_RETURN_IF_ERROR(CheckBits(fields, "bits", {4}));
  QUIRE_RETURN_IF_ERROR(CheckBits(fields, "w_bit", {4}));
  QUIRE_RETURN_IF_ERROR(ReadGroupSize(fields, config));
  QUIRE_RETURN_IF_ERROR(fields.Bool("zero_point").status());
  QUIRE_RETURN_IF_ERROR(OneOf(fields, "version", {"gemm", "GEMM"}));
  return ReadDenseModules(fields, "modules_to_not_convert",
                          ModuleMatch::kComponents, config);
}

absl::Status ParseFp8(JsonFields& fields, QuantizationConfig& config) {
  config.method = QuantizationMethod::kFp8;
  QUIRE_RETURN_IF_ERROR(
      OneOf(fields, "activation_scheme", {"dynamic", "static"}));
  QUIRE_RETURN_IF_ERROR(OneOf(fields, "fmt", {"e4m3", "float8_e4m3fn"}));
  QUIRE_RETURN_IF_ERROR(ReadSquare(fields, "weight_block_size", config));
  // Two names of one list; vLLM takes the second where both are there.
  QUIRE_RETURN_IF_ERROR(ReadDenseModules(fields, "modules_to_not_convert",
                                         ModuleMatch::kComponents, config));
  return ReadDenseModules(fields, "ignored_layers", ModuleMatch::kExact,
                          config);
}

// One object of config_groups.
absl::Status ParseGroup(const json& object, const std::string& path,
                        const std::string& prefix, QuantizationConfig& config) {
  JsonFields group(object, path, prefix);
  QUIRE_RETURN_IF_ERROR(group.Strings("targets").status());
  QUIRE_ASSIGN_OR_RETURN(const json* weights, group.Object("weights"));
  if (weights == nullptr) return absl::OkStatus();
  JsonFields fields(*weights, path, absl::StrCat(prefix, "weights."));
  QUIRE_RETURN_IF_ERROR(OneOf(fields, "type", {"int", "float"}));
  QUIRE_ASSIGN_OR_RETURN(const auto type, fields.String("type"));
  QUIRE_RETURN_IF_ERROR(CheckBits(fields, "num_bits",
                                  type && *type == "float"
                                      ? std::vector<int64_t>{8}
                                      : std::vector<int64_t>{4, 8}));
  QUIRE_RETURN_IF_ERROR(
      OneOf(fields, "strategy", {"tensor", "channel", "group", "block"}));
  QUIRE_RETURN_IF_ERROR(ReadGroupSize(fields, config));
  return ReadSquare(fields, "block_structure", config);
}

absl::Status ParseCompressedTensors(JsonFields& fields, const std::string& path,
                                    const std::string& prefix,
                                    QuantizationConfig& config) {
  config.method = QuantizationMethod::kCompressedTensors;
  QUIRE_RETURN_IF_ERROR(
      OneOf(fields, "format",
            {"float-quantized", "pack-quantized", "int-quantized",
             "naive-quantized", "dense", "mixed-precision"}));
  QUIRE_RETURN_IF_ERROR(
      ReadDenseModules(fields, "ignore", ModuleMatch::kExact, config));
  // Rotations of activations, and compressed zeros.
  QUIRE_RETURN_IF_ERROR(fields.RequireOff("transform_config"));
  QUIRE_ASSIGN_OR_RETURN(const json* sparsity,
                         fields.Object("sparsity_config"));
  if (sparsity != nullptr) {
    JsonFields inner(*sparsity, path, absl::StrCat(prefix, "sparsity_config."));
    QUIRE_RETURN_IF_ERROR(OneOf(inner, "format", {"dense"}));
  }
  QUIRE_ASSIGN_OR_RETURN(const json* groups, fields.Object("config_groups"));
  if (groups == nullptr) return absl::OkStatus();
  if (groups->size() > kMaxGroups) {
    return fields.Error("config_groups",
                        absl::StrCat("more than ", kMaxGroups, " groups"));
  }
  for (const auto& [name, group] : groups->items()) {
    if (!group.is_object()) {
      return fields.Error("config_groups", "holds what is not an object");
    }
    QUIRE_RETURN_IF_ERROR(ParseGroup(
        group, path, absl::StrCat(prefix, "config_groups.group."), config));
  }
  // Groups may differ; then the tensors alone tell.
  if (groups->size() > 1) config.group_size = 0;
  return absl::OkStatus();
}

}  // namespace

absl::Status ParseQuantization(JsonFields& fields, const std::string& path,
                               QuantizationConfig& config) {
  if (fields.Has("quantization")) {
    return fields.Error("quantization",
                        "is not supported (supported: quantization_config)");
  }
  const char* name = fields.Has("quantization_config") ? "quantization_config"
                                                       : "compression_config";
  QUIRE_ASSIGN_OR_RETURN(const json* object, fields.Object(name));
  if (object == nullptr) return absl::OkStatus();
  const std::string prefix = absl::StrCat(name, ".");
  JsonFields inner(*object, path, prefix);
  QUIRE_ASSIGN_OR_RETURN(const auto method, inner.String("quant_method"));
  const std::string supported = "supported: gptq, awq, fp8, compressed-tensors";
  if (!method) {
    return inner.Error("quant_method",
                       absl::StrCat("missing (", supported, ")"));
  }
  if (*method == "gptq") return ParseGptq(inner, config);
  if (*method == "awq") return ParseAwq(inner, config);
  if (*method == "fp8") return ParseFp8(inner, config);
  if (*method == "compressed-tensors") {
    return ParseCompressedTensors(inner, path, prefix, config);
  }
  return inner.Error(
      "quant_method",
      absl::StrCat("\"", *method, "\" is not supported (", supported, ")"));
}

}  // namespace quire
