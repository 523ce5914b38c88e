#include "engine/weights/gguf.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <set>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "engine/base/status.h"

namespace quire {
namespace {

// Llama 3.1 405B has 1,138 tensors and 30 keys. The header of a file is in
// memory as views, so these limits bound memory, not truth.
constexpr uint64_t kMaxTensors = 1'000'000;
constexpr uint64_t kMaxKeys = 65'536;
constexpr uint64_t kMaxNameBytes = 1 << 16;
constexpr uint64_t kMaxStringBytes = 64 << 20;  // Templates, licences.
constexpr uint64_t kMaxElements = 16 << 20;     // Tokens and merges: 500,000.
constexpr int kMaxArrayDepth = 4;
constexpr int64_t kMaxNestedArrays = 1 << 20;
// Of the format's own writer.
constexpr uint32_t kMaxDimensions = 4;
constexpr uint64_t kDefaultAlignment = 32;
constexpr uint64_t kMaxAlignment = 1 << 20;
constexpr int64_t kMaxParts = 10'000;

struct TensorType {
  uint32_t number;  // ggml_type.
  const char* name;
  StoredDType dtype;
  QuantFormat format;
};

constexpr TensorType kTensorTypes[] = {
    {0, "F32", StoredDType::kF32, QuantFormat::kDense},
    {1, "F16", StoredDType::kF16, QuantFormat::kDense},
    {2, "Q4_0", StoredDType::kU8, QuantFormat::kQ4_0},
    {3, "Q4_1", StoredDType::kU8, QuantFormat::kQ4_1},
    {6, "Q5_0", StoredDType::kU8, QuantFormat::kQ5_0},
    {7, "Q5_1", StoredDType::kU8, QuantFormat::kQ5_1},
    {8, "Q8_0", StoredDType::kU8, QuantFormat::kQ8_0},
    {10, "Q2_K", StoredDType::kU8, QuantFormat::kQ2_K},
    {11, "Q3_K", StoredDType::kU8, QuantFormat::kQ3_K},
    {12, "Q4_K", StoredDType::kU8, QuantFormat::kQ4_K},
    {13, "Q5_K", StoredDType::kU8, QuantFormat::kQ5_K},
    {14, "Q6_K", StoredDType::kU8, QuantFormat::kQ6_K},
    {20, "IQ4_NL", StoredDType::kU8, QuantFormat::kIQ4_NL},
    {23, "IQ4_XS", StoredDType::kU8, QuantFormat::kIQ4_XS},
    // Masks and tables; no weight may have them, which the loader says.
    {24, "I8", StoredDType::kI8, QuantFormat::kDense},
    {25, "I16", StoredDType::kI16, QuantFormat::kDense},
    {26, "I32", StoredDType::kI32, QuantFormat::kDense},
    {27, "I64", StoredDType::kI64, QuantFormat::kDense},
    {28, "F64", StoredDType::kF64, QuantFormat::kDense},
    {30, "BF16", StoredDType::kBF16, QuantFormat::kDense},
    {39, "MXFP4", StoredDType::kU8, QuantFormat::kMXFP4},
};

// Known, so that the message can name them.
struct OtherType {
  uint32_t number;
  const char* name;
};
constexpr OtherType kOtherTypes[] = {
    {4, "Q4_2"},        {5, "Q4_3"},      {9, "Q8_1"},       {15, "Q8_K"},
    {16, "IQ2_XXS"},    {17, "IQ2_XS"},   {18, "IQ3_XXS"},   {19, "IQ1_S"},
    {21, "IQ3_S"},      {22, "IQ2_S"},    {29, "IQ1_M"},     {31, "Q4_0_4_4"},
    {32, "Q4_0_4_8"},   {33, "Q4_0_8_8"}, {34, "TQ1_0"},     {35, "TQ2_0"},
    {36, "IQ4_NL_4_4"}, {40, "NVFP4"},    {37, "IQ4_NL_4_8"}};

const TensorType* FindTensorType(uint32_t number) {
  for (const TensorType& type : kTensorTypes) {
    if (type.number == number) return &type;
  }
  return nullptr;
}

std::string TensorTypeError(uint32_t number) {
  std::string name = absl::StrCat("number ", number);
  for (const OtherType& other : kOtherTypes) {
    if (other.number == number) name = other.name;
  }
  std::string supported;  // For weights: integers and F64 are not.
  for (const TensorType& type : kTensorTypes) {
    const bool is_weight =
        type.dtype == StoredDType::kU8 || type.dtype == StoredDType::kF32 ||
        type.dtype == StoredDType::kF16 || type.dtype == StoredDType::kBF16;
    if (!is_weight) continue;
    absl::StrAppend(&supported, supported.empty() ? "" : ", ", type.name);
  }
  return absl::StrCat("type ", name,
                      " is not supported (supported: ", supported, ")");
}

// Bytes of a number; 0 for strings, arrays and what is unknown.
int SizeOf(uint32_t type) {
  constexpr int kSizes[] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
  return type < std::size(kSizes) ? kSizes[type] : 0;
}

template <typename T>
T Load(const uint8_t* from) {
  T value;  // Little endian, as all our hosts.
  std::memcpy(&value, from, sizeof(T));
  return value;
}

// The bytes of a file from the front. Every read says whether they are there.
class Reader {
 public:
  Reader(absl::Span<const uint8_t> file, const std::string& path)
      : file_(file), path_(path) {}

