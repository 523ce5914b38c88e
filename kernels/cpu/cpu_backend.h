// The CPU backend: checks, state and memory; the arithmetic is in
// kernels/cpu/{matmul,attention,elementwise,sampling}.
//
// Steps run synchronously: Run calls its closure, every operation is finished
// when it returns, and Done is true after EndStep. Activations are f32.
#ifndef QUIRE_KERNELS_CPU_CPU_BACKEND_H_
#define QUIRE_KERNELS_CPU_CPU_BACKEND_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/base/cpu_topology.h"
#include "engine/base/thread_pool.h"
#include "kernels/backend.h"
#include "kernels/cpu/attention.h"
#include "kernels/cpu/isa.h"
#include "kernels/cpu/mapped_memory.h"
#include "kernels/cpu/matmul.h"
#include "kernels/cpu/sampling.h"
#include "kernels/cpu/slot_table.h"

namespace quire {

struct CpuStep;  // kernels/cpu/cpu_step.h
struct KvLayers;
struct LogitRows;
struct StepRowState;

struct CpuBackendOptions {
  // Of compute threads, the caller among them: it is pinned at its first step.
  PlacementRequest threads = {
      .num_threads = 0, .cpus = {}, .numa = NumaPolicy::kOff};
  std::optional<Isa> isa;  // None: SelectIsa().
};

// See Backend. A step that fails validation in BeginStep may have applied some
// of its updates: the sequences it names must be started anew.
class CpuBackend : public Backend {
 public:
  // INVALID_ARGUMENT if the instruction set is unknown or unsupported, or if a
  // CPU of options.threads may not be used.
  static absl::StatusOr<std::unique_ptr<CpuBackend>> Create(
      const CpuBackendOptions& options);
  ~CpuBackend() override;

  std::string Description() const override;
  absl::StatusOr<std::unique_ptr<Backend>> CreateCompanion() override;
  DType ActivationDType(DType weights) const override;
  bool SupportsLinear(DType weights, QuantFormat format) const override;
  absl::StatusOr<std::unique_ptr<PackedWeight>> PackLinear(
      const LinearSpec& spec) override;
  absl::StatusOr<TensorView> Upload(TensorView host) override;
  absl::StatusOr<int> AddAttention(const AttentionSpec& spec) override;
  int AddActivation(int64_t cols, DType dtype, ActivationRows rows) override;
  absl::StatusOr<MemoryPlan> Prepare(const EngineShape& shape) override;
  TensorView Activation(int id) const override;

  absl::StatusOr<Step*> BeginStep(const StepPlan& plan) override;
  absl::Status Run(Step& step, const GraphKey& key,
                   absl::FunctionRef<absl::Status()> enqueue) override;
  absl::Status EndStep(Step& step) override;
  bool Done(const Step& step) const override;
  absl::StatusOr<absl::Span<const RowResult>> Collect(Step& step) override;

  absl::Status Embed(Step& step, const PackedWeight& vocab,
                     const PackedWeight* positions, float scale,
                     TensorView out) override;
  absl::Status AddPositions(Step& step, const PackedWeight& positions,
                            TensorView x) override;
  absl::Status Norm(Step& step, TensorView x, const Prologue& prologue,
                    TensorView out) override;
  absl::Status Linear(Step& step, TensorView x, const Prologue& prologue,
                      const PackedWeight& weight, const Epilogue& epilogue,
                      TensorView out) override;
  absl::Status Attention(Step& step, int spec_id, int layer, TensorView qkv,
                         TensorView out) override;
  absl::Status Logits(Step& step, TensorView hidden, const Prologue& prologue,
                      const PackedWeight& vocab, float scale, float softcap,
                      TensorView out) override;
  absl::Status GatherLogitRows(Step& step, TensorView x,
                               TensorView out) override;
  absl::Status Transfer(Step& step, TransferKind kind, Communicator& ranks,
                        int peer, TensorView x) override;
  absl::Status Advance(Step& step) override;
  absl::Status Sample(Step& step, TensorView logits) override;
  absl::Status Pool(Step& step, TensorView hidden, const Prologue& prologue,
                    Pooling pooling) override;

 private:
  struct ActivationSpec {
    int64_t cols = 0;
    DType dtype = DType::kF32;
    ActivationRows rows = ActivationRows::kTokens;
    TensorView view;
  };

  CpuBackend(Isa isa, std::shared_ptr<ThreadPool> pool);

