#include "kernels/cuda/cuda_backend.h"

#include <algorithm>
#include <bit>
#include <limits>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "kernels/cuda/cuda_probe.h"
#include "kernels/cuda/cuda_step.h"
#include "kernels/cuda/large_linear.h"
#include "kernels/engine_shape.h"

namespace quire {
namespace {

// What the partial results of attention may take: enough for the keys of every
// sequence to be split a few times at any shape, and little beside the weights.
constexpr int64_t kPartialBytes = int64_t{128} << 20;
// Positions that one CTA of a decode reads at least: 64 KiB of keys and values
// of 128 dimensions, to be worth a CTA and a merge.
constexpr int kLeastSplit = 256;
// Splits of a row: with 8 KV heads, CTAs for two on each of an H100's
// multiprocessors from a single sequence of 8192 positions.
constexpr int kMostSplits = 32;

// Pinned memory for what starting slots bring along, if one does not need more.
// Where the starts of a step do not fit, they wait for the copies before them.
constexpr int64_t kStartBytes = int64_t{1} << 20;

// Kernels are loaded by their first launch, also long after the KV cache has
// taken the rest: those of one architecture are 21 MB together.
constexpr int64_t kCodeBytes = int64_t{32} << 20;

double InGiB(int64_t num_bytes) {
  return static_cast<double>(num_bytes) / (1 << 30);
}

}  // namespace

absl::StatusOr<std::unique_ptr<CudaBackend>> CudaBackend::Create(
    const CudaBackendOptions& options) {
  QUIRE_ASSIGN_OR_RETURN(std::unique_ptr<cuda::Device> device,
                         cuda::CreateDevice(options.device_idx));
  return std::unique_ptr<CudaBackend>(
      new CudaBackend(options, std::move(device)));
}

CudaBackend::CudaBackend(const CudaBackendOptions& options,
                         std::unique_ptr<cuda::Device> device)
    : options_(options),
      device_(std::move(device)),
      copies_(*device_, options.copies) {
  std::unique_ptr<cuda::MatrixLibrary> library;
  if (options.open_matrix_library != nullptr) {
    auto opened = options.open_matrix_library();
    if (opened.ok()) {
      library = *std::move(opened);
    } else if (!absl::IsUnimplemented(opened.status())) {
      notice_ = absl::StrCat(
          "without cuBLASLt, own kernels that are slower compute prompts: ",
          opened.status().message());
    }
  }
  large_linear_ = std::make_unique<cuda::LargeLinear>(
      *device_, std::move(library), options.measures_products);
}

CudaBackend::~CudaBackend() {
  // What nobody has collected may wait for a rank that is gone: nothing else
  // would end it.
  const bool is_running = std::any_of(
      steps_.begin(), steps_.end(),
      [](const auto& step) { return step->state != CudaStep::State::kFree; });
  if (communicator_ != nullptr && is_running) communicator_->Abort();
  // Steps in flight read memory that goes now; an error is of no use to
  // anybody. But on a device that is broken nothing ends in good order.
  const absl::Status status = device_->Synchronize();
  if (communicator_ != nullptr && !status.ok()) communicator_->Abort();
}

absl::StatusOr<Communicator*> CudaBackend::JoinGroup(
    const cuda::LibraryPlaces& places, const cuda::NcclId& id, int rank,
    int size, const cuda::NcclCommunicatorOptions& options) {
  QUIRE_CHECK(!is_prepared_ && communicator_ == nullptr);
  QUIRE_ASSIGN_OR_RETURN(communicator_,
                         cuda::CreateNcclCommunicator(places, id, rank, size,
                                                      device_.get(), options));
  return communicator_.get();
}

std::string CudaBackend::Description() const {
  const cuda::DeviceProperties& properties = device_->properties();
  return absl::StrCat("cuda (", properties.name, ", compute capability ",
                      properties.major, ".", properties.minor, ", ",
                      properties.num_sms, " SMs",
                      large_linear_->LibraryName().empty() ? "" : ", ",
                      large_linear_->LibraryName(), ")");
}

StepSize CudaBackend::UsefulStepSize() const {
  // A sequence's state for sampling takes 1 to 3 MiB, with a long context and a
  // large vocabulary.
  const auto memory = device_->Memory();
  const int64_t gib = memory.ok() ? memory->total_bytes >> 30 : 0;
  // A100 has 108, H100 132. With 512 tokens of an 8B model their products are
  // little above the bandwidth's bound, 2048 take some 50 ms; of the smaller
  // ones (T4 40, L4 58, parts of larger ones) 2048 would hold up all decoding
  // for half a second.
  constexpr int kLargeNumSms = 100;
  return {
      .num_seqs = gib >= 36   ? 256
                  : gib >= 20 ? 128
                              : 64,
      .num_tokens = device_->properties().num_sms >= kLargeNumSms ? 2048 : 512};
}

absl::StatusOr<int64_t> CudaBackend::FreeDeviceBytes() {
  QUIRE_ASSIGN_OR_RETURN(const cuda::DeviceMemory memory, device_->Memory());
  return memory.free_bytes;
}

absl::StatusOr<std::unique_ptr<DeviceProbe>> CudaBackend::NewProbe(
    int64_t num_bytes) {
  device_->MakeCurrent();
  return cuda::NewCudaProbe(*device_, options_.open_matrix_library, num_bytes);
}

int CudaBackend::AddActivation(int64_t cols, DType dtype, ActivationRows rows) {
  activations_.push_back({cols, dtype, rows, {}});
  return static_cast<int>(activations_.size()) - 1;
}

absl::Status CudaBackend::CheckShape(const EngineShape& shape) const {
  QUIRE_RETURN_IF_ERROR(ValidateEngineShape(shape));
  if (!std::has_single_bit(static_cast<unsigned>(shape.block_size))) {
    return absl::InvalidArgumentError(absl::StrCat(
        "block_size is ", shape.block_size, "; on a GPU it is a power of two"));
  }
  if (shape.pooled_cols % 8 != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("embeddings have ", shape.pooled_cols,
                     " columns; on a GPU they are a multiple of 8"));
  }
  for (const CudaAttention& attention : attentions_) {
    for (const TensorView* rope :
         {&attention.spec.rope_table, &attention.spec.long_rope_table}) {
      if (!rope->empty() && rope->rows < shape.max_model_len) {
        return absl::InvalidArgumentError(
            absl::StrCat("the RoPE table has ", rope->rows,
                         " positions, max_model_len is ", shape.max_model_len));
      }
    }
    for (const ActivationSpec& activation : activations_) {
      if (activation.dtype != DType::kF32 &&
          activation.dtype != attention.spec.kv_dtype &&
          attention.spec.kv_dtype != DType::kF8E4M3) {
        return absl::InvalidArgumentError(
            absl::StrCat("a KV cache in ", DTypeName(attention.spec.kv_dtype),
                         " for activations in ", DTypeName(activation.dtype),
                         "; on a GPU it has the same dtype or fp8_e4m3: "
                         "--kv-cache-dtype auto, or fp8"));
      }
    }
  }
  for (const ActivationSpec& activation : activations_) {
    if (activation.dtype == DType::kI32 || activation.cols < 1) {
      return absl::InvalidArgumentError(
          absl::StrCat("an activation buffer of ", activation.cols,
                       " columns in ", DTypeName(activation.dtype)));
    }
  }
  return absl::OkStatus();
}