  uint64_t position() const { return position_; }
  uint64_t remaining() const { return file_.size() - position_; }
  // Arrays in arrays are what takes more memory here than in the file.
  bool TakeNestedArrays(int64_t count) {
    num_nested_arrays_ += count;
    return num_nested_arrays_ <= kMaxNestedArrays;
  }

  absl::StatusOr<absl::Span<const uint8_t>> Bytes(uint64_t count,
                                                  absl::string_view what) {
    if (count > remaining()) {
      return absl::DataLossError(absl::StrCat(
          path_, ": truncated: ", what, " needs ", count, " bytes at ",
          position_, ", but the file has ", file_.size()));
    }
    const absl::Span<const uint8_t> bytes = file_.subspan(position_, count);
    position_ += count;
    return bytes;
  }

  template <typename T>
  absl::StatusOr<T> Number(absl::string_view what) {
    QUIRE_ASSIGN_OR_RETURN(const absl::Span<const uint8_t> bytes,
                           Bytes(sizeof(T), what));
    return Load<T>(bytes.data());
  }

  absl::StatusOr<absl::Span<const uint8_t>> Text(uint64_t max_bytes,
                                                 absl::string_view what) {
    QUIRE_ASSIGN_OR_RETURN(const uint64_t size, Number<uint64_t>(what));
    if (size > max_bytes) {
      return absl::InvalidArgumentError(
          absl::StrCat(path_, ": ", what, ": a string of ", size,
                       " bytes, more than the limit of ", max_bytes));
    }
    return Bytes(size, what);
  }

  absl::Status Error(absl::string_view what, absl::string_view message) const {
    return absl::InvalidArgumentError(
        absl::StrCat(path_, ": ", what, ": ", message));
  }

