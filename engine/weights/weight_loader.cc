#include "engine/weights/weight_loader.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "engine/base/status.h"

namespace quire {
namespace {

constexpr DType kDequantizedDType = DType::kBF16;

std::optional<DType> FloatDType(StoredDType dtype) {
  switch (dtype) {
    case StoredDType::kF32:
      return DType::kF32;
    case StoredDType::kF16:
      return DType::kF16;
    case StoredDType::kBF16:
      return DType::kBF16;
    default:
      return std::nullopt;
  }
}

absl::StatusOr<DType> UsableDType(const StoredTensor& tensor) {
  if (const std::optional<DType> dtype = FloatDType(tensor.dtype)) {
    return *dtype;
  }
  return absl::InvalidArgumentError(absl::StrCat(
      *tensor.path, ": tensor \"", tensor.name, "\": dtype ",
      StoredDTypeName(tensor.dtype),
      " is not supported for weights (supported: F32, F16, BF16)"));
}

template <typename T>
T ReadUnaligned(const uint8_t* from) {
  T value;
  std::memcpy(&value, from, sizeof(T));
  return value;
}

// Converts `count` elements; `from` may be unaligned. A conversion from f32 to
// f16 can overflow to infinity; the backend's non-finite check reports that.
void ConvertElements(const uint8_t* from, DType from_dtype, uint8_t* to,
                     DType to_dtype, int64_t count) {
  if (from_dtype == to_dtype) {
    std::memcpy(to, from, count * DTypeSize(to_dtype));
    return;
  }
  const auto convert = [&](auto read) {
    for (int64_t i = 0; i < count; ++i) {
      const float value = read(i);
      if (to_dtype == DType::kF32) {
        std::memcpy(to + i * 4, &value, 4);
      } else {
        const uint16_t bits =
            to_dtype == DType::kF16 ? FloatToHalf(value) : FloatToBf16(value);
        std::memcpy(to + i * 2, &bits, 2);
      }
    }
  };
  switch (from_dtype) {
    case DType::kF32:
      convert([from](int64_t i) { return ReadUnaligned<float>(from + i * 4); });
      break;
    case DType::kF16:
      convert([from](int64_t i) {
        return HalfToFloat(ReadUnaligned<uint16_t>(from + i * 2));
      });
      break;
    case DType::kBF16:
      convert([from](int64_t i) {
        return Bf16ToFloat(ReadUnaligned<uint16_t>(from + i * 2));
      });
      break;
    default:
      QUIRE_CHECK(false);  // UsableDType never returns it.
  }
}

// Buffers that some exporters store and no computation here reads: the RoPE
// frequencies and masks follow from the configuration.
bool IsKnownUnused(absl::string_view name) {
  return absl::EndsWith(name, ".rotary_emb.inv_freq") ||
         absl::EndsWith(name, ".attn.bias") ||
         absl::EndsWith(name, ".attn.masked_bias") ||
         absl::EndsWith(name, ".attention.bias");
}

// The format of 32 columns that stands in where rows are no multiple of 256.
QuantFormat NarrowFormat(QuantFormat format) {
  switch (format) {
    case QuantFormat::kQ2_K:
    case QuantFormat::kQ3_K:
    case QuantFormat::kIQ4_XS:
      return QuantFormat::kIQ4_NL;
    case QuantFormat::kQ4_K:
      return QuantFormat::kQ5_0;
    case QuantFormat::kQ5_K:
      return QuantFormat::kQ5_1;
    case QuantFormat::kQ6_K:
      return QuantFormat::kQ8_0;
    default:
      return format;
  }
}

}  // namespace

std::optional<QuantizationScheme> SchemeForMatrix(
    const QuantizationScheme& wanted, LinearKind kind, int64_t cols) {
  QuantizationScheme scheme = wanted;
  const bool is_block = IsBlockFormat(scheme.format);
  if (kind == LinearKind::kVocab) {
    if (!is_block) return std::nullopt;
    if (scheme.format != QuantFormat::kQ8_0) scheme.format = QuantFormat::kQ6_K;
  }
  if (is_block && cols % QuantBlockOf(scheme.format).cols != 0) {
    scheme.format = NarrowFormat(scheme.format);
  }
  if (scheme.format == QuantFormat::kInt4) {
    // Whole groups, so that rows can be cut between them.
    while (scheme.group_size > 32 && cols % scheme.group_size != 0) {
      scheme.group_size /= 2;
    }
    if (cols % scheme.group_size != 0) return std::nullopt;
  } else if (is_block && cols % QuantBlockOf(scheme.format).cols != 0) {
    return std::nullopt;
  }
  return scheme;
}

// What a LinearSpec keeps alive: the mapping, and memory for what was
// converted.
struct WeightLoader::LinearMemory {
  ~LinearMemory() {
    for (const auto& bytes : sources) releaser->Release(bytes);
  }

