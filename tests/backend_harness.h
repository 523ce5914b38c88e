// Drives any Backend one operation or one small model at a time, for tests that
// compare two of them.
#ifndef QUIRE_TESTS_BACKEND_HARNESS_H_
#define QUIRE_TESTS_BACKEND_HARNESS_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <ostream>
#include <string>
#include <vector>

#include "absl/types/span.h"
#include "engine/base/random.h"
#include "gtest/gtest.h"
#include "kernels/backend.h"
#include "kernels/cpu/isa.h"

namespace quire {

std::unique_ptr<Backend> MakeCpuBackend(Isa isa, int num_threads = 2);

// A backend as the parameter of a test.
struct TestBackend {
  std::string name;
  std::optional<Isa> isa;  // Of the CPU; none: the emulated GPU.
  DType activations = DType::kF32;

  bool is_cuda() const { return !isa.has_value(); }
  std::unique_ptr<Backend> Make(int num_threads = 2) const;
  // Sizes and dtypes near to these that the backend takes.
  int64_t Cols(int64_t cols) const {
    return is_cuda() ? (cols + 7) / 8 * 8 : cols;
  }
  DType Weights(DType dtype) const { return is_cuda() ? activations : dtype; }

  // A bound on the error of a result that is rounded to 16 bits on both sides,
  // whose error before that is `error`. Without effect for f32, whose roundings
  // the tests count themselves.
  double Stored(double value, double error) const;
  // The error of one such rounding, on one side.
  double RoundingError(double value) const;
};
// Every instruction set of this machine; the emulated GPU in bf16,
// where it has that, and f16;
// both.
std::vector<TestBackend> CpuTestBackends();
std::vector<TestBackend> CudaTestBackends();
std::vector<TestBackend> AllTestBackends();
int NumMultiprocessors();  // Of the GPU.
inline void PrintTo(const TestBackend& backend, std::ostream* out) {
  *out << backend.name;
}
inline std::string TestBackendName(
    const testing::TestParamInfo<TestBackend>& info) {
  return info.param.name;
}

// Standard normal values times `scale`.
std::vector<float> RandomValues(SimulationRandom& random, int64_t count,
                                double scale = 1.0);

// A matrix in host memory in any dtype, with the values it holds after
// rounding.
class HostMatrix {
 public:
  HostMatrix() = default;
  HostMatrix(int64_t rows, int64_t cols, DType dtype,
             const std::vector<float>& values);
  static HostMatrix Random(SimulationRandom& random, int64_t rows, int64_t cols,
                           DType dtype, double scale = 1.0);

  TensorView view() const;
  bool empty() const { return values_.empty(); }
  int64_t rows() const { return rows_; }
  int64_t cols() const { return cols_; }
  float at(int64_t row, int64_t col) const {
    return values_[row * cols_ + col];
  }
  absl::Span<const float> row(int64_t row) const {
    return absl::MakeConstSpan(values_).subspan(row * cols_, cols_);
  }
  const std::vector<float>& values() const { return values_; }

 private:
  int64_t rows_ = 0;
  int64_t cols_ = 0;
  DType dtype_ = DType::kF32;
  std::vector<float> values_;
  std::vector<uint16_t> halves_;
};

// To and from an activation buffer of the backend: waits for the copy.
void CopyIn(Backend& backend, const std::vector<float>& values,
            TensorView view);
std::vector<float> CopyOut(Backend& backend, TensorView view, int64_t rows);

// Every element within its tolerance; NaN is not. A fatal failure of the test.
void ExpectNear(const std::vector<float>& got,
                const std::vector<float>& expected,
                const std::vector<double>& tolerance, const std::string& what);

// Aborts with the message if not OK.
void CheckOk(const absl::Status& status);
template <typename T>
T CheckOk(absl::StatusOr<T> value) {
  CheckOk(value.status());
  return std::move(value).value();
}

// BeginStep, Run, EndStep, Done and Collect. The results are valid until the
// next step.
absl::Span<const RowResult> RunStep(
    Backend& backend, const StepPlan& plan,
    const std::function<void(Step& step)>& enqueue);

// Prepares `backend` for steps of up to `num_tokens` (or max_num_tokens, if
// that is more) tokens without attention, and runs `enqueue` in one of exactly
// `num_tokens` tokens; with 0, in one without rows. `token_ids`: empty for
// zeros.
struct TokenStepOptions {
  int num_tokens = 0;
  int max_num_tokens = 1;
  int vocab_size = 8;
  int num_logits = 0;  // Of the last tokens (as drafts).
  std::vector<int32_t> token_ids;
};
void RunTokenStep(Backend& backend, const TokenStepOptions& options,
                  const std::function<void()>& copy_in,
                  const std::function<void(Step& step)>& enqueue);

}  // namespace quire

#endif  // QUIRE_TESTS_BACKEND_HARNESS_H_
