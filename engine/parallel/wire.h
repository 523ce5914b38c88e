// Plain data to bytes and back, for messages between ranks. Both sides are the
// same build on machines of the same byte order (they compare versions first);
// what arrives is untrusted all the same: no length is believed before as many
// bytes are there.
#ifndef QUIRE_ENGINE_PARALLEL_WIRE_H_
#define QUIRE_ENGINE_PARALLEL_WIRE_H_

#include <cstdint>
#include <cstring>
#include <memory>
#include <optional>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "absl/strings/string_view.h"

namespace quire {

// A struct takes part by a function beside it, used in both directions:
//   template <typename Wire> void Visit(Wire& wire, MyStruct& value) {
//     auto& [a, b] = value;  // Does not compile once there is a third field.
//     wire(a); wire(b);
//   }
class WireWriter {
 public:
  static constexpr bool kIsReader = false;
  // Appends to `out`, which is borrowed.
  explicit WireWriter(std::string* out) : out_(out) {}

  template <typename T>
  void operator()(const T& value) {
    if constexpr (std::is_arithmetic_v<T> || std::is_enum_v<T>) {
      Append(&value, sizeof(T));
    } else {
      // Visit serves both directions, so it takes what a reader may change.
      Visit(*this, const_cast<T&>(value));
    }
  }
  void operator()(const std::string& value) {
    (*this)(static_cast<uint32_t>(value.size()));
    Append(value.data(), value.size());
  }
  template <typename T>
  void operator()(const std::vector<T>& values) {
    (*this)(static_cast<uint32_t>(values.size()));
    if constexpr (std::is_arithmetic_v<T>) {
      Append(values.data(), values.size() * sizeof(T));
    } else {
      for (const T& value : values) (*this)(value);
    }
  }
  template <typename A, typename B>
  void operator()(const std::pair<A, B>& value) {
    (*this)(value.first);
    (*this)(value.second);
  }
  template <typename T>
  void operator()(const std::optional<T>& value) {
    (*this)(value.has_value());
    if (value.has_value()) (*this)(*value);
  }

 private:
  void Append(const void* data, size_t size) {
    out_->append(static_cast<const char*>(data), size);
  }

  std::string* const out_;
};

// After the first thing that is wrong, everything reads as zero or empty.
class WireReader {
 public:
  static constexpr bool kIsReader = true;
  explicit WireReader(absl::string_view bytes) : bytes_(bytes) {}

  // False if something was missing or no value of its type.
  bool ok() const { return ok_; }
  // Nothing was wrong, and nothing is left over.
  bool AtEnd() const { return ok_ && bytes_.empty(); }
  void Fail() {
    ok_ = false;
    bytes_ = {};
  }

  template <typename T>
  void operator()(T& value) {
    if constexpr (std::is_same_v<T, bool>) {
      uint8_t byte = 0;
      Take(&byte, 1);
      if (byte > 1) Fail();
      value = byte == 1;
    } else if constexpr (std::is_arithmetic_v<T> || std::is_enum_v<T>) {
      Take(&value, sizeof(T));
    } else {
      Visit(*this, value);
    }
  }
  void operator()(std::string& value) {
    const size_t size = TakeCount(1);
    value.assign(bytes_.substr(0, size).data(), size);
    bytes_.remove_prefix(size);
  }
  template <typename T>
  void operator()(std::vector<T>& values) {
    // What is not a number takes a byte at least.
    const size_t size = TakeCount(std::is_arithmetic_v<T> ? sizeof(T) : 1);
    values.clear();
    if constexpr (std::is_arithmetic_v<T>) {
      values.resize(size);
      Take(values.data(), size * sizeof(T));
    } else {
      for (size_t i = 0; i < size && ok_; ++i) (*this)(values.emplace_back());
    }
  }
  template <typename A, typename B>
  void operator()(std::pair<A, B>& value) {
    (*this)(value.first);
    (*this)(value.second);
  }
  template <typename T>
  void operator()(std::optional<T>& value) {
    bool has_value = false;
    (*this)(has_value);
    value.reset();
    if (has_value) (*this)(value.emplace());
  }

 private:
  void Take(void* to, size_t size) {
    if (size > bytes_.size()) Fail();
    if (!ok_) {
      if (size > 0) std::memset(to, 0, size);
      return;
    }
    if (size > 0) std::memcpy(to, bytes_.data(), size);
    bytes_.remove_prefix(size);
  }
  size_t TakeCount(size_t min_bytes_each) {
    uint32_t count = 0;
    Take(&count, sizeof(count));
    if (count > bytes_.size() / min_bytes_each) Fail();
    return ok_ ? count : 0;
  }

  absl::string_view bytes_;
  bool ok_ = true;
};

}  // namespace quire

#endif  // QUIRE_ENGINE_PARALLEL_WIRE_H_
