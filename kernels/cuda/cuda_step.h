// Private parts of the CUDA backend. Included by its .cc files.
#ifndef QUIRE_KERNELS_CUDA_CUDA_STEP_H_
#define QUIRE_KERNELS_CUDA_CUDA_STEP_H_

#include <algorithm>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "engine/base/status.h"
#include "kernels/backend.h"
#include "kernels/cuda/attention.h"
#include "kernels/cuda/attention_plan.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/elementwise.h"
#include "kernels/cuda/quantized_linear.h"
#include "kernels/cuda/sampling.h"
#include "kernels/cuda/step_kernels.h"

namespace quire {

struct CudaWeight : PackedWeight {
  // kDense; or what `quantized` holds, in place of dtype.
  QuantFormat format = QuantFormat::kDense;
  DType dtype = DType::kBF16;
  // [rows, cols]; kGateUp: eight rows of the gate, eight of up, and so on.
  cuda::DeviceBuffer data;
  cuda::DeviceBuffer bias;  // [rows], f32, in the order of data; or nothing.

  cuda::QuantizedWeight quantized;  // Views of data and of the following.
  cuda::DeviceBuffer scales, zeros;
  cuda::DeviceBuffer column_order;  // As WeightPart's; or nothing.
  float input_scale = 0.0f;         // As WeightPart's.

  // The dtype of x for this weight, where there is a choice the one given.
  DType InputDType(DType given) const {
    return format == QuantFormat::kDense ? dtype : given;
  }
};

// Memory that Prepare allocates.
struct CudaReservation {
  const char* what = "";
  int64_t num_bytes = 0;
  cuda::DeviceBuffer* buffer = nullptr;
  bool is_shared = false;  // With the other ranks, of a group.
};

// The KV storage of one AttentionSpec and how its kernels are called.
struct CudaAttention {
  AttentionSpec spec;
  cuda::AttentionShape shape;
  cuda::HeadNorm q_norm, k_norm;
  int64_t block_elements = 0;  // Of one layer, K and V.
  int64_t layer_elements = 0;
  cuda::DeviceBuffer kv;
  int plan_idx = 0;

  int64_t BytesPerBlock() const {
    return spec.num_layers * block_elements * DTypeSize(spec.kv_dtype);
  }
};

// What the plans of several specs of equal shape share.
struct AttentionPlanner {
  cuda::AttentionShape shape;
  cuda::AttentionSplits splits;  // For few queries; many are never split.
  // False where the tile of few queries does not fit the shared memory.
  bool has_decode_tile = true;
  // Rows of more than 64 packed queries have the tile of warpgroups.
  bool has_warpgroup_tile = false;
  int64_t max_parts = 0;
  int64_t max_prefill_tasks = 0;
};

// The sequence of a slot, as far as the host must know it: block tables and
// lengths, which do not depend on what is drawn. Tokens live on the device.
struct CudaSlot {
  bool is_active = false;
  int64_t num_computed_tokens = 0;
  int64_t num_pooled_tokens = 0;
  int32_t num_start_tokens = 0;  // Of the history that it started with.
  bool has_last_token = false;
  int64_t num_starts = 0;  // Of sequences.
  int32_t num_logprobs = -1;
  int32_t num_prompt_logprobs = -1;
  bool needs_whole_rows = false;  // See CudaStep.
  // A step with drafts waits to be collected: the length is not known.
  bool has_pending_drafts = false;
  std::vector<int32_t> blocks;
  int32_t num_uploaded_blocks = 0;
};

// MemoryPlan::max_list_entries: what the longest lists that the server's API
// takes come to, if a request has one of them. Half a megabyte for each slot.
inline constexpr int64_t kMaxListEntries = int64_t{1} << 17;

// What Sample keeps of the slots; see SampleArguments.
struct CudaSampling {
  int64_t lists_stride = 0;
  int64_t history_stride = 0;
  cuda::DeviceBuffer slots, lists, token_counts, history, history_sizes;
  cuda::DeviceBuffer num_computed_tokens;
  cuda::DeviceBuffer start_tokens;  // The history of a slot that starts.
  cuda::DeviceBuffer results;       // As SampleResults.
  cuda::DeviceBuffer workspace;
};

// Where the results of a step lie, in units of four bytes.
struct SampleResults {
  SampleResults(int64_t num_logits, int64_t num_rows)
      : logprobs(num_logits),
        ranks(2 * num_logits),
        num_drawn(3 * num_logits),
        faults(num_drawn + num_rows),
        top_ids(faults + num_rows),
        top_logprobs(top_ids + num_logits * cuda::kMaxTopLogprobs),
        end(top_logprobs + num_logits * cuda::kMaxTopLogprobs) {}

