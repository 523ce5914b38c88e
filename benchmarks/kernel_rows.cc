#include "benchmarks/kernel_rows.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <limits>
#include <numeric>
#include <utility>

#include "absl/functional/function_ref.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "engine/base/random.h"
#include "engine/base/status.h"
#include "kernels/random_weights.h"

namespace quire {
namespace {

using SteadyClock = std::chrono::steady_clock;

constexpr int kBlockSize = 16;

double SecondsSince(SteadyClock::time_point start) {
  return std::chrono::duration<double>(SteadyClock::now() - start).count();
}

class CpuCeilings : public KernelCeilings {
 public:
  explicit CpuCeilings(CeilingProbe* probe) : probe_(probe) {}
  double Bandwidth() override { return probe_->ReadBandwidth(); }
  const char* BandwidthName() const override { return "read"; }
  double Peak(Arithmetic arithmetic) override {
    switch (arithmetic) {
      case Arithmetic::kInt8:
        return probe_->Int8Peak();
      case Arithmetic::kBf16:
        return probe_->Bf16Peak();
      case Arithmetic::kF32:
        return probe_->F32Peak();
    }
    return 0;
  }

 private:
  CeilingProbe* const probe_;
};

using Enqueue = std::function<absl::Status(Step&)>;

// Steps of `num_seqs` sequences, each with `num_tokens` tokens at the end of
// `context`; every step starts them anew, so that all are alike.
class StepRunner {
 public:
  StepRunner(Backend* backend, int num_seqs, int num_tokens, int context,
             bool has_logits, bool has_kv)
      : backend_(backend),
        num_seqs_(num_seqs),
        num_tokens_(num_tokens),
        has_logits_(has_logits),
        history_(context, 1),
        token_ids_(num_seqs * num_tokens, 1) {
    params_.temperature = 0.0f;
    const int blocks_per_seq = (context + kBlockSize - 1) / kBlockSize;
    blocks_.resize(num_seqs * blocks_per_seq);
    // Without attention there is no KV cache: every block is the same one.
    if (has_kv) std::iota(blocks_.begin(), blocks_.end(), 0);
    for (int seq = 0; seq < num_seqs; ++seq) {
      SlotUpdate update;
      update.slot = seq;
      update.params = &params_;
      update.history = history_;
      update.num_prompt_tokens = context;
      update.append_blocks = absl::MakeConstSpan(blocks_).subspan(
          seq * blocks_per_seq, blocks_per_seq);
      updates_.push_back(update);
    }
  }

  // One step at the end of `context` tokens; the seconds from its begin to its
  // end. Calls with the same `variant` enqueue the same: the backend may replay
  // it.
  absl::StatusOr<double> Run(int context, int variant, const Enqueue& enqueue) {
    std::vector<StepRow> rows;
    for (int seq = 0; seq < num_seqs_; ++seq) {
      updates_[seq].num_computed_tokens = context - num_tokens_;
      updates_[seq].history = absl::MakeConstSpan(history_).subspan(0, context);
      updates_[seq].num_prompt_tokens = context;
      StepRow row;
      row.slot = seq;
      row.num_tokens = num_tokens_;
      // The rows that are scored need no draw of their own.
      row.num_logits = has_logits_ ? 1 : 0;
      rows.push_back(row);
    }
    StepPlan plan;
    plan.updates = updates_;
    plan.rows = rows;
    plan.token_ids = token_ids_;
    const SteadyClock::time_point start = SteadyClock::now();
    QUIRE_ASSIGN_OR_RETURN(Step* const step, backend_->BeginStep(plan));
    GraphKey key;
    key.model = variant;
    key.num_rows = num_seqs_;
    key.num_tokens = num_seqs_ * num_tokens_;
    key.num_logit_rows = has_logits_ ? num_seqs_ : 0;
    const absl::Status run =
        backend_->Run(*step, key, [&] { return enqueue(*step); });
    const absl::Status end = backend_->EndStep(*step);
    const absl::Status collected = backend_->Collect(*step).status();
    QUIRE_RETURN_IF_ERROR(run);
    QUIRE_RETURN_IF_ERROR(end);
    QUIRE_RETURN_IF_ERROR(collected);
    return SecondsSince(start);
  }

