// From the named tensors of a checkpoint to what a backend packs: shapes
// checked, this rank's shard sliced, elements converted if another dtype was
// asked for, matrices quantized if that was asked for, and quantized ones
// dequantized where the backend has no kernels for their format.
#ifndef QUIRE_ENGINE_WEIGHTS_WEIGHT_LOADER_H_
#define QUIRE_ENGINE_WEIGHTS_WEIGHT_LOADER_H_

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "engine/base/thread_pool.h"
#include "engine/parallel/sharding.h"
#include "engine/weights/page_releaser.h"
#include "engine/weights/quantization_config.h"
#include "engine/weights/quantized_matrix.h"
#include "engine/weights/safetensors.h"
#include "kernels/backend.h"
#include "kernels/dtype.h"
#include "kernels/quant_codec.h"

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
  // Never quantized at load: a table that is only looked up (positions).
  bool keeps_precision = false;
};

struct WeightLoaderOptions {
  // Of packed dense weights; none keeps each as it is stored.
  std::optional<DType> dtype;
  LoadProgress progress;  // May be empty.
  // Backend::SupportsLinear; empty: everything is supported.
  std::function<bool(DType weights, QuantFormat format)> supports;
  // How the checkpoint's quantized tensors are to be read.
  QuantizationConfig stored;
  // How dense matrices are quantized at load; none: not at all.
  std::optional<QuantizationScheme> quantization;
  // For conversions; <= 0: all that the process may use.
  int num_threads = 0;
};

// The scheme for a matrix of `cols` columns when the model is quantized by
// `wanted`; none: it stays dense. What has no room for blocks of 256 columns
// gets the format of 32 with at least as many bits. The vocabulary's matrices
// keep more precision: q6_k (q8_0 if the columns do not fit) for the block
// formats of less, and no fp8 or int4.
std::optional<QuantizationScheme> SchemeForMatrix(
    const QuantizationScheme& wanted, LinearKind kind, int64_t cols);

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
  WeightLoader(std::shared_ptr<const Checkpoint> checkpoint,
               WeightLoaderOptions options);

  // The parts of one linear layer, in the order given. Matrices that need no
  // conversion are views into the mapped file, whose pages are given back when
  // the last copy of LinearSpec::keep_alive goes. A matrix is found as
  // `name`.weight (dense, blocks of GGUF, fp8, int8), `name`.qweight (GPTQ,
  // AWQ) or `name`.weight_packed (compressed-tensors).
  absl::StatusOr<LinearSpec> Linear(LinearKind kind,
                                    const std::vector<LinearSource>& sources);

  // Columns between two places where the matrix [.., cols] called `name`, and
  // the rows of those whose output it takes, can be cut for several ranks
  // without leaving its format: CutUnit of sharding.h.
  int64_t CutUnit(const std::string& name, int64_t cols) const;

  // A one-dimensional tensor of `size` elements as f32.
  absl::StatusOr<std::vector<float>> Vector(absl::string_view name,
                                            int64_t size);

  // Calls body over disjoint ranges that cover [0, num_items), on all threads.
  void RunRanges(int64_t num_items,
                 absl::FunctionRef<void(int64_t begin, int64_t end)> body);

  bool Has(absl::string_view name) const;

  // Says that the tensor, if it exists, is known and not needed.
  void Ignore(absl::string_view name);

  // Ignore, for all tensors whose names begin so.
  void IgnoreAll(absl::string_view prefix);
  // The same, of tensors that another rank has: they are parameters, too.
  void LeaveToOthers(absl::string_view prefix);

  // The dtype in which a matrix "x.weight" will be packed, or would be if it
  // were not quantized: bf16, or f16 where its scales are. Requires nothing: an
  // absent or unusable tensor is an error that names it.
  absl::StatusOr<DType> PackedDType(absl::string_view name) const;

  // Tensors of the file that nothing asked for and that are not known to be
  // without effect, as one line for a person; empty if there are none.
  std::string UnusedTensorsWarning() const;

  // What was dequantized, or was not quantized though asked for, and why: one
  // line each for a person.
  std::vector<std::string> Notes() const;

  // What the packed weights will take on a rank, before any is packed: padding
  // is a few percent at most.
  //   stage: the layers are divided once more.
  int64_t ExpectedBytes(ShardSpec shard = {}, ShardSpec stage = {}) const;

  // Elements of all tensors loaded or left to other ranks, each counted once;
  // of quantized matrices those of the model.
  int64_t num_parameters() const { return num_parameters_; }
  const std::string& path() const { return checkpoint_->path(); }

 private:
  bool HasOwnColumnOrder(absl::string_view module) const;
  // Of the codes of GPTQ, AWQ and compressed-tensors, as the shapes of what
  // lies beside them say.
  struct IntMatrixSize {
    int64_t rows = 0;
    int64_t num_elements = 0;
    int64_t num_groups = 0;  // Of columns.
    int64_t codes_per_int = 8;
  };
  IntMatrixSize SizeOfInts(absl::string_view module,
                           const StoredTensor& codes) const;
  int64_t ExpectedIntBytes(absl::string_view module,
                           const StoredTensor& codes) const;
  // What it adds to num_parameters.
  int64_t NumParametersOf(const StoredTensor& tensor) const;
  // Null if there is no such tensor.
  const StoredTensor* FindStored(absl::string_view name) const;
  absl::StatusOr<const StoredTensor*> Find(absl::string_view name,
                                           absl::Span<const int64_t> shape);

  // Memory of converted parts.
  struct LinearMemory;

  bool Supports(DType dtype, QuantFormat format) const;
  // An error if the configuration says that this quantized tensor is dense.
  absl::Status CheckIsQuantized(const StoredTensor& tensor,
                                const LinearSource& source) const;
  // Marks the tensor as used; its bytes if it was not before.
  int64_t Use(const StoredTensor& tensor);
  void Use(const StoredTensor& tensor, LinearMemory& memory);
  absl::StatusOr<WeightPart> ReadMatrix(const LinearSource& source,
                                        int num_fused, int fused_idx,
                                        LinearMemory& memory);
  absl::StatusOr<WeightPart> ReadWeight(const StoredTensor& weight,
                                        const LinearSource& source,
                                        int num_fused, int fused_idx,
                                        LinearMemory& memory);
  absl::StatusOr<WeightPart> ReadInts(const LinearSource& source,
                                      LinearMemory& memory);
  absl::StatusOr<WeightPart> PartOf(const WeightPart& matrix, LinearKind kind,
                                    const LinearSource& source,
                                    LinearMemory& memory);
  absl::Status ReadBiases(const std::vector<LinearSource>& sources,
                          LinearMemory& memory);

  std::shared_ptr<const Checkpoint> checkpoint_;
  std::shared_ptr<PageReleaser> releaser_;
  WeightLoaderOptions options_;
  std::set<const StoredTensor*> used_;
  std::unique_ptr<ThreadPool> pool_;  // Started when it is needed.
  int64_t num_parameters_ = 0;
  int64_t done_bytes_ = 0;
  // Matrices by format: dequantized; left dense by --quantization.
  std::map<QuantFormat, int> num_dequantized_;
  int num_left_dense_ = 0;
};

}  // namespace quire

#endif  // QUIRE_ENGINE_WEIGHTS_WEIGHT_LOADER_H_