int64_t CudaBackend::BytesPerBlock() const {
  int64_t num_bytes = 0;
  for (const CudaAttention& attention : attentions_) {
    num_bytes += attention.BytesPerBlock();
  }
  return num_bytes;
}

// Beyond it a cache that nobody asked for is of no use: of a small model, a
// large GPU would hold millions of blocks, for each of which the host keeps
// some hundred bytes and spends time at start. All sequences at their longest
// fit four times (what is not in use holds prefixes), and 2^17 blocks in any
// case.
int64_t CudaBackend::MostKvBytes() const {
  const int64_t num_blocks =
      int64_t{4} * shape_.max_num_seqs * max_blocks_per_seq_;
  return std::max(num_blocks, int64_t{1} << 17) * BytesPerBlock();
}

// Of plan.kv_bytes.
int CudaBackend::NumBlocks(const MemoryPlan& plan) const {
  const int64_t bytes_per_block = BytesPerBlock();
  // Without attention there is nothing to keep: any number would do.
  if (bytes_per_block == 0) return max_blocks_per_seq_;
  return static_cast<int>(std::clamp<int64_t>(
      plan.kv_bytes / bytes_per_block, 0,
      std::numeric_limits<int32_t>::max() / shape_.block_size));
}

absl::Status CudaBackend::CheckNumBlocks(const MemoryPlan& plan) const {
  if (plan.num_blocks >= max_blocks_per_seq_) return absl::OkStatus();
  const int64_t needed = max_blocks_per_seq_ * BytesPerBlock();
  if (shape_.kv_bytes > 0) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "the KV cache of ", shape_.kv_bytes, " bytes holds ",
        plan.num_blocks * shape_.block_size,
        " tokens; one sequence of max_model_len ", shape_.max_model_len,
        " needs ", needed,
        " bytes: raise --kv-cache-memory-bytes or lower --max-model-len"));
  }
  return absl::ResourceExhaustedError(absl::StrFormat(
      "GPU memory: of the %.2f GiB that may be used, weights take %.2f GiB, "
      "the workspace of %d sequences and %d tokens a step %.2f GiB, graphs and "
      "kernels %.2f GiB; that leaves %.2f GiB for the KV cache, and one "
      "sequence of "
      "%d tokens needs %.2f GiB. Lower --max-model-len (%d tokens fit), "
      "--max-num-seqs or --max-num-batched-tokens, raise "
      "--gpu-memory-utilization, or use quantized weights or a smaller "
      "--kv-cache-dtype",
      InGiB(shape_.device_bytes), InGiB(plan.weights_bytes),
      shape_.max_num_seqs, shape_.max_num_tokens, InGiB(plan.workspace_bytes),
      InGiB(plan.graphs_bytes + plan.code_bytes),
      InGiB(std::max<int64_t>(plan.kv_bytes, 0)), shape_.max_model_len,
      InGiB(needed), plan.num_blocks * shape_.block_size));
}

