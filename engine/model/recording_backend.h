// A backend that computes nothing and remembers what it was asked: for tests of
// what sits above the interface.
#ifndef QUIRE_ENGINE_MODEL_RECORDING_BACKEND_H_
#define QUIRE_ENGINE_MODEL_RECORDING_BACKEND_H_

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/backend.h"

namespace quire {

class Step {};

class RecordingBackend : public Backend {
 public:
  struct Pack {
    LinearKind kind;
    std::vector<std::pair<int64_t, int64_t>> shapes;  // Of the parts.
    DType dtype;
    int64_t bias_size;
  };
  // A StepPlan with copies of all that it points to.
  struct Plan {
    struct Update {
      SlotUpdate update;
      SlotParams params;  // If update.params.
      std::vector<int32_t> history, append_blocks;
    };
    std::vector<Update> updates;
    std::vector<std::pair<int32_t, int32_t>> block_copies;
    std::vector<StepRow> rows;
    std::vector<int32_t> token_ids;
  };

  std::vector<Pack> packs;
  std::vector<AttentionSpec> attentions;
  std::vector<int64_t> activation_cols;
  std::vector<std::string> calls;  // Of a step, in order.
  std::vector<Plan> plans;
  GraphKey key;
  std::vector<RowResult> results;  // What Collect returns.
  absl::Status run_status;         // What Run returns, after its closure.

  std::string Description() const override { return "recording"; }
  DType ActivationDType(DType) const override { return DType::kF32; }
  bool SupportsLinear(DType weights, QuantFormat) const override {
    return weights != DType::kF16;
  }
  absl::StatusOr<std::unique_ptr<PackedWeight>> PackLinear(
      const LinearSpec& spec) override {
    auto packed = std::make_unique<PackedWeight>();
    Pack pack{spec.kind, {}, spec.parts[0].data.dtype, spec.bias.cols};
    for (const WeightPart& part : spec.parts) {
      pack.shapes.emplace_back(part.data.rows, part.data.cols);
      packed->rows += part.data.rows;
      packed->cols = part.data.cols;
      packed->num_bytes += part.data.num_bytes();
    }
    packed->kind = spec.kind;
    packs.push_back(std::move(pack));
    return packed;
  }
  absl::StatusOr<TensorView> Upload(TensorView host) override {
    const float* from = host.row<const float>(0);
    uploads_.push_back(std::make_unique<std::vector<float>>(
        from, from + host.rows * host.cols));
    return TensorView::Matrix(uploads_.back()->data(), DType::kF32, host.rows,
                              host.cols);
  }
  absl::StatusOr<int> AddAttention(const AttentionSpec& spec) override {
    attentions.push_back(spec);
    return static_cast<int>(attentions.size()) - 1;
  }
  int AddActivation(int64_t cols, DType, ActivationRows) override {
    activation_cols.push_back(cols);
    return static_cast<int>(activation_cols.size()) - 1;
  }
  absl::StatusOr<MemoryPlan> Prepare(const EngineShape&) override {
    return MemoryPlan();
  }
  TensorView Activation(int id) const override {
    // An address that is not read.
    return TensorView::Matrix(&activation_cols[id], DType::kF32, 1,
                              activation_cols[id]);
  }

  absl::StatusOr<Step*> BeginStep(const StepPlan& plan) override {
    Plan copy;
    for (const SlotUpdate& update : plan.updates) {
      copy.updates.push_back(
          {update,
           update.params != nullptr ? *update.params : SlotParams(),
           {update.history.begin(), update.history.end()},
           {update.append_blocks.begin(), update.append_blocks.end()}});
    }
    copy.block_copies.assign(plan.block_copies.begin(),
                             plan.block_copies.end());
    copy.rows.assign(plan.rows.begin(), plan.rows.end());
    copy.token_ids.assign(plan.token_ids.begin(), plan.token_ids.end());
    plans.push_back(std::move(copy));
    calls.push_back("begin");
    return &step_;
  }
  absl::Status Run(Step&, const GraphKey& graph_key,
                   absl::FunctionRef<absl::Status()> enqueue) override {
    key = graph_key;
    const absl::Status status = enqueue();
    return status.ok() ? run_status : status;
  }
  absl::Status EndStep(Step&) override {
    calls.push_back("end");
    return absl::OkStatus();
  }
  bool Done(const Step&) const override { return true; }
  absl::StatusOr<absl::Span<const RowResult>> Collect(Step&) override {
    calls.push_back("collect");
    return absl::MakeConstSpan(results);
  }

  absl::Status Embed(Step&, const PackedWeight&, const PackedWeight*, float,
                     TensorView out) override {
    calls.push_back(absl::StrCat("embed ", out.cols));
    return absl::OkStatus();
  }
  absl::Status AddPositions(Step&, const PackedWeight&, TensorView x) override {
    calls.push_back(absl::StrCat("positions ", x.cols));
    return absl::OkStatus();
  }
  absl::Status Norm(Step&, TensorView, const Prologue&, TensorView) override {
    calls.push_back("norm");
    return absl::OkStatus();
  }
  absl::Status Linear(Step&, TensorView x, const Prologue& prologue,
                      const PackedWeight&, const Epilogue& epilogue,
                      TensorView out) override {
    calls.push_back(absl::StrCat(
        "linear ", x.cols, "->", out.cols,
        prologue.norm.kind != NormSpec::Kind::kNone ? " norm" : "",
        epilogue.activation == Epilogue::Activation::kSwiGlu ? " swiglu" : "",
        epilogue.activation == Epilogue::Activation::kRelu ? " relu" : "",
        epilogue.norm.kind != NormSpec::Kind::kNone ? " branch-norm" : "",
        epilogue.scale != 1.0f ? absl::StrCat(" times ", epilogue.scale) : "",
        epilogue.residual.empty() ? "" : " residual"));
    return absl::OkStatus();
  }
  absl::Status Attention(Step&, int spec_id, int layer, TensorView,
                         TensorView) override {
    calls.push_back(absl::StrCat("attention ", spec_id, "/", layer));
    return absl::OkStatus();
  }
  absl::Status Logits(Step&, TensorView, const Prologue&,
                      const PackedWeight& vocab, float, float,
                      TensorView out) override {
    calls.push_back(absl::StrCat("logits ", vocab.rows));
    return absl::OkStatus();
  }
  absl::Status GatherLogitRows(Step&, TensorView, TensorView) override {
    calls.push_back("gather");
    return absl::OkStatus();
  }
  absl::Status Sample(Step&, TensorView) override {
    calls.push_back("sample");
    return absl::OkStatus();
  }
  absl::Status Transfer(Step&, TransferKind kind, Communicator&, int peer,
                        TensorView x) override {
    calls.push_back(
        absl::StrCat(kind == TransferKind::kSend ? "send to " : "receive from ",
                     peer, " ", x.cols));
    return absl::OkStatus();
  }
  absl::Status Advance(Step&) override {
    calls.push_back("advance");
    return absl::OkStatus();
  }
  absl::Status Pool(Step&, TensorView hidden, const Prologue& prologue,
                    Pooling pooling) override {
    calls.push_back(absl::StrCat(
        pooling == Pooling::kMean ? "pool mean " : "pool last ", hidden.cols,
        prologue.norm.kind == NormSpec::Kind::kRms ? " norm" : ""));
    return absl::OkStatus();
  }

 private:
  std::vector<std::unique_ptr<std::vector<float>>> uploads_;
  Step step_;
};

}  // namespace quire

#endif  // QUIRE_ENGINE_MODEL_RECORDING_BACKEND_H_
