// The CUDA backend: checks, state and memory; the arithmetic is in the kernels
// beside it. The same code runs on a GPU and on the emulation of one
// (kernels/cuda/device.h).
//
// Everything of a step is enqueued on one stream and nothing waits for it
// before Collect, so that with steps_in_flight 2 a step is planned while the
// one before it runs. What a step needs travels in one copy from its pinned
// staging memory: positions, deltas of the block tables, the plan of the
// attention.
//
// Weights: bf16 and f16 stay as they are, f32 is rounded to bf16. kFp8, kInt4,
// kQ8_0 and kQ4_0 stay in 8 and 4 bits (kernels/cuda/quantized_linear.h) and
// take activations in bf16 or f16; what the kernels do not know of them (parts
// of several formats, groups that are no multiple of 32 columns, a vocabulary)
// is decoded when packed, to f16 if the scales are in f16, else to bf16. GPUs
// below compute capability 8.0 have no bf16: everything becomes f16 there, and
// a weight beyond its range is an error. Columns of every matrix are multiples
// of eight, of gate and up the rows too; others are refused. Biases are f32.
// Activations have the dtype of the weights (with quantized ones the model's:
// bf16 unless the checkpoint says f16), the KV cache the same or e4m3; logits
// are f32.
#ifndef QUIRE_KERNELS_CUDA_CUDA_BACKEND_H_
#define QUIRE_KERNELS_CUDA_CUDA_BACKEND_H_

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/backend.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/matrix_library.h"
#include "kernels/cuda/nccl_communicator.h"
#include "kernels/cuda/staged_copies.h"

namespace quire {

struct AttentionBatch;  // kernels/cuda/cuda_step.h
struct AttentionPlanner;
struct CudaAhead;
struct CudaAttention;
struct CudaFirstUse;
struct CudaGraph;
struct CudaReservation;
struct CudaSampling;
struct CudaSlot;
struct CudaStep;
struct CudaStepShape;
struct CudaWeight;
class StagingCursor;

namespace cuda {
class LargeLinear;
enum class AttentionTile : uint8_t;
struct AttentionSplits;
struct BlockTableEntry;
struct LinearArguments;
struct NormArguments;
struct SampleArguments;
}  // namespace cuda

struct CudaBackendOptions {
  int device_idx = 0;
  // Every step is launched kernel by kernel. For debugging: results are the
  // same, bit by bit.
  bool enforce_eager = false;
  // Where the library for products of many tokens comes from; null: nowhere.
  cuda::MatrixLibraryFactory open_matrix_library = &cuda::OpenMatrixLibrary;
  // Which of its algorithms, or which kernel of ours, computes a shape is
  // measured at start, and two starts may find otherwise. False: up to 64
  // tokens one kernel of ours, above the library's first choice. For tests of
  // bits.
  bool measures_products = true;
  // Of loading alone.
  cuda::StagedCopiesOptions copies;
};

// How the steps ran, since Prepare.
struct CudaGraphCounts {
  int64_t num_captures = 0;  // First uses and ahead of use.
  int64_t num_evictions = 0;
  int64_t num_replays = 0;
  int64_t num_eager = 0;
  int64_t num_bytes = 0;     // That the driver has taken for those kept.
  bool is_disabled = false;  // A capture failed.
};

// See Backend. A step that fails validation in BeginStep may have applied some
// of its updates: the sequences it names must be started anew. A slot whose
// last step had drafts takes part in the next one only after Collect:
// FAILED_PRECONDITION.
class CudaBackend : public Backend {
 public:
  // As cuda::CreateDevice.
  static absl::StatusOr<std::unique_ptr<CudaBackend>> Create(
      const CudaBackendOptions& options);
  ~CudaBackend() override;

  cuda::Device& device() { return *device_; }
  const CudaGraphCounts& graph_counts() const { return graph_counts_; }
  const cuda::LargeLinear& large_linear() const { return *large_linear_; }
  // A line for the log, if this GPU could be used better: what is missing.
  const std::string& notice() const { return notice_; }

  // Makes this GPU a rank of a group; errors as of NcclCommunicator::Create.
  // From then on Collect gives up on a step that waits for ranks that are gone
  // (UNAVAILABLE), and activations lie where collectives are fastest. Requires:
  // before Prepare; once. The communicator lives as long as the backend.
  absl::StatusOr<Communicator*> JoinGroup(
      const cuda::LibraryPlaces& places, const cuda::NcclId& id, int rank,
      int size, const cuda::NcclCommunicatorOptions& options = {});

