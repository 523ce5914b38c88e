// Any bytes as a file of torch.save.
#include <cstdint>
#include <cstdlib>
#include <string>
#include <vector>

#include "engine/weights/pytorch_file.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const std::string* const path = new std::string("fuzz");
  std::vector<quire::StoredTensor> tensors;
  const absl::Status status =
      quire::ParsePytorchFile(absl::MakeConstSpan(data, size), path, tensors);
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
