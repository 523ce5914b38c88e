#include "tests/backend_harness.h"

#include <algorithm>
#include <cmath>
#include <iostream>

#include "engine/base/status.h"
#include "kernels/cpu/cpu_backend.h"

namespace quire {

void CheckOk(const absl::Status& status) {
  if (!status.ok()) std::cerr << status << std::endl;
  QUIRE_CHECK(status.ok());
}

std::unique_ptr<Backend> MakeCpuBackend(Isa isa, int num_threads) {
  CpuBackendOptions options;
  options.isa = isa;
  options.num_threads = num_threads;
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

void CopyIn(const std::vector<float>& values, TensorView view) {
  for (size_t i = 0; i < values.size(); ++i) {
    view.row<float>(i / view.cols)[i % view.cols] = values[i];
  }
}

std::vector<float> CopyOut(TensorView view, int64_t rows) {
  std::vector<float> values;
  for (int64_t row = 0; row < rows; ++row) {
    const float* begin = view.row<const float>(row);
    values.insert(values.end(), begin, begin + view.cols);
  }
  return values;
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
  QUIRE_CHECK(backend.Done(*step));
  return CheckOk(backend.Collect(*step));
}

void RunTokenStep(Backend& backend, const TokenStepOptions& options,
                  const std::function<void()>& copy_in,
                  const std::function<void(Step& step)>& enqueue) {
  EngineShape shape;
  shape.max_num_seqs = 1;
  shape.max_num_tokens = std::max(options.num_tokens, 1);
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
