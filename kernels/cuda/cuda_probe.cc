#include "kernels/cuda/cuda_probe.h"

#include <algorithm>
#include <chrono>
#include <optional>
#include <utility>
#include <vector>

#include "engine/base/status.h"
#include "kernels/cuda/probe_kernels.h"

namespace quire::cuda {
namespace {

// A pass over 2 GiB takes 0.7 ms on an H100; four in a row make what a host
// adds to them (some microseconds) less than 1 %.
constexpr int kNumPasses = 4;
constexpr int64_t kWorkspaceBytes = int64_t{32} << 20;
// 8192^3 keeps all SMs of an H100 busy for 7 waves of 256x128 tiles.
constexpr int64_t kMaxMatrixSize = 8192;
constexpr int kMaxAlgorithms = 4;

class CudaProbe : public DeviceProbe {
 public:
  CudaProbe(Device& device, MatrixLibraryFactory open_library,
            DeviceBuffer buffer, DeviceBuffer sums, int num_ctas)
      : device_(device),
        open_library_(std::move(open_library)),
        buffer_(std::move(buffer)),
        sums_(std::move(sums)),
        num_ctas_(num_ctas) {}

  absl::Status Fill() {
    if (!LaunchRandomBf16(buffer_.data(), buffer_.num_bytes() / 16, num_ctas_,
                          device_.stream())) {
      return device_.LaunchError("RandomBf16");
    }
    return device_.Synchronize();
  }

  absl::StatusOr<double> ReadBandwidth() override {
    const ProbeArguments arguments = {buffer_.data(), buffer_.num_bytes() / 16,
                                      num_ctas_};
    return BytesPerSecond(16 * arguments.num_units, [&] {
      return LaunchReadProbe(arguments, sums_.data<uint32_t>(),
                             device_.stream());
    });
  }

  // The first half onto the second.
  absl::StatusOr<double> CopyBandwidth() override {
    const ProbeArguments arguments = {buffer_.data(), buffer_.num_bytes() / 32,
                                      num_ctas_};
    return BytesPerSecond(32 * arguments.num_units, [&] {
      return LaunchCopyProbe(arguments,
                             buffer_.data() + 16 * arguments.num_units,
                             device_.stream());
    });
  }

  absl::StatusOr<double> Bf16Peak() override {
    if (!matrix_.has_value()) QUIRE_RETURN_IF_ERROR(ChooseAlgorithm());
    QUIRE_ASSIGN_OR_RETURN(
        const double seconds,
        library_->MeasureProduct(matrix_->problem, matrix_->algorithm,
                                 matrix_->operands, device_.stream()));
    const double size = static_cast<double>(matrix_->problem.rows);
    return 2 * size * size * size / seconds;
  }

 private:
  struct Matrix {
    MatrixProblem problem;
    MatrixAlgorithm algorithm;
    MatrixOperands operands;
  };

  template <typename Launch>
  absl::StatusOr<double> BytesPerSecond(int64_t num_bytes,
                                        const Launch& launch) {
    QUIRE_RETURN_IF_ERROR(device_.Synchronize());
    const auto begin = std::chrono::steady_clock::now();
    for (int i = 0; i < kNumPasses; ++i) {
      if (!launch()) return device_.LaunchError("a probe of memory");
    }
    QUIRE_RETURN_IF_ERROR(device_.Synchronize());
    const std::chrono::duration<double> seconds =
        std::chrono::steady_clock::now() - begin;
    return kNumPasses * static_cast<double>(num_bytes) / seconds.count();
  }

  // The fastest of those that the library proposes.
  absl::Status ChooseAlgorithm() {
    if (open_library_ == nullptr) {
      return absl::UnimplementedError("there is no library for products");
    }
    QUIRE_ASSIGN_OR_RETURN(library_, open_library_());
    Matrix matrix;
    int64_t size = kMaxMatrixSize;
    while (6 * size * size + kWorkspaceBytes > buffer_.num_bytes()) size /= 2;
    if (size < 64) {
      return absl::ResourceExhaustedError("no memory for a large product");
    }
    matrix.problem.num_tokens = matrix.problem.rows = matrix.problem.cols =
        matrix.problem.x_stride = matrix.problem.out_stride = size;
    char* const memory = buffer_.data();
    matrix.operands.weight = memory;
    matrix.operands.x = memory + 2 * size * size;
    matrix.operands.out = memory + 4 * size * size;
    matrix.operands.workspace = memory + 6 * size * size;
    matrix.operands.workspace_bytes = kWorkspaceBytes;
    std::optional<double> best;
    for (const MatrixAlgorithm& algorithm : library_->FindAlgorithms(
             matrix.problem, kWorkspaceBytes, kMaxAlgorithms)) {
      QUIRE_ASSIGN_OR_RETURN(
          const double seconds,
          library_->MeasureProduct(matrix.problem, algorithm, matrix.operands,
                                   device_.stream()));
      if (best.has_value() && seconds >= *best) continue;
      best = seconds;
      matrix.algorithm = algorithm;
    }
    if (!best.has_value()) {
      return absl::UnimplementedError("the library multiplies no bf16");
    }
    matrix_ = matrix;
    return absl::OkStatus();
  }

  Device& device_;
  const MatrixLibraryFactory open_library_;
  std::unique_ptr<MatrixLibrary> library_;
  std::optional<Matrix> matrix_;
  DeviceBuffer buffer_, sums_;
  const int num_ctas_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<DeviceProbe>> NewCudaProbe(
    Device& device, const MatrixLibraryFactory& open_library,
    int64_t num_bytes) {
  // As many as an SM holds, at 512 threads.
  const int num_ctas = 4 * device.properties().num_sms;
  QUIRE_ASSIGN_OR_RETURN(
      DeviceBuffer buffer,
      DeviceBuffer::Create(device,
                           std::max<int64_t>(num_bytes, 4096) / 4096 * 4096));
  QUIRE_ASSIGN_OR_RETURN(DeviceBuffer sums,
                         DeviceBuffer::Create(device, 4 * int64_t{num_ctas}));
  auto probe = std::make_unique<CudaProbe>(
      device, open_library, std::move(buffer), std::move(sums), num_ctas);
  QUIRE_RETURN_IF_ERROR(probe->Fill());
  return probe;
}

}  // namespace quire::cuda
