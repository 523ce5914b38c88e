// A product with packed weights and what must come out of it, for the tests of
// all formats of weights.
#ifndef QUIRE_KERNELS_CPU_MATMUL_PROBLEM_H_
#define QUIRE_KERNELS_CPU_MATMUL_PROBLEM_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/types/span.h"
#include "engine/base/random.h"
#include "engine/base/thread_pool.h"
#include "kernels/backend.h"
#include "kernels/cpu/isa.h"
#include "kernels/cpu/matmul.h"

namespace quire {

// Half the distance of 1 and the next f32.
inline constexpr double kF32Roundoff = 1.0 / (1 << 24);

// In [-1, 1).
float RandomInput(SimulationRandom& random);

struct MatmulCase {
  LinearKind kind = LinearKind::kPlain;
  std::vector<int64_t> part_rows;
  int64_t cols = 0;
  int64_t num_rows = 1;
  Epilogue::Activation activation = Epilogue::Activation::kNone;
  bool has_bias = false;
  bool has_residual = false;
  float out_scale = 1.0f;
};

// A case with its weights and input. A format derives from it: its constructor
// adds the parts and then draws the rest. Rows of x, out and residual lie
// apart, and what lies between those of out must not change.
class MatmulProblem {
 public:
  virtual ~MatmulProblem() = default;

  // Packs, multiplies and compares; its failures are the test's.
  void Check(Isa isa, ThreadPool& pool);

 protected:
  explicit MatmulProblem(const MatmulCase& c) : case_(c) {}

  // `values`: the part's exact elements, row by row; `magnitude`: what the
  // kernels add up for each, |value| if empty.
  void AddPart(const WeightPart& part, absl::Span<const float> values,
               absl::Span<const float> magnitude = {});
  // Bias, x and residual. Requires: all parts are there.
  void Draw(SimulationRandom& random);

  // As the kernels round a row of x, in the model's order of columns.
  virtual std::vector<double> RoundedX(absl::Span<const float> x) const = 0;
  // First-order bound of the error of a sum whose terms' magnitudes, the bias'
  // included, add up to `sum_abs`.
  virtual double DotTolerance(double sum_abs) const = 0;
  // Of the format, for messages.
  virtual std::string Name() const = 0;
  // More about packed weights than that they are those that went in.
  virtual void CheckPacked(const PackedMatrix& packed) const {}

  int64_t num_channels() const { return num_channels_; }

  const MatmulCase case_;
  LinearSpec spec_;

 private:
  void Pack(Isa isa, ThreadPool& pool);
  void Multiply(Isa isa, ThreadPool& pool);
  void CheckOutput(Isa isa) const;
  double Dot(absl::Span<const double> x, int64_t channel,
             double* tolerance) const;
  // An element of out, in double; x: RoundedX of the row.
  double Expected(int64_t row, absl::Span<const double> x, int64_t channel,
                  double* tolerance) const;

  int64_t num_channels_ = 0;
  std::vector<float> values_;  // [num_channels, cols], and so magnitude_.
  std::vector<float> magnitude_;
  std::vector<float> bias_;
  int64_t x_stride_ = 0;
  int64_t out_cols_ = 0;
  int64_t out_stride_ = 0;
  std::vector<float> x_, out_, residual_;
  std::unique_ptr<PackedMatrix> packed_;
};

}  // namespace quire

#endif  // QUIRE_KERNELS_CPU_MATMUL_PROBLEM_H_
