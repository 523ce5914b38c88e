// From the named tensors of a checkpoint to what a backend packs: shapes
// checked, this rank's shard sliced, elements converted if another dtype was
// asked for.
#ifndef QUIRE_ENGINE_WEIGHTS_WEIGHT_LOADER_H_
#define QUIRE_ENGINE_WEIGHTS_WEIGHT_LOADER_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "engine/parallel/sharding.h"
#include "engine/weights/safetensors.h"
#include "kernels/backend.h"
#include "kernels/dtype.h"

namespace quire {

// Called during a load with the bytes of weights handed over so far and in all.
using LoadProgress =
    std::function<void(int64_t done_bytes, int64_t total_bytes)>;

// One matrix of a linear layer: `name`.weight [rows, cols] and, if has_bias,
// `name`.bias [rows], of which this rank takes a part.
struct LinearSource {
  std::string name;
  int64_t rows = 0;  // Of the whole matrix in the file.
  int64_t cols = 0;
  IndexRange row_range;  // This rank's; the bias is sliced alike.
  IndexRange col_range;
  bool has_bias = false;
};

// Thread-compatible. Every error is INVALID_ARGUMENT and names the file, the
// tensor and, for a wrong shape, the expected and the found one. A tensor
// "model.x" is also found as "x": so it is called where a model was saved
// without its head (embedding models).
class WeightLoader {
 public:
  // `dtype`: that of the packed weights; none keeps each as it is stored.
  // `progress` may be empty.
  WeightLoader(std::shared_ptr<const Checkpoint> checkpoint,
               std::optional<DType> dtype, LoadProgress progress);

  // The parts of one linear layer, in the order given. Matrices that need no
  // conversion are views into the mapped file.
  absl::StatusOr<LinearSpec> Linear(LinearKind kind,
                                    const std::vector<LinearSource>& sources);

  // A one-dimensional tensor of `size` elements as f32.
  absl::StatusOr<std::vector<float>> Vector(absl::string_view name,
                                            int64_t size);

  bool Has(absl::string_view name) const;

  // Says that the tensor, if it exists, is known and not needed.
  void Ignore(absl::string_view name);

  // The dtype in which a matrix will be packed. Requires nothing: an absent or
  // unusable tensor is an error that names it.
  absl::StatusOr<DType> PackedDType(absl::string_view name) const;

  // Tensors of the file that nothing asked for and that are not known to be
  // without effect, as one line for a person; empty if there are none.
  std::string UnusedTensorsWarning() const;

  // Elements of all tensors loaded, each counted once.
  int64_t num_parameters() const { return num_parameters_; }
  const std::string& path() const { return checkpoint_->path(); }

 private:
  // Null if there is no such tensor.
  const StoredTensor* FindStored(absl::string_view name) const;
  absl::StatusOr<const StoredTensor*> Find(absl::string_view name,
                                           absl::Span<const int64_t> shape);

  std::shared_ptr<const Checkpoint> checkpoint_;
  std::optional<DType> dtype_;
  LoadProgress progress_;
  std::set<const StoredTensor*> used_;
  int64_t num_parameters_ = 0;
  int64_t done_bytes_ = 0;
};

}  // namespace quire

#endif  // QUIRE_ENGINE_WEIGHTS_WEIGHT_LOADER_H_
