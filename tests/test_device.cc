#include "tests/test_device.h"

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <utility>

#include "absl/strings/string_view.h"
#include "engine/base/status.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/reference.h"
#include "tests/golden.h"
#include "tests/model_rounding.h"

namespace quire {
namespace {

// f32 on the CPU.
DType TestDType() {
  static const DType dtype = [] {
    const char* const variable = std::getenv("QUIRE_TEST_DEVICE");
    const absl::string_view device = variable == nullptr ? "cpu" : variable;
    QUIRE_CHECK(device == "cpu" || device == "cuda" || device == "cuda_f16");
    if (device == "cpu") return DType::kF32;
    return device == "cuda" ? DType::kBF16 : DType::kF16;
  }();
  return dtype;
}

ModelHarness::Options InTestDType(ModelHarness::Options options) {
  options.dtype = TestDType();
  if (options.kv_cache_dtype != DType::kF8E4M3) {
    options.kv_cache_dtype = TestDType();
  }
  return options;
}

// Takes the formats of weights that the GPU takes: what is left as the
// checkpoint has it, a vocabulary say, is so for both.
class GpuWeightsReference : public ReferenceBackend {
 public:
  GpuWeightsReference(std::unique_ptr<CudaBackend> gpu,
                      const ReferenceOptions& options)
      : ReferenceBackend(options), gpu_(std::move(gpu)) {}

  bool SupportsLinear(DType weights, QuantFormat format) const override {
    return gpu_->SupportsLinear(weights, format);
  }

 private:
  const std::unique_ptr<CudaBackend> gpu_;
};

}  // namespace

bool TestsRunOnCuda() { return TestDType() != DType::kF32; }

ModelHarness::Options OnTestDevice(ModelHarness::Options options) {
  if (!TestsRunOnCuda()) return options;
  options = InTestDType(std::move(options));
  if (options.kv_cache_memory_bytes == 0) {
    options.kv_cache_memory_bytes = 64 << 20;
  }
  options.make_backend = []() -> std::unique_ptr<Backend> {
    CudaBackendOptions backend_options;
    backend_options.measures_products = false;  // Some tests compare bits.
    auto backend = CudaBackend::Create(backend_options);
    QUIRE_CHECK(backend.ok());
    return *std::move(backend);
  };
  return options;
}

ModelHarness::Options OnRoundingReference(ModelHarness::Options options) {
  QUIRE_CHECK(TestsRunOnCuda());
  options = InTestDType(std::move(options));
  options.make_backend = [] {
    ReferenceOptions reference;
    auto gpu = std::move(CudaBackend::Create({})).value();
    const cuda::DeviceProperties properties = gpu->device().properties();
    reference.activations = TestDType();
    reference.multiplies_in_fp8 =
        properties.major * 10 + properties.minor >= 89;
    return std::make_unique<GpuWeightsReference>(std::move(gpu), reference);
  };
  return options;
}

ModelHarness::Options OnExactReference(ModelHarness::Options options) {
  QUIRE_CHECK(TestsRunOnCuda());
  options.make_backend = [] {
    return std::make_unique<GpuWeightsReference>(
        std::move(CudaBackend::Create({})).value(), ReferenceOptions());
  };
  return options;
}

int NumReportedLogprobs(const ModelHarness& harness) {
  return TestsRunOnCuda() ? std::min(harness.vocab_size(), kNumRoundingTop)
                          : harness.vocab_size();
}

absl::StatusOr<double> AllowedLogprobError(
    const std::string& directory, const nlohmann::json& golden,
    const ModelHarness::Options& options) {
  if (!TestsRunOnCuda()) return kMaxLogprobError;
  QUIRE_ASSIGN_OR_RETURN(
      const auto reference,
      ModelHarness::Create(directory, OnRoundingReference(options)));
  QUIRE_ASSIGN_OR_RETURN(const double rounding,
                         MaxLogprobError(reference.get(), golden,
                                         NumReportedLogprobs(*reference)));
  return kMaxLogprobError + 2 * rounding;
}

}  // namespace quire
