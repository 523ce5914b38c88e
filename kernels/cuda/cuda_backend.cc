#include "kernels/cuda/cuda_backend.h"

#include <algorithm>
#include <bit>
#include <limits>

#include "absl/strings/str_cat.h"
#include "kernels/cuda/cuda_step.h"
#include "kernels/engine_shape.h"

namespace quire {
namespace {

// What the partial results of attention may take: enough for the keys of every
// sequence to be split a few times at any shape, and little beside the weights.
constexpr int64_t kPartialBytes = int64_t{128} << 20;
// Positions that one CTA of a decode reads at least: 64 KiB of keys and values
// of 128 dimensions, to be worth a CTA and a merge.
constexpr int kLeastSplit = 256;

// Pinned memory for what starting slots bring along, if one does not need more.
// Where the starts of a step do not fit, they wait for the copies before them.
constexpr int64_t kStartBytes = int64_t{1} << 20;

constexpr char kLowerBatch[] =
    "lower --max-num-batched-tokens, --max-num-seqs or the KV cache";

}  // namespace

absl::StatusOr<std::unique_ptr<CudaBackend>> CudaBackend::Create(
    const CudaBackendOptions& options) {
  QUIRE_ASSIGN_OR_RETURN(std::unique_ptr<cuda::Device> device,
                         cuda::CreateDevice(options.device_idx));
  return std::unique_ptr<CudaBackend>(new CudaBackend(std::move(device)));
}

CudaBackend::CudaBackend(std::unique_ptr<cuda::Device> device)
    : device_(std::move(device)) {}

CudaBackend::~CudaBackend() {
  // Steps in flight read memory that goes now; an error is of no use to
  // anybody.
  (void)device_->Synchronize();
}

std::string CudaBackend::Description() const {
  const cuda::DeviceProperties& properties = device_->properties();
  return absl::StrCat("cuda (", properties.name, ", compute capability ",
                      properties.major, ".", properties.minor, ", ",
                      properties.num_sms, " SMs)");
}

std::optional<int64_t> CudaBackend::FreeDeviceBytes() {
  const absl::StatusOr<cuda::DeviceMemory> memory = device_->Memory();
  return memory.ok() ? memory->free_bytes : 0;
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
                         "; on a GPU it has the same dtype or fp8_e4m3"));
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

absl::StatusOr<int> CudaBackend::NumBlocks(const EngineShape& shape) const {
  const int64_t blocks_per_seq =
      (int64_t{shape.max_model_len} + shape.block_size - 1) / shape.block_size;
  int64_t bytes_per_block = 0;
  for (const CudaAttention& attention : attentions_) {
    bytes_per_block += attention.BytesPerBlock();
  }
  if (bytes_per_block == 0) return static_cast<int>(blocks_per_seq);
  const int64_t num_blocks =
      std::min<int64_t>(shape.kv_bytes / bytes_per_block,
                        std::numeric_limits<int32_t>::max() / shape.block_size);
  if (num_blocks < blocks_per_seq) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "the KV cache of ", shape.kv_bytes, " bytes holds ",
        num_blocks * shape.block_size,
        " tokens; one sequence of max_model_len ", shape.max_model_len,
        " needs ", blocks_per_seq * bytes_per_block, " bytes"));
  }
  return static_cast<int>(num_blocks);
}

// Specs of equal shape share a plan. The split size follows from the shape
// alone, so that a token's bits do not depend on its company.
void CudaBackend::PlanAttentions() {
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
    if (same != planners_.end()) continue;
    AttentionPlanner planner;
    planner.shape = shape;
    const int64_t group = shape.num_heads / shape.num_kv_heads;
    const int64_t decode_rows =
        cuda::AttentionTileRows(cuda::AttentionTile::kDecode);
    const int64_t prefill_rows =
        cuda::AttentionTileRows(cuda::AttentionTile::kPrefill);
    // A row of few queries is one tile, or more if a single token has more
    // heads than a tile has rows.
    const int64_t tiles = int64_t{shape_.max_num_seqs} * shape.num_kv_heads *
                          ((group + decode_rows - 1) / decode_rows);
    planner.split_size = kLeastSplit;
    while (true) {
      const int64_t num_splits =
          (shape_.max_model_len + planner.split_size - 1) / planner.split_size;
      planner.max_parts = tiles * num_splits;
      const int64_t num_bytes =
          4 * cuda::AttentionPartialFloats(
                  shape, cuda::AttentionTile::kDecode,
                  static_cast<int>(std::min<int64_t>(
                      planner.max_parts, std::numeric_limits<int>::max())));
      if (num_splits == 1 || num_bytes <= kPartialBytes) break;
      planner.split_size *= 2;
    }
    planner.max_prefill_tasks =
        (shape_.max_num_tokens * group / prefill_rows + shape_.max_num_seqs) *
        shape.num_kv_heads;
    planners_.push_back(planner);
  }
}

