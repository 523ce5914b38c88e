// Reader of PyTorch's files of tensors (pytorch_model.bin), as torch.save
// writes them since 1.6: a zip archive of
//
//   NAME/data.pkl     a pickle: a dictionary of tensors
//   NAME/data/KEY     the elements of storage KEY
//   NAME/byteorder    "little", or absent
//
// The pickle is read by an interpreter that knows the opcodes that torch.save
// writes and executes nothing: a fixed list of names (torch's functions that
// rebuild tensors, its storage types and dtypes, OrderedDict) stands for what
// they would do; any other name is an error that says it.
// Source: PyTorch, torch/serialization.py, torch/_utils.py; Python,
// Lib/pickletools.py.
#ifndef QUIRE_ENGINE_WEIGHTS_PYTORCH_FILE_H_
#define QUIRE_ENGINE_WEIGHTS_PYTORCH_FILE_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "engine/weights/stored_tensor.h"

namespace quire {

// Parses the content of one file and appends its tensors, by name; their data
// points into `file`, and may be shared by several. `path` names it in messages
// and must outlive the tensors. Everything in the file is untrusted. On an
// error (INVALID_ARGUMENT; DATA_LOSS if the archive is cut off) `tensors` is
// unchanged.
absl::Status ParsePytorchFile(absl::Span<const uint8_t> file,
                              const std::string* path,
                              std::vector<StoredTensor>& tensors);

}  // namespace quire

#endif  // QUIRE_ENGINE_WEIGHTS_PYTORCH_FILE_H_
