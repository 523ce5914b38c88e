// Any bytes as a GGUF file.
#include <cstdint>
#include <cstdlib>
#include <string>
#include <vector>

#include "engine/weights/gguf.h"

namespace {

uint64_t Sum(const quire::GgufValue& value) {
  uint64_t sum = 0;
  for (const uint8_t byte : value.bytes) sum += byte;
  for (const absl::string_view text : value.strings) {
    for (const char c : text) sum += static_cast<unsigned char>(c);
  }
  for (const quire::GgufValue& element : value.arrays) sum += Sum(element);
  return sum;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const std::string* const path = new std::string("fuzz");
  quire::GgufMetadata metadata;
  std::vector<quire::StoredTensor> tensors;
  const absl::Status status = quire::ParseGguf(absl::MakeConstSpan(data, size),
                                               path, metadata, tensors);
  // A failed parse leaves nothing; a successful one stays within the file.
  if (!status.ok() && (!tensors.empty() || !metadata.empty())) std::abort();
  uint64_t sum = 0;
  for (const auto& [key, value] : metadata) sum += Sum(value);
  for (const quire::StoredTensor& tensor : tensors) {
    for (const uint8_t byte : tensor.data) sum += byte;
  }
  return sum == ~uint64_t{0};
}