  std::shared_ptr<const Checkpoint> checkpoint;
  std::shared_ptr<PageReleaser> releaser;
  std::vector<absl::Span<const uint8_t>> sources;  // Not needed afterwards.
  PartMemory parts;
  std::vector<QuantizedMatrix> quantized;
  std::vector<float> bias;
  int64_t num_bytes = 0;  // Of the tensors used for the first time.
};

WeightLoader::WeightLoader(std::shared_ptr<const Checkpoint> checkpoint,
                           std::optional<DType> dtype, LoadProgress progress)
    : WeightLoader(std::move(checkpoint),
                   WeightLoaderOptions{.dtype = dtype,
                                       .progress = std::move(progress)}) {}

WeightLoader::WeightLoader(std::shared_ptr<const Checkpoint> checkpoint,
                           WeightLoaderOptions options)
    : checkpoint_(std::move(checkpoint)),
      releaser_(std::make_shared<PageReleaser>(checkpoint_->files())),
      options_(std::move(options)) {}

bool WeightLoader::Supports(DType dtype, QuantFormat format) const {
  return !options_.supports || options_.supports(dtype, format);
}

void WeightLoader::RunRanges(
    int64_t num_items,
    absl::FunctionRef<void(int64_t begin, int64_t end)> body) {
  if (pool_ == nullptr) {
    pool_ = std::make_unique<ThreadPool>(options_.num_threads);
  }
  const int64_t chunk =
      std::max<int64_t>(1, num_items / (pool_->num_threads() * 8));
  pool_->ParallelFor(num_items, chunk, [&](int64_t begin, int64_t end, int) {
    body(begin, end);
  });
}

const StoredTensor* WeightLoader::FindStored(absl::string_view name) const {
  const StoredTensor* tensor = checkpoint_->Find(name);
  if (tensor == nullptr && absl::ConsumePrefix(&name, "model.")) {
    tensor = checkpoint_->Find(name);
  }
  return tensor;
}

absl::StatusOr<const StoredTensor*> WeightLoader::Find(
    absl::string_view name, absl::Span<const int64_t> shape) {
  const StoredTensor* tensor = FindStored(name);
  if (tensor == nullptr) {
    return absl::InvalidArgumentError(absl::StrCat(path(), ": tensor \"", name,
                                                   "\" is missing (expected ",
                                                   ShapeString(shape), ")"));
  }
  if (absl::MakeConstSpan(tensor->shape) != shape) {
    return absl::InvalidArgumentError(absl::StrCat(
        *tensor->path, ": tensor \"", name, "\": shape is ",
        ShapeString(tensor->shape), ", expected ", ShapeString(shape)));
  }
  return tensor;
}

bool WeightLoader::Has(absl::string_view name) const {
  return FindStored(name) != nullptr;
}

void WeightLoader::Ignore(absl::string_view name) {
  const StoredTensor* tensor = FindStored(name);
  if (tensor == nullptr) return;
  done_bytes_ += Use(*tensor);
}

void WeightLoader::IgnoreAll(absl::string_view prefix) {
  absl::string_view without_model = prefix;
  absl::ConsumePrefix(&without_model, "model.");
  for (const auto& [name, tensor] : checkpoint_->tensors()) {
    if (absl::StartsWith(name, prefix) ||
        absl::StartsWith(name, without_model)) {
      done_bytes_ += Use(tensor);
    }
  }
}

void WeightLoader::LeaveToOthers(absl::string_view prefix) {
  absl::string_view without_model = prefix;
  absl::ConsumePrefix(&without_model, "model.");
  for (const auto& [name, tensor] : checkpoint_->tensors()) {
    if ((absl::StartsWith(name, prefix) ||
         absl::StartsWith(name, without_model)) &&
        used_.count(&tensor) == 0) {
      num_parameters_ += NumParametersOf(tensor);
      done_bytes_ += Use(tensor);
    }
  }
}

int64_t WeightLoader::NumParametersOf(const StoredTensor& tensor) const {
  absl::string_view module = tensor.name;
  if (absl::ConsumeSuffix(&module, ".qweight") ||
      absl::ConsumeSuffix(&module, ".weight_packed")) {
    return SizeOfInts(module, tensor).num_elements;
  }
  for (const char* beside :
       {".scales", ".qzeros", ".g_idx", ".weight_g_idx", ".weight_scale",
        ".weight_scale_inv", ".weight_zero_point", ".weight_shape",
        ".input_scale"}) {
    if (absl::EndsWith(tensor.name, beside)) return 0;
  }
  return IsKnownUnused(tensor.name) ? 0 : tensor.num_elements;
}

absl::StatusOr<DType> WeightLoader::PackedDType(absl::string_view name) const {
  if (options_.dtype) return *options_.dtype;
  const StoredTensor* tensor = FindStored(name);
  if (tensor == nullptr) {
    const std::string module(absl::StripSuffix(name, ".weight"));
    if (Has(absl::StrCat(module, ".qweight")) ||
        Has(absl::StrCat(module, ".weight_packed"))) {
      // The model was in f16 if its scales are.
      for (const char* scales : {".scales", ".weight_scale"}) {
        const StoredTensor* found = FindStored(absl::StrCat(module, scales));
        if (found != nullptr && found->dtype == StoredDType::kF16) {
          return DType::kF16;
        }
      }
      return kDequantizedDType;
    }
    return absl::InvalidArgumentError(
        absl::StrCat(path(), ": tensor \"", name, "\" is missing"));
  }
  if (tensor->format != QuantFormat::kDense ||
      tensor->dtype == StoredDType::kF8E4M3 ||
      tensor->dtype == StoredDType::kI8) {
    return kDequantizedDType;
  }
  return UsableDType(*tensor);
}

int64_t WeightLoader::Use(const StoredTensor& tensor) {
  if (!used_.insert(&tensor).second) return 0;
  return static_cast<int64_t>(tensor.data.size());
}

absl::Status WeightLoader::CheckIsQuantized(const StoredTensor& tensor,
                                            const LinearSource& source) const {
  const ModuleList& dense = options_.stored.dense_modules;
  absl::StatusOr<const std::string*> entry = dense.Find(source.name);
  if (entry.ok() && *entry == nullptr) return absl::OkStatus();
  if (!entry.ok()) {
    return absl::InvalidArgumentError(
        absl::StrCat(path(), ": ", entry.status().message()));
  }
  return absl::InvalidArgumentError(absl::StrCat(
      *tensor.path, ": tensor \"", tensor.name, "\" is quantized, but ",
      dense.field(), " names it (", Quoted(**entry), ") as one that is not"));
}

void WeightLoader::Use(const StoredTensor& tensor, LinearMemory& memory) {
  memory.num_bytes += Use(tensor);
  memory.sources.push_back(tensor.data);
}

// The matrix [rows, cols] of a tensor "x.weight".
absl::StatusOr<WeightPart> WeightLoader::ReadWeight(const StoredTensor& weight,
                                                    const LinearSource& source,
                                                    int num_fused,
                                                    int fused_idx,
                                                    LinearMemory& memory) {
  const auto run = [this](auto n, auto body) { RunRanges(n, body); };
  if (weight.format == QuantFormat::kDense &&
      (weight.dtype == StoredDType::kF8E4M3 ||
       weight.dtype == StoredDType::kI8)) {
    QUIRE_RETURN_IF_ERROR(CheckIsQuantized(weight, source));
    const StoredTensor* scales = nullptr;
    for (const char* suffix : {".weight_scale", ".weight_scale_inv"}) {
      if (scales == nullptr) {
        scales = FindStored(absl::StrCat(source.name, suffix));
      }
    }
    if (scales == nullptr) {
      return absl::InvalidArgumentError(
          absl::StrCat(*weight.path, ": tensor \"", source.name,
                       ".weight_scale\" is missing, which weights of ",
                       StoredDTypeName(weight.dtype), " need"));
    }
    Use(*scales, memory);
    if (weight.dtype == StoredDType::kI8) {
      return ReadInt8Matrix(weight, *scales, source.rows, source.cols,
                            source.row_range, source.col_range,
                            options_.dtype.value_or(kDequantizedDType), run,
                            memory.parts);
    }
    Fp8Tensors tensors;
    tensors.codes = &weight;
    tensors.scales = scales;
    tensors.input_scale = FindStored(absl::StrCat(source.name, ".input_scale"));
    if (tensors.input_scale != nullptr) {
      Use(*tensors.input_scale, memory);
    }
    tensors.block_size = options_.stored.block_size;
    tensors.num_fused = num_fused;
    tensors.fused_idx = fused_idx;
    return ReadFp8Matrix(tensors, source.rows, source.cols, memory.parts);
  }
  WeightPart part;
  if (weight.format != QuantFormat::kDense) {
    const QuantBlock block = QuantBlockOf(weight.format);
    if (source.cols % block.cols != 0) {
      return absl::InvalidArgumentError(
          absl::StrCat(*weight.path, ": tensor \"", weight.name,
                       "\": ", source.cols, " columns are no multiple of the ",
                       block.cols, " of ", QuantFormatName(weight.format)));
    }
    const int64_t row_bytes = QuantRowBytes(weight.format, source.cols);
    // The reader has checked this.
    QUIRE_CHECK(static_cast<int64_t>(weight.data.size()) ==
                source.rows * row_bytes);
    part.format = weight.format;
    part.data = TensorView::Matrix(weight.data.data(), DType::kU8, source.rows,
                                   row_bytes);
    return part;
  }
  QUIRE_ASSIGN_OR_RETURN(const DType stored, UsableDType(weight));
  part.data =
      TensorView::Matrix(weight.data.data(), stored, source.rows, source.cols);
  return part;
}

// The matrix [rows, cols] of GPTQ's, AWQ's or compressed-tensors' tensors.
absl::StatusOr<WeightPart> WeightLoader::ReadInts(const LinearSource& source,
                                                  LinearMemory& memory) {
  const auto find = [&](const char* suffix) {
    const StoredTensor* tensor = FindStored(absl::StrCat(source.name, suffix));
    if (tensor != nullptr) Use(*tensor, memory);
    return tensor;
  };
  IntTensors tensors;
  tensors.group_size = options_.stored.group_size;
  tensors.codes = find(".weight_packed");
  const bool is_packed = tensors.codes != nullptr;
  tensors.scales = find(is_packed ? ".weight_scale" : ".scales");
  tensors.zeros = find(is_packed ? ".weight_zero_point" : ".qzeros");
  tensors.group_indices = find(is_packed ? ".weight_g_idx" : ".g_idx");
  if (is_packed) {
    tensors.layout = IntTensors::Layout::kPacked;
    find(".weight_shape");  // Says what the model's configuration says.
  } else {
    tensors.codes = find(".qweight");
    // Without a configuration the shape tells: AWQ packs the rows.
    const bool is_awq = options_.stored.method == QuantizationMethod::kAwq ||
                        (options_.stored.method == QuantizationMethod::kNone &&
                         tensors.codes->shape.size() == 2 &&
                         tensors.codes->shape[0] == source.cols);
    tensors.layout =
        is_awq ? IntTensors::Layout::kAwq : IntTensors::Layout::kGptq;
    tensors.zeros_are_less_one = !is_awq && options_.stored.zeros_are_less_one;
    if (tensors.zeros == nullptr) {
      return absl::InvalidArgumentError(absl::StrCat(*tensors.codes->path,
                                                     ": tensor \"", source.name,
                                                     ".qzeros\" is missing"));
    }
  }
  QUIRE_RETURN_IF_ERROR(CheckIsQuantized(*tensors.codes, source));
  if (tensors.scales == nullptr) {
    return absl::InvalidArgumentError(
        absl::StrCat(*tensors.codes->path, ": tensor \"", source.name,
                     is_packed ? ".weight_scale" : ".scales", "\" is missing"));
  }
  if (!source.has_bias) {
    // Some writers give every layer a bias, of zeros where the model has none.
    const StoredTensor* bias = FindStored(absl::StrCat(source.name, ".bias"));
    if (bias != nullptr &&
        std::all_of(bias->data.begin(), bias->data.end(),
                    [](uint8_t byte) { return byte == 0; })) {
      Use(*bias, memory);
    }
  }
  tensors.needed_rows = source.row_range;
  tensors.needed_cols = source.col_range;
  const auto run = [this](auto n, auto body) { RunRanges(n, body); };
  return ReadIntMatrix(tensors, source.rows, source.cols,
                       options_.dtype.value_or(kDequantizedDType), run,
                       memory.parts);
}

absl::StatusOr<WeightPart> WeightLoader::ReadMatrix(const LinearSource& source,
                                                    int num_fused,
                                                    int fused_idx,
                                                    LinearMemory& memory) {
  const std::string name = absl::StrCat(source.name, ".weight");
  const StoredTensor* weight = FindStored(name);
  const bool has_ints =
      weight == nullptr && (Has(absl::StrCat(source.name, ".qweight")) ||
                            Has(absl::StrCat(source.name, ".weight_packed")));
  const size_t num_used = used_.size();
  WeightPart part;
  if (has_ints) {
    QUIRE_ASSIGN_OR_RETURN(part, ReadInts(source, memory));
  } else {
    QUIRE_ASSIGN_OR_RETURN(weight, Find(name, {source.rows, source.cols}));
    Use(*weight, memory);
    QUIRE_ASSIGN_OR_RETURN(
        part, ReadWeight(*weight, source, num_fused, fused_idx, memory));
  }
  // Several parts may be rows of one fused matrix.
  if (used_.size() != num_used) num_parameters_ += source.rows * source.cols;
  return part;
}

// This rank's part in the form in which the backend gets it.
absl::StatusOr<WeightPart> WeightLoader::PartOf(const WeightPart& matrix,
                                                LinearKind kind,
                                                const LinearSource& source,
                                                LinearMemory& memory) {
  const auto run = [this](auto n, auto body) { RunRanges(n, body); };
  std::optional<WeightPart> part =
      SlicePart(matrix, source.row_range, source.col_range);
  if (matrix.format != QuantFormat::kDense) {
    if (part && Supports(part->data.dtype, part->format)) return *part;
    ++num_dequantized_[matrix.format];
    return DequantizePart(matrix, source.row_range, source.col_range,
                          options_.dtype.value_or(kDequantizedDType), run,
                          memory.parts);
  }
  QUIRE_CHECK(part.has_value());
  const DType stored = part->data.dtype;
  const int64_t size = DTypeSize(stored);
  const uint8_t* first = part->data.row<const uint8_t>(0);
  const bool is_aligned = reinterpret_cast<uintptr_t>(first) % size == 0;
  const bool is_quantized =
      options_.quantization.has_value() && !source.keeps_precision;
  const DType wanted = is_quantized ? stored : options_.dtype.value_or(stored);
  if (stored != wanted || !is_aligned) {
    // Uninitialized: every byte is written below.
    const int64_t rows = part->data.rows;
    const int64_t cols = part->data.cols;
    const int64_t stride = part->data.row_stride * size;
    uint8_t* out = new uint8_t[rows * cols * DTypeSize(wanted)];
    memory.parts.emplace_back(out);
    RunRanges(rows, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        ConvertElements(first + row * stride, stored,
                        out + row * cols * DTypeSize(wanted), wanted, cols);
      }
    });
    part->data = TensorView::Matrix(out, wanted, rows, cols);
  }
  if (!is_quantized) return *part;
  // That of the whole matrix, so that ranks do not change what is computed,
  // unless they cut its blocks.
  std::optional<QuantizationScheme> scheme =
      SchemeForMatrix(*options_.quantization, kind, source.cols);
  if (scheme &&
      source.col_range.size() % (scheme->format == QuantFormat::kInt4
                                     ? scheme->group_size
                                     : QuantBlockOf(scheme->format).cols) !=
          0) {
    scheme = SchemeForMatrix(*options_.quantization, kind, part->data.cols);
  }
  if (!scheme || !Supports(DType::kU8, scheme->format)) {
    // That the vocabulary keeps its precision is no surprise.
    if (kind != LinearKind::kVocab) ++num_left_dense_;
    if (!options_.dtype || *options_.dtype == part->data.dtype) return *part;
    return DequantizePart(*part, {0, part->data.rows}, {0, part->data.cols},
                          *options_.dtype, run, memory.parts);
  }
  absl::StatusOr<QuantizedMatrix> quantized =
      QuantizeMatrix(part->data, *scheme, run);
  if (!quantized.ok()) {
    return absl::InvalidArgumentError(
        absl::StrCat(path(), ": tensor \"", source.name,
                     ".weight\": ", quantized.status().message()));
  }
  memory.quantized.push_back(std::move(*quantized));
  return memory.quantized.back().part;
}