 private:
  Backend* const backend_;
  const int num_seqs_;
  const int num_tokens_;
  const bool has_logits_;
  SlotParams params_;
  std::vector<int32_t> history_;
  std::vector<int32_t> token_ids_;
  std::vector<int32_t> blocks_;
  std::vector<SlotUpdate> updates_;
};

// A table of values in [-2, 2) from which operations get their inputs.
absl::StatusOr<std::unique_ptr<PackedWeight>> MakeTable(Backend& backend,
                                                        int64_t rows,
                                                        int64_t cols) {
  auto values = std::make_shared<std::vector<float>>(rows * cols);
  SimulationRandom random(2);
  for (float& v : *values) v = static_cast<float>(4 * random.Uniform() - 2);
  LinearSpec spec;
  spec.kind = LinearKind::kVocab;
  WeightPart part;
  part.data = TensorView::Matrix(values->data(), DType::kF32, rows, cols);
  spec.parts.push_back(part);
  spec.keep_alive = values;
  return backend.PackLinear(spec);
}

// Of the weights as they are given, scales included.
int64_t BytesOf(const LinearSpec& spec) {
  const auto bytes = [](const TensorView& view) {
    return view.rows * view.cols * static_cast<int64_t>(DTypeSize(view.dtype));
  };
  int64_t sum = 0;
  for (const WeightPart& part : spec.parts) {
    sum += bytes(part.data) + bytes(part.scales);
  }
  return sum;
}

class DeviceCeilings : public KernelCeilings {
 public:
  DeviceCeilings(std::unique_ptr<Backend> backend,
                 std::unique_ptr<DeviceProbe> probe)
      : backend_(std::move(backend)), probe_(std::move(probe)) {}

  double Bandwidth() override { return probe_->ReadBandwidth().value_or(0); }
  const char* BandwidthName() const override { return "read"; }
  double CopyBandwidth() override {
    return probe_->CopyBandwidth().value_or(0);
  }
  double Peak(Arithmetic arithmetic) override {
    if (arithmetic != Arithmetic::kBf16) return 0;
    return probe_->Bf16Peak().value_or(0);
  }

 private:
  const std::unique_ptr<Backend> backend_;
  const std::unique_ptr<DeviceProbe> probe_;
};

class KernelBench {
 public:
  KernelBench(const KernelBenchPlan& plan, const std::string& model,
              const RandomModelShape& shape,
              const std::function<void(const KernelRow&)>& on_row,
              const std::function<void(const std::string&)>& on_skip)
      : plan_(plan),
        model_(model),
        shape_(shape),
        on_row_(on_row),
        on_skip_(on_skip) {}

  absl::Status Linear(const char* layer, LinearKind kind, int64_t rows,
                      int64_t cols, int num_tokens);
  absl::Status Attention(int num_seqs, int num_tokens, int context);
  absl::Status Norm(int num_tokens);

 private:
  bool IsWanted(const std::string& name) const {
    return absl::StrContains(name, plan_.filter);
  }
  using Timed = absl::FunctionRef<absl::StatusOr<double>(int)>;
  // Repeats `run` (whose argument is how often to go through all `num_units`
  // layers in one step; it returns the seconds) between probes. What
  // `run_without`, the same step without the operation, takes at least is no
  // part of the row.
  absl::Status Measure(KernelRow row, Arithmetic arithmetic, double num_units,
                       Timed run, Timed run_without);
  LinearSpec MakeSpec(LinearKind kind, int64_t rows, int64_t cols);
  // Of as many layers as the rotation has room for.
  AttentionSpec MakeAttentionSpec(int64_t layer_bytes) const;
  Arithmetic LinearArithmetic() const {
    if (plan_.format == QuantFormat::kFp8) return Arithmetic::kBf16;
    return plan_.format != QuantFormat::kDense ? Arithmetic::kInt8
           : plan_.dtype == DType::kBF16       ? Arithmetic::kBf16
                                               : Arithmetic::kF32;
  }