  std::string Description() const override;
  std::string StepsSummary() const override;
  // With a stream of its own.
  absl::StatusOr<std::unique_ptr<Backend>> CreateCompanion() override {
    return Create(options_);
  }
  bool OwnsMemory() const override { return true; }
  absl::StatusOr<int64_t> FreeDeviceBytes() override;
  absl::StatusOr<std::unique_ptr<DeviceProbe>> NewProbe(
      int64_t num_bytes) override;
  DType ActivationDType(DType weights) const override;
  bool SupportsLinear(DType weights, QuantFormat format) const override;
  absl::StatusOr<std::unique_ptr<PackedWeight>> PackLinear(
      const LinearSpec& spec) override;
  absl::StatusOr<TensorView> Upload(TensorView host) override;
  absl::StatusOr<int> AddAttention(const AttentionSpec& spec) override;
  int AddActivation(int64_t cols, DType dtype, ActivationRows rows) override;
  int UsefulStepsInFlight() const override { return 2; }
  StepSize UsefulStepSize() const override;
  absl::StatusOr<MemoryPlan> PlanMemory(const EngineShape& shape) override;
  absl::StatusOr<MemoryPlan> Prepare(const EngineShape& shape) override;
  TensorView Activation(int id) const override;

  absl::StatusOr<Step*> BeginStep(const StepPlan& plan) override;
  absl::Status Run(Step& step, const GraphKey& key,
                   absl::FunctionRef<absl::Status()> enqueue) override;
  bool PrepareAhead(absl::FunctionRef<absl::Status(Step*)> enqueue) override;
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
    DType dtype = DType::kBF16;
    ActivationRows rows = ActivationRows::kTokens;
    cuda::DeviceBuffer buffer;
  };

  CudaBackend(const CudaBackendOptions& options,
              std::unique_ptr<cuda::Device> device);

  // The dtype that weights of dtype `from` are kept in.
  DType KeptDType(DType from) const;
  // Adds `num_bytes` of memory to *total.
  absl::StatusOr<cuda::DeviceBuffer> Allocate(const char* what,
                                              int64_t num_bytes,
                                              const char* remedy,
                                              int64_t* total);
  absl::Status CheckShape(const EngineShape& shape) const;
  int64_t BytesPerBlock() const;
  int NumBlocks(const MemoryPlan& plan) const;
  int64_t MostKvBytes() const;
  absl::Status CheckNumBlocks(const MemoryPlan& plan) const;
  void PlanAttentions();
  int64_t StagingBytes() const;
  std::vector<CudaReservation> Workspace();
  void AddSampling(std::vector<CudaReservation>* all);
  absl::Status AllocateStep(CudaStep& step);

  absl::Status ApplyUpdate(const SlotUpdate& update);
  absl::Status CheckRow(const StepRow& row, const CudaStep& step) const;
  absl::Status AddRow(const StepRow& row, absl::Span<const int32_t> token_ids,
                      size_t* next_token, CudaStep& step);
  absl::Status CheckPlan(const StepPlan& plan) const;
  void Pad(CudaStep& step) const;
  cuda::AttentionSplits SplitsOf(const AttentionPlanner& planner,
                                 cuda::AttentionTile tile) const;
  int64_t MaxSplits(const AttentionPlanner& planner) const;
  void SizeBatch(const AttentionPlanner& planner, cuda::AttentionTile tile,
                 const CudaStep& step, AttentionBatch& batch) const;
  CudaStepShape ShapeOf(const CudaStep& step) const;
  void Stage(const StepPlan& plan, CudaStep& step, StagingCursor& cursor);
  absl::Status EnqueueBegin(const StepPlan& plan, CudaStep& step);
  CudaGraph* FindGraph(int32_t model, const CudaStepShape& shape);
  absl::Status Capture(int32_t model, CudaStep& step,
                       absl::FunctionRef<absl::Status()> enqueue,
                       CudaGraph** graph);
  absl::Status CaptureOnce(CudaStep& step,
                           absl::FunctionRef<absl::Status()> enqueue,
                           CudaGraph* graph);
  absl::Status Evict();
  bool IsInGroup() const;
  bool HasRoomForGraph() const;
  bool IsWorthCapturing(int32_t model, const CudaStepShape& shape);
  bool HasNewKernels(int32_t model, const CudaStepShape& shape);
  void PlanAhead();
  void ShapeAhead(const CudaAhead& ahead, CudaStep& step) const;
  void DisableGraphs(const absl::Status& reason);
  absl::Status CheckPool(const CudaStep& step, Pooling pooling) const;
  // Brings the sampling state of the slots that start to the device.
  absl::Status StartSampling(const StepPlan& plan, CudaStep& step);
  void CollectSampled(CudaStep& step);
  // Of several ranks: cuda_ranks.cc.
  void AddRanks(std::vector<CudaReservation>* all);
  absl::Status AllocateRankStaging();
  absl::Status ConnectRanks();
  bool UsesHostRanks() const;
  absl::Status AllReduce(Communicator& ranks, TensorView data);
  absl::Status AllGather(Communicator& ranks, TensorView from, TensorView to);
  static bool NeedsWholeRows(const SlotParams& params);
  absl::Status CheckSlices(int64_t slice_size) const;
  absl::Status GatherLogits(TensorView slices, int64_t num_logits);
  absl::Status SampleSlices(const CudaStep& step, TensorView logits,
                            cuda::SampleArguments arguments);
  absl::Status EnqueueBlockCopies(const StepPlan& plan,
                                  const int32_t* d_copies);

