// Linear layers of more than a few tokens with dense weights, or with weights
// and x in e4m3: by a matrix library where there is one, else by a kernel of
// ours, the skinny one up to kMaxSkinnyTokens tokens, from there on a tiled
// one.
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
//
// e4m3 begins above that, and there our tiled kernel is always measured, too:
// at the rate of tensor cores of 8 bits (8.9, 12.0) the library may have
// nothing to gain. Where the library takes scales of rows or blocks (9.0) it
// multiplies by them itself, and is asked for the output as with dense weights.
// Elsewhere scales of rows are for the kernel behind it, on sums in f32, which
// costs a write and a read of four bytes for each of the output's two, of the
// cache; and scales of blocks, which belong into the sum, are for our kernel.
// Of blocks the library gets a scale for each row: gate and up, and the parts
// of qkv, share squares of 128 rows of a packed weight, which therefore have no
// one scale.
#ifndef QUIRE_KERNELS_CUDA_LARGE_LINEAR_H_
#define QUIRE_KERNELS_CUDA_LARGE_LINEAR_H_

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/linear.h"
#include "kernels/cuda/matrix_library.h"
#include "kernels/cuda/quantized_linear.h"

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

  // And which products of e4m3 it is given. Empty without a library.
  std::string LibraryName() const;

  // A weight that Launch will be given, in device memory, which stays there.
  // `is_gated`: its activation is. `has_f32_sums`: with a bias, an activation
  // or f32 output.
  void AddWeight(DType dtype, int64_t rows, int64_t cols, const void* weight,
                 bool is_vocab, bool is_gated, bool has_f32_sums);
  // One in kFp8 that LaunchFp8 will be given. `dtype`: of the output.
  void AddFp8Weight(DType dtype, int64_t rows, int64_t cols,
                    const QuantizedWeight& weight, bool is_gated,
                    bool has_f32_sums);

  // What Prepare will add to num_bytes.
  int64_t PlannedBytes(int max_num_tokens, int max_logit_rows) const;

  // Allocates what Launch needs and chooses the algorithms. `num_bytes` grows
  // by what stays allocated. RESOURCE_EXHAUSTED if there is not the memory.
  absl::Status Prepare(int max_num_tokens, int max_logit_rows,
                       int64_t* num_bytes);

  // out = epilogue(x W^T) for kFewestTokens tokens or more, without a norm,
  // enqueued; may be captured. Requires Prepare.
  absl::Status Launch(const LinearArguments& arguments);
  // The same with x and a weight in e4m3, for more than kMaxSkinnyTokens
  // tokens.
  absl::Status LaunchFp8(const QuantizedLinearArguments& arguments);

  // Products that the library computed and calls of a tiled kernel, since
  // Prepare; for tests.
  int64_t num_library_launches() const { return num_library_launches_; }
  int64_t num_tiled_launches() const { return num_tiled_launches_; }

 private:
  // Weights of one shape and one way to be used.
  struct Shape {
    DType dtype = DType::kBF16;  // Of the output, and unless is_fp8 of all.
    bool is_fp8 = false;
    int group_size = 0;                         // Of QuantizedWeight.
    MatrixScales scales = MatrixScales::kNone;  // That the library multiplies.
    bool is_vocab = false;
    bool is_gated = false;
    bool has_f32_sums = false;
    int64_t rows = 0, cols = 0;
    int64_t max_tokens = 0;
    std::vector<QuantizedWeight> weights;  // Some of them, to measure with.
    bool was_refused = false;              // By the library; it was told.
    std::vector<MatrixAlgorithm> algorithms;
    // By number of tokens: an index of algorithms, or one of the below.
    std::vector<int16_t> choices;

    bool IsSame(const Shape& other) const;
    int fewest_tokens() const {
      return is_fp8 ? kMaxSkinnyTokens + 1 : kFewestTokens;
    }
    int64_t element_bytes() const { return is_fp8 ? 1 : 2; }
    // Sums of e4m3 still have to be multiplied by the scales of rows.
    bool finishes_scales() const {
      return is_fp8 && scales == MatrixScales::kNone;
    }
    int64_t num_blocks() const {  // Of columns with a scale.
      return group_size > 0 ? (cols + group_size - 1) / group_size : 1;
    }
  };
  static constexpr int16_t kUnknown = -1;
  static constexpr int16_t kOwn = -2;

  // What the shapes that the library may compute need, at the most.
  struct Sizes {
    int64_t x_bytes = 0, out_bytes = 0;  // To measure with. 0: no shape.
    int64_t fp8_bytes = 0, x_scales_bytes = 0;
    int64_t sums_bytes = 0;
    int64_t weight_scales_bytes = 0;
    int64_t workspace_bytes = 0;
  };
  // To measure layers with, in device memory.
  struct LayerOperands {
    const uint16_t* x = nullptr;
    void* out = nullptr;
    uint8_t* x_fp8 = nullptr;
    float* x_scales = nullptr;
  };
  static int64_t MaxTokens(const Shape& shape, int max_num_tokens,
                           int max_logit_rows);
  void Add(Shape shape, const QuantizedWeight& weight);
  Sizes SizesOf(int max_num_tokens, int max_logit_rows) const;
  int64_t ChunkRows(int64_t rows, int64_t bucket) const;
  MatrixProblem ProblemOf(const Shape& shape, int64_t num_tokens,
                          int64_t num_rows) const;
  bool SupportsAll(const Shape& shape, int64_t num_tokens,
                   const MatrixAlgorithm& algorithm);
  void Measure(Shape& shape, int64_t num_tokens, const MatrixOperands& operands,
               bool can_measure);
  absl::StatusOr<double> MeasureLayers(const Shape& shape,
                                       QuantizedLinearArguments arguments,
                                       const MatrixAlgorithm* algorithm);
  bool ChooseOverOwn(Shape& shape, int64_t num_tokens,
                     const LayerOperands& operands);
  int16_t& Choose(Shape& shape, int64_t num_tokens);
  Shape* FindShape(const QuantizedLinearArguments& arguments);
  void WarnRefused(Shape& shape, int64_t num_tokens, absl::string_view why);
  // Of these, `weight` says what the matrix is, dense ones included.
  absl::Status LaunchOwn(const QuantizedLinearArguments& arguments);
  absl::Status SetScales(const QuantizedLinearArguments& arguments,
                         const Shape& shape, int64_t first_row,
                         int64_t num_rows, MatrixOperands* operands);
  absl::Status LaunchLibrary(const QuantizedLinearArguments& arguments,
                             const Shape& shape,
                             const MatrixAlgorithm& algorithm);
  absl::Status LaunchChosen(const QuantizedLinearArguments& arguments);

  Device& device_;
  const std::unique_ptr<MatrixLibrary> library_;
  const bool measures_;
  const int64_t max_sums_bytes_;
  std::vector<Shape> shapes_;
  int64_t workspace_bytes_ = 0;
  DeviceBuffer workspace_;
  DeviceBuffer sums_;           // [num_tokens, rows of a chunk], f32.
  DeviceBuffer weight_scales_;  // Of blocks, for MatrixScales::kBlocks.
  int64_t num_library_launches_ = 0;
  int64_t num_tiled_launches_ = 0;
};

}  // namespace quire::cuda

#endif  // QUIRE_KERNELS_CUDA_LARGE_LINEAR_H_
