#include "engine/weights/weight_loader.h"

#include <cstdlib>
#include <cstring>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "engine/base/status.h"

namespace quire {
namespace {

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

// What a LinearSpec keeps alive: the mapping, and memory for what was
// converted.
struct LinearMemory {
  std::shared_ptr<const Checkpoint> checkpoint;
  std::vector<std::unique_ptr<uint8_t[]>> converted;
  std::vector<float> bias;
};

// A view of the part, in the file if it can be read there.
TensorView PartView(const StoredTensor& tensor, DType stored, DType wanted,
                    const LinearSource& source, LinearMemory& memory) {
  const int64_t size = DTypeSize(stored);
  const uint8_t* first =
      tensor.data.data() +
      (source.row_range.begin * source.cols + source.col_range.begin) * size;
  const int64_t rows = source.row_range.size();
  const int64_t cols = source.col_range.size();
  TensorView view = TensorView::Matrix(first, stored, rows, cols);
  view.row_stride = source.cols;
  if (stored == wanted && reinterpret_cast<uintptr_t>(first) % size == 0) {
    return view;
  }
  // Uninitialized: every byte is written below.
  std::unique_ptr<uint8_t[]> buffer(
      new uint8_t[rows * cols * DTypeSize(wanted)]);
  for (int64_t row = 0; row < rows; ++row) {
    ConvertElements(first + row * source.cols * size, stored,
                    buffer.get() + row * cols * DTypeSize(wanted), wanted,
                    cols);
  }
  view = TensorView::Matrix(buffer.get(), wanted, rows, cols);
  memory.converted.push_back(std::move(buffer));
  return view;
}

// Buffers that some exporters store and no computation here reads: the RoPE
// frequencies and masks follow from the configuration.
bool IsKnownUnused(absl::string_view name) {
  return absl::EndsWith(name, ".rotary_emb.inv_freq") ||
         absl::EndsWith(name, ".attn.bias") ||
         absl::EndsWith(name, ".attn.masked_bias") ||
         absl::EndsWith(name, ".attention.bias");
}

}  // namespace

WeightLoader::WeightLoader(std::shared_ptr<const Checkpoint> checkpoint,
                           std::optional<DType> dtype, LoadProgress progress)
    : checkpoint_(std::move(checkpoint)),
      dtype_(dtype),
      progress_(std::move(progress)) {}

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
  used_.insert(tensor);
  done_bytes_ += tensor->data.size();
}

absl::StatusOr<DType> WeightLoader::PackedDType(absl::string_view name) const {
  if (dtype_) return *dtype_;
  const StoredTensor* tensor = FindStored(name);
  if (tensor == nullptr) {
    return absl::InvalidArgumentError(
        absl::StrCat(path(), ": tensor \"", name, "\" is missing"));
  }
  return UsableDType(*tensor);
}

absl::StatusOr<LinearSpec> WeightLoader::Linear(
    LinearKind kind, const std::vector<LinearSource>& sources) {
  LinearSpec spec;
  spec.kind = kind;
  auto memory = std::make_shared<LinearMemory>();
  memory->checkpoint = checkpoint_;
  int64_t num_bytes = 0;
  bool has_bias = false;
  for (const LinearSource& source : sources) {
    QUIRE_ASSIGN_OR_RETURN(
        const StoredTensor* tensor,
        Find(absl::StrCat(source.name, ".weight"), {source.rows, source.cols}));
    QUIRE_ASSIGN_OR_RETURN(const DType stored, UsableDType(*tensor));
    spec.parts.push_back(
        {PartView(*tensor, stored, dtype_.value_or(stored), source, *memory)});
    // Several parts may be rows of one fused matrix.
    if (used_.insert(tensor).second) {
      num_parameters_ += tensor->num_elements;
      num_bytes += tensor->data.size();
    }
    has_bias |= source.has_bias;
  }
  if (has_bias) {
    for (const LinearSource& source : sources) {
      // Parts without a bias of their own get zeros: one vector for all.
      const size_t offset = memory->bias.size();
      memory->bias.resize(offset + source.row_range.size(), 0.0f);
      if (!source.has_bias) continue;
      QUIRE_ASSIGN_OR_RETURN(
          const std::vector<float> bias,
          Vector(absl::StrCat(source.name, ".bias"), source.rows));
      std::copy(bias.begin() + source.row_range.begin,
                bias.begin() + source.row_range.end,
                memory->bias.begin() + offset);
    }
    spec.bias = TensorView::Vector(memory->bias.data(), DType::kF32,
                                   memory->bias.size());
  }
  spec.keep_alive = std::move(memory);
  done_bytes_ += num_bytes;
  if (progress_) progress_(done_bytes_, checkpoint_->num_bytes());
  return spec;
}

absl::StatusOr<std::vector<float>> WeightLoader::Vector(absl::string_view name,
                                                        int64_t size) {
  QUIRE_ASSIGN_OR_RETURN(const StoredTensor* tensor, Find(name, {size}));
  QUIRE_ASSIGN_OR_RETURN(const DType stored, UsableDType(*tensor));
  if (used_.insert(tensor).second) num_parameters_ += tensor->num_elements;
  done_bytes_ += tensor->data.size();
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

}  // namespace quire
