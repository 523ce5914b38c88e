#include "engine/weights/pytorch_file.h"

#include <optional>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "engine/base/status.h"
#include "engine/weights/pickle_reader.h"
#include "engine/weights/zip_archive.h"

namespace quire {
namespace {

constexpr uint8_t kZipStart[] = {'P', 'K', 3, 4};

absl::Status TensorError(const std::string& path, const PickledTensor& tensor,
                         absl::string_view message) {
  return absl::InvalidArgumentError(
      absl::StrCat(path, ": tensor ", Quoted(tensor.name), ": ", message));
}

// The number of elements, if it and the bytes of all fit 64 bits.
std::optional<int64_t> CountElements(const PickledTensor& tensor) {
  int64_t count = 1;
  int64_t num_bytes = 0;
  for (const int64_t size : tensor.shape) {
    if (__builtin_mul_overflow(count, size, &count)) return std::nullopt;
  }
  if (__builtin_mul_overflow(count, StoredDTypeSize(tensor.dtype),
                             &num_bytes)) {
    return std::nullopt;
  }
  return count;
}

// Whether the elements follow one another.
bool IsContiguous(const PickledTensor& tensor) {
  int64_t expected = 1;
  for (size_t i = tensor.shape.size(); i-- > 0;) {
    if (tensor.shape[i] != 1 && tensor.strides[i] != expected) return false;
    expected *= tensor.shape[i];
  }
  return true;
}

absl::StatusOr<StoredTensor> Resolve(const PickledTensor& tensor,
                                     const std::string& prefix,
                                     const ZipEntries& files,
                                     const std::string* path) {
  const auto storage =
      files.find(absl::StrCat(prefix, "data/", tensor.storage_key));
  if (storage == files.end()) {
    return TensorError(*path, tensor,
                       absl::StrCat("storage ", Quoted(tensor.storage_key),
                                    " is not in the archive"));
  }
  const std::optional<int64_t> count = CountElements(tensor);
  if (!count) {
    return TensorError(*path, tensor,
                       absl::StrCat("shape ", ShapeString(tensor.shape),
                                    " has more elements than fit"));
  }
  const int64_t size = StoredDTypeSize(tensor.dtype);
  const int64_t available = static_cast<int64_t>(storage->second.size()) / size;
  if (tensor.offset > available || *count > available - tensor.offset) {
    return TensorError(
        *path, tensor,
        absl::StrCat("shape ", ShapeString(tensor.shape), " at element ",
                     tensor.offset, " lies outside its storage of ", available,
                     " elements"));
  }
  if (*count > 0 && !IsContiguous(tensor)) {
    return TensorError(*path, tensor,
                       absl::StrCat("strides ", ShapeString(tensor.strides),
                                    " of shape ", ShapeString(tensor.shape),
                                    ": only contiguous tensors are supported"));
  }
  StoredTensor stored;
  stored.name = tensor.name;
  stored.dtype = tensor.dtype;
  stored.shape = tensor.shape;
  stored.num_elements = *count;
  stored.data = storage->second.subspan(tensor.offset * size, *count * size);
  stored.path = path;
  return stored;
}

}  // namespace

absl::Status ParsePytorchFile(absl::Span<const uint8_t> file,
                              const std::string* path,
                              std::vector<StoredTensor>& tensors) {
  if (file.size() < sizeof(kZipStart) ||
      file.subspan(0, sizeof(kZipStart)) != absl::MakeConstSpan(kZipStart)) {
    return absl::InvalidArgumentError(absl::StrCat(
        *path,
        ": not a zip archive, as PyTorch 1.6 and later write; the older format "
        "is not supported (save it again with torch.save, or as safetensors)"));
  }
  QUIRE_ASSIGN_OR_RETURN(const ZipEntries files, ParseZip(file, *path));
  const absl::Span<const uint8_t>* pickle = nullptr;
  std::string prefix;
  for (const auto& [name, data] : files) {
    if (!absl::EndsWith(name, "/data.pkl")) continue;
    if (pickle != nullptr) {
      return absl::InvalidArgumentError(
          absl::StrCat(*path, ": holds more than one data.pkl"));
    }
    pickle = &data;
    prefix = std::string(absl::StripSuffix(name, "data.pkl"));
  }
  if (pickle == nullptr) {
    return absl::InvalidArgumentError(
        absl::StrCat(*path, ": holds no data.pkl: not a file of torch.save"));
  }
  const auto order = files.find(prefix + "byteorder");
  if (order != files.end() &&
      absl::string_view(reinterpret_cast<const char*>(order->second.data()),
                        order->second.size()) != "little") {
    return absl::InvalidArgumentError(
        absl::StrCat(*path, ": its byte order is not little endian"));
  }
  QUIRE_ASSIGN_OR_RETURN(const std::vector<PickledTensor> pickled,
                         ReadTensorPickle(*pickle, *path));
  std::vector<StoredTensor> parsed;
  parsed.reserve(pickled.size());
  for (const PickledTensor& tensor : pickled) {
    QUIRE_ASSIGN_OR_RETURN(StoredTensor stored,
                           Resolve(tensor, prefix, files, path));
    parsed.push_back(std::move(stored));
  }
  std::move(parsed.begin(), parsed.end(), std::back_inserter(tensors));
  return absl::OkStatus();
}

}  // namespace quire