int64_t CudaBackend::StagingBytes() const {
  using Cursor = StagingCursor;
  int64_t num_bytes = 4 * Cursor::Padded<int32_t>(shape_.max_num_tokens) +
                      Cursor::Padded<int32_t>(shape_.max_logit_rows) +
                      2 * Cursor::Padded<int32_t>(shape_.max_logit_rows) +
                      Cursor::Padded<cuda::SamplingRow>(shape_.max_num_seqs) +
                      Cursor::Padded<cuda::PoolRow>(shape_.max_num_seqs) +
                      Cursor::Padded<cuda::BlockTableEntry>(
                          int64_t{shape_.max_num_seqs} * max_blocks_per_seq_) +
                      Cursor::Padded<int32_t>(int64_t{2} * num_blocks_);
  for (const AttentionPlanner& planner : planners_) {
    const int64_t max_tasks = planner.max_parts + planner.max_prefill_tasks;
    num_bytes +=
        2 * Cursor::Padded<cuda::AttentionSequence>(shape_.max_num_seqs) +
        Cursor::Padded<cuda::AttentionTask>(max_tasks) + 16 +
        Cursor::Padded<cuda::AttentionMerge>(planner.max_parts) + 16;
  }
  return num_bytes;
}

absl::Status CudaBackend::AllocateWorkspace() {
  const auto allocate = [this](const char* what, int64_t num_bytes,
                               cuda::DeviceBuffer* buffer) {
    QUIRE_ASSIGN_OR_RETURN(
        *buffer, Allocate(what, num_bytes, kLowerBatch, &workspace_bytes_));
    return absl::OkStatus();
  };
  const int64_t max_tokens = shape_.max_num_tokens;
  const int64_t max_rows = std::max<int64_t>(max_tokens, shape_.max_logit_rows);
  for (ActivationSpec& activation : activations_) {
    const int64_t rows = activation.rows == ActivationRows::kTokens
                             ? max_tokens
                             : shape_.max_logit_rows;
    QUIRE_RETURN_IF_ERROR(allocate(
        "activations", rows * activation.cols * DTypeSize(activation.dtype),
        &activation.buffer));
  }
  QUIRE_RETURN_IF_ERROR(
      allocate("normed activations", max_rows * max_cols_ * 2, &normed_));
  QUIRE_RETURN_IF_ERROR(allocate(
      "permuted activations", max_tokens * max_ordered_cols_ * 2, &permuted_));
  QUIRE_RETURN_IF_ERROR(
      allocate("activations in fp8", max_tokens * max_fp8_cols_, &fp8_x_));
  QUIRE_RETURN_IF_ERROR(
      allocate("activations in fp8", max_tokens * 4, &fp8_scales_));
  QUIRE_RETURN_IF_ERROR(
      allocate("norms of heads", max_tokens * 4 * 4, &head_statistics_));
  int64_t partial_rows = 0, partial_floats = 0;
  for (const AttentionPlanner& planner : planners_) {
    const int64_t rows = planner.max_parts *
                         cuda::AttentionTileRows(cuda::AttentionTile::kDecode);
    partial_rows = std::max(partial_rows, rows);
    partial_floats = std::max(
        partial_floats, rows * cuda::PaddedHeadDim(planner.shape.head_dim));
  }
  QUIRE_RETURN_IF_ERROR(
      allocate("partial attention", partial_floats * 4, &partial_out_));
  QUIRE_RETURN_IF_ERROR(
      allocate("partial attention", partial_rows * 2 * 4, &partial_stats_));
  QUIRE_RETURN_IF_ERROR(allocate("step", StagingBytes(), &metadata_));
  QUIRE_RETURN_IF_ERROR(allocate(
      "block tables", int64_t{shape_.max_num_seqs} * max_blocks_per_seq_ * 4,
      &block_tables_));
  QUIRE_RETURN_IF_ERROR(
      allocate("last tokens", int64_t{shape_.max_num_seqs} * 4, &last_tokens_));
  if (shape_.pooled_cols == 0) return AllocateSampling();
  const int64_t cols = shape_.pooled_cols;
  QUIRE_RETURN_IF_ERROR(
      allocate("pooled states", max_tokens * cols * 4, &pooled_x_));
  QUIRE_RETURN_IF_ERROR(
      allocate("pooled sums", shape_.max_num_seqs * cols * 8, &pooled_sums_));
  return allocate("embeddings", shape_.max_logit_rows * cols * 4, &embeddings_);
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
  step.attention.resize(planners_.size() * 2);
  return absl::OkStatus();
}

absl::StatusOr<MemoryPlan> CudaBackend::Prepare(const EngineShape& shape) {
  if (is_prepared_) {
    return absl::FailedPreconditionError("Prepare was called before");
  }
  QUIRE_RETURN_IF_ERROR(CheckShape(shape));
  for (CudaAttention& attention : attentions_) {
    attention.block_elements = int64_t{2} * attention.spec.num_kv_heads *
                               shape.block_size * attention.spec.head_dim;
  }
  QUIRE_ASSIGN_OR_RETURN(num_blocks_, NumBlocks(shape));
  shape_ = shape;
  max_blocks_per_seq_ =
      (shape.max_model_len + shape.block_size - 1) / shape.block_size;
  PlanAttentions();
  MemoryPlan plan;
  for (CudaAttention& attention : attentions_) {
    attention.layer_elements = num_blocks_ * attention.block_elements;
    QUIRE_ASSIGN_OR_RETURN(
        attention.kv,
        Allocate("KV cache", num_blocks_ * attention.BytesPerBlock(),
                 "give the KV cache less memory", &plan.kv_bytes));
  }
  QUIRE_RETURN_IF_ERROR(AllocateWorkspace());
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
  is_prepared_ = true;
  plan.weights_bytes = weights_bytes_;
  plan.workspace_bytes = workspace_bytes_;
  plan.num_blocks = num_blocks_;
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
