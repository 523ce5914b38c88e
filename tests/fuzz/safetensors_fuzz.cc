// libFuzzer target: any bytes as a safetensors file.
//
//   clang++-19 -std=c++20 -g -O1 -fsanitize=fuzzer,address,undefined -I.
//     tests/fuzz/safetensors_fuzz.cc engine/weights/safetensors.cc
//     engine/weights/mapped_file.cc -o safetensors_fuzz
//     $(pkg-config --libs absl_status absl_statusor absl_strings)
//   ./safetensors_fuzz -max_total_time=60
#include <cstdint>
#include <cstdlib>
#include <string>
#include <vector>

#include "engine/weights/safetensors.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const std::string* const path = new std::string("fuzz");
  std::vector<quire::StoredTensor> tensors;
  const absl::Status status = quire::ParseSafetensors(
      absl::MakeConstSpan(data, size), path, tensors);
  // A failed parse leaves nothing; a successful one stays within the file.
  if (!status.ok() && !tensors.empty()) std::abort();
  uint64_t sum = 0;
  for (const quire::StoredTensor& tensor : tensors) {
    if (tensor.data.size() !=
        static_cast<uint64_t>(tensor.num_elements *
                              quire::StoredDTypeSize(tensor.dtype))) {
      std::abort();
    }
    for (const uint8_t byte : tensor.data) sum += byte;
  }
  return sum == ~uint64_t{0};
}