 private:
  absl::Span<const uint8_t> file_;
  const std::string& path_;
  uint64_t position_ = 0;
  int64_t num_nested_arrays_ = 0;
};

absl::string_view AsText(absl::Span<const uint8_t> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

absl::Status ReadValue(Reader& reader, uint32_t type, const std::string& what,
                       int depth, GgufValue* value);

absl::Status ReadArray(Reader& reader, const std::string& what, int depth,
                       GgufValue* value) {
  if (depth > kMaxArrayDepth) {
    return reader.Error(
        what, absl::StrCat("arrays nested deeper than ", kMaxArrayDepth));
  }
  QUIRE_ASSIGN_OR_RETURN(const uint32_t type, reader.Number<uint32_t>(what));
  QUIRE_ASSIGN_OR_RETURN(const uint64_t count, reader.Number<uint64_t>(what));
  if (count > kMaxElements) {
    return reader.Error(
        what, absl::StrCat("an array of ", count, " elements, more than ",
                           kMaxElements));
  }
  if (type > static_cast<uint32_t>(GgufType::kF64)) {
    return reader.Error(what, absl::StrCat("unknown type of value ", type));
  }
  value->element_type = static_cast<GgufType>(type);
  value->count = static_cast<int64_t>(count);
  if (const int size = SizeOf(type); size > 0) {
    QUIRE_ASSIGN_OR_RETURN(value->bytes, reader.Bytes(count * size, what));
    return absl::OkStatus();
  }
  // A string or an array takes at least 8 or 12 bytes of the file, which
  // bounds what is allocated.
  const bool is_string = value->element_type == GgufType::kString;
  if (count * (is_string ? 8 : 12) > reader.remaining()) {
    return absl::DataLossError(
        absl::StrCat(reader.Error(what, "truncated").message(), ": ", count,
                     " elements do not fit into the file"));
  }
  if (is_string) {
    value->strings.reserve(count);
    for (uint64_t i = 0; i < count; ++i) {
      QUIRE_ASSIGN_OR_RETURN(const absl::Span<const uint8_t> text,
                             reader.Text(kMaxStringBytes, what));
      value->strings.push_back(AsText(text));
    }
    return absl::OkStatus();
  }
  if (!reader.TakeNestedArrays(value->count)) {
    return reader.Error(what, absl::StrCat("more than ", kMaxNestedArrays,
                                           " arrays in arrays"));
  }
  value->arrays.resize(count);
  for (GgufValue& element : value->arrays) {
    QUIRE_RETURN_IF_ERROR(ReadValue(reader,
                                    static_cast<uint32_t>(GgufType::kArray),
                                    what, depth + 1, &element));
  }
  return absl::OkStatus();
}

absl::Status ReadValue(Reader& reader, uint32_t type, const std::string& what,
                       int depth, GgufValue* value) {
  if (type > static_cast<uint32_t>(GgufType::kF64)) {
    return reader.Error(what, absl::StrCat("unknown type of value ", type));
  }
  value->type = static_cast<GgufType>(type);
  if (value->type == GgufType::kArray) {
    return ReadArray(reader, what, depth, value);
  }
  if (value->type == GgufType::kString) {
    QUIRE_ASSIGN_OR_RETURN(value->bytes, reader.Text(kMaxStringBytes, what));
    return absl::OkStatus();
  }
  QUIRE_ASSIGN_OR_RETURN(value->bytes, reader.Bytes(SizeOf(type), what));
  if (value->type == GgufType::kBool && value->bytes[0] > 1) {
    return reader.Error(what, "a bool that is neither 0 nor 1");
  }
  return absl::OkStatus();
}

struct Counts {
  uint64_t num_tensors = 0;
  uint64_t num_keys = 0;
};

absl::StatusOr<Counts> ReadStart(Reader& reader) {
  QUIRE_ASSIGN_OR_RETURN(const absl::Span<const uint8_t> magic,
                         reader.Bytes(4, "the header"));
  if (AsText(magic) != "GGUF") {
    return reader.Error("the header",
                        absl::StrCat("begins with ", Quoted(AsText(magic)),
                                     ", not with \"GGUF\": not a GGUF file"));
  }
  QUIRE_ASSIGN_OR_RETURN(const uint32_t version,
                         reader.Number<uint32_t>("the header"));
  const uint32_t swapped = __builtin_bswap32(version);
  if (swapped == 2 || swapped == 3) {
    return reader.Error("the header",
                        "the file is big endian, which is not supported; "
                        "convert the model for little endian machines");
  }
  if (version != 2 && version != 3) {
    return reader.Error("the header",
                        absl::StrCat("GGUF version ", version,
                                     " is not supported (supported: 2, 3)"));
  }
  Counts counts;
  QUIRE_ASSIGN_OR_RETURN(counts.num_tensors,
                         reader.Number<uint64_t>("the header"));
  QUIRE_ASSIGN_OR_RETURN(counts.num_keys,
                         reader.Number<uint64_t>("the header"));
  if (counts.num_tensors > kMaxTensors || counts.num_keys > kMaxKeys) {
    return reader.Error(
        "the header",
        absl::StrCat(counts.num_tensors, " tensors and ", counts.num_keys,
                     " keys, more than ", kMaxTensors, " and ", kMaxKeys));
  }
  return counts;
}

absl::Status ReadKeys(Reader& reader, uint64_t num_keys,
                      GgufMetadata& metadata) {
  for (uint64_t i = 0; i < num_keys; ++i) {
    QUIRE_ASSIGN_OR_RETURN(const absl::Span<const uint8_t> name,
                           reader.Text(kMaxNameBytes, absl::StrCat("key ", i)));
    const std::string what = absl::StrCat("key ", Quoted(AsText(name)));
    QUIRE_ASSIGN_OR_RETURN(const uint32_t type, reader.Number<uint32_t>(what));
    GgufValue value;
    QUIRE_RETURN_IF_ERROR(ReadValue(reader, type, what, 1, &value));
    if (!metadata.emplace(std::string(AsText(name)), std::move(value)).second) {
      return reader.Error(what, "duplicate key");
    }
  }
  return absl::OkStatus();
}

struct TensorInfo {
  StoredTensor tensor;
  uint64_t offset = 0;
  uint64_t num_bytes = 0;
};

absl::Status CheckSizes(const Reader& reader, const std::string& what,
                        const TensorType& type, TensorInfo* info) {
  // Innermost last, as it is for the rest of the program.
  std::vector<int64_t>& shape = info->tensor.shape;
  int64_t num_elements = 1;
  for (const int64_t size : shape) {
    if (__builtin_mul_overflow(num_elements, size, &num_elements)) {
      return reader.Error(what, absl::StrCat("shape ", ShapeString(shape),
                                             " has more elements than fit"));
    }
  }
  info->tensor.num_elements = num_elements;
  int64_t units = num_elements;
  int64_t unit_bytes = StoredDTypeSize(type.dtype);
  if (type.format != QuantFormat::kDense) {
    const QuantBlock block = QuantBlockOf(type.format);
    const int64_t cols = shape.empty() ? 1 : shape.back();
    if (cols % block.cols != 0) {
      return reader.Error(
          what, absl::StrCat("rows of ", cols, " elements are no multiple of ",
                             "the ", block.cols, " of a block of ", type.name));
    }
    units = num_elements / block.cols;
    unit_bytes = block.bytes;
  }
  int64_t num_bytes = 0;
  if (__builtin_mul_overflow(units, unit_bytes, &num_bytes)) {
    return reader.Error(what, absl::StrCat("shape ", ShapeString(shape),
                                           " has more bytes than fit"));
  }
  info->num_bytes = static_cast<uint64_t>(num_bytes);
  return absl::OkStatus();
}

absl::Status ReadTensorInfo(Reader& reader, uint64_t idx,
                            const std::string* path, TensorInfo* info) {
  QUIRE_ASSIGN_OR_RETURN(
      const absl::Span<const uint8_t> name,
      reader.Text(kMaxNameBytes, absl::StrCat("tensor ", idx)));
  const std::string what = absl::StrCat("tensor ", Quoted(AsText(name)));
  info->tensor.name = std::string(AsText(name));
  info->tensor.path = path;
  QUIRE_ASSIGN_OR_RETURN(const uint32_t num_dims,
                         reader.Number<uint32_t>(what));
  if (num_dims > kMaxDimensions) {
    return reader.Error(what, absl::StrCat(num_dims, " dimensions, more than ",
                                           kMaxDimensions));
  }
  for (uint32_t i = 0; i < num_dims; ++i) {
    QUIRE_ASSIGN_OR_RETURN(const uint64_t size, reader.Number<uint64_t>(what));
    if (size > static_cast<uint64_t>(INT64_MAX)) {
      return reader.Error(what, absl::StrCat("a dimension of ", size));
    }
    info->tensor.shape.insert(info->tensor.shape.begin(),
                              static_cast<int64_t>(size));
  }
  QUIRE_ASSIGN_OR_RETURN(const uint32_t number, reader.Number<uint32_t>(what));
  QUIRE_ASSIGN_OR_RETURN(info->offset, reader.Number<uint64_t>(what));
  const TensorType* type = FindTensorType(number);
  if (type == nullptr) return reader.Error(what, TensorTypeError(number));
  info->tensor.dtype = type->dtype;
  info->tensor.format = type->format;
  return CheckSizes(reader, what, *type, info);
}

absl::StatusOr<uint64_t> Alignment(const Reader& reader,
                                   const GgufMetadata& metadata) {
  const auto it = metadata.find("general.alignment");
  if (it == metadata.end()) return kDefaultAlignment;
  const std::string what = "key \"general.alignment\"";
  if (it->second.type != GgufType::kU32) {
    return reader.Error(what, absl::StrCat("expected u32, found ",
                                           GgufTypeName(it->second.type)));
  }
  const uint32_t alignment = Load<uint32_t>(it->second.bytes.data());
  if (alignment == 0 || alignment % 8 != 0 || alignment > kMaxAlignment) {
    return reader.Error(what, absl::StrCat(alignment, " is no multiple of 8 up",
                                           " to ", kMaxAlignment));
  }
  return alignment;
}

// Data must lie behind the header, aligned, within the file and apart.
absl::Status PlaceTensors(absl::Span<const uint8_t> file, const Reader& reader,
                          uint64_t alignment, std::vector<TensorInfo>& infos) {
  const uint64_t data_begin =
      (reader.position() + alignment - 1) / alignment * alignment;
  const uint64_t data_size =
      data_begin < file.size() ? file.size() - data_begin : 0;
  std::vector<const TensorInfo*> by_offset;
  std::set<absl::string_view> names;
  for (TensorInfo& info : infos) {
    const std::string what = absl::StrCat("tensor ", Quoted(info.tensor.name));
    if (!names.insert(info.tensor.name).second) {
      return reader.Error(what, "is listed twice");
    }
    if (info.offset % alignment != 0) {
      return reader.Error(what, absl::StrCat("offset ", info.offset,
                                             " is no multiple of the alignment",
                                             " of ", alignment));
    }
    if (info.offset > data_size || info.num_bytes > data_size - info.offset) {
      return absl::DataLossError(absl::StrCat(
          reader.Error(what, "truncated").message(), ": its ", info.num_bytes,
          " bytes at ", info.offset, " end beyond the ", data_size,
          " bytes of data in the file"));
    }
    if (info.num_bytes > 0) {
      info.tensor.data = file.subspan(data_begin + info.offset, info.num_bytes);
      by_offset.push_back(&info);
    }
  }
  std::sort(by_offset.begin(), by_offset.end(),
            [](const TensorInfo* a, const TensorInfo* b) {
              return a->offset < b->offset;
            });
  for (size_t i = 1; i < by_offset.size(); ++i) {
    const TensorInfo& before = *by_offset[i - 1];
    if (by_offset[i]->offset < before.offset + before.num_bytes) {
      return reader.Error(
          absl::StrCat("tensor ", Quoted(by_offset[i]->tensor.name)),
          absl::StrCat("its data at ", by_offset[i]->offset,
                       " overlaps that of ", Quoted(before.tensor.name)));
    }
  }
  return absl::OkStatus();
}

// ------------------------------------------------------- reading of values

struct Scalar {
  bool is_integer = true;
  int64_t integer = 0;
  double number = 0;
};

// A number or bool of type `type` at `bytes`. False for u64 beyond int64.
bool LoadScalar(GgufType type, const uint8_t* bytes, Scalar* scalar) {
  switch (type) {
    case GgufType::kU8:
    case GgufType::kBool:
      scalar->integer = bytes[0];
      break;
    case GgufType::kI8:
      scalar->integer = Load<int8_t>(bytes);
      break;
    case GgufType::kU16:
      scalar->integer = Load<uint16_t>(bytes);
      break;
    case GgufType::kI16:
      scalar->integer = Load<int16_t>(bytes);
      break;
    case GgufType::kU32:
      scalar->integer = Load<uint32_t>(bytes);
      break;
    case GgufType::kI32:
      scalar->integer = Load<int32_t>(bytes);
      break;
    case GgufType::kU64:
      if (Load<uint64_t>(bytes) > static_cast<uint64_t>(INT64_MAX)) {
        return false;
      }
      scalar->integer = Load<int64_t>(bytes);
      break;
    case GgufType::kI64:
      scalar->integer = Load<int64_t>(bytes);
      break;
    case GgufType::kF32:
      scalar->is_integer = false;
      scalar->number = Load<float>(bytes);
      return true;
    case GgufType::kF64:
      scalar->is_integer = false;
      scalar->number = Load<double>(bytes);
      return true;
    default:
      return false;
  }
  scalar->number = static_cast<double>(scalar->integer);
  return true;
}

// NAME-00002-of-00003.gguf: the name with another number; empty if `path` is
// not of that form.
std::string PartPath(const std::string& path, int64_t part, int64_t count) {
  // "-00002-of-00003.gguf"
  constexpr size_t kTail = 20;
  if (path.size() < kTail) return "";
  return absl::StrCat(path.substr(0, path.size() - kTail),
                      absl::StrFormat("-%05d-of-%05d", part + 1, count),
                      path.substr(path.size() - 5));
}

}  // namespace

const char* GgufTypeName(GgufType type) {
  constexpr const char* kNames[] = {"u8",  "i8",  "u16",  "i16",    "u32",
                                    "i32", "f32", "bool", "string", "array",
                                    "u64", "i64", "f64"};
  return kNames[static_cast<size_t>(type)];
}

absl::Status ParseGguf(absl::Span<const uint8_t> file, const std::string* path,
                       GgufMetadata& metadata,
                       std::vector<StoredTensor>& tensors) {
  Reader reader(file, *path);
  QUIRE_ASSIGN_OR_RETURN(const Counts counts, ReadStart(reader));
  GgufMetadata keys;
  QUIRE_RETURN_IF_ERROR(ReadKeys(reader, counts.num_keys, keys));
  // Name, count, type and offset: what an entry takes at least.
  constexpr uint64_t kMinInfoBytes = 8 + 4 + 4 + 8;
  if (counts.num_tensors * kMinInfoBytes > reader.remaining()) {
    return absl::DataLossError(
        absl::StrCat(*path, ": truncated: ", counts.num_tensors,
                     " tensors do not fit into the file"));
  }
  std::vector<TensorInfo> infos(counts.num_tensors);
  for (uint64_t i = 0; i < counts.num_tensors; ++i) {
    QUIRE_RETURN_IF_ERROR(ReadTensorInfo(reader, i, path, &infos[i]));
  }
  QUIRE_ASSIGN_OR_RETURN(const uint64_t alignment, Alignment(reader, keys));
  QUIRE_RETURN_IF_ERROR(PlaceTensors(file, reader, alignment, infos));
  metadata.merge(keys);
  for (TensorInfo& info : infos) tensors.push_back(std::move(info.tensor));
  return absl::OkStatus();
}

absl::StatusOr<std::shared_ptr<const GgufFile>> GgufFile::Parse(
    absl::Span<const uint8_t> bytes, std::string path) {
  auto file = std::shared_ptr<GgufFile>(new GgufFile);
  file->path_ = std::move(path);
  QUIRE_RETURN_IF_ERROR(
      ParseGguf(bytes, &file->path_, file->metadata_, file->tensors_));
  QUIRE_ASSIGN_OR_RETURN(const std::optional<int64_t> count,
                         file->Int("split.count", 0, kMaxParts));
  if (count.value_or(0) > 1) {
    return file->Error("split.count", "the other parts are not there");
  }
  QUIRE_RETURN_IF_ERROR(file->IndexTensors());
  return file;
}

absl::StatusOr<std::shared_ptr<const GgufFile>> GgufFile::Open(
    const std::string& path) {
  auto file = std::shared_ptr<GgufFile>(new GgufFile);
  file->path_ = path;
  QUIRE_ASSIGN_OR_RETURN(std::shared_ptr<const MappedFile> mapped,
                         MappedFile::Open(path));
  file->files_.push_back(mapped);
  QUIRE_RETURN_IF_ERROR(ParseGguf(mapped->bytes(), &mapped->path(),
                                  file->metadata_, file->tensors_));
  QUIRE_ASSIGN_OR_RETURN(const std::optional<int64_t> part,
                         file->Int("split.no", 0, kMaxParts));
  QUIRE_ASSIGN_OR_RETURN(const std::optional<int64_t> count,
                         file->Int("split.count", 0, kMaxParts));
  if (count.value_or(0) > 1 && part.value_or(0) != 0) {
    if (PartPath(path, *part, *count) != path) {
      return file->Error("split.no",
                         absl::StrCat(*part, " in a file that is not called ",
                                      "NAME-00001-of-0000N.gguf"));
    }
    return Open(PartPath(path, 0, *count));
  }
  if (count.value_or(0) > 1) QUIRE_RETURN_IF_ERROR(file->AddParts());
  QUIRE_RETURN_IF_ERROR(file->IndexTensors());
  return file;
}

absl::Status GgufFile::IndexTensors() {
  for (size_t i = 0; i < tensors_.size(); ++i) {
    const StoredTensor& tensor = tensors_[i];
    const auto [it, is_new] = tensor_idx_.emplace(tensor.name, i);
    if (!is_new) {
      return absl::InvalidArgumentError(
          absl::StrCat(*tensor.path, ": tensor ", Quoted(tensor.name),
                       " is also in ", *tensors_[it->second].path));
    }
  }
  QUIRE_ASSIGN_OR_RETURN(const std::optional<int64_t> num_tensors,
                         Int("split.tensors.count", 0, INT64_MAX));
  if (files_.size() > 1 && num_tensors &&
      *num_tensors != static_cast<int64_t>(tensors_.size())) {
    return Error("split.tensors.count",
                 absl::StrCat(*num_tensors, ", but the parts have ",
                              tensors_.size(), " tensors"));
  }
  return absl::OkStatus();
}

absl::Status GgufFile::AddParts() {
  QUIRE_ASSIGN_OR_RETURN(const std::optional<int64_t> count,
                         Int("split.count", 2, kMaxParts));
  const std::string first = path();
  if (PartPath(first, 0, *count) != first) {
    return Error("split.count",
                 absl::StrCat(*count, ", but the file's name does not end in ",
                              absl::StrFormat("-00001-of-%05d.gguf", *count)));
  }
  for (int64_t part = 1; part < *count; ++part) {
    const std::string path = PartPath(first, part, *count);
    QUIRE_ASSIGN_OR_RETURN(std::shared_ptr<const MappedFile> file,
                           MappedFile::Open(path));
    files_.push_back(file);
    GgufFile own;  // Its keys alone, to see what it says it is.
    own.path_ = path;
    QUIRE_RETURN_IF_ERROR(
        ParseGguf(file->bytes(), &file->path(), own.metadata_, tensors_));
    QUIRE_ASSIGN_OR_RETURN(const std::optional<int64_t> own_part,
                           own.Int("split.no", 0, kMaxParts));
    QUIRE_ASSIGN_OR_RETURN(const std::optional<int64_t> own_count,
                           own.Int("split.count", 0, kMaxParts));
    if (own_part != part || own_count != *count) {
      return own.Error(
          "split.no",
          absl::StrCat("expected part ", part, " of ", *count, ", found ",
                       own_part.value_or(-1), " of ", own_count.value_or(-1)));
    }
  }
  return absl::OkStatus();
}

const StoredTensor* GgufFile::FindTensor(absl::string_view name) const {
  const auto it = tensor_idx_.find(std::string(name));
  return it == tensor_idx_.end() ? nullptr : &tensors_[it->second];
}

const GgufValue* GgufFile::Find(absl::string_view key) const {
  const auto it = metadata_.find(std::string(key));
  return it == metadata_.end() ? nullptr : &it->second;
}

bool GgufFile::Has(absl::string_view key) const { return Find(key) != nullptr; }

absl::Status GgufFile::Error(absl::string_view key,
                             absl::string_view message) const {
  return absl::InvalidArgumentError(
      absl::StrCat(path(), ": key ", Quoted(key), ": ", message));
}

absl::StatusOr<std::optional<int64_t>> GgufFile::Int(absl::string_view key,
                                                     int64_t min,
                                                     int64_t max) const {
  const GgufValue* value = Find(key);
  if (value == nullptr) return std::optional<int64_t>();
  Scalar scalar;
  if (value->type == GgufType::kBool || value->type == GgufType::kString ||
      value->type == GgufType::kArray ||
      !LoadScalar(value->type, value->bytes.data(), &scalar) ||
      !scalar.is_integer || scalar.integer < min || scalar.integer > max) {
    return Error(
        key, absl::StrCat(
                 "expected an integer in [", min, ", ", max, "], found ",
                 GgufTypeName(value->type),
                 scalar.is_integer ? absl::StrCat(" ", scalar.integer) : ""));
  }
  return std::optional<int64_t>(scalar.integer);
}

absl::StatusOr<std::optional<double>> GgufFile::Number(absl::string_view key,
                                                       double min,
                                                       double max) const {
  const GgufValue* value = Find(key);
  if (value == nullptr) return std::optional<double>();
  Scalar scalar;
  const bool is_number = value->type != GgufType::kBool &&
                         value->type != GgufType::kString &&
                         value->type != GgufType::kArray &&
                         LoadScalar(value->type, value->bytes.data(), &scalar);
  // NaN fails both comparisons.
  if (!is_number || !(scalar.number >= min && scalar.number <= max)) {
    return Error(
        key, absl::StrCat("expected a number in [", min, ", ", max, "], found ",
                          GgufTypeName(value->type),
                          is_number ? absl::StrCat(" ", scalar.number) : ""));
  }
  return std::optional<double>(scalar.number);
}

absl::StatusOr<std::optional<bool>> GgufFile::Bool(
    absl::string_view key) const {
  const GgufValue* value = Find(key);
  if (value == nullptr) return std::optional<bool>();
  if (value->type != GgufType::kBool) {
    return Error(
        key, absl::StrCat("expected bool, found ", GgufTypeName(value->type)));
  }
  return std::optional<bool>(value->bytes[0] != 0);
}

absl::StatusOr<std::optional<absl::string_view>> GgufFile::String(
    absl::string_view key) const {
  const GgufValue* value = Find(key);
  if (value == nullptr) return std::optional<absl::string_view>();
  if (value->type != GgufType::kString) {
    return Error(key, absl::StrCat("expected string, found ",
                                   GgufTypeName(value->type)));
  }
  return std::optional<absl::string_view>(value->text());
}

absl::StatusOr<std::vector<int64_t>> GgufFile::Ints(absl::string_view key,
                                                    int64_t min,
                                                    int64_t max) const {
  std::vector<int64_t> result;
  const GgufValue* value = Find(key);
  if (value == nullptr) return result;
  const bool is_array = value->type == GgufType::kArray;
  const GgufType type = is_array ? value->element_type : value->type;
  const int size = SizeOf(static_cast<uint32_t>(type));
  const int64_t count = is_array ? value->count : 1;
  if (size == 0 || type == GgufType::kF32 || type == GgufType::kF64) {
    return Error(
        key, absl::StrCat("expected integers, found ",
                          is_array ? "an array of " : "", GgufTypeName(type)));
  }
  result.reserve(count);
  for (int64_t i = 0; i < count; ++i) {
    Scalar scalar;
    if (!LoadScalar(type, value->bytes.data() + i * size, &scalar) ||
        scalar.integer < min || scalar.integer > max) {
      return Error(key,
                   absl::StrCat("element ", i, ": expected an integer in ", "[",
                                min, ", ", max, "], found ", scalar.integer));
    }
    result.push_back(scalar.integer);
  }
  return result;
}

absl::StatusOr<std::vector<float>> GgufFile::Floats(
    absl::string_view key) const {
  std::vector<float> result;
  const GgufValue* value = Find(key);
  if (value == nullptr) return result;
  if (value->type != GgufType::kArray ||
      value->element_type != GgufType::kF32) {
    return Error(key, absl::StrCat("expected an array of f32, found ",
                                   GgufTypeName(value->type)));
  }
  result.resize(value->count);
  if (!result.empty()) {
    std::memcpy(result.data(), value->bytes.data(), value->bytes.size());
  }
  return result;
}

absl::StatusOr<absl::string_view> GgufFile::Bytes(absl::string_view key) const {
  const GgufValue* value = Find(key);
  if (value == nullptr) return absl::string_view();
  if (value->type != GgufType::kArray ||
      (value->element_type != GgufType::kU8 &&
       value->element_type != GgufType::kI8)) {
    return Error(key, absl::StrCat("expected an array of u8, found ",
                                   GgufTypeName(value->type)));
  }
  return value->text();
}

absl::StatusOr<const std::vector<absl::string_view>*> GgufFile::Strings(
    absl::string_view key) const {
  const GgufValue* value = Find(key);
  if (value == nullptr) return nullptr;
  if (value->type != GgufType::kArray ||
      value->element_type != GgufType::kString) {
    return Error(key, absl::StrCat("expected an array of strings, found ",
                                   GgufTypeName(value->type)));
  }
  return &value->strings;
}

}  // namespace quire
