#include "tests/backend_harness.h"

#include <algorithm>
#include <cmath>
#include <iostream>

#include "engine/base/status.h"
#include "kernels/cpu/cpu_backend.h"
#include "kernels/cuda/cuda_backend.h"

namespace quire {

void ExpectNear(const std::vector<float>& got,
                const std::vector<float>& expected,
                const std::vector<double>& tolerance, const std::string& what) {
  ASSERT_EQ(got.size(), expected.size()) << what;
  ASSERT_EQ(got.size(), tolerance.size()) << what;
  for (size_t i = 0; i < got.size(); ++i) {
    ASSERT_TRUE(std::abs(static_cast<double>(got[i]) - expected[i]) <=
                tolerance[i])
        << what << ", element " << i << ": " << got[i] << " vs " << expected[i]
        << ", tolerance " << tolerance[i];
  }
}

void CheckOk(const absl::Status& status) {
  if (!status.ok()) std::cerr << status << std::endl;
  QUIRE_CHECK(status.ok());
}

std::unique_ptr<Backend> MakeCpuBackend(Isa isa, int num_threads) {
  CpuBackendOptions options;
  options.isa = isa;
  options.threads.num_threads = num_threads;
  return CheckOk(CpuBackend::Create(options));
}

std::vector<float> RandomValues(SimulationRandom& random, int64_t count,
                                double scale) {
  std::vector<float> values(count);
  for (float& value : values) {
    value = static_cast<float>(scale *
                               std::sqrt(-2 * std::log(1 - random.Uniform())) *
                               std::cos(2 * M_PI * random.Uniform()));
  }
  return values;
}

HostMatrix::HostMatrix(int64_t rows, int64_t cols, DType dtype,
                       const std::vector<float>& values)
    : rows_(rows), cols_(cols), dtype_(dtype), values_(values) {
  QUIRE_CHECK(static_cast<int64_t>(values.size()) == rows * cols);
  if (dtype == DType::kF32) return;
  for (float& value : values_) {
    const bool is_bf16 = dtype == DType::kBF16;
    halves_.push_back(is_bf16 ? FloatToBf16(value) : FloatToHalf(value));
    value = is_bf16 ? Bf16ToFloat(halves_.back()) : HalfToFloat(halves_.back());
  }
}

HostMatrix HostMatrix::Random(SimulationRandom& random, int64_t rows,
                              int64_t cols, DType dtype, double scale) {
  return HostMatrix(rows, cols, dtype,
                    RandomValues(random, rows * cols, scale));
}

TensorView HostMatrix::view() const {
  if (empty()) return TensorView();
  return TensorView::Matrix(dtype_ == DType::kF32
                                ? static_cast<const void*>(values_.data())
                                : halves_.data(),
                            dtype_, rows_, cols_);
}

namespace {

float LoadValue(const TensorView& view, int64_t row, int64_t col) {
  if (view.dtype == DType::kF32) return view.row<const float>(row)[col];
  const uint16_t bits = view.row<const uint16_t>(row)[col];
  return view.dtype == DType::kBF16 ? Bf16ToFloat(bits) : HalfToFloat(bits);
}

void StoreValue(const TensorView& view, int64_t row, int64_t col, float value) {
  if (view.dtype == DType::kF32) {
    view.row<float>(row)[col] = value;
  } else {
    view.row<uint16_t>(row)[col] =
        view.dtype == DType::kBF16 ? FloatToBf16(value) : FloatToHalf(value);
  }
}

}  // namespace

void CopyIn(Backend& backend, const std::vector<float>& values,
            TensorView view) {
  if (values.empty()) return;
  auto* cuda = dynamic_cast<CudaBackend*>(&backend);
  TensorView host = view;
  std::vector<char> memory(cuda == nullptr ? 0 : view.num_bytes());
  if (cuda != nullptr) host.data = memory.data();
  for (size_t i = 0; i < values.size(); ++i) {
    StoreValue(host, i / view.cols, i % view.cols, values[i]);
  }
  if (cuda == nullptr) return;
  CheckOk(cuda->device().CopyToDevice(view.data, host.data,
                                      values.size() * DTypeSize(view.dtype)));
  CheckOk(cuda->device().Synchronize());
}

std::vector<float> CopyOut(Backend& backend, TensorView view, int64_t rows) {
  auto* cuda = dynamic_cast<CudaBackend*>(&backend);
  TensorView host = view;
  std::vector<char> memory(cuda == nullptr ? 0 : view.num_bytes());
  if (cuda != nullptr) {
    host.data = memory.data();
    CheckOk(cuda->device().CopyToHost(host.data, view.data, memory.size()));
    CheckOk(cuda->device().Synchronize());
  }
  std::vector<float> values;
  for (int64_t i = 0; i < rows * view.cols; ++i) {
    values.push_back(LoadValue(host, i / view.cols, i % view.cols));
  }
  return values;
}

std::unique_ptr<Backend> TestBackend::Make(int num_threads) const {
  if (isa.has_value()) return MakeCpuBackend(*isa, num_threads);
  return CheckOk(CudaBackend::Create({}));
}

double TestBackend::RoundingError(double value) const {
  // Half a unit in the last place; below 2^-14 f16 has a fixed spacing of
  // 2^-24.
  if (activations == DType::kBF16) return 0x1p-8 * std::abs(value);
  if (activations == DType::kF16) return 0x1p-11 * std::abs(value) + 0x1p-25;
  return 0.0;
}

double TestBackend::Stored(double value, double error) const {
  return error + 2 * RoundingError(std::abs(value) * (1 + 0x1p-8) + error);
}

std::vector<TestBackend> CpuTestBackends() {
  std::vector<TestBackend> backends;
  for (const Isa isa : SupportedIsas()) {
    backends.push_back({std::string(IsaName(isa)), isa, DType::kF32});
  }
  return backends;
}

std::vector<TestBackend> CudaTestBackends() {
  const TestBackend f16 = {"cuda_f16", std::nullopt, DType::kF16};
  const DType kept =
      CheckOk(CudaBackend::Create({}))->ActivationDType(DType::kBF16);
  if (kept == DType::kF16) return {f16};
  return {{"cuda_bf16", std::nullopt, DType::kBF16}, f16};
}

int NumMultiprocessors() {
  return CheckOk(CudaBackend::Create({}))->device().properties().num_sms;
}

std::vector<TestBackend> AllTestBackends() {
  std::vector<TestBackend> backends = CpuTestBackends();
  for (const TestBackend& backend : CudaTestBackends()) {
    backends.push_back(backend);
  }
  return backends;
}

absl::Span<const RowResult> RunStep(
    Backend& backend, const StepPlan& plan,
    const std::function<void(Step& step)>& enqueue) {
  Step* step = CheckOk(backend.BeginStep(plan));
  CheckOk(backend.Run(*step, GraphKey(), [&] {
    enqueue(*step);
    return absl::OkStatus();
  }));
  CheckOk(backend.EndStep(*step));
  const absl::Span<const RowResult> results = CheckOk(backend.Collect(*step));
  QUIRE_CHECK(backend.Done(*step));
  return results;
}

void RunTokenStep(Backend& backend, const TokenStepOptions& options,
                  const std::function<void()>& copy_in,
                  const std::function<void(Step& step)>& enqueue) {
  EngineShape shape;
  shape.max_num_seqs = 1;
  shape.max_num_tokens = std::max(options.num_tokens, options.max_num_tokens);
  shape.max_logit_rows = std::max(options.num_logits, 1);
  shape.max_model_len = shape.max_num_tokens;
  shape.vocab_size = options.vocab_size;
  shape.kv_bytes = 0;
  const MemoryPlan memory = CheckOk(backend.Prepare(shape));
  copy_in();

  std::vector<int32_t> blocks(memory.num_blocks);
  for (int i = 0; i < memory.num_blocks; ++i) blocks[i] = i;
  const SlotParams params;
  SlotUpdate update;
  update.params = &params;
  update.append_blocks = blocks;
  std::vector<int32_t> token_ids = options.token_ids;
  token_ids.resize(options.num_tokens);
  StepRow row;
  row.num_tokens = options.num_tokens;
  row.num_logits = options.num_logits;
  row.num_drafts = std::max(options.num_logits - 1, 0);
  StepPlan plan;
  plan.updates = absl::MakeConstSpan(&update, 1);
  if (options.num_tokens > 0) {
    plan.rows = absl::MakeConstSpan(&row, 1);
    plan.token_ids = token_ids;
  }
  Step* step = CheckOk(backend.BeginStep(plan));
  CheckOk(backend.Run(*step, GraphKey(), [&] {
    enqueue(*step);
    return absl::OkStatus();
  }));
  // Logits that nobody samples make EndStep an error, and that is fine here.
  if (options.num_logits == 0) CheckOk(backend.EndStep(*step));
}

}  // namespace quire