absl::Status WeightLoader::ReadBiases(const std::vector<LinearSource>& sources,
                                      LinearMemory& memory) {
  for (const LinearSource& source : sources) {
    // Parts without a bias of their own get zeros: one vector for all.
    const size_t offset = memory.bias.size();
    memory.bias.resize(offset + source.row_range.size(), 0.0f);
    if (!source.has_bias) continue;
    QUIRE_ASSIGN_OR_RETURN(
        const std::vector<float> bias,
        Vector(absl::StrCat(source.name, ".bias"), source.rows));
    std::copy(bias.begin() + source.row_range.begin,
              bias.begin() + source.row_range.end,
              memory.bias.begin() + offset);
  }
  return absl::OkStatus();
}

absl::StatusOr<LinearSpec> WeightLoader::Linear(
    LinearKind kind, const std::vector<LinearSource>& sources) {
  LinearSpec spec;
  spec.kind = kind;
  auto memory = std::make_shared<LinearMemory>();
  memory->checkpoint = checkpoint_;
  memory->releaser = releaser_;
  bool has_bias = false;
  for (size_t i = 0; i < sources.size(); ++i) {
    const LinearSource& source = sources[i];
    has_bias |= source.has_bias;
    const auto is_same = [&](const LinearSource& other) {
      return other.name == source.name;
    };
    const int num_fused = static_cast<int>(
        std::count_if(sources.begin(), sources.end(), is_same));
    const int fused_idx = static_cast<int>(
        std::count_if(sources.begin(), sources.begin() + i, is_same));
    QUIRE_ASSIGN_OR_RETURN(const WeightPart matrix,
                           ReadMatrix(source, num_fused, fused_idx, *memory));
    QUIRE_ASSIGN_OR_RETURN(WeightPart part,
                           PartOf(matrix, kind, source, *memory));
    spec.parts.push_back(std::move(part));
  }
  done_bytes_ += memory->num_bytes;
  if (has_bias) {
    QUIRE_RETURN_IF_ERROR(ReadBiases(sources, *memory));
    spec.bias = TensorView::Vector(memory->bias.data(), DType::kF32,
                                   memory->bias.size());
  }
  spec.keep_alive = std::move(memory);
  if (options_.progress) {
    options_.progress(done_bytes_, checkpoint_->num_bytes());
  }
  return spec;
}