  int64_t tokens = 0;
  int64_t logprobs, ranks, num_drawn, faults, top_ids, top_logprobs, end;
};

struct CudaStepRow {
  StepRow row;
  int64_t first_position = 0;
  int32_t num_start_tokens = 0;
  int32_t first_token = 0;
  int32_t first_logit = 0;
  // Of the slot when the step began: another sequence may have it by Collect.
  int64_t start_serial = 0;
  int32_t num_logprobs = -1;
  int32_t num_prompt_logprobs = -1;
};

// Arguments of LaunchAttention for one plan and tile. The CTAs follow from the
// step's size alone where it is padded; 0 tasks: nothing to launch.
struct AttentionBatch {
  const cuda::AttentionWork* work = nullptr;  // On the device.
  int num_task_ctas = 0;
  int num_merge_ctas = 0;
};

// Of a planner and a tile, in CudaStep::attention.
constexpr size_t BatchIndex(size_t planner_idx, cuda::AttentionTile tile) {
  return planner_idx * cuda::kNumAttentionTiles + static_cast<size_t>(tile);
}

// All that a launch of a step depends on: steps of equal shape (with one
// model) enqueue the same work.
struct CudaStepShape {
  int32_t num_tokens = 0;
  int32_t num_rows = 0;
  int32_t num_logits = 0;
  // Bit BatchIndex(planner, tile): some row needs it.
  uint64_t attention = 0;
  bool needs_whole_rows = false;

  bool operator==(const CudaStepShape&) const = default;
};

// Enough for every size of decode that a server
// meets and for what mixes with prefills, the least recently used of which go.
inline constexpr size_t kMaxGraphs = 128;
// What the driver keeps of them on the device, at least: some 300 launches
// each, of 1.5 KiB with their arguments. What it takes is measured when a graph
// is captured, and fewer are kept where this does not suffice.
inline constexpr int64_t kLeastGraphsBytes = int64_t{kMaxGraphs} * 300 * 1536;
// Reports of other programs have some MiB for a graph of this size: on a large
// GPU, room for all kMaxGraphs at 4 MiB.
inline constexpr int64_t kMostGraphsBytes = int64_t{512} << 20;
// What is left to graphs where `device_bytes` may be taken in all. A 64th: no
// model misses it that fits otherwise.
constexpr int64_t GraphsBytes(int64_t device_bytes) {
  return std::clamp(device_bytes / 64, kLeastGraphsBytes, kMostGraphsBytes);
}

// A captured step.
struct CudaGraph {
  int32_t model = 0;
  CudaStepShape shape;
  std::unique_ptr<cuda::Graph> graph;
  // What the enqueued operations left in the step.
  bool is_sampled = false;
  bool is_advanced = false;
  Pooling pooling = Pooling::kNone;
  int64_t last_use = 0;
};

// Steps of a shape without a graph, while there is no room for one more.
struct CudaFirstUse {
  int32_t model = 0;
  CudaStepShape shape;

  bool operator==(const CudaFirstUse&) const = default;
};
// As many are remembered.
inline constexpr size_t kMaxFirstUses = 64;

// A decode whose graph is captured before it is needed.
struct CudaAhead {
  int num_rows = 0;
  int num_tokens_per_row = 0;
};

// Which kernel serves a row of `num_tokens`.
cuda::AttentionTile TileOf(const AttentionPlanner& planner, int num_tokens);

// Sizes that steps are padded to. A step above the last one runs eagerly, and
// only its tokens are padded, to fours: cuBLASLt takes no others with scales of
// blocks (matrix_library.h). Up to 64 tokens, or 32 or 16, a linear layer has a
// kernel of its own (large_linear.h): no size crosses these bounds.
inline constexpr int kMaxPaddedTokens = 512;
int PaddedTokens(int num_tokens);
// The same in coarser steps, for what hardly costs anything.
int PaddedRows(int num_rows);

struct CudaStep {
  enum class State : uint8_t { kFree, kBegun, kEnded };
  State state = State::kFree;
  bool is_sampled = false;   // Or pooled, or advanced.
  bool is_advanced = false;  // Another stage draws.
  Pooling pooling = Pooling::kNone;
  absl::Status status;
  // What the plan asks for.
  int32_t num_plan_tokens = 0;
  int32_t num_plan_logits = 0;
  // What the operations compute: that, or more. Tokens, rows and rows of logits
  // beyond the plan's belong to no slot; nothing comes of them.
  int32_t num_tokens = 0;
  int32_t num_rows = 0;
  int32_t num_logits = 0;
  bool is_padded = false;
  std::vector<CudaStepRow> rows;
  std::vector<int32_t> token_ids;     // Of the plan; ~slot: what it drew last.
  std::vector<int32_t> sampled_rows;  // Rows with logits.
  int32_t num_scored = 0;
  // Of logits in slices: some row cannot be drawn from one entry of each.
  bool needs_whole_rows = false;