// Specs of equal shape share a plan.
void CudaBackend::PlanAttentions() {
  planners_.clear();
  for (CudaAttention& attention : attentions_) {
    attention.shape.block_size = shape_.block_size;
    const cuda::AttentionShape& shape = attention.shape;
    const auto same = std::find_if(
        planners_.begin(), planners_.end(), [&](const AttentionPlanner& other) {
          return other.shape.num_heads == shape.num_heads &&
                 other.shape.num_kv_heads == shape.num_kv_heads &&
                 cuda::PaddedHeadDim(other.shape.head_dim) ==
                     cuda::PaddedHeadDim(shape.head_dim) &&
                 other.shape.sliding_window == shape.sliding_window;
        });
    attention.plan_idx = static_cast<int>(same - planners_.begin());
    const bool has_warpgroup_tile =
        device_->properties().has_warpgroups &&
        cuda::HasWarpgroupTile(shape.head_dim, attention.spec.kv_dtype);
    if (same != planners_.end()) {
      same->has_warpgroup_tile &= has_warpgroup_tile;
      continue;
    }
    AttentionPlanner planner;
    planner.shape = shape;
    planner.has_warpgroup_tile = has_warpgroup_tile;
    // 16 queries and 64 keys and values of 256 dimensions take 72 KiB; 7.5 has
    // 64, as much as 64 queries and 32 keys and values take.
    planner.has_decode_tile = device_->properties().major >= 8 ||
                              cuda::PaddedHeadDim(shape.head_dim) <= 128;
    const int64_t group = shape.num_heads / shape.num_kv_heads;
    const int64_t decode_rows =
        cuda::AttentionTileRows(cuda::AttentionTile::kDecode);
    const int64_t prefill_rows =
        cuda::AttentionTileRows(cuda::AttentionTile::kPrefill);
    // A row of few queries is one tile, or more if a single token has more
    // heads than a tile has rows.
    const int64_t tiles = int64_t{shape_.max_num_seqs} * shape.num_kv_heads *
                          ((group + decode_rows - 1) / decode_rows);
    planner.splits.least_size = kLeastSplit;
    planner.splits.most = static_cast<int>(std::clamp<int64_t>(
        kPartialBytes / (tiles * 4 *
                         cuda::AttentionPartialFloats(
                             shape, cuda::AttentionTile::kDecode, 1)),
        1, kMostSplits));
    planner.max_parts = tiles * MaxSplits(planner);
    planner.max_prefill_tasks =
        (shape_.max_num_tokens * group / prefill_rows + shape_.max_num_seqs) *
        shape.num_kv_heads;
    planners_.push_back(planner);
  }
}