absl::StatusOr<std::vector<float>> WeightLoader::Vector(absl::string_view name,
                                                        int64_t size) {
  QUIRE_ASSIGN_OR_RETURN(const StoredTensor* tensor, Find(name, {size}));
  QUIRE_ASSIGN_OR_RETURN(const DType stored, UsableDType(*tensor));
  const int64_t num_bytes = Use(*tensor);
  if (num_bytes > 0) num_parameters_ += tensor->num_elements;
  done_bytes_ += num_bytes;
  std::vector<float> values(size);
  ConvertElements(tensor->data.data(), stored,
                  reinterpret_cast<uint8_t*>(values.data()), DType::kF32, size);
  return values;
}

std::string WeightLoader::UnusedTensorsWarning() const {
  constexpr int kMaxNamed = 4;
  int num_unused = 0;
  std::string names;
  for (const auto& [name, tensor] : checkpoint_->tensors()) {
    if (used_.count(&tensor) != 0 || IsKnownUnused(name)) continue;
    if (++num_unused <= kMaxNamed) {
      absl::StrAppend(&names, num_unused == 1 ? "" : ", ", name);
    }
  }
  if (num_unused == 0) return "";
  return absl::StrCat(path(), ": ", num_unused,
                      " tensors are not used by this architecture: ", names,
                      num_unused > kMaxNamed ? ", ..." : "");
}

