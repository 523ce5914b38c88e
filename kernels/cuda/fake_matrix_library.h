// Stands for cuBLASLt in tests, on the emulated device.
#ifndef QUIRE_KERNELS_CUDA_FAKE_MATRIX_LIBRARY_H_
#define QUIRE_KERNELS_CUDA_FAKE_MATRIX_LIBRARY_H_

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "engine/base/status.h"
#include "gtest/gtest.h"
#include "kernels/cuda/matrix_library.h"
#include "kernels/cuda/simt/emulator.h"

namespace quire::cuda {

// Multiplies on the host, in the order of the stream. Algorithm a takes
// seconds[a]; 0: it fails when it is measured. What is measured without a
// product of this library is a kernel of ours. Of e4m3 it takes what cuBLASLt
// does on a GPU of log().capability.
class FakeLibrary : public MatrixLibrary {
 public:
  explicit FakeLibrary(std::vector<double> seconds = {3, 1, 2})
      : seconds_(std::move(seconds)) {}

  // What was asked of any library of this process.
  struct Log {
    std::vector<MatrixProblem> problems;  // Multiplied.
    std::vector<uint64_t> algorithms;
    std::vector<int64_t> measured_tokens;
    // What one run of each measurement enqueues; our kernels' apart.
    std::vector<size_t> num_enqueued, num_enqueued_skinny;
    // Seconds of our kernels, one measurement after the other.
    std::vector<double> skinny_seconds;
    // Tokens for which only the last algorithm works.
    int64_t odd_tokens = -1;
    // Of the GPU and the library: as HasFp8Scales.
    int capability = 90;
    int version = 130100;
    // Products of a step that are refused, as NOT_SUPPORTED would be: those
    // with a residual, or from one on.
    bool refuses_residuals = false;
    size_t refuses_from = SIZE_MAX;
  };
  static Log& log() {
    static Log log;
    return log;
  }

  std::string name() const override { return "fake 1.0"; }

  bool TakesFp8(MatrixScales scales) const override {
    return HasFp8Scales(scales, log().capability, log().version);
  }

  std::vector<MatrixAlgorithm> FindAlgorithms(const MatrixProblem& problem,
                                              int64_t /*max_workspace_bytes*/,
                                              int max_count) override {
    multiplied_.reset();
    if (!IsPossible(problem)) return {};
    std::vector<MatrixAlgorithm> algorithms;
    for (size_t a = 0; a < seconds_.size(); ++a) {
      if (problem.num_tokens == log().odd_tokens && a + 1 < seconds_.size()) {
        continue;
      }
      if (static_cast<int>(algorithms.size()) == max_count) break;
      algorithms.emplace_back().data[0] = a;
    }
    return algorithms;
  }
  bool Supports(const MatrixProblem& problem, const MatrixAlgorithm& algorithm,
                int64_t /*max_workspace_bytes*/) override {
    return IsPossible(problem) && (problem.num_tokens != log().odd_tokens ||
                                   algorithm.data[0] + 1 == seconds_.size());
  }

  absl::Status Multiply(const MatrixProblem& problem,
                        const MatrixAlgorithm& algorithm,
                        const MatrixOperands& operands,
                        simt::Stream stream) override {
    if ((log().refuses_residuals && operands.residual != nullptr) ||
        log().problems.size() >= log().refuses_from) {
      return absl::InternalError("not supported");
    }
    CheckOperands(problem, operands);
    log().problems.push_back(problem);
    log().algorithms.push_back(algorithm.data[0]);
    multiplied_ = algorithm.data[0];
    simt::emulator::AsQueue(stream)->Add(
        [problem, operands] { Compute(problem, operands); });
    return absl::OkStatus();
  }

