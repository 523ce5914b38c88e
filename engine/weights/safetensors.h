// Reader of safetensors files; and checkpoints, of one file or sharded with an
// index, of safetensors or of PyTorch's files.
//
// Format (huggingface/safetensors, README "Format"):
//
//   | 8 bytes: n, little endian | n bytes: JSON header | data              |
//
// The header is an object: tensor name -> {"dtype", "shape", "data_offsets":
// [begin, end)}, offsets relative to the data, and an optional "__metadata__"
// of strings. The tensors cover the data without holes or overlap.
//
// Everything in a file is untrusted: all sizes are checked before use, and
// every error message names the file and, where there is one, the tensor.
#ifndef QUIRE_ENGINE_WEIGHTS_SAFETENSORS_H_
#define QUIRE_ENGINE_WEIGHTS_SAFETENSORS_H_

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "engine/weights/mapped_file.h"
#include "engine/weights/stored_tensor.h"

namespace quire {

// Parses the content of one file and appends its tensors, in file order; their
// data points into `file`. `path` names it in messages and must outlive the
// tensors. On an error (INVALID_ARGUMENT; DATA_LOSS if the file is shorter than
// its header says) `tensors` is unchanged.
absl::Status ParseSafetensors(absl::Span<const uint8_t> file,
                              const std::string* path,
                              std::vector<StoredTensor>& tensors);

// The tensors of a model directory. Immutable after Open; thread-safe.
class Checkpoint {
 public:
  // Opens `directory`/model.safetensors, or the files named by
  // `directory`/model.safetensors.index.json; without them pytorch_model.bin or
  // the files of pytorch_model.bin.index.json. NOT_FOUND if none exists or the
  // index names a file that does not; INVALID_ARGUMENT or DATA_LOSS as
  // ParseSafetensors and ParsePytorchFile, if two files hold the same tensor,
  // or if the index and the files disagree.
  static absl::StatusOr<std::shared_ptr<const Checkpoint>> Open(
      const std::string& directory);

  // What a reader of another format found in the file `path`; `owner` keeps
  // alive what the tensors point to, in `files` or elsewhere. INVALID_ARGUMENT
  // if two have one name.
  static absl::StatusOr<std::shared_ptr<const Checkpoint>> FromTensors(
      std::string path, std::vector<StoredTensor> tensors,
      std::shared_ptr<const void> owner,
      std::vector<std::shared_ptr<const MappedFile>> files = {});

  // Null if there is none.
  const StoredTensor* Find(absl::string_view name) const;

  // Ordered by name.
  const std::map<std::string, StoredTensor, std::less<>>& tensors() const {
    return tensors_;
  }
  // The single file or the index, for messages about what is missing.
  const std::string& path() const { return path_; }
  int64_t num_bytes() const { return num_bytes_; }
  // That tensors lie in; some may lie elsewhere.
  const std::vector<std::shared_ptr<const MappedFile>>& files() const {
    return files_;
  }

 private:
  Checkpoint() = default;

  absl::Status AddFile(const std::string& path);
  absl::Status AddTensors(std::vector<StoredTensor> tensors);
  absl::Status OpenIndex(const std::string& directory, const char* name);

  std::string path_;
  std::vector<std::shared_ptr<const MappedFile>> files_;
  std::shared_ptr<const void> owner_;  // Of tensors elsewhere.
  std::map<std::string, StoredTensor, std::less<>> tensors_;
  int64_t num_bytes_ = 0;
};

}  // namespace quire

#endif  // QUIRE_ENGINE_WEIGHTS_SAFETENSORS_H_