std::vector<std::string> WeightLoader::Notes() const {
  std::vector<std::string> notes;
  for (const auto& [format, count] : num_dequantized_) {
    const char* dtype = DTypeName(options_.dtype.value_or(kDequantizedDType));
    notes.push_back(
        absl::StrCat(path(), ": ", count, " matrices of ",
                     QuantFormatName(format), " are computed as ", dtype,
                     Supports(DType::kU8, format)
                         ? ": they are cut where the format cannot be"
                         : ": the backend has no kernels for it"));
  }
  if (num_left_dense_ > 0) {
    notes.push_back(absl::StrCat(path(), ": ", num_left_dense_,
                                 " matrices are not quantized to ",
                                 QuantFormatName(options_.quantization->format),
                                 ", which does not fit them"));
  }
  return notes;
}

int64_t WeightLoader::CutUnit(const std::string& name, int64_t cols) const {
  const StoredTensor* weight = FindStored(absl::StrCat(name, ".weight"));
  const auto groups_of = [&](const char* suffix, size_t dim) {
    const StoredTensor* scales = FindStored(absl::StrCat(name, suffix));
    return scales != nullptr && scales->shape.size() == 2 ? scales->shape[dim]
                                                          : int64_t{1};
  };
  QuantFormat format = QuantFormat::kDense;
  int64_t num_groups = 1;  // Of columns.
  if (weight == nullptr) {
    format = QuantFormat::kInt4;
    num_groups =
        std::max(groups_of(".scales", 0), groups_of(".weight_scale", 1));
  } else if (weight->format != QuantFormat::kDense) {
    format = weight->format;
  } else if (weight->dtype == StoredDType::kF8E4M3) {
    format = QuantFormat::kFp8;
    num_groups = std::max(groups_of(".weight_scale_inv", 1),
                          groups_of(".weight_scale", 1));
  } else if (options_.quantization) {
    const auto scheme =
        SchemeForMatrix(*options_.quantization, LinearKind::kPlain, cols);
    if (!scheme) return quire::CutUnit(QuantFormat::kDense, 0);
    const bool has_groups =
        scheme->format == QuantFormat::kInt4 ||
        scheme->fp8_scales == QuantizationScheme::Fp8Scales::kBlock;
    return quire::CutUnit(scheme->format, has_groups ? scheme->group_size : 0);
  }
  int64_t group_size = 0;
  if (num_groups > 1) {
    const int said = format == QuantFormat::kFp8 ? options_.stored.block_size
                                                 : options_.stored.group_size;
    // A last group may be smaller.
    group_size = said > 0 && (cols + said - 1) / said == num_groups
                     ? said
                     : (cols + num_groups - 1) / num_groups;
  }
  return quire::CutUnit(format, static_cast<int>(group_size));
}

