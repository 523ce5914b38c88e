// Reader of GGUF files, versions 2 and 3, single or split.
//
// Format (ggml-org/ggml, docs/gguf.md), all little endian:
//
//   | "GGUF" | u32 version | u64 num_tensors | u64 num_keys |
//   | keys: string name, u32 type, value                    |
//   | tensors: string name, u32 n, u64 shape[n], u32 type, u64 offset |
//   | padding to the alignment | data                       |
//
// A string is a u64 length and its bytes; an array is a u32 type, a u64 count
// and its elements. Shapes begin with the innermost dimension; offsets count
// from the data. The alignment is 32 or what general.alignment says.
//
// A split model is files NAME-00001-of-0000N.gguf whose keys split.no,
// split.count and split.tensors.count say what belongs together; the first one
// has the other keys.
//
// Everything in a file is untrusted: all sizes are checked before use, and
// every error message names the file and, where there is one, the key or the
// tensor. Nothing is copied: texts and data are views of the mapped files.
#ifndef QUIRE_ENGINE_WEIGHTS_GGUF_H_
#define QUIRE_ENGINE_WEIGHTS_GGUF_H_

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "engine/weights/mapped_file.h"
#include "engine/weights/safetensors.h"

namespace quire {

// Types of values, numbered as in the files.
enum class GgufType : uint8_t {
  kU8 = 0,
  kI8 = 1,
  kU16 = 2,
  kI16 = 3,
  kU32 = 4,
  kI32 = 5,
  kF32 = 6,
  kBool = 7,
  kString = 8,
  kArray = 9,
  kU64 = 10,
  kI64 = 11,
  kF64 = 12,
};

// "u32".
const char* GgufTypeName(GgufType type);

struct GgufValue {
  GgufType type = GgufType::kU8;
  // The file's bytes of a number (not aligned), or the characters of a string.
  absl::Span<const uint8_t> bytes;
  // kArray.
  GgufType element_type = GgufType::kU8;
  int64_t count = 0;
  // Of numbers: `bytes` has them all. Of strings and of arrays:
  std::vector<absl::string_view> strings;
  std::vector<GgufValue> arrays;

  absl::string_view text() const {
    return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
  }
};

// Ordered by name.
using GgufMetadata = std::map<std::string, GgufValue, std::less<>>;

// Parses the content of one file: appends its tensors to `tensors`, in file
// order with shapes outermost first, and adds its keys to `metadata`, which
// keeps those that it has. Their data
// points into `file`; `path` names it in messages and must outlive the tensors.
// INVALID_ARGUMENT for anything malformed or not supported (another version,
// big endian, a tensor type that quire does not have); DATA_LOSS if the file is
// shorter than it says. On an error both are unchanged.
absl::Status ParseGguf(absl::Span<const uint8_t> file, const std::string* path,
                       GgufMetadata& metadata,
                       std::vector<StoredTensor>& tensors);

// A model in one or several files. Immutable after Open; thread-safe.
class GgufFile {
 public:
  // Opens `path` and, if it is part of a split model, all other parts, which
  // must lie beside it. NOT_FOUND, naming it, for a file that is not there;
  // otherwise as ParseGguf; INVALID_ARGUMENT if the parts do not fit together.
  static absl::StatusOr<std::shared_ptr<const GgufFile>> Open(
      const std::string& path);

  // A file that is in memory already; `bytes` must outlive the result. Parts of
  // split models are INVALID_ARGUMENT.
  static absl::StatusOr<std::shared_ptr<const GgufFile>> Parse(
      absl::Span<const uint8_t> bytes, std::string path);

  // The first file.
  const std::string& path() const { return path_; }
  const GgufMetadata& metadata() const { return metadata_; }
  const std::vector<StoredTensor>& tensors() const { return tensors_; }
  // What was opened; empty after Parse.
  const std::vector<std::shared_ptr<const MappedFile>>& files() const {
    return files_;
  }
  // Null if there is none.
  const StoredTensor* FindTensor(absl::string_view name) const;

  // Values by key; none if it is absent. INVALID_ARGUMENT, naming file and key,
  // for another type or a value out of range.
  bool Has(absl::string_view key) const;
  absl::StatusOr<std::optional<int64_t>> Int(absl::string_view key, int64_t min,
                                             int64_t max) const;
  // Finite, in [min, max]; integers count as well.
  absl::StatusOr<std::optional<double>> Number(absl::string_view key,
                                               double min, double max) const;
  absl::StatusOr<std::optional<bool>> Bool(absl::string_view key) const;
  // UTF-8 is not checked.
  absl::StatusOr<std::optional<absl::string_view>> String(
      absl::string_view key) const;
  // Arrays; empty if absent. Integers and booleans, one alone too.
  absl::StatusOr<std::vector<int64_t>> Ints(absl::string_view key, int64_t min,
                                            int64_t max) const;
  absl::StatusOr<std::vector<float>> Floats(absl::string_view key) const;
  // An array of u8 or i8 as it is; empty if absent.
  absl::StatusOr<absl::string_view> Bytes(absl::string_view key) const;
  // Null if absent.
  absl::StatusOr<const std::vector<absl::string_view>*> Strings(
      absl::string_view key) const;

  // INVALID_ARGUMENT: "FILE: key "KEY": message".
  absl::Status Error(absl::string_view key, absl::string_view message) const;

 private:
  GgufFile() = default;

  absl::Status AddParts();
  absl::Status IndexTensors();

  const GgufValue* Find(absl::string_view key) const;

  std::string path_;
  std::vector<std::shared_ptr<const MappedFile>> files_;
  GgufMetadata metadata_;
  std::vector<StoredTensor> tensors_;
  std::map<std::string, size_t, std::less<>> tensor_idx_;
};

}  // namespace quire

#endif  // QUIRE_ENGINE_WEIGHTS_GGUF_H_