int64_t CudaBackend::StagingBytes() const {
  using Cursor = StagingCursor;
  int64_t num_bytes =
      4 * Cursor::Padded<int32_t>(shape_.max_num_tokens) +
      Cursor::Padded<int32_t>(shape_.max_logit_rows) +
      2 * Cursor::Padded<int32_t>(shape_.max_logit_rows) +
      Cursor::Padded<cuda::AttentionWork>(
          cuda::kNumAttentionTiles * static_cast<int64_t>(planners_.size())) +
      Cursor::Padded<cuda::SamplingRow>(shape_.max_num_seqs) +
      Cursor::Padded<cuda::PoolRow>(shape_.max_num_seqs) +
      Cursor::Padded<cuda::BlockTableEntry>(int64_t{shape_.max_num_seqs} *
                                            max_blocks_per_seq_) +
      Cursor::Padded<int32_t>(int64_t{2} * num_blocks_);
  for (const AttentionPlanner& planner : planners_) {
    const int64_t max_tasks = planner.max_parts + planner.max_prefill_tasks;
    num_bytes +=
        cuda::kNumAttentionTiles *
            (Cursor::Padded<cuda::AttentionSequence>(shape_.max_num_seqs) +
             16) +
        Cursor::Padded<cuda::AttentionTask>(max_tasks) +
        Cursor::Padded<cuda::AttentionMerge>(planner.max_parts) + 16;
  }
  return num_bytes;
}

// Everything on the device but weights and KV cache.
std::vector<CudaReservation> CudaBackend::Workspace() {
  std::vector<CudaReservation> all;
  const auto add = [&all](const char* what, int64_t num_bytes,
                          cuda::DeviceBuffer* buffer) {
    all.push_back({what, num_bytes, buffer});
  };
  const int64_t max_tokens = shape_.max_num_tokens;
  const int64_t max_rows = std::max<int64_t>(max_tokens, shape_.max_logit_rows);
  for (ActivationSpec& activation : activations_) {
    const int64_t rows = activation.rows == ActivationRows::kTokens
                             ? max_tokens
                             : shape_.max_logit_rows;
    add("activations", rows * activation.cols * DTypeSize(activation.dtype),
        &activation.buffer);
    // What all ranks have as many tokens of: sums over ranks are of these.
    all.back().is_shared = activation.rows == ActivationRows::kTokens;
  }
  add("normed activations", max_rows * max_cols_ * 2, &normed_);
  add("permuted activations", max_tokens * max_ordered_cols_ * 2, &permuted_);
  add("activations in fp8", max_tokens * max_fp8_cols_, &fp8_x_);
  add("activations in fp8", max_tokens * max_fp8_groups_ * 4, &fp8_scales_);
  add("norms of heads", max_tokens * 4 * 4, &head_statistics_);
  int64_t partial_rows = 0, partial_floats = 0;
  for (const AttentionPlanner& planner : planners_) {
    const int64_t rows = planner.max_parts *
                         cuda::AttentionTileRows(cuda::AttentionTile::kDecode);
    partial_rows = std::max(partial_rows, rows);
    partial_floats = std::max(
        partial_floats, rows * cuda::PaddedHeadDim(planner.shape.head_dim));
  }
  add("partial attention", partial_floats * 4, &partial_out_);
  add("partial attention", partial_rows * 2 * 4, &partial_stats_);
  add("step", StagingBytes(), &metadata_);
  add("block tables", int64_t{shape_.max_num_seqs} * max_blocks_per_seq_ * 4,
      &block_tables_);
  add("last tokens", int64_t{shape_.max_num_seqs} * 4, &last_tokens_);
  if (shape_.pooled_cols == 0) {
    AddSampling(&all);
    return all;
  }
  const int64_t cols = shape_.pooled_cols;
  add("pooled states", max_tokens * cols * 4, &pooled_x_);
  add("pooled sums", shape_.max_num_seqs * cols * 8, &pooled_sums_);
  add("embeddings", shape_.max_logit_rows * cols * 4, &embeddings_);
  return all;
}