// Whether gate or up has columns in another order than the other of the two:
// they share a product, which then takes them in bf16.
bool WeightLoader::HasOwnColumnOrder(absl::string_view module) const {
  const auto indices_of = [&](absl::string_view name) -> absl::string_view {
    for (const char* suffix : {".g_idx", ".weight_g_idx"}) {
      const StoredTensor* tensor = FindStored(absl::StrCat(name, suffix));
      if (tensor != nullptr) {
        return {reinterpret_cast<const char*>(tensor->data.data()),
                tensor->data.size()};
      }
    }
    return {};
  };
  absl::string_view parent = module;
  const char* partner = nullptr;
  if (absl::ConsumeSuffix(&parent, ".gate_proj")) partner = ".up_proj";
  if (absl::ConsumeSuffix(&parent, ".up_proj")) partner = ".gate_proj";
  return partner != nullptr &&
         indices_of(module) != indices_of(absl::StrCat(parent, partner));
}

WeightLoader::IntMatrixSize WeightLoader::SizeOfInts(
    absl::string_view module, const StoredTensor& codes) const {
  const auto size_of = [&](const char* suffix, size_t dim) {
    const StoredTensor* tensor = FindStored(absl::StrCat(module, suffix));
    return tensor != nullptr && tensor->shape.size() == 2 ? tensor->shape[dim]
                                                          : int64_t{0};
  };
  const bool is_packed = absl::EndsWith(codes.name, ".weight_packed");
  IntMatrixSize size;
  size.rows =
      size_of(is_packed ? ".weight_scale" : ".scales", is_packed ? 0 : 1);
  size.num_groups =
      size_of(is_packed ? ".weight_scale" : ".scales", is_packed ? 1 : 0);
  if (const int64_t cols = size_of(".qzeros", 1); cols > 0) {
    size.codes_per_int = size.rows / cols;
  }
  size.num_elements = codes.num_elements * size.codes_per_int;
  const StoredTensor* shape = FindStored(absl::StrCat(module, ".weight_shape"));
  if (is_packed && shape != nullptr && shape->dtype == StoredDType::kI64 &&
      shape->num_elements == 2) {
    const int64_t cols = ReadUnaligned<int64_t>(shape->data.data() + 8);
    // More is not in the file; a nonsensical size is refused when it is read.
    if (cols > 0 && size.rows > 0 && cols <= size.num_elements / size.rows) {
      size.num_elements = size.rows * cols;
    }
    size.codes_per_int = size.num_elements > codes.num_elements * 4 ? 8 : 4;
  }
  return size;
}