  const KernelBenchPlan& plan_;
  const std::string& model_;
  const RandomModelShape& shape_;
  const std::function<void(const KernelRow&)>& on_row_;
  const std::function<void(const std::string&)>& on_skip_;
  std::vector<uint16_t> dense_;  // Behind the parts of MakeSpec.
  RandomWeights quantized_;
};

absl::Status KernelBench::Measure(KernelRow row, Arithmetic arithmetic,
                                  double num_units, Timed run,
                                  Timed run_without) {
  QUIRE_RETURN_IF_ERROR(run(1).status());  // Warms up.
  QUIRE_ASSIGN_OR_RETURN(const double once, run(1));
  const int count = static_cast<int>(
      std::clamp(std::ceil(plan_.min_seconds / once), 1.0, 1e4));
  QUIRE_RETURN_IF_ERROR(run(count).status());  // Captures a graph.
  double seconds_without = std::numeric_limits<double>::infinity();
  for (int i = 0; i < 4; ++i) {  // The first one warms up.
    QUIRE_ASSIGN_OR_RETURN(const double seconds, run_without(count));
    if (i > 0) seconds_without = std::min(seconds_without, seconds);
  }
  KernelCeilings& ceilings = *plan_.ceilings;
  double bandwidth = ceilings.Bandwidth();
  double peak = ceilings.Peak(arithmetic);
  for (int i = 0; i < plan_.repetitions; ++i) {
    QUIRE_ASSIGN_OR_RETURN(const double step_seconds, run(count));
    // In a noisy moment the operation may be lost in what is around it.
    const double seconds = step_seconds > seconds_without
                               ? step_seconds - seconds_without
                               : step_seconds;
    const double num_executions = num_units * count;
    row.seconds.push_back(seconds / num_executions);
    const double next_bandwidth = ceilings.Bandwidth();
    const double next_peak = ceilings.Peak(arithmetic);
    if (bandwidth > 0 && next_bandwidth > 0) {
      row.percent_of_bandwidth.push_back(200 * row.bytes * num_executions /
                                         seconds /
                                         (bandwidth + next_bandwidth));
    }
    if (peak > 0 && next_peak > 0) {
      row.percent_of_peak.push_back(200 * row.flops * num_executions / seconds /
                                    (peak + next_peak));
    }
    bandwidth = next_bandwidth;
    peak = next_peak;
  }
  on_row_(row);
  return absl::OkStatus();
}

LinearSpec KernelBench::MakeSpec(LinearKind kind, int64_t rows, int64_t cols) {
  LinearSpec spec;
  spec.kind = kind;
  WeightPart whole;
  if (plan_.format == QuantFormat::kDense) {
    dense_.resize(rows * cols * DTypeSize(plan_.dtype) / 2);
    for (size_t i = 0; i < dense_.size(); ++i) {
      // +-0.5 .. 2 as bf16; harmless as f16 and as halves of f32 too.
      const uint64_t bits = MixBits(i, 1);
      dense_[i] =
          static_cast<uint16_t>(0x3f00 + (bits & 0xff) + (bits & 0x8000));
    }
    whole.data = TensorView::Matrix(dense_.data(), plan_.dtype, rows, cols);
  } else {
    quantized_ = MakeRandomWeights(plan_.format, rows, cols, 1);
    whole = quantized_.part;
  }
  const int num_parts = kind == LinearKind::kGateUp ? 2 : 1;
  const int64_t row_bytes =
      whole.data.cols * static_cast<int64_t>(DTypeSize(whole.data.dtype));
  for (int i = 0; i < num_parts; ++i) {
    WeightPart part = whole;
    part.data.rows = rows / num_parts;
    part.data.data =
        static_cast<char*>(whole.data.data) + i * part.data.rows * row_bytes;
    if (!part.scales.empty() && part.scales.rows > 1) {
      part.scales.rows = part.zeros.rows = part.data.rows;
    }
    spec.parts.push_back(part);
  }
  return spec;
}

absl::Status KernelBench::Linear(const char* layer, LinearKind kind,
                                 int64_t rows, int64_t cols, int num_tokens) {
  const std::string name =
      absl::StrCat(model_, " ", layer, " ", num_tokens, "x", rows, "x", cols);
  const bool is_vocab = kind == LinearKind::kVocab;
  // Large logits: a real step asks for few rows of them.
  if (!IsWanted(name) || (is_vocab && num_tokens > 64)) {
    return absl::OkStatus();
  }
  if (plan_.format != QuantFormat::kDense &&
      cols % QuantBlockOf(plan_.format).cols != 0) {
    on_skip_(absl::StrCat(name, ": rows are not whole blocks of ",
                          QuantBlockOf(plan_.format).cols, " columns"));
    return absl::OkStatus();
  }
  QUIRE_ASSIGN_OR_RETURN(const std::unique_ptr<Backend> backend,
                         plan_.new_backend());
  if (!backend->SupportsLinear(plan_.dtype, plan_.format)) {
    on_skip_(absl::StrCat(name, ": ", backend->Description(),
                          " does not multiply with ",
                          QuantFormatName(plan_.format)));
    return absl::OkStatus();
  }
  const LinearSpec spec = MakeSpec(kind, rows, cols);
  const int64_t bytes = BytesOf(spec);
  const int64_t num_copies =
      num_tokens <= 64 ? std::max<int64_t>(1, plan_.rotation_bytes / bytes) : 1;
  std::vector<std::unique_ptr<PackedWeight>> copies;
  for (int64_t i = 0; i < num_copies; ++i) {
    QUIRE_ASSIGN_OR_RETURN(auto packed, backend->PackLinear(spec));
    copies.push_back(std::move(packed));
  }
  // The input: rows of a table (of the output matrix itself, which is one).
  QUIRE_ASSIGN_OR_RETURN(const auto table, MakeTable(*backend, 8, cols));
  const DType activations = backend->ActivationDType(plan_.dtype);
  const int x_id =
      backend->AddActivation(cols, activations, ActivationRows::kTokens);
  const int out_id = is_vocab
                         ? backend->AddActivation(rows, DType::kF32,
                                                  ActivationRows::kLogitRows)
                         : backend->AddActivation(
                               kind == LinearKind::kGateUp ? rows / 2 : rows,
                               activations, ActivationRows::kTokens);
  EngineShape shape;
  shape.max_num_seqs = is_vocab ? num_tokens : 1;
  shape.max_num_tokens = num_tokens;
  shape.max_logit_rows = num_tokens;
  shape.max_model_len = std::max(num_tokens, kBlockSize);
  shape.vocab_size = is_vocab ? static_cast<int>(rows) : 8;
  shape.block_size = kBlockSize;
  QUIRE_RETURN_IF_ERROR(backend->Prepare(shape).status());
  const TensorView x = backend->Activation(x_id);
  const TensorView out = backend->Activation(out_id);
  Epilogue epilogue;
  if (kind == LinearKind::kGateUp) {
    epilogue.activation = Epilogue::Activation::kSwiGlu;
  }
  const int tokens_per_seq = is_vocab ? 1 : num_tokens;
  StepRunner runner(backend.get(), is_vocab ? num_tokens : 1, tokens_per_seq,
                    tokens_per_seq, is_vocab, /*has_kv=*/false);
  const auto repeat = [&](int count) {
    return runner.Run(tokens_per_seq, count, [&](Step& step) -> absl::Status {
      QUIRE_RETURN_IF_ERROR(backend->Embed(
          step, is_vocab ? *copies.front() : *table, nullptr, 1.0f, x));
      for (int i = 0; i < count; ++i) {
        for (const auto& weight : copies) {
          QUIRE_RETURN_IF_ERROR(is_vocab
                                    ? backend->Logits(step, x, Prologue(),
                                                      *weight, 1.0f, 0.0f, out)
                                    : backend->Linear(step, x, Prologue(),
                                                      *weight, epilogue, out));
        }
      }
      return is_vocab ? backend->Sample(step, out) : absl::OkStatus();
    });
  };
  KernelRow row;
  row.name = name;
  row.bytes = bytes;
  row.flops = 2.0 * num_tokens * rows * cols;
  // A step that has logits samples them: there is none without the operation.
  return Measure(std::move(row), LinearArithmetic(), num_copies, repeat,
                 [&](int) -> absl::StatusOr<double> {
                   return is_vocab ? 0.0 : repeat(0);
                 });
}

AttentionSpec KernelBench::MakeAttentionSpec(int64_t layer_bytes) const {
  AttentionSpec spec;
  spec.num_layers = static_cast<int>(
      std::clamp<int64_t>(plan_.rotation_bytes / layer_bytes, 1, 256));
  spec.num_heads = static_cast<int>(shape_.num_heads);
  spec.num_kv_heads = static_cast<int>(shape_.num_kv_heads);
  spec.head_dim = static_cast<int>(shape_.head_dim);
  spec.scale = 1.0f / std::sqrt(static_cast<float>(shape_.head_dim));
  spec.kv_dtype = plan_.kv_dtype;
  return spec;
}

// Fills the KV cache: `num_seqs` sequences of `context` tokens, `chunk` of each
// in a step.
absl::Status FillKv(Backend* backend, int num_seqs, int chunk, int context,
                    const Enqueue& attend) {
  StepRunner filler(backend, num_seqs, chunk, context, false, /*has_kv=*/true);
  for (int filled = chunk; filled < context + chunk; filled += chunk) {
    QUIRE_RETURN_IF_ERROR(
        filler.Run(std::min(filled, context), 1, attend).status());
  }
  return absl::OkStatus();
}

absl::Status KernelBench::Attention(int num_seqs, int num_tokens, int context) {
  const std::string name = absl::StrCat(model_, " attention ", num_seqs, "x",
                                        num_tokens, " of ", context);
  if (!IsWanted(name)) return absl::OkStatus();
  QUIRE_ASSIGN_OR_RETURN(const std::unique_ptr<Backend> backend,
                         plan_.new_backend());
  const int64_t blocks_per_seq = (context + kBlockSize - 1) / kBlockSize;
  const int64_t position_bytes =
      2 * shape_.num_kv_heads * KvHeadBytes(plan_.kv_dtype, shape_.head_dim);
  const int64_t layer_bytes =
      num_seqs * blocks_per_seq * kBlockSize * position_bytes;
  const AttentionSpec spec = MakeAttentionSpec(layer_bytes);
  const auto spec_id = backend->AddAttention(spec);
  if (!spec_id.ok()) {
    on_skip_(absl::StrCat(name, ": ", spec_id.status().message()));
    return absl::OkStatus();
  }
  const DType activations = backend->ActivationDType(plan_.dtype);
  const int64_t qkv_cols =
      (shape_.num_heads + 2 * shape_.num_kv_heads) * shape_.head_dim;
  const int qkv_id =
      backend->AddActivation(qkv_cols, activations, ActivationRows::kTokens);
  const int out_id = backend->AddActivation(
      shape_.num_heads * shape_.head_dim, activations, ActivationRows::kTokens);
  // Random queries, keys and values: rows of a table.
  constexpr int kTableRows = 64;
  QUIRE_ASSIGN_OR_RETURN(const auto table,
                         MakeTable(*backend, kTableRows, qkv_cols));
  const int chunk = std::min(context, std::max(num_tokens, 256));
  EngineShape shape;
  shape.max_num_seqs = num_seqs;
  shape.max_num_tokens = num_seqs * chunk;
  shape.max_logit_rows = 1;
  shape.max_model_len = context;
  shape.vocab_size = kTableRows;
  shape.block_size = kBlockSize;
  shape.kv_bytes = layer_bytes * spec.num_layers;
  QUIRE_RETURN_IF_ERROR(backend->Prepare(shape).status());
  const TensorView qkv = backend->Activation(qkv_id);
  const TensorView out = backend->Activation(out_id);
  const auto attend = [&](int count, bool has_attention = true) -> Enqueue {
    return [&, count, has_attention](Step& step) -> absl::Status {
      for (int i = 0; i < count; ++i) {
        for (int layer = 0; layer < spec.num_layers; ++layer) {
          // It is overwritten.
          QUIRE_RETURN_IF_ERROR(
              backend->Embed(step, *table, nullptr, 1.0f, qkv));
          if (!has_attention) continue;
          QUIRE_RETURN_IF_ERROR(
              backend->Attention(step, *spec_id, layer, qkv, out));
        }
      }
      return absl::OkStatus();
    };
  };
  QUIRE_RETURN_IF_ERROR(
      FillKv(backend.get(), num_seqs, chunk, context, attend(1)));
  StepRunner runner(backend.get(), num_seqs, num_tokens, context, false,
                    /*has_kv=*/true);
  KernelRow row;
  row.name = name;
  row.bytes = static_cast<double>(num_seqs) * context * position_bytes;
  const double pairs =
      static_cast<double>(num_tokens) * (context - num_tokens) +
      num_tokens * (num_tokens + 1.0) / 2;
  row.flops = 4.0 * num_seqs * pairs * shape_.num_heads * shape_.head_dim;
  return Measure(
      std::move(row), Arithmetic::kF32, spec.num_layers,
      [&](int count) { return runner.Run(context, count, attend(count)); },
      [&](int count) {
        return runner.Run(context, -count, attend(count, false));
      });
}

absl::Status KernelBench::Norm(int num_tokens) {
  const int64_t cols = shape_.hidden_size;
  const std::string name =
      absl::StrCat(model_, " norm ", num_tokens, "x", cols);
  if (!IsWanted(name)) return absl::OkStatus();
  QUIRE_ASSIGN_OR_RETURN(const std::unique_ptr<Backend> backend,
                         plan_.new_backend());
  std::vector<float> ones(cols, 1.0f);
  QUIRE_ASSIGN_OR_RETURN(
      const TensorView weight,
      backend->Upload(TensorView::Matrix(ones.data(), DType::kF32, 1, cols)));
  const DType activations = backend->ActivationDType(plan_.dtype);
  const int x_id =
      backend->AddActivation(cols, activations, ActivationRows::kTokens);
  const int out_id =
      backend->AddActivation(cols, activations, ActivationRows::kTokens);
  EngineShape shape;
  shape.max_num_seqs = shape.max_logit_rows = 1;
  shape.max_num_tokens = num_tokens;
  shape.max_model_len = std::max(num_tokens, kBlockSize);
  shape.vocab_size = 8;
  shape.block_size = kBlockSize;
  QUIRE_RETURN_IF_ERROR(backend->Prepare(shape).status());
  Prologue prologue;
  prologue.norm.kind = NormSpec::Kind::kRms;
  prologue.norm.weight = weight;
  const TensorView x = backend->Activation(x_id);
  const TensorView out = backend->Activation(out_id);
  StepRunner runner(backend.get(), 1, num_tokens, num_tokens, false,
                    /*has_kv=*/false);
  KernelRow row;
  row.name = name;
  row.bytes = 2.0 * num_tokens * cols * DTypeSize(activations);
  row.flops = 4.0 * num_tokens * cols;
  const auto repeat = [&](int count) {
    return runner.Run(num_tokens, count, [&](Step& step) -> absl::Status {
      for (int i = 0; i < count; ++i) {
        QUIRE_RETURN_IF_ERROR(backend->Norm(step, x, prologue, out));
      }
      return absl::OkStatus();
    });
  };
  return Measure(std::move(row), Arithmetic::kF32, 1, repeat,
                 [&](int) { return repeat(0); });
}

}  // namespace

std::unique_ptr<KernelCeilings> NewCpuCeilings(CeilingProbe* probe) {
  return std::make_unique<CpuCeilings>(probe);
}

absl::StatusOr<std::unique_ptr<KernelCeilings>> NewDeviceCeilings(
    std::unique_ptr<Backend> backend, int64_t num_bytes) {
  QUIRE_ASSIGN_OR_RETURN(auto probe, backend->NewProbe(num_bytes));
  return std::make_unique<DeviceCeilings>(std::move(backend), std::move(probe));
}

absl::Status MeasureKernels(
    const KernelBenchPlan& plan, const std::string& model,
    const RandomModelShape& shape,
    const std::function<void(const KernelRow&)>& on_row,
    const std::function<void(const std::string&)>& on_skip) {
  KernelBench bench(plan, model, shape, on_row, on_skip);
  const int64_t q_cols = shape.num_heads * shape.head_dim;
  const int64_t qkv_rows =
      (shape.num_heads + 2 * shape.num_kv_heads) * shape.head_dim;
  const int64_t hidden = shape.hidden_size;
  const int64_t inner = shape.intermediate_size;
  for (int n : plan.num_rows) {
    QUIRE_RETURN_IF_ERROR(
        bench.Linear("qkv", LinearKind::kPlain, qkv_rows, hidden, n));
    QUIRE_RETURN_IF_ERROR(
        bench.Linear("o", LinearKind::kPlain, hidden, q_cols, n));
    QUIRE_RETURN_IF_ERROR(
        bench.Linear("gate_up", LinearKind::kGateUp, 2 * inner, hidden, n));
    QUIRE_RETURN_IF_ERROR(
        bench.Linear("down", LinearKind::kPlain, hidden, inner, n));
    QUIRE_RETURN_IF_ERROR(
        bench.Linear("vocab", LinearKind::kVocab, shape.vocab_size, hidden, n));
    QUIRE_RETURN_IF_ERROR(bench.Norm(n));
  }
  struct Case {
    int num_seqs, num_tokens, context;
  };
  for (const Case& c :
       {Case{1, 1, 512}, Case{1, 1, 4096}, Case{16, 1, 512}, Case{16, 1, 4096},
        Case{1, 512, 512}, Case{1, 512, 4096}}) {
    QUIRE_RETURN_IF_ERROR(bench.Attention(c.num_seqs, c.num_tokens, c.context));
  }
  return absl::OkStatus();
}

}  // namespace quire