absl::Status CudaBackend::AllocateStep(CudaStep& step) {
  const auto allocate = [this](int64_t num_bytes, cuda::DeviceBuffer* buffer) {
    QUIRE_ASSIGN_OR_RETURN(*buffer,
                           cuda::DeviceBuffer::Create(*device_, num_bytes,
                                                      /*is_pinned=*/true));
    return absl::OkStatus();
  };
  QUIRE_RETURN_IF_ERROR(allocate(StagingBytes(), &step.staging));
  if (shape_.pooled_cols > 0) {
    QUIRE_RETURN_IF_ERROR(allocate(embeddings_.num_bytes(), &step.embeddings));
  } else {
    const int64_t largest_start =
        int64_t{sizeof(cuda::SlotSampling)} +
        4 * (sampling_->lists_stride + shape_.max_model_len + 1);
    QUIRE_RETURN_IF_ERROR(
        allocate(std::max(kStartBytes, largest_start), &step.starts));
    QUIRE_RETURN_IF_ERROR(
        allocate(sampling_->results.num_bytes(), &step.sampled));
  }
  QUIRE_ASSIGN_OR_RETURN(step.event, device_->CreateEvent());
  const int max_top = shape_.max_logit_rows * cuda::kMaxTopLogprobs;
  step.rows.reserve(shape_.max_num_seqs);
  step.sampled_rows.reserve(shape_.max_num_seqs);
  step.results.reserve(shape_.max_num_seqs);
  step.token_ids.reserve(shape_.max_num_tokens);
  step.top_ids.reserve(max_top);
  step.top_logprobs.reserve(max_top);
  step.attention.resize(planners_.size() * cuda::kNumAttentionTiles);
  return absl::OkStatus();
}

absl::StatusOr<MemoryPlan> CudaBackend::PlanMemory(const EngineShape& shape) {
  if (is_prepared_) {
    return absl::FailedPreconditionError("Prepare was called before");
  }
  QUIRE_RETURN_IF_ERROR(CheckShape(shape));
  for (CudaAttention& attention : attentions_) {
    attention.block_elements = int64_t{2} * attention.spec.num_kv_heads *
                               shape.block_size * attention.spec.head_dim;
  }
  shape_ = shape;
  max_blocks_per_seq_ =
      (shape.max_model_len + shape.block_size - 1) / shape.block_size;
  PlanAttentions();
  MemoryPlan plan;
  plan.weights_bytes = weights_bytes_;
  plan.code_bytes = kCodeBytes;
  if (!options_.enforce_eager) {
    plan.graphs_bytes = GraphsBytes(shape.device_bytes);
  }
  plan.max_list_entries = shape.pooled_cols == 0 ? kMaxListEntries : 0;
  plan.kv_bytes = shape.kv_bytes;
  num_blocks_ = NumBlocks(plan);
  const auto measure = [&] {
    plan.workspace_bytes =
        large_linear_->PlannedBytes(shape.max_num_tokens, shape.max_logit_rows);
    for (const CudaReservation& reservation : Workspace()) {
      plan.workspace_bytes += reservation.num_bytes;
    }
    return shape.device_bytes - plan.weights_bytes - plan.workspace_bytes -
           plan.graphs_bytes - plan.code_bytes;
  };
  int64_t left = measure();
  // Each block also takes a few bytes in the workspace: twice is enough.
  for (int i = 0; i < 2 && shape.kv_bytes == 0; ++i) {
    plan.kv_bytes = std::min(left, MostKvBytes());
    num_blocks_ = NumBlocks(plan);
    left = measure();
    plan.unused_bytes = std::max<int64_t>(left - MostKvBytes(), 0);
  }
  plan.num_blocks = num_blocks_;
  return plan;
}

