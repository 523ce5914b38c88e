// Writes GGUF files, for tests.
#ifndef QUIRE_ENGINE_WEIGHTS_GGUF_FIXTURE_H_
#define QUIRE_ENGINE_WEIGHTS_GGUF_FIXTURE_H_

#include <cstdint>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/string_view.h"
#include "engine/weights/gguf.h"

namespace quire {

// Numbers of tensor types in the files.
struct GgufTensorType {
  static constexpr uint32_t kF32 = 0;
  static constexpr uint32_t kF16 = 1;
  static constexpr uint32_t kQ4_0 = 2;
  static constexpr uint32_t kQ4_1 = 3;
  static constexpr uint32_t kQ5_0 = 6;
  static constexpr uint32_t kQ5_1 = 7;
  static constexpr uint32_t kQ8_0 = 8;
  static constexpr uint32_t kQ2_K = 10;
  static constexpr uint32_t kQ3_K = 11;
  static constexpr uint32_t kQ4_K = 12;
  static constexpr uint32_t kQ5_K = 13;
  static constexpr uint32_t kQ6_K = 14;
  static constexpr uint32_t kIQ4_NL = 20;
  static constexpr uint32_t kIQ4_XS = 23;
  static constexpr uint32_t kBF16 = 30;
  static constexpr uint32_t kMXFP4 = 39;
};

// Keys and tensors in the order in which they are added.
class GgufWriter {
 public:
  void Raw(absl::string_view key, GgufType type, absl::string_view bytes) {
    PutString(key, &keys_);
    Put(static_cast<uint32_t>(type), &keys_);
    keys_.append(bytes.data(), bytes.size());
    ++num_keys_;
  }
  void U32(absl::string_view key, uint32_t value) {
    Raw(key, GgufType::kU32, Bytes(value));
  }
  void F32(absl::string_view key, float value) {
    Raw(key, GgufType::kF32, Bytes(value));
  }
  void Bool(absl::string_view key, bool value) {
    Raw(key, GgufType::kBool, std::string(1, value ? 1 : 0));
  }
  void String(absl::string_view key, absl::string_view value) {
    Raw(key, GgufType::kString, StringBytes(value));
  }
  void Strings(absl::string_view key, const std::vector<std::string>& values) {
    std::string elements;
    for (const std::string& value : values) elements += StringBytes(value);
    Array(key, GgufType::kString, values.size(), elements);
  }
  void I32s(absl::string_view key, const std::vector<int32_t>& values) {
    Array(key, GgufType::kI32, values.size(), ArrayBytes(values));
  }
  void F32s(absl::string_view key, const std::vector<float>& values) {
    Array(key, GgufType::kF32, values.size(), ArrayBytes(values));
  }
  void Array(absl::string_view key, GgufType element, uint64_t count,
             absl::string_view elements) {
    std::string value;
    Put(static_cast<uint32_t>(element), &value);
    Put(count, &value);
    Raw(key, GgufType::kArray, value + std::string(elements));
  }

  // `shape` is outermost first.
  void Tensor(absl::string_view name, uint32_t type,
              const std::vector<int64_t>& shape, std::string data) {
    Pad(&data_);
    TensorAt(name, type, shape, data_.size());
    data_ += data;
  }
  // An entry that says its data is at `offset`.
  void TensorAt(absl::string_view name, uint32_t type,
                const std::vector<int64_t>& shape, uint64_t offset) {
    PutString(name, &tensors_);
    Put(static_cast<uint32_t>(shape.size()), &tensors_);
    for (size_t i = shape.size(); i > 0; --i) {
      Put(static_cast<uint64_t>(shape[i - 1]), &tensors_);
    }
    Put(type, &tensors_);
    Put(offset, &tensors_);
    ++num_tensors_;
  }

  void set_version(uint32_t version) { version_ = version; }
  // The caller adds the key general.alignment.
  void set_alignment(uint64_t alignment) { alignment_ = alignment; }

  std::string Build() const {
    std::string file = "GGUF";
    Put(version_, &file);
    Put(num_tensors_, &file);
    Put(num_keys_, &file);
    file += keys_ + tensors_;
    Pad(&file);
    return file + data_;
  }

  template <typename T>
  static std::string Bytes(T value) {
    std::string bytes;
    Put(value, &bytes);
    return bytes;
  }
  template <typename T>
  static std::string ArrayBytes(const std::vector<T>& values) {
    return std::string(reinterpret_cast<const char*>(values.data()),
                       values.size() * sizeof(T));
  }
  static std::string StringBytes(absl::string_view text) {
    std::string bytes;
    PutString(text, &bytes);
    return bytes;
  }

 private:
  template <typename T>
  static void Put(T value, std::string* out) {
    out->append(reinterpret_cast<const char*>(&value), sizeof(T));
  }
  static void PutString(absl::string_view text, std::string* out) {
    Put(static_cast<uint64_t>(text.size()), out);
    out->append(text.data(), text.size());
  }
  void Pad(std::string* out) const {
    out->resize((out->size() + alignment_ - 1) / alignment_ * alignment_);
  }

  uint32_t version_ = 3;
  uint64_t alignment_ = 32;
  uint64_t num_keys_ = 0;
  uint64_t num_tensors_ = 0;
  std::string keys_, tensors_, data_;
};

}  // namespace quire

#endif  // QUIRE_ENGINE_WEIGHTS_GGUF_FIXTURE_H_
