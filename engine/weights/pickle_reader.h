// A pickle of tensors, as torch.save writes it, without executing anything.
// For pytorch_file.cc, which says more.
#ifndef QUIRE_ENGINE_WEIGHTS_PICKLE_READER_H_
#define QUIRE_ENGINE_WEIGHTS_PICKLE_READER_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "engine/weights/stored_tensor.h"

namespace quire {

// A view of a storage; nothing is checked against the storage's bytes.
struct PickledTensor {
  std::string name;
  StoredDType dtype = StoredDType::kF32;
  std::string storage_key;
  int64_t storage_elements = 0;  // What the pickle says.
  int64_t offset = 0;            // In elements, >= 0.
  std::vector<int64_t> shape;    // Each >= 0.
  std::vector<int64_t> strides;  // As many.
};

// The tensors of the dictionary, in its order; of its entry "state_dict" if it
// has one. Entries that are no tensors are left out. INVALID_ARGUMENT, naming
// `path`, for anything else than a dictionary of tensors, a name that is not in
// the list of what is known, and two entries of one name.
absl::StatusOr<std::vector<PickledTensor>> ReadTensorPickle(
    absl::Span<const uint8_t> pickle, const std::string& path);

}  // namespace quire

#endif  // QUIRE_ENGINE_WEIGHTS_PICKLE_READER_H_