  absl::StatusOr<double> MeasureSeconds(
      absl::FunctionRef<absl::Status()> enqueue, simt::Stream stream) override {
    const auto& entries = simt::emulator::AsQueue(stream)->entries;
    const size_t num_before = entries.size();
    QUIRE_RETURN_IF_ERROR(enqueue());
    const size_t num_enqueued = entries.size() - num_before;
    if (!multiplied_.has_value()) {
      log().num_enqueued_skinny.push_back(num_enqueued);
      const size_t i = log().num_enqueued_skinny.size() - 1;
      return i < log().skinny_seconds.size() ? log().skinny_seconds[i] : 0.5;
    }
    log().num_enqueued.push_back(num_enqueued);
    log().measured_tokens.push_back(log().problems.back().num_tokens);
    const double seconds = seconds_[*std::exchange(multiplied_, std::nullopt)];
    if (seconds == 0) return absl::InternalError("refused");
    return seconds;
  }

 private:
  bool IsPossible(const MatrixProblem& problem) const {
    return problem.dtype != DType::kF8E4M3 ||
           (TakesFp8(problem.scales) && HasFp8Sizes(problem));
  }
  // What the library does not see, or only where it would fault.
  void CheckOperands(const MatrixProblem& problem,
                     const MatrixOperands& operands) const {
    const auto is_aligned = [](const void* pointer, uintptr_t alignment) {
      return reinterpret_cast<uintptr_t>(pointer) % alignment == 0;
    };
    for (const void* pointer :
         {operands.weight, operands.x, operands.residual,
          static_cast<const void*>(operands.out),
          static_cast<const void*>(operands.weight_scales),
          static_cast<const void*>(operands.x_scales)}) {
      EXPECT_TRUE(is_aligned(pointer, 16)) << pointer;
    }
    EXPECT_TRUE(is_aligned(operands.workspace, 256));
    EXPECT_TRUE(IsPossible(problem));
    const bool has_scales = problem.scales != MatrixScales::kNone;
    EXPECT_EQ(operands.weight_scales != nullptr, has_scales);
    EXPECT_EQ(operands.x_scales != nullptr, has_scales);
    EXPECT_EQ(operands.residual != nullptr, problem.residual_stride > 0);
  }

  static float Value(DType dtype, const void* from, int64_t idx) {
    if (dtype == DType::kF8E4M3) {
      return E4M3ToFloat(static_cast<const uint8_t*>(from)[idx]);
    }
    const uint16_t bits = static_cast<const uint16_t*>(from)[idx];
    return dtype == DType::kBF16 ? Bf16ToFloat(bits) : HalfToFloat(bits);
  }
  // Of element k of a row or token, of `count` such.
  static float Scale(MatrixScales kind, const float* scales, int64_t idx,
                     int64_t count, int64_t k) {
    return kind == MatrixScales::kNone   ? 1.0f
           : kind == MatrixScales::kRows ? scales[idx]
                                         : scales[k / 128 * count + idx];
  }
  static void Compute(const MatrixProblem& problem,
                      const MatrixOperands& operands) {
    for (int64_t t = 0; t < problem.num_tokens; ++t) {
      for (int64_t r = 0; r < problem.rows; ++r) {
        float sum = 0;
        for (int64_t k = 0; k < problem.cols; ++k) {
          sum +=
              Value(problem.dtype, operands.x, t * problem.x_stride + k) *
              Value(problem.dtype, operands.weight, r * problem.cols + k) *
              Scale(problem.scales, operands.x_scales, t, problem.num_tokens,
                    k) *
              Scale(problem.scales, operands.weight_scales, r, problem.rows, k);
        }
        sum *= operands.alpha;
        if (operands.residual != nullptr) {
          sum += Value(problem.out_dtype, operands.residual,
                       t * problem.residual_stride + r);
        }
        const int64_t to = t * problem.out_stride + r;
        if (problem.out_dtype == DType::kF32) {
          static_cast<float*>(operands.out)[to] = sum;
        } else {
          static_cast<uint16_t*>(operands.out)[to] =
              problem.out_dtype == DType::kBF16 ? FloatToBf16(sum)
                                                : FloatToHalf(sum);
        }
      }
    }
  }

  const std::vector<double> seconds_;
  std::optional<uint64_t> multiplied_;  // Since the last measurement.
};

}  // namespace quire::cuda

#endif  // QUIRE_KERNELS_CUDA_FAKE_MATRIX_LIBRARY_H_