  // The norm of a prologue as arguments for LaunchNorm.
  absl::Status MakeNorm(const Prologue& prologue, TensorView x,
                        int64_t num_rows, cuda::NormArguments* arguments) const;
  // Fills in a weight whose parts have one format that the kernels know; false
  // if they do not.
  absl::StatusOr<bool> PackQuantized(const LinearSpec& spec,
                                     CudaWeight& weight);
  absl::Status PackGroupScales(const LinearSpec& spec, int group_size,
                               CudaWeight& weight);
  absl::Status PackFp8Scales(const LinearSpec& spec, int64_t num_groups,
                             CudaWeight& weight);
  absl::Status PackDense(const LinearSpec& spec, CudaWeight& weight);
  absl::Status LaunchQuantized(const CudaWeight& weight,
                               const cuda::LinearArguments& linear);
  // Whether steps of many tokens round x' for this weight to e4m3.
  bool RoundsToFp8(const CudaWeight& weight) const;
  absl::Status LaunchLinear(TensorView x, int64_t num_tokens,
                            const PackedWeight& weight,
                            const Epilogue& epilogue, float softcap,
                            TensorView out, const cuda::NormArguments* norm);
  absl::Status LaunchNormedLinear(TensorView x, const Prologue& prologue,
                                  cuda::NormArguments norm,
                                  const PackedWeight& weight,
                                  const Epilogue& epilogue, float softcap,
                                  TensorView out);

  const CudaBackendOptions options_;
  // Before everything that has memory of it.
  const std::unique_ptr<cuda::Device> device_;
  cuda::StagedCopies copies_;  // Of weights, until Prepare.
  // After the device, before the graphs that have its collectives.
  std::unique_ptr<cuda::NcclCommunicator> communicator_;  // Null: one GPU.
  int64_t weights_bytes_ = 0;
  int64_t max_cols_ = 8;  // Of any weight: x' fits the scratch.
  // Of weights whose x' is permuted, or rounded to e4m3.
  int64_t max_ordered_cols_ = 0, max_fp8_cols_ = 0;
  int64_t max_fp8_groups_ = 0;  // Scales of a row of x'.
  std::vector<cuda::DeviceBuffer> uploads_;
  std::vector<CudaAttention> attentions_;  // By spec id.
  std::vector<AttentionPlanner> planners_;
  std::vector<ActivationSpec> activations_;
  std::unique_ptr<cuda::LargeLinear> large_linear_;
  std::string notice_;

  // Since Prepare.
  EngineShape shape_;
  int num_blocks_ = 0;
  int max_blocks_per_seq_ = 0;
  bool is_prepared_ = false;
  cuda::DeviceBuffer normed_;    // x': [max rows, max_cols_], 16 bits.
  cuda::DeviceBuffer permuted_;  // [.., max_ordered_cols_], 16 bits.
  // [.., max_fp8_cols_], e4m3; [max_fp8_groups_, ..], f32.
  cuda::DeviceBuffer fp8_x_, fp8_scales_;
  cuda::DeviceBuffer head_statistics_;              // As RopeArguments; f32.
  cuda::DeviceBuffer partial_out_, partial_stats_;  // As AttentionArguments.
  cuda::DeviceBuffer metadata_;      // What the current step has uploaded.
  cuda::DeviceBuffer block_tables_;  // [max_num_seqs, max_blocks_per_seq_]
  cuda::DeviceBuffer last_tokens_;   // [max_num_seqs]
  cuda::DeviceBuffer pooled_x_;      // [max_num_tokens, pooled_cols], f32.
  cuda::DeviceBuffer pooled_sums_;   // [max_num_seqs, pooled_cols], f64.
  cuda::DeviceBuffer embeddings_;    // [max_logit_rows, pooled_cols], f32.
  // Of several ranks; device memory, and pinned.
  cuda::DeviceBuffer own_records_, all_records_, slices_, whole_logits_;
  cuda::DeviceBuffer rank_staging_;
  std::unique_ptr<CudaSampling> sampling_;  // Null if the steps pool.
  std::vector<int32_t> sampling_lists_;
  std::vector<CudaSlot> slots_;
  std::vector<int64_t> slot_step_;  // Serial of the last step that named it.
  std::vector<cuda::BlockTableEntry> new_blocks_;
  std::vector<int64_t> block_copy_;  // Serial of the last batch of copies.
  int64_t num_steps_ = 0;
  int64_t num_copy_batches_ = 0;
  std::vector<CudaGraph> graphs_;  // At most kMaxGraphs.
  int64_t graphs_bytes_ = 0;       // Left for them: MemoryPlan::graphs_bytes.
  std::vector<CudaFirstUse> first_uses_;  // Oldest first.
  // Shapes (of a coarser kind) whose kernels some capture has loaded.
  std::vector<CudaFirstUse> loaded_kernels_;
  std::vector<CudaAhead> ahead_;
  size_t next_ahead_ = 0;
  CudaGraphCounts graph_counts_;
  std::vector<std::unique_ptr<CudaStep>> steps_;  // A ring.
};

}  // namespace quire

#endif  // QUIRE_KERNELS_CUDA_CUDA_BACKEND_H_
