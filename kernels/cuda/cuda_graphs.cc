// Steps as CUDA graphs: what a step enqueues between BeginStep and EndStep is
// captured once for each shape of steps, and replayed.
//
// That works because everything that a launch reads beyond its shape is in
// device memory at addresses that follow from the shape: BeginStep pads steps
// to few sizes and uploads positions, slots and work lists in one copy. Padded
// steps run with the same launches if they run eagerly, so that results do not
// depend on whether there is a graph.
#include <algorithm>
#include <bit>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "engine/base/warning.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/cuda_step.h"

namespace quire {

// Far more than any takes (GraphsBytes), and a fraction of what all may.
constexpr int64_t kMaxBytesOfGraph = int64_t{16} << 20;
static_assert(3 * kMaxBytesOfGraph <= kLeastGraphsBytes);

// Waste is at most a third (a half below 8), an eighth on average where a step
// is no longer bound by the weights it reads.
int PaddedTokens(int num_tokens) {
  if (num_tokens <= 2) return num_tokens;
  if (num_tokens <= 4) return 4;
  const int granularity = num_tokens <= 64    ? 8
                          : num_tokens <= 128 ? 16
                          : num_tokens <= 256 ? 32
                                              : 64;
  return (num_tokens + granularity - 1) / granularity * granularity;
}

int PaddedRows(int num_rows) {
  if (num_rows == 0) return 0;
  int padded = 8;
  while (padded < num_rows) padded *= 2;
  return padded;
}

CudaGraph* CudaBackend::FindGraph(int32_t model, const CudaStepShape& shape) {
  for (CudaGraph& graph : graphs_) {
    if (graph.model == model && graph.shape == shape) return &graph;
  }
  return nullptr;
}

// An answer must not be lost for want of a graph, and what failed once would
// fail again.
void CudaBackend::DisableGraphs(const absl::Status& reason) {
  graph_counts_.is_disabled = true;
  // A GPU that is broken fails at whatever comes next: that is the step's to
  // tell, and graphs have nothing to do with it.
  if (!device_->Synchronize().ok()) return;
  Warn(absl::StrCat("no CUDA graphs from here on, a capture failed: ",
                    reason.message()));
}

// Ranks capture and replay the same steps, or one waits in a capture for one
// that does not: what they have in common decides.
bool CudaBackend::IsInGroup() const {
  return communicator_ != nullptr && communicator_->size() > 1;
}

// What the driver takes for a graph is known once it has taken it, and goes up
// in jumps: one more like those before must fit into what was left to it.
bool CudaBackend::HasRoomForGraph() const {
  if (graphs_.empty()) return true;
  if (IsInGroup()) return graphs_.size() < kMaxGraphs;
  const int64_t bytes_per_graph =
      graph_counts_.num_bytes / static_cast<int64_t>(graphs_.size());
  return graphs_.size() < kMaxGraphs &&
         graph_counts_.num_bytes + bytes_per_graph <= graphs_bytes_;
}

// Where there is no room, a graph costs the one that goes, a wait for the
// device and the capture: too much for a shape that may never come again, as
// those of prefills do. False: it is the first time, which is remembered.
bool CudaBackend::IsWorthCapturing(int32_t model, const CudaStepShape& shape) {
  if (HasRoomForGraph() || IsInGroup()) return true;
  const CudaFirstUse use = {model, shape};
  const auto first = std::find(first_uses_.begin(), first_uses_.end(), use);
  if (first != first_uses_.end()) {
    first_uses_.erase(first);  // Once evicted, it begins anew.
    return true;
  }
  if (first_uses_.size() == kMaxFirstUses) {
    first_uses_.erase(first_uses_.begin());
  }
  first_uses_.push_back(use);
  return false;
}

// Whether a step of this shape may be the first to use some kernel. Which there
// are depends on the model, the tiles of attention, whether and how the step
// draws, and on the bounds that a linear layer has for its kernels (8, 16, 32
// and 64 tokens). From here on it is not.
bool CudaBackend::HasNewKernels(int32_t model, const CudaStepShape& shape) {
  constexpr uint32_t kLeast = 8, kMost = 128;
  CudaFirstUse kind = {model, shape};
  kind.shape.num_tokens = static_cast<int32_t>(std::min(
      kMost, std::bit_ceil(std::max<uint32_t>(kLeast, shape.num_tokens))));
  kind.shape.num_rows = 0;
  kind.shape.num_logits = std::min(shape.num_logits, 1);
  if (std::find(loaded_kernels_.begin(), loaded_kernels_.end(), kind) !=
      loaded_kernels_.end()) {
    return false;
  }
  loaded_kernels_.push_back(kind);
  return true;
}

// The least recently used graph goes.
absl::Status CudaBackend::Evict() {
  // It may still run.
  QUIRE_RETURN_IF_ERROR(device_->Synchronize());
  const auto graph =
      std::min_element(graphs_.begin(), graphs_.end(),
                       [](const CudaGraph& a, const CudaGraph& b) {
                         return a.last_use < b.last_use;
                       });
  std::swap(*graph, graphs_.back());
  graphs_.pop_back();
  ++graph_counts_.num_evictions;
  return absl::OkStatus();
}

// Sets graph->graph and what the step has noted, which the step then forgets;
// or leaves it null if the capture failed: the step can then be enqueued as if
// nothing had been tried. An error is the enqueue's own.
absl::Status CudaBackend::CaptureOnce(CudaStep& step,
                                      absl::FunctionRef<absl::Status()> enqueue,
                                      CudaGraph* graph) {
  if (const absl::Status status = device_->BeginCapture(); !status.ok()) {
    DisableGraphs(status);
    return absl::OkStatus();
  }
  const absl::Status enqueued = enqueue();
  absl::StatusOr<std::unique_ptr<cuda::Graph>> captured = device_->EndCapture();
  graph->is_sampled = step.is_sampled;
  graph->is_advanced = step.is_advanced;
  graph->pooling = step.pooling;
  step.is_sampled = step.is_advanced = false;
  step.pooling = Pooling::kNone;
  if (!captured.ok()) {
    DisableGraphs(enqueued.ok() ? captured.status() : enqueued);
    return absl::OkStatus();
  }
  QUIRE_RETURN_IF_ERROR(enqueued);
  graph->graph = *std::move(captured);
  return absl::OkStatus();
}

// Sets *graph, or leaves it null as CaptureOnce does.
absl::Status CudaBackend::Capture(int32_t model, CudaStep& step,
                                  absl::FunctionRef<absl::Status()> enqueue,
                                  CudaGraph** graph) {
  *graph = nullptr;
  CudaGraph result;
  result.model = model;
  result.shape = ShapeOf(step);
  // Kernels are loaded by their first launch, and stay: what that takes is not
  // the graph's. It is there, and its memory not given back, while the one that
  // is measured is captured. Of a group nothing is measured.
  CudaGraph loader;
  if (HasNewKernels(model, result.shape) && !IsInGroup()) {
    QUIRE_RETURN_IF_ERROR(CaptureOnce(step, enqueue, &loader));
    if (loader.graph == nullptr) return absl::OkStatus();
  }
  QUIRE_ASSIGN_OR_RETURN(const int64_t free_before, FreeDeviceBytes());
  // First, so that the new one can have its memory.
  if (!HasRoomForGraph()) QUIRE_RETURN_IF_ERROR(Evict());
  QUIRE_RETURN_IF_ERROR(CaptureOnce(step, enqueue, &result));
  if (result.graph == nullptr) return absl::OkStatus();
  QUIRE_ASSIGN_OR_RETURN(const int64_t free_after, FreeDeviceBytes());
  ++graph_counts_.num_captures;
  // Of a GPU that is shared, others' memory comes and goes too: what no graph
  // takes is not counted, else one jump of theirs would end the captures.
  graph_counts_.num_bytes = std::max<int64_t>(
      graph_counts_.num_bytes + std::clamp<int64_t>(free_before - free_after,
                                                    -kMaxBytesOfGraph,
                                                    kMaxBytesOfGraph),
      0);
  *graph = &graphs_.emplace_back(std::move(result));
  return absl::OkStatus();
}

absl::Status CudaBackend::Run(Step& step, const GraphKey& key,
                              absl::FunctionRef<absl::Status()> enqueue) {
  CudaStep& cuda_step = AsCudaStep(step);
  QUIRE_CHECK(cuda_step.state == CudaStep::State::kBegun);
  const bool is_key_true =
      key.num_tokens == cuda_step.num_plan_tokens &&
      key.num_logit_rows == cuda_step.num_plan_logits &&
      key.num_rows == static_cast<int32_t>(cuda_step.rows.size());
  if (communicator_ != nullptr) {
    // A graph would not ask.
    cuda_step.status.Update(communicator_->AsyncError());
    QUIRE_RETURN_IF_ERROR(cuda_step.status);
  }
  CudaGraph* graph = nullptr;
  if (!options_.enforce_eager && cuda_step.is_padded && is_key_true &&
      !graph_counts_.is_disabled) {
    graph = FindGraph(key.model, ShapeOf(cuda_step));
    if (graph == nullptr && IsWorthCapturing(key.model, ShapeOf(cuda_step))) {
      cuda_step.status.Update(Capture(key.model, cuda_step, enqueue, &graph));
      QUIRE_RETURN_IF_ERROR(cuda_step.status);
    }
  }
  if (graph == nullptr) {
    ++graph_counts_.num_eager;
    cuda_step.status.Update(enqueue());
    return cuda_step.status;
  }
  // What the operations check and note when they are enqueued.
  if (graph->pooling != Pooling::kNone) {
    cuda_step.status.Update(CheckPool(cuda_step, graph->pooling));
    QUIRE_RETURN_IF_ERROR(cuda_step.status);
  }
  cuda_step.is_sampled = graph->is_sampled;
  cuda_step.is_advanced = graph->is_advanced;
  cuda_step.pooling = graph->pooling;
  graph->last_use = num_steps_;
  ++graph_counts_.num_replays;
  cuda_step.status.Update(device_->Launch(*graph->graph));
  return cuda_step.status;
}

std::string CudaBackend::StepsSummary() const {
  const CudaGraphCounts& counts = graph_counts_;
  if (options_.enforce_eager) {
    return absl::StrCat("CUDA graphs: off; ", counts.num_eager, " eager steps");
  }
  constexpr double kMiB = 1 << 20;
  return absl::StrFormat(
      "CUDA graphs: %d captured, %d evicted, %.1f MiB taken of %.1f reserved; "
      "%d steps replayed, %d eager%s",
      counts.num_captures, counts.num_evictions, counts.num_bytes / kMiB,
      graphs_bytes_ / kMiB, counts.num_replays, counts.num_eager,
      counts.is_disabled ? "; disabled" : "");
}

// What the decodes of a server look like: as many tokens and rows of logits as
// rows, or 1 + num_drafts times as many; small ones first: those that every
// conversation ends in. Others come as they are used.
void CudaBackend::PlanAhead() {
  const int max_rows = std::min(
      {shape_.max_num_seqs, shape_.max_num_tokens, shape_.max_logit_rows});
  for (const int num_tokens : {1, 1 + shape_.num_drafts}) {
    const int max_tokens = std::min(
        {shape_.max_num_tokens, shape_.max_logit_rows, kMaxPaddedTokens});
    for (int num_rows = 1;
         num_rows <= max_rows && num_rows * num_tokens <= max_tokens;
         ++num_rows) {
      const CudaAhead ahead = {num_rows, num_tokens};
      CudaStep step;
      ShapeAhead(ahead, step);
      const bool is_new = std::none_of(
          ahead_.begin(), ahead_.end(), [&](const CudaAhead& other) {
            CudaStep other_step;
            ShapeAhead(other, other_step);
            return ShapeOf(other_step) == ShapeOf(step);
          });
      if (is_new) ahead_.push_back(ahead);
    }
  }
  std::stable_sort(ahead_.begin(), ahead_.end(),
                   [](const CudaAhead& a, const CudaAhead& b) {
                     return a.num_rows * a.num_tokens_per_row <
                            b.num_rows * b.num_tokens_per_row;
                   });
}

// As BeginStep would leave the step, but that no row fills it.
void CudaBackend::ShapeAhead(const CudaAhead& ahead, CudaStep& step) const {
  step.rows.clear();
  step.token_ids.clear();
  step.is_sampled = step.is_advanced = false;
  step.pooling = Pooling::kNone;
  step.num_plan_tokens = step.num_plan_logits = 0;
  step.num_rows = ahead.num_rows;
  step.num_tokens = step.num_logits = ahead.num_rows * ahead.num_tokens_per_row;
  Pad(step);
  step.attention.assign(planners_.size() * cuda::kNumAttentionTiles,
                        AttentionBatch());
  for (size_t i = 0; i < planners_.size(); ++i) {
    const cuda::AttentionTile tile =
        TileOf(planners_[i], ahead.num_tokens_per_row);
    SizeBatch(planners_[i], tile, step, step.attention[BatchIndex(i, tile)]);
  }
}

bool CudaBackend::PrepareAhead(absl::FunctionRef<absl::Status(Step*)> enqueue) {
  // Ranks capture what they run, at the same time: what a communicator connects
  // first may wait for the others.
  if (options_.enforce_eager || shape_.pooled_cols > 0 ||
      shape_.tensor_ranks != nullptr || shape_.pipeline_ranks != nullptr ||
      (communicator_ != nullptr && communicator_->size() > 1)) {
    return false;
  }
  device_->MakeCurrent();
  const auto free =
      std::find_if(steps_.begin(), steps_.end(), [](const auto& candidate) {
        return candidate->state == CudaStep::State::kFree;
      });
  if (free == steps_.end()) return false;
  CudaStep& step = **free;
  while (next_ahead_ < ahead_.size() && !graph_counts_.is_disabled &&
         HasRoomForGraph()) {
    ShapeAhead(ahead_[next_ahead_], step);
    StagingCursor cursor(step.staging.data(), metadata_.data(),
                         step.staging.num_bytes());
    Stage(StepPlan(), step, cursor);
    // Without rows, Stage has found nothing for the attention to do.
    for (size_t i = 0; i < planners_.size(); ++i) {
      const cuda::AttentionTile tile =
          TileOf(planners_[i], ahead_[next_ahead_].num_tokens_per_row);
      SizeBatch(planners_[i], tile, step, step.attention[BatchIndex(i, tile)]);
    }
    ++next_ahead_;
    if (FindGraph(0, ShapeOf(step)) != nullptr) continue;
    CudaGraph* graph = nullptr;
    const absl::Status status = Capture(
        0, step, [&] { return enqueue(reinterpret_cast<Step*>(&step)); },
        &graph);
    if (!status.ok()) DisableGraphs(status);
    return true;
  }
  return false;
}

}  // namespace quire
