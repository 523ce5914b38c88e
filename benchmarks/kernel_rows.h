// The operations of a backend one by one, at the shapes of a model, beside what
// the machine can do at best in the same moment.
#ifndef QUIRE_BENCHMARKS_KERNEL_ROWS_H_
#define QUIRE_BENCHMARKS_KERNEL_ROWS_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "benchmarks/ceilings.h"
#include "benchmarks/random_model.h"
#include "kernels/backend.h"

namespace quire {

enum class Arithmetic : uint8_t { kF32, kBf16, kInt8 };

// Ceilings of the device that computes. Thread-compatible.
class KernelCeilings {
 public:
  virtual ~KernelCeilings() = default;
  // Bytes per second, and what they are: "read", "copy".
  virtual double Bandwidth() = 0;
  virtual const char* BandwidthName() const = 0;
  // Bytes per second that are read and written, both counted; 0: as above.
  virtual double CopyBandwidth() { return 0; }
  // Floating-point operations per second; 0: not known for this device.
  virtual double Peak(Arithmetic arithmetic) = 0;
};

// Of this machine's CPUs. `probe` must outlive it.
std::unique_ptr<KernelCeilings> NewCpuCeilings(CeilingProbe* probe);
// Of a backend with NewProbe: what it says of bandwidths and of products in
// bf16. `num_bytes`: of its memory.
absl::StatusOr<std::unique_ptr<KernelCeilings>> NewDeviceCeilings(
    std::unique_ptr<Backend> backend, int64_t num_bytes);

struct KernelBenchPlan {
  // A backend on which nothing has been done; one for each operation.
  std::function<absl::StatusOr<std::unique_ptr<Backend>>()> new_backend;
  KernelCeilings* ceilings = nullptr;
  DType dtype = DType::kBF16;  // Of weights.
  QuantFormat format = QuantFormat::kDense;
  DType kv_dtype = DType::kBF16;
  std::vector<int> num_rows = {1, 16, 512};
  int repetitions = 9;
  // Weights and KV of an operation rotate through so many bytes, so that caches
  // hold none of them, as in a model.
  int64_t rotation_bytes = int64_t{256} << 20;
  double min_seconds = 3e-3;  // Of a repetition: a wake-up must not count.
  std::string filter;         // Only rows with this in their name.
};

struct KernelRow {
  std::string name;
  // Of one execution (one layer): what has to be read at least, and computed.
  double bytes = 0;
  double flops = 0;
  // Of one execution, for each repetition; what the step takes without it is
  // taken off (but for the output matrix).
  std::vector<double> seconds;
  // Percent of the ceilings probed beside each repetition; empty if not known.
  std::vector<double> percent_of_bandwidth, percent_of_peak;
};

// Measures the linear layers, the output matrix (with a greedy draw), attention
// and norms of the shape and hands each row to `on_row` as soon as it is there.
// What the backend does not support is told to `on_skip` with the reason.
absl::Status MeasureKernels(
    const KernelBenchPlan& plan, const std::string& model,
    const RandomModelShape& shape,
    const std::function<void(const KernelRow&)>& on_row,
    const std::function<void(const std::string&)>& on_skip);

}  // namespace quire

#endif  // QUIRE_BENCHMARKS_KERNEL_ROWS_H_