// Four bits in groups of whole blocks of 32 columns stay so on every backend,
// all else becomes dense.
int64_t WeightLoader::ExpectedIntBytes(absl::string_view module,
                                       const StoredTensor& codes) const {
  const auto [rows, num_elements, num_groups, codes_per_int] =
      SizeOfInts(module, codes);
  const int64_t cols = rows > 0 ? num_elements / rows : 0;
  int64_t group_size = cols;
  if (num_groups > 1) {
    group_size = options_.stored.group_size > 0
                     ? options_.stored.group_size
                     : (cols + num_groups - 1) / num_groups;
  }
  const bool is_kept = codes_per_int == 8 && group_size > 0 &&
                       group_size % 32 == 0 && cols % group_size == 0 &&
                       Supports(DType::kU8, QuantFormat::kInt4);
  if (is_kept && HasOwnColumnOrder(module)) {
    return num_elements * DTypeSize(DType::kBF16);
  }
  return is_kept ? static_cast<int64_t>(codes.data.size())
                 : num_elements *
                       DTypeSize(options_.dtype.value_or(kDequantizedDType));
}

// A rank has its part of the layers' matrices, all of the embedding's and its
// slice of the head's.
int64_t WeightLoader::ExpectedBytes(ShardSpec shard, ShardSpec stage) const {
  int64_t num_whole_bytes = 0;
  int64_t num_shared_bytes = 0;  // Of what is divided.
  const DType dequantized = options_.dtype.value_or(kDequantizedDType);
  for (const auto& [name, tensor] : checkpoint_->tensors()) {
    const int64_t stored = static_cast<int64_t>(tensor.data.size());
    const int64_t num_elements = tensor.num_elements;
    QuantFormat format = tensor.format;
    if (tensor.dtype == StoredDType::kF8E4M3) format = QuantFormat::kFp8;
    const std::optional<DType> dense = FloatDType(tensor.dtype);
    int64_t& num_bytes =
        absl::StrContains(name, "layers.") && tensor.shape.size() > 1
            ? num_shared_bytes
            : num_whole_bytes;
    absl::string_view module = name;
    if (absl::ConsumeSuffix(&module, ".qweight") ||
        absl::ConsumeSuffix(&module, ".weight_packed")) {
      num_bytes += ExpectedIntBytes(module, tensor);
    } else if (format != QuantFormat::kDense) {
      num_bytes += Supports(DType::kU8, format)
                       ? stored
                       : num_elements * DTypeSize(dequantized);
    } else if (tensor.dtype == StoredDType::kI8) {
      num_bytes += num_elements * DTypeSize(dequantized);
    } else if (dense && options_.quantization && tensor.shape.size() == 2) {
      const auto scheme = SchemeForMatrix(*options_.quantization,
                                          absl::EndsWith(name, "proj.weight")
                                              ? LinearKind::kPlain
                                              : LinearKind::kVocab,
                                          tensor.shape[1]);
      const DType kept = options_.dtype.value_or(*dense);
      num_bytes +=
          scheme && Supports(DType::kU8, scheme->format)
              ? tensor.shape[0] * QuantRowBytes(scheme->format, tensor.shape[1])
              : num_elements * DTypeSize(kept);
    } else {
      num_bytes +=
          dense ? num_elements * DTypeSize(options_.dtype.value_or(*dense))
                : stored;
    }
  }
  return num_whole_bytes + num_shared_bytes / (shard.size * stage.size) +
         (shard.size > 1 ? num_whole_bytes / shard.size : 0);
}

}  // namespace quire