  absl::Status CheckShape(const EngineShape& shape) const;
  absl::StatusOr<int> NumBlocks(const EngineShape& shape) const;
  absl::Status AllocateKv();
  absl::Status AllocateWorkspace();
  void CopyBlocks(absl::Span<const std::pair<int32_t, int32_t>> copies);
  absl::Status CheckRow(const StepRow& row, const SlotState& slot,
                        const CpuStep& step) const;
  absl::Status AddTokenIds(const StepRow& row, const SlotState& slot,
                           absl::Span<const int32_t> token_ids,
                           size_t* next_token, CpuStep& step) const;
  absl::Status AddRow(const StepRow& row, absl::Span<const int32_t> token_ids,
                      size_t* next_token, CpuStep& step);
  absl::Status CheckPrologue(const Prologue& prologue, int64_t rows,
                             int64_t cols) const;
  void ApplyPrologue(const Prologue& prologue, int64_t num_rows,
                     const int32_t* row_idxs, TensorView x, float* out,
                     int64_t out_stride);
  void FinishProduct(const Epilogue& epilogue, int64_t num_rows,
                     TensorView product, TensorView out);
  absl::Status MeasureHeads(const CpuStep& step, const AttentionSpec& spec,
                            TensorView qkv);
  void NormHeads(const NormSpec& norm, int num_heads, int head_dim,
                 float* heads);
  void WriteKv(const CpuStep& step, const KvLayers& kv, int layer,
               TensorView qkv);
  SampleInput InputOfDraw(const CpuStep& step, const StepRowState& state,
                          int draw_idx);
  void SampleRowOfStep(CpuStep& step, size_t result_idx,
                       const LogitRows& logits, SamplingScratch& scratch);
  void ScoreLogitOfStep(CpuStep& step, size_t scored_idx, const float* logits,
                        SamplingScratch& scratch);
  // Once all of the step's logits are scored.
  void FinishScoredRow(CpuStep& step, size_t result_idx);
  absl::Status CheckSlices(int64_t slice_size) const;
  bool DrawsFromSlices(const StepRow& row);
  absl::Status ExchangeDraws(CpuStep& step, TensorView logits);
  absl::Status GatherLogits(TensorView logits, int32_t first, int32_t count,
                            int64_t* next_row);
  absl::Status SampleGathered(CpuStep& step, TensorView logits);
  absl::Status SampleSlices(CpuStep& step, TensorView logits);
  absl::Status AddToPooledSums(const CpuStep& step);
  void PoolRow(CpuStep& step, size_t result_idx, Pooling pooling);
  void ReserveResults(CpuStep& step);
  void ReserveForRanks();

  const Isa isa_;
  const std::shared_ptr<ThreadPool> shared_pool_;  // With companions.
  ThreadPool& pool_;
  int64_t weights_bytes_ = 0;
  int64_t max_cols_ = 0;  // Of any weight: x' fits the scratch.
  std::vector<MappedMemory> uploads_;
  std::vector<KvLayers> kv_;  // By spec id.
  std::vector<ActivationSpec> activations_;

  // Since Prepare.
  EngineShape shape_;
  int num_blocks_ = 0;
  bool is_prepared_ = false;
  MappedMemory workspace_;
  int64_t workspace_bytes_ = 0;
  float* normed_ = nullptr;  // x': [max rows, normed_stride_]
  int64_t normed_stride_ = 0;
  std::vector<char> kv_rows_;  // One row of K for each thread.
  int64_t kv_row_bytes_ = 0;
  SlotTable slots_;
  std::vector<int64_t> slot_step_;  // Serial of the last step that named it.
  int64_t num_steps_ = 0;
  std::unique_ptr<MatmulScratch> matmul_scratch_;
  std::unique_ptr<AttentionScratch> attention_scratch_;
  std::vector<SamplingScratch> sampling_scratch_;  // One for each thread.
  std::vector<float> norm_factors_;                // [max_num_tokens, q and k]
  // Of several ranks: [num_whole_rows_, whole_logits_stride_]
  std::vector<float> whole_logits_;
  int64_t num_whole_rows_ = 0;
  int64_t whole_logits_stride_ = 0;
  std::vector<std::unique_ptr<CpuStep>> steps_;  // A ring.
};

}  // namespace quire

#endif  // QUIRE_KERNELS_CPU_CPU_BACKEND_H_
