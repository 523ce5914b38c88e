// Private parts of the CPU backend: one step, the KV storage of one attention
// spec, and checks of views. Included by cpu_backend.cc and cpu_operations.cc.
#ifndef QUIRE_KERNELS_CPU_CPU_STEP_H_
#define QUIRE_KERNELS_CPU_CPU_STEP_H_

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "kernels/backend.h"
#include "kernels/cpu/attention.h"
#include "kernels/cpu/mapped_memory.h"

namespace quire {

// A row of a step, with its place in the batch.
struct StepRowState {
  StepRow row;
  int64_t first_position = 0;
  int32_t first_token = 0;
  int32_t first_logit = 0;
};

struct CpuStep {
  enum class State : uint8_t { kFree, kBegun, kEnded };
  State state = State::kFree;
  bool is_sampled = false;
  absl::Status status;
  int32_t num_tokens = 0;
  int32_t num_logits = 0;
  std::vector<StepRowState> rows;
  std::vector<AttentionRow> attention_rows;
  std::vector<int32_t> token_ids;      // [num_tokens]
  std::vector<int32_t> positions;      // [num_tokens]
  std::vector<int32_t> token_row;      // [num_tokens], index into `rows`.
  std::vector<int32_t> logit_token;    // [num_logits], index of its token.
  std::vector<int32_t> sampled_rows;   // Rows with logits.
  std::vector<int32_t> scored_ids;     // [number of scored logits]
  std::vector<int32_t> scored_logits;  // Their indices among the logits.
  // Results, one entry for each logit row; a row uses as many as it accepts.
  std::vector<RowResult> results;
  std::vector<int32_t> tokens;
  std::vector<float> logprobs;
  std::vector<int32_t> ranks;       // Of scored logits.
  std::vector<char> is_non_finite;  // Of scored logits.
  std::vector<int64_t> top_begin;   // [num_logits]
  std::vector<int32_t> top_ids;
  std::vector<float> top_logprobs;
  std::vector<float> embeddings;  // [num_logits, pooled_cols]
};

struct KvLayers {
  AttentionSpec spec;
  KvBlockLayout layout;  // Of one block of one layer.
  int64_t layer_bytes = 0;
  MappedMemory memory;

  int64_t BytesPerBlock() const {
    return spec.num_layers * layout.BlockBytes();
  }
};

// Step is opaque to everybody; the CPU backend's are CpuSteps.
inline CpuStep& AsCpuStep(Step& step) {
  return *reinterpret_cast<CpuStep*>(&step);
}

// INVALID_ARGUMENT unless `view` is f32 with at least `rows` rows and exactly
// `cols` columns.
absl::Status CheckView(const char* name, const TensorView& view, int64_t rows,
                       int64_t cols);

// The same for the weight and bias of a norm over `cols`.
absl::Status CheckNorm(const char* name, const NormSpec& norm, int64_t cols);

}  // namespace quire

#endif  // QUIRE_KERNELS_CPU_CPU_STEP_H_