  cuda::DeviceBuffer staging;     // Pinned: what the step uploads.
  cuda::DeviceBuffer embeddings;  // Pinned: [max_logit_rows, pooled_cols].
  cuda::DeviceBuffer starts;      // Pinned: what slots start with.
  cuda::DeviceBuffer sampled;     // Pinned: SampleResults.
  std::unique_ptr<cuda::Event> event;

  // In device memory, valid until the next step begins there.
  int32_t* d_token_ids = nullptr;           // [num_tokens]
  const int32_t* d_positions = nullptr;     // [num_tokens]
  const int32_t* d_slots = nullptr;         // [num_tokens], -1: padding.
  const int32_t* d_start_tokens = nullptr;  // [num_tokens]
  const int32_t* d_logit_tokens = nullptr;  // [num_logits]
  const cuda::PoolRow* d_pool_rows = nullptr;
  std::vector<AttentionBatch> attention;  // Two for each planner, by tile.

  const cuda::SamplingRow* d_sampling_rows = nullptr;
  const int32_t* d_logit_rows = nullptr;  // [num_logits]
  const int32_t* d_scored_ids = nullptr;  // [num_scored]

  std::vector<RowResult> results;
  // Behind the results: without the gaps of SampleResults.
  std::vector<int32_t> top_ids;
  std::vector<float> top_logprobs;
};

// Step is opaque to everybody; the CUDA backend's are CudaSteps.
inline CudaStep& AsCudaStep(Step& step) {
  return *reinterpret_cast<CudaStep*>(&step);
}

// Places arrays one behind the other in a step's staging memory, and tells
// where they will be on the device.
class StagingCursor {
 public:
  StagingCursor(char* host, char* device, int64_t capacity)
      : host_(host), device_(device), capacity_(capacity) {}

  // `count` elements to fill in.
  template <typename T>
  T* Take(int64_t count, const T** device) {
    T* host = reinterpret_cast<T*>(host_ + size_);
    *device = reinterpret_cast<const T*>(device_ + size_);
    size_ += Padded<T>(count);
    QUIRE_CHECK(size_ <= capacity_);
    return host;
  }
  template <typename T>
  const T* Copy(const std::vector<T>& values) {
    const T* device = nullptr;
    std::copy(values.begin(), values.end(),
              Take<T>(static_cast<int64_t>(values.size()), &device));
    return device;
  }
  int64_t size() const { return size_; }

  template <typename T>
  static constexpr int64_t Padded(int64_t count) {
    return (count * int64_t{sizeof(T)} + 15) / 16 * 16;
  }

 private:
  char* const host_;
  char* const device_;
  const int64_t capacity_;
  int64_t size_ = 0;
};

// Which part and which of its rows is row `row` of the packed matrix.
std::pair<size_t, int64_t> SourceOfRow(const LinearSpec& spec, int64_t row);

// INVALID_ARGUMENT unless `view` has the dtype, at least `rows` rows and
// exactly `cols` columns without gaps.
absl::Status CheckCudaView(const char* name, const TensorView& view,
                           DType dtype, int64_t rows, int64_t cols);

// As above for the f32 weight and bias of a norm over `cols`.
absl::Status CheckCudaNorm(const char* name, const NormSpec& norm,
                           int64_t cols);

}  // namespace quire

#endif  // QUIRE_KERNELS_CUDA_CUDA_STEP_H_
