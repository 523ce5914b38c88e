// Dense linear layers of more than a few tokens: by a matrix library where
// there is one, else by a kernel of ours, the skinny one up to kMaxSkinnyTokens
// tokens, from there on the tiled one.
//
// What the library cannot finish with the rounding points of kernels/backend.h
// (a bias, an activation, a softcap) is done by a kernel of ours behind it, on
// sums in f32. These never exist whole: the rows of the weight are taken in
// chunks whose sums fit the cache of a GPU, so that they cost a pass over the
// cache and not over memory.
//
// Which algorithm computes a shape is measured in Prepare, for counts of tokens
// that double; a count between them takes that of the next larger one. A token
// may therefore have other bits in a batch of another size.
//
// Up to kMaxSkinnyTokens the skinny kernel is measured, too: it reads x once
// for every sixteen rows of the weight, so that with more tokens L2 limits it,
// while the library pays for another kernel where it cannot finish. Where these
// meet (after 16, 32 or 64 tokens) depends on the shape and the GPU. Up to
// there a token has the same bits in every batch.
#ifndef QUIRE_KERNELS_CUDA_LARGE_LINEAR_H_
#define QUIRE_KERNELS_CUDA_LARGE_LINEAR_H_

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/linear.h"
#include "kernels/cuda/matrix_library.h"

namespace quire::cuda {

// Thread-compatible.
class LargeLinear {
 public:
  // The fewest tokens that the library computes. Below, the skinny kernel reads
  // more weights than x and waits for memory.
  static constexpr int kFewestTokens = 17;

  // The device outlives it. A null library: our kernels compute all.
  // `measures`: false: nothing is measured; up to kMaxSkinnyTokens tokens the
  // skinny kernel computes all, above the library's first choice.
  // `max_sums_bytes`: of sums in f32 at a time. They stay in the second-level
  // cache (40 MiB on an A100, 50 MiB on an H100) and leave room for the tokens.
  LargeLinear(Device& device, std::unique_ptr<MatrixLibrary> library,
              bool measures = true, int64_t max_sums_bytes = int64_t{32} << 20)
      : device_(device),
        library_(std::move(library)),
        measures_(measures),
        max_sums_bytes_(max_sums_bytes) {}

  // Empty without a library.
  std::string LibraryName() const {
    return library_ == nullptr ? "" : library_->name();
  }

  // A weight that Launch will be given, in device memory, which stays there.
  // `is_gated`: its activation is. `has_f32_sums`: with a bias, an activation
  // or f32 output.
  void AddWeight(DType dtype, int64_t rows, int64_t cols, const void* weight,
                 bool is_vocab, bool is_gated, bool has_f32_sums);

  // What Prepare will add to num_bytes.
  int64_t PlannedBytes(int max_num_tokens, int max_logit_rows) const;

  // Allocates what Launch needs and chooses the algorithms. `num_bytes` grows
  // by what stays allocated. RESOURCE_EXHAUSTED if there is not the memory.
  absl::Status Prepare(int max_num_tokens, int max_logit_rows,
                       int64_t* num_bytes);

  // out = epilogue(x W^T) for kFewestTokens tokens or more, without a norm,
  // enqueued; may be captured. Requires Prepare.
  absl::Status Launch(const LinearArguments& arguments);

  // Products that the library computed and calls of the tiled kernel, since
  // Prepare; for tests.
  int64_t num_library_launches() const { return num_library_launches_; }
  int64_t num_tiled_launches() const { return num_tiled_launches_; }

 private:
  // Weights of one shape and one way to be used.
  struct Shape {
    DType dtype = DType::kBF16;
    bool is_vocab = false;
    bool is_gated = false;
    bool has_f32_sums = false;
    int64_t rows = 0, cols = 0;
    int64_t max_tokens = 0;
    std::vector<const void*> weights;  // Some of them, to measure with.
    bool was_refused = false;  // By the library, in a step; it was told.
    std::vector<MatrixAlgorithm> algorithms;
    // By number of tokens: an index of algorithms, or one of the below.
    std::vector<int16_t> choices;
  };
  static constexpr int16_t kUnknown = -1;
  static constexpr int16_t kOwn = -2;

  // What the shapes that the library may compute need, at the most.
  struct Sizes {
    int64_t x_bytes = 0, out_bytes = 0;  // To measure with. 0: no shape.
    int64_t sums_bytes = 0;
    int64_t workspace_bytes = 0;
  };
  Sizes SizesOf(int max_num_tokens, int max_logit_rows) const;
  int64_t ChunkRows(int64_t rows, int64_t bucket) const;
  MatrixProblem ProblemOf(const Shape& shape, int64_t num_tokens,
                          int64_t num_rows) const;
  bool SupportsAll(const Shape& shape, int64_t num_tokens,
                   const MatrixAlgorithm& algorithm);
  void Measure(Shape& shape, int64_t num_tokens, const MatrixOperands& operands,
               bool can_measure);
  absl::StatusOr<double> MeasureLayers(const Shape& shape,
                                       LinearArguments arguments,
                                       const MatrixAlgorithm* algorithm);
  bool ChooseOverSkinny(Shape& shape, int64_t num_tokens,
                        const MatrixOperands& operands);
  int16_t& Choose(Shape& shape, int64_t num_tokens);
  Shape* FindShape(const LinearArguments& arguments, bool has_f32_sums);
  absl::Status LaunchOwn(const LinearArguments& arguments);
  absl::Status LaunchLibrary(const LinearArguments& arguments,
                             const Shape& shape,
                             const MatrixAlgorithm& algorithm);

  Device& device_;
  const std::unique_ptr<MatrixLibrary> library_;
  const bool measures_;
  const int64_t max_sums_bytes_;
  std::vector<Shape> shapes_;
  int64_t workspace_bytes_ = 0;
  DeviceBuffer workspace_;
  DeviceBuffer sums_;  // [num_tokens, rows of a chunk], f32.
  int64_t num_library_launches_ = 0;
  int64_t num_tiled_launches_ = 0;
};

}  // namespace quire::cuda

#endif  // QUIRE_KERNELS_CUDA_LARGE_LINEAR_H_