absl::StatusOr<MemoryPlan> CudaBackend::Prepare(const EngineShape& shape) {
  QUIRE_ASSIGN_OR_RETURN(MemoryPlan plan, PlanMemory(shape));
  QUIRE_RETURN_IF_ERROR(CheckNumBlocks(plan));
  QUIRE_RETURN_IF_ERROR(copies_.Finish());
  plan.workspace_bytes = plan.kv_bytes = 0;
  // First: it measures with memory that it gives back.
  QUIRE_RETURN_IF_ERROR(large_linear_->Prepare(
      shape.max_num_tokens, shape.max_logit_rows, &plan.workspace_bytes));
  for (const CudaReservation& reservation : Workspace()) {
    if (communicator_ != nullptr && reservation.is_shared) {
      QUIRE_ASSIGN_OR_RETURN(void* const memory, communicator_->AllocateWindow(
                                                     reservation.num_bytes));
      *reservation.buffer =
          cuda::DeviceBuffer::Borrow(memory, reservation.num_bytes);
      plan.workspace_bytes += reservation.num_bytes;
      continue;
    }
    QUIRE_ASSIGN_OR_RETURN(
        *reservation.buffer,
        Allocate(reservation.what, reservation.num_bytes,
                 "lower --max-num-batched-tokens, --max-num-seqs, "
                 "--max-model-len or --kv-cache-memory-bytes",
                 &plan.workspace_bytes));
  }
  QUIRE_RETURN_IF_ERROR(ConnectRanks());
  for (CudaAttention& attention : attentions_) {
    attention.layer_elements = num_blocks_ * attention.block_elements;
    QUIRE_ASSIGN_OR_RETURN(
        attention.kv,
        Allocate("KV cache", num_blocks_ * attention.BytesPerBlock(),
                 "lower --gpu-memory-utilization or --kv-cache-memory-bytes",
                 &plan.kv_bytes));
  }
  QUIRE_RETURN_IF_ERROR(AllocateRankStaging());
  slots_.resize(shape.max_num_seqs);
  for (CudaSlot& slot : slots_) slot.blocks.reserve(max_blocks_per_seq_);
  slot_step_.assign(shape.max_num_seqs, 0);
  block_copy_.assign(num_blocks_, 0);
  new_blocks_.reserve(int64_t{shape.max_num_seqs} * max_blocks_per_seq_);
  for (int i = 0; i < shape.steps_in_flight; ++i) {
    auto step = std::make_unique<CudaStep>();
    QUIRE_RETURN_IF_ERROR(AllocateStep(*step));
    steps_.push_back(std::move(step));
  }
  graphs_.reserve(kMaxGraphs);
  first_uses_.reserve(kMaxFirstUses);
  graphs_bytes_ = plan.graphs_bytes;
  PlanAhead();
  // Their bits in CudaStepShape. Models have one or two.
  graph_counts_.is_disabled = planners_.size() * cuda::kNumAttentionTiles > 64;
  // What goes by way of the host happens once and not in a graph.
  if (UsesHostRanks()) graph_counts_.is_disabled = true;
  is_prepared_ = true;
  return plan;
}

TensorView CudaBackend::Activation(int id) const {
  QUIRE_CHECK(is_prepared_ && id >= 0 &&
              id < static_cast<int>(activations_.size()));
  const ActivationSpec& activation = activations_[id];
  const int64_t rows = activation.rows == ActivationRows::kTokens
                           ? shape_.max_num_tokens
                           : shape_.max_logit_rows;
  return TensorView::Matrix(activation.buffer.data(), activation.dtype, rows,
                            activation.cols);
}

}  // namespace quire
